"""Durable sagas, read from their journals: the sagas, their status, and their history.

A journal has an entry for each transition of each saga (:mod:`streams.patterns.saga`). Listing its
sagas means reading it, so a caller that lists them repeatedly keeps a :class:`SagaIndex` of each
journal, which reads from the end to the beginning, up to its limits, and then only new entries.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from streams.patterns.saga import (
    DEFAULT_NEWEST,
    Failure,
    Journal,
    JournalEntry,
    Status,
    saga_name,
)

CHUNK = 2_000
"""Entries that are read at once, approximately."""

SCAN = 5_000
"""Entries that are searched at once for one saga."""

MAX_SAGAS = 200_000
"""Sagas of a journal that an index keeps, approximately. Beyond that, it drops the sagas whose last
transition is oldest, finished ones first."""

STATUSES: Sequence[Status] = get_args(Status)

MAX_WHY = 300
"""Characters of an error that an index keeps."""

MAX_STEPS = 8
"""Current steps of a saga that an index keeps."""


def saga_names(topics: Iterable[str]) -> list[str]:
    """The names of all sagas that have a journal among these topics."""
    return [name for topic in topics if (name := saga_name(topic)) is not None]


def failure_text(failure: Failure) -> str:
    """The step that failed, and its error."""
    return f"{failure.step}: {failure.error}"


def why(entry: JournalEntry) -> str:
    """The latest failure of a saga; empty if there is none."""
    return (
        entry.error
        or "; ".join(map(failure_text, entry.last))
        or "; ".join(f"not compensated: {failure_text(each)}" for each in entry.uncompensated)
        or ("" if entry.failure is None else failure_text(entry.failure))
    )


def steps_not_undone(entry: JournalEntry) -> list[str]:
    """The steps that are not undone, and whether their compensation failed."""
    failed = {each.step: each.error for each in entry.uncompensated}
    return [
        f"{step} (its compensation failed: {failed[step]})" if step in failed else step
        for step in entry.uncompensated_steps
    ]


# -- all sagas of a journal -----------------------------------------------------------------------


class KnownSaga(NamedTuple):
    """The state of a saga: its last entry, without its context.

    :param steps: the steps that come next, or are being undone; the first few.
    :param at: when its last transition was, in seconds since the epoch.
    :param due: when it goes on, if it waits.
    :param partition: the entry's partition; ``offset`` is its offset there.
    """

    id: str
    status: Status
    steps: tuple[str, ...]
    at: float
    due: float
    why: str
    number: int
    partition: int
    offset: int

    @property
    def is_over(self) -> bool:
        """Whether the saga is finished."""
        return self.status in _OVER


_OVER = frozenset(("completed", "compensated", "abandoned"))


@dataclass(slots=True)
class _ReadRange:
    """The range of a partition that was read: from ``low`` to before ``high``."""

    low: int
    high: int
    first: int
    is_whole: bool
    looked: int = 0


@dataclass
class SagaIndex:
    """The last entry of each saga of one journal, as far as it was read. One thread at a time may
    read (:meth:`read`); the results are available in any thread.

    :param most: entries of each partition that are read, at most.
    """

    journal: Journal
    most: int = DEFAULT_NEWEST
    max_sagas: int = MAX_SAGAS
    _sagas: dict[str, KnownSaga] = field(default_factory=dict)
    _parts: dict[int, _ReadRange] = field(default_factory=dict)
    _order: dict[frozenset[Status] | None, Sequence[KnownSaga]] = field(default_factory=dict)
    """Results of :meth:`sagas` since the last change, by statuses."""
    _incarnation: str | None = None
    _is_full: bool = False

    # -- reading

    def read(self, seconds: float, *, new_seconds: float = 0.0) -> bool:
        """Read on for about this many real seconds; returns whether everything within the limits
        was read (blocks).

        :param new_seconds: real seconds that new entries alone may take, if that is more.
        :raises LogError: the journal cannot be read.
        :raises NotFound: there is no journal.
        """
        began = time.monotonic()
        deadline = began + seconds
        self._begin()
        for partition, part in self._parts.items():
            self._read_new(partition, part, began + max(seconds, new_seconds))
        while time.monotonic() < deadline:
            waiting = [each for each in self._parts.items() if not self._is_done(each[1])]
            if not waiting:
                return True
            # Read the partition of which least was read: all ends are of about the same time.
            self._read_older(*min(waiting, key=lambda each: each[1].looked))
        return all(map(self._is_done, self._parts.values()))

    def _begin(self) -> None:
        log, topic = self.journal.log, self.journal.topic
        incarnation, partitions = log.incarnation(topic), log.describe_topic(topic).partitions
        if incarnation != self._incarnation:  # the topic was created again
            self._sagas, self._parts, self._order = {}, {}, {}
            self._incarnation, self._is_full = incarnation, False
        for partition in range(partitions):
            if partition not in self._parts:
                first, end = log.watermarks(topic, partition)
                self._parts[partition] = _ReadRange(end, end, first, first >= end)

    def _read_new(self, partition: int, part: _ReadRange, deadline: float) -> None:
        """Read the entries written since the last read."""
        end = self.journal.log.watermarks(self.journal.topic, partition)[1]
        if end <= part.high:
            return
        count = 0
        for each in self.journal.read_range(partition, part.high, end):
            self._add_entry(each.entry, partition, each.position.offset)
            part.high, count = each.position.offset + 1, count + 1
            if not count % 500 and time.monotonic() > deadline:
                break
        else:
            part.high = end
        part.looked += count
        self._drop_oldest()

    def _read_older(self, partition: int, part: _ReadRange) -> None:
        """Read a chunk of the entries before those that were read."""
        log, topic = self.journal.log, self.journal.topic
        size = min(CHUNK, max(1, self.most - part.looked))
        start = max(part.first, log.offset_before(topic, partition, part.low, size))
        count = 0
        for each in self.journal.read_range(partition, start, part.low):
            self._add_entry(each.entry, partition, each.position.offset)
            count += 1
        part.is_whole = (
            start >= part.low
            or start <= part.first
            or log.offset_before(topic, partition, start, 1) >= start
        )
        part.low, part.looked = start, part.looked + count
        self._drop_oldest()

    def _is_done(self, part: _ReadRange) -> bool:
        return part.is_whole or self._is_full or part.looked >= self.most

    def _add_entry(self, entry: JournalEntry, partition: int, offset: int) -> None:
        known = self._sagas.get(entry.saga)
        if known is not None:
            if entry.n < known.number:
                return
            # Of several entries with the same number the first counts: the others were too late.
            if entry.n == known.number and (known.partition, known.offset) <= (partition, offset):
                return
        self._sagas[entry.saga] = KnownSaga(
            entry.saga,
            entry.status,
            entry.current_steps[:MAX_STEPS],
            entry.at,
            entry.due,
            why(entry)[:MAX_WHY],
            entry.n,
            partition,
            offset,
        )
        self._order = {}

    def _drop_oldest(self) -> None:
        if len(self._sagas) <= self.max_sagas * 5 // 4:
            return
        # Stop reading older entries, and drop finished sagas first: they need no action.
        self._is_full = True
        oldest = sorted(self._sagas.values(), key=lambda each: (not each.is_over, each.at))
        for each in oldest[: len(self._sagas) - self.max_sagas]:
            del self._sagas[each.id]
        self._order = {}

    # -- results

    def __len__(self) -> int:
        return len(self._sagas)

    @property
    def is_complete(self) -> bool:
        """Whether every entry in the log was read."""
        return not self._is_full and all(part.is_whole for part in self._parts.values())

    @property
    def looked_at(self) -> int:
        """Entries that were read."""
        return sum(part.looked for part in self._parts.values())

    def find(self, id: str) -> KnownSaga | None:
        """A saga; None: it is not known."""
        return self._sagas.get(id)

    def counts(self) -> Counter[Status]:
        """The number of sagas with each status."""
        return Counter({status: len(self.sagas(frozenset((status,)))) for status in STATUSES})

    def sagas(self, statuses: frozenset[Status] | None = None) -> Sequence[KnownSaga]:
        """The known sagas with these statuses, or all; the latest transition first."""
        order = self._order
        found = order.get(statuses)
        if found is None:
            if statuses is None:
                found = sorted(self._sagas.copy().values(), key=_moved_at, reverse=True)
            elif len(statuses) == 1:
                (status,) = statuses
                found = [each for each in self.sagas() if each.status == status]
            else:
                found = [each for each in self.sagas() if each.status in statuses]
            order[statuses] = found
        return found


def _moved_at(saga: KnownSaga) -> float:
    return saga.at


# -- one saga -------------------------------------------------------------------------------------


class PlacedEntry(NamedTuple):
    """An entry and its position."""

    entry: JournalEntry
    partition: int
    offset: int


class SagaHistory(NamedTuple):
    """The entries of a saga.

    :param entries: in the order of their numbers, without those that were too late. Empty: no such
        saga was found in the entries that were searched.
    :param looked_at: entries of the journal that were searched.
    :param is_complete: no entry of this saga is missing.
    """

    entries: list[PlacedEntry]
    looked_at: int
    is_complete: bool


def saga_history(
    journal: Journal, id: str, seconds: float, *, partition: int | None = None
) -> SagaHistory:
    """All entries of a saga, searched from the end of the journal to its beginning, for this many
    real seconds at most (blocks).

    :param partition: the partition of the entries, if it is known.
    :raises NotFound: there is no such journal.
    :raises LogError: the journal cannot be read.
    """
    deadline = time.monotonic() + seconds
    log, topic = journal.log, journal.topic
    partitions = range(log.describe_topic(topic).partitions) if partition is None else (partition,)
    waiting = {each: log.watermarks(topic, each) for each in partitions}
    found: dict[int, PlacedEntry] = {}
    lowest: dict[int, int] = {}
    keys = (id.encode("utf-8", "surrogateescape"),)
    while waiting and 0 not in found and time.monotonic() < deadline:
        for each, (first, end) in list(waiting.items()):
            start = max(first, log.offset_before(topic, each, end, SCAN))
            for entry, position in journal.read_range(each, start, end, keys):
                # Of several entries with the same number the first counts, and this one precedes
                # those found in later chunks.
                held = found.get(entry.n)
                if held is None or held.partition != each or position.offset < held.offset:
                    found[entry.n] = PlacedEntry(entry, each, position.offset)
            lowest[each] = start
            if start >= end or start <= first:
                del waiting[each]
            else:
                waiting[each] = (first, start)
            if found:  # its other entries are in the same partition
                waiting = {each: waiting[each]} if each in waiting else {}
                break
    looked_at = sum(log.lag(topic, each, start) or 0 for each, start in lowest.items())
    entries = [found[number] for number in sorted(found)]
    return SagaHistory(entries, looked_at, 0 in found or not waiting)


TransitionKind = Literal[
    "started", "done", "failed", "gave-up", "undone", "not-undone", "stopped", "resumed",
    "abandoned", "completed", "compensated", "ended-failed", "moved",
]  # fmt: skip
"""A transition of a saga:

* ``started``; ``done``: steps succeeded; ``failed``: an attempt failed, and will be retried;
* ``gave-up``: a step failed for good, and those before it are being undone;
* ``undone``: a step was undone; ``not-undone``: a compensation failed for good;
* ``stopped``, ``resumed``, ``abandoned``;
* ``completed``, ``compensated``, ``ended-failed``: the saga is finished;
* ``moved``: any other transition.
"""


class Transition(NamedTuple):
    """One transition of a saga.

    :param number: the number of its entry.
    :param at: when it happened, in seconds since the epoch.
    :param steps: the steps that it concerns.
    :param error: the error that was raised, or the reason that was given.
    :param attempts: how often a failed step was called.
    :param due: when the step is tried again.
    """

    kind: TransitionKind
    number: int
    at: float
    steps: tuple[str, ...] = ()
    error: str = ""
    attempts: int = 0
    due: float = 0.0


def transitions(entries: Iterable[JournalEntry]) -> list[Transition]:
    """The transitions of a saga, from its entries in their order."""
    found: list[Transition] = []
    before: JournalEntry | None = None
    for entry in entries:
        happened = list(_between(before, entry))
        found += happened or [Transition("moved", entry.n, entry.at)]
        before = entry
    return found


def _between(before: JournalEntry | None, entry: JournalEntry) -> Iterable[Transition]:
    n, at = entry.n, entry.at
    if before is None:
        if entry.n == 0:
            yield Transition("started", n, at)
        else:  # the log no longer has the entries before it
            yield Transition("moved", n, at, entry.current_steps)
        return
    if entry.status == "stopped":
        yield Transition("stopped", n, at, entry.current_steps, entry.error)
        return
    if entry.status == "abandoned":
        yield Transition("abandoned", n, at, entry.uncompensated_steps, entry.error)
        return
    if before.status in ("stopped", "failed") and entry.status in ("running", "compensating"):
        yield Transition("resumed", n, at, entry.current_steps)
        return
    done = tuple(step for step in entry.done if step not in before.done)
    if done:
        yield Transition("done", n, at, done)
    gave_up = entry.failure is not None and entry.failure != before.failure
    if gave_up and entry.failure is not None:
        failure = entry.failure
        yield Transition("gave-up", n, at, (failure.step,), str(failure.error), failure.attempts)
    if entry.last and entry.last != before.last:
        for each in entry.last:
            if each not in before.last:
                yield Transition(
                    "failed", n, at, (each.step,), str(each.error), each.attempts, entry.due
                )
    known = {each.step for each in before.uncompensated}
    for each in entry.uncompensated:
        if each.step not in known:
            yield Transition("not-undone", n, at, (each.step,), str(each.error), each.attempts)
    lost = {each.step for each in entry.uncompensated}
    undone = tuple(step for step in before.done if step not in entry.done and step not in lost)
    if undone:
        yield Transition("undone", n, at, undone)
    if entry.status != before.status:
        if entry.status == "completed":
            yield Transition("completed", n, at)
        elif entry.status == "compensated":
            yield Transition("compensated", n, at)
        elif entry.status == "failed":
            yield Transition("ended-failed", n, at, tuple(lost))


StepState = Literal["done", "undone", "failed", "not-undone", "current", "to-come", "left-out"]
"""The state of a step. ``current``: it comes next, or is being undone; ``left-out``: it was never
done, and will not be."""


class PlannedStep(NamedTuple):
    """A step of a saga's plan."""

    name: str
    state: StepState


def planned_steps(
    entry: JournalEntry, history: Sequence[JournalEntry] = ()
) -> list[list[PlannedStep]]:
    """The plan as groups of steps (the steps of a group run concurrently), with each step's state.

    :param history: the saga's entries, which tell which steps were undone.
    """
    current = () if entry.is_final else entry.current_steps
    ever_done = {step for each in (*history, entry) for step in each.done}
    lost = {each.step for each in entry.uncompensated}
    failed = "" if entry.failure is None else entry.failure.step
    forward = entry.effective_status in ("running", "completed")

    def state(step: str) -> StepState:
        if step in lost:
            return "not-undone"
        if step in current and entry.status != "failed":
            return "current"
        if step in entry.done:
            return "done"
        if step in ever_done:
            return "undone"
        if step == failed:
            return "failed"
        return "to-come" if forward and not entry.is_final else "left-out"

    return [[PlannedStep(step, state(step)) for step in group] for group in entry.plan]
