"""How far a group is in one partition: position, settled set, floor.

* **position**: every message with a smaller offset is settled. This is what a log commits.
* **settled set**: ranges of offsets above the position whose messages are settled too, because
  other keys overtook a slow or failing one. Remembered with the commit, so that a crash does not
  handle them again (Confluent's Parallel Consumer stores the same kind of map).
* **floor**: where the group last started or was reset to. Identities below it do not count for
  deduplication.
* **generation**: which reset the group goes on from; 0 before the first. What a message is handled
  for once more on purpose has another generation than what is merely redelivered.

Settled set and floor travel as an opaque ASCII string of at most 4,095 characters, in the shorter
of two forms:

``1r<floor><run>...``   runs: lengths of unsettled and settled stretches in turn
``1b<floor><bitmap>``   one bit an offset from the position on, base64url

After a reset these begin with ``2r<generation>`` and ``2b<generation>``.

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
from operator import itemgetter
from typing import Any, NamedTuple

from streams.message import Batch
from streams.wire import PROGRESS_LIMIT

Range = tuple[int, int]
"""Offsets from the first to before the second."""

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_DIGIT = {letter: digit for digit, letter in enumerate(_ALPHABET)}
_LOW_HALF = (1 << 64) - 1
MAX_GENERATION = _LOW_HALF
"""The largest generation that can be written."""
_MAX_DIGITS = 13
"""Letters of the longest number: half an offset."""
_FORMS = frozenset(("1r", "1b", "2r", "2b"))
"""The prefixes of this module's text forms."""
_FLIP = bytes([1, 0]) + bytes(254)


class EncodedProgress(NamedTuple):
    """The position and progress that can be committed now."""

    position: int
    progress: str
    complete: bool
    """False: the settled set did not fit and was cut."""


# -- the text form ------------------------------------------------------------------------------


def _encode_number(value: int) -> str:
    symbols = []
    while True:
        value, digit = value >> 5, value & 31
        if not value:
            symbols.append(_ALPHABET[digit])
            return "".join(symbols)
        symbols.append(_ALPHABET[digit | 32])


def _encode_step(value: int, previous: int) -> str:
    """``value`` written relative to ``previous``, which is not larger."""
    high = (value >> 64) - (previous >> 64)
    if high:
        return f"~{_encode_number(high)}{_encode_number(value & _LOW_HALF)}"
    return _encode_number(value - previous)


class _ProgressReader:
    """Reads what :func:`_encode_step` wrote; ValueError where it could not have."""

    def __init__(self, text: str, index: int) -> None:
        self.text = text
        self.index = index

    def has_more(self) -> bool:
        return self.index < len(self.text)

    def read_number(self) -> int:
        value = 0
        for digit_index in range(_MAX_DIGITS):
            if self.index >= len(self.text):
                raise ValueError("progress ends inside a number")
            digit = _DIGIT.get(self.text[self.index])
            if digit is None:
                raise ValueError(f"progress has {self.text[self.index]!r} in a number")
            self.index += 1
            value |= (digit & 31) << 5 * digit_index
            if digit < 32:
                if value > _LOW_HALF or (digit_index and not digit):
                    break
                return value
        raise ValueError("progress has a number that is too large, or longer than need be")

    def read_step(self, previous: int) -> int:
        if self.text.startswith("~", self.index):
            self.index += 1
            more = self.read_number()
            high = (previous >> 64) + more
            if not more or high > 1 << 64:
                raise ValueError("progress has an offset that no log has")
            return (high << 64) | self.read_number()
        offset = previous + self.read_number()
        if offset >> 64 != previous >> 64:
            raise ValueError("progress has an offset that no log has")
        return offset


def encode_progress(
    position: int,
    floor: int,
    settled: Sequence[Range],
    limit: int = PROGRESS_LIMIT,
    *,
    generation: int = 0,
) -> EncodedProgress:
    """Write floor and settled set; ``settled`` ascends, above ``position``, ranges not touching.

    :param generation: of the reset, at most :data:`MAX_GENERATION`; 0 before the first.
    """
    encoded_floor = _encode_step(max(0, floor), 0)
    form = "1"
    if generation:
        form, encoded_floor = "2", _encode_number(generation) + encoded_floor
    runs = [f"{form}r", encoded_floor]
    size = 2 + len(encoded_floor)
    previous, covered = position, position
    for start, end in settled:
        piece = _encode_step(start, previous) + _encode_step(end, start)
        if size + len(piece) > limit:
            break
        runs.append(piece)
        size += len(piece)
        previous = covered = end
    last = settled[-1][1] if settled else position
    if settled and last >> 64 == position >> 64:
        # A bitmap wins where runs are short; it needs a letter for six offsets.
        room = (limit - 2 - len(encoded_floor)) // 4 * 4 * 6
        span = min(last - position, room)
        better = covered < last if span == last - position else position + span > covered
        if better or (covered == last and 2 + len(encoded_floor) + -(-span // 6) < size):
            bits = 0
            for start, end in settled:
                low, high = start - position, min(end - position, span)
                if low >= span:
                    break
                bits |= ((1 << (high - low)) - 1) << low
            packed = bits.to_bytes(-(-span // 8), "little")
            text = urlsafe_b64encode(packed).decode().rstrip("=")
            return EncodedProgress(
                position, f"{form}b{encoded_floor}{text}", span == last - position
            )
    return EncodedProgress(position, "".join(runs), covered == last)


def decode_progress(position: int, text: str) -> tuple[int, list[Range]]:
    """Read floor and settled set back.

    :raises ValueError: the text is not ours (another tool's metadata, or damaged).
    """
    if len(text) > PROGRESS_LIMIT or not is_progress(text):
        raise ValueError("progress is not of this toolkit's form")
    scanner = _ProgressReader(text, 2)
    _read_generation(scanner)
    floor = scanner.read_step(0)
    if floor > position:
        raise ValueError("progress has its floor above its position")
    settled: list[Range] = []
    if text[1] == "r":
        previous = position
        while scanner.has_more():
            start = scanner.read_step(previous)
            end = scanner.read_step(start)
            if end <= start or start < previous or (settled and start == previous):
                raise ValueError("progress has an empty or unordered run")
            settled.append((start, end))
            previous = end
        return floor, settled
    bitmap = text[scanner.index :]
    if any(symbol not in _DIGIT for symbol in bitmap):
        raise ValueError("progress has a bitmap that is not base64url")
    packed = urlsafe_b64decode(bitmap + "=" * (-len(bitmap) % 4))
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


def is_progress(text: str) -> bool:
    """Whether an owner wrote this text: not where none has committed yet, or another tool has set
    the position. Only its beginning is looked at."""
    return text[:2] in _FORMS


def _read_generation(scanner: _ProgressReader) -> int:
    """The generation, from where it stands in a text that may have one."""
    if scanner.text[0] == "1":
        return 0
    generation = scanner.read_number()
    if not generation:
        raise ValueError("progress has a generation of 0, which is left out")
    return generation


def decode_generation(text: str) -> int:
    """Which reset a group goes on from; 0 before the first, and where the text is not ours."""
    if not is_progress(text):
        return 0
    try:
        return _read_generation(_ProgressReader(text, 2))
    except ValueError:
        return 0


def truncate_ranges(settled: Sequence[Range], end: int) -> list[Range]:
    """A settled set without what lies at or behind ``end``."""
    return [(low, min(high, end)) for low, high in settled if low < end]


# -- the bytes -----------------------------------------------------------------------------------


class FetchedBatch:
    """One batch on its way, with a byte a message: 1 once the message is settled."""

    __slots__ = (
        "_nbytes",
        "batch",
        "decode",
        "decoded",
        "first_new",
        "held_bytes",
        "ids",
        "keys",
        "largest_value",
        "partly_settled",
        "settled",
        "state",
        "unique_ids",
        "values",
    )

    def __init__(self, state: Any, batch: Batch, ids: list[str | None] | None = None) -> None:
        self.state = state
        """The partition's state it belongs to
        (:class:`~streams.engine.dispatcher.PartitionState`)."""
        self.batch = batch
        self.keys = batch.keys
        self.values = batch.values
        self.ids = batch.ids if ids is None else ids
        """Identities: the batch's own, unless those are inside the values and put here later."""
        self.decode: Callable[[Any], Any] | None = None
        """The bare decoder, where it is safe for all these values (the executor's own)."""
        self.decoded: list[Any] | None = None
        """The decoded values, where the identity is inside them."""
        self.unique_ids: set[str] | None = None
        """The identities, while the batch is on the fast path: they are known to differ."""
        self.settled = bytearray(len(batch))
        self.partly_settled = False
        """Some messages were settled before they arrived (in an earlier life of the group)."""
        self.first_new = 0
        """Messages before this index were delivered before: another batch speaks for them."""
        self._nbytes: list[int] | None = None
        self.held_bytes, self.largest_value = batch.total_and_largest()
        """Bytes held by the messages that were not released. ``largest_value``: the largest value's
        bytes, -1 where one is null."""

    def __len__(self) -> int:
        return len(self.settled)

    def release(self) -> None:
        """Let go of the settled messages' bytes."""
        if self._nbytes is None:
            self._nbytes = self.batch.message_sizes()
        release, decoded = self.batch.release, self.decoded
        for index in compress(range(len(self.settled)), self.settled):
            release(index)
            if decoded is not None:
                decoded[index] = None
        self.held_bytes = sum(compress(self._nbytes, self.settled.translate(_FLIP)))


def _append_range(found: list[Range], start: int, end: int) -> None:
    """Append a range. A byte may be set while the bytes are looked through, so what was the end of
    one range can be the beginning of the next: they are one."""
    if found and start <= found[-1][1]:
        start, last = found.pop()
        end = max(end, last)
    found.append((start, end))


def is_within(offset: int, ranges: Sequence[Range]) -> bool:
    """Whether an offset is in one of these ranges, which ascend."""
    at = bisect_right(ranges, offset, key=itemgetter(0)) - 1
    return at >= 0 and offset < ranges[at][1]


def add_offsets(settled: Sequence[Range], offsets: Iterable[int]) -> list[Range]:
    """A settled set together with single offsets; ascending, none touching."""
    found: list[Range] = []
    for start, end in sorted([*settled, *((offset, offset + 1) for offset in offsets)]):
        _append_range(found, start, end)
    return found


class Unsettled(NamedTuple):
    """How many messages are delivered and not settled, and the bytes not yet let go of."""

    messages: int
    bytes: int


NOTHING_UNSETTLED = Unsettled(0, 0)


class _SettledRun(NamedTuple):
    """Neighbouring batches that are wholly settled behind one that is not."""

    start: int
    end: int


def _settled_run(fetched: FetchedBatch) -> _SettledRun:
    offsets = fetched.batch.offsets
    return _SettledRun(offsets[fetched.first_new], offsets[-1] + 1)


class Progress:
    """The progress of one assignment. Every method is for one caller at a time."""

    def __init__(
        self, position: int, floor: int, settled: Iterable[Range] = (), *, generation: int = 0
    ) -> None:
        self.position = position
        self.floor = floor
        self.generation = generation
        self._batches: list[FetchedBatch | _SettledRun] = []
        self._collapse_above = 64
        """Collapse settled batches once there are more than this."""
        self.polled = position
        """Everything below was delivered to :meth:`add`."""
        self._restored = [(start, end) for start, end in settled if end > position]
        """Settled before this assignment began, and not yet polled past."""

    @property
    def is_below_restored(self) -> bool:
        """Something beyond what was polled is settled already: what is polled next can fill the
        gaps below that, and makes no new ones."""
        return bool(self._restored)

    def add(self, state: Any, batch: Batch, ids: list[str | None] | None = None) -> FetchedBatch:
        """Take in the next batch of this partition; what is settled already is marked so.

        :param ids: what stands for the identities, where they are not the batch's own.
        """
        fetched = FetchedBatch(state, batch, ids)
        offsets, flags = batch.offsets, fetched.settled
        if offsets[0] < self.polled:
            # Delivered before, by a client that seeks back by itself: never a second time.
            fetched.first_new = bisect_left(offsets, self.polled)
            flags[: fetched.first_new] = b"\1" * fetched.first_new
            fetched.partly_settled = True
        if self._restored:
            starts = [start for start, _ in self._restored]
            for index, offset in enumerate(offsets):
                at = bisect_right(starts, offset) - 1
                if at >= 0 and offset < self._restored[at][1]:
                    flags[index] = 1
                    fetched.partly_settled = True
        if fetched.first_new < len(fetched):
            self._batches.append(fetched)
        self.polled = max(self.polled, offsets[-1] + 1)
        if self._restored and self._restored[-1][1] <= self.polled:
            self._restored = []
        return fetched

    def skip_to(self, offset: int) -> None:
        """There is no message from where it was polled to before this offset."""
        if offset > self.polled:
            self._batches.append(_SettledRun(self.polled, offset))
            self.polled = offset
            if self._restored and self._restored[-1][1] <= offset:
                self._restored = []

    def unsettled(self) -> Unsettled:
        """The messages that were delivered and are not settled."""
        if not self._batches:
            return NOTHING_UNSETTLED
        self._advance()
        messages = size = 0
        for at, fetched in enumerate(self._batches):
            if isinstance(fetched, FetchedBatch):
                left = fetched.settled.count(0)
                if left:
                    messages += left
                    size += fetched.held_bytes
                else:
                    self._batches[at] = _settled_run(fetched)
        return Unsettled(messages, size)

    def oldest_unsettled(self) -> float | None:
        """When the log took the first message that is delivered and not settled, in seconds since
        the epoch; None where there is none."""
        self._advance()
        head = self._batches[0] if self._batches else None
        if not isinstance(head, FetchedBatch):
            return None
        first = head.settled.find(0)
        return None if first < 0 else head.batch.time(first)

    def release_settled(self) -> None:
        """Let go of the bytes of settled messages whose neighbours are not settled."""
        for at, fetched in enumerate(self._batches):
            if isinstance(fetched, FetchedBatch) and fetched.settled.find(1) >= 0:
                if fetched.settled.find(0) < 0:
                    self._batches[at] = _settled_run(fetched)
                else:
                    fetched.release()

    def _advance(self) -> None:
        """Move the position over what is settled; forget and collapse settled batches."""
        batches = self._batches
        passed = 0
        for head in batches:
            if isinstance(head, _SettledRun):
                self.position = max(self.position, head.end)
            else:
                first = head.settled.find(0)
                if first >= 0:
                    if first:
                        self.position = max(self.position, head.batch.offsets[first])
                    break
                self.position = max(self.position, head.batch.offsets[-1] + 1)
            passed += 1
        del batches[:passed]
        if len(batches) > self._collapse_above:
            remaining: list[FetchedBatch | _SettledRun] = []
            for batch in batches:
                if isinstance(batch, FetchedBatch):
                    if batch.settled.find(0) >= 0:
                        remaining.append(batch)
                        continue
                    batch = _settled_run(batch)
                if remaining and isinstance(remaining[-1], _SettledRun):
                    batch = _SettledRun(remaining[-1].start, batch.end)
                    remaining.pop()
                remaining.append(batch)
            self._batches = remaining
            self._collapse_above = 2 * len(remaining) + 64

    def settled_ranges(self) -> list[Range]:
        """The settled set: what is settled above the position, ascending, none touching."""
        found: list[Range] = []
        start: int | None = None  # of the settled range that is open
        end = 0
        for fetched in self._batches:
            if isinstance(fetched, _SettledRun):
                start = fetched.start if start is None else start
                end = fetched.end
                continue
            flags, offsets = fetched.settled, fetched.batch.offsets
            at = first = fetched.first_new
            while at < len(flags):
                if start is None:
                    at = flags.find(1, at)
                    if at < 0:
                        break
                    start = offsets[at]
                stop = flags.find(0, at)
                if stop < 0:
                    end = offsets[-1] + 1
                    break
                end = offsets[stop - 1] + 1 if stop > first else end
                _append_range(found, start, end)
                start, at = None, stop
        if start is not None:
            _append_range(found, start, end)
        for low, high in self._restored:
            low = max(low, self.polled)
            if low < high:
                if found and found[-1][1] >= low:
                    low = found.pop()[0]
                found.append((low, high))
        return [(max(low, self.position), high) for low, high in found if high > self.position]

    def snapshot(self, limit: int = PROGRESS_LIMIT) -> EncodedProgress:
        """The position and progress that can be committed now."""
        self._advance()
        return encode_progress(
            self.position, self.floor, self.settled_ranges(), limit, generation=self.generation
        )

    def preview_commit(self, settling: Iterable[tuple[FetchedBatch, int, int]]) -> EncodedProgress:
        """The snapshot as it will be once these messages (a batch, from an index to before another)
        are settled too.

        Nothing is changed: for a transaction that may still be rolled back. Nobody else settles any
        of them meanwhile.
        """
        self._advance()
        before = [(each, start, each.settled[start:stop]) for each, start, stop in settling]
        for fetched, start, flags in before:
            fetched.settled[start : start + len(flags)] = b"\1" * len(flags)
        try:
            preview = Progress(self.position, self.floor, generation=self.generation)
            preview._batches = list(self._batches)
            preview.polled, preview._restored = self.polled, self._restored
            return preview.snapshot()
        finally:
            for fetched, start, flags in reversed(before):
                fetched.settled[start : start + len(flags)] = flags
