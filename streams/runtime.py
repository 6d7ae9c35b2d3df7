"""One life of an app: its open log, its publisher, and the processors that run.

The log is opened, resources and the ``lifespan`` are entered, topics checked or created, groups
given their start, processors started. On the way out handlers finish, positions are committed, and
everything is closed in reverse.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Any

from streams.cancellation import run_in_thread, run_to_completion
from streams.declarations import Declarations
from streams.errors import ProcessorDied, StreamsError, Unavailable
from streams.event_loop import running_loop
from streams.failure_report import FailureReport
from streams.kept_positions import keep_positions
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.log_transaction import TransactionTurns
from streams.processing.executor import Executor
from streams.processing.handler_transaction import HandlerTransaction, TransactionLock
from streams.processing.poller import Poller
from streams.processing.timing import Timing
from streams.processor import Processor
from streams.provisioning import StartPositions, ensure_declared_topics, ensure_processor_topics
from streams.publisher import Publisher
from streams.text import describe_error, get_logger
from streams.wiring import make_executor, make_job, static_member

logger = get_logger("streams")

CLOSE_TIMEOUT = 10.0
"""Real seconds that a closing app waits for its published messages to be acknowledged."""


class Runtime:
    """One run of an app, from enter to leave. Each entering makes a new one.

    Its public part is for patterns and the command line: they start and stop processors, ensure
    topics, and run tasks beside the app's body.

    :param failures: told when a processor dies.
    :param stop_requested: set by a signal when the app is to stop; None if no signal ends the app.
        With it, the app waits at its start for a server that cannot be reached yet.
    """

    def __init__(
        self,
        app: Declarations,
        failures: FailureReport,
        stop_requested: asyncio.Event | None = None,
    ) -> None:
        self._app = app
        self._failures = failures
        self._stop_requested = stop_requested
        self._stack = AsyncExitStack()
        self.is_entered = False
        """Whether the app was entered and not left yet."""
        self.log: Log | None = None
        self.publisher: Publisher | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the run, while it lasts."""
        self.runs_processors = False
        """Processors run or are being started, so one that is declared now is started at once."""
        self.stopping = False
        """The run is ending, or has ended."""
        self.starting: set[Processor[..., Any]] = set()
        """Processors that were declared during the run and have not started yet."""
        self.stopping_processors: set[Processor[..., Any]] = set()
        """Processors that are being stopped while the others go on."""
        self._end_futures: dict[Processor[..., Any], asyncio.Future[None]] = {}
        """By running processor, a future that is done when it has ended; also for processors whose
        declaration was removed."""
        self._body_task: asyncio.Task[Any] | None = None
        self._body_cancelled = False
        self._background_tasks: set[asyncio.Task[None]] = set()
        self._start_positions: defaultdict[str, StartPositions] = defaultdict(dict)
        """By group, the start positions that could not be committed because the group is live."""
        self._transaction_lock = TransactionLock()
        """Handlers with a transaction of their own, and blocks of ``app.transaction()``, take
        turns."""
        self.transaction_turns: TransactionTurns | None = None
        """The state that the blocks of ``app.transaction()`` share, while the log is open."""

    @property
    def is_open(self) -> bool:
        """Whether the log is open."""
        return self.log is not None

    def not_running_error(self, message: str) -> StreamsError:
        """See :meth:`FailureReport.not_running_error`."""
        return self._failures.not_running_error(message)

    # -- beginning

    async def enter(self, *, process: bool, cancel_body: bool) -> None:
        """Begin.

        :param process: run the processors.
        :param cancel_body: cancel the current task when one of them dies.
        """
        app, stack = self._app, self._stack
        self.loop = asyncio.get_running_loop()
        self._body_task = asyncio.current_task() if cancel_body else None
        self._failures.clear()
        for processor in app.processors:
            processor.end_reason = None
        try:
            stack.callback(self._reset)
            stack.push_async_callback(self._close_log)
            self._report_url()
            await self._wait_until_available(self._open_log)
            publisher = self.publisher = Publisher(app.log, app.clock)
            publisher.observer = app.publish_observer
            publisher.closed_error = self.not_running_error
            publisher.start()
            stack.push_async_callback(lambda: run_in_thread(publisher.close, CLOSE_TIMEOUT))
            turns = self.transaction_turns = TransactionTurns(app.log, self._transaction_lock)
            stack.push_async_callback(lambda: run_in_thread(turns.close))
            stack.push_async_callback(self._leave_resources)
            for resource in list(app.resources):
                await resource.__aenter__()
            if app.lifespan is not None:
                # So that it may publish; what is still missing then is its own to create.
                await self._wait_until_available(partial(self.ensure_topics, missing_ok=True))
                await stack.enter_async_context(app.lifespan(app))
            await self._wait_until_available(self.ensure_topics)
            app.declarations_closed = True
            if process:
                stack.push_async_callback(self._stop)
                processors = list(app.processors)
                self.runs_processors = True
                for processor in processors:
                    # All before the first starts: Kafka gives no start to a group that is live.
                    ensure_topics = partial(self._ensure_processor_topics, processor)
                    await self._wait_until_available(ensure_topics)
                for processor in processors:
                    self._start_poller(processor)
                for service in app.services:
                    _ = self.spawn(service())
                if app.log.capabilities.forgets_positions:
                    _ = self.spawn(keep_positions(app.log, app.processors))
        except BaseException:
            self.stopping = True  # what ends from here on ends because of this error
            try:
                await stack.__aexit__(*sys.exc_info())
            finally:
                self.is_entered = False
            raise

    def _report_url(self) -> None:
        app = self._app
        if app.url_logged:
            return
        source = app.url_source
        level = logging.INFO if app.url_warning_logged else source.log_level
        app.url_warning_logged = app.url_warning_logged or level == logging.WARNING
        logger.log(level, "the log is %s", source)

    async def _wait_until_available(self, request: Callable[[], None]) -> None:
        """Ask the log something; an app that runs until a signal asks until the log answers."""
        stop = self._stop_requested
        await wait_until_available(
            request, lambda: stop is not None and not stop.is_set(), interrupt=stop
        )

    def _open_log(self) -> None:
        app = self._app
        self.log = open_log(app.url, app.driver_config, app.clock, app.member, app.open_mode)

    def ensure_topics(self, *, missing_ok: bool = False) -> None:
        """Check declared topics against the log, and create what is missing (off the loop); not of
        an app that only looks."""
        app = self._app
        if app.open_mode == "ro":
            return
        ensure_declared_topics(app.log, app.declared_topics, app.processors, missing_ok=missing_ok)

    def _ensure_processor_topics(self, processor: Processor[..., Any]) -> None:
        ensure_processor_topics(self._app, processor, self._start_positions[processor.group])

    # -- ending

    async def leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End.

        :raises ProcessorDied: a processor died, and the body did not fail by itself.
        """
        self.stopping = True
        try:
            await self._stack.__aexit__(kind, error, trace)
        finally:
            self.is_entered = False  # only now may the app be entered again
            body_task, self._body_task = self._body_task, None
            failure = self._failures.failure
            cancelled_by_us = self._body_cancelled and isinstance(error, asyncio.CancelledError)
            if self._body_cancelled and body_task is not None:
                body_task.uncancel()
            self._body_cancelled = False
        if failure is not None and (error is None or cancelled_by_us):
            raise failure from failure.__cause__

    async def _close_log(self) -> None:
        if self.log is not None:
            await run_in_thread(self.log.close)

    async def _leave_resources(self) -> None:
        async with AsyncExitStack() as stack:
            for resource in self._app.resources:
                stack.push_async_exit(resource)

    def _reset(self) -> None:
        self._app.declarations_closed = self.runs_processors = False
        self.starting.clear()
        self.log = self.publisher = self.loop = self.transaction_turns = None
        for processor in (*self._app.processors, *self._end_futures):
            processor.executor = processor.poller = None
        self._end_futures.clear()
        self.stopping_processors.clear()

    # -- one processor, while the app goes on

    def processor_declared(self, processor: Processor[..., Any]) -> None:
        """A processor was declared: while processors run, it is to be started."""
        if self.runs_processors:
            self.starting.add(processor)

    def is_starting(self, processor: Processor[..., Any]) -> bool:
        """Whether it was declared while the app runs, and has not begun."""
        return processor in self.starting

    def withdraw_processor(self, processor: Processor[..., Any]) -> None:
        """Take a processor's declaration back, and do not start it any more (any thread)."""
        self.starting.discard(processor)
        with suppress(ValueError):
            self._app.processors.remove(processor)

    async def start_processor(self, processor: Processor[..., Any]) -> None:
        """Begin with a processor that was declared on the running app: its topics, its group's
        start, then itself. Outages of the log are waited out.

        :raises NotRunning: no processors run here.
        :raises LogError: the log refuses; the processor stays declared and does not run.
        """
        if not self.runs_processors:
            problem = "the app runs no processors: enter it with `async with app:`"
            raise self.not_running_error(problem)

        def ensure_topics() -> None:
            self.ensure_topics()
            self._ensure_processor_topics(processor)

        try:
            await wait_until_available(
                ensure_topics, lambda: processor in self.starting, label=f"{processor.name}: "
            )
        except Unavailable:
            return  # it was stopped meanwhile
        except BaseException:
            self.starting.discard(processor)  # so that its health is that it does not run
            raise
        for helper in processor.helpers:
            await self.start_processor(helper)
        if self.runs_processors and processor in self.starting:
            self.starting.discard(processor)
            self._start_poller(processor)

    async def stop_processor(self, processor: Processor[..., Any]) -> None:
        """Stop a processor and take its declaration back; the others go on.

        What it handles is finished (for its ``Flow(drain=)`` seconds at most) and committed, and
        it leaves its group. Nothing of it runs once this has returned.
        """
        self.withdraw_processor(processor)
        executor, poller = processor.executor, processor.poller
        ended = self._end_futures.get(processor)
        if executor is None or poller is None or ended is None:
            for helper in processor.helpers:
                await self.stop_processor(helper)
            return
        self.stopping_processors.add(processor)
        poller.stop()
        for timeout in (processor.options.flow.drain + CLOSE_TIMEOUT, CLOSE_TIMEOUT):
            await asyncio.wait({ended}, timeout=timeout)
            if ended.done():
                break
            executor.stop_waiting()
        else:
            logger.error("processor %s did not stop in time and is abandoned", processor.name)
        await executor.wait_closed()
        self._end_futures.pop(processor, None)
        self.stopping_processors.discard(processor)
        processor.executor = processor.poller = None
        for helper in processor.helpers:
            await self.stop_processor(helper)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do something beside the app's body, until the app is left at the latest (loop only)."""
        task = asyncio.create_task(coroutine)
        self._background_tasks.add(task)
        task.add_done_callback(self._background_tasks.discard)
        return task

    def spawn_from_any_thread(
        self,
        coroutine_function: Callable[[], Coroutine[Any, Any, None]],
        on_done: Callable[[], None],
    ) -> None:
        """Do something beside the app's body, from any thread; the app's end cancels it.

        :param on_done: called once it has ended, however that was, or cannot be run.
        """
        loop = self.loop
        if loop is None:
            on_done()
            return

        def start_task() -> None:
            # Not a `finally` in the work: what is cancelled before its first step has none.
            self.spawn(coroutine_function()).add_done_callback(lambda _: on_done())

        if running_loop() is loop:
            start_task()
            return
        try:
            loop.call_soon_threadsafe(start_task)
        except RuntimeError:
            on_done()

    # -- running processors

    def _start_poller(self, processor: Processor[..., Any]) -> None:
        app, loop = self._app, asyncio.get_running_loop()
        member = static_member(processor, app.processors, app.member, app.instance_id)
        job = make_job(app, processor, member, self._start_positions[processor.group])
        for wrap in app.job_wrappers:
            job = wrap(job)

        def new_transaction() -> HandlerTransaction:
            return poller.handler_transaction(self._transaction_lock)

        executor = make_executor(job, loop, new_transaction)
        if app.timing_enabled:
            enable_timing(executor)
        poller = Poller(processor.subscribed_log(app), job, executor)
        processor.end_reason = None
        ended: asyncio.Future[None] = loop.create_future()
        self._end_futures[processor] = ended

        def on_end() -> None:
            with suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(self._poller_ended, processor, poller, ended)

        poller.on_end = on_end
        processor.executor, processor.poller = executor, poller
        if processor.paused:
            poller.pause()
        executor.start()
        poller.start()

    def _poller_ended(
        self, processor: Processor[..., Any], poller: Poller, ended: asyncio.Future[None]
    ) -> None:
        poller.join_thread()
        if not ended.done():
            ended.set_result(None)
        error = poller.fatal
        if error is None and (self.stopping or processor in self.stopping_processors):
            return
        if error is not None and not isinstance(error, StreamsError):
            logger.error("processor %s died", processor.name, exc_info=error)
        processor.end_reason = describe_error(error) if error is not None else "it ended by itself"
        if self._failures.failure is not None:
            return
        failure = ProcessorDied(f"processor {processor.name} died: {processor.end_reason}")
        failure.__cause__ = error
        self._failures.report(failure)
        if self._body_task is not None and not self.stopping:
            self._body_cancelled = True
            self._body_task.cancel()

    async def _stop(self) -> None:
        """Stop all processors: handlers finish up to their drain deadlines, positions commit.

        Cancelled meanwhile it does the same, without patience for handlers.
        """
        self._stop_pollers()
        await run_to_completion(self._wait_stopped(), self._cancel_handlers)

    def _stop_pollers(self) -> None:
        for processor in self._end_futures:  # those that run, also if they are declared no more
            if processor.poller is not None:
                processor.poller.stop()

    def _cancel_handlers(self) -> None:
        for processor in self._end_futures:
            if processor.executor is not None:
                processor.executor.stop_waiting()

    async def _wait_stopped(self) -> None:
        self.runs_processors = False
        tasks = list(self._background_tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._stop_pollers()  # one may have begun meanwhile
        still_running = {future for future in self._end_futures.values() if not future.done()}
        longest = max((each.options.flow.drain for each in self._end_futures), default=0.0)
        if still_running:
            _, still_running = await asyncio.wait(still_running, timeout=longest + CLOSE_TIMEOUT)
        if still_running:
            self._cancel_handlers()
            _, still_running = await asyncio.wait(still_running, timeout=CLOSE_TIMEOUT)
        if still_running:
            count = len(still_running)
            logger.error("%d processors did not stop in time and are abandoned", count)
        for processor in list(self._end_futures):  # one that is stopped by itself may go meanwhile
            if processor.executor is not None:
                await processor.executor.wait_closed()


async def wait_until_available(
    request: Callable[[], object],
    is_wanted: Callable[[], bool] = lambda: True,
    *,
    label: str = "",
    interrupt: asyncio.Event | None = None,
) -> None:
    """Ask the log something, off the loop, and again until it can be reached.

    :param is_wanted: whether to ask again.
    :param label: what stands at the beginning of the warnings.
    :param interrupt: ends a pause between two attempts when it is set.
    :raises Unavailable: it could not be reached, and is not to be asked again.
    """
    interrupt, pause = interrupt or asyncio.Event(), 0.5
    while True:
        try:
            await run_in_thread(request)
            return
        except Unavailable as error:
            if not is_wanted():
                raise
            logger.warning("%s%s; trying again in %g s", label, error, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await interrupt.wait()
            if not is_wanted():
                raise
            pause = min(5.0, 2 * pause)


def enable_timing(executor: Executor) -> None:
    """Take the time of handlers' calls from now on."""
    if executor.timing is None:
        executor.timing = Timing(asynchronous=executor.job.asynchronous)
