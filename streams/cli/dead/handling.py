"""What the commands do with the letters that are meant: count them, ask, do it, say how many."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from streams.cli import output
from streams.cli.command_errors import UsageError
from streams.cli.dead.filter import DeadLetterFilter
from streams.cli.dead.topics import is_of
from streams.cli.options import confirm

if TYPE_CHECKING:
    from streams.log.range_reader import LogRow
    from streams.patterns.deadletters import DeadLetterTopic, Selection


class LetterAction(NamedTuple):
    """What a command does with letters, in words."""

    field: str
    """In JSON."""
    done_text: str
    destination: str


class LetterRequest(NamedTuple):
    """Whose letters are meant, which of them, and how the command is to go about it."""

    group: str
    topic: str
    which: list[str] | None
    """Their positions or message IDs; None: all that the filter lets through."""
    letter_filter: DeadLetterFilter
    limit: int | None
    dry_run: bool
    yes: bool
    json: bool


def handle_letters(
    dead_letters: DeadLetterTopic,
    request: LetterRequest,
    action: LetterAction,
    handle: Callable[[Selection], int],
) -> None:
    """Do it with the letters that are meant. Unless each is named, they are counted first, and
    somebody is asked.

    :param handle: does it, and says with how many.
    """

    def matches(row: LogRow) -> bool:
        return is_of(row, request.group, request.topic) and request.letter_filter(row)

    if request.which:
        if request.limit is not None:
            raise UsageError("--limit is for all letters, or those that an option picks out")
        selection = dead_letters.select_named(request.which, matches)
    else:
        selection = dead_letters.select(matches, request.limit)
    number = output.count_text(selection.count, "letter")
    if request.dry_run:
        print_dry_run(
            request,
            selection.count,
            action.field,
            f"{number} would be {action.done_text}, {action.destination}",
        )
        return
    if selection.count and not request.which:
        confirm(
            f"{number} of {dead_letters.name}: to be {action.done_text}, {action.destination}?",
            yes=request.yes,
        )
    done = handle(selection)
    print_handled(request.group, request.topic, done, action, json=request.json)


def print_dry_run(request: LetterRequest, count: int, field: str, text: str) -> None:
    """Say how many are meant, with which nothing was done."""
    if request.json:
        output.print_json(
            {"group": request.group, "topic": request.topic, field: 0, "matching": count}
        )
    else:
        output.print_note(f"{text}; nothing is changed")


def print_handled(group: str, topic: str, done: int, action: LetterAction, *, json: bool) -> None:
    """Say with how many letters it was done."""
    if json:
        output.print_json({"group": group, "topic": topic, action.field: done})
    else:
        output.print_note(
            f"{output.count_text(done, 'letter')} {action.done_text}, {action.destination}"
        )
