"""The state of closed keys, beside a naive reading of the same records.

An owner writes, reads late, is replaced at any moment, and may write on afterwards; somebody gives
commands. Whatever happens, each message of a key is handled in its order, and none is forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.message import ID, REDRIVE, Record
from streams.patterns.deadletters.parked import (
    Said,
    State,
    command_record,
    done_record,
    entry_record,
    original,
    owner_record,
    said,
)

KEYS = [b"a", b"b", b"c"]


@dataclass
class Owner:
    """One who owns the partition, or thinks so."""

    name: str
    state: State
    read: int
    position: int
    """Of the source: the next message to be looked at."""
    running: dict[bytes, int] = field(default_factory=dict)
    """What is being handled of each key: its source offset."""
    handled: list[tuple[bytes, int]] = field(default_factory=list)


class Partition(RuleBasedStateMachine):
    """One partition of the source, whose messages have keys in turn, and its topic of keys."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[bytes | None, Said]] = []
        self.names = 0
        self.committed = 0
        """The source's position that was committed last."""
        self.floor = 0
        self.tenure = ""
        self.handled: dict[bytes, list[int]] = defaultdict(list)
        """By key, source offsets in the order in which they were handled."""
        self.gone: set[int] = set()
        """Dropped."""
        self.owner = self.takeover()
        self.zombie: Owner | None = None

    # -- who owns

    def takeover(self) -> Owner:
        self.names += 1
        name = f"owner{self.names}"
        self.write(None, owner_record(name, 0, fresh=False))
        state = State(self.tenure, since=self.committed)
        if self.tenure:
            state.tenures.append((self.floor - 1, self.tenure))
        for position in range(self.floor, len(self.records)):
            key, record = self.records[position]
            state.read(position, key, record)
        assert state.owner == name
        return Owner(name, state, len(self.records), self.committed)

    def write(self, key: bytes | None, record: Record) -> int:
        found = said(record.headers)
        assert found is not None
        self.records.append((key, found))
        return len(self.records) - 1

    @rule()
    def another_takes_over(self) -> None:
        self.zombie, self.owner = self.owner, self.takeover()

    @rule(
        data=st.data(),
        what=st.sampled_from(["dead", "waits", "done"]),
    )
    @precondition(lambda self: self.zombie is not None)
    def the_former_owner_writes_late(self, data: st.DataObject, what: str) -> None:
        assert self.zombie is not None
        offset = data.draw(st.integers(0, self.zombie.position + 2))
        key = KEYS[offset % len(KEYS)]
        if what == "done":
            self.write(key, done_record(self.zombie.name, 0, offset, key))
        else:
            message = Record(b"", key, f"m{offset}")
            self.write(key, entry_record(what, self.zombie.name, 0, offset, message, 0.0))  # type: ignore[arg-type]

    # -- the source

    @rule(fails=st.booleans())
    def next_of_the_source(self, fails: bool) -> None:
        """Take the next message, unless its key is being handled."""
        owner = self.owner
        offset = owner.position
        key = KEYS[offset % len(KEYS)]
        if key in owner.running:
            return
        owner.position += 1
        if offset in owner.state.sources:
            return  # settled in an earlier tenure
        queue = owner.state.keys.get(key)
        message = Record(b"", key, f"m{offset}")
        if queue is not None:
            if offset > queue.sources[-1]:
                owner.state.expect(key, offset, dead=False)
                self.write(key, entry_record("waits", owner.name, 0, offset, message, 0.0))
        elif fails:
            owner.state.expect(key, offset, dead=True)
            self.write(key, entry_record("dead", owner.name, 0, offset, message, 0.0))
        else:
            self.note(key, offset)

    @rule()
    def commit(self) -> None:
        self.committed = max(self.committed, self.owner.position)

    # -- what comes back

    @rule(many=st.integers(1, 20))
    def read_on(self, many: int) -> None:
        owner = self.owner
        for position in range(owner.read, min(len(self.records), owner.read + many)):
            key, record = self.records[position]
            before = {each: queue.sources[0] for each, queue in owner.state.keys.items()}
            owner.state.read(position, key, record)
            if record.what == "drop" and key is not None and key in before:
                queue = owner.state.keys.get(key)
                if queue is None or queue.sources[0] != before[key]:
                    self.gone.add(before[key])
            owner.read = position + 1

    @rule(key=st.sampled_from(KEYS))
    def hand_out(self, key: bytes) -> None:
        owner = self.owner
        queue = owner.state.moving.get(key)
        if queue is not None and not queue.given and queue.place(0) >= 0:
            queue.given = 1
            owner.running[key] = queue.sources[0]

    @rule(key=st.sampled_from(KEYS), fails=st.booleans())
    def finish(self, key: bytes, fails: bool) -> None:
        owner = self.owner
        offset = owner.running.pop(key, None)
        if offset is None:
            return
        if fails:
            message = Record(b"", key, f"m{offset}", [(REDRIVE, b"1")])
            self.write(key, entry_record("dead", owner.name, 0, offset, message, 0.0))
        else:
            self.note(key, offset)
            self.write(key, done_record(owner.name, 0, offset, key))
            owner.state.done(key, offset, early=True)

    def note(self, key: bytes, offset: int) -> None:
        self.handled[key].append(offset)

    @rule(
        key=st.sampled_from(KEYS),
        command=st.sampled_from(["retry", "drop", "edit"]),
        stale=st.booleans(),
    )
    def command(self, key: bytes, command: str, stale: bool) -> None:
        queue = self.owner.state.keys.get(key)
        of = queue.place(0) if queue is not None else 0
        of = max(0, of - 1) if stale else of
        edited = Record(b"new", key, "") if command == "edit" else None
        self.write(key, command_record(command, max(0, of), 0, key, "c", edited))  # type: ignore[arg-type]

    @rule()
    def move_the_floor(self) -> None:
        owner = self.owner
        floor, tenure = owner.state.floor(owner.read, self.committed)
        if floor > self.floor:
            self.floor, self.tenure = floor, tenure

    # -- what must hold

    @invariant()
    def queues_ascend_and_are_counted(self) -> None:
        state = self.owner.state
        for key, queue in state.keys.items():
            assert list(queue.sources) == sorted(set(queue.sources))
            assert len(queue.sources) == len(queue.positions) > 0
            assert (key in state.moving) == (not queue.dead)
        assert state.held == sum(map(len, state.keys.values()))
        assert set(state.moving) <= set(state.keys)

    @invariant()
    def order_is_kept_but_for_what_comes_again(self) -> None:
        for key, offsets in self.handled.items():
            firsts = list(dict.fromkeys(offsets))
            assert firsts == sorted(firsts), (key, offsets)

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """What was taken from the source and committed is handled, dropped, or in a queue of
        whoever would take over now."""
        state = State(self.tenure)
        for position in range(self.floor, len(self.records)):
            key, record = self.records[position]
            before = {each: queue.sources[0] for each, queue in state.keys.items()}
            state.read(position, key, record)
            if record.what == "drop" and key in before:
                queue = state.keys.get(key)
                if queue is None or queue.sources[0] != before[key]:
                    self.gone.add(before[key])
        waiting = {offset for queue in state.keys.values() for offset in queue.sources}
        for offset in range(self.committed):
            done = offset in self.handled[KEYS[offset % len(KEYS)]]
            assert done or offset in waiting or offset in self.gone, offset


Partition.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
test_partition = Partition.TestCase


def test_what_was_dead_is_counted_as_put_back_and_what_waited_is_not() -> None:
    message = Record(b"v", b"k", "m1", [("h", b"1"), ("__streams.errors.message", b"no")])
    dead = entry_record("dead", "o", 3, 17, message, 5.5)
    assert dead.partition == 3
    back = original(dead.headers)
    assert back.headers == [(ID, b"m1"), ("h", b"1"), (REDRIVE, b"1")]
    assert (back.id, back.offset, back.time) == ("m1", 17, 5.5)
    waits = entry_record("waits", "o", 3, 18, Record(b"v", b"k", "m2", [("h", b"1")]), 5.5)
    assert original(waits.headers).headers == [(ID, b"m2"), ("h", b"1")]
    edited = command_record("edit", 4, 3, b"k", "e1", Record(b"new", b"k", "", dead.headers))
    assert original(edited.headers) == back
    again = entry_record("dead", "o", 3, 17, Record(b"v", b"k", "m1", back.headers), 5.5)
    assert again.id != dead.id
    assert original(again.headers).headers[-1] == (REDRIVE, b"2")


def test_a_fresh_tenure_forgets_what_is_done_and_keeps_what_waits() -> None:
    state = State(since=0)
    records = [
        (None, owner_record("o1", 0, fresh=True)),
        (b"a", entry_record("dead", "o1", 0, 1, Record(b"", b"a", "m1"), 0.0)),
        (b"b", entry_record("dead", "o1", 0, 2, Record(b"", b"b", "m2"), 0.0)),
        (b"a", command_record("drop", 1, 0, b"a", "c1")),
        (None, owner_record("o2", 0, fresh=True)),
    ]
    for position, (key, record) in enumerate(records):
        found = said(record.headers)
        assert found is not None
        state.read(position, key, found)
    assert set(state.keys) == {b"b"}
    assert state.keys[b"b"].old
    assert set(state.sources) == {2}
