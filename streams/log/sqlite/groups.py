"""Groups and their positions, without the ownership of partitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streams.errors import NotFound
from streams.log.names import group_not_empty, group_not_found
from streams.log.protocol import Committed, GroupInfo, MemberInfo, TopicPartition
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.member_rows import MemberRow, is_running, member_rows, require_new_plan
from streams.log.sqlite.shared_file import group_event
from streams.log.sqlite.topics import partition_numbers
from streams.text import get_logger

logger = get_logger("streams")


class Groups:
    """The groups of one log. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def initialize_offsets(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """See :meth:`streams.log.protocol.Log.initialize_offsets`."""
        with self._database.write() as db:
            numbers = _partition_numbers(db, topic, positions)
            has_offsets = db.fetch_rows(
                'SELECT 1 FROM streams_places WHERE "group" = ? AND position IS NOT NULL'
                " AND no IN (SELECT no FROM streams_partitions WHERE topic = ?) LIMIT 1",
                (group, topic),
            )
            if has_offsets:
                return False
            _ensure_group(db, group)
            db.executemany(
                'INSERT INTO streams_places ("group", no, position) VALUES (?, ?, ?)'
                " ON CONFLICT DO UPDATE SET position = excluded.position",
                [(group, numbers[p], position) for p, position in positions.items()],
            )
        return True

    def list_groups(self) -> list[str]:
        """All groups, sorted."""
        with self._database.read() as db:
            rows = db.fetch_rows("SELECT name FROM streams_groups ORDER BY name")
        return [name for (name,) in rows]

    def describe_group(self, group: str) -> GroupInfo:
        """See :meth:`streams.log.protocol.Log.describe_group`."""
        with self._database.read(snapshot=True) as db:
            _require_group(db, group)
            offset_rows = db.fetch_rows(
                # (The driver refuses text that is not UTF-8.)
                "SELECT p.topic, p.partition,"
                " iif(typeof(c.position) = 'text', CAST(c.position AS BLOB), c.position),"
                " CAST(c.progress AS BLOB), iif(typeof(c.owner) = 'integer', c.owner, NULL)"
                " FROM streams_places AS c JOIN streams_partitions AS p ON p.no = c.no"
                ' WHERE c."group" = ? ORDER BY p.topic, p.partition',
                (group,),
            )
            running = self._running_members(db, group)
        partitions: dict[int, list[TopicPartition]] = {row.number: [] for row in running}
        positions: dict[TopicPartition, Committed] = {}
        for topic, partition, position, progress, owner in offset_rows:
            if owner in partitions:
                partitions[owner].append((topic, partition))
            if isinstance(position, int):
                positions[topic, partition] = Committed(
                    position, progress.decode("ascii", "replace")
                )
            elif position is not None:
                logger.warning(
                    "%s: %s/%d is left out: in streams_places the group %r is at %.50r, which is "
                    "no offset: set it by `streams reset %s %s --to PLACE`",
                    self._database.path, topic, partition, group, position, group, topic,
                )  # fmt: skip
        members = tuple(MemberInfo(row.id, tuple(partitions[row.number])) for row in running)
        return GroupInfo(group, members, positions)

    def reset_offsets(
        self, group: str, topic: str, offsets: Mapping[int, Committed], *, force: bool
    ) -> None:
        """See :meth:`streams.log.protocol.Log.reset_offsets`: the epochs are raised, so that the
        owners lose the partitions."""
        with self._database.write() as db:
            numbers = _partition_numbers(db, topic, offsets)
            if not force:
                self._require_no_members(db, group)
            _ensure_group(db, group)
            db.executemany(
                'INSERT INTO streams_places ("group", no, position, progress, epoch)'
                " VALUES (?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET position = excluded.position,"
                " progress = excluded.progress, epoch = epoch + 1, owner = NULL",
                [(group, numbers[p], *committed) for p, committed in offsets.items()],
            )
            require_new_plan(db, group)
        self._database.shared_file.notify([group_event(group)])

    def delete_group(self, group: str) -> None:
        """See :meth:`streams.log.protocol.Log.delete_group`."""
        with self._database.write() as db:
            _require_group(db, group)
            self._require_no_members(db, group)
            db.execute('DELETE FROM streams_places WHERE "group" = ?', (group,))
            db.execute('DELETE FROM streams_members WHERE "group" = ?', (group,))
            db.execute("DELETE FROM streams_groups WHERE name = ?", (group,))

    def _running_members(self, db: SqliteConnection, group: str) -> list[MemberRow]:
        clock, alive = self._database.clock, self._database.shared_file.member_locks
        return [row for row in member_rows(db, group) if is_running(row, clock, alive)]

    def _require_no_members(self, db: SqliteConnection, group: str) -> None:
        running = self._running_members(db, group)
        if running:
            raise group_not_empty(group, len(running), f" (such as {running[0].id})")


def _ensure_group(db: SqliteConnection, group: str) -> None:
    db.execute("INSERT OR IGNORE INTO streams_groups (name) VALUES (?)", (group,))


def _require_group(db: SqliteConnection, group: str) -> None:
    if not db.fetch_rows("SELECT 1 FROM streams_groups WHERE name = ?", (group,)):
        raise group_not_found(group)


def _partition_numbers(db: SqliteConnection, topic: str, wanted: Iterable[int]) -> list[int]:
    """The numbers of a topic's partitions, which include all the wanted ones."""
    numbers = partition_numbers(db, [topic]).get(topic, [])
    for partition in wanted:
        if not 0 <= partition < len(numbers):
            raise NotFound(f"there is no partition {partition} of a topic {topic!r}")
    return numbers
