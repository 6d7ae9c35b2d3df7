"""Sagas: the list by status, one with the timeline of its steps; resuming and abandoning them."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.responses import Response

from streams.errors import InvalidValue, NotFound
from streams.inspection.sagas import (
    STATUSES,
    KnownSaga,
    PlacedEntry,
    SagaHistory,
    SagaIndex,
    planned_steps,
    saga_history,
    saga_names,
    steps_not_undone,
    transitions,
)
from streams.log.names import is_valid_name
from streams.message import Position
from streams.patterns.saga import (
    Journal,
    JournalEntry,
    SagaError,
    Status,
    UnknownSaga,
    abandon_entry,
    resume_entry,
)
from streams.web.action_results import ActionDone, Confirmation
from streams.web.documents import pretty
from streams.web.group_index import LOOK
from streams.web.page import Action, Page, Screen
from streams.web.paging import paged
from streams.web.problem_board import Problem
from streams.web.redaction import Shown
from streams.web.translations import mark

if TYPE_CHECKING:
    from streams.inspection.sagas import Transition

READ = 0.04
"""Seconds of real time for which a visit reads new entries of the journals."""

MAX_NAMES = 50
"""The most journals that are shown together."""

PATIENCE = 1.0
"""Seconds of real time for which one saga is searched for; longer on request."""

LONG_PATIENCE = 10.0

STUCK = 600.0
"""Seconds without progress after which a saga that should advance is reported as stuck."""

MAX_FILTERED = 5_000
"""The most IDs that are compared with a filter if the app's ``redact=`` is called for each."""

MAX_LISTED = 10_000
"""The most sagas of one list."""

OPEN: frozenset[Status] = frozenset(("running", "compensating", "failed", "stopped"))
"""Statuses of sagas that are not final."""

MOVING: frozenset[Status] = frozenset(("running", "compensating"))

MAX_TRANSITIONS = 500
"""The most lines of a timeline, the last ones."""

STATES: dict[Status, str] = {
    "running": mark("running"),
    "compensating": mark("being undone"),
    "failed": mark("not undone whole"),
    "stopped": mark("stopped"),
    "completed": mark("completed"),
    "compensated": mark("undone"),
    "abandoned": mark("abandoned"),
}
"""The names of the statuses."""

BAD = ("failed", "stopped")


# -- the list


class SagaRow(NamedTuple):
    """A saga in the list."""

    saga: str
    id: Shown
    url: str
    known: KnownSaga
    why: Shown
    is_stuck: bool


@dataclass(frozen=True, slots=True)
class _ReadJournals:
    """The journals that are shown together, as far as they were read."""

    indexes: dict[str, SagaIndex]

    @property
    def is_complete(self) -> bool:
        return all(each.is_complete for each in self.indexes.values())

    @property
    def looked_at(self) -> int:
        return sum(each.looked_at for each in self.indexes.values())


def _names(page: Page) -> list[str]:
    return saga_names(page.dashboard.groups.look(LOOK).topics)


def _read_journals(page: Page, names: Sequence[str], seconds: float) -> _ReadJournals:
    deadline = time.monotonic() + seconds
    found: dict[str, SagaIndex] = {}
    for name in names:
        left = max(0.002, (deadline - time.monotonic()) / max(1, len(names) - len(found)))
        try:
            found[name] = page.dashboard.sagas.look(name, left)
        except NotFound:
            continue
    return _ReadJournals(found)


def list_sagas(page: Page) -> Response:
    """The sagas of the log, the last changed first."""
    names = _names(page)
    chosen = page.fields.text("saga")
    if chosen and chosen not in names:
        raise NotFound(page._("There are no sagas of that name."))
    state, text = page.fields.text("state") or "open", page.fields.raw("q")
    shown_names = [chosen] if chosen else names[:MAX_NAMES]
    looked = _read_journals(page, shown_names, READ)
    counts: Counter[str] = Counter()
    for index in looked.indexes.values():
        counts.update(index.counts())
    oldest_first = page.fields.text("sort") == "oldest"
    rows, is_cut = _chosen(page, looked, _wanted(state), text, oldest_first=oldest_first)
    pages = paged(page, rows)
    return page.render(
        "sagas.html",
        title=page._("Sagas"),
        rows=[_row(page, name, known) for name, known in pages.rows],
        pages=pages,
        names=names,
        more_names=0 if chosen else max(0, len(names) - MAX_NAMES),
        chosen=chosen,
        state=state,
        states=STATES,
        bad=BAD,
        counts=counts,
        total=sum(counts.values()),
        looked=looked,
        is_cut=is_cut,
        most=MAX_LISTED if page.dashboard.redact is None else MAX_FILTERED,
        oldest_first=oldest_first,
    )


def _wanted(state: str) -> frozenset[Status] | None:
    """The statuses to show; None: all."""
    if state == "all":
        return None
    if state == "open":
        return OPEN
    for status in STATUSES:
        if status == state:
            return frozenset((status,))
    raise InvalidValue(f"state={state[:40]!r}: open, all, or one of {', '.join(STATUSES)}")


def _chosen(
    page: Page,
    looked: _ReadJournals,
    wanted: frozenset[Status] | None,
    text: str,
    *,
    oldest_first: bool,
) -> tuple[list[tuple[str, KnownSaga]], bool]:
    """The sagas of these statuses whose ID contains a text, in their order; and whether there are
    more than are listed or compared."""
    parts = [
        _of_name(name, index.sagas(wanted), oldest_first=oldest_first)
        for name, index in looked.indexes.items()
    ]
    merged = heapq.merge(*parts, key=lambda each: each[1].at, reverse=not oldest_first)
    rows = merged if len(parts) > 1 else chain(*parts)
    if text and page.payloads.allowed:
        if page.dashboard.redact is None:
            rows = (each for each in rows if text in each[1].id)
        else:
            compared = list(islice(rows, MAX_FILTERED))
            found = [each for each in compared if text in (_id(page, *each).text or "")]
            return found, next(rows, None) is not None
    found = list(islice(rows, MAX_LISTED))
    return found, next(rows, None) is not None


def _of_name(
    name: str, sagas: Sequence[KnownSaga], *, oldest_first: bool
) -> Iterator[tuple[str, KnownSaga]]:
    return zip(repeat(name), reversed(sagas) if oldest_first else sagas)


def _id(page: Page, name: str, known: KnownSaga) -> Shown:
    return page.payloads.key(f"{name}.saga", _bytes(known.id))


def _bytes(id: str) -> bytes:
    return id.encode("utf-8", "surrogateescape")


def _row(page: Page, name: str, known: KnownSaga) -> SagaRow:
    return SagaRow(
        name,
        _id(page, name, known),
        _address(page, name, known.id, known.partition, known.offset),
        known,
        page.payloads.error(f"{name}.saga", known.why or None),
        _is_stuck(page, known),
    )


def _is_stuck(page: Page, known: KnownSaga) -> bool:
    return known.status in ("running", "compensating") and (
        max(known.at, known.due) < page.now - STUCK
    )


def _address(page: Page, name: str, id: str, partition: int, offset: int) -> str:
    """The address of a saga. By its ID only if the visitor sees that; else by the position of its
    last entry."""
    if page.payloads.key(f"{name}.saga", _bytes(id)).data == _bytes(id):
        return page.url("/sagas/show", {"saga": name, "id": id})
    place = {"saga": name, "partition": partition, "entry": page.log.format_offset(offset)}
    return page.url("/sagas/show", place)


# -- one saga


class TransitionRow(NamedTuple):
    """A transition of a saga, as it is shown."""

    found: Transition
    error: Shown
    url: str


def _saga_of(page: Page) -> Journal:
    """The journal that an address or a form names (``saga=``)."""
    name = page.fields.text("saga")
    if not is_valid_name(f"{name}.saga"):
        raise NotFound(page._("There are no sagas of that name."))
    journal = Journal(page.log, name)
    try:
        journal.log.describe_topic(journal.topic)
    except NotFound:
        raise NotFound(page._("There are no sagas of that name.")) from None
    return journal


def _history(page: Page, journal: Journal) -> tuple[str, SagaHistory]:
    """The saga that an address names, by its ID or by the position of one of its entries."""
    id, partition = page.fields.raw("id"), page.fields.optional_number("partition", high=1 << 20)
    if not id and partition is not None:
        offset = journal.log.parse_offset(page.fields.text("entry"))
        if partition >= journal.log.describe_topic(journal.topic).partitions:
            raise NotFound(page._("There is no saga entry at that position."))
        entry = journal.read_entry(Position(journal.topic, partition, offset))
        if entry is None:
            raise NotFound(page._("There is no saga entry at that position."))
        id = entry.saga
    if not id or len(id) > 1_000:
        raise NotFound(page._("The ID of the saga is missing."))
    if partition is None:
        known = page.dashboard.sagas.look(journal.saga, READ).find(id)
        partition = None if known is None else known.partition
    patience = LONG_PATIENCE if page.fields.flag("long") else PATIENCE
    return id, saga_history(journal, id, patience, partition=partition)


def show_saga(page: Page) -> Response:
    """One saga: its status, its steps, its transitions."""
    journal = _saga_of(page)
    id, history = _history(page, journal)
    shown_id = page.payloads.key(journal.topic, _bytes(id))
    by_id = {"saga": journal.saga, "id": id}
    longer = "" if page.fields.flag("long") else page.here(long="1")
    if not history.entries:
        return page.render(
            "saga_missing.html",
            status=404,
            title=page._("No such saga"),
            saga=journal.saga,
            id=shown_id,
            history=history,
            longer=longer,
        )
    last = history.entries[-1]
    entry = last.entry
    entries = [each.entry for each in history.entries]
    places = {each.entry.n: each for each in history.entries}
    happened = transitions(entries)
    context = page.payloads.value(journal.topic, bytes(entry.context))
    return page.render(
        "saga.html",
        title=f"{journal.saga}: {shown_id.text}" if shown_id.text else journal.saga,
        saga=journal.saga,
        topic=journal.topic,
        id=shown_id,
        entry=entry,
        state=STATES[entry.status],
        is_bad=entry.status in BAD,
        is_stuck=not entry.has_ended and max(entry.at, entry.due) < page.now - STUCK,
        steps=planned_steps(entry, entries),
        why=page.payloads.error(journal.topic, _why_it_stands(entry) or None),
        transitions=[
            TransitionRow(
                each,
                page.payloads.error(journal.topic, each.error or None),
                _entry_url(page, journal, places[each.number]),
            )
            for each in reversed(happened[-MAX_TRANSITIONS:])
        ],
        left_out=max(0, len(happened) - MAX_TRANSITIONS),
        history=history,
        longer="" if history.is_complete else longer,
        context=context,
        context_text=pretty(context),
        may_resume=entry.status in BAD,
        may_abandon=not entry.is_final,
        form=_form_fields(page, journal, id, last) if shown_id.data != _bytes(id) else by_id,
    )


def _form_fields(page: Page, journal: Journal, id: str, last: PlacedEntry) -> dict[str, object]:
    """The fields that identify a saga in a form if its ID is not shown."""
    offset = journal.log.format_offset(last.offset)
    return {"saga": journal.saga, "partition": last.partition, "entry": offset}


def _entry_url(page: Page, journal: Journal, placed: PlacedEntry) -> str:
    if not page.access.payloads:
        return ""
    offset = journal.log.format_offset(placed.offset)
    return page.url(f"/topics/{journal.topic}/messages/{placed.partition}/{offset}")


def _why_it_stands(entry: JournalEntry) -> str:
    """Why it does not advance any more: the given reason, else the failure."""
    if entry.status == "failed":
        return "; ".join(steps_not_undone(entry))
    return entry.error


# -- actions


def resume(page: Page) -> ActionDone | Confirmation:
    """Resume a saga that was stopped, or whose compensation failed."""
    journal = _saga_of(page)
    id, last = _last(page, journal)
    following = _make_checked(lambda: resume_entry(last.entry, page.now))
    back = _address(page, journal.saga, id, last.partition, last.offset)
    if page.fields.text("confirm") != _version(last.entry):
        steps = ", ".join(following.current_steps) or page._("none")
        facts = [page._("It has made no progress since entry %(number)s.", number=last.entry.n)]
        if last.entry.status == "failed":
            facts.append(
                page._("The compensations that failed are called again: %(steps)s", steps=steps)
            )
        else:
            facts.append(page._("It resumes where it stopped: %(steps)s", steps=steps))
            facts.append(page._("Deploy first what it was stopped for."))
        return Confirmation(
            title=page._("Resume this saga of %(name)s?", name=journal.saga),
            count=1,
            confirm=_version(last.entry),
            button=page._("Resume it"),
            back=(back, page._("Back to the saga")),
            facts=facts,
        )
    entry = _append(journal, id, lambda found: resume_entry(found, page.now))
    return ActionDone(
        page._("The saga is %(state)s again.", state=page._(STATES[entry.status])),
        back=(back, page._("Back to the saga")),
        subject=f"saga {journal.saga} {id}",
    )


def abandon(page: Page) -> ActionDone | Confirmation:
    """Take no further step of a saga."""
    journal = _saga_of(page)
    id, last = _last(page, journal)
    reason = page.fields.text("reason")[:1_000]
    _make_checked(lambda: abandon_entry(last.entry, page.now))
    back = _address(page, journal.saga, id, last.partition, last.offset)
    if page.fields.text("confirm") != _version(last.entry):
        rest = ", ".join(last.entry.uncompensated_steps) or page._("none")
        return Confirmation(
            title=page._("Abandon this saga of %(name)s?", name=journal.saga),
            count=1,
            confirm=_version(last.entry),
            button=page._("Abandon it"),
            back=(back, page._("Back to the saga")),
            facts=(
                page._("It is %(state)s.", state=page._(STATES[last.entry.status])),
                page._("Steps that are done, and stay so: %(steps)s", steps=rest),
                page._("No further step and no compensation of it is called."),
            ),
            warning=page._("This cannot be taken back."),
        )
    _append(journal, id, lambda found: abandon_entry(found, page.now, reason))
    return ActionDone(
        page._("The saga is abandoned."),
        back=(back, page._("Back to the saga")),
        subject=f"saga {journal.saga} {id}",
    )


def _last(page: Page, journal: Journal) -> tuple[str, PlacedEntry]:
    id, history = _history(page, journal)
    if not history.entries:
        raise NotFound(page._("No such saga was found in what was searched."))
    return id, history.entries[-1]


def _version(entry: JournalEntry) -> str:
    """The version that a visitor confirms: if the saga has moved meanwhile, it is shown again."""
    return f"{entry.n}:{entry.status}"


def _make_checked(make: Callable[[], JournalEntry]) -> JournalEntry:
    try:
        return make()
    except SagaError as error:  # it can be neither resumed nor abandoned
        raise InvalidValue(str(error)) from error


def _append(journal: Journal, id: str, make: Callable[[Any], Any]) -> JournalEntry:
    try:
        return journal.append_command(id, make)
    except UnknownSaga as error:
        raise NotFound(str(error)) from error
    except SagaError as error:
        raise InvalidValue(str(error)) from error


# -- problems


def problems(page: Page) -> Iterator[Problem]:
    """Sagas that do not advance, by their names and reasons."""
    looked = _read_journals(page, _names(page)[:MAX_NAMES], READ)
    for name, index in looked.indexes.items():
        found: dict[str, Sequence[KnownSaga]] = {
            "stopped": index.sagas(frozenset(("stopped",))),
            "failed": index.sagas(frozenset(("failed",))),
            "stuck": [each for each in index.sagas(MOVING) if _is_stuck(page, each)],
        }
        for kind, sagas in found.items():
            if sagas:
                state = "open" if kind == "stuck" else kind
                query = {"saga": name, "state": state}
                query |= {"sort": "oldest"} if kind == "stuck" else {}
                yield Problem(
                    1 if kind == "stuck" else 0,
                    _problem_text(page, name, kind, len(sagas)),
                    page.url("/sagas", query),
                    min(each.at for each in sagas) or None,
                )


def _problem_text(page: Page, name: str, kind: str, count: int) -> str:
    if kind == "stopped":
        return page.plural(
            "%(number)s saga of %(name)s is stopped: it cannot continue with the current code.",
            "%(number)s sagas of %(name)s are stopped: they cannot continue with the current code.",
            count,
            name=name,
        )
    if kind == "failed":
        return page.plural(
            "%(number)s saga of %(name)s could not be fully undone.",
            "%(number)s sagas of %(name)s could not be fully undone.",
            count,
            name=name,
        )
    return page.plural(
        "%(number)s saga of %(name)s should continue and does not.",
        "%(number)s sagas of %(name)s should continue and do not.",
        count,
        name=name,
    )


SCREENS = (
    Screen("/sagas", list_sagas, mark("Sagas")),
    Screen("/sagas/show", show_saga),
)

ACTIONS = (
    Action("/sagas/resume", resume, "resume"),
    Action("/sagas/abandon", abandon, "abandon"),
)

PROBLEMS = (problems,)
