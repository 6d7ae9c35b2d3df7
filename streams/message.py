"""Messages as a handler sees them, batches as a log delivers them, and records as they are
written.

A log delivers *columns* (:class:`Batch`): one list of keys, one of values, one of identities. The
hot loop then pays for an object per message only if a handler asks for its :class:`Message`,
which is a view of one row: two references and an index; all other fields are looked up when read.

Header names are CloudEvents' (https://cloudevents.io, Kafka protocol binding, binary mode).
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, Self

import msgspec
from typing_extensions import TypeVar

from streams import wire
from streams.wire import text as text  # everything that reads messages takes it from here

T = TypeVar("T")
# A Message only returns its value, so a handler of Message[Base] may be given Message[Sub].
# Both have defaults, so that `message: Message` is complete for strict type checkers, too.
T_co = TypeVar("T_co", covariant=True, default=Any)
X_co = TypeVar("X_co", covariant=True, default="Transaction")

Headers = Sequence[tuple[str, "bytes | None"]]
"""Headers as they are on the wire: pairs in order, names may repeat."""

# -- the names on the wire -----------------------------------------------------------------------

ID = "ce_id"
SOURCE = "ce_source"
TYPE = "ce_type"
SPECVERSION = "ce_specversion"
TIME = "ce_time"
CORRELATION = "ce_correlationid"
CAUSATION = "ce_causationid"
LEGACY_CORRELATION = "correlationid"
LEGACY_CAUSATION = "causationid"
"""Both names without the prefix, as earlier versions and other producers write them; still
read."""
UNREADABLE = "streams_unreadable_headers"
"""Replaces headers that the log's driver cannot read, and says why they are not readable."""
REDRIVE = "streams_redrive"
"""How often a message was put back from a dead letter, retry or delay topic; absent means 0."""
GENERATION = "streams_generation"
"""The generation of its group (the last reset) when a message that comes back through another topic
was handled; absent means none. Trusted only in messages that come back to that same group."""
FIRST_POSITION = "streams_first_position"
"""The first position of a message that comes back to its group, or is a dead letter: a digest of
its topic, partition, offset and time; then, after a dot, the generation of its group when it
failed, if there was a reset."""
INCARNATION = "streams_incarnation"
"""The incarnation (see :meth:`~streams.log.protocol.Log.incarnation`) of the first topic of a
message that comes back to its group; set only if it was queried, as a processor with
``transaction=`` does."""


IDENTITY_HEADERS = (SOURCE, REDRIVE, FIRST_POSITION)
"""The headers that an identity may contain beside the message ID, in this order."""


def make_identity(
    id: str,
    source: str | None = None,
    redrive: str | None = None,
    first_position: str | None = None,
) -> str:
    """The key of deduplication: the message ID, plus its source and redrive count if any, and for a
    message that comes back or is a dead letter, its first position.

    CloudEvents makes ``source`` + ``id`` unique; a redrive is meant to be handled again. Messages
    of one ID that did not count as copies of each other in their topic (with two keys, further
    apart than the window, or again after a reset) come back to a topic where they otherwise might.
    """
    if not source and (not redrive or redrive == "0") and not first_position:
        return id
    found = f"{id}\0{source or ''}\0{redrive or '0'}"
    return f"{found}\0{first_position}" if first_position else found


def identity_of(headers: Headers) -> str | None:
    """The identity in a message's headers; None: they hold no ID (a foreign message)."""
    id = source = redrive = first_position = None
    for name, value in headers:
        if value is None:
            continue
        if name == ID:
            id = value
        elif name == SOURCE:
            source = value
        elif name == REDRIVE:
            redrive = value
        elif name == FIRST_POSITION:
            first_position = value
    if not id:
        return None
    return make_identity(
        text(id), text(source or b""), text(redrive or b""), text(first_position or b"")
    )


def headers_without(
    headers: Headers, names: Container[str] = (), prefix: str | None = None
) -> list[tuple[str, bytes | None]]:
    """All headers except those with these names, and those whose name begins with ``prefix``."""
    return [
        pair
        for pair in headers
        if pair[0] not in names and (prefix is None or not pair[0].startswith(prefix))
    ]


def header_or_legacy(headers: Mapping[str, str], name: str, legacy_name: str) -> str | None:
    """A header that also has an old name; the new one takes precedence."""
    return headers.get(name) or headers.get(legacy_name)


def identity_suffix(identity: str | None) -> str:
    """The part of an identity beside the ID; empty: there is none."""
    at = -1 if identity is None else identity.find("\0")
    return "" if identity is None or at < 0 else identity[at:]


class Position(NamedTuple):
    """The position of one message in the log. Offsets of one partition are ordered.

    As text it is ``topic/partition/offset``, with the offset as its log writes it: ``orders/0/17``,
    on Redis ``orders/0/1795811598345-0``. Functions that take a position also take this text.
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{wire.format_offset(self.offset)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse the text of a position.

        :raises InvalidValue: the text is not a position.
        """
        found = wire.parse_position(text) if isinstance(text, str) else None
        if found is None:
            from streams.errors import InvalidValue

            shown = repr(wire.shorten(text, 100)) if isinstance(text, str) else type(text).__name__
            raise InvalidValue(
                f"{shown} is not a position: write TOPIC/PARTITION/OFFSET, such as orders/0/17, or "
                "on Redis orders/0/1795811598345-0"
            )
        return cls(*found)


class Raw(NamedTuple):
    """A message's bytes, exactly as they are in the log."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class Record(msgspec.Struct, gc=False):
    """One message to be written. The log chooses the partition unless it is given.

    ``headers`` holds all headers except the ID, which every log writes itself.
    """

    value: bytes | None
    key: bytes | None
    id: str
    headers: Headers = ()
    partition: int | None = None


ALL_READABLE: Mapping[int, str] = MappingProxyType({})
"""The value of :attr:`Batch.unreadable` if all headers can be read."""


class Batch:
    """Consecutive messages of one partition, as columns of equal length.

    ``offsets`` ascend, with gaps where the log has them. ``ids`` are identities
    (:func:`make_identity`), None for a message without one. ``times`` are the log's own, in seconds
    since the epoch. ``assignment`` is that of the subscription that polled this batch, None for a
    plain read. ``unreadable`` says, by index, why the log's driver cannot read a message's headers;
    such a message has the single header :data:`UNREADABLE`. It is complete once ``ids`` or
    :meth:`identity_suffixes` were read.

    A log whose driver stores headers and times in its own objects subclasses this and overrides
    :meth:`headers`, :meth:`extra_headers` and :meth:`time`, so that they are converted only when
    they are read.
    """

    __slots__ = (
        "_headers",
        "_times",
        "assignment",
        "ids",
        "keys",
        "offsets",
        "partition",
        "topic",
        "unreadable",
        "values",
    )

    decode_errors: Mapping[int, Exception] = MappingProxyType({})
    """Why the values of some messages cannot be decoded, by index, if that is known in advance."""

    skipped_to = 0
    """Every record below this offset was checked, and those that are no messages were left out
    (:mod:`streams.log.event_filter`). 0: none was left out. Such a batch may be empty."""

    def __init__(
        self,
        topic: str,
        partition: int,
        offsets: Sequence[int],
        keys: list[bytes | None],
        values: list[bytes | None],
        ids: list[str | None],
        headers: Sequence[Headers | None] | None = None,
        times: Sequence[float] | None = None,
        assignment: Any = None,
        unreadable: Mapping[int, str] = ALL_READABLE,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offsets = offsets
        self.unreadable = unreadable
        self.keys = keys
        self.values = values
        self.ids = ids
        self._headers = headers
        self._times = times
        self.assignment = assignment

    def __len__(self) -> int:
        return len(self.offsets)

    def headers(self, index: int) -> Headers:
        """The headers of one message, including the ID if there is one."""
        return (self._headers[index] if self._headers is not None else None) or ()

    def extra_headers(self, index: int) -> Headers:
        """The headers of one message without the ID if leaving it out is cheaper; else all."""
        return self.headers(index)

    def may_have_header(self, part: bytes) -> bool:
        """Whether a header of any message may have these bytes in its value. False: the log can
        tell without decoding the headers that none has."""
        return True

    def time(self, index: int) -> float:
        """The log's own time of one message, in seconds since the epoch."""
        return self._times[index] if self._times is not None else 0.0

    def offset(self, index: int) -> int:
        """The offset of one message, in the log's own format."""
        return wire.own_offset(self.offsets[index])

    def id(self, index: int) -> str:
        """The message ID; for a message without one, its position."""
        found = self.ids[index]
        if found is None:
            return f"{self.topic}/{self.partition}/{wire.format_offset(self.offset(index))}"
        return found.partition("\0")[0]

    def identity_suffixes(self) -> list[str] | None:
        """The part of each message's identity beside its ID (source, redrive count, first
        position), empty if there is none; None: it is empty for all."""
        suffixes = [identity_suffix(identity) for identity in self.ids]
        return suffixes if any(suffixes) else None

    def release(self, index: int) -> None:
        """Release the bytes of one settled message."""
        self.keys[index] = self.values[index] = None

    def total_and_largest(self) -> tuple[int, int]:
        """The total bytes of all keys and values, and the size of the largest value: -1 if a value
        is null."""
        values: list[Any] = self.values
        keys: list[Any] = self.keys
        try:
            sizes = list(map(len, values))
            largest = max(sizes)
        except TypeError:
            sizes = [len(value) for value in values if value is not None]
            largest = -1
        try:
            return sum(sizes) + sum(map(len, keys)), largest
        except TypeError:
            return sum(sizes) + sum(map(len, filter(None, keys))), largest

    def message_sizes(self) -> list[int]:
        """The size of each message's key and value in bytes."""
        return [
            (len(key) if key is not None else 0) + (len(value) if value is not None else 0)
            for key, value in zip(self.keys, self.values, strict=True)
        ]


class Transaction(Protocol):
    """The type of ``message.transaction`` on a SQLite log, for annotations:
    ``message: Message[Order, Transaction]``."""

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one SQL statement in the transaction that will commit this message's position.

        :returns: the rows, as tuples.
        """
        ...

    async def __aenter__(self) -> Self:
        """Wait for other handlers' transactions to end; this one ends with the handler."""
        ...

    async def __aexit__(self, *exc: object) -> None: ...


class Message(Generic[T_co, X_co]):
    """One message as a handler sees it: a view, to be used while the handler runs.

    Keep the parts you need, not the message: once it is settled, its key and bytes may be released
    (``value``, ``attempt``, ``topic``, ``partition``, ``offset`` and ``id`` stay).

    ``Message[Order]`` is a message whose value is an ``Order``; ``Message[Order, Transaction]``
    also gives the type of ``transaction``. The defaults are ``Any`` for the value, and
    ``Transaction`` for the transaction.

    :param value: the decoded value.
    :param id: the message ID (CloudEvents ``id``).
    :param key: the key as text; messages of one key are handled in order.
    :param topic: the topic it is in.
    :param partition: the partition it is in.
    :param offset: its offset in that partition.
    :param timestamp: when the event happened (``ce_time``), else when the log appended it; UTC.
    :param headers: a mapping of str; if a name repeats, its last value.
    :param attempt: the number of this call of the handler, from 1.
    :param transaction: the value of :attr:`transaction`, in a test of a handler.
    """

    __slots__ = ("_batch", "_index", "_transaction", "attempt", "value")

    value: T_co
    attempt: int

    def __init__(
        self,
        value: T_co,
        *,
        id: str = "",
        key: str | None = None,
        topic: str = "",
        partition: int = 0,
        offset: int = 0,
        timestamp: datetime | None = None,
        headers: Mapping[str, str] | None = None,
        attempt: int = 1,
        raw: Raw | None = None,
        transaction: Any = None,
    ) -> None:
        pairs = [(name, item.encode()) for name, item in (headers or {}).items()]
        if id and not any(name == ID for name, _ in pairs):
            pairs.insert(0, (ID, id.encode("utf-8", "surrogateescape")))
        encoded = key.encode("utf-8", "surrogateescape") if key is not None else None
        raw = raw or Raw(encoded, value if isinstance(value, bytes) else None, pairs)
        moment = timestamp or datetime.now(timezone.utc)
        self.value = value
        self.attempt = attempt
        self._index = 0
        self._transaction: Any = transaction
        self._batch = Batch(
            topic,
            partition,
            (offset,),
            [encoded if key is not None else raw.key],
            [raw.value],
            [identity_of(raw.headers) or id or None],
            [raw.headers],
            [moment.timestamp()],
        )

    @property
    def id(self) -> str:
        """The message ID; ``topic/partition/offset`` if the message has none."""
        return self._batch.id(self._index)

    @property
    def key(self) -> str | None:
        """The key as text; None: the message has no key."""
        key = self._batch.keys[self._index]
        return None if key is None else text(key)

    @property
    def topic(self) -> str:
        """The topic this message is in."""
        return self._batch.topic

    @property
    def partition(self) -> int:
        """The partition this message is in."""
        return self._batch.partition

    @property
    def offset(self) -> int:
        """Its offset in its partition: ordered, not always consecutive."""
        return self._batch.offset(self._index)

    @property
    def position(self) -> Position:
        """Topic, partition and offset together."""
        return Position(self.topic, self.partition, self.offset)

    @property
    def assignment(self) -> Any:
        """The assignment of its partition under which it was polled, as created by its log; None
        outside a processor. All messages of one assignment share the same object."""
        return self._batch.assignment

    @property
    def timestamp(self) -> datetime:
        """``ce_time`` if the message has it, else the time the log appended it; UTC.

        A log time before the year 1 or after 9999, which datetime cannot represent, becomes
        ``datetime.min`` or ``datetime.max`` in UTC.
        """
        for name, value in self._batch.extra_headers(self._index):
            if name == TIME and value:
                stated = wire.parse_iso_time(value)
                if stated is None:
                    break
                return stated
        return wire.utc_from_seconds(self._batch.time(self._index))

    @property
    def headers(self) -> Mapping[str, str]:
        """All headers as text; if a name repeats, its last value."""
        return {
            name: "" if value is None else text(value)
            for name, value in self._batch.headers(self._index)
        }

    def header(self, name: str) -> bytes | None:
        """One header as bytes; None if it is absent or null; if the name repeats, its last value.

        Cheaper than :attr:`headers`, which decodes all of them.
        """
        batch, index = self._batch, self._index
        found = None
        for each, value in batch.headers(index) if name == ID else batch.extra_headers(index):
            if each == name:
                found = value
        return found

    @property
    def correlation_id(self) -> str | None:
        """The ID of the unit this message belongs to, such as a saga or a request:
        ``ce_correlationid``, or ``correlationid`` without the CloudEvents prefix."""
        return self._header_text(CORRELATION, LEGACY_CORRELATION)

    @property
    def causation_id(self) -> str | None:
        """The ID of the message that caused this one: ``ce_causationid``, or ``causationid``."""
        return self._header_text(CAUSATION, LEGACY_CAUSATION)

    def _header_text(self, name: str, legacy_name: str) -> str | None:
        found = self.header(name) or self.header(legacy_name)
        return None if not found else text(found)

    @property
    def raw(self) -> Raw:
        """Key, value and headers as bytes, exactly as they are in the log."""
        batch, index = self._batch, self._index
        return Raw(batch.keys[index], batch.values[index], batch.headers(index))

    @property
    def transaction(self) -> X_co:
        """The transaction that this message is handled in.

        For a processor with ``transaction=``, the connection or session of the user's database that
        it names: the handler's changes through it are committed once for each message, when the
        handler returns.

        For another one on a SQLite log, the transaction that will commit this message's position:
        ``message.transaction.execute(sql, parameters)`` runs in it, and the handler's rows and the
        position become durable together, or neither does.

        :raises ConfigError: there is none: without ``transaction=``, on another log, with ``to=``
            or ``DeadLetters(sequenced=True)``, in a replay, or outside a processor. In a handler
            this ends the processor, and the message stays unsettled.
        """
        if self._transaction is None:
            from streams.errors import ConfigError

            raise ConfigError(
                f"message.transaction: a message of {self.topic!r} has none here; a processor with "
                "transaction= gives it, or one on a sqlite:// log, without to= and "
                "DeadLetters(sequenced=True), and no replay"
            )
        transaction: X_co = self._transaction
        return transaction

    def __repr__(self) -> str:
        # Without the value: it may hold data that must not reach a log line.
        key = None if self.key is None else wire.shorten(self.key)
        return (
            f"<Message {wire.shorten(self.id)!r} key={key!r} at "
            f"{self.position} attempt {self.attempt}>"
        )


def make_message(
    value: Any, batch: Batch, index: int, attempt: int, transaction: Any = None
) -> Message[Any]:
    """A message as a view of one row of a batch (built by the executors)."""
    # Not a method of the class: that saves one call for each message.
    message: Message[Any] = Message.__new__(Message)
    message.value = value
    message.attempt = attempt
    message._batch = batch  # noqa: SLF001 - the class is this module's
    message._index = index  # noqa: SLF001
    message._transaction = transaction  # noqa: SLF001
    return message


def identity_and_offset(message: Message[Any]) -> tuple[str | None, int]:
    """A message's identity in the log (:func:`make_identity`), and its offset."""
    batch, index = message._batch, message._index  # noqa: SLF001 - the class is this module's
    return batch.ids[index], batch.offsets[index]


def row_of(message: Message[Any]) -> tuple[Batch, int]:
    """The batch of a message, and the message's index in it."""
    return message._batch, message._index  # noqa: SLF001 - the class is this module's


def with_transaction(message: Message[Any], transaction: Any) -> None:
    """Set a message's transaction, for the next call of the handler."""
    message._transaction = transaction  # noqa: SLF001 - the class is this module's


def numbered_message(message: Message[Any], value: Any, number: int) -> Message[Any]:
    """One of the values that a message stands for, as a separate message at the same position.

    :param number: the number of the value, from 0; its ID is the message's with ``#number``.
    """
    batch = numbered_batch(message._batch, message._index, number)  # noqa: SLF001
    return make_message(value, batch, 0, message.attempt, message._transaction)  # noqa: SLF001


def numbered_batch(batch: Batch, index: int, number: int) -> Batch:
    """A batch of one row, for one of the values that the row stands for."""
    id = f"{batch.id(index)}#{number}"
    others = headers_without(batch.headers(index), (ID,))
    return Batch(
        batch.topic,
        batch.partition,
        (batch.offset(index),),
        [batch.keys[index]],
        [batch.values[index]],
        [id + identity_suffix(batch.ids[index])],
        [[(ID, id.encode("utf-8", "surrogateescape")), *others]],
        [batch.time(index)],
        batch.assignment,
    )
