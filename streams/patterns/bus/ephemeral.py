"""Reading a topic from now on, in no group: what ephemeral subscribers get.

An :class:`EphemeralSubscription` is a subscription over plain readers: it owns every partition,
starts where each ended when the app was entered, and commits nothing. Where the topic is deleted
and made anew, it goes on with the new one. A processor that polls it has the executors, flow
control and dedup of any other, and leaves nothing behind in the log: no group that would keep
messages from being trimmed, no dead letter topic. So its handler must not fail: nothing is tried
again, and there is nowhere to put what cannot be handled.
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
"""A position that no message reaches."""

POLL_INTERVAL = 0.05
"""Real seconds between two polls of a partition, where there are several and nothing comes."""

PROBE_INTERVAL = 1.0
"""Real seconds between two questions to the log about a partition from which nothing comes."""


class EphemeralSubscription(GrouplessSubscription["_PartitionReader"]):
    """The subscription. Made anywhere, polled by one thread.

    :param on_begin_anew: called when it goes on with a topic that was made anew, or behind the end
        that the log has lost, before anything of that is delivered.
    """

    def __init__(
        self, log: Log, topic: str, on_begin_anew: Callable[[], None] = lambda: None
    ) -> None:
        """Note where each partition ends: everything behind that is delivered.

        :raises LogError: the log does not say.
        """
        self._log = log
        self._topic = topic
        self._on_begin_anew = on_begin_anew
        self._incarnation = self._read_incarnation()
        self._first = 0
        """Which partition is read first at the next poll."""
        self._probe_due = time.monotonic() + PROBE_INTERVAL
        self._probed = 0
        """How many questions were asked."""
        partitions = self._make_partitions({})
        super().__init__("an ephemeral subscriber", "give it a group", partitions)

    def _make_partitions(
        self, positions: Mapping[int, int], *, made_anew: bool = False
    ) -> list[_PartitionReader]:
        """:param positions: by partition, where to go on, if that is not beyond its end."""
        log, topic, found = self._log, self._topic, list[_PartitionReader]()
        for partition in range(log.topic(topic).partitions):
            first, end = log.watermarks(topic, partition)
            position = positions.get(partition, BEYOND_ALL)
            if position > end:
                position = first if made_anew else end
            found.append(
                _PartitionReader(log, Assignment(topic, partition, 0, Committed(position)))
            )
        return found

    def _read_incarnation(self) -> str:
        """Which topic of this name it is; empty where the log cannot say."""
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
            self._begin_anew(error)
            return ()

    def _read_next(self, limit: int, timeout: float) -> list[Batch]:
        """:raises NotFound: the topic was deleted, or a partition ends before what was read."""
        unpaused = [
            part for part in self._partitions if part.assignment.partition not in self._paused
        ]
        batches: list[Batch] = []
        # One that always has more than the limit must not keep the others from being read.
        first, self._first = self._first, 0
        in_turn = sorted(unpaused, key=lambda part: part.assignment.partition < first)
        for part in in_turn if len(unpaused) > 1 else ():
            try:
                batch = part.read(limit, 0.0)
            except NotFound:
                if not batches:
                    raise
                break  # what was read is delivered first
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
        """A reader returns nothing in silence, in an outage, and where its partition ends before
        what it waits for: the log's answer tells which. Partitions are asked about in turn."""
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

    def _begin_anew(self, error: NotFound) -> None:
        """Go on where the topic was deleted, or the log has lost its end. What is beyond the end of
        a topic that was made anew goes on with its first message, as all of them are new to
        everybody here; else at the end.

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
            "with the topic that was made anew" if made_anew else "with what comes from now on",
        )  # fmt: skip
        self.close()
        self._partitions, self._incarnation = partitions, incarnation
        self._paused.clear()
        self._on_begin_anew()


class _PartitionReader:
    """One partition, read without end."""

    def __init__(self, log: Log, assignment: Assignment) -> None:
        self.assignment = assignment
        self.next_offset = assignment.position
        """Everything before it was delivered, or is not to be."""
        self._log = log
        self._reader: Reader | None = None

    def read(self, limit: int, timeout: float) -> Batch | None:
        """What is there, at most ``limit``; None if nothing came within ``timeout`` seconds.

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
