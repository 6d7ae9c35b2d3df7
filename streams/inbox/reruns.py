"""What follows a failed run of a handler's transaction: another run, or a failure of the message.

A transaction that met a conflict, or whose database failed, is run again in place a few times. The
message uses up an attempt only if the handler may be at fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from streams.databases.protocol import CRASHED, Database, FailureKind, sqlstate_of
from streams.errors import ConfigError, error_chain
from streams.health import InboxStats
from streams.inbox.companion import RunAgain
from streams.inbox.failures import Failures
from streams.inbox.outage import Reachability
from streams.inbox.partitions import Partitions
from streams.inbox.transactions import RolledBack
from streams.processing.outcomes import OwnershipLost, TransactionPostponed
from streams.text import describe_error

RUNS_IN_PLACE = 5
"""Runs of a transaction that conflicts with others, in all, before that counts as a failed
attempt."""

RUN_AGAIN_PAUSE = 0.02
"""Seconds before a transaction is run again because of :class:`RunAgain`."""


class FailedRun(NamedTuple):
    """A run of a handler's transaction that failed."""

    error: Exception
    number: int
    """The number of the run, from 1."""
    calls: int
    """How many of the runs called the handler."""
    called: bool
    """Whether this run called the handler."""
    ours: bool
    """Whether a statement of the inbox failed, and not the handler."""
    rolled_back: RolledBack
    waits: bool
    """Whether the run may wait for the transactions in its way."""
    committed_before: int
    """How many transactions the inbox had committed before the first run."""


class Reruns:
    """Decides about the failed runs of one processor.

    :param may_start: whether anything may be started now.
    """

    def __init__(
        self,
        database: Database[object],
        failures: Failures,
        partitions: Partitions,
        reachability: Reachability,
        stats: InboxStats,
        may_start: Callable[[], bool],
    ) -> None:
        self._database = database
        self._failures = failures
        self._partitions = partitions
        self._reachability = reachability
        self._stats = stats
        self._may_start = may_start

    def pause_after(self, failed: FailedRun) -> float | None:
        """Seconds after which the transaction is run again in place; None: the error counts as the
        message's.

        :raises TransactionPostponed: the message is retried later, and uses up no attempt.
        """
        error = failed.error
        if isinstance(error, (ConfigError, OwnershipLost, TransactionPostponed)):
            return None
        if isinstance(error, RunAgain):
            if not failed.waits or not self._may_start():
                raise TransactionPostponed(str(error)) from error
            return RUN_AGAIN_PAUSE
        failure = self._failure_of(failed)
        if failure is None:
            return None
        if failed.number >= RUNS_IN_PLACE:
            if not failed.called or (
                failure is FailureKind.UNREACHABLE and not self._is_handlers_fault(failed)
            ):
                raise TransactionPostponed(
                    f"{self._database.name}: {describe_error(error)}"
                ) from error
            return None
        self._stats.reruns += 1
        if failure is FailureKind.UNREACHABLE:
            return 0.0  # the next transaction waits until there can be one
        return random.random() * 0.01 * 2.0**failed.number

    def _failure_of(self, failed: FailedRun) -> FailureKind | None:
        """Conflict or unreachable; None: the error is the handler's own, or of another database
        that it uses."""
        if self._failures.is_conflict(failed.error, ours=failed.ours):
            return FailureKind.CONFLICT
        if failed.rolled_back.broken:
            # A server that ends a transaction which idled too long breaks its connection, too.
            idled = failed.rolled_back.seconds >= self._partitions.timeouts.idle
            return FailureKind.CONFLICT if idled else FailureKind.UNREACHABLE
        if failed.rolled_back.unable:
            self._reachability.note_unable(failed.error)
            return FailureKind.UNREACHABLE
        return None

    def _is_handlers_fault(self, failed: FailedRun) -> bool:
        """Whether the handler itself, with this message, breaks the connection or makes the server
        fail: each run called the handler, so the database was reachable each time."""
        if failed.number > failed.calls:
            return False
        if failed.rolled_back.broken:
            # Not if the server has crashed: another handler may have caused that.
            chain = error_chain(failed.error, with_suppressed=False)
            return all(sqlstate_of(each) != CRASHED for each in chain)
        # A server without room may still accept small statements. So other transactions must have
        # committed.
        return self._stats.committed > failed.committed_before
