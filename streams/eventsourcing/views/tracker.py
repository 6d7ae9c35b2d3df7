"""How far a version of a view has come: what of its sources is in its documents.

Asks the log alone, so it knows versions, too, that this process does not run. What is not there
counts as nothing folded: a topic or documents that were deleted, by a command perhaps that was
interrupted and is to be run again, and a checkpoint that somebody has damaged. Everything here
blocks.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from streams.errors import NotFound, TopicMismatch
from streams.eventsourcing.views.checkpoints import UnreadableCheckpoint, decode_checkpoint
from streams.eventsourcing.views.incarnations import Incarnations
from streams.eventsourcing.views.names import keyed_topic_name
from streams.log.documents import Checkpoint, CollectionTotals, DocumentStore
from streams.log.protocol import Log, TopicPartition
from streams.log.range_reader import is_message_free

STANDS_STILL = 0.5
"""Real seconds after which a source that does not move is looked at for messages."""


class FoldingProgress(NamedTuple):
    """How much of a version's sources is in its documents.

    :param folded: messages that are, about; None where the log cannot count them.
    :param total: messages that there are, about.
    """

    folded: int | None
    total: int | None

    @property
    def share(self) -> float | None:
        """From 0 to 1; None where it cannot be known."""
        if self.folded is None or self.total is None:
            return None
        return min(1.0, self.folded / self.total) if self.total else 1.0


class VersionTracker:
    """Tracks one version.

    :param topics: its sources.
    :param is_keyed: its events are written again by the keys of its documents.
    :param incarnations: of the log's topics; None: its own.
    """

    def __init__(
        self,
        log: Log,
        store: DocumentStore,
        collection: str,
        topics: Iterable[str],
        *,
        is_keyed: bool,
        incarnations: Incarnations | None = None,
    ) -> None:
        self.log = log
        self._incarnations = Incarnations(log) if incarnations is None else incarnations
        self.store = store
        self.collection = collection
        self.topics = tuple(topics)
        self.is_keyed = is_keyed

    @property
    def keyed_topic(self) -> str:
        """Where the events of a keyed version are written again; its first group has that name."""
        return keyed_topic_name(self.collection)

    @property
    def folded_topic(self) -> str:
        """What its documents are folded from: its source, or the keyed topic."""
        return self.keyed_topic if self.is_keyed else self.topics[0]

    def source_partitions(self) -> list[TopicPartition]:
        """The partitions of its sources, as far as they exist."""
        found: list[TopicPartition] = []
        for topic in self.topics:
            try:
                count = self.log.describe_topic(topic).partitions
            except NotFound:
                continue
            found += [(topic, partition) for partition in range(count)]
        return found

    def source_ends(self) -> dict[TopicPartition, int]:
        """Where its sources end now."""
        return {each: self.log.watermarks(*each)[1] for each in self.source_partitions()}

    def partitions(self) -> int:
        """How many partitions its documents have; 0: there are none yet."""
        try:
            return self.store.find(self.collection).partitions
        except NotFound:
            return 0

    def totals(self) -> CollectionTotals:
        """How many documents it has."""
        try:
            return self.store.totals(self.collection)
        except NotFound:
            return CollectionTotals(0, 0)

    def count_stopped(self) -> int:
        """How many of its documents stand still."""
        return self.totals().stopped

    def checkpoint(self, partition: int) -> int:
        """Up to where a partition of its documents is folded, in the topic that it is made of; 0,
        too, where they are made of a topic that is there no more."""
        found = self._stored_checkpoint(partition)
        return 0 if found is None or self._find_replaced(found) else found.position

    def _stored_checkpoint(self, partition: int) -> Checkpoint | None:
        try:
            return self.store.checkpoint(self.collection, partition)
        except (NotFound, TopicMismatch):
            return None

    def _find_replaced(self, checkpoint: Checkpoint) -> str:
        try:
            return self._incarnations.find_replaced(decode_checkpoint(checkpoint).incarnations)
        except UnreadableCheckpoint:
            return ""

    def replaced_topic(self) -> str:
        """A topic that its documents are made of and that was deleted, or made anew, since; empty:
        there is none."""
        self._incarnations.clear()
        for partition in range(self.partitions()):
            found = self._stored_checkpoint(partition)
            if found is not None and (replaced := self._find_replaced(found)):
                return replaced
        return ""

    def source_positions(
        self, partitions: int | None = None, topics: Collection[str] | None = None
    ) -> dict[TopicPartition, int]:
        """Up to where each partition of its sources is folded; of a keyed version, is written
        again by key.

        :param partitions: of its documents; None: the log is asked.
        :param topics: of a keyed version, only of these sources.
        """
        if not self.is_keyed:
            (topic,) = self.topics
            count = self.partitions() if partitions is None else partitions
            return {(topic, partition): self.checkpoint(partition) for partition in range(count)}
        found: dict[TopicPartition, int] = {}
        for topic in self.topics if topics is None else topics:
            try:
                committed = self.log.committed(self.keyed_topic, topic)
            except NotFound:
                continue
            found |= {(topic, number): each.position for number, each in committed.items()}
        return found

    def folded_bounds(self, partition: int) -> tuple[int, int] | None:
        """Where a partition of what its documents are folded from begins and ends now; None: that
        topic is not there."""
        try:
            return self.log.watermarks(self.folded_topic, partition)
        except NotFound:
            return None

    def progress(self, partitions: int | None = None) -> FoldingProgress:
        """How much of its sources is in its documents.

        :param partitions: of its documents; None: the log is asked.
        """
        count = self.partitions() if partitions is None else partitions
        positions = self.source_positions(count)
        left = total = 0
        for topic, partition in self.source_partitions():
            first, _ = self.log.watermarks(topic, partition)
            position = max(first, positions.get((topic, partition), first))
            whole = self.log.lag(topic, partition, first)
            lag = self.log.lag(topic, partition, position)
            if whole is None or lag is None:
                return FoldingProgress(None, None)
            total += whole
            left += lag
        if self.is_keyed:
            for partition in range(count):
                try:
                    behind = self.log.lag(self.keyed_topic, partition, self.checkpoint(partition))
                except NotFound:  # what is written again by key is to be written once more
                    return FoldingProgress(0, total)
                left += behind or 0
        return FoldingProgress(max(0, total - left), total)


class Coverage:
    """Whether a version has folded up to certain positions of its sources. Once it has, it always
    has.

    :param positions: by source partition: everything below is to be in the documents.
    :param partitions: of the documents, where only some matter.
    """

    def __init__(
        self,
        tracker: VersionTracker,
        positions: Mapping[TopicPartition, int],
        partitions: Iterable[int] | None = None,
    ) -> None:
        self._tracker = tracker
        self._left = {each: position for each, position in positions.items() if position > 0}
        self._partitions = partitions
        self._standing: dict[TopicPartition, tuple[int, float]] = {}
        """Where a source was when it was looked at last, and when (monotonic)."""
        self._keyed_left: dict[int, int] | None = None
        """Of a keyed version whose first stage is so far: what its second has to reach."""
        self.written: dict[TopicPartition, int] = {}
        """Of a keyed version: up to where its first stage was found to be, in the sources that
        were asked for, before the ends below were."""
        self.keyed_ends: dict[int, int] = {}
        """Of a keyed version: where the partitions of its keyed topic that matter ended then. Once
        their documents have come so far, everything below what is ``written`` is in them."""

    def _is_nothing_left(self, source: TopicPartition, position: int, goal: int) -> bool:
        """There is no message from the position to the goal, so nothing will move the position: the
        messages were deleted, or what stands there is the end of a transaction. Looked at only
        where the position stands still."""
        now = time.monotonic()
        known, since = self._standing.get(source, (-1, now))
        if known != position:
            self._standing[source] = position, now
            return False
        if now - since < STANDS_STILL:
            return False
        self._standing[source] = position, now
        return is_message_free(self._tracker.log, *source, position, goal)

    def is_reached(self) -> bool:
        """Ask the log (blocks).

        :raises LogError: it does not say.
        """
        tracker = self._tracker
        if self._left:
            if tracker.is_keyed:
                found = tracker.source_positions(topics={topic for topic, _ in self._left})
                self.written.update(found)
            else:
                found = {each: tracker.checkpoint(each[1]) for each in self._left}
            self._left = {
                each: goal
                for each, goal in self._left.items()
                if (position := found.get(each, 0)) < goal
                and not self._is_nothing_left(each, position, goal)
            }
        if self._left:
            return False
        if not tracker.is_keyed:
            return True
        if self._keyed_left is None:
            some = self._partitions
            wanted = range(tracker.partitions()) if some is None else some
            bounds = {each: tracker.folded_bounds(each) for each in wanted}
            ends = {each: found[1] for each, found in bounds.items() if found is not None}
            if len(ends) < len(bounds):
                return False  # its documents are about to be deleted, to be made anew
            self.keyed_ends = self._keyed_left = ends
        self._keyed_left = {
            partition: end
            for partition, end in self._keyed_left.items()
            if tracker.checkpoint(partition) < end
        }
        return not self._keyed_left
