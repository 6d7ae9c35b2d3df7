"""A saga's journal as it stands in the log: read, and written to by commands.

The journal of all sagas of one name is the topic ``NAME.saga``, keyed by saga ID. A reading joins
no group. It looks at the newest entries of each partition, a number that its caller says and is
told about, so that its cost does not grow with all that was ever written; what stands further back,
or was removed by the log's retention, is unknown to it.

What is no entry of a saga, or stands under another key than its saga's ID, counts for nobody
(:mod:`streams.patterns.saga.decoding`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterator, MutableMapping, Sequence
from contextlib import closing
from typing import NamedTuple

import msgspec
from uuid_utils import uuid7

from streams.errors import LogError, NotFound
from streams.log.protocol import Log
from streams.message import Position, Record
from streams.patterns.saga.decoding import EntryDecoder, key_of
from streams.patterns.saga.entry import Entry, Stored
from streams.patterns.saga.errors import UnknownSaga

__all__ = ["NEWEST", "SUFFIX", "Journal", "Listing", "Placed", "topic_name"]

SUFFIX = ".saga"

NEWEST = 1_000_000
"""Entries of each partition that are looked at, where nobody says how many."""

CHUNK = 1_000
"""Records read at once."""

_encode = msgspec.json.Encoder().encode


def topic_name(saga: str) -> str:
    """The topic of all sagas of this name."""
    return f"{saga}{SUFFIX}"


class Placed(NamedTuple):
    """An entry and where it stands."""

    entry: Stored
    position: Position


class Listing(NamedTuple):
    """Where sagas stand, and how far back the journal was looked at.

    :param entries: the last one of each saga, the saga that moved last at the end.
    :param whole: the journal was looked at from its beginning.
    """

    entries: list[Stored]
    whole: bool


class Journal:
    """The journal of all sagas of one name. Its calls block; usable from any thread."""

    def __init__(self, log: Log, saga: str, decoder: EntryDecoder | None = None) -> None:
        self.log = log
        self.saga = saga
        self.topic = topic_name(saga)
        self._decoder = decoder if decoder is not None else EntryDecoder(self.topic)

    def latest(self, id: str, newest: int | None = NEWEST) -> Placed:
        """Where a saga stands.

        :param newest: how many entries of each partition are looked at; None: all there are.
        :raises UnknownSaga: it is not there.
        """
        return self._latest(id, newest)[0]

    def _latest(self, id: str, newest: int | None) -> tuple[Placed, dict[int, int]]:
        """The same, and before which offset of each partition it was looked for."""
        found: Placed | None = None
        ends: dict[int, int] = {}
        whole = True
        for partition in range(self._partitions()):
            start, end, reaches = self._range(partition, newest)
            ends[partition] = end
            whole = whole and reaches
            for each in self._scan((key_of(id),), partition, start, end):
                # Of entries with one number the first counts: the others were too late.
                if found is None or each.entry.n > found.entry.n:
                    found = each
        if found is None:
            kept = "or what the log keeps does not reach back to it"
            if not whole:
                kept = f"or it does not stand among the last {newest:,} entries of a partition"
            unknown = UnknownSaga(f"there is no saga {id!r} in {self.topic}, {kept}")
            unknown.id = id
            raise unknown
        return found, ends

    def all(self, wanted: Callable[[Entry], bool], newest: int | None = NEWEST) -> Listing:
        """Where the sagas stand of which that is wanted.

        :param newest: how many entries of each partition are looked at; None: all there are.
        """
        numbers: dict[str, int] = {}
        found: dict[str, Stored] = {}
        whole = True
        for partition in range(self._partitions()):
            start, end, reaches = self._range(partition, newest)
            whole = whole and reaches
            for entry, _ in self._scan(None, partition, start, end):
                if entry.n <= numbers.get(entry.saga, -1):
                    continue
                numbers[entry.saga] = entry.n
                found.pop(entry.saga, None)
                if wanted(entry):
                    found[entry.saga] = entry
        return Listing(sorted(found.values(), key=lambda entry: entry.at), whole)

    def ids(self, newest: int) -> set[str]:
        """The IDs of sagas among the newest entries of each partition.

        :param newest: how many entries are looked at.
        """
        found: set[str] = set()
        for partition in range(self._partitions()):
            start, end, _ = self._range(partition, newest)
            found.update(each.entry.saga for each in self._scan(None, partition, start, end))
        return found

    def since(self, places: MutableMapping[int, int], wanted: Container[bytes]) -> list[Stored]:
        """The entries under some keys from these offsets on, by partition; moves the offsets
        behind what was read.

        :param wanted: asked for each record as it is read, so that a key may be added meanwhile.
        """
        found: list[Stored] = []
        for partition, offset in places.items():
            _, end = self.log.bounds(self.topic, partition)
            if offset < end:
                found += [each.entry for each in self._scan(wanted, partition, offset, end)]
                places[partition] = end
        return found

    def entry(self, position: Position) -> Stored | None:
        """The entry that stands there; None if none does (any more)."""
        first, _ = self.log.bounds(self.topic, position.partition)
        if position.offset < first:
            return None
        found = self._scan(None, position.partition, position.offset, position.offset + 1)
        return next((each.entry for each in found), None)

    def numbers(self, partition: int, start: int) -> dict[str, int]:
        """The number of the last entry of every saga that is under way, from an offset on.

        Sagas that were only started are left out: however many wait, they take no memory.
        """
        first, end = self.log.bounds(self.topic, partition)
        found: dict[str, int] = {}
        for entry, _ in self._scan(None, partition, max(first, start), end):
            if entry.n > found.get(entry.saga, 0):
                found[entry.saga] = entry.n
        return found

    def command(
        self, id: str, make: Callable[[Stored], Stored], newest: int | None = NEWEST
    ) -> Stored:
        """Write what follows on where a saga stands; again where somebody was quicker.

        :param make: the entry that follows; raises if there is none.
        :param newest: as of :meth:`latest`.
        :returns: the entry that counts.
        :raises UnknownSaga: there is no such saga.
        :raises OutcomeUnknown: perhaps written; look before giving the command again.
        """
        while True:
            last, ends = self._latest(id, newest)
            entry = make(last.entry)
            # An ID of its own, so that this entry is told from one of the same number; what
            # deduplication compares is in the entry.
            position = self._append(entry, str(uuid7()), last.position.partition)
            # None of that number stood before the ends, so only what is new has to be looked at.
            after = self._scan(
                (key_of(id),), position.partition, ends[position.partition], position.offset + 1
            )
            first = next((each for each in after if each.entry.n >= entry.n), None)
            if first is None or first.position.offset == position.offset:
                return entry

    def _append(self, entry: Stored, id: str, partition: int) -> Position:
        told = threading.Event()
        answers: list[Position | LogError] = []

        def done(outcome: Sequence[Position | LogError]) -> None:
            answers.extend(outcome)
            told.set()

        # Beside what it follows on, whoever started the saga and partitioned by whatever rule.
        record = Record(_encode(entry), key_of(entry.saga), id, partition=partition)
        self.log.append(self.topic, [record], done)
        told.wait()
        (answer,) = answers
        if isinstance(answer, LogError):
            raise answer
        return answer

    def _partitions(self) -> int:
        try:
            return self.log.topic(self.topic).partitions
        except NotFound:
            raise UnknownSaga(
                f"there is no saga {self.saga!r} here: the log has no topic {self.topic}"
            ) from None

    def _range(self, partition: int, newest: int | None) -> tuple[int, int, bool]:
        """The newest entries of a partition, and whether these are all."""
        first, end = self.log.bounds(self.topic, partition)
        if newest is None or first >= end:
            return first, end, True
        start = max(first, self.log.back(self.topic, partition, end, newest))
        whole = start <= first or self.log.back(self.topic, partition, start, 1) >= start
        return start, end, whole

    def scan(self, partition: int, start: int, end: int) -> Iterator[Placed]:
        """The entries of a part of a partition, in their order."""
        return self._scan(None, partition, start, end)

    def _scan(
        self, wanted: Container[bytes] | None, partition: int, start: int, end: int
    ) -> Iterator[Placed]:
        """:param wanted: the keys of those to be looked at; None: all."""
        if start >= end:
            return
        find = self._decoder.find
        with closing(self.log.reader(self.topic, partition, start, end)) as reader:
            while (batch := reader.read(CHUNK)) is not None:
                for index, key in enumerate(batch.keys):
                    if wanted is not None and (key is None or key not in wanted):
                        continue
                    entry = find(key, batch.values[index])
                    if entry is not None:
                        offset = batch.offsets[index]
                        yield Placed(entry, Position(self.topic, partition, offset))
