"""Actions on dead letters: retry, edit and retry, drop; for single ones, the ticked ones, or all
that match.

They are counted first. Work that takes longer than a visitor waits goes on in the background, a
chunk at a time, and each chunk is committed before the next: after a crash the remaining letters
still wait, and the same action, requested again, goes on with them.
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from streams.errors import InvalidValue, NotFound
from streams.inspection.letter_pages import select_letters, select_positions
from streams.inspection.letter_topics import LetterSource, letter_source
from streams.inspection.letters import decoding_problem
from streams.log.protocol import Log
from streams.patterns.deadletters import DeadLetterTopic, ReprocessStopped, put_back_topic
from streams.web.action_results import ActionDone, BackgroundAction, Confirmation
from streams.web.letter_query import LetterQuery
from streams.web.page import MAX_BULK, Action, Page
from streams.web.screens.dead import (
    EDITED_BYTES,
    editing,
    find_letter,
    no_such_letter,
    open_letters,
)

if TYPE_CHECKING:
    from streams.log.range_reader import LogRow
    from streams.web.action_results import ReportProgress

AT_ONCE = 500
"""The most letters that are handled while the visitor waits; more are handled in the background."""

COUNT_SECONDS = 5.0
"""Seconds of real time for which letters are counted; then those found until then are selected."""

RECOUNT_SECONDS = 12.0
"""The same, for the second count when the number is confirmed."""

SURVEY_SECONDS = 2.0
"""Seconds of real time for which the survey of errors, which may have counted them, is waited
for."""

MAX_SOURCES = 20
"""The most topics and groups whose letters are retried in one step."""

Deed = Literal["retry", "drop"]


@dataclass(frozen=True, slots=True)
class ChosenLetters:
    """The letters that an action concerns.

    :param end_offsets: by partition, the offset before which they are.
    :param facts: the facts about how they were found, for the visitor.
    """

    matches: Callable[[LogRow], bool]
    count: int
    sources: Counter[LetterSource | None]
    end_offsets: Mapping[int, int]
    facts: tuple[str, ...] = ()


class Destinations(NamedTuple):
    """The destinations of letters that are retried.

    :param default: the topic and group of letters that do not name them.
    """

    by_source: Mapping[LetterSource, str]
    default: LetterSource | None

    def of(self, row: LogRow) -> str:
        """The destination topic of a letter.

        :raises InvalidValue: its source is none of those.
        """
        source = letter_source(row.headers) or self.default
        topic = None if source is None else self.by_source.get(source)
        if topic is None:
            raise InvalidValue(f"{row.position}: its topic and group were not confirmed")
        return topic


def retry(page: Page) -> ActionDone | Confirmation | BackgroundAction:
    """Put letters back, to be handled again."""
    return _redrive_or_drop(page, "retry")


def drop(page: Page) -> ActionDone | Confirmation | BackgroundAction:
    """Set letters aside."""
    return _redrive_or_drop(page, "drop")


def _redrive_or_drop(page: Page, deed: Deed) -> ActionDone | Confirmation | BackgroundAction:
    query, log = LetterQuery.of(page), page.log
    topic = _open_to_act(page, query)
    back = page.url("/dead/show", query.fields), page._("Back to the dead letters")
    chosen = _choose_letters(page, topic, query)
    if not chosen.count:
        raise InvalidValue(
            " ".join((page._("No waiting dead letter matches the selection."), *chosen.facts))
        )
    destinations = _destinations(page, log, query, chosen) if deed == "retry" else None
    if not page.confirmed(chosen.count):
        return _question(page, query, chosen, destinations, back)

    def work(report: ReportProgress) -> ActionDone:
        own = DeadLetterTopic(page.log, query.name)

        def tell(done: int) -> None:
            report(done, chosen.count)

        tell(0)
        try:
            done = _deal_with(own, chosen, destinations, tell)
        except ReprocessStopped as error:  # the log is not to blame
            raise InvalidValue(str(error)) from error
        text = _done_text(page, deed, done)
        return ActionDone(text, count=done, back=back, subject=query.name, changed=(query.name,))

    if chosen.count <= AT_ONCE:
        return work(lambda done, total=None: None)
    title = (
        page._("Retry dead letters of %(topic)s")
        if deed == "retry"
        else page._("Drop dead letters of %(topic)s")
    )
    return BackgroundAction(title % {"topic": query.name}, work, back, query.name)


def _deal_with(
    topic: DeadLetterTopic,
    chosen: ChosenLetters,
    destinations: Destinations | None,
    tell: Callable[[int], None],
) -> int:
    """Retry letters, or if there are no destinations drop them; returns their number."""
    matches, ends = chosen.matches, chosen.end_offsets
    if destinations is None:
        return topic.purge(matches=matches, end_offsets=ends, on_progress=tell)
    return topic.redrive(destinations.of, matches=matches, end_offsets=ends, on_progress=tell)


def _open_to_act(page: Page, query: LetterQuery) -> DeadLetterTopic:
    """The topic whose letters are acted on. The resolved ones are committed as the position of the
    group of its name, so that group must not be a reader.

    :raises NotFound: it holds no dead letters.
    :raises InvalidValue: such a group reads a topic.
    """
    topic = open_letters(page, query)
    if topic.has_reader():
        raise InvalidValue(
            page._(
                "A group named %(name)s reads a topic, so it cannot record which dead letters "
                "were dealt with.",
                name=query.name,
            )
        )
    return topic


def _done_text(page: Page, deed: Deed, done: int) -> str:
    if deed == "retry":
        return page.plural(
            "%(number)s dead letter was put back.", "%(number)s dead letters were put back.", done
        )
    return page.plural(
        "%(number)s dead letter was dropped.", "%(number)s dead letters were dropped.", done
    )


# -- the selected letters


def _choose_letters(page: Page, topic: DeadLetterTopic, query: LetterQuery) -> ChosenLetters:
    named = list(dict.fromkeys(page.fields.all("letter")))
    if named:
        return _choose_named(page, topic, named)
    if not page.fields.flag("all"):
        raise InvalidValue(page._("Select at least one dead letter."))
    matches = query.predicate(page)
    most = page.fields.number("most", MAX_BULK, low=1, high=MAX_BULK)
    typed = page.typed_count()
    if typed is not None:  # as many as were counted then: there may be new ones since
        most = min(most, max(1, typed))
    if not (query.error or query.key or query.since or query.until):
        survey = page.dashboard.surveys.get(query.name)
        source = LetterSource(query.topic, query.group) if query.topic else None
        known = survey.select(query.kind, source) if survey.read_on(SURVEY_SECONDS) else None
        if known is not None and known.number <= most:
            return ChosenLetters(
                matches,
                known.number,
                known.sources,
                known.end_offsets,
                (_looked_at(page, known.waiting),),
            )
    seconds = COUNT_SECONDS if typed is None else RECOUNT_SECONDS
    found = select_letters(topic, matches, most=most, seconds=seconds)
    facts = [_looked_at(page, found.looked_at)]
    if not found.is_complete:
        facts.append(page._("More dead letters match; only these will be changed."))
    return ChosenLetters(matches, found.number, found.sources, found.end_offsets, tuple(facts))


def _looked_at(page: Page, number: int) -> str:
    return page.plural(
        "%(number)s waiting dead letter was read, oldest first.",
        "%(number)s waiting dead letters were read, oldest first.",
        number,
    )


def _choose_named(page: Page, topic: DeadLetterTopic, named: list[str]) -> ChosenLetters:
    if len(named) > AT_ONCE:
        raise InvalidValue(
            page._("At most %(most)s dead letters can be selected at once.", most=f"{AT_ONCE:,}")
        )
    positions = {_parse_letter_position(page, topic, at) for at in named}
    found = select_positions(topic, positions)
    return ChosenLetters(
        lambda row: (row.batch.partition, row.offset) in positions,
        found.number,
        found.sources,
        found.end_offsets,
    )


def _parse_letter_position(page: Page, topic: DeadLetterTopic, at: str) -> tuple[int, int]:
    """The partition and offset of a letter.

    :raises NotFound: the text names no letter.
    """
    position = topic.parse_position(at[:200])
    if position is None or position.partition >= topic.partitions:
        raise no_such_letter(page, topic, at)
    return position.partition, int(position.offset)


# -- destinations


def _destinations(page: Page, log: Log, query: LetterQuery, chosen: ChosenLetters) -> Destinations:
    """The destinations of letters that are put back.

    :raises InvalidValue: one does not name its source, or that topic does not exist.
    """
    default = LetterSource(query.topic, query.group) if query.topic else None
    if None in chosen.sources and default is None:
        raise InvalidValue(
            page._(
                "Some of these dead letters do not say which topic and group they belong to. Ask "
                "for those of one topic and group: ?topic=…&group=…&name=%(name)s",
                name=query.name,
            )
        )
    sources = {each or default for each in chosen.sources}
    if len(sources) > MAX_SOURCES:
        raise InvalidValue(
            page._(
                "These dead letters belong to %(number)s topics and groups; retry one topic and "
                "group at a time.",
                number=len(sources),
            )
        )
    found: dict[LetterSource, str] = {}
    for source in sources:
        if source is not None:
            _require_topic(page, log, source)
            found[source] = put_back_topic(log, source.topic, source.group)
    return Destinations(found, default)


def _require_topic(page: Page, log: Log, source: LetterSource) -> None:
    # Names in a letter's headers must not create topics without a reader.
    try:
        log.describe_topic(source.topic)
    except NotFound:
        raise InvalidValue(
            page._(
                "Some of these dead letters say that they belong to the topic %(topic)s, which "
                "does not exist.",
                topic=source.topic,
            )
        ) from None


# -- the confirmation


def _question(
    page: Page,
    query: LetterQuery,
    chosen: ChosenLetters,
    destinations: Destinations | None,
    back: tuple[str, str],
) -> Confirmation:
    facts = list(chosen.facts)
    if chosen.count > AT_ONCE:
        facts.append(page._("It continues in the background, even if this page is closed."))
    if destinations is None:
        facts.append(
            page._("They are not retried. Nothing is deleted: the topic keeps them as before.")
        )
        return Confirmation(
            page.plural(
                "Drop %(number)s dead letter of %(topic)s?",
                "Drop %(number)s dead letters of %(topic)s?",
                chosen.count,
                topic=query.name,
            ),
            chosen.count,
            page._("Drop"),
            back,
            facts,
        )
    counts: Counter[LetterSource] = Counter()
    for source, number in chosen.sources.items():
        counts[source or destinations.default or LetterSource("", "")] += number
    idle = [source.group for source in counts if not has_members(page, source.group)]
    return Confirmation(
        page.plural(
            "Put %(number)s dead letter of %(topic)s back?",
            "Put %(number)s dead letters of %(topic)s back?",
            chosen.count,
            topic=query.name,
        ),
        chosen.count,
        page._("Retry"),
        back,
        facts,
        (page._("group"), page._("topic"), page._("goes to"), page._("dead letters")),
        [
            (source.group, source.topic, destinations.by_source[source], number)
            for source, number in counts.most_common()
        ],
        page._(
            "No consumer is running for %(groups)s: the messages wait until one starts.",
            groups=", ".join(sorted(set(idle))),
        )
        if idle
        else "",
    )


def has_members(page: Page, group: str) -> bool:
    """Whether a group has members."""
    try:
        return bool(page.log.describe_group(group, ()).members)
    except NotFound:
        return False


# -- editing a letter


def edit(page: Page) -> ActionDone:
    """Put one letter back with another value."""
    query, log = LetterQuery.of(page), page.log
    topic = _open_to_act(page, query)
    at = page.fields.text("letter")
    row, _ = find_letter(page, topic, at)
    refused = editing(page, row, page.payloads.value(query.name, row.value)).refused
    if refused:
        raise InvalidValue(refused)
    value = new_value(page)
    chosen = _choose_named(page, topic, [at])
    destinations = _destinations(page, log, query, chosen)
    source = letter_source(row.headers) or destinations.default
    declared = page.app.topics.get("" if source is None else source.topic)
    if declared is not None and not page.fields.flag("force"):
        problem = decoding_problem(declared, row, value)
        if problem is not None:
            raise InvalidValue(
                page._(
                    "This value cannot be decoded for the topic %(topic)s: %(problem)s. Go back "
                    "and correct it, or tick the box to put it back anyway.",
                    topic=declared.name,
                    problem=problem,
                )
            )
    try:
        done = topic.redrive(
            destinations.of, matches=chosen.matches, end_offsets=chosen.end_offsets, edited=value
        )
    except ReprocessStopped as error:
        raise InvalidValue(str(error)) from error
    if not done:
        raise InvalidValue(page._("This dead letter has been dealt with in the meantime."))
    return ActionDone(
        page._("The dead letter was put back with the new value."),
        back=(page.url("/dead/show", query.fields), page._("Back to the dead letters")),
        subject=f"{query.name}/{at}",
        changed=(query.name,),
    )


def new_value(page: Page) -> bytes:
    """The value that was typed.

    :raises InvalidValue: it is too large, or is not base64.
    """
    if "base64" in page.fields:
        written = "".join(page.fields.raw("base64").split())
        try:
            found = base64.b64decode(written, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidValue(page._("This is not valid base64.")) from None
    else:
        # Browsers send every line's end as CR LF; only values without CR are edited as text.
        text = page.fields.raw("value").replace("\r\n", "\n")
        found = text.encode("utf-8", "surrogateescape")
    if len(found) > EDITED_BYTES:
        raise InvalidValue(page._("It is too large to be edited here: use streams dead edit."))
    return found


SCREENS = ()

ACTIONS = (
    Action("/dead/retry", retry, "retry"),
    Action("/dead/drop", drop, "drop"),
    Action("/dead/edit", edit, "edit"),
)
