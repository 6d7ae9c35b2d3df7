"""The item of the checklist that is about views: their documents come on, as this code would have
them, and nothing is left over."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from streams.errors import ConfigError, LogError
from streams.inspection import texts
from streams.inspection.doctor.app_inspection import AppInspection, Finding, Subject
from streams.wire import shorten

if TYPE_CHECKING:
    from streams.eventsourcing import View
    from streams.eventsourcing.views.inspection import (
        InspectedVersion,
        KnownView,
        VersionInspector,
    )
    from streams.log.protocol import Log

FAR_BEHIND = 10_000
"""Events that a version may be behind before it is said to lag."""


def check_views(inspection: AppInspection) -> Iterator[Finding]:
    """Each version that is declared comes on; those that nobody needs any more are named."""
    from streams.eventsourcing.views.inspection import read_view

    log = inspection.log
    names: dict[str, KnownView] = {}
    for view in inspection.views:
        subject = Subject("views", f"view {view.name} version {view.version}")
        if log is None:
            yield subject.unknown(inspection.open_error, "run the app once, and ask again")
            continue
        try:
            if view.name not in names:
                names[view.name] = read_view(log, view.name)
            yield from _check_version(inspection, subject, view, names[view.name], log)
        except LogError as error:
            yield subject.unknown(str(error), "ask again")
    if log is not None:
        for name, known in names.items():
            yield from _check_left_over(inspection, name, known, log)


def _check_version(
    inspection: AppInspection, subject: Subject, view: View[Any], all_known: KnownView, log: Log
) -> Iterator[Finding]:
    from streams.eventsourcing.views.inspection import VersionInspector

    known = all_known.find_version(view.version)
    if known is None:
        yield subject.unknown("it has not been built yet", "run the app once, and ask again")
        return
    try:
        view.declared.check_declared(known)
    except ConfigError as error:
        yield subject.no(str(error), "the app does not start with this code: do what it says")
        return
    inspector = VersionInspector(log, view.name, all_known, known)
    inspected = inspector.inspect()
    found = [
        *_check_checkpoints(inspection, subject, view, inspector),
        *_check_stopped(inspection, subject, view, inspector),
        *_check_waiting(inspection, subject, view, log),
        *_check_lag(inspection, subject, view, inspected),
    ]
    if not any(each.verdict == "no" for each in found):
        documents = texts.plural(inspected.totals.documents, "document")
        yield subject.yes(f"{inspected.state}: {documents}, none of which is stopped")
    yield from found


def _command(inspection: AppInspection, words: str, view: str, version: int) -> str:
    return inspection.command(f"views {words} {shlex.quote(view)} --version {version}")


def _check_checkpoints(
    inspection: AppInspection, subject: Subject, view: View[Any], inspector: VersionInspector
) -> Iterator[Finding]:
    """The log has what was folded."""
    for each in inspector.partitions():
        if each.problem:
            command = _command(inspection, "rebuild", view.name, view.version)
            yield subject.no(each.problem, f"find out why the log lost it; then {command}")
            return


def _check_stopped(
    inspection: AppInspection, subject: Subject, view: View[Any], inspector: VersionInspector
) -> Iterator[Finding]:
    """No document stands still."""
    first = next(inspector.stopped_documents(), None)
    if first is None:
        return
    count = inspector.tracker.count_stopped()
    stopped = f"{texts.plural(count, 'document')} {'is' if count == 1 else 'are'} stopped"
    topic = inspector.tracker.folded_topic
    key = shorten(inspection.texts.key(topic, first.key), 60)
    reason = inspection.texts.error(topic, first.reason)
    command = _command(inspection, "stopped", view.name, view.version)
    yield subject.no(
        f"{stopped}, such as {key!r} at {first.position}: {reason}",
        f"{command} lists them; fix the function, then streams views retry {view.name} KEY",
    )


def _check_waiting(
    inspection: AppInspection, subject: Subject, view: View[Any], log: Log
) -> Iterator[Finding]:
    """No partition waits at an event, with this code."""
    from streams.eventsourcing.views.inspection import find_waiting

    waiting = list(find_waiting(log, view.declared))
    if waiting:
        position, raised = waiting[0]
        reason = inspection.texts.error(position.partition("/")[0], raised)
        more = f" (and {len(waiting) - 1} more partitions)" if len(waiting) > 1 else ""
        yield subject.no(
            f"with this code it waits at {position}{more}: {reason}",
            "run newer code, or add an upcast of the bytes, or a key= that knows such events",
        )


def _check_lag(
    inspection: AppInspection, subject: Subject, view: View[Any], found: InspectedVersion
) -> Iterator[Finding]:
    """It keeps up with its events."""
    show = inspection.command(f"views show {shlex.quote(view.name)}")
    if found.state == "clearing":
        rebuild = _command(inspection, "rebuild", view.name, view.version)
        yield subject.no("a rebuild of it was interrupted: nothing serves from it", rebuild)
        return
    folded, total = found.progress
    if folded is None or total is None:
        return
    behind = total - folded
    if behind <= FAR_BEHIND:
        return
    if not found.members:
        yield subject.no(
            f"it is {behind:,} events behind, and no process runs it",
            f"run the app; {show} says how far it is",
        )
    elif not found.known.is_building:
        yield subject.no(
            f"it is {behind:,} of {total:,} events behind",
            f"run more processes, up to {texts.plural(found.partitions, 'partition')}; {show} "
            "says how far each is",
        )


def _check_left_over(
    inspection: AppInspection, name: str, known: KnownView, log: Log
) -> Iterator[Finding]:
    """Every version is run, or read from."""
    from streams.eventsourcing.views.inspection import VersionInspector

    declared = {each.version for each in inspection.views if each.name == name}
    for version in known.versions:
        if version.version in declared or version.version == known.promoted:
            continue
        inspector = VersionInspector(log, name, known, version)
        if inspector.members():
            continue
        subject = Subject("views", f"view {name} version {version.version}")
        documents = texts.plural(inspector.tracker.totals().documents, "document")
        yield subject.no(
            f"no process runs it or serves from it; it keeps {documents}",
            _command(inspection, "drop", name, version.version),
        )
