"""Which journal entries are possible: every entry is validated as a whole before it counts.

Whoever may write to the journal's topic can write anything, so an entry is believed only where the
saga engine (:mod:`streams.patterns.saga.course`) could have written it: its plan names each step
once, its stage lies in that plan, the steps that are done are those before its stage, its counters
and times are in range. Every transition of such an entry moves the saga towards an end, so no entry
can make a saga go on for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeGuard

from streams.patterns.saga.entry import Entry, Failure

__all__ = ["LATEST", "LONGEST_WAIT", "MOST", "flaw", "is_saga_id"]

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


def flaw(entry: Entry) -> str:
    """Why no saga can stand like this, without quoting the entry; empty if one can."""
    if not is_saga_id(entry.saga):
        return f"its saga's ID is not a text of 1 to {_ID} printable characters"
    if not 0 <= entry.n <= MOST:
        return f"its number is not from 0 to {MOST}"
    if not 0 <= entry.at <= LATEST:
        return "the time it was made at is not between the years 1970 and 9999"
    if not 0 <= entry.due <= entry.at + LONGEST_WAIT:
        return f"it is due more than {LONGEST_WAIT / 86_400:.0f} days after it was made"
    return _plan(entry) or _status(entry) or _counts(entry)


def _plan(entry: Entry) -> str:
    names = [name for group in entry.plan for name in group]
    if not all(entry.plan) or len(set(names)) < len(names):
        return "its plan has a group without steps, or names a step twice"
    if not all(0 < len(name) <= _STEP for name in names):
        return f"its plan has a step whose name is not of 1 to {_STEP} characters"
    if not 0 <= entry.stage <= len(entry.plan):
        return "its stage is not in its plan"
    if entry.stage > entry.n:
        return "its stage is greater than its number, though no transition passes two stages"
    return ""


def _status(entry: Entry) -> str:
    """Whether the status fits what is done and what is left to be done."""
    way = entry.way
    if way == "":
        return f"it is {entry.status}, and does not say what its status was before"
    if entry.stood is not None and entry.stood not in _STOOD.get(entry.status, ()):
        return f"it is {entry.status}, and its status before that cannot have been {entry.stood}"
    done, left = entry.done, tuple(each.step for each in entry.uncompensated)
    if len(set(done + left)) < len(done) + len(left):
        return "it has a step twice in what is done and what could not be compensated"
    if not entry.plan:
        return "" if way == "running" and not done and not left else f"it is {way} without a plan"
    passed = {name for group in entry.plan[: entry.stage] for name in group}
    at_hand = set(entry.plan[entry.stage]) if entry.stage < len(entry.plan) else set[str]()
    if (entry.failure is None) != (way in ("running", "completed")):
        return f"it is {way}, and {'has no' if entry.failure is None else 'has a'} step that failed"
    if way == "completed":
        return "" if not at_hand and set(done) == passed and not left else "not all of it is done"
    if not at_hand:
        return f"it is {way}, and its stage is behind its plan"
    if way == "running":
        begun = set(done) - passed
        if not passed <= set(done) or not begun < at_hand or left:
            return "the steps that are done are not those before its stage"
        return ""
    if not set(done + left) <= passed | at_hand:
        return "it is to undo a step that it never came to"
    if bool(done) != (way == "compensating"):
        return f"it is {way}, and {'a' if done else 'no'} step is left to be undone"
    if way == "failed" and not left:
        return "it is failed, and no compensation failed"
    if way == "compensated" and left:
        return "it is compensated, and a compensation failed"
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
