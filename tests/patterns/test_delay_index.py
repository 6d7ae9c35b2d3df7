"""What is known to be pending, beside a naive model that remembers everything; and the wire."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.message import Record, text
from streams.retries import checkpoints, records
from streams.retries.checkpoint_writer import _PartsToRead
from streams.retries.checkpoints import checkpoint_records, join_parts
from streams.retries.due_index import DueIndex, due_entry, due_time, log_position
from streams.retries.scheduler import OutcomeCache

NAMES = st.integers(0, 12)
DUES = st.integers(0, 20)


class Pending(RuleBasedStateMachine):
    """A log of entries and marks, and an index that is filled from it again when it runs dry."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 3
        self.index = DueIndex(self.limit)
        self.log: list[tuple[int, int | None, int]] = []
        """Name and due time, None for a mark, and the position before which a mark ends entries;
        the position is the place in the list."""
        self.out: dict[int, int] = {}
        """What was given out, by slot: its name."""
        self.kept: tuple[list[Record], int] | None = None
        """A checkpoint, and its position."""
        self.removed: dict[int, int] = {}
        """What is being cancelled: names by slot. Nothing is read until that is over."""

    def pending(self, end: int | None = None) -> dict[int, int]:
        """What the log says: slots by name."""
        found: dict[int, int] = {}
        for position, (name, due, end_of_mark) in enumerate(self.log[:end]):
            if due is not None:
                found[name] = due_entry(due, position)
            elif name in found and log_position(found[name]) < end_of_mark:
                del found[name]
        return found

    def held(self) -> dict[int, int]:
        """What the index knows of, at least its horizon."""
        return {name: each for name, each in self.pending().items() if each not in self.removed}

    @rule(name=NAMES, due=DUES)
    def add(self, name: int, due: int) -> None:
        self.end_cancelling()
        self.index.add(name, due, len(self.log))
        self.log.append((name, due, 0))

    @rule(name=NAMES)
    def mark(self, name: int) -> None:
        self.end_cancelling()
        self.index.remove(name, len(self.log))
        self.log.append((name, None, len(self.log)))

    @rule(now=DUES, count=st.integers(1, 4))
    def take(self, now: int, count: int) -> None:
        given = self.index.take_due(now, count)
        known = self.held()
        names = {each: name for name, each in known.items()}
        horizon = self.index.horizon
        wanted = sorted(
            each
            for each in known.values()
            if due_time(each) <= now
            and each not in self.out
            and (horizon is None or each < horizon)
        )
        assert given == wanted[:count]
        self.out.update({each: names[each] for each in given})

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(sorted(self.out)))
        name = self.out.pop(each)
        self.index.remove_delivered(name, each)
        has_end = data.draw(st.booleans(), "the mark says which entry it ends")
        end = log_position(each) + 1 if has_end else len(self.log)
        self.index.remove(name, end)
        self.log.append((name, None, end))

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        each = data.draw(st.sampled_from(sorted(self.out)))
        del self.out[each]
        self.index.return_entries([each])

    @rule(name=NAMES)
    def cancel(self, name: int) -> None:
        entry = self.index.find(name)
        if entry is not None and not self.index.is_taken(entry):
            assert self.index.remove(name, log_position(entry) + 1)
            self.removed[entry] = name

    def end_cancelling(self) -> None:
        """It was refused."""
        while self.removed:
            entry, name = self.removed.popitem()
            self.index.put_back(name, entry)

    @rule()
    def refuse(self) -> None:
        self.end_cancelling()

    @precondition(lambda self: self.index.is_exhausted and not self.removed)
    @rule()
    def read_again(self) -> None:
        before = self.index.horizon
        self.index.reset(before, len(self.log))
        self.fill()
        # It comes forward.
        assert self.index.horizon is None or before is None or self.index.horizon > before

    @rule()
    def restart(self) -> None:
        self.end_cancelling()
        self.out.clear()
        self.index = DueIndex(self.limit)
        self.fill()

    @rule()
    def keep(self) -> None:
        self.end_cancelling()
        self.kept = checkpoint_records(self.index.state(), len(self.log), 0), len(self.log)

    @precondition(lambda self: self.kept is not None)
    @rule()
    def restart_from_what_was_kept(self) -> None:
        assert self.kept is not None
        self.end_cancelling()
        records, position = self.kept
        self.out.clear()
        self.index = DueIndex(self.limit)
        parts = [(each.key, each.headers, each.value) for each in records]
        state = join_parts(position, parts)
        assert state is not None
        self.index.restore(state)
        self.fill(position)

    def fill(self, start: int = 0) -> None:
        for position, (name, due, end) in enumerate(self.log[start:], start):
            if due is None:
                self.index.remove(name, end)
            else:
                self.index.add(name, due, position)

    @invariant()
    def bounded(self) -> None:
        assert len(self.index) <= self.limit + max(self.limit // 4, 1) + len(self.out) + 1

    @invariant()
    def nothing_is_below_the_floor(self) -> None:
        known = self.held()
        lowest = self.index.lowest_position
        if known:
            assert lowest is not None
            assert lowest <= min(map(log_position, known.values()))

    @invariant()
    def the_next_is_known(self) -> None:
        horizon = self.index.horizon
        free = [
            each
            for each in self.held().values()
            if each not in self.out and (horizon is None or each < horizon)
        ]
        assert self.index.next_due == (due_time(min(free)) if free else None)
        # What is not here is behind the horizon.
        missing = set(self.held().values()) - set(free) - set(self.out)
        assert not missing or (horizon is not None and min(missing) >= horizon)

    @invariant()
    def each_is_found_by_its_name(self) -> None:
        horizon = self.index.horizon
        for name, each in self.held().items():
            if horizon is None or each < horizon:
                assert self.index.find(name) == each
                assert self.index.is_taken(each) == (each in self.out)


TestPending = Pending.TestCase


def test_many_removals_do_not_pile_up() -> None:
    index = DueIndex(100_000)
    for name in range(10_000):
        index.add(name, 5, name)
    for name in range(9_999):
        assert index.remove(name, 20_000)
    assert len(index._heap) < 5_000
    assert index.take_due(10, 5) == [due_entry(5, 9_999)]


def test_what_vanished_is_forgotten() -> None:
    index = DueIndex(10)
    index.add(1, 5, 0)
    index.add(2, 5, 1)
    first, second = index.take_due(10, 5)
    index.remove_missing([first])
    index.return_entries([first, second])
    assert len(index) == 1
    assert index.take_due(10, 5) == [second]


def test_what_comes_back_does_not_overtake_what_was_dropped_meanwhile() -> None:
    index = DueIndex(3)
    index.add(0, 9, 0)
    (late,) = index.take_due(10, 1)
    for name in range(1, 6):
        index.add(name, name, name)
    assert index.horizon == due_entry(4, 4)
    index.return_entries([late])
    assert index.lowest_position == 0
    assert index.take_due(10, 9) == [due_entry(name, name) for name in (1, 2, 3)]
    for name in (1, 2, 3):
        index.remove_delivered(name, due_entry(name, name))
    assert index.is_exhausted


def test_what_was_given_out_does_not_overtake_what_was_dropped_after_a_restart() -> None:
    before = DueIndex(3)
    before.add(0, 9, 0)
    assert before.take_due(10, 1)
    for name in range(1, 6):
        before.add(name, name, name)
    index = DueIndex(3)
    index.restore(before.state())
    assert index.lowest_position == 0
    assert index.take_due(10, 9) == [due_entry(name, name) for name in (1, 2, 3)]
    for name in (1, 2, 3):
        index.remove_delivered(name, due_entry(name, name))
    assert index.is_exhausted


def test_a_restored_index_holds_no_more_than_it_may() -> None:
    before = DueIndex(100)
    for name in range(60):
        before.add(name, 60 - name, name)
    index = DueIndex(3)
    index.restore(before.state())
    assert len(index) == 3
    assert index.horizon == due_entry(4, 56)
    assert index.lowest_position == 0


def test_what_comes_back_is_bounded_too() -> None:
    index = DueIndex(3)
    for name in range(8):
        index.add(name, 5, name)
        assert index.take_due(10, 1) == [due_entry(5, name)]
    assert len(index) == 8
    index.return_entries([due_entry(5, name) for name in range(8)])
    assert len(index) == 3
    assert index.horizon == due_entry(5, 3)


def test_what_could_not_be_cancelled_does_not_overtake_what_was_dropped_meanwhile() -> None:
    index = DueIndex(2)
    for name in (1, 2, 3):
        index.add(name, name, name)
    given = index.take_due(3, 3)
    index.add(4, 4, 4)
    index.add(5, 5, 5)
    assert index.remove(5, 6)
    index.return_entries(given)  # 3 and 4 are dropped
    index.put_back(5, due_entry(5, 5))
    assert [due_time(each) for each in index.take_due(9, 9)] == [1, 2]
    for name in (1, 2):
        index.remove_delivered(name, due_entry(name, name))
    assert index.is_exhausted
    assert index.lowest_position == 3


def test_a_position_of_redis_fits() -> None:
    position = (1_900_000_000_000 << 64) | (1 << 63)
    each = due_entry(1_900_000_000_000, position)
    assert (due_time(each), log_position(each)) == (1_900_000_000_000, position)
    assert due_entry(2, position) > due_entry(1, position + 1)


def test_a_mark_that_is_none_of_ours_says_nothing_that_is_kept() -> None:
    """It ends the message of its ID, as any mark does, and outcomes are remembered."""
    for said, mark in ((b"delivered", "delivered"), (b"x" * 100_000, "unknown")):
        found = records.scan_record(5, b"m1", None, [(records.MARK, said)])
        assert found is not None
        assert found.mark == mark


@pytest.mark.parametrize(
    ("end", "expected"),
    [(None, 7), (5, 5), (9, 7), (1 << 105, 7)],
    ids=["none", "before", "after", "far"],
)
def test_a_mark_ends_entries_before_a_position(end: int | None, expected: int) -> None:
    """That of its header, which former versions did not write; never those behind it."""
    mark = records.mark_record(b"m1", "delivered", "x", end=end)
    found = records.scan_record(7, b"m1", mark.value, mark.headers)
    assert found is not None
    assert found.end == expected
    garbled = [(name, b"-1" if name == records.END else value) for name, value in mark.headers]
    found = records.scan_record(7, b"m1", None, garbled)
    assert found is not None
    assert found.end == 7


def join(position: int, found: list[Record]) -> list[int] | None:
    """What a checkpoint says is pending."""
    state = join_parts(position, [(each.key, each.headers, each.value) for each in found])
    return None if state is None else sorted(state.entries)


def test_parts_of_two_checkpoints_are_never_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two owners write at the same position, the second one once something more was delivered."""
    monkeypatch.setattr(checkpoints, "PART_ENTRIES", 4)
    index = DueIndex(100)
    for position in range(8):
        index.add(position, 1000 + position, position)
    former = checkpoint_records(index.state(), 8, 0)
    index.remove(0, 9)
    index.remove(1, 10)
    owner = checkpoint_records(index.state(), 8, 0)
    assert len(former) == len(owner) == 2
    assert join(8, [owner[0], former[0], former[1]]) is None
    assert join(8, [owner[0], former[0], former[1], owner[1]]) == list(range(2, 8))
    assert join(8, [former[0], owner[0], former[1], owner[1]]) == list(range(8))
    writing = _PartsToRead(owner)
    found = [
        writing.add(part, position)
        for position, each in enumerate([owner[0], former[0], former[1], owner[1]], 20)
        if (part := checkpoints.read_part_header(each.key, each.headers)) is not None
    ]
    assert found == [None, None, None, (8, 20, 23)]


def test_a_part_that_is_not_as_it_was_written_is_none() -> None:
    index = DueIndex(100)
    for position in range(8):
        index.add(position, 1000 + position, position)
    (part,) = checkpoint_records(index.state(), 8, 0)
    assert part.value is not None
    row = len(part.value) // 8
    shorter = Record(part.value[:-row], part.key, "cut", part.headers)
    assert join(8, [part]) == list(range(8))
    assert join(8, [shorter]) is None
    for key in (None, b"m1", part.key[:-1] + b"1" if part.key else b""):
        assert join(8, [Record(part.value, key, "other", part.headers)]) is None


def test_no_entry_is_a_part_of_a_checkpoint() -> None:
    """Whatever headers or ID its message has, and its key is not replaced by one either."""
    (part,) = checkpoint_records(DueIndex(100).state(), 8, 0)
    assert part.key is not None
    own = [("other", b"1")]
    record = Record(b"v", None, text(part.key), [*part.headers, *own])
    entry = records.entry_record(record, "to", 5)
    assert checkpoints.read_part_header(part.key, entry.headers) is None
    assert entry.key is not None
    assert entry.key != part.key
    found = records.parse_entry(entry.key, entry.value, entry.headers)
    assert found is not None
    assert (found.record.id, found.record.headers) == (record.id, own)
    # By its ID or by its key.
    for name in (record.id, text(entry.key)):
        assert records.cancel_record(name, "r").key == entry.key


def test_recent_outcomes_are_bounded() -> None:
    recent = OutcomeCache(10)
    for name in range(100):
        recent.add(name, "delivered", 5)
    assert recent.get(99) == "delivered"
    assert recent.get(95) == "delivered"
    assert recent.get(1) is None


def test_an_outcome_is_that_of_the_last_entry() -> None:
    recent = OutcomeCache(10)
    for name in range(14):
        recent.add(name, "delivered", 5)
    for name in (1, 11):  # an old one and a new one
        assert not recent.begin(name, 4)  # it was read before
        assert recent.get(name) == "delivered"
        assert recent.begin(name, 5)
        assert recent.get(name) is None


@pytest.mark.parametrize("has_ended", [True, False])
def test_an_outcome_of_an_earlier_entry_is_not_that_of_the_last(has_ended: bool) -> None:
    """Its mark came late: the entry that has replaced it is pending, or has another outcome."""
    recent = OutcomeCache(10)
    assert recent.begin(1, 3, replaces=True)
    if has_ended:
        recent.add(1, "dead", 4)
    recent.add(1, "delivered", 3)
    assert recent.get(1) == ("dead" if has_ended else None)
    assert recent.begin(1, 3) is not has_ended
    assert not recent.begin(1, 2)


HEADERS: Any = st.lists(
    st.tuples(st.sampled_from(["ce_time", "other", "streams_redrive"]), st.none() | st.binary()),
    max_size=3,
)


@given(
    value=st.none() | st.binary(),
    key=st.none() | st.binary(),
    id=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1),
    headers=HEADERS,
    due=st.integers(0, 10**15),
    known=st.none() | st.just("known"),
)
def test_an_entry_comes_back_as_it_was(
    value: bytes | None,
    key: bytes | None,
    id: str,
    headers: list[tuple[str, bytes | None]],
    due: int,
    known: str | None,
) -> None:
    record = Record(value, key, id, headers)
    entry = records.entry_record(record, "to", due, entry_id=known)
    assert entry.value is not None  # a null value would be a mark to whoever compacts
    assert entry.key == (known or id).encode()
    found = records.parse_entry(
        entry.key, entry.value, [("ce_id", entry.id.encode()), *entry.headers]
    )
    assert found is not None
    assert (found.topic, found.due) == ("to", due)
    again = found.record
    assert (again.value, again.key, again.id) == (value, key, id)
    assert list(again.headers) == headers
    assert records.read_due(entry.headers) == due


def test_what_is_no_entry_is_none() -> None:
    for headers in (
        [],
        [(records.DUE, b"5")],
        [(records.DUE, b"soon"), (records.TOPIC, b"t")],
        [(records.DUE, b"-5"), (records.TOPIC, b"t")],
        [(records.DUE, b"9" * 30), (records.TOPIC, b"t")],
    ):
        assert records.parse_entry(b"k", b"v", headers) is None
    assert records.parse_entry(b"k", None, [(records.DUE, b"5"), (records.TOPIC, b"t")]) is None


def test_a_header_that_is_ours_cannot_be_smuggled_in() -> None:
    record = Record(b"v", None, "m", [(records.TOPIC, b"elsewhere"), (records.DUE, b"0")])
    entry = records.entry_record(record, "here", 7)
    found = records.parse_entry(entry.key, entry.value, entry.headers)
    assert found is not None
    assert (found.topic, found.due) == ("here", 7)
