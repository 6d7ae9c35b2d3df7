"""The course of a saga: from one entry to the next.

:meth:`Course.advance` is given where a saga stands, calls what is to be called, and says where it
stands then. It keeps nothing, so it can be called again with the same entry after a crash. Who
calls it, and waits for what is due, is another's business: a loop in memory
(:mod:`streams.patterns.saga.orchestrator`), a processor in a durable saga
(:mod:`streams.patterns.saga.durable`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from random import random
from typing import Any, NamedTuple

import msgspec

from streams.clock import Clock
from streams.engine.retry import again
from streams.errors import config_error
from streams.patterns.saga.contexts import Contexts, merge
from streams.patterns.saga.entry import ENDED, Entry, Failure, failure
from streams.patterns.saga.errors import SagaError, StepTimeout
from streams.patterns.saga.step import SagaStep, StepCall
from streams.patterns.saga.validation import LONGEST_WAIT
from streams.shielding import ended
from streams.text import counted, get_logger

__all__ = ["Course", "Errors"]

logger = get_logger("streams")

Errors = MutableMapping[tuple[str, bool], BaseException]
"""What was raised last, by step and whether it was its compensation: the exceptions themselves, for
whoever is in the same process."""


class Outcome(NamedTuple):
    """How a call ended: the context it left as it is to be stored, or what it raised."""

    step: str
    stored: Any = None
    error: BaseException | None = None
    happened: bool = True
    """It had its effect; if there is an error too, its context cannot be stored."""


class Course:
    """The steps of a saga, and how one leads to the next.

    :param name: the orchestrator's; part of every idempotency key.
    :param undo_cancelled: a step that is cancelled has failed, and what was done is to be undone.
        Else the cancellation is passed on, and the saga stands where it stood.
    """

    def __init__(
        self, name: str, contexts: Contexts, clock: Callable[[], Clock], *, undo_cancelled: bool
    ) -> None:
        self.name = name
        self.contexts = contexts
        self._clock = clock
        self._undo_cancelled = undo_cancelled
        self.steps: dict[str, SagaStep[Any]] = {}
        self.plan: tuple[tuple[str, ...], ...] = ()

    def add(self, steps: Sequence[SagaStep[Any]]) -> None:
        """Add steps that run side by side, after all that were added before."""
        self.steps.update((step.name, step) for step in steps)
        self.plan = (*self.plan, tuple(step.name for step in steps))

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock().time()

    # -- one transition

    async def advance(self, entry: Entry, errors: Errors) -> Entry:
        """Call what is to be called now; where the saga stands then.

        A saga whose steps cannot all be found is stopped before anything more is called.

        :param errors: is told what calls raised.
        """
        if not entry.plan:
            if not self.plan:
                return self._stopped(entry, f"{self.name} has no steps here")
            # Written down before the first step runs, so that what runs once is the plan for ever.
            return entry.next(self.now(), plan=self.plan)
        missing = self._missing(entry)
        if missing:
            named = ", ".join(map(repr, missing))
            return self._stopped(
                entry,
                f"{self.name} has no step {named} any more: give it its name back and resume, or "
                "abandon the saga",
            )
        try:
            self.contexts.load(entry.context)
        except Exception as error:
            return self._stopped(entry, f"its context cannot be read: {error}")
        if entry.status == "compensating":
            return await self._backward(entry, errors)
        return await self._forward(entry, errors)

    def check_progress(self, entry: Entry, following: Entry) -> None:
        """See to it that a saga has a bounded number of entries: each one that follows is nearer to
        an end, whatever the one before it says.

        :raises SagaError: this one is not.
        """
        if following.status in ENDED or (
            following.status == "running" and entry.stage < following.stage <= len(entry.plan)
        ):
            return  # as nearly always
        if not self._distance(following) < self._distance(entry):
            raise SagaError(
                f"saga {self.name} {entry.saga}: entry {entry.n} leads to no progress, so nothing "
                "follows on it"
            )

    def _distance(self, entry: Entry) -> tuple[int, ...]:
        """How far a saga is from its end: tuples of natural numbers, compared from the left, so
        that no saga can come nearer for ever."""
        if entry.ended:
            return (0,)
        back = entry.status == "compensating"
        if not back and not entry.plan:
            return (3,)
        left = 0
        for name in entry.steps:
            step = self.steps.get(name)
            if step is not None:
                policy = step.compensation_retry if back else step.retry
                left += max(0, policy.attempts - max(0, entry.attempts.get(name, 0)))
        if back:
            return (1, len(entry.done), left)
        return (2, max(0, len(entry.plan) - entry.stage), len(entry.steps), left)

    def _missing(self, entry: Entry) -> list[str]:
        """Steps that this saga needs from here on and that are not there."""
        needed: Iterable[str] = entry.done
        if entry.status == "running":
            # All of them: what cannot be finished, or not be undone, goes no further.
            needed = (*needed, *(name for group in entry.plan[entry.stage :] for name in group))
        known = self.steps
        back = entry.status == "compensating"
        return [
            name
            for name in dict.fromkeys(needed)
            if name not in known or (back and known[name].compensate is None)
        ]

    def _stopped(self, entry: Entry, why: str) -> Entry:
        logger.error("saga %s %s: stopped: %s", self.name, entry.saga, why)
        return entry.next(self.now(), status="stopped", stood=entry.status, error=why, due=0.0)

    # -- forward

    async def _forward(self, entry: Entry, errors: Errors) -> Entry:
        names = entry.steps
        outcomes, cancelled = await self._run(entry, names, compensating=False)
        attempts, last = dict(entry.attempts), list[Failure]()
        delays, final, partial = list[float](), list[Failure](), list[str]()
        finished = [each for each in outcomes if each.error is None]
        for step, _, error, happened in outcomes:
            if error is None:
                attempts.pop(step, None)
                continue
            policy = self.steps[step].retry
            attempts[step] = attempts.get(step, 0) + 1
            said = failure(step, error, attempts[step])
            errors[step, False] = error
            last.append(said)
            delay = None
            if not happened and not isinstance(error, asyncio.CancelledError):
                delay = again(policy, attempts[step], error, random())
            if delay is None:
                final.append(said)
            else:
                delays.append(delay)
            if happened or self.steps[step].compensate_failed:
                partial.append(step)
            self._tell(entry, said, "failed", delay)
        done = (*entry.done, *(each.step for each in finished))
        context = entry.context
        try:
            context = self._merged(entry, finished)
        except Exception as error:
            blamed = finished[-1].step
            errors[blamed, False] = error
            final.append(failure(blamed, error, 1))
            self._tell(entry, final[-1], "failed", None)
        if cancelled is not None:
            errors["", False] = cancelled
            if not final:
                # Every step had its effect before it could be interrupted; whoever cancelled does
                # not know, and takes it that nothing is done.
                final.append(failure(names[-1], cancelled, 1))
        now = self.now()
        if final:
            undo = self._undoable((*done, *partial))
            return entry.next(
                now,
                status="compensating" if undo else "compensated",
                context=context,
                done=undo,
                attempts={},
                last=(),
                due=0.0,
                failure=final[0],
            )
        if delays:
            # They wait together: a group goes on when all of it may.
            return entry.next(
                now,
                context=context,
                done=done,
                attempts=attempts,
                last=tuple(last),
                due=now + min(LONGEST_WAIT, max(delays)),
            )
        stage = entry.stage + 1
        return entry.next(
            now,
            status="completed" if stage >= len(entry.plan) else "running",
            context=context,
            stage=stage,
            done=done,
            attempts={},
            last=(),
            due=0.0,
        )

    def _merged(self, entry: Entry, finished: Sequence[Outcome]) -> Any:
        """What is stored after these steps."""
        if not finished:
            return entry.context
        if len(finished) == 1:
            return finished[0].stored
        load = self.contexts.load
        left = [(each.step, load(each.stored)) for each in finished]
        return self.contexts.store(merge(load(entry.context), left))

    def _undoable(self, done: Iterable[str]) -> tuple[str, ...]:
        """Those of these steps that can be undone."""
        return tuple(name for name in done if self.steps[name].compensate is not None)

    def given_up(self, entry: Entry, error: BaseException, errors: Errors) -> Entry:
        """A saga that is cancelled while its steps wait to be tried again goes backward."""
        for name in entry.steps:
            errors[name, False] = error
        said = failure(entry.steps[0], error, entry.attempts.get(entry.steps[0], 0))
        partial = (name for name in entry.attempts if self.steps[name].compensate_failed)
        undo = self._undoable((*entry.done, *partial))
        return entry.next(
            self.now(),
            status="compensating" if undo else "compensated",
            done=undo,
            attempts={},
            last=(),
            due=0.0,
            failure=said,
        )

    # -- backward

    async def _backward(self, entry: Entry, errors: Errors) -> Entry:
        name = entry.done[-1]
        (outcome,), _ = await self._run(entry, (name,), compensating=True)
        rest, now = entry.done[:-1], self.now()
        if outcome.error is None:
            return self._undone(entry, rest, entry.uncompensated, outcome.stored)
        attempts = entry.attempts.get(name, 0) + 1
        said = failure(name, outcome.error, attempts)
        errors[name, True] = outcome.error
        delay = None
        if not outcome.happened:
            policy = self.steps[name].compensation_retry
            delay = again(policy, attempts, outcome.error, random())
        self._tell(entry, said, "could not be compensated", delay)
        if delay is not None:
            due = now + min(LONGEST_WAIT, delay)
            return entry.next(now, attempts={name: attempts}, last=(said,), due=due)
        return self._undone(entry, rest, (*entry.uncompensated, said), entry.context)

    def _undone(
        self, entry: Entry, rest: tuple[str, ...], uncompensated: tuple[Failure, ...], context: Any
    ) -> Entry:
        end = "failed" if uncompensated else "compensated"
        return entry.next(
            self.now(),
            status="compensating" if rest else end,
            context=context,
            done=rest,
            attempts={},
            last=(),
            due=0.0,
            uncompensated=uncompensated,
        )

    def _tell(self, entry: Entry, said: Failure, what: str, delay: float | None) -> None:
        text = f"{said.kind}: {said.message}" if said.message else said.kind
        if delay is None:
            logger.warning(
                "saga %s %s: step %s %s after %s: %s",
                self.name, entry.saga, said.step, what, counted(said.attempts, "attempt"), text,
            )  # fmt: skip
        else:
            logger.info(
                "saga %s %s: step %s %s, attempt %d, again in %.3g s: %s",
                self.name, entry.saga, said.step, what, said.attempts, delay, text,
            )  # fmt: skip

    # -- calls

    async def _run(
        self, entry: Entry, names: Sequence[str], *, compensating: bool
    ) -> tuple[Sequence[Outcome], asyncio.CancelledError | None]:
        """Call steps side by side; how each ended, in their order, and whether they were to be
        interrupted."""
        if len(names) == 1 and not self._undo_cancelled:
            return (await self._call(entry, names[0], compensating=compensating),), None
        ended: dict[str, Outcome] = {}
        interrupted: asyncio.CancelledError | None = None

        async def one(name: str) -> None:
            ended[name] = await self._call(entry, name, compensating=compensating)

        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(one(name))
        except asyncio.CancelledError as error:
            if not self._undo_cancelled:
                raise
            interrupted = error
            cancelled = [name for name in names if name not in ended]
            ended.update((name, Outcome(name, None, error, False)) for name in cancelled)
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None  # SystemExit and the like, as it was raised
        return [ended[name] for name in names], interrupted

    async def _call(self, entry: Entry, name: str, *, compensating: bool) -> Outcome:
        step = self.steps[name]
        attempt = entry.attempts.get(name, 0) + 1
        call = StepCall(self.name, entry.saga, name, attempt, compensating)
        context = self.contexts.load(entry.context)
        try:
            left = await self._result(step, call, context)
        except Exception as error:
            if config_error(error) is not None and not self._undo_cancelled:
                raise  # it is no failure of the saga, which goes on here once the code is mended
            return Outcome(name, None, error, False)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Outcome(name, None, SagaError("it was cancelled from within"), False)
        try:
            return Outcome(name, self.contexts.store(_replaced(context, left, name)))
        except Exception as error:
            return Outcome(name, None, error, True)

    async def _result(self, step: SagaStep[Any], call: StepCall, context: Any) -> Any:
        action = step.action(call)
        if not step.asynchronous(call):
            found = await self._in_thread(action, context)
            return await found if inspect.isawaitable(found) else found
        if step.timeout is None:
            return await action(context)
        limit = asyncio.timeout(None)
        try:
            async with limit:
                with _clocked(limit, self._clock(), step.timeout):
                    return await action(context)
        except TimeoutError:
            if not limit.expired():
                raise
        raise StepTimeout(f"step {step.name!r} ran longer than {step.timeout:g} s")

    async def _in_thread(self, action: Callable[[Any], Any], context: Any) -> Any:
        """No thread can be interrupted: whoever is to undo what was done has to wait for it, and
        needs to know how it ended. What else was cancelled is :meth:`_run`'s to say."""
        if not self._undo_cancelled:
            return await asyncio.to_thread(_plainly, action, context)
        work = asyncio.ensure_future(asyncio.to_thread(_plainly, action, context))
        await ended(work)
        return work.result()


def _plainly(action: Callable[[Any], Any], context: Any) -> Any:
    """Call a plain action. ``StopIteration`` is held by no future: nobody would be told of it."""
    try:
        return action(context)
    except StopIteration as error:
        raise RuntimeError("a plain action raised StopIteration") from error


def _replaced(context: Any, returned: Any, step: str) -> Any:
    """The context after a step: what it was given, or what it returned in its place.

    :raises SagaError: what it returned is none.
    """
    if returned is None:
        return context
    several = isinstance(returned, Mapping) and isinstance(context, Mapping)
    structs = isinstance(returned, msgspec.Struct) and isinstance(context, msgspec.Struct)
    if several or structs or isinstance(returned, type(context)):
        return returned
    raise SagaError(
        f"step {step!r} returned a {type(returned).__name__}: return the context "
        f"(a {type(context).__name__}), or None to keep the one that was given"
    )


@contextmanager
def _clocked(limit: asyncio.Timeout, clock: Clock, seconds: float) -> Iterator[None]:
    """Let ``limit`` end after so many seconds of the app's clock."""
    loop = asyncio.get_running_loop()
    end = clock.monotonic() + seconds
    handle: asyncio.TimerHandle | None = None
    over = False

    def look() -> None:
        nonlocal handle, over
        if handle is not None:
            handle.cancel()
        if over:
            return
        left = end - clock.monotonic()
        if left <= 0:
            over = True
            limit.reschedule(loop.time())
        else:
            handle = loop.call_later(clock.timeout(left), look)

    look()
    unwatch = clock.watch(lambda: _soon(loop, look))
    try:
        yield
    finally:
        over = True
        unwatch()
        if handle is not None:
            handle.cancel()


def _soon(loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(action)
    except RuntimeError:  # the loop is closed: nobody is left to be told
        return
