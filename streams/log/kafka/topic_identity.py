"""Whether a topic is still the one that was read.

A topic that is deleted and made anew under its name begins at offset 0 again, and can have grown
past what was read of the former one before anybody looks: a process was frozen, or cut off. Its
records follow what was read without a gap. Only the ID that the cluster has given it tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from streams.log.kafka.index_consumer import HistoryGone
from streams.log.kafka.partition_probe import PartitionProbe

ASK_INTERVAL = 10.0
"""Seconds between two questions for the ID, in a thread of its own."""

MAX_AGE = 30.0
"""Seconds after which an answer is not relied on any more: whoever was frozen, or could not reach
the brokers, asks before anything else."""


class TopicIdentity:
    """Whether a topic is still the one that it is now (any thread). Asks the brokers (blocks).

    :param ask: the ID of a topic as it is now; empty: it cannot be known, and nothing is said.
    :raises Unavailable: the brokers do not answer.
    """

    def __init__(self, topic: str, ask: Callable[[str], str]) -> None:
        self._topic = topic
        self._ask = ask
        self._confirmed_at = self._asked_at = time.monotonic()
        """When it was asked for what was answered last; and when it was asked last."""
        self._id = ask(topic)
        self._probe = PartitionProbe(lambda topic, _: ask(topic))

    @property
    def is_certain(self) -> bool:
        """It was the same a moment ago, or this cannot be known."""
        return not self._id or time.monotonic() <= self._confirmed_at + MAX_AGE

    def check(self) -> None:
        """See that it is, or was a moment ago; blocks only where that is not known.

        :raises HistoryGone: it is another one.
        :raises Unavailable: the brokers do not answer.
        """
        if not self.is_certain:
            asked_at = time.monotonic()
            self._compare(self._ask(self._topic), asked_at)

    def tick(self) -> None:
        """Some time has passed: ask again, now and then, in another thread.

        :raises HistoryGone: it is another one.
        """
        is_busy = self._probe.is_busy
        for found in self._probe.take_outcomes().values():
            if found is not None:
                self._compare(found, self._asked_at)
        now = time.monotonic()
        if self._id and now >= self._asked_at + ASK_INTERVAL and not is_busy:
            self._asked_at = now
            self._probe.start([(self._topic, 0)])

    def close(self) -> None:
        """Ask no more."""
        self._probe.close()

    def _compare(self, found: str, asked_at: float) -> None:
        if found and found != self._id:
            raise HistoryGone(
                f"{self._topic} was deleted and recreated: what was read of it is of another topic"
            )
        self._confirmed_at = max(asked_at, self._confirmed_at)
