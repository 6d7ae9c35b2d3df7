"""How far a group is in one partition: position, settled set, floor.

* **position**: every message with a smaller offset is settled. This is what a log commits.
* **settled set**: ranges of offsets above the position whose messages are settled too, because
  other keys overtook a slow or failing one. Remembered with the commit, so that a crash does not
  handle them again (Confluent's Parallel Consumer stores the same kind of map).
* **floor**: where the group last started or was reset to. Identities below it do not count for
  deduplication.

Settled set and floor travel as an opaque ASCII string of at most 4,095 characters, in the shorter
of two forms:

``1r<floor><run>...``   runs: lengths of unsettled and settled stretches in turn
``1b<floor><bitmap>``   one bit an offset from the position on, base64url

Numbers are written base 32, least digit first, with a continuation bit (64 letters in all). ``~``
before a number says that it changes the high half of a 128-bit offset (Redis' milliseconds); the
low half follows as it is. When even the shorter form is too long it is cut: what is forgotten is
handled again after a crash, which at-least-once allows; nothing is ever skipped.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any, NamedTuple

from streams.message import Batch

LIMIT = 4_095
"""Characters of an encoded progress, at most: Kafka's default for commit metadata."""

Range = tuple[int, int]
"""Offsets from the first to before the second."""

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_DIGIT = {letter: digit for digit, letter in enumerate(_LETTERS)}
_LOW = (1 << 64) - 1
_LONGEST = 13
"""Letters of the longest number: half an offset."""
_FLIP = bytes([1, 0]) + bytes(254)


class Snapshot(NamedTuple):
    """What can be committed now."""

    position: int
    progress: str
    complete: bool
    """False: the settled set did not fit and was cut."""


# -- the text form ------------------------------------------------------------------------------


def _number(value: int) -> str:
    letters = []
    while True:
        value, digit = value >> 5, value & 31
        if not value:
            letters.append(_LETTERS[digit])
            return "".join(letters)
        letters.append(_LETTERS[digit | 32])


def _step(value: int, previous: int) -> str:
    """``value`` written relative to ``previous``, which is not larger."""
    high = (value >> 64) - (previous >> 64)
    if high:
        return f"~{_number(high)}{_number(value & _LOW)}"
    return _number(value - previous)


class _Scanner:
    """Reads what :func:`_step` wrote; ValueError where it could not have."""

    def __init__(self, text: str, at: int) -> None:
        self.text = text
        self.at = at

    def more(self) -> bool:
        return self.at < len(self.text)

    def number(self) -> int:
        value = 0
        for place in range(_LONGEST):
            if self.at >= len(self.text):
                raise ValueError("progress ends inside a number")
            digit = _DIGIT.get(self.text[self.at])
            if digit is None:
                raise ValueError(f"progress has {self.text[self.at]!r} in a number")
            self.at += 1
            value |= (digit & 31) << 5 * place
            if digit < 32:
                if value > _LOW or (place and not digit):
                    break
                return value
        raise ValueError("progress has a number that is too large, or longer than need be")

    def step(self, previous: int) -> int:
        if self.text.startswith("~", self.at):
            self.at += 1
            more = self.number()
            high = (previous >> 64) + more
            if not more or high > 1 << 64:
                raise ValueError("progress has an offset that no log has")
            return (high << 64) | self.number()
        offset = previous + self.number()
        if offset >> 64 != previous >> 64:
            raise ValueError("progress has an offset that no log has")
        return offset


def encode(position: int, floor: int, settled: Sequence[Range], limit: int = LIMIT) -> Snapshot:
    """Write floor and settled set; ``settled`` ascends, above ``position``, ranges not touching."""
    head = _step(max(0, floor), 0)
    runs = ["1r", head]
    size = 2 + len(head)
    previous, covered = position, position
    for start, end in settled:
        piece = _step(start, previous) + _step(end, start)
        if size + len(piece) > limit:
            break
        runs.append(piece)
        size += len(piece)
        previous = covered = end
    last = settled[-1][1] if settled else position
    if settled and last >> 64 == position >> 64:
        # A bitmap wins where runs are short; it needs a letter for six offsets.
        room = (limit - 2 - len(head)) // 4 * 4 * 6
        span = min(last - position, room)
        better = covered < last if span == last - position else position + span > covered
        if better or (covered == last and 2 + len(head) + -(-span // 6) < size):
            bits = 0
            for start, end in settled:
                low, high = start - position, min(end - position, span)
                if low >= span:
                    break
                bits |= ((1 << (high - low)) - 1) << low
            packed = bits.to_bytes(-(-span // 8), "little")
            text = urlsafe_b64encode(packed).decode().rstrip("=")
            return Snapshot(position, f"1b{head}{text}", span == last - position)
    return Snapshot(position, "".join(runs), covered == last)


def decode(position: int, text: str) -> tuple[int, list[Range]]:
    """Read floor and settled set back.

    :raises ValueError: the text is not ours (another tool's metadata, or damaged).
    """
    if len(text) > LIMIT or text[:2] not in ("1r", "1b"):
        raise ValueError("progress is not of this toolkit's form")
    scanner = _Scanner(text, 2)
    floor = scanner.step(0)
    if floor > position:
        raise ValueError("progress has its floor above its position")
    settled: list[Range] = []
    if text[1] == "r":
        previous = position
        while scanner.more():
            start = scanner.step(previous)
            end = scanner.step(start)
            if end <= start or start < previous or (settled and start == previous):
                raise ValueError("progress has an empty or unordered run")
            settled.append((start, end))
            previous = end
        return floor, settled
    tail = text[scanner.at :]
    if any(letter not in _DIGIT for letter in tail):
        raise ValueError("progress has a bitmap that is not base64url")
    packed = urlsafe_b64decode(tail + "=" * (-len(tail) % 4))
    bits = bin(int.from_bytes(packed, "little"))[:1:-1]  # least bit first
    start = bits.find("1")
    while start >= 0:
        end = bits.find("0", start)
        if end < 0:
            end = len(bits)
        settled.append((position + start, position + end))
        start = bits.find("1", end)
    if settled and settled[-1][1] >> 64 != position >> 64:
        raise ValueError("progress has an offset that no log has")
    return floor, settled


def cut(settled: Sequence[Range], end: int) -> list[Range]:
    """A settled set without what lies at or behind ``end``."""
    return [(low, min(high, end)) for low, high in settled if low < end]


# -- the bytes -----------------------------------------------------------------------------------


class Segment:
    """One batch on its way, with a byte a message: 1 once the message is settled."""

    __slots__ = (
        "_nbytes",
        "batch",
        "decode",
        "done",
        "events",
        "first",
        "holes",
        "ids",
        "keys",
        "largest",
        "owner",
        "size",
        "unique",
        "values",
    )

    def __init__(self, owner: Any, batch: Batch, ids: list[str | None] | None = None) -> None:
        self.owner = owner
        """The partition's state it belongs to (:class:`~streams.engine.dispatch.Owned`)."""
        self.batch = batch
        self.keys = batch.keys
        self.values = batch.values
        self.ids = batch.ids if ids is None else ids
        """Identities: the batch's own, unless those are inside the values and put here later."""
        self.decode: Callable[[Any], Any] | None = None
        """The bare decoder, where it is safe for all these values (the runner's own)."""
        self.events: list[Any] | None = None
        """The decoded values, where the identity is inside them."""
        self.unique: set[str] | None = None
        """The identities, while the segment is run straight: they are known to differ."""
        self.done = bytearray(len(batch))
        self.holes = False
        """Some messages were settled before they arrived (in an earlier life of the group)."""
        self.first = 0
        """Messages before this index were delivered before: another segment speaks for them."""
        self._nbytes: list[int] | None = None
        self.size, self.largest = batch.measure()
        """Bytes held by the messages that were not released. ``largest``: the largest value's
        bytes, -1 where one is null."""

    def __len__(self) -> int:
        return len(self.done)

    def release(self) -> None:
        """Let go of the settled messages' bytes."""
        if self._nbytes is None:
            self._nbytes = self.batch.nbytes()
        release, events = self.batch.release, self.events
        for index in compress(range(len(self.done)), self.done):
            release(index)
            if events is not None:
                events[index] = None
        self.size = sum(compress(self._nbytes, self.done.translate(_FLIP)))


def _put(found: list[Range], start: int, end: int) -> None:
    """Append a range. A byte may be set while the bytes are looked through, so what was the end of
    one range can be the beginning of the next: they are one."""
    if found and start <= found[-1][1]:
        start, last = found.pop()
        end = max(end, last)
    found.append((start, end))


def with_offsets(settled: Sequence[Range], offsets: Iterable[int]) -> list[Range]:
    """A settled set together with single offsets; ascending, none touching."""
    found: list[Range] = []
    for start, end in sorted([*settled, *((offset, offset + 1) for offset in offsets)]):
        _put(found, start, end)
    return found


class _Closed(NamedTuple):
    """Neighbouring segments that are wholly settled behind one that is not."""

    start: int
    end: int


def _closed(segment: Segment) -> _Closed:
    offsets = segment.batch.offsets
    return _Closed(offsets[segment.first], offsets[-1] + 1)


class Progress:
    """The progress of one assignment. Every method is for one caller at a time."""

    def __init__(self, position: int, floor: int, settled: Iterable[Range] = ()) -> None:
        self.position = position
        self.floor = floor
        self._segments: list[Segment | _Closed] = []
        self._tidy = 64
        """Collapse settled segments once there are more than this."""
        self.polled = position
        """Everything below was delivered to :meth:`add`."""
        self._restored = [(start, end) for start, end in settled if end > position]
        """Settled before this assignment began, and not yet polled past."""

    def add(self, owner: Any, batch: Batch, ids: list[str | None] | None = None) -> Segment:
        """Take in the next batch of this partition; what is settled already is marked so.

        :param ids: what stands for the identities, where they are not the batch's own.
        """
        segment = Segment(owner, batch, ids)
        offsets, done = batch.offsets, segment.done
        if offsets[0] < self.polled:
            # Delivered before, by a client that seeks back by itself: never a second time.
            segment.first = bisect_left(offsets, self.polled)
            done[: segment.first] = b"\1" * segment.first
            segment.holes = True
        if self._restored:
            starts = [start for start, _ in self._restored]
            for index, offset in enumerate(offsets):
                at = bisect_right(starts, offset) - 1
                if at >= 0 and offset < self._restored[at][1]:
                    done[index] = 1
                    segment.holes = True
        if segment.first < len(segment):
            self._segments.append(segment)
        self.polled = max(self.polled, offsets[-1] + 1)
        if self._restored and self._restored[-1][1] <= self.polled:
            self._restored = []
        return segment

    def held(self) -> tuple[int, int]:
        """How many messages are delivered and not settled, and the bytes not yet let go of."""
        if not self._segments:
            return 0, 0
        self._advance()
        messages = size = 0
        for at, segment in enumerate(self._segments):
            if isinstance(segment, Segment):
                left = segment.done.count(0)
                if left:
                    messages += left
                    size += segment.size
                else:
                    self._segments[at] = _closed(segment)
        return messages, size

    def oldest(self) -> float | None:
        """When the log took the first message that is delivered and not settled, in seconds since
        the epoch; None where there is none."""
        self._advance()
        head = self._segments[0] if self._segments else None
        if not isinstance(head, Segment):
            return None
        first = head.done.find(0)
        return None if first < 0 else head.batch.time(first)

    def sweep(self) -> None:
        """Let go of the bytes of settled messages whose neighbours are not settled."""
        for at, segment in enumerate(self._segments):
            if isinstance(segment, Segment) and segment.done.find(1) >= 0:
                if segment.done.find(0) < 0:
                    self._segments[at] = _closed(segment)
                else:
                    segment.release()

    def _advance(self) -> None:
        """Move the position over what is settled; forget and collapse settled segments."""
        segments = self._segments
        passed = 0
        for head in segments:
            if isinstance(head, _Closed):
                self.position = max(self.position, head.end)
            else:
                first = head.done.find(0)
                if first >= 0:
                    if first:
                        self.position = max(self.position, head.batch.offsets[first])
                    break
                self.position = max(self.position, head.batch.offsets[-1] + 1)
            passed += 1
        del segments[:passed]
        if len(segments) > self._tidy:
            kept: list[Segment | _Closed] = []
            for segment in segments:
                if isinstance(segment, Segment):
                    if segment.done.find(0) >= 0:
                        kept.append(segment)
                        continue
                    segment = _closed(segment)
                if kept and isinstance(kept[-1], _Closed):
                    segment = _Closed(kept[-1].start, segment.end)
                    kept.pop()
                kept.append(segment)
            self._segments = kept
            self._tidy = 2 * len(kept) + 64

    def ranges(self) -> list[Range]:
        """The settled set: what is settled above the position, ascending, none touching."""
        found: list[Range] = []
        start: int | None = None  # of the settled range that is open
        end = 0
        for segment in self._segments:
            if isinstance(segment, _Closed):
                start = segment.start if start is None else start
                end = segment.end
                continue
            done, offsets = segment.done, segment.batch.offsets
            at = first = segment.first
            while at < len(done):
                if start is None:
                    at = done.find(1, at)
                    if at < 0:
                        break
                    start = offsets[at]
                stop = done.find(0, at)
                if stop < 0:
                    end = offsets[-1] + 1
                    break
                end = offsets[stop - 1] + 1 if stop > first else end
                _put(found, start, end)
                start, at = None, stop
        if start is not None:
            _put(found, start, end)
        for low, high in self._restored:
            low = max(low, self.polled)
            if low < high:
                if found and found[-1][1] >= low:
                    low = found.pop()[0]
                found.append((low, high))
        return [(max(low, self.position), high) for low, high in found if high > self.position]

    def snapshot(self, limit: int = LIMIT) -> Snapshot:
        """What can be committed now."""
        self._advance()
        return encode(self.position, self.floor, self.ranges(), limit)

    def preview(self, marks: Iterable[tuple[Segment, int]]) -> Snapshot:
        """The snapshot as it will be once these messages (segment, index) are settled too.

        Nothing is changed: for a transaction that may still be rolled back.
        """
        self._advance()
        fresh = [(segment, index) for segment, index in marks if not segment.done[index]]
        for segment, index in fresh:
            segment.done[index] = 1
        try:
            ahead = Progress(self.position, self.floor)
            ahead._segments = list(self._segments)
            ahead.polled, ahead._restored = self.polled, self._restored
            return ahead.snapshot()
        finally:
            for segment, index in fresh:
                segment.done[index] = 0
