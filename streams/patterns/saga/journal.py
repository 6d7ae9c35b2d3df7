"""A saga's journal in the log: read by any process, and written to by commands.

The journal of all sagas of one name is the topic ``NAME.saga``, keyed by saga ID. Reading it joins
no group. Only the newest entries of each partition are read, as many as the caller says, so that
the cost does not grow with the journal; entries that are older, or were removed by the log's
retention, are unknown.

A record that is not an entry of a saga, or has another key than its saga's ID, is ignored by
all readers (:mod:`streams.patterns.saga.journal_decoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, MutableMapping
from typing import NamedTuple

import msgspec
from uuid_utils import uuid7

from streams.errors import LogError, NotFound
from streams.log.appending import append_and_wait
from streams.log.protocol import Log
from streams.log.range_reader import read_batches
from streams.message import Position, Record
from streams.patterns.saga.errors import UnknownSaga
from streams.patterns.saga.journal_decoder import EntryDecoder, saga_key
from streams.patterns.saga.journal_entry import JournalEntry, StoredEntry

TOPIC_SUFFIX = ".saga"

DEFAULT_NEWEST = 1_000_000
"""How many entries of each partition are searched by default."""

FIRST_LOOK = 200
"""How many entries of each partition are searched for a saga first."""

LOOK_GROWTH = 10
"""The factor by which the search grows each time that the saga was not found."""

_encode = msgspec.json.Encoder().encode


def journal_topic(saga: str) -> str:
    """The journal topic of all sagas of this name."""
    return f"{saga}{TOPIC_SUFFIX}"


def saga_name(topic: str) -> str | None:
    """The name of the sagas whose journal this topic is; None: it is not a journal."""
    return topic.removesuffix(TOPIC_SUFFIX) or None if topic.endswith(TOPIC_SUFFIX) else None


class PositionedEntry(NamedTuple):
    """An entry and its position."""

    entry: StoredEntry
    position: Position


class EntryRange(NamedTuple):
    """A part of a partition: from ``start`` to before ``end``."""

    start: int
    end: int
    is_whole: bool
    """Whether the log keeps no entry before it."""


class SagaListing(NamedTuple):
    """Sagas, and whether the journal was read from its beginning.

    :param entries: the last entry of each saga, in the order of their times.
    :param is_complete: whether the journal was read from its beginning.
    """

    entries: list[StoredEntry]
    is_complete: bool


class _BackwardSearch:
    """The search for the last entry of one saga, in one part of the journal after the other, newest
    first."""

    def __init__(self) -> None:
        self.found: PositionedEntry | None = None
        """The entry with the highest number so far."""
        self._numbers: set[int] = set()

    @property
    def is_certain(self) -> bool:
        """Whether no older part can have an entry that counts more than the one that was found.

        An entry is written after the one with the previous number, so all that follow an entry that
        counts are behind it, and number 0 is the first. A former owner that was paused may have
        written one entry of a saga too late; if two numbers were found, one of them is of an entry
        that counts.
        """
        return 0 in self._numbers or len(self._numbers) > 1

    def add_older(self, entries: Iterable[PositionedEntry]) -> None:
        """Add the saga's entries in an older part."""
        newest: PositionedEntry | None = None
        for each in entries:
            self._numbers.add(each.entry.n)
            # Of entries with one number the first counts: the others were written too late.
            if newest is None or each.entry.n > newest.entry.n:
                newest = each
        if newest is not None and (self.found is None or newest.entry.n >= self.found.entry.n):
            self.found = newest


class Journal:
    """The journal of all sagas of one name. Its calls block; usable from any thread."""

    on_ignored: Callable[[int, int], None] | None = None
    """Called with partition and offset of each record that is read and is no entry of a saga,
    except tombstones."""

    def __init__(self, log: Log, saga: str, decoder: EntryDecoder | None = None) -> None:
        self.log = log
        self.saga = saga
        self.topic = journal_topic(saga)
        self._decoder = decoder if decoder is not None else EntryDecoder(self.topic)

    def latest(self, id: str, newest: int | None = DEFAULT_NEWEST) -> PositionedEntry:
        """The last entry of a saga.

        :param newest: how many entries of each partition are searched; None: all there are.
        :raises UnknownSaga: it does not exist.
        """
        return self._find_latest(id, newest)[0]

    def _find_latest(self, id: str, newest: int | None) -> tuple[PositionedEntry, dict[int, int]]:
        """The same, and by partition the offset before which it was searched for.

        Reads backwards, a larger part each time, so the cost depends on how long ago the saga's
        last entries were written, and not on how many entries the journal has.
        """
        search = _BackwardSearch()
        ranges = self._newest_ranges(FIRST_LOOK if newest is None else min(FIRST_LOOK, newest))
        ends = {partition: each.end for partition, each in ranges.items()}
        looked_at = FIRST_LOOK
        while True:
            for partition, (start, end, _) in ranges.items():
                search.add_older(self.read_range(partition, start, end, (saga_key(id),)))
            is_whole = all(each.is_whole for each in ranges.values())
            is_last = is_whole or (newest is not None and looked_at >= newest)
            if search.found is not None and (is_last or search.is_certain):
                return search.found, ends
            if is_last:
                break
            count = (LOOK_GROWTH - 1) * looked_at
            if newest is not None:
                count = min(count, newest - looked_at)
            looked_at += count
            ranges = {
                partition: self._range_before(partition, each.start, count)
                for partition, each in ranges.items()
            }
        explanation = "or what the log keeps does not reach back to it"
        if not is_whole:
            explanation = f"or it does not stand among the last {newest:,} entries of a partition"
        unknown = UnknownSaga(f"there is no saga {id!r} in {self.topic}, {explanation}")
        unknown.id = id
        raise unknown

    def list_latest(
        self, is_wanted: Callable[[JournalEntry], bool], newest: int | None = DEFAULT_NEWEST
    ) -> SagaListing:
        """The last entries of the selected sagas.

        :param newest: how many entries of each partition are searched; None: all there are.
        """
        numbers: dict[str, int] = {}
        found: dict[str, StoredEntry] = {}
        ranges = self._newest_ranges(newest)
        for partition, (start, end, _) in ranges.items():
            for entry, _ in self.read_range(partition, start, end):
                if entry.n <= numbers.get(entry.saga, -1):
                    continue
                numbers[entry.saga] = entry.n
                found.pop(entry.saga, None)
                if is_wanted(entry):
                    found[entry.saga] = entry
        is_complete = all(each.is_whole for each in ranges.values())
        return SagaListing(sorted(found.values(), key=lambda entry: entry.at), is_complete)

    def saga_ids(self, newest: int) -> set[str]:
        """The IDs of the sagas among the newest ``newest`` entries of each partition."""
        ranges = self._newest_ranges(newest)
        return {
            each.entry.saga
            for partition, (start, end, _) in ranges.items()
            for each in self.read_range(partition, start, end)
        }

    def read_since(
        self, offsets: MutableMapping[int, int], keys: Container[bytes]
    ) -> list[StoredEntry]:
        """The entries with these keys from these offsets on, by partition; moves the offsets
        past the records that were read.

        :param keys: checked for each record as it is read, so that a key may be added meanwhile.
        """
        found: list[StoredEntry] = []
        for partition, offset in offsets.items():
            _, end = self.log.watermarks(self.topic, partition)
            if offset < end:
                found += [each.entry for each in self.read_range(partition, offset, end, keys)]
                offsets[partition] = end
        return found

    def read_entry(self, position: Position) -> StoredEntry | None:
        """The entry at this position; None if there is none (any more)."""
        first, _ = self.log.watermarks(self.topic, position.partition)
        if position.offset < first:
            return None
        found = self.read_range(position.partition, position.offset, position.offset + 1)
        return next((each.entry for each in found), None)

    def last_numbers(self, partition: int, start: int) -> dict[str, int]:
        """The number of the last entry of every saga that is under way, from an offset on.

        Sagas that were only started are left out, so that any number of them takes no memory.
        """
        first, end = self.log.watermarks(self.topic, partition)
        found: dict[str, int] = {}
        for entry, _ in self.read_range(partition, max(first, start), end):
            if entry.n > found.get(entry.saga, 0):
                found[entry.saga] = entry.n
        return found

    def append_command(
        self,
        id: str,
        make_next: Callable[[StoredEntry], StoredEntry],
        newest: int | None = DEFAULT_NEWEST,
    ) -> StoredEntry:
        """Append the entry that follows a saga's last one; retried if another writer was quicker.

        :param make_next: makes the entry that follows; raises if there is none.
        :param newest: as of :meth:`latest`.
        :returns: the entry that counts.
        :raises UnknownSaga: there is no such saga.
        :raises OutcomeUnknown: it may be written; check before giving the command again.
        """
        while True:
            last, ends = self._find_latest(id, newest)
            entry = make_next(last.entry)
            # In the partition of the entry that it follows, however that was chosen. Under an ID of
            # its own, so that it differs from another entry of the same number; deduplication uses
            # the ID that the entry's content gives.
            partition = last.position.partition
            record = Record(_encode(entry), saga_key(id), str(uuid7()), partition=partition)
            (position,) = append_and_wait(self.log, self.topic, [record])
            if isinstance(position, LogError):
                raise position
            # No entry of that number was before the ends, so only newer ones have to be searched.
            end = position.offset + 1
            after = self.read_range(partition, ends[partition], end, (saga_key(id),))
            first = next((each for each in after if each.entry.n >= entry.n), None)
            if first is None or first.position.offset == position.offset:
                return entry

    def _newest_ranges(self, newest: int | None) -> dict[int, EntryRange]:
        """The newest entries of each partition."""
        try:
            partitions = range(self.log.describe_topic(self.topic).partitions)
        except NotFound:
            raise UnknownSaga(
                f"there is no saga {self.saga!r} here: the log has no topic {self.topic}"
            ) from None
        return {partition: self.newest_range(partition, newest) for partition in partitions}

    def newest_range(self, partition: int, newest: int | None) -> EntryRange:
        """The newest entries of a partition."""
        _, end = self.log.watermarks(self.topic, partition)
        return self._range_before(partition, end, newest)

    def _range_before(self, partition: int, end: int, count: int | None) -> EntryRange:
        """The last ``count`` entries of a partition before an offset; None: all of them."""
        first, _ = self.log.watermarks(self.topic, partition)
        if count is None or first >= end:
            return EntryRange(min(first, end), end, True)
        before = self.log.offset_before
        start = max(first, before(self.topic, partition, end, count))
        is_whole = start <= first or before(self.topic, partition, start, 1) >= start
        return EntryRange(start, end, is_whole)

    def read_range(
        self, partition: int, start: int, end: int, keys: Container[bytes] | None = None
    ) -> Iterator[PositionedEntry]:
        """The entries of a part of a partition, in their order.

        :param keys: only those under these keys; None: all.
        """
        find = self._decoder.try_decode
        for batch in read_batches(self.log, self.topic, partition, start, end):
            for index, key in enumerate(batch.keys):
                if keys is not None and (key is None or key not in keys):
                    continue
                value, offset = batch.values[index], batch.offsets[index]
                entry = find(key, value)
                if entry is not None:
                    yield PositionedEntry(entry, Position(self.topic, partition, offset))
                elif value is not None and self.on_ignored is not None:
                    self.on_ignored(partition, offset)
