"""Progress: the text form keeps what it is given, and never claims what was not settled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from weakref import WeakSet

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streams.engine.progress import (
    MAX_GENERATION,
    FetchedBatch,
    Progress,
    Range,
    add_offsets,
    decode_generation,
    decode_progress,
    encode_progress,
    truncate_ranges,
)
from streams.log import protocol
from streams.wire import PROGRESS_LIMIT
from tests.engine.support import Tracked, batch, runs

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_~"

# Distances between offsets: Kafka's and SQLite's integers with gaps, and Redis' entry IDs, whose
# high half is a time in milliseconds and whose low half is mostly small, but need not be.
small = st.integers(1, 70)
kafka_step = small | st.integers(1, 1 << 40)
redis_step = small | st.builds(
    lambda ms, seq: (ms << 64) | seq,
    st.integers(0, 1 << 30),
    st.integers(1, 3) | st.integers(1, (1 << 64) - 1),
)
kafka_start = st.integers(0, 5) | st.integers(0, 1 << 62)
redis_start = st.builds(
    lambda ms, seq: (ms << 64) | seq,
    st.integers(0, 1 << 44),
    st.integers(0, 5) | st.integers((1 << 64) - 5, (1 << 64) - 1) | st.integers(0, (1 << 64) - 1),
)


@st.composite
def places(draw: st.DrawFn, most: int = 80) -> tuple[int, int, list[Range]]:
    """A position, a floor, and a settled set, of one kind of log."""
    start, step = draw(st.sampled_from([(kafka_start, kafka_step), (redis_start, redis_step)]))
    position = draw(start)
    floor = draw(st.just(position) | st.just(0) | st.integers(0, position))
    settled: list[Range] = []
    at = position
    for gap, length in draw(st.lists(st.tuples(step, step), max_size=most)):
        settled.append((at + gap, at + gap + length))
        at += gap + length
    return position, floor, settled


def within(inner: Sequence[Range], outer: Sequence[Range]) -> bool:
    return all(any(low <= start and end <= high for low, high in outer) for start, end in inner)


def test_the_limit_is_the_logs() -> None:
    assert PROGRESS_LIMIT == protocol.PROGRESS_LIMIT == 4_095


@pytest.mark.parametrize(
    ("position", "floor", "settled", "text"),
    [
        (0, 0, [], "1rA"),
        (100, 100, [], "1rkD"),
        (100, 100, [(101, 200)], "1rkDBjD"),
        (7, 0, [(9, 10), (11, 12), (13, 14), (15, 16), (17, 18)], "1bAVAU"),
        ((5 << 64) | 2, 3 << 64, [(6 << 64, (6 << 64) | 4)], "1r~DA~BAE"),
    ],
)
def test_what_is_stored_stays_readable_for_later_versions(
    position: int, floor: int, settled: list[Range], text: str
) -> None:
    assert encode_progress(position, floor, settled) == (position, text, True)
    assert decode_progress(position, text) == (floor, settled)


@runs(300)
@given(places())
@example((0, 0, [(1, 2)]))
@example(((1 << 64) - 1, 0, [((1 << 64), (1 << 64) + 1)]))
@example((0, 0, [((1 << 64) - 1, 1 << 64)]))
def test_what_fits_comes_back_whole(place: tuple[int, int, list[Range]]) -> None:
    position, floor, settled = place
    snapshot = encode_progress(position, floor, settled)
    assert snapshot.position == position
    assert snapshot.complete  # 80 ranges fit, whatever their offsets are
    assert len(snapshot.progress) <= PROGRESS_LIMIT
    assert set(snapshot.progress) <= set(ALPHABET)
    assert decode_progress(position, snapshot.progress) == (floor, settled)


generations = st.integers(0, 5) | st.integers(0, MAX_GENERATION)


@runs(300)
@given(places(), generations, st.integers(60, PROGRESS_LIMIT))
def test_the_generation_of_a_reset_comes_back(
    place: tuple[int, int, list[Range]], generation: int, limit: int
) -> None:
    position, floor, settled = place
    snapshot = encode_progress(position, floor, settled, limit, generation=generation)
    assert len(snapshot.progress) <= limit
    assert set(snapshot.progress) <= set(ALPHABET)
    found = decode_progress(position, snapshot.progress)
    assert found[0] == floor
    assert within(found[1], settled)
    assert (found[1] == settled) == snapshot.complete
    assert decode_generation(snapshot.progress) == generation
    restored = Progress(position, *found, generation=generation)
    assert decode_generation(restored.snapshot().progress) == generation
    assert decode_generation(restored.preview_commit(()).progress) == generation


@pytest.mark.parametrize("text", ["", "2r", "2rA", "2rgg", '{"leader": 1}', "2r" + "_" * 13])
def test_a_text_that_is_not_ours_has_no_generation(text: str) -> None:
    assert decode_generation(text) == 0
    with pytest.raises(ValueError, match="progress"):
        decode_progress(5, text)


@runs(300)
@given(places(), st.integers(40, 300))
def test_what_does_not_fit_is_forgotten_never_invented(
    place: tuple[int, int, list[Range]], limit: int
) -> None:
    position, floor, settled = place
    snapshot = encode_progress(position, floor, settled, limit)
    assert len(snapshot.progress) <= limit
    found = decode_progress(position, snapshot.progress)
    assert found[0] == floor
    if snapshot.complete:
        assert found[1] == settled
    else:
        assert found[1] != settled
        assert within(found[1], settled)
        assert len(snapshot.progress) > limit - 60  # cut no shorter than it had to be


@pytest.mark.parametrize("first", [0, 1, 1_234_567_890_123, 1_700_000_000_000 << 64])
def test_ten_thousand_gaps_fit(first: int) -> None:
    settled = [(first + at, first + at + 1) for at in range(1, 20_001, 2)]
    snapshot = encode_progress(first, 0, settled)
    assert snapshot.complete
    assert len(snapshot.progress) <= PROGRESS_LIMIT
    assert decode_progress(first, snapshot.progress) == (0, settled)


def test_thirty_thousand_gaps_are_cut() -> None:
    settled = [(at, at + 1) for at in range(1, 60_001, 2)]
    snapshot = encode_progress(0, 0, settled)
    assert not snapshot.complete
    assert PROGRESS_LIMIT - 8 < len(snapshot.progress) <= PROGRESS_LIMIT
    kept = decode_progress(0, snapshot.progress)[1]
    assert kept == settled[: len(kept)]
    assert len(kept) > 12_000


foreign = (
    st.text(max_size=40)
    | st.text(ALPHABET, max_size=60)
    | st.builds(
        str.__add__, st.sampled_from(["1r", "1b", "2r", "2b"]), st.text(ALPHABET, max_size=60)
    )
)


@runs(500)
@given(st.integers(0, 1 << 70), foreign)
@example(5, "2rBA")
@example(5, "")
@example(5, "1r")
@example(5, '{"leader": 1}')
@example((1 << 64) | 5, "1rA~AB~AC")
def test_foreign_text_is_refused_with_one_error(position: int, text: str) -> None:
    try:
        floor, settled = decode_progress(position, text)
    except ValueError:
        return
    # By chance it could have been ours: then it says something that makes sense.
    assert 0 <= floor <= position
    assert all(position <= start < end for start, end in settled)
    assert all(end < start for (_, end), (start, _) in pairwise(settled))
    assert all(end <= 1 << 128 for _, end in settled)


@pytest.mark.parametrize(
    ("position", "text"),
    [
        (5, "1rA" + "g" * 2_000 + "B" + "B"),  # an offset of 10,000 bits
        (5, "1r" + "_" * 13),  # a number that does not end in time
        (5, "1rggAB"),  # a number longer than need be
        (5, "1rA~AB"),  # the high half changes by nothing
        (5, "1rA~" + "_" * 12 + "QBB"),  # a high half beyond 64 bits
        ((1 << 64) - 2, "1rA" + "C" + "B"),  # over the low half's end without saying so
        ((1 << 64) - 2, "1bA____"),
        ((1 << 128) + 5, "1rA~BAB"),
    ],
)
def test_an_offset_that_no_log_has_is_refused(position: int, text: str) -> None:
    with pytest.raises(ValueError, match="progress has"):
        decode_progress(position, text)


@runs(200)
@given(places(), st.integers(0, 1 << 70))
def test_what_lies_behind_the_end_is_cut_off(
    place: tuple[int, int, list[Range]], room: int
) -> None:
    position, _, settled = place
    end = position + room
    kept = truncate_ranges(settled, end)
    assert within(kept, settled)
    assert all(start < stop <= end for start, stop in kept)
    for start, stop in settled:
        for offset in (start, stop - 1):
            assert (offset < end) == any(low <= offset < high for low, high in kept)


@runs(200)
@given(places(), st.data())
def test_damaged_text_is_refused_with_one_error(
    place: tuple[int, int, list[Range]], data: st.DataObject
) -> None:
    text = encode_progress(*place).progress
    at = data.draw(st.integers(0, len(text)))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(small) :]
    try:
        decode_progress(place[0], damaged)
    except ValueError:
        pass


def test_text_over_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="form"):
        decode_progress(0, "1bA" + "A" * PROGRESS_LIMIT)


def test_a_floor_above_the_position_is_refused() -> None:
    with pytest.raises(ValueError, match="floor"):
        decode_progress(5, encode_progress(6, 6, []).progress)


class Versus(RuleBasedStateMachine):
    """Progress beside a set of settled offsets, through deliveries, settling and restarts."""

    @initialize(
        first=st.sampled_from([0, 7, 1_700_000_000_000 << 64]),
        steps=st.lists(st.sampled_from([1, 1, 1, 2, 9, (3 << 64) + 1]), min_size=1, max_size=70),
    )
    def begin(self, first: int, steps: list[int]) -> None:
        self.log = [first]
        for step in steps:
            self.log.append(self.log[-1] + (step if first >> 64 else step & 0xFFFF))
        self.settled: set[int] = set()  # as the group sees it
        self.floor = first
        self.stored = encode_progress(first, first, [])
        self.start(first, [])

    def start(self, position: int, settled: list[Range]) -> None:
        self.progress = Progress(position, self.floor, settled)
        self.next = next(
            (i for i, offset in enumerate(self.log) if offset >= position), len(self.log)
        )
        self.delivered = self.next
        self.flights: dict[int, tuple[FetchedBatch, int]] = {}  # what is not settled
        self.alive: WeakSet[Tracked] = WeakSet()
        self.last = position

    def covered(self, position: int, ranges: Sequence[Range]) -> set[int]:
        return {
            offset
            for offset in self.log
            if offset < position or any(start <= offset < end for start, end in ranges)
        }

    @precondition(lambda self: self.delivered < len(self.log))
    @rule(count=st.integers(1, 9))
    def deliver(self, count: int) -> None:
        self.add(self.log[self.delivered : self.delivered + count], 0)

    @precondition(lambda self: self.delivered < len(self.log))
    @rule(count=st.integers(1, 9))
    def skip(self, count: int) -> None:
        """The next offsets have no messages: they are as good as settled."""
        skipped = self.log[self.delivered : self.delivered + count]
        self.progress.skip_to(skipped[-1] + 1)
        self.progress.skip_to(skipped[0])  # what was polled already is not skipped
        self.settled.update(skipped)
        self.delivered += len(skipped)

    @precondition(lambda self: self.delivered > self.next)
    @rule(back=st.integers(1, 12), count=st.integers(1, 15))
    def deliver_again(self, back: int, count: int) -> None:
        """A client seeks back by itself."""
        start = max(self.next, self.delivered - back)
        self.add(self.log[start : start + count], self.delivered - start)

    def add(self, offsets: list[int], known: int) -> None:
        segment = self.progress.add(
            None, batch(offsets, values=[bytes(o % 7 + 1) for o in offsets], alive=self.alive)
        )
        assert segment.held_bytes == sum(o % 7 + 1 for o in offsets)
        for index, offset in enumerate(offsets):
            again = index < known
            assert segment.settled[index] == (again or offset in self.settled)
            assert segment.partly_settled or not segment.settled[index]
            if not segment.settled[index]:
                self.flights[offset] = (segment, index)
        self.delivered = max(self.delivered, self.log.index(offsets[-1]) + 1)

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), most=st.integers(1, 20))
    def settle(self, data: st.DataObject, most: int) -> None:
        for _ in range(min(most, len(self.flights))):
            offset = data.draw(st.sampled_from(sorted(self.flights)))
            self.settle_one(offset)

    def settle_one(self, offset: int) -> None:
        segment, index = self.flights.pop(offset)
        segment.settled[index] = 1
        self.settled.add(offset)

    @rule()
    def settle_all_but_the_first(self) -> None:
        for offset in sorted(self.flights)[1:]:
            self.settle_one(offset)

    @rule(limit=st.sampled_from([PROGRESS_LIMIT, PROGRESS_LIMIT, 60]))
    def snapshot(self, limit: int) -> None:
        snapshot = self.progress.snapshot(limit)
        floor, ranges = decode_progress(snapshot.position, snapshot.progress)
        covered = self.covered(snapshot.position, ranges)
        truth = self.settled | set(self.log[: self.next])
        assert floor == self.floor
        assert len(snapshot.progress) <= limit
        assert covered <= truth
        if snapshot.complete:
            assert covered == truth
        assert snapshot.position >= self.last, "a position moved backwards"
        ahead = [o for o in self.log[: self.delivered] if o >= snapshot.position]
        assert not ahead or ahead[0] not in self.settled, "a position stayed behind"
        self.last = snapshot.position
        self.stored = snapshot

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def preview(self, data: st.DataObject) -> None:
        """What would be, if these were settled: seen without settling them."""
        chosen = sorted(data.draw(st.sets(st.sampled_from(sorted(self.flights)))))
        before = self.progress.snapshot()
        _, ranges = decode_progress(before.position, before.progress)
        settling: list[tuple[FetchedBatch, int, int]] = []
        for offset in chosen:
            fetched, index = self.flights[offset]
            if settling and settling[-1][0] is fetched and settling[-1][2] == index:
                settling[-1] = (fetched, settling[-1][1], index + 1)  # neighbours are one range
            else:
                settling.append((fetched, index, index + 1))
        ahead = self.progress.preview_commit(settling)
        assert self.progress.snapshot() == before
        _, after = decode_progress(ahead.position, ahead.progress)
        assert self.covered(ahead.position, after) == self.covered(before.position, ranges) | set(
            chosen
        )

    @rule()
    def restart(self) -> None:
        """A crash: what was not in the last snapshot is forgotten, and only that."""
        floor, ranges = decode_progress(self.stored.position, self.stored.progress)
        self.floor = floor
        self.settled = self.covered(self.stored.position, ranges)
        self.start(self.stored.position, ranges)

    @rule()
    def sweep(self) -> None:
        """Nothing but unsettled messages is held, and only what is held is counted."""
        self.progress.release_settled()
        held = self.progress.unsettled()
        assert held == (len(self.flights), sum(o % 7 + 1 for o in self.flights))

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        if hasattr(self, "progress"):
            messages, size = self.progress.unsettled()
            assert messages == len(self.flights)
            assert size == sum(each.total_and_largest()[0] for each in self.alive)


TestVersus = Versus.TestCase
TestVersus.settings = runs(60, steps=40)


# -- what is kept behind a message that does not come to an end


def stuck(segments: int, each: int, settle: Callable[[int, bytearray], None]) -> Iterator[Progress]:
    """A progress whose first message stays unsettled while ``segments`` more arrive."""
    progress = Progress(0, 0)
    progress.add(None, batch([0]))
    for number in range(segments):
        first = 1 + number * each
        settle(number, progress.add(None, batch(range(first, first + each))).settled)
        yield progress


def all_of_it(_: int, done: bytearray) -> None:
    done[:] = b"\1" * len(done)


def test_135_000_settled_segments_behind_a_stuck_one_are_kept_as_one_range() -> None:
    kept = 0
    progress = Progress(0, 0)
    for number, each in enumerate(stuck(135_000, 2, all_of_it)):
        progress = each
        if number % 20 == 0:
            snapshot = progress.snapshot()
            kept = max(kept, len(progress._batches))
            assert snapshot.position == 0
    assert kept < 150
    assert decode_progress(0, progress.snapshot().progress) == (0, [(1, 270_001)])
    assert len(progress.snapshot().progress) < 20


def test_segments_that_pile_up_between_commits_are_collapsed_by_the_next() -> None:
    *_, progress = stuck(5_000, 2, all_of_it)
    progress.snapshot()
    assert len(progress._batches) == 2
    assert progress.settled_ranges() == [(1, 10_001)]


def test_open_segments_among_settled_ones_are_kept_and_nothing_else() -> None:
    def mostly(number: int, done: bytearray) -> None:
        all_of_it(number, done)
        if number % 100 == 50:
            done[1] = 0

    *_, progress = stuck(1_000, 3, mostly)
    progress.snapshot()
    assert len(progress._batches) == 1 + 10 + 11  # the stuck one, the open ones, those between
    gaps = [2 + number * 3 for number in range(50, 1_000, 100)]
    bounds = [1, *(at for gap in gaps for at in (gap, gap + 1)), 3_001]
    assert progress.settled_ranges() == list(zip(bounds[::2], bounds[1::2], strict=True))
    assert progress.unsettled() == (11, 0)


def test_a_stuck_head_that_is_settled_at_last_moves_the_position_over_everything() -> None:
    progress = Progress(0, 0)
    head = progress.add(None, batch([0]))
    for number in range(200):
        all_of_it(0, progress.add(None, batch([2 * number + 1, 2 * number + 2])).settled)
    progress.snapshot()
    head.settled[0] = 1
    assert progress.snapshot() == (401, "1rA", True)
    assert not progress._batches


def test_a_settled_segment_holds_no_bytes() -> None:
    alive: WeakSet[Tracked] = WeakSet()
    progress = Progress(0, 0)
    progress.add(None, batch([0], values=[b"x" * 10]))
    for number in range(50):
        offsets = [3 * number + at for at in (1, 2, 3)]
        made = batch(offsets, values=[b"x" * 1_000] * 3, alive=alive)
        all_of_it(0, progress.add(None, made).settled)
        del made
    assert progress.unsettled() == (1, 10)
    assert not alive


def test_sweeping_lets_go_of_settled_messages_only() -> None:
    progress = Progress(0, 0)
    made = batch([0, 1, 2], [b"key", None, b"k"], values=[b"12", b"3456", b"7"])
    segment = progress.add(None, made)
    assert progress.unsettled() == (3, 11)
    segment.settled[1] = 1
    assert progress.unsettled() == (2, 11)
    progress.release_settled()
    assert progress.unsettled() == (2, 7)
    assert (made.keys, made.values) == ([b"key", None, b"k"], [b"12", None, b"7"])
    segment.settled[0] = 1
    progress.release_settled()
    assert progress.unsettled() == (1, 2)
    assert (made.keys, made.values) == ([None, None, b"k"], [None, None, b"7"])


def test_values_decoded_ahead_are_let_go_of_too() -> None:
    progress = Progress(0, 0)
    segment = progress.add(None, batch([0, 1]))
    segment.decoded = ["first", "second"]
    segment.settled[0] = 1
    progress.release_settled()
    assert segment.decoded == [None, "second"]


def test_what_was_settled_in_an_earlier_life_outlasts_a_gap_in_the_log() -> None:
    """The settled messages 5 to 9 expired meanwhile: the position moves past them."""
    progress = Progress(3, 0, [(5, 10)])
    all_of_it(0, progress.add(None, batch([3, 4])).settled)
    assert decode_progress(5, progress.snapshot().progress) == (0, [(5, 10)])
    segment = progress.add(None, batch([20]))
    assert segment.settled == b"\0"
    segment.settled[0] = 1
    assert progress.snapshot()[:2] == (21, "1rA")


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4))), st.sets(st.integers(0, 60)))
def test_single_offsets_join_a_settled_set(pairs: list[tuple[int, int]], offsets: set[int]) -> None:
    settled = add_offsets([], {low + each for low, size in pairs for each in range(size)})
    found = add_offsets(settled, offsets)
    wanted = offsets | {each for low, high in settled for each in range(low, high)}
    assert {each for low, high in found for each in range(low, high)} == wanted
    assert all(high < low for (_, high), (low, _) in pairwise(found))
