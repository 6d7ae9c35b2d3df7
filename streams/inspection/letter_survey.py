"""Surveys the dead letters of a topic by error, with counts, reading on in a thread.

Letters are of the same *kind* if they come from the same topic and group, their errors are of the
same type, and their texts differ only in numbers, quoted names and the like. A survey keeps 18
bytes per waiting letter (its offset and kind), so a later call reads only new letters, and letters
that were resolved since are no longer counted.

The letters may come from any client that can write to the topic. A kind is for people: it only
decides which letters a person selects.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import override

from streams.derived_records import (
    ERROR_EXCEPTION,
    ERROR_GROUP,
    ERROR_MESSAGE,
    ERROR_TIME,
    ERROR_TOPIC,
    error_of,
)
from streams.inspection.letter_topics import LetterSource, letter_source
from streams.inspection.reading_on import BackgroundReader
from streams.log.range_reader import read_batches
from streams.patterns.deadletters import (
    DeadLetterTopic,
    ResolvedOffsets,
    is_parking_record,
    source_of,
)
from streams.wire import parse_iso_time

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Batch, Headers

MAX_LETTERS = 1_000_000
"""Waiting letters that are surveyed, at most; the oldest of each partition."""

MAX_KINDS = 1_000
"""Kinds that are distinguished in one topic; the last one takes all further letters."""

ERROR_LENGTH = 300
"""Characters of an error that are considered."""

_CACHE = 20_000

_READ = frozenset({ERROR_EXCEPTION, ERROR_MESSAGE, ERROR_TOPIC, ERROR_GROUP})

_VARIES = re.compile(
    r"""
    '[^']{0,80}' | "[^"]{0,80}"                  # a name
    | \b[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b  # a UUID, before what it begins like
    | \b0x[0-9a-fA-F]+\b | \b[0-9a-fA-F]{8,}\b     # an address, a digest
    | [0-9]+([.,:_-][0-9]+)*
    """,
    re.VERBOSE,
)

_LOW_HALF = (1 << 64) - 1


class LetterKind(NamedTuple):
    """Letters that failed in the same way.

    :param id: identifies the kind, in any process.
    :param source: the topic and group that they come from; None: their headers do not say.
    :param error: the error of one of them: its type and text.
    :param waiting: how many wait.
    :param last: when the last letter that was read failed, in seconds since the epoch; None: its
        headers do not say.
    """

    id: str
    source: LetterSource | None
    error: str
    waiting: int
    last: float | None


class SurveyResult(NamedTuple):
    """The result of a survey so far.

    :param kinds: the kinds that have waiting letters, the most frequent first.
    :param waiting: waiting letters, as far as the topic was read.
    :param looked_at: letters that were read, including those that were resolved since.
    :param is_complete: the topic was read to its end.
    :param is_truncated: there are more than :data:`MAX_LETTERS`.
    """

    kinds: list[LetterKind]
    waiting: int
    looked_at: int
    is_complete: bool
    is_truncated: bool


class SurveySelection(NamedTuple):
    """The waiting letters of some kinds.

    :param number: how many there are.
    :param sources: their number by source; None: their headers do not say.
    :param end_offsets: by partition, the offset before which they are.
    :param waiting: how many letters of any kind wait.
    """

    number: int
    sources: Counter[LetterSource | None]
    end_offsets: dict[int, int]
    waiting: int


class KindHeaders(NamedTuple):
    """The headers of a letter that determine its kind."""

    exception: bytes
    message: bytes
    topic: bytes
    group: bytes

    @classmethod
    def of(cls, headers: Headers) -> KindHeaders:
        """These headers of a letter. A record of parked keys has no topic and group here, as for
        :func:`~streams.inspection.letter_topics.letter_source`."""
        found = {name: value for name, value in headers if name in _READ and value is not None}
        if is_parking_record(headers):
            found[ERROR_TOPIC] = found[ERROR_GROUP] = b""
        return cls(
            found.get(ERROR_EXCEPTION, b""),
            found.get(ERROR_MESSAGE, b"")[: 4 * ERROR_LENGTH],
            found.get(ERROR_TOPIC, b""),
            found.get(ERROR_GROUP, b""),
        )

    def as_headers(self) -> list[tuple[str, bytes | None]]:
        """These as a list of headers."""
        return [
            (ERROR_EXCEPTION, self.exception), (ERROR_MESSAGE, self.message),
            (ERROR_TOPIC, self.topic), (ERROR_GROUP, self.group),
        ]  # fmt: skip

    def without_what_varies(self) -> KindHeaders:
        """These without the parts that vary within a kind: equal for all letters of the kind."""
        message = self.message.decode("utf-8", "replace")[:ERROR_LENGTH]
        return self._replace(message=_VARIES.sub("#", message).encode("utf-8", "replace"))

    def kind_id(self) -> str:
        """The ID of the letter's kind."""
        same = self.without_what_varies()
        topic, group = source_of(same.as_headers())
        source = f"{topic}\0{group}".encode("utf-8", "surrogateescape")
        return blake2b(
            b"\0".join((same.exception, same.message, source)), digest_size=8
        ).hexdigest()


def kind_of(headers: Headers) -> str:
    """The ID of the kind of a letter with these headers."""
    return KindHeaders.of(headers).kind_id()


class _SurveyedKind:
    """A kind as a survey stores it."""

    __slots__ = ("example", "id", "last")

    def __init__(self, id: str, example: KindHeaders) -> None:
        self.id = id
        self.example = example
        self.last: bytes | None = None


class _SurveyedPartition:
    """The letters of one partition that were read: the offset and kind of each."""

    __slots__ = ("high", "kinds", "low", "next", "start", "total")

    def __init__(self) -> None:
        self.high, self.low = array("Q"), array("Q")
        """Halves of offsets, which have 128 bits on Redis."""
        self.kinds = array("H")
        self.total: Counter[int] = Counter()
        """The number of letters of each kind."""
        self.start = 0
        """Letters before this offset were dropped, as they are resolved."""
        self.next = 0
        """The offset at which reading goes on."""

    def extend(self, offsets: Collection[int], kinds: Collection[int]) -> None:
        self.high.extend(each >> 64 for each in offsets)
        self.low.extend(each & _LOW_HALF for each in offsets)
        self.kinds.extend(kinds)
        self.total.update(kinds)

    def offset(self, index: int) -> int:
        return self.high[index] << 64 | self.low[index]

    def find(self, offset: int) -> int:
        """How many letters are before an offset."""
        return bisect_left(range(len(self.kinds)), offset, key=self.offset)

    def drop_before(self, offset: int) -> None:
        """Drop the letters before an offset: they are resolved."""
        self.start = offset
        count = self.find(offset)
        if count:
            self.total -= Counter(self.kinds[:count])  # which leaves no zeros
            del self.high[:count], self.low[:count], self.kinds[:count]

    def end_of(self, kinds: Collection[int], resolved: ResolvedOffsets) -> int:
        """The offset after the last waiting letter of one of these kinds."""
        for index in range(len(self.kinds) - 1, -1, -1):
            if self.kinds[index] in kinds and (offset := self.offset(index)) not in resolved:
                return offset + 1
        return self.start

    def waiting(self, resolved: ResolvedOffsets) -> Counter[int]:
        """The number of waiting letters of each kind."""
        found = Counter(self.total)
        for low, high in resolved.ranges:
            found -= Counter(self.kinds[self.find(low) : self.find(high)])
        return found


class LetterSurvey(BackgroundReader):
    """The letters of one topic by kind (any thread)."""

    @override
    def _forget(self) -> None:
        self._partitions: dict[int, _SurveyedPartition] = {}
        self._resolved: dict[int, ResolvedOffsets] = {}
        self._kinds: list[_SurveyedKind] = []
        self._by_id: dict[str, int] = {}
        self._cache: dict[KindHeaders, int] = {}
        self._looked_at = 0
        self._is_truncated = False

    def look(self, seconds: float) -> SurveyResult:
        """Read on, and wait for this many real seconds at most (blocks).

        :raises NotFound: there is no such topic.
        :raises LogError: the log cannot be read.
        """
        is_complete = self.read_on(seconds)
        with self._lock:
            return self._result(is_complete=is_complete)

    @property
    def looked_at(self) -> int:
        """Letters that were read."""
        with self._lock:
            return self._looked_at

    def next_of(self, kind: str, start_offsets: Mapping[int, int]) -> dict[int, int] | None:
        """By partition, the offset of the next letter of a kind that was read; without one, the
        offset at which reading goes on. None: the kind is not known.

        :param start_offsets: by partition, the offset to begin at.
        """
        with self._lock:
            number = self._by_id.get(kind)
            if number is None:
                return None
            found: dict[int, int] = {}
            for partition, each in self._partitions.items():
                begin = each.find(start_offsets.get(partition, 0))
                try:
                    found[partition] = each.offset(each.kinds.index(number, begin))
                except ValueError:
                    found[partition] = max(each.next, start_offsets.get(partition, 0))
            return found

    def select(self, kind: str, source: LetterSource | None) -> SurveySelection | None:
        """The waiting letters that were read. None: not all of them were told apart by kind.

        :param kind: only letters of this kind; empty: of all kinds.
        :param source: only letters of this topic and group, and those whose headers do not say.
        """
        with self._lock:
            if self._is_truncated or "" in self._by_id:
                return None
            of_kind = {
                number: letter_source(each.example.as_headers())
                for number, each in enumerate(self._kinds)
                if kind in ("", each.id)
            }
            chosen = {
                number: each
                for number, each in of_kind.items()
                if source is None or each in (None, source)
            }
            sources: Counter[LetterSource | None] = Counter()
            end_offsets: dict[int, int] = {}
            waiting = 0
            for partition, each in self._partitions.items():
                counts = each.waiting(self._resolved[partition])
                waiting += counts.total()
                if not any(counts[number] for number in chosen):
                    continue
                for number in chosen:
                    sources[chosen[number]] += counts[number]
                end_offsets[partition] = each.end_of(chosen, self._resolved[partition])
            return SurveySelection(sources.total(), +sources, end_offsets, waiting)

    # -- inside

    def _result(self, *, is_complete: bool) -> SurveyResult:
        counts: Counter[int] = Counter()
        for partition, each in self._partitions.items():
            counts += each.waiting(self._resolved[partition])
        kinds: list[LetterKind] = []
        for number, waiting in counts.most_common():
            kept = self._kinds[number]
            headers = kept.example.as_headers()
            when = parse_iso_time(kept.last)
            kinds.append(
                LetterKind(
                    kept.id,
                    letter_source(headers),
                    error_of(headers, unknown="?")[:ERROR_LENGTH],
                    waiting,
                    None if when is None else when.timestamp(),
                )
            )
        return SurveyResult(kinds, counts.total(), self._looked_at, is_complete, self._is_truncated)

    @override
    def _read(self, log: Log) -> bool:
        resolved = DeadLetterTopic(log, self.name).read_resolved()
        with self._lock:
            self._resolved = resolved
            for partition, each in resolved.items():
                known = self._partitions.get(partition)
                if known is None or each.position < known.start:  # moved back: they wait again
                    known = self._partitions[partition] = _SurveyedPartition()
                known.drop_before(each.position)
            letters = sum(len(each.kinds) for each in self._partitions.values())
            self._is_truncated = letters >= MAX_LETTERS
        return all(self._read_partition(log, partition) for partition in resolved)

    def _read_partition(self, log: Log, partition: int) -> bool:
        if self._is_truncated:
            return True
        known = self._partitions[partition]
        first, end = log.watermarks(self.name, partition)
        start = max(first, known.next, known.start)
        for batch in read_batches(log, self.name, partition, start, end):
            kinds = [self._kind(batch, index) for index in range(len(batch))]
            with self._lock:
                known.extend(batch.offsets, kinds)
                self._looked_at += len(kinds)
                if kinds:
                    known.next = batch.offsets[-1] + 1
                letters = sum(len(each.kinds) for each in self._partitions.values())
                self._is_truncated = letters >= MAX_LETTERS
            if self._is_truncated:
                return True
            if self._is_to_stop:
                return False
        return True

    def _kind(self, batch: Batch, index: int) -> int:
        headers = batch.headers(index)
        found = KindHeaders.of(headers)
        same = found.without_what_varies()
        number = self._cache.get(same)
        if number is None:
            number = self._kind_number(found)
            if len(self._cache) >= _CACHE:
                self._cache.clear()
            self._cache[same] = number
        for name, value in headers:
            if name == ERROR_TIME:
                self._kinds[number].last = value
        return number

    def _kind_number(self, found: KindHeaders) -> int:
        id = found.kind_id()
        number = self._by_id.get(id)
        if number is not None:
            return number
        if len(self._kinds) < MAX_KINDS - 1:
            kept = _SurveyedKind(id, found)
        elif len(self._kinds) < MAX_KINDS:
            kept = _SurveyedKind("", KindHeaders(b"", b"", b"", b""))
        else:
            return MAX_KINDS - 1
        with self._lock:
            self._kinds.append(kept)
            self._by_id[kept.id] = len(self._kinds) - 1
        return len(self._kinds) - 1
