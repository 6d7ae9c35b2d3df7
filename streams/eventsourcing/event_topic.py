"""The topic of an aggregate's events: read and processed like any other, written only by the
aggregate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, NoReturn

from typing_extensions import TypeVar

from streams.app import Streams
from streams.decoding import TopicDecoder
from streams.errors import EventTopicError, InvalidValue
from streams.eventsourcing.event_codec import EventCodec
from streams.log.event_headers import COPIED_VERSION, EVENT, event_version, parse_event
from streams.log.events import EventLog, events_only
from streams.log.protocol import Log
from streams.message import Batch, Message, Record
from streams.processing import SeveralValues, Skip
from streams.topic import InternalTopic
from streams.wire import parse_int

E = TypeVar("E")

DEFAULT_PARTITIONS = 8
"""The default number of partitions of an event topic."""


class StoredEventDecoder(TopicDecoder[E], Generic[E]):
    """Decodes stored events as current events."""

    gives_several = True

    def __init__(self, codec: EventCodec[E]) -> None:
        self._codec = codec
        self.id_reader = None
        """None: events are identified by the message ID in their headers."""

    def unwrap(self, batch: Batch) -> Batch:
        """The batch itself: events are not wrapped."""
        return batch

    def fast_decoder(
        self, values: Sequence[bytes | None], largest: int
    ) -> Callable[[Any], Any] | None:
        """The bare decoder, if it is safe for these values and no upcast is declared; else None."""
        return self._codec.fast_decoder(values, largest)

    def decode_one(self, batch: Batch, index: int) -> Any:
        """One event; :class:`~streams.processing.SeveralValues`, if upcasts made several of it.

        :raises Skip: upcasts made no event of it.
        :raises NewerTag: this code does not know the event's tag, so its message waits.
        :raises DecodeError: the event cannot be decoded.
        """
        events = self._codec.decode(batch.values[index])
        if len(events) == 1:
            return events[0]
        if not events:
            raise Skip
        return SeveralValues(events)


class EventTopic(InternalTopic[E]):
    """The events of one aggregate type. Made by :class:`~streams.Aggregate`."""

    is_read_only = True

    def __init__(
        self, app: Streams, aggregate: str, codec: EventCodec[E], partitions: int | None
    ) -> None:
        super().__init__(
            app,
            f"{aggregate}.events",
            codec.type,
            codec=codec.codec,
            partitions=DEFAULT_PARTITIONS if partitions is None else partitions,
        )
        self.decoding = StoredEventDecoder(codec)

    def ensure(self, log: Log) -> None:
        """Create the topic if it is missing (blocks).

        :raises EventTopicError: a topic of that name exists and holds no histories.
        :raises PartitionCountMismatch: the topic has another number of partitions.
        """
        if not isinstance(log, EventLog):
            raise EventTopicError(f"{log.capabilities.name} keeps no histories")
        log.create_event_topic(self.name, self.partitions or DEFAULT_PARTITIONS)

    def version_of(self, message: Message[Any]) -> int:
        """The version, in its aggregate's history, of an event read from this topic.

        :raises InvalidValue: the message is not from an event topic.
        """
        found = parse_event(message.header(EVENT), message.id)
        version = None if found is None else event_version(found)
        if version is None:  # a message that came back to its group is a copy
            version = parse_int(message.header(COPIED_VERSION))
        if version is None:
            raise InvalidValue(f"topic {self.name!r}: version_of({message!r}): it is no event")
        return version

    def _refuse(self, *given: Any, **options: Any) -> NoReturn:
        raise events_only(self.name, "published to")

    def record(self, *given: Any, **options: Any) -> Record:
        """Refused: only the aggregate writes events.

        :raises EventTopicError: always.
        """
        self._refuse()

    def records(self, values: Iterable[E]) -> list[Record]:
        """Refused: only the aggregate writes events.

        :raises EventTopicError: always.
        """
        self._refuse()
