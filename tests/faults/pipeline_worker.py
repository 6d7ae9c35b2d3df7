"""A worker to be killed: an exactly-once processor with two outputs for each message.

python -m tests.faults.pipeline_worker FOLDER URL TOPIC GROUP CONCURRENCY PAUSE [MEMBER]

Every handler takes ``PAUSE`` seconds now and then, one message in 50 fails at first, and one in 97
always. What comes out says of which message it is, and goes under its key.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import signal
import sys
import threading
import time
from pathlib import Path
from zlib import crc32

from streams import Flow, Message, Reject, Retry, Streams
from tests.faults.history import Effect, Recorder
from tests.faults.worker import end_with_parent


def target_of(topic: str) -> str:
    """Where the outputs of a topic go."""
    return f"{topic}-out"


def is_rejected(id: str) -> bool:
    return crc32(id.encode()) % 97 == 3


def outputs_of(key: str, id: str) -> list[bytes]:
    return [f"{key} {id} {each}".encode() for each in "ab"]


def _key_of(output: bytes) -> str:
    return output.split(b" ")[0].decode()


def build(
    folder: Path,
    url: str,
    topic: str,
    group: str,
    concurrency: int,
    pause: float,
    member: str | None,
) -> Streams:
    recorder = Recorder(folder)
    app = Streams(url, member=member)
    source, target = app.topic(topic, bytes), app.topic(target_of(topic), bytes, key=_key_of)

    @app.processor(
        source,
        group=group,
        to=target,
        exactly_once=True,
        concurrency=concurrency,
        retry=Retry(attempts=3, delay=0.005, cap=0.02),
        flow=Flow(drain=5.0),
    )
    async def work(value: bytes, message: Message[bytes]) -> list[bytes]:
        number = crc32(value)
        if pause and number % 10 == 0:
            await asyncio.sleep(pause)
        if number % 50 == 1 and message.attempt == 1:
            raise ConnectionError("now and then")
        what = message.topic, message.partition, message.offset, message.key, message.id
        recorder.write(Effect(time.monotonic(), *what))
        if is_rejected(message.id):
            raise Reject("never")
        return outputs_of(message.key or "", message.id)

    return app


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    faulthandler.register(signal.SIGUSR1)  # what every thread does, where a run stands still
    logging.basicConfig(level=logging.ERROR, format="%(process)d %(name)s %(message)s")
    folder, url, topic, group, concurrency, pause, *member = sys.argv[1:]
    name = member[0] if member else None
    build(Path(folder), url, topic, group, int(concurrency), float(pause), name).run()


if __name__ == "__main__":
    main()
