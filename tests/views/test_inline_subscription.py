"""A subscription that handles what it polls: nothing that was polled is passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from typing_extensions import override

from streams.errors import LogError, TooLarge, Unavailable
from streams.eventsourcing.views import incarnations, inline_subscription
from streams.eventsourcing.views.checkpoint_check import CheckpointBeyondLog
from streams.eventsourcing.views.incarnations import Incarnations
from streams.eventsourcing.views.inline_subscription import (
    HandledBatch,
    InlineSubscription,
    PartitionCounts,
    PartitionHandler,
)
from streams.log.protocol import Assignment
from streams.message import Batch

NEVER = float("inf")


class Handler(PartitionHandler):
    """Notes what it handles; cannot, once. Each message takes some time."""

    def __init__(self, handled: list[int], clock: Clock) -> None:
        self.handled = handled
        self.clock = clock
        self.error: LogError | None = None
        self.before: dict[str, str] = {}
        self._position = 0

    @property
    @override
    def position(self) -> int:
        return self._position

    @property
    @override
    def incarnations(self) -> Mapping[str, str]:
        return self.before

    @override
    def handle(self, batch: Batch, start: int, until: float = NEVER) -> HandledBatch:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        stop = start
        while stop < len(batch) and (stop == start or self.clock.now < until):
            self.handled.append(batch.offsets[stop])
            self._position = batch.offsets[stop] + 1
            self.clock.now += self.clock.takes
            stop += 1
        return HandledBatch(stop, None, stop - start)

    @override
    def close(self) -> None: ...


class Clock:
    """What the handlers go by, and how long a message takes them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes = 0.0

    def monotonic(self) -> float:
        return self.now


class Listener:
    def assigned(self, assignments: Any) -> None: ...
    def revoked(self, assignments: Any) -> None: ...
    def lost(self, assignments: Any) -> None: ...


class Polled:
    """A log's subscription that gives what it was told to, and whose log may be cut off."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.is_cut_off = False
        self.reassigned: list[Assignment] = []
        self.paused: set[Assignment] = set()

    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        if self.is_cut_off:
            raise Unavailable("cut off")
        found, self.batches = self.batches, []
        return found

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        if self.is_cut_off:
            raise Unavailable("cut off")
        self.reassigned += assignments

    def pause(self, assignments: Iterable[Assignment]) -> None:
        self.paused.update(assignments)

    def resume(self, assignments: Iterable[Assignment]) -> None:
        self.paused.difference_update(assignments)


class Words:
    """A log whose topics have an incarnation."""

    def __init__(self) -> None:
        self.now = "first"

    def incarnation(self, topic: str) -> str:
        return self.now


class Inline(InlineSubscription[Handler]):
    def __init__(self, polled: Polled) -> None:
        log: Any = Words()
        self.log = log
        self.counts: dict[tuple[str, int], PartitionCounts] = {}
        super().__init__(log, "test", self.counts, Incarnations(log))
        self.handlers: dict[int, Handler] = {}
        self.handled: dict[int, list[int]] = {}
        self.clock = Clock()
        self.refuses: LogError | None = None
        self._subscription: Any = polled
        self._listener: Any = Listener()

    @override
    def _begin_partition(self, assignment: Assignment) -> Handler:
        if self.refuses is not None:
            raise self.refuses
        number = assignment.partition
        self.handlers[number] = Handler(self.handled.setdefault(number, []), self.clock)
        return self.handlers[number]


def batch(assignment: Assignment, *offsets: int) -> Batch:
    count = len(offsets)
    return Batch(
        assignment.topic, assignment.partition, list(offsets), [b"k"] * count, [b"1"] * count,
        [f"id-{each}" for each in offsets], None, [0.0] * count, assignment,
    )  # fmt: skip


def test_what_was_polled_beside_a_partition_that_is_given_up_is_handled() -> None:
    """The log is cut off while the first of three partitions is written: the others' messages were
    polled, and the log's subscription does not give them again."""
    polled = Polled()
    inline = Inline(polled)
    owned = [Assignment("t", number, number + 1, None, NEVER) for number in range(3)]
    inline.assigned(owned)
    polled.batches = [batch(each, 0, 1) for each in owned]
    inline.handlers[0].error = Unavailable("cut off")
    real_poll = polled.poll

    def poll_and_cut(limit: int, timeout: float) -> Sequence[Batch]:
        found = real_poll(limit, timeout)
        polled.is_cut_off = True
        return found

    polled.poll = poll_and_cut  # type: ignore[method-assign]
    told: list[Batch] = []
    try:
        told += inline.poll(100, 0.0)
    except Unavailable:
        polled.is_cut_off = False
    polled.poll = real_poll  # type: ignore[method-assign]
    assert inline.handled == {0: [], 1: [0, 1], 2: [0, 1]}
    polled.is_cut_off = False
    told += inline.poll(100, 0.0)
    assert {each.partition: each.skipped_to for each in told} == {1: 2, 2: 2}
    assert polled.reassigned == [owned[0]]


def test_the_poller_is_told_after_an_outage() -> None:
    """A partition went on that had waited, and then the poll itself failed."""
    polled = Polled()
    inline = Inline(polled)
    owned = Assignment("t", 0, 1, None, NEVER)
    inline.assigned([owned])
    waiting = inline._partitions[owned]
    waiting.pending.append((batch(owned, 0, 1), 0))
    polled.is_cut_off = True
    try:
        inline.poll(100, 0.0)
    except Unavailable:
        pass
    assert inline.handled == {0: [0, 1]}
    polled.is_cut_off = False
    assert [each.skipped_to for each in inline.poll(100, 0.0)] == [2]


def test_a_partition_that_does_not_get_on_is_begun_anew_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it cannot write it will not be able to write the next moment, either; health says so."""
    now = 1_000.0
    monkeypatch.setattr(inline_subscription, "time", SimpleNamespace(monotonic=lambda: now))
    polled = Polled()
    inline = Inline(polled)
    owned = [Assignment("t", number, number + 1, None, NEVER) for number in range(2)]
    inline.assigned(owned)
    pauses: list[float] = []
    for _ in range(8):
        inline.handlers[0].error = TooLarge("a document of 40 MB")
        polled.batches = [batch(owned[0], 0)]
        inline.poll(100, 0.0)
        begun_at = now
        while not polled.reassigned:
            inline.poll(100, 0.0)
            now += 0.5
        pauses.append(now - begun_at - 0.5)
        assert polled.reassigned == [owned[0]]
        polled.reassigned.clear()
        if len(pauses) > 1:
            assert "TooLarge" in inline.counts["t", 0].waiting
        owned[0] = Assignment("t", 0, len(pauses) + 10, None, NEVER)
        inline.assigned([owned[0]])
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    polled.batches = [batch(owned[0], 0), batch(owned[1], 0)]
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0], 1: [0]}
    assert inline.counts["t", 0].waiting == ""


def test_an_outage_is_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(inline_subscription, "time", SimpleNamespace(monotonic=lambda: now))
    polled = Polled()
    inline = Inline(polled)
    for number in range(6):
        assignment = Assignment("t", 0, number + 1, None, NEVER)
        inline.assigned([assignment])
        inline.handlers[0].error = Unavailable("cut off")
        polled.batches = [batch(assignment, 0)]
        inline.poll(100, 0.0)
        now += 1.0
        inline.poll(100, 0.0)
        assert polled.reassigned == [assignment]
        polled.reassigned.clear()


def test_a_partition_that_could_not_begin_for_a_moment_waits_for_nothing_any_more() -> None:
    """Also where no message comes that would say so."""
    polled = Polled()
    inline = Inline(polled)
    first, second = (Assignment("t", 0, epoch, None, NEVER) for epoch in (1, 2))
    inline.refuses = CheckpointBeyondLog("a leader that is behind")
    inline.assigned([first])
    assert "CheckpointBeyondLog" in inline.counts["t", 0].waiting
    inline.refuses = None
    inline.assigned([second])
    assert inline.counts["t", 0].waiting == ""


def test_what_is_of_a_topic_that_was_made_anew_is_not_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the log's subscription goes on as if it were the same topic."""
    monkeypatch.setattr(incarnations, "LASTS", 0.0)
    polled = Polled()
    inline = Inline(polled)
    assignment = Assignment("t", 0, 1, None, NEVER)
    inline.assigned([assignment])
    inline.handlers[0].before = inline._incarnations.known_incarnations(["t"])
    polled.batches = [batch(assignment, 0)]
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0]}
    inline.log.now = "second"
    polled.batches = [batch(assignment, 1)]
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0]}
    inline.poll(100, 0.0)
    assert polled.reassigned == [assignment]


# -- handlers that take their time


@pytest.mark.parametrize(("lease", "longest"), [(None, 2.0), (10.0, 2.0), (1.0, 0.4)])
def test_a_poll_ends_in_time_however_slow_the_handlers_are(
    monkeypatch: pytest.MonkeyPatch, lease: float | None, longest: float
) -> None:
    """So that this process stays in its group. Each message is handled once, in order, no partition
    waits for the whole of another's, and what was handled is told."""
    polled = Polled()
    inline = Inline(polled)
    clock = inline.clock
    monkeypatch.setattr(inline_subscription, "time", clock)
    owned = [Assignment("t", each, each + 1, None, NEVER, lease) for each in range(3)]
    inline.assigned(owned)
    clock.takes = 0.15
    polled.batches = [batch(each, *range(40)) for each in owned]
    told: dict[int, int] = {}
    polls = 0
    while polled.batches or polled.paused:
        began = clock.now
        for each in inline.poll(100, 0.0):
            told[each.partition] = each.skipped_to
        assert clock.now - began <= longest + 2 * clock.takes
        handled = {each.partition: len(inline.handled[each.partition]) for each in owned}
        assert all(told.get(number, 0) == count for number, count in handled.items())
        polls += 1
        if polls == 8:
            assert all(handled.values())
    assert inline.handled == {each.partition: list(range(40)) for each in owned}
    polled.batches = [batch(owned[1], 40)]
    inline.poll(100, 0.0)
    assert inline.handled[1][-1] == 40


def test_what_comes_of_a_partition_meanwhile_is_handled_behind_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that the driver had fetched before it was paused."""
    polled = Polled()
    inline = Inline(polled)
    monkeypatch.setattr(inline_subscription, "time", inline.clock)
    owned = Assignment("t", 0, 1, None, NEVER)
    inline.assigned([owned])
    inline.clock.takes = 1.0
    polled.batches = [batch(owned, 0, 1, 2), batch(owned, 3, 4)]
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0]}
    polled.batches = [batch(owned, 5)]
    while polled.paused:
        inline.poll(100, 0.0)
    assert inline.handled == {0: [0, 1, 2, 3, 4, 5]}


def test_a_partition_that_the_poller_pauses_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    polled = Polled()
    inline = Inline(polled)
    monkeypatch.setattr(inline_subscription, "time", inline.clock)
    owned = Assignment("t", 0, 1, None, NEVER)
    inline.assigned([owned])
    inline.clock.takes = 1.0
    polled.batches = [batch(owned, 0, 1)]
    inline.poll(100, 0.0)
    inline.pause([owned])
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0]}
    inline.resume([owned])
    assert polled.paused == {owned}  # until what is held was handled
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0, 1]}
    assert not polled.paused
