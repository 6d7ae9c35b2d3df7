"""Aggregates: their IDs; one with its events, the state after each, and its refusals; those that
the app's code cannot read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from starlette.responses import Response

from streams.errors import Fatal, LogError, NotFound, StreamsError, Unavailable
from streams.eventsourcing import Aggregate
from streams.eventsourcing.inspection import (
    AggregateInspector,
    HistoryReplay,
    InspectedRefusal,
    ReplayedEvent,
    StoppedAt,
    json_document,
    read_refusals,
    replay_stored,
)
from streams.inspection.aggregates import SUFFIX, ordered_keys
from streams.log.event_headers import CAUSE, cause_of, is_final
from streams.log.events import EMPTY, ArbitratingLog, EventLog, HistoryKey, StoredSnapshot
from streams.log.names import is_valid_name
from streams.log.protocol import TopicInfo
from streams.text import describe_error
from streams.web.documents import pretty
from streams.web.group_index import LOOK
from streams.web.keys import behind, key_behind, key_of, visible_key_fields
from streams.web.page import Page, Screen
from streams.web.paging import PAGE_SIZE, paged
from streams.web.redaction import Shown
from streams.web.translations import mark

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds of real time for which a history is read, or aggregates are checked."""

MAX_EVENTS = 50
"""The most events of a history on one page."""

MAX_REFUSALS = 50
"""The most refusals on one page."""

CHECK_SIZE = 100
"""How many aggregates are checked at once."""

MAX_STOPPED = 100
"""The most stopped aggregates that are shown at once."""


class AggregateRow(NamedTuple):
    """An aggregate in the list.

    :param is_declared: whether the app declares it.
    """

    name: str
    topic: str
    subject: str
    figures: Any
    is_declared: bool
    is_there: bool


def _events_log(page: Page) -> EventLog:
    log = page.log
    if not isinstance(log, EventLog):
        raise NotFound(page._("This log keeps no histories."))
    return log


def _names(page: Page) -> list[str]:
    topics = page.dashboard.groups.look(LOOK).topics
    stored = {name.removesuffix(SUFFIX) for name in topics if name.endswith(SUFFIX)}
    return sorted({*stored, *page.app.aggregates})


def list_aggregates(page: Page) -> Response:
    """The aggregates of the app and of the log, by name."""
    _events_log(page)
    names = [name for name in _names(page) if page.fields.text("q") in name]
    pages = paged(page, names)
    found: list[AggregateRow] = []
    for name in pages.rows:
        is_there = True
        try:
            if not page.log.describe_topic(f"{name}{SUFFIX}").is_event_topic:
                continue
        except NotFound:
            is_there = False
        subject = f"topic:{name}{SUFFIX}"
        declared = name in page.app.aggregates
        figures = page.sampler.figures(subject)
        found.append(AggregateRow(name, f"{name}{SUFFIX}", subject, figures, declared, is_there))
    subjects = [each.subject for each in found if each.is_there]
    page.sampler.ask(subjects, LOOK)
    page.watch(*subjects)
    return page.render("aggregates.html", title=page._("Aggregates"), rows=found, pages=pages)


# -- one kind of aggregate


class Unlisted:
    """Collects keys that cannot be listed (:class:`~streams.inspection.aggregates.KeyProblems`)."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def call(self, where: str, make: Callable[[], T]) -> T | None:
        """The result of ``make``; None if it raised."""
        try:
            return make()
        except (Unavailable, Fatal):
            raise
        except Exception as error:
            self.texts.append(f"{where}: {describe_error(error)}")
            return None

    def odd_key(self, where: str, key: object) -> None:
        """Record a row whose key is not bytes: another program wrote it."""
        self.texts.append(f"{where}: {type(key).__name__}")


class AggregateKeyRow(NamedTuple):
    """An aggregate in the list of one kind."""

    id: Shown
    url: str
    version: int
    is_closed: bool


def _event_topic(page: Page) -> tuple[str, EventLog, TopicInfo]:
    """The aggregate that an address names (``aggregate=``)."""
    name, log = page.fields.text("aggregate"), _events_log(page)
    topic = f"{name}{SUFFIX}"
    if not is_valid_name(topic):
        raise NotFound(page._("There is no such aggregate."))
    try:
        info = page.log.describe_topic(topic)
    except NotFound:
        if name in page.app.aggregates:
            raise NotFound(page._("It does not exist yet: the app creates its topic.")) from None
        raise NotFound(page._("There is no such aggregate.")) from None
    if not info.is_event_topic:
        raise NotFound(page._("This topic holds no histories."))
    return name, log, info


def _inspector(page: Page, name: str, log: EventLog) -> AggregateInspector | None:
    """The inspector with the app's code; None: the app declares no such aggregate."""
    declared = page.app.aggregates.get(name)
    return AggregateInspector(declared, log) if isinstance(declared, Aggregate) else None


def _unfinished(page: Page, name: str, log: EventLog, topic: str) -> Response | None:
    """A page saying that the log does not know yet which events count; None: it does. If that page
    itself polls, it is told to load its own address when the log knows."""
    passed, total = log.index_progress(topic)
    if passed >= total:
        return Response(headers={"hx-refresh": "true"}) if page.is_fragment else None
    return page.render(
        "aggregate_index.html", title=name, aggregate=name, topic=topic, passed=passed, total=total
    )


def show_aggregate(page: Page) -> Response:
    """One kind of aggregate: its IDs, in order."""
    name, log, info = _event_topic(page)
    unfinished = _unfinished(page, name, log, info.name)
    if unfinished is not None:
        return unfinished
    prefix = page.fields.raw("prefix").encode("utf-8", "surrogateescape")
    if not page.payloads.allowed:
        prefix = b""
    after = key_behind(page, info.name)
    unlisted = Unlisted()
    keys = list(
        islice(ordered_keys(log, info, prefix, after, PAGE_SIZE + 1, unlisted), PAGE_SIZE + 1)
    )
    rows = [_key_row(page, info.name, each) for each in keys[:PAGE_SIZE]]
    if prefix:  # compared with the visible text: a hidden key cannot be found by trying
        rows = [row for row in rows if row.id.data is not None and row.id.data.startswith(prefix)]
    subject = f"topic:{info.name}"
    figures = page.sampler.ask([subject], LOOK)[subject]
    page.watch(subject)
    inspector = _inspector(page, name, log)
    return page.render(
        "aggregate.html",
        title=name,
        aggregate=name,
        topic=info.name,
        info=info,
        rows=rows,
        next=behind(page, info.name, keys[PAGE_SIZE - 1].key) if len(keys) > PAGE_SIZE else "",
        unlisted=unlisted.texts[:20],
        subject=subject,
        figures=figures,
        fingerprint="" if inspector is None else inspector.fingerprint,
        is_declared=inspector is not None,
        uncounted=log.uncounted_records(info.name) if isinstance(log, ArbitratingLog) else None,
    )


def _address(page: Page, topic: str, key: bytes, shown: Shown) -> str:
    """The address of an aggregate; empty if the visitor does not see its ID."""
    fields = visible_key_fields(key, shown)
    if not fields:
        return ""
    return page.url("/aggregates/history", {"aggregate": topic.removesuffix(SUFFIX), **fields})


def _key_row(page: Page, topic: str, found: HistoryKey) -> AggregateKeyRow:
    shown = page.payloads.key(topic, found.key)
    return AggregateKeyRow(
        shown, _address(page, topic, found.key, shown), found.head.base.version, found.head.is_final
    )


# -- one aggregate


class EventRow(NamedTuple):
    """An event; if it is upcast to several, the first, with their number."""

    version: int
    time: float
    id: str
    cause: Shown
    kind: str
    parts: int
    data: Shown
    problem: Shown
    state: Shown | None
    is_final: bool
    url: str
    here: str


class RefusalRow(NamedTuple):
    """A stored refusal: it has no version, but was decided at one."""

    decided_at: int
    time: float
    cause: Shown
    error: Shown
    url: str


class SnapshotRow(NamedTuple):
    """A snapshot."""

    fingerprint: str
    version: int
    size: int
    why: str


def show_history(page: Page) -> Response:
    """One aggregate: its events, and the state after each."""
    name, log, info = _event_topic(page)
    key = key_of(page)
    unfinished = _unfinished(page, name, log, info.name)
    if unfinished is not None:
        return unfinished
    at = page.fields.optional_number("at", high=1 << 53)
    inspector = _inspector(page, name, log)
    if inspector is None:
        found = replay_stored(log, info.name, key, MAX_EVENTS, at, PATIENCE)
    else:
        found = inspector.replay(key, MAX_EVENTS, at, PATIENCE)
    shown = page.payloads.key(info.name, key)
    if found.head == EMPTY:
        raise NotFound(page._("There is no aggregate of this ID."))
    state, state_version = _state(page, info.name, found)
    first = found.events[0].event.stored.version if found.events else 0
    refusals = _refusals(page, log, info.name, key, found, first)
    return page.render(
        "history.html",
        title=f"{name}: {shown.text}" if shown.text else name,
        aggregate=name,
        topic=info.name,
        id=shown,
        found=found,
        at=at,
        state=state,
        state_text=pretty(state),
        state_version=state_version,
        has_code=inspector is not None,
        stopped=_stopped(page, info.name, found.stopped),
        rows=_history_rows(page, info.name, found, refusals[-MAX_REFUSALS:]),
        more_refusals=len(refusals) > MAX_REFUSALS,
        older=page.here(at=str(first - 1)) if first > 1 else "",
        newest=page.here(at="") if at is not None else "",
        snapshots=_snapshots(log, info.name, key, inspector),
    )


def _state(page: Page, topic: str, found: HistoryReplay) -> tuple[Shown, int]:
    """The last known state, and its version."""
    for each in reversed(found.events):
        if each.has_state:
            return _document(page, topic, each.state), each.event.stored.version
    return Shown(None), 0


def _document(page: Page, topic: str, value: Any) -> Shown:
    return page.payloads.value(topic, json_document(value))


def _stopped(page: Page, topic: str, stopped: StoppedAt | None) -> Shown | None:
    return None if stopped is None else page.payloads.error(topic, stopped.reason)


def _event_row(page: Page, topic: str, found: HistoryReplay, each: ReplayedEvent) -> EventRow:
    event, stored = each.event, each.event.stored
    record = stored.record
    if event.events:
        kind = type(event.events[0]).__name__
        data = _document(page, topic, event.events[0])
    else:
        kind, data = "", page.payloads.value(topic, record.value)
    url, cause = "", cause_of(record.headers)
    if page.access.payloads:
        offset = page.log.format_offset(stored.offset)
        url = page.url(f"/topics/{topic}/messages/{found.partition}/{offset}")
    return EventRow(
        version=stored.version,
        time=stored.time,
        id=record.id,
        cause=page.payloads.header(
            topic, CAUSE, cause.encode("utf-8", "surrogateescape") or None, record.key
        ),
        kind=kind,
        parts=len(event.events),
        data=data,
        problem=page.payloads.error(topic, event.reason or None),
        state=_document(page, topic, each.state) if each.has_state else None,
        is_final=is_final(record.headers),
        url=url,
        here=page.here(at=str(stored.version)),
    )


def _refusals(
    page: Page, log: EventLog, topic: str, key: bytes, found: HistoryReplay, first: int
) -> list[RefusalRow]:
    """The refusals that belong among the shown events, one more than fits on a page.

    :param first: the version of the first event that is shown.
    """
    versions = range(first if first > 1 else 0, found.version + 1)
    stored = read_refusals(log, topic, key, found.partition, versions, MAX_REFUSALS + 1)
    return [_refusal_row(page, topic, key, found.partition, each) for each in stored]


def _refusal_row(
    page: Page, topic: str, key: bytes, partition: int, refusal: InspectedRefusal
) -> RefusalRow:
    cause = refusal.cause.encode("utf-8", "surrogateescape") or None
    url = ""
    if page.access.payloads:
        offset = page.log.format_offset(refusal.offset)
        url = page.url(f"/topics/{topic}/messages/{partition}/{offset}")
    return RefusalRow(
        refusal.version,
        refusal.time,
        page.payloads.header(topic, CAUSE, cause, key),
        page.payloads.error(topic, refusal.error or None),
        url,
    )


def _history_rows(
    page: Page, topic: str, found: HistoryReplay, refusals: Sequence[RefusalRow]
) -> list[EventRow | RefusalRow]:
    """Events and refusals, the newest first; a refusal is newer than the event of its version."""
    rows: list[tuple[int, EventRow | RefusalRow]] = [
        (each.event.stored.version, _event_row(page, topic, found, each)) for each in found.events
    ]
    rows += [(each.decided_at, each) for each in refusals]
    rows.sort(key=lambda pair: pair[0])
    return [row for _, row in reversed(rows)]


def _snapshots(
    log: EventLog, topic: str, key: bytes, inspector: AggregateInspector | None
) -> list[SnapshotRow]:
    def row(each: StoredSnapshot) -> SnapshotRow:
        why = "" if inspector is None else inspector.why_useless(each)
        return SnapshotRow(str(each.fingerprint), each.base.version, len(each.data), why)

    try:
        return [row(each) for each in log.list_snapshots(topic, key)]
    except Unavailable:
        raise
    except LogError:
        return []


# -- aggregates that the app's code cannot read


class StoppedAggregateRow(NamedTuple):
    """An aggregate that the app's code cannot read."""

    id: Shown
    url: str
    version: int
    reason: Shown


def list_stopped(page: Page) -> Response:
    """The aggregates that the app's code cannot read, as many as are found in a moment."""
    name, log, info = _event_topic(page)
    inspector = _inspector(page, name, log)
    if inspector is None:
        raise NotFound(page._("The app declares no such aggregate, so its code cannot be asked."))
    unfinished = _unfinished(page, name, log, info.name)
    if unfinished is not None:
        return unfinished
    unlisted = Unlisted()
    keys = ordered_keys(log, info, b"", key_behind(page, info.name), CHECK_SIZE, unlisted)
    rows: list[StoppedAggregateRow] = []
    looked_at, last = 0, b""
    deadline = time.monotonic() + PATIENCE
    is_over = False
    while time.monotonic() < deadline and len(rows) < MAX_STOPPED:
        chunk = [each.key for each in islice(keys, CHECK_SIZE)]
        if not chunk:
            is_over = True
            break
        for key, found in zip(chunk, inspector.find_stops(chunk), strict=True):
            if found is not None:
                rows.append(_stopped_row(page, info.name, key, found))
        looked_at += len(chunk)
        last = chunk[-1]
    return page.render(
        "aggregates_stopped.html",
        title=page._("%(name)s: what the code cannot go on with", name=name),
        aggregate=name,
        rows=rows,
        looked_at=looked_at,
        next="" if is_over or not looked_at else behind(page, info.name, last),
        unlisted=unlisted.texts[:20],
    )


def _stopped_row(
    page: Page, topic: str, key: bytes, found: StoppedAt | StreamsError
) -> StoppedAggregateRow:
    shown = page.payloads.key(topic, key)
    url = _address(page, topic, key, shown)
    if isinstance(found, StoppedAt):
        reason = page.payloads.error(topic, found.reason)
        return StoppedAggregateRow(shown, url, found.version, reason)
    return StoppedAggregateRow(shown, url, 0, page.payloads.error(topic, str(found)))


SCREENS = (
    Screen("/aggregates", list_aggregates, mark("Aggregates")),
    Screen("/aggregates/show", show_aggregate),
    Screen("/aggregates/history", show_history),
    Screen("/aggregates/stopped", list_stopped, payloads=True),
)
