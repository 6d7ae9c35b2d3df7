"""Reset: move a group to another place in a topic, from which its processors go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.engine.progress import decode, encode
from streams.errors import InvalidValue, NotFound
from streams.log.protocol import Committed, Log
from streams.reading import When, one_partition, resolve
from streams.replay.result import count
from streams.topic import Source

if TYPE_CHECKING:
    from streams.app import Streams


class Move(NamedTuple):
    """What a reset does to a group in one partition.

    :param before: the position until now, None where the group has none.
    :param after: the position from then on.
    :param again: messages that will be handled again, None where that cannot be known.
    :param skipped: messages that will not be handled, None where that cannot be known.
    """

    partition: int
    before: int | None
    after: int
    again: int | None
    skipped: int | None


async def reset(
    app: Streams,
    group: str,
    topic: str | Source[Any],
    to: When | Mapping[int, When],
    *,
    partition: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> list[Move]:
    """Move a group in a topic. Its dedup window begins empty, so what comes again is handled.

    :param to: where to; as for reading, but a negative int goes back by so many messages from
        where the group *is*. A mapping gives partitions places of their own.
    :param partition: only this one; all if None.
    :param force: even while the group has running members, which then start over from there.
    :param dry_run: change nothing, say what would be.
    :raises NotFound: there is no such group, topic or partition.
    :raises GroupLive: the group has running members, and ``force`` is not set.
    :raises InvalidValue: ``to`` means nothing here.
    """
    name = topic if isinstance(topic, str) else topic.name

    def work() -> list[Move]:
        moves = plan(app.log, group, name, to, partition=partition, now=app.clock.time())
        if not dry_run:
            carry_out(app.log, group, name, moves, force=force)
        return moves

    return await asyncio.to_thread(work)


def plan(
    log: Log,
    group: str,
    topic: str,
    to: When | Mapping[int, When],
    *,
    partition: int | None = None,
    now: float,
) -> list[Move]:
    """What a reset would do.

    :raises NotFound: there is no such group, topic or partition.
    :raises InvalidValue: ``to`` means nothing here.
    """
    partitions = log.topic(topic).partitions
    positions = log.group(group).positions
    places: Mapping[int, When]
    if isinstance(to, Mapping):
        places = to
    else:
        partition = one_partition(topic, {"to": to}, partition, partitions)
        places = dict.fromkeys(range(partitions) if partition is None else (partition,), to)
    moves: list[Move] = []
    for number, when in places.items():
        if not 0 <= number < partitions:
            raise NotFound(f"{topic} has partitions 0 to {partitions - 1}, not {number}")
        one_partition(topic, {"to": when}, number, partitions)
        held = positions.get((topic, number))
        moves.append(_move(log, topic, number, held, _target(log, topic, number, held, when, now)))
    return moves


def _target(
    log: Log, topic: str, partition: int, held: Committed | None, when: When, now: float
) -> int:
    first, end = log.bounds(topic, partition)
    if isinstance(when, int) and not isinstance(when, bool) and when < 0:
        if held is None:
            raise InvalidValue(
                f"to={when}: the group has no position in {topic}/{partition} to go back from"
            )
        return max(first, log.back(topic, partition, held.position, -when))
    found = resolve(log, topic, partition, when, option="to", now=now)
    if found > end:
        raise InvalidValue(
            f"to={log.show(found)}: {topic}/{partition} ends at {log.show(end)}, "
            "nothing stands there yet"
        )
    return max(first, found)


def _move(log: Log, topic: str, partition: int, held: Committed | None, after: int) -> Move:
    if held is None:
        return Move(partition, None, after, 0, 0)
    before = held.position
    settled = settled_ahead(held)
    again = count(log, topic, partition, after, before)
    skipped = count(log, topic, partition, before, after)
    for low, high in settled:
        # Settled already, out of order: forgotten behind the new position, not lost before it.
        behind = count(log, topic, partition, max(low, after), high)
        ahead = count(log, topic, partition, low, min(high, after))
        again = None if again is None or behind is None else again + behind
        skipped = None if skipped is None or ahead is None else skipped - ahead
    return Move(partition, before, after, again, skipped)


def settled_ahead(held: Committed) -> list[tuple[int, int]]:
    """Ranges above a group's position whose messages are settled; none for a foreign commit."""
    if not held.progress:
        return []
    try:
        return decode(held.position, held.progress)[1]
    except ValueError:
        return []


def carry_out(log: Log, group: str, topic: str, moves: list[Move], *, force: bool = False) -> None:
    """Move the group: its floor is its new position, so no older message counts as seen.

    :raises GroupLive: the group has running members, and ``force`` is not set.
    """
    places = {
        move.partition: Committed(move.after, encode(move.after, move.after, ()).progress)
        for move in moves
    }
    log.move(group, topic, places, force=force)
