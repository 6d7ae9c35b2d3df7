"""``app.transaction()``: the user's SQL and published messages, in one transaction of a SQLite log.

``async with`` or ``with`` enters a :class:`TransactionBlock`, which gives a
:class:`LogTransaction`: a connection to the log's file. While it is open, messages that the same
context publishes to that log (:mod:`streams.publisher` calls :func:`transaction_for`) are written
in the transaction, and when the block ends, both they and the SQL's rows are in the file, or
neither are.

SQLite has one writer at a time, so a block delays all other writers of the file:

* blocks of an app and its handlers' ``message.transaction`` take turns by one lock, which tasks
  wait for without blocking their loop;
* blocks run in a thread of their own, not in one of a pool that waiting callers may have filled;
* a watchdog rolls back a block that stays open for longer than its time, whatever its body is
  waiting for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Token
from types import TracebackType
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

from streams.cancellation import run_to_completion
from streams.errors import ConfigError, LogError, TransactionTimeout, Unavailable
from streams.event_loop import running_loop
from streams.log.protocol import FileTransaction, Log, TransactionalLog
from streams.message import Position, Record
from streams.processing.handler_transaction import (
    OpenBlock,
    TransactionLock,
    block_of_context,
    has_turn,
    in_block,
)
from streams.text import get_logger

P = ParamSpec("P")
T = TypeVar("T")

logger = get_logger("streams")

TIMEOUT = 5.0
"""Seconds that a block may be open, by default."""

TURN_TIMEOUT = 60.0
"""Seconds that plain code waits for its turn behind other blocks and handlers."""

INTERRUPT_AGAIN = 0.05
"""Seconds between two interrupts of a statement that must end."""

_State: TypeAlias = Literal["open", "expired", "ended"]


class LogTransaction:
    """A connection to the file of a SQLite log, inside a transaction: the value of a block of
    :meth:`streams.Streams.transaction`.

    Messages that are published inside the block are in the same transaction.
    """

    def __init__(
        self, turns: TransactionTurns, transaction: FileTransaction, timeout: float
    ) -> None:
        self._turns = turns
        self._log = turns.log
        self._transaction = transaction
        self._timeout = timeout
        self._turn = threading.Lock()
        """Held by the one thread that uses the transaction."""
        self._state_lock = threading.Lock()
        self._state: _State = "open"
        self._on_commit: list[Callable[[], None]] = []

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one SQL statement; returns its rows, as tuples.

        The log's own tables (``streams_…``) may be read but not written.

        :param parameters: a sequence for ``?``, a mapping for ``:name``.
        :raises TransactionTimeout: the block was open for too long, and is rolled back.
        :raises ConfigError: ``sql`` is more than one statement, would end the transaction, or would
            change the log's own tables.
        :raises LogError: SQLite refuses the statement (its own exception is the cause), and the
            transaction goes on, unless the message says that it was rolled back; or the block has
            ended.
        """
        with self._turn:
            return self._run(lambda: self._transaction.execute(sql, parameters))

    # -- what publishes, and the block

    @property
    def is_open(self) -> bool:
        """Whether the block has not ended."""
        return self._state != "ended"

    def is_on(self, log: Log) -> bool:
        """Whether this is a transaction of that very log."""
        return log is self._log

    def is_in_file_of(self, log: Log) -> bool:
        """Whether a log is in the file that this transaction locks."""
        path = getattr(log, "path", None)
        return path is not None and path == getattr(self._log, "path", None)

    async def append(
        self, topic: str, records: Sequence[Record], on_commit: Callable[[], None]
    ) -> list[Position]:
        """Write records; returns their positions after the commit.

        :param on_commit: called once they are committed (any thread).
        :raises TransactionTimeout: the block was open for too long, and is rolled back.
        :raises LogError: none of them was written; the transaction goes on.
        """
        return await self._turns.run(self._append, topic, records, on_commit)

    def _append(
        self, topic: str, records: Sequence[Record], on_commit: Callable[[], None]
    ) -> list[Position]:
        with self._turn:
            positions = self._run(lambda: self._transaction.append(topic, records))
            self._on_commit.append(on_commit)
        return positions

    def claim_context(self) -> None:
        """Bind the transaction to this context: messages that it publishes are part of it, until it
        ends."""
        self._transaction.claim_context()

    def _run(self, action: Callable[[], T]) -> T:
        try:
            self._require_open()
            return action()
        except LogError as error:
            if self._state == "expired":  # its statement was interrupted
                raise self._timeout_error() from error
            raise

    def _require_open(self) -> None:
        if self._state == "expired":
            raise self._timeout_error()
        if self._state == "ended":
            raise LogError("app.transaction(): the block has ended")

    def _timeout_error(self) -> TransactionTimeout:
        return TransactionTimeout(
            f"app.transaction(): the block was open for {self._timeout:g} s and is rolled back, as "
            "all other writers to the file wait meanwhile: do slow work before it, or "
            "give app.transaction(timeout=...)"
        )

    def commit(self) -> None:
        """Commit, as the block ended without an error (blocks).

        :raises TransactionTimeout: the block was open for too long, and was rolled back.
        :raises LogError: SQLite rolled it back, or cannot commit.
        """
        with self._state_lock:
            self._require_open()
            self._state = "ended"
        with self._turn:
            self._transaction.commit()
        for each in self._on_commit:
            each()

    def rollback(self) -> None:
        """Roll back, as the block failed (blocks)."""
        with self._state_lock:
            self._state = "ended"
        with self._turn:
            self._transaction.rollback()

    def expire(self) -> bool:
        """Roll back a block that is open for too long (any thread). False: it has ended."""
        with self._state_lock:
            if self._state != "open":
                return False
            self._state = "expired"
        self._transaction.interrupt()
        while not self._turn.acquire(timeout=INTERRUPT_AGAIN):
            self._transaction.interrupt()  # a statement may have begun after the last interrupt
        try:
            self._transaction.rollback()
        finally:
            self._turn.release()
        logger.warning(
            "a block of app.transaction() was open for %g s and was rolled back", self._timeout
        )
        return True


def transaction_for(log: Log) -> LogTransaction | None:
    """The transaction in which this context publishes to a log; None: there is none.

    :raises ConfigError: publishing would wait for the end of the context's own transaction.
    """
    block: OpenBlock | None = block_of_context.get()
    if not isinstance(block, LogTransaction) or not block.is_open:
        return None
    if block.is_on(log):
        return block
    if block.is_in_file_of(log):
        raise ConfigError(
            "publishing by another app on the same file inside a block of app.transaction() would "
            "wait for the block's end: publish by the app that the block is of"
        )
    return None


class TransactionTurns:
    """The state that all ``app.transaction()`` blocks of one run of an app share.

    :param lock: held by the block, or the handler with ``message.transaction``, whose turn it is.
    """

    def __init__(self, log: Log, lock: TransactionLock) -> None:
        self.log = log
        self.lock = lock
        self.watchdog = _Watchdog()
        self._worker: ThreadPoolExecutor | None = None

    def check(self) -> None:
        """:raises ConfigError: the log has no such transactions."""
        if not isinstance(self.log, TransactionalLog):
            kind = self.log.capabilities.name
            raise ConfigError(
                "app.transaction() is one transaction with the file of a sqlite:// log; this is a "
                f"{kind} log: publish with a transaction of your own database by an Outbox "
                "(docs/outbox.md)"
            )

    def begin(self) -> FileTransaction:
        """Begin a transaction (blocks)."""
        self.check()
        log: Any = self.log
        found: FileTransaction = log.begin_file_transaction()
        return found

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in the blocks' own thread, to its end."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "streams-transaction")
        future = self._worker.submit(function, *args, **kwargs)
        return await run_to_completion(asyncio.wrap_future(future))

    def close(self) -> None:
        """Close the thread: no block is open any more, or will be (blocks)."""
        self.watchdog.close()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.shutdown()


class TransactionBlock:
    """The context manager of ``async with app.transaction() as connection:``, in plain code
    ``with``. It can be entered once."""

    def __init__(self, turns: TransactionTurns, timeout: float) -> None:
        self._turns = turns
        self._timeout = timeout
        self._transaction: LogTransaction | None = None
        self._token: Token[OpenBlock | None] | None = None
        self._turn_lock = threading.Lock()
        self._has_turn = False

    # -- async

    async def __aenter__(self) -> LogTransaction:
        self._refuse_nested()
        await self._turns.lock.acquire_async()
        self._has_turn = True
        try:
            begun = await self._turns.run(self._begin)
        except BaseException:
            await self._turns.run(self._roll_back)  # cancelled: it may have begun all the same
            raise
        return self._enter_context(begun)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave_context()
        await self._turns.run(self._roll_back if error is not None else self._commit)

    # -- plain

    def __enter__(self) -> LogTransaction:
        if running_loop() is not None:
            raise ConfigError(
                "with app.transaction() would block the event loop: write `async with`"
            )
        self._refuse_nested()
        if not self._turns.lock.acquire(TURN_TIMEOUT):
            raise Unavailable(
                f"app.transaction(): others have had their turns for {TURN_TIMEOUT:g} s"
            )
        self._has_turn = True
        try:
            begun = self._begin()
        except BaseException:
            self._roll_back()
            raise
        return self._enter_context(begun)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leave_context()
        if error is not None:
            self._roll_back()
        else:
            self._commit()

    # -- both

    def _refuse_nested(self) -> None:
        if self._transaction is not None or self._has_turn:
            raise ConfigError("app.transaction(): a block is entered once; call it again")
        if in_block():
            raise ConfigError(
                "app.transaction() inside a block of app.transaction() would wait for its end: use "
                "the connection of the open block"
            )
        if has_turn():
            raise ConfigError(
                "app.transaction() while message.transaction is open would wait for its end: enter "
                "the block before the handler's first execute, or return what is to be published "
                "with to="
            )

    def _begin(self) -> LogTransaction:
        found = LogTransaction(self._turns, self._turns.begin(), self._timeout)
        self._transaction = found
        self._turns.watchdog.watch(self._timeout, self._expire)
        return found

    def _enter_context(self, begun: LogTransaction) -> LogTransaction:
        begun.claim_context()
        self._token = block_of_context.set(begun)
        return begun

    def _leave_context(self) -> None:
        if self._token is not None:
            try:
                block_of_context.reset(self._token)
            except ValueError:  # left in another context than entered, as a generator may
                block_of_context.set(None)

    def _expire(self) -> None:
        transaction = self._transaction
        if transaction is not None and transaction.expire():
            self._give_turn()

    def _commit(self) -> None:
        self._turns.watchdog.forget(self._expire)
        transaction = self._transaction
        try:
            if transaction is not None:
                transaction.commit()
        except BaseException:
            if transaction is not None:
                transaction.rollback()
            raise
        finally:
            self._give_turn()

    def _roll_back(self) -> None:
        self._turns.watchdog.forget(self._expire)
        try:
            if self._transaction is not None:
                self._transaction.rollback()
        finally:
            self._give_turn()

    def _give_turn(self) -> None:
        with self._turn_lock:
            had, self._has_turn = self._has_turn, False
        if had:
            self._turns.lock.release()


class _Watchdog:
    """Ends a block that stays open for too long, one at a time, in a thread that is started for the
    first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due = float("inf")
        self._action: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, seconds: float, action: Callable[[], None]) -> None:
        """Call ``action`` after this many seconds, unless :meth:`forget` is called before."""
        with self._changed:
            self._due, self._action = time.monotonic() + seconds, action
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="streams-transaction-watchdog", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def forget(self, action: Callable[[], None]) -> None:
        """Stop watching an action that is not needed any more; does nothing if another one is
        watched by now."""
        with self._changed:
            if self._action == action:
                self._due, self._action = float("inf"), None

    def close(self) -> None:
        """End the open block, and the thread."""
        with self._changed:
            self._closed = True
            action, self._action = self._action, None
            self._changed.notify()
        if action is not None:
            action()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and time.monotonic() < self._due:
                    left = self._due - time.monotonic()
                    self._changed.wait(None if left == float("inf") else left)
                if self._closed:
                    return
                action, self._action, self._due = self._action, None, float("inf")
            if action is not None:
                action()
