"""Decides when a partition of a delay topic needs another checkpoint, and tracks the newest one.

A checkpoint is written once the records after the last one outnumber twice the pending entries, so
the number of records that the next owner reads does not grow with the deliveries since the oldest
pending entry. A checkpoint counts once all of its parts were read back from the partition.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter

from streams.cancellation import run_in_thread
from streams.message import Headers, Record
from streams.retries.checkpoints import (
    CheckpointPlace,
    PartHeader,
    checkpoint_records,
    read_part_header,
)
from streams.retries.due_index import DueIndex

CHECKPOINT_RECORDS = 10_000
"""Records after a checkpoint before another one is written, at least."""

COUNT_STEP = 1_000
"""Records that are counted in one step, approximately."""

WriteRecords = Callable[[Sequence[Record]], Awaitable[Sequence[BaseException | None]]]
"""Writes records durably to the partition; returns, for each, None or why it was refused."""


class CheckpointWriter:
    """The checkpoints of a partition that is owned. On the loop only.

    :param write: writes the parts of a checkpoint.
    """

    def __init__(self, partition: int, write: WriteRecords) -> None:
        self.newest: CheckpointPlace | None = None
        """The newest complete checkpoint."""
        self.tried = 0
        """The position of the last checkpoint that was started, complete or not."""
        self._partition = partition
        self._write = write
        self._writing: _PartsToRead | None = None
        self._counts = RecordCounts()

    def begin_scan(self, found: CheckpointPlace | None) -> None:
        """Reset for a scan of the partition.

        :param found: the place of the checkpoint that the scan starts from; None: there is none.
        """
        self.newest, self._writing = found, None
        self.tried = 0 if found is None else found.position
        self._counts = RecordCounts()

    def count_records(self, last: int, count: int = 1) -> None:
        """Note that ``count`` more records were read, the last one at this position."""
        self._counts.add(last, count)

    def count_behind(self, floor: int) -> int:
        """How many records follow both the floor and the last checkpoint."""
        return self._counts.count_behind(max(floor, self.tried))

    async def write_if_due(
        self, index: DueIndex, position: int, floor: int
    ) -> BaseException | None:
        """Write a checkpoint, if the next owner would have to read much without it.

        :param position: every record before it was applied to the index.
        :returns: why it could not be written; None: it was, or none is due. A failed checkpoint
            postpones the next one as a written one does.
        """
        if self.count_behind(floor) <= 2 * len(index) + CHECKPOINT_RECORDS:
            return None
        self.tried = position
        parts = await run_in_thread(checkpoint_records, index.state(), position, self._partition)
        self._writing = _PartsToRead(parts)
        refused = next((each for each in await self._write(parts) if each is not None), None)
        if refused is not None:
            self._writing = None
        return refused

    def read_part(self, position: int, key: bytes, headers: Headers) -> bool:
        """Note a record that is neither an entry nor a mark, and may be a part of a checkpoint.
        Returns whether it completes the checkpoint that is being written."""
        part = read_part_header(key, headers)
        place = None
        if part is not None and self._writing is not None:
            place = self._writing.add(part, position)
        if place is None:
            return False
        self.newest, self._writing = place, None
        return True


class _PartsToRead:
    """A checkpoint that was written, and not all of whose parts were read back yet."""

    def __init__(self, parts: Sequence[Record]) -> None:
        self._missing = {read_part_header(each.key, each.headers) for each in parts}
        self._positions: list[int] = []

    def add(self, part: PartHeader, position: int) -> CheckpointPlace | None:
        """Note a part at this position; returns the checkpoint's place once all parts were read."""
        if part not in self._missing:
            return None  # another owner's
        self._missing.remove(part)
        self._positions.append(position)
        if self._missing:
            return None
        return CheckpointPlace(part.position, min(self._positions), max(self._positions))


class RecordCounts:
    """Counts the records after a position, rounded up to a :data:`COUNT_STEP`."""

    def __init__(self) -> None:
        self._total = 0
        self._steps: list[tuple[int, int]] = []
        """Positions, and how many records precede each."""

    def add(self, last: int, count: int) -> None:
        """Add ``count`` records, the last one at this position."""
        self._total += count
        if self._total - (self._steps[-1][1] if self._steps else 0) >= COUNT_STEP:
            self._steps.append((last + 1, self._total))

    def count_behind(self, position: int) -> int:
        """How many records are at this position or after it. Later calls must not pass a lower
        position."""
        at = bisect_right(self._steps, position, key=itemgetter(0))
        del self._steps[: max(0, at - 1)]
        return self._total - (self._steps[0][1] if at else 0)
