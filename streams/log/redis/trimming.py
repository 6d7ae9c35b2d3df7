"""Retention: old entries go once every group has settled them, a bounded number at a time.

Whoever owns a partition and whoever appends to it takes a turn now and then; the script
(``trim.lua``) decides on the spot, so it does not matter how many try.
"""

from __future__ import annotations

import threading
import time

from streams.errors import LogError, Mismatch
from streams.log.redis.client import Client, Command, scripted
from streams.log.redis.keys import GROUPS, Part
from streams.log.redis.stored import names_of
from streams.log.redis.topics import Topics
from streams.text import get_logger

logger = get_logger("streams")

EVERY = 5.0
"""Seconds between two turns at one partition."""

STEP = 10_000
"""Entries dropped at once at most: about a millisecond of the server's time."""

TURNS = 20
"""Steps in a row at most."""


class Trimmer:
    """Trims the partitions of topics that have a retention. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics) -> None:
        self._client = client
        self._topics = topics
        self._lock = threading.Lock()
        self._next: dict[tuple[str, int], float] = {}

    def turn(self, part: Part) -> None:
        """Trim a partition if it is time to; never fails, as there will be another turn."""
        try:
            if not self._topics.recent(part.topic).trimmed:
                return
            place = (part.topic, part.partition)
            with self._lock:
                now = time.monotonic()
                if now < self._next.get(place, 0.0):
                    return
                self._next[place] = now + EVERY
            self.trim(part)
        except Mismatch as error:
            logger.warning("%s: not trimmed: %s", part, error)
        except LogError as error:
            logger.info("%s: not trimmed: %s", part, error)

    def trim(self, part: Part) -> int:
        """Trim a partition now: how many entries went.

        :raises LogError: it could not be done.
        """
        facts = self._topics.facts(part.topic)
        kept = facts.info.retention
        oldest = b""
        if kept.seconds is not None:
            (seconds, micros) = self._client.run(Command(str(part), part.stream, "TIME"))
            oldest = b"%d-0" % int(max(0.0, int(seconds) + int(micros) / 1e6 - kept.seconds) * 1000)
        names = sorted(names_of(self._client.run(Command(str(part), GROUPS, "SMEMBERS", GROUPS))))
        hashes = [part.group(name) for name in names]
        bounds = (
            oldest,
            "" if kept.messages is None else kept.messages,
            "" if facts.most is None else facts.most,
        )
        total = 0
        for _ in range(TURNS):
            settled, forced = self._client.run(
                scripted(str(part), "trim", [part.stream, *hashes], *bounds, STEP, *names)
            )
            total += settled + forced
            if forced:
                logger.warning(
                    "%s: %d entries dropped that a group had not settled, as the topic keeps %d "
                    "at most",
                    part, forced, facts.most,
                )  # fmt: skip
            if settled + forced < STEP // 2:
                break
        return total
