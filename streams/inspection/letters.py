"""One dead letter: its failure and source, from its headers; and the filter behind ``--error``,
``--key`` and so on.

Any client that can write to the topic may have written it, so all of it is untrusted text that must
be escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datetime import datetime

    from streams.log.range_reader import LogRow
    from streams.message import Headers
    from streams.topic import Topic


class LetterFacts(NamedTuple):
    """The facts in a dead letter's headers.

    :param exception: the error's type with its module; empty: not stated.
    :param error: the error's type and text; ``?``: not stated.
    :param failed_at: when it became a dead letter.
    :param topic: the topic it was read from when it failed; None: not stated. Likewise ``group``,
        ``partition`` and ``offset``.
    :param source: these as a position, with ``?`` for missing parts.
    :param origin: the position of the message when it first failed.
    :param attempts: how often it had failed; None: not stated.
    :param redrives: how often it was put back before.
    :param edited: whether its value was changed when it was put back.
    :param traceback: the traceback; None: there is none.
    """

    exception: str
    error: str
    failed_at: datetime
    topic: str | None
    group: str | None
    partition: str | None
    offset: str | None
    source: str
    origin: str
    first_failed_at: datetime
    first_error: str
    attempts: int | None
    redrives: int
    edited: bool
    traceback: str | None


def letter_facts(row: LogRow) -> LetterFacts:
    """The facts in a dead letter's headers."""
    from streams import derived_records as records
    from streams import wire
    from streams.patterns.deadletters import failure_time

    headers = row.headers

    def header(name: str) -> str | None:
        return records.header_text(headers, name)

    topic, partition = header(records.ERROR_TOPIC), header(records.ERROR_PARTITION)
    offset = header(records.ERROR_OFFSET)
    source = "/".join(each or "?" for each in (topic, partition, offset))
    error = records.error_of(headers, unknown="?")
    failed_at = failure_time(row.batch, row.index)
    return LetterFacts(
        exception=header(records.ERROR_EXCEPTION) or "",
        error=error,
        failed_at=failed_at,
        topic=topic,
        group=header(records.ERROR_GROUP),
        partition=partition,
        offset=offset,
        source=source,
        origin=header(records.ORIGIN) or source,
        first_failed_at=wire.parse_iso_time(header(records.FIRST_FAILED)) or failed_at,
        first_error=header(records.FIRST_ERROR) or error,
        attempts=records.attempts_of(headers) or None,
        redrives=records.times_put_back(headers),
        edited=header(records.EDITED) is not None,
        traceback=header(records.ERROR_STACKTRACE),
    )


def own_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    """The headers that a dead letter's message had, without its ID and without its error."""
    from streams.derived_records import ERROR_PREFIX
    from streams.message import ID, headers_without

    return headers_without(headers, (ID,), ERROR_PREFIX)


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """A filter for dead letters; by default every letter matches."""

    error: str | None = None
    """A text in the error's type or text, case-insensitive."""
    keys: frozenset[bytes] | None = None
    since: float = -inf
    until: float = inf
    """The letter failed at ``since`` or later, and before ``until``, in seconds since the epoch."""

    @property
    def matches_all(self) -> bool:
        """Whether every letter matches."""
        return self == DeadLetterFilter()

    def __call__(self, row: LogRow) -> bool:
        """Whether a dead letter matches."""
        from streams.derived_records import ERROR_EXCEPTION, error_of, header_text
        from streams.patterns.deadletters import failure_time

        batch, index = row.batch, row.index
        if self.keys is not None and batch.keys[index] not in self.keys:
            return False
        asks_when = self.since > -inf or self.until < inf
        if asks_when and not self.since <= failure_time(batch, index).timestamp() < self.until:
            return False
        if self.error is None:
            return True
        headers = batch.headers(index)
        said = header_text(headers, ERROR_EXCEPTION) or "", error_of(headers)
        return any(self.error.casefold() in each.casefold() for each in said)


def decoding_problem(topic: Topic[Any], row: LogRow, value: bytes) -> str | None:
    """Why a topic cannot decode a letter's message with another value; None: it can."""
    from streams.message import Batch

    changed = Batch(
        topic.name, row.batch.partition, (row.offset,), [row.batch.keys[row.index]], [value],
        [row.id], [own_headers(row.headers)], [row.batch.time(row.index)],
    )  # fmt: skip
    try:
        decoding = topic.decoding
        decoding.decode_one(decoding.unwrap(changed), 0)
    except Exception as error:  # the app's own types may raise anything
        return f"{type(error).__name__}: {error}"
    return None
