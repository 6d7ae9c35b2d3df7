"""Attempts that are counted in the log: ``Retry(in_order=False)`` and ``Retry(durable=True)``.

A message that gives its order up, or has none, waits in the group's delay topic,
``{topic}.{group}.delay``, and comes back through ``{topic}.{group}.retry``, which its processor
reads anyway, with the number of its attempts in a header. It holds nothing up meanwhile, takes no
memory, and is settled where it failed: its ID with the redrive count is its identity, so each
attempt is a message of its own to deduplication.

A message that keeps its order stays in its lane.

Either is noted in ``{topic}.{group}.attempts``, in the partition of the same number, before the
message is settled or tried again. The partition's next owner reads the notes that are younger than
the oldest message that is not settled: it counts on, and passes over what waits elsewhere already.
Notes are kept for :data:`KEPT` seconds; older ones count for nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streams import wire
from streams.engine.dispatch import Work
from streams.errors import LogError
from streams.letters import ATTEMPTS, ORIGIN, PREFIX, attempts_of, redrives_of
from streams.log.names import check_topic
from streams.log.protocol import Assignment, Log, Retention, ensure
from streams.message import ID, REDRIVE, TIME, Batch, Position, Record
from streams.patterns.delay.owner import Desk, own
from streams.patterns.delay.wire import FAR, copy_name, entry
from streams.processor import Processor
from streams.runners.job import Outgoing
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.app import Streams

logger = get_logger("streams.delay")

PENDING = 200_000
"""Messages a partition whose due time is held in memory at once."""

KEPT = 7 * 86_400.0
"""Seconds for which a note counts."""

SKEW = 3600.0
"""Seconds by which the clocks of those who publish may differ."""

MOVED = 1 << 30
"""A note that says: the message waits elsewhere. More attempts than there can be."""

_TRIES = 5


def delay_topic(topic: str, group: str) -> str:
    """Where messages of ``topic`` wait that ``group`` handles later."""
    return f"{topic}.{group}.delay"


def keep(app: Streams, processor: Processor[..., Any]) -> Kept:
    """Declare what keeps a processor's late messages, and make it the processor's companion."""
    return Kept(app, processor)


class Kept:
    """See :class:`streams.runners.job.Kept`."""

    def __init__(self, app: Streams, processor: Processor[..., Any]) -> None:
        options = processor.options
        self._app = app
        self._group = group = processor.group
        self._loose = not options.retry.in_order
        self._delays: dict[str, str] = {}
        """The delay topic, by the topic read."""
        self._back: dict[str, str] = {}
        """The topic through which messages come back, by the topic read."""
        self._notes: dict[str, str] = {}
        """The topic of notes, by the topic read."""
        self._counts: dict[tuple[str, int, int], int] = {}
        """Attempts of messages of a partition's former owner, by place."""
        self.desks: dict[str, Desk] = {}
        """Who keeps the delay topic, by source topic."""
        for source in options.topics:
            delay = check_topic(delay_topic(source.name, group))
            retry = options.dead_letters.retry(source.name, group)
            for name in (source.name, retry):
                self._delays[name], self._back[name] = delay, retry
                self._notes[name] = check_topic(f"{source.name}.{group}.attempts")
            desk = self.desks[source.name] = own(
                app, delay, _partitions(source.name), {source.name, retry}.__contains__, PENDING
            )
            if desk.owner is not None:
                processor.companions.append(desk.owner)

    def prepare(self, log: Log) -> None:
        """Create the topics of notes, and those through which messages come back, each with as
        many partitions as its source: as many members can share the work; blocks."""
        for topic in self.desks:
            count = log.topic(topic).partitions
            ensure(log, self._notes[topic], count, Retention(seconds=KEPT))
            ensure(log, self._back[topic], count, config=log.capabilities.letters)

    # -- asked by the runner

    def attempts(self, batch: Batch, index: int) -> int:
        """How often a message that was just taken up failed before."""
        if self._counts:
            noted = self._counts.get((batch.topic, batch.partition, batch.offsets[index]))
            if noted is not None:
                return noted
        return 0 if batch.topic in self.desks else attempts_of(batch.headers(index))

    def failing(self, work: Work, attempt: int, delay: float) -> tuple[Outgoing | None, Outgoing]:
        """The message as it comes back, if it leaves; and a note."""
        batch, index = work[0].batch, work[1]
        if self._loose or batch.keys[index] is None:
            return self._again(batch, index, attempt, delay), self._note(batch, index, MOVED)
        place = (batch.topic, batch.partition, batch.offsets[index])
        if self._counts.get(place) or attempts_of(batch.headers(index)):
            self._counts[place] = 0  # from now on it is part of the work
        return None, self._note(batch, index, attempt)

    def moved(self, batch: Batch, index: int) -> bool:
        """The message waits in the delay topic, or did."""
        counts = self._counts
        if not counts:
            return False
        return counts.get((batch.topic, batch.partition, batch.offsets[index])) == MOVED

    def clear(self, batch: Batch) -> bool:
        """Nothing is noted, and the headers of these hold no count."""
        return not self._counts and batch.topic in self.desks

    def _note(self, batch: Batch, index: int, attempt: int) -> Outgoing:
        name = str(Position(batch.topic, batch.partition, batch.offsets[index]))
        note = Record(
            str(attempt).encode(), name.encode(), f"{name}/{attempt}", (), batch.partition
        )
        return self._notes[batch.topic], note

    def _again(self, batch: Batch, index: int, attempt: int, delay: float) -> Outgoing:
        headers = batch.headers(index)
        redrive = redrives_of(headers) + 1
        kept = [
            (name, value)
            for name, value in headers
            if name not in (ID, REDRIVE) and not name.startswith(PREFIX)
        ]
        if not any(name == TIME for name, _ in kept):
            kept.append((TIME, wire.utc(batch.time(index)).isoformat().encode()))
        if batch.topic in self.desks and not any(name == ORIGIN for name, _ in kept):
            place = f"{batch.topic}/{batch.partition}/{batch.offset(index)}"
            kept.append((ORIGIN, place.encode()))
        kept += [(REDRIVE, str(redrive).encode()), (ATTEMPTS, str(attempt).encode())]
        id = batch.id(index)
        record = Record(batch.values[index], batch.keys[index], id, kept)
        due = min(math.ceil((self._app.clock.time() + delay) * 1000), FAR)
        known = copy_name(id, headers, redrive)
        back = self._back[batch.topic]
        copy = entry(record, back, due, known=known, id=f"{known}/{self._group}")
        return self._delays[batch.topic], copy

    # -- told by the pump

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Watch: read what the former owners noted."""
        for assignment in assignments:
            for tries in range(1, _TRIES + 1):
                try:
                    self._read(assignment)
                    break
                except LogError as error:
                    if tries == _TRIES:
                        logger.error(
                            "%s: attempts of waiting messages start over: %s", assignment, error
                        )
                    else:
                        time.sleep(0.1 * tries)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Watch: forget what was noted of these."""
        gone = {(each.topic, each.partition) for each in assignments}
        kept = {place: n for place, n in self._counts.items() if place[:2] not in gone}
        self._counts = kept

    def busy(self) -> str:
        """Watch: nothing happens here by itself."""
        return ""

    def due(self) -> None:
        """Watch: what waits is in the delay topic, whose own processor says when it is due."""

    def _read(self, assignment: Assignment) -> None:
        log, topic, partition = self._app.log, assignment.topic, assignment.partition
        notes = self._notes[topic]
        if partition >= log.topic(notes).partitions:
            return
        first, end = log.bounds(notes, partition)
        _, last = log.bounds(topic, partition)
        if first >= end or assignment.position >= last:
            return
        source = log.reader(topic, partition, assignment.position, last)
        try:
            oldest = source.read(1)
        finally:
            source.close()
        if oldest is None:
            return
        start = max(first, log.at(notes, partition, oldest.time(0) - SKEW))
        if start >= end:
            return
        reader = log.reader(notes, partition, start, end)
        counts: dict[tuple[str, int, int], int] = {}
        try:
            while (batch := reader.read(1_000)) is not None:
                for key, value in zip(batch.keys, batch.values, strict=True):
                    place = wire.place(key)
                    if place is None or place[0] != topic or place[2] < assignment.position:
                        continue
                    noted = wire.whole(value)
                    if noted is not None and noted <= MOVED:
                        counts[place] = max(counts.get(place, 0), noted)
        finally:
            reader.close()
        self._counts |= counts


def _partitions(topic: str) -> Any:
    return lambda log: log.topic(topic).partitions
