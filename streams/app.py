"""The app: a log's URL, the topics and processors declared on it, and their life.

A life begins with ``async with app`` (or ``app.connected()``, ``app.background()``, ``app.run()``)
and ends with it: the log is opened, the ``lifespan`` entered, topics checked or created, groups
given their start, processors started; on the way out handlers finish, positions are committed,
and everything is closed in reverse. If a processor dies, the body of ``async with app`` is
cancelled and :class:`~streams.errors.ProcessorDied` raised at its end: nothing stops silently.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from typing_extensions import override

from streams.cancellation import run_to_completion
from streams.config import CloudEvents
from streams.declarations import Declarations
from streams.errors import (
    ConfigError,
    LogError,
    NotRunning,
    ProcessorDied,
    StreamsError,
    exit_status,
)
from streams.event_loop import enter_in_thread, loop_factory, running_loop
from streams.failure_report import FailureReport
from streams.health import Health, Stats
from streams.log.protocol import Log, Queryable
from streams.log_transaction import TIMEOUT, TransactionBlock
from streams.numbers import is_seconds
from streams.processor import Processor, ProcessorClass, ProcessorOptions
from streams.publisher import Publisher
from streams.runtime import Runtime, enable_timing
from streams.signals import StopSignals
from streams.text import get_logger, one_line
from streams.wiring import static_member

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

logger = get_logger("streams")

Lifespan = Callable[["Streams"], AbstractAsyncContextManager[Any]]


class Streams(Declarations):
    """Topics and processors on one log.

    :param url: ``sqlite:///file.db``, ``memory://name``, ``redis://host:6379/0`` or
        ``kafka://host:9092``; from the environment's ``STREAMS_URL`` if not given. ``--url`` on the
        command line goes before both.
    :param config: driver settings, passed through.
    :param member: a name of this process's own, which is the same after each restart: its groups
        know it by the name (static membership), so that it has its partitions back as soon as it is
        started again, however it ended. It must be unique among the processes of a group: one that
        finds its name taken ends (:class:`~streams.errors.MemberFenced`).
    :param lifespan: ``lifespan(app)`` is entered (``async with``) once the log is open and before
        the first poll; it may open pools and register processors.
    :param cloudevents: what is published to its topics is a CloudEvent, unless a topic says
        otherwise.
    :raises ConfigError: when the app is entered, for a URL that cannot work.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        config: Mapping[str, Any] | None = None,
        member: str | None = None,
        lifespan: Lifespan | None = None,
        cloudevents: CloudEvents | None = None,
    ) -> None:
        super().__init__(url, config, member, lifespan, cloudevents)
        self._failures = FailureReport()
        self._enter_lock = threading.Lock()
        self._stop_requested: asyncio.Event | None = None
        """Set by a signal when the app runs by itself (``app.run()``), which also makes it wait for
        an unreachable server at its start; else None."""
        self.runtime = Runtime(self, self._failures)
        """The current run; after leaving, the last one; before the first, one not yet entered."""

    @override
    def declare(
        self,
        function: Callable[P, R],
        options: ProcessorOptions,
        processor_class: ProcessorClass[P, R] = Processor,
    ) -> Processor[P, R]:
        processor = super().declare(function, options, processor_class)
        self.runtime.processor_declared(processor)
        return processor

    # -- what is there while it lives

    @property
    @override
    def log(self) -> Log:
        return self._while_entered(self.runtime.log)

    @property
    @override
    def publisher(self) -> Publisher:
        return self._while_entered(self.runtime.publisher)

    def _while_entered(self, found: T | None) -> T:
        if found is None:
            problem = "the app is not running: use it inside `async with app:`"
            raise self._failures.not_running_error(problem)
        return found

    @property
    def failure(self) -> ProcessorDied | None:
        """The error that ended the first processor to die; reset when the app is entered again."""
        return self._failures.failure

    async def query(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Read the SQLite log's file with SQL: the rows of one statement, as of one moment.

        For what handlers have written there through ``message.transaction``. Reading holds up no
        writer, and no writer holds up reading. What a handler has not committed yet is not seen.
        If the caller is cancelled, as by ``asyncio.timeout``, the statement ends.

        :param parameters: a sequence for ``?``, a mapping for ``:name``.
        :raises NotRunning: the app is not entered.
        :raises ConfigError: the log is no SQLite file, or the statement does not only read.
        :raises LogError: SQLite refuses it, and its own exception is the cause.
        """
        log = self.log
        if not isinstance(log, Queryable):
            kind = log.capabilities.name
            raise ConfigError(
                f"app.query reads the file of a sqlite:// log with SQL; this is a {kind} log"
            )
        cancelled = threading.Event()

        def run() -> list[tuple[Any, ...]]:
            try:
                return log.query(sql, parameters, cancelled.is_set)
            except LogError:
                if cancelled.is_set():
                    return []  # nobody waits for the rows
                raise

        return await run_to_completion(asyncio.to_thread(run), cancelled.set)

    def transaction(self, *, timeout: float = TIMEOUT) -> TransactionBlock:
        """One transaction of a SQLite log's file, for SQL of your own and what you publish.

        ``async with app.transaction() as connection:``, in plain code ``with``. What is executed on
        the connection and what this block publishes to topics of the app are in the file when it
        ends, or, if it raises, is cancelled or the process is killed, nothing of them is. Consumers
        see messages once they are committed.

        While it is open, everybody else waits who writes to the file: keep it short. Inside,
        ``publish`` and ``publish_many`` return positions that hold if the block commits, also in
        tasks that it starts.

        :param timeout: seconds that it may be open. Then it is rolled back, and whatever it does
            next raises :class:`~streams.TransactionTimeout`, its end at the latest.
        :raises NotRunning: the app is not entered.
        :raises ConfigError: the log is no SQLite file; or (when it is entered) another transaction
            is open here.
        :raises Unavailable: (when it is entered) others have been writing for too long.
        """
        if not is_seconds(timeout, positive=True):
            raise ConfigError(
                f"app.transaction(timeout={timeout!r}): must be a positive number of seconds"
            )
        turns = self._while_entered(self.runtime.transaction_turns)
        turns.check()
        return TransactionBlock(turns, timeout)

    def wait(self, awaitable: Awaitable[T]) -> T:
        """Run an awaitable on the app's loop and wait for it: the bridge for synchronous code.

        :raises NotRunning: the app is not entered.
        :raises ProcessorDied: it was left because a processor died.
        :raises ConfigError: this is its loop's own thread: await there.
        """
        loop = self.runtime.loop
        if loop is None or running_loop() is loop:
            if asyncio.iscoroutine(awaitable):
                awaitable.close()
            if loop is None:
                problem = "the app is not running: use it inside `with app.background():`"
                raise self._failures.not_running_error(problem)
            raise ConfigError("app.wait() on the app's own loop would wait for ever: use await")

        async def wait() -> T:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(wait(), loop).result()

    def measure(self) -> None:
        """Measure how long handlers' calls take from now on, for :meth:`stats`; of quick ones only
        a sample, so that it costs next to nothing."""
        self.timing_enabled = True
        for processor in self.processors:
            if processor.executor is not None:
                enable_timing(processor.executor)

    def stats(self) -> Stats:
        """Figures of this moment."""
        found = {each.name: each.stats() for each in self.processors}
        publisher = self.runtime.publisher
        published = publisher.published if publisher is not None else 0
        return Stats(
            {name: each for name, each in found.items() if each is not None},
            published,
            {name: each.stats() for name, each in list(self.aggregates.items())},
            {name: each.stats() for name, each in list(self.views.items())},
            {name: each.stats() for name, each in list(self.managers.items())},
            {each.name: each.inbox.stats for each in list(self.processors) if each.inbox},
            {name: each.stats() for name, each in list(self.outboxes.items())},
            {each.group: each.stats() for each in list(self.projections)},
        )

    def health(self) -> Health:
        """How the app, its processors, its aggregates and its views are."""
        runtime = self.runtime
        known = (each for each in self.processors if not runtime.is_starting(each))
        found = {each.name: each.health() for each in known}
        aggregates = {name: each.health() for name, each in list(self.aggregates.items())}
        views = {name: each.health() for name, each in list(self.views.items())}
        outboxes = {name: each.health() for name, each in list(self.outboxes.items())}
        return Health(runtime.is_open, found, runtime.stopping, aggregates, views, outboxes)

    async def failed(self) -> ProcessorDied:
        """Wait until a processor dies, and return why: what ``async with app`` raises at its end.

        For a program that runs the app inside something that would go on without it, so that it
        can end or restart that. Any number of tasks may wait, on any loop, and may be cancelled.
        The answer stays until the app is entered again; an app that is left in order gives none.
        """
        return await self._failures.wait()

    async def start_processor(self, processor: Processor[..., Any]) -> None:
        """See :meth:`streams.runtime.Runtime.start_processor`."""
        await self.runtime.start_processor(processor)

    async def stop_processor(self, processor: Processor[..., Any]) -> None:
        """See :meth:`streams.runtime.Runtime.stop_processor`."""
        await self.runtime.stop_processor(processor)

    def expel_member(self, member: str, instance_id: str) -> None:
        """Give up the memberships of another process of this app, which has certainly ended, so
        that the others have its partitions at once (blocks; any thread).

        :param member: its name, :attr:`member` there.
        :param instance_id: its :attr:`instance_id`.
        :raises NotRunning: the app is not entered.
        :raises LogError: it could not be done; its leases run out by themselves.
        """
        log = self.log
        for processor in list(self.processors):
            static = static_member(processor, self.processors, member, instance_id)
            if static is not None:
                log.remove_member(processor.group, static)

    # -- its life

    async def enter(self, *, process: bool = True, cancel_body: bool = True) -> None:
        """Enter the app; :meth:`__aexit__` leaves it.

        :param process: run its processors.
        :param cancel_body: cancel the current task when one of them dies.
        :raises NotRunning: it is entered already.
        """
        with self._enter_lock:
            if self.runtime.is_entered:
                raise NotRunning("the app is running already: enter it once")
            runtime = self.runtime = Runtime(self, self._failures, self._stop_requested)
            runtime.is_entered = True
        await runtime.enter(process=process, cancel_body=cancel_body)

    async def __aenter__(self) -> Self:
        await self.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.runtime.leave(kind, error, trace)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Self]:
        """Publish and read only; no processor runs."""
        await self.enter(process=False)
        try:
            yield self
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        else:  # and not sys.exc_info(): there may be an error that is handled further out
            await self.__aexit__(None, None, None)

    @contextmanager
    def background(self) -> Iterator[Self]:
        """Run the app on a loop in a thread of its own, for a synchronous service.

        :raises ProcessorDied: at the end, if a processor died meanwhile.
        """
        with enter_in_thread(self):
            yield self

    def run(self) -> None:
        """Run until SIGINT or SIGTERM, then finish what is in flight; blocks.

        A server that cannot be reached yet is waited for, with a warning at each attempt. A fatal
        error is said in one line and ends the process with status 1 (``SystemExit``), or with 79
        where another process has taken this static member's name: that one should not be started
        again. A second signal ends it at once: SIGINT with status 130, SIGTERM as the system does.
        """
        try:
            self.run_or_raise()
        except StreamsError as error:
            print(f"streams: {one_line(str(error))}", file=sys.stderr)  # noqa: T201 - the process ends with this
            raise SystemExit(exit_status(error)) from error

    def run_or_raise(self) -> None:
        """The same, for a program that says itself why the app has ended.

        :raises StreamsError: a fatal error; its cause is :class:`~streams.errors.MemberFenced`
            where another process has taken this static member's name.
        """
        if not self.processors and not self.services and self.lifespan is None:
            raise ConfigError("nothing to run: declare a processor with @app.processor(...)")
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        stop_requested = self._stop_requested = asyncio.Event()

        def request_stop(name: str) -> None:
            logger.info("%s: finishing the messages in flight", name)
            stop_requested.set()

        try:
            # Not the loop's own handlers: the second signal counts also while the loop is blocked.
            with StopSignals(lambda name: loop.call_soon_threadsafe(request_stop, name)):
                async with self:
                    await stop_requested.wait()
        finally:
            self._stop_requested = None
