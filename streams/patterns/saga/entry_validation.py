"""Validation of journal entries: every entry is validated as a whole before it counts.

Any process with write access to the journal's topic can write anything, so an entry is accepted
only if the saga engine (:mod:`streams.patterns.saga.engine`) could have written it: its plan names
each step once, its stage lies in that plan, the steps that are done are those before its stage, its
counters and times are in range. Every transition of such an entry moves the saga towards an end, so
no entry can make a saga go on forever.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TypeGuard

from streams.patterns.saga.journal_entry import JournalEntry, Status

StepNames = tuple[str, ...]
Plan = tuple[StepNames, ...]

MAX_COUNT = 1_000_000_000
"""The maximum of transitions of a saga, and of attempts of a step."""

MAX_TIME = 253_402_300_799.0
"""The last second of the year 9999, after which Python has no dates."""

MAX_WAIT = 31 * 86_400.0
"""The most seconds between an entry and its due time: a partition's position waits meanwhile."""

_MAX_ID_LENGTH = 200
"""The longest ID of a saga, in characters."""

_MAX_STEP_LENGTH = 200
"""The longest name of a step, in characters."""

_MAX_KIND_LENGTH = 200
_MAX_MESSAGE_LENGTH = 1 << 10
"""The longest text of a failure, in characters (``journal_entry.make_failure``)."""

_PREVIOUS_STATUSES = {
    "stopped": ("running", "compensating"),
    "abandoned": ("running", "compensating", "failed"),
}
"""The possible statuses before a saga was stopped or abandoned."""


def is_saga_id(id: object) -> TypeGuard[str]:
    """Whether a saga can have this ID."""
    return isinstance(id, str) and 0 < len(id) <= _MAX_ID_LENGTH and id.isprintable()


def invalid_reason(entry: JournalEntry, *, cache: bool = False) -> str:
    """Why no saga can have this entry, without quoting the entry; empty if one can.

    :param cache: the entry is small, and others like it will follow: the results for its plan
        and its steps are cached for them.
    """
    if not is_saga_id(entry.saga):
        return f"its saga's ID is not a text of 1 to {_MAX_ID_LENGTH} printable characters"
    if not 0 <= entry.n <= MAX_COUNT:
        return f"its number is not from 0 to {MAX_COUNT}"
    if not 0 <= entry.at <= MAX_TIME:
        return "the time it was made at is not between the years 1970 and 9999"
    if not 0 <= entry.due <= entry.at + MAX_WAIT:
        return f"it is due more than {MAX_WAIT / 86_400:.0f} days after it was made"
    if entry.stage > entry.n:
        return "its stage is greater than its number, though no transition passes two stages"
    uncompensated = tuple(each.step for each in entry.uncompensated) if entry.uncompensated else ()
    failed = entry.failure is not None
    check_steps = _invalid_steps if cache else _invalid_steps.__wrapped__
    reason = check_steps(
        entry.plan, entry.stage, entry.status, entry.stood, entry.done, uncompensated, failed
    )
    if reason or not (failed or uncompensated or entry.attempts or entry.last):
        return reason
    return _invalid_counts(entry)


@lru_cache(1_000)
def _invalid_steps(
    plan: Plan,
    stage: int,
    status: Status,
    previous_status: Status | None,
    done: StepNames,
    uncompensated: StepNames,
    has_failure: bool,
) -> str:
    """Why the plan is invalid, or the status does not fit the steps done and left; else empty.

    :param uncompensated: the steps that could not be compensated.
    :param has_failure: the entry says which step failed.
    """
    names = [name for group in plan for name in group]
    if not all(plan) or len(set(names)) < len(names):
        return "its plan has a group without steps, or names a step twice"
    if not all(0 < len(name) <= _MAX_STEP_LENGTH for name in names):
        return f"its plan has a step whose name is not of 1 to {_MAX_STEP_LENGTH} characters"
    if not 0 <= stage <= len(plan):
        return "its stage is not in its plan"
    is_halted = status in _PREVIOUS_STATUSES
    effective = previous_status if is_halted else status
    if effective is None:
        return f"it is {status}, and does not say what its status was before"
    if previous_status is not None and previous_status not in _PREVIOUS_STATUSES.get(status, ()):
        return f"it is {status}, and its status before that cannot have been {previous_status}"
    if len(set(done + uncompensated)) < len(done) + len(uncompensated):
        return "it has a step twice in what is done and what could not be compensated"
    if not plan:
        is_fresh = effective == "running" and not done and not uncompensated and not has_failure
        return "" if is_fresh else f"it is {effective} without a plan"
    earlier_steps = {name for group in plan[:stage] for name in group}
    current_steps = set(plan[stage]) if stage < len(plan) else set[str]()
    if has_failure == (effective in ("running", "completed")):
        return f"it is {effective}, and {'a' if has_failure else 'no'} step failed"
    if effective == "completed":
        is_complete = not current_steps and set(done) == earlier_steps and not uncompensated
        return "" if is_complete else "not all of it is done"
    if not current_steps:
        return f"it is {effective}, and its stage is behind its plan"
    if effective == "running":
        is_consistent = (
            earlier_steps <= set(done)
            and set(done) - earlier_steps < current_steps
            and not uncompensated
        )
        return "" if is_consistent else "the steps that are done are not those before its stage"
    if not set(done + uncompensated) <= earlier_steps | current_steps:
        return "it is to undo a step that it never came to"
    if bool(done) != (effective == "compensating"):
        return f"it is {effective}, and {'a' if done else 'no'} step is left to be undone"
    if effective != "compensating" and bool(uncompensated) != (effective == "failed"):
        return f"it is {effective}, and {'a' if uncompensated else 'no'} compensation failed"
    return ""


def _invalid_counts(entry: JournalEntry) -> str:
    """Why the failures are not of current steps, or their counts out of range; else empty."""
    names = {name for group in entry.plan for name in group}
    current_steps = (
        set(entry.current_steps)
        if entry.effective_status in ("running", "compensating")
        else set[str]()
    )
    if not entry.attempts.keys() <= current_steps:
        return "it counts attempts of a step that is not at hand"
    if not all(0 < count <= MAX_COUNT for count in entry.attempts.values()):
        return f"it counts attempts that are not from 1 to {MAX_COUNT}"
    if len(entry.last) > len(current_steps):
        return "it has more last failures than steps at hand"
    final = () if entry.failure is None else (entry.failure,)
    for each in (*entry.last, *entry.uncompensated, *final):
        if each.step not in names:
            return "it has a failure of a step that is not in its plan"
        if not 0 <= each.attempts <= MAX_COUNT:
            return f"it has a failure after attempts that are not from 0 to {MAX_COUNT}"
        if len(each.kind) > _MAX_KIND_LENGTH or len(each.message) > _MAX_MESSAGE_LENGTH:
            return f"it has a failure whose text is longer than {_MAX_MESSAGE_LENGTH} characters"
    return ""
