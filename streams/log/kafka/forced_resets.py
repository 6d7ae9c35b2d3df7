"""Moving a group that runs: where the order is left, and how its members find it.

Kafka lets nobody set the positions of a group that has members, and no client can send members
away. So the new places are written as the positions of a second group, the *reset group*
(``__streams.move.{group}``). Each running member asks every :data:`POLL_INTERVAL` seconds whether
anything lies there for its topics: a move of a topic always has an entry for partition 0, so that
is one small question however many partitions there are. The owner of a partition found there gives
the partition up as lost, commits the new place itself, marks it as taken, and starts over. Whoever
ordered the move waits until all its places are marked, and clears the reset group.

A place that is marked has a progress that no log accepts (it is not ASCII), so the two cannot be
mistaken. Members that are not ours never look, and the order is withdrawn.

Asked is through a consumer that never joins, in a thread of its own: polling must not wait for the
answer, and the AdminClient, which would not wait either, aborts the whole process when the
coordinator dies while it is asked (librdkafka's issue 4605).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from queue import SimpleQueue

from streams.errors import GroupNotEmpty, StreamsError
from streams.log.kafka.groups import INTERNAL_PREFIX, Groups
from streams.log.kafka.offsets import OffsetReader
from streams.log.protocol import Committed, TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")

POLL_INTERVAL = 2.0
"""Seconds between two looks at the reset group."""

RESET_TIMEOUT = 20.0
"""Seconds until an order that nobody takes is withdrawn."""

RESET_PREFIX = INTERNAL_PREFIX + "move."

APPLIED = "\N{CHECK MARK}"


def reset_group_name(group: str) -> str:
    """The name of a group's reset group."""
    return RESET_PREFIX + group


def force_reset(groups: Groups, group: str, topic: str, offsets: Mapping[int, Committed]) -> None:
    """Have the running members of a group start over from these places; returns once they do.

    :raises GroupNotEmpty: they do not look for it; nothing was moved that is not marked.
    """
    reset_group = reset_group_name(group)
    groups.alter_offsets(reset_group, topic, {0: Committed(0, APPLIED), **offsets})
    deadline = time.monotonic() + RESET_TIMEOUT
    try:
        while True:
            requested = groups.committed(reset_group, [(topic, partition) for partition in offsets])
            not_applied = [
                key for key, committed in requested.items() if committed.progress != APPLIED
            ]
            if not not_applied:
                return
            if time.monotonic() > deadline:
                raise GroupNotEmpty(
                    f"group {group!r}: its members did not give up "
                    f"{', '.join(f'{topic}/{partition}' for topic, partition in not_applied)} "
                    "within "
                    f"{RESET_TIMEOUT:g} s: stop them first (those that do not run this toolkit "
                    "never "
                    "give theirs up; static members that were stopped count until their sessions "
                    "have ended: then try again)"
                )
            time.sleep(0.25)
    finally:
        try:
            groups.delete_group(reset_group)
        except StreamsError as error:
            logger.warning("group %s: its desk was not cleared: %s", group, error)


class ResetRequests:
    """A member's view of its group's reset group. Looking never waits."""

    def __init__(self, groups: Groups, group: str) -> None:
        self._groups = groups
        self._reset_group = reset_group_name(group)
        self._pending: Mapping[TopicPartition, Committed] = {}
        self._needs_partitions = False
        """The thread wants to know which partitions to ask for."""
        self._partitions: SimpleQueue[tuple[TopicPartition, ...] | None] = SimpleQueue()
        """What it is told; None: the member leaves."""
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._poll_requests, name=f"streams-kafka-desk-{group}", daemon=True
        )
        self._thread.start()

    def take_pending(
        self, partitions: Collection[TopicPartition]
    ) -> Mapping[TopicPartition, Committed]:
        """The places that wait for the owner of ``partitions``, as far as is known."""
        if self._needs_partitions:
            self._needs_partitions = False
            self._partitions.put(tuple(partitions))
        pending = self._pending
        if not pending:
            return pending
        self._pending = {}
        return {key: committed for key, committed in pending.items() if key in partitions}

    def mark_applied(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Mark places as taken.

        :raises Unavailable: they are not; they will be found again.
        """
        topics: dict[str, dict[int, Committed]] = {}
        for (topic, partition), committed in offsets.items():
            topics.setdefault(topic, {})[partition] = Committed(committed.position, APPLIED)
        for topic, applied in topics.items():
            self._groups.alter_offsets(self._reset_group, topic, applied)

    def close(self) -> None:
        """Stop asking."""
        self._closed.set()
        self._partitions.put(None)

    def _poll_requests(self) -> None:
        offset_reader: OffsetReader | None = None
        while not self._closed.wait(POLL_INTERVAL):
            self._needs_partitions = True
            partitions = self._partitions.get()
            if not partitions:
                continue
            try:
                if offset_reader is None:
                    offset_reader = self._groups.offset_reader(self._reset_group)
                self._pending = _read_pending(offset_reader, partitions)
            except StreamsError as error:
                # Whoever may not ask, or cannot just now, is not moved.
                logger.debug("group %s: its desk: %s", self._reset_group, error)
        if offset_reader is not None:
            offset_reader.close()


def _read_pending(
    offset_reader: OffsetReader, partitions: Collection[TopicPartition]
) -> Mapping[TopicPartition, Committed]:
    if not offset_reader.committed(
        [(topic, 0) for topic in sorted({topic for topic, _ in partitions})]
    ):
        return {}
    requested = offset_reader.committed(list(partitions))
    return {key: committed for key, committed in requested.items() if committed.progress != APPLIED}
