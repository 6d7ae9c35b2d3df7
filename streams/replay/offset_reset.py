"""Reset: move a group to another position in a topic, from which its processors go on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.decoding import Source
from streams.engine.progress import MAX_GENERATION, decode_generation, encode_progress
from streams.errors import ConfigError, GroupNotEmpty, InvalidValue, NotFound
from streams.log.protocol import Committed, Log
from streams.processing import settled_ahead
from streams.replay.fixed_groups import check_may_move
from streams.replay.result import count_messages
from streams.topic_reader import OffsetSpec, resolve_offset, resolve_partition

if TYPE_CHECKING:
    from streams.app import Streams


class Move(NamedTuple):
    """The effect of a reset on a group in one partition.

    :param before: the position before the reset; None: the group has none.
    :param after: the position after it.
    :param again: messages that will be handled again; None: this cannot be known.
    :param skipped: messages that will not be handled; None: this cannot be known.
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
    to: OffsetSpec | Mapping[int, OffsetSpec],
    *,
    partition: int | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> list[Move]:
    """Move a group in a topic. Its dedup window begins empty, so redelivered messages are handled.

    :param to: the new position; as for reading, but a negative int goes back by this many messages
        from the group's *current* position. A mapping gives each partition its own position.
    :param partition: only this one; all if None.
    :param force: even while the group has running members, which then start over from there.
    :param dry_run: change nothing, and return the moves that would be made.
    :raises NotFound: there is no such group, topic or partition.
    :raises GroupNotEmpty: the group has running members, and ``force`` is not set.
    :raises ConfigError: a mapping and ``partition`` are given.
    :raises InvalidValue: ``to`` is no position in this topic; or the group belongs to a view or to
        the toolkit and must not be moved. The text says what to do instead.
    """
    name = topic if isinstance(topic, str) else topic.name

    def plan_and_apply() -> list[Move]:
        moves = plan_reset(app.log, group, name, to, partition=partition, now=app.clock.time())
        if dry_run:
            return moves
        try:
            apply_reset(app.log, group, name, moves, now=app.clock.time(), force=force)
        except GroupNotEmpty as error:
            raise error if force else GroupNotEmpty(f"{error}, or give force=True") from error
        return moves

    return await asyncio.to_thread(plan_and_apply)


def plan_reset(
    log: Log,
    group: str,
    topic: str,
    to: OffsetSpec | Mapping[int, OffsetSpec],
    *,
    partition: int | None = None,
    now: float,
) -> list[Move]:
    """The moves that a reset would make.

    :raises NotFound: there is no such group, topic or partition.
    :raises InvalidValue: ``to`` is no position in this topic; or the group belongs to the toolkit
        and must not be moved.
    """
    check_may_move(log, group, topic)
    partitions = log.describe_topic(topic).partitions
    positions = log.describe_group(group).positions
    targets: Mapping[int, OffsetSpec]
    if isinstance(to, Mapping):
        if partition is not None:
            raise ConfigError("to names its partitions already: leave partition out")
        targets = to
    else:
        partition = resolve_partition(topic, {"to": to}, partition, partitions)
        targets = dict.fromkeys(range(partitions) if partition is None else (partition,), to)
    moves: list[Move] = []
    for number, when in targets.items():
        if not 0 <= number < partitions:
            raise NotFound(f"{topic} has partitions 0 to {partitions - 1}, not {number}")
        resolve_partition(topic, {"to": when}, number, partitions)
        committed = positions.get((topic, number))
        after = _target_offset(log, topic, number, committed, when, now)
        moves.append(_plan_moves(log, topic, number, committed, after))
    return moves


def _target_offset(
    log: Log, topic: str, partition: int, committed: Committed | None, when: OffsetSpec, now: float
) -> int:
    first, end = log.watermarks(topic, partition)
    if isinstance(when, int) and not isinstance(when, bool) and when < 0:
        if committed is None:
            raise InvalidValue(
                f"to={when}: the group has no position in {topic}/{partition} to go back from"
            )
        return max(first, log.offset_before(topic, partition, committed.position, -when))
    found = resolve_offset(log, topic, partition, when, option="to", now=now)
    if found > end:
        raise InvalidValue(
            f"to={log.format_offset(found)}: {topic}/{partition} ends at {log.format_offset(end)}, "
            "nothing stands there yet"
        )
    return max(first, found)


def _plan_moves(
    log: Log, topic: str, partition: int, committed: Committed | None, after: int
) -> Move:
    if committed is None:
        return Move(partition, None, after, 0, 0)
    before = committed.position
    settled = settled_ahead(committed)
    again = count_messages(log, topic, partition, after, before)
    skipped = count_messages(log, topic, partition, before, after)
    for low, high in settled:
        # Messages that are settled already, out of order: after the new position they are
        # forgotten, before it they are not lost.
        behind = count_messages(log, topic, partition, max(low, after), high)
        ahead = count_messages(log, topic, partition, low, min(high, after))
        again = None if again is None or behind is None else again + behind
        skipped = None if skipped is None or ahead is None else skipped - ahead
    return Move(partition, before, after, again, skipped)


def apply_reset(
    log: Log, group: str, topic: str, moves: list[Move], *, now: float, force: bool = False
) -> None:
    """Move the group. Its floor is its new position, so no older message counts as seen, and its
    generation is a new one, which marks messages as handled again on purpose.

    :raises GroupNotEmpty: the group has running members, and ``force`` is not set.
    """
    before = log.committed(group, topic)
    positions = {
        move.partition: Committed(
            move.after,
            encode_progress(
                move.after,
                move.after,
                (),
                generation=next_generation(before.get(move.partition), now),
            ).progress,
        )
        for move in moves
    }
    log.reset_offsets(group, topic, positions, force=force)


def next_generation(committed: Committed | None, now: float) -> int:
    """The generation of a reset: the time in milliseconds, and larger than the one before. (A group
    that is deleted starts again at 0, so a counter could give a number twice.)

    :param committed: the position and progress that the group has stored so far.
    """
    before = 0 if committed is None else decode_generation(committed.progress)
    found = max(int(now * 1000), before + 1)
    return found if 0 < found <= MAX_GENERATION else 1  # another program wrote the previous one
