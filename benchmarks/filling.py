"""Fills a topic with many records, as fast as its log accepts them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice

from streams.log.appending import append_and_wait
from streams.log.protocol import Log
from streams.message import Record

LIMIT = 600.0
"""The most seconds that one append may take."""


def fill_topic(log: Log, topic: str, records: Iterable[Record], size: int) -> None:
    """Append records; returns when they are durable.

    :param size: how many records are appended at once.
    :raises RuntimeError: one of them is refused, or it takes too long.
    """
    left = iter(records)
    while chunk := list(islice(left, size)):
        give_up = time.monotonic() + LIMIT

        def check_time(give_up: float = give_up) -> None:
            if time.monotonic() > give_up:
                raise RuntimeError(f"{topic}: not written in time")

        for answer in append_and_wait(log, topic, chunk, check_time):
            if isinstance(answer, BaseException):
                raise RuntimeError(f"{topic}: {answer}")
