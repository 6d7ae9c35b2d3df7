"""A checkpoint held against the log: whether the log has what a view says it has folded."""

from __future__ import annotations

from collections.abc import Mapping

from streams.errors import LogError
from streams.eventsourcing.views.checkpoints import UnreadableCheckpoint, decode_checkpoint
from streams.eventsourcing.views.incarnations import Incarnations
from streams.log.documents import Checkpoint
from streams.log.range_reader import read_first

REMEDY = "streams views rebuild makes the documents again from what the log has"


class CheckpointBeyondLog(LogError):
    """The log does not have what a view has folded: it has lost what it had acknowledged, or is
    another one."""


def check_incarnations(incarnations: Incarnations, where: str, before: Mapping[str, str]) -> None:
    """See that documents are made of the topics that there are now (blocks).

    :param incarnations: of the topics as they are now.
    :param before: of those that the documents are made of.
    :raises CheckpointBeyondLog: they are not.
    :raises LogError: it cannot be known.
    """
    replaced = incarnations.find_replaced(before)
    if replaced:
        raise CheckpointBeyondLog(
            f"{where}: its documents are made of a topic {replaced!r} that was deleted; a topic "
            f"recreated since has another history; {REMEDY}"
        )


def check_checkpoint(
    incarnations: Incarnations, collection: str, topic: str, partition: int, checkpoint: Checkpoint
) -> None:
    """Hold a checkpoint of a collection against the partition that it is made of, and the topics
    of the view (blocks).

    :param incarnations: of the topics as they are now.
    :raises CheckpointBeyondLog: the log has not what was folded.
    :raises LogError: it cannot be read.
    """
    log, where = incarnations.log, f"{collection}: {topic}/{partition}"
    try:
        last, _, before = decode_checkpoint(checkpoint)
    except UnreadableCheckpoint as error:
        raise CheckpointBeyondLog(f"{where}: its checkpoint: {error}; {REMEDY}") from error
    check_incarnations(incarnations, where, before)
    first, end = log.watermarks(topic, partition)
    if checkpoint.position > end and checkpoint.position > log.log_end_offset(topic, partition):
        raise CheckpointBeyondLog(
            f"{where}: its documents were folded up to {log.format_offset(checkpoint.position)}, "
            f"and the log ends at {log.format_offset(end)}: it has lost messages that it had "
            f"acknowledged, or the topic was recreated; {REMEDY}"
        )
    if last is None or last[0] < first:
        return  # it was deleted since, as its retention says
    batch = read_first(log, topic, partition, last[0], min(end, last[0] + 1))
    if batch is None or batch.offsets[0] != last[0] or batch.id(0) != last[1]:
        raise CheckpointBeyondLog(
            f"{where}: the message at {log.format_offset(last[0])}, which was folded last, is "
            "gone or is another one: the log has lost messages that it had acknowledged; "
            f"{REMEDY}"
        )
