"""Outboxes: their waiting rows and the age of these; rows that could not be published, and retrying
them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from starlette.responses import Response

from streams.errors import ConfigError, InvalidValue, LogError, NotFound, StreamsError
from streams.outbox import Outbox
from streams.outbox.inspection import (
    HeldRow,
    InspectedOutbox,
    InspectedRow,
    InvalidRow,
    find_rows,
    headers_of,
    inspect_outbox,
    state_name,
)
from streams.outbox.inspection import retry_rows as retry_rows
from streams.web.action_results import ActionDone, Confirmation
from streams.web.documents import pretty
from streams.web.page import Action, Page, Screen
from streams.web.problem_board import Problem
from streams.web.redaction import HIDDEN, Shown
from streams.web.translations import mark

if TYPE_CHECKING:
    from streams.app import Streams

T = TypeVar("T")

FRESH = 2.0
"""Seconds of real time for which rows are considered fresh."""

MAX_ROWS = 50
"""The most rows that are shown, the first ones."""

OLD = 60.0
"""Seconds after which a row should have been relayed, and after which a silent relay is not
counted."""

STATES = {
    "ready": mark("to be relayed"),
    "failed": mark("failed"),
    "waiting": mark("waits behind"),
    "undeclared": mark("topic not declared"),
}
"""The states of a row."""


def has_outboxes(app: Streams) -> bool:
    """Whether the app declares outboxes."""
    return bool(app.outboxes)


class OutboxSummary(NamedTuple):
    """An outbox.

    :param found: None: it cannot be read, and ``error`` says why.
    """

    name: str
    relayed_by: str
    found: InspectedOutbox | None
    error: str
    rows: list[OutboxMessageRow]


class OutboxMessageRow(NamedTuple):
    """A row of an outbox."""

    row: HeldRow
    state: str
    id: Shown
    key: Shown
    error: Shown
    url: str


def _outbox_of(page: Page) -> Outbox:
    """The outbox that an address or a form names (``outbox=``)."""
    found = page.app.outboxes.get(page.fields.text("outbox"))
    if not isinstance(found, Outbox):
        raise NotFound(page._("The app declares no such outbox."))
    return found


def _run(page: Page, outbox: Outbox, asked: Coroutine[Any, Any, T]) -> T:
    """Ask the outbox's database (blocks).

    :raises InvalidValue: it cannot be reached, for which the log is not to blame.
    """
    try:
        with _waiting(page, outbox):
            return asyncio.run(asked)
    except NotFound:
        raise
    except LogError as error:
        raise InvalidValue(str(error)) from error


def _inspect(page: Page, outbox: Outbox, *, every: bool) -> InspectedOutbox | str:
    """The outbox's rows, or why they are unknown; read at most every few seconds."""

    def look() -> InspectedOutbox | str:
        try:
            return asyncio.run(inspect_outbox(outbox, MAX_ROWS, all_states=every))
        except (StreamsError, ConfigError) as error:
            return str(error)

    with _waiting(page, outbox):
        return page.dashboard.shared(("outbox", outbox.name, every), FRESH, look)


def _waiting(page: Page, outbox: Outbox) -> AbstractContextManager[None]:
    what = page._("The database of the outbox %(name)s", name=outbox.name)
    return page.dashboard.source.waiting_for(what)


def list_outboxes(page: Page) -> Response:
    """The outboxes of the app, each with the rows that failed, or all."""
    every = page.fields.flag("all")
    rows: list[OutboxSummary] = []
    for outbox in page.app.outboxes.values():
        if not isinstance(outbox, Outbox):
            continue
        found = _inspect(page, outbox, every=every)
        if isinstance(found, str):
            rows.append(OutboxSummary(outbox.name, outbox.relayed_by, None, found, []))
            continue
        shown = [_row(page, outbox, row) for row in found.rows]
        rows.append(OutboxSummary(outbox.name, outbox.relayed_by, found, "", shown))
    return page.render(
        "outboxes.html",
        title=page._("Outbox"),
        rows=rows,
        every=every,
        states=STATES,
        old=OLD,
        most=MAX_ROWS,
    )


def _row(page: Page, outbox: Outbox, row: HeldRow) -> OutboxMessageRow:
    return OutboxMessageRow(
        row,
        state_name(row.state),
        page.payloads.id(str(row.topic), str(row.id), _key_bytes(row)),
        page.payloads.key(str(row.topic), _key_bytes(row)),
        page.payloads.error(str(row.topic), row.error),
        page.url("/outbox/row", {"outbox": outbox.name, "row": row.sequence}),
    )


def _key_bytes(row: HeldRow) -> bytes | None:
    return None if row.keytype == "none" else str(row.key).encode("utf-8", "backslashreplace")


def show_row(page: Page) -> Response:
    """One row: the message that it would be published as, and why it was not."""
    outbox = _outbox_of(page)
    found = _find(page, outbox, str(page.fields.number("row", 0, low=1, high=1 << 62)))
    row, topic = found.row, str(found.row.topic)
    payload = None if found.payload is None else bytes(found.payload)
    value = page.payloads.value(topic, payload)
    headers, unread = _headers(page, topic, found)
    return page.render(
        "outbox_row.html",
        title=page._("Row %(number)s of %(name)s", number=row.sequence, name=outbox.name),
        outbox=outbox.name,
        row=_row(page, outbox, row),
        states=STATES,
        problem=page.payloads.error(topic, found.problem or None),
        value=value,
        value_text=pretty(value),
        headers=headers,
        unread=unread,
    )


def _headers(
    page: Page, topic: str, found: InspectedRow
) -> tuple[list[tuple[str, Shown]], Shown | None]:
    """A row's headers; if they cannot be read, the raw text of the table: its hidden parts cannot
    be told apart, so all of it is hidden if anything may be."""
    try:
        return page.payloads.headers(topic, headers_of(found), _key_bytes(found.row)), None
    except InvalidRow:
        if not page.payloads.shows_as_is:
            return [], HIDDEN
        return [], Shown(str(found.headers).encode("utf-8", "backslashreplace"))


def _find(page: Page, outbox: Outbox, sequence: str) -> InspectedRow:
    for each in _run(page, outbox, find_rows(outbox, sequence)):
        if str(each.row.sequence) == sequence:
            return each
    raise NotFound(page._("There is no such row; it may have been published."))


def retry(page: Page) -> ActionDone | Confirmation:
    """Retry a failed row, or all of them."""
    outbox = _outbox_of(page)
    back = page.url("/outbox"), page._("Outbox")
    row = page.fields.optional_number("row", high=1 << 62)
    count = 1 if row is not None else _run(page, outbox, inspect_outbox(outbox, 1)).backlog.failed
    if not count:
        raise InvalidValue(page._("No row has failed."))
    if not page.confirmed(count):
        return Confirmation(
            title=page.plural(
                "Try %(number)s row of %(name)s again?",
                "Try %(number)s rows of %(name)s again?",
                count,
                name=outbox.name,
            ),
            count=count,
            button=page._("Try again"),
            back=back,
            facts=(
                page._("The rows of the same key that wait behind it follow, in their order."),
                page._("The relays publish them: one must run."),
            ),
        )
    tried = _run(page, outbox, retry_rows(outbox, None if row is None else [str(row)]))
    return ActionDone(
        page.plural(
            "%(number)s row of %(name)s will be tried again.",
            "%(number)s rows of %(name)s will be tried again.",
            tried,
            name=outbox.name,
        ),
        count=tried,
        back=back,
        subject=f"outbox {outbox.name}" + ("" if row is None else f" row {row}"),
    )


def problems(page: Page) -> Iterator[Problem]:
    """Rows that could not be published, rows whose topic no relay declares, and outboxes without
    a relay."""
    url = page.url("/outbox")
    for outbox in page.app.outboxes.values():
        if not isinstance(outbox, Outbox) or outbox.relayed_by == "debezium":
            continue
        found = _inspect(page, outbox, every=False)
        if isinstance(found, str):
            continue  # the database does not exist yet, or cannot be reached: the screen says so
        backlog, relays = found.backlog, found.relays
        if backlog.failed:
            text = page.plural(
                "%(number)s row of the outbox %(name)s could not be published.",
                "%(number)s rows of the outbox %(name)s could not be published.",
                backlog.failed,
                name=outbox.name,
            )
            yield Problem(0, text, url)
        undeclared = ", ".join(str(each.topic) for each in found.undeclared)
        if undeclared:
            text = page._(
                "Rows of the outbox %(name)s wait for a relay that declares %(topics)s.",
                name=outbox.name,
                topics=undeclared,
            )
            yield Problem(1, text, url, page.now - max(each.age for each in found.undeclared))
        if backlog.oldest is None or backlog.oldest < OLD:
            continue
        since = page.now - backlog.oldest
        if relays.seconds is None or relays.seconds > OLD:
            text = page._(
                "No relay is running for the outbox %(name)s: %(rows)s rows are waiting.",
                name=outbox.name,
                rows=f"{backlog.depth:,}",
            )
        else:
            text = page._(
                "Rows of the outbox %(name)s are old: %(rows)s wait.",
                name=outbox.name,
                rows=f"{backlog.depth:,}",
            )
        yield Problem(1, text, url, since)


SCREENS = (
    Screen("/outbox", list_outboxes, mark("Outbox"), needs_app=has_outboxes),
    Screen("/outbox/row", show_row),
)

ACTIONS = (Action("/outbox/retry", retry, "outbox"),)

PROBLEMS = (problems,)
