"""Finding, opening and naming topics of dead letters for the commands of ``streams dead``."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from streams.cli import output
from streams.cli.command_errors import CommandFailed
from streams.config import DeadLetters
from streams.errors import InvalidValue, NotFound
from streams.inspection.dead_arguments import dead_ls_arguments as dead_ls_arguments
from streams.inspection.letter_topics import (
    MAX_PARTITIONS,
    FoundTopic,
    find_dead_letter_topics,
    sample_sources,
)
from streams.text import close_match, suggestion

if TYPE_CHECKING:
    from streams.inspection.closed_keys import KeyCounts, ParkedSource
    from streams.log.protocol import Log
    from streams.patterns.deadletters import DeadLetterTopic

COUNT_SECONDS = 10.0
"""Seconds of real time for which closed keys are counted."""


def other_topics_of(topics: Iterable[FoundTopic], group: str, topic: str, name: str) -> list[str]:
    """The topics other than this one that hold letters of a group and topic."""
    return [each.name for each in topics if (topic, group) in each.sources and each.name != name]


def suggest_arguments(topics: Iterable[FoundTopic], group: str, topic: str) -> str | None:
    """The correct ``GROUP TOPIC``, if there are letters of a similar one."""
    known = {
        f"{group} {topic}": dead_ls_arguments(group, topic, each.name)
        for each in topics
        for topic, group in each.sources
    }
    name = close_match(f"{group} {topic}", known)
    return None if name is None else known[name]


def open_dead_letters(
    log: Log, group: str | None, topic: str | None, name: str | None
) -> DeadLetterTopic:
    """The dead letters of a group and topic, or those in the topic of this name.

    :raises CommandFailed: there is no such topic; the error names the topic of their letters.
    """
    from streams.patterns.deadletters import DeadLetterTopic

    default_name = "" if group is None or topic is None else DeadLetters().name(topic, group)
    try:
        return DeadLetterTopic(log, name or default_name)
    except NotFound as error:
        found = find_dead_letter_topics(log, output.call_or_report).topics
        known = [each.name for each in found]
        hint = suggestion(name or default_name, known) if known else "the log has none"
        if group is not None and topic is not None:
            if others := other_topics_of(found, group, topic, ""):
                hint = _use_name_hint(others, group, topic)
            elif name is None and (suggested := suggest_arguments(found, group, topic)) is not None:
                hint = f"did you mean {suggested}?"
        problem = f"there is no dead letter topic {name or default_name!r}"
        raise CommandFailed(f"{problem}; {hint}") from error


def open_to_resolve(log: Log, group: str, topic: str, name: str | None) -> DeadLetterTopic:
    """The same, to put letters back or set them aside. The resolved ones are committed as the
    position of the group with the topic's name, so that group must not be a reader.

    :raises CommandFailed: there is no such topic, it is of another kind, or the group of its name
        reads a topic.
    """
    found = open_dead_letters(log, group, topic, name)
    if not found.name.endswith(".dead"):
        sources, looked_at = sample_sources(log, log.describe_topic(found.name), MAX_PARTITIONS)
        if looked_at and not sources:
            raise CommandFailed(
                f"{found.name} holds no dead letters: none of its newest messages names its topic "
                "and group; streams dead ls lists the topics that do"
            )
    try:
        found.require_no_reader()
    except InvalidValue as error:
        raise CommandFailed(str(error)) from error
    return found


def print_other_topics(log: Log, group: str, topic: str, name: str) -> None:
    """Called when a topic has nothing of a group and topic: print which topic has their letters, or
    whose letters are in this one."""
    found = find_dead_letter_topics(log, output.call_or_report).topics
    here = next((each.sources for each in found if each.name == name), ())
    if others := other_topics_of(found, group, topic, name):
        output.print_note(_use_name_hint(others, group, topic))
    elif here and (topic, group) not in here:
        whose = ", ".join(f"{group} {topic}" for topic, group in here)
        output.print_note(f"{name} holds dead letters of GROUP TOPIC: {whose}")


def find_closed_keys(
    log: Log, group: str | None = None, topic: str | None = None
) -> list[tuple[ParkedSource, KeyCounts]]:
    """The sources of closed keys, with their numbers; blocks for about :data:`COUNT_SECONDS`.

    :param group: only those of this group and topic.
    """
    from streams.inspection.closed_keys import (
        ParkedSource,
        count_closed_keys,
        key_topic,
        parked_sources,
    )

    if group is not None and topic is not None:
        sources = [ParkedSource(key_topic(group, topic), topic, group)]
    else:
        groups = output.call_or_report("groups", log.list_groups) or ()
        sources = parked_sources(log.list_topics(), groups)
    deadline = time.monotonic() + COUNT_SECONDS
    found: list[tuple[ParkedSource, KeyCounts]] = []
    for source in sources:
        left = max(0.1, deadline - time.monotonic())
        count = partial(count_closed_keys, log, source.name, left)
        counts = output.call_or_report(source.name, count)
        if counts is not None and (counts.keys or not counts.is_complete):
            found.append((source, counts))
    return found


def print_closed_keys(source: ParkedSource, counts: KeyCounts) -> None:
    """Print that keys are closed, and the command that lists them."""
    more = "" if counts.is_complete else "at least "
    closed = output.plural(counts.keys, "closed key")
    behind = output.plural(counts.parked, "message")
    output.print_note(
        f"{source.name}: {more}{closed}, {behind} behind; streams dead keys {source.group} "
        f"{source.topic} lists them"
    )


def _use_name_hint(names: list[str], group: str, topic: str) -> str:
    where = f"dead letters of group {group} and topic {topic} are in {', '.join(names)}"
    return f"{where}: add --name {names[0]}"
