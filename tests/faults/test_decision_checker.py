"""The checker of decisions: it passes what a correct log does, and finds what no log may do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.decisions import (
    FOR_GOOD,
    Answered,
    Call,
    Called,
    StoredEvent,
    check,
    check_money,
    pair,
    read_lines,
)

A = "a"


def event(version: int, decision: str, index: int = 0, count: int = 1, cents: int = 1) -> Any:
    return StoredEvent(version, f"id-{version}", decision, index, count, cents, f"t/0/{version}")


def decided(
    name: str, begun: float, ended: float, version: int, events: int = 1, **what: Any
) -> Call:
    answered = Answered(ended, name, "decided", version, events=events, **what)
    return Call(Called(begun, name, name, A), answered)


def looked(name: str, begun: float, ended: float, version: int, **what: Any) -> Call:
    answered = Answered(ended, name, "looked", version, **what)
    return Call(Called(begun, name, name, A), answered)


def killed(name: str, begun: float) -> Call:
    return Call(Called(begun, name, name, A), None)


def failed(name: str, begun: float, ended: float) -> Call:
    return Call(Called(begun, name, name, A), Answered(ended, name, "failed"))


def anomalies(calls: Sequence[Call], *history: StoredEvent) -> list[str]:
    return check(calls, {A: history}).anomalies


HISTORY = [event(1, "x"), event(2, "y", 0, 2), event(3, "y", 1, 2), event(4, "z")]
CALLS = [
    decided("x", 0, 1, 1, positions=("t/0/1",), cents=1),
    decided("y", 2, 3, 3, events=2, positions=("t/0/2", "t/0/3"), cents=3),
    decided("z", 4, 5, 4, cents=4),
    looked("l", 2, 5, 3, cents=3, overdrawn=4),
    looked("w", 0, 5, 1, expected=3),
    killed("k", 3),
    failed("f", 3, 4),
]


def test_what_is_right_is_passed() -> None:
    report = check(CALLS, {A: HISTORY})
    assert report.anomalies == []
    assert (report.calls, report.answered, report.decided, report.looked, report.unknown) == (
        7, 6, 3, 2, 1,
    )  # fmt: skip
    assert check([killed("x", 0)], {A: [event(1, "x")]}).found_after_all == 1
    assert check([killed("x", 0)], {A: []}).anomalies == []


@pytest.mark.parametrize(
    ("what", "calls", "history", "found"),
    [
        ("an acknowledged decision is lost", CALLS, HISTORY[:3], "is lost"),
        ("a refused one is there", CALLS, [*HISTORY, event(5, "l")], "was refused"),
        ("a failed one is there", CALLS, [*HISTORY, event(5, "f")], "was refused"),
        ("one that was never called is there", CALLS, [*HISTORY, event(5, "?")], "never called"),
        ("half an append", CALLS[2:], [event(1, "z"), event(2, "k", 0, 2)], "has 2 events"),
        ("its second half alone", CALLS[5:], [event(1, "k", 1, 2)], "has 2 events"),
        (
            "twice",
            [decided("x", 0, 1, 1), decided("y", 0, 1, 2)],
            [event(1, "x"), event(2, "y"), event(3, "x")],
            "twice, or in two parts",
        ),
        (
            "twice in a row",
            [decided("x", 0, 1, 1)],
            [event(1, "x"), event(2, "x")],
            "has 1 events",
        ),
        (
            "another's event within an append",
            [decided("x", 0, 9, 3, events=2), decided("y", 0, 9, 2)],
            [event(1, "x", 0, 2), event(2, "y"), event(3, "x", 1, 2)],
            "twice, or in two parts",
        ),
        ("a version is missing", CALLS[:1], [event(1, "x"), event(3, "k")], "are not 1 to 2"),
        ("another version was told", [decided("x", 0, 1, 2)], HISTORY[:1], "was told of 1 events"),
        ("other events were told", [decided("x", 0, 1, 1, 2)], HISTORY[:1], "was told of 2 events"),
        ("another state was told", [decided("x", 0, 1, 1, cents=7)], HISTORY[:1], "told of 7"),
        (
            "another position was told",
            [decided("x", 0, 1, 1, positions=("t/0/9",))],
            HISTORY[:1],
            "its events are at",
        ),
        ("half an append was seen", [*CALLS, looked("h", 2, 3, 2)], HISTORY, "no append ends"),
        ("a version that never was", [*CALLS, looked("h", 2, 3, 9)], HISTORY, "no append ends"),
        ("a state that never was", [*CALLS, looked("h", 2, 3, 3, cents=2)], HISTORY, "saw 2"),
        (
            "a refusal that was wrong",
            [*CALLS, looked("h", 2, 3, 3, overdrawn=3)],
            HISTORY,
            "was refused 3",
        ),
        (
            "a refused version that was right",
            [*CALLS, looked("h", 2, 3, 3, expected=3)],
            HISTORY,
            "which it was at",
        ),
        (
            "a stale refusal",  # x and y were acknowledged before it was called
            [*CALLS, looked("h", 4, 5, 1, overdrawn=2)],
            HISTORY,
            "stands behind it",
        ),
        (
            "a refusal by what came later",
            [*CALLS, looked("h", 0, 1, 4)],
            HISTORY,
            "stands behind it",
        ),
        (
            "against real time",
            [decided("x", 2, 3, 1), decided("y", 0, 1, 2)],
            [event(1, "x"), event(2, "y")],
            "stands behind it",
        ),
        (
            "two who looked against real time",
            [decided("x", 0, 9, 1), looked("new", 1, 2, 1), looked("old", 3, 4, 0)],
            [event(1, "x")],
            "stands behind it",
        ),
        (
            "a decision that was refused for good",
            [
                decided("x", 0, 1, 1),
                Call(Called(0, "too", "x", A), Answered(3, "too", "failed", reason=FOR_GOOD)),
            ],
            [event(1, "x")],
            "refused for good",
        ),
        (
            "a refusal although its cause had been decided",
            [
                decided("x", 0, 1, 1),
                Call(Called(2, "again", "x", A), Answered(3, "again", "looked", 1)),
            ],
            [event(1, "x")],
            "its own events stood there",
        ),
    ],
)
def test_what_is_wrong_is_found(
    what: str, calls: Sequence[Call], history: Sequence[StoredEvent], found: str
) -> None:
    names = {each.called.decision for each in calls}
    others = [killed(each, 0) for each in ("k", "x", "y", "z") if each not in names]
    assert any(found in each for each in anomalies([*calls, *others], *history)), what


def test_a_cause_may_be_refused_before_it_is_decided() -> None:
    first = Call(Called(0, "c1", "x", A), Answered(1, "c1", "looked", 0))
    second = Call(Called(2, "c2", "x", A), Answered(3, "c2", "decided", 1, events=1))
    third = Call(Called(4, "c3", "x", A), Answered(5, "c3", "decided", 1, events=1))
    assert anomalies([first, second, third], event(1, "x")) == []


# -- against a search ------------------------------------------------------------------------------


def has_moments(places: Sequence[tuple[int, float, float]]) -> bool:
    """Whether there is an order of all that keeps to the history's and to real time: tried out."""
    return any(
        all(one[0] <= other[0] and not other[2] < one[1]
            for n, one in enumerate(order) for other in order[n + 1 :])
        for order in permutations(places)
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(0, 6)), max_size=3),
)
def test_time_is_judged_as_a_search_would(
    appends: list[tuple[int, int]], looks: list[tuple[int, int, int]]
) -> None:
    calls, places, history = [], [], []
    for version, (one, other) in enumerate(appends, 1):
        begun, ended = sorted((one, other))
        calls.append(decided(f"d{version}", begun, ended, version))
        history.append(event(version, f"d{version}"))
        places.append((2 * version - 1, begun, ended))
    for number, (wanted, one, other) in enumerate(looks):
        version, (begun, ended) = min(wanted, len(appends)), sorted((one, other))
        calls.append(looked(f"l{number}", begun, ended, version))
        places.append((2 * version, begun, ended))
    assert (anomalies(calls, *history) == []) == has_moments(places)


# -- what a correct log does -----------------------------------------------------------------------


def run_correctly(random: Random, steps: int) -> tuple[list[Call], list[StoredEvent]]:
    """Clients upon one account, each call with a moment of its own within it."""
    calls: list[Call] = []
    history: list[StoredEvent] = []
    for number in range(steps):
        moment = 10.0 * (number + 1)
        begun = moment - random.choice([0, 1, 25])
        ended = moment + random.choice([0, 1, 25])
        name = f"c{number}"
        called = Called(begun, name, name, A)
        balance = sum(each.cents for each in history)
        kind = random.randrange(6)
        if kind == 0:
            answer = Answered(ended, name, "looked", len(history), cents=balance)
            calls.append(Call(called, answer))
            continue
        if kind == 1:
            calls.append(Call(called, Answered(ended, name, "failed")))
            continue
        count = random.randrange(1, 4)
        happens = kind > 2 or random.random() < 0.5
        if happens:
            history += [
                event(len(history) + 1 + index, name, index, count, random.randrange(-5, 9))
                for index in range(count)
            ]
        if kind == 2:
            answered = Answered(ended, name, "unknown") if random.random() < 0.5 else None
        else:
            balance = sum(each.cents for each in history)
            answered = Answered(
                ended, name, "decided", len(history), cents=balance, events=count,
                positions=tuple(each.position for each in history[-count:]),
            )  # fmt: skip
        calls.append(Call(called, answered))
    random.shuffle(calls)
    return calls, history


@given(st.integers(0, 2**32), st.integers(0, 30))
def test_what_a_correct_log_does_is_passed(seed: int, steps: int) -> None:
    calls, history = run_correctly(Random(seed), steps)
    assert anomalies(calls, *history) == []


def numbered(history: Sequence[StoredEvent]) -> list[StoredEvent]:
    """The same events, with versions as they stand now."""
    return [each._replace(version=n) for n, each in enumerate(history, 1)]


@given(st.integers(0, 2**32), st.data())
def test_a_history_that_was_tampered_with_is_not(seed: int, data: st.DataObject) -> None:
    random = Random(seed)
    calls, history = run_correctly(random, 20)
    told = [each for each in calls if each.outcome == "decided"]
    if not told:
        return
    victim = data.draw(st.sampled_from(told))
    name = victim.called.decision
    own = [n for n, each in enumerate(history) if each.decision == name]
    kind = data.draw(st.sampled_from(["lose", "tear", "double", "phantom", "stale", "swap"]))
    if kind == "lose":
        history = numbered([each for each in history if each.decision != name])
    elif kind == "tear":
        history = numbered(history[: own[-1]] + history[own[-1] + 1 :])
    elif kind == "double":
        history = numbered([*history, *(history[n] for n in own)])
    elif kind == "phantom":
        calls = [
            Call(each.called, Answered(each.answered.at, name, "failed"))
            if each is victim and each.answered
            else each
            for each in calls
        ]
    elif kind == "stale":
        # It is called when the victim had been answered, and told of what was before that.
        assert victim.answered is not None
        after = victim.answered.at
        calls.append(looked("stale", after + 1, after + 2, own[0]))
    else:
        # The last append goes to the front: it is told another version at least.
        last = [each for each in history if each.decision == history[-1].decision]
        rest = [each for each in history if each.decision != history[-1].decision]
        if not any(each.decision == name for each in rest):
            return
        history = numbered([*last, *rest])
    assert anomalies(calls, *history) != []


# -- money, files ----------------------------------------------------------------------------------


def test_money_is_counted() -> None:
    one = [event(1, "in", cents=10), event(2, "t/out", cents=-4)]
    other = [event(1, "t/in", cents=4)]
    right = {"a": one, "b": other}
    assert check_money(right, {"a": 6, "b": 4}) == []
    assert check_money(right, {"a": 6, "b": 5})
    assert check_money({"a": one, "b": []}, {"a": 6, "b": 0}) == [
        "transfer t is not whole: {'out': -4}",
        "10 went in, and 6 are there",
    ]
    assert check_money({"a": one[1:], "b": other}, {"a": -4, "b": 4}) == ["a was overdrawn: -4"]


def test_what_a_kill_has_cut_off_did_not_happen() -> None:
    lines = read_lines(b'["called",1.0,"c","c","a"]\n["answered",2.0,"c","failed"]\n["called",3')
    (call,) = pair(lines)
    assert (call.called.at, call.outcome) == (1.0, "failed")
    (unanswered,) = pair(lines[:1])
    assert (unanswered.outcome, unanswered.ended) == ("unknown", float("inf"))
    with pytest.raises(AssertionError, match="without a call"):
        pair(lines[1:])
