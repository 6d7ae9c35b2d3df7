"""Retention: trims old entries once every group has settled them, a bounded number at a time.

The owner of a partition and those that append to it try now and then; the script (``trim.lua``)
decides in one step, so it does not matter how many try.
"""

from __future__ import annotations

import threading
import time

from streams.errors import LogError, TopicMismatch
from streams.log.protocol import TopicPartition
from streams.log.redis.client import Client, Command, key_command, script_command
from streams.log.redis.keys import GROUPS_KEY, PartitionKeys
from streams.log.redis.stored_values import count_text, valid_names
from streams.log.redis.topics import Topics
from streams.text import get_logger

logger = get_logger("streams")

TRIM_INTERVAL = 5.0
"""Seconds between two attempts at one partition."""

TRIM_STEP = 10_000
"""Entries trimmed in one step, at most: about a millisecond of the server's time."""

MAX_STEPS = 20
"""Trim steps of one attempt, at most."""


class Trimmer:
    """Trims the partitions of topics that have a retention. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics) -> None:
        self._client = client
        self._topics = topics
        self._lock = threading.Lock()
        self._next_trim: dict[TopicPartition, float] = {}

    def trim_if_due(self, keys: PartitionKeys) -> None:
        """Trim a partition if an attempt is due; never fails, as there will be another attempt."""
        try:
            if not self._topics.lookup_recent(keys.topic).has_bound:
                return
            partition = (keys.topic, keys.partition)
            with self._lock:
                now = time.monotonic()
                if now < self._next_trim.get(partition, 0.0):
                    return
                self._next_trim[partition] = now + TRIM_INTERVAL
            self.trim(keys)
        except TopicMismatch as error:
            logger.warning("%s: not trimmed: %s", keys, error)
        except LogError as error:
            logger.info("%s: not trimmed: %s", keys, error)

    def trim(self, keys: PartitionKeys) -> int:
        """Trim a partition now; returns the number of entries removed."""
        topic, context = self._topics.lookup(keys.topic), str(keys)
        retention = topic.info.retention
        oldest = b""
        if retention.seconds is not None:
            seconds, micros = self._client.execute(Command(context, keys.stream, "TIME"))
            oldest_time = int(seconds) + int(micros) / 1e6 - retention.seconds
            oldest = b"%d-0" % int(max(0.0, oldest_time) * 1000)
        groups = self._client.execute(key_command(context, "SMEMBERS", GROUPS_KEY))
        names = sorted(valid_names(groups))
        command = script_command(
            context, "trim", [keys.stream, *map(keys.group_key, names)],
            oldest, count_text(retention.messages), count_text(topic.max_entries), TRIM_STEP,
            *names,
        )  # fmt: skip
        total = 0
        for _ in range(MAX_STEPS):
            settled, forced = self._client.execute(command)
            total += settled + forced
            if forced:
                logger.warning(
                    "%s: %d entries dropped that a group had not settled, as the topic keeps %d "
                    "at most",
                    keys, forced, topic.max_entries,
                )  # fmt: skip
            if settled + forced < TRIM_STEP // 2:
                break
        return total
