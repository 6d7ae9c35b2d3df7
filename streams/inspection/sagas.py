"""Durable sagas as their journals have them: which there are, where one stands, how it came there.

A journal has an entry for each transition of each saga (:mod:`streams.patterns.saga`). Listing its
sagas means reading it, so whoever shows them again and again keeps a :class:`SagaIndex` of each
journal, which reads from the end to the beginning, as far as it is let, and then only what is new.
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
"""Entries that are read at once, about."""

SCAN = 5_000
"""Entries that are looked through for one saga at once."""

MAX_SAGAS = 200_000
"""Sagas of a journal that an index keeps, about. Of more, those that moved longest ago are
forgotten, those that are over before the others."""

STATUSES: Sequence[Status] = get_args(Status)

MAX_WHY = 300
"""Characters of an error that an index keeps."""

MAX_STEPS = 8
"""Steps of a saga at once that an index keeps."""


def saga_names(topics: Iterable[str]) -> list[str]:
    """The names of all sagas that have a journal among these topics."""
    return [name for topic in topics if (name := saga_name(topic)) is not None]


def failure_text(failure: Failure) -> str:
    """Which step failed, and with what."""
    return f"{failure.step}: {failure.error}"


def why(entry: JournalEntry) -> str:
    """What went wrong with a saga, if anything did: the latest there is."""
    return (
        entry.error
        or "; ".join(map(failure_text, entry.last))
        or "; ".join(f"not compensated: {failure_text(each)}" for each in entry.uncompensated)
        or ("" if entry.failure is None else failure_text(entry.failure))
    )


def steps_not_undone(entry: JournalEntry) -> list[str]:
    """The steps that are not undone, and which of them could not be."""
    failed = {each.step: each.error for each in entry.uncompensated}
    return [
        f"{step} (its compensation failed: {failed[step]})" if step in failed else step
        for step in entry.uncompensated_steps
    ]


# -- all sagas of a journal -----------------------------------------------------------------------


class KnownSaga(NamedTuple):
    """Where a saga stands: the last entry of it, without its context.

    :param steps: those that come next, or are being undone; the first few.
    :param at: when it moved last, in seconds since the epoch.
    :param due: it goes on then, if it waits for something.
    :param partition: where the entry stands, with ``offset``.
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
        """Nothing follows."""
        return self.status in _OVER


_OVER = frozenset(("completed", "compensated", "abandoned"))


@dataclass(slots=True)
class _Part:
    """What was read of a partition: from ``low`` to before ``high``."""

    low: int
    high: int
    first: int
    is_whole: bool
    looked: int = 0


@dataclass
class SagaIndex:
    """The last entry of each saga of one journal, as far as it was read. One thread at a time reads
    (:meth:`read`); what is known may be asked from any.

    :param most: entries of each partition that are looked at.
    """

    journal: Journal
    most: int = DEFAULT_NEWEST
    max_sagas: int = MAX_SAGAS
    _sagas: dict[str, KnownSaga] = field(default_factory=dict)
    _parts: dict[int, _Part] = field(default_factory=dict)
    _order: dict[frozenset[Status] | None, Sequence[KnownSaga]] = field(default_factory=dict)
    """What was asked for since something changed: by statuses, in order."""
    _incarnation: str | None = None
    _is_full: bool = False

    # -- reading

    def read(self, seconds: float, *, new_seconds: float = 0.0) -> bool:
        """Read on, for so many real seconds, about; whether all that is to be known is (blocks).

        :param new_seconds: what was written since it was read last may take so many, if they are
            more.
        :raises LogError: the journal cannot be read.
        :raises NotFound: there is none.
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
            # The one of which least was read: their ends are of about the same time.
            self._read_older(*min(waiting, key=lambda each: each[1].looked))
        return all(map(self._is_done, self._parts.values()))

    def _begin(self) -> None:
        log, topic = self.journal.log, self.journal.topic
        incarnation, partitions = log.incarnation(topic), log.topic(topic).partitions
        if incarnation != self._incarnation:  # the topic was made anew
            self._sagas, self._parts, self._order = {}, {}, {}
            self._incarnation, self._is_full = incarnation, False
        for partition in range(partitions):
            if partition not in self._parts:
                first, end = log.watermarks(topic, partition)
                self._parts[partition] = _Part(end, end, first, first >= end)

    def _read_new(self, partition: int, part: _Part, deadline: float) -> None:
        """What was written since."""
        end = self.journal.log.watermarks(self.journal.topic, partition)[1]
        if end <= part.high:
            return
        count = 0
        for each in self.journal.read_range(partition, part.high, end):
            self._add(each.entry, partition, each.position.offset)
            part.high, count = each.position.offset + 1, count + 1
            if not count % 500 and time.monotonic() > deadline:
                break
        else:
            part.high = end
        part.looked += count
        self._bound()

    def _read_older(self, partition: int, part: _Part) -> None:
        """A little of what stands before what was read."""
        log, topic = self.journal.log, self.journal.topic
        size = min(CHUNK, max(1, self.most - part.looked))
        start = max(part.first, log.offset_before(topic, partition, part.low, size))
        count = 0
        for each in self.journal.read_range(partition, start, part.low):
            self._add(each.entry, partition, each.position.offset)
            count += 1
        part.is_whole = (
            start >= part.low
            or start <= part.first
            or log.offset_before(topic, partition, start, 1) >= start
        )
        part.low, part.looked = start, part.looked + count
        self._bound()

    def _is_done(self, part: _Part) -> bool:
        return part.is_whole or self._is_full or part.looked >= self.most

    def _add(self, entry: JournalEntry, partition: int, offset: int) -> None:
        known = self._sagas.get(entry.saga)
        if known is not None:
            if entry.n < known.number:
                return
            # Of entries with one number the first counts: the others were too late.
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

    def _bound(self) -> None:
        if len(self._sagas) <= self.max_sagas * 5 // 4:
            return
        # Stop reading what is older, and forget first those that nobody has to do anything about.
        self._is_full = True
        oldest = sorted(self._sagas.values(), key=lambda each: (not each.is_over, each.at))
        for each in oldest[: len(self._sagas) - self.max_sagas]:
            del self._sagas[each.id]
        self._order = {}

    # -- what is known

    def __len__(self) -> int:
        return len(self._sagas)

    @property
    def is_complete(self) -> bool:
        """Every entry that the log keeps was looked at."""
        return not self._is_full and all(part.is_whole for part in self._parts.values())

    @property
    def looked_at(self) -> int:
        """Entries that were looked at."""
        return sum(part.looked for part in self._parts.values())

    def find(self, id: str) -> KnownSaga | None:
        """A saga, if it is known."""
        return self._sagas.get(id)

    def counts(self) -> Counter[Status]:
        """How many sagas have each status."""
        return Counter({status: len(self.sagas(frozenset((status,)))) for status in STATUSES})

    def sagas(self, statuses: frozenset[Status] | None = None) -> Sequence[KnownSaga]:
        """Those that are known, of these statuses or all, the one that moved last first."""
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
    """An entry, and where it stands."""

    entry: JournalEntry
    partition: int
    offset: int


class SagaHistory(NamedTuple):
    """The entries of a saga.

    :param entries: by their numbers; one that was too late is left out. None at all: there is no
        such saga, as far as was looked.
    :param looked_at: entries of the journal that were looked through.
    :param is_complete: nothing of this saga is missing.
    """

    entries: list[PlacedEntry]
    looked_at: int
    is_complete: bool


def saga_history(
    journal: Journal, id: str, seconds: float, *, partition: int | None = None
) -> SagaHistory:
    """All entries of a saga, looked for from the end of the journal to its beginning, for so many
    real seconds at most (blocks).

    :param partition: where they stand, if that is known.
    :raises NotFound: there is no such journal.
    :raises LogError: it cannot be read.
    """
    deadline = time.monotonic() + seconds
    log, topic = journal.log, journal.topic
    partitions = range(log.topic(topic).partitions) if partition is None else (partition,)
    waiting = {each: log.watermarks(topic, each) for each in partitions}
    found: dict[int, PlacedEntry] = {}
    lowest: dict[int, int] = {}
    keys = (id.encode("utf-8", "surrogateescape"),)
    while waiting and 0 not in found and time.monotonic() < deadline:
        for each, (first, end) in list(waiting.items()):
            start = max(first, log.offset_before(topic, each, end, SCAN))
            for entry, position in journal.read_range(each, start, end, keys):
                # Of entries with one number the first counts, and this one stands before those
                # that were found in parts behind it.
                held = found.get(entry.n)
                if held is None or held.partition != each or position.offset < held.offset:
                    found[entry.n] = PlacedEntry(entry, each, position.offset)
            lowest[each] = start
            if start >= end or start <= first:
                del waiting[each]
            else:
                waiting[each] = (first, start)
            if found:  # its other entries stand in the same partition
                waiting = {each: waiting[each]} if each in waiting else {}
                break
    looked_at = sum(log.lag(topic, each, start) or 0 for each, start in lowest.items())
    entries = [found[number] for number in sorted(found)]
    return SagaHistory(entries, looked_at, 0 in found or not waiting)


TransitionKind = Literal[
    "started", "done", "failed", "gave-up", "undone", "not-undone", "stopped", "resumed",
    "abandoned", "completed", "compensated", "ended-failed", "moved",
]  # fmt: skip
"""What happened to a saga:

* ``started``; ``done``: steps are; ``failed``: an attempt did, and there will be another one;
* ``gave-up``: a step failed for good, and those before it are being undone;
* ``undone``: a step is; ``not-undone``: a compensation failed for good;
* ``stopped``, ``resumed``, ``abandoned``;
* ``completed``, ``compensated``, ``ended-failed``: it is over;
* ``moved``: something else.
"""


class Transition(NamedTuple):
    """Something that happened to a saga.

    :param number: of the entry that says so.
    :param at: when, in seconds since the epoch.
    :param steps: whom it concerns.
    :param error: what was raised, or the reason that was given.
    :param attempts: how often it was called, of what failed.
    :param due: when it is tried again.
    """

    kind: TransitionKind
    number: int
    at: float
    steps: tuple[str, ...] = ()
    error: str = ""
    attempts: int = 0
    due: float = 0.0


def transitions(entries: Iterable[JournalEntry]) -> list[Transition]:
    """What happened to a saga, from its entries in their order."""
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
        else:  # the log keeps none of those before it
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
"""How a step is: ``current``: it comes next, or is being undone; ``left-out``: it was never done,
and will not be."""


class PlannedStep(NamedTuple):
    """A step of a saga's plan."""

    name: str
    state: StepState


def planned_steps(
    entry: JournalEntry, history: Sequence[JournalEntry] = ()
) -> list[list[PlannedStep]]:
    """The plan in its groups (those of one group run side by side), and how each step is.

    :param history: the saga's entries, from which is known what was undone.
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
