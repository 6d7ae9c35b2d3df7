"""Async handlers, on the app's event loop: as many at once as ``concurrency`` says.

Theory of operation
-------------------

``concurrency`` tasks share one dispatcher; there is no task, future or event a message. A task
takes the next message whose turn has come and awaits its handler *in place*, so a handler that
never suspends costs no trip through the loop. Before it awaits, a task makes sure that one other
is on its way (the *standby*): if the handler suspends, the standby carries on with what is next,
and wakes a standby of its own. If it does not suspend, one task does everything and the standby
waits for its turn on the loop, which the running task gives up every few milliseconds.

Where nothing stands in the way of a whole batch (no key of its partition is in flight, nothing in
it was seen before), a task handles it on the *fast path*: one handler after the other, no key
marked, because nobody else looks. As soon as anybody does, because a handler suspended or the
poller has something to say, the run is *interrupted*: what it handled is recorded, the key of the
message in flight is marked, and the rest of the batch is given out as usual. So whatever touches
the dispatcher calls
:meth:`AsyncExecutor._interrupt` first.

All of an executor's state is touched on the loop only; what comes from other threads (the poller,
confirmed writes) arrives through ``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Literal

from typing_extensions import override

from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch
from streams.errors import HandlerTimeout
from streams.message import make_message
from streams.processing.executor import Executor
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import Job, Skip

TIME_SLICE = 0.005
"""Seconds one task keeps the loop to itself, at most, while handlers do not suspend."""

OWNERSHIP_RECHECK = 0.05
"""Seconds between looks at whether ownership was confirmed again."""

CANCEL_GRACE = 1.0
"""Real seconds given to cancelled handlers."""


_NOTHING_TO_HANDLE: Any = object()


def _batches_of(busy: FetchedBatch | Sequence[FetchedBatch] | None) -> Sequence[FetchedBatch]:
    if busy is None:
        return ()
    return (busy,) if isinstance(busy, FetchedBatch) else busy


class FastRun:
    """A batch that one task handles message by message."""

    __slots__ = ("delivery", "fetched", "index", "interrupted", "task_index", "yielding")

    def __init__(self, fetched: FetchedBatch, task_index: int) -> None:
        self.fetched = fetched
        self.task_index = task_index
        self.index = 0
        """The message in flight; while resting, the next one."""
        self.yielding = False
        """Between two messages, to let others have the loop."""
        self.interrupted = False
        """It was interrupted."""
        self.delivery: Delivery | None = None
        """Once interrupted: the message in flight."""


class AsyncExecutor(Executor):
    """Runs an async handler, ``concurrency`` messages (or batches) at a time."""

    def __init__(
        self,
        job: Job,
        loop: asyncio.AbstractEventLoop,
        transaction: Callable[[], HandlerTransaction] | None = None,
    ) -> None:
        super().__init__(job, transaction)
        self._loop = loop
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._standby = False
        """A task was woken and did not run yet."""
        self._notified = False
        self._fast_run: FastRun | None = None
        self._slice_owner = -1
        """The task whose slice of the loop this is: another one begins its own; -1: nobody's."""
        self._closed = False
        self._fast_allowed = (
            job.filter is None
            and job.encode_results is None
            and job.timeout is None
            and self._open_transaction is None
        )
        self._busy: list[FetchedBatch | Sequence[FetchedBatch] | None] = [None] * job.concurrency
        """What each task's handler is running over."""
        self._deadlines: list[float | None] = [None] * job.concurrency
        """When each handler's time is up."""
        self._cancel_reason: list[Literal["timeout", "drain"] | None] = [None] * job.concurrency
        """Why we cancelled it."""
        self._tick_at: float | None = None
        self._tick_handle: asyncio.TimerHandle | None = None
        self._idle_changed = threading.Condition()
        self._waiters = 0
        self._unwatch: Callable[[], None] = lambda: None

    # -- the poller's side

    @override
    def start(self) -> None:
        self._unwatch = self.job.clock.on_jump(self._clock_advanced)
        self._tasks = [
            self._loop.create_task(
                self._main(task_index), name=f"streams-{self.job.name}-{task_index}"
            )
            for task_index in range(self.job.concurrency)
        ]

    @override
    def call_soon(self, action: Callable[[], None]) -> None:
        self._call_on_loop(self._touch_dispatcher, action)

    def _call_on_loop(self, call: Callable[..., None], *given: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(call, *given)

    def _touch_dispatcher(self, action: Callable[[], None]) -> None:
        try:
            self._interrupt()
            action()
        except BaseException as error:
            self.fail(error)
        self._wake_one()
        self._notify_waiters()

    @override
    def notify(self) -> None:
        if not self._notified and self._idle:
            self._notified = True
            self._call_on_loop(self._wake_after_notify)

    def _wake_after_notify(self) -> None:
        self._notified = False
        self._wake_one()

    def _clock_advanced(self) -> None:
        self.call_soon(self._tick)
        with self._idle_changed:
            self._idle_changed.notify_all()

    @property
    @override
    def running(self) -> int:
        return sum(1 for busy in self._busy if busy is not None)

    @override
    def counters(self) -> tuple[int, int]:
        while True:
            run = self._fast_run
            handled, filtered = super().counters()
            if run is not None:
                handled += run.fetched.settled.count(1)
            if self._fast_run is run:
                return handled, filtered

    @override
    def call_and_wait(self, action: Callable[[], None]) -> None:
        ran = threading.Event()

        def run() -> None:
            action()
            ran.set()

        self.call_soon(run)
        while not ran.wait(0.5):
            if self._loop.is_closed() or self.fatal is not None:
                return

    @override
    def wait_idle(self, states: Collection[PartitionState] | None, until: float) -> bool:
        is_idle = self._idle_predicate(states)
        with self._idle_changed:
            self._waiters += 1
            try:
                while not is_idle():
                    left = until - self._now()
                    if left <= 0 or self.impatient or self.fatal is not None:
                        return is_idle()
                    if self._loop.is_closed():
                        return is_idle()
                    self._idle_changed.wait(min(1.0, self.job.clock.real_timeout(left)))
                return True
            finally:
                self._waiters -= 1

    def _idle_predicate(self, states: Collection[PartitionState] | None) -> Callable[[], bool]:
        state_ids = None if states is None else set(map(id, states))

        def is_idle() -> bool:
            if state_ids is None or states is None:
                return not any(self._busy) and not self.unconfirmed
            running = (id(fetched.state) for busy in self._busy for fetched in _batches_of(busy))
            return state_ids.isdisjoint(running) and not any(each.unconfirmed for each in states)

        return is_idle

    @override
    def cancel(self, states: Collection[PartitionState] | None) -> bool:
        state_ids = None if states is None else set(map(id, states))

        def cancel() -> None:
            for task_index, busy in enumerate(self._busy):
                affected = state_ids is None or any(
                    id(fetched.state) in state_ids for fetched in _batches_of(busy)
                )
                if busy and affected and self._cancel_reason[task_index] is None:
                    self._cancel_reason[task_index] = "drain"
                    self._tasks[task_index].cancel()

        self.call_soon(cancel)
        with self._idle_changed:
            self._waiters += 1
            try:
                return self._idle_changed.wait_for(self._idle_predicate(states), CANCEL_GRACE)
            finally:
                self._waiters -= 1

    @override
    def suspend(self) -> None:
        self._suspended = True

    @override
    def resume(self) -> None:
        self._suspended = self._closed or self.fatal is not None
        self.call_soon(lambda: None)

    @override
    def close(self) -> None:
        self._unwatch()
        self._suspended = self._closed = True

        def cancel() -> None:
            if self._tick_handle is not None:
                self._tick_handle.cancel()
            for task in self._tasks:
                task.cancel()

        self.call_soon(cancel)

    @override
    async def wait_closed(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE)

    def _notify_waiters(self) -> None:
        if self._waiters:
            with self._idle_changed:
                self._idle_changed.notify_all()

    # -- time

    def _tick_at_latest(self, when: float) -> None:
        """Look again at ``when``, monotonic seconds."""
        if self._tick_at is not None and self._tick_at <= when:
            return
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._tick_at = when
        delay = self.job.clock.real_timeout(when - self._now())
        self._tick_handle = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._tick_at = self._tick_handle = None
        if self._closed:
            return
        now = self._now()
        if self.job.timeout is not None:
            for task_index, end in enumerate(self._deadlines):
                if end is not None and end <= now and self._cancel_reason[task_index] is None:
                    self._cancel_reason[task_index] = "timeout"
                    self._tasks[task_index].cancel()
            ends = [
                end
                for task_index, end in enumerate(self._deadlines)
                if end and self._cancel_reason[task_index] is None
            ]
            if ends:
                self._tick_at_latest(min(ends))
        self.dispatcher.release_due(now)
        due = self.dispatcher.next_due
        if due is not None:
            self._tick_at_latest(due)
        self._wake_one()

    # -- the tasks

    def _wake_one(self) -> None:
        idle = self._idle
        while idle:
            future = idle.pop()
            if not future.done():
                future.set_result(None)
                self._standby = True
                return

    async def _wait_for_work(self) -> None:
        """Nothing to do for this task: wait to be woken."""
        if self._closed:
            raise asyncio.CancelledError  # it was cancelled, and its handler would not hear of it
        if not (self._suspended or self.dispatcher.paused or self._fast_run is not None):
            if self.dispatcher.has_backlog:
                self._tick_at_latest(self._now() + OWNERSHIP_RECHECK)
            elif self.dispatcher.next_due is not None:
                self._tick_at_latest(self.dispatcher.next_due)
            self.dispatcher.refill()
        future: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(future)
        await future
        self._standby = False

    async def _main(self, task_index: int) -> None:
        try:
            if self.job.batch is None and self._fast_allowed:
                await self._fast_loop(task_index)
            elif self.job.batch is None:
                await self._general_loop(task_index)
            else:
                await self._batch_loop(task_index, self.job.batch)
        except asyncio.CancelledError:
            if not self._closed:
                self.fail(asyncio.CancelledError("a runner's task was cancelled from outside"))
                raise
        except BaseException as error:
            # A bug of ours, or SystemExit and the like from a handler: never silently.
            self.fail(error)
        finally:
            self._busy[task_index] = None
            self._notify_waiters()

    async def _fast_loop(self, task_index: int) -> None:
        """The hot loop: nothing but decode, handler and the engine."""
        job, now, busy, dispatcher = self.job, self._now, self._busy, self.dispatcher
        function, wants_message, reset_context = job.function, job.wants_message, job.reset_context
        take, mark_settled, idle = dispatcher.take, dispatcher.mark_settled, self._idle
        needs_lookup = job.attempt_log is not None or job.key_parking is not None
        until = 0.0
        while True:
            moment = now()
            if self._slice_owner != task_index:
                self._slice_owner, until = task_index, moment + TIME_SLICE
                if self.timing is not None:
                    function = self.timing.sample(job.function)
            elif moment > until:
                await asyncio.sleep(0)
                self._slice_owner = -1
                continue
            if self._fast_run is not None:
                if self._fast_run.yielding:
                    await self._wait_for_work()
                    continue
                self._interrupt()
            delivery = None
            if not self._suspended:
                if dispatcher.current is None:
                    fetched = dispatcher.take_fast(moment)
                    if fetched is not None:
                        if fetched.decode is None or (
                            needs_lookup and not self.nothing_recorded(fetched)
                        ):
                            dispatcher.decline_fast(fetched)
                        else:
                            await self._run_fast(task_index, fetched)
                            continue
                delivery = take(moment)
            if delivery is None:
                await self._wait_for_work()
                continue
            if idle and not self._standby:
                self._wake_one()
            fetched, index = delivery.fetched, delivery.index
            decode = fetched.decode
            if (
                decode is None
                or delivery.reason is not None
                or (needs_lookup and not self.nothing_recorded(fetched))
            ):
                event = self._decode_or_settle(delivery)
                if event is _NOTHING_TO_HANDLE:
                    continue
            else:
                try:
                    event = decode(fetched.values[index])
                except Exception:
                    event = self._decode_or_settle(delivery)
                    if event is _NOTHING_TO_HANDLE:
                        continue
            busy[task_index] = fetched
            try:
                if wants_message:
                    attempt = self.attempt_number(delivery) if needs_lookup else delivery.attempt
                    if reset_context is not None:
                        await function(event, fetched.batch, index, attempt, None)
                    else:
                        await function(event, make_message(event, fetched.batch, index, attempt))
                else:
                    await function(event)
            except Exception as error:
                self._handler_failed(task_index, delivery, error)
            except asyncio.CancelledError:
                busy[task_index] = None
                self._handler_cancelled(task_index, [delivery])
            else:
                busy[task_index] = None
                if needs_lookup:
                    self.settle(delivery)
                else:
                    mark_settled(delivery)
                if self._cancel_reason[task_index] is not None:
                    self._uncancel(task_index)
            finally:
                if reset_context is not None:
                    reset_context()
            if self._waiters:
                self._notify_waiters()

    def _handler_failed(self, task_index: int, delivery: Delivery, error: Exception) -> None:
        self._busy[task_index] = None
        self.failed(delivery, error)
        self._tick_for_retries()

    async def _run_fast(self, task_index: int, fetched: FetchedBatch) -> None:
        """Handle a whole batch, or as much of it as nobody interrupts."""
        job, now, dispatcher, idle = self.job, self._now, self.dispatcher, self._idle
        function, wants_message, reset_context = job.function, job.wants_message, job.reset_context
        decode, values, settled = fetched.decode, fetched.values, fetched.settled
        batch = fetched.batch
        if self.timing is not None:
            function = self.timing.sample(function)
        assignment = fetched.state.assignment
        run = self._fast_run = FastRun(fetched, task_index)
        self._busy[task_index] = fetched
        index = 0
        until = now() + TIME_SLICE
        if idle and not self._standby:
            self._wake_one()
        try:
            for value in values:
                moment = now()
                if moment > until:
                    run.index, run.yielding = index, True
                    await asyncio.sleep(0)
                    if run.interrupted:
                        return
                    run.yielding = False
                    if dispatcher.ready:
                        break
                    if idle and not self._standby:
                        self._wake_one()
                    moment = now()
                    until = moment + TIME_SLICE
                if moment >= assignment.valid_until or self._suspended:
                    break
                run.index = index
                try:
                    event = decode(value)  # type: ignore[misc]
                except Exception:
                    self._interrupt()
                    if run.delivery is not None:
                        dispatcher.abandon(run.delivery)  # what is wrong is found in its turn
                    return
                if wants_message:
                    if reset_context is not None:
                        await function(event, batch, index, 1, None)
                        reset_context()
                    else:
                        await function(event, make_message(event, batch, index, 1))
                else:
                    await function(event)
                if run.interrupted:
                    if run.delivery is not None:
                        dispatcher.mark_settled(run.delivery)
                    if self._cancel_reason[task_index] is not None:
                        self._uncancel(task_index)
                    return
                settled[index] = 1
                index += 1
            self._fast_run = None
            dispatcher.finish_fast(fetched, 0, index)
        except Exception as error:
            self._interrupt()
            if run.delivery is not None:
                self._handler_failed(task_index, run.delivery, error)
        except asyncio.CancelledError:
            if run.yielding:
                raise
            self._interrupt()
            self._busy[task_index] = None
            self._handler_cancelled(task_index, [] if run.delivery is None else [run.delivery])
        finally:
            self._busy[task_index] = None
            if reset_context is not None:
                reset_context()
            if self._waiters:
                self._notify_waiters()

    def _interrupt(self) -> None:
        """Somebody is about to look at the dispatcher: nothing takes the fast path any more."""
        run, self._fast_run = self._fast_run, None
        if run is None:
            return
        run.interrupted = True
        if run.yielding:
            self._busy[run.task_index] = None
            self.dispatcher.finish_fast(run.fetched, 0, run.index)
        else:
            (run.delivery,) = self.dispatcher.interrupt_fast(
                run.fetched, 0, run.index, run.index + 1
            )

    def _decode_or_settle(self, delivery: Delivery) -> Any:
        """The decoded value, or ``_NOTHING_TO_HANDLE`` where there is nothing to be handled."""
        if delivery.reason is not None:
            self.dead_letter(delivery)
            return _NOTHING_TO_HANDLE
        if self.job.key_parking is not None and self.park_if_closed(delivery):
            return _NOTHING_TO_HANDLE
        try:
            return self.decode(delivery.fetched, delivery.index)
        except Skip:
            self.skipped(delivery)
        except Exception as error:
            self.reject_undecodable(delivery, error)
        return _NOTHING_TO_HANDLE

    async def _general_loop(self, task_index: int) -> None:
        job, now, busy, dispatcher = self.job, self._now, self._busy, self.dispatcher
        function, accepts, wants_message = job.function, job.filter, job.wants_message
        reset_context = job.reset_context
        transaction = self._open_transaction() if self._open_transaction is not None else None
        simple = job.encode_results is None and transaction is None and job.key_parking is None
        until = 0.0
        while True:
            moment = now()
            if self._slice_owner != task_index:
                self._slice_owner, until = task_index, moment + TIME_SLICE
                if self.timing is not None:
                    function = self.timing.sample(job.function)
            elif moment > until:
                await asyncio.sleep(0)
                self._slice_owner = -1
                continue
            delivery = None if self._suspended else dispatcher.take(moment)
            if delivery is None:
                await self._wait_for_work()
                continue
            event = self._decode_or_settle(delivery)
            if event is _NOTHING_TO_HANDLE:
                continue
            if not self._standby and self._idle:
                self._wake_one()
            busy[task_index] = delivery.fetched
            if job.timeout is not None:
                self._set_deadline(task_index, moment + job.timeout)
            try:
                if accepts is not None and not accepts(event):
                    self.skipped(delivery)
                    continue
                if job.builds_messages:
                    result = await function(event, *self.message_arguments(delivery, transaction))
                elif wants_message:
                    result = await function(event, self.build_message(event, delivery, transaction))
                else:
                    result = await function(event)
                if transaction is not None and transaction.is_open:
                    failure = self.commit_transaction(transaction, [delivery])
                    if failure is not None:
                        self.failed(delivery, failure)
                        continue
                if simple:
                    dispatcher.mark_settled(delivery)
                else:
                    self.succeeded(delivery, result)
            except Exception as error:
                if transaction is not None:
                    transaction.rollback()  # before anything is written elsewhere
                self.failed(delivery, error)
                self._tick_for_retries()
            except asyncio.CancelledError:
                if transaction is not None:
                    transaction.rollback()
                self._handler_cancelled(task_index, [delivery])
            finally:
                busy[task_index] = None
                if reset_context is not None:
                    reset_context()
                if transaction is not None:
                    transaction.rollback()
                if job.timeout is not None:
                    self._deadlines[task_index] = None
                if self._cancel_reason[task_index] is not None:
                    self._uncancel(task_index)
                if self._waiters:
                    self._notify_waiters()

    async def _batch_loop(self, task_index: int, size: int) -> None:
        job, now, dispatcher = self.job, self._now, self.dispatcher
        function = job.function
        transaction = self._open_transaction() if self._open_transaction is not None else None
        until = 0.0
        while True:
            moment = now()
            if self._slice_owner != task_index:
                self._slice_owner, until = task_index, moment + TIME_SLICE
                if self.timing is not None:
                    function = self.timing.sample(job.function)
            elif moment > until:
                await asyncio.sleep(0)
                self._slice_owner = -1
                continue
            deliveries = [] if self._suspended else dispatcher.take_batch(moment, size)
            if not deliveries:
                await self._wait_for_work()
                continue
            if deliveries[0].reason is not None:
                self.dead_letter(deliveries[0])
                continue
            deliveries = self.without_parked(deliveries)
            if not deliveries:
                continue
            if not self._standby and self._idle:
                self._wake_one()
            outcome = self.decode_batch(deliveries)
            chosen = [deliveries[index] for index in outcome.accepted]
            self._busy[task_index] = [delivery.fetched for delivery in deliveries]
            if job.timeout is not None:
                self._set_deadline(task_index, moment + job.timeout)
            try:
                if chosen and job.wants_message:
                    messages = self.build_messages(outcome.decoded, chosen, transaction)
                    outcome.result = await function(outcome.decoded, messages)
                elif chosen:
                    outcome.result = await function(outcome.decoded)
                if transaction is not None and transaction.is_open:
                    outcome.failure = self.commit_transaction(transaction, chosen)
            except Exception as error:
                outcome.failure = error
            except asyncio.CancelledError:
                if transaction is not None:
                    transaction.rollback()
                self._handler_cancelled(task_index, deliveries)
                continue
            finally:
                self._busy[task_index] = None
                if transaction is not None:
                    transaction.rollback()
                self._deadlines[task_index] = None
                if self._cancel_reason[task_index] is not None:
                    self._uncancel(task_index)
                if self._waiters:
                    self._notify_waiters()
            self.batch_ended(deliveries, outcome)
            self._tick_for_retries()

    def _set_deadline(self, task_index: int, end: float) -> None:
        self._deadlines[task_index] = end
        self._tick_at_latest(end)

    def _tick_for_retries(self) -> None:
        due = self.dispatcher.next_due
        if due is not None:
            self._tick_at_latest(due)

    def _uncancel(self, task_index: int) -> None:
        """We cancelled the handler and it ended otherwise: its outcome counts."""
        self._cancel_reason[task_index] = None
        self._tasks[task_index].uncancel()

    def _handler_cancelled(self, task_index: int, deliveries: Sequence[Delivery]) -> None:
        """A handler ended in CancelledError: ours (time is up), its own doing, or the app's end."""
        task, reason = self._tasks[task_index], self._cancel_reason[task_index]
        self._cancel_reason[task_index] = None
        if reason is None and task.cancelling():
            for delivery in reversed(deliveries):
                self.dispatcher.abandon(delivery)
            raise asyncio.CancelledError
        if reason is not None:
            task.uncancel()
        if reason == "drain":
            for delivery in reversed(deliveries):
                self.dispatcher.abandon(delivery)
            return
        error: Exception
        if reason == "timeout":
            error = HandlerTimeout(f"{self.job.name} ran longer than {self.job.timeout:g} s")
        else:
            error = RuntimeError(f"{self.job.name} was cancelled from within")
        if self.job.batch is None:
            self.failed(deliveries[0], error)
        else:
            self.batch_failed(deliveries, error)
        self._tick_for_retries()
