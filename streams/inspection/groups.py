"""Groups: how far they are in each partition, and which message holds them up."""

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
    """Where a group is in one partition.

    :param position: what it has committed; None: nothing.
    :param first: where the partition begins.
    :param end: where the partition ends.
    :param lag: messages from the position on; None: the log cannot count them.
    :param ahead: of these, those that are settled already; None: the same.
    :param owner: the member that has the partition; None: none.
    :param oldest: the oldest message that is not settled, in a batch of its own; None: there is
        none.
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
    """The messages that a group has not settled, of all topics where it has positions and that are
    still there; None: the log cannot count them. Blocks."""
    lags: list[int | None] = []
    for (topic, partition), committed in info.positions.items():
        with suppress(NotFound):  # the topic is gone, its positions are not
            lags.append(log.lag(topic, partition, committed.position))
    return sum_known(lags)


def group_positions(log: Log, info: GroupInfo) -> list[GroupPosition]:
    """Where a group is, in every partition where it has a position or a member; blocks.

    :raises NotFound: a topic is gone.
    """
    owners = {at: member.id for member in info.members for at in member.partitions}
    everywhere = sorted({*info.positions, *owners})
    return [group_position(log, info, *at, owners.get(at)) for at in everywhere]


def group_position(
    log: Log, info: GroupInfo, topic: str, partition: int, owner: str | None
) -> GroupPosition:
    """Where a group is in one partition; blocks."""
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
