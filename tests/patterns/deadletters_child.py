"""A process that puts dead letters back, and is killed after so many chunks.

``python -m tests.patterns.deadletters_child URL DEAD TOPIC CHUNK CHUNKS BEFORE [ID VALUE]``: puts
letters back by ``REDRIVE_CHUNK``, and kills itself in chunk ``CHUNKS``, ``before`` or ``after`` it
is written; in both cases before it is noted. With an ID, it puts that letter back with another
value.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from streams import Streams
from streams.log.appending import append_and_wait
from streams.patterns import DeadLetterManager
from streams.patterns.deadletters import redriving


async def main(
    url: str, dead: str, topic: str, chunk: int, chunks: int, when: str, *edit: str
) -> None:
    redriving.REDRIVE_CHUNK = chunk
    left = chunks

    def failing(log: Any, topic: str, records: Sequence[Any]) -> Any:
        nonlocal left
        left -= 1
        if not left and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        answers = append_and_wait(log, topic, records)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return answers

    patch.object(redriving, "append_and_wait", failing).start()
    app = Streams(url)
    app.topic(topic, int)
    async with app.connected():
        manager = DeadLetterManager(app, dead)
        if edit:
            await manager.edit(edit[0], edit[1].encode())
        else:
            await manager.reprocess()


if __name__ == "__main__":
    url, dead, topic, chunk, chunks, when, *edit = sys.argv[1:]
    asyncio.run(main(url, dead, topic, int(chunk), int(chunks), when, *edit))
