"""Groups and their positions, apart from who owns what."""

from __future__ import annotations

from collections.abc import Mapping

from streams.errors import GroupLive, NotFound
from streams.log.names import no_group
from streams.log.protocol import Committed, GroupInfo, MemberInfo
from streams.log.sqlite.database import Connection, Database
from streams.log.sqlite.roster import Row, bump, is_running, members
from streams.log.sqlite.shared import group_key
from streams.text import get_logger

logger = get_logger("streams")


class Groups:
    """The groups of one log. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin(self, group: str, topic: str, positions: Mapping[int, int]) -> bool:
        """Give a group its first positions in a topic, unless it has some."""
        with self._database.write() as connection:
            numbers = _numbers(connection, topic, positions)
            held = connection.rows(
                'SELECT 1 FROM streams_places WHERE "group" = ? AND position IS NOT NULL'
                " AND no IN (SELECT no FROM streams_partitions WHERE topic = ?) LIMIT 1",
                (group, topic),
            )
            if held:
                return False
            ensure(connection, group)
            connection.executemany(
                'INSERT INTO streams_places ("group", no, position) VALUES (?, ?, ?)'
                " ON CONFLICT DO UPDATE SET position = excluded.position",
                [(group, numbers[p], position) for p, position in positions.items()],
            )
        return True

    def names(self) -> list[str]:
        """All groups, sorted."""
        with self._database.read() as connection:
            rows = connection.rows("SELECT name FROM streams_groups ORDER BY name")
        return [name for (name,) in rows]

    def info(self, group: str) -> GroupInfo:
        """A group's members and positions.

        :raises NotFound: there is none of that name.
        """
        with self._database.read(snapshot=True) as connection:
            _check(connection, group)
            places = connection.rows(
                "SELECT p.topic, p.partition, c.position, c.progress, c.owner"
                " FROM streams_places AS c JOIN streams_partitions AS p ON p.no = c.no"
                ' WHERE c."group" = ? ORDER BY p.topic, p.partition',
                (group,),
            )
            rows = self._running(connection, group)
        return GroupInfo(
            group,
            tuple(
                MemberInfo(
                    row.id, tuple((topic, p) for topic, p, _, _, owner in places if owner == row.no)
                )
                for row in rows
            ),
            {
                (topic, partition): Committed(position, str(progress))
                for topic, partition, position, progress, _ in places
                if position is not None and self._is_place(group, topic, partition, position)
            },
        )

    def _is_place(self, group: str, topic: str, partition: int, position: object) -> bool:
        if isinstance(position, int):
            return True
        logger.warning(
            "%s: %s/%d is left out: in streams_places the group %r is at %.50r, which is no "
            "offset: set it by `streams reset %s %s --to PLACE`",
            self._database.path, topic, partition, group, position, group, topic,
        )  # fmt: skip
        return False

    def move(self, group: str, topic: str, places: Mapping[int, Committed], *, force: bool) -> None:
        """Set a group's places, and raise their epochs, so that whoever owned them has lost them.

        :raises GroupLive: it has running members, and ``force`` is not set.
        """
        with self._database.write() as connection:
            numbers = _numbers(connection, topic, places)
            if not force:
                self._refuse_live(connection, group)
            ensure(connection, group)
            connection.executemany(
                'INSERT INTO streams_places ("group", no, position, progress, epoch)'
                " VALUES (?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET position = excluded.position,"
                " progress = excluded.progress, epoch = epoch + 1, owner = NULL",
                [(group, numbers[p], at.position, at.progress) for p, at in places.items()],
            )
            bump(connection, group)
        self._database.shared.notify([group_key(group)])

    def forget(self, group: str) -> None:
        """Delete a group and its positions.

        :raises GroupLive: it has running members.
        :raises NotFound: there is none of that name.
        """
        with self._database.write() as connection:
            _check(connection, group)
            self._refuse_live(connection, group)
            connection.execute('DELETE FROM streams_places WHERE "group" = ?', (group,))
            connection.execute('DELETE FROM streams_members WHERE "group" = ?', (group,))
            connection.execute("DELETE FROM streams_groups WHERE name = ?", (group,))

    def _running(self, connection: Connection, group: str) -> list[Row]:
        clock, alive = self._database.clock, self._database.shared.alive
        return [row for row in members(connection, group) if is_running(row, clock, alive)]

    def _refuse_live(self, connection: Connection, group: str) -> None:
        running = self._running(connection, group)
        if running:
            raise GroupLive(
                f"group {group!r} has {len(running)} running member(s), such as {running[0].id}; "
                "stop them first, or force it"
            )


def ensure(connection: Connection, group: str) -> None:
    """Make the group, if there is none of that name."""
    connection.execute("INSERT OR IGNORE INTO streams_groups (name) VALUES (?)", (group,))


def _check(connection: Connection, group: str) -> None:
    if not connection.rows("SELECT 1 FROM streams_groups WHERE name = ?", (group,)):
        raise no_group(group)


def _numbers(connection: Connection, topic: str, wanted: Mapping[int, object]) -> dict[int, int]:
    """The numbers of a topic's partitions, all those wanted among them."""
    rows = connection.rows("SELECT partition, no FROM streams_partitions WHERE topic = ?", (topic,))
    numbers = dict(rows)
    for partition in wanted:
        if partition not in numbers:
            raise NotFound(f"there is no partition {partition} of a topic {topic!r}")
    return numbers
