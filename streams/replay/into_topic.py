"""Replay into another topic: bytes, key, headers and ID are copied without decoding."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial

from streams.cancellation import run_in_thread, run_to_completion, wait_for_callback
from streams.config import Dedup
from streams.connection import Connection
from streams.engine.dedup_window import PROCESS_BUDGET
from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.range_reader import LogRow, OffsetRanges, RangeReader
from streams.publisher import AppendResults
from streams.replay.into_function import ReplayOptions
from streams.replay.result import FailureLog, ReplayFailed, ReplayResult
from streams.replay.token_bucket import TokenBucket

COPY_LIMIT = 1_000
"""Messages written in one batch, at most."""


async def copy_range(
    connection: Connection,
    topic: str,
    target: str,
    ranges: OffsetRanges,
    total: int | None,
    options: ReplayOptions,
) -> ReplayResult:
    """Copy a range of one topic to another. The next chunk is read while one is written.

    :raises ReplayFailed: a message was refused, and ``options.skip_failed`` is not set.
    :raises LogError: the log could not be written to; ``positions`` says how far the copy came.
    """
    rows = RangeReader(connection.log, topic, ranges, key=options.key)
    copying = _CopyRun(connection, target, rows, ranges, total, options)
    try:
        await copying.run()
    finally:
        await run_in_thread(rows.close)
    return copying.result()


class _CopyRun:
    """One run that copies a range."""

    def __init__(
        self,
        connection: Connection,
        target: str,
        rows: RangeReader,
        ranges: OffsetRanges,
        total: int | None,
        options: ReplayOptions,
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
            for partition in (ranges if dedup.window else ())
        }
        self._positions = {partition: each.start for partition, each in ranges.items()}
        self._read = self._written = self._duplicates = 0
        self._failures = FailureLog()

    def result(self) -> ReplayResult:
        """The current figures."""
        return ReplayResult(
            total=self._total,
            scanned=self._rows.scanned,
            read=self._read,
            handled=self._written,
            duplicates=self._duplicates,
            failed=self._failures.count,
            failures=tuple(self._failures.first),
            positions=dict(self._positions),
        )

    async def run(self) -> None:
        """Copy the range."""
        next_rows = asyncio.ensure_future(self._read_chunk())
        try:
            while (rows := await next_rows) or not self._rows.is_at_end:
                next_rows = asyncio.ensure_future(self._read_chunk())
                for unlike in self._split_at_repeats(rows):
                    await self._write_records(unlike)
                if self._options.progress is not None:
                    self._options.progress(self.result())
        finally:
            # Wait for the thread that reads, so that the rows are not closed under it.
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
        """The rows whose ID was not written before."""
        if not self._windows:
            return list(rows)
        return [row for row in rows if not self._was_written(row)]

    def _was_written(self, row: LogRow) -> bool:
        identity = row.batch.ids[row.index]
        return identity is not None and identity in self._windows[row.batch.partition]

    def _remember_ids(self, row: LogRow) -> None:
        identity = row.batch.ids[row.index]
        if self._windows and identity is not None:
            self._windows[row.batch.partition].add(identity)

    def _split_at_repeats(self, rows: Sequence[LogRow]) -> Iterator[Sequence[LogRow]]:
        """Split rows into runs without a repeated ID: whether the second row of an ID is written
        depends on the first."""
        start, seen = 0, set[tuple[int, str | None]]()
        for at, row in enumerate(rows if self._windows else ()):
            identity = row.batch.partition, row.batch.ids[row.index]
            if identity in seen:
                yield rows[start:at]
                start, seen = at, set()
            if identity[1] is not None:
                seen.add(identity)
        yield rows[start:]

    async def _write_records(self, rows: Sequence[LogRow]) -> None:
        new_rows = self._without_duplicates(rows)
        self._duplicates += len(rows) - len(new_rows)
        answers: AppendResults = ()
        if new_rows:
            records = [row.record() for row in new_rows]
            append = self._connection.publisher.append
            answers = await wait_for_callback(partial(append, self._target, records))
        refused: tuple[LogRow, LogError] | None = None
        skip_failed = self._options.skip_failed
        for row, answer in zip(new_rows, answers, strict=True):
            if not isinstance(answer, LogError):
                self._written += 1
                self._remember_ids(row)
            elif skip_failed and not isinstance(answer, (Unavailable, OutcomeUnknown)):
                self._failures.add(row.batch, row.index, 1, answer)
            elif refused is None:
                refused = row, answer
        for row in rows:
            if refused is not None and row is refused[0]:
                break
            self._positions[row.batch.partition] = row.offset + 1
        if refused is not None:
            row, error = refused
            failure = self._failures.add(row.batch, row.index, 1, error)
            raise ReplayFailed(failure, self.result()) from error
