"""Starting the partitions that the group gave to a member.

This is done outside of the driver's callbacks, so the listener may block, commit, read the log and
fail in here. What cannot be started yet is probed in another thread, until it answers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaException

from streams.errors import Fatal, LogError, Unavailable
from streams.log.kafka.consumer import GroupConsumer, KafkaClients
from streams.log.kafka.member_errors import MemberErrors
from streams.log.kafka.offsets import MembershipLost, OffsetReader
from streams.log.kafka.partition_probe import PartitionProbe
from streams.log.protocol import Assignment, Committed, RebalanceListener, TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

OFFSETS_TIMEOUT = 2.0
"""Seconds for which the polling thread waits for the group's committed offsets. The coordinator
withholds them while a former owner's transaction is open: then the probe's thread waits for
them."""

OWN_TIMEOUT = 0.25
"""Seconds of :data:`OFFSETS_TIMEOUT` spent on the member's own connection before another one."""

_next_epoch = itertools.count(1)
"""A counter for the whole process, so that no two of its assignments share an epoch."""


class AssignmentStarter:
    """Tells the listener what arrived, and has it fetched. Used by the thread that polls."""

    def __init__(
        self,
        clients: KafkaClients,
        consumer: GroupConsumer,
        listener: RebalanceListener,
        errors: MemberErrors,
        group: str,
    ) -> None:
        self._consumer = consumer
        self._listener = listener
        self._errors = errors
        self._group = group
        self.has_outputs = False
        """Whether positions are stored in transactions: then a former owner's has to end first."""
        self._partitions_with_leader = clients.readers.metadata.partitions_with_leader
        self._watermarks = clients.readers.watermarks
        self._offsets = OffsetReader(
            clients.connect, group, clients.requests, stable=True, timeout=OFFSETS_TIMEOUT
        )
        self._probe = PartitionProbe(self._probe_partition)

    def close(self) -> None:
        """Probe no more."""
        self._probe.close()
        self._offsets.close()

    def start_pending(self) -> None:
        """Tell the listener what arrived, and fetch from where it says. What cannot be started yet
        is probed in another thread until it answers, and holds up nothing else."""
        pending = self._consumer.partitions.pending
        if not pending:
            return
        never_tried = pending.never_tried()
        if never_tried:
            self._try_start(never_tried)
        now = time.monotonic()
        reachable = []
        for key, reached in self._probe.take_outcomes().items():
            if pending.was_tried(key):
                pending.schedule_retry(key, now)
                if reached:
                    reachable.append(key)
        self._probe.start(pending.due_for_retry(now))
        if reachable:
            self._try_start(reachable)

    def _probe_partition(self, topic: str, partition: int) -> bool:
        """In the probe's thread: see that a partition answers."""
        if partition not in self._partitions_with_leader(topic):
            raise Unavailable(f"Kafka: {topic}/{partition} has no leader")
        self._watermarks(topic, partition)
        # A former owner's transaction may be open, which only its time ends.
        self._offsets.committed([(topic, partition)])
        return True

    def _try_start(self, keys: Sequence[TopicPartition]) -> None:
        try:
            with_leader = self._with_leader(keys)
            self._start_partitions([key for key in keys if key in with_leader])
        except MembershipLost:
            return  # the driver will report it
        except LogError as error:
            if isinstance(error, Fatal):
                raise
            self._postpone(keys, error)
            return
        without_leader = [key for key in keys if key not in with_leader]
        if without_leader:
            names = ", ".join(f"{topic}/{number}" for topic, number in without_leader)
            reason = f"Kafka, group {self._group!r}: there is no leader for {names} now"
            self._postpone(without_leader, Unavailable(reason))

    def _postpone(self, keys: Sequence[TopicPartition], error: LogError) -> None:
        now, partitions = time.monotonic(), self._consumer.partitions
        for key in keys:
            is_first_try = not partitions.pending.was_tried(key)
            is_pending = partitions.pending.schedule_retry(key, now)
            if is_pending and is_first_try and partitions.owns_any:
                logger.warning("group %s: %s/%d waits: %s", self._group, *key, error)
        if not partitions.owns_any:
            self._errors.defer(error)

    def _with_leader(self, keys: Sequence[TopicPartition]) -> set[TopicPartition]:
        """Those of them that have a leader: the others' offsets could not be looked up."""
        topics = dict.fromkeys(topic for topic, _ in keys)
        return {
            (topic, number) for topic in topics for number in self._partitions_with_leader(topic)
        }

    def _committed(
        self, keys: Sequence[TopicPartition]
    ) -> Mapping[TopicPartition, Committed | None]:
        """The group's offsets. A broker answers nothing over the member's own connection while that
        waits for others to join the group again, which they do at their next heartbeats or later.
        Another connection is asked then, and where the member's own consumer would not wait for the
        end of a transaction that is needed."""
        if self._consumer.waits_for_transactions or not self.has_outputs:
            try:
                return self._consumer.read_committed(keys, OWN_TIMEOUT)
            except Unavailable:
                pass
        found = self._offsets.committed(keys)
        return {key: found.get(key) for key in keys}

    def _start_partitions(self, keys: Sequence[TopicPartition]) -> None:
        """Tell the listener of these, and fetch them.

        :raises LogError: none of them could be begun; unless it is Fatal, they can be later.
        :raises MembershipLost: this member was given up.
        """
        if not keys:
            return
        consumer = self._consumer
        committed = self._committed(keys)
        assignments = [
            Assignment(*key, next(_next_epoch), committed[key], lease=consumer.session_timeout)
            for key in keys
        ]
        consumer.add_owned(assignments)
        try:
            self._listener.assigned(assignments)
            consumer.start_fetching(assignments)
        except KafkaException as error:
            failure = consumer.translate(error, f"fetching as group {self._group!r}")
            self._errors.fail_driver(failure)
            raise failure from error
        except BaseException as error:
            consumer.remove_owned(assignments)
            if isinstance(error, Fatal) or not isinstance(error, LogError):
                self._errors.fail(error)
            raise
