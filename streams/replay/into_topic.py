"""Replay into another topic: bytes, key, headers and ID as they stand, nothing is decoded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from streams.cancellation import run_in_thread, run_to_completion
from streams.config import Dedup
from streams.connection import Connection
from streams.engine.dedup_window import PROCESS_BUDGET
from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.protocol import Log, Reader
from streams.message import ID, Batch, Position, Record, text
from streams.replay.into_function import ReplayOptions
from streams.replay.result import FAILURES_KEPT, Failure, ReplayFailed, ReplayResult
from streams.replay.token_bucket import TokenBucket
from streams.topic_reader import PartitionCursor, merge_by_time

COPY_LIMIT = 1_000
"""Messages written at once, at most."""

COPY_BYTES = 4 << 20
"""Bytes written at once, about."""


@dataclass(frozen=True, slots=True)
class LogRow:
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


SKIP_LIMIT = 16
"""Ranges of a partition that are passed over instead of read, at most: a reader is opened behind
each."""


class RangeReader:
    """The messages of a range as they stand, partitions merged by the log's time.

    Iterate once, in any one thread at a time; then close it.

    :param key: messages of this key only.
    :param skip: by partition, ranges of offsets that need not be read, ascending. They are
        passed over where that saves more than it costs, so some of them may come all the same.
    """

    def __init__(
        self,
        log: Log,
        topic: str,
        ranges: Mapping[int, tuple[int, int]],
        *,
        key: bytes | None = None,
        skip: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        self._key = key
        self._inputs: list[PartitionCursor] = []
        for partition, (low, high) in ranges.items():
            remaining = _remaining_ranges(low, high, (skip or {}).get(partition, ()))
            if remaining:
                self._inputs.append(
                    PartitionCursor(_RangesReader(log, topic, partition, remaining))
                )
        self._merged = merge_by_time(self._inputs)
        self.scanned = 0
        """Messages looked at."""

    def __iter__(self) -> Iterator[LogRow]:
        for batch, index in self._merged:
            self.scanned += 1
            if self._key is None or batch.keys[index] == self._key:
                yield LogRow(batch, index)

    def read_chunk(self, messages: int, size: int = COPY_BYTES) -> list[LogRow]:
        """The next messages: so many at most, and no more once they have so many bytes."""
        found: list[LogRow] = []
        for row in self:
            found.append(row)
            value, key = row.batch.values[row.index], row.batch.keys[row.index]
            size -= len(value or b"") + len(key or b"")
            if size <= 0 or len(found) >= messages:
                break
        return found

    def close(self) -> None:
        """Give back what reading holds."""
        for merge_input in self._inputs:
            merge_input.close()


class _RangesReader:
    """Reads several ranges of a partition, one after the other (a :class:`Reader`)."""

    def __init__(
        self, log: Log, topic: str, partition: int, ranges: Sequence[tuple[int, int]]
    ) -> None:
        self._log = log
        self._topic = topic
        self._partition = partition
        self._ranges_left = list(reversed(ranges))
        self._reader = self._open_next()

    def _open_next(self) -> Reader:
        return self._log.reader(self._topic, self._partition, *self._ranges_left.pop())

    def read(self, limit: int, timeout: float = 5.0) -> Batch | None:
        """The next messages of the range at hand, or of the next one."""
        while (batch := self._reader.read(limit, timeout)) is None and self._ranges_left:
            self._reader.close()
            self._reader = self._open_next()
        return batch

    def close(self) -> None:
        """Give back what reading holds."""
        self._reader.close()


def _remaining_ranges(
    low: int, high: int, ranges: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """What is left of a range without the widest of these others."""
    widest = sorted(sorted(ranges, key=lambda each: each[0] - each[1])[:SKIP_LIMIT])
    remaining: list[tuple[int, int]] = []
    for start, end in widest:
        if low < min(start, high):
            remaining.append((low, min(start, high)))
        low = max(low, end)
    return [*remaining, (low, high)] if low < high else remaining


async def copy_range(
    connection: Connection,
    topic: str,
    target: str,
    ranges: Mapping[int, tuple[int, int]],
    *,
    key: bytes | None,
    total: int | None,
    options: ReplayOptions,
) -> ReplayResult:
    """Write a range of one topic to another. The next chunk is read while one is written.

    :raises ReplayFailed: a message was refused, and ``how.skip`` is not set.
    :raises LogError: the log could not be written to; ``positions`` says how far it came.
    """
    opening = asyncio.ensure_future(
        asyncio.to_thread(RangeReader, connection.log, topic, ranges, key=key)
    )
    try:
        rows = await run_to_completion(opening)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            await run_in_thread(opening.result().close)
        raise
    copying = _CopyRun(
        connection, target, rows, options, total, {p: low for p, (low, _) in ranges.items()}
    )
    try:
        await copying.run()
    finally:
        await run_in_thread(rows.close)
    return copying.result()


class _CopyRun:
    """One copy on its way."""

    def __init__(
        self,
        connection: Connection,
        target: str,
        rows: RangeReader,
        options: ReplayOptions,
        total: int | None,
        positions: dict[int, int],
    ) -> None:
        self._connection = connection
        self._target = target
        self._rows = rows
        self._options = options
        self._total = total
        self._rate_limit = TokenBucket(options.rate)
        dedup = options.dedup or Dedup(window=0)
        self._windows = {
            partition: PROCESS_BUDGET.new_window(dedup.window, dedup.cap)
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
        next_rows = asyncio.ensure_future(self._read_chunk())
        try:
            while rows := await next_rows:
                next_rows = asyncio.ensure_future(self._read_chunk())
                await self._write(rows)
                if self._options.progress is not None:
                    self._options.progress(self.result())
        finally:
            # The thread that reads is let finish, so that nobody closes the rows under it.
            await run_to_completion(asyncio.wait([next_rows]))
            if self._options.progress is not None:
                self._options.progress(self.result())

    async def _read_chunk(self) -> list[LogRow]:
        available = self._rate_limit.available(COPY_LIMIT)
        if available <= 0:
            await asyncio.sleep(self._rate_limit.seconds_to_next())
            available = max(1, self._rate_limit.available(COPY_LIMIT))
        rows = await run_in_thread(self._rows.read_chunk, available)
        self._rate_limit.consume(len(rows))
        self._read += len(rows)
        return rows

    def _without_duplicates(self, rows: Sequence[LogRow]) -> list[LogRow]:
        """Without those whose ID was written before."""
        if not self._windows:
            return list(rows)
        new_rows = []
        for row in rows:
            identity, window = row.batch.ids[row.index], self._windows[row.batch.partition]
            if identity is not None and identity in window:
                self._duplicates += 1
                continue
            if identity is not None:
                window.add(identity)
            new_rows.append(row)
        return new_rows

    async def _write(self, rows: Sequence[LogRow]) -> None:
        new_rows = self._without_duplicates(rows)
        answers = await self._append([row.record() for row in new_rows]) if new_rows else ()
        refused: deque[tuple[LogRow, LogError]] = deque()
        for row, answer in zip(new_rows, answers, strict=True):
            if not isinstance(answer, LogError):
                self._written += 1
            elif self._options.skip_failed and not isinstance(
                answer, (Unavailable, OutcomeUnknown)
            ):
                self._add_failure(row, answer)
            else:
                refused.append((row, answer))
        stop = refused[0][0] if refused else None
        for row in rows:
            if row is stop:
                break
            self._positions[row.batch.partition] = row.position.offset + 1
        if refused:
            row, error = refused[0]
            failure = self._add_failure(row, error)
            raise ReplayFailed(failure, self.result()) from error

    def _add_failure(self, row: LogRow, error: LogError) -> Failure:
        key = row.batch.keys[row.index]
        failure = Failure(
            row.position, row.batch.id(row.index), None if key is None else text(key), 1, error
        )
        self._failed += 1
        if len(self._failures) < FAILURES_KEPT:
            self._failures.append(failure)
        return failure

    async def _append(self, records: Sequence[Record]) -> Sequence[Position | LogError]:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Sequence[Position | LogError]] = loop.create_future()

        def set_answers(answers: Sequence[Position | LogError]) -> None:
            if not answered.done():
                answered.set_result(answers)

        def on_answers(answers: Sequence[Position | LogError]) -> None:
            try:
                loop.call_soon_threadsafe(set_answers, answers)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        self._connection.publisher.append(self._target, records, on_answers)
        return await answered
