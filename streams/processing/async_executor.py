"""Async handlers, on the app's event loop: as many at once as ``concurrency`` says.

Theory of operation
-------------------

``concurrency`` tasks share one dispatcher; there is no task, future or event a message. A task
takes the next message that may be handled and awaits its handler *in place*, so a handler that
never suspends costs no trip through the loop. Before it awaits, a task makes sure that one other
is on its way (the *standby*): if the handler suspends, the standby carries on with what is next,
and wakes a standby of its own. If it does not suspend, one task does everything and the standby
waits until the running task yields the loop, which it does every few milliseconds.

Where nothing stands in the way of a whole batch (no key of its partition is in flight, nothing in
it was seen before), a task handles it on the *fast path*: one handler after the other, no key
marked, because nothing else looks at the dispatcher. Before anything does, because a handler
suspended or the poller calls, the run is *interrupted*: what it handled is recorded, the key of the
message in flight is marked, and the rest of the batch is given out as usual. So whatever touches
the dispatcher calls :meth:`AsyncExecutor._interrupt` first.

All of an executor's state is touched on the loop only; what comes from other threads (the poller,
confirmed writes) arrives through ``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Literal

from typing_extensions import override

from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import FetchedBatch
from streams.errors import HandlerTimeout
from streams.message import make_message
from streams.processing.executor import OWNERSHIP_RECHECK, Executor
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import Job
from streams.processing.outcomes import NotCalled
from streams.processing.pending_outputs import PendingOutputs

TIME_SLICE = 0.005
"""Seconds one task keeps the loop to itself, at most, while handlers do not suspend."""

CANCEL_GRACE = 1.0
"""Real seconds given to cancelled handlers."""


class FastRun:
    """A batch that one task handles message by message."""

    __slots__ = (
        "delivery",
        "fetched",
        "index",
        "interrupted",
        "results",
        "task_index",
        "yielding",
    )

    def __init__(
        self, fetched: FetchedBatch, task_index: int, outputs: PendingOutputs | None
    ) -> None:
        self.fetched = fetched
        self.task_index = task_index
        self.index = 0
        """The message in flight; while yielding, the next one."""
        self.yielding = False
        """Between two messages, to let others have the loop."""
        self.interrupted = False
        self.delivery: Delivery | None = None
        """The message in flight, once the run was interrupted at one."""
        self.results = None if outputs is None else outputs.open_run(fetched)
        """Takes what messages were turned into, in an exactly-once processor."""

    @property
    def handled(self) -> int:
        """How many messages of it were, at least."""
        return max(self.index, self.fetched.settled.count(1))

    def end_results(self) -> None:
        """Close the run of results, so that entries of other handlers may follow it."""
        if self.results is not None:
            self.results.end()


class AsyncExecutor(Executor):
    """Runs an async handler, ``concurrency`` messages (or batches) at a time.

    One class, because the fast path and the general one hand the same messages to each other at any
    await, and whatever the poller calls interrupts either; a call between two objects for each
    message would cost more than the message does.
    """

    def __init__(
        self,
        job: Job,
        loop: asyncio.AbstractEventLoop,
        open_transaction: Callable[[], HandlerTransaction] | None = None,
    ) -> None:
        super().__init__(job, open_transaction)
        self._loop = loop
        self._tasks: list[asyncio.Task[None]] = []
        self._idle: list[asyncio.Future[None]] = []
        self._standby = False
        """A task was woken and did not run yet."""
        self._notified = False
        self._fast_run: FastRun | None = None
        self._slice_owner = -1
        """The task that has the loop for :data:`TIME_SLICE`; -1: none."""
        self._fast_allowed = (
            job.batch is None
            and job.filter is None
            and (job.encode_results is None or job.outputs is not None)
            and job.timeout is None
            and self._open_transaction is None
        )
        self._deadlines: list[float | None] = [None] * job.concurrency
        """When each handler's time is up."""
        self._cancel_reason: list[Literal["timeout", "drain"] | None] = [None] * job.concurrency
        """Why we cancelled it."""
        self._tick_at: float | None = None
        self._tick_handle: asyncio.TimerHandle | None = None

    # -- the poller's side

    @override
    def start(self) -> None:
        super().start()
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
        with suppress(RuntimeError):  # the loop is closed: no task is left
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
    def notify(self) -> None:
        if not self._notified and self._idle:
            self._notified = True
            self._call_on_loop(self._wake_after_notify)

    def _wake_after_notify(self) -> None:
        self._notified = False
        self._wake_one()

    @override
    def wake_all(self) -> None:
        self.call_soon(self._on_tick)
        with self._idle_changed:
            self._idle_changed.notify_all()

    @override
    def counters(self) -> tuple[int, int]:
        while True:
            run = self._fast_run
            handled, filtered = super().counters()
            if run is not None:
                handled += run.handled
            if self._fast_run is run:
                return handled, filtered

    @override
    def _is_cut_off(self) -> bool:
        return self._loop.is_closed()

    @override
    def cancel(self, states: Collection[PartitionState] | None) -> bool:
        state_ids = None if states is None else set(map(id, states))

        def cancel() -> None:
            for task_index, busy in enumerate(self._busy):
                affected = state_ids is None or any(
                    id(fetched.state) in state_ids for fetched in busy
                )
                if busy and affected:
                    self._cancel_handler(task_index, "drain")

        self.call_soon(cancel)
        with self._idle_changed:
            self._waiters += 1
            try:
                return self._idle_changed.wait_for(lambda: self._is_idle(states), CANCEL_GRACE)
            finally:
                self._waiters -= 1

    def _cancel_handler(self, task_index: int, reason: Literal["timeout", "drain"]) -> None:
        if self._cancel_reason[task_index] is None:
            self._cancel_reason[task_index] = reason
            self._tasks[task_index].cancel()

    @override
    def close(self) -> None:
        super().close()

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

    def _tick_at_latest(self, when: float | None) -> None:
        """Look again at ``when``, monotonic seconds, if not before; None: no need to."""
        if when is None or (self._tick_at is not None and self._tick_at <= when):
            return
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._tick_at = when
        delay = self.job.clock.real_timeout(when - self._now())
        self._tick_handle = self._loop.call_later(delay, self._on_tick)

    def _on_tick(self) -> None:
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._tick_at = self._tick_handle = None
        if self._closed:
            return
        now = self._now()
        for task_index, end in enumerate(self._deadlines):
            if end is None or self._cancel_reason[task_index] is not None:
                continue
            if end <= now:
                self._cancel_handler(task_index, "timeout")
            else:
                self._tick_at_latest(end)
        self.dispatcher.release_due(now)
        self._tick_at_latest(self.dispatcher.next_due)
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
            raise asyncio.CancelledError  # its handler has swallowed the cancellation
        if not (self._suspended or self.dispatcher.paused or self._fast_run is not None):
            if self.dispatcher.has_backlog:
                self._tick_at_latest(self._now() + OWNERSHIP_RECHECK)
            else:
                self._tick_at_latest(self.dispatcher.next_due)
            self.dispatcher.refill()
        future: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(future)
        await future
        self._standby = False

    async def _main(self, task_index: int) -> None:
        try:
            await self._handle_messages(task_index)
        except asyncio.CancelledError:
            if not self._closed:
                self.fail(
                    asyncio.CancelledError(
                        "a handler task of the executor was cancelled by other code"
                    )
                )
                raise
        except BaseException as error:
            # A bug of ours, or SystemExit and the like from a handler: never silently.
            self.fail(error)
        finally:
            self._busy[task_index] = ()
            self._notify_waiters()

    async def _handle_messages(self, task_index: int) -> None:
        """Handle one message or batch after the other, and batches on the fast path."""
        job, now, idle, dispatcher = self.job, self._now, self._idle, self.dispatcher
        reset_context = job.reset_context
        function, fast_allowed, batches = job.function, self._fast_allowed, job.batch is not None
        calls, take = (
            self._calls,
            dispatcher.take_next if job.batch is None else self._calls.take_unit,
        )
        # The common case is written inline below: one more call per message would cost noticeably.
        value_only, admits_all = not batches and not job.wants_message, calls.admits_all
        decodes_at_once, settles_at_once = calls.decodes_at_once, calls.settles_at_once
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
            if self._fast_run is not None:
                if self._fast_run.yielding:
                    await self._wait_for_work()
                    continue
                self._interrupt()
            unit: Any = None
            if not self._suspended:
                if fast_allowed and dispatcher.current is None:
                    batch = self._take_fast(moment, decoded=False)
                    if batch is not None:
                        await self._run_fast(task_index, batch)
                        continue
                unit = take(moment)
            if unit is None:
                await self._wait_for_work()
                continue
            if not admits_all or unit.reason is not None:
                unit = calls.admit(unit)
                if unit is None:
                    self._tick_at_latest(dispatcher.next_due)
                    continue
            fetched: Any = None if batches else unit.fetched
            try:
                if decodes_at_once and fetched.decode is not None:
                    decoded = fetched.decode(fetched.values[unit.index])
                else:
                    decoded = calls.decode(unit)
            except Exception:
                decoded = calls.decode(unit)  # which says what is wrong
            if type(decoded) is NotCalled:
                decoded.settle()
                self._tick_at_latest(dispatcher.next_due)
                continue
            if idle and not self._standby:
                self._wake_one()
            self._busy[task_index] = [each.fetched for each in unit] if batches else (fetched,)
            if job.timeout is not None:
                self._deadlines[task_index] = moment + job.timeout
                self._tick_at_latest(moment + job.timeout)
            result: Any = None
            failure: BaseException | None = None
            if transaction is not None:
                transaction.begin_handler()
            try:
                try:
                    if value_only:
                        result = await function(decoded)
                    else:
                        result = await calls.call(function, unit, decoded, transaction)
                    if transaction is not None and transaction.is_open:
                        failure = calls.commit(transaction, unit, decoded)
                except Exception as error:
                    failure = error
                finally:
                    if transaction is not None:
                        transaction.rollback()  # before anything is written elsewhere
                if settles_at_once and failure is None:
                    dispatcher.mark_settled(unit)
                else:
                    calls.record_result(unit, decoded, result, failure)
                    self._tick_at_latest(dispatcher.next_due)
            except asyncio.CancelledError:
                self._handler_cancelled(task_index, unit)
            finally:
                if reset_context is not None:
                    reset_context()
                self._busy[task_index] = ()
                if self._deadlines[task_index] is not None:
                    self._deadlines[task_index] = None
                if self._cancel_reason[task_index] is not None:
                    self._uncancel(task_index)
                if self._waiters:
                    self._notify_waiters()

    async def _run_fast(self, task_index: int, fetched: FetchedBatch) -> None:
        """Handle a whole batch, or as much of it as nobody interrupts: nothing but decode, handler
        and a byte stored for each message."""
        job, now, dispatcher, idle = self.job, self._now, self.dispatcher, self._idle
        function, wants_message, reset_context = job.function, job.wants_message, job.reset_context
        decode, values, settled = fetched.decode, fetched.values, fetched.settled
        batch, encode, outputs = fetched.batch, job.encode_results, job.outputs
        if self.timing is not None:
            function = self.timing.sample(function)
        assignment = fetched.state.assignment
        run = self._fast_run = FastRun(fetched, task_index, outputs)
        results = run.results
        self._busy[task_index] = (fetched,)
        until = now() + TIME_SLICE
        if idle and not self._standby:
            self._wake_one()
        try:
            for index, value in enumerate(values):
                moment = now()
                if moment > until:
                    run.index, run.yielding = index, True
                    await asyncio.sleep(0)
                    if run.interrupted:
                        return
                    run.yielding = False
                    if dispatcher.ready or (outputs is not None and not outputs.has_room):
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
                        dispatcher.abandon(run.delivery)  # the general way finds what is wrong
                    return
                if wants_message:
                    if reset_context is not None:
                        result = await function(event, batch, index, 1, None)
                        if encode is None:
                            reset_context()
                    else:
                        result = await function(event, make_message(event, batch, index, 1))
                else:
                    result = await function(event)
                if run.interrupted:
                    if run.delivery is not None:
                        self._calls.record_success(run.delivery, result)
                    return
                if encode is not None and results is not None and result is not None:
                    outgoing = encode(result, batch, index, fetched.ids[index])
                    if reset_context is not None:
                        reset_context()
                    if outgoing:
                        results.add(index, outgoing)
                        if outputs is not None and not outputs.has_room:
                            index += 1
                            break
                        continue
                settled[index] = 1
            else:
                index = len(values)
            self._fast_run = None
            run.end_results()
            dispatcher.finish_fast_run(fetched, index)
        except Exception as error:
            self._interrupt()
            if run.delivery is not None:
                self._calls.record_failure(run.delivery, error)
                self._tick_at_latest(dispatcher.next_due)
        except asyncio.CancelledError:
            if run.yielding:
                raise
            self._interrupt()
            self._handler_cancelled(task_index, run.delivery)
        finally:
            if reset_context is not None:
                reset_context()
            self._busy[task_index] = ()
            if self._cancel_reason[task_index] is not None:
                self._uncancel(task_index)
            self._notify_waiters()

    def _interrupt(self) -> None:
        """Somebody is about to look at the dispatcher: nothing takes the fast path any more."""
        run, self._fast_run = self._fast_run, None
        if run is None:
            return
        run.interrupted = True
        run.end_results()
        if run.yielding:
            self._busy[run.task_index] = ()
            self.dispatcher.finish_fast_run(run.fetched, run.index)
        else:
            index = run.index
            (run.delivery,) = self.dispatcher.interrupt_fast_run(run.fetched, index, index + 1)

    def _uncancel(self, task_index: int) -> None:
        """We cancelled the handler and it ended otherwise: its outcome counts."""
        self._cancel_reason[task_index] = None
        self._tasks[task_index].uncancel()

    def _handler_cancelled(self, task_index: int, unit: Any) -> None:
        """A handler ended in CancelledError: ours (time is up), its own doing, or the app's end.

        ``unit`` is None where its partition was given up meanwhile.
        """
        task, reason = self._tasks[task_index], self._cancel_reason[task_index]
        self._cancel_reason[task_index] = None
        stopped = reason is None and task.cancelling() > 0
        if reason is not None:
            task.uncancel()
        if unit is not None:
            if stopped or reason == "drain":
                self._calls.abandon(unit)
            elif reason == "timeout":
                self._calls.record_call_failure(
                    unit, HandlerTimeout(f"{self.job.name} ran longer than {self.job.timeout:g} s")
                )
            else:
                error = RuntimeError(f"{self.job.name} was cancelled from within")
                self._calls.record_call_failure(unit, error)
            self._tick_at_latest(self.dispatcher.next_due)
        if stopped:
            raise asyncio.CancelledError
