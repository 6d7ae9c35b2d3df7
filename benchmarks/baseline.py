"""The loops one would write by hand, for a sceptic to read: they do the same work as ours.

Each decodes to the same typed Struct, looks at key, partition, offset and message ID, drops an ID
it has seen in a bounded window, calls a function, and stores its position once a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import apsw
import msgspec

from benchmarks.orders import Order

WINDOW = 10_000
COMMIT = 1.0

Row = tuple[int, int, str, bytes, bytes]
"""Partition, offset, ID, key, value."""


def by_hand(batches: Iterator[list[Row]], function: Callable[[Order], None], commit: Any) -> None:
    """Handle every message of every batch."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[str, None] = {}
    old: dict[str, None] = {}
    positions: dict[int, int] = {}
    next_commit = time.monotonic() + COMMIT
    for batch in batches:
        for partition, offset, id, _key, value in batch:
            if id in new or id in old:
                continue
            function(decode(value))
            new[id] = None
            positions[partition] = offset + 1
        if len(new) >= WINDOW:
            old, new = new, {}
        if time.monotonic() >= next_commit:
            commit(positions)
            next_commit = time.monotonic() + COMMIT
    commit(positions)


def batches_by_hand(
    batches: Iterator[list[Row]], function: Callable[[list[Order]], None], commit: Any
) -> None:
    """The same for a function that takes lists."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[str, None] = {}
    old: dict[str, None] = {}
    positions: dict[int, int] = {}
    next_commit = time.monotonic() + COMMIT
    for batch in batches:
        events = []
        for partition, offset, id, _key, value in batch:
            if id in new or id in old:
                continue
            events.append(decode(value))
            new[id] = None
            positions[partition] = offset + 1
        function(events)
        if len(new) >= WINDOW:
            old, new = new, {}
        if time.monotonic() >= next_commit:
            commit(positions)
            next_commit = time.monotonic() + COMMIT
    commit(positions)


def from_list(rows: list[Row], size: int = 1_000) -> Iterator[list[Row]]:
    """Batches of a list: what stands in memory."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


class SqliteFile:
    """A table one would make for the purpose, and the loop over it with apsw."""

    def __init__(self, path: str) -> None:
        self._connection = apsw.Connection(path)
        self._connection.execute("PRAGMA journal_mode = wal; PRAGMA synchronous = full")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, partition INTEGER, "
            "id TEXT, key BLOB, value BLOB);"
            "CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, position INTEGER)"
        )

    def append(self, rows: list[Row]) -> None:
        """Write rows in one transaction."""
        with self._connection:
            self._connection.executemany(
                "INSERT INTO records (partition, id, key, value) VALUES (?, ?, ?, ?)",
                [(partition, id, key, value) for partition, _, id, key, value in rows],
            )

    def batches(self, size: int = 1_000) -> Iterator[list[Row]]:
        """All rows, read on by number."""
        last = 0
        query = (
            "SELECT partition, number, id, key, value FROM records "
            "WHERE number > ? ORDER BY number LIMIT ?"
        )
        while True:
            rows: list[Any] = self._connection.execute(query, (last, size)).fetchall()
            if not rows:
                return
            last = rows[-1][1]
            yield rows

    def commit(self, positions: dict[int, int]) -> None:
        """Store the positions."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO positions VALUES (?, ?)", list(positions.items())
            )

    def clear(self) -> None:
        """Forget all rows."""
        with self._connection:
            self._connection.execute("DELETE FROM records")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()
