"""A process with one idle processor over many partitions, which says what it costs.

python -m tests.faults.idle URL TOPIC GROUP SECONDS: prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from streams import Streams


def resident() -> float:
    """MiB of memory in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


async def measure(url: str, topic: str, group: str, seconds: float) -> dict[str, Any]:
    app = Streams(url)

    @app.processor(app.topic(topic, bytes), group=group)
    async def work(value: bytes) -> None: ...

    began = time.monotonic()
    async with app:
        partitions = app.log.describe_topic(topic).partitions
        while app.stats().processors["work"].partitions < partitions:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assigned = time.monotonic() - began
        await asyncio.sleep(seconds)  # what starting costs is over
        memory, cpu, began = resident(), time.process_time(), time.monotonic()
        await asyncio.sleep(seconds)
        share = (time.process_time() - cpu) / (time.monotonic() - began)
        return {
            "partitions": partitions,
            "assigned": round(assigned, 2),
            "cpu": round(share, 4),
            "before": round(memory, 1),
            "after": round(resident(), 1),
            "peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        }


if __name__ == "__main__":
    url, topic, group, seconds = sys.argv[1:]
    sys.stdout.write(json.dumps(asyncio.run(measure(url, topic, group, float(seconds)))) + "\n")
