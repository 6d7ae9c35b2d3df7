"""Publishing: one thread an app that gathers what is published and appends it in batches.

Many concurrent ``await topic.publish(...)`` become few appends (on SQLite few transactions, on
Redis few scripts): what arrives while one append runs is the next one. Order of calls is kept.

Nothing is retried here: an outcome that is not known is told to whoever published. *Derived*
records (what a handler returned, dead letters) are different: their message IDs are derived from
the source's, so writing them again is harmless, and :meth:`Publisher.derive` waits out an outage.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from heapq import heappop, heappush
from typing import Any

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
from streams.log.protocol import Log
from streams.message import Position, Record
from streams.runners.joint import joined
from streams.text import get_logger

logger = get_logger("streams")

CHUNK = 10_000
"""Records in one append, at most."""

PAUSE = 0.1
"""Seconds before a derived record is written again (times 2 each time, to 10)."""

Answers = Sequence["Position | LogError"]

Observer = Callable[
    [str, Sequence[Record]], AbstractContextManager[Callable[[Sequence[Position]], None]]
]
"""Entered around each call that publishes, with the topic and the records, to which it may add
headers; what it yields is told where they landed."""


class _Order:
    """Records of one call, and who waits for them."""

    __slots__ = ("answer", "future", "loop", "records", "single", "topic")

    def __init__(
        self,
        topic: str,
        records: Sequence[Record],
        answer: Callable[[Answers], None] | None = None,
        future: asyncio.Future[Any] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        single: bool = False,
    ) -> None:
        self.topic = topic
        self.records = records
        self.answer = answer
        self.future = future
        self.loop = loop
        self.single = single


class Publisher:
    """Appends on behalf of everybody in an app. Usable from any thread and any loop."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._changed = threading.Condition()
        self._orders: list[_Order] = []
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._ticket = 0
        self._waiting = False
        self._closing = False
        self._thread = threading.Thread(target=self._main, name="streams-publisher", daemon=True)
        self._unwatch: Callable[[], None] = lambda: None
        self._unanswered = 0
        self.observer: Observer | None = None
        self.refusal: Callable[[str], StreamsError] = NotRunning
        """Makes the error for whoever publishes too late."""
        self.published = 0
        """Records acknowledged so far."""

    def start(self) -> None:
        """Begin to append."""
        self._unwatch = self._clock.watch(self._moved)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Append what was handed over before, then end; what is still unwritten after ``timeout``
        real seconds is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._unwatch()
        if not self._thread.is_alive():
            return
        self._thread.join(timeout)
        try:
            self._log.flush(max(0.1, timeout))
        except LogError as error:
            logger.warning("publisher: not everything was acknowledged: %s", error)

    def _moved(self) -> None:
        with self._changed:
            self._changed.notify()

    @property
    def busy(self) -> bool:
        """Something handed over was not answered yet."""
        return self._unanswered > 0

    # -- handing over

    def _hand_over(self, order: _Order) -> None:
        with self._changed:
            if self._closing:
                raise self.refusal("the app is closing or closed: nothing more is published")
            self._orders.append(order)
            self._unanswered += 1
            if self._waiting:
                self._waiting = False
                self._changed.notify()

    async def publish(self, topic: str, record: Record) -> Position:
        """Append one record; its position once it is durable."""
        if self.observer is None:
            return await self._publish(topic, record)
        with self.observer(topic, (record,)) as landed:
            position = await self._publish(topic, record)
            landed((position,))
        return position

    async def _publish(self, topic: str, record: Record) -> Position:
        _check_may_wait()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Position] = loop.create_future()
        self._hand_over(_Order(topic, (record,), None, future, loop, single=True))
        return await future

    async def publish_many(self, topic: str, records: Sequence[Record]) -> list[Position]:
        """Append records in order; their positions once all are durable."""
        if self.observer is None or not records:
            return await self._publish_many(topic, records)
        with self.observer(topic, records) as landed:
            positions = await self._publish_many(topic, records)
            landed(positions)
        return positions

    async def _publish_many(self, topic: str, records: Sequence[Record]) -> list[Position]:
        _check_may_wait()
        if not records:
            return []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Position]] = loop.create_future()
        self._hand_over(_Order(topic, records, None, future, loop))
        return await future

    def send(
        self, topic: str, records: Sequence[Record], answer: Callable[[Answers], None]
    ) -> None:
        """Append records; ``answer`` is called once, from a thread of the publisher or the log."""
        self._hand_over(_Order(topic, records, answer))

    def derive(
        self,
        outgoing: Sequence[tuple[str, Record]],
        sent: Callable[[Sequence[BaseException | None]], None],
    ) -> None:
        """Append records whose IDs are derived, again and again through outages.

        ``sent`` is told, per record, None once it is confirmed, or what the log refuses it for.
        """
        errors: list[BaseException | None] = [None] * len(outgoing)
        by_topic: dict[str, list[int]] = {}
        for index, (topic, _) in enumerate(outgoing):
            by_topic.setdefault(topic, []).append(index)
        left = len(by_topic)
        lock = threading.Lock()

        def finished() -> None:
            nonlocal left
            with lock:
                left -= 1
                over = left == 0
            if over:
                sent(errors)

        for topic, indexes in by_topic.items():
            self._derive(topic, [(i, outgoing[i][1]) for i in indexes], errors, finished, 0)

    def _derive(
        self,
        topic: str,
        rest: list[tuple[int, Record]],
        errors: list[BaseException | None],
        finished: Callable[[], None],
        tries: int,
    ) -> None:
        def answer(answers: Answers) -> None:
            again: list[tuple[int, Record]] = []
            trouble: LogError | None = None
            for (index, record), result in zip(rest, answers, strict=True):
                if isinstance(result, (Unavailable, OutcomeUnknown)):
                    again.append((index, record))
                    trouble = result
                elif isinstance(result, BaseException):
                    errors[index] = result
            if not again:
                finished()
                return
            pause = min(10.0, PAUSE * 2.0 ** min(tries, 20))
            if tries == 0:
                logger.warning("publisher: %s is waited for: %s", topic, trouble)
            self._call_later(pause, lambda: self._derive(topic, again, errors, finished, tries + 1))

        try:
            self.send(topic, [record for _, record in rest], answer)
        except (NotRunning, ProcessorDied):
            return  # the app ends: the source stays unsettled and is handled again

    def _call_later(self, seconds: float, action: Callable[[], None]) -> None:
        with self._changed:
            self._ticket += 1
            heappush(self._later, (self._clock.monotonic() + seconds, self._ticket, action))
            self._changed.notify()

    # -- the thread

    def _main(self) -> None:
        while True:
            due: list[Callable[[], None]] = []
            with self._changed:
                while not self._orders:
                    now = self._clock.monotonic()
                    while self._later and self._later[0][0] <= now:
                        due.append(heappop(self._later)[2])
                    if due or self._closing:
                        break
                    self._waiting = True
                    timeout = None
                    if self._later:
                        timeout = self._clock.timeout(self._later[0][0] - now)
                    self._changed.wait(timeout)
                    self._waiting = False
                orders, self._orders = self._orders, []
            for action in due:
                action()
            if not orders and not due:
                return  # closing
            for topic, group in _by_topic(orders).items():
                for part in _chunks(group):
                    self._append(topic, part)

    def _append(self, topic: str, orders: list[_Order]) -> None:
        if len(orders) == 1:
            records = orders[0].records
        else:
            records = [record for order in orders for record in order.records]

        def done(answers: Answers) -> None:
            self._answer(orders, answers)

        try:
            self._log.append(topic, records, done)
        except LogError as error:
            done([error] * len(records))
        except Exception as error:
            logger.exception("publisher: the log failed in an unexpected way")
            done([LogError(f"cannot write to {topic}: {error!r}")] * len(records))

    def _answer(self, orders: Sequence[_Order], answers: Answers) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Order, Answers]]] = {}
        at = 0
        failed = _failed(answers)
        with self._changed:
            self._unanswered -= len(orders)
            self.published += len(answers) - failed
        for order in orders:
            end = at + len(order.records)
            part, at = answers[at:end], end
            if order.loop is not None:
                by_loop.setdefault(order.loop, []).append((order, part))
            elif order.answer is not None:
                try:
                    order.answer(part)
                except Exception:
                    logger.exception("publisher: an answer could not be given")
        for loop, each in by_loop.items():
            try:
                loop.call_soon_threadsafe(_resolve, each)
            except RuntimeError:
                continue  # that loop is closed: nobody waits any more


def _check_may_wait() -> None:
    if joined():
        raise ConfigError(
            "publishing while message.transaction is open would wait for itself: publish "
            "before the first execute, or return the value with to="
        )


def _by_topic(orders: Sequence[_Order]) -> dict[str, list[_Order]]:
    groups: dict[str, list[_Order]] = {}
    for order in orders:
        groups.setdefault(order.topic, []).append(order)
    return groups


def _chunks(orders: list[_Order]) -> list[list[_Order]]:
    """Orders in groups of about :data:`CHUNK` records."""
    if len(orders) == 1 or sum(len(order.records) for order in orders) <= CHUNK:
        return [orders]
    chunks: list[list[_Order]] = [[]]
    size = 0
    for order in orders:
        if chunks[-1] and size + len(order.records) > CHUNK:
            chunks.append([])
            size = 0
        chunks[-1].append(order)
        size += len(order.records)
    return chunks


def _resolve(answered: Sequence[tuple[_Order, Answers]]) -> None:
    """On the loop of those who wait."""
    for order, answers in answered:
        future = order.future
        if future is None or future.done():
            continue
        failed = _failed(answers)
        if failed:
            failure = next(each for each in answers if isinstance(each, BaseException))
            if not order.single:
                failure.add_note(f"{failed} of {len(answers)} records were not acknowledged")
            future.set_exception(failure)
        else:
            future.set_result(answers[0] if order.single else list(answers))


def _failed(answers: Answers) -> int:
    """How many records were not acknowledged."""
    if set(map(type, answers)) == {Position}:  # as good as always, and at C speed
        return 0
    return sum(isinstance(answer, BaseException) for answer in answers)
