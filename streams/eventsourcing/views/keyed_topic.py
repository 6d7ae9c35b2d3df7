"""The keyed topic of a version, and its floor, below which nothing of it is needed any more.

The second stage needs what it has not folded yet, and of a document that stands still the event at
which it does and all behind it. So the floor of a partition is the last message that was folded, or
the first at which a document of it stands still. It is the position of a group that no member ever
runs in. A log that trims keeps what is above it; where the retention looks at no group (Kafka),
whoever folds has what is below it deleted.

* The floor is made of what the log says is folded and stands still, never of what is in memory, so
  one that is moved by a former owner of the partition is not above what the new one needs.
* The newest :data:`KEPT` messages of a partition stay in any case, so a floor is moved only where
  there are more. From then on the topic is *trimmed*, which stands beside the floor: documents that
  are made anew need its sources, not it.
* Documents that are behind the floor cannot be folded on: events of theirs may be gone. That is an
  error, and never documents without these events.
"""

from __future__ import annotations

import time

from streams.errors import LogError, NotFound
from streams.eventsourcing.views.checkpoint_check import REMEDY, CheckpointBeyondLog
from streams.eventsourcing.views.checkpoints import UnreadableCheckpoint, decode_checkpoint
from streams.eventsourcing.views.failures import decode_failure
from streams.log.documents import Checkpoint, DocumentStore
from streams.log.floor import ensure_topic_with_floor, floor_group
from streams.log.protocol import Committed, Log, RecordDeleter, Retention, TopicInfo
from streams.text import get_logger

logger = get_logger("streams.views")

KEPT = 10_000
"""The newest messages of a partition that stay, whatever is folded."""

FLOOR_INTERVAL = 5.0
"""Real seconds between two moves of the floors, at least."""

MAX_STOPPED = 1_000
"""Documents of a partition that stand still which are looked at for its floor; where there are more
it stays where it is."""

TRIMMED = "trimmed"
"""Stands beside a floor that was moved: messages below it may be gone."""


def ensure_keyed_topic(log: Log, topic: str, partitions: int) -> TopicInfo:
    """Create a keyed topic, or find it; blocks."""
    group, retention = floor_group(topic), Retention(messages=KEPT)
    return ensure_topic_with_floor(log, topic, partitions, group, retention, compacted=False)


def trimmed_below(log: Log, topic: str) -> dict[int, int]:
    """Of the partitions of a keyed topic that were trimmed, below which position (blocks).

    :raises LogError: it cannot be read.
    """
    try:
        floors = log.committed(floor_group(topic), topic)
    except NotFound:  # the topic was deleted
        return {}
    return {
        partition: floor.position
        for partition, floor in floors.items()
        if floor.progress == TRIMMED
    }


def check_above_floor(
    log: Log, collection: str, topic: str, partition: int, checkpoint: Checkpoint | None
) -> None:
    """See that a partition's documents can be folded on from their checkpoint (blocks).

    :raises CheckpointBeyondLog: events behind it may be gone.
    :raises LogError: the log cannot be read.
    """
    floor = trimmed_below(log, topic).get(partition, 0)
    position = 0 if checkpoint is None else checkpoint.position
    if position < floor:
        had = "there are none" if checkpoint is None else "they are behind that"
        raise CheckpointBeyondLog(
            f"{collection}: {topic}/{partition}: what was folded below {log.format_offset(floor)} "
            f"was deleted there, and of its documents {had}: the log has lost documents that it "
            f"had acknowledged; {REMEDY}"
        )


class FloorKeeper:
    """Moves the floor of a keyed topic as documents come on. One thread.

    :param collection: of the documents.
    :param topic: the keyed topic.
    """

    def __init__(self, log: Log, store: DocumentStore, collection: str, topic: str) -> None:
        self._log = log
        self._store = store
        self._collection = collection
        self._topic = topic
        self._due = 0.0
        self._seen: dict[int, int] = {}
        """Up to where partitions were folded when they were looked at last."""
        self._is_refused = False

    def request_move(self, partition: int) -> None:
        """A document of a partition was folded on, so its floor may move."""
        self._seen.pop(partition, None)

    def move_floors(self, positions: dict[int, int]) -> None:
        """Move floors if it is time; never fails, as there will be another attempt.

        :param positions: up to where the partitions are folded that are folded here.
        """
        now = time.monotonic()
        if now < self._due:
            return
        try:
            for partition, position in positions.items():
                if self._seen.get(partition) != position:
                    self._move_floor(partition)
                    self._seen[partition] = position
        except LogError as error:
            logger.info("%s: the floor stays where it is: %s", self._topic, error)
        self._due = time.monotonic() + FLOOR_INTERVAL

    def _move_floor(self, partition: int) -> None:
        log, topic, group = self._log, self._topic, floor_group(self._topic)
        first, end = log.watermarks(topic, partition)
        kept_from = log.offset_before(topic, partition, end, KEPT)
        if kept_from <= first or log.offset_before(topic, partition, kept_from, 1) >= kept_from:
            return  # there are hardly more than what stays
        floor = self._needed_from(partition)
        before = log.committed(group, topic).get(partition)
        if floor is None or before is None or floor <= before.position:
            return
        log.reset_offsets(group, topic, {partition: Committed(floor, TRIMMED)}, force=True)
        if isinstance(log, RecordDeleter):
            self._delete_before(log, partition, min(floor, kept_from))

    def _needed_from(self, partition: int) -> int | None:
        """From where on messages are needed; None: that cannot be said now."""
        try:
            checkpoint = self._store.checkpoint(self._collection, partition)
            stopped = self._store.stopped(self._collection, partition, None, MAX_STOPPED + 1)
        except NotFound:
            return None
        if checkpoint is None or len(stopped) > MAX_STOPPED:
            return None
        try:
            last = decode_checkpoint(checkpoint).last
        except UnreadableCheckpoint:
            return None
        needed = [checkpoint.position] if last is None else [checkpoint.position, last[0]]
        needed += [decode_failure(each.document.failure).place[0] for each in stopped]
        return min(needed)

    def _delete_before(self, log: RecordDeleter, partition: int, position: int) -> None:
        try:
            log.delete_before(self._topic, partition, position)
            self._is_refused = False
        except LogError as error:
            level = logger.info if self._is_refused else logger.warning
            level(
                "%s/%d: what is folded is not deleted, and the topic grows: %s",
                self._topic, partition, error,
            )  # fmt: skip
            self._is_refused = True
