"""Messages as they arrive in a topic, as rows of its table: a part of the stream that the tabs of a
browser share (:mod:`streams.web.live`).

A tab names the messages that it watches by a *tail*, in the form of an address's fields:
``topic=``, ``partition=`` if it is only one, ``lang=``. Each piece comes with the positions that
the browser has received, so that the stream can be reopened, for other tabs as well, and goes on
there (``positions=``).
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlencode

from streams.errors import InvalidValue
from streams.log.range_reader import OffsetRange, RangeReader
from streams.web.addresses import topic_of
from streams.web.browsing import MAX_PARTITIONS
from streams.web.page import Page
from streams.web.rendering import environment
from streams.web.rows import ListedMessage, row_of
from streams.web.search import parse_positions

ROWS = 25
"""How many messages of one poll are shown; if there are more, the last ones, and their number."""

_POSITIONS = "&positions="


def tail_of(page: Page, topic: str, partition: int | None) -> str:
    """The tail of the messages that arrive in a topic, for a page in its language."""
    asked = page.request.query_params.get("lang")
    fields = {"topic": topic, "partition": partition, "lang": asked}
    return urlencode({name: each for name, each in fields.items() if each not in (None, "")})


class Arrived(NamedTuple):
    """The result of a poll.

    :param html: rows, the newest first; empty: nothing arrived.
    :param positions: the positions after the poll, as ``PARTITION/OFFSET,...``.
    """

    html: str
    positions: str


class Arrivals:
    """Polls a topic for new messages; one thread at a time.

    :param tail: the tab's tail, perhaps with the positions to go on from; without these, messages
        count as new from the first poll on.
    :param page: a visit whose fields are the tail's.
    """

    def __init__(self, tail: str, page: Page) -> None:
        self.name = tail.partition(_POSITIONS)[0]
        """The tail without positions."""
        self._page = page
        self._ends: dict[int, int] | None = None

    def look(self) -> Arrived | None:
        """The messages since the last poll (blocks); None: there were none.

        :raises NotFound: there is no such topic or partition.
        :raises InvalidValue: the tail is invalid, or the topic has too many partitions.
        :raises LogError: the log cannot be read.
        """
        topic, log = topic_of(self._page), self._page.log
        is_first = self._ends is None
        if self._ends is None:
            self._ends = self._begin(topic)
        before = dict(self._ends)
        rows, passed = self._arrived(topic, self._ends)
        if self._ends == before and not is_first:
            return None
        html = ""
        if rows:
            template = environment(self._page.language).get_template("message_rows.html")
            html = template.render(self._page.context(rows=rows, passed=passed, topic=topic))
        places = (f"{number}/{log.format_offset(end)}" for number, end in self._ends.items())
        return Arrived(html, ",".join(places))

    def _begin(self, topic: str) -> dict[int, int]:
        log, fields = self._page.log, self._page.fields
        count, partition = log.describe_topic(topic).partitions, fields.optional_number("partition")
        numbers = range(count) if partition is None else (partition,)
        if len(numbers) > MAX_PARTITIONS:
            raise InvalidValue(self._page._("This topic has too many partitions: choose one."))
        ends = {number: log.watermarks(topic, number)[1] for number in numbers}
        given = parse_positions(log, fields.text("positions")) or {}
        return {number: min(end, given.get(number, end)) for number, end in ends.items()}

    def _arrived(self, topic: str, ends: dict[int, int]) -> tuple[list[ListedMessage], int]:
        """The messages since the last poll, the newest first; and how many more there were."""
        log = self._page.log
        ranges: dict[int, OffsetRange] = {}
        passed = 0
        for number, start in ends.items():
            end = log.watermarks(topic, number)[1]
            if end <= start:
                continue
            begin = max(start, log.offset_before(topic, number, end, ROWS))
            if begin > start:
                passed += (log.lag(topic, number, start) or 0) - (
                    log.lag(topic, number, begin) or 0
                )
            ranges[number] = OffsetRange(begin, end)
            ends[number] = end
        rows: list[ListedMessage] = []
        reader = RangeReader(log, topic, ranges)
        try:
            for each in reader:
                rows.append(row_of(log, self._page.payloads, each.batch, each.index))
                if len(rows) > ROWS:
                    del rows[0]
                    passed += 1
        finally:
            reader.close()
        rows.reverse()
        return rows, max(0, passed)
