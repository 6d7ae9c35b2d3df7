"""Positions of groups in which nobody ever runs, committed again before the log forgets them.

Which dead letters were dealt with is the position of a group that has the name of their topic; from
where on a topic is still needed, its floor, is that of a group, too. Kafka deletes the positions of
such a group ``offsets.retention.minutes`` after they were committed, seven days by default: then
all dead letters wait again. So each process that runs processors commits what it finds there again
as it stands, every :data:`INTERVAL`.

Only what nobody has moved since the look before is committed, as whoever moves it meanwhile would
be moved back; what is moved is committed thereby.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from random import random
from typing import Any

from streams.cancellation import run_in_thread
from streams.errors import LogError, Unavailable
from streams.log.floor import floor_group
from streams.log.protocol import Committed, Log
from streams.parking import parked_topic
from streams.processor import Processor
from streams.text import get_logger

logger = get_logger("streams")

INTERVAL = 3600.0
"""Real seconds between two looks. The first comes at a random moment within the first of them."""

Processors = Iterable[Processor[..., Any]]


def memberless_groups(processors: Processors) -> dict[str, str]:
    """The groups in which nobody runs whose positions these processors need, if there are any, and
    the topic in which they are."""
    found: dict[str, str] = {}
    for processor in processors:
        for topic in processor.topics:
            letters = processor.options.dead_letters.name(topic, processor.group)
            found[letters] = letters
            if processor.key_parking is not None:
                parked = parked_topic(topic, processor.group)
                found[parked] = parked
            if not processor.has_own_options:  # of delays, or of a view by key
                found[floor_group(topic)] = topic
    return found


class KeptPositions:
    """Commits positions of groups in which nobody runs again. Used by one thread at a time."""

    def __init__(self, log: Log, find_groups: Callable[[], dict[str, str]]) -> None:
        self._log = log
        self._find_groups = find_groups
        self._seen: dict[str, dict[int, Committed]] = {}

    def commit_again(self) -> None:
        """Commit what nobody has moved since the last call; what fails is tried at the next."""
        try:
            existing = set(self._log.list_groups())
            for group, topic in self._find_groups().items():
                if group in existing:
                    self._commit_again(group, topic)
        except LogError as error:
            logger.info("positions of groups without members stay as they are: %s", error)

    def _commit_again(self, group: str, topic: str) -> None:
        try:
            found = self._log.committed(group, topic)
            before = self._seen.get(group, {})
            unmoved = {number: each for number, each in found.items() if before.get(number) == each}
            if unmoved:
                # Not forced: the log refuses where members of such a group run.
                self._log.reset_offsets(group, topic, unmoved)
            self._seen[group] = found
        except Unavailable:
            raise
        except LogError as error:
            logger.info("the positions of group %s in %s stay as they are: %s", group, topic, error)


async def keep_positions(log: Log, processors: Processors) -> None:
    """Commit the positions again that these processors need, until cancelled."""
    kept = KeptPositions(log, lambda: memberless_groups(list(processors)))
    pause = random() * INTERVAL
    while True:
        await asyncio.sleep(pause)
        await run_in_thread(kept.commit_again)
        pause = INTERVAL
