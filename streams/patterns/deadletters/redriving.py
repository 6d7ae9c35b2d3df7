"""A topic of dead letters: which of them wait, putting them back, and setting them aside.

How it works
------------

* The letters stand in a topic of their own (``orders.billing.dead``), in which nothing is ever
  changed. Which of them were dealt with is stored as the place of a group that has *the same name
  as that topic*: no member ever runs in it, and every log can keep it. A place is a position, and
  ranges above it (:mod:`streams.engine.progress`), for letters that were picked out.
* Putting back appends the letter, with its original bytes, key, headers and message ID, to the
  group's retry topic (``orders.billing.retry``), which its processors read beside the topic itself.
  Never to the topic itself: other groups would see the message again.
* The header ``streams_redrive`` counts up. It is part of what deduplication compares, so what is
  put back is handled again, and a letter that was put back twice, because this was killed between
  writing and storing the place, is handled once: what is written again is at most the last
  :data:`CHUNK` letters, in the same order, and a dedup window remembers more than that.
* Letters of a key are in one partition, in the order in which they failed, and are put back in that
  order, one chunk confirmed before the next is written.
* Two who deal with one topic at once do no harm to a message, for the same reason; but one may take
  the other's notes back, and letters are then put back once more than was asked for.

Everything here blocks.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streams import wire
from streams.config import RETRY_PARTITIONS, DeadLetters
from streams.engine.progress import Range, Snapshot, decode, encode
from streams.errors import LogError, NotFound, StreamsError
from streams.letters import EDITED, GROUP, PREFIX, TOPIC, first_failure, header, redrives_of
from streams.log.protocol import Committed, ensure
from streams.message import ID, REDRIVE, Record
from streams.replay.copying import CHUNK_BYTES, Row, Rows
from streams.text import nearest

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.message import Headers, Position

CHUNK = 500
"""Letters put back between two notes of it, at most."""

LOOKED_AT = 1_000_000
"""Letters that are looked at for those that are wanted, where nobody says how many."""

Wanted = Callable[[Row], bool]
"""Whether a letter is meant."""

Destination = Callable[[Row], str]
"""The topic that a letter is put back to."""


class ReprocessStopped(StreamsError):
    """Not every letter could be put back; those that were are marked so, and no more is lost by
    trying again.

    :param done: how many were dealt with before.
    """

    def __init__(self, text: str, done: int) -> None:
        super().__init__(f"{text}; dealt with before it: {done}")
        self.done = done


@dataclass(slots=True)
class Dealt:
    """Which letters of a partition were dealt with: all below a position, and ranges above it."""

    position: int
    ranges: list[Range] = field(default_factory=list)

    def __contains__(self, offset: int) -> bool:
        if offset < self.position:
            return True
        at = bisect_right(self.ranges, offset, key=lambda each: each[0]) - 1
        return at >= 0 and offset < self.ranges[at][1]

    def encoded(self) -> Snapshot:
        """As it is stored."""
        return encode(self.position, 0, self.ranges)


class Marking:
    """Deals with the letters of one partition in order, and knows what to store of it."""

    def __init__(self, before: Dealt) -> None:
        self._before = before
        self._position = before.position
        self._runs: list[Range] = []
        self._from: int | None = before.position
        """Where the run of letters dealt with began that the last one belongs to."""
        self._to = before.position
        self._at = before.position

    def passed(self, offset: int, *, dealt: bool) -> None:
        """The next letter was dealt with, or is left."""
        self._at = offset + 1
        if dealt:
            if self._from is None:
                self._from = offset
            self._to = offset + 1
            if self._from == self._position:
                self._from = self._position = self._to
        elif self._from is not None:
            if self._from > self._position:
                self._runs.append((self._from, self._to))
            self._from = None

    def result(self) -> Dealt:
        """What was dealt with, as far as this came, and before."""
        runs = list(self._runs)
        if self._from is not None and self._from > self._position:
            runs.append((self._from, self._to))
        for low, high in self._before.ranges:
            low = max(low, self._at)
            if low < high:
                runs.append((low, high))
        return Dealt(self._position, runs)

    def copy(self) -> Marking:
        """The same, to look ahead with."""
        twin = Marking(self._before)
        twin._position, twin._runs = self._position, list(self._runs)
        twin._from, twin._to, twin._at = self._from, self._to, self._at
        return twin


@dataclass(frozen=True, slots=True)
class Chosen:
    """Letters that were looked for: which of those that wait, and how many there were."""

    wanted: Wanted
    count: int
    ends: dict[int, int]
    """By partition, the offset before which they stand: what came since was not looked at."""


@dataclass(frozen=True, slots=True)
class Dealing:
    """What is to be done with which letters."""

    act: Callable[[Sequence[Row]], Sequence[BaseException | None]]
    """Does it; per letter None, or why not."""
    wanted: Wanted | None
    limit: int | None
    stop: threading.Event | None
    ends: Mapping[int, int] | None = None
    """By partition, the offset before which the letters stand that are meant, and no other
    partition; None: wherever they stand."""

    def over(self, done: int) -> bool:
        """After so many letters of a partition, nothing more of it is begun."""
        reached = self.limit is not None and done >= self.limit
        return reached or (self.stop is not None and self.stop.is_set())


class Letters:
    """The dead letters in one topic.

    :raises NotFound: there is no such topic.
    """

    def __init__(self, log: Log, name: str) -> None:
        self.log = log
        self.name = name
        try:
            self.partitions = log.topic(name).partitions
        except NotFound:
            known = [each for each in dead_topics(log) if each != name]
            hint = nearest(name, known) if known else "there is none at all"
            raise NotFound(f"there is no dead letter topic {name!r}; {hint}") from None

    def dealt(self) -> dict[int, Dealt]:
        """By partition, which letters were dealt with."""
        return dealt(self.log, self.name, self.partitions)

    def rows(self, *, everything: bool = False, most: int | None = LOOKED_AT) -> LetterRows:
        """The letters that wait, oldest first; ``everything``: the others too. To be closed.

        :param most: how many are looked at; None: all there are.
        """
        return LetterRows(self, everything=everything, most=most)

    def at(self, partition: int, offset: int) -> LetterRows:
        """The letter that stands there, whatever was done with it. To be closed."""
        only = {partition: (offset, offset + 1)} if 0 <= partition < self.partitions else {}
        return LetterRows(self, everything=True, only=only)

    def waiting(self, wanted: Wanted | None = None) -> int:
        """How many wait; reads them all."""
        return self.look_for(wanted or (lambda row: True)).count

    def look_for(self, wanted: Wanted, limit: int | None = None) -> Chosen:
        """Those that wait and are wanted, of what there is now; reads them all.

        :param limit: so many of each partition count, the oldest.
        """
        counts: Counter[int] = Counter()
        rows = self.rows(most=None)
        try:
            for row in rows:
                if wanted(row):
                    counts[row.batch.partition] += 1
        finally:
            rows.close()
        found = counts.values() if limit is None else (min(each, limit) for each in counts.values())
        return Chosen(wanted, sum(found), rows.ends)

    def look_up(
        self, names: Collection[str | tuple[int, int]], of: Wanted = lambda row: True
    ) -> Chosen:
        """These that wait: each is named by its place (``PARTITION/OFFSET``, or both as numbers) or
        its message ID, under which there may be several.

        :param of: whether a letter is of the topic and group that are asked about.
        :raises NotFound: one of them is not there, or does not wait any more.
        """
        found: set[tuple[int, int]] = set()
        ids: set[str] = set()
        for name in dict.fromkeys(names):
            place = self.place(name) if isinstance(name, str) else name
            there = None if place is None else self._there(*place, of)
            said = name if isinstance(name, str) else f"{name[0]}/{self.log.show(name[1])}"
            if place is not None and there:
                found.add(place)
            elif there is not None:
                raise NotFound(f"{self.name}: {_over(said)}")
            else:
                ids.add(said)
        if ids:
            found |= self._by_id(ids, of)
        ends: dict[int, int] = {}
        for partition, offset in found:
            ends[partition] = max(ends.get(partition, 0), offset + 1)
        return Chosen(
            lambda row: (row.batch.partition, row.batch.offsets[row.index]) in found,
            len(found),
            ends,
        )

    def place(self, name: str) -> tuple[int, int] | None:
        """The partition and offset that are written so, with or without the topic before them;
        None: it is no place."""
        partition, slash, offset = name.removeprefix(f"{self.name}/").partition("/")
        number = wire.whole(partition, 9)
        if not slash or number is None:
            return None
        try:
            return number, self.log.parse(offset)
        except StreamsError:
            return None

    def _there(self, partition: int, offset: int, of: Wanted) -> bool | None:
        """Whether the letter that stands there waits; None: there is none."""
        rows = self.at(partition, offset)
        try:
            row = next(iter(rows), None)
            return None if row is None or not of(row) else rows.waits(row)
        finally:
            rows.close()

    def _by_id(self, ids: set[str], of: Wanted) -> set[tuple[int, int]]:
        """Where the letters stand that wait and have these message IDs."""
        found: set[tuple[int, int]] = set()
        left = set(ids)
        rows = self.rows(most=None)
        try:
            for row in rows:
                id = row.batch.id(row.index)
                if id in ids and of(row):
                    found.add((row.batch.partition, row.batch.offsets[row.index]))
                    left.discard(id)
        finally:
            rows.close()
        if not left:
            return found
        name = min(left)
        everything = self.rows(everything=True, most=None)
        try:
            there = any(row.batch.id(row.index) == name and of(row) for row in everything)
        finally:
            everything.close()
        what = _over(name) if there else f"there is no letter {name!r}"
        raise NotFound(f"{self.name}: {what}")

    def put_back(
        self,
        destination: Destination,
        *,
        wanted: Wanted | None = None,
        limit: int | None = None,
        stop: threading.Event | None = None,
        ends: Mapping[int, int] | None = None,
        edited: bytes | None = None,
    ) -> int:
        """Write those that wait and are wanted to where they go.

        :param limit: so many of each partition, the oldest, at most.
        :param stop: set, nothing more is begun.
        :param ends: as :class:`Chosen` has them.
        :param edited: the value that they are to have.
        :returns: how many.
        :raises ReprocessStopped: one was refused, or more were picked out than can be noted.
        """
        made: set[str] = set()

        def write(rows: Sequence[Row]) -> list[BaseException | None]:
            return self._write(rows, destination, made, edited)

        return self._deal(Dealing(write, wanted, limit, stop, ends))

    def set_aside(
        self,
        *,
        wanted: Wanted | None = None,
        limit: int | None = None,
        stop: threading.Event | None = None,
        ends: Mapping[int, int] | None = None,
    ) -> int:
        """Let those that wait and are wanted count as dealt with. Nothing is deleted.

        :param ends: as :class:`Chosen` has them.
        :raises ReprocessStopped: more were picked out than can be noted.
        """
        return self._deal(Dealing(lambda rows: [None] * len(rows), wanted, limit, stop, ends))

    # -- inside

    def _deal(self, dealing: Dealing) -> int:
        done = 0
        for partition, before in self.dealt().items():
            first, end = self.log.bounds(self.name, partition)
            if dealing.ends is not None:
                end = min(end, dealing.ends.get(partition, 0))
            if end <= max(first, before.position):
                continue
            rows = Rows(self.log, self.name, {partition: (max(first, before.position), end)})
            try:
                done += self._deal_partition(dealing, rows, partition, before, done)
            finally:
                rows.close()
        return done

    def _deal_partition(
        self, dealing: Dealing, rows: Rows, partition: int, before: Dealt, earlier: int
    ) -> int:
        marking, done, over = Marking(before), 0, False
        while not (over or dealing.over(done)):
            left = None if dealing.limit is None else dealing.limit - done
            passed, chosen, over = _chunk(rows, before, dealing.wanted, left)
            if not chosen:
                _mark(marking, passed, before, 0)
                continue
            ahead = marking.copy()
            _mark(ahead, passed, before, len(chosen))
            if not ahead.result().encoded().complete:
                raise ReprocessStopped(
                    f"{chosen[0].position}: more dead letters are picked out one here, one there "
                    "than can be noted; deal with the older ones first, without a filter",
                    earlier + done,
                )
            answers = dealing.act(chosen)
            failed = next((at for at, each in enumerate(answers) if each is not None), len(chosen))
            _mark(marking, passed, before, failed)
            if failed:
                self._store(partition, marking.result())
            done += failed
            if failed < len(chosen):
                raise ReprocessStopped(
                    f"{chosen[failed].position} cannot be put back: {answers[failed]}",
                    earlier + done,
                )
        return done

    def _write(
        self,
        rows: Sequence[Row],
        destination: Destination,
        made: set[str],
        edited: bytes | None,
    ) -> list[BaseException | None]:
        topics = [destination(row) for row in rows]
        answers: list[BaseException | None] = [None] * len(rows)
        for topic in dict.fromkeys(topics):
            if topic not in made:
                make_retry_topic(self.log, topic)
                made.add(topic)
            chosen = [at for at, each in enumerate(topics) if each == topic]
            found = append(self.log, topic, [record_again(rows[at], edited) for at in chosen])
            for at, answer in zip(chosen, found, strict=True):
                answers[at] = answer if isinstance(answer, BaseException) else None
        return answers

    def _store(self, partition: int, found: Dealt) -> None:
        # Somebody else may have gone further meanwhile: never back.
        now = self.dealt()[partition]
        if now.position > found.position:
            low = now.position
            found = Dealt(low, [(max(low, a), b) for a, b in found.ranges if b > low])
        place = Committed(found.position, found.encoded().progress if found.ranges else "")
        self.log.move(self.name, self.name, {partition: place}, force=True)


def _chunk(
    rows: Rows, before: Dealt, wanted: Wanted | None, most: int | None
) -> tuple[list[tuple[int, bool]], list[Row], bool]:
    """The next letters: offset and whether it is chosen, those chosen, and whether that is all."""
    passed: list[tuple[int, bool]] = []
    chosen: list[Row] = []
    size = 0
    for row in rows:
        offset = row.batch.offsets[row.index]
        takes = offset not in before and (wanted is None or wanted(row))
        passed.append((offset, takes))
        if takes:
            chosen.append(row)
            value = row.batch.values[row.index]
            size += len(value or b"")
        full = len(chosen) >= CHUNK or len(chosen) == most or size >= CHUNK_BYTES
        if full or len(passed) >= 20 * CHUNK:
            return passed, chosen, False
    return passed, chosen, True


def _mark(marking: Marking, passed: Sequence[tuple[int, bool]], before: Dealt, done: int) -> None:
    """Note a chunk of which the first ``done`` of those chosen were dealt with."""
    for offset, takes in passed:
        dealt_now = takes and done > 0
        done -= takes
        marking.passed(offset, dealt=dealt_now or offset in before)


class LetterRows:
    """Letters as they stand, partitions merged by the log's time. Iterate once, then close.

    :param most: how many are looked at; None: all there are.
    :param only: the ranges of offsets by partition; None: wherever a letter may wait.
    """

    def __init__(
        self,
        letters: Letters,
        *,
        everything: bool,
        most: int | None = None,
        only: dict[int, tuple[int, int]] | None = None,
    ) -> None:
        self.dealt = letters.dealt()
        self.cut = False
        """There are more, which were not looked at."""
        self._everything = everything
        self._most = most
        ranges: dict[int, tuple[int, int]] = {}
        for partition, each in self.dealt.items():
            first, end = letters.log.bounds(letters.name, partition)
            ranges[partition] = (first if everything else max(first, each.position), end)
            if only is not None:
                low, high = only.get(partition, (0, 0))
                ranges[partition] = (max(first, low), min(end, high))
        without = {} if everything else {part: each.ranges for part, each in self.dealt.items()}
        self.ends = {partition: end for partition, (_, end) in ranges.items()}
        """By partition, where looking ends."""
        self._rows = Rows(letters.log, letters.name, ranges, without=without)

    def __iter__(self) -> Iterator[Row]:
        for row in self._rows:
            if self._most is not None and self._rows.scanned > self._most:
                self.cut = True
                return
            if self._everything or self.waits(row):
                yield row

    def waits(self, row: Row) -> bool:
        """Nobody dealt with it yet."""
        return row.batch.offsets[row.index] not in self.dealt[row.batch.partition]

    def close(self) -> None:
        """Give back what reading holds."""
        self._rows.close()


def _over(name: str) -> str:
    return f"letter {name!r} was put back or set aside already"


def dead_topics(log: Log) -> list[str]:
    """Topics that are named as dead letter topics are."""
    return [info.name for info in log.topics() if info.name.endswith(".dead")]


def dealt(log: Log, name: str, partitions: int) -> dict[int, Dealt]:
    """By partition of a dead letter topic, which letters were dealt with."""
    held = log.places(name, name)
    found = {}
    for partition in range(partitions):
        place = held.get(partition)
        if place is None:
            found[partition] = Dealt(log.bounds(name, partition)[0])
            continue
        try:
            ranges = decode(place.position, place.progress)[1] if place.progress else []
        except ValueError:  # another tool's metadata: its position counts
            ranges = []
        found[partition] = Dealt(place.position, ranges)
    return found


def source_of(headers: Headers) -> tuple[str | None, str | None]:
    """The topic and the group a letter is of, as far as it says so.

    What failed in a group's retry topic is of the topic that it came from.
    """
    topic, group = header(headers, TOPIC), header(headers, GROUP)
    if topic and group:
        topic = topic.removesuffix(DeadLetters.RETRY.format(topic="", group=group))
    return topic or None, group or None


def make_retry_topic(log: Log, name: str) -> None:
    """Create a topic for what is put back, where it is missing."""
    ensure(log, name, RETRY_PARTITIONS, config=log.capabilities.letters)


def record_again(row: Row, edited: bytes | None = None) -> Record:
    """The message that a letter was made of, counted as put back once more. It says where it failed
    first.

    :param edited: the value that it is to have.
    """
    batch, index = row.batch, row.index
    headers = batch.headers(index)
    again: list[tuple[str, bytes | None]] = [
        (name, value)
        for name, value in headers
        if name not in (ID, REDRIVE) and not name.startswith(PREFIX)
    ]
    again.append((REDRIVE, str(redrives_of(headers) + 1).encode()))
    again += first_failure(headers)
    value = batch.values[index]
    if edited is not None:
        value = edited
        again = [*(pair for pair in again if pair[0] != EDITED), (EDITED, b"1")]
    return Record(value, batch.keys[index], batch.id(index), again)


def append(
    log: Log,
    topic: str,
    records: Sequence[Record],
    meanwhile: Callable[[], None] = lambda: None,
) -> list[Position | LogError]:
    """Write records and wait for what becomes of them.

    :param meanwhile: called about once a second until that is known.
    """
    ended = threading.Event()
    answers: list[Any] = []

    def done(found: Sequence[Position | LogError]) -> None:
        answers.extend(found)
        ended.set()

    log.append(topic, records, done)
    while not ended.wait(1.0):
        meanwhile()
    return answers
