"""Sagas: steps over several services that are either all done, or all undone.

A saga is a sequence of steps, each with a compensation that undoes it. There is no transaction
around them: when one fails, those before it are compensated in reverse. A saga is in memory, or
is durable: then the process that owns the saga ID's partition advances it, also after ``kill -9``,
and each step is called *at least* once, always under the same idempotency key.

:class:`SagaOrchestrator` is for applications. :class:`Journal` reads and writes an orchestrator's
journal on a log alone, and blocks; the command line uses it.
"""

from streams.patterns.saga.errors import (
    ContextConflict,
    FailedCompensation,
    SagaError,
    SagaFailedError,
    SagaStoppedError,
    StepError,
    StepTimeout,
    UnknownSaga,
)
from streams.patterns.saga.journal import DEFAULT_NEWEST, Journal, SagaListing, saga_name
from streams.patterns.saga.journal_entry import (
    Failure,
    JournalEntry,
    Status,
    abandon_entry,
    resume_entry,
)
from streams.patterns.saga.orchestrator import SagaOrchestrator, SagaStatus
from streams.patterns.saga.step import SagaStep, StepCall

__all__ = [
    "DEFAULT_NEWEST", "ContextConflict", "FailedCompensation", "Failure", "Journal",
    "JournalEntry", "SagaError", "SagaFailedError", "SagaListing", "SagaOrchestrator",
    "SagaStatus", "SagaStep", "SagaStoppedError", "Status", "StepCall", "StepError",
    "StepTimeout", "UnknownSaga", "abandon_entry", "resume_entry", "saga_name",
]  # fmt: skip
