"""Acting on selected dead letters: count them, ask for confirmation, act, report the number."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from streams.cli import output
from streams.cli.command_errors import UsageError
from streams.cli.options import confirm
from streams.inspection.letter_topics import is_of
from streams.inspection.letters import DeadLetterFilter

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

    def matches(self, row: LogRow) -> bool:
        """Whether a dead letter is of the group and topic, and passes the filter."""
        return is_of(row, self.group, self.topic) and self.letter_filter(row)


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
    if request.which:
        if request.limit is not None:
            raise UsageError("--limit is for all letters, or those that an option picks out")
        selection = dead_letters.select_named(request.which, request.matches)
    else:
        selection = dead_letters.select(request.matches, request.limit)
    number = output.plural(selection.count, "letter")
    deed = f"{action.done_text}, {action.destination}"
    if request.dry_run:
        print_dry_run(request, selection.count, action.field, f"{number} would be {deed}")
        return
    if selection.count and not request.which:
        confirm(f"{number} of {dead_letters.name}: to be {deed}?", yes=request.yes)
    done = handle(selection)
    print_handled(request.group, request.topic, done, action, json=request.json)


def print_dry_run(request: LetterRequest, count: int, field: str, text: str) -> None:
    """Say how many are meant, with which nothing was done."""
    group, topic, counts = request.group, request.topic, {field: 0, "matching": count}
    print_counts(group, topic, counts, f"{text}; nothing is changed", json=request.json)


def print_handled(group: str, topic: str, done: int, action: LetterAction, *, json: bool) -> None:
    """Say with how many dead letters it was done."""
    text = f"{output.plural(done, 'letter')} {action.done_text}, {action.destination}"
    print_counts(group, topic, {action.field: done}, text, json=json)


def print_decided(group: str, topic: str, count: int, field: str, *, json: bool) -> None:
    """Say for how many closed keys it was decided."""
    keys = output.plural(count, "key")
    text = f"{keys} {field}; whoever owns the partition follows, once it runs"
    print_counts(group, topic, {field: count}, text, json=json)


def print_counts(group: str, topic: str, counts: dict[str, int], text: str, *, json: bool) -> None:
    """Counts of a group and topic as JSON, or what they mean as a note."""
    if json:
        output.print_json({"group": group, "topic": topic, **counts})
    else:
        output.print_note(text)
