"""Plain handlers, in worker threads: never on the event loop, never inside a turn of the poller.

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
from collections.abc import Callable, Collection, Iterable, Sequence
from types import CoroutineType, GeneratorType
from typing import Any

from typing_extensions import override

from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch
from streams.errors import BatchError, ConfigError
from streams.message import Batch, Message, make_message
from streams.processing.executor import Executor, logger
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import Job, Skip
from streams.processing.polling_hand_over import PollingHandOver

OWNERSHIP_RECHECK = 0.05
"""Seconds between looks at whether ownership was confirmed again."""

FastRunResult = tuple[int, int, "BaseException | None"]
"""A fast run: where it stopped, before where what it stopped at ends, and why."""


def _decoded_values(fetched: FetchedBatch, start: int, stop: int) -> Iterable[Any]:
    """The values of a batch that may take the fast path, decoded one by one."""
    if fetched.decoded is not None:
        return fetched.decoded[start:stop]
    values = fetched.values if stop - start == len(fetched) else fetched.values[start:stop]
    return map(fetched.decode, values)  # type: ignore[arg-type]  # one of both is there


def _message_builder(
    events: Sequence[Any], batch: Batch, start: int, transaction: HandlerTransaction | None
) -> Callable[[], list[Message[Any]]]:
    """Makes the messages of consecutive rows of a batch, when it is called."""
    return lambda: [
        make_message(event, batch, index, 1, transaction)
        for index, event in enumerate(events, start)
    ]


def _materialized(result: Any) -> Any:
    """A generator's values: its code is the handler's, so it runs where the handler does."""
    return list(result) if hasattr(result, "__next__") else result


class ThreadExecutor(Executor):
    """Runs a plain handler, one message or one batch at a time in each of its threads."""

    def __init__(
        self, job: Job, open_transaction: Callable[[], HandlerTransaction] | None = None
    ) -> None:
        super().__init__(job, open_transaction)
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        """Told when there may be something to do."""
        self._idle_changed = threading.Condition(lock)
        """Told, if somebody waits, when a handler ended."""
        self._notifications = 0
        """How often there may have been something to do."""
        self._waiters = 0
        self._idle = 0
        self._closed = False
        self._busy: list[Sequence[FetchedBatch]] = [()] * job.concurrency
        self._started_at: list[float | None] = [None] * job.concurrency
        self._reported_overdue: set[int] = set()
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
            and job.encode_results is None
            and job.timeout is None
            and not (job.batch and job.filter)
        )
        self._hand_over: PollingHandOver | None = None
        self._polling = False
        """The one thread takes a turn of the poller's, and does not wait for notifications."""
        self._wake_poll: Callable[[], None] = lambda: None
        self._fast_batch: FetchedBatch | None = None
        """What is on the fast path; nobody counts it before it ends."""
        self._filtered = 0
        """How many of it were filtered out so far."""
        self._unwatch: Callable[[], None] = lambda: None
        self._function: Callable[..., Any] = self._first_call

    def _first_call(self, *arguments: Any) -> Any:
        """The handler, until it returned once: what it returned tells whether anything ran."""
        result = self.job.function(*arguments)
        complaint = ""
        if isinstance(result, CoroutineType):
            result.close()
            complaint = "a coroutine: make what wraps the handler an `async def` too"
        elif isinstance(result, GeneratorType) and self.job.encode_results is None:
            complaint = "a generator, which nobody would run: say with to= where its values go"
        if complaint:
            raise ConfigError(f"processor {self.job.name}: the handler returned {complaint}")
        self._function = self.job.function
        return result

    def _timed_handler(self) -> Callable[..., Any]:
        """What to call for the next batch or message."""
        function = self._function
        if self.timing is None or function == self._first_call:
            return function
        return self.timing.sample(function)

    # -- the poller's side

    @override
    def start(self) -> None:
        self._unwatch = self.job.clock.on_jump(self._clock_advanced)
        for thread in self._threads:
            thread.start()

    @override
    def call_soon(self, action: Callable[[], None]) -> None:
        with self._changed:
            action()
            self._notify()
            if self._waiters:
                self._idle_changed.notify_all()

    def _notify(self, threads: int = 1) -> None:
        """There may be something to do for so many; the lock is held."""
        self._notifications += 1
        self._changed.notify(threads)
        if self._polling:
            self._wake_poll()

    @override
    def accept_polling(self, hand_over: PollingHandOver, wake: Callable[[], None]) -> None:
        job = self.job
        # It waits for nothing but messages, as long as nothing fails.
        if job.concurrency == 1 and job.encode_results is None and job.key_parking is None:
            self._hand_over, self._wake_poll = hand_over, wake

    @override
    def notify(self) -> None:
        if self._idle:
            with self._changed:
                self._changed.notify()

    def _clock_advanced(self) -> None:
        with self._changed:
            self._notify(len(self._threads))
            self._idle_changed.notify_all()

    @property
    @override
    def running(self) -> int:
        return sum(1 for busy in self._busy if busy)

    @override
    def counters(self) -> tuple[int, int]:
        with self._changed:
            handled, filtered = super().counters()
            if self._fast_batch is not None:
                filtered_so_far = self._filtered
                handled += self._fast_batch.settled.count(1) - filtered_so_far
                filtered += filtered_so_far
            return handled, filtered

    @override
    def call_and_wait(self, action: Callable[[], None]) -> None:
        self.call_soon(action)

    @override
    def wait_idle(self, states: Collection[PartitionState] | None, until: float) -> bool:
        state_ids = None if states is None else set(map(id, states))

        def is_idle() -> bool:
            if state_ids is None or states is None:
                return not any(self._busy) and not self.unconfirmed
            running = (id(fetched.state) for busy in self._busy for fetched in busy)
            return state_ids.isdisjoint(running) and not any(each.unconfirmed for each in states)

        with self._changed:
            self._waiters += 1
            try:
                while not is_idle():
                    left = until - self._now()
                    if left <= 0 or self.impatient or self.fatal is not None:
                        return is_idle()
                    self._idle_changed.wait(self.job.clock.real_timeout(left))
                return True
            finally:
                self._waiters -= 1

    @override
    def suspend(self) -> None:
        with self._changed:
            self._suspended = True

    @override
    def resume(self) -> None:
        with self._changed:
            self._suspended = self._closed or self.fatal is not None
            self._notify(len(self._threads))

    @override
    def close(self) -> None:
        self._unwatch()
        with self._changed:
            self._suspended = self._closed = True
            self._notify(len(self._threads))
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

    # -- a worker; the lock is held except while a handler runs

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
                # The poller tells nobody that it offered something if nobody is idle; and what was
                # told while the lock was free, to poll, this thread did not hear.
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
            hand_over.give_back()
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
        now = self._now()
        dispatcher = self.dispatcher
        dispatcher.release_due(now)
        if self._fast_allowed:
            fetched = dispatcher.take_fast(now)
            if fetched is not None:
                self._run_fast(fetched, thread_index, transaction)
                return True
        batch = self.job.batch
        if batch is None:
            delivery = dispatcher.take(now)
            deliveries = [] if delivery is None else [delivery]
        else:
            deliveries = dispatcher.take_batch(now, batch)
        if not deliveries:
            return False
        if deliveries[0].reason is not None:
            self.dead_letter(deliveries[0])
            return True
        if self.job.key_parking is not None:
            deliveries = self.without_parked(deliveries)
            if not deliveries:
                return True
        if self._idle and dispatcher.has_backlog:
            self._changed.notify()
        self._busy[thread_index] = [delivery.fetched for delivery in deliveries]
        self._started_at[thread_index] = now
        try:
            if batch is None:
                self._run_handler(deliveries[0], transaction)
            else:
                self._run_batch_handler(deliveries, transaction)
        finally:
            self._mark_ended(thread_index)
        return True

    def _mark_running(
        self, thread_index: int, fetched_batches: Sequence[FetchedBatch], now: float
    ) -> None:
        self._busy[thread_index] = fetched_batches
        self._started_at[thread_index] = now

    def _mark_ended(self, thread_index: int) -> None:
        self._started_at[thread_index] = None
        self._busy[thread_index] = ()
        if self._waiters:
            self._idle_changed.notify_all()

    def _run_handler(self, delivery: Delivery, transaction: HandlerTransaction | None) -> None:
        job = self.job
        result: Any = None
        failure: BaseException | None = None
        skip = undecodable = False
        self._changed.release()
        try:
            try:
                event = self.decode(delivery.fetched, delivery.index)
            except Skip:
                skip = True
            except Exception as error:
                undecodable, failure = True, error
            else:
                if job.filter is not None and not job.filter(event):
                    skip = True
                elif job.builds_messages:
                    result = self._timed_handler()(
                        event, *self.message_arguments(delivery, transaction)
                    )
                elif job.wants_message:
                    result = self._timed_handler()(
                        event, self.build_message(event, delivery, transaction)
                    )
                else:
                    result = self._timed_handler()(event)
                if job.encode_results is not None:
                    result = _materialized(result)
                if transaction is not None and transaction.is_open:
                    failure = self.commit_transaction(transaction, [delivery])
        except Exception as error:
            failure = error
        finally:
            if transaction is not None:
                transaction.rollback()
            self._changed.acquire()
        if undecodable and failure is not None:
            self.reject_undecodable(delivery, failure)
        elif failure is not None:
            self.failed(delivery, failure)
        elif skip:
            self.skipped(delivery)
        else:
            self.succeeded(delivery, result)

    def _run_batch_handler(
        self, deliveries: Sequence[Delivery], transaction: HandlerTransaction | None
    ) -> None:
        job = self.job
        self._changed.release()
        try:
            outcome = self.decode_batch(deliveries)
            chosen = [deliveries[index] for index in outcome.accepted]
            try:
                if chosen and job.wants_message:
                    messages = self.build_messages(outcome.decoded, chosen, transaction)
                    outcome.result = self._timed_handler()(outcome.decoded, messages)
                elif chosen:
                    outcome.result = self._timed_handler()(outcome.decoded)
                if job.encode_results is not None and outcome.result is not None:
                    outcome.result = [_materialized(each) for each in outcome.result]
                if transaction is not None and transaction.is_open:
                    outcome.failure = self.commit_transaction(transaction, chosen)
            except Exception as error:
                outcome.failure = error
        finally:
            if transaction is not None:
                transaction.rollback()
            self._changed.acquire()
        self.batch_ended(deliveries, outcome)

    # -- the fast path

    def _run_fast(
        self, fetched: FetchedBatch, thread_index: int, transaction: HandlerTransaction | None
    ) -> None:
        dispatcher, job = self.dispatcher, self.job
        if (fetched.decoded is None and fetched.decode is None) or not self.nothing_recorded(
            fetched
        ):
            dispatcher.decline_fast(fetched)
            return
        self._mark_running(thread_index, (fetched,), self._now())
        self._fast_batch, self._filtered = fetched, 0
        self._changed.release()
        try:
            if job.batch is not None:
                stop, end, error = self._fast_batches(fetched, job.batch, transaction)
            elif job.takes_value_only:
                stop, end, error = self._fast_values(fetched)
            else:
                stop, end, error = self._fast_messages(fetched, transaction)
        finally:
            self._changed.acquire()
            self._mark_ended(thread_index)
            self._fast_batch = None
            dispatcher.counts.filtered += self._filtered
            dispatcher.counts.handled -= self._filtered  # a fast run counts them all
        if error is None:
            dispatcher.finish_fast(fetched, 0, stop)
            return
        deliveries = dispatcher.interrupt_fast(fetched, 0, stop, end)
        if not deliveries:
            return
        if len(deliveries) > 1:
            # Not known yet whose fault it is, decoding's or the handler's: one by one.
            self.batch_failed(deliveries, error)
            return
        delivery = deliveries[0]
        try:
            self.decode(fetched, delivery.index)
        except Skip:
            self.skipped(delivery)
        except Exception as undecodable:
            self.reject_undecodable(delivery, undecodable)
        else:
            if isinstance(error, BatchError):
                self.batch_failed(deliveries, error)
            else:
                self.failed(delivery, error)

    def _fast_values(self, fetched: FetchedBatch) -> FastRunResult:
        """The hot loop: the handler takes the value and nothing else is asked for."""
        function, now, settled = self._timed_handler(), self._now, fetched.settled
        assignment = fetched.state.assignment
        index = 0
        try:
            for event in _decoded_values(fetched, 0, len(fetched)):
                if now() >= assignment.valid_until or self._suspended:
                    break
                function(event)
                settled[index] = 1
                index += 1
        except Exception as error:
            return index, index + 1, error
        return index, index, None

    def _fast_messages(
        self, fetched: FetchedBatch, transaction: HandlerTransaction | None
    ) -> FastRunResult:
        """The same with filter, message and transaction."""
        job, now, settled, batch = self.job, self._now, fetched.settled, fetched.batch
        function, accepts, wants_message = self._timed_handler(), job.filter, job.wants_message
        builds_messages = job.builds_messages
        assignment = fetched.state.assignment
        index = 0
        failure: BaseException | None = None
        try:
            for event in _decoded_values(fetched, 0, len(fetched)):
                if now() >= assignment.valid_until or self._suspended:
                    break
                if accepts is not None and not accepts(event):
                    self._filtered += 1
                elif not wants_message:
                    function(event)
                else:
                    if builds_messages:
                        function(event, batch, index, 1, transaction)
                    else:
                        function(event, make_message(event, batch, index, 1, transaction))
                    if transaction is not None and transaction.is_open:
                        delivery = Delivery(fetched, index, None, None)
                        failure = self.commit_transaction(transaction, [delivery])
                        if failure is not None:
                            return index, index + 1, failure
                settled[index] = 1
                index += 1
        except Exception as error:
            return index, index + 1, error
        finally:
            if transaction is not None:
                transaction.rollback()
        return index, index, None

    def _fast_batches(
        self, fetched: FetchedBatch, size: int, transaction: HandlerTransaction | None
    ) -> FastRunResult:
        """The same for a batch handler."""
        job, now, settled, batch = self.job, self._now, fetched.settled, fetched.batch
        function, wants_message = self._timed_handler(), job.wants_message
        assignment = fetched.state.assignment
        index, count = 0, len(fetched)
        end = 0
        try:
            while index < count:
                if now() >= assignment.valid_until or self._suspended:
                    break
                end = min(count, index + size)
                events = list(_decoded_values(fetched, index, end))
                if len(events) < end - index:
                    raise RuntimeError("decoding raised StopIteration, which ends map()")
                if wants_message:
                    make = _message_builder(events, batch, index, transaction)
                    function(events, make if job.builds_messages else make())
                    if transaction is not None and transaction.is_open:
                        deliveries = [Delivery(fetched, at, None, None) for at in range(index, end)]
                        failure = self.commit_transaction(transaction, deliveries)
                        if failure is not None:
                            return index, end, failure
                else:
                    function(events)
                settled[index:end] = b"\1" * (end - index)
                index = end
        except Exception as error:
            return index, end, error
        finally:
            if transaction is not None:
                transaction.rollback()
        return index, index, None
