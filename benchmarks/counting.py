"""Handlers that count, and stop the clock. The same objects serve ours, loops and peers.

It uses the standard library alone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any


class MessageCounter:
    """Counts messages, and records when the first and the last of them came.

    Measuring begins with message ``skip + 1``, so that joining a group, filling a prefetch and
    compiling code are left out where they would matter.

    :param messages: how many to wait for; later ones are ignored.
    """

    def __init__(self, messages: int, skip: int = 1) -> None:
        if messages <= skip:
            raise ValueError(f"{messages} messages are too few to measure")
        self._messages = messages
        self._left = messages
        self._start_at_left = messages - skip
        self._measured = messages - skip
        self._started_at = 0.0
        self.ended_at = 0.0
        """When the last message came, by the clock ``time.perf_counter()``."""
        self._cpu = 0.0
        self.done = threading.Event()

    @property
    def seen(self) -> int:
        """How many messages came so far."""
        return self._messages - self._left

    def count_one(self, value: Any = None) -> None:
        """One message was handled."""
        self._left = left = self._left - 1
        if left == self._start_at_left:
            self._start()
        elif left == 0:
            self._end()

    def count_batch(self, values: Sequence[Any]) -> None:
        """A batch was handled."""
        before = self._left
        self._left = left = before - len(values)
        if left <= self._start_at_left < before:
            self._measured = left
            self._start()
        if left <= 0 < before:
            self._measured -= left
            self._end()

    def _start(self) -> None:
        self._started_at = time.perf_counter()
        self._cpu = time.process_time()

    def _end(self) -> None:
        self.ended_at = time.perf_counter()
        self._cpu = time.process_time() - self._cpu
        self.done.set()

    @property
    def result(self) -> dict[str, float]:
        """Messages a second from the first measured one to the last, and this process's CPU time
        for each of them in microseconds.

        :raises ValueError: all of them came at once, in one batch.
        """
        if not self._measured:
            raise ValueError("all messages came in one batch: measure more of them")
        seconds = self.ended_at - self._started_at
        return {
            "rate": self._measured / seconds,
            "seconds": seconds,
            "messages": self._measured,
            "cpu_us": self._cpu / self._measured * 1e6,
        }


class OrderCheck:
    """Checks that the orders of each customer come in order, and never two at once."""

    def __init__(self) -> None:
        self._last: dict[str, str] = {}
        self._running: set[str] = set()
        self.violations = 0

    def handler_started(self, customer: str, order_id: str) -> None:
        """A handler starts."""
        if customer in self._running or self._last.get(customer, "") >= order_id:
            self.violations += 1
        self._running.add(customer)
        self._last[customer] = order_id

    def handler_returned(self, customer: str) -> None:
        """A handler has returned."""
        self._running.discard(customer)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """``p0`` to ``p100`` of some measurements, by nearest rank; and ``p99.9``."""
    ordered = sorted(values)
    last = len(ordered) - 1
    found = {f"p{percent}": ordered[round(last * percent / 100)] for percent in range(101)}
    found["p99.9"] = ordered[round(last * 0.999)]
    return found
