"""The item of the checklist that is about process managers: somebody runs them, they could react to
everything, and their timeouts come."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from streams.cli import output
from streams.cli.dead.rendering import letter_summary
from streams.cli.dead.topics import dead_ls_arguments
from streams.cli.doctor.inspection import AppInspection, Finding, Subject
from streams.errors import LogError
from streams.inspection.counting import count_dead_letters, sum_known
from streams.inspection.letter_topics import is_of
from streams.text import escape
from streams.wire import shorten

if TYPE_CHECKING:
    from streams.eventsourcing import ProcessManager
    from streams.eventsourcing.managers.inspection import DeadLetterSource, ManagerInspector
    from streams.log.protocol import Log

FAR_BEHIND = 10_000
"""Messages that a manager may be behind before it is said to lag."""

LATE = 60.0
"""Seconds that a timeout may be overdue before it is said to be: one that is just delivered is
overdue, too."""

NEWEST = 10_000
"""Records of a partition that are looked at for timeouts."""


def check_managers(inspection: AppInspection) -> Iterator[Finding]:
    """Each process manager runs, could react to everything, and gets its timeouts."""
    for manager in inspection.managers:
        subject = Subject("managers", f"process manager {manager.name}")
        if inspection.log is None:
            yield subject.unknown(inspection.open_error, "run the app once, and ask again")
            continue
        try:
            yield from _check_manager(inspection, subject, manager, inspection.log)
        except LogError as error:
            yield subject.unknown(str(error), "ask again")


def _check_manager(
    inspection: AppInspection, subject: Subject, manager: ProcessManager[Any], log: Log
) -> Iterator[Finding]:
    from streams.eventsourcing.managers.inspection import ManagerInspector

    inspector = ManagerInspector(manager, log)
    if isinstance(inspection.info(inspector.reactions_topic), str):
        yield subject.unknown("it has not run yet", "run the app once, and ask again")
        return
    found = [
        *_check_reading(inspection, subject, inspector),
        *_check_dead(inspection, subject, inspector, log),
        *_check_timeouts(inspection, subject, inspector),
    ]
    if not found:
        yield subject.yes("no message waits unread, none is dead, no timeout is overdue")
    yield from found


def _show(inspection: AppInspection, inspector: ManagerInspector) -> str:
    name = shlex.quote(inspector.manager.name)
    return inspection.command(f"managers show {inspection.target} {name}")


def _check_reading(
    inspection: AppInspection, subject: Subject, inspector: ManagerInspector
) -> Iterator[Finding]:
    """Somebody reads its topics and its timeouts, and keeps up."""
    partitions = list(inspector.partitions())
    show = f"{_show(inspection, inspector)} says how far it is"
    for processor in inspector.manager.processors:
        group = processor.group
        own = [each for each in partitions if each.group == group]
        lag = sum_known(each.lag for each in own)
        if not lag:  # nothing waits, or the log cannot count
            continue
        many = output.plural(lag, "message")
        wait = "waits" if lag == 1 else "wait"
        if not inspector.members(group):
            topics = ", ".join(processor.topics)
            yield subject.no(
                f"{many} in {topics} {wait}, and nobody reads them in group {group}",
                f"run the app; {show}",
            )
        elif lag > FAR_BEHIND:
            yield subject.no(
                f"it is {many} behind in group {group}",
                f"run more processes, up to {output.plural(len(own), 'partition')}; {show}",
            )


def _check_dead(
    inspection: AppInspection, subject: Subject, inspector: ManagerInspector, log: Log
) -> Iterator[Finding]:
    """It could react to every message."""
    for source in inspector.dead_letters:
        count = count_dead_letters(log, source.name)
        if count:
            ls = f"dead ls {dead_ls_arguments(*source)}"
            yield subject.no(
                f"{output.plural(count, 'message')} of {source.topic} could not be reacted to"
                f"{_first_letter(log, source)}",
                f"{inspection.command(ls)} lists them; mend the code, then streams dead retry",
            )


def _first_letter(log: Log, source: DeadLetterSource) -> str:
    """The first of them, in words."""
    from streams.patterns.deadletters import DeadLetterTopic

    with closing(DeadLetterTopic(log, source.name).rows()) as rows:
        for row in rows:
            if not is_of(row, source.group, source.topic):
                continue
            found = output.call_or_report(
                output.position_text(log, row.batch, row.index),
                partial(letter_summary, log, row, waiting=True),
            )
            if found is not None:
                return f", such as {found['origin'] or found['place']}: {found['error']}"
    return ""


def _check_timeouts(
    inspection: AppInspection, subject: Subject, inspector: ManagerInspector
) -> Iterator[Finding]:
    """Timeouts that are due have come."""
    found = inspector.timeouts(NEWEST)
    before = (time.time() - LATE) * 1000
    overdue = [each for each in found.entries if each.due < before]
    if not overdue:
        return
    first = overdue[0]
    count = output.plural(len(overdue), "timeout")
    key = escape(shorten(output.printable_text(first.value.key), 60))
    late = output.age_text(time.time() - first.due / 1000)
    timeouts = inspector.manager.definition.timeouts
    runs = timeouts is not None and inspector.members(timeouts.scheduler.group)
    yield subject.no(
        f"{count} {'is' if len(overdue) == 1 else 'are'} overdue, the first for {late}: "
        f"{output.printable_text(first.value.name)} of {key!r}",
        "see the log of the processes that run it, and their clocks"
        if runs
        else f"run the app, which delivers them; {_show(inspection, inspector)} lists them",
    )
