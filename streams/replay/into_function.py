"""Replay into a function: the engine and executors of a processor, fed with a range of a topic."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from streams.annotation_checks import check_handler
from streams.cancellation import run_to_completion
from streams.config import Dedup, Retry
from streams.connection import Connection
from streams.decoding import Source
from streams.engine.dispatcher import Delivery, Dispatcher
from streams.errors import ProcessorDied, StreamsError
from streams.log.range_reader import OffsetRanges
from streams.processing.job import Job
from streams.processing.poller import Poller
from streams.processing.several import expand_several
from streams.processor import Processor, ProcessorOptions, inspect_handler, topic_type_of
from streams.replay.range_subscription import RangeSubscription
from streams.replay.result import FailureLog, ReplayFailed, ReplayResult
from streams.replay.token_bucket import TokenBucket
from streams.wiring import make_executor

if TYPE_CHECKING:
    from streams.app import Streams

REPORT_INTERVAL = 0.1
"""Seconds between two reports of progress."""


class _HandlerFailures(FailureLog):
    """Messages that failed for good; added only by the thread that may change the dispatcher."""

    def __init__(self, *, skip_failed: bool) -> None:
        super().__init__()
        self._skip_failed = skip_failed
        self.stop: Callable[[], None] = lambda: None
        self.dispatcher: Dispatcher | None = None

    def reject(self, delivery: Delivery) -> None:
        """Skip the message, or stop the replay."""
        batch, index, reason = delivery.fetched.batch, delivery.index, delivery.reason
        if reason is None or self.dispatcher is None:
            raise ValueError("a delivery without a reason has not failed")
        self.add(batch, index, reason.attempts, reason.error)
        if self._skip_failed:
            self.dispatcher.mark_settled(delivery)
        else:
            self.dispatcher.paused = True
            self.stop()


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """The options for reading and handling a range."""

    key: bytes | None
    rate: float | None
    dedup: Dedup | None
    retry: Retry | None
    skip_failed: bool
    progress: Callable[[ReplayResult], None] | None


def _replay_job(
    connection: Connection,
    source: Source[Any],
    topic: str,
    function: Callable[..., Any],
    replay_options: ReplayOptions,
) -> Job:
    """The job to run: with a processor's options, or a plain function called once per message.

    :raises ConfigError: the function is annotated with another type than the topic's.
    """
    if isinstance(function, Processor):
        name, inner = f"replay into {function.name}", function.function
        options, handler = function.options, function.signature
    else:
        name = f"replay into {getattr(function, '__name__', type(function).__name__)}"
        inner, handler = function, inspect_handler(function, name, batch=False)
        options = ProcessorOptions((source,), name, retry=Retry(attempts=1))
    if (value_type := topic_type_of(source)) is not None:
        check_handler(
            name,
            inner,
            [value_type],
            batch=options.batch is not None,
            wants_message=handler.wants_message,
            has_filter=options.filter is not None,
        )
    job = Job(
        name=name,
        group=name,
        topics=(topic,),
        function=inner,
        asynchronous=handler.asynchronous,
        wants_message=handler.wants_message,
        decodings={topic: source.decoding},
        concurrency=options.concurrency,
        batch=options.batch,
        filter=options.filter,
        timeout=options.timeout,
        retry=replay_options.retry or options.retry,
        dedup=replay_options.dedup or options.dedup,
        flow=options.flow,
        clock=connection.clock,
    )
    if isinstance(function, Processor) and function.inbox is not None:
        job = function.inbox.wrap(job)
    return expand_several(job)


async def handle_range(
    app: Streams,
    source: Source[Any],
    topic: str,
    function: Callable[..., Any],
    ranges: OffsetRanges,
    total: int | None,
    options: ReplayOptions,
) -> ReplayResult:
    """Run a function over a range.

    :raises ReplayFailed: a message failed for good, and ``options.skip_failed`` is not set.
    """
    loop = asyncio.get_running_loop()
    failures = _HandlerFailures(skip_failed=options.skip_failed)
    job = replace(_replay_job(app, source, topic, function, options), on_rejected=failures.reject)
    for wrap in app.replay_wrappers:
        job = wrap(job)
    executor = make_executor(job, loop)
    failures.dispatcher = executor.dispatcher

    def stop_if_settled() -> None:
        stats = poller.stats()
        if not stats.held and not executor.unconfirmed:
            poller.stop()

    feed = RangeSubscription(
        app.log,
        topic,
        ranges,
        key=options.key,
        exact=job.concurrency == 1 and job.batch is None,
        rate_limit=TokenBucket(options.rate),
        on_all_read=stop_if_settled,
        generation=secrets.randbits(63) | 1,
    )
    poller = Poller(feed.in_place_of(app.log), job, executor)
    failures.stop = poller.stop
    ended = asyncio.Event()

    def on_end() -> None:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(ended.set)

    poller.on_end = on_end

    def result() -> ReplayResult:
        counts = executor.dispatcher.counts
        return ReplayResult(
            total=total,
            scanned=feed.scanned,
            read=feed.read,
            handled=counts.handled,
            duplicates=counts.duplicates,
            filtered=counts.filtered,
            retries=counts.retries,
            failed=failures.count,
            failures=tuple(failures.first),
            positions=dict(feed.positions),
        )

    executor.start()
    poller.start()
    waiting = asyncio.ensure_future(ended.wait())
    try:
        while not waiting.done():
            if options.progress is not None:
                options.progress(result())
            await asyncio.wait([waiting], timeout=REPORT_INTERVAL)
    finally:
        # Cancelled: running handlers finish, up to the processor's drain deadline; after a second
        # cancellation they are not waited for.
        poller.stop()
        await run_to_completion(waiting, executor.stop_waiting)
        poller.join_thread()
        await executor.wait_closed()
        if options.progress is not None:
            options.progress(result())
    if poller.fatal is not None:
        if isinstance(poller.fatal, StreamsError):
            raise poller.fatal
        raise ProcessorDied(f"{job.name} died: {poller.fatal!r}") from poller.fatal
    found = result()
    if failures.count and not options.skip_failed:
        raise ReplayFailed(failures.first[0], found) from failures.first[0].error
    return found
