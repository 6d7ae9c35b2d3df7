"""Async handlers, on the app's event loop: as many at once as ``concurrency`` says.

Theory of operation
-------------------

``concurrency`` tasks share one dispatcher; there is no task, future or event a message. A task
takes the next message whose turn has come and awaits its handler *in place*, so a handler that
never suspends costs no trip through the loop. Before it awaits, a task makes sure that one other
is on its way (the *standby*): if the handler suspends, the standby carries on with what is next,
and wakes a standby of its own. If it does not suspend, one task does everything and the standby
waits for its turn on the loop, which the running task gives up every few milliseconds.

Where nothing stands in the way of a whole segment (no key of its partition is busy, nothing in it
was seen before), a task handles it *straight*: one handler after the other, no lane marked, because
nobody else looks. As soon as anybody does, because a handler suspended or the pump has something to
say, the run is *interrupted*: what it handled is recorded, the lane of the message in flight is
marked, and the rest of the segment is given out as usual. So whatever touches the dispatcher calls
:meth:`LoopRunner._interrupt` first.

All of a runner's state is touched on the loop only; what comes from other threads (the pump,
confirmed writes) arrives through ``call_soon_threadsafe``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Any, Literal

from typing_extensions import override

from streams.engine.dispatch import Owned, Work
from streams.engine.progress import Segment
from streams.errors import HandlerTimeout
from streams.message import deliver
from streams.runners.base import Runner
from streams.runners.job import Job, Skip
from streams.runners.joint import Joint

SLICE = 0.005
"""Seconds one task keeps the loop to itself, at most, while handlers do not suspend."""

UNSURE = 0.05
"""Seconds between looks at whether ownership was confirmed again."""

LAST_WORD = 1.0
"""Real seconds given to cancelled handlers."""


_SETTLED: Any = object()


def _segments(busy: Segment | Sequence[Segment] | None) -> Sequence[Segment]:
    if busy is None:
        return ()
    return (busy,) if isinstance(busy, Segment) else busy


class Straight:
    """A segment that one task handles message by message."""

    __slots__ = ("index", "over", "resting", "segment", "slot", "work")

    def __init__(self, segment: Segment, slot: int) -> None:
        self.segment = segment
        self.slot = slot
        self.index = 0
        """The message in flight; while resting, the next one."""
        self.resting = False
        """Between two messages, to let others have the loop."""
        self.over = False
        """It was interrupted."""
        self.work: Work | None = None
        """Once interrupted: the message in flight."""


class LoopRunner(Runner):
    """Runs an async handler, ``concurrency`` messages (or batches) at a time."""

    def __init__(
        self,
        job: Job,
        loop: asyncio.AbstractEventLoop,
        joint: Callable[[], Joint] | None = None,
    ) -> None:
        super().__init__(job, joint)
        self._loop = loop
        self._tasks: list[asyncio.Task[None]] = []
        self._parked: list[asyncio.Future[None]] = []
        self._standby = False
        """A task was woken and did not run yet."""
        self._kicked = False
        self._straight: Straight | None = None
        self._active = -1
        """The task whose slice of the loop this is: another one begins its own; -1: nobody's."""
        self._closed = False
        self._lean = (
            job.filter is None
            and job.results is None
            and job.timeout is None
            and self._joint is None
        )
        self._busy: list[Segment | Sequence[Segment] | None] = [None] * job.concurrency
        """What each task's handler is running over."""
        self._ends: list[float | None] = [None] * job.concurrency
        """When each handler's time is up."""
        self._reason: list[Literal["timeout", "drain"] | None] = [None] * job.concurrency
        """Why we cancelled it."""
        self._tick_at: float | None = None
        self._tick_handle: asyncio.TimerHandle | None = None
        self._calm = threading.Condition()
        self._waiters = 0
        self._unwatch: Callable[[], None] = lambda: None

    # -- the pump's side

    @override
    def start(self) -> None:
        self._unwatch = self.job.clock.watch(self._moved)
        self._tasks = [
            self._loop.create_task(self._main(slot), name=f"streams-{self.job.name}-{slot}")
            for slot in range(self.job.concurrency)
        ]

    @override
    def enter(self, action: Callable[[], None]) -> None:
        self._soon(self._entered, action)

    def _soon(self, call: Callable[..., None], *given: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(call, *given)

    def _entered(self, action: Callable[[], None]) -> None:
        try:
            self._interrupt()
            action()
        except BaseException as error:
            self.die(error)
        self._wake_one()
        self._tell()

    @override
    def kick(self) -> None:
        if not self._kicked and self._parked:
            self._kicked = True
            self._soon(self._unkick)

    def _unkick(self) -> None:
        self._kicked = False
        self._wake_one()

    def _moved(self) -> None:
        self.enter(self._tick)
        with self._calm:
            self._calm.notify_all()

    @property
    @override
    def running(self) -> int:
        return sum(1 for busy in self._busy if busy is not None)

    @override
    def tally(self) -> tuple[int, int]:
        while True:
            run = self._straight
            handled, filtered = super().tally()
            if run is not None:
                handled += run.segment.done.count(1)
            if self._straight is run:
                return handled, filtered

    @override
    def call(self, action: Callable[[], None]) -> None:
        ran = threading.Event()

        def run() -> None:
            action()
            ran.set()

        self.enter(run)
        while not ran.wait(0.5):
            if self._loop.is_closed() or self.fatal is not None:
                return

    @override
    def calm(self, owned: Collection[Owned] | None, until: float) -> bool:
        over = self._over(owned)
        with self._calm:
            self._waiters += 1
            try:
                while not over():
                    left = until - self._now()
                    if left <= 0 or self.hurried or self.fatal is not None:
                        return over()
                    if self._loop.is_closed():
                        return over()
                    self._calm.wait(min(1.0, self.job.clock.timeout(left)))
                return True
            finally:
                self._waiters -= 1

    def _over(self, owned: Collection[Owned] | None) -> Callable[[], bool]:
        of = None if owned is None else set(map(id, owned))

        def over() -> bool:
            if of is None or owned is None:
                return not any(self._busy) and not self.sending
            running = (id(segment.owner) for busy in self._busy for segment in _segments(busy))
            return of.isdisjoint(running) and not any(each.pending for each in owned)

        return over

    @override
    def cancel(self, owned: Collection[Owned] | None) -> bool:
        of = None if owned is None else set(map(id, owned))

        def cancel() -> None:
            for slot, busy in enumerate(self._busy):
                ours = of is None or any(id(segment.owner) in of for segment in _segments(busy))
                if busy and ours and self._reason[slot] is None:
                    self._reason[slot] = "drain"
                    self._tasks[slot].cancel()

        self.enter(cancel)
        with self._calm:
            self._waiters += 1
            try:
                return self._calm.wait_for(self._over(owned), LAST_WORD)
            finally:
                self._waiters -= 1

    @override
    def halt(self) -> None:
        self._halted = True

    @override
    def resume(self) -> None:
        self._halted = self._closed or self.fatal is not None
        self.enter(lambda: None)

    @override
    def close(self) -> None:
        self._unwatch()
        self._halted = self._closed = True

        def cancel() -> None:
            if self._tick_handle is not None:
                self._tick_handle.cancel()
            for task in self._tasks:
                task.cancel()

        self.enter(cancel)

    @override
    async def gone(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=LAST_WORD)

    def _tell(self) -> None:
        if self._waiters:
            with self._calm:
                self._calm.notify_all()

    # -- time

    def _arm(self, when: float) -> None:
        """Look again at ``when``, monotonic seconds."""
        if self._tick_at is not None and self._tick_at <= when:
            return
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._tick_at = when
        delay = self.job.clock.timeout(when - self._now())
        self._tick_handle = self._loop.call_later(delay, self._tick)

    def _tick(self) -> None:
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._tick_at = self._tick_handle = None
        if self._closed:
            return
        now = self._now()
        if self.job.timeout is not None:
            for slot, end in enumerate(self._ends):
                if end is not None and end <= now and self._reason[slot] is None:
                    self._reason[slot] = "timeout"
                    self._tasks[slot].cancel()
            ends = [
                end for slot, end in enumerate(self._ends) if end and self._reason[slot] is None
            ]
            if ends:
                self._arm(min(ends))
        self.dispatcher.wake(now)
        due = self.dispatcher.due
        if due is not None:
            self._arm(due)
        self._wake_one()

    # -- the tasks

    def _wake_one(self) -> None:
        parked = self._parked
        while parked:
            future = parked.pop()
            if not future.done():
                future.set_result(None)
                self._standby = True
                return

    async def _park(self) -> None:
        """Nothing to do for this task: wait to be woken."""
        if self._closed:
            raise asyncio.CancelledError  # it was cancelled, and its handler would not hear of it
        if not (self._halted or self.dispatcher.paused or self._straight is not None):
            if self.dispatcher.backlog:
                self._arm(self._now() + UNSURE)
            elif self.dispatcher.due is not None:
                self._arm(self.dispatcher.due)
            self.dispatcher.refill()
        future: asyncio.Future[None] = self._loop.create_future()
        self._parked.append(future)
        await future
        self._standby = False

    async def _main(self, slot: int) -> None:
        try:
            if self.job.batch is None and self._lean:
                await self._bare(slot)
            elif self.job.batch is None:
                await self._messages(slot)
            else:
                await self._batches(slot, self.job.batch)
        except asyncio.CancelledError:
            if not self._closed:
                self.die(asyncio.CancelledError("a runner's task was cancelled from outside"))
                raise
        except BaseException as error:
            # A bug of ours, or SystemExit and the like from a handler: never silently.
            self.die(error)
        finally:
            self._busy[slot] = None
            self._tell()

    async def _bare(self, slot: int) -> None:
        """The hot loop: nothing but decode, handler and the engine."""
        job, now, busy, dispatcher = self.job, self._now, self._busy, self.dispatcher
        function, wants_message, builds = job.function, job.wants_message, job.builds_messages
        take, done, parked = dispatcher.take, dispatcher.done, self._parked
        asks = job.late is not None or job.sequence is not None
        until = 0.0
        while True:
            moment = now()
            if self._active != slot:
                self._active, until = slot, moment + SLICE
                if self.timing is not None:
                    function = self.timing.pick(job.function)
            elif moment > until:
                await asyncio.sleep(0)
                self._active = -1
                continue
            if self._straight is not None:
                if self._straight.resting:
                    await self._park()
                    continue
                self._interrupt()
            work = None
            if not self._halted:
                if dispatcher.segment is None:
                    segment = dispatcher.straight(moment)
                    if segment is not None:
                        if segment.decode is None or (asks and not self.clear(segment)):
                            dispatcher.refuse(segment)
                        else:
                            await self._run_straight(slot, segment)
                            continue
                work = take(moment)
            if work is None:
                await self._park()
                continue
            if parked and not self._standby:
                self._wake_one()
            segment, index = work[0], work[1]
            decode = segment.decode
            if decode is None or work[6] is not None or (asks and not self.clear(segment)):
                event = self._event(work)
                if event is _SETTLED:
                    continue
            else:
                try:
                    event = decode(segment.values[index])
                except Exception:
                    event = self._event(work)
                    if event is _SETTLED:
                        continue
            busy[slot] = segment
            try:
                if wants_message:
                    attempt = self.attempt(work) if asks else work[4]
                    if builds:
                        await function(event, segment.batch, index, attempt, None)
                    else:
                        await function(event, deliver(event, segment.batch, index, attempt))
                else:
                    await function(event)
            except Exception as error:
                self._failed(slot, work, error)
            except asyncio.CancelledError:
                busy[slot] = None
                self._cancelled(slot, [work])
            else:
                busy[slot] = None
                if asks:
                    self.settle(work)
                else:
                    done(work)
                if self._reason[slot] is not None:
                    self._forgive(slot)
            if self._waiters:
                self._tell()

    def _failed(self, slot: int, work: Work, error: Exception) -> None:
        self._busy[slot] = None
        self.failed(work, error)
        self._arm_retries()

    async def _run_straight(self, slot: int, segment: Segment) -> None:
        """Handle a whole segment, or as much of it as nobody interrupts."""
        job, now, dispatcher, parked = self.job, self._now, self.dispatcher, self._parked
        function, wants_message, builds = job.function, job.wants_message, job.builds_messages
        decode, values, done = segment.decode, segment.values, segment.done
        batch = segment.batch
        if self.timing is not None:
            function = self.timing.pick(function)
        assignment = segment.owner.assignment
        run = self._straight = Straight(segment, slot)
        self._busy[slot] = segment
        index = 0
        until = now() + SLICE
        if parked and not self._standby:
            self._wake_one()
        try:
            for value in values:
                moment = now()
                if moment > until:
                    run.index, run.resting = index, True
                    await asyncio.sleep(0)
                    if run.over:
                        return
                    run.resting = False
                    if dispatcher.ready:
                        break
                    if parked and not self._standby:
                        self._wake_one()
                    moment = now()
                    until = moment + SLICE
                if moment >= assignment.valid_until or self._halted:
                    break
                run.index = index
                try:
                    event = decode(value)  # type: ignore[misc]
                except Exception:
                    self._interrupt()
                    if run.work is not None:
                        dispatcher.abandon(run.work)  # what is wrong is found in its turn
                    return
                if wants_message:
                    if builds:
                        await function(event, batch, index, 1, None)
                    else:
                        await function(event, deliver(event, batch, index, 1))
                else:
                    await function(event)
                if run.over:
                    if run.work is not None:
                        dispatcher.done(run.work)
                    if self._reason[slot] is not None:
                        self._forgive(slot)
                    return
                done[index] = 1
                index += 1
            self._straight = None
            dispatcher.ran(segment, 0, index)
        except Exception as error:
            self._interrupt()
            if run.work is not None:
                self._failed(slot, run.work, error)
        except asyncio.CancelledError:
            if run.resting:
                raise
            self._interrupt()
            self._busy[slot] = None
            self._cancelled(slot, [] if run.work is None else [run.work])
        finally:
            self._busy[slot] = None
            if self._waiters:
                self._tell()

    def _interrupt(self) -> None:
        """Somebody is about to look at the dispatcher: nothing runs straight any more."""
        run, self._straight = self._straight, None
        if run is None:
            return
        run.over = True
        if run.resting:
            self._busy[run.slot] = None
            self.dispatcher.ran(run.segment, 0, run.index)
        else:
            (run.work,) = self.dispatcher.claim(run.segment, 0, run.index, run.index + 1)

    def _event(self, work: Work) -> Any:
        """The decoded value, or ``_SETTLED`` where there is nothing to be handled."""
        if work[6] is not None:
            self.bury(work)
            return _SETTLED
        if self.job.sequence is not None and self.park(work):
            return _SETTLED
        try:
            return self.decode(work[0], work[1])
        except Skip:
            self.skipped(work)
        except Exception as error:
            self.poison(work, error)
        return _SETTLED

    async def _messages(self, slot: int) -> None:
        job, now, busy, dispatcher = self.job, self._now, self._busy, self.dispatcher
        function, keep, wants_message = job.function, job.filter, job.wants_message
        joint = self._joint() if self._joint is not None else None
        simple = job.results is None and joint is None and job.sequence is None
        until = 0.0
        while True:
            moment = now()
            if self._active != slot:
                self._active, until = slot, moment + SLICE
                if self.timing is not None:
                    function = self.timing.pick(job.function)
            elif moment > until:
                await asyncio.sleep(0)
                self._active = -1
                continue
            work = None if self._halted else dispatcher.take(moment)
            if work is None:
                await self._park()
                continue
            event = self._event(work)
            if event is _SETTLED:
                continue
            if not self._standby and self._parked:
                self._wake_one()
            busy[slot] = work[0]
            if job.timeout is not None:
                self._time(slot, moment + job.timeout)
            try:
                if keep is not None and not keep(event):
                    self.skipped(work)
                    continue
                if job.builds_messages:
                    result = await function(event, *self.row(work, joint))
                elif wants_message:
                    result = await function(event, self.message(event, work, joint))
                else:
                    result = await function(event)
                if joint is not None and joint.begun:
                    failure = self.join(joint, [work])
                    if failure is not None:
                        self.failed(work, failure)
                        continue
                if simple:
                    dispatcher.done(work)
                else:
                    self.succeeded(work, result)
            except Exception as error:
                if joint is not None:
                    joint.rollback()  # before anything is written elsewhere
                self.failed(work, error)
                self._arm_retries()
            except asyncio.CancelledError:
                if joint is not None:
                    joint.rollback()
                self._cancelled(slot, [work])
            finally:
                busy[slot] = None
                if joint is not None:
                    joint.rollback()
                if job.timeout is not None:
                    self._ends[slot] = None
                if self._reason[slot] is not None:
                    self._forgive(slot)
                if self._waiters:
                    self._tell()

    async def _batches(self, slot: int, size: int) -> None:
        job, now, dispatcher = self.job, self._now, self.dispatcher
        function = job.function
        joint = self._joint() if self._joint is not None else None
        until = 0.0
        while True:
            moment = now()
            if self._active != slot:
                self._active, until = slot, moment + SLICE
                if self.timing is not None:
                    function = self.timing.pick(job.function)
            elif moment > until:
                await asyncio.sleep(0)
                self._active = -1
                continue
            works = [] if self._halted else dispatcher.take_batch(moment, size)
            if not works:
                await self._park()
                continue
            if works[0][6] is not None:
                self.bury(works[0])
                continue
            works = self.unparked(works)
            if not works:
                continue
            if not self._standby and self._parked:
                self._wake_one()
            outcome = self.choose(works)
            chosen = [works[index] for index in outcome.chosen]
            self._busy[slot] = [work[0] for work in works]
            if job.timeout is not None:
                self._time(slot, moment + job.timeout)
            try:
                if chosen and job.wants_message:
                    messages = self.messages(outcome.events, chosen, joint)
                    outcome.result = await function(outcome.events, messages)
                elif chosen:
                    outcome.result = await function(outcome.events)
                if joint is not None and joint.begun:
                    outcome.failure = self.join(joint, chosen)
            except Exception as error:
                outcome.failure = error
            except asyncio.CancelledError:
                if joint is not None:
                    joint.rollback()
                self._cancelled(slot, works)
                continue
            finally:
                self._busy[slot] = None
                if joint is not None:
                    joint.rollback()
                self._ends[slot] = None
                if self._reason[slot] is not None:
                    self._forgive(slot)
                if self._waiters:
                    self._tell()
            self.batch_ended(works, outcome)
            self._arm_retries()

    def _time(self, slot: int, end: float) -> None:
        self._ends[slot] = end
        self._arm(end)

    def _arm_retries(self) -> None:
        due = self.dispatcher.due
        if due is not None:
            self._arm(due)

    def _forgive(self, slot: int) -> None:
        """We cancelled the handler and it ended otherwise: its outcome counts."""
        self._reason[slot] = None
        self._tasks[slot].uncancel()

    def _cancelled(self, slot: int, works: Sequence[Work]) -> None:
        """A handler ended in CancelledError: ours (time is up), its own doing, or the app's end."""
        task, reason = self._tasks[slot], self._reason[slot]
        self._reason[slot] = None
        if reason is None and task.cancelling():
            for work in reversed(works):
                self.dispatcher.abandon(work)
            raise asyncio.CancelledError
        if reason is not None:
            task.uncancel()
        if reason == "drain":
            for work in reversed(works):
                self.dispatcher.abandon(work)
            return
        error: Exception
        if reason == "timeout":
            error = HandlerTimeout(f"{self.job.name} ran longer than {self.job.timeout:g} s")
        else:
            error = RuntimeError(f"{self.job.name} was cancelled from within")
        if self.job.batch is None:
            self.failed(works[0], error)
        else:
            self.batch_failed(works, error)
        self._arm_retries()
