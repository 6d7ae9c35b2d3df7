"""``streams reset``: moves a group, so that its processors go on from another position."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from streams.cli import output
from streams.cli.command_errors import CommandFailed
from streams.cli.offset_arguments import parse_offsets, require_partition
from streams.cli.options import Json, Partition, Url, open_url
from streams.inspection.counting import sum_known

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.replay.offset_reset import Move


def reset(
    group: Annotated[str, Argument(metavar="GROUP", help="Group to move.")],
    topic: Annotated[str, Argument(metavar="TOPIC", help="Topic in which to move it.")],
    to: Annotated[
        str,
        Option(
            "--to",
            metavar="OFFSET",
            help="earliest, latest, an offset, a position (orders/0/17), a time "
            "(2013-01-05T10:00Z), that long ago (2h30m), or -N: N messages back from the "
            "group's position, in each partition.",
        ),
    ],
    partition: Partition = None,
    dry_run: Annotated[
        bool, Option("--dry-run", "-n", help="Show what would change, without changing it.")
    ] = False,
    force: Annotated[
        bool, Option("--force", help="Move it even while it runs; its members restart from there.")
    ] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Move a group to another offset in a topic.

    Stop its processors first: a running group is moved only with --force.
    Messages that it handles again count as new: its dedup window starts empty.

    [bold]Examples[/bold]

      [cyan]streams reset billing orders --to earliest --dry-run[/cyan]
      [cyan]streams reset billing orders --to 2013-01-05T10:00Z[/cyan]
      [cyan]streams reset billing orders --to -500[/cyan]        handle the last 500 again
      [cyan]streams reset billing orders --to 1041 --partition 3[/cyan]
      [cyan]streams reset billing orders --to latest[/cyan]      skip what is waiting
    """
    from streams.replay.offset_reset import plan_reset

    offsets = parse_offsets(to, "--to", topic)
    with open_url(url, "ro" if dry_run else "rw") as log:
        require_partition(offsets, "--to", partition, log.describe_topic(topic).partitions)
        moves = plan_reset(log, group, topic, offsets, partition=partition, now=time.time())
        running_members = len(log.describe_group(group, ()).members)
        if not dry_run:
            _apply(log, group, topic, moves, force=force)
        rows = [_move_json(log, move) for move in moves]
    if json:
        result = {"group": group, "topic": topic, "moved": not dry_run, "members": running_members}
        output.print_json({**result, "partitions": rows})
        return
    output.print_rows(rows, ["partition", "from", "to", "again", "skipped"], json=False)
    if dry_run:
        output.print_note(f"dry run, nothing was changed: {_summary(moves)}")
        if running_members:
            members = output.plural(running_members, "member")
            output.print_note(f"{group} has {members} running: stop them first, or add --force")
    else:
        output.print_note(f"{group} was moved in {topic}: {_summary(moves)}")


def _apply(log: Log, group: str, topic: str, moves: list[Move], *, force: bool) -> None:
    """Move the group.

    :raises CommandFailed: it runs, and ``force`` is not given.
    """
    from streams.errors import GroupNotEmpty
    from streams.replay.offset_reset import apply_reset

    try:
        apply_reset(log, group, topic, moves, now=time.time(), force=force)
    except GroupNotEmpty as error:
        raise CommandFailed(f"{error}, or add --force") from error


def _summary(moves: Sequence[Move]) -> str:
    """How many messages are handled again, and how many are skipped."""
    again, skipped = (
        output.plural(sum_known(counts), "message")
        for counts in ([move.again for move in moves], [move.skipped for move in moves])
    )
    return f"to be handled again: {again}, to be skipped: {skipped}"


def _move_json(log: Log, move: Move) -> dict[str, Any]:
    return {
        "partition": move.partition,
        "from": None if move.before is None else output.offset_json(log, move.before),
        "to": output.offset_json(log, move.after),
        "again": move.again,
        "skipped": move.skipped,
    }
