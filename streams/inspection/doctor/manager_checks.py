"""The item of the checklist that is about process managers: somebody runs them, they could react to
everything, and their timeouts come."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from streams.errors import LogError
from streams.inspection import texts
from streams.inspection.counting import count_dead_letters, sum_known
from streams.inspection.dead_arguments import dead_ls_arguments
from streams.inspection.doctor.app_inspection import (
    AppInspection,
    Finding,
    Subject,
)
from streams.text import escape, printable_text
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


def _format_manager(inspection: AppInspection, inspector: ManagerInspector) -> str:
    name = shlex.quote(inspector.manager.name)
    return inspection.command(f"managers show {inspection.target} {name}")


def _check_reading(
    inspection: AppInspection, subject: Subject, inspector: ManagerInspector
) -> Iterator[Finding]:
    """Somebody reads its topics and its timeouts, and keeps up."""
    partitions = list(inspector.partitions())
    show = f"{_format_manager(inspection, inspector)} says how far it is"
    for processor in inspector.manager.processors:
        group = processor.group
        own = [each for each in partitions if each.group == group]
        lag = sum_known(each.lag for each in own)
        if not lag:  # nothing waits, or the log cannot count
            continue
        many = texts.plural(lag, "message")
        wait = "waits" if lag == 1 else "wait"
        if not inspector.members(group):
            topics = ", ".join(processor.topics)
            yield subject.no(
                f"{many} in {topics} {wait}, and no process reads them in group {group}",
                f"run the app; {show}",
            )
        elif lag > FAR_BEHIND:
            yield subject.no(
                f"it is {many} behind in group {group}",
                f"run more processes, up to {texts.plural(len(own), 'partition')}; {show}",
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
                f"{texts.plural(count, 'message')} of {source.topic} could not be reacted to"
                f"{_first_letter(inspection, log, source)}",
                f"{inspection.command(ls)} lists them; fix the code, then streams dead retry",
            )


def _first_letter(inspection: AppInspection, log: Log, source: DeadLetterSource) -> str:
    """The first of them, in words."""
    from streams.derived_records import (
        ERROR_OFFSET,
        ERROR_PARTITION,
        ERROR_TOPIC,
        ORIGIN,
        error_of,
        header_text,
    )
    from streams.patterns.deadletters import DeadLetterTopic, source_of

    with closing(DeadLetterTopic(log, source.name).rows()) as rows:
        for row in rows:
            headers = row.headers
            topic, group = source_of(headers)
            if topic not in (None, source.topic) or group not in (None, source.group):
                continue
            parts = (ERROR_TOPIC, ERROR_PARTITION, ERROR_OFFSET)
            place = "/".join(header_text(headers, name) or "?" for name in parts)
            origin = printable_text(header_text(headers, ORIGIN) or place)
            error = inspection.texts.error(source.topic, error_of(headers, unknown="?"))
            return f", such as {origin}: {printable_text(error)}"
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
    count = texts.plural(len(overdue), "timeout")
    key_bytes = first.value.key.encode("utf-8", "surrogateescape")
    shown = inspection.texts.key(inspector.reactions_topic, key_bytes)
    key = escape(shorten(printable_text(shown), 60))
    late = texts.age_text(time.time() - first.due / 1000)
    timeouts = inspector.manager.definition.timeouts
    runs = timeouts is not None and inspector.members(timeouts.scheduler.group)
    yield subject.no(
        f"{count} {'is' if len(overdue) == 1 else 'are'} overdue, the first for {late}: "
        f"{printable_text(first.value.name)} of {key!r}",
        "see the log of the processes that run it, and their clocks"
        if runs
        else "run the app, which delivers them; "
        f"{_format_manager(inspection, inspector)} lists them",
    )
