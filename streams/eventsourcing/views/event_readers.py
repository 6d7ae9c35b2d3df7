"""What the messages of a partition mean to a view: of its one source, or of its keyed topic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from streams.decoding import TopicDecoder
from streams.errors import NotFound
from streams.eventsourcing.views.checkpoint_check import REMEDY, CheckpointBeyondLog
from streams.eventsourcing.views.checkpoints import NO_INCARNATIONS, SourcePosition
from streams.eventsourcing.views.errors import EventsChanged
from streams.eventsourcing.views.incarnations import is_another
from streams.eventsourcing.views.keyed_records import KeyedRecord, parse_keyed, source_batch
from streams.eventsourcing.views.repeats import NO_REPEATS, BatchRepeats, RepeatDetector
from streams.log.event_filter import ForeignRecords
from streams.message import Batch, Message, Position, make_message, numbered_message
from streams.processing import SeveralValues, Skip


class Unit(NamedTuple):
    """One event of a message.

    :param number: which of the message's events it is, from 0.
    :param message: makes the message that the view's function is given.
    """

    number: int
    event: Any
    message: Callable[[], Message[Any]]


class ViewEventReader(Protocol):
    """Reads the batches of one partition, one after the other."""

    def begin(self, batch: Batch, start: int) -> None:
        """The next batch, or the rest of one.

        :raises LogError: what it says cannot be held against the log now.
        """
        ...

    def fast_events(self, batch: Batch) -> Sequence[Any] | None:
        """The event of each message, where each has one that can be decoded at once; else None."""
        ...

    def read(self, batch: Batch, index: int) -> Sequence[Unit]:
        """The events of one message that are to be folded.

        :raises Skip: there is none.
        :raises EventsChanged: which ones they are cannot be known.
        :raises Exception: it cannot be decoded.
        """
        ...

    def position(self, batch: Batch, index: int) -> Position:
        """Where the message stands that the event came with."""
        ...

    @property
    def incarnations(self) -> Mapping[str, str]:
        """Of the topics that were read, as far as they are known."""
        ...

    def sources_before(self, index: int) -> Mapping[str, SourcePosition]:
        """How far each source partition is read before a message of the batch; empty where the
        offsets of the batch say it."""
        ...

    def at(self, offset: int, sources: Mapping[str, SourcePosition]) -> ViewEventReader:
        """Another reader of the same partition, for batches from an offset on, before which its
        sources were read so far."""
        ...


def _decode_units(decoding: TopicDecoder[Any], batch: Batch, index: int) -> Sequence[Unit]:
    value = decoding.decode_one(batch, index)
    if type(value) is not SeveralValues:
        return (Unit(0, value, partial(make_message, value, batch, index, 1)),)
    whole = make_message(None, batch, index, 1)
    return [
        Unit(number, each, partial(numbered_message, whole, each, number))
        for number, each in enumerate(value.values)
    ]


class SourceReader(ViewEventReader):
    """Reads one partition of a source.

    :param repeats: tells which messages are passed over; None: none is.
    :param incarnations: that of its topic, by its name, where it is known.
    """

    def __init__(
        self,
        decoding: TopicDecoder[Any],
        repeats: RepeatDetector | None = None,
        incarnations: Mapping[str, str] = NO_INCARNATIONS,
    ) -> None:
        self._decoding = decoding
        self._repeats = repeats
        self._incarnations = incarnations
        self._batch: Batch | None = None
        self._opened: Any = None
        """The batch, with its CloudEvents of structured mode opened."""
        self._batch_repeats = BatchRepeats(NO_REPEATS, None)

    @override
    def begin(self, batch: Batch, start: int) -> None:
        if batch is self._batch:  # the rest of it
            return
        opened = self._decoding.unwrap(batch)
        if self._repeats is not None:
            self._batch_repeats = self._repeats.take_batch(opened)
        self._batch, self._opened = batch, opened

    @override
    def fast_events(self, batch: Batch) -> Sequence[Any] | None:
        if self._batch_repeats.repeated:
            return None
        if self._batch_repeats.values is not None:
            return self._batch_repeats.values
        batch = self._opened
        decoding, values = self._decoding, batch.values
        if batch.unreadable or batch.decode_errors:
            return None
        decode = decoding.fast_decoder(values, batch.total_and_largest()[1])
        if decode is None:
            return None
        try:
            events = list(map(decode, values))
        except Exception:  # which one it is, is seen when they are decoded one by one
            return None
        return events if len(events) == len(values) else None

    def is_repeat(self, index: int) -> bool:
        """Whether a message of the batch is passed over, as it was published twice."""
        return index in self._batch_repeats.repeated

    @override
    def read(self, batch: Batch, index: int) -> Sequence[Unit]:
        if index in self._batch_repeats.repeated:
            raise Skip
        return _decode_units(self._decoding, self._opened, index)

    @override
    def position(self, batch: Batch, index: int) -> Position:
        return Position(batch.topic, batch.partition, batch.offset(index))

    @property
    @override
    def incarnations(self) -> Mapping[str, str]:
        return self._incarnations

    @override
    def sources_before(self, index: int) -> Mapping[str, SourcePosition]:
        return {}

    @override
    def at(self, offset: int, sources: Mapping[str, SourcePosition]) -> ViewEventReader:
        if self._repeats is None:
            return self
        return SourceReader(self._decoding, self._repeats.begin_at(offset), self._incarnations)


class KeyedReader(ViewEventReader):
    """Reads a view's keyed topic, in which each event stands again under its document's key.

    What is written there is written again when its writer did not learn that it was. A record
    counts if it is the next one of its source partition: it is behind the last that counted, and
    nothing that belongs between them is missing (:mod:`.keyed_records`).

    Anybody may have written a record there. One that names a message which its source does not have
    yet would hide all that come until then, so it is foreign; so is one without a document's key,
    at which the partition would wait.

    So is one that was written for another keyed topic of this name. One that is made of another
    topic of its source's name than what was read before ends it: it is not the same history.

    :param decodings: of the sources, by topic.
    :param sources: how far each source partition was read.
    :param end_of: where a source partition ends now.
    :param topic: the keyed topic.
    :param incarnations: of the keyed topic and of the sources that were read.
    """

    def __init__(
        self,
        decodings: Mapping[str, TopicDecoder[Any]],
        foreign: ForeignRecords,
        sources: Mapping[str, SourcePosition],
        end_of: Callable[[str, int], int],
        topic: str,
        incarnations: Mapping[str, str],
    ) -> None:
        self._topic = topic
        self._incarnations = dict(incarnations)
        self._end_of = end_of
        self._ends: dict[str, int] = {}
        """Where the sources ended when that was asked last; they only grow."""
        self._decodings = decodings
        self._foreign = foreign
        self._sources = dict(sources)
        self._batch: Batch | None = None
        self._records: list[KeyedRecord | None] = []
        """Of the batch, those that count."""
        self._before: list[tuple[str, SourcePosition | None]] = []
        """Of each message of the batch: the source whose position it moves, and that before."""

    @override
    def begin(self, batch: Batch, start: int) -> None:
        if batch is self._batch:  # the rest of it: what was not folded is read again
            self._sources = dict(self.sources_before(start))
        self._batch, sources = batch, self._sources
        records: list[KeyedRecord | None] = [None] * start
        before: list[tuple[str, SourcePosition | None]] = [("", None)] * start
        foreign: list[int] = []
        for index in range(start, len(batch)):
            found = parse_keyed(batch.extra_headers(index))
            if found is None or batch.keys[index] is None or not self._is_there(found):
                foreign.append(index)
                records.append(None)
                before.append(("", None))
                continue
            self._check_incarnation(found)
            name = found.source
            last = sources.get(name)
            place = found.offset, found.copy
            is_next = (last is None or place > last) and (
                found.after is None or (last is not None and found.after <= last)
            )
            records.append(found if is_next else None)
            before.append((name if is_next else "", last))
            if is_next:
                sources[name] = place
        self._records, self._before = records, before
        if foreign:
            self._foreign.report(batch, foreign)

    def _check_incarnation(self, record: KeyedRecord) -> None:
        """:raises CheckpointBeyondLog: it is of another topic than what was read before."""
        known = self._incarnations.get(record.topic, "")
        if is_another(record.incarnation, known):
            raise CheckpointBeyondLog(
                f"{self._topic}: the event at {record.source}/{record.offset} is of a topic "
                f"{record.topic!r} that was recreated, but what was folded before is not: {REMEDY}"
            )
        if not known and record.incarnation:
            self._incarnations[record.topic] = record.incarnation

    def _is_there(self, record: KeyedRecord) -> bool:
        """Whether the source has the message that a record says it was made of."""
        if record.topic not in self._decodings:
            return False
        if is_another(record.keyed_incarnation, self._incarnations.get(self._topic, "")):
            return False
        if record.offset >= self._ends.get(record.source, 0):
            try:
                self._ends[record.source] = self._end_of(record.topic, record.partition)
            except NotFound:
                return False
        return record.offset < self._ends[record.source]

    @override
    def fast_events(self, batch: Batch) -> Sequence[Any] | None:
        return None

    @override
    def read(self, batch: Batch, index: int) -> Sequence[Unit]:
        record = self._records[index]
        if record is None:
            raise Skip
        decoding = self._decodings[record.topic]
        row = source_batch(record, batch, index)
        units = _decode_units(decoding, decoding.unwrap(row), 0)
        if record.event is None or not units:
            return units
        number, count = record.event
        if len(units) != count:
            raise EventsChanged(self.position(batch, index), count, len(units))
        return [units[number]]

    @override
    def position(self, batch: Batch, index: int) -> Position:
        record = self._records[index]
        if record is None:
            return Position(batch.topic, batch.partition, batch.offset(index))
        return Position(record.topic, record.partition, record.offset)

    @property
    @override
    def incarnations(self) -> Mapping[str, str]:
        return self._incarnations

    @override
    def sources_before(self, index: int) -> Mapping[str, SourcePosition]:
        sources = dict(self._sources)
        for name, last in reversed(self._before[index:]):
            if not name:
                continue
            if last is None:
                sources.pop(name, None)
            else:
                sources[name] = last
        return sources

    @override
    def at(self, offset: int, sources: Mapping[str, SourcePosition]) -> ViewEventReader:
        return KeyedReader(
            self._decodings, self._foreign, sources, self._end_of, self._topic, self._incarnations
        )
