"""Process managers: the topics that each reads, its timeouts; one instance with its reactions,
commands and timeouts."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from streams.errors import NotFound, StreamsError, Unavailable
from streams.eventsourcing import ProcessManager
from streams.eventsourcing.managers.inspection import (
    InspectedCommand,
    InspectedInstance,
    InspectedReaction,
    InspectedTimeout,
    ManagerInspector,
    ReadPartition,
)
from streams.inspection.aggregates import SUFFIX, ordered_keys
from streams.inspection.counting import count_dead_letters, sum_known
from streams.log.events import EventLog
from streams.web.documents import pretty
from streams.web.keys import behind, key_behind
from streams.web.page import Page, Screen
from streams.web.paging import PAGE_SIZE, paged
from streams.web.problem_board import Problem
from streams.web.redaction import Shown
from streams.web.screens.aggregates import Unlisted
from streams.web.translations import mark

if TYPE_CHECKING:
    from streams.app import Streams

NEWEST = 1_000
"""How many reactions and timeouts of each partition are read."""

FRESH = 5.0
"""Seconds of real time for which counts are considered fresh."""

MAX_TIMEOUTS = 50
"""The most timeouts that are shown, the next ones."""

MAX_REACTIONS = 50
"""The most reactions of an instance that are shown, the last ones."""

MAX_PARTITIONS = 200
"""The most partitions of a manager that are shown."""

LATE = 60.0
"""Seconds that a timeout may be overdue before it is reported."""

OUTCOMES = {
    "done": mark("done"),
    "refused": mark("refused"),
    "nothing": mark("came to nothing"),
    "open": mark("not carried out yet"),
    "unknown": mark("not known"),
}
"""The outcomes of a command."""

TIMEOUT_STATES = {
    "waiting": mark("waits"),
    "came": mark("came"),
    "cancelled": mark("cancelled"),
    "replaced": mark("replaced"),
    "ended": mark("not needed any more"),
}
"""The states of a timeout."""


def has_managers(app: Streams) -> bool:
    """Whether the app declares process managers."""
    return bool(app.managers)


class ManagerRow(NamedTuple):
    """A manager in the list.

    :param error: why it could not be read; empty: it could.
    """

    name: str
    processes: int = 0
    instances: int = 0
    running: int | None = None
    timeouts: int = 0
    overdue: int = 0
    refused: int = 0
    dead: int = 0
    lag: int | None = None
    is_complete: bool = True
    error: str = ""


def _inspector(page: Page, name: str) -> ManagerInspector:
    found = page.app.managers.get(name)
    if not isinstance(found, ProcessManager) or not isinstance(page.log, EventLog):
        raise NotFound(page._("The app declares no such process manager."))
    return ManagerInspector(found, page.log)


def _row(page: Page, name: str) -> ManagerRow:
    """The row of a manager, counted at most every few seconds."""

    def count() -> ManagerRow:
        try:
            return _count(page, name)
        except Unavailable:
            raise
        except StreamsError as error:
            return ManagerRow(name, error=str(error))

    return page.dashboard.shared(("manager", name, page.language), FRESH, count)


def _count(page: Page, name: str) -> ManagerRow:
    inspector = _inspector(page, name)
    if not _is_ready(page, inspector):
        return ManagerRow(name, error=page._("It does not exist yet, or is still being read."))
    totals, timeouts = inspector.count_reactions(NEWEST), inspector.timeouts(NEWEST)
    now = page.now * 1000
    names = dict.fromkeys(each.name for each in inspector.dead_letters)
    return ManagerRow(
        name,
        processes=len(inspector.members(name)),
        instances=totals.instances,
        running=totals.running,
        timeouts=len(timeouts.entries),
        overdue=sum(each.due < now - LATE * 1000 for each in timeouts.entries),
        refused=totals.refused,
        dead=sum(count_dead_letters(page.log, each) for each in names),
        lag=sum_known(each.lag for each in inspector.partitions()),
        is_complete=totals.is_complete and timeouts.is_complete,
    )


def _is_ready(page: Page, inspector: ManagerInspector) -> bool:
    """Whether its topic exists, and the log knows which reactions count."""
    log = page.log
    try:
        log.describe_topic(inspector.reactions_topic)
    except NotFound:
        return False
    passed, total = log.index_progress(inspector.reactions_topic) if isinstance(
        log, EventLog
    ) else (0, 0)  # fmt: skip
    return passed >= total


def list_managers(page: Page) -> Response:
    """The process managers of the app."""
    pages = paged(page, sorted(page.app.managers))
    rows = [_row(page, name) for name in pages.rows]
    return page.render(
        "managers.html", title=page._("Process managers"), rows=rows, pages=pages, newest=NEWEST
    )


# -- one manager


class TimeoutRow(NamedTuple):
    """A timeout that waits to be delivered."""

    key: Shown
    url: str
    name: str
    due: float
    is_overdue: bool


class InstanceRow(NamedTuple):
    """An instance in the list."""

    key: Shown
    url: str
    reactions: int


def _instance_url(page: Page, name: str, topic: str, key: str) -> str:
    """The address of an instance; empty if the visitor does not see its key."""
    data = key.encode("utf-8", "surrogateescape")
    if page.payloads.key(topic, data).data != data:
        return ""
    return page.url("/managers/instance", {"manager": name, "key": key})


def show_manager(page: Page) -> Response:
    """One manager: the topics that it reads, its next timeouts, its instances."""
    name = page.fields.text("manager")
    inspector = _inspector(page, name)
    row = _row(page, name)
    topic = inspector.reactions_topic
    partitions: list[ReadPartition] = list(islice(inspector.partitions(), MAX_PARTITIONS))
    is_ready = _is_ready(page, inspector)
    waiting = inspector.timeouts(NEWEST) if is_ready else None
    entries = [] if waiting is None else waiting.entries
    now = page.now
    timeouts = [
        TimeoutRow(
            page.payloads.key(topic, each.value.key.encode("utf-8", "surrogateescape")),
            _instance_url(page, name, topic, each.value.key),
            each.value.name,
            each.due / 1000,
            each.due / 1000 < now,
        )
        for each in entries[:MAX_TIMEOUTS]
    ]
    unlisted = Unlisted()
    instances, following = _instances(page, name, topic, unlisted) if is_ready else ([], "")
    definition = inspector.manager.definition
    dead = [
        (source, count)
        for source in inspector.dead_letters
        if (count := count_dead_letters(page.log, source.name))
    ]
    return page.render(
        "manager.html",
        title=name,
        manager=name,
        row=row,
        topic=topic,
        aggregate=topic.removesuffix(SUFFIX),
        state=type(definition.state.initial).__name__,
        declared=definition,
        timeout_names=[] if definition.timeouts is None else definition.timeouts.names,
        members={group: inspector.members(group) for group in inspector.groups},
        partitions=partitions,
        dead=dead,
        timeouts=timeouts,
        more_timeouts=len(entries) - len(timeouts),
        instances=instances,
        following=following,
        unlisted=unlisted.texts[:20],
        newest=NEWEST,
    )


def _instances(
    page: Page, name: str, topic: str, unlisted: Unlisted
) -> tuple[list[InstanceRow], str]:
    """Some instances by their keys, and the address of the next ones."""
    log = page.log
    if not isinstance(log, EventLog):
        return [], ""
    found = ordered_keys(
        log, log.describe_topic(topic), b"", key_behind(page, topic), PAGE_SIZE + 1, unlisted
    )
    keys = list(islice(found, PAGE_SIZE + 1))
    rows = [
        InstanceRow(
            page.payloads.key(topic, each.key),
            _instance_url(page, name, topic, each.key.decode("utf-8", "surrogateescape")),
            each.head.base.version,
        )
        for each in keys[:PAGE_SIZE]
    ]
    return rows, behind(page, topic, keys[PAGE_SIZE - 1].key) if len(keys) > PAGE_SIZE else ""


# -- one instance


class CommandRow(NamedTuple):
    """A command of a reaction, and its outcome."""

    found: InspectedCommand
    id: Shown
    reason: Shown
    arguments: Shown


class ReactionRow(NamedTuple):
    """A reaction."""

    found: InspectedReaction
    problem: Shown
    to: str
    commands: list[CommandRow]
    ends: bool
    url: str


class InstanceTimeout(NamedTuple):
    """A timeout of an instance."""

    found: InspectedTimeout
    event: Shown
    is_overdue: bool


def show_instance(page: Page) -> Response:
    """One instance: its state, the timeouts and commands that it waits for, its reactions."""
    name, key = page.fields.text("manager"), page.fields.raw("key")
    inspector = _inspector(page, name)
    if not key or len(key) > 2_000:
        raise NotFound(page._("The key is missing."))
    found: InspectedInstance | None = None
    if _is_ready(page, inspector):
        found = inspector.inspect_instance(key, MAX_REACTIONS)
    if found is None:
        raise NotFound(page._("There is no such instance."))
    topic = inspector.reactions_topic
    shown = page.payloads.key(topic, key.encode("utf-8", "surrogateescape"))
    state = page.payloads.value(topic, bytes(found.instance.state))
    return page.render(
        "instance.html",
        title=f"{name}: {shown.text}" if shown.text else name,
        manager=name,
        key=shown,
        found=found,
        state=state,
        state_text=pretty(state),
        stopped=page.payloads.error(topic, found.stopped or None),
        timeouts=[
            InstanceTimeout(
                each,
                page.payloads.value(topic, bytes(each.event)),
                each.state == "waiting" and each.due < page.now,
            )
            for each in found.timeouts
        ],
        reactions=[_reaction_row(page, topic, found, each) for each in reversed(found.reactions)],
        outcomes=OUTCOMES,
        timeout_states=TIMEOUT_STATES,
    )


def _reaction_row(
    page: Page, topic: str, found: InspectedInstance, each: InspectedReaction
) -> ReactionRow:
    url = ""
    if page.access.payloads:
        offset = page.log.format_offset(each.stored.offset)
        url = page.url(f"/topics/{topic}/messages/{found.partition}/{offset}")
    return ReactionRow(
        each,
        page.payloads.error(topic, each.reason or None),
        "" if each.reacted is None else each.reacted.to,
        [_command_row(page, topic, command) for command in each.commands],
        each.reacted is not None and each.reacted.ends,
        url,
    )


def _command_row(page: Page, topic: str, found: InspectedCommand) -> CommandRow:
    stored = found.stored
    written = [bytes(each) for each in stored.args]
    written += [name.encode() + b"=" + bytes(each) for name, each in stored.kwargs.items()]
    return CommandRow(
        found,
        page.payloads.key(f"{stored.aggregate}{SUFFIX}", stored.id.encode("utf-8", "replace")),
        page.payloads.error(topic, found.outcome.reason or None),
        page.payloads.value(topic, b", ".join(written)),
    )


# -- problems


def problems(page: Page) -> Iterator[Problem]:
    """Overdue timeouts, and messages that could not be reacted to."""
    for name in sorted(page.app.managers)[:20]:
        row = _row(page, name)
        url = page.url("/managers/show", {"manager": name})
        if row.overdue:
            text = page.plural(
                "%(number)s timeout of the process manager %(name)s is overdue.",
                "%(number)s timeouts of the process manager %(name)s are overdue.",
                row.overdue,
                name=name,
            )
            yield Problem(1, text, url)


SCREENS = (
    Screen("/managers", list_managers, mark("Process managers"), needs_app=has_managers),
    Screen("/managers/show", show_manager),
    Screen("/managers/instance", show_instance),
)

PROBLEMS = (problems,)
