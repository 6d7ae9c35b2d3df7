"""Trimming: dropping what is both older than the topic's retention and settled by every group.

Small steps, so that nobody waits long for the lock: after an append and at a member's heartbeat,
a bounded number of blocks. What a group's dedup window may have to be rebuilt from (its position
minus its window) stays, and so does everything a group has not settled.

The pages that become free are used again by the next messages. Where they are many, the file
gives some back to the file system (``auto_vacuum = INCREMENTAL``, which only a file that this
package has created has).
"""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from streams.errors import LogError, Unavailable
from streams.log.sqlite.database import Connection, Database
from streams.log.sqlite.schema import OFFSETS, place

_STEP = 64
"""Blocks of a partition dropped in one transaction, at most."""

_EVERY = 0.1
"""Real seconds between two looks at a topic, at least, unless the clock was moved on."""

_SELDOM = 1.0
"""The same of a topic that keeps everything."""

_SLACK = 100
"""Messages that a partition may have too many, at least, before it is worth a transaction."""

_PATIENCE = 0.05
"""Seconds to wait for the lock: there is always a next time."""

_FREE_PAGES = 1024
_VACUUM_PAGES = 256
_INCREMENTAL = 2

# Each partition of a topic that has messages: its number, first and next offset, from where its
# slowest group still needs it (NULL without any group), and the time of its oldest block.
_PARTITIONS = """
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


_DELETED = "SELECT no FROM streams_partitions WHERE topic = ''"


class _Cut(NamedTuple):
    no: int
    first: int


class Trimmer:
    """Trims the topics of one log. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._looked: dict[str, tuple[float, float]] = {}

    def now_and_then(self, topic: str) -> None:
        """Trim a little if it is time; appends and heartbeats call it as often as they like."""
        if self._database.settings.mode == "ro":
            return
        began, clock = time.monotonic(), self._database.clock.monotonic()
        with self._guard:
            next_, looked = self._looked.get(topic, (0.0, float("-inf")))
            if began < next_ and clock < looked + 1.0:
                return
            self._looked[topic] = (began + _EVERY, clock)
        try:
            pause = self.trim(topic)
        except LogError:
            # Whoever calls has succeeded in what it came for; if the file is broken, the next
            # append or heartbeat says so.
            return
        took = time.monotonic() - began
        with self._guard:
            self._looked[topic] = (began + (max(pause, 50 * took) if pause else 0.0), clock)

    def trim(self, topic: str) -> float:
        """Drop what may go, one step of it, and shorten the file.

        :returns: real seconds after which to look again, 0 if there is more to do.
        """
        database = self._database
        with database.read(snapshot=True) as connection:
            keeps_all = self._retention(connection, topic) == (None, None)
            cuts, more = self._cuts(connection, topic)
            if not cuts and not _hollow(connection):
                return _SELDOM if keeps_all else _EVERY
        try:
            with database.write(_PATIENCE) as connection:
                # Somebody may have moved a group back meanwhile: look again, under the lock.
                cuts, more = self._cuts(connection, topic)
                for no, first in cuts:
                    connection.execute(
                        "DELETE FROM streams_blocks"
                        " WHERE place BETWEEN ?1 AND ?2 AND place + count <= ?2",
                        (place(no, 0), place(no, first)),
                    )
                    connection.execute(
                        "UPDATE streams_partitions SET first = ? WHERE no = ?", (first, no)
                    )
                if _hollow(connection):
                    more = True
                    connection.rows(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})")
        except Unavailable:
            return _EVERY
        return 0.0 if more else _EVERY

    def sweep(self) -> None:
        """Finish the deletion of topics, a bounded number of blocks in each transaction.

        Deleting leaves the partitions without a topic; what is under way when a process dies goes
        on with the next deletion, or when the log is opened.
        """
        database = self._database
        while database.settings.mode != "ro":
            with database.read() as connection:
                found = connection.rows(f"{_DELETED} LIMIT 1")
            if not found:
                return
            (no,) = found[0]
            with database.write() as connection:
                connection.execute(
                    "DELETE FROM streams_blocks WHERE place IN"
                    " (SELECT place FROM streams_blocks WHERE place BETWEEN ? AND ? LIMIT ?)",
                    (place(no, 0), place(no, OFFSETS), _STEP),
                )
                if connection.changes() < _STEP:
                    connection.execute("DELETE FROM streams_partitions WHERE no = ?", (no,))

    @staticmethod
    def _retention(connection: Connection, topic: str) -> tuple[float | None, int | None]:
        rows = connection.rows(
            "SELECT seconds, messages FROM streams_topics WHERE name = ?", (topic,)
        )
        return rows[0] if rows else (None, None)

    def _cuts(self, connection: Connection, topic: str) -> tuple[list[_Cut], bool]:
        """The new first offset of each partition that can be trimmed; whether that is not all."""
        seconds, messages = self._retention(connection, topic)
        if (seconds, messages) == (None, None):
            return [], False
        oldest = float("-inf") if seconds is None else self._database.clock.time() - seconds
        cuts: list[_Cut] = []
        more = False
        for no, first, end, needed, taken in connection.array(_PARTITIONS, (topic,)):
            floor = end if needed is None else min(end, needed)
            kept = 0 if messages is None else end - messages
            if kept - first < max(_SLACK, (messages or 0) // 10):
                kept = 0
            if first >= floor or (not kept and taken / 1e6 >= oldest):
                continue
            found = connection.rows(
                "SELECT place, count, time FROM streams_blocks"
                " WHERE place >= ? AND place < ? ORDER BY place LIMIT ?",
                (place(no, 0), place(no, floor), _STEP),
            )
            cut = first
            for at, count, taken in found:
                behind = (at & OFFSETS) + count
                if behind > kept and taken / 1e6 >= oldest:
                    cut = max(cut, kept)
                    break
                cut = behind
            else:
                more = more or len(found) == _STEP
            if cut > first:
                cuts.append(_Cut(no, min(cut, floor)))
        return cuts, more


def _hollow(connection: Connection) -> bool:
    """Whether much of the file is free, and can be given back."""
    free = connection.rows("PRAGMA freelist_count")[0][0]
    return bool(
        free > _FREE_PAGES
        and free > connection.rows("PRAGMA page_count")[0][0] // 4
        and connection.rows("PRAGMA auto_vacuum")[0][0] == _INCREMENTAL
    )
