"""Plain handlers, in worker threads: never on the event loop, never inside a turn of the pump.

``concurrency`` threads share one dispatcher under one lock, which is held only between handlers.
With one thread, nothing failing and nothing recurring, a whole segment is run *straight*: a loop
of decode, handler, one byte stored, and a look at the clock, as one would write it by hand. What a
straight run stumbles over goes the general way, and so does everything behind it until the lanes
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

from streams.engine.dispatch import Owned, Work
from streams.engine.progress import Segment
from streams.errors import BatchError, ConfigError
from streams.message import Batch, Message, deliver
from streams.runners.base import Runner, logger
from streams.runners.job import Job, Skip
from streams.runners.joint import Joint
from streams.runners.lead import Lead

UNSURE = 0.05
"""Seconds between looks at whether ownership was confirmed again."""

Handled = tuple[int, int, "BaseException | None"]
"""A straight run: where it stopped, before where what it stumbled over ends, and why."""


def _events(segment: Segment, start: int, stop: int) -> Iterable[Any]:
    """The values of a segment that may be run straight, decoded one by one."""
    if segment.events is not None:
        return segment.events[start:stop]
    values = segment.values if stop - start == len(segment) else segment.values[start:stop]
    return map(segment.decode, values)  # type: ignore[arg-type]  # one of both is there


def _maker(
    events: Sequence[Any], batch: Batch, start: int, joint: Joint | None
) -> Callable[[], list[Message[Any]]]:
    """Makes the messages of consecutive rows of a batch, when it is called."""
    return lambda: [
        deliver(event, batch, index, 1, joint) for index, event in enumerate(events, start)
    ]


def _listed(result: Any) -> Any:
    """A generator's values: its code is the handler's, so it runs where the handler does."""
    return list(result) if hasattr(result, "__next__") else result


class ThreadRunner(Runner):
    """Runs a plain handler, one message or one batch at a time in each of its threads."""

    def __init__(self, job: Job, joint: Callable[[], Joint] | None = None) -> None:
        super().__init__(job, joint)
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        """Told when there may be something to do."""
        self._calm = threading.Condition(lock)
        """Told, if somebody waits, when a handler ended."""
        self._told = 0
        """How often there may have been something to do."""
        self._waiters = 0
        self._idle = 0
        self._closed = False
        self._busy: list[Sequence[Segment]] = [()] * job.concurrency
        self._since: list[float | None] = [None] * job.concurrency
        self._reported: set[int] = set()
        self._threads = [
            threading.Thread(
                target=self._main, args=(slot,), name=f"streams-{job.name}-{slot}", daemon=True
            )
            for slot in range(job.concurrency)
        ]
        self._may_run_straight = (
            job.concurrency == 1
            and job.results is None
            and job.timeout is None
            and not (job.batch and job.filter)
        )
        self._lead: Lead | None = None
        self._leading = False
        """The one thread takes a turn of the pump's, and does not wait for notifications."""
        self._wake_turn: Callable[[], None] = lambda: None
        self._straight: Segment | None = None
        """What is being run straight; nobody counts it before it ends."""
        self._passed = 0
        """How many of it were filtered out so far."""
        self._unwatch: Callable[[], None] = lambda: None
        self._function: Callable[..., Any] = self._first

    def _first(self, *given: Any) -> Any:
        """The handler, until it returned once: what it returned tells whether anything ran."""
        result = self.job.function(*given)
        wrong = ""
        if isinstance(result, CoroutineType):
            result.close()
            wrong = "a coroutine: make what wraps the handler an `async def` too"
        elif isinstance(result, GeneratorType) and self.job.results is None:
            wrong = "a generator, which nobody would run: say with to= where its values go"
        if wrong:
            raise ConfigError(f"processor {self.job.name}: the handler returned {wrong}")
        self._function = self.job.function
        return result

    def _handler(self) -> Callable[..., Any]:
        """What to call for the next segment or message."""
        function = self._function
        if self.timing is None or function == self._first:
            return function
        return self.timing.pick(function)

    # -- the pump's side

    @override
    def start(self) -> None:
        self._unwatch = self.job.clock.watch(self._moved)
        for thread in self._threads:
            thread.start()

    @override
    def enter(self, action: Callable[[], None]) -> None:
        with self._work:
            action()
            self._notify()
            if self._waiters:
                self._calm.notify_all()

    def _notify(self, threads: int = 1) -> None:
        """There may be something to do for so many; the lock is held."""
        self._told += 1
        self._work.notify(threads)
        if self._leading:
            self._wake_turn()

    @override
    def follow(self, lead: Lead, wake: Callable[[], None]) -> None:
        job = self.job
        # It waits for nothing but messages, as long as nothing fails.
        if job.concurrency == 1 and job.results is None and job.sequence is None:
            self._lead, self._wake_turn = lead, wake

    @override
    def kick(self) -> None:
        if self._idle:
            with self._work:
                self._work.notify()

    def _moved(self) -> None:
        with self._work:
            self._notify(len(self._threads))
            self._calm.notify_all()

    @property
    @override
    def running(self) -> int:
        return sum(1 for busy in self._busy if busy)

    @override
    def tally(self) -> tuple[int, int]:
        with self._work:
            handled, filtered = super().tally()
            if self._straight is not None:
                passed = self._passed
                handled += self._straight.done.count(1) - passed
                filtered += passed
            return handled, filtered

    @override
    def call(self, action: Callable[[], None]) -> None:
        self.enter(action)

    @override
    def calm(self, owned: Collection[Owned] | None, until: float) -> bool:
        of = None if owned is None else set(map(id, owned))

        def over() -> bool:
            if of is None or owned is None:
                return not any(self._busy) and not self.sending
            running = (id(segment.owner) for busy in self._busy for segment in busy)
            return of.isdisjoint(running) and not any(each.pending for each in owned)

        with self._work:
            self._waiters += 1
            try:
                while not over():
                    left = until - self._now()
                    if left <= 0 or self.hurried or self.fatal is not None:
                        return over()
                    self._calm.wait(self.job.clock.timeout(left))
                return True
            finally:
                self._waiters -= 1

    @override
    def halt(self) -> None:
        with self._work:
            self._halted = True

    @override
    def resume(self) -> None:
        with self._work:
            self._halted = self._closed or self.fatal is not None
            self._notify(len(self._threads))

    @override
    def close(self) -> None:
        self._unwatch()
        with self._work:
            self._halted = self._closed = True
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
        late = {
            slot for slot, since in enumerate(self._since) if since is not None and since < limit
        }
        if late - self._reported:
            logger.error(
                "%s: a plain handler runs longer than its timeout of %g s and cannot be "
                "interrupted; its key waits for it",
                self.job.name, self.job.timeout,
            )  # fmt: skip
        self._reported = late
        return len(late)

    # -- a worker; the lock is held except while a handler runs

    def _main(self, slot: int) -> None:
        self._work.acquire()
        try:
            joint = self._joint() if self._joint is not None else None
            dispatcher = self.dispatcher
            while not self._closed:
                offered, told = dispatcher.offered, self._told
                if not self._halted and self._step(slot, joint):
                    continue
                if self._lead is not None and self._take_turn(self._lead):
                    continue
                self._idle += 1
                dispatcher.refill()
                # The pump tells nobody that it offered something if nobody is idle; and what was
                # told while the lock was free, to poll, this thread did not hear.
                if offered == dispatcher.offered and told == self._told:
                    self._work.wait(self._patience())
                self._idle -= 1
        except BaseException as error:
            # A bug of ours, or SystemExit and the like from a handler: never silently.
            self.die(error)
        finally:
            self._busy[slot] = ()
            self._calm.notify_all()
            self._work.release()

    def _take_turn(self, lead: Lead) -> bool:
        """Poll in this thread, if it waits for nothing else."""
        dispatcher = self.dispatcher
        if self._halted or self.sending or dispatcher.backlog or dispatcher.due is not None:
            lead.leave()
            return False
        self._leading = True
        self._work.release()
        try:
            return lead.take()
        finally:
            self._work.acquire()
            self._leading = False

    def _patience(self) -> float | None:
        """How long to wait for a notification, in real seconds; None: for ever."""
        if self._halted or self.dispatcher.paused:
            return None
        if self.dispatcher.backlog:
            return UNSURE
        due = self.dispatcher.due
        return None if due is None else self.job.clock.timeout(due - self._now())

    def _step(self, slot: int, joint: Joint | None) -> bool:
        """Handle what may be handled now; False: there is nothing."""
        now = self._now()
        dispatcher = self.dispatcher
        dispatcher.wake(now)
        if self._may_run_straight:
            segment = dispatcher.straight(now)
            if segment is not None:
                self._run_straight(segment, slot, joint)
                return True
        batch = self.job.batch
        if batch is None:
            work = dispatcher.take(now)
            works = [] if work is None else [work]
        else:
            works = dispatcher.take_batch(now, batch)
        if not works:
            return False
        if works[0][6] is not None:
            self.bury(works[0])
            return True
        if self.job.sequence is not None:
            works = self.unparked(works)
            if not works:
                return True
        if self._idle and dispatcher.backlog:
            self._work.notify()
        self._begin(slot, [work[0] for work in works], now)
        try:
            if batch is None:
                self._handle(works[0], joint)
            else:
                self._handle_batch(works, joint)
        finally:
            self._end(slot)
        return True

    def _begin(self, slot: int, segments: Sequence[Segment], now: float) -> None:
        self._busy[slot] = segments
        self._since[slot] = now

    def _end(self, slot: int) -> None:
        self._since[slot] = None
        self._busy[slot] = ()
        if self._waiters:
            self._calm.notify_all()

    def _handle(self, work: Work, joint: Joint | None) -> None:
        job = self.job
        result: Any = None
        failure: BaseException | None = None
        skip = poison = False
        self._work.release()
        try:
            try:
                event = self.decode(work[0], work[1])
            except Skip:
                skip = True
            except Exception as error:
                poison, failure = True, error
            else:
                if job.filter is not None and not job.filter(event):
                    skip = True
                elif job.builds_messages:
                    result = self._handler()(event, *self.row(work, joint))
                elif job.wants_message:
                    result = self._handler()(event, self.message(event, work, joint))
                else:
                    result = self._handler()(event)
                if job.results is not None:
                    result = _listed(result)
                if joint is not None and joint.begun:
                    failure = self.join(joint, [work])
        except Exception as error:
            failure = error
        finally:
            if joint is not None:
                joint.rollback()
            self._work.acquire()
        if poison and failure is not None:
            self.poison(work, failure)
        elif failure is not None:
            self.failed(work, failure)
        elif skip:
            self.skipped(work)
        else:
            self.succeeded(work, result)

    def _handle_batch(self, works: Sequence[Work], joint: Joint | None) -> None:
        job = self.job
        self._work.release()
        try:
            outcome = self.choose(works)
            chosen = [works[index] for index in outcome.chosen]
            try:
                if chosen and job.wants_message:
                    messages = self.messages(outcome.events, chosen, joint)
                    outcome.result = self._handler()(outcome.events, messages)
                elif chosen:
                    outcome.result = self._handler()(outcome.events)
                if job.results is not None and outcome.result is not None:
                    outcome.result = [_listed(each) for each in outcome.result]
                if joint is not None and joint.begun:
                    outcome.failure = self.join(joint, chosen)
            except Exception as error:
                outcome.failure = error
        finally:
            if joint is not None:
                joint.rollback()
            self._work.acquire()
        self.batch_ended(works, outcome)

    # -- the straight way

    def _run_straight(self, segment: Segment, slot: int, joint: Joint | None) -> None:
        dispatcher, job = self.dispatcher, self.job
        if (segment.events is None and segment.decode is None) or not self.clear(segment):
            dispatcher.refuse(segment)
            return
        self._begin(slot, (segment,), self._now())
        self._straight, self._passed = segment, 0
        self._work.release()
        try:
            if job.batch is not None:
                stop, end, error = self._batches(segment, job.batch, joint)
            elif job.bare:
                stop, end, error = self._bare(segment)
            else:
                stop, end, error = self._full(segment, joint)
        finally:
            self._work.acquire()
            self._end(slot)
            self._straight = None
            dispatcher.counts.filtered += self._passed
            dispatcher.counts.handled -= self._passed  # a straight run counts them all
        if error is None:
            dispatcher.ran(segment, 0, stop)
            return
        works = dispatcher.claim(segment, 0, stop, end)
        if not works:
            return
        if len(works) > 1:
            # Not known yet whose fault it is, decoding's or the handler's: one by one.
            self.batch_failed(works, error)
            return
        work = works[0]
        try:
            self.decode(segment, work[1])
        except Skip:
            self.skipped(work)
        except Exception as undecodable:
            self.poison(work, undecodable)
        else:
            if isinstance(error, BatchError):
                self.batch_failed(works, error)
            else:
                self.failed(work, error)

    def _bare(self, segment: Segment) -> Handled:
        """The hot loop: the handler takes the value and nothing else is asked for."""
        function, now, done = self._handler(), self._now, segment.done
        assignment = segment.owner.assignment
        index = 0
        try:
            for event in _events(segment, 0, len(segment)):
                if now() >= assignment.valid_until or self._halted:
                    break
                function(event)
                done[index] = 1
                index += 1
        except Exception as error:
            return index, index + 1, error
        return index, index, None

    def _full(self, segment: Segment, joint: Joint | None) -> Handled:
        """The same with filter, message and transaction."""
        job, now, done, batch = self.job, self._now, segment.done, segment.batch
        function, keep, wants_message = self._handler(), job.filter, job.wants_message
        builds = job.builds_messages
        assignment = segment.owner.assignment
        index = 0
        failure: BaseException | None = None
        try:
            for event in _events(segment, 0, len(segment)):
                if now() >= assignment.valid_until or self._halted:
                    break
                if keep is not None and not keep(event):
                    self._passed += 1
                elif not wants_message:
                    function(event)
                else:
                    if builds:
                        function(event, batch, index, 1, joint)
                    else:
                        function(event, deliver(event, batch, index, 1, joint))
                    if joint is not None and joint.begun:
                        work: Work = (segment, index, None, None, 1, False, None)
                        failure = self.join(joint, [work])
                        if failure is not None:
                            return index, index + 1, failure
                done[index] = 1
                index += 1
        except Exception as error:
            return index, index + 1, error
        finally:
            if joint is not None:
                joint.rollback()
        return index, index, None

    def _batches(self, segment: Segment, size: int, joint: Joint | None) -> Handled:
        """The same for a batch handler."""
        job, now, done, batch = self.job, self._now, segment.done, segment.batch
        function, wants_message = self._handler(), job.wants_message
        assignment = segment.owner.assignment
        index, count = 0, len(segment)
        end = 0
        try:
            while index < count:
                if now() >= assignment.valid_until or self._halted:
                    break
                end = min(count, index + size)
                events = list(_events(segment, index, end))
                if len(events) < end - index:
                    raise RuntimeError("decoding raised StopIteration, which ends map()")
                if wants_message:
                    make = _maker(events, batch, index, joint)
                    function(events, make if job.builds_messages else make())
                    if joint is not None and joint.begun:
                        works: list[Work] = [
                            (segment, at, None, None, 1, False, None) for at in range(index, end)
                        ]
                        failure = self.join(joint, works)
                        if failure is not None:
                            return index, end, failure
                else:
                    function(events)
                done[index:end] = b"\1" * (end - index)
                index = end
        except Exception as error:
            return index, end, error
        finally:
            if joint is not None:
                joint.rollback()
        return index, index, None
