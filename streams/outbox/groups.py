"""Groups of rows of one topic in flight to the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from streams.app import Streams
from streams.cancellation import wait_for_callback
from streams.errors import (
    Fatal,
    LogError,
    NotRunning,
    OutcomeUnknown,
    ProcessorDied,
    TooLarge,
    Unavailable,
)
from streams.message import Position, Record
from streams.outbox.rows import InvalidRow, record_of
from streams.outbox.tables import ROW_BYTES, RelayRow
from streams.text import one_line

LARGE = 16 << 10
"""Bytes from which on a row is the last of its key in a group: it may be too large for its topic,
and the rows behind it must not reach the log before it."""

Failure = tuple[RelayRow, str]
"""A row that cannot be published, and the reason."""


class RowGroup:
    """Rows of one topic, in their order.

    :param term: the term of the ownership under which they were read.
    """

    def __init__(self, topic: str, rows: Sequence[RelayRow], term: int) -> None:
        self.topic = topic
        self.term = term
        self.rows = rows
        self.sequences = [row.sequence for row in rows]
        self.buckets = Counter(row.bucket for row in rows)
        self.size = sum(row.size + ROW_BYTES for row in rows)


@dataclass(slots=True)
class GroupOutcome:
    """The outcome of a group. Rows that are not named in it are unchanged.

    :param confirmed: the sequences of the rows that the log has confirmed.
    :param failures: the first rows of their keys that cannot be published.
    :param outage: the error of the log, if it could not be reached.
    """

    confirmed: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    outage: LogError | None = None

    def failures_by_reason(self) -> dict[str, list[int]]:
        """The sequences of the failed rows, by the reason."""
        found: dict[str, list[int]] = {}
        for row, reason in self.failures:
            found.setdefault(reason, []).append(row.sequence)
        return found


class GroupPublisher:
    """Publishes groups to topics that an app declares.

    :param is_ours: returns whether no other relay can own a group's keys.
    """

    def __init__(self, app: Streams, is_ours: Callable[[RowGroup], bool]) -> None:
        self._app = app
        self._is_ours = is_ours

    async def publish(self, group: RowGroup) -> GroupOutcome:
        """Publish rows; errors of the log are in the outcome and never raised."""
        problem = self._topic_problem(group.topic)
        if problem:
            return GroupOutcome(failures=_first_of_each_key((row, problem) for row in group.rows))
        sendable, failures = prepare_records(group.rows)
        outcome = GroupOutcome(failures=failures)
        if not sendable:
            return outcome
        results = await self._append_records(group.topic, [record for _, record in sendable])
        refused: list[tuple[RelayRow, Record]] = []
        stopped: set[str] = set()
        for (row, record), result in zip(sendable, results, strict=True):
            if isinstance(result, Position):
                outcome.confirmed.append(row.sequence)
            elif _is_outage(result):
                outcome.outage = result
                stopped.add(row.key)
            elif row.key not in stopped:  # a row behind one that did not arrive is read again
                refused.append((row, record))
        if refused:
            await self._publish_singly(group, refused, outcome)
        return outcome

    async def _publish_singly(
        self, group: RowGroup, refused: Sequence[tuple[RelayRow, Record]], outcome: GroupOutcome
    ) -> None:
        """Publish rows one by one, as a row may have been refused because of another one in its
        append."""
        stopped: set[str] = set()
        for row, record in refused:
            if row.key in stopped:
                continue
            if not self._is_ours(group):
                return
            (result,) = await self._append_records(group.topic, [record])
            if isinstance(result, Position):
                outcome.confirmed.append(row.sequence)
                continue
            stopped.add(row.key)
            if _is_outage(result):
                outcome.outage = result
            else:
                outcome.failures.append((row, _failure_reason(result)))

    def _topic_problem(self, name: str) -> str:
        """Why a topic cannot be published to; empty: it can."""
        topic = self._app.topics[name]
        if topic.is_read_only or topic.internal:
            return "the topic is the toolkit's own, which nothing else writes to"
        return ""

    async def _append_records(self, topic: str, records: Sequence[Record]) -> Sequence[Any]:
        """Append records; returns the position or the error of each."""
        try:
            publisher = self._app.publisher
            found: Sequence[Any] = await wait_for_callback(
                partial(publisher.append, topic, records)
            )
        except (NotRunning, ProcessorDied) as error:
            return [Unavailable(str(error))] * len(records)
        return found


def prepare_records(
    rows: Sequence[RelayRow],
) -> tuple[list[tuple[RelayRow, Record]], list[Failure]]:
    """The rows that may be appended at once, with their records, and the rows that are no messages.

    Rows behind an invalid or a large row of the same key are left out.
    """
    sendable: list[tuple[RelayRow, Record]] = []
    failures: list[Failure] = []
    closed: set[str] = set()
    for row in rows:
        if closed and row.key in closed:
            continue
        try:
            record = record_of(row)
        except InvalidRow as error:
            failures.append((row, str(error)))
            closed.add(row.key)
            continue
        sendable.append((row, record))
        if row.size >= LARGE:
            closed.add(row.key)
    return sendable, failures


def _first_of_each_key(failures: Iterable[Failure]) -> list[Failure]:
    """The first failure of each key; the key's other rows wait behind it."""
    found: dict[str, Failure] = {}
    for row, reason in failures:
        found.setdefault(row.key, (row, reason))
    return list(found.values())


def _is_outage(result: LogError) -> bool:
    """Whether an error is not the record's own fault."""
    return isinstance(result, (Unavailable, OutcomeUnknown, Fatal))


def _failure_reason(result: LogError) -> str:
    kind = "" if isinstance(result, TooLarge) else f"{type(result).__name__}: "
    return one_line(f"{kind}{result}")
