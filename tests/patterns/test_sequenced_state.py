"""The state of closed keys, beside a naive reading of the same records.

Owners read, look, write, read back and commit, each step by itself, so that any of them may stand
still between any two while another takes over, and go on afterwards; strangers write owner records,
older releases did before; somebody gives commands. Whatever happens, every message below the
committed position was handled, or waits where every reader finds it, or was dropped; and those of
a key are handled in their order.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.derived_records import PUT_BACK
from streams.message import ID, REDRIVE, Record
from streams.parking.records import (
    ParkingRecord,
    ParkingState,
    command_record,
    done_record,
    epoch_name,
    owner_record,
    parked_record,
    parse_record,
    read_original,
)

KEYS = [b"a", b"b", b"c"]

Written = tuple["bytes | None", ParkingRecord]
"""A record: its key and what it says."""


def key_of(offset: int) -> bytes:
    return KEYS[offset % len(KEYS)]


def spoken(record: Record) -> Written:
    found = parse_record(record.headers)
    assert found is not None
    return record.key, found


def older(name: str) -> Written:
    """The owner record of a release before the chain."""
    return None, ParkingRecord("owner", name, -1, -1, False, None)


class Naive:
    """The rules, as plainly as they can be written down."""

    def __init__(self, records: list[Written]) -> None:
        self.owner = ""
        self.queues: dict[bytes, list[int]] = {}
        self.head: dict[bytes, int] = {}
        """Where the record stands that commands must name, of each closed key."""
        self.dead: set[bytes] = set()
        self.dropped: set[int] = set()
        self.counted: set[int] = set()
        """Source offsets of dead and waits records that counted."""
        places: dict[int, int] = {}
        for position, (key, each) in enumerate(records):
            if each.kind == "owner":
                if each.replaces is None:
                    counts = "/" not in self.owner
                else:
                    counts = not self.owner or each.replaces == self.owner
                if counts:
                    chained = each.replaces is not None
                    self.owner = f"{position}/{each.writer}" if chained else each.writer
                continue
            assert key is not None
            queue = self.queues.setdefault(key, [])
            if each.kind in ("retry", "edit", "drop"):
                if key in self.dead and self.head[key] == each.target:
                    self.dead.discard(key)
                    if each.kind == "drop":
                        self.dropped.add(queue.pop(0))
                        self.head[key] = places[queue[0]] if queue else -1
                    elif each.kind == "edit":
                        self.head[key] = position
            elif each.writer != self.owner and self.owner:
                continue
            elif each.kind == "done":
                if queue and queue[0] == each.offset:
                    queue.pop(0)
                    self.dead.discard(key)
                    self.head[key] = places[queue[0]] if queue else -1
            else:
                self.counted.add(each.offset)
                if each.offset in queue:
                    if each.kind == "dead" and queue[0] == each.offset:
                        self.dead.add(key)
                        self.head[key] = position
                elif not queue or each.offset > queue[0]:
                    places[each.offset] = position
                    queue.append(each.offset)
                    queue.sort()
                    if queue == [each.offset]:
                        self.head[key] = position
                        if each.kind == "dead":
                            self.dead.add(key)
        self.queues = {key: queue for key, queue in self.queues.items() if queue}

    @property
    def waiting(self) -> set[int]:
        return {offset for queue in self.queues.values() for offset in queue}


@dataclass
class Owner:
    """One who owns the partition, or thinks so."""

    name: str
    since: int
    """The committed position at which it began."""
    state: ParkingState
    read: int
    epoch: str = ""
    """Once it is open."""
    restored: set[int] = field(default_factory=set)
    position: int = 0
    """The next message to be looked at."""
    settled: set[int] = field(default_factory=set)
    running: dict[bytes, tuple[int, bool]] = field(default_factory=dict)
    """What is being handled of each key: its source offset, and whether it came back."""
    outbox: list[tuple[str, int, Record]] = field(default_factory=list)
    """What is about to be written: what it is (``back``: a failure of one that came back)."""
    unproven: set[int] = field(default_factory=set)
    proven: int | None = None
    """A position that may be committed; that is about to be done."""
    floor: tuple[int, str] | None = None
    """A floor that is about to be stored."""

    @property
    def busy(self) -> set[bytes]:
        return {*self.running, *(key_of(offset) for _, offset, _ in self.outbox)}

    @property
    def settled_to(self) -> int:
        at = self.since
        while at in self.settled or at in self.restored:
            at += 1
        return min(at, self.position)


class Partition(RuleBasedStateMachine):
    """One partition of the source, whose messages have keys in turn, and its topic of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Written] = []
        self.names = 0
        self.committed = 0
        self.floor = (0, "")
        self.handled: dict[bytes, list[int]] = defaultdict(list)
        """By key, source offsets in the order in which they were handled."""
        self.letters: set[int] = set()
        """Gone to the ordinary dead letters."""
        self.owners: list[Owner] = []
        self.holder: Owner | None = None
        """Whom the group has given the partition; only its commits are taken."""

    # -- who owns

    def look(self) -> Owner:
        """Be given the partition, and read what stands there."""
        self.names += 1
        floor, in_force = self.floor
        state = ParkingState(in_force, keep_from=self.committed)
        if in_force:
            state.epochs.append((floor - 1, in_force))
        owner = Owner(f"owner{self.names}", self.committed, state, floor)
        owner.position = self.committed
        self.read(owner)
        self.owners = [*self.owners[-2:], owner]
        self.holder = owner
        return owner

    def read(self, owner: Owner, most: int = 1 << 30) -> None:
        for position in range(owner.read, min(len(self.records), owner.read + most)):
            owner.state.apply(position, *self.records[position])
            owner.read = position + 1

    def over(self, owner: Owner) -> bool:
        return bool(owner.epoch) and owner.state.epoch != owner.epoch

    def let_go(self, owner: Owner) -> None:
        """Its epoch was replaced: it begins again, if it still has the partition."""
        self.owners.remove(owner)
        if owner is self.holder:
            self.look()

    @initialize()
    def begin(self) -> None:
        self.look()
        self.open_the_epoch(0)

    @rule(seldom=st.integers(0, 3), opens=st.booleans())
    def another_is_given_the_partition(self, seldom: int, opens: bool) -> None:
        if seldom == 0:
            self.look()
            if opens:
                self.open_the_epoch(0)

    @rule(which=st.integers(0, 2), seldom=st.integers(0, 3))
    def crash(self, which: int, seldom: int) -> None:
        if self.owners and seldom == 0:
            owner = self.owners.pop(which % len(self.owners))
            if owner is self.holder:
                self.holder = None

    @rule(which=st.integers(0, 2))
    def open_the_epoch(self, which: int) -> None:
        """Write the owner record, however long after looking, and read up to it."""
        found = [owner for owner in self.owners if not owner.epoch]
        if not found:
            return
        owner = found[-1 - which % len(found)]
        replaces = owner.state.epoch
        at = self.write(owner_record(owner.name, replaces, 0, after_reset=False))
        self.read(owner)
        owner.epoch = epoch_name(at, owner.name)
        if self.over(owner):
            self.let_go(owner)
        owner.restored = set(owner.state.source_offsets)

    def opened(self, which: int) -> Owner | None:
        """One of those that have opened their epochs; mostly the one that did so last."""
        found = [owner for owner in self.owners if owner.epoch]
        return found[-1 - which % len(found)] if found else None

    def write(self, record: Record) -> int:
        self.records.append(spoken(record))
        return len(self.records) - 1

    # -- strangers

    @rule(
        seldom=st.integers(0, 2),
        which=st.integers(0, 6),
        name=st.sampled_from(["forged", "owner1", "owner2"]),
    )
    def a_stranger_writes_an_owner_record(self, seldom: int, which: int, name: str) -> None:
        """It names the epoch in force, or an earlier one, or none."""
        if seldom:
            return
        in_force = Naive(self.records).owner
        begun = [
            epoch_name(position, each.writer)
            for position, (_, each) in enumerate(self.records)
            if each.kind == "owner"
        ]
        names = [in_force, in_force, in_force, "", *begun[-3:]]
        replaces = names[which % len(names)]
        if replaces or not in_force:
            self.write(owner_record(name, replaces, 0, after_reset=False))

    @rule(name=st.sampled_from(["0123", "owner1"]))
    def an_older_release_writes_an_owner_record(self, name: str) -> None:
        self.records.append(older(name))

    # -- the source

    @rule(which=st.integers(0, 2))
    def next_of_the_source(self, which: int) -> None:
        """Take the next message, unless its key is being handled."""
        owner = self.opened(which)
        if owner is None:
            return
        offset = owner.position
        key = key_of(offset)
        if key in owner.busy:
            return
        queue = owner.state.keys.get(key)
        if offset in owner.restored:
            pass  # settled in an earlier life
        elif queue is None or offset < queue.source_offsets[0]:
            if owner is not self.holder:
                return  # ownership is not certain: no handler starts
            owner.running[key] = (offset, False)
        elif offset in queue or offset in owner.state.source_offsets:
            owner.settled.add(offset)
        else:
            owner.state.expect_record(key, offset, dead=False)
            record = parked_record(
                "waits", owner.epoch, 0, offset, Record(b"", key, f"m{offset}"), 0.0
            )
            owner.outbox.append(("entry", offset, record))
        owner.position += 1

    @rule(which=st.integers(0, 2), key=st.sampled_from(KEYS))
    def hand_out(self, which: int, key: bytes) -> None:
        owner = self.opened(which)
        if owner is None or owner is not self.holder or key in owner.busy:
            return
        queue = owner.state.returning.get(key)
        if queue is not None and not queue.handed_out and queue.position_of(0) >= 0:
            queue.handed_out = 1
            owner.running[key] = (queue.source_offsets[0], True)

    @rule(which=st.integers(0, 2), key=st.sampled_from(KEYS), fails=st.booleans())
    def finish(self, which: int, key: bytes, fails: bool) -> None:
        owner = self.opened(which)
        if owner is None or key not in owner.running:
            return
        offset, back = owner.running.pop(key)
        message = Record(b"", key, f"m{offset}", [(REDRIVE, b"1")] if back else [])
        if fails:
            queue = owner.state.keys.get(key)
            if not back and queue is not None and offset < queue.source_offsets[0]:
                self.letters.add(offset)
                owner.settled.add(offset)
                return
            if not back:
                owner.state.expect_record(key, offset, dead=True)
            record = parked_record("dead", owner.epoch, 0, offset, message, 0.0)
            owner.outbox.append(("back" if back else "entry", offset, record))
            return
        self.handled[key].append(offset)
        if back:
            record = done_record(owner.epoch, 0, offset, key)
            owner.outbox.append(("done", offset, record))
        else:
            owner.settled.add(offset)

    @rule(which=st.integers(0, 2), many=st.integers(1, 3), fails=st.integers(0, 2))
    def work(self, which: int, many: int, fails: int) -> None:
        """Take some messages and bring their handlers to an end; some of them fail."""
        for at in range(many):
            self.next_of_the_source(which)
            for key in KEYS:
                self.finish(which, key, fails=at == fails)

    @rule(which=st.integers(0, 2))
    def deliver(self, which: int) -> None:
        """A write arrives, and is confirmed."""
        owner = self.opened(which)
        if owner is None or not owner.outbox:
            return
        what, offset, record = owner.outbox.pop(0)
        self.write(record)
        if what == "entry":
            owner.settled.add(offset)
            owner.unproven.add(offset)
        elif what == "done":
            owner.state.remove_handled(key_of(offset), offset, unread=True)

    @rule(which=st.integers(0, 2), many=st.integers(1, 20))
    def read_on(self, which: int, many: int) -> None:
        owner = self.opened(which)
        if owner is not None:
            self.read(owner, many)
            if self.over(owner):
                self.let_go(owner)

    # -- commits

    @rule(which=st.integers(0, 2))
    def read_back(self, which: int) -> None:
        """What was parked below the position is read back; the commit is about to be made."""
        owner = self.opened(which)
        if owner is None:
            return
        position = owner.settled_to
        if owner.unproven:
            self.read(owner)
            owner.unproven -= set(owner.state.source_offsets)
        if not owner.unproven:
            owner.proven = position
        if self.over(owner) and owner in self.owners:
            self.let_go(owner)

    @rule(which=st.integers(0, 2), again=st.booleans())
    def commit(self, which: int, again: bool) -> None:
        if again:
            self.read_back(which)
        owner = self.opened(which)
        if owner is None or owner.proven is None:
            return
        if owner is self.holder:  # the log refuses anybody else's
            self.committed = max(self.committed, owner.proven)
        owner.proven = None

    @rule(which=st.integers(0, 2))
    def look_where_the_floor_is(self, which: int) -> None:
        owner = self.opened(which)
        if owner is not None and not self.over(owner):
            owner.floor = owner.state.floor(owner.read, self.committed)

    @rule(which=st.integers(0, 2))
    def store_the_floor(self, which: int) -> None:
        """However late; it may set the floor back."""
        owner = self.opened(which)
        if owner is not None and owner.floor is not None:
            self.floor, owner.floor = owner.floor, None

    # -- commands

    @rule(
        key=st.sampled_from(KEYS),
        command=st.sampled_from(["retry", "drop", "edit"]),
        stale=st.booleans(),
    )
    def command(self, key: bytes, command: str, stale: bool) -> None:
        of = max(0, Naive(self.records).head.get(key, 0))
        of = max(0, of - 1) if stale else of
        edited = Record(b"new", key, "") if command == "edit" else None
        self.write(command_record(command, of, 0, key, "c", edited))  # type: ignore[arg-type]

    # -- what must hold

    @invariant()
    def the_state_is_what_a_naive_reading_says(self) -> None:
        naive = Naive(self.records)
        for floor, in_force in {(0, ""), self.floor}:
            state = ParkingState(in_force)
            for position in range(floor, len(self.records)):
                state.apply(position, *self.records[position])
            assert state.epoch == naive.owner
            found = {key: list(queue.source_offsets) for key, queue in state.keys.items()}
            assert found == naive.queues
            assert {key for key, queue in state.keys.items() if queue.is_dead} == naive.dead
            assert set(state.returning) == set(found) - naive.dead
            assert state.parked_messages == sum(map(len, found.values()))
            for key, queue in state.keys.items():
                assert queue.position_of(0) == naive.head[key]
                assert len(queue.record_positions) == len(queue.source_offsets)

    @invariant()
    def order_is_kept_but_for_what_comes_again(self) -> None:
        for key, offsets in self.handled.items():
            firsts = list(dict.fromkeys(offsets))
            assert firsts == sorted(firsts), (key, offsets)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        naive = Naive(self.records)
        for offset in range(self.committed):
            assert (
                offset in self.handled[key_of(offset)]
                or offset in naive.waiting
                or offset in naive.dropped
                or offset in self.letters
            ), offset

    def teardown(self) -> None:
        """Whoever is given the partition now brings everything to its end, in order."""
        owner = self.look()
        self.open_the_epoch(0)
        assert owner.epoch
        which, end = 0, max(self.committed, owner.position) + 6
        for _ in range(10_000):
            self.read_on(which, 1 << 30)
            assert self.opened(which) is owner
            waiting = [key for key in KEYS if (q := owner.state.keys.get(key)) and q.is_dead]
            for key in waiting:
                self.command(key, "retry", stale=False)
            for key in KEYS:
                self.hand_out(which, key)
                self.finish(which, key, fails=False)
            self.deliver(which)
            if owner.position < end:
                self.next_of_the_source(which)
            elif not owner.state.keys and not owner.busy:
                break
        self.read_back(which)
        self.commit(which, again=False)
        assert self.committed == end
        self.nothing_is_forgotten()
        self.order_is_kept_but_for_what_comes_again()
        assert not Naive(self.records).queues


Partition.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
test_partition = Partition.TestCase


def test_what_was_dead_is_counted_as_put_back_and_what_waited_is_not() -> None:
    message = Record(b"v", b"k", "m1", [("h", b"1"), ("__streams.errors.message", b"no")])
    dead = parked_record("dead", "o", 3, 17, message, 5.5)
    assert dead.partition == 3
    back = read_original(dead.headers)
    assert back.headers == [(ID, b"m1"), ("h", b"1"), (REDRIVE, b"1"), (PUT_BACK, b"1")]
    assert (back.id, back.offset, back.time) == ("m1", 17, 5.5)
    waits = parked_record("waits", "o", 3, 18, Record(b"v", b"k", "m2", [("h", b"1")]), 5.5)
    assert read_original(waits.headers).headers == [(ID, b"m2"), ("h", b"1")]
    edited = command_record("edit", 4, 3, b"k", "e1", Record(b"new", b"k", "", dead.headers))
    assert read_original(edited.headers) == back
    again = parked_record("dead", "o", 3, 17, Record(b"v", b"k", "m1", back.headers), 5.5)
    assert again.id != dead.id
    assert read_original(again.headers).headers[-2:] == [(REDRIVE, b"2"), (PUT_BACK, b"2")]


def test_a_fresh_epoch_forgets_what_is_done_and_keeps_what_waits() -> None:
    state = ParkingState(keep_from=0)
    records = [
        (None, owner_record("o1", "", 0, after_reset=True)),
        (b"a", parked_record("dead", "0/o1", 0, 1, Record(b"", b"a", "m1"), 0.0)),
        (b"b", parked_record("dead", "0/o1", 0, 2, Record(b"", b"b", "m2"), 0.0)),
        (b"a", command_record("drop", 1, 0, b"a", "c1")),
        (None, owner_record("o2", "0/o1", 0, after_reset=True)),
    ]
    for position, (key, record) in enumerate(records):
        state.apply(position, key, spoken(record)[1])
    assert set(state.keys) == {b"b"}
    assert set(state.source_offsets) == {2}
    assert state.epoch == "4/o2"
