"""What an error of a transaction means: a conflict, an outage, or a failure of the message."""

from __future__ import annotations

from typing import Any

from streams.databases.protocol import (
    Busy,
    Database,
    FailureKind,
    failure_of_answer,
    is_conflict_of_ours,
    sqlstate_of,
)
from streams.errors import error_chain


class Failures:
    """The meaning of errors in transactions of one database. An error is *ours* if a statement of
    the inbox raised it, and not the handler."""

    def __init__(self, database: Database[Any]) -> None:
        self._database = database

    def is_conflict(self, error: BaseException, *, ours: bool) -> bool:
        """Whether another transaction was in the way."""
        if self._database.classify(error) is FailureKind.CONFLICT:
            return True
        return ours and is_conflict_of_ours(error)

    def may_be_unable(self, error: Exception, *, ours: bool) -> bool:
        """Whether the database answers but cannot work now."""
        if self._database.classify(error) is FailureKind.CONFLICT:
            return False
        kinds = (FailureKind.UNABLE, FailureKind.UNREACHABLE) if ours else (FailureKind.UNABLE,)
        return any(
            failure_of_answer(each) in kinds for each in error_chain(error, with_suppressed=False)
        )

    def may_pass(self, error: Exception) -> bool:
        """Whether a statement of the inbox that failed may succeed later."""
        is_fault = self._database.classify(error) is FailureKind.FAULT
        return not is_fault or self.is_conflict(error, ours=True)

    def is_outage(self, error: Exception, tries: int) -> bool:
        """Whether an error that kept a transaction from beginning means that the database cannot be
        reached.

        :param tries: how often the transaction was tried.
        """
        if isinstance(error, Busy):
            return False
        if not self.is_conflict(error, ours=True):
            return True
        # For a server, a lock timeout is an answer. A file that another process locks for long
        # counts as unreachable.
        chain = error_chain(error, with_suppressed=False)
        return tries > 1 and not any(sqlstate_of(each) for each in chain)
