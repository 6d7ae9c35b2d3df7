"""Handlers inside transactions.

Each call of a handler is a transaction: the message is *taken* (recorded as handled, unless it
was), the handler runs, and both are committed. On a failure the record is rolled back, too. A
transaction that conflicted with another one, or lost its connection, even in its COMMIT, is run
again: if it was committed after all, the record is found then.

The results of a handler with ``to=`` are written into an outbox, in the same transaction
(:mod:`streams.inbox.results`); the executor publishes nothing then.

A batch is one transaction. Its handler does not get the messages that were handled before. If it
fails, all of it is rolled back and its messages are handled one by one, even if it raised
:class:`~streams.errors.BatchError`: the effects of the other messages were rolled back, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import CoroutineType
from typing import Any, NamedTuple, Protocol

from streams.databases.protocol import DialectName, Steps
from streams.derived_records import DerivedResult
from streams.errors import BatchError, ConfigError, Reject, StreamsError
from streams.health import InboxStats
from streams.inbox.calls import Access, Calls, run_calls, run_calls_async
from streams.inbox.companion import Companion, RunAgain
from streams.inbox.entries import Entries
from streams.inbox.failures import Failures
from streams.inbox.identity import Entry
from streams.inbox.partitions import Partitions
from streams.inbox.recording import Verdict, take
from streams.inbox.reruns import FailedRun, Reruns
from streams.inbox.results import Results
from streams.inbox.transactions import Transaction, Transactions
from streams.message import Message, make_message, row_of, with_transaction
from streams.processing.job import Decoding, Job, SeveralValues
from streams.processing.outcomes import OwnershipLost, TransactionPostponed
from streams.text import describe_error

PATIENCE_WITH_TIMEOUT = 1.0
"""The most seconds that a handler with a timeout waits in place for the database; without a timeout
the wait is unbounded."""

SHORTEST_PATIENCE = 0.1
"""The least of those seconds that remain for another run: it may need a new connection."""


class BatchRolledBack(StreamsError):
    """A batch was rolled back, and its messages are handled one by one."""


class _Outcome(NamedTuple):
    """What a handler returned, or the error of its last run. The error is not raised before the
    calls have ended: no generator can raise the StopIteration that a plain handler may raise."""

    result: Any
    error: Exception | None = None


def _result_of(outcome: _Outcome) -> Any:
    """The result. Raises the error."""
    if outcome.error is None:
        return outcome.result
    try:
        raise outcome.error
    finally:
        del outcome  # its error refers to this frame now


class _Handled(Protocol):
    """What is handled in one transaction: a message or a batch."""

    @property
    def message(self) -> Message[Any]:
        """The message, or a batch's first one."""
        ...

    @property
    def entries(self) -> Sequence[Entry]:
        """The entries that are taken."""
        ...

    def arguments(
        self, verdicts: Sequence[Verdict], connection: Any, *, again: bool
    ) -> tuple[Any, ...]:
        """The handler's arguments.

        :param verdicts: the verdicts on the entries.
        :param connection: the handler's ``message.transaction``.
        :param again: the handler ran before, in a transaction that was rolled back. It may have
            changed its values, so they are decoded again.
        """
        ...

    def results(self, results: Results, returned: Any) -> list[DerivedResult]:
        """What the handler's return value publishes."""
        ...


class _Handler:
    """A job's handler, and what it takes."""

    def __init__(self, job: Job) -> None:
        self.function = job.function
        self.asynchronous = job.asynchronous
        self.wants_message = job.wants_message
        self._decodings: Mapping[str, Decoding] = job.decodings

    def decode_again(self, value: Any, message: Message[Any]) -> tuple[Any, Message[Any]]:
        """A value and its message, decoded again to undo changes by the handler."""
        batch, index = row_of(message)
        decoding = self._decodings.get(batch.topic)
        if decoding is None:
            return value, message
        found = decoding.decode_one(batch, index)
        if isinstance(found, SeveralValues):  # events of an aggregate, which are frozen
            return value, message
        return found, make_message(found, batch, index, message.attempt)


class _OneMessage:
    """A message that is handled in a transaction."""

    __slots__ = ("_handler", "_value", "entries", "message")

    def __init__(self, handler: _Handler, value: Any, message: Message[Any], entry: Entry) -> None:
        self._handler = handler
        self._value = value
        self.message = message
        self.entries = (entry,)

    def arguments(
        self, verdicts: Sequence[Verdict], connection: Any, *, again: bool
    ) -> tuple[Any, ...]:
        """See :class:`_Handled`."""
        if again:
            self._value, self.message = self._handler.decode_again(self._value, self.message)
        if not self._handler.wants_message:
            return (self._value,)
        with_transaction(self.message, connection)
        return self._value, self.message

    def results(self, results: Results, returned: Any) -> list[DerivedResult]:
        """See :class:`_Handled`."""
        return results.of_message(returned, self._value, self.message)


class _Given(NamedTuple):
    """The messages of a batch that its handler is given."""

    values: list[Any]
    messages: list[Message[Any]]


class _Batch:
    """The messages of a batch, which are handled in one transaction."""

    def __init__(
        self,
        handler: _Handler,
        values: list[Any],
        messages: list[Message[Any]],
        entries: Sequence[Entry],
    ) -> None:
        self._handler = handler
        self._values = values
        self._messages = messages
        self._first_copies = _first_copies(entries)
        self._given = _Given([], [])
        self.message = messages[0]
        self.entries = [entries[at] for at in self._first_copies]

    def arguments(
        self, verdicts: Sequence[Verdict], connection: Any, *, again: bool
    ) -> tuple[Any, ...]:
        """See :class:`_Handled`."""
        if again:
            rows = list(map(self._handler.decode_again, self._values, self._messages))
            self._values = [value for value, _ in rows]
            self._messages = [message for _, message in rows]
        judged = zip(self._first_copies, verdicts, strict=True)
        chosen = [at for at, verdict in judged if verdict is Verdict.NEW]
        messages = [self._messages[at] for at in chosen]
        for message in messages:
            with_transaction(message, connection)
        self._given = _Given([self._values[at] for at in chosen], messages)
        return self._given if self._handler.wants_message else self._given[:1]

    def results(self, results: Results, returned: Any) -> list[DerivedResult]:
        """See :class:`_Handled`."""
        return results.of_batch(returned, *self._given)


def _first_copies(entries: Sequence[Entry]) -> list[int]:
    """The index of each message's first copy in a batch: a message that was published twice is
    handled once."""
    seen: dict[bytes, int] = {}
    for index, entry in enumerate(entries):
        seen.setdefault(entry.id, index)
    return list(seen.values())


class _Runs:
    """The runs of one transaction.

    :param patience: seconds that it may wait, in all runs, for the database.
    :param committed_before: how many transactions the inbox had committed before.
    """

    __slots__ = ("calls", "committed_before", "give_up", "number")

    def __init__(self, patience: float, committed_before: int) -> None:
        self.give_up = time.monotonic() + patience
        self.committed_before = committed_before
        self.number = 0
        """The number of the run, from 1."""
        self.calls = 0
        """How many of the runs called the handler."""

    def patience(self) -> float:
        """Seconds that the next run may wait."""
        return max(SHORTEST_PATIENCE, self.give_up - time.monotonic())


class Handling:
    """Calls a job's handler in transactions of the database.

    :param results: what writes the handler's results; None: they are dropped.
    :param companion: adds statements to each transaction.
    """

    def __init__(
        self,
        job: Job,
        *,
        access: Access,
        entries: Entries,
        failures: Failures,
        partitions: Partitions,
        reruns: Reruns,
        stats: InboxStats,
        transactions: Transactions,
        results: Results | None,
        companion: Companion | None,
    ) -> None:
        self._handler = _Handler(job)
        self._access = access
        self._entries = entries
        self._failures = failures
        self._partitions = partitions
        self._reruns = reruns
        self._stats = stats
        self._transactions = transactions
        self._results = results
        self._companion = companion
        self._patience = float("inf")
        if job.asynchronous and job.timeout is not None:
            self._patience = min(PATIENCE_WITH_TIMEOUT, job.timeout / 2)
        self.function = self._function_of(job)
        """The function that the executor calls instead of the handler: it takes a value and a
        message, or lists of both."""

    def _function_of(self, job: Job) -> Callable[..., Any]:
        calls = self._handle_message if job.batch is None else self._handle_batch

        async def handle_async(value: Any, message: Any) -> Any:
            return _result_of(await run_calls_async(calls(value, message)))

        def handle(value: Any, message: Any) -> Any:
            return _result_of(run_calls(calls(value, message)))

        return handle_async if job.asynchronous else handle

    def _handle_message(self, value: Any, message: Message[Any]) -> Calls[_Outcome]:
        if self._companion is not None:
            self._companion.check(message)
        entry = yield from self._entries.find(value, message)
        return (yield from self._handle(_OneMessage(self._handler, value, message, entry)))

    def _handle_batch(self, values: list[Any], messages: list[Message[Any]]) -> Calls[_Outcome]:
        if self._companion is not None:
            for message in messages:
                self._companion.check(message)
        entries = yield from self._entries.find_all(values, messages)
        batch = _Batch(self._handler, values, messages, entries)
        try:
            outcome = yield from self._handle(batch)
        except Exception as error:
            return _Outcome(None, _error_of_batch(error, len(messages)))
        if outcome.error is None:
            return outcome
        return _Outcome(None, _error_of_batch(outcome.error, len(messages)))

    # -- a transaction, as often as need be

    def _handle(self, handled: _Handled) -> Calls[_Outcome]:
        """Handle a message or a batch, in as many runs of its transaction as it takes.

        :raises OwnershipLost: it must not be handled any more.
        :raises TransactionPostponed: it is to be handled later.
        """
        runs = _Runs(self._patience, self._stats.committed)
        while True:
            runs.number += 1
            found = yield from self._run(handled, runs)
            if isinstance(found, _Outcome):
                return found
            pause = self._reruns.pause_after(found)
            if pause is None:
                return _Outcome(None, found.error)
            if isinstance(found.error, RunAgain):
                runs.number -= 1  # only runs that met a conflict or an outage are counted
            yield self._access.sleep(pause)

    def _run(self, handled: _Handled, runs: _Runs) -> Calls[_Outcome | FailedRun]:
        """Run the transaction once."""

        def take_all(dialect: DialectName) -> Steps[list[Verdict]]:
            return take(dialect, handled.entries, self._partitions.timeouts)

        transaction = yield from self._transactions.begin(
            handled.message, take_all, patience=runs.patience()
        )
        called, ours = False, True
        try:
            verdicts = yield from transaction.run_begun()
            if not self._is_wanted(verdicts, handled.message):
                yield from transaction.end_unchanged()
                return _Outcome(None)
            if self._companion is not None:
                yield from self._run_companion(self._companion, transaction)
            called, ours = True, False
            runs.calls += 1
            again = runs.calls > 1
            arguments = handled.arguments(verdicts, transaction.connection, again=again)
            result = yield self._handler.function(*arguments)
            if not self._handler.asynchronous and isinstance(result, CoroutineType):
                yield from transaction.roll_back()
                return _Outcome(result)  # the executor reports what is wrong with that
            if self._results is None:
                ours = True
            else:  # a handler that returned a generator runs on as the results are read
                outgoing = handled.results(self._results, result)
                result, ours = None, True
                yield from self._results.write(transaction.connection, outgoing)
            yield from transaction.commit()
        except BaseException as error:
            rolled_back = yield from transaction.roll_back_after(error, ours=ours)
            if not isinstance(error, Exception):
                raise
            return FailedRun(
                error=error, number=runs.number, calls=runs.calls, called=called, ours=ours,
                rolled_back=rolled_back, waits=time.monotonic() < runs.give_up,
                committed_before=runs.committed_before,
            )  # fmt: skip
        self._stats.committed += 1
        return _Outcome(result)

    def _run_companion(self, companion: Companion, transaction: Transaction[Any]) -> Calls[None]:
        """:raises RunAgain: the companion's, or for a conflict with the transaction that it waited
        for."""
        dialect = self._access.database.dialect
        try:
            yield from transaction.run(companion.handle(dialect, self._patience))
        except Exception as error:
            if self._failures.is_conflict(error, ours=True):
                raise RunAgain(
                    f"another transaction was in the way: {describe_error(error)}"
                ) from error
            raise

    def _is_wanted(self, verdicts: Sequence[Verdict], message: Message[Any]) -> bool:
        """Whether any of these messages is to be handled.

        :raises Reject: a single message was given up.
        :raises BatchRolledBack: a message of a batch was given up; which one is found out one by
            one.
        """
        if Verdict.DEAD in verdicts:
            if len(verdicts) > 1:
                raise BatchRolledBack("a message of this batch was dead-lettered before")
            raise Reject(
                f"{message.id}: it was dead-lettered before, and its dead letter is written again, "
                "as it may be missing"
            )
        new = verdicts.count(Verdict.NEW)
        self._stats.duplicates += len(verdicts) - new
        self._stats.below_mark += verdicts.count(Verdict.PURGED)
        return new > 0


def _error_of_batch(error: Exception, size: int) -> Exception:
    """The error of a failed batch, which has its messages handled one by one; for a batch of one,
    the error itself."""
    if isinstance(error, (ConfigError, OwnershipLost, TransactionPostponed)):
        return error
    if size > 1:
        found: Exception = BatchRolledBack(f"its transaction was rolled back: {error!r}")
    else:
        own = error.errors.get(0) if isinstance(error, BatchError) else None
        if not isinstance(own, Exception):
            return error
        found = own
    found.__cause__ = error
    return found
