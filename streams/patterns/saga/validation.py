"""Which journal entries are possible: every entry is validated as a whole before it counts.

Whoever may write to the journal's topic can write anything, so an entry is believed only where the
saga engine (:mod:`streams.patterns.saga.course`) could have written it: its plan names each step
once, its stage lies in that plan, the steps that are done are those before its stage, its counters
and times are in range. Every transition of such an entry moves the saga towards an end, so no entry
can make a saga go on for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TypeGuard

from streams.patterns.saga.entry import Entry, Failure, Status

__all__ = ["LATEST", "LONGEST_WAIT", "MOST", "flaw", "is_saga_id"]

Steps = tuple[str, ...]
Plan = tuple[Steps, ...]

MOST = 1_000_000_000
"""Transitions of a saga, and attempts of a step, at most."""

LATEST = 253_402_300_799.0
"""The last second of the year 9999, after which Python has no dates."""

LONGEST_WAIT = 31 * 86_400.0
"""Seconds between an entry and when it is due, at most: a partition's position waits meanwhile."""

_ID = 200
"""Characters of a saga's ID, at most."""

_STEP = 200
"""Characters of a step's name, at most."""

_KIND = 200
_MESSAGE = 1 << 10
"""Characters of the text of a failure, at most (``entry.failure``)."""

_STOOD = {
    "stopped": ("running", "compensating"),
    "abandoned": ("running", "compensating", "failed"),
}
"""What the status was before a saga was stopped or abandoned."""


def is_saga_id(id: object) -> TypeGuard[str]:
    """Whether a saga can have this ID."""
    return isinstance(id, str) and 0 < len(id) <= _ID and id.isprintable()


def flaw(entry: Entry, *, remember: bool = False) -> str:
    """Why no saga can stand like this, without quoting the entry; empty if one can.

    :param remember: the entry is small, and others like it will come: what is found of its plan and
        its steps is kept for them.
    """
    if not is_saga_id(entry.saga):
        return f"its saga's ID is not a text of 1 to {_ID} printable characters"
    if not 0 <= entry.n <= MOST:
        return f"its number is not from 0 to {MOST}"
    if not 0 <= entry.at <= LATEST:
        return "the time it was made at is not between the years 1970 and 9999"
    if not 0 <= entry.due <= entry.at + LONGEST_WAIT:
        return f"it is due more than {LONGEST_WAIT / 86_400:.0f} days after it was made"
    if entry.stage > entry.n:
        return "its stage is greater than its number, though no transition passes two stages"
    left = tuple(each.step for each in entry.uncompensated) if entry.uncompensated else ()
    failed = entry.failure is not None
    judge = _steps if remember else _steps.__wrapped__
    reason = judge(entry.plan, entry.stage, entry.status, entry.stood, entry.done, left, failed)
    if reason or not (failed or left or entry.attempts or entry.last):
        return reason
    return _counts(entry)


@lru_cache(1_000)
def _steps(
    plan: Plan,
    stage: int,
    status: Status,
    stood: Status | None,
    done: Steps,
    left: Steps,
    failed: bool,
) -> str:
    """Whether the plan is one, and the status fits what is done and what is left to be done.

    :param left: the steps that could not be compensated.
    :param failed: the entry says which step failed.
    """
    names = [name for group in plan for name in group]
    if not all(plan) or len(set(names)) < len(names):
        return "its plan has a group without steps, or names a step twice"
    if not all(0 < len(name) <= _STEP for name in names):
        return f"its plan has a step whose name is not of 1 to {_STEP} characters"
    if not 0 <= stage <= len(plan):
        return "its stage is not in its plan"
    still = status in _STOOD
    way = stood if still else status
    if way is None:
        return f"it is {status}, and does not say what its status was before"
    if stood is not None and stood not in _STOOD.get(status, ()):
        return f"it is {status}, and its status before that cannot have been {stood}"
    if len(set(done + left)) < len(done) + len(left):
        return "it has a step twice in what is done and what could not be compensated"
    if not plan:
        begun = way == "running" and not done and not left and not failed
        return "" if begun else f"it is {way} without a plan"
    passed = {name for group in plan[:stage] for name in group}
    at_hand = set(plan[stage]) if stage < len(plan) else set[str]()
    if failed == (way in ("running", "completed")):
        return f"it is {way}, and {'a' if failed else 'no'} step failed"
    if way == "completed":
        return "" if not at_hand and set(done) == passed and not left else "not all of it is done"
    if not at_hand:
        return f"it is {way}, and its stage is behind its plan"
    if way == "running":
        whole = passed <= set(done) and set(done) - passed < at_hand and not left
        return "" if whole else "the steps that are done are not those before its stage"
    if not set(done + left) <= passed | at_hand:
        return "it is to undo a step that it never came to"
    if bool(done) != (way == "compensating"):
        return f"it is {way}, and {'a' if done else 'no'} step is left to be undone"
    if way != "compensating" and bool(left) != (way == "failed"):
        return f"it is {way}, and {'a' if left else 'no'} compensation failed"
    return ""


def _counts(entry: Entry) -> str:
    """Whether the failures are of steps at hand, and counted in range."""
    names = {name for group in entry.plan for name in group}
    at_hand = set(entry.steps) if entry.way in ("running", "compensating") else set[str]()
    if not entry.attempts.keys() <= at_hand:
        return "it counts attempts of a step that is not at hand"
    if not all(0 < count <= MOST for count in entry.attempts.values()):
        return f"it counts attempts that are not from 1 to {MOST}"
    told: list[Failure] = [*entry.last, *entry.uncompensated]
    if len(entry.last) > len(at_hand):
        return "it has more last failures than steps at hand"
    return _failures(told if entry.failure is None else [*told, entry.failure], names)


def _failures(failures: Iterable[Failure], names: set[str]) -> str:
    for each in failures:
        if each.step not in names:
            return "it has a failure of a step that is not in its plan"
        if not 0 <= each.attempts <= MOST:
            return f"it has a failure after attempts that are not from 0 to {MOST}"
        if len(each.kind) > _KIND or len(each.message) > _MESSAGE:
            return f"it has a failure whose text is longer than {_MESSAGE} characters"
    return ""
