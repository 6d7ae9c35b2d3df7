"""A topic of dead letters: the ones that wait, and how they are redriven or purged.

How it works
------------

* Dead letters have a topic of their own (``orders.billing.dead``), which is append-only. The ones
  that are *resolved* (redriven or purged) are committed as the progress of a group that has *the
  same name as that topic*; no member ever runs in it, and every log can store it: a position, and
  ranges above it (:func:`streams.processing.encode_progress`) for dead letters that were picked
  out.
* Redriving appends the message, with its original bytes, key, headers and message ID, to the
  group's retry topic (``orders.billing.retry``), which its processors read beside the topic itself.
  It is never appended to the topic itself, where other groups would see it again.
  The exception is a message that a delay topic could not deliver: it goes back into the delay
  topic, from which alone its entry is delivered (:func:`put_back_topic`).
* The header ``streams_redrive`` counts up. It is part of what deduplication compares, so a redriven
  message is handled again. One that is redriven twice, because this process was killed between the
  write and the commit, is handled once: at most the last :data:`REDRIVE_CHUNK` are written again,
  in the same order, and a dedup window remembers more than that.
* Dead letters of a key are in one partition, in the order in which they failed, and are redriven in
  that order; each chunk is confirmed before the next is written.
* For the same reason, two processes may redrive one topic at once without harm to a message; but
  one may overwrite the other's commit, and dead letters are then redriven once more.

Everything here blocks.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from streams import wire
from streams.config import RETRY_PARTITIONS, DeadLetters
from streams.derived_records import EDITED, ERROR_GROUP, ERROR_TOPIC, header_text, redriven_headers
from streams.errors import InvalidValue, NotFound, StreamsError
from streams.log.appending import append_and_wait
from streams.log.protocol import Committed, ensure_topic
from streams.log.range_reader import (
    CHUNK_BYTES,
    READ_LIMIT,
    LogRow,
    OffsetRange,
    RangeReader,
    newest_of,
)
from streams.message import Position, Record, headers_without
from streams.processing import EncodedProgress, Range, encode_progress, is_within, settled_ahead
from streams.retries import floor_group
from streams.text import suggestion

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Headers

REDRIVE_CHUNK = 500
"""The most dead letters that are redriven between two commits."""

SCAN_LIMIT = 1_000_000
"""How many dead letters are searched by default."""

RESOLVED_LIMIT = 10_000
"""How many dead letters of a partition are searched for one that does not wait."""

RowPredicate = Callable[[LogRow], bool]
"""Whether a dead letter is selected."""

Destination = Callable[[LogRow], str]
"""The topic that a dead letter is redriven to."""


class ReprocessStopped(StreamsError):
    """Some dead letters could not be resolved. The others are marked; try again for the rest.

    :param done: how many were resolved before the error.
    """

    def __init__(self, text: str, done: int) -> None:
        super().__init__(f"{text}; dealt with before it: {done}")
        self.done = done


@dataclass(slots=True)
class ResolvedOffsets:
    """The resolved dead letters of a partition: all below a position, and ranges above it."""

    position: int
    ranges: list[Range] = field(default_factory=list)

    def __contains__(self, offset: int) -> bool:
        return offset < self.position or is_within(offset, self.ranges)

    def encoded(self) -> EncodedProgress:
        """The form in which it is committed."""
        return encode_progress(self.position, 0, self.ranges)


class _DeadLetterChunk(NamedTuple):
    """The next dead letters of a partition."""

    passed: list[tuple[int, bool]]
    """The offset of each, and whether it is chosen."""
    chosen: list[LogRow]


class _ResolvedSoFar:
    """The resolved dead letters of one partition, as far as it was read."""

    def __init__(self, before: ResolvedOffsets) -> None:
        self._before = before
        self._runs: list[Range] = [(before.position, before.position)]
        """Ranges of resolved dead letters; the end of the first is the position."""
        self._in_run = True
        """Whether the last dead letter was resolved."""
        self._next_offset = before.position

    def after_chunk(self, chunk: _DeadLetterChunk, count: int) -> _ResolvedSoFar:
        """The state after a chunk of which the first ``count`` chosen ones were resolved."""
        after = _ResolvedSoFar(self._before)
        runs, in_run = list(self._runs), self._in_run
        for offset, is_chosen in chunk.passed:
            if (is_chosen and count > 0) or offset in self._before:
                runs.append((runs.pop()[0] if in_run else offset, offset + 1))
                in_run = True
            else:
                in_run = False
            count -= is_chosen
        after._runs, after._in_run = runs, in_run
        after._next_offset = chunk.passed[-1][0] + 1 if chunk.passed else self._next_offset
        return after

    def resolved_offsets(self) -> ResolvedOffsets:
        """The dead letters that are resolved now."""
        (_, position), *runs = self._runs
        later = [(max(low, self._next_offset), high) for low, high in self._before.ranges]
        return ResolvedOffsets(position, runs + [each for each in later if each[0] < each[1]])


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects waiting dead letters, and says how many there are."""

    matches: RowPredicate
    count: int
    end_offsets: dict[int, int]
    """By partition, the end of the offsets that were searched; newer ones were not."""


class NewestRows(NamedTuple):
    """The newest dead letters of a topic.

    :param is_whole: whether there are no older ones.
    """

    rows: DeadLetterRows
    is_whole: bool


class ResolveRequest(NamedTuple):
    """An action on selected dead letters."""

    action: Callable[[Sequence[LogRow]], Sequence[BaseException | None]]
    """Performs it; returns for each letter None, or the error."""
    matches: RowPredicate | None
    limit: int | None
    stop: threading.Event | None
    end_offsets: Mapping[int, int] | None = None
    """By partition, the offset before which they are, and no other partition; None: all."""
    on_progress: Callable[[int], None] | None = None
    """Called with the number of resolved ones after each commit. It may raise, to end early."""


class DeadLetterTopic:
    """The dead letters in one topic.

    :raises NotFound: there is no such topic.
    """

    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = name
        try:
            self.partitions = log.describe_topic(name).partitions
        except NotFound:
            known = [each for each in log.list_topics() if each.endswith(".dead") and each != name]
            hint = suggestion(name, known) if known else "there is none at all"
            raise NotFound(f"there is no dead letter topic {name!r}; {hint}") from None

    def read_resolved(self) -> dict[int, ResolvedOffsets]:
        """By partition, the resolved dead letters."""
        return resolved_offsets(self.log, self.name, self.partitions)

    def rows(
        self,
        *,
        everything: bool = False,
        scan_limit: int | None = SCAN_LIMIT,
        start_offsets: Mapping[int, int] | None = None,
        read_limit: int = READ_LIMIT,
    ) -> DeadLetterRows:
        """The waiting dead letters, oldest first; with ``everything``, all. The caller must close
        it.

        :param scan_limit: how many are searched; None: all there are.
        :param start_offsets: by partition, the offset to begin at; other partitions begin at their
            start.
        :param read_limit: how many are read at once from a partition.
        """
        return DeadLetterRows(
            self,
            everything=everything,
            scan_limit=scan_limit,
            start_offsets=start_offsets or {},
            read_limit=read_limit,
        )

    def row_at(self, partition: int, offset: int) -> DeadLetterRows:
        """The dead letter at that offset, resolved or not. The caller must close it."""
        only = {partition: OffsetRange(offset, offset + 1)}
        return DeadLetterRows(self, everything=True, only=only)

    def newest_rows(self) -> NewestRows:
        """The newest :data:`RESOLVED_LIMIT` dead letters of each partition, resolved or not. The
        caller must close it."""
        starts: dict[int, int] = {}
        is_whole = True
        for partition in range(self.partitions):
            first, end = self.log.watermarks(self.name, partition)
            newest = newest_of(self.log, self.name, partition, first, end, RESOLVED_LIMIT)
            starts[partition] = newest.start
            is_whole = is_whole and newest.is_complete
        return NewestRows(
            self.rows(everything=True, scan_limit=None, start_offsets=starts), is_whole
        )

    def count_waiting(self, matches: RowPredicate | None = None) -> int:
        """How many wait; reads them all."""
        return self.select(matches or (lambda row: True)).count

    def select(self, matches: RowPredicate, limit: int | None = None) -> Selection:
        """The dead letters that wait now and match; reads all that wait.

        :param limit: count at most this many of each partition, the oldest.
        """
        counts: Counter[int] = Counter()
        with closing(self.rows(scan_limit=None)) as rows:
            for row in rows:
                if matches(row):
                    counts[row.batch.partition] += 1
        found = counts.values() if limit is None else (min(each, limit) for each in counts.values())
        return Selection(matches, sum(found), rows.end_offsets)

    def select_named(
        self, names: Collection[str | Position], is_of_source: RowPredicate = lambda row: True
    ) -> Selection:
        """The named dead letters, all of which must wait.

        :param names: positions (also as ``PARTITION/OFFSET``) or message IDs, which several letters
            may have.
        :param is_of_source: whether a dead letter belongs to the source topic and group.
        :raises NotFound: one of them is not there, or does not wait any more.
        """
        found: set[Position] = set()
        ids: set[str] = set()
        for name in dict.fromkeys(names):
            position = self.parse_position(name) if isinstance(name, str) else name
            is_waiting = None if position is None else self._is_waiting(position, is_of_source)
            if position is not None and is_waiting:
                found.add(position)
                continue
            if isinstance(name, Position):
                name = f"{name.partition}/{self.log.format_offset(name.offset)}"
            if is_waiting is not None:
                raise NotFound(f"{self.name}: {_already_resolved(name)}")
            ids.add(name)
        if ids:
            found |= self._find_by_id(ids, is_of_source)
        end_offsets: dict[int, int] = {}
        for _, partition, offset in found:
            end_offsets[partition] = max(end_offsets.get(partition, 0), offset + 1)
        return Selection(lambda row: row.position in found, len(found), end_offsets)

    def parse_position(self, name: str) -> Position | None:
        """The position in this text, with or without the topic; None: the text is not a
        position."""
        partition, slash, offset = name.removeprefix(f"{self.name}/").partition("/")
        number = wire.parse_partition(partition)
        if not slash or number is None:
            return None
        try:
            return Position(self.name, number, self.log.parse_offset(offset))
        except StreamsError:
            return None

    def _is_waiting(self, position: Position, is_of_source: RowPredicate) -> bool | None:
        """Whether the dead letter at that position waits; None: there is none."""
        with closing(self.row_at(position.partition, position.offset)) as rows:
            row = next(iter(rows), None)
            return None if row is None or not is_of_source(row) else rows.is_waiting(row)

    def _find_by_id(self, ids: set[str], is_of_source: RowPredicate) -> set[Position]:
        """The positions of waiting ones with these message IDs; reads all that wait."""
        found: set[Position] = set()
        missing = set(ids)
        with closing(self.rows(scan_limit=None)) as rows:
            for row in rows:
                if row.id in ids and is_of_source(row):
                    found.add(row.position)
                    missing.discard(row.id)
        if not missing:
            return found
        name = min(missing)
        what = f"there is no letter {name!r}"
        # Only the error's text depends on it: search the newest, however many there are.
        newest = self.newest_rows()
        if not newest.is_whole:
            what = f"no letter {name!r} waits, nor is it one of the newest"
        with closing(newest.rows) as rows:
            if any(row.id == name and is_of_source(row) for row in rows):
                what = _already_resolved(name)
        raise NotFound(f"{self.name}: {what}")

    def redrive(
        self,
        destination: Destination,
        *,
        matches: RowPredicate | None = None,
        limit: int | None = None,
        stop: threading.Event | None = None,
        end_offsets: Mapping[int, int] | None = None,
        edited: bytes | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Write the waiting and matching dead letters to their destinations.

        :param limit: at most this many of each partition, the oldest.
        :param stop: ends it early once it is set.
        :param end_offsets: as :class:`Selection` has them.
        :param edited: their new value.
        :param on_progress: as :class:`ResolveRequest` has it.
        :returns: how many were written.
        :raises ReprocessStopped: one was refused, or more were picked out than can be committed.
        :raises InvalidValue: a group with the topic's name reads a topic.
        """
        ensured: set[str] = set()

        def write(rows: Sequence[LogRow]) -> list[BaseException | None]:
            topics = [destination(row) for row in rows]
            answers: list[BaseException | None] = [None] * len(rows)
            for topic in dict.fromkeys(topics):
                if topic not in ensured:
                    config = self.log.capabilities.dead_letter_config
                    ensure_topic(self.log, topic, RETRY_PARTITIONS, config=config)
                    ensured.add(topic)
                chosen = [at for at, each in enumerate(topics) if each == topic]
                records = [redriven_record(rows[at], edited) for at in chosen]
                found = append_and_wait(self.log, topic, records)
                for at, answer in zip(chosen, found, strict=True):
                    answers[at] = answer if isinstance(answer, BaseException) else None
            return answers

        return self._resolve_request(
            ResolveRequest(write, matches, limit, stop, end_offsets, on_progress)
        )

    def purge(
        self,
        *,
        matches: RowPredicate | None = None,
        limit: int | None = None,
        stop: threading.Event | None = None,
        end_offsets: Mapping[int, int] | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Mark the waiting and matching dead letters as resolved. Nothing is deleted.

        :param end_offsets: as :class:`Selection` has them.
        :param on_progress: as :class:`ResolveRequest` has it.
        :raises ReprocessStopped: more were picked out than can be committed.
        :raises InvalidValue: a group with the topic's name reads a topic.
        """
        request = ResolveRequest(
            lambda rows: [None] * len(rows), matches, limit, stop, end_offsets, on_progress
        )
        return self._resolve_request(request)

    def has_reader(self) -> bool:
        """Whether a group with this topic's name is a reader: it runs, or it has positions in
        another topic. The resolved offsets would be committed as its position."""
        try:
            info = self.log.describe_group(self.name)
        except NotFound:
            return False
        return bool(info.members) or any(topic != self.name for topic, _ in info.positions)

    def require_no_reader(self) -> None:
        """:raises InvalidValue: :meth:`has_reader`."""
        if self.has_reader():
            raise InvalidValue(
                f"{self.name}: a group of this name reads something, and which letters were dealt "
                "with is noted as the position of the group of the topic's name: that would move "
                "it. Have the processor read in a group of another name"
            )

    # -- inside

    def _resolve_request(self, request: ResolveRequest) -> int:
        self.require_no_reader()
        count = 0
        for partition, resolved in self.read_resolved().items():
            first, end = self.log.watermarks(self.name, partition)
            if request.end_offsets is not None:
                end = min(end, request.end_offsets.get(partition, 0))
            if end <= max(first, resolved.position):
                continue
            range = OffsetRange(max(first, resolved.position), end)
            with closing(RangeReader(self.log, self.name, {partition: range})) as rows:
                count += self._resolve_partition(request, rows, partition, resolved, count)
        return count

    def _resolve_partition(
        self,
        request: ResolveRequest,
        rows: RangeReader,
        partition: int,
        resolved: ResolvedOffsets,
        count_before: int,
    ) -> int:
        resolving, count = _ResolvedSoFar(resolved), 0
        for chunk in _read_chunks(rows, resolved, request.matches, request.limit):
            if request.stop is not None and request.stop.is_set():
                break
            chosen = chunk.chosen
            ahead = resolving.after_chunk(chunk, len(chosen))
            if chosen and not ahead.resolved_offsets().encoded().complete:
                raise ReprocessStopped(
                    f"{chosen[0].position}: more dead letters are picked out one here, one there "
                    "than can be noted; deal with the older ones first, without a filter",
                    count_before + count,
                )
            answers = request.action(chosen) if chosen else ()
            refused = (at for at, answer in enumerate(answers) if answer is not None)
            failed_at = next(refused, len(chosen))
            resolving = resolving.after_chunk(chunk, failed_at)
            if failed_at:
                self._commit_resolved(partition, resolving.resolved_offsets())
            count += failed_at
            if failed_at and request.on_progress is not None:
                request.on_progress(count_before + count)
            if failed_at < len(chosen):
                raise ReprocessStopped(
                    f"{chosen[failed_at].position} cannot be put back: {answers[failed_at]}",
                    count_before + count,
                )
        return count

    def _commit_resolved(self, partition: int, found: ResolvedOffsets) -> None:
        # Never move it back: another process may have committed more meanwhile.
        current = self.read_resolved()[partition]
        if current.position > found.position:
            low = current.position
            found = ResolvedOffsets(low, [(max(low, a), b) for a, b in found.ranges if b > low])
        position = Committed(found.position, found.encoded().progress if found.ranges else "")
        # Not forced: the log refuses if a group of that name has begun to run meanwhile.
        self.log.reset_offsets(self.name, self.name, {partition: position})


def _read_chunks(
    rows: RangeReader, resolved: ResolvedOffsets, matches: RowPredicate | None, limit: int | None
) -> Iterator[_DeadLetterChunk]:
    """:param limit: how many are chosen at most, in all chunks together."""
    chunk, size = _DeadLetterChunk([], []), 0
    for row in rows:
        is_chosen = row.offset not in resolved and (matches is None or matches(row))
        chunk.passed.append((row.offset, is_chosen))
        if is_chosen:
            chunk.chosen.append(row)
            size += len(row.value or b"")
        count = len(chunk.chosen)
        is_full = count >= REDRIVE_CHUNK or size >= CHUNK_BYTES
        if is_full or count == limit or len(chunk.passed) >= 20 * REDRIVE_CHUNK:
            yield chunk
            if count == limit:
                return
            limit = None if limit is None else limit - count
            chunk, size = _DeadLetterChunk([], []), 0
    yield chunk


class DeadLetterRows:
    """Dead letters of all partitions, merged by the log's time. Iterate once, then close.

    :param scan_limit: how many are searched; None: all there are.
    :param only: the ranges of offsets by partition; None: all that may hold one that waits.
    :param start_offsets: by partition, the offset to begin at.
    :param read_limit: how many are read at once from a partition.
    """

    def __init__(
        self,
        topic: DeadLetterTopic,
        *,
        everything: bool,
        scan_limit: int | None = None,
        only: dict[int, OffsetRange] | None = None,
        start_offsets: Mapping[int, int] | None = None,
        read_limit: int = READ_LIMIT,
    ) -> None:
        self.resolved = topic.read_resolved()
        self.is_truncated = False
        """Whether there are more that were not searched."""
        self._everything = everything
        self._most = scan_limit
        ranges: dict[int, OffsetRange] = {}
        for partition, each in self.resolved.items():
            first, end = topic.log.watermarks(topic.name, partition)
            first = max(first, (start_offsets or {}).get(partition, first))
            ranges[partition] = OffsetRange(first if everything else max(first, each.position), end)
            if only is not None:
                low, high = only.get(partition, (0, 0))
                ranges[partition] = OffsetRange(max(first, low), min(end, high))
        without = {} if everything else {part: each.ranges for part, each in self.resolved.items()}
        self.end_offsets = {partition: end for partition, (_, end) in ranges.items()}
        """By partition, the offset at which the search ends."""
        self._rows = RangeReader(topic.log, topic.name, ranges, skip=without, read_limit=read_limit)

    @property
    def scanned(self) -> int:
        """How many dead letters were searched."""
        return self._rows.scanned

    def __iter__(self) -> Iterator[LogRow]:
        for row in self._rows:
            if self._most is not None and self._rows.scanned > self._most:
                self.is_truncated = True
                return
            if self._everything or self.is_waiting(row):
                yield row

    def is_waiting(self, row: LogRow) -> bool:
        """Whether it is not resolved."""
        return row.offset not in self.resolved[row.batch.partition]

    def close(self) -> None:
        """Close the readers."""
        self._rows.close()


def _already_resolved(name: str) -> str:
    return f"letter {name!r} was put back or set aside already"


def resolved_offsets(log: Log, name: str, partitions: int) -> dict[int, ResolvedOffsets]:
    """By partition of a dead letter topic, the resolved dead letters."""
    committed = log.committed(name, name)
    found = {}
    for partition in range(partitions):
        position = committed.get(partition)
        if position is None:
            found[partition] = ResolvedOffsets(log.watermarks(name, partition)[0])
        else:
            found[partition] = ResolvedOffsets(position.position, settled_ahead(position))
    return found


def source_of(headers: Headers) -> tuple[str | None, str | None]:
    """The source topic and group of a dead letter; None for one that it does not name.

    A message that failed in a group's retry topic belongs to the topic that it came from.
    """
    topic, group = header_text(headers, ERROR_TOPIC), header_text(headers, ERROR_GROUP)
    if topic and group:
        topic = topic.removesuffix(DeadLetters.RETRY.format(topic="", group=group))
    return topic or None, group or None


def put_back_topic(log: Log, topic: str, group: str) -> str:
    """The topic to which dead letters of a topic and group are put back; blocks.

    It is the group's retry topic. But letters of a delay topic, which is known by the group that
    keeps its floor, go back into the delay topic: its deliverer reads no other.

    :raises LogError: the log cannot be asked.
    """
    if topic == group and _is_delay_topic(log, topic):
        return topic
    return DeadLetters().retry(topic, group)


def _is_delay_topic(log: Log, topic: str) -> bool:
    try:
        return bool(log.committed(floor_group(topic), topic))
    except NotFound:
        return False


def redriven_record(row: LogRow, edited: bytes | None = None) -> Record:
    """The message of a dead letter as it is redriven.

    :param edited: its new value.
    """
    headers = redriven_headers(row.headers)
    if edited is not None:
        headers = [*headers_without(headers, (EDITED,)), (EDITED, b"1")]
    value = row.value if edited is None else edited
    return Record(value, row.batch.keys[row.index], row.id, headers)
