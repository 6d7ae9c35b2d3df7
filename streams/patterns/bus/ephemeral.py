"""Reading a topic from now on, in no group: what ephemeral subscribers get.

An :class:`EphemeralSubscription` is a subscription over plain readers: it owns every partition,
starts where each ended when the app was entered, and commits nothing. A processor that polls it has
the executors, flow control and dedup of any other, and leaves nothing behind in the log: no group
that would keep messages from being trimmed, no dead letter topic. So its handler must not fail:
nothing is tried again, and there is nowhere to put what cannot be handled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from typing_extensions import override

from streams.errors import Unavailable
from streams.log.protocol import Assignment, Committed, Log, Reader
from streams.message import ALL_READABLE, Batch
from streams.replay.groupless import GrouplessSubscription
from streams.text import get_logger

logger = get_logger("streams.bus")

BEYOND_ALL = 1 << 128
"""A position that no message reaches."""

POLL_INTERVAL = 0.05
"""Real seconds between two polls of a partition, where there are several and nothing comes."""

PROBE_AFTER = 1.0
"""Real seconds without a message after which the log is asked whether it can be reached."""


class EphemeralSubscription(GrouplessSubscription["_PartitionReader"]):
    """The subscription. Made anywhere, polled by one thread."""

    def __init__(self, log: Log, topic: str) -> None:
        """Note where each partition ends: everything behind that is delivered.

        :raises LogError: the log does not say.
        """
        self._log = log
        self._last_received = time.monotonic()
        partitions = [
            _PartitionReader(
                log, Assignment(topic, partition, 0, Committed(log.watermarks(topic, partition)[1]))
            )
            for partition in range(log.topic(topic).partitions)
        ]
        super().__init__("an ephemeral subscriber", "give it a group", partitions)

    @override
    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        """The next messages of all partitions; waits up to ``timeout`` while there are none.

        :raises Unavailable: the log cannot be reached now.
        """
        self._assign()
        unpaused = [
            part for part in self._partitions if part.assignment.partition not in self._paused
        ]
        batches: list[Batch] = []
        for part in unpaused if len(unpaused) > 1 else ():
            if limit > 0 and (batch := part.read(limit, 0.0)) is not None:
                batches.append(batch)
                limit -= len(batch)
        if not batches and unpaused:
            # A reader waits for its own partition alone: the others are polled again soon.
            part = unpaused[0]
            patience = timeout if len(unpaused) == 1 else min(timeout, POLL_INTERVAL)
            started = time.monotonic()
            batch = part.read(limit, patience)
            if batch is not None:
                batches.append(batch)
            else:
                self._probe_log(part, returned_early=time.monotonic() - started < patience / 2)
        if batches:
            self._last_received = time.monotonic()
        elif not unpaused:
            time.sleep(min(timeout, 0.01))  # everything is paused: the poller has little to ask
        return batches

    def _probe_log(self, partition: _PartitionReader, *, returned_early: bool) -> None:
        """A reader returns nothing in silence and in an outage: the log's answer tells which."""
        now = time.monotonic()
        if returned_early or now - self._last_received > PROBE_AFTER:
            self._log.watermarks(partition.assignment.topic, partition.assignment.partition)
            self._last_received = now


class _PartitionReader:
    """One partition, read without end."""

    def __init__(self, log: Log, assignment: Assignment) -> None:
        self.assignment = assignment
        self._log = log
        self._reader: Reader | None = None

    def read(self, limit: int, timeout: float) -> Batch | None:
        """What is there, at most ``limit``; None if nothing came within ``timeout`` seconds."""
        assignment = self.assignment
        try:
            if self._reader is None:
                self._reader = self._log.reader(
                    assignment.topic, assignment.partition, assignment.position, BEYOND_ALL
                )
            batch = self._reader.read(limit, timeout)
        except Unavailable:
            return None
        if batch is not None:
            batch.assignment = assignment
            self._drop_unreadable_headers(batch)
        return batch

    def _drop_unreadable_headers(self, batch: Batch) -> None:
        """An event's topic is a header. Where headers cannot be read, its subscribers are unknown,
        and there are no dead letters here: it is logged, and handled as an event of no topic."""
        if batch.ids and batch.unreadable:
            for index, why in sorted(batch.unreadable.items()):
                logger.warning(
                    "%s/%d/%s: event passed over, its headers cannot be read: %s",
                    batch.topic, batch.partition, batch.offset(index), why,
                )  # fmt: skip
            batch.unreadable = ALL_READABLE

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
