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
    Handled,
    InlineSubscription,
    PartitionCounts,
    PartitionHandler,
)
from streams.log.protocol import Assignment
from streams.message import Batch

NEVER = float("inf")


class Handler(PartitionHandler):
    """Notes what it handles; cannot, once."""

    def __init__(self, handled: list[int]) -> None:
        self.handled = handled
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
    def handle(self, batch: Batch, start: int) -> Handled:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        self.handled += batch.offsets[start:]
        self._position = batch.offsets[-1] + 1
        return Handled(len(batch), None, len(batch) - start)

    @override
    def close(self) -> None: ...


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

    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        if self.is_cut_off:
            raise Unavailable("cut off")
        found, self.batches = self.batches, []
        return found

    def reassign(self, assignments: Iterable[Assignment]) -> None:
        if self.is_cut_off:
            raise Unavailable("cut off")
        self.reassigned += assignments

    def pause(self, assignments: Iterable[Assignment]) -> None: ...


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
        self.refuses: LogError | None = None
        self._subscription: Any = polled
        self._listener: Any = Listener()

    @override
    def _begin(self, assignment: Assignment) -> Handler:
        if self.refuses is not None:
            raise self.refuses
        number = assignment.partition
        self.handlers[number] = Handler(self.handled.setdefault(number, []))
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
    polled.resume = lambda assignments: None  # type: ignore[attr-defined]
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
    inline.handlers[0].before = inline._incarnations.among(["t"])
    polled.batches = [batch(assignment, 0)]
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0]}
    inline.log.now = "second"
    polled.batches = [batch(assignment, 1)]
    inline.poll(100, 0.0)
    assert inline.handled == {0: [0]}
    inline.poll(100, 0.0)
    assert polled.reassigned == [assignment]
