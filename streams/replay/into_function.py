"""Replay into a function: the engine and executors of a processor, fed with a range of a topic."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from streams.annotation_checks import check_handler
from streams.cancellation import run_to_completion
from streams.config import Dedup, Flow, Retry
from streams.connection import Connection
from streams.decoding import Source
from streams.engine.dispatcher import Delivery, Dispatcher
from streams.errors import ProcessorDied, StreamsError
from streams.message import Position, text
from streams.processing.job import Job
from streams.processing.poller import Poller
from streams.processor import (
    HandlerSignature,
    Processor,
    ProcessorOptions,
    inspect_handler,
    topic_type_of,
)
from streams.replay.range_subscription import RangeSubscription, groupless_log
from streams.replay.result import FAILURES_KEPT, Failure, ReplayFailed, ReplayResult
from streams.replay.token_bucket import TokenBucket
from streams.wiring import make_executor

REPORT_INTERVAL = 0.1
"""Seconds between two reports of progress."""


class _Failures:
    """What failed for good. Each is told where the dispatcher may be touched."""

    def __init__(self, *, skip_failed: bool) -> None:
        self._skip_failed = skip_failed
        self._lock = threading.Lock()
        self.stop: Callable[[], None] = lambda: None
        self.dispatcher: Dispatcher | None = None
        self.count = 0
        self.first_failures: list[Failure] = []

    def add(self, delivery: Delivery) -> None:
        """Pass the message over, or let nothing more begin."""
        batch, index, reason = delivery.fetched.batch, delivery.index, delivery.reason
        if reason is None:
            raise ValueError("a delivery without a reason has not failed")
        key = batch.keys[index]
        with self._lock:
            self.count += 1
            if len(self.first_failures) < FAILURES_KEPT:
                self.first_failures.append(
                    Failure(
                        Position(batch.topic, batch.partition, batch.offset(index)),
                        batch.id(index),
                        None if key is None else text(key),
                        reason.attempts,
                        reason.error,
                    )
                )
        if self.dispatcher is None:
            raise RuntimeError("nothing can have failed before there is a dispatcher")
        if self._skip_failed:
            self.dispatcher.mark_settled(delivery)
        else:
            self.dispatcher.paused = True
            self.stop()


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """How a range is handled."""

    rate: float | None
    dedup: Dedup | None
    retry: Retry | None
    skip_failed: bool
    progress: Callable[[ReplayResult], None] | None


def _check_type(
    name: str,
    source: Source[Any],
    function: Callable[..., Any],
    handler_shape: HandlerSignature,
    options: ProcessorOptions | None = None,
) -> None:
    """:raises ConfigError: the function is annotated with another type than the topic's."""
    value_type = topic_type_of(source)
    if value_type is not None:
        check_handler(
            name,
            function,
            [value_type],
            batch=options is not None and options.batch is not None,
            wants_message=handler_shape.wants_message,
            has_filter=options is not None and options.filter is not None,
        )


def _replay_job(
    connection: Connection,
    source: Source[Any],
    topic: str,
    function: Callable[..., Any],
    replay_options: ReplayOptions,
) -> Job:
    """What to run: as the processor says, or a plain function once a message."""
    options: ProcessorOptions | None = None
    if isinstance(function, Processor):
        options, handler_shape = function.options, function.signature
        name, inner = f"replay into {function.name}", function.function
    else:
        name = f"replay into {getattr(function, '__name__', type(function).__name__)}"
        inner, handler_shape = function, inspect_handler(function, name, batch=False)
    _check_type(name, source, inner, handler_shape, options)
    job = Job(
        name=name,
        group=name,
        topics=(topic,),
        function=inner,
        asynchronous=handler_shape.asynchronous,
        wants_message=handler_shape.wants_message,
        decodings={topic: source.decoding},
        retry=replay_options.retry or Retry(attempts=1),
        dedup=replay_options.dedup or Dedup(),
        flow=Flow(),
        clock=connection.clock,
    )
    if options is None:
        return job
    return replace(
        job,
        concurrency=options.concurrency,
        batch=options.batch,
        filter=options.filter,
        timeout=options.timeout,
        retry=replay_options.retry or options.retry,
        dedup=replay_options.dedup or options.dedup,
        flow=options.flow,
    )


async def handle_range(
    connection: Connection,
    source: Source[Any],
    topic: str,
    function: Callable[..., Any],
    ranges: Mapping[int, tuple[int, int]],
    *,
    key: bytes | None,
    total: int | None,
    replay_options: ReplayOptions,
) -> ReplayResult:
    """Run a function over a range.

    :raises ReplayFailed: a message failed for good, and ``how.skip`` is not set.
    """
    loop = asyncio.get_running_loop()
    failures = _Failures(skip_failed=replay_options.skip_failed)
    job = replace(
        _replay_job(connection, source, topic, function, replay_options), on_rejected=failures.add
    )
    executor = make_executor(job, loop)
    failures.dispatcher = executor.dispatcher

    def stop_if_settled() -> None:
        stats = poller.stats()
        if not stats.held and not executor.unconfirmed:
            poller.stop()

    feed = await asyncio.to_thread(
        RangeSubscription,
        connection.log,
        topic,
        ranges,
        key=key,
        exact=job.concurrency == 1 and job.batch is None,
        rate_limit=TokenBucket(replay_options.rate),
        on_all_read=stop_if_settled,
    )
    poller = Poller(groupless_log(connection.log, feed.subscribe), job, executor)
    failures.stop = poller.stop
    ended = asyncio.Event()

    def on_end() -> None:
        try:
            loop.call_soon_threadsafe(ended.set)
        except RuntimeError:
            return  # the loop is closed already

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
            failures=tuple(failures.first_failures),
            positions=dict(feed.positions),
        )

    executor.start()
    poller.start()
    waiting = asyncio.ensure_future(ended.wait())
    try:
        while not waiting.done():
            if replay_options.progress is not None:
                replay_options.progress(result())
            await asyncio.wait([waiting], timeout=REPORT_INTERVAL)
    finally:
        # Cancelled: what runs is finished, up to the processor's drain deadline; cancelled again,
        # handlers are not waited for.
        poller.stop()
        await run_to_completion(waiting, executor.stop_waiting)
        poller.join_thread()
        await executor.wait_closed()
        if replay_options.progress is not None:
            replay_options.progress(result())
    if poller.fatal is not None:
        if isinstance(poller.fatal, StreamsError):
            raise poller.fatal
        raise ProcessorDied(f"{job.name} died: {poller.fatal!r}") from poller.fatal
    found = result()
    if failures.count and not replay_options.skip_failed:
        raise ReplayFailed(failures.first_failures[0], found) from failures.first_failures[0].error
    return found
