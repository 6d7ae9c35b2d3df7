"""Publishing: one thread per app collects published records and appends them in batches.

Many concurrent ``await topic.publish(...)`` become few appends (on SQLite few transactions, on
Redis few scripts): records that arrive during one append form the next one. The order of calls is
kept.

Nothing is retried here: an unknown outcome is raised to the caller. *Derived* records (results of a
handler, dead letters) are different: their message IDs are derived from the source's, so writing
them again is harmless, and :meth:`Publisher.publish_durably` waits out an outage.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from typing import Any, NamedTuple

import msgspec

from streams.clock import Clock
from streams.errors import (
    ConfigError,
    LogError,
    NotRunning,
    OutcomeUnknown,
    ProcessorDied,
    StreamsError,
    Unavailable,
)
from streams.log.appending import append_records
from streams.log.protocol import Assignment, Log
from streams.log_transaction import LogTransaction, transaction_for
from streams.message import Position, Record
from streams.processing.handler_transaction import in_transaction
from streams.processing.job import OnWritten
from streams.text import get_logger

logger = get_logger("streams")

MAX_RECORDS_PER_APPEND = 10_000
"""Records in one append, at most."""

RETRY_PAUSE = 0.1
"""Seconds before a derived record is written again; doubled each time, up to 10."""

AppendResults = Sequence["Position | LogError"]

PublishObserver = Callable[
    [str, Sequence[Record]], AbstractContextManager[Callable[[Sequence[Position]], None]]
]
"""Entered around each call that publishes, with the topic and the records, to which it may add
headers; it yields a function that is called with their positions."""


CallSoon = Callable[[Callable[[], None]], None]
"""Schedules an action in the right thread; called from any thread."""


@dataclass(slots=True, eq=False)
class _PublishRequest:
    """Records of one call, and the future or callback that waits for them."""

    topic: str
    records: Sequence[Record]
    on_result: Callable[[AppendResults], None] | None = None
    future: asyncio.Future[Any] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    single: bool = False
    owner: None = None


class _DurableWrite(msgspec.Struct, gc=False):
    """Derived records of one call, until each is confirmed or refused.

    There is one for each message whose results are not confirmed yet, so the garbage collector does
    not track it or its requests. An error in ``answers`` refers to the frames that it was raised
    through: no request may be left in one of their lists.
    """

    count: int
    topics_left: int
    on_done: OnWritten
    call_soon: CallSoon | None
    answers: list[Position | BaseException | None] | None = None
    """The outcomes so far, by index of the record."""

    def report(self) -> None:
        """Report the outcome of each record."""
        self.on_done(self.answers or ())


class _DurableRequest(msgspec.Struct, gc=False):
    """The records of a durable write that go to one topic, and are not confirmed yet."""

    topic: str
    records: Sequence[Record]
    write: _DurableWrite
    indexes: Sequence[int]
    """The indexes of these records in the write."""
    owner: Assignment | None
    """The assignment that must still be owned, if the log can check that; None: no check."""
    attempt: int = 0


_Request = _PublishRequest | _DurableRequest


class _ScheduledAction(NamedTuple):
    """An action that is due at a time of the clock."""

    due: float
    number: int
    action: Callable[[], None]


class Publisher:
    """Appends the records of the whole app. Usable from any thread and any loop."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._changed = threading.Condition()
        self._requests: list[_Request] = []
        self._delayed: list[_ScheduledAction] = []
        self._delayed_count = 0
        self._idle = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="streams-publisher", daemon=True)
        self._stop_watching_clock: Callable[[], None] = lambda: None
        self._pending = 0
        self.observer: PublishObserver | None = None
        self.closed_error: Callable[[str], StreamsError] = NotRunning
        """Makes the error for a call that comes after closing."""
        self.published = 0
        """Records acknowledged so far."""

    def count_published(self, records: int) -> None:
        """Count records that were stored beside this publisher, with the progress of a processor
        (any thread)."""
        with self._changed:
            self.published += records

    def start(self) -> None:
        """Start the thread that appends."""
        self._stop_watching_clock = self._clock.on_jump(self._clock_advanced)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Append the records handed over before, then end; waits for at most ``timeout`` real
        seconds, then reports an error for those that are still unwritten."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._stop_watching_clock()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        with self._changed:
            self._delayed.clear()  # the thread that would write them has ended
        try:
            self._log.flush(max(0.1, timeout))
        except LogError as error:
            logger.warning("publisher: some records were not acknowledged: %s", error)

    def _clock_advanced(self) -> None:
        with self._changed:
            self._changed.notify()

    @property
    def has_pending(self) -> bool:
        """Whether some records handed over have no outcome yet."""
        return self._pending > 0

    # -- handing over

    def _enqueue(self, request: _Request) -> None:
        with self._changed:
            if self._closing:
                raise self.closed_error("the app is closing or closed: nothing more is published")
            self._requests.append(request)
            self._pending += 1
            if self._idle:
                self._idle = False
                self._changed.notify()

    async def publish(self, topic: str, record: Record) -> Position:
        """Append one record; returns its position once it is durable (inside a block of
        ``app.transaction()``, once it is written, to be committed with the block)."""
        records = (record,)
        if self.observer is None:
            position: Position = await self._request_append(topic, records, single=True)
            return position
        with self.observer(topic, records) as report_positions:
            position = await self._request_append(topic, records, single=True)
            report_positions((position,))
        return position

    def _request_append(
        self, topic: str, records: Sequence[Record], *, single: bool = False
    ) -> Awaitable[Any]:
        transaction = transaction_for(self._log)
        if transaction is not None:
            return self._request_within(transaction, topic, records, single=single)
        _refuse_in_transaction()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._enqueue(_PublishRequest(topic, records, None, future, loop, single))
        return future

    async def _request_within(
        self, transaction: LogTransaction, topic: str, records: Sequence[Record], *, single: bool
    ) -> Any:
        def count() -> None:
            with self._changed:
                self.published += len(records)

        positions = await transaction.append(topic, records, count)
        return positions[0] if single else positions

    async def publish_many(self, topic: str, records: Sequence[Record]) -> list[Position]:
        """Append records in order; returns their positions once all are durable (inside a block of
        ``app.transaction()``, once they are written, to be committed with the block)."""
        if not records:
            _refuse_in_transaction()
            return []
        positions: list[Position]
        if self.observer is None:
            positions = await self._request_append(topic, records)
            return positions
        with self.observer(topic, records) as report_positions:
            positions = await self._request_append(topic, records)
            report_positions(positions)
        return positions

    def append(
        self, topic: str, records: Sequence[Record], on_result: Callable[[AppendResults], None]
    ) -> None:
        """Append records; ``on_result`` is called once, by the publisher or the log."""
        self._enqueue(_PublishRequest(topic, records, on_result))

    def publish_durably(
        self,
        outgoing: Sequence[tuple[str, Record]],
        on_done: OnWritten,
        call_soon: CallSoon | None = None,
        owner: Assignment | None = None,
    ) -> None:
        """Append records whose IDs are derived, retrying through outages.

        :param on_done: called with, per record, its position once it is confirmed, or the error
            with which the log refused it.
        :param call_soon: schedules an action in a thread where ``on_done`` may be called; the
            outcomes of one append are one action. None: it may be called in any thread.
        :param owner: write only while this assignment is owned, if the log can check that;
            otherwise the outcome is :class:`~streams.errors.Fenced`.
        """
        if owner is not None and owner.append_as_owners is None:
            owner = None
        if len(outgoing) == 1:  # nearly always
            topic, record = outgoing[0]
            write = _DurableWrite(1, 1, on_done, call_soon)
            self._request_durably(_DurableRequest(topic, (record,), write, (0,), owner))
            return
        by_topic: dict[str, list[int]] = {}
        for index, (topic, _) in enumerate(outgoing):
            by_topic.setdefault(topic, []).append(index)
        write = _DurableWrite(len(outgoing), len(by_topic), on_done, call_soon)
        for topic, indexes in by_topic.items():
            records = tuple([outgoing[index][1] for index in indexes])
            self._request_durably(_DurableRequest(topic, records, write, tuple(indexes), owner))

    def _request_durably(self, request: _DurableRequest) -> None:
        try:
            self._enqueue(request)
        except (NotRunning, ProcessorDied):
            return  # the app is closing: the source stays unsettled and is handled again

    def _durable_result(self, request: _DurableRequest, results: AppendResults) -> bool:
        """Note the outcomes of records of a durable write; returns whether all its records have one
        now. Records that are not confirmed are requested again later."""
        write = request.write
        unconfirmed: list[tuple[int, Record]] = []
        last_error: LogError | None = None
        with self._changed:  # another topic's answer may come in another thread
            answers: list[Position | BaseException | None]
            answers = [None] * write.count if write.answers is None else write.answers
            write.answers = answers
            for index, record, result in zip(
                request.indexes, request.records, results, strict=True
            ):
                if isinstance(result, (Unavailable, OutcomeUnknown)):
                    unconfirmed.append((index, record))
                    last_error = result
                else:
                    answers[index] = result
            if not unconfirmed:
                write.topics_left -= 1
                return write.topics_left == 0
        pause = min(10.0, RETRY_PAUSE * 2.0 ** min(request.attempt, 20))
        if request.attempt == 0:
            logger.warning("publisher: waiting for topic %s: %s", request.topic, last_error)
        indexes, records = zip(*unconfirmed, strict=True)
        again = _DurableRequest(
            request.topic, records, write, indexes, request.owner, request.attempt + 1
        )
        self._call_later(pause, lambda: self._request_durably(again))
        return False

    def _call_later(self, seconds: float, action: Callable[[], None]) -> None:
        with self._changed:
            if self._closing:
                return  # as in _request_durably
            self._delayed_count += 1
            due = self._clock.monotonic() + seconds
            heappush(self._delayed, _ScheduledAction(due, self._delayed_count, action))
            self._changed.notify()

    # -- the thread

    def _run(self) -> None:
        while True:
            due: list[Callable[[], None]] = []
            with self._changed:
                while not self._requests:
                    now = self._clock.monotonic()
                    while self._delayed and self._delayed[0].due <= now:
                        due.append(heappop(self._delayed).action)
                    if due or self._closing:
                        break
                    self._idle = True
                    timeout = None
                    if self._delayed:
                        timeout = self._clock.real_timeout(self._delayed[0].due - now)
                    self._changed.wait(timeout)
                    self._idle = False
                requests, self._requests = self._requests, []
            for action in due:
                action()
            if not requests and not due:
                return  # closing
            for topic, batch in _group_requests(requests):
                self._append_batch(topic, batch)
            requests.clear()  # see _DurableWrite

    def _append_batch(self, topic: str, requests: list[_Request]) -> None:
        if len(requests) == 1:
            records = requests[0].records
        else:
            records = [record for request in requests for record in request.records]

        def on_result(results: AppendResults) -> None:
            self._deliver_results(requests, results)
            requests.clear()  # see _DurableWrite

        try:
            owners = None if requests[0].owner is None else _owners(requests)
            append_records(self._log, topic, records, owners, on_result)
        except LogError as error:
            on_result([error] * len(records))
        except Exception as error:
            logger.exception("publisher: the log failed in an unexpected way")
            on_result([LogError(f"cannot write to {topic}: {error!r}")] * len(records))

    def _deliver_results(self, requests: Sequence[_Request], results: AppendResults) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_PublishRequest, AppendResults]]] = {}
        written: dict[CallSoon | None, list[_DurableWrite]] = {}
        start = 0
        failed = _count_failed(results)
        with self._changed:
            self._pending -= len(requests)
            self.published += len(results) - failed
        for request in requests:
            end = start + len(request.records)
            own_results, start = results[start:end], end
            try:
                if isinstance(request, _DurableRequest):
                    write = request.write
                    if not failed and write.count == len(own_results):  # all of it at once
                        write.answers = list(own_results)
                    elif not self._durable_result(request, own_results):
                        continue
                    written.setdefault(write.call_soon, []).append(write)
                elif request.loop is not None:
                    by_loop.setdefault(request.loop, []).append((request, own_results))
                elif request.on_result is not None:
                    request.on_result(own_results)
            except Exception:
                logger.exception("publisher: a result could not be delivered")
        for call_soon, together in written.items():
            tell = partial(_report_writes, together)
            try:
                if call_soon is None:
                    tell()
                else:
                    call_soon(tell)
            except Exception:
                logger.exception("publisher: a result could not be delivered")
        for loop, each in by_loop.items():
            with suppress(RuntimeError):  # that loop is closed: no task waits any more
                loop.call_soon_threadsafe(_resolve_futures, each)


def _refuse_in_transaction() -> None:
    if in_transaction():
        raise ConfigError(
            "publishing while message.transaction is open would wait for itself: publish "
            "before the first execute, or return the value with to="
        )


def _group_requests(requests: Sequence[_Request]) -> Iterator[tuple[str, list[_Request]]]:
    """Group requests by topic, and those of owners also by member, in batches of about
    :data:`MAX_RECORDS_PER_APPEND` records."""
    groups: defaultdict[object, list[_Request]] = defaultdict(list)
    for request in requests:
        topic, owner = request.topic, request.owner
        groups[topic if owner is None else (topic, owner.append_as_owners)].append(request)
    for group in groups.values():
        topic = group[0].topic
        batch: list[_Request] = []
        size = 0
        for request in group:
            if batch and size + len(request.records) > MAX_RECORDS_PER_APPEND:
                yield topic, batch
                batch, size = [], 0
            batch.append(request)
            size += len(request.records)
        yield topic, batch


def _owners(requests: Sequence[_Request]) -> list[Assignment]:
    """The owner's assignment of each record of these requests."""
    return [each.owner for each in requests if each.owner is not None for _ in each.records]


def _report_writes(writes: Sequence[_DurableWrite]) -> None:
    """Report the outcome of each write, even if the callback of another one fails."""
    failures: list[Exception] = []
    for write in writes:
        try:
            write.report()
        except Exception as error:
            failures.append(error)
    for failure in failures[1:]:
        logger.error("publisher: a result could not be delivered", exc_info=failure)
    if failures:
        raise failures[0]


def _resolve_futures(answered: Sequence[tuple[_PublishRequest, AppendResults]]) -> None:
    """Resolve the futures of requests, on their loop."""
    for request, results in answered:
        future = request.future
        if future is None or future.done():
            continue
        failed = _count_failed(results)
        if failed:
            failure = next(each for each in results if isinstance(each, BaseException))
            if not request.single:
                failure.add_note(f"{failed} of {len(results)} records were not acknowledged")
            future.set_exception(failure)
        else:
            future.set_result(results[0] if request.single else list(results))


def _count_failed(results: AppendResults) -> int:
    """How many records were not acknowledged."""
    if set(map(type, results)) == {Position}:  # nearly always, and at C speed
        return 0
    return sum(isinstance(answer, BaseException) for answer in results)
