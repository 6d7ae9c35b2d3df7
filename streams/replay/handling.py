"""Replay into a function: the engine and runners of a processor, fed with a range of a topic."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from streams.annotations import check_handler
from streams.config import Dedup, Flow, Retry
from streams.engine.dispatch import Work
from streams.errors import ProcessorDied, StreamsError
from streams.message import Position, text
from streams.processor import Options, Processor, Shape, shape, typed
from streams.replay.pace import Pace
from streams.replay.ranged import RangeFeed, groupless
from streams.replay.result import KEPT, Failure, ReplayFailed, ReplayResult
from streams.runners.aio import LoopRunner
from streams.runners.base import Runner
from streams.runners.job import Job
from streams.runners.pump import Pump
from streams.runners.threads import ThreadRunner
from streams.shielding import to_the_end
from streams.topic import Source

if TYPE_CHECKING:
    from streams.app import Streams

LOOK = 0.1
"""Seconds between two reports of progress."""


class _Failures:
    """What failed for good. Each is told where the dispatcher may be touched."""

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._lock = threading.Lock()
        self.stop: Callable[[], None] = lambda: None
        self.count = 0
        self.kept: list[Failure] = []

    def add(self, runner: Runner, work: Work) -> None:
        """Pass the message over, or let nothing more begin."""
        segment, index, _, _, _, _, burial = work
        if burial is None:
            raise ValueError("a work without a burial has not failed")
        batch = segment.batch
        key = batch.keys[index]
        with self._lock:
            self.count += 1
            if len(self.kept) < KEPT:
                self.kept.append(
                    Failure(
                        Position(batch.topic, batch.partition, batch.offset(index)),
                        batch.id(index),
                        None if key is None else text(key),
                        burial.attempts,
                        burial.error,
                    )
                )
        if self._skip:
            runner.dispatcher.done(work)
        else:
            runner.dispatcher.paused = True
            self.stop()


class _Threads(ThreadRunner):
    def __init__(self, job: Job, failures: _Failures) -> None:
        super().__init__(job)
        self._failures = failures

    @override
    def bury(self, work: Work) -> None:
        self._failures.add(self, work)


class _Loop(LoopRunner):
    def __init__(self, job: Job, failures: _Failures, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(job, loop)
        self._failures = failures

    @override
    def bury(self, work: Work) -> None:
        self._failures.add(self, work)


@dataclass(frozen=True, slots=True)
class Handling:
    """How a range is handled."""

    rate: float | None
    dedup: Dedup | None
    retry: Retry | None
    skip: bool
    progress: Callable[[ReplayResult], None] | None


def _check_type(
    name: str,
    source: Source[Any],
    function: Callable[..., Any],
    form: Shape,
    options: Options | None = None,
) -> None:
    """:raises ConfigError: the function is annotated with another type than the topic's."""
    read = typed(source)
    if read is not None:
        check_handler(
            name,
            function,
            [read],
            batch=options is not None and options.batch is not None,
            wants_message=form.wants_message,
            filtered=options is not None and options.filter is not None,
        )


def _job(
    app: Streams, source: Source[Any], topic: str, function: Callable[..., Any], how: Handling
) -> Job:
    """What to run: as the processor says, or a plain function once a message."""
    if isinstance(function, Processor):
        options, found = function.options, function.shape
        name, inner = f"replay into {function.name}", function.function
        _check_type(name, source, inner, found, options)
        return Job(
            name=name,
            group=name,
            topics=(topic,),
            function=inner,
            asynchronous=found.asynchronous,
            wants_message=found.wants_message,
            decodings={topic: source.decoding},
            concurrency=options.concurrency,
            batch=options.batch,
            filter=options.filter,
            timeout=options.timeout,
            retry=how.retry or options.retry,
            dedup=how.dedup or options.dedup,
            flow=options.flow,
            clock=app.clock,
        )
    name = f"replay into {getattr(function, '__name__', type(function).__name__)}"
    found = shape(function, name, batch=False)
    _check_type(name, source, function, found)
    return Job(
        name=name,
        group=name,
        topics=(topic,),
        function=function,
        asynchronous=found.asynchronous,
        wants_message=found.wants_message,
        decodings={topic: source.decoding},
        retry=how.retry or Retry(attempts=1),
        dedup=how.dedup or Dedup(),
        flow=Flow(),
        clock=app.clock,
    )


async def handle(
    app: Streams,
    source: Source[Any],
    topic: str,
    function: Callable[..., Any],
    ranges: Mapping[int, tuple[int, int]],
    *,
    key: bytes | None,
    total: int | None,
    how: Handling,
) -> ReplayResult:
    """Run a function over a range.

    :raises ReplayFailed: a message failed for good, and ``how.skip`` is not set.
    """
    loop = asyncio.get_running_loop()
    job = _job(app, source, topic, function, how)
    failures = _Failures(skip=how.skip)
    runner = _Loop(job, failures, loop) if job.asynchronous else _Threads(job, failures)

    def settled() -> None:
        stats = pump.stats()
        if not stats.held and not runner.sending:
            pump.stop()

    feed = await asyncio.to_thread(
        RangeFeed,
        app.log,
        topic,
        ranges,
        key=key,
        exact=job.concurrency == 1 and job.batch is None,
        pace=Pace(how.rate),
        idle=settled,
    )
    pump = Pump(groupless(app.log, feed.listen), job, runner)
    failures.stop = pump.stop
    ended = asyncio.Event()

    def on_end() -> None:
        try:
            loop.call_soon_threadsafe(ended.set)
        except RuntimeError:
            return  # the loop is closed already

    pump.on_end = on_end

    def result() -> ReplayResult:
        counts = runner.dispatcher.counts
        return ReplayResult(
            total=total,
            scanned=feed.scanned,
            read=feed.read,
            handled=counts.handled,
            duplicates=counts.duplicates,
            filtered=counts.filtered,
            retries=counts.retries,
            failed=failures.count,
            failures=tuple(failures.kept),
            positions=dict(feed.positions),
        )

    runner.start()
    pump.start()
    waiting = asyncio.ensure_future(ended.wait())
    try:
        while not waiting.done():
            if how.progress is not None:
                how.progress(result())
            await asyncio.wait([waiting], timeout=LOOK)
    finally:
        # Cancelled: what runs is finished, up to the processor's drain deadline; cancelled again,
        # handlers are not waited for.
        pump.stop()
        await to_the_end(waiting, runner.hurry)
        await runner.gone()
        if how.progress is not None:
            how.progress(result())
    if pump.fatal is not None:
        if isinstance(pump.fatal, StreamsError):
            raise pump.fatal
        raise ProcessorDied(f"{job.name} died: {pump.fatal!r}") from pump.fatal
    found = result()
    if failures.count and not how.skip:
        raise ReplayFailed(failures.kept[0], found) from failures.kept[0].error
    return found
