"""Topics: creating, changing, listing and deleting them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Sequence

from streams.errors import ConfigError, NotFound, Unavailable
from streams.log.events import events_only, not_an_event_topic, partition_count_mismatch
from streams.log.names import check_topic, topic_mismatch, topic_not_found
from streams.log.protocol import Retention, TopicInfo
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.member_rows import require_new_plan, require_new_plans
from streams.log.sqlite.retention import Trimmer
from streams.log.sqlite.shared_file import group_event, topic_event

_MAX_PARTITIONS = 100_000

_SELECT_TOPICS = (
    "SELECT name, partitions,"
    " EXISTS (SELECT 1 FROM streams_event_topics AS e WHERE e.topic = name), seconds, messages"
    " FROM streams_topics"
)
_SELECT_PLAIN_TOPICS = "SELECT name, partitions, 0, seconds, messages FROM streams_topics"


class Topics:
    """The topics of one file (any thread)."""

    def __init__(self, database: Database, trimmer: Trimmer) -> None:
        self._database = database
        self._trimmer = trimmer

    def create_topic(self, topic: str, partitions: int, retention: Retention) -> TopicInfo:
        """See :meth:`streams.log.protocol.Log.create_topic`; a given retention replaces that of an
        existing topic."""
        _check_new(topic, partitions)
        try:
            found = self.describe_topic(topic)
        except NotFound:
            found = None
        if found is None or _changes_retention(found, retention):
            groups: list[str] = []
            with self._database.write() as db:
                found = _find_topic(db, topic)
                if found is None:
                    groups = _insert_topic(db, topic, partitions, retention)
                    found = TopicInfo(topic, partitions, retention)
                elif _changes_retention(found, retention):
                    _set_retention(db, found, retention)
                    found = found._replace(retention=retention)
            self._wake(groups)
        if found.partitions != partitions:
            raise topic_mismatch(topic, found.partitions, partitions)
        return found

    def create_event_topic(self, topic: str, partitions: int) -> TopicInfo:
        """See :meth:`streams.log.events.EventLog.create_event_topic`."""
        _check_new(topic, partitions)
        if not self._database.has_event_tables:
            raise Unavailable(
                f"{self._database.path}: its file could not be extended; open it again"
            )
        groups: list[str] = []
        with self._database.write() as db:
            found = _find_topic(db, topic)
            if found is None:
                groups = _insert_topic(db, topic, partitions, Retention())
                db.execute("INSERT INTO streams_event_topics VALUES (?)", (topic,))
        if found is None:
            self._wake(groups)
            return TopicInfo(topic, partitions, is_event_topic=True)
        if not found.is_event_topic:
            raise not_an_event_topic(topic)
        if found.partitions != partitions:
            raise partition_count_mismatch(topic, found.partitions, partitions)
        return found

    def _wake(self, groups: Sequence[str]) -> None:
        """Make these groups' members plan now: one of them may have waited for a topic that now
        exists."""
        self._database.shared_file.notify([group_event(group) for group in groups])

    def set_retention(self, topic: str, retention: Retention) -> TopicInfo:
        """See :meth:`streams.log.protocol.Log.set_retention`."""
        with self._database.write() as db:
            found = _require_topic(db, topic)
            _set_retention(db, found, retention)
        return found._replace(retention=retention)

    def describe_topic(self, topic: str) -> TopicInfo:
        """See :meth:`streams.log.protocol.Log.describe_topic`."""
        with self._database.read() as db:
            return _require_topic(db, topic)

    def list_topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        with self._database.read() as db:
            return _select_topics(db, "ORDER BY name")

    def list_names(self) -> list[str]:
        """The names of all topics, sorted."""
        with self._database.read() as db:
            return [name for (name,) in db.fetch_rows("SELECT name FROM streams_topics ORDER BY 1")]

    def incarnation(self, topic: str) -> str:
        """See :meth:`streams.log.protocol.Log.incarnation`: the file's own number, which is created
        when it is first asked for, and that of the topic's first partition, which is never used
        again. A read-only log takes 0 for a file without a number."""
        select = "SELECT value FROM streams_meta WHERE name = 'file'"
        with self._database.read() as db:
            _require_topic(db, topic)
            ((first,),) = db.fetch_rows(
                "SELECT min(no) FROM streams_partitions WHERE topic = ?", (topic,)
            )
            rows = db.fetch_rows(select)
        if not rows and self._database.settings.mode == "ro":
            return f"0/{first}"
        if not rows:
            with self._database.write() as db:
                db.execute(
                    "INSERT OR IGNORE INTO streams_meta VALUES ('file', ?)", (secrets.randbits(62),)
                )
                rows = db.fetch_rows(select)
        return f"{rows[0][0]:x}/{first}"

    def delete_topic(self, topic: str) -> None:
        """Delete a topic with its messages and every group's position in it."""
        with self._database.write() as db:
            _require_topic(db, topic)
            ((first, last),) = db.fetch_rows(
                "SELECT min(no), max(no) FROM streams_partitions WHERE topic = ?", (topic,)
            )
            numbers = {"first": first, "last": last}
            groups = db.fetch_rows(
                'SELECT DISTINCT "group" FROM streams_places WHERE no BETWEEN :first AND :last',
                numbers,
            )
            for (group,) in groups:
                require_new_plan(db, group)
            db.execute("DELETE FROM streams_places WHERE no BETWEEN :first AND :last", numbers)
            db.execute(
                "UPDATE streams_partitions SET topic = '', partition = no"
                " WHERE no BETWEEN :first AND :last",
                numbers,
            )
            db.execute("DELETE FROM streams_topics WHERE name = ?", (topic,))
            if self._database.has_event_tables:
                db.execute("DELETE FROM streams_event_topics WHERE topic = ?", (topic,))
        events = [group_event(group) for (group,) in groups]
        self._database.shared_file.notify([topic_event(topic), *events])
        self._trimmer.finish_deletions()


def _check_new(topic: str, partitions: int) -> None:
    """Check that the topic can be created."""
    check_topic(topic)
    if not 1 <= partitions <= _MAX_PARTITIONS:
        raise ConfigError(
            f"topic {topic!r}: {partitions} partitions; 1 to {_MAX_PARTITIONS} are possible"
        )


def _select_topics(db: SqliteConnection, clause: str, *bindings: str) -> list[TopicInfo]:
    has_event_topics = db.table_exists("main", "streams_event_topics")
    select = _SELECT_TOPICS if has_event_topics else _SELECT_PLAIN_TOPICS
    return [
        TopicInfo(name, partitions, Retention(*bounds), is_event_topic=bool(is_event_topic))
        for name, partitions, is_event_topic, *bounds in db.fetch_rows(
            f"{select} {clause}", bindings
        )
    ]


def _find_topic(db: SqliteConnection, topic: str) -> TopicInfo | None:
    return next(iter(_select_topics(db, "WHERE name = ?", topic)), None)


def _require_topic(db: SqliteConnection, topic: str) -> TopicInfo:
    found = _find_topic(db, topic)
    if found is None:
        raise topic_not_found(topic)
    return found


def _changes_retention(found: TopicInfo, retention: Retention) -> bool:
    return retention not in (Retention(), found.retention)


def _set_retention(db: SqliteConnection, topic: TopicInfo, retention: Retention) -> None:
    if topic.is_event_topic:
        raise events_only(topic.name, "trimmed")
    db.execute(
        "UPDATE streams_topics SET seconds = ?, messages = ? WHERE name = ?",
        (retention.seconds, retention.messages, topic.name),
    )


def _insert_topic(
    db: SqliteConnection, topic: str, partitions: int, retention: Retention
) -> list[str]:
    """Insert a new topic; returns the groups whose members may have waited for it."""
    db.execute(
        "INSERT INTO streams_topics VALUES (?, ?, ?, ?)",
        (topic, partitions, retention.seconds, retention.messages),
    )
    # A topic's partition numbers are consecutive.
    ((last,),) = db.fetch_rows(
        "UPDATE streams_meta SET value = value + ? WHERE name = 'partitions' RETURNING value",
        (partitions,),
    )
    db.executemany(
        "INSERT INTO streams_partitions (no, topic, partition) VALUES (?, ?, ?)",
        [(last - partitions + p, topic, p) for p in range(partitions)],
    )
    return require_new_plans(db)


def partition_numbers(db: SqliteConnection, topics: Iterable[str]) -> dict[str, list[int]]:
    """The partition numbers of each topic."""
    rows = db.fetch_rows(
        "SELECT topic, json_group_array(no ORDER BY partition) FROM streams_partitions"
        " WHERE topic IN (SELECT value FROM json_each(?)) GROUP BY topic",
        (json.dumps(sorted(set(topics))),),
    )
    return {topic: json.loads(numbers) for topic, numbers in rows}
