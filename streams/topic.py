"""Topics: a name, a type, and the encoding of values, keys and message IDs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from inspect import isclass
from operator import attrgetter
from typing import Any, Generic, Literal, TypeVar
from uuid import UUID

from typing_extensions import TypeForm
from uuid_utils import uuid7

from stream_codecs import (
    BindError,
    Codec,
    EncodeError,
    default_codec,
    fields_of,
    includes_none,
    tags_of,
    type_name,
)
from streams.annotation_checks import TopicType, check_function
from streams.callables import qualified_name
from streams.cloudevents import EventHeaderWriter
from streams.config import CloudEvents, OnUnknown, Retention
from streams.connection import Connection
from streams.decoding import TopicDecoder, ValueIdReader
from streams.errors import ConfigError
from streams.log.names import check_topic
from streams.message import ID, TIME, Headers, Position, Record
from streams.numbers import is_int
from streams.topic_follower import TopicFollower
from streams.topic_reader import OffsetSpec, TopicReader
from streams.wire import in_utc

T = TypeVar("T")

Key = str | int | UUID | bytes
"""The types of a key: text, or a type with one obvious text form."""


class Topic(Generic[T]):
    """A topic of an app: declared once, published to and read from anywhere in it.

    Made by :meth:`streams.Streams.topic`.
    """

    default_partitions = 1
    """The number of partitions it is created with if none is declared."""
    internal = False
    """Whether it belongs to the toolkit: then it is created if missing, on every log. A user's
    topic is not created on Kafka unless its partitions are declared, as their number can never
    change."""
    for_dead_letters = False
    """Whether dead letters go to it: it is created with the settings of a dead letter topic."""
    is_read_only = False
    """Whether it cannot be published to: it holds the events of an aggregate, which alone writes
    them."""

    def __init__(
        self,
        connection: Connection,
        name: str,
        type: TypeForm[T] = bytes,  # type: ignore[assignment]  # T is bytes when it is not given
        *,
        key: str | Callable[[T], Key | None] | None = None,
        id: str | Callable[[T], str] | None = None,
        codec: Codec | None = None,
        partitions: int | None = None,
        unknown: OnUnknown = "dead",
        retention: Retention | None = None,
        cloudevents: CloudEvents | None = None,
    ) -> None:
        self.connection = connection
        """The app that declared it, through which it is published and read."""
        self.name = check_topic(name)
        self.type = type
        problem = ""
        if partitions is not None and not is_int(partitions, 1):
            problem = f"partitions={partitions!r}: must be a positive integer"
        elif unknown not in ("dead", "skip", "wait"):
            problem = f"unknown={unknown!r}: 'dead', 'skip' or 'wait'"
        elif unknown != "dead" and codec is None and not tags_of(type):
            problem = f"unknown={unknown!r} is for tagged types; {type_name(type)} has no tags"
        elif retention is not None and not isinstance(retention, Retention):
            problem = f"retention={retention!r}: give a Retention(...)"
        if problem:
            raise ConfigError(f"topic {name!r}: {problem}")
        check_codec(f"topic {name!r}", codec)
        self.partitions = partitions
        self.retention = retention
        """The declared retention of its messages; None: none is declared."""
        module = "stream_codecs" if codec is None else codec.__class__.__module__
        custom_codec = not module.startswith("stream_codecs")
        self.topic_type = None if custom_codec and type is bytes else TopicType(name, type)
        """Its name and type, for type checks; None for the type ``bytes`` with a custom codec,
        which may decode to any type (``bytes`` is also the default type)."""
        self.key_of = _field_reader(name, "key", key, type, self.topic_type)
        self.id_of = _field_reader(name, "id", id, type, self.topic_type)
        self.id_in_value = id is not None
        try:
            codec = codec if codec is not None else default_codec(type)
            self._bound = codec.bind(type, topic=name, role="value")
            id_reader = ValueIdReader(self.id_of) if self.id_of is not None else None
            unwraps_events = cloudevents is not None
            self.decoding: TopicDecoder[T] = TopicDecoder(
                codec, type, name, unknown, id_reader, unwraps_events=unwraps_events
            )
        except BindError as error:
            raise ConfigError(f"topic {name!r}: {error}") from error
        self._nullable = includes_none(type)
        self._event_writer: EventHeaderWriter | None = None
        if cloudevents is not None:
            self._event_writer = EventHeaderWriter(cloudevents, name, self._bound.content_type)

    def __repr__(self) -> str:
        return f"<Topic {self.name!r}>"

    # -- publishing

    def record(
        self,
        value: T,
        *,
        key: Key | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timestamp: datetime | None = None,
    ) -> Record:
        """The record that would be written for a value.

        :raises EncodeError: the value does not fit the topic's type.
        :raises ConfigError: no value can be written, as the codec detects only now.
        """
        try:
            data = None if value is None and self._nullable else self._bound.encode(value)
        except BindError as error:
            raise ConfigError(f"topic {self.name!r}: {error}") from error
        if key is None and self.key_of is not None and value is not None:
            key = self.key_of(value)
        if id is None:
            if self.id_of is None or value is None:
                id = str(uuid7())
            else:
                found = self.id_of(value)
                if found is None or found == "":
                    raise EncodeError("the value's message ID is empty", topic=self.name)
                id = str(found)
        elif not isinstance(id, str) or not id or "\0" in id:
            problem = f"{id!r} is not a non-empty str without NUL"
            raise EncodeError(problem, topic=self.name, role="message ID")
        pairs: Sequence[tuple[str, bytes | None]] = ()
        if headers or timestamp is not None:
            pairs = self._encode_headers(headers or {}, timestamp)
        if self._event_writer is not None:
            pairs = self._event_writer.headers(value, pairs)
        return Record(data, encode_key(self.name, key), id, pairs)

    def derived_record(self, value: T, id: str, headers: Headers) -> Record:
        """The record for a value that was derived from a message.

        :param headers: the headers derived from that message.
        """
        record = self.record(value, id=id)
        record.headers = [*record.headers, *headers] if record.headers else headers
        return record

    def _encode_headers(
        self, headers: Mapping[str, str], timestamp: datetime | None
    ) -> list[tuple[str, bytes | None]]:
        def refuse(problem: str, role: str) -> EncodeError:
            return EncodeError(problem, topic=self.name, role=role)

        pairs: list[tuple[str, bytes | None]] = []
        if not isinstance(headers, Mapping):
            given = type(headers).__name__
            raise refuse(f"of type {given}, and a mapping of str is needed", "headers")
        for name, text in headers.items():
            if name == ID:
                raise refuse(f"{ID!r} is the message ID: give it as id=", "headers")
            if not isinstance(name, str) or not isinstance(text, str):
                raise refuse(f"{name!r}: names and values are str", "headers")
            pairs.append((name, text.encode("utf-8", "surrogateescape")))
        if timestamp is not None:
            if not isinstance(timestamp, datetime):
                given = type(timestamp).__name__
                raise refuse(f"of type {given}, and a datetime is needed", "timestamp")
            if timestamp.tzinfo is None:
                advice = "say datetime.now(timezone.utc)"
                raise refuse(f"{timestamp!r} has no time zone: {advice}", "timestamp")
            pairs.append((TIME, in_utc(timestamp).isoformat().encode()))
        return pairs

    async def publish(
        self,
        value: T,
        *,
        key: Key | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timestamp: datetime | None = None,
    ) -> Position:
        """Write one message; returns its position once it is durable.

        :param key: messages of one key are handled in order; by default, the topic's ``key``.
        :param id: the message ID; by default, the topic's ``id``, else a UUIDv7. An ID that occurs
            twice within a group's dedup window is handled once.
        :param timestamp: when the event happened, with a time zone; sent as ``ce_time``.
        :raises EncodeError: the value does not fit the topic's type; nothing was written.
        :raises Unavailable: the log cannot be reached; nothing was written.
        :raises OutcomeUnknown: it may have been written; publish again with the same ID.
        :raises TooLarge: more than the log accepts; nothing was written.
        """
        record = self.record(value, key=key, id=id, headers=headers, timestamp=timestamp)
        return await self.connection.publisher.publish(self.name, record)

    async def publish_many(self, values: Iterable[T]) -> list[Position]:
        """Write many messages in order; returns their positions once all are durable.

        Nothing is written if one of the values does not fit. Keys and IDs come from the topic's
        ``key`` and ``id``, else the messages have no key and fresh IDs.

        :raises LogError: some were not acknowledged (a note says how many).
        """
        return await self.connection.publisher.publish_many(self.name, self.records(values))

    def records(self, values: Iterable[T]) -> list[Record]:
        """The records that would be written for many values, fast enough for bulk loads."""
        key, name = self.key_of, self.name
        if self.id_of is not None or self._nullable or self._event_writer is not None:
            return [self.record(value) for value in values]
        values = list(values)
        try:
            encoded = self._bound.encode_many(values)  # before any key is computed
        except BindError as error:
            raise ConfigError(f"topic {name!r}: {error}") from error
        if key is None:
            return [Record(data, None, str(uuid7())) for data in encoded]
        keys = (
            found.encode() if type(found := key(value)) is str else encode_key(name, found)
            for value in values
        )
        return [Record(data, each, str(uuid7())) for each, data in zip(keys, encoded, strict=True)]

    # -- reading

    def read(
        self,
        start: OffsetSpec = "earliest",
        end: OffsetSpec = "latest",
        *,
        partition: int | None = None,
        key: Key | None = None,
        errors: Literal["raise", "skip"] = "raise",
    ) -> TopicReader[T]:
        """Read a range again, without any group: see :class:`streams.topic_reader.TopicReader`."""
        key_bytes = None if key is None else encode_key(self.name, key)
        return TopicReader(
            self.connection, self, start, end, partition=partition, key=key_bytes, errors=errors
        )

    def follow(
        self,
        start: OffsetSpec | Mapping[int, OffsetSpec] = "earliest",
        *,
        partition: int | None = None,
        key: Key | None = None,
        errors: Literal["raise", "skip"] = "raise",
    ) -> TopicFollower[T]:
        """Read from a position on, without end and without any group: see
        :class:`streams.topic_follower.TopicFollower`."""
        key_bytes = None if key is None else encode_key(self.name, key)
        return TopicFollower(
            self.connection, self, start, partition=partition, key=key_bytes, errors=errors
        )


class InternalTopic(Topic[T]):
    """A topic of one of the toolkit's patterns, such as a queue or a saga's journal."""

    internal = True


def _field_reader(
    topic: str, option: str, field: Any, type: Any, topic_type: TopicType | None
) -> Callable[[Any], Any] | None:
    """A function that reads a field of a value; checked against the declared type."""
    if field is None:
        return None
    if callable(field):
        function: Callable[[Any], Any] = field
        if topic_type is not None:
            where = f"topic {topic!r}: {option}={qualified_name(field)}"
            check_function(where, function, [topic_type], tombstones=False)
        return function
    where = f"topic {topic!r}: {option}={field!r}"
    if not isinstance(field, str) or not field:
        raise ConfigError(f"{where}: a field's name or a function")
    fields = fields_of(type)
    if fields is None:
        return lambda value: value[field] if isinstance(value, Mapping) else getattr(value, field)
    if not fields:
        raise ConfigError(f"{where}: its values have no fields; give a function")
    for kind, names in fields:
        if field not in names:
            known = f"has {', '.join(sorted(names))}" if names else "has none; give a function"
            raise ConfigError(f"{where}: {kind.__name__} has no such field, it {known}")
    mappings = [issubclass(kind, dict) for kind, _ in fields]
    if all(mappings):
        return lambda value: value.get(field)  # absent where it is NotRequired: no key
    if not any(mappings):
        return attrgetter(field)
    return lambda value: value[field] if isinstance(value, Mapping) else getattr(value, field)


def check_codec(where: str, codec: Any) -> None:
    """:raises ConfigError: it is neither a codec nor None."""
    if codec is not None and (isclass(codec) or not callable(getattr(codec, "bind", None))):
        raise ConfigError(f"{where}: codec={codec!r}: give a codec, such as stream_codecs.Json()")


def encode_key(topic: str, key: Any) -> bytes | None:
    """A key as it is written: text as UTF-8, bytes unchanged.

    :raises EncodeError: it is not a valid key.
    """
    if key is None:
        return None
    if type(key) is str:
        try:
            return key.encode()
        except UnicodeEncodeError:
            raise EncodeError("key holds a lone surrogate, which is no text", topic=topic) from None
    if isinstance(key, bytes):
        return key
    if isinstance(key, (int, str, UUID)) and not isinstance(key, bool):
        return encode_key(topic, str(key))
    raise EncodeError(
        f"key of type {type(key).__name__}: a key is a str, int, UUID or bytes, or None",
        topic=topic,
        role="key",
    )
