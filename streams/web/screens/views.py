"""Views: their versions and the progress of each; promoting, rebuilding and dropping them; stopped
documents."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from starlette.responses import Response

from streams.errors import ConfigError, InvalidValue, NotFound, StreamsError, Unavailable
from streams.eventsourcing.views.inspection import (
    InspectedPartition,
    KnownView,
    StoppedKey,
    VersionInspector,
    find_views,
    read_view,
)
from streams.eventsourcing.views.operations import ViewOperationRefused, connected_operator
from streams.log.documents import DocumentLog
from streams.text import get_logger
from streams.web.action_results import ActionDone, BackgroundAction, Confirmation
from streams.web.group_index import LOOK
from streams.web.keys import key_of, visible_key_fields
from streams.web.page import Action, Page, Screen
from streams.web.paging import paged
from streams.web.problem_board import Problem
from streams.web.redaction import Shown
from streams.web.translations import mark
from streams.web.view_samples import view_subject

if TYPE_CHECKING:
    from streams.eventsourcing.views.operations import ViewOperator
    from streams.log.protocol import Log
    from streams.web.action_results import ReportProgress
    from streams.web.figures import SubjectFigures

T = TypeVar("T")

logger = get_logger("streams")

MAX_VERSIONS = 10
"""The most versions of a view that are shown, the newest ones."""

MAX_PARTITIONS = 100
"""The most partitions of a version that are shown."""

MAX_STOPPED = 50
"""The most stopped documents that are shown at once."""

RETRY_PATIENCE = 60.0
"""Seconds for which a retried document is waited for."""

STATES = {
    "clearing": mark("being cleared"),
    "building": mark("being built"),
    "serving": mark("serves"),
    "ready": mark("ready"),
}
"""The states of a version."""


def _names(page: Page) -> list[str]:
    log = page.log
    if not _keeps_documents(log):
        return []
    return page.dashboard.shared("view-names", 2.0, lambda: find_views(log))


def _keeps_documents(log: Log) -> bool:
    return isinstance(log, DocumentLog) and log.capabilities.documents


def _state(view: KnownView, number: int) -> str:
    """A version's state, as its inspector reports it (without reading its documents)."""
    known = view.find_version(number)
    if known is None or known.is_clearing:
        return "clearing"
    if known.is_building:
        return "building"
    return "serving" if view.promoted == number else "ready"


class VersionRow(NamedTuple):
    """A version in a list."""

    view: str
    version: int
    state: str
    subject: str
    figures: SubjectFigures


def list_views(page: Page) -> Response:
    """The views of the log, a row for each version."""
    names = [name for name in _names(page) if page.fields.text("q") in name]
    pages = paged(page, names)
    known = {name: read_view(page.log, name) for name in pages.rows}
    subjects = [
        view_subject(name, each.version)
        for name, view in known.items()
        for each in view.versions[-MAX_VERSIONS:]
    ]
    figures = page.sampler.ask(subjects, LOOK)
    page.watch(*subjects)
    rows = [
        VersionRow(name, each.version, _state(view, each.version), subject, figures[subject])
        for name, view in known.items()
        for each in reversed(view.versions[-MAX_VERSIONS:])
        for subject in (view_subject(name, each.version),)
    ]
    return page.render(
        "views.html",
        title=page._("Views"),
        rows=rows,
        pages=pages,
        states=STATES,
        keeps_documents=_keeps_documents(page.log),
    )


class StoppedDocumentRow(NamedTuple):
    """A stopped document."""

    key: Shown
    fields: dict[str, str]
    found: StoppedKey
    reason: Shown


class VersionPage(NamedTuple):
    """A version of the view that is shown."""

    version: int
    state: str
    subject: str
    figures: SubjectFigures
    inspector: VersionInspector
    members: tuple[str, ...]
    partitions: list[InspectedPartition]
    stopped: list[StoppedDocumentRow]
    more_stopped: bool
    error: str


def _view_of(page: Page) -> tuple[str, KnownView]:
    """The view that an address or a form names (``view=``)."""
    name = page.fields.raw("view")
    if not name or len(name) > 1_000 or not _keeps_documents(page.log):
        raise NotFound(page._("There is no such view."))
    view = read_view(page.log, name)
    if not view.versions:
        raise NotFound(page._("There is no such view."))
    return name, view


def _version_of(page: Page) -> tuple[str, KnownView, VersionInspector]:
    """The version that a form names (``view=``, ``version=``)."""
    name, view = _view_of(page)
    known = view.find_version(page.fields.number("version", 0))
    if known is None:
        raise NotFound(page._("The view has no such version."))
    return name, view, VersionInspector(page.log, name, view, known)


def show_view(page: Page) -> Response:
    """One view: its versions, the progress of each partition, its stopped documents."""
    name, view = _view_of(page)
    shown = list(reversed(view.versions[-MAX_VERSIONS:]))
    subjects = [view_subject(name, each.version) for each in shown]
    figures = page.sampler.ask(subjects, LOOK)
    page.watch(*subjects)
    after = page.fields.number("stopped_from", 0, high=1_000_000)
    versions = [
        _version_page(
            page, name, view, VersionInspector(page.log, name, view, known), figures, after
        )
        for known in shown
    ]
    return page.render(
        "view.html",
        title=name,
        view=name,
        promoted=view.promoted,
        versions=versions,
        points={each.subject: each.figures.series.points() for each in versions},
        left_out=len(view.versions) - len(shown),
        retries=len(view.retries),
        states=STATES,
        stopped_from=after,
        most_stopped=MAX_STOPPED,
    )


def _version_page(
    page: Page,
    name: str,
    view: KnownView,
    inspector: VersionInspector,
    figures: dict[str, SubjectFigures],
    after: int,
) -> VersionPage:
    number = inspector.known.version
    subject = view_subject(name, number)
    partitions: list[InspectedPartition] = []
    stopped: list[StoppedDocumentRow] = []
    members: tuple[str, ...] = ()
    more, error = False, ""
    try:
        members = inspector.members()
        partitions = list(islice(inspector.partitions(), MAX_PARTITIONS))
        for each in islice(inspector.stopped_documents(), after, after + MAX_STOPPED + 1):
            if len(stopped) == MAX_STOPPED:
                more = True
                break
            stopped.append(_stopped_row(page, inspector, each))
    except (Unavailable, ConfigError):
        raise
    except StreamsError as found:  # records in the log may be invalid
        error = str(found)
    return VersionPage(
        number, _state(view, number), subject, figures[subject], inspector, members, partitions,
        stopped, more, error,
    )  # fmt: skip


def _stopped_row(page: Page, inspector: VersionInspector, found: StoppedKey) -> StoppedDocumentRow:
    topic = inspector.tracker.folded_topic
    key = page.payloads.key(topic, found.key)
    reason = page.payloads.error(topic, found.reason)
    return StoppedDocumentRow(key, visible_key_fields(found.key, key), found, reason)


# -- actions


def _run(page: Page, name: str, act: Callable[[ViewOperator], Awaitable[T]]) -> T:
    """Call a function with the operator of a view, on a connection of its own (blocks).

    :raises InvalidValue: the action is refused.
    """
    app = page.app

    async def connect() -> T:
        async with connected_operator(app.url, name, app.driver_config) as view:
            return await act(view)

    try:
        return asyncio.run(connect())
    except ViewOperationRefused as error:
        raise InvalidValue(str(error)) from error


def _back(page: Page, name: str) -> tuple[str, str]:
    return page.url("/views/show", {"view": name}), page._("Back to the view")


def promote(page: Page) -> ActionDone | Confirmation:
    """Have a version serve."""
    name, view, inspector = _version_of(page)
    number, force = inspector.known.version, page.fields.flag("force")
    expected = f"{view.promoted}:{inspector.known.builds}"
    if page.fields.text("confirm") != expected:
        facts = [
            page._("Version %(number)s serves now.", number=view.promoted)
            if view.promoted
            else page._("No version serves now."),
            page._("This applies to all processes that declare the version."),
        ]
        share = inspector.tracker.progress().share
        if share is not None:
            facts.append(page._("Of its events %(share)s are folded.", share=f"{share:.1%}"))
        return Confirmation(
            title=page._("Promote version %(number)s of %(name)s?", number=number, name=name),
            count=1,
            confirm=expected,
            button=page._("Promote it"),
            back=_back(page, name),
            facts=facts,
            warning=page._("This cannot be taken back: a version before it does not serve again."),
        )
    is_new = _run(page, name, lambda found: found.promote(number, force=force))
    text = (
        page._("Version %(number)s of %(name)s serves from now on.", number=number, name=name)
        if is_new
        else page._("Version %(number)s of %(name)s already serves.", number=number, name=name)
    )
    return ActionDone(
        text, count=int(is_new), back=_back(page, name), subject=f"view {name} version {number}"
    )


def rebuild(page: Page) -> BackgroundAction | Confirmation:
    """Delete a version's documents, so that they are built again."""
    name, view, inspector = _version_of(page)
    known = inspector.known
    number, expected = known.version, str(known.builds)
    if page.fields.text("confirm") != expected:
        documents = inspector.tracker.totals().documents
        members = len(inspector.members())
        facts = [
            page.plural(
                "%(number)s document is deleted and rebuilt from the events.",
                "%(number)s documents are deleted and rebuilt from the events.",
                documents,
            ),
            page.plural(
                "%(number)s process runs it, and starts again at the first event.",
                "%(number)s processes run it, and start again at the first event.",
                members,
            )
            if members
            else page._("No process runs it: it is rebuilt once one does."),
        ]
        warning = ""
        if view.promoted == number:
            warning = page._(
                "It serves now, and nothing does meanwhile. A new version, declared beside it, "
                "avoids that."
            )
        return Confirmation(
            title=page._("Rebuild version %(number)s of %(name)s?", number=number, name=name),
            count=1,
            confirm=expected,
            button=page._("Rebuild it"),
            back=_back(page, name),
            facts=facts,
            warning=warning,
        )
    done = page._(
        "Version %(number)s of %(name)s is cleared, and is being rebuilt.",
        number=number,
        name=name,
    )
    back = _back(page, name)

    def work(report: ReportProgress) -> ActionDone:
        cleared = _run(page, name, lambda found: found.rebuild(number, on_cleared=report))
        return ActionDone(done, count=cleared, back=back, subject=f"view {name} version {number}")

    title = page._("Clearing version %(number)s of %(name)s", number=number, name=name)
    return BackgroundAction(title, work, back, f"view {name} version {number}", is_alone=True)


def drop(page: Page) -> BackgroundAction | Confirmation:
    """Delete a version: its documents, its keyed topic and its groups."""
    name, view, inspector = _version_of(page)
    known = inspector.known
    number, force = known.version, page.fields.flag("force")
    _run(page, name, lambda found: found.check_drop(number, force=force))
    expected = f"{view.promoted}:{known.builds}"
    if page.fields.text("confirm") != expected:
        return Confirmation(
            title=page._("Drop version %(number)s of %(name)s?", number=number, name=name),
            count=1,
            confirm=expected,
            button=page._("Drop it"),
            back=_back(page, name),
            facts=(
                page.plural(
                    "%(number)s document is deleted.",
                    "%(number)s documents are deleted.",
                    inspector.tracker.totals().documents,
                ),
                page._("The events stay: declared again, it is built again."),
            ),
            warning=page._("It serves now.") if view.promoted == number else "",
        )
    done = page._("Version %(number)s of %(name)s is dropped.", number=number, name=name)
    back = page.url("/views"), page._("Views")

    def work(report: ReportProgress) -> ActionDone:
        _run(page, name, lambda found: found.drop(number, force=force))
        return ActionDone(done, back=back, subject=f"view {name} version {number}")

    title = page._("Dropping version %(number)s of %(name)s", number=number, name=name)
    return BackgroundAction(title, work, back, f"view {name} version {number}", is_alone=True)


def retry(page: Page) -> BackgroundAction:
    """Have a stopped document folded further, by the process that folds it."""
    name, _, inspector = _version_of(page)
    number, key = inspector.known.version, key_of(page)
    if inspector.find_document(key) is None:
        raise NotFound(page._("The version has no such document."))
    goes_on = page._("The document has been resumed.")
    again = page._("The document has stopped again: check the reason.")
    nobody = page._(
        "No process that runs the version has resumed it yet: it resumes as soon as one does."
    )
    back = _back(page, name)
    subject = f"view {name} version {number}"

    def work(report: ReportProgress) -> ActionDone:
        found = _run(page, name, lambda view: view.retry(number, key, RETRY_PATIENCE))
        text = nobody if found is None else goes_on if found else again
        return ActionDone(text, count=int(bool(found)), back=back, subject=subject)

    title = page._("Resuming a document of %(name)s", name=name)
    return BackgroundAction(title, work, back, f"{subject} {key.hex()}", is_alone=True)


# -- problems


def problems(page: Page) -> Iterator[Problem]:
    """Versions whose rebuild was interrupted, and stopped documents."""
    yield from page.dashboard.shared(
        ("view-problems", *page.kind), 5.0, lambda: list(_find_problems(page))
    )


def _find_problems(page: Page) -> Iterator[Problem]:
    deadline = time.monotonic() + LOOK
    for name in _names(page):
        if time.monotonic() > deadline:
            return
        try:
            view = read_view(page.log, name)
            for known in view.versions[-MAX_VERSIONS:]:
                inspector = VersionInspector(page.log, name, view, known)
                yield from _problems_of(page, name, inspector)
        except Unavailable:
            raise
        except StreamsError as error:
            logger.debug("the dashboard: view %r: %s", name, error)


def _problems_of(page: Page, name: str, inspector: VersionInspector) -> Iterator[Problem]:
    number = inspector.known.version
    url = page.url("/views/show", {"view": name})
    if inspector.known.is_clearing:
        text = page._(
            "Version %(number)s of the view %(name)s is being cleared, or that was interrupted: "
            "nothing serves from it.",
            number=number,
            name=name,
        )
        yield Problem(1, text, url)
    stopped = inspector.tracker.count_stopped()
    if stopped:
        text = page.plural(
            "%(number)s document of the view %(name)s is stopped.",
            "%(number)s documents of the view %(name)s are stopped.",
            stopped,
            name=name,
        )
        yield Problem(1, text, url)


SCREENS = (
    Screen("/views", list_views, mark("Views")),
    Screen("/views/show", show_view),
)

ACTIONS = (
    Action("/views/promote", promote, "rebuild"),
    Action("/views/rebuild", rebuild, "rebuild"),
    Action("/views/drop", drop, "rebuild"),
    Action("/views/retry", retry, "rebuild"),
)

PROBLEMS = (problems,)
