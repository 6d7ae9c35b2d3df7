"""The log itself: what :mod:`streams.log.protocol` asks for, on one SQLite file."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from streams import wire
from streams.clock import SYSTEM
from streams.config import Flow
from streams.errors import ConfigError, Mismatch, NotFound
from streams.log.names import check_group, check_topic, no_topic
from streams.log.protocol import (
    TRIM_MARGIN,
    Capabilities,
    Committed,
    Done,
    Fact,
    GroupInfo,
    Listener,
    Log,
    Opened,
    Retention,
    Static,
    TopicInfo,
    check_retention,
)
from streams.log.sqlite import durability, scan, settings
from streams.log.sqlite.appender import Appender
from streams.log.sqlite.database import Connection, Database
from streams.log.sqlite.groups import Groups
from streams.log.sqlite.query import Queries
from streams.log.sqlite.retention import Trimmer
from streams.log.sqlite.roster import bump
from streams.log.sqlite.scan import StoredReader
from streams.log.sqlite.shared import group_key, topic_key
from streams.log.sqlite.subscription import StoredSubscription
from streams.message import Record

CAPABILITIES = Capabilities(name="sqlite", transactions=True, clocked=True)

_MOST_PARTITIONS = 100_000


def open(opened: Opened) -> Log:
    """The log in a file, which is made if there is none (unless ``mode`` says not to).

    :raises ConfigError: the URL cannot be used.
    :raises Unavailable: the file is locked, or cannot be opened.
    :raises NotFound: there is no such file, or no log in it, and none is to be made.
    :raises Fatal: it is no SQLite database, damaged, read-only, or of a newer version.
    """
    return SqliteLog(opened)


class SqliteLog:
    """A log in one file. Usable from any thread of the process that opened it."""

    def __init__(self, opened: Opened) -> None:
        self._database = Database(settings.read(opened), opened.clock or SYSTEM)
        self._trimmer = Trimmer(self._database)
        try:
            self._trimmer.sweep()
        except BaseException:
            self._database.close()
            raise
        self._appender = Appender(self._database, self._trimmer)
        self._groups = Groups(self._database)
        self._queries = Queries(self._database)
        self._guard = threading.Lock()
        self._subscriptions: set[StoredSubscription] = set()

    @property
    def capabilities(self) -> Capabilities:
        """What this log can do."""
        return CAPABILITIES

    # -- topics

    def create(
        self,
        topic: str,
        partitions: int,
        retention: Retention = Retention(),
        config: Mapping[str, str] | None = None,
    ) -> TopicInfo:
        """Create a topic; ``config`` is for servers and means nothing here.

        Declared again with a retention, the topic takes it over; declared without one, it keeps
        what it has.

        :raises Mismatch: it exists with another number of partitions.
        :raises ConfigError: there is no such retention here.
        """
        check_topic(topic)
        check_retention(topic, retention, CAPABILITIES)
        if not 1 <= partitions <= _MOST_PARTITIONS:
            raise ConfigError(
                f"topic {topic!r}: {partitions} partitions; 1 to {_MOST_PARTITIONS} are possible"
            )
        try:
            found = self.topic(topic)
        except NotFound:
            found = None
        if found is None or _differs(found, retention):
            with self._database.write() as connection:
                found = _find(connection, topic)
                if found is None:
                    _insert(connection, topic, partitions, retention)
                    found = TopicInfo(topic, partitions, retention)
                elif _differs(found, retention):
                    _set_retention(connection, topic, retention)
                    found = found._replace(retention=retention)
        if found.partitions != partitions:
            raise Mismatch(
                f"topic {topic!r} has {found.partitions} partitions, declared with {partitions}; "
                "declare that number, or leave it out"
            )
        return found

    def retain(self, topic: str, retention: Retention) -> TopicInfo:
        """Give a topic that exists another retention.

        :raises NotFound: there is none of that name.
        :raises ConfigError: there is no such retention here.
        """
        check_retention(topic, retention, CAPABILITIES)
        with self._database.write() as connection:
            found = _find(connection, topic)
            if found is None:
                raise no_topic(topic)
            _set_retention(connection, topic, retention)
        return found._replace(retention=retention)

    def topic(self, topic: str) -> TopicInfo:
        """A topic's facts.

        :raises NotFound: there is none of that name.
        """
        with self._database.read() as connection:
            found = _find(connection, topic)
        if found is None:
            raise no_topic(topic)
        return found

    def topics(self) -> list[TopicInfo]:
        """All topics, by name."""
        with self._database.read() as connection:
            rows = connection.rows(f"{_TOPICS} ORDER BY name")
        return [_info(*row) for row in rows]

    def durability(self, topic: str) -> tuple[Fact, ...]:
        """How the file is written, and what it lies on; the same for every topic."""
        return durability.facts(self._database)

    def delete(self, topic: str) -> None:
        """Delete a topic with its messages and every group's position in it."""
        with self._database.write() as connection:
            if _find(connection, topic) is None:
                raise no_topic(topic)
            ((first, last),) = connection.rows(
                "SELECT min(no), max(no) FROM streams_partitions WHERE topic = ?", (topic,)
            )
            numbers = {"first": first, "last": last}
            groups = connection.rows(
                'SELECT DISTINCT "group" FROM streams_places WHERE no BETWEEN :first AND :last',
                numbers,
            )
            for (group,) in groups:
                bump(connection, group)
            connection.execute(
                "DELETE FROM streams_places WHERE no BETWEEN :first AND :last", numbers
            )
            connection.execute(
                "UPDATE streams_partitions SET topic = '', partition = no"
                " WHERE no BETWEEN :first AND :last",
                numbers,
            )
            connection.execute("DELETE FROM streams_topics WHERE name = ?", (topic,))
        self._database.shared.notify([topic_key(topic), *(group_key(name) for (name,) in groups)])
        self._trimmer.sweep()

    # -- writing

    def append(self, topic: str, records: Sequence[Record], done: Done) -> None:
        """Write records in order, in one transaction; ``done`` is told before this returns."""
        self._appender.append(topic, records, done)

    def flush(self, timeout: float) -> None:
        """Wait for the appends of other threads.

        :raises Unavailable: some have not ended after ``timeout`` seconds.
        """
        self._appender.flush(timeout)

    # -- reading

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """First offset that can be read, and the one the next message will get."""
        self._trimmer.now_and_then(topic)  # what is too old is not there any more
        with self._database.read() as connection:
            found = scan.part(connection, topic, partition)
        return found.first, found.next

    def end(self, topic: str, partition: int) -> int:
        """The end, all of which can be read."""
        return self.bounds(topic, partition)[1]

    def at(self, topic: str, partition: int, time: float) -> int:
        """Offset of the first message the log took at or after ``time``; the end if none."""
        with self._database.read(snapshot=True) as connection:
            return scan.at(connection, topic, partition, time)

    def back(self, topic: str, partition: int, position: int, count: int) -> int:
        """Offset of the message ``count`` before ``position``, or the first there is."""
        first, end = self.bounds(topic, partition)
        return max(first, min(position, end) - count)

    def lag(self, topic: str, partition: int, position: int) -> int:
        """How many messages stand at or behind ``position``."""
        first, end = self.bounds(topic, partition)
        return max(0, end - max(first, position))

    def reader(self, topic: str, partition: int, start: int, end: int) -> StoredReader:
        """Read from offset ``start`` up to, not including, offset ``end``."""
        return StoredReader(self._database, topic, partition, start, end)

    # -- groups

    def begin(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a new group its positions: True where it had none in this topic."""
        return self._groups.begin(check_group(group), topic, positions)

    def group(self, group: str) -> GroupInfo:
        """A group's members and positions.

        :raises NotFound: there is none of that name.
        """
        return self._groups.info(group)

    def places(self, group: str, topic: str) -> dict[int, Committed]:
        """Where a group is in one topic, by partition; nothing if it never was there."""
        try:
            return self.group(group).places(topic)
        except NotFound:
            return {}

    def groups(self) -> list[str]:
        """The names of all groups, sorted."""
        return self._groups.names()

    def move(
        self, group: str, topic: str, places: Mapping[int, Committed], *, force: bool = False
    ) -> None:
        """Set a group's places in a topic.

        :raises GroupLive: it has running members, and ``force`` is not set.
        """
        self._groups.move(check_group(group), topic, places, force=force)

    def forget(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupLive: it has running members.
        """
        self._groups.forget(group)

    def subscribe(
        self,
        group: str,
        topics: Sequence[str],
        listener: Listener,
        *,
        flow: Flow = Flow(),
        window: int = TRIM_MARGIN,
        member: Static | None = None,
    ) -> StoredSubscription:
        """Join a group; partitions come with the first polls.

        :raises NotFound: one of the topics does not exist.
        """
        subscription = StoredSubscription(
            self._database,
            self._trimmer,
            check_group(group),
            topics,
            listener,
            flow,
            window,
            self._forget_subscription,
            member,
        )
        with self._guard:
            self._subscriptions.add(subscription)
        return subscription

    def expel(self, group: str, member: Static) -> None:
        """Nothing to do: the others see that the process's lock is gone."""

    def _forget_subscription(self, subscription: StoredSubscription) -> None:
        with self._guard:
            self._subscriptions.discard(subscription)

    # -- the rest

    def show(self, offset: int) -> str:
        """An offset as people write it: the number."""
        return str(offset)

    def parse(self, text: str) -> int:
        """An offset as :meth:`show` writes it.

        :raises ConfigError: it is none.
        """
        found = wire.whole(text)
        if found is None:
            raise ConfigError(f"offset {wire.brief(text, 60)!r}: a number such as 1042 is needed")
        return found

    # -- SQL

    def query(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """The rows of one SQL statement that reads."""
        return self._queries.run(sql, parameters)

    def close(self) -> None:
        """Let go of everything. Subscriptions still open leave their groups undrained."""
        if not self._database.forked:
            with self._guard:
                left = list(self._subscriptions)
            for subscription in left:
                subscription.abandon()
            self._queries.close()
            self._database.close()


_TOPICS = "SELECT name, partitions, seconds, messages FROM streams_topics"


def _info(name: str, partitions: int, seconds: float | None, messages: int | None) -> TopicInfo:
    return TopicInfo(name, partitions, Retention(seconds, messages))


def _find(connection: Connection, topic: str) -> TopicInfo | None:
    rows = connection.rows(f"{_TOPICS} WHERE name = ?", (topic,))
    return _info(*rows[0]) if rows else None


def _differs(found: TopicInfo, retention: Retention) -> bool:
    return retention not in (Retention(), found.retention)


def _set_retention(connection: Connection, topic: str, retention: Retention) -> None:
    connection.execute(
        "UPDATE streams_topics SET seconds = ?, messages = ? WHERE name = ?",
        (retention.seconds, retention.messages, topic),
    )


def _insert(connection: Connection, topic: str, partitions: int, retention: Retention) -> None:
    connection.execute(
        "INSERT INTO streams_topics VALUES (?, ?, ?, ?)",
        (topic, partitions, retention.seconds, retention.messages),
    )
    # A topic's numbers follow each other.
    ((last,),) = connection.rows(
        "UPDATE streams_meta SET value = value + ? WHERE name = 'partitions' RETURNING value",
        (partitions,),
    )
    connection.executemany(
        "INSERT INTO streams_partitions (no, topic, partition) VALUES (?, ?, ?)",
        [(last - partitions + p, topic, p) for p in range(partitions)],
    )
