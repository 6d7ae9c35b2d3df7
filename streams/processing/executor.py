"""The base of all executors: owning a dispatcher, suspending, waiting for handlers, ending.

An executor is the only one to touch its dispatcher, inside :meth:`Executor.call_soon`: under its
lock, or on its loop. What it calls, and what comes of it, is in
:mod:`streams.processing.outcomes`.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from streams.engine.deferring_dispatcher import DeferringDispatcher
from streams.engine.dispatcher import Dispatcher, PartitionState
from streams.engine.progress import FetchedBatch
from streams.processing.handler_transaction import HandlerTransaction
from streams.processing.job import Job
from streams.processing.outcomes import BatchCalls, Calls, MessageCalls
from streams.processing.polling_hand_over import PollingHandOver
from streams.processing.timing import Timing

OWNERSHIP_RECHECK = 0.05
"""Seconds between looks at whether ownership was confirmed again."""


def _make_dispatcher(job: Job) -> Dispatcher:
    outputs = job.outputs
    if outputs is None:
        return Dispatcher(job.retry)
    dispatcher = DeferringDispatcher(job.retry, outputs.defers)
    outputs.on_full = partial(setattr, dispatcher, "is_full")
    return dispatcher


class Executor(ABC):
    """Runs a job's handler over what the dispatcher gives out."""

    def __init__(
        self, job: Job, open_transaction: Callable[[], HandlerTransaction] | None = None
    ) -> None:
        self.job = job
        self.dispatcher = _make_dispatcher(job)
        make_calls = MessageCalls if job.batch is None else BatchCalls
        self._calls: Calls[Any] = make_calls(job, self.dispatcher, self.call_soon, self.fail)
        self._open_transaction = (
            open_transaction if job.transactions and job.wants_message else None
        )
        self._now = job.clock.monotonic
        self.fatal: BaseException | None = None
        """The error that ended this executor; None if it runs or was stopped."""
        self._suspended = False
        """No further handler is started."""
        self._closed = False
        self.impatient = False
        """Nobody waits for handlers any more."""
        self.timing: Timing | None = None
        """Takes the time of handlers' calls, where that was asked for."""
        self._busy: list[Sequence[FetchedBatch]] = [()] * job.concurrency
        """By handler task, the batches whose messages it is handling."""
        self._lock = threading.Lock()
        self._idle_changed = threading.Condition(self._lock)
        """Notified when a handler ended, if somebody waits for that."""
        self._waiters = 0
        self._unwatch: Callable[[], None] = lambda: None

    # -- what the poller calls, in its cycles

    @abstractmethod
    def call_soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` where the dispatcher may be touched: now, or soon (any thread)."""

    @abstractmethod
    def call_and_wait(self, action: Callable[[], None]) -> None:
        """Like :meth:`call_soon`, and return when it was run (not from the loop, nor inside it)."""

    @abstractmethod
    def notify(self) -> None:
        """There may be something to do."""

    @abstractmethod
    def wake_all(self) -> None:
        """Make handlers and waiters look again: the clock jumped, or more may be done (any
        thread)."""

    def accept_polling(self, hand_over: PollingHandOver, wake: Callable[[], None]) -> None:
        """Poll cycles may run in a thread of this executor's; ``wake`` ends one that blocks. An
        executor that cannot do that leaves them to the poller."""
        return

    @property
    def suspended(self) -> bool:
        """No further handler is to be started (any thread)."""
        return self._suspended

    @property
    def running(self) -> int:
        """Handlers running at this moment."""
        return sum(1 for busy in self._busy if busy)

    @property
    def unconfirmed(self) -> int:
        """Messages whose writes (results, dead letters) are not confirmed yet."""
        return self._calls.unconfirmed

    def counters(self) -> tuple[int, int]:
        """How many messages were handled and how many filtered out, at this moment."""
        counts = self.dispatcher.counts
        return counts.handled, counts.filtered

    def wait_idle(self, states: Collection[PartitionState] | None, until: float) -> bool:
        """Wait until ``until`` (monotonic) for what runs of these partitions, None: of all, with
        its writes confirmed. False: something still runs."""
        with self._idle_changed:
            self._waiters += 1
            try:
                while not self._is_idle(states):
                    left = until - self._now()
                    if left <= 0 or self.impatient or self.fatal is not None or self._is_cut_off():
                        return self._is_idle(states)
                    self._idle_changed.wait(min(1.0, self.job.clock.real_timeout(left)))
                return True
            finally:
                self._waiters -= 1

    def _is_idle(self, states: Collection[PartitionState] | None) -> bool:
        if states is None:
            return not any(self._busy) and not self.unconfirmed
        running = {id(fetched.state) for busy in self._busy for fetched in busy}
        return running.isdisjoint(map(id, states)) and not any(each.unconfirmed for each in states)

    def _is_cut_off(self) -> bool:
        """Handlers that run will never be seen to end."""
        return False

    def cancel(self, states: Collection[PartitionState] | None) -> bool:
        """Cancel what runs of these partitions, None: of all. False: something still runs."""
        return self.wait_idle(states, float("-inf"))

    def start(self) -> None:
        """Begin to work."""
        self._unwatch = self.job.clock.on_jump(self.wake_all)

    def suspend(self) -> None:
        """Start no further handler (any thread)."""
        with self._lock:
            self._suspend()

    def _suspend(self) -> None:
        """The same, where the lock is held or none is needed."""
        self._suspended = True

    def resume(self) -> None:
        """Undo :meth:`suspend`."""
        with self._lock:
            self._suspended = self._closed or self.fatal is not None
        self.wake_all()

    def overdue(self) -> int:
        """How many handlers run longer than the processor's timeout and cannot be ended."""
        return 0

    def close(self) -> None:
        """End for good."""
        self._unwatch()
        with self._lock:
            self._closed = True
            self._suspend()
        self.wake_all()

    async def wait_closed(self) -> None:
        """On the app's loop, after :meth:`close`: wait a moment for what lives there to end."""
        await asyncio.sleep(0)

    def fail(self, error: BaseException) -> None:
        """End the processor with this error (where the dispatcher may be touched). Nothing more is
        started; the poller sees it and commits what is settled."""
        self.fatal = self.fatal or error
        self._suspend()
        self.dispatcher.refill()

    def stop_waiting(self) -> None:
        """Have :meth:`wait_idle` return at once (any thread)."""
        self.impatient = True
        self.call_soon(lambda: None)

    def assign(self, state: PartitionState) -> None:
        """Begin with a partition."""
        self.call_and_wait(lambda: self.dispatcher.assign(state))

    def revoke(self, states: Collection[PartitionState]) -> None:
        """Start nothing more of these partitions."""
        self.call_and_wait(lambda: self._revoke(states))

    def _revoke(self, states: Collection[PartitionState]) -> None:
        """The same, where the dispatcher may be touched."""
        for each in states:
            self.dispatcher.revoke(each)

    # -- the fast path

    def _take_fast(self, now: float, *, decoded: bool) -> FetchedBatch | None:
        """A batch that may take the fast path, if the next one may.

        :param decoded: also one whose values were decoded before.
        """
        fetched = self.dispatcher.take_fast_batch(now)
        if fetched is None:
            return None
        can_decode = fetched.decode is not None or (decoded and fetched.decoded is not None)
        if can_decode and self._calls.has_no_records(fetched):
            return fetched
        self.dispatcher.finish_fast_run(fetched, 0)  # none of it was handled: one by one
        return None
