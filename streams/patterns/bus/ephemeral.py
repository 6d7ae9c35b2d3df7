"""Reading a topic from its current end, in no group: the source of ephemeral subscribers.

An :class:`EphemeralSubscription` is a subscription over plain readers: it owns every partition,
starts at the end offset that each had when the app was entered, and commits nothing. If the topic
is deleted and recreated, it goes on with the new one. A processor that polls it has the executors,
flow control and dedup of any other, and leaves nothing behind in the log: no group that would keep
messages from being trimmed, no dead letter topic. So its handler must not fail: nothing is retried,
and there is no place for a message that cannot be handled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from typing_extensions import override

from streams.errors import LogError, NotFound, Unavailable
from streams.log.protocol import Assignment, Committed, Log, Reader
from streams.message import ALL_READABLE, Batch
from streams.replay.groupless import GrouplessSubscription
from streams.text import get_logger

logger = get_logger("streams.bus")

BEYOND_ALL = 1 << 128
"""A position beyond that of any message."""

POLL_INTERVAL = 0.05
"""Seconds of real time between two polls of a partition, if there are several and none has new
messages."""

PROBE_INTERVAL = 1.0
"""Seconds of real time between two probes of the log about a partition without new messages."""


class EphemeralSubscription(GrouplessSubscription["_PartitionReader"]):
    """The subscription. Created in any thread, polled by one.

    :param on_begin_anew: called when it goes on with a recreated topic, or past an end that the log
        has lost, before any message from there is delivered.
    """

    def __init__(
        self, log: Log, topic: str, on_begin_anew: Callable[[], None] = lambda: None
    ) -> None:
        """Record the end offset of each partition: all messages from there on are delivered.

        :raises LogError: the log does not answer.
        """
        self._log = log
        self._topic = topic
        self._on_begin_anew = on_begin_anew
        self._incarnation = self._read_incarnation()
        self._first = 0
        """The index of the partition that is read first at the next poll."""
        self._probe_due = time.monotonic() + PROBE_INTERVAL
        self._probed = 0
        """The number of probes so far."""
        partitions = self._make_partitions({})
        super().__init__("an ephemeral subscriber", "give it a group", partitions)

    def _make_partitions(
        self, positions: Mapping[int, int], *, made_anew: bool = False
    ) -> list[_PartitionReader]:
        """:param positions: by partition, the position to go on from, if it is not beyond its
        end."""
        log, topic, found = self._log, self._topic, list[_PartitionReader]()
        for partition in range(log.describe_topic(topic).partitions):
            first, end = log.watermarks(topic, partition)
            position = positions.get(partition, BEYOND_ALL)
            if position > end:
                position = first if made_anew else end
            found.append(
                _PartitionReader(log, Assignment(topic, partition, 0, Committed(position)))
            )
        return found

    def _read_incarnation(self) -> str:
        """The incarnation of the topic of this name; empty if the log cannot tell."""
        try:
            return self._log.incarnation(self._topic)
        except (NotFound, Unavailable):
            raise
        except LogError:
            return ""

    @override
    def poll(self, limit: int, timeout: float) -> Sequence[Batch]:
        """The next messages of all partitions; waits up to ``timeout`` while there are none.

        :raises Unavailable: the log cannot be reached now, or the topic was deleted.
        """
        try:
            self._assign()
            return self._read_next(limit, timeout)
        except NotFound as error:
            self._restart_reading(error)
            return ()

    def _read_next(self, limit: int, timeout: float) -> list[Batch]:
        """:raises NotFound: the topic was deleted, or a partition ends before its read position."""
        unpaused = [
            part for part in self._partitions if part.assignment.partition not in self._paused
        ]
        batches: list[Batch] = []
        # A partition that always has more than the limit must not starve the others.
        first, self._first = self._first, 0
        in_turn = sorted(unpaused, key=lambda part: part.assignment.partition < first)
        for part in in_turn if len(unpaused) > 1 else ():
            try:
                batch = part.read(limit, 0.0)
            except NotFound:
                if not batches:
                    raise
                break  # deliver the batches that were read first
            if batch is not None:
                batches.append(batch)
                limit -= len(batch)
                if limit <= 0:
                    self._first = part.assignment.partition + 1
                    break
        if not batches and unpaused:
            # A reader waits for its own partition alone: the others are polled again soon.
            part = unpaused[0]
            patience = timeout if len(unpaused) == 1 else min(timeout, POLL_INTERVAL)
            started = time.monotonic()
            batch = part.read(limit, patience)
            if batch is not None:
                batches.append(batch)
            else:
                self._probe_log(unpaused, returned_early=time.monotonic() - started < patience / 2)
        if not unpaused:
            time.sleep(min(timeout, 0.01))  # everything is paused: the poller has little to ask
        return batches

    def _probe_log(self, parts: Sequence[_PartitionReader], *, returned_early: bool) -> None:
        """Ask the log why a reader returned nothing: it is silent in an outage, and also where its
        partition ends before its position. The partitions are probed in turn."""
        now = time.monotonic()
        if not returned_early and now < self._probe_due:
            return
        part, topic = parts[0], self._topic
        if not returned_early:
            self._probed += 1
            part = parts[self._probed % len(parts)]
        partition, position = part.assignment.partition, part.next_offset
        _, end = self._log.watermarks(topic, partition)
        if position > end and position > self._log.log_end_offset(topic, partition):
            raise NotFound(f"{topic}/{partition} ends before what was read of it")
        self._probe_due = now + PROBE_INTERVAL

    def _restart_reading(self, error: NotFound) -> None:
        """Go on after the topic was deleted, or the log has lost its end. A partition whose
        position is beyond the end of a recreated topic goes on with that topic's first message, as
        all of its messages are new to every subscriber here; else at the end.

        :raises Unavailable: there is no such topic now.
        """
        try:
            incarnation = self._read_incarnation()
            made_anew = incarnation != self._incarnation
            positions = {each.assignment.partition: each.next_offset for each in self._partitions}
            partitions = self._make_partitions(positions, made_anew=made_anew)
        except NotFound:
            raise Unavailable(
                f"topic {self._topic!r} was deleted: ephemeral subscribers wait until it is there "
                "again"
            ) from error
        logger.error(
            "%s: %s: ephemeral subscribers go on %s", self._topic, error,
            "with the recreated topic" if made_anew else "with what comes from now on",
        )  # fmt: skip
        self.close()
        self._partitions, self._incarnation = partitions, incarnation
        self._paused.clear()
        self._on_begin_anew()


class _PartitionReader:
    """A reader of one partition, without an end."""

    def __init__(self, log: Log, assignment: Assignment) -> None:
        self.assignment = assignment
        self.next_offset = assignment.position
        """All messages before it were delivered, or are not to be."""
        self._log = log
        self._reader: Reader | None = None

    def read(self, limit: int, timeout: float) -> Batch | None:
        """The available messages, at most ``limit``; None if none came within ``timeout`` seconds.

        :raises NotFound: the topic was deleted, or has lost its end.
        """
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
            if len(batch):
                self.next_offset = batch.offsets[-1] + 1
            self._drop_unreadable_headers(batch)
        return batch

    def _drop_unreadable_headers(self, batch: Batch) -> None:
        """An event's topic is a header. If the headers cannot be read, its subscribers are unknown,
        and there are no dead letters here: that is logged, and the event handled as one of no
        topic."""
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
