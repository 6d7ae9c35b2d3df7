"""The failures of a saga, and a step's exception when only its text is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streams.errors import StreamsError
from streams.text import error_text


class SagaError(StreamsError):
    """Base class of the exceptions that sagas raise."""


class UnknownSaga(SagaError, LookupError):
    """The log has no saga of that ID (any more)."""

    id: str | None = None
    """The ID; None: there are no sagas with that orchestrator's name at all."""


class StepTimeout(SagaError, TimeoutError):
    """A step or its compensation ran longer than its ``timeout``: it may have had its effect."""


class StepError(SagaError):
    """The exception of a step of a durable saga, as the log kept it: its type's name and its text.

    :param kind: the name of the exception's type.
    :param message: its text, cut to 1 KiB.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


class ContextConflict(SagaError):
    """Two steps of a parallel group gave one field of the context different values."""


@dataclass(frozen=True, slots=True)
class FailedCompensation:
    """A compensation that failed for good: the effect of its step is not undone.

    :param step: the step's name.
    :param error: the exception of its last attempt.
    :param attempts: how often it was called.
    """

    step: str
    error: BaseException
    attempts: int


class SagaFailedError(SagaError):
    """A step failed for good, and the steps before it were compensated.

    :param saga_id: which saga.
    :param step: the step that failed.
    :param cause: its exception; a :class:`StepError` if the saga is durable.
    :param failed_compensations: the compensations that failed, in the order they were tried.
    :param context: the context after the last compensation.
    """

    def __init__(
        self,
        saga_id: str,
        step: str,
        cause: BaseException,
        failed_compensations: tuple[FailedCompensation, ...] = (),
        context: Any = None,
    ) -> None:
        what = "everything before it was compensated"
        if failed_compensations:
            names = ", ".join(each.step for each in failed_compensations)
            what = f"not compensated: {names}"
        kind = "" if isinstance(cause, StepError) else type(cause).__name__
        why = ": ".join(part for part in (kind, error_text(cause)) if part)
        super().__init__(f"saga {saga_id}: step {step!r} failed: {why} ({what})")
        self.saga_id = saga_id
        self.step = step
        self.cause = cause
        self.failed_compensations = failed_compensations
        self.context = context


class SagaStoppedError(SagaError):
    """A durable saga was stopped by an error, or abandoned: it does not advance.

    :param saga_id: which saga.
    :param status: ``"stopped"`` or ``"abandoned"``.
    :param reason: why, in one line.
    """

    def __init__(self, saga_id: str, status: str, reason: str) -> None:
        super().__init__(f"saga {saga_id} is {status}{f': {reason}' if reason else ''}")
        self.saga_id = saga_id
        self.status = status
        self.reason = reason
