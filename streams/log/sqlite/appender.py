"""Writing messages: one transaction a call, however many records it has.

Everything that can be done before the lock is taken is (placing, encoding), so that writers of
several processes hold each other up as little as possible.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

from streams.errors import LogError, NotFound, TooLarge
from streams.log.names import no_topic, places
from streams.log.protocol import Done
from streams.log.sqlite import blocks
from streams.log.sqlite.blocks import Encoded
from streams.log.sqlite.database import Connection, Database
from streams.log.sqlite.retention import Trimmer
from streams.log.sqlite.schema import place
from streams.log.sqlite.shared import topic_key
from streams.message import Position, Record

Outcomes = Sequence["Position | LogError"]


# A statement for many rows, as each step of a statement may cost a turn (see blocks.py). SQLite
# copies the rows of such a one once more, so that for few it does not pay.
_FEW, _MANY = 4, 16
_INSERT = "INSERT INTO streams_blocks VALUES (?, ?, ?, ?)"
_UPDATE = """
UPDATE streams_partitions SET next = u.value ->> 0, time = u.value ->> 1, loose = u.value ->> 2
FROM json_each(?) AS u WHERE no = u.value ->> 3
"""


class _Run(NamedTuple):
    """What goes to one partition: which records, as which blocks."""

    partition: int
    indexes: Sequence[int]
    blocks: list[Encoded]


class Appender:
    """Appends to a log's topics. Usable from any thread."""

    def __init__(self, database: Database, trimmer: Trimmer) -> None:
        self._database = database
        self._trimmer = trimmer
        self._max = database.settings.max_record
        self._numbers: dict[str, list[int]] = {}
        """Each topic's partition numbers, believed until a transaction finds them gone."""

    def append(self, topic: str, records: Sequence[Record], done: Done) -> None:
        """Write records in order, and say how it ended (never raises for the records' sake)."""
        try:
            outcomes = self._append(topic, records)
        except LogError as error:
            outcomes = [error] * len(records)
        done(outcomes)
        self._trimmer.now_and_then(topic)

    def _append(self, topic: str, records: Sequence[Record]) -> Outcomes:
        for _ in range(2):
            numbers = self._numbers.get(topic) or self._look_up(topic)
            runs, refused = self._place(topic, records, len(numbers))
            placed = self._write(topic, numbers, runs)
            if placed is not None:
                return self._outcomes(topic, records, runs, placed, refused)
            self._numbers.pop(topic, None)  # it was deleted, and perhaps made anew
        raise NotFound(f"topic {topic!r} is being deleted")

    def _look_up(self, topic: str) -> list[int]:
        with self._database.read() as connection:
            rows = connection.rows(
                "SELECT no FROM streams_partitions WHERE topic = ? ORDER BY partition", (topic,)
            )
        if not rows:
            raise no_topic(topic)
        numbers = self._numbers[topic] = [no for (no,) in rows]
        return numbers

    # -- before the lock

    def _place(
        self, topic: str, records: Sequence[Record], count: int
    ) -> tuple[list[_Run], dict[int, LogError]]:
        """The records by partition, as blocks, and those that cannot be written."""
        refused: dict[int, LogError] = {}
        indexes: Mapping[int, Sequence[int]]
        if count == 1 and not any(record.partition for record in records):
            indexes = {0: range(len(records))}
        else:
            partitions = places(records, count)
            lists: dict[int, list[int]] = {partition: [] for partition in set(partitions)}
            for index, partition in enumerate(partitions):
                lists[partition].append(index)
            for partition in [p for p in lists if not 0 <= p < count]:
                error = NotFound(f"topic {topic!r} has {count} partitions, none is {partition}")
                refused.update(dict.fromkeys(lists.pop(partition), error))
            indexes = lists
        runs: list[_Run] = []
        for partition, wanted in indexes.items():
            taken = [records[index] for index in wanted]
            encoded = blocks.encode_all(taken)
            if any(len(block.data) > min(self._max, blocks.BYTES) for block in encoded):
                large = {i for i in wanted if blocks.size_of(records[i]) > self._max}
                if large:
                    refused.update({i: self._too_large(topic, records[i]) for i in large})
                    wanted = [index for index in wanted if index not in large]
                    encoded = blocks.encode_all([records[index] for index in wanted])
            if wanted:
                runs.append(_Run(partition, wanted, encoded))
        return runs, refused

    def _too_large(self, topic: str, record: Record) -> TooLarge:
        return TooLarge(
            f"{topic}: message {record.id!r} has {blocks.size_of(record)} bytes, {self._max} are "
            "allowed (?max_record= of the URL)"
        )

    # -- under the lock

    def _write(self, topic: str, numbers: list[int], runs: list[_Run]) -> list[int] | None:
        """The first offset of each run; None where the topic is not what was believed."""
        if not runs:
            return []
        now = int(self._database.clock.time() * 1e6)
        wanted = [numbers[run.partition] for run in runs]
        firsts: list[int] = []
        rows: list[tuple[int, int, int, bytes]] = []
        updates: list[tuple[int, int, int, int]] = []
        merging: list[tuple[int, int]] = []
        with self._database.write() as connection:
            state = {
                no: (next_, time, loose)
                for no, next_, time, loose in connection.array(
                    "SELECT json_group_array(json_array(no, next, time, loose))"
                    " FROM streams_partitions"
                    " WHERE no IN (SELECT value FROM json_each(?)) AND topic = ?",
                    (json.dumps(wanted), topic),
                )
            }
            if len(state) != len(wanted):
                return None
            for no, run in zip(wanted, runs, strict=True):
                offset, time, loose = state[no]
                time = max(time, now)
                firsts.append(offset)
                for count, data in run.blocks:
                    rows.append((place(no, offset), count, time, data))
                    offset += count
                    small = count < blocks.SMALL_MESSAGES and len(data) <= blocks.SMALL_BYTES
                    loose = loose + 1 if small else 0
                if loose >= blocks.SMALL_MESSAGES:
                    merging.append((no, loose))
                    loose = 0
                updates.append((offset, time, loose, no))
            _insert(connection, rows)
            connection.execute(_UPDATE, (json.dumps(updates),))
            for no, loose in merging:
                _merge(connection, no, loose)
        self._database.shared.notify([topic_key(topic)])
        return firsts

    @staticmethod
    def _outcomes(
        topic: str,
        records: Sequence[Record],
        runs: list[_Run],
        firsts: list[int],
        refused: dict[int, LogError],
    ) -> Outcomes:
        outcomes: list[Any] = [None] * len(records)
        for run, first in zip(runs, firsts, strict=True):
            offsets = range(first, first + len(run.indexes))
            positions = map(
                tuple.__new__, repeat(Position), zip(repeat(topic), repeat(run.partition), offsets)
            )
            if len(run.indexes) == len(records):
                return list(positions)
            for index, position in zip(run.indexes, positions, strict=True):
                outcomes[index] = position
        for index, error in refused.items():
            outcomes[index] = error
        return outcomes

    def flush(self, timeout: float) -> None:
        """An append returns when its outcome is told, so there is nothing to wait for but those
        under way in other threads: the turn to write comes after them."""
        self._database.shared.write.acquire(timeout)
        self._database.shared.write.release()


def _insert(connection: Connection, rows: Sequence[tuple[int, int, int, bytes]]) -> None:
    if len(rows) <= _FEW:
        connection.executemany(_INSERT, rows)
        return
    for start in range(0, len(rows), _MANY):
        some = rows[start : start + _MANY]
        more = ", (?, ?, ?, ?)" * (len(some) - 1)
        connection.execute(_INSERT + more, tuple(chain.from_iterable(some)))


def _merge(connection: Connection, no: int, count: int) -> None:
    """Make one block of the last ``count`` of a partition, all small.

    Who publishes one message at a time would else leave a reader one block a message.
    """
    rows = connection.rows(
        "SELECT place, count, time, data FROM streams_blocks"
        " WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT ?",
        (place(no, 0), place(no + 1, 0) - 1, count),
    )
    rows.reverse()
    data = blocks.merge([row[1:] for row in rows])
    first, last = rows[0][0], rows[-1][0]
    connection.execute("DELETE FROM streams_blocks WHERE place BETWEEN ? AND ?", (first, last))
    connection.execute(
        "INSERT INTO streams_blocks VALUES (?, ?, ?, ?)",
        (first, sum(row[1] for row in rows), rows[-1][2], data),
    )
