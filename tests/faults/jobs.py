"""A worker to be killed amid short jobs, which writes down when it had done each.

python -m tests.faults.jobs FILE URL TOPIC GROUP
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

from streams import Message, Streams
from tests.faults.worker import end_with_parent

AT_ONCE = 64
SECONDS = 0.005


class Record:
    """What was done, and when on the monotonic clock: one write each, which no kill undoes."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def write(self, id: str) -> None:
        os.write(self._file, f"{id} {time.monotonic()!r}\n".encode())


def done(path: Path) -> dict[str, float]:
    """What a record says."""
    if not path.exists():
        return {}
    text = path.read_bytes()
    lines = text[: text.rfind(b"\n") + 1].decode().splitlines()
    return {id: float(at) for id, at in (line.split() for line in lines)}


def declare(app: Streams, topic: str, group: str, record: Record) -> None:
    """The processor: 64 jobs of 5 ms at once."""

    @app.processor(app.topic(topic, bytes), group=group, concurrency=AT_ONCE)
    async def job(value: bytes, message: Message[bytes]) -> None:
        await asyncio.sleep(SECONDS)
        record.write(message.id)


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    path, url, topic, group = sys.argv[1:]
    app = Streams(url)
    declare(app, topic, group, Record(Path(path)))
    app.run()


if __name__ == "__main__":
    main()
