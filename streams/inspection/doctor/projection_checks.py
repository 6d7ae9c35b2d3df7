"""The item of the checklist that is about SQL projections: their versions come on, one serves, and
none is left over."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from streams.errors import ConfigError
from streams.inspection import texts
from streams.inspection.doctor.app_inspection import AppInspection, Finding, Subject
from streams.inspection.doctor.view_checks import FAR_BEHIND
from streams.text import describe_error

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.projections.operations import ProjectionState, VersionState
    from streams.projections.projection import Projection


def check_projections(inspection: AppInspection) -> Iterator[Finding]:
    """Each version that is declared comes on; those that nobody needs any more are named."""
    log = inspection.log
    for name, declared in inspection.projections.items():
        subject = Subject("projections", f"projection {name}")
        if log is None:
            yield subject.unknown(inspection.open_error, "run the app once, and ask again")
            continue
        try:
            state = _look(inspection, log, name, declared)
        except ConfigError as error:
            yield subject.no(str(error), "do what it says")
        except Exception as error:  # the log's, or that of any driver of a database
            yield subject.unknown(
                describe_error(error), "ask again where the log and its database can be reached"
            )
        else:
            yield from _check_projection(inspection, subject, state)


def _look(
    inspection: AppInspection, log: Log, name: str, declared: list[Projection]
) -> ProjectionState:
    """What its database and the log say."""
    from streams.projections import operations

    if inspection.app.runtime.loop is None:
        return asyncio.run(_look_alone(log, name, declared))
    # The app runs in this very process, and the connections belong to its loop.
    (found,) = inspection.app.wait(operations.inspect_projections(log, declared, name))
    return found


async def _look_alone(log: Log, name: str, declared: list[Projection]) -> ProjectionState:
    from streams.projections import operations

    database, transactions = declared[0].database, declared[0].transactions
    if database.asynchronous:
        await database.enter_async()
    else:
        database.enter()
    try:
        (found,) = await operations.inspect_projections(log, declared, name)
        return found
    finally:
        transactions.close()
        if database.asynchronous:
            await database.leave_async()
        else:
            database.leave()


def _check_projection(
    inspection: AppInspection, subject: Subject, state: ProjectionState
) -> Iterator[Finding]:
    for version in state.versions:
        found = _problem(inspection, version)
        of = Subject(subject.item, f"{subject.name} version {version.version}")
        if found is not None:
            yield of.no(*found)
        elif not version.declared:
            yield of.yes(f"{version.state}: other processes declare it")
        elif state.serving is None and not version.processes:
            yield of.unknown("no version serves yet, and no process runs it", "run the app")
        else:
            yield of.yes(version.state)


def _problem(inspection: AppInspection, version: VersionState) -> tuple[str, str] | None:
    """What is wrong with a version, and what to do about it."""
    words = f"{inspection.target} {shlex.quote(version.name)}"
    if not version.declared and not version.processes:
        if version.serves:
            return (
                "it serves, but no process declares or runs it: its tables are not updated",
                "declare it until a newer one serves, or promote that",
            )
        drop = f"projections drop {words} --version {version.version}"
        return "no process runs it, and it does not serve", inspection.command(drop)
    handled, total = version.progress
    if handled is None or total is None or total - handled <= FAR_BEHIND:
        return None
    behind = f"it is {texts.plural(total - handled, 'message')} behind"
    show = inspection.command(f"projections show {words}")
    if not version.processes:
        return f"{behind}, and no process runs it", f"run the app; {show} says how far it is"
    if version.serves:
        partitions = texts.plural(len(version.partitions), "partition")
        return (
            f"{behind}, and readers with it",
            f"run more processes, up to {partitions}; {show} says how far each is",
        )
    return None
