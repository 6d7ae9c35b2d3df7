"""Writing messages: one transaction a call, however many records it has.

Records are sorted by partition and encoded before the lock is taken, so that the writers of several
processes delay each other as little as possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import msgspec

from streams.errors import EventTopicError, Fenced, LogError, NotFound, TooLarge
from streams.log.events import events_only
from streams.log.names import partitions_for, topic_not_found
from streams.log.protocol import Assignment, Commit, OnAppended, OutputsRefused, by_topic_of
from streams.log.sqlite import blocks
from streams.log.sqlite.blocks import BlockRow, EncodedBlock
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.offsets import OffsetCommits
from streams.log.sqlite.retention import Trimmer
from streams.log.sqlite.schema import block_key
from streams.log.sqlite.shared_file import topic_event
from streams.log.sqlite.topics import partition_numbers
from streams.message import Position, Record

# One statement for many rows, as each step of a statement may cost a thread switch (see blocks.py).
_INSERT_ROWS = 16
_INSERT_BLOCK = "INSERT INTO streams_blocks VALUES (?, ?, ?, ?)"
_UPDATE_PARTITIONS = """
UPDATE streams_partitions SET next = u.value ->> 0, time = u.value ->> 1, loose = u.value ->> 2
FROM json_each(?) AS u WHERE no = u.value ->> 3
"""


_encode_json = msgspec.json.Encoder().encode

WriteCheck = Callable[[SqliteConnection], None]
"""Called in a transaction before it writes; raises if nothing of it may be written."""


class _Append(NamedTuple):
    """The part of an append that goes to one partition: the records' indexes, and their blocks."""

    partition: int
    indexes: Sequence[int]
    blocks: list[EncodedBlock]


class NewBlocks(NamedTuple):
    """Blocks that are to be written at the end of a partition."""

    number: int
    """The partition's number in the file."""
    blocks: Sequence[EncodedBlock]


class _PartitionEnd(NamedTuple):
    """The end of a partition: the columns of ``streams_partitions`` that an append changes."""

    next_offset: int
    time: int
    """The time of its last message, in microseconds since the epoch."""
    small_blocks: int
    """How many blocks at the end are small."""
    number: int
    """The partition's number in the file."""


class WrittenRun(NamedTuple):
    """The place of a run of blocks that was written, and the time of its messages."""

    first_offset: int
    time: int


class _OwnersLost(Exception):
    """Some owners in whose name records are appended have lost their partitions."""


class _OtherPartitions(Exception):
    """A topic's partitions have changed since they were read."""


class Writer:
    """Appends to a log's topics. Usable from any thread."""

    def __init__(self, database: Database, trimmer: Trimmer) -> None:
        self._database = database
        self._trimmer = trimmer
        self._max_record = database.settings.max_record
        self._partition_numbers: dict[str, list[int]] = {}
        """Each topic's partition numbers, used until a transaction finds them gone."""

    def append(self, topic: str, records: Sequence[Record], on_appended: OnAppended) -> None:
        """See :meth:`streams.log.protocol.Log.append`."""
        try:
            outcomes = self._append(topic, records)
        except LogError as error:
            outcomes = [error] * len(records)
        on_appended(outcomes)
        self._trimmer.trim_if_due(topic)

    def append_as_owners(
        self,
        offsets: OffsetCommits,
        topic: str,
        records: Sequence[Record],
        owners: Sequence[Assignment],
        on_appended: OnAppended,
    ) -> None:
        """See :data:`streams.log.protocol.AppendAsOwners`.

        :param offsets: the commits of the member that owns the assignments.
        """
        fenced: dict[Assignment, Fenced] = {}

        def require_owned(db: SqliteConnection) -> None:
            lost = offsets.find_lost(db, {each for each in owners if each not in fenced})
            if lost:
                fenced.update(lost)
                raise _OwnersLost

        outcomes: Sequence[Position | LogError]
        while True:  # each time with fewer owners
            owned = [
                each for each, owner in zip(records, owners, strict=True) if owner not in fenced
            ]
            try:
                outcomes = self._append(topic, owned, require_owned)
            except _OwnersLost:
                continue
            except LogError as error:
                outcomes = [error] * len(owned)
            break
        remaining = iter(outcomes)
        on_appended([fenced[each] if each in fenced else next(remaining) for each in owners])
        self._trimmer.trim_if_due(topic)

    def _append(
        self, topic: str, records: Sequence[Record], check: WriteCheck | None = None
    ) -> Sequence[Position | LogError]:
        for _ in range(2):
            numbers = self._partition_numbers.get(topic) or self._load_partition_numbers(topic)
            appends, refused = self._split_by_partition(topic, records, len(numbers))
            first_offsets = self._write(topic, numbers, appends, check)
            if first_offsets is not None:
                return self._outcomes(topic, records, appends, first_offsets, refused)
            self._partition_numbers.pop(topic, None)  # it was deleted, and perhaps created anew
        raise NotFound(f"topic {topic!r} is being deleted")

    def append_within(
        self, db: SqliteConnection, topic: str, records: Sequence[Record]
    ) -> list[Position]:
        """Write records in a transaction that the caller has open: all of them, or none.

        :raises LogError: one of them cannot be written, or there is no such topic.
        """
        for _ in range(2):
            numbers = self._partition_numbers.get(topic) or self._load_partition_numbers(topic)
            appends, refused = self._split_by_partition(topic, records, len(numbers))
            if refused:
                raise next(iter(refused.values()))
            if not appends:
                return []
            runs = _new_blocks(numbers, appends)
            written = write_blocks(db, topic, runs, int(self._database.clock.time() * 1e6))
            if written is not None:
                first_offsets = [run.first_offset for run in written]
                outcomes: Any = self._outcomes(topic, records, appends, first_offsets, {})
                return list(outcomes)
            self._partition_numbers.pop(topic, None)  # it was deleted, and perhaps created anew
        raise NotFound(f"topic {topic!r} is being deleted")

    def trim(self, topics: Iterable[str]) -> None:
        """Trim these topics, where that is due."""
        for topic in topics:
            self._trimmer.trim_if_due(topic)

    def append_with_commits(
        self,
        outputs: Sequence[tuple[str, Record]],
        offsets: OffsetCommits,
        commits: Sequence[Commit],
    ) -> None:
        """See :meth:`streams.log.protocol.Subscription.commit_outputs`."""
        by_topic = by_topic_of(outputs)
        for _ in range(2):
            appends, refused = self._split_outputs(outputs, by_topic)
            if refused:
                raise OutputsRefused(refused)
            if self._write_with_commits(appends, offsets, commits):
                break
            for topic in by_topic:  # one was deleted, and perhaps created anew
                self._partition_numbers.pop(topic, None)
        else:
            raise NotFound(f"one of the topics {', '.join(by_topic)} is being deleted")
        self._database.shared_file.notify([topic_event(topic) for topic in by_topic])
        for topic in by_topic:
            self._trimmer.trim_if_due(topic)

    def _split_outputs(
        self, outputs: Sequence[tuple[str, Record]], by_topic: Mapping[str, Sequence[int]]
    ) -> tuple[dict[str, list[NewBlocks]], dict[int, LogError]]:
        """The new blocks by topic, and the records that cannot be written."""
        found: dict[str, list[NewBlocks]] = {}
        refused: dict[int, LogError] = {}
        for topic, indexes in by_topic.items():
            try:
                numbers = self._partition_numbers.get(topic) or self._load_partition_numbers(topic)
            except EventTopicError as error:
                refused.update(dict.fromkeys(indexes, error))
                continue
            records = [record for _, record in map(outputs.__getitem__, indexes)]
            appends, errors = self._split_by_partition(topic, records, len(numbers))
            refused.update((indexes[at], error) for at, error in errors.items())
            found[topic] = _new_blocks(numbers, appends)
        return found, refused

    def _write_with_commits(
        self,
        appends: Mapping[str, list[NewBlocks]],
        offsets: OffsetCommits,
        commits: Sequence[Commit],
    ) -> bool:
        """Write all in one transaction; returns False, with nothing written, if a topic has other
        partitions by now."""
        now = int(self._database.clock.time() * 1e6)
        stored: list[Commit] = []
        try:
            with self._database.write(on_committed=lambda: offsets.mark_committed(stored)) as db:
                stored += [commit for commit in commits if offsets.store_offset(db, commit)]
                for topic, runs in appends.items():
                    if write_blocks(db, topic, runs, now) is None:
                        raise _OtherPartitions
        except _OtherPartitions:
            return False
        return True

    def _load_partition_numbers(self, topic: str) -> list[int]:
        with self._database.read() as db:
            numbers = partition_numbers(db, [topic]).get(topic)
            if self._database.holds_histories(db, topic):
                raise events_only(topic, "published to")
        if numbers is None:
            raise topic_not_found(topic)
        self._partition_numbers[topic] = numbers
        return numbers

    # -- before the lock

    def _split_by_partition(
        self, topic: str, records: Sequence[Record], count: int
    ) -> tuple[list[_Append], dict[int, LogError]]:
        """The records by partition, as blocks, and those that cannot be written."""
        refused: dict[int, LogError] = {}
        indexes: Mapping[int, Sequence[int]]
        if count == 1 and not any(record.partition for record in records):
            indexes = {0: range(len(records))}
        else:
            by_partition: dict[int, list[int]] = {}
            for index, partition in enumerate(partitions_for(records, count)):
                by_partition.setdefault(partition, []).append(index)
            for partition in [p for p in by_partition if not 0 <= p < count]:
                error = NotFound(
                    f"topic {topic!r} has {count} partitions, so it has no partition {partition}"
                )
                refused.update(dict.fromkeys(by_partition.pop(partition), error))
            indexes = by_partition
        appends: list[_Append] = []
        for partition, wanted in indexes.items():
            encoded = blocks.encode_blocks([records[index] for index in wanted])
            large = min(self._max_record, blocks.BLOCK_BYTES)
            if any(len(block.data) > large for block in encoded):
                too_large = {i for i in wanted if blocks.record_size(records[i]) > self._max_record}
                if too_large:
                    refused.update({i: self._too_large_error(topic, records[i]) for i in too_large})
                    wanted = [index for index in wanted if index not in too_large]
                    encoded = blocks.encode_blocks([records[index] for index in wanted])
            if wanted:
                appends.append(_Append(partition, wanted, encoded))
        return appends, refused

    def _too_large_error(self, topic: str, record: Record) -> TooLarge:
        return TooLarge(
            f"{topic}: message {record.id!r} has {blocks.record_size(record)} bytes, "
            f"{self._max_record} are allowed (?max_record= of the URL)"
        )

    # -- under the lock

    def _write(
        self, topic: str, numbers: list[int], appends: list[_Append], check: WriteCheck | None
    ) -> list[int] | None:
        """The first offset of each run; None if the topic has other partitions by now."""
        if not appends:
            return []
        runs = _new_blocks(numbers, appends)
        now = int(self._database.clock.time() * 1e6)
        with self._database.write() as db:
            if check is not None:
                check(db)
            written = write_blocks(db, topic, runs, now)
        if written is None:
            return None
        self._database.shared_file.notify([topic_event(topic)])
        return [run.first_offset for run in written]

    @staticmethod
    def _outcomes(
        topic: str,
        records: Sequence[Record],
        appends: list[_Append],
        first_offsets: list[int],
        refused: dict[int, LogError],
    ) -> Sequence[Position | LogError]:
        outcomes: list[Any] = [None] * len(records)
        for run, first in zip(appends, first_offsets, strict=True):
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
        """Wait for the appends of other threads, by taking the lock that each of them holds."""
        self._database.shared_file.write_lock.acquire(timeout)
        self._database.shared_file.write_lock.release()


def _new_blocks(numbers: Sequence[int], appends: Iterable[_Append]) -> list[NewBlocks]:
    return [NewBlocks(numbers[each.partition], each.blocks) for each in appends]


def write_blocks(
    db: SqliteConnection, topic: str, runs: Sequence[NewBlocks], now: int
) -> list[WrittenRun] | None:
    """Write blocks at the ends of partitions, within a transaction.

    :param runs: the new blocks, of each partition once.
    :param now: microseconds since the epoch; times of a partition never go back.
    :returns: None if the topic has other partitions than these by now.
    """
    written: list[WrittenRun] = []
    values: list[Any] = []
    ends: list[_PartitionEnd] = []
    to_merge: list[tuple[int, int]] = []
    found = db.fetch_json(
        "SELECT json_group_array(json_array(next, time, loose, no)) FROM streams_partitions"
        " WHERE no IN (SELECT value FROM json_each(?)) AND topic = ?",
        (_encode_json([run.number for run in runs]).decode(), topic),
    )
    ends_by_number = {end.number: end for end in map(_PartitionEnd._make, found)}
    if len(ends_by_number) != len(runs):
        return None
    for number, encoded in runs:
        end = ends_by_number[number]
        offset, time, small_blocks = end.next_offset, max(end.time, now), end.small_blocks
        written.append(WrittenRun(offset, time))
        for count, data in encoded:
            values += (block_key(number, offset), count, time, data)
            offset += count
            is_small = count < blocks.SMALL_MESSAGES and len(data) <= blocks.SMALL_BYTES
            small_blocks = small_blocks + 1 if is_small else 0
        if small_blocks >= blocks.SMALL_MESSAGES:
            to_merge.append((number, small_blocks))
            small_blocks = 0
        ends.append(_PartitionEnd(offset, time, small_blocks, number))
    width = _INSERT_BLOCK.count("?")
    for start in range(0, len(values), width * _INSERT_ROWS):
        chunk = values[start : start + width * _INSERT_ROWS]
        db.execute(_INSERT_BLOCK + ", (?, ?, ?, ?)" * (len(chunk) // width - 1), chunk)
    db.execute(_UPDATE_PARTITIONS, (_encode_json(ends).decode(),))
    for number, small_blocks in to_merge:
        _merge_small_blocks(db, number, small_blocks)
    return written


def _merge_small_blocks(db: SqliteConnection, partition_number: int, count: int) -> None:
    """Merge the last ``count`` blocks of a partition, all of them small, into one.

    Otherwise a publisher of single messages would leave one block per message to the readers.
    """
    found = db.fetch_rows(
        "SELECT place, count, time, data FROM streams_blocks"
        " WHERE place BETWEEN ? AND ? ORDER BY place DESC LIMIT ?",
        (block_key(partition_number, 0), block_key(partition_number + 1, 0) - 1, count),
    )
    rows = [BlockRow(*row) for row in reversed(found)]
    data = blocks.merge_blocks(rows)
    first, last = rows[0], rows[-1]
    delete = "DELETE FROM streams_blocks WHERE place BETWEEN ? AND ?"
    db.execute(delete, (first.place, last.place))
    messages = sum(row.messages for row in rows)
    db.execute(_INSERT_BLOCK, BlockRow(first.place, messages, last.time, data))
