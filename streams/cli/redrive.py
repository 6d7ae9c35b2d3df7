"""Dead letters: which of them wait, putting them back, and setting them aside.

How it works
------------

* A group's dead letters of a topic stand in a topic of their own (``orders.billing.dead``), in
  which nothing is ever changed. How far they were dealt with is the committed position of a group
  that has *the same name as that topic*: no member ever runs in it, and every log can keep it.
* Putting back appends the letter, with its original bytes, key, headers and message ID, to the
  group's retry topic (``orders.billing.retry``), which its processors read beside the topic itself.
  Never to the topic itself: other groups would see the message again.
* The header ``streams_redrive`` counts up. It is part of what deduplication compares, so what is
  put back is handled again, and a letter that was put back twice, because this was killed between
  writing and committing, is handled once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streams.cli.failures import Failed
from streams.config import RETRY_PARTITIONS, DeadLetters
from streams.errors import NotFound
from streams.letters import PREFIX, header
from streams.log.protocol import Committed
from streams.message import ID, REDRIVE, Record
from streams.replay.copying import Row, Rows

if TYPE_CHECKING:
    from streams.errors import LogError
    from streams.log.protocol import Log
    from streams.message import Headers, Position

CHUNK = 500
"""Letters put back between two commits."""


class Letters:
    """The dead letters of one group and topic.

    :param name: of their topic, where it is not the usual one.
    :raises Failed: there is no such topic.
    """

    def __init__(self, log: Log, group: str, topic: str, name: str | None = None) -> None:
        self.log = log
        self.group = group
        self.topic = topic
        self.name = name or DeadLetters().name(topic, group)
        self.retry_topic = DeadLetters().retry(topic, group)
        try:
            self.partitions = log.topic(self.name).partitions
        except NotFound:
            known = [each for each in dead_topics(log) if each != self.name]
            hint = f"there are: {', '.join(known)}" if known else "there is none at all"
            raise Failed(f"there is no dead letter topic {self.name!r}; {hint}") from None

    def places(self) -> dict[int, int]:
        """By partition, the first letter that nobody dealt with."""
        return places(self.log, self.name, self.partitions)

    def ranges(self, *, everything: bool = False) -> dict[int, tuple[int, int]]:
        """By partition, what waits; ``everything``: also what was dealt with."""
        found = self.places()
        ranges = {}
        for partition in range(self.partitions):
            first, end = self.log.bounds(self.name, partition)
            ranges[partition] = (first if everything else max(first, found[partition]), end)
        return ranges

    def rows(self, *, everything: bool = False) -> Rows:
        """The letters, oldest first. To be closed."""
        return Rows(self.log, self.name, self.ranges(everything=everything))

    def put_back(self, limit: int | None = None) -> int:
        """Write those that wait, ``limit`` of each partition at most, to the retry topic.

        :returns: how many.
        :raises Failed: the log refused one; those before it are put back and marked so.
        """
        self._make_retry_topic()
        done = 0
        for partition, (low, high) in self.ranges().items():
            rows = Rows(self.log, self.name, {partition: (low, high)})
            left = limit
            try:
                while chunk := rows.chunk(CHUNK if left is None else min(CHUNK, left)):
                    done += self._put_back(partition, chunk, done)
                    if left is not None:
                        left -= len(chunk)
                        if left <= 0:
                            break
            finally:
                rows.close()
        return done

    def set_aside(self, limit: int | None = None) -> int:
        """Let those that wait, ``limit`` of each partition at most, count as dealt with."""
        done = 0
        for partition, (low, high) in self.ranges().items():
            rows = Rows(self.log, self.name, {partition: (low, high)})
            try:
                chunk = rows.chunk((1 << 62) if limit is None else limit, 1 << 62)
            finally:
                rows.close()
            if chunk:
                self._mark(partition, chunk[-1].position.offset + 1)
                done += len(chunk)
        return done

    def _make_retry_topic(self) -> None:
        log = self.log
        try:
            log.topic(self.retry_topic)
        except NotFound:
            log.create(self.retry_topic, RETRY_PARTITIONS, config=log.capabilities.letters)

    def _put_back(self, partition: int, rows: Sequence[Row], before: int) -> int:
        answers = append(self.log, self.retry_topic, [record_again(row) for row in rows])
        failed = next(
            (at for at, answer in enumerate(answers) if isinstance(answer, Exception)), len(rows)
        )
        if failed:
            self._mark(partition, rows[failed - 1].position.offset + 1)
        if failed < len(rows):
            raise Failed(
                f"{rows[failed].position} cannot be put back: {answers[failed]}; "
                f"put back before it: {before + failed}"
            )
        return len(rows)

    def _mark(self, partition: int, position: int) -> None:
        # Somebody else may have gone further meanwhile: never back.
        position = max(position, self.places()[partition])
        self.log.move(self.name, self.name, {partition: Committed(position)}, force=True)


def dead_topics(log: Log) -> list[str]:
    """Topics that are named as dead letter topics are."""
    return [info.name for info in log.topics() if info.name.endswith(".dead")]


def places(log: Log, name: str, partitions: int) -> dict[int, int]:
    """By partition of a dead letter topic, the first letter that nobody dealt with."""
    try:
        held = log.group(name).positions
    except NotFound:
        held = {}
    found = {}
    for partition in range(partitions):
        place = held.get((name, partition))
        found[partition] = log.bounds(name, partition)[0] if place is None else place.position
    return found


def record_again(row: Row) -> Record:
    """The message that a letter was made of, counted as put back once more."""
    batch, index = row.batch, row.index
    headers = batch.headers(index)
    again: list[tuple[str, bytes | None]] = [
        (name, value)
        for name, value in headers
        if name not in (ID, REDRIVE) and not name.startswith(PREFIX)
    ]
    again.append((REDRIVE, str(redrives(headers) + 1).encode()))
    return Record(batch.values[index], batch.keys[index], batch.id(index), again)


def redrives(headers: Headers) -> int:
    """How often a message was put back so far."""
    found = header(headers, REDRIVE) or "0"
    return int(found) if found.isascii() and found.isdigit() else 0


def append(log: Log, topic: str, records: Sequence[Record]) -> list[Position | LogError]:
    """Write records and wait for what becomes of them."""
    ended = threading.Event()
    answers: list[Any] = []

    def done(found: Sequence[Position | LogError]) -> None:
        answers.extend(found)
        ended.set()

    log.append(topic, records, done)
    ended.wait()
    return answers
