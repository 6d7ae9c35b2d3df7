"""Dead letters: the topics that hold any, the letters of one by error, and one letter in full."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from starlette.responses import Response

from streams.errors import InvalidValue, NotFound
from streams.inspection.letter_pages import read_letters
from streams.inspection.letter_survey import SurveyResult
from streams.inspection.letter_topics import letter_counts, sample_sources
from streams.inspection.letters import LetterFacts, letter_facts, own_headers
from streams.log.names import is_valid_name
from streams.patterns.deadletters import DeadLetterTopic
from streams.web.dead_index import WAITED, DeadTopics
from streams.web.documents import indented_json
from streams.web.group_index import LOOK
from streams.web.letter_query import LetterQuery
from streams.web.page import MAX_BULK, Page, Screen
from streams.web.paging import PAGE_SIZE, paged
from streams.web.problem_board import Problem, UnfinishedCheck
from streams.web.redaction import Shown
from streams.web.rendering import is_text
from streams.web.translations import mark

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow

READ_SECONDS = 0.06
"""Seconds of real time in which a page searches for letters that match."""

SURVEY_SECONDS = 0.03
"""Seconds of real time for which a page waits for the survey of errors, which goes on by itself."""

MAX_KINDS = 50
"""The most kinds of errors that are shown."""

MAX_CURSOR = 60_000
"""The longest text of a page's start positions, in characters."""

SAMPLED_PARTITIONS = 200
"""The most partitions of a topic that are sampled for whether it holds dead letters."""

SHOWN_BYTES = 64 << 10
"""The bytes of a value that are shown."""

EDITED_BYTES = 1 << 20
"""The largest value that can be edited here, in bytes."""


def _dead_topics(page: Page) -> DeadTopics:
    """The known topics of dead letters (blocks for a moment)."""
    index, groups = page.dashboard.dead_topics, page.dashboard.groups.look(WAITED)
    return index.look(groups.topics, groups.internal, LOOK if index.is_empty else WAITED)


def list_topics(page: Page) -> Response:
    """The topics of dead letters, those with the most waiting letters first."""
    found = _dead_topics(page)
    wanted = page.fields.text("q").lower()
    topics = [each for each in found.topics if wanted in each.name.lower()]
    return page.render(
        "dead.html",
        title=page._("Dead letters"),
        pages=paged(page, topics),
        complete=found.is_complete,
        waiting=sum(each.waiting for each in topics),
    )


def open_letters(page: Page, query: LetterQuery) -> DeadLetterTopic:
    """The topic that a visitor requests; it must hold dead letters, or be named like those that do.

    :raises NotFound: there is no such topic, or it is of another kind.
    """
    log, name = page.log, query.name
    topic = DeadLetterTopic(log, name)

    def holds_letters() -> bool:
        return bool(sample_sources(log, log.describe_topic(name), SAMPLED_PARTITIONS)[0])

    if not name.endswith(".dead") and not page.dashboard.shared(
        ("holds letters", name), 30.0, holds_letters
    ):
        raise NotFound(page._("%(topic)s holds no dead letters.", topic=name))
    return topic


class LetterRow(NamedTuple):
    """A letter in a list.

    :param at: ``PARTITION/OFFSET``.
    """

    at: str
    id: Shown
    key: Shown
    error: Shown
    facts: LetterFacts
    waiting: bool


class KindRow(NamedTuple):
    """Letters with the same error, in a list."""

    id: str
    source: str
    error: Shown
    waiting: int
    last: float | None


def show_topic(page: Page) -> Response:
    """The letters of one topic: by error, and one by one."""
    query, log = LetterQuery.of(page), page.log
    topic = open_letters(page, query)
    everything = page.fields.flag("handled")
    begin = parse_cursor(page, log, page.fields.text("from"))
    survey = page.dashboard.surveys.get(query.name)
    kinds = survey.look(SURVEY_SECONDS)
    start = (survey.next_of(query.kind, begin) or begin) if query.kind and not everything else begin
    matches = query.predicate(page)
    found = read_letters(
        topic,
        matches,
        start,
        count=PAGE_SIZE,
        seconds=READ_SECONDS,
        everything=everything,
        read_limit=200 if query.is_filtered else PAGE_SIZE + 1,
    )
    counts = page.dashboard.shared(
        ("letter counts", query.name), 2.0, lambda: letter_counts(log, query.name)
    )
    if kinds.is_complete and not kinds.is_truncated:
        counts = counts._replace(waiting=kinds.waiting)
    following = "" if found.next is None else cursor_text(log, found.next)
    return page.render(
        "dead_topic.html",
        title=query.name,
        query=query,
        rows=[letter_row(page, log, *each) for each in found.rows],
        everything=everything,
        counts=counts,
        kinds=kind_rows(page, query, kinds),
        survey=kinds,
        looked_at=found.looked_at,
        next=page.here(**{"from": following}) if following else "",
        begun=bool(begin),
        jobs=page.running_jobs(query.name),
        most=MAX_BULK,
    )


def show_kinds(page: Page) -> Response:
    """The errors of a topic only, which the page requests until all letters were surveyed."""
    query = LetterQuery.of(page)
    open_letters(page, query)
    kinds = page.dashboard.surveys.get(query.name).look(LOOK)
    return page.render(
        "dead_kinds.html",
        title=query.name,
        query=query,
        kinds=kind_rows(page, query, kinds),
        survey=kinds,
    )


def kind_rows(page: Page, query: LetterQuery, found: SurveyResult) -> list[KindRow]:
    """The most frequent errors, of the letters from the query's source."""
    return [
        KindRow(
            each.id,
            "" if each.source is None else f"{each.source.group} {each.source.topic}",
            page.payloads.error(query.name, each.error),
            each.waiting,
            each.last,
        )
        for each in found.kinds
        if not query.topic or each.source in (None, (query.topic, query.group))
    ][:MAX_KINDS]


def letter_row(page: Page, log: Log, row: LogRow, waiting: bool) -> LetterRow:
    """A letter as a row of a list."""
    facts, topic = letter_facts(row), row.batch.topic
    return LetterRow(
        f"{row.batch.partition}/{log.format_offset(row.offset)}",
        page.payloads.id(topic, row.id, row.batch.keys[row.index]),
        page.payloads.key(topic, row.batch.keys[row.index]),
        page.payloads.error(topic, facts.error),
        facts,
        waiting,
    )


# -- one letter


def show_letter(page: Page) -> Response:
    """One letter: its error, its source, its content."""
    query, log = LetterQuery.of(page), page.log
    topic = open_letters(page, query)
    at = page.fields.text("at")
    row, waiting = find_letter(page, topic, at)
    facts, shown = letter_facts(row), page.payloads.value(query.name, row.value)
    return page.render(
        "dead_letter.html",
        title=f"{query.name}/{at}",
        query=query,
        letter=letter_row(page, log, row, waiting),
        facts=facts,
        value=shown,
        value_text=shown_text(shown),
        cut=shown.data is not None and len(shown.data) > SHOWN_BYTES,
        headers=page.payloads.headers(
            query.name, own_headers(row.headers), row.batch.keys[row.index]
        ),
        traceback=page.payloads.error(query.name, facts.traceback),
        first_error=page.payloads.error(query.name, facts.first_error),
        stands=(row.batch.partition, log.format_offset(row.offset)),
        source=place_of(facts.source),
        origin=place_of(facts.origin),
        editing=editing(page, row, shown) if waiting and page.access.may("edit") else None,
    )


def find_letter(page: Page, topic: DeadLetterTopic, at: str) -> tuple[LogRow, bool]:
    """The letter at a position, and whether it waits.

    :raises NotFound: there is no letter there.
    """
    position = topic.parse_position(at[:200])
    if position is not None and position.partition < topic.partitions:
        with closing(topic.row_at(position.partition, int(position.offset))) as rows:
            for row in rows:
                return row, rows.is_waiting(row)
    raise no_such_letter(page, topic, at)


def no_such_letter(page: Page, topic: DeadLetterTopic, at: str) -> NotFound:
    """The error for a position without a letter."""
    place = f"{topic.name}/{at[:200]}"
    return NotFound(page._("There is no such dead letter: %(place)s", place=place))


def place_of(text: str) -> tuple[str, str, str] | None:
    """Topic, partition and offset of a position in a letter's header; None: it is not a
    position."""
    topic, _, rest = text.rpartition("/")
    topic, _, partition = topic.rpartition("/")
    if (
        is_valid_name(topic)
        and partition.isascii()
        and partition.isdigit()
        and rest not in ("", "?")
    ):
        return topic, partition, rest
    return None


def shown_text(shown: Shown) -> str:
    """A value as it is shown: JSON with its fields one below the other, else as text."""
    data = shown.data or b""
    if len(data) <= SHOWN_BYTES and data[:1] in (b"{", b"["):
        text = indented_json(data)
        if text is not None:
            return text
    return data[:SHOWN_BYTES].decode("utf-8", "backslashreplace")


class Editing(NamedTuple):
    """How a letter's value is edited here.

    :param field: the form's field: ``value`` for text, or ``base64``.
    :param text: its content.
    :param refused: why the value cannot be edited here; empty: it can.
    """

    field: str
    text: str
    refused: str = ""


def editing(page: Page, row: LogRow, shown: Shown) -> Editing:
    """How a letter's value is edited: as text where that loses nothing."""
    data = row.value or b""
    if shown.hidden or (shown.data or b"") != data:
        return Editing("value", "", page._("You may not see its value, so you cannot edit it."))
    if len(data) > EDITED_BYTES:
        return Editing(
            "value", "", page._("It is too large to be edited here: use streams dead edit.")
        )
    if not is_text(data):
        return Editing("base64", base64.encodebytes(data).decode())
    return Editing("value", data.decode())


# -- the start positions of a page


def parse_cursor(page: Page, log: Log, text: str) -> dict[int, int]:
    """By partition, the offset that :func:`cursor_text` wrote.

    :raises InvalidValue: the text is something else.
    """
    found: dict[int, int] = {}
    if len(text) > MAX_CURSOR:
        raise InvalidValue(page._("This page's address cannot be read."))
    for part in filter(None, text.split(",")):
        partition, colon, offset = part.partition(":")
        if not (colon and partition.isascii() and partition.isdigit() and len(partition) < 10):
            raise InvalidValue(page._("This page's address cannot be read."))
        found[int(partition)] = log.parse_offset(offset)
    return found


def cursor_text(log: Log, offsets: dict[int, int]) -> str:
    """Offsets by partition, for an address."""
    return ",".join(f"{each}:{log.format_offset(offset)}" for each, offset in offsets.items())


# -- problems


def problems(page: Page) -> Iterator[Problem | UnfinishedCheck]:
    """Dead letters that wait."""
    found = _dead_topics(page)
    if not found.is_complete:
        yield UnfinishedCheck(
            page._("Not every topic has been checked yet; each visit checks more.")
        )
    for each in found.topics:
        if each.counts is None or not each.counts.waiting:
            continue
        text = page.plural(
            "%(number)s dead letter is waiting in %(topic)s.",
            "%(number)s dead letters are waiting in %(topic)s.",
            each.counts.waiting,
            topic=each.name,
        )
        yield Problem(1, text, page.url("/dead/show", {"name": each.name}), each.counts.oldest)


SCREENS = (
    Screen("/dead", list_topics, mark("Dead letters")),
    Screen("/dead/show", show_topic),
    Screen("/dead/kinds", show_kinds),
    Screen("/dead/letter", show_letter),
)

PROBLEMS = (problems,)
