"""One entry of a saga's journal: the whole state of the saga after one transition.

Entry ``n + 1`` follows entry ``n``, and their IDs say so: another writer of an entry with that
number (a process that was thought dead, a concurrent command) is too late, and deduplication
drops its entry. So the first entry of a number in the log is the one that counts, for the owner
of the saga and for all readers of the journal.

On the wire an entry is a JSON object; a saga is started by writing ``{"saga": ID, "context":
{...}}`` under that ID as key.
"""

from __future__ import annotations

from typing import Any, Literal, Self, TypeVar

import msgspec

from streams.patterns.saga.errors import SagaError, StepError
from streams.text import error_text

Status = Literal[
    "running", "compensating", "completed", "compensated", "failed", "stopped", "abandoned"
]
"""The status of a saga:

* ``running``: forward; ``compensating``: backward;
* ``completed``: every step is done; ``compensated``: a step failed, those before it are undone;
* ``failed``: a step failed, and a compensation too: something is not undone;
* ``stopped``: it cannot go on with the code there is (a step is missing, say);
* ``abandoned``: by a command.
"""

ENDED_STATUSES = frozenset({"completed", "compensated", "failed", "stopped", "abandoned"})
"""Statuses in which no owner advances the saga without a command."""

FINAL_STATUSES = frozenset({"completed", "compensated", "abandoned"})
"""Statuses after which no entry follows."""

_MAX_MESSAGE_BYTES = 1 << 10


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last exception of a step or a compensation, and the number of calls until then."""

    step: str
    kind: str
    message: str = ""
    attempts: int = 1

    @property
    def error(self) -> StepError:
        """The failure as an exception."""
        return StepError(self.kind, self.message)


def make_failure(step: str, error: BaseException, attempts: int) -> Failure:
    """A failure to be stored: the type's name, and at most 1 KiB of its text."""
    message = error_text(error)
    data = message.encode("utf-8", "backslashreplace")
    if len(data) > _MAX_MESSAGE_BYTES:
        message = data[: _MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "..."
    else:
        message = data.decode()
    return Failure(step, type(error).__name__[:200], message, attempts)


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of a saga after one transition."""

    saga: str
    """The saga's ID."""
    n: int = 0
    """The number of transitions so far."""
    status: Status = "running"
    context: Any
    """The context in its stored form; see :mod:`streams.patterns.saga.contexts`."""
    plan: tuple[tuple[str, ...], ...] = ()
    """The steps by name, in groups of parallel ones, as they were when the saga began. Empty until
    a process that has the steps has handled the saga."""
    stage: int = 0
    """The index of the current group of the plan, while the saga goes forward."""
    done: tuple[str, ...] = ()
    """The steps that are done, and not compensated."""
    attempts: dict[str, int] = {}
    """The number of failed calls, by current step."""
    last: tuple[Failure, ...] = ()
    """The last failures of the current steps."""
    due: float = 0.0
    """The time before which it is not advanced, in seconds since the epoch."""
    failure: Failure | None = None
    """The failure because of which the saga goes backward."""
    uncompensated: tuple[Failure, ...] = ()
    """Compensations that failed for good, in the order they were tried."""
    error: str = ""
    """Why the saga was stopped or abandoned."""
    stood: Status | None = None
    """The status before the saga was stopped or abandoned."""
    at: float = 0.0
    """When this entry was made, in seconds since the epoch."""

    @property
    def has_ended(self) -> bool:
        """Whether the saga advances only on an explicit command."""
        return self.status in ENDED_STATUSES

    @property
    def is_final(self) -> bool:
        """Whether no entry follows."""
        return self.status in FINAL_STATUSES

    @property
    def message_id(self) -> str:
        """The message ID; the first entry with it in the log counts."""
        return f"{self.saga}/{self.n}"

    @property
    def effective_status(self) -> str:
        """The saga's status; if it was stopped or abandoned, its status before that (empty if
        unknown)."""
        return (self.stood or "") if self.status in ("stopped", "abandoned") else self.status

    @property
    def current_steps(self) -> tuple[str, ...]:
        """The steps to be executed next, or the one to be compensated."""
        status = self.effective_status
        if status == "running" and self.stage < len(self.plan):
            return tuple(name for name in self.plan[self.stage] if name not in self.done)
        if status == "compensating":
            return self.done[-1:]
        if status == "failed":
            return tuple(each.step for each in self.uncompensated)
        return ()

    @property
    def uncompensated_steps(self) -> tuple[str, ...]:
        """The steps whose effect would stay if the saga ended now: those that are done and not
        compensated, and those whose compensation failed; in the order of the plan."""
        remaining = {*self.done, *(each.step for each in self.uncompensated)}
        planned = tuple(name for group in self.plan for name in group if name in remaining)
        return planned + tuple(sorted(remaining.difference(planned)))

    def next_entry(self, made_at: float, **changes: Any) -> Self:
        """The entry that follows."""
        return msgspec.structs.replace(self, n=self.n + 1, at=made_at, **changes)

    def moved_on(self, made_at: float, **changes: Any) -> Self:
        """The entry that follows with other current steps, none of which was tried yet."""
        return self.next_entry(made_at, attempts={}, last=(), due=0.0, **changes)


class StoredEntry(JournalEntry, frozen=True, kw_only=True, omit_defaults=True):
    """An entry as the log stores it: its context is an encoded document within it."""

    context: msgspec.Raw


E = TypeVar("E", bound=JournalEntry)


def resume_entry(entry: E, made_at: float) -> E:
    """The entry that resumes a saga that was stopped or has failed.

    :raises SagaError: there is nothing to resume.
    """
    if entry.status == "stopped":
        status = entry.stood or "running"
        return entry.moved_on(made_at, status=status, error="", stood=None)
    if entry.status == "failed":
        # Compensations ran from the end, so the first that was tried is tried first again.
        failed_steps = tuple(each.step for each in reversed(entry.uncompensated))
        return entry.moved_on(made_at, status="compensating", done=failed_steps, uncompensated=())
    if entry.is_final:
        raise SagaError(f"saga {entry.saga} is {entry.status}: there is nothing to resume")
    raise SagaError(
        f"saga {entry.saga} is {entry.status}: its current owner resumes it automatically"
    )


def abandon_entry(entry: E, made_at: float, reason: str = "") -> E:
    """The entry that ends a saga: no further step, no further compensation.

    :raises SagaError: the saga is final.
    """
    if entry.is_final:
        raise SagaError(f"saga {entry.saga} is {entry.status} already")
    previous = entry.stood if entry.status == "stopped" else entry.status
    return entry.next_entry(made_at, status="abandoned", stood=previous, error=reason, due=0.0)
