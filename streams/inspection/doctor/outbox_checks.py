"""The item of the checklist that is about outboxes: somebody relays them, and everything could be
published."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from streams.errors import LogError, NotFound
from streams.inspection import texts
from streams.inspection.doctor.app_inspection import AppInspection, Finding, Subject
from streams.text import printable_text

if TYPE_CHECKING:
    from streams.outbox import Outbox

OLD = 60.0
"""Seconds after which a row should have been relayed."""

ABSENT = 60.0
"""Seconds after which a relay that said nothing is none."""


def check_outboxes(inspection: AppInspection) -> Iterator[Finding]:
    """Each outbox is relayed, and nothing in it waits for somebody."""
    for outbox in inspection.outboxes:
        subject = Subject("outbox", f"outbox {outbox.name}")
        if outbox.relayed_by == "debezium":
            yield subject.unknown(
                "a Debezium connector relays it, which cannot be seen from here",
                "watch the connector: its status, and how far it is behind",
            )
            continue
        try:
            yield from _check_outbox(inspection, subject, outbox)
        except NotFound as error:
            yield subject.no(str(error), "run the app once, or create them in your migrations")
        except LogError as error:
            yield subject.unknown(str(error), "ask again where the database can be reached")


def _check_outbox(inspection: AppInspection, subject: Subject, outbox: Outbox) -> Iterator[Finding]:
    from streams.outbox.inspection import inspect_outbox

    found = asyncio.run(inspect_outbox(outbox, 1))
    backlog, relays = found.backlog, found.relays
    ls = inspection.command(f"outbox ls {inspection.target}")
    findings: list[Finding] = []
    if relays.seconds is None or relays.seconds > ABSENT:
        rows = texts.plural(backlog.depth, "row")
        waits = "waits" if backlog.depth == 1 else "wait"
        relay = inspection.command(f"outbox relay {inspection.target}")
        if outbox.relayed_by == "app":
            relay = inspection.command(f"run {inspection.target}") + ", or " + relay
        findings.append(subject.no(f"no process relays it, and {rows} {waits}", relay))
    elif backlog.oldest is not None and backlog.oldest > OLD:
        findings.append(
            subject.no(
                f"the first of {texts.plural(backlog.depth, 'row')} to be relayed was written "
                f"{texts.age_text(backlog.oldest)} ago",
                f"see the log of the processes that relay; {ls} says how many there are",
            )
        )
    if backlog.failed:
        error = ""
        if found.rows:
            row = found.rows[0]
            error = printable_text(inspection.texts.error(str(row.topic), row.error or ""))
        behind = f", and {backlog.waiting} wait behind" if backlog.waiting else ""
        findings.append(
            subject.no(
                f"{texts.plural(backlog.failed, 'row')} could not be published{behind}: {error}",
                f"{ls} lists them; fix the cause, then streams outbox retry",
            )
        )
    if backlog.undeclared:
        rows = texts.plural(backlog.undeclared, "row")
        waits = "waits" if backlog.undeclared == 1 else "wait"
        names = ", ".join(printable_text(str(each.topic)) for each in found.undeclared)
        findings.append(
            subject.no(
                f"{rows} {waits} for a relay whose app declares the topic: {names}",
                "run a relay of such an app, as of the version that wrote them; to give the rows "
                "up, delete them",
            )
        )
    yield from findings or [subject.yes("it is relayed, and no row is old or has failed")]
