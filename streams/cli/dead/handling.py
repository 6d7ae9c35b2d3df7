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
    """The action of a command on letters, in words."""

    field: str
    """The name of the count in JSON."""
    done_text: str
    destination: str


class LetterRequest(NamedTuple):
    """The group and topic, the selected letters, and the options of the command."""

    group: str
    topic: str
    which: list[str] | None
    """Their positions or message IDs; None: all that pass the filter."""
    letter_filter: DeadLetterFilter
    limit: int | None
    dry_run: bool
    yes: bool
    json: bool

    def matches(self, row: LogRow) -> bool:
        """Whether a dead letter belongs to the group and topic, and passes the filter."""
        return is_of(row, self.group, self.topic) and self.letter_filter(row)


def handle_letters(
    dead_letters: DeadLetterTopic,
    request: LetterRequest,
    action: LetterAction,
    handle: Callable[[Selection], int],
) -> None:
    """Act on the selected letters. Unless each is named, they are counted first, and the user is
    asked.

    :param handle: acts, and returns the number of letters.
    """
    if request.which:
        if request.limit is not None:
            raise UsageError("--limit cannot be combined with WHICH")
        selection = dead_letters.select_named(request.which, request.matches)
    else:
        selection = dead_letters.select(request.matches, request.limit)
    number = output.plural(selection.count, "dead letter")
    deed = f"{action.done_text}, {action.destination}"
    if request.dry_run:
        print_dry_run(request, selection.count, action.field, f"{number} would be {deed}")
        return
    if selection.count and not request.which:
        confirm(f"{number} of {dead_letters.name} will be {deed}. Continue?", yes=request.yes)
    done = handle(selection)
    print_handled(request.group, request.topic, done, action, json=request.json)


def print_dry_run(request: LetterRequest, count: int, field: str, text: str) -> None:
    """Print how many letters are selected, of which none was changed."""
    group, topic, counts = request.group, request.topic, {field: 0, "matching": count}
    print_counts(group, topic, counts, f"{text}; nothing was changed", json=request.json)


def print_handled(group: str, topic: str, done: int, action: LetterAction, *, json: bool) -> None:
    """Print how many dead letters were handled."""
    text = f"{output.plural(done, 'dead letter')} {action.done_text}, {action.destination}"
    print_counts(group, topic, {action.field: done}, text, json=json)


def print_decided(group: str, topic: str, count: int, field: str, *, json: bool) -> None:
    """Print for how many closed keys a command was written."""
    keys = output.plural(count, "key")
    text = f"{keys} {field}; the partition's owner acts on it once it runs"
    print_counts(group, topic, {field: count}, text, json=json)


def print_counts(group: str, topic: str, counts: dict[str, int], text: str, *, json: bool) -> None:
    """Print the counts of a group and topic as JSON, or a note about them."""
    if json:
        output.print_json({"group": group, "topic": topic, **counts})
    else:
        output.print_note(text)
