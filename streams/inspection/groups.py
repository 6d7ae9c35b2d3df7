"""Groups: their position and lag in each partition, and the message that holds them up."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from streams.errors import NotFound
from streams.inspection.counting import sum_known
from streams.log.range_reader import read_first
from streams.processing import settled_ahead
from streams.replay.result import count_messages

if TYPE_CHECKING:
    from streams.log.protocol import GroupInfo, Log
    from streams.message import Batch


class GroupPosition(NamedTuple):
    """The position and lag of a group in one partition.

    :param position: the committed position; None: there is none.
    :param first: the first offset of the partition.
    :param end: the end of the partition.
    :param lag: messages from the position on; None: the log cannot count them.
    :param ahead: messages of these that are settled already; None: likewise.
    :param owner: the member that owns the partition; None: none does.
    :param oldest: the oldest unsettled message, in a batch by itself; None: there is none.
    """

    topic: str
    partition: int
    position: int | None
    first: int
    end: int
    lag: int | None
    ahead: int | None
    owner: str | None
    oldest: Batch | None


def total_lag(log: Log, info: GroupInfo) -> int | None:
    """The total lag of a group: its unsettled messages in all topics where it has positions and
    that still exist; None: the log cannot count them. Blocks."""
    lags: list[int | None] = []
    for (topic, partition), committed in info.positions.items():
        with suppress(NotFound):  # the topic was deleted, its positions were not
            lags.append(log.lag(topic, partition, committed.position))
    return sum_known(lags)


def group_positions(log: Log, info: GroupInfo) -> list[GroupPosition]:
    """The position and lag of a group in every partition where it has a position or a member;
    blocks.

    :raises NotFound: a topic is gone.
    """
    owners = {at: member.id for member in info.members for at in member.partitions}
    everywhere = sorted({*info.positions, *owners})
    return [group_position(log, info, *at, owners.get(at)) for at in everywhere]


def group_position(
    log: Log, info: GroupInfo, topic: str, partition: int, owner: str | None
) -> GroupPosition:
    """The position and lag of a group in one partition; blocks."""
    held = info.positions.get((topic, partition))
    first, end = log.watermarks(topic, partition)
    position = first if held is None else held.position
    ranges = settled_ahead(held)
    ahead = [count_messages(log, topic, partition, low, high) for low, high in ranges]
    return GroupPosition(
        topic=topic,
        partition=partition,
        position=None if held is None else held.position,
        first=first,
        end=end,
        lag=log.lag(topic, partition, position),
        ahead=sum_known(ahead),
        owner=owner,
        oldest=read_first(log, topic, partition, max(first, position), end),
    )
