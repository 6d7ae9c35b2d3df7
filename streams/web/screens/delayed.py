"""Delayed messages: those that wait until they are due, and their destinations; cancelling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from starlette.responses import Response

from streams.errors import InvalidValue, NotFound
from streams.inspection.delayed import (
    DelayIndex,
    PendingCounts,
    cancel_entries,
    delay_topics,
    read_entries,
)
from streams.retries import DelayEntry
from streams.web.action_results import ActionDone, Confirmation
from streams.web.addresses import topic_of
from streams.web.kept_topics import MAX_DELAYS, counted
from streams.web.page import Action, Page, Screen
from streams.web.paging import PAGE_SIZE, paged
from streams.web.problem_board import Problem
from streams.web.redaction import Shown
from streams.web.screens.dead_actions import has_members
from streams.web.translations import mark

READ_SECONDS = 0.03
"""Seconds of real time for which a page waits for new records; reading goes on by itself."""

OVERDUE = 60.0
"""Seconds after which a due message that is not delivered is a problem."""

ANSWER_SECONDS = 3.0
"""Seconds of real time for which an answer is waited for."""

MAX_NAMED = 200
"""The most messages that are cancelled in one step."""

MAX_PAGE = 400
"""The most pages of a list."""


def index_of(page: Page, name: str) -> DelayIndex:
    """The index of a delay topic."""
    return page.dashboard.delays.get(name)


class DelayTopicRow(NamedTuple):
    """A delay topic, in a list."""

    name: str
    counts: PendingCounts | None


def _topics(page: Page) -> list[DelayTopicRow]:
    groups = page.dashboard.groups.look(READ_SECONDS)
    names, readers = delay_topics(groups.topics, groups.names), page.dashboard.delays
    found = counted(names, readers, most=MAX_DELAYS, seconds=READ_SECONDS)
    return [DelayTopicRow(*each) for each in found.items()]


class DelayedMessageRow(NamedTuple):
    """A delayed message in a list.

    :param at: ``PARTITION/OFFSET`` of its entry.
    :param to: its destination topic; empty if its entry cannot be read.
    """

    at: str
    partition: int
    offset: str
    due: float
    is_overdue: bool
    to: str
    id: Shown
    key: Shown
    value: Shown


def list_topics(page: Page) -> Response:
    """The delay topics."""
    return page.render(
        "delay_topics.html", title=page._("Delayed"), pages=paged(page, _topics(page))
    )


def list_delayed(page: Page) -> Response:
    """The waiting messages of a delay topic, those due first at the top."""
    name, log = _delay_topic(page), page.log
    index = index_of(page, name)
    counts = index.counts(READ_SECONDS)
    number = page.fields.number("page", 1, low=1, high=MAX_PAGE)
    positions = index.positions((number - 1) * PAGE_SIZE, PAGE_SIZE + 1)
    shown = positions[:PAGE_SIZE]
    entries = read_entries(log, name, {(each.partition, each.position) for each in shown})
    rows: list[DelayedMessageRow] = []
    for each in shown:
        entry, offset = (
            entries.get((each.partition, each.position)),
            log.format_offset(each.position),
        )
        record = None if entry is None else entry.record
        rows.append(
            DelayedMessageRow(
                f"{each.partition}/{offset}",
                each.partition,
                offset,
                each.due,
                each.due < page.now,
                "" if entry is None else entry.topic,
                Shown(None) if record is None else page.payloads.id(name, record.id, record.key),
                page.payloads.key(name, None if record is None else record.key),
                page.payloads.value(name, None if record is None else record.value),
            )
        )
    has_more = len(positions) > PAGE_SIZE and number < MAX_PAGE
    return page.render(
        "delayed.html",
        title=name,
        name=name,
        counts=counts,
        rows=rows,
        own=_own_kind(page, name),
        may_cancel=page.access.may("cancel") and not _is_of_manager(name),
        before=page.here(page=str(number - 1)) if number > 1 else "",
        next=page.here(page=str(number + 1)) if has_more else "",
        idle=not has_members(page, name),
    )


def _delay_topic(page: Page) -> str:
    name = topic_of(page)
    if name not in delay_topics([name], page.log.list_groups()):
        raise NotFound(page._("%(topic)s is no topic of delayed messages.", topic=name))
    return name


def _is_of_manager(name: str) -> bool:
    return name.endswith(".timeouts.delay")


def _own_kind(page: Page, name: str) -> str:
    """The purpose of a delay topic of the toolkit's own; empty: it is the app's."""
    if _is_of_manager(name):
        return page._(
            "Timeouts of a process manager wait here. Only the process manager can cancel them."
        )
    if name.endswith(".delay"):
        return page._(
            "Failed messages wait here to be retried. A message that is cancelled is not handled "
            "any more."
        )
    return ""


def _id_text(page: Page, name: str, entry: DelayEntry) -> str:
    shown = page.payloads.id(name, entry.record.id, entry.record.key)
    return page._("not shown") if shown.text is None else shown.text


def cancel(page: Page) -> ActionDone | Confirmation:
    """Cancel messages, so that they are not delivered."""
    name, log = _delay_topic(page), page.log
    if _is_of_manager(name):
        raise InvalidValue(_own_kind(page, name))
    index = index_of(page, name)
    index.counts(5.0)
    entries = _named(page, index, name)
    back = page.url("/delayed/show", {"topic": name}), page._("Back to the waiting messages")
    if not page.confirmed(len(entries)):
        facts = (
            page._("They are not delivered, unless delivery is already under way."),
            *((own,) if (own := _own_kind(page, name)) else ()),
        )
        return Confirmation(
            page.plural(
                "Cancel %(number)s message of %(topic)s?",
                "Cancel %(number)s messages of %(topic)s?",
                len(entries),
                topic=name,
            ),
            len(entries),
            page._("Cancel them"),
            back,
            facts,
            (page._("message ID"), page._("goes to")),
            [(_id_text(page, name, entry), entry.topic) for _, entry in entries[:PAGE_SIZE]],
            ""
            if has_members(page, name)
            else page._("No running process keeps this topic: it is cancelled once one runs."),
        )
    outcomes = Counter(cancel_entries(log, name, entries, ANSWER_SECONDS))
    texts = {
        "cancelled": page._("cancelled"),
        "delivered": page._("too late: already delivered"),
        "dead": page._("too late: it is a dead letter"),
        "unknown": page._("not known any more"),
        None: page._("no answer yet; the request remains in effect"),
    }
    return ActionDone(
        page.plural(
            "%(number)s message was cancelled.",
            "%(number)s messages were cancelled.",
            outcomes["cancelled"],
        ),
        count=outcomes["cancelled"],
        back=back,
        details=[f"{texts[outcome]}: {number:,}" for outcome, number in outcomes.items()],
        subject=name,
    )


def _named(page: Page, index: DelayIndex, name: str) -> list[tuple[int, DelayEntry]]:
    """The selected messages, each with its partition.

    :raises NotFound: one of them does not wait any more.
    """
    named = list(dict.fromkeys(page.fields.all("message")))
    if not named:
        raise InvalidValue(page._("Select at least one message."))
    if len(named) > MAX_NAMED:
        raise InvalidValue(
            page._("At most %(most)s messages can be selected at once.", most=f"{MAX_NAMED:,}")
        )
    positions: list[tuple[int, int]] = []
    for at in named:
        partition, _, offset = at[:200].partition("/")
        if not (partition.isascii() and partition.isdigit() and len(partition) < 10):
            raise NotFound(page._("No message waits at %(place)s.", place=f"{name}/{at[:200]}"))
        positions.append((int(partition), page.log.parse_offset(offset)))
    there = [each for each in positions if index.may_hold(*each)]
    entries = read_entries(page.log, name, set(there))
    found: list[tuple[int, DelayEntry]] = []
    for at, position in zip(named, positions, strict=True):
        entry = entries.get(position)
        if entry is None or not index.is_pending(*position, entry.key):
            raise NotFound(page._("No message waits at %(place)s.", place=f"{name}/{at[:200]}"))
        found.append((position[0], entry))
    return found


def problems(page: Page) -> Iterator[Problem]:
    """Messages that are due and not delivered."""
    for name, counts in _topics(page):
        if counts is None or counts.next_due is None or counts.next_due > page.now - OVERDUE:
            continue
        text = page._("Messages in %(topic)s are due and are not delivered.", topic=name)
        yield Problem(1, text, page.url("/delayed/show", {"topic": name}), counts.next_due)


SCREENS = (
    Screen("/delayed", list_topics, mark("Delayed")),
    Screen("/delayed/show", list_delayed),
)

ACTIONS = (Action("/delayed/cancel", cancel, "cancel"),)

PROBLEMS = (problems,)
