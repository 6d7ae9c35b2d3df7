"""How a saga advances: from one entry to the next.

:meth:`SagaEngine.advance` takes a saga's last entry, calls the steps that are due, and returns the
next entry. It keeps no state, so it can be called again with the same entry after a crash. Its
callers wait until an entry is due: a loop in memory (:mod:`streams.patterns.saga.orchestrator`), a
processor in a durable saga (:mod:`streams.patterns.saga.durable_sagas`).
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from random import random
from typing import Any, NamedTuple

import msgspec

from streams.cancellation import wait_deferring_cancel
from streams.clock import Clock
from streams.errors import find_code_too_old, find_config_error
from streams.patterns.clock_waits import Interrupted, interrupt_after, sleep_until
from streams.patterns.saga.contexts import ContextStore, merge_contexts
from streams.patterns.saga.entry_validation import MAX_WAIT
from streams.patterns.saga.errors import SagaError, StepTimeout
from streams.patterns.saga.journal_entry import ENDED_STATUSES, Failure, JournalEntry, make_failure
from streams.patterns.saga.step import SagaStep, StepCall
from streams.retries import retry_delay
from streams.text import count_with_noun, get_logger

logger = get_logger("streams")

StepErrors = MutableMapping[tuple[str, bool], BaseException]
"""The exceptions raised last, by step and whether its compensation raised it; for callers in the
same process."""


class StepOutcome(NamedTuple):
    """How a call ended: the context in its stored form, or the exception."""

    step: str
    context: Any = None
    error: BaseException | None = None
    took_effect: bool = True
    """Whether it had its effect; if there is an error too, its context cannot be stored."""


class SagaEngine:
    """A saga's steps and its transitions from one entry to the next.

    :param name: the orchestrator's; part of every idempotency key.
    :param compensate_cancelled: a cancelled step has failed, and the saga is compensated.
        Else the cancellation is raised, and the saga stays at its last entry.
    """

    def __init__(
        self,
        name: str,
        contexts: ContextStore,
        get_clock: Callable[[], Clock],
        *,
        compensate_cancelled: bool,
    ) -> None:
        self.name = name
        self.contexts = contexts
        self._get_clock = get_clock
        self._compensate_cancelled = compensate_cancelled
        self.steps: dict[str, SagaStep[Any]] = {}
        self.plan: tuple[tuple[str, ...], ...] = ()

    def add_steps(self, steps: Sequence[SagaStep[Any]]) -> None:
        """Add steps that run side by side, after all that were added before."""
        self.steps.update((step.name, step) for step in steps)
        self.plan = (*self.plan, tuple(step.name for step in steps))

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._get_clock().time()

    # -- one transition

    async def advance(self, entry: JournalEntry, errors: StepErrors) -> JournalEntry:
        """Call the steps that are due; returns the entry that follows.

        A saga whose steps cannot all be found is stopped before anything more is called.

        :param errors: filled with the exceptions of the calls.
        """
        if not entry.plan:
            if not self.plan:
                return self._stop_saga(entry, f"{self.name} has no steps here")
            # Written down before the first step runs, so that the plan of a saga never changes.
            return entry.next_entry(self.now(), plan=self.plan)
        missing = self._missing_steps(entry)
        if missing:
            names = ", ".join(map(repr, missing))
            return self._stop_saga(
                entry,
                f"{self.name} has no step {names} any more: give it its name back and resume, or "
                "abandon the saga",
            )
        try:
            self.contexts.load(entry.context)
        except Exception as error:
            return self._stop_saga(entry, f"its context cannot be read: {error}")
        if entry.status == "compensating":
            return await self._step_backward(entry, errors)
        return await self._step_forward(entry, errors)

    def check_progress(self, entry: JournalEntry, following: JournalEntry) -> None:
        """Make sure that a saga has a bounded number of entries: each is nearer to an end than the
        one before it, whatever its content.

        :raises SagaError: this one is not.
        """
        if following.status in ENDED_STATUSES or (
            following.status == "running" and entry.stage < following.stage <= len(entry.plan)
        ):
            return  # as nearly always
        if not self._distance_to_end(following) < self._distance_to_end(entry):
            raise SagaError(
                f"saga {self.name} {entry.saga}: entry {entry.n} leads to no progress, so nothing "
                "follows on it"
            )

    def _distance_to_end(self, entry: JournalEntry) -> tuple[int, ...]:
        """A saga's distance from its end: tuples of natural numbers, compared from the left, so
        that no saga can come nearer forever."""
        if entry.has_ended:
            return (0,)
        compensating = entry.status == "compensating"
        if not compensating and not entry.plan:
            return (3,)
        attempts_left = 0
        for name in entry.current_steps:
            step = self.steps.get(name)
            if step is not None:
                policy = step.compensation_retry if compensating else step.retry
                attempts_left += max(0, policy.attempts - max(0, entry.attempts.get(name, 0)))
        if compensating:
            return (1, len(entry.done), attempts_left)
        return (2, max(0, len(entry.plan) - entry.stage), len(entry.current_steps), attempts_left)

    def _missing_steps(self, entry: JournalEntry) -> list[str]:
        """Steps that this saga still needs and that do not exist."""
        needed: Iterable[str] = entry.done
        if entry.status == "running":
            # All of them: a saga that cannot be finished, or undone, must go no further.
            needed = (*needed, *(name for group in entry.plan[entry.stage :] for name in group))
        known = self.steps
        compensating = entry.status == "compensating"
        return [
            name
            for name in dict.fromkeys(needed)
            if name not in known or (compensating and known[name].compensate is None)
        ]

    def _stop_saga(self, entry: JournalEntry, reason: str) -> JournalEntry:
        logger.error("saga %s %s: stopped: %s", self.name, entry.saga, reason)
        status = entry.status
        return entry.next_entry(self.now(), status="stopped", stood=status, error=reason, due=0.0)

    # -- forward

    async def _step_forward(self, entry: JournalEntry, errors: StepErrors) -> JournalEntry:
        names = entry.current_steps
        outcomes, cancelled = await self._call_steps(entry, names, compensating=False)
        attempts, last_failures = dict(entry.attempts), list[Failure]()
        delays, final_failures, partly_done = list[float](), list[Failure](), list[str]()
        finished = [each for each in outcomes if each.error is None]
        for step, _, error, took_effect in outcomes:
            if error is None:
                attempts.pop(step, None)
                continue
            policy = self.steps[step].retry
            attempts[step] = attempts.get(step, 0) + 1
            failure = make_failure(step, error, attempts[step])
            errors[step, False] = error
            last_failures.append(failure)
            delay = None
            if not took_effect and not isinstance(error, asyncio.CancelledError):
                delay = retry_delay(policy, attempts[step], error, random())
            if delay is None:
                final_failures.append(failure)
            else:
                delays.append(delay)
            if took_effect or self.steps[step].compensate_failed:
                partly_done.append(step)
            self._log_failure(entry, failure, "failed", delay)
        done = (*entry.done, *(each.step for each in finished))
        context = entry.context
        try:
            context = self._merged_context(entry, finished)
        except Exception as error:
            failed_step = finished[-1].step
            errors[failed_step, False] = error
            final_failures.append(make_failure(failed_step, error, 1))
            self._log_failure(entry, final_failures[-1], "failed", None)
        if cancelled is not None:
            errors["", False] = cancelled
            if not final_failures:
                # Every step had its effect before it could be interrupted; the cancelling caller
                # cannot know, and expects that nothing is done.
                final_failures.append(make_failure(names[-1], cancelled, 1))
        now = self.now()
        if final_failures:
            return self._turn_back(entry, (*done, *partly_done), final_failures[0], context)
        if delays:
            # The steps of a group wait together, until the last of them is due.
            return entry.next_entry(
                now,
                context=context,
                done=done,
                attempts=attempts,
                last=tuple(last_failures),
                due=now + min(MAX_WAIT, max(delays)),
            )
        stage = entry.stage + 1
        status = "completed" if stage >= len(entry.plan) else "running"
        return entry.moved_on(now, status=status, context=context, stage=stage, done=done)

    def _merged_context(self, entry: JournalEntry, finished: Sequence[StepOutcome]) -> Any:
        """The stored context after these steps."""
        if not finished:
            return entry.context
        if len(finished) == 1:
            return finished[0].context
        load = self.contexts.load
        results = [(each.step, load(each.context)) for each in finished]
        return self.contexts.store(merge_contexts(load(entry.context), results))

    def _turn_back(
        self, entry: JournalEntry, done: Iterable[str], failure: Failure, context: Any
    ) -> JournalEntry:
        """Go backward: compensate the steps that are done, as far as they can be."""
        remaining = tuple(name for name in done if self.steps[name].compensate is not None)
        status = "compensating" if remaining else "compensated"
        return entry.moved_on(
            self.now(), status=status, context=context, done=remaining, failure=failure
        )

    def cancel_retries(
        self, entry: JournalEntry, error: BaseException, errors: StepErrors
    ) -> JournalEntry:
        """Turn a saga back that is cancelled while its steps wait for a retry."""
        for name in entry.current_steps:
            errors[name, False] = error
        first = entry.current_steps[0]
        failure = make_failure(first, error, entry.attempts.get(first, 0))
        partly_done = (name for name in entry.attempts if self.steps[name].compensate_failed)
        return self._turn_back(entry, (*entry.done, *partly_done), failure, entry.context)

    # -- backward

    async def _step_backward(self, entry: JournalEntry, errors: StepErrors) -> JournalEntry:
        name = entry.done[-1]
        (outcome,), _ = await self._call_steps(entry, (name,), compensating=True)
        remaining, now = entry.done[:-1], self.now()
        if outcome.error is None:
            return self._compensated_entry(entry, remaining, entry.uncompensated, outcome.context)
        attempts = entry.attempts.get(name, 0) + 1
        failure = make_failure(name, outcome.error, attempts)
        errors[name, True] = outcome.error
        delay = None
        if not outcome.took_effect:
            policy = self.steps[name].compensation_retry
            delay = retry_delay(policy, attempts, outcome.error, random())
        self._log_failure(entry, failure, "could not be compensated", delay)
        if delay is not None:
            due = now + min(MAX_WAIT, delay)
            return entry.next_entry(now, attempts={name: attempts}, last=(failure,), due=due)
        return self._compensated_entry(
            entry, remaining, (*entry.uncompensated, failure), entry.context
        )

    def _compensated_entry(
        self,
        entry: JournalEntry,
        remaining: tuple[str, ...],
        uncompensated: tuple[Failure, ...],
        context: Any,
    ) -> JournalEntry:
        ended = "failed" if uncompensated else "compensated"
        status = "compensating" if remaining else ended
        return entry.moved_on(
            self.now(), status=status, context=context, done=remaining, uncompensated=uncompensated
        )

    def _log_failure(
        self, entry: JournalEntry, failure: Failure, verb: str, delay: float | None
    ) -> None:
        text = str(failure.error)
        if delay is None:
            logger.warning(
                "saga %s %s: step %s %s after %s: %s",
                self.name, entry.saga, failure.step, verb,
                count_with_noun(failure.attempts, "attempt"), text,
            )  # fmt: skip
        else:
            logger.info(
                "saga %s %s: step %s %s, attempt %d, again in %.3g s: %s",
                self.name, entry.saga, failure.step, verb, failure.attempts, delay, text,
            )  # fmt: skip

    # -- calls

    async def _call_steps(
        self, entry: JournalEntry, names: Sequence[str], *, compensating: bool
    ) -> tuple[Sequence[StepOutcome], asyncio.CancelledError | None]:
        """Call steps side by side; returns how each ended, in their order, and the cancellation
        that interrupted them, if any."""
        if len(names) == 1 and not self._compensate_cancelled:
            return (await self._call_step(entry, names[0], compensating=compensating),), None
        outcomes: dict[str, StepOutcome] = {}
        interrupted: asyncio.CancelledError | None = None

        async def call_one(name: str) -> None:
            outcomes[name] = await self._call_step(entry, name, compensating=compensating)

        try:
            async with asyncio.TaskGroup() as group:
                for name in names:
                    group.create_task(call_one(name))
        except asyncio.CancelledError as error:
            if not self._compensate_cancelled:
                raise
            interrupted = error
            cancelled = [name for name in names if name not in outcomes]
            outcomes.update((name, StepOutcome(name, None, error, False)) for name in cancelled)
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None  # SystemExit and the like, as it was raised
        return [outcomes[name] for name in names], interrupted

    async def _call_step(
        self, entry: JournalEntry, name: str, *, compensating: bool
    ) -> StepOutcome:
        step = self.steps[name]
        attempt = entry.attempts.get(name, 0) + 1
        call = StepCall(self.name, entry.saga, name, attempt, compensating)
        context = self.contexts.load(entry.context)
        try:
            returned = await self._call_action(step, call, context)
        except Exception as error:
            no_failure = find_config_error(error) or find_code_too_old(error)
            if no_failure is not None and not self._compensate_cancelled:
                raise  # also for the saga: it goes on here once the code is fixed, or newer
            return StepOutcome(name, None, error, False)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return StepOutcome(name, None, SagaError("it was cancelled from within"), False)
        try:
            stored = self.contexts.store(_resulting_context(context, returned, name))
        except Exception as error:
            return StepOutcome(name, None, error, True)
        return StepOutcome(name, stored)

    async def _call_action(self, step: SagaStep[Any], call: StepCall, context: Any) -> Any:
        action, asynchronous = step.action(call)
        if not asynchronous:
            found = await self._call_in_thread(action, context)
            return await found if inspect.isawaitable(found) else found
        if step.timeout is None:
            return await action(context)
        clock = self._get_clock()
        end = clock.monotonic() + step.timeout
        try:
            async with interrupt_after(clock, end, lambda: sleep_until(clock, end)):
                return await action(context)
        except Interrupted:
            pass
        raise StepTimeout(f"step {step.name!r} ran longer than {step.timeout:g} s")

    async def _call_in_thread(self, action: Callable[[Any], Any], context: Any) -> Any:
        """Await an action in a thread to its end. No thread can be interrupted, and the caller
        needs to know how it ended to undo it. :meth:`_call_steps` handles the cancellation of the
        rest."""
        if not self._compensate_cancelled:
            return await asyncio.to_thread(_call_plain, action, context)
        work = asyncio.ensure_future(asyncio.to_thread(_call_plain, action, context))
        await wait_deferring_cancel(work)
        return work.result()


def _call_plain(action: Callable[[Any], Any], context: Any) -> Any:
    """Call a plain action. No future can hold ``StopIteration``: its caller would wait forever."""
    try:
        return action(context)
    except StopIteration as error:
        raise RuntimeError("a plain action raised StopIteration") from error


def _resulting_context(context: Any, returned: Any, step: str) -> Any:
    """The context after a step: the one it was called with, or the one it returned.

    :raises SagaError: its result is not a context.
    """
    if returned is None:
        return context
    are_mappings = isinstance(returned, Mapping) and isinstance(context, Mapping)
    are_structs = isinstance(returned, msgspec.Struct) and isinstance(context, msgspec.Struct)
    if are_mappings or are_structs or isinstance(returned, type(context)):
        return returned
    raise SagaError(
        f"step {step!r} returned a {type(returned).__name__}: return the context "
        f"(a {type(context).__name__}), or None to keep the one that was given"
    )
