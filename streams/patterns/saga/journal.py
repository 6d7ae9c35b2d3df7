"""A saga's journal as it stands in the log: read whole, and written to by commands.

The journal of all sagas of one name is the topic ``NAME.saga``, keyed by saga ID. A reading joins
no group and goes from the topic's beginning to its end, so what the log's retention removed is
unknown to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import msgspec
from uuid_utils import uuid7

from streams.errors import LogError, NotFound
from streams.log.protocol import Log
from streams.message import Position, Record
from streams.patterns.saga.entry import Entry, Stored
from streams.patterns.saga.errors import UnknownSaga

__all__ = ["SUFFIX", "Journal", "Placed", "topic_name"]

SUFFIX = ".saga"

_CHUNK = 1_000


class _Number(msgspec.Struct, gc=False):
    saga: str
    n: int = 0


_decode_slim = msgspec.json.Decoder(_Number).decode
_decode = msgspec.json.Decoder(Stored).decode
_encode = msgspec.json.Encoder().encode


def topic_name(saga: str) -> str:
    """The topic of all sagas of this name."""
    return f"{saga}{SUFFIX}"


class Placed(NamedTuple):
    """An entry and where it stands."""

    entry: Stored
    position: Position


class Journal:
    """The journal of all sagas of one name. Its calls block; usable from any thread."""

    def __init__(self, log: Log, saga: str) -> None:
        self._log = log
        self.saga = saga
        self.topic = topic_name(saga)

    def latest(self, id: str, partition: int | None = None) -> Placed:
        """Where a saga stands.

        :param partition: the only one to look in.
        :raises UnknownSaga: it is not there.
        """
        found: Placed | None = None
        key = id.encode("utf-8", "surrogateescape")
        for each in self._read(lambda here: here == key, partition):
            # Of entries with one number the first counts: the others were too late.
            if found is None or each.entry.n > found.entry.n:
                found = each
        if found is None:
            raise UnknownSaga(
                f"there is no saga {id!r} in {self.topic}, or what the log keeps does not reach "
                "back to it"
            )
        return found

    def all(self, wanted: Callable[[Entry], bool]) -> list[Stored]:
        """Where the sagas stand of which that is wanted, the one that moved last at the end."""
        numbers: dict[str, int] = {}
        found: dict[str, Stored] = {}
        for entry, _ in self._read(None, None):
            if entry.n <= numbers.get(entry.saga, -1):
                continue
            numbers[entry.saga] = entry.n
            found.pop(entry.saga, None)
            if wanted(entry):
                found[entry.saga] = entry
        return sorted(found.values(), key=lambda entry: entry.at)

    def since(self, places: dict[int, int]) -> list[Stored]:
        """Entries from these offsets on, by partition; moves the offsets behind them."""
        found = []
        for partition, offset in places.items():
            _, end = self._log.bounds(self.topic, partition)
            if offset < end:
                found += [each.entry for each in self._between(None, partition, offset, end)]
                places[partition] = end
        return found

    def numbers(self, partition: int, start: int | None) -> dict[str, int]:
        """The number of the last entry of every saga that is under way, from an offset on.

        Sagas that were only started are left out: however many wait, they take no memory.
        """
        first, end = self._log.bounds(self.topic, partition)
        found: dict[str, int] = {}
        start = first if start is None else max(first, start)
        if start >= end:
            return found
        with closing(self._log.reader(self.topic, partition, start, end)) as reader:
            while (batch := reader.read(_CHUNK)) is not None:
                for value in batch.values:
                    try:
                        number = _decode_slim(value or b"")
                    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                        continue
                    if number.n > found.get(number.saga, 0):
                        found[number.saga] = number.n
        return found

    def command(self, id: str, make: Callable[[Stored], Stored]) -> Stored:
        """Write what follows on where a saga stands; again where somebody was quicker.

        :param make: the entry that follows; raises if there is none.
        :returns: the entry that counts.
        :raises UnknownSaga: there is no such saga.
        :raises OutcomeUnknown: perhaps written; look before giving the command again.
        """
        while True:
            last = self.latest(id)
            entry = make(last.entry)
            # An ID of its own, so that this entry is told from one of the same number; what
            # deduplication compares is in the entry.
            position = self._append(entry, str(uuid7()), last.position.partition)
            _, end = self._log.bounds(self.topic, position.partition)
            after = self._between(
                id.encode("utf-8", "surrogateescape"),
                position.partition, last.position.offset, end,
            )  # fmt: skip
            first = next(each for each in after if each.entry.n == entry.n)
            if first.position.offset == position.offset:
                return entry

    def _append(self, entry: Stored, id: str, partition: int) -> Position:
        told = threading.Event()
        answers: list[Position | LogError] = []

        def done(outcome: Sequence[Position | LogError]) -> None:
            answers.extend(outcome)
            told.set()

        key = entry.saga.encode("utf-8", "surrogateescape")
        # Beside what it follows on, whoever started the saga and partitioned by whatever rule.
        record = Record(_encode(entry), key, id, partition=partition)
        self._log.append(self.topic, [record], done)
        told.wait()
        (answer,) = answers
        if isinstance(answer, LogError):
            raise answer
        return answer

    def _read(
        self, wanted: Callable[[bytes | None], bool] | None, partition: int | None
    ) -> Iterator[Placed]:
        try:
            count = self._log.topic(self.topic).partitions
        except NotFound:
            raise UnknownSaga(
                f"there is no saga {self.saga!r} here: the log has no topic {self.topic}"
            ) from None
        for number in range(count) if partition is None else (partition,):
            first, end = self._log.bounds(self.topic, number)
            yield from self._scan(wanted, number, first, end)

    def _between(self, key: bytes | None, partition: int, start: int, end: int) -> Iterator[Placed]:
        wanted = None if key is None else (lambda here: bool(here == key))
        return self._scan(wanted, partition, start, end)

    def _scan(
        self,
        wanted: Callable[[bytes | None], bool] | None,
        partition: int,
        start: int,
        end: int,
    ) -> Iterator[Placed]:
        if start >= end:
            return
        with closing(self._log.reader(self.topic, partition, start, end)) as reader:
            while (batch := reader.read(_CHUNK)) is not None:
                for index, value in enumerate(batch.values):
                    if value is None or not (wanted is None or wanted(batch.keys[index])):
                        continue
                    entry = _entry(value)
                    if entry is not None:
                        offset: Any = batch.offsets[index]
                        yield Placed(entry, Position(self.topic, partition, offset))


def _entry(value: bytes) -> Stored | None:
    """What cannot be read is none: the owner makes a dead letter of it."""
    try:
        return _decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
