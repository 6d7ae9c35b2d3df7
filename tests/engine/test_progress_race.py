"""Bytes may be set while a snapshot is being taken; what it says must be readable, and true."""

from __future__ import annotations

from itertools import pairwise

from streams.engine.progress import Progress
from streams.message import Batch


class Settling(bytearray):
    """Bytes that a handler sets just after a look for the next unsettled one."""

    def find(self, *args: int) -> int:  # type: ignore[override]
        at = super().find(*args)
        if args[0] == 0 and len(args) > 1 and at >= 0:
            self[at] = 1
        return at


def test_a_message_settled_during_a_snapshot_joins_its_neighbours() -> None:
    progress = Progress(0, 0)
    offsets = list(range(10))
    batch = Batch("t", 0, offsets, [b"k"] * 10, [b"v"] * 10, [None] * 10)
    segment = progress.add(None, batch)
    segment.done = Settling(b"\0\1\1\0\1\1\0\1\0\0")
    ranges = progress.ranges()
    assert ranges[0][0] == 1
    assert all(end < start for (_, end), (start, _) in pairwise(ranges))
