"""Transactions for messages: each begins once there can be one.

While the database cannot be reached, handlers wait in place, so the processor stops and no message
uses up an attempt. The wait ends when the database answers, when nothing may be started any more,
or when the message's partition is another member's.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from streams.databases.protocol import DialectName, Steps
from streams.errors import find_config_error
from streams.inbox.calls import Access, AnySession, Calls, execute_steps
from streams.inbox.failures import Failures
from streams.inbox.opening import Opening
from streams.inbox.outage import RETRY_PAUSE, Reachability
from streams.inbox.partitions import Partitions
from streams.message import Message
from streams.processing.outcomes import TransactionPostponed
from streams.text import describe_error

R = TypeVar("R")


class RolledBack(NamedTuple):
    """How a transaction stood that was rolled back because of an error."""

    broken: bool
    """Whether the connection was lost, whatever error a handler raised for it."""
    unable: bool
    """Whether the database answers but cannot work."""
    seconds: float
    """How long the transaction took."""


class Transaction(Generic[R]):
    """A transaction for a message.

    :param steps: the statements with which it was begun.
    """

    __slots__ = ("_access", "_began", "_failures", "_reachability", "_session", "_steps")

    def __init__(
        self,
        access: Access,
        failures: Failures,
        reachability: Reachability,
        session: AnySession,
        steps: Steps[R],
    ) -> None:
        self._access = access
        self._failures = failures
        self._reachability = reachability
        self._session = session
        self._steps = steps
        self._began = time.monotonic()

    @property
    def connection(self) -> Any:
        """The handler's ``message.transaction``."""
        return self._session.connection

    def run_begun(self) -> Calls[R]:
        """Run the statements with which it was begun."""
        return self._access.run_begun(self._session, self._steps)

    def run(self, steps: Steps[R]) -> Calls[R]:
        """Run other statements."""
        return execute_steps(self._session, steps)

    def commit(self) -> Calls[None]:
        """Commit."""
        yield self._session.commit()
        self._reachability.note_committed(self._began)

    def roll_back(self) -> Calls[None]:
        """Roll back, without an error."""
        yield self._session.rollback()

    def end_unchanged(self) -> Calls[None]:
        """Roll back, as there is nothing to write."""
        yield self._session.rollback()
        self._reachability.note_unchanged()

    def roll_back_after(self, error: BaseException, *, ours: bool) -> Calls[RolledBack]:
        """Roll back because of an error.

        :param ours: a statement of the inbox raised it, and not the handler.
        """
        session = self._session
        broken = session.is_broken()
        unable = (
            isinstance(error, Exception)
            and not broken
            and self._failures.may_be_unable(error, ours=ours)
            and (ours or (yield from self._has_failed()))
        )
        yield session.rollback(close=unable)
        return RolledBack(broken, unable, time.monotonic() - self._began)

    def _has_failed(self) -> Calls[bool]:
        """Whether a statement failed here, and not in another database that the handler uses."""
        try:
            failed: bool = yield self._session.has_failed()
        except Exception:  # it cannot be told
            return False
        return failed


class Transactions:
    """Begins the transactions of one processor.

    :param may_start: whether anything may be started now.
    """

    def __init__(
        self,
        access: Access,
        failures: Failures,
        opening: Opening,
        partitions: Partitions,
        reachability: Reachability,
        may_start: Callable[[], bool],
    ) -> None:
        self._access = access
        self._database = access.database
        self._failures = failures
        self._opening = opening
        self._partitions = partitions
        self._reachability = reachability
        self._may_start = may_start

    def begin(
        self,
        message: Message[Any],
        steps_of: Callable[[DialectName], Steps[R]],
        *,
        patience: float,
    ) -> Calls[Transaction[R]]:
        """A new transaction for a message; waits while the database cannot be used.

        :param steps_of: its first statements; :meth:`Transaction.run_begun` runs them.
        :param patience: seconds that may be waited.
        :raises OwnershipLost: the message must not be handled any more.
        :raises TransactionPostponed: nothing is to be started now.
        :raises ConfigError: the database cannot be used as it is.
        """
        give_up = time.monotonic() + patience
        tries = 0

        def left() -> float | None:
            """The remaining patience in seconds, if it bounds a single call. (A handler's timeout
            would count a longer wait as a failure of the message.)"""
            return max(0.0, give_up - time.monotonic()) if 0 < patience < math.inf else None

        while True:
            tries += 1
            self._partitions.check_owned(message)
            refusal = self._reachability.refusal()
            if refusal is not None:
                self._check_waiting(refusal, give_up)
            else:
                try:
                    if not self._opening.is_ready:
                        yield self._access.run_within(self._opening.make_ready(), left())
                    self._partitions.check_begun(message)
                    steps = steps_of(self._database.dialect)
                    session: AnySession = yield self._access.begin_with(steps, left())
                except Exception as error:
                    self._after(error, give_up, tries)
                else:
                    self._reachability.note_begun()
                    return Transaction(
                        self._access, self._failures, self._reachability, session, steps
                    )
            yield self._access.sleep(RETRY_PAUSE * (0.5 + random.random() / 2))

    def _after(self, error: Exception, give_up: float, tries: int) -> None:
        """Decide about an error that kept a transaction from beginning; return: try again. The
        error is never counted against the message.

        :raises ConfigError: the error is one, or was caused by one.
        :raises TransactionPostponed: the error is one, the patience is used up, or nothing is to
            be started now.
        """
        if find_config_error(error) is not None or isinstance(error, TransactionPostponed):
            raise error
        if self._failures.is_outage(error, tries):
            self._reachability.note_outage(error)
        self._check_waiting(error, give_up)

    def _check_waiting(self, error: Exception, give_up: float) -> None:
        """Return while it is worth trying again.

        :raises TransactionPostponed: the patience is used up, or nothing is to be started now.
        """
        if not self._may_start():
            raise TransactionPostponed("no transaction may begin now") from error
        if time.monotonic() >= give_up:
            raise TransactionPostponed(f"{self._database.name}: {describe_error(error)}") from error
