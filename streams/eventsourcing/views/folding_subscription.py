"""The subscription of a view: folds what it polls into documents.

A partition begins at the checkpoint of its documents, wherever the group stands: the group's
position is only for those who look at it. Whoever owns a partition claims its documents first, so
that a former owner that does not know of its loss writes nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from streams.errors import LogError, StreamsError, TopicMismatch
from streams.eventsourcing.views.checkpoint_check import (
    REMEDY,
    CheckpointBeyondLog,
    check_checkpoint,
)
from streams.eventsourcing.views.folding import PartitionFolder
from streams.eventsourcing.views.incarnations import Incarnations
from streams.eventsourcing.views.inline_subscription import (
    InlinePartition,
    InlineSubscription,
    PartitionCounts,
)
from streams.eventsourcing.views.keyed_topic import FloorKeeper, check_above_floor
from streams.eventsourcing.views.retry_requests import RetryRequests
from streams.log.documents import DocumentStore, DocumentWriter
from streams.log.protocol import Assignment, Committed, Log
from streams.log.range_reader import at_intervals, read_batches
from streams.text import get_logger
from streams.wire import shorten

logger = get_logger("streams.views")


class FoldingSubscription(InlineSubscription[PartitionFolder]):
    """See the module.

    :param store: of the documents.
    :param incarnations: of the log's topics.
    :param new_folder: makes the folder of a partition, of its number, its writer, the incarnations,
        and what it calls while it reads the log.
    :param retries: documents to be folded on.
    :param on_folded: called in the polling thread after something was written.
    :param keyed_topic: that it folds from, and whose floor it moves; empty: it folds a source.
    """

    def __init__(
        self,
        log: Log,
        store: DocumentStore,
        incarnations: Incarnations,
        collection: str,
        counts: dict[tuple[str, int], PartitionCounts],
        new_folder: Callable[
            [int, DocumentWriter, Incarnations, Callable[[], None]], PartitionFolder
        ],
        retries: RetryRequests,
        on_folded: Callable[[], None],
        keyed_topic: str = "",
    ) -> None:
        super().__init__(log, collection, counts, incarnations)
        self._store = store
        self._new_folder = new_folder
        self._retries = retries
        self._after = on_folded
        self._floors = FloorKeeper(log, store, collection, keyed_topic) if keyed_topic else None

    @override
    def _after_handling(self) -> None:
        self._after()

    @override
    def _begin_partition(self, assignment: Assignment) -> PartitionFolder:
        try:
            writer = self._store.claim(self._name, assignment.partition)
        except TopicMismatch as error:  # what stands there was not written by a writer
            raise CheckpointBeyondLog(
                f"{self._name}: {assignment.topic}/{assignment.partition}: its checkpoint: "
                f"{error}; {REMEDY}"
            ) from error
        try:
            if self._floors is not None:
                check_above_floor(
                    self._log, self._name, *assignment.topic_partition, writer.checkpoint
                )
            if writer.checkpoint is not None:
                check_checkpoint(
                    self._incarnations, self._name, *assignment.topic_partition, writer.checkpoint
                )
            folder = self._new_folder(
                assignment.partition, writer, self._incarnations, self.keep_alive
            )
        except BaseException:
            writer.close()
            raise
        # The group may be elsewhere: what was written and not committed, or reset.
        assignment.committed = None if writer.checkpoint is None else Committed(folder.position)
        assignment.stored_beyond_end = None
        return folder

    # -- documents that stand still

    @override
    def _between_polls(self) -> None:
        self._retries.check_running()
        if self._retries.take_restart() and self._partitions:
            logger.info("%s: starting over, because its documents were deleted", self._name)
            self._restart_partitions(list(self._partitions))
        for partition in list(self._partitions.values()):
            requests = self._retries.take_requests(partition.assignment.partition)
            for at, request in enumerate(requests):
                try:
                    goes_on = self._retry_document(partition, request.key)
                except LogError as error:
                    self._retries.put_back(requests[at:])
                    self._give_up(partition, error)
                    break
                except StreamsError as error:
                    logger.error(
                        "%s: document %r cannot be folded on: %s",
                        self._name, shorten(request.key), error,
                    )  # fmt: skip
                    goes_on = False
                if goes_on:
                    counts = self._counts[partition.assignment.topic_partition]
                    counts.stopped.discard(request.key)
                    if self._floors is not None:
                        self._floors.request_move(partition.assignment.partition)
                self._retries.finish_request(request, goes_on)
        if self._floors is not None and self._partitions:
            self._floors.move_floors(
                {
                    each.assignment.partition: each.handler.position
                    for each in self._partitions.values()
                }
            )

    def _retry_document(self, partition: InlinePartition[PartitionFolder], key: bytes) -> bool:
        start = partition.handler.stopped_at(key)
        if start is None:
            return True
        topic, number = partition.assignment.topic_partition
        first, _ = self._log.watermarks(topic, number)
        if first > start:
            logger.error(
                "%s: document %r cannot be folded on: its messages were deleted meanwhile",
                self._name, shorten(key),
            )  # fmt: skip
            return False
        end = partition.handler.position
        stay_alive = at_intervals(self.keep_alive)
        rest = read_batches(self._log, topic, number, start, end)
        return partition.handler.retry_document(key, rest, stay_alive)
