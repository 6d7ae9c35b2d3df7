"""A process that handles messages with ordered dead letters, and may be killed at any instant.

``python -m tests.patterns.sequenced_child URL TOPIC GROUP PARTITIONS FILE KIND``: handles until it
is told to stop (SIGTERM), and appends to FILE a line for each call that succeeded: key, value, and
how often the message was put back. What a value does follows from it and from that count alone, so
that every process does the same: see :func:`fails`. KIND is ``async``, or ``plain`` for one handler
at a time in a thread, which takes the fast path while no key is closed.
"""

from __future__ import annotations

import os
import sys

from streams import DeadLetters, Flow, Message, Reject, Streams
from streams.message import REDRIVE


def fails(value: int, redrives: int) -> bool:
    """Of forty messages one is dead once, and one twice."""
    return (value % 40 == 7 and redrives < 1) or (value % 40 == 23 and redrives < 2)


def main(url: str, topic: str, group: str, partitions: int, file: str, kind: str) -> None:
    app = Streams(url)
    source = app.topic(topic, int, partitions=partitions)
    said = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def plain(value: int, message: Message[int]) -> None:
        redrives = int(message.headers.get(REDRIVE, "0"))
        if fails(value, redrives):
            raise Reject(f"{value} fails")
        os.write(said, f"{message.key} {value} {redrives}\n".encode())

    async def handle(value: int, message: Message[int]) -> None:
        plain(value, message)

    app.processor(
        source, group=group, concurrency=1 if kind == "plain" else 8,
        dead_letters=DeadLetters(sequenced=True), flow=Flow(commit=0.2, drain=5.0),
    )(plain if kind == "plain" else handle)  # fmt: skip
    app.run()


if __name__ == "__main__":
    url, topic, group, partitions, file, kind = sys.argv[1:]
    main(url, topic, group, int(partitions), file, kind)
