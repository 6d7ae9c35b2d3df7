"""A process that consumes a queue, and may be killed.

``python -m tests.patterns.queue_child URL QUEUE WHAT``: handles what is in the queue, and says each
call, one JSON value a line: what it is about to handle, and how often that failed before. With
``hang`` no call ends, with ``fail`` every call fails.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from streams import Streams
from streams.patterns import ConsumerConfig, MessageConsumer, MessageQueue, QueueMessage


async def main(url: str, name: str, what: str) -> None:
    app = Streams(url)
    config = ConsumerConfig(concurrency=2, max_retries=40, retry_delay=0.01, retry_cap=0.02)
    consumer = MessageConsumer(MessageQueue(app), config)

    async def handle(message: QueueMessage[Any]) -> None:
        sys.stdout.write(f"{json.dumps([message.data, message.retries])}\n")
        sys.stdout.flush()
        if what == "hang":
            await asyncio.Event().wait()
        if what == "fail":
            raise ConnectionError("not here")

    async with app:
        await consumer.start(name, handle)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
