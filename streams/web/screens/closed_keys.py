"""Closed keys: the messages that close them, since when, and those parked behind; opening them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from starlette.responses import Response

from streams.errors import InvalidValue, NotFound
from streams.inspection.closed_keys import (
    ClosedKeyIndex,
    ClosedKeyRow,
    KeyCounts,
    ParkedSource,
    closed_key_heads,
    key_topic,
    parked_sources,
)
from streams.inspection.letters import (
    LetterFacts,
    decoding_problem,
    letter_facts,
    own_headers,
)
from streams.log.names import is_valid_name
from streams.patterns.deadletters import ClosedKeyHead, ClosedKeyReader, CommandTarget
from streams.web.action_results import ActionDone, BackgroundAction, Confirmation, ReportProgress
from streams.web.group_index import LOOK
from streams.web.kept_topics import MAX_CLOSED_KEYS, counted
from streams.web.page import Action, Page, Screen
from streams.web.paging import PAGE_SIZE, paged
from streams.web.problem_board import Problem
from streams.web.redaction import Shown
from streams.web.screens.dead import SHOWN_BYTES, editing, place_of, shown_text
from streams.web.screens.dead_actions import has_members, new_value
from streams.web.translations import mark

READ_SECONDS = 0.04
"""Seconds of real time for which a page waits for new records; reading goes on by itself."""

AT_ONCE = 500
"""The most commands that are written while the visitor waits, and in one step."""

SEARCH_SECONDS = 0.3
"""Seconds of real time for which keys are searched for a text."""

ALL_SECONDS = 5.0
"""The same if all matching keys are to be opened: then all must be searched."""

LOOKS = 500
"""Keys between two checks of the time."""

MAX_PAGE = 2_000
"""The most pages of a list: keys behind them are found by the filter."""


def index_of(page: Page, name: str) -> ClosedKeyIndex:
    """The index of the closed keys of a topic."""
    return page.dashboard.closed_keys.get(name)


class ClosedKeyTopicRow(NamedTuple):
    """The closed keys of a group and topic, in a list."""

    source: ParkedSource
    counts: KeyCounts | None


def _topics(page: Page) -> list[ClosedKeyTopicRow]:
    groups = page.dashboard.groups.look(READ_SECONDS)
    sources = {each.name: each for each in parked_sources(groups.topics, groups.names)}
    readers = page.dashboard.closed_keys
    found = counted(list(sources), readers, most=MAX_CLOSED_KEYS, seconds=READ_SECONDS)
    return [ClosedKeyTopicRow(sources[name], counts) for name, counts in found.items()]


class ShownClosedKey(NamedTuple):
    """A closed key, as it is shown.

    :param at: ``PARTITION/OFFSET`` of the record of its first message, which identifies it.
    :param facts: that message's failure; None: its record does not exist any more.
    """

    at: str
    key: Shown
    error: Shown
    facts: LetterFacts | None
    parked: int
    is_dead: bool


def list_keys(page: Page) -> Response:
    """The topics with closed keys; with ``?topic=&group=``, the keys themselves."""
    if not page.fields.text("topic"):
        rows = _topics(page)
        return page.render(
            "closed_topics.html", title=page._("Closed keys"), pages=paged(page, rows)
        )
    source, log = _source_of(page), page.log
    index = index_of(page, source.name)
    counts = index.counts(READ_SECONDS)
    number = page.fields.number("page", 1, low=1, high=MAX_PAGE)
    order = "parked" if page.fields.text("sort") == "parked" else ""
    wanted = page.fields.raw("key").strip()
    search = _key_search(page, source.name, SEARCH_SECONDS)
    found = index.rows(
        (number - 1) * PAGE_SIZE,
        PAGE_SIZE + 1,
        None if search is None else search.quickest,
        most_parked=order == "parked",
    )
    shown = found[:PAGE_SIZE]
    heads = closed_key_heads(log, source.group, source.topic, shown)
    has_more = len(found) > PAGE_SIZE and number < MAX_PAGE
    return page.render(
        "closed_keys.html",
        title=source.name,
        source=source,
        counts=counts,
        rows=[_key_row(page, source.name, row, heads) for row in shown],
        order=order,
        wanted=wanted,
        late=search is not None and search.is_late,
        before=page.here(page=str(number - 1)) if number > 1 else "",
        next=page.here(page=str(number + 1)) if has_more else "",
        idle=not has_members(page, source.group),
        jobs=page.running_jobs(source.name),
    )


def _source_of(page: Page) -> ParkedSource:
    topic, group = page.fields.text("topic"), page.fields.raw("group")
    if not (is_valid_name(topic) and is_valid_name(group)):
        raise InvalidValue(page._("There is no such topic."))
    return ParkedSource(key_topic(group, topic), topic, group)


class _KeySearch:
    """Whether keys, as this visitor sees them, contain a text; for a limited time, as there may be
    many and ``redact=`` may be slow."""

    def __init__(self, page: Page, name: str, text: str, seconds: float) -> None:
        self._payloads, self._name = page.payloads, name
        self._wanted = text.encode("utf-8", "surrogateescape")
        self._deadline = time.monotonic() + seconds
        self._looked_at = 0
        self.is_late = False
        """Whether time ran out before all keys were searched."""

    @property
    def quickest(self) -> Callable[[bytes], bool]:
        """The same predicate; if keys are shown unredacted, without a call for each."""
        wanted = self._wanted
        return (lambda key: wanted in key) if self._payloads.shows_as_is else self

    def __call__(self, key: bytes) -> bool:
        self._looked_at += 1
        if self._looked_at % LOOKS == 0 and time.monotonic() > self._deadline:
            self.is_late = True
        if self.is_late:
            return False
        data = self._payloads.key(self._name, key).data
        return data is not None and self._wanted in data


def _key_search(page: Page, name: str, seconds: float) -> _KeySearch | None:
    """A search for the keys that the page's filter (``key=``) selects, for at most this many
    seconds of real time; None: all are selected.

    :raises InvalidValue: this visitor may not see them.
    """
    wanted = page.fields.raw("key").strip()
    if wanted and not page.access.payloads:
        raise InvalidValue(page._("You may not search what is in messages."))
    return _KeySearch(page, name, wanted, seconds) if wanted else None


def _key_row(
    page: Page, name: str, row: ClosedKeyRow, heads: dict[tuple[int, int], ClosedKeyHead]
) -> ShownClosedKey:
    head = heads.get((row.partition, row.position))
    facts = None if head is None else letter_facts(head.row)
    return ShownClosedKey(
        f"{row.partition}/{page.log.format_offset(row.position)}" if row.position >= 0 else "",
        page.payloads.key(name, row.key),
        page.payloads.error(name, None if facts is None else facts.error),
        facts,
        row.parked,
        row.is_dead,
    )


# -- one key


def show_key(page: Page) -> Response:
    """One closed key: the message that closes it, and what is parked behind."""
    source, log = _source_of(page), page.log
    index = index_of(page, source.name)
    index.counts(LOOK)
    row = _find(page, index, page.fields.text("at"))
    head = closed_key_heads(log, source.group, source.topic, [row]).get(
        (row.partition, row.position)
    )
    if head is None:
        raise NotFound(page._("The message that closes this key is not in the log any more."))
    facts, value = letter_facts(head.row), page.payloads.value(source.name, head.row.value)
    behind = index.behind(row)
    offsets = [log.format_offset(each) for each in behind.offsets]
    return page.render(
        "closed_key.html",
        title=source.name,
        source=source,
        at=page.fields.text("at"),
        row=_key_row(page, source.name, row, {(row.partition, row.position): head}),
        partition=row.partition,
        id=page.payloads.id(source.name, head.row.id, row.key),
        facts=facts,
        stood=place_of(facts.source),
        value=value,
        value_text=shown_text(value),
        cut=value.data is not None and len(value.data) > SHOWN_BYTES,
        headers=page.payloads.headers(source.name, own_headers(head.row.headers), row.key),
        traceback=page.payloads.error(source.name, facts.traceback),
        behind=offsets,
        number=behind.number,
        idle=not has_members(page, source.group),
        editing=editing(page, head.row, value) if row.is_dead and page.access.may("edit") else None,
    )


def _find(page: Page, index: ClosedKeyIndex, at: str) -> ClosedKeyRow:
    """The closed key of a record.

    :raises NotFound: the record closes no key now.
    """
    partition, slash, offset = at[:200].partition("/")
    row = None
    if slash and partition.isascii() and partition.isdigit() and len(partition) < 10:
        row = index.find(int(partition), page.log.parse_offset(offset))
    if row is None:
        raise NotFound(
            page._(
                "No key is closed by the message %(place)s now: it was opened again, or closed by "
                "another.",
                place=f"{index.name}/{at[:200]}",
            )
        )
    return row


# -- actions


def retry(page: Page) -> ActionDone | Confirmation | BackgroundAction:
    """Let the messages that close keys be handled again."""
    return _command_keys(page, "retry")


def drop(page: Page) -> ActionDone | Confirmation | BackgroundAction:
    """Drop the messages that close keys."""
    return _command_keys(page, "drop")


def _command_keys(
    page: Page, command: Literal["retry", "drop"]
) -> ActionDone | Confirmation | BackgroundAction:
    source = _source_of(page)
    back = _back(page, source)
    targets = _targets(page, index_of(page, source.name), command)
    count = len(targets)
    if not page.confirmed(count):
        return _question(page, source, command, count, back)
    reader = ClosedKeyReader(page.log, source.group, source.topic)

    def work(report: ReportProgress) -> ActionDone:
        report(0, count)
        for begin in range(0, count, AT_ONCE):
            chunk = targets[begin : begin + AT_ONCE]
            reader.send_commands(command, chunk)
            report(begin + len(chunk), count)
        return ActionDone(_done_text(page, command, count), count, back, subject=source.name)

    if count <= AT_ONCE:
        return work(lambda done, total=None: None)
    title = page._("Open closed keys of %(topic)s", topic=source.name)
    return BackgroundAction(title, work, back, source.name)


def _targets(
    page: Page, index: ClosedKeyIndex, command: Literal["retry", "drop"]
) -> list[CommandTarget]:
    """The selected messages.

    :raises InvalidValue: none is selected, or the topic was not read to its end yet.
    :raises NotFound: one of them closes no key now.
    """
    is_complete = index.counts(10.0).is_complete
    named = list(dict.fromkeys(page.fields.all("letter")))[: AT_ONCE + 1]
    if not named and command == "retry" and page.fields.flag("all"):
        if not is_complete:
            raise InvalidValue(page._("The closed keys are still being read; try again soon."))
        found = index.dead()
        search = _key_search(page, index.name, ALL_SECONDS)
        if search is not None:
            found = [target for target in found if search.quickest(target.key)]
            if search.is_late:
                raise InvalidValue(
                    page._(
                        "Not all keys could be searched in time: nothing was done. Select the "
                        "keys one by one, or use the command line."
                    )
                )
        if not found:
            raise InvalidValue(page._("No closed keys are waiting for a decision."))
        return found
    if not named:
        raise InvalidValue(page._("Select at least one key."))
    if len(named) > AT_ONCE:
        raise InvalidValue(
            page._("At most %(most)s keys can be selected at once.", most=f"{AT_ONCE:,}")
        )
    rows = [_find(page, index, at) for at in named]
    if not all(row.is_dead for row in rows):
        raise InvalidValue(
            page._(
                "One of these keys is not waiting for a decision: its messages are already "
                "coming back."
            )
        )
    return [row.target for row in rows]


def _done_text(page: Page, command: str, count: int) -> str:
    if command == "retry":
        said = page.plural(
            "%(number)s key is opened again: its message is retried, then those behind it.",
            "%(number)s keys are opened again: their messages are retried, then those behind them.",
            count,
        )
    else:
        said = page.plural(
            "The message that closed %(number)s key was dropped; those behind it are handled.",
            "The messages that closed %(number)s keys were dropped; those behind them are handled.",
            count,
        )
    return f"{said} " + page._("The process that owns the partition does this as soon as it runs.")


def _question(
    page: Page, source: ParkedSource, command: str, count: int, back: tuple[str, str]
) -> Confirmation:
    warning = ""
    if not has_members(page, source.group):
        warning = page._(
            "No consumer is running for %(groups)s: the messages wait until one starts.",
            groups=source.group,
        )
    if command == "retry":
        wanted = page.fields.raw("key").strip() if page.fields.flag("all") else ""
        facts = (
            [page._("Only keys that contain %(wanted)s are affected.", wanted=wanted)]
            if wanted
            else []
        )
        return Confirmation(
            page.plural(
                "Open %(number)s closed key of %(topic)s?",
                "Open %(number)s closed keys of %(topic)s?",
                count,
                topic=source.name,
            ),
            count,
            page._("Retry"),
            back,
            (
                *facts,
                page._(
                    "The message that closes a key is handled again, then those parked behind it."
                ),
                page._("If it fails again, the key stays closed."),
            ),
            warning=warning,
        )
    return Confirmation(
        page.plural(
            "Drop the message that closes %(number)s key of %(topic)s?",
            "Drop the messages that close %(number)s keys of %(topic)s?",
            count,
            topic=source.name,
        ),
        count,
        page._("Drop"),
        back,
        (page._("They are never handled. The messages parked behind them are handled then."),),
        warning=warning,
    )


def _back(page: Page, source: ParkedSource) -> tuple[str, str]:
    query = {"topic": source.topic, "group": source.group}
    return page.url("/keys", query), page._("Back to the closed keys")


def edit(page: Page) -> ActionDone:
    """Replace the value of a message that closes a key, and let it be handled."""
    source, log = _source_of(page), page.log
    index = index_of(page, source.name)
    index.counts(10.0)
    row = _find(page, index, page.fields.text("letter"))
    if not row.is_dead:
        raise InvalidValue(
            page._(
                "One of these keys is not waiting for a decision: its messages are already "
                "coming back."
            )
        )
    heads = closed_key_heads(log, source.group, source.topic, [row])
    head = heads.get((row.partition, row.position))
    if head is None:
        raise NotFound(page._("The message that closes this key is not in the log any more."))
    refused = editing(page, head.row, page.payloads.value(source.name, head.row.value)).refused
    if refused:
        raise InvalidValue(refused)
    value = new_value(page)
    declared = page.app.topics.get(source.topic)
    if declared is not None and not page.fields.flag("force"):
        problem = decoding_problem(declared, head.row, value)
        if problem is not None:
            raise InvalidValue(
                page._(
                    "This value cannot be decoded for the topic %(topic)s: %(problem)s. Go back "
                    "and correct it, or tick the box to put it back anyway.",
                    topic=declared.name,
                    problem=problem,
                )
            )
    ClosedKeyReader(log, source.group, source.topic).send_command("edit", head, value)
    return ActionDone(
        page._("The message is handled with the new value, then those behind it.")
        + " "
        + page._("The process that owns the partition does this as soon as it runs."),
        back=_back(page, source),
        subject=f"{source.name}/{page.fields.text('letter')}",
    )


# -- problems


def problems(page: Page) -> Iterator[Problem]:
    """Closed keys that wait for a command."""
    for source, counts in _topics(page):
        if counts is None or not counts.dead:
            continue
        text = page.plural(
            "%(number)s key of %(topic)s is closed for %(group)s; %(parked)s messages are waiting"
            " behind it.",
            "%(number)s keys of %(topic)s are closed for %(group)s; %(parked)s messages are "
            "waiting behind them.",
            counts.dead,
            topic=source.topic,
            group=source.group,
            parked=f"{counts.parked:,}",
        )
        query = {"topic": source.topic, "group": source.group}
        yield Problem(0 if counts.parked else 1, text, page.url("/keys", query))


SCREENS = (
    Screen("/keys", list_keys, mark("Closed keys")),
    Screen("/keys/show", show_key),
)

ACTIONS = (
    Action("/keys/retry", retry, "retry"),
    Action("/keys/drop", drop, "drop"),
    Action("/keys/edit", edit, "edit"),
)

PROBLEMS = (problems,)
