"""A process that handles messages with ordered dead letters and stands still at a failpoint.

``python -m tests.patterns.frozen_child URL TOPIC GROUP FILE FAILPOINT COUNT``: handles until it is
told to stop (SIGTERM). The COUNT-th time that it comes by FAILPOINT (:mod:`failpoints`; ``-`` for
none) it stops itself with SIGSTOP; once somebody lets it go on, it does. To FILE it appends lines:
``handled KEY VALUE`` for each call that succeeded, ``going on`` when it was let go on, and ``late``
when that write, or whatever came of it, is over. What fails follows from the value alone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from streams import DeadLetters, Flow, Message, Reject, Streams
from streams.message import REDRIVE
from streams.parking import key_parking
from streams.processing.job import Job
from tests.patterns import failpoints


def fails(value: int, redrives: int) -> bool:
    """One of ten is dead once."""
    return value % 10 == 0 and redrives < 1


class Line:
    """What is written down; one system call a line, so that a kill leaves none half."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def build(
    url: str,
    topic: str,
    group: str,
    file: str,
    failpoint: str,
    count: int,
    stand_still: Callable[[Streams], None],
) -> Streams:
    """The worker's app, which is to be entered.

    :param stand_still: called at the failpoint; returns when somebody lets the worker go on.
    """
    line = Line(file)
    left = count
    app = Streams(url)
    source = app.topic(topic, int, partitions=1)

    async def handle(value: int, message: Message[int]) -> None:
        redrives = int(message.headers.get(REDRIVE, "0"))
        if fails(value, redrives):
            raise Reject(f"{value} fails")
        line.write("handled", message.key, value)

    def hit(name: str) -> None:
        nonlocal left
        if name == failpoint:
            left -= 1
            if left == 0:
                stand_still(app)
                line.write("going on")

    def over(name: str) -> None:
        if name == failpoint and left <= 0:
            line.write("late")

    app.processor(
        source, group=group, concurrency=8, dead_letters=DeadLetters(sequenced=True),
        flow=Flow(commit=0.05, drain=5.0),
    )(handle)  # fmt: skip
    (processor,) = app.processors
    adapt_job = processor.adapt_job

    def watched(job: Job) -> Job:
        # All topics are there; what is written from here on is the processor's.
        failpoints.install(app, hit, over)
        return adapt_job(job)

    processor.adapt_job = watched  # type: ignore[method-assign]
    return app


def stop_itself(app: Streams) -> None:
    """SIGSTOP."""
    failpoints.quiet(app.log)
    # To this thread: sent to the process, another thread may take it, and this one would go on
    # for a moment.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


if __name__ == "__main__":
    key_parking.FLOOR_INTERVAL = 0.1
    *words, count = sys.argv[1:]
    url, topic, group, file, failpoint = words
    build(url, topic, group, file, failpoint, int(count), stop_itself).run()
