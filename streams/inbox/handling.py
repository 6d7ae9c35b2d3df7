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

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import CoroutineType
from typing import Any, NamedTuple

from streams.databases.protocol import (
    AsyncSession,
    DialectName,
    Session,
    Steps,
    run,
    run_async,
)
from streams.derived_records import DerivedResult
from streams.errors import BatchError, ConfigError, Reject, StreamsError
from streams.inbox.identity import Entry
from streams.inbox.inbox import Companion, FailedRun, Inbox, RunAgain
from streams.inbox.recording import Verdict, take
from streams.message import Message, with_transaction
from streams.processing.job import Job
from streams.processing.outcomes import OwnershipLost, TransactionPostponed
from streams.text import describe_error

PATIENCE_WITH_TIMEOUT = 1.0
"""The most seconds that a handler with a timeout waits in place for the database; without a timeout
the wait is unbounded."""

SHORTEST_PATIENCE = 0.1
"""The least of those seconds that remain for another run: it may need a new connection."""


class BatchRolledBack(StreamsError):
    """A batch was rolled back, and its messages are handled one by one."""


class _Batch(NamedTuple):
    """The messages of a batch that are to be handled."""

    values: list[Any]
    messages: list[Message[Any]]


def in_transactions(inbox: Inbox, job: Job) -> Job:
    """The job with each call of its handler in a transaction of an inbox's database."""
    return replace(
        job,
        function=_wrapped_function(inbox, job),
        encode_results=None,  # they are written in the transaction
        wants_message=True,
        transactions=False,
        before_dead_letter=inbox.before_dead_letter,
        on_assigned=inbox.assigned,
    )


def _wrapped_function(inbox: Inbox, job: Job) -> Callable[..., Any]:
    """The function that the executor calls instead of a job's handler: it takes a value and a
    message, or lists of both."""
    patience = float("inf")
    if job.asynchronous and job.timeout is not None:
        patience = min(PATIENCE_WITH_TIMEOUT, job.timeout / 2)
    handling = _Handling(inbox, job, patience)
    if job.batch is None:
        return handling.call_async if job.asynchronous else handling.call_plain
    return handling.call_batch_async if job.asynchronous else handling.call_batch_plain


class _Returned(NamedTuple):
    """A handler's return value, and the results that are written in its transaction."""

    result: Any
    outgoing: Sequence[DerivedResult] | None = None


class _Handling:
    def __init__(self, inbox: Inbox, job: Job, patience: float) -> None:
        self._inbox = inbox
        self._database = inbox.database
        self._function = job.function
        self._wants_message = job.wants_message
        self._results = inbox.results_of(job)
        self._patience = patience

    # -- one message

    async def call_async(self, value: Any, message: Message[Any]) -> Any:
        self._check([message])
        entry = await self._inbox.entry_async(value, message)

        async def once(_: Sequence[Verdict], connection: Any, handed: int) -> _Returned:
            given, source = self._given(value, message, handed)
            if self._wants_message:
                with_transaction(source, connection)
                result = await self._function(given, source)
            else:
                result = await self._function(given)
            if self._results is None:
                return _Returned(result)
            return _Returned(None, self._results.of_message(result, given, source))

        return await self._run_async(message, [entry], once)

    def call_plain(self, value: Any, message: Message[Any]) -> Any:
        self._check([message])
        entry = self._inbox.entry(value, message)

        def once(_: Sequence[Verdict], connection: Any, handed: int) -> _Returned:
            given, source = self._given(value, message, handed)
            if self._wants_message:
                with_transaction(source, connection)
                result = self._function(given, source)
            else:
                result = self._function(given)
            if self._results is None or isinstance(result, CoroutineType):
                return _Returned(result)
            return _Returned(None, self._results.of_message(result, given, source))

        return self._run_plain(message, [entry], once)

    # -- a batch

    async def call_batch_async(self, values: list[Any], messages: list[Message[Any]]) -> Any:
        self._check(messages)
        entries = self._inbox.known_entries(messages)
        if entries is None:
            rows = zip(values, messages, strict=True)
            entries = [await self._inbox.entry_async(*each) for each in rows]
        firsts = _firsts(entries)

        async def once(verdicts: Sequence[Verdict], connection: Any, handed: int) -> _Returned:
            rows = self._rows_given(values, messages, handed)
            chosen = _chosen(*rows, firsts, verdicts, connection)
            given = chosen if self._wants_message else chosen[:1]
            result = await self._function(*given)
            if self._results is None:
                return _Returned(result)
            return _Returned(None, self._results.of_batch(result, *chosen))

        try:
            return await self._run_async(messages[0], [entries[at] for at in firsts], once)
        except Exception as error:
            raise _for_the_batch(error, len(messages)) from error

    def call_batch_plain(self, values: list[Any], messages: list[Message[Any]]) -> Any:
        self._check(messages)
        entries = self._inbox.known_entries(messages)
        if entries is None:
            rows = zip(values, messages, strict=True)
            entries = [self._inbox.entry(*each) for each in rows]
        firsts = _firsts(entries)

        def once(verdicts: Sequence[Verdict], connection: Any, handed: int) -> _Returned:
            rows = self._rows_given(values, messages, handed)
            chosen = _chosen(*rows, firsts, verdicts, connection)
            given = chosen if self._wants_message else chosen[:1]
            result = self._function(*given)
            if self._results is None or isinstance(result, CoroutineType):
                return _Returned(result)
            return _Returned(None, self._results.of_batch(result, *chosen))

        try:
            return self._run_plain(messages[0], [entries[at] for at in firsts], once)
        except Exception as error:
            raise _for_the_batch(error, len(messages)) from error

    def _given(self, value: Any, message: Message[Any], handed: int) -> tuple[Any, Message[Any]]:
        """The handler's arguments. If it ran before, in a transaction that was rolled back, it may
        have changed its value, which is decoded again then."""
        return (value, message) if handed == 1 else self._inbox.decode_again(value, message)

    def _rows_given(
        self, values: list[Any], messages: list[Message[Any]], handed: int
    ) -> tuple[list[Any], list[Message[Any]]]:
        if handed == 1:
            return values, messages
        rows = [self._given(*each, handed) for each in zip(values, messages, strict=True)]
        return [value for value, _ in rows], [message for _, message in rows]

    def _check(self, messages: Sequence[Message[Any]]) -> None:
        companion = self._inbox.companion
        if companion is not None:
            for message in messages:
                companion.check(message)

    # -- a transaction, as often as need be

    async def _run_async(
        self, message: Message[Any], entries: list[Entry], handle: Callable[..., Any]
    ) -> Any:
        inbox = self._inbox
        give_up = time.monotonic() + self._patience
        runs = handed = 0
        before = inbox.stats.committed

        def take_all(dialect: DialectName) -> Steps[list[Verdict]]:
            return take(dialect, entries, inbox.timeouts)

        while True:
            runs += 1
            left = max(SHORTEST_PATIENCE, give_up - time.monotonic())
            session, steps = await inbox.begin_async(message, take_all, patience=left)
            began, ours, called = time.monotonic(), True, False
            try:
                verdicts = await run_async(session, steps, await session.first_rows())
                if not self._is_wanted(verdicts, message):
                    await session.rollback()
                    inbox.answered_without_writing()
                    return None
                if inbox.companion is not None:
                    await self._accompany_async(session, inbox.companion)
                ours, called = False, True
                handed += 1
                returned = await handle(verdicts, session.connection, handed)
                ours = True
                if self._results is not None and returned.outgoing is not None:
                    await self._results.write_async(
                        inbox.outbox, session.connection, returned.outgoing
                    )
                await session.commit()
                inbox.stats.committed += 1
                inbox.committed(began)
                return returned.result
            except BaseException as error:
                broken = session.is_broken()
                unable = (
                    isinstance(error, Exception)
                    and not broken
                    and inbox.may_be_unable(error, ours=ours)
                    and (ours or await _has_failed_async(session))
                )
                await session.rollback(close=unable)
                if not isinstance(error, Exception):
                    raise
                now = time.monotonic()
                failed = FailedRun(
                    number=runs, calls=handed, called=called, ours=ours, broken=broken,
                    unable=unable, seconds=now - began, waits=now < give_up,
                    committed_before=before,
                )  # fmt: skip
                pause = inbox.runs_again(error, failed)
                if pause is None:
                    raise
                if isinstance(error, RunAgain):
                    runs -= 1  # it met nobody
            await asyncio.sleep(pause)

    def _run_plain(
        self, message: Message[Any], entries: list[Entry], handle: Callable[..., Any]
    ) -> Any:
        inbox, database = self._inbox, self._database
        give_up = time.monotonic() + self._patience
        runs = handed = 0
        before = inbox.stats.committed
        while True:
            runs += 1
            session = inbox.begin(message, patience=self._patience)
            began, ours, called = time.monotonic(), True, False
            try:
                verdicts = run(session, take(database.dialect, entries, inbox.timeouts))
                if not self._is_wanted(verdicts, message):
                    session.rollback()
                    inbox.answered_without_writing()
                    return None
                if inbox.companion is not None:
                    self._accompany(session, inbox.companion)
                ours, called = False, True
                handed += 1
                returned = handle(verdicts, session.connection, handed)
                ours = True
                if isinstance(returned.result, CoroutineType):
                    session.rollback()
                    return returned.result  # the executor reports what is wrong with that
                if self._results is not None and returned.outgoing is not None:
                    self._results.write(inbox.outbox, session.connection, returned.outgoing)
                session.commit()
                inbox.stats.committed += 1
                inbox.committed(began)
                return returned.result
            except BaseException as error:
                broken = session.is_broken()
                unable = (
                    isinstance(error, Exception)
                    and not broken
                    and inbox.may_be_unable(error, ours=ours)
                    and (ours or _has_failed(session))
                )
                session.rollback(close=unable)
                if not isinstance(error, Exception):
                    raise
                now = time.monotonic()
                failed = FailedRun(
                    number=runs, calls=handed, called=called, ours=ours, broken=broken,
                    unable=unable, seconds=now - began, waits=now < give_up,
                    committed_before=before,
                )  # fmt: skip
                pause = inbox.runs_again(error, failed)
                if pause is None:
                    raise
                if isinstance(error, RunAgain):
                    runs -= 1  # it met nobody
            time.sleep(pause)

    async def _accompany_async(self, session: AsyncSession[Any], companion: Companion) -> None:
        try:
            await run_async(session, companion.handle(self._database.dialect, self._patience))
        except Exception as error:
            self._run_again_after(error)
            raise

    def _accompany(self, session: Session[Any], companion: Companion) -> None:
        try:
            run(session, companion.handle(self._database.dialect, self._patience))
        except Exception as error:
            self._run_again_after(error)
            raise

    def _run_again_after(self, error: Exception) -> None:
        """:raises RunAgain: a conflict with the transaction that a companion waited for."""
        if self._inbox.is_conflict(error, ours=True):
            raise RunAgain(
                f"another transaction was in the way: {describe_error(error)}"
            ) from error

    def _is_wanted(self, verdicts: Sequence[Verdict], message: Message[Any]) -> bool:
        """Whether any of these messages is to be handled.

        :raises Reject: a single message was given up; in a batch, that is found out one by one.
        """
        if Verdict.DEAD in verdicts:
            if len(verdicts) > 1:
                raise BatchRolledBack("a message of this batch was dead-lettered before")
            raise Reject(
                f"{message.id}: it was dead-lettered before, and its dead letter is written again, "
                "as it may be missing"
            )
        new = verdicts.count(Verdict.NEW)
        self._inbox.stats.duplicates += len(verdicts) - new
        self._inbox.stats.below_mark += verdicts.count(Verdict.PURGED)
        return new > 0


def _has_failed(session: Session[Any]) -> bool:
    try:
        return session.has_failed()
    except Exception:  # it cannot be told
        return False


async def _has_failed_async(session: AsyncSession[Any]) -> bool:
    try:
        return await session.has_failed()
    except Exception:
        return False


def _firsts(entries: Sequence[Entry]) -> list[int]:
    """The indexes of each message's first copy in a batch: a message that was published twice is
    handled once."""
    seen: dict[bytes, int] = {}
    for index, entry in enumerate(entries):
        seen.setdefault(entry.id, index)
    return list(seen.values())


def _chosen(
    values: list[Any],
    messages: list[Message[Any]],
    firsts: list[int],
    verdicts: Sequence[Verdict],
    connection: Any,
) -> _Batch:
    chosen = [at for at, verdict in zip(firsts, verdicts, strict=True) if verdict is Verdict.NEW]
    for at in chosen:
        with_transaction(messages[at], connection)
    return _Batch([values[at] for at in chosen], [messages[at] for at in chosen])


def _for_the_batch(error: Exception, size: int) -> Exception:
    """The error of a failed batch, which has its messages handled one by one; for a batch of one,
    the error itself."""
    if isinstance(error, (ConfigError, OwnershipLost, TransactionPostponed)):
        return error
    if size > 1:
        return BatchRolledBack(f"its transaction was rolled back: {error!r}")
    if isinstance(error, BatchError):
        own = error.errors.get(0)
        return own if isinstance(own, Exception) else error
    return error
