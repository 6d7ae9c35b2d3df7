"""Trimming: drops messages that are older than the topic's retention and settled by every group.

After an append and at a member's heartbeat a bounded number of blocks is dropped, so that no writer
waits long for the lock. Messages that a group has not settled stay, and so do those from which its
dedup window is rebuilt (as many messages below its position).

The freed pages are used again by the next messages. If there are many, the file gives some back to
the file system (``auto_vacuum = INCREMENTAL``, which only a file that this package has created
has).
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from streams.errors import LogError, Unavailable
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.schema import EVENT_TABLE_NAMES, OFFSET_MASK, block_key

_STEP_BLOCKS = 64
"""Blocks of a partition dropped in one transaction, at most."""

_CHECK_INTERVAL = 0.1
"""Real seconds between two checks of a topic, at least, unless the clock was advanced."""

_UNBOUNDED_CHECK_INTERVAL = 1.0
"""Real seconds between two checks of a topic that keeps everything, at least."""

_MIN_SURPLUS = 100
"""The fewest messages above the bound for which a transaction is worth its cost."""

_LOCK_TIMEOUT = 0.05
"""Seconds to wait for the lock: the next append or heartbeat tries again."""

_MIN_FREE_PAGES = 1024
_VACUUM_PAGES = 256
_AUTO_VACUUM_INCREMENTAL = 2

# Each partition of a topic that has messages: its number, first and next offset, the first offset
# that its slowest group needs (NULL without any group), and the time of its oldest block.
_SELECT_PARTITIONS = """
WITH needed AS (
    SELECT c.no AS no, min(c.position - g.window) AS floor
    FROM streams_places AS c JOIN streams_groups AS g ON g.name = c."group"
    WHERE c.position IS NOT NULL GROUP BY c.no
)
SELECT json_group_array(json_array(p.no, p.first, p.next, n.floor, (
    SELECT b.time FROM streams_blocks AS b
    WHERE b.place BETWEEN p.no << 40 AND (p.no << 40) + p.next ORDER BY b.place LIMIT 1
)))
FROM streams_partitions AS p LEFT JOIN needed AS n ON n.no = p.no
WHERE p.topic = ? AND p.first < p.next
"""

_SET_FIRST_OFFSET = "UPDATE streams_partitions SET first = ? WHERE no = ?"

_SELECT_DELETED = "SELECT no FROM streams_partitions WHERE topic = ''"


class _TrimPoint(NamedTuple):
    partition_number: int
    first_offset: int


class _LastCheck(NamedTuple):
    """When a topic was last checked, on the log's clock, and is next checked, in real time."""

    next_due: float = 0.0
    clock: float = float("-inf")


class Trimmer:
    """Trims the topics of one log. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._checks: dict[str, _LastCheck] = {}

    def trim_if_due(self, topic: str) -> None:
        """Trim a bounded number of blocks if a check is due; every append and heartbeat calls
        it."""
        if self._database.settings.mode == "ro":
            return
        began, clock = time.monotonic(), self._database.clock.monotonic()
        with self._lock:
            last = self._checks.get(topic, _LastCheck())
            if began < last.next_due and clock < last.clock + 1.0:
                return
            self._checks[topic] = _LastCheck(began + _CHECK_INTERVAL, clock)
        try:
            pause = self.trim(topic)
        except LogError:
            # The caller's own operation has succeeded; if the file is broken, the next append or
            # heartbeat fails.
            return
        took = time.monotonic() - began
        with self._lock:
            next_due = began + (max(pause, 50 * took) if pause else 0.0)
            self._checks[topic] = _LastCheck(next_due, clock)

    def trim(self, topic: str) -> float:
        """Drop a bounded number of the blocks that may be dropped, and shorten the file.

        :returns: real seconds until the next check, 0 if there is more to do.
        """
        database = self._database
        with database.read(snapshot=True) as db:
            keeps_all = self._retention(db, topic) == (None, None)
            points, more = self._trim_points(db, topic)
            if not points and not _should_vacuum(db):
                return _UNBOUNDED_CHECK_INTERVAL if keeps_all else _CHECK_INTERVAL
        try:
            with database.write(_LOCK_TIMEOUT) as db:
                # A group may have been reset meanwhile: read again, under the lock.
                points, more = self._trim_points(db, topic)
                for number, first in points:
                    db.execute(
                        "DELETE FROM streams_blocks"
                        " WHERE place BETWEEN ?1 AND ?2 AND place + count <= ?2",
                        (block_key(number, 0), block_key(number, first)),
                    )
                    db.execute(_SET_FIRST_OFFSET, (first, number))
                if _should_vacuum(db):
                    more = True
                    db.fetch_rows(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        except Unavailable:
            return _CHECK_INTERVAL
        return 0.0 if more else _CHECK_INTERVAL

    def finish_deletions(self) -> None:
        """Finish the deletion of topics, a bounded number of blocks in each transaction.

        Deleting leaves the partitions without a topic; if a process dies meanwhile, the next
        deletion or opening of the log continues.
        """
        database = self._database
        while database.settings.mode != "ro":
            with database.read() as db:
                found = db.fetch_rows(f"{_SELECT_DELETED} LIMIT 1")
            if not found:
                return
            (number,) = found[0]
            with database.write() as db:
                db.execute(
                    "DELETE FROM streams_blocks WHERE place IN"
                    " (SELECT place FROM streams_blocks WHERE place BETWEEN ? AND ? LIMIT ?)",
                    (block_key(number, 0), block_key(number, OFFSET_MASK), _STEP_BLOCKS),
                )
                if db.changes() < _STEP_BLOCKS and not self._delete_histories(db, number):
                    db.execute("DELETE FROM streams_partitions WHERE no = ?", (number,))

    def _delete_histories(self, db: SqliteConnection, number: int) -> bool:
        """Delete some of a deleted partition's histories; returns whether there may be more."""
        if not self._database.has_event_tables:
            return False
        for table in EVENT_TABLE_NAMES:
            db.execute(
                f"DELETE FROM {table} WHERE no = ? AND key IN"  # noqa: S608 - our own names
                f" (SELECT key FROM {table} WHERE no = ? LIMIT ?)",
                (number, number, _STEP_BLOCKS),
            )
            if db.changes():
                return True
        return False

    @staticmethod
    def _retention(db: SqliteConnection, topic: str) -> tuple[float | None, int | None]:
        rows = db.fetch_rows(
            "SELECT seconds, messages FROM streams_topics WHERE name = ?", (topic,)
        )
        return rows[0] if rows else (None, None)

    def _trim_points(self, db: SqliteConnection, topic: str) -> tuple[list[_TrimPoint], bool]:
        """The new first offset of each partition that can be trimmed, and whether there is more to
        trim."""
        seconds, messages = self._retention(db, topic)
        if (seconds, messages) == (None, None):
            return [], False
        oldest = float("-inf") if seconds is None else self._database.clock.time() - seconds
        points: list[_TrimPoint] = []
        more = False
        for number, first, end, needed, time_us in db.fetch_json(_SELECT_PARTITIONS, (topic,)):
            floor = end if needed is None else min(end, needed)
            count_bound = 0 if messages is None else end - messages
            if count_bound - first < max(_MIN_SURPLUS, (messages or 0) // 10):
                count_bound = 0
            if first >= floor or (not count_bound and time_us / 1e6 >= oldest):
                continue
            found = db.fetch_rows(
                "SELECT place, count, time FROM streams_blocks"
                " WHERE place >= ? AND place < ? ORDER BY place LIMIT ?",
                (block_key(number, 0), block_key(number, floor), _STEP_BLOCKS),
            )
            first_kept = first
            for block_place, count, time_us in found:
                block_end = (block_place & OFFSET_MASK) + count
                if block_end > count_bound and time_us / 1e6 >= oldest:
                    first_kept = max(first_kept, count_bound)
                    break
                first_kept = block_end
            else:
                more = more or len(found) == _STEP_BLOCKS
            if first_kept > first:
                points.append(_TrimPoint(number, min(first_kept, floor)))
        return points, more


def _should_vacuum(db: SqliteConnection) -> bool:
    """Whether so much of the file is free that pages should be given back."""
    free = db.fetch_rows("PRAGMA freelist_count")[0][0]
    return bool(
        free > _MIN_FREE_PAGES
        and free > db.fetch_rows("PRAGMA page_count")[0][0] // 4
        and db.fetch_rows("PRAGMA auto_vacuum")[0][0] == _AUTO_VACUUM_INCREMENTAL
    )
