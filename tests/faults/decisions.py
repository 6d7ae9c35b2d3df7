"""Whether what clients were told of their decisions fits the histories that stand in the log.

Each client writes down every call before it makes it and every answer after it has it
(:mod:`tests.faults.decider`), in ``CLOCK_MONOTONIC``, which all processes of a machine share. An
event says which decision it is of, so a history is its own order: whether the calls upon one
aggregate are *linearizable* need not be searched for. Every append and every answer that tells of a
version has its place in that order, and there is a moment for each, within its call, if and only if
none was called after one behind it had been answered.

What :func:`check` finds, beside that: a version that is missing or there twice; an acknowledged
decision that is lost, torn, doubled or another than was told; an event of a decision that was
refused, or of none that was ever called; a refusal, or a state, that the history never had.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

Outcome = Literal["decided", "looked", "failed", "unknown"]
"""``decided``: its events are in the history. ``looked``: nothing was appended, and the answer
tells of a version. ``failed``: nothing was appended. ``unknown``: it may have been."""


FOR_GOOD = "DecisionRefused"
"""The reason of a call whose decision is refused for good, under its cause."""


class Called(msgspec.Struct, tag="called", array_like=True, frozen=True):
    """A client is about to call.

    :param call: unique.
    :param decision: that its events carry; calls that name the same cause have the same.
    """

    at: float
    call: str
    decision: str
    aggregate: str


class Answered(msgspec.Struct, tag="answered", array_like=True, frozen=True):
    """A client was answered.

    :param version: of the decision's last event; or the one that was looked at.
    :param cents: the balance at that version; None: that was not told.
    :param events: how many of the decision's events were told.
    :param positions: where they stand.
    :param overdrawn: the amount that was refused, as more than the balance.
    :param expected: the version that was refused, as not the aggregate's.
    :param reason: for people.
    """

    at: float
    call: str
    outcome: Outcome
    version: int = 0
    cents: int | None = None
    events: int = 0
    positions: tuple[str, ...] = ()
    overdrawn: int | None = None
    expected: int | None = None
    reason: str = ""


class Figures(msgspec.Struct, tag="figures", array_like=True, frozen=True):
    """What a client has counted since it began."""

    conflicts: int
    retries: int
    caused: int
    snapshots: int


Line = Called | Answered | Figures

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Line)


class Recorder:
    """Writes down what one client does, each line by one write: no kill undoes it."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, line: Line) -> None:
        """It is safe from ``kill -9`` when this returns."""
        os.write(self._file, _encoder.encode(line) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_lines(data: bytes) -> list[Line]:
    """What was written down. A line that a kill cut off did not happen."""
    whole = data[: data.rfind(b"\n") + 1]
    return [_decoder.decode(line) for line in whole.splitlines()]


# -- what is checked -------------------------------------------------------------------------------


class Call(NamedTuple):
    """A call, and its answer if there ever was one."""

    called: Called
    answered: Answered | None

    @property
    def outcome(self) -> Outcome:
        """Whoever was killed may have appended."""
        return "unknown" if self.answered is None else self.answered.outcome

    @property
    def ended(self) -> float:
        """When its effect was there at the latest: what is unknown may come at any time."""
        if self.answered is None or self.answered.outcome == "unknown":
            return float("inf")
        return self.answered.at

    def __str__(self) -> str:
        return f"{self.called.call} ({self.called.decision} upon {self.called.aggregate})"


class StoredEvent(NamedTuple):
    """An event of a final history.

    :param event_index: its place among the events of its decision.
    :param event_count: how many these are.
    :param cents: what it adds to the balance.
    """

    version: int
    id: str
    decision: str
    event_index: int
    event_count: int
    cents: int
    position: str


History = Sequence[StoredEvent]


@dataclass
class Report:
    """What :func:`check` found."""

    anomalies: list[str] = field(default_factory=list)
    calls: int = 0
    answered: int = 0
    decided: int = 0
    looked: int = 0
    unknown: int = 0
    found_after_all: int = 0
    """Decisions in the history whose client was never told."""
    events: int = 0


def pair(lines: Iterable[Line]) -> list[Call]:
    """Calls, each with its answer."""
    called: list[Called] = []
    answers: dict[str, Answered] = {}
    for line in lines:
        if isinstance(line, Called):
            called.append(line)
        elif isinstance(line, Answered):
            assert line.call not in answers, f"{line.call} was answered twice"
            answers[line.call] = line
    names = [each.call for each in called]
    assert len(set(names)) == len(names), "two calls have one name"
    assert answers.keys() <= set(names), "an answer without a call"
    return [Call(each, answers.get(each.call)) for each in called]


def check(calls: Iterable[Call], histories: Mapping[str, History]) -> Report:
    """Look for whatever no correct log would have let happen."""
    report = Report()
    by_aggregate: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        by_aggregate[call.called.aggregate].append(call)
        report.calls += 1
        report.answered += call.answered is not None
        report.decided += call.outcome == "decided"
        report.looked += call.outcome == "looked"
        report.unknown += call.outcome == "unknown"
    for aggregate in sorted({*by_aggregate, *histories}):
        history = histories.get(aggregate, ())
        report.events += len(history)
        found = _AggregateCheck(aggregate, by_aggregate[aggregate], history)
        report.anomalies += found.anomalies
        report.found_after_all += found.found_after_all
    return report


class _Append(NamedTuple):
    """Events of one decision that stand beside each other."""

    decision: str
    events: Sequence[StoredEvent]

    @property
    def version(self) -> int:
        return self.events[-1].version


class _Place(NamedTuple):
    """Something that happened at one point of a history's order, at a moment between two."""

    order: int
    begun: float
    ended: float
    what: str


class _AggregateCheck:
    """One aggregate's calls and its history."""

    def __init__(self, aggregate: str, calls: Sequence[Call], history: History) -> None:
        self.anomalies: list[str] = []
        self.found_after_all = 0
        self._aggregate = aggregate
        self._history = history
        self._by_decision: dict[str, list[Call]] = defaultdict(list)
        for call in calls:
            self._by_decision[call.called.decision].append(call)
        self._appends = [
            _Append(decision, list(events))
            for decision, events in groupby(history, lambda each: each.decision)
        ]
        self._order_of = {each.decision: 2 * n + 1 for n, each in enumerate(self._appends)}
        """Appends have odd places; what is looked at stands between them."""
        self._orders = {0: 0} | {each.version: 2 * n + 2 for n, each in enumerate(self._appends)}
        """By version at which an append ends: the place of whoever looked at it."""
        self._balances = [0]
        for event in history:
            self._balances.append(self._balances[-1] + event.cents)
        self._check_versions()
        self._check_appends()
        places = self._place_appends()
        for call in calls:
            places += self._check_answer(call)
        self._check_time(places)

    def _wrong(self, text: str) -> None:
        self.anomalies.append(f"{self._aggregate}: {text}")

    def _check_versions(self) -> None:
        versions = [each.version for each in self._history]
        if versions != list(range(1, len(versions) + 1)):
            self._wrong(f"its versions are not 1 to {len(versions)}: {_shorten(versions)}")
        ids = [each.id for each in self._history]
        if len(set(ids)) != len(ids):
            self._wrong("an event ID is there twice")

    def _check_appends(self) -> None:
        seen: set[str] = set()
        for append in self._appends:
            if append.decision in seen:
                self._wrong(f"{append.decision} is there twice, or in two parts")
            seen.add(append.decision)
            indexes = [each.event_index for each in append.events]
            if indexes != list(range(append.events[0].event_count)):
                self._wrong(
                    f"{append.decision} has {append.events[0].event_count} events, and there are "
                    f"{_shorten(indexes)}"
                )
            tries = self._by_decision.get(append.decision)
            if tries is None:
                self._wrong(f"{append.decision} was never called")
                continue
            for_good = [
                each for each in tries if each.answered and each.answered.reason == FOR_GOOD
            ]
            if for_good:
                self._wrong(f"{append.decision} is there and was refused for good: {for_good[0]}")
            if not any(each.outcome in ("decided", "unknown") for each in tries):
                told = ", ".join(f"{each}: {each.outcome}" for each in tries)
                self._wrong(f"{append.decision} is there and was refused: {told}")
            elif not any(each.outcome == "decided" for each in tries):
                self.found_after_all += 1

    def _place_appends(self) -> list[_Place]:
        places = []
        for append in self._appends:
            tries = self._by_decision.get(append.decision, ())
            maybe = [each for each in tries if each.outcome in ("decided", "unknown")]
            if maybe:
                begun = min(each.called.at for each in maybe)
                ended = min(each.ended for each in maybe)
                order = self._order_of[append.decision]
                places.append(_Place(order, begun, ended, append.decision))
        return places

    # -- answers

    def _check_answer(self, call: Call) -> list[_Place]:
        """What is wrong with an answer by itself, and its place if it tells of a version."""
        answer = call.answered
        if answer is None or answer.outcome in ("failed", "unknown"):
            return []
        if answer.outcome == "decided":
            self._check_decided(call, answer)
            return []
        order = self._orders.get(answer.version)
        if order is None:
            self._wrong(f"{call} saw version {answer.version}, at which no append ends")
            return []
        balance = self._balances[answer.version]
        if answer.cents is not None and answer.cents != balance:
            self._wrong(f"{call} saw {answer.cents} at version {answer.version}, not {balance}")
        if answer.overdrawn is not None and answer.overdrawn <= balance:
            self._wrong(
                f"{call} was refused {answer.overdrawn}, and version {answer.version} has {balance}"
            )
        if answer.expected is not None and answer.expected == answer.version:
            self._wrong(f"{call} was refused version {answer.expected}, which it was at")
        if self._order_of.get(call.called.decision, order) < order:
            self._wrong(f"{call} was refused although its own events stood there")
        return [_Place(order, call.called.at, answer.at, str(call))]

    def _check_decided(self, call: Call, answer: Answered) -> None:
        order = self._order_of.get(call.called.decision)
        if order is None:
            self._wrong(f"{call} was acknowledged as version {answer.version}, and is lost")
            return
        append = self._appends[order // 2]
        if append.version != answer.version or len(append.events) != answer.events:
            self._wrong(
                f"{call} was told of {answer.events} events up to version {answer.version}; there "
                f"are {len(append.events)} up to {append.version}"
            )
        elif answer.cents is not None and answer.cents != self._balances[answer.version]:
            self._wrong(
                f"{call} was told of {answer.cents} at version {answer.version}, not "
                f"{self._balances[answer.version]}"
            )
        positions = tuple(each.position for each in append.events)
        if answer.positions and answer.positions != positions:
            self._wrong(f"{call} was told {answer.positions}; its events are at {positions}")

    # -- time

    def _check_time(self, places: list[_Place]) -> None:
        """Whether there is a moment for each, within its call, in the order of the history.

        There is, unless something was answered before another was called that comes ahead of it.
        """
        latest = _Place(-1, float("-inf"), float("-inf"), "")
        for _, group in groupby(sorted(places), lambda each: each.order):
            same = list(group)
            for place in same:
                if place.ended < latest.begun:
                    self._wrong(
                        f"{place.what} was over {latest.begun - place.ended:g} s before "
                        f"{latest.what} began, and stands behind it in the history"
                    )
            latest = max(latest, *same, key=lambda each: each.begun)


def _shorten(values: Sequence[int]) -> str:
    return f"{values[:20]}{'...' if len(values) > 20 else ''}"


# -- money -----------------------------------------------------------------------------------------

OUT = "/out"
IN = "/in"
"""How the decisions end that are the two halves of a transfer, with the same name before it."""


def check_money(histories: Mapping[str, History], told: Mapping[str, int]) -> list[str]:
    """What is wrong with the money, once every transfer that began was finished.

    :param told: the balances, as the aggregates were loaded.
    """
    anomalies = []
    outside = 0
    moved: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for aggregate, history in histories.items():
        balance = sum(each.cents for each in history)
        if balance != told[aggregate]:
            anomalies.append(f"{aggregate} was loaded with {told[aggregate]}, and has {balance}")
        lowest, at = 0, 0
        for event in history:
            at += event.cents
            lowest = min(lowest, at)
            name, slash, half = event.decision.rpartition("/")
            if slash:
                moved[name][half] += event.cents
            else:
                outside += event.cents
        if lowest < 0:
            anomalies.append(f"{aggregate} was overdrawn: {lowest}")
    for name, halves in moved.items():
        if sum(halves.values()) or len(halves) != 2:
            anomalies.append(f"transfer {name} is not whole: {dict(halves)}")
    if sum(told.values()) != outside:
        anomalies.append(f"{outside} went in, and {sum(told.values())} are there")
    return anomalies


def now() -> float:
    """What all processes of this machine tell the time by."""
    return time.monotonic()
