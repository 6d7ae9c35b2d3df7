"""A process that delivers over hours of fake time, and may be killed.

``python -m tests.patterns.delay_child URL PENDING FROM TO STEP``: delivers what is due between two
times (seconds since the epoch), and says after each step, one JSON value a line, the time, how many
it has delivered, how many it holds, its peak memory in MiB, and how often it read a partition.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from datetime import datetime, timezone

from streams import Streams
from streams.patterns import Delays
from streams.retries import checkpoint_writer, checkpoints, scheduler
from streams.testing import Clock, harness

SOURCE = "wanted"


def declare(url: str, pending: int, partitions: int = 2) -> tuple[Streams, Delays]:
    """The app under test: a topic, and its delays."""
    app = Streams(url)
    app.topic(SOURCE, int, partitions=partitions)
    return app, Delays(app, pending=pending, partitions=partitions)


async def main(url: str, pending: int, start: float, end: float, step: float) -> None:
    # There are checkpoints all the time, of several parts.
    scheduler.FLOOR_INTERVAL = 0.05
    checkpoint_writer.CHECKPOINT_RECORDS = checkpoints.PART_ENTRIES = pending // 8
    app, delays = declare(url, pending)
    clock = Clock(datetime.fromtimestamp(start, timezone.utc))
    async with harness(app, clock=clock, url=url) as running:
        while True:
            await running.settled(within=600)
            figures = delays.stats()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            said = [clock.time(), figures.delivered, figures.pending, peak, figures.scans]
            sys.stdout.write(f"{json.dumps(said)}\n")
            sys.stdout.flush()
            if clock.time() >= end:
                return
            clock.advance(min(step, end - clock.time()))


if __name__ == "__main__":
    url, *numbers = sys.argv[1:]
    pending, start, end, step = map(float, numbers)
    asyncio.run(main(url, int(pending), start, end, step))
