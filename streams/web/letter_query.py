"""The dead letters that the fields of a page or a form select."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from streams.config import DeadLetters
from streams.errors import InvalidValue
from streams.inspection.letter_survey import kind_of
from streams.inspection.letter_topics import is_of
from streams.inspection.letters import DeadLetterFilter, letter_facts
from streams.inspection.offset_texts import parse_duration, parse_time
from streams.log.names import is_valid_name

if TYPE_CHECKING:
    from streams.log.range_reader import LogRow
    from streams.web.page import Page
    from streams.web.redaction import Payloads

MAX_TEXT = 1_000
"""The longest search text, in characters."""


@dataclass(frozen=True, slots=True)
class LetterQuery:
    """A query for the letters of a topic.

    :param name: the dead letter topic.
    :param topic: their source topic, with ``group``; both empty: any.
    :param error: a text in their errors.
    :param kind: the kind of their errors (:mod:`streams.inspection.letter_survey`).
    :param since: when they failed, in the visitor's notation; so is ``until``.
    """

    name: str
    topic: str
    group: str
    error: str
    kind: str
    key: str
    since: str
    until: str

    @classmethod
    def of(cls, page: Page) -> LetterQuery:
        """The query in the fields of a page: ``name=``, or ``topic=`` and ``group=``.

        :raises InvalidValue: they name no topic, or use contents that this visitor may not see.
        """
        text = page.fields.text
        topic, group, name = text("topic"), page.fields.raw("group"), text("name")
        if bool(topic) != bool(group):
            raise InvalidValue(page._("A topic and its group belong together."))
        if topic and not (is_valid_name(topic) and is_valid_name(group)):
            raise InvalidValue(page._("There is no such topic."))
        name = name or (DeadLetters().name(topic, group) if topic else "")
        if not is_valid_name(name):
            raise InvalidValue(page._("There is no such topic."))
        found = cls(
            name,
            topic,
            group,
            text("error")[:MAX_TEXT],
            text("kind")[:40],
            page.fields.raw("key")[:MAX_TEXT],
            text("since")[:60],
            text("until")[:60],
        )
        if (found.error or found.key) and not page.access.payloads:
            raise InvalidValue(page._("You may not search what is in messages."))
        return found

    @property
    def is_filtered(self) -> bool:
        """Whether only some letters of the topic are selected."""
        return bool(self.topic or self.error or self.kind or self.key or self.since or self.until)

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The same as fields of an address or a form."""
        names = ("name", "topic", "group", "error", "kind", "key", "since", "until")
        return [(each, getattr(self, each)) for each in names if getattr(self, each)]

    def predicate(self, page: Page) -> Callable[[LogRow], bool]:
        """The function that says whether a letter is selected.

        :raises InvalidValue: a time is invalid.
        """
        times = DeadLetterFilter(
            since=_parse_moment(page, self.since, page._("Failed since"), -inf),
            until=_parse_moment(page, self.until, page._("Failed before"), inf),
        )
        return _LetterPredicate(self, times, page.payloads)


@dataclass(frozen=True, slots=True)
class _LetterPredicate:
    """Uses no part of a message that its visitor may not see."""

    query: LetterQuery
    times: DeadLetterFilter
    payloads: Payloads

    def __call__(self, row: LogRow) -> bool:
        query = self.query
        if query.topic and not is_of(row, query.group, query.topic):
            return False
        if query.key and self._key(row) != query.key:
            return False
        if query.kind and kind_of(row.headers) != query.kind:
            return False
        if not self.times(row):
            return False
        return not query.error or self._error_contains(row, query.error.casefold())

    def _key(self, row: LogRow) -> str | None:
        shown = self.payloads.key(self.query.name, row.batch.keys[row.index])
        return None if shown.data is None else shown.data.decode("utf-8", "surrogateescape")

    def _error_contains(self, row: LogRow, text: str) -> bool:
        facts = letter_facts(row)
        for said in (facts.exception, facts.error):
            shown = self.payloads.error(self.query.name, said).text
            if shown is not None and text in shown.casefold():
                return True
        return False


def _parse_moment(page: Page, written: str, label: str, default: float) -> float:
    """A time, or an age, in seconds since the epoch."""
    if not written:
        return default
    if written[:4].isdigit() and written[4:5] == "-":
        return parse_time(written, label).timestamp()
    return page.now - parse_duration(written, label)
