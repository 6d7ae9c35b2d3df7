"""The orchestrator: the steps of a saga, their order, and their compensations.

In memory a saga lives as long as the call of :meth:`SagaOrchestrator.execute`. With an app and a
name it is durable: its journal is in the log, and the owner of its partition advances it
(:mod:`streams.patterns.saga.durable_sagas`). Both are run by the same engine
(:mod:`streams.patterns.saga.engine`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, get_args, overload

from typing_extensions import TypeForm

from streams import wire
from streams.cancellation import run_to_completion
from streams.clock import SYSTEM
from streams.config import Dedup, Flow, Retention
from streams.errors import ConfigError, InvalidValue, find_config_error
from streams.numbers import is_int
from streams.patterns.arguments import check_app
from streams.patterns.saga.contexts import ContextStore, CopiedContexts, EncodedContexts
from streams.patterns.saga.durable_sagas import DurableSagas, check_saga_id, new_saga_id
from streams.patterns.saga.engine import SagaEngine, StepErrors
from streams.patterns.saga.errors import FailedCompensation, SagaFailedError, SagaStoppedError
from streams.patterns.saga.journal import DEFAULT_NEWEST
from streams.patterns.saga.journal_entry import (
    Failure,
    JournalEntry,
    Status,
    StoredEntry,
    abandon_entry,
    resume_entry,
)
from streams.patterns.saga.step import Action, SagaStep
from streams.text import get_logger, suggestion

if TYPE_CHECKING:
    from streams.app import Streams

C = TypeVar("C")

STATUSES: tuple[str, ...] = get_args(Status)

logger = get_logger("streams")


@dataclass(frozen=True, slots=True)
class SagaStatus(Generic[C]):
    """The state of a durable saga.

    :param id: the saga's ID.
    :param status: ``running`` (forward), ``compensating`` (backward), ``completed``,
        ``compensated``, ``failed`` (a compensation failed), ``stopped`` (it cannot go on with the
        code there is) or ``abandoned``.
    :param steps: the steps to be executed, or to be compensated, next.
    :param done: steps that are done and not compensated.
    :param failure: why it goes or went backward.
    :param failed_compensations: compensations that failed for good.
    :param retrying: the last failures of the steps that wait for a retry.
    :param reason: why it was stopped or abandoned.
    :param updated: when it reached this state; UTC.
    """

    id: str
    status: Status
    steps: tuple[str, ...]
    done: tuple[str, ...]
    failure: Failure | None
    failed_compensations: tuple[Failure, ...]
    retrying: tuple[Failure, ...]
    reason: str
    updated: datetime
    _stored_context: Any = field(repr=False)
    _load_context: Callable[[Any], C] = field(repr=False)

    @property
    def context(self) -> C:
        """The current context.

        :raises DecodeError: it is not of the declared type.
        """
        return self._load_context(self._stored_context)


class SagaOrchestrator(Generic[C]):
    """Runs sagas: steps in order, and when one fails, the compensations of those before it.

    Without an app sagas live in memory, and contexts are of any type that can be copied::

        saga = SagaOrchestrator().add_step(SagaStep("reserve", reserve, release))

    With an app they are durable: declare the orchestrator before the app is entered.

    :param app: the app on whose log the journals are.
    :param name: the name of these sagas: their journal is the topic ``NAME.saga``, their group is
        ``NAME``, and it is in every idempotency key.
    :param context: the type of their context, which msgspec can encode.
    :param partitions: of the journal's topic. Not given: an existing topic is used as it is, and a
        new one gets 8.
    :param retention: how long the journal is kept, if its topic is created here: see
        :meth:`streams.Streams.topic`. It must be longer than any saga takes.
    :param concurrency: how many sagas run a step at once in this process.
    :param dedup: how far back a second start of one saga ID is detected.
    :param flow: the processor's; its ``drain`` is how long steps may take to end when the app
        stops or partitions move. Then they are cancelled, and called again by the next owner.
    :raises ConfigError: any of these cannot work.
    """

    @overload
    def __init__(self: SagaOrchestrator[Any]) -> None: ...

    @overload
    def __init__(
        self,
        app: Streams,
        name: str,
        *,
        context: TypeForm[C],
        partitions: int | None = None,
        retention: Retention | None = None,
        concurrency: int = 64,
        dedup: Dedup = Dedup(),
        flow: Flow = Flow(),
    ) -> None: ...

    def __init__(
        self,
        app: Streams | None = None,
        name: str | None = None,
        *,
        context: Any = None,
        partitions: int | None = None,
        retention: Retention | None = None,
        concurrency: int = 64,
        dedup: Dedup = Dedup(),
        flow: Flow = Flow(),
    ) -> None:
        self._durable: DurableSagas | None = None
        self._context_type: Any = Any if context is None else context
        if app is None:
            if name is not None or context is not None:
                raise ConfigError(
                    "SagaOrchestrator: a durable saga needs all of app, name and context=; one "
                    "in memory takes none of them"
                )
            self._engine = SagaEngine(
                "saga", CopiedContexts(), lambda: SYSTEM, compensate_cancelled=True
            )
            return
        if not isinstance(name, str) or context is None:
            raise ConfigError(
                "SagaOrchestrator(app, name, context=...): a durable saga needs a name and the "
                "type of its context"
            )
        check_app(app, "SagaOrchestrator")
        contexts: ContextStore = EncodedContexts(context, name)
        self._engine = SagaEngine(name, contexts, lambda: app.clock, compensate_cancelled=False)
        self._durable = DurableSagas(
            app, name, self._engine,
            partitions=partitions, retention=retention, concurrency=concurrency, dedup=dedup,
            flow=flow,
        )  # fmt: skip

    def __repr__(self) -> str:
        names = ", ".join("|".join(group) for group in self._engine.plan)
        return f"<SagaOrchestrator {self._engine.name!r}: {names}>"

    # -- declaring

    @overload
    def add_step(self, step: SagaStep[C], /) -> Self: ...

    @overload
    def add_step(
        self, step: str, execute: Action[C], compensate: Action[C] | None = None, **options: Any
    ) -> Self: ...

    def add_step(
        self, step: SagaStep[C] | str, execute: Any = None, compensate: Any = None, **options: Any
    ) -> Self:
        """Add a step after the earlier ones: a :class:`SagaStep`, or a name and the other arguments
        of one.

        :raises ConfigError: it cannot work, there is one of that name already, or its functions'
            annotations are of another context's type.
        """
        if not isinstance(step, SagaStep):
            step = SagaStep(step, execute, compensate, **options)
        elif execute is not None or compensate is not None or options:
            raise ConfigError("add_step takes a SagaStep, or what makes one, not both")
        return self.add_parallel(step)

    def add_parallel(self, *steps: SagaStep[C]) -> Self:
        """Add a group of steps that run side by side; the next begins when all are done.

        Each gets a context of its own, and their changes are merged, field by field: two steps that
        change one field differently are a failure. If one fails for good, the others run to their
        end; compensations run one after the other.

        :raises ConfigError: there is one of that name already.
        """
        if not steps:
            raise ConfigError("add_parallel: give at least one step")
        taken = set(self._engine.steps)
        for step in steps:
            if not isinstance(step, SagaStep):
                raise ConfigError(f"{step!r} is not a SagaStep")
            if step.name in taken:
                raise ConfigError(f"there is a step {step.name!r} already: names are unlike")
            taken.add(step.name)
            step.check_context(self._engine.name, self._context_type)
        self._engine.add_steps(steps)
        return self

    @property
    def steps(self) -> tuple[SagaStep[C], ...]:
        """The steps, in order."""
        return tuple(self._engine.steps.values())

    # -- running

    async def execute(self, context: C, *, id: str | None = None) -> C:
        """Run a saga to its end; returns the context after its last step.

        The given context is not changed. In memory, cancelling this call fails the current step:
        the steps done are compensated, and then the cancellation is raised. A durable saga
        advances whether or not a caller waits for it here.

        :param id: the saga's ID, part of every idempotency key; a fresh one if not given. A
            durable saga of that ID is not started twice: this call waits for the existing one.
        :raises SagaFailedError: a step failed; the steps before it were compensated.
        :raises SagaStoppedError: a durable saga cannot go on, or was abandoned.
        :raises NotRunning: the app of a durable saga is not entered, or was left before the saga
            had ended; another process that runs it goes on with it.
        :raises ConfigError: there are no steps, or the context cannot be copied; or a step raised
            it: in memory, after the steps done have been compensated.
        :raises InvalidValue: a saga cannot have that ID, or such a context.
        :raises EncodeError: the context does not fit the declared type.
        """
        if self._durable is not None:
            entry: JournalEntry = await self._durable.run(id, context)
            return self._result_or_raise(entry, {})
        if not self._engine.plan:
            raise ConfigError("the saga has no steps: add_step(...) first")
        stored = self._engine.contexts.store(context)
        saga_id = new_saga_id() if id is None else check_saga_id(id)
        errors: StepErrors = {}
        first_entry = JournalEntry(saga=saga_id, context=stored, plan=self._engine.plan)
        entry = await self._run_in_memory(first_entry, errors)
        for error in errors.values():
            if isinstance(error, asyncio.CancelledError):
                self._note_uncompensated(error, "was cancelled", entry)
                raise error
        for error in errors.values():
            if (found := find_config_error(error)) is not None:
                # The steps done are compensated, as no process could go on with the saga. The
                # failure is not the saga's, and the caller must not try again.
                self._note_uncompensated(found, "cannot work", entry)
                raise found
        return self._result_or_raise(entry, errors)

    async def start(self, context: C, *, id: str | None = None) -> str:
        """Start a durable saga; returns its ID, once the start is durable.

        :param id: the saga's ID; a fresh one if not given. A second start of one ID is dropped,
            as far back as ``dedup`` remembers.
        :raises ConfigError: the saga is not durable.
        :raises EncodeError: the context does not fit the declared type.
        """
        durable = self._require_durable("start")
        saga_id = new_saga_id() if id is None else check_saga_id(id)
        await durable.start(saga_id, context)
        return saga_id

    async def _run_in_memory(self, entry: JournalEntry, errors: StepErrors) -> JournalEntry:
        """Run until it completes or fails; compensations run to their end, whatever happens."""
        engine = self._engine
        while entry.status == "running":
            try:
                await asyncio.sleep(max(0.0, entry.due - engine.now()))
            except asyncio.CancelledError as error:
                entry = engine.cancel_retries(entry, error, errors)
            else:
                entry = await engine.advance(entry, errors)
        if entry.status == "compensating":
            return await run_to_completion(self._compensate(entry, errors))
        return entry

    async def _compensate(self, entry: JournalEntry, errors: StepErrors) -> JournalEntry:
        while entry.status == "compensating":
            await asyncio.sleep(max(0.0, entry.due - self._engine.now()))
            entry = await self._engine.advance(entry, errors)
        return entry

    def _result_or_raise(self, entry: JournalEntry, errors: StepErrors) -> C:
        if entry.status in ("stopped", "abandoned"):
            raise SagaStoppedError(entry.saga, entry.status, entry.error)
        context: C = self._engine.contexts.load(entry.context)
        if entry.failure is None:
            return context
        failure = entry.failure
        cause = errors.get((failure.step, False), failure.error)
        failed = tuple(
            FailedCompensation(each.step, errors.get((each.step, True), each.error), each.attempts)
            for each in entry.uncompensated
        )
        raise SagaFailedError(entry.saga, failure.step, cause, failed, context) from cause

    def _note_uncompensated(self, error: BaseException, verb: str, entry: JournalEntry) -> None:
        """Name the steps not undone in an error that replaces a :class:`SagaFailedError`."""
        uncompensated = ", ".join(each.step for each in entry.uncompensated)
        if uncompensated:
            error.add_note(f"saga {entry.saga} {verb}; not compensated: {uncompensated}")

    # -- inspecting, and commands

    async def status(self, id: str, *, newest: int | None = DEFAULT_NEWEST) -> SagaStatus[C]:
        """The state of a durable saga.

        :param newest: how many of the newest journal entries of each partition are searched;
            None: all that the log keeps. It is cheap for a saga that this process has
            :meth:`executed <execute>` by its ID.
        :raises UnknownSaga: there is none of that ID.
        """
        durable = self._require_durable("status")
        _check_id_type("status", id)
        return self._status_of(await durable.latest(id, _check_newest("status", newest)))

    async def list(
        self, *statuses: Status, newest: int | None = DEFAULT_NEWEST
    ) -> list[SagaStatus[C]]:
        """The states of all sagas of this name, in the order in which they reached them.

        :param statuses: only those; if none is given, all that are not final: running,
            compensating, failed or stopped.
        :param newest: how many of the newest journal entries of each partition are searched;
            None: all that the log keeps. A warning is logged if there are more.
        """
        journal = self._require_durable("list").journal
        newest = _check_newest("list", newest)
        for status in statuses:
            if status not in STATUSES:
                raise ConfigError(
                    f"list({status!r}): no such status; {suggestion(status, STATUSES)}"
                )

        def is_wanted(entry: JournalEntry) -> bool:
            return entry.status in statuses if statuses else not entry.is_final

        found = await asyncio.to_thread(journal.list_latest, is_wanted, newest)
        if not found.is_complete:
            logger.warning(
                "saga %s: only the last %d entries of each partition of %s were read; "
                "list(newest=None) reads all",
                journal.saga, newest, journal.topic,
            )  # fmt: skip
        return [self._status_of(entry) for entry in found.entries]

    async def resume(self, id: str) -> SagaStatus[C]:
        """Resume a stopped saga at the step where it was; or retry the compensations of a
        failed one.

        :raises UnknownSaga: the log knows none of that ID.
        :raises SagaError: there is nothing to resume.
        """
        return await self._append_command("resume", id, resume_entry)

    async def abandon(self, id: str, reason: str = "") -> SagaStatus[C]:
        """End a saga: take no further step, neither forward nor backward.

        A step that is being called now, or within a second from now, is not interrupted,
        but no step follows it. One that waits for a retry is not called any more.

        :raises UnknownSaga: the log knows none of that ID.
        :raises SagaError: the saga is final.
        """
        if not isinstance(reason, str):
            raise InvalidValue(f"abandon(reason={reason!r}): a str")
        return await self._append_command("abandon", id, partial(abandon_entry, reason=reason))

    async def _append_command(
        self, method: str, id: str, make_next: Callable[[StoredEntry, float], StoredEntry]
    ) -> SagaStatus[C]:
        journal, now = self._require_durable(method).journal, self._engine.now
        _check_id_type(method, id)
        return self._status_of(
            await asyncio.to_thread(journal.append_command, id, lambda last: make_next(last, now()))
        )

    def _status_of(self, entry: StoredEntry) -> SagaStatus[C]:
        return SagaStatus(
            id=entry.saga,
            status=entry.status,
            steps=entry.current_steps,
            done=entry.done,
            failure=entry.failure,
            failed_compensations=entry.uncompensated,
            retrying=entry.last,
            reason=entry.error,
            updated=wire.utc_from_seconds(entry.at),
            _stored_context=entry.context,
            _load_context=self._engine.contexts.load,
        )

    def _require_durable(self, method: str) -> DurableSagas:
        if self._durable is None:
            raise ConfigError(
                f"{method}() is for durable sagas: SagaOrchestrator(app, name, context=...)"
            )
        return self._durable


def _check_id_type(method: str, id: object) -> None:
    """:raises InvalidValue: no saga can have that ID."""
    if not isinstance(id, str):
        raise InvalidValue(f"{method}({id!r}): the saga's ID is a str")


def _check_newest(method: str, newest: int | None) -> int | None:
    """:raises ConfigError: it is no number of entries."""
    if newest is not None and not is_int(newest, 1):
        raise ConfigError(
            f"{method}(newest={newest!r}): must be a positive integer, or None for all"
        )
    return newest
