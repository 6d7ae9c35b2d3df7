"""Replay into another topic: bytes, key, headers and ID as they stand, nothing is decoded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.config import Dedup
from streams.engine.window import PROCESS
from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.protocol import Log, Reader
from streams.message import ID, Batch, Position, Record, text
from streams.reading import _Lane, _merge
from streams.replay.handling import Handling
from streams.replay.pace import Pace
from streams.replay.result import KEPT, Failure, ReplayFailed, ReplayResult
from streams.shielding import in_thread, to_the_end

if TYPE_CHECKING:
    from streams.app import Streams

CHUNK = 1_000
"""Messages written at once, at most."""

CHUNK_BYTES = 4 << 20
"""Bytes written at once, about."""


@dataclass(frozen=True, slots=True)
class Row:
    """One message, as a row of a batch."""

    batch: Batch
    index: int

    @property
    def position(self) -> Position:
        """Where it stands."""
        return Position(self.batch.topic, self.batch.partition, self.batch.offset(self.index))

    def record(self) -> Record:
        """The same message, to be written elsewhere.

        One without an ID keeps the one it goes by here, which is its place.
        """
        batch, index = self.batch, self.index
        headers = [pair for pair in batch.headers(index) if pair[0] != ID]
        return Record(batch.values[index], batch.keys[index], batch.id(index), headers)


JUMPS = 16
"""Ranges of a partition that are passed over instead of read, at most: a reader is opened behind
each."""


class Rows:
    """The messages of a range as they stand, partitions merged by the log's time.

    Iterate once, in any one thread at a time; then close it.

    :param key: messages of this key only.
    :param without: by partition, ranges of offsets that need not be read, ascending. They are
        passed over where that saves more than it costs, so some of them may come all the same.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        ranges: Mapping[int, tuple[int, int]],
        *,
        key: bytes | None = None,
        without: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        self._key = key
        self._lanes: list[_Lane] = []
        for partition, (low, high) in ranges.items():
            left = _without(low, high, (without or {}).get(partition, ()))
            if left:
                self._lanes.append(_Lane(_Pieces(log, topic, partition, left)))
        self._merged = _merge(self._lanes)
        self.scanned = 0
        """Messages looked at."""

    def __iter__(self) -> Iterator[Row]:
        for batch, index in self._merged:
            self.scanned += 1
            if self._key is None or batch.keys[index] == self._key:
                yield Row(batch, index)

    def chunk(self, messages: int, size: int = CHUNK_BYTES) -> list[Row]:
        """The next messages: so many at most, and no more once they have so many bytes."""
        found: list[Row] = []
        for row in self:
            found.append(row)
            value, key = row.batch.values[row.index], row.batch.keys[row.index]
            size -= len(value or b"") + len(key or b"")
            if size <= 0 or len(found) >= messages:
                break
        return found

    def close(self) -> None:
        """Give back what reading holds."""
        for lane in self._lanes:
            lane.close()


class _Pieces:
    """Reads several ranges of a partition, one after the other (a :class:`Reader`)."""

    def __init__(
        self, log: Log, topic: str, partition: int, ranges: Sequence[tuple[int, int]]
    ) -> None:
        self._log = log
        self._topic = topic
        self._partition = partition
        self._left = list(reversed(ranges))
        self._reader = self._next()

    def _next(self) -> Reader:
        return self._log.reader(self._topic, self._partition, *self._left.pop())

    def read(self, limit: int, timeout: float = 5.0) -> Batch | None:
        """The next messages of the range at hand, or of the next one."""
        while (batch := self._reader.read(limit, timeout)) is None and self._left:
            self._reader.close()
            self._reader = self._next()
        return batch

    def close(self) -> None:
        """Give back what reading holds."""
        self._reader.close()


def _without(low: int, high: int, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a range without the widest of these others."""
    widest = sorted(sorted(ranges, key=lambda each: each[0] - each[1])[:JUMPS])
    left: list[tuple[int, int]] = []
    for start, end in widest:
        if low < min(start, high):
            left.append((low, min(start, high)))
        low = max(low, end)
    return [*left, (low, high)] if low < high else left


async def copy(
    app: Streams,
    topic: str,
    target: str,
    ranges: Mapping[int, tuple[int, int]],
    *,
    key: bytes | None,
    total: int | None,
    how: Handling,
) -> ReplayResult:
    """Write a range of one topic to another. The next chunk is read while one is written.

    :raises ReplayFailed: a message was refused, and ``how.skip`` is not set.
    :raises LogError: the log could not be written to; ``positions`` says how far it came.
    """
    opening = asyncio.ensure_future(asyncio.to_thread(Rows, app.log, topic, ranges, key=key))
    try:
        rows = await to_the_end(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            await in_thread(opening.result().close)
        raise
    copying = _Copying(app, target, rows, how, total, {p: low for p, (low, _) in ranges.items()})
    try:
        await copying.run()
    finally:
        await in_thread(rows.close)
    return copying.result()


class _Copying:
    """One copy on its way."""

    def __init__(
        self,
        app: Streams,
        target: str,
        rows: Rows,
        how: Handling,
        total: int | None,
        positions: dict[int, int],
    ) -> None:
        self._app = app
        self._target = target
        self._rows = rows
        self._how = how
        self._total = total
        self._pace = Pace(how.rate)
        dedup = how.dedup or Dedup(window=0)
        self._windows = {
            partition: PROCESS.window(dedup.window, dedup.cap)
            for partition in (positions if dedup.window else ())
        }
        self._positions = positions
        self._read = self._written = self._duplicates = self._failed = 0
        self._failures: list[Failure] = []

    def result(self) -> ReplayResult:
        """Figures of this moment."""
        return ReplayResult(
            total=self._total,
            scanned=self._rows.scanned,
            read=self._read,
            handled=self._written,
            duplicates=self._duplicates,
            failed=self._failed,
            failures=tuple(self._failures),
            positions=dict(self._positions),
        )

    async def run(self) -> None:
        """Copy everything."""
        coming = asyncio.ensure_future(self._next())
        try:
            while rows := await coming:
                coming = asyncio.ensure_future(self._next())
                await self._write(rows)
                if self._how.progress is not None:
                    self._how.progress(self.result())
        finally:
            # The thread that reads is let finish, so that nobody closes the rows under it.
            await to_the_end(asyncio.wait([coming]))
            if self._how.progress is not None:
                self._how.progress(self.result())

    async def _next(self) -> list[Row]:
        room = self._pace.room(CHUNK)
        if room <= 0:
            await asyncio.sleep(self._pace.delay())
            room = max(1, self._pace.room(CHUNK))
        rows = await in_thread(self._rows.chunk, room)
        self._pace.spend(len(rows))
        self._read += len(rows)
        return rows

    def _fresh(self, rows: Sequence[Row]) -> list[Row]:
        """Without those whose ID was written before."""
        if not self._windows:
            return list(rows)
        fresh = []
        for row in rows:
            identity, window = row.batch.ids[row.index], self._windows[row.batch.partition]
            if identity is not None and identity in window:
                self._duplicates += 1
                continue
            if identity is not None:
                window.add(identity)
            fresh.append(row)
        return fresh

    async def _write(self, rows: Sequence[Row]) -> None:
        fresh = self._fresh(rows)
        answers = await self._append([row.record() for row in fresh]) if fresh else ()
        refused: deque[tuple[Row, LogError]] = deque()
        for row, answer in zip(fresh, answers, strict=True):
            if not isinstance(answer, LogError):
                self._written += 1
            elif self._how.skip and not isinstance(answer, (Unavailable, OutcomeUnknown)):
                self._fail(row, answer)
            else:
                refused.append((row, answer))
        stop = refused[0][0] if refused else None
        for row in rows:
            if row is stop:
                break
            self._positions[row.batch.partition] = row.position.offset + 1
        if refused:
            row, error = refused[0]
            failure = self._fail(row, error)
            raise ReplayFailed(failure, self.result()) from error

    def _fail(self, row: Row, error: LogError) -> Failure:
        key = row.batch.keys[row.index]
        failure = Failure(
            row.position, row.batch.id(row.index), None if key is None else text(key), 1, error
        )
        self._failed += 1
        if len(self._failures) < KEPT:
            self._failures.append(failure)
        return failure

    async def _append(self, records: Sequence[Record]) -> Sequence[Position | LogError]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Sequence[Position | LogError]] = loop.create_future()

        def tell(answers: Sequence[Position | LogError]) -> None:
            if not answered.done():
                answered.set_result(answers)

        def answer(answers: Sequence[Position | LogError]) -> None:
            try:
                loop.call_soon_threadsafe(tell, answers)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        self._app.publisher.send(self._target, records, answer)
        return await answered
