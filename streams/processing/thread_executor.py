"""Plain handlers, in threads: never on the event loop, never inside a poll cycle.

``concurrency`` threads share one dispatcher under one lock, which is held only between handlers.
With one thread, nothing failing and nothing recurring, a whole batch takes the *fast path*: a loop
of decode, handler, one byte stored, and a look at the clock, as one would write it by hand. What a
fast run stops at goes the general way, and so does everything behind it until the keys
are empty again.

A plain handler cannot be interrupted. One that runs longer than ``timeout`` is reported (a log
line, ``overdue`` in the health) and its outcome counts when it comes.
"""

from __future__ import annotations

import threading
from asyncio import CancelledError
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import CoroutineType, GeneratorType
from typing import Any, NamedTuple

from typing_extensions import override

from streams.callables import run_generator
from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch
from streams.errors import ConfigError
from streams.message import Message, make_message
from streams.processing.executor import OWNERSHIP_RECHECK, Executor
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import Job, Outgoing, ResultEncoder, Skip
from streams.processing.outcomes import NotCalled, failure_of
from streams.processing.pending_outputs import PendingOutputs
from streams.processing.polling_hand_over import PollingHandOver
from streams.text import get_logger

logger = get_logger("streams")


class FastRunResult(NamedTuple):
    """How a fast run ended: messages before ``stop`` are handled, those from there to before
    ``end`` are what it stopped at because of ``error``."""

    stop: int
    end: int
    error: BaseException | None


def _fast_values(fetched: FetchedBatch) -> Iterable[Any]:
    """The values of a batch that may take the fast path, decoded one by one."""
    if fetched.decoded is not None:
        return fetched.decoded
    return map(fetched.decode, fetched.values)  # type: ignore[arg-type]  # one of both is there


def _fast_chunks(fetched: FetchedBatch, size: int) -> Iterator[list[Any]]:
    """The same in lists of ``size``."""
    for start in range(0, len(fetched), size):
        stop = min(len(fetched), start + size)
        if fetched.decoded is not None:
            yield fetched.decoded[start:stop]
            continue
        values = list(map(fetched.decode, fetched.values[start:stop]))  # type: ignore[arg-type]
        if len(values) < stop - start:
            raise RuntimeError("decoding raised StopIteration, which ends map()")
        yield values


class ThreadExecutor(Executor):
    """Runs a plain handler, one message or one batch at a time in each of its threads.

    One class, because the fast path and the general one hand the same messages to each other, under
    one lock; a call between two objects for each message would be felt.
    """

    def __init__(
        self, job: Job, open_transaction: Callable[[], HandlerTransaction] | None = None
    ) -> None:
        super().__init__(job, open_transaction)
        self._changed = threading.Condition(self._lock)
        """Notified when there may be something to do."""
        self._notifications = 0
        """How often there may have been something to do."""
        self._idle = 0
        """Threads that wait for something to do."""
        self._started_at: list[float | None] = [None] * job.concurrency
        self._reported_overdue: set[int] = set()
        self._single = job.batch is None
        self._threads = [
            threading.Thread(
                target=self._main,
                args=(thread_index,),
                name=f"streams-{job.name}-{thread_index}",
                daemon=True,
            )
            for thread_index in range(job.concurrency)
        ]
        self._fast_allowed = (
            job.concurrency == 1
            and (job.encode_results is None or (job.outputs is not None and job.batch is None))
            and job.timeout is None
            and not (job.batch and job.filter)
        )
        self._hand_over: PollingHandOver | None = None
        self._polling = False
        """The one thread polls, and does not wait for notifications."""
        self._wake_poll: Callable[[], None] = lambda: None
        self._fast_batch: FetchedBatch | None = None
        """The batch on the fast path, whose messages are counted only when it ends."""
        self._fast_stopped = False
        """It ends before its next message: one look for all reasons but the time of ownership."""
        self._filtered = 0
        """How many of it were filtered out so far."""
        self._put_aside = 0
        """How many of it are handled, where they are settled once their results are stored."""
        self._function: Callable[..., Any] = self._first_call

    def _first_call(self, *arguments: Any) -> Any:
        """The handler, until it returned once: what it returned tells whether anything ran."""
        result = self.job.function(*arguments)
        complaint = ""
        if isinstance(result, CoroutineType):
            result.close()
            complaint = "a coroutine: make what wraps the handler an `async def` too"
        elif isinstance(result, GeneratorType) and self.job.encode_results is None:
            complaint = "a generator, which nothing would run: give to= the topic for its values"
        if complaint:
            raise ConfigError(f"processor {self.job.name}: the handler returned {complaint}")
        self._function = self.job.function
        return result

    def _handler(self) -> Callable[..., Any]:
        """The function to call for the next batch or message."""
        function = self._function
        if self.timing is None or function == self._first_call:
            return function
        return self.timing.sample(function)

    # -- the poller's side

    @override
    def start(self) -> None:
        super().start()
        for thread in self._threads:
            thread.start()

    @override
    def call_soon(self, action: Callable[[], None]) -> None:
        with self._changed:
            try:
                action()
            finally:
                self._notify()
                self._notify_waiters()

    @override
    def call_and_wait(self, action: Callable[[], None]) -> None:
        self.call_soon(action)

    @override
    def _suspend(self) -> None:
        super()._suspend()
        self._fast_stopped = True

    @override
    def _revoke(self, states: Collection[PartitionState]) -> None:
        super()._revoke(states)
        if self._fast_batch is not None and not self._fast_batch.state.is_owned:
            self._fast_stopped = True  # its ownership may be renewed while it drains

    def _notify(self, threads: int = 1) -> None:
        """There may be something to do for so many; the lock is held."""
        self._notifications += 1
        self._changed.notify(threads)
        if self._polling:
            self._wake_poll()

    def _notify_waiters(self) -> None:
        """Something has ended; the lock is held."""
        if self._waiters:
            self._idle_changed.notify_all()

    @override
    def accept_polling(self, hand_over: PollingHandOver, wake: Callable[[], None]) -> None:
        job = self.job
        # It waits for nothing but messages, as long as nothing fails.
        waits_for_writes = job.encode_results is not None and job.outputs is None
        if job.concurrency == 1 and not waits_for_writes and job.key_parking is None:
            self._hand_over, self._wake_poll = hand_over, wake

    @override
    def notify(self) -> None:
        if self._idle:
            with self._changed:
                self._changed.notify()

    @override
    def wake_all(self) -> None:
        with self._changed:
            self._notify(len(self._threads))
            self._idle_changed.notify_all()

    @override
    def counters(self) -> tuple[int, int]:
        with self._lock:
            handled, filtered = super().counters()
            if self._fast_batch is not None:
                filtered_so_far = self._filtered
                if self.job.outputs is not None:
                    handled += self._put_aside - filtered_so_far
                else:
                    handled += self._fast_batch.settled.count(1) - filtered_so_far
                filtered += filtered_so_far
            return handled, filtered

    @override
    def close(self) -> None:
        super().close()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                # A handler that outlived its deadline keeps its thread, which is a daemon.
                thread.join(timeout=0.2)

    @override
    def overdue(self) -> int:
        if self.job.timeout is None:
            return 0
        limit = self._now() - self.job.timeout
        too_long = {
            thread_index
            for thread_index, since in enumerate(self._started_at)
            if since is not None and since < limit
        }
        if too_long - self._reported_overdue:
            logger.error(
                "%s: a plain handler runs longer than its timeout of %g s and cannot be "
                "interrupted; its key waits for it",
                self.job.name, self.job.timeout,
            )  # fmt: skip
        self._reported_overdue = too_long
        return len(too_long)

    # -- a handler thread; the lock is held except while a handler runs

    def _main(self, thread_index: int) -> None:
        self._changed.acquire()
        try:
            transaction = self._open_transaction() if self._open_transaction is not None else None
            dispatcher = self.dispatcher
            while not self._closed:
                offered, notified = dispatcher.offered, self._notifications
                if not self._suspended and self._handle_next(thread_index, transaction):
                    continue
                if self._hand_over is not None and self._poll_here(self._hand_over):
                    continue
                self._idle += 1
                dispatcher.refill()
                # The poller notifies idle threads only, and this one misses what is notified while
                # the lock is free for it to poll: so it looks at both counts before it waits.
                if offered == dispatcher.offered and notified == self._notifications:
                    self._changed.wait(self._wait_timeout())
                self._idle -= 1
        except BaseException as error:
            # A bug of ours, or SystemExit and the like from a handler: never silently.
            self.fail(error)
        finally:
            self._busy[thread_index] = ()
            self._idle_changed.notify_all()
            self._changed.release()

    def _poll_here(self, hand_over: PollingHandOver) -> bool:
        """Poll in this thread, if it waits for nothing else."""
        dispatcher = self.dispatcher
        if (
            self._suspended
            or self.unconfirmed
            or dispatcher.has_backlog
            or dispatcher.next_due is not None
        ):
            hand_over.return_polling()
            return False
        self._polling = True
        self._changed.release()
        try:
            return hand_over.cycle_in_handler()
        finally:
            self._changed.acquire()
            self._polling = False

    def _wait_timeout(self) -> float | None:
        """How long to wait for a notification, in real seconds; None: for ever."""
        if self._suspended or self.dispatcher.paused:
            return None
        if self.dispatcher.has_backlog:
            return OWNERSHIP_RECHECK
        due = self.dispatcher.next_due
        return None if due is None else self.job.clock.real_timeout(due - self._now())

    def _handle_next(self, thread_index: int, transaction: HandlerTransaction | None) -> bool:
        """Handle what may be handled now; False: there is nothing."""
        now, calls, dispatcher = self._now(), self._calls, self.dispatcher
        dispatcher.release_due(now)
        work: Any = self._take_fast(now, decoded=True) if self._fast_allowed else None
        if work is not None:
            run: Callable[..., None] = self._run_fast
            busy: Sequence[FetchedBatch] = (work,)
        else:
            work = calls.take_unit(now)
            if work is None:
                return False
            if not calls.admits_all or work.reason is not None:
                work = calls.admit(work)
                if work is None:
                    return True
            if self._idle and dispatcher.has_backlog:
                self._changed.notify()
            run = self._run
            busy = (work.fetched,) if self._single else [each.fetched for each in work]
        self._busy[thread_index] = busy
        self._started_at[thread_index] = now
        try:
            run(work, transaction)
        finally:
            self._started_at[thread_index] = None
            self._busy[thread_index] = ()
            if self._waiters:
                self._idle_changed.notify_all()
        return True

    def _run(self, unit: Any, transaction: HandlerTransaction | None) -> None:
        """Handle a message, or a batch of them."""
        calls, job = self._calls, self.job
        decoded: Any = None
        result: Any = None
        failure: BaseException | None = None
        self._changed.release()
        if transaction is not None:
            transaction.begin_handler()
        try:
            decoded = calls.decode(unit)
            if type(decoded) is not NotCalled:
                function = self._function if self.timing is None else self._handler()
                result = calls.call(function, unit, decoded, transaction)
                if job.encode_results is not None and result is not None:
                    result = run_generator(result)
                    if job.batch is not None:
                        result = [run_generator(each) for each in result]
                if transaction is not None and transaction.is_open:
                    failure = calls.commit(transaction, unit, decoded)
        except (Exception, CancelledError) as error:
            failure = failure_of(error, self.job.name)
        finally:
            if transaction is not None:
                transaction.rollback()
            self._changed.acquire()
        if type(decoded) is NotCalled:
            decoded.settle()
        else:
            calls.record_result(unit, decoded, result, failure)

    # -- the fast path

    def _run_fast(self, fetched: FetchedBatch, transaction: HandlerTransaction | None) -> None:
        """Handle a whole batch, or as much of it as goes well."""
        dispatcher, calls = self.dispatcher, self._calls
        self._fast_batch, self._filtered, self._put_aside = fetched, 0, 0
        self._fast_stopped = False
        outputs, encode = self.job.outputs, self.job.encode_results
        self._changed.release()
        try:
            if outputs is not None and encode is not None:
                stop, end, error = self._pass_on_fast(fetched, outputs, encode)
            else:
                stop, end, error = self._handle_fast(fetched, transaction)
        finally:
            self._changed.acquire()
            self._fast_batch = None
            dispatcher.counts.filtered += self._filtered
            dispatcher.counts.handled -= self._filtered  # a fast run counts them all
        if error is None:
            dispatcher.finish_fast_run(fetched, stop)
            return
        deliveries = dispatcher.interrupt_fast_run(fetched, stop, end)
        if not deliveries:
            return
        if len(deliveries) == 1:
            delivery = deliveries[0]
            try:
                calls.decode_one(fetched, delivery.index)
            except Skip:
                calls.settle(delivery, filtered=True)
                return
            except Exception as undecodable:
                calls.reject_undecodable(delivery, undecodable)
                return
        # Of several it is not known yet whose fault it is, decoding's or the handler's.
        calls.record_call_failure(deliveries[0] if self.job.batch is None else deliveries, error)

    def _handle_fast(
        self, fetched: FetchedBatch, transaction: HandlerTransaction | None
    ) -> FastRunResult:
        """The hot loop: nothing but decode, handler, and a byte stored for each message."""
        now, settled, size = self._now, fetched.settled, self.job.batch
        assignment = fetched.state.assignment
        index = 0
        if transaction is not None:
            transaction.begin_handler()
        try:
            call = self._fast_call(fetched, transaction)
            if size is None:
                for value in _fast_values(fetched):
                    if now() >= assignment.valid_until or self._fast_stopped:
                        break
                    call(value)
                    settled[index] = 1
                    index += 1
            else:
                for values in _fast_chunks(fetched, size):
                    if now() >= assignment.valid_until or self._fast_stopped:
                        break
                    call(values)
                    count = len(values)
                    settled[index : index + count] = b"\1" * count
                    index += count
        except (Exception, CancelledError) as error:
            failure = failure_of(error, self.job.name)
            return FastRunResult(index, min(len(fetched), index + (size or 1)), failure)
        finally:
            if transaction is not None:
                transaction.rollback()
        return FastRunResult(index, index, None)

    def _pass_on_fast(
        self, fetched: FetchedBatch, outputs: PendingOutputs, encode: ResultEncoder
    ) -> FastRunResult:
        """The same in an exactly-once processor: what the handler returns is put aside."""
        now, settled, ids, batch = self._now, fetched.settled, fetched.ids, fetched.batch
        assignment, run = fetched.state.assignment, outputs.open_run(fetched)
        index = 0
        try:
            call = self._fast_call(fetched, None)
            for value in _fast_values(fetched):
                if now() >= assignment.valid_until or self._fast_stopped or not outputs.has_room:
                    break
                result = call(value)
                outgoing: Sequence[Outgoing] = ()
                if result is not None:
                    outgoing = encode(run_generator(result), batch, index, ids[index])
                if outgoing:
                    run.add(index, outgoing)
                else:
                    settled[index] = 1
                index += 1
                self._put_aside = index
        except (Exception, CancelledError) as error:
            failure = failure_of(error, self.job.name)
            return FastRunResult(index, min(len(fetched), index + 1), failure)
        finally:
            run.end()
        return FastRunResult(index, index, None)

    def _fast_call(
        self, fetched: FetchedBatch, transaction: HandlerTransaction | None
    ) -> Callable[[Any], Any]:
        """The function to call with each value of a fast run, or each list of values, in turn."""
        job, batch, function = self.job, fetched.batch, self._handler()
        if job.takes_value_only:
            return function
        accepts, wants_message, builds_messages = job.filter, job.wants_message, job.builds_messages
        following = 0

        def commit(start: int, stop: int) -> None:
            if transaction is not None and transaction.is_open:
                deliveries = [Delivery(fetched, at, None, None) for at in range(start, stop)]
                failure = self._calls.commit_transaction(transaction, deliveries)
                if failure is not None:
                    raise failure

        def call_message(value: Any) -> Any:
            nonlocal following
            index, following = following, following + 1
            if accepts is not None and not accepts(value):
                self._filtered += 1
                return None
            if not wants_message:
                return function(value)
            if builds_messages:
                result = function(value, batch, index, 1, transaction)
            else:
                result = function(value, make_message(value, batch, index, 1, transaction))
            if transaction is not None:
                commit(index, following)
            return result

        def call_batch(values: list[Any]) -> None:
            nonlocal following
            start, following = following, following + len(values)

            def make_messages() -> list[Message[Any]]:
                rows = enumerate(values, start)
                return [make_message(value, batch, at, 1, transaction) for at, value in rows]

            function(values, make_messages if builds_messages else make_messages())
            commit(start, following)

        return call_message if job.batch is None else call_batch
