"""Searching a topic: on the server, by the parts of messages (never by code of the visitor's),
bounded, and continued where it stopped.

A search checks messages one after the other, in one direction, and ends when it has found
:data:`MAX_FOUND`, has run for :data:`MAX_SECONDS`, has checked :data:`MAX_MESSAGES` or
:data:`MAX_BYTES`, or is at the topic's end. It reports its positions, and goes on from there
on request. It runs in a thread and yields to the process's other work every
:data:`WORK` seconds, so that a service that the dashboard is mounted in is not slowed down.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from streams.errors import InvalidValue, StreamsError
from streams.log.range_reader import OffsetRange
from streams.replay.result import count_messages, total_messages
from streams.topic_reader import resolve_ranges
from streams.web.decoded import MAX_DECODED, NO_DOCUMENT, document_of
from streams.web.rows import ListedMessage, row_of

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log, Reader
    from streams.message import Batch
    from streams.topic_reader import OffsetSpec
    from streams.web.redaction import Payloads

MAX_FOUND = 50
"""The most messages that one search finds."""

MAX_SECONDS = 5.0
"""The most seconds of real time that one search takes."""

MAX_MESSAGES = 500_000
"""The most messages that one search checks."""

MAX_BYTES = 512 << 20
"""The most bytes of values that one search checks."""

MAX_SEARCHES = 2
"""The most searches at the same time; others are told to wait."""

CHUNK = 1_000
"""How many messages of a partition are checked before the next partition's."""

READ = 100
"""The most messages of one read: not every log bounds the bytes of a read."""

CHUNK_BYTES = 16 << 20
"""Bytes of values that a backward search keeps until it checks them, beside those of one read."""

REPORT = 0.25
"""Seconds of real time between two progress reports of a search."""

WORK, REST = 0.002, 0.0005
"""Seconds of real time that a search works and then rests: without rests it would block others."""

_PATH_PART = re.compile(r"([^.\[\]]+)|\[([0-9]{1,9})\]")
_MISSING: Any = object()


class MessageQuery(NamedTuple):
    """A query: a message must meet all given conditions.

    :param key: its key equals this.
    :param id: its ID equals this.
    :param header: it has a header of this name.
    :param header_value: that header contains this.
    :param path: a path in its value's JSON: ``customer.id``, ``items[0].sku``.
    :param path_value: the value at that path, as text: ``7``, ``true``, ``null``, ``open``.
    :param text: its value contains this.
    """

    key: str = ""
    id: str = ""
    header: str = ""
    header_value: str = ""
    path: str = ""
    path_value: str = ""
    text: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is no condition: every message matches."""
        return not any(self)


def path_parts(path: str) -> list[str | int]:
    """A path into JSON in its parts.

    :raises InvalidValue: it is not a path.
    """
    found: list[str | int] = []
    rest = path
    while rest:
        match = _PATH_PART.match(rest)
        if match is None or len(found) >= 32:
            raise InvalidValue(f"{path[:100]!r} is not a path such as customer.id or items[0].sku")
        found.append(match[1] if match[1] is not None else int(match[2]))
        rest = rest[match.end() :]
        if rest.startswith(".") and len(rest) > 1:
            rest = rest[1:]
    return found


def at_path(document: Any, parts: list[str | int]) -> Any:
    """The value at a path in a document; a marker of its own if there is none."""
    for part in parts:
        if isinstance(document, Mapping):
            document = document.get(str(part), _MISSING)
        elif isinstance(document, list):
            index = part if isinstance(part, int) else _index(part)
            document = document[index] if 0 <= index < len(document) else _MISSING
        else:
            return _MISSING
        if document is _MISSING:
            return _MISSING
    return document


def _index(part: str) -> int:
    """An index of a list that is written like a name (``items.0``); -1: it is not an index."""
    return int(part) if part.isdecimal() and len(part) < 10 else -1


def written(found: Any) -> str:
    """A JSON value as a visitor writes it in a search; empty: it is nested too deeply for that."""
    if isinstance(found, str):
        return found
    try:
        return orjson.dumps(found).decode()
    except orjson.JSONEncodeError:
        return ""


class Matcher:
    """Whether a message matches a query, as the visitor may see it.

    :raises InvalidValue: the path is invalid.
    """

    def __init__(self, app: Streams, query: MessageQuery, payloads: Payloads) -> None:
        self._app = app
        self._query = query
        self._payloads = payloads
        self._parts = path_parts(query.path) if query.path else []
        self._key = _bytes(query.key)
        self._text = _bytes(query.text)
        self._header_value = _bytes(query.header_value)
        self.too_large = 0
        """How many values were too large for their JSON to be searched."""

    def __call__(self, batch: Batch, index: int) -> bool:
        """Whether this message matches."""
        query = self._query
        if query.id and not self._has_id(batch, index):
            return False
        if query.key and self._payloads.key(batch.topic, batch.keys[index]).data != self._key:
            return False
        if (query.header or query.header_value) and not self._has_header(batch, index):
            return False
        return not (query.text or query.path or query.path_value) or self._has_value(batch, index)

    def _has_id(self, batch: Batch, index: int) -> bool:
        id = batch.id(index)
        if id != self._query.id:
            return False
        return self._payloads.id(batch.topic, id, batch.keys[index]).data == _bytes(id)

    def _has_header(self, batch: Batch, index: int) -> bool:
        wanted = self._query.header
        for name, data in batch.headers(index):
            if wanted and name != wanted:
                continue
            if not self._header_value:
                return True
            shown = self._payloads.header(batch.topic, name, data, batch.keys[index]).data
            if shown is not None and self._header_value in shown:
                return True
        return False

    def _has_value(self, batch: Batch, index: int) -> bool:
        value = self._payloads.value(batch.topic, batch.values[index]).data
        if value is None:
            return False
        if self._text and self._text not in value:
            return False
        if not self._query.path:
            return not self._query.path_value or _bytes(self._query.path_value) in value
        if len(value) > MAX_DECODED:
            self.too_large += 1
            return False
        document = document_of(self._app, self._payloads, batch, index, value)
        found = _MISSING if document is NO_DOCUMENT else at_path(document, self._parts)
        if found is _MISSING:
            return False
        return not self._query.path_value or written(found) == self._query.path_value


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@dataclass(slots=True)
class SearchProgress:
    """The progress of a search, and the messages found since the last report.

    :param looked: messages checked.
    :param total: how many there are to check; None: the log cannot count them.
    :param oldest: the time of the oldest message that was checked; None: none was.
    :param newest: the same of the newest.
    :param rows: found since the last report.
    :param found: the total found.
    :param ended: why it ended; empty: it goes on. ``all``: everything was checked; ``found``,
        ``seconds``, ``messages``, ``bytes``: at this bound; ``busy``: other searches run; else an
        error.
    :param positions: where to go on, as ``PARTITION/OFFSET,...``.
    :param too_large: values that were too large for their JSON to be searched.
    """

    looked: int = 0
    total: int | None = None
    oldest: float | None = None
    newest: float | None = None
    rows: list[ListedMessage] = field(default_factory=list)
    found: int = 0
    ended: str = ""
    positions: str = ""
    too_large: int = 0
    error: str = ""


_at_once = threading.BoundedSemaphore(MAX_SEARCHES)


class Search:
    """One search; iterate it once, in a thread: it blocks, and may be closed at any time.

    :param app: decodes values that are not JSON.
    :param start: where to begin, going forwards; where to end, going backwards.
    :param backwards: the newest first.
    :param positions: the positions at which an earlier search stopped, to go on from there.
    :raises InvalidValue: the query is invalid.
    :raises NotFound: there is no such topic or partition.
    """

    def __init__(
        self,
        app: Streams,
        log: Log,
        topic: str,
        query: MessageQuery,
        payloads: Payloads,
        *,
        start: OffsetSpec | Mapping[int, OffsetSpec] = "earliest",
        end: OffsetSpec = "latest",
        partition: int | None = None,
        backwards: bool = True,
        positions: Mapping[int, int] | None = None,
        now: float,
    ) -> None:
        self._log = log
        self._topic = topic
        self._payloads = payloads
        self._matches = Matcher(app, query, payloads)
        self._backwards = backwards
        ranges = resolve_ranges(log, topic, start, end, partition=partition, now=now)
        if positions is not None:
            ranges = {
                number: OffsetRange(low, min(high, positions.get(number, high)))
                if backwards
                else OffsetRange(max(low, positions.get(number, low)), high)
                for number, (low, high) in ranges.items()
            }
        self._left = {number: each for number, each in ranges.items() if each.start < each.end}
        self._all = dict(ranges)
        self.progress = SearchProgress(total=total_messages(log, topic, ranges))
        self._readers: dict[int, Reader] = {}
        self._bytes = 0

    def __iter__(self) -> Iterator[SearchProgress]:
        """Its progress, repeatedly; the last one says why it ended."""
        progress = self.progress
        if not _at_once.acquire(blocking=False):
            progress.ended = "busy"
            progress.positions = self._positions()
            yield progress
            return
        try:
            yield from self._run()
        finally:
            _at_once.release()
            for reader in self._readers.values():
                reader.close()

    def _run(self) -> Iterator[SearchProgress]:
        progress = self.progress
        began = reported = rested = time.monotonic()
        try:
            while self._left and not progress.ended:
                for partition in list(self._left):
                    for batch in self._read_chunk(partition):
                        for index in self._row_order(batch):
                            self._check_message(batch, index)
                            now = time.monotonic()
                            if now - rested > WORK:
                                time.sleep(REST)
                                rested = time.monotonic()
                            if progress.ended or self._is_exhausted(began, now):
                                break
                        if progress.ended:
                            break
                    if progress.ended:
                        break
                    if time.monotonic() - reported > REPORT:
                        yield self._take_progress()
                        reported = time.monotonic()
            progress.ended = progress.ended or "all"
        except StreamsError as error:
            progress.ended, progress.error = "error", str(error)
        yield self._take_progress()

    def _row_order(self, batch: Batch) -> range:
        return range(len(batch) - 1, -1, -1) if self._backwards else range(len(batch))

    def _read_chunk(self, partition: int) -> Iterator[Batch]:
        """The next messages of a partition, in batches."""
        low, high = self._left[partition]
        if not self._backwards:
            reader = self._readers.get(partition)
            if reader is None:
                reader = self._readers[partition] = self._log.reader(
                    self._topic, partition, low, high
                )
            for done in range(0, CHUNK, READ):
                batch = reader.read(min(READ, CHUNK - done))
                if batch is None:
                    self._done_with(partition)
                    return
                yield batch
            return
        start = max(low, self._log.offset_before(self._topic, partition, high, CHUNK))
        if start >= high:
            self._done_with(partition)
            return
        batches: deque[tuple[Batch, int]] = deque()
        first, kept = start, 0
        with closing(self._log.reader(self._topic, partition, start, high)) as reader:
            while (found := reader.read(READ)) is not None:
                size = sum(len(value or b"") for value in found.values)
                batches.append((found, size))
                kept += size
                while kept > CHUNK_BYTES and len(batches) > 1:  # the oldest are read again later
                    kept -= batches.popleft()[1]
                    first = batches[0][0].offsets[0]
        while batches:
            yield batches.pop()[0]
        if partition in self._left and not self.progress.ended:
            if first <= low:
                self._done_with(partition)
            else:
                self._left[partition] = OffsetRange(low, first)

    def _done_with(self, partition: int) -> None:
        low, high = self._left.pop(partition)
        self._all[partition] = OffsetRange(low, low) if self._backwards else OffsetRange(high, high)

    def _check_message(self, batch: Batch, index: int) -> None:
        progress = self.progress
        progress.looked += 1
        self._bytes += len(batch.values[index] or b"")
        offset, when = batch.offsets[index], batch.time(index)
        progress.oldest = when if progress.oldest is None else min(progress.oldest, when)
        progress.newest = when if progress.newest is None else max(progress.newest, when)
        low, high = self._left[batch.partition]
        self._left[batch.partition] = (
            OffsetRange(low, offset) if self._backwards else OffsetRange(offset + 1, high)
        )
        if self._matches(batch, index):
            progress.rows.append(row_of(self._log, self._payloads, batch, index))
            progress.found += 1
            if progress.found >= MAX_FOUND:
                progress.ended = "found"

    def _is_exhausted(self, began: float, now: float) -> bool:
        progress = self.progress
        if now - began > MAX_SECONDS:
            progress.ended = "seconds"
        elif progress.looked >= MAX_MESSAGES:
            progress.ended = "messages"
        elif self._bytes >= MAX_BYTES:
            progress.ended = "bytes"
        return bool(progress.ended)

    def _take_progress(self) -> SearchProgress:
        self.progress.positions = self._positions()
        self.progress.too_large = self._matches.too_large
        report = replace(self.progress)
        self.progress.rows = []
        return report

    def _positions(self) -> str:
        """The positions to go on from in each partition; a finished one's is its end."""
        found: list[str] = []
        for partition, each in sorted({**self._all, **self._left}.items()):
            at = each.end if self._backwards else each.start
            found.append(f"{partition}/{self._log.format_offset(at)}")
        return ",".join(found)

    def left(self) -> int | None:
        """Messages that were not checked; None: the log cannot count them."""
        counts = [
            count_messages(self._log, self._topic, partition, *each)
            for partition, each in self._left.items()
        ]
        return None if None in counts else sum(each or 0 for each in counts)


def parse_positions(log: Log, text: str) -> dict[int, int] | None:
    """The positions that :class:`Search` wrote to go on from; None if the text is empty.

    :raises InvalidValue: the text is something else.
    """
    if not text:
        return None
    found: dict[int, int] = {}
    for part in text.split(",")[:10_000]:
        partition, slash, offset = part.partition("/")
        if not slash or not partition.isdecimal() or len(partition) > 9:
            raise InvalidValue(f"{part[:60]!r} is not a position such as 0/17")
        try:
            found[int(partition)] = log.parse_offset(offset)
        except StreamsError as error:
            raise InvalidValue(str(error)) from None
    return found
