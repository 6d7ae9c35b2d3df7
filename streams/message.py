"""What travels: messages as a handler sees them, batches as a log delivers them, records as they
are written.

A log delivers *columns* (:class:`Batch`): one list of keys, one of values, one of identities. The
hot loop then pays for an object per message only where a handler asks for its :class:`Message`,
which is a view of one row: two references and an index, everything else is looked up when read.

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
# A Message only ever gives its value out, so a handler of Message[Base] may be given Message[Sub].
# Both have defaults, so that `message: Message` is complete for strict type checkers, too.
T_co = TypeVar("T_co", covariant=True, default=Any)
X_co = TypeVar("X_co", covariant=True, default="Transaction")

Headers = Sequence[tuple[str, "bytes | None"]]
"""Headers as they stand on the wire: pairs in order, names may repeat."""

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
"""Both without the prefix, as earlier versions and other producers write them: still read."""
UNREADABLE = "streams_unreadable_headers"
"""Replaces headers that the log's driver cannot read, and says why they are not readable."""
REDRIVE = "streams_redrive"
"""How often a message was put back from a dead letter, retry or delay topic; absent means 0."""
GENERATION = "streams_generation"
"""Which reset of its group a message was handled after that comes back through another topic;
absent means none. Only what comes back to that very group is believed to say so."""
FIRST_POSITION = "streams_first_position"
"""Where a message stood first that comes back to its group, or is a dead letter: a digest of its
topic, partition, offset and time, and behind a dot the reset of its group that it failed after, if
there was one."""
INCARNATION = "streams_incarnation"
"""What the log calls the topic in which a message stood first that comes back to its group (see
:meth:`~streams.log.protocol.Log.incarnation`), where somebody has asked: a processor with
``transaction=`` does."""


IDENTITY_HEADERS = (SOURCE, REDRIVE, FIRST_POSITION)
"""What an identity may have beside the message ID, in this order."""


def identity(
    id: str,
    source: str | None = None,
    redrive: str | None = None,
    first_position: str | None = None,
) -> str:
    """What deduplication compares: the message ID, plus its source and redrive count if any, and of
    what comes back or is a dead letter, where it stood first.

    CloudEvents makes ``source`` + ``id`` unique; a redrive is meant to be handled again. Messages
    of one ID that were not taken for copies of each other in their topic (under two keys, further
    apart than the window, or once more after a reset) come back to a topic where they might be.
    """
    if not source and (not redrive or redrive == "0") and not first_position:
        return id
    found = f"{id}\0{source or ''}\0{redrive or '0'}"
    return f"{found}\0{first_position}" if first_position else found


def identity_of(headers: Headers) -> str | None:
    """The identity in a message's headers, None where they hold no ID (a foreign message)."""
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
    return identity(
        text(id), text(source or b""), text(redrive or b""), text(first_position or b"")
    )


def headers_without(
    headers: Headers, names: Container[str] = (), prefix: str | None = None
) -> list[tuple[str, bytes | None]]:
    """All headers but those of these names, and those whose name begins with ``prefix``."""
    return [
        pair
        for pair in headers
        if pair[0] not in names and (prefix is None or not pair[0].startswith(prefix))
    ]


def header_or_legacy(headers: Mapping[str, str], name: str, legacy_name: str) -> str | None:
    """A header that has an old name, too; the new one counts where both are there."""
    return headers.get(name) or headers.get(legacy_name)


def identity_suffix(identity: str | None) -> str:
    """What an identity has beside the ID; empty where that is nothing."""
    at = -1 if identity is None else identity.find("\0")
    return "" if identity is None or at < 0 else identity[at:]


class Position(NamedTuple):
    """Where one message stands in the log. Offsets of one partition are ordered.

    As text it is ``topic/partition/offset``, with the offset as its log writes it: ``orders/0/17``,
    on Redis ``orders/0/1795811598345-0``. Whatever takes a position takes this text, too.
    """

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{wire.format_offset(self.offset)}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """A position that was written as text.

        :raises InvalidValue: it is none.
        """
        found = wire.parse_position(text) if isinstance(text, str) else None
        if found is None:
            from streams.errors import InvalidValue

            shown = repr(wire.shorten(text, 100)) if isinstance(text, str) else type(text).__name__
            raise InvalidValue(
                f"{shown} is no position: write TOPIC/PARTITION/OFFSET, such as orders/0/17, or on "
                "Redis orders/0/1795811598345-0"
            )
        return cls(*found)


class Raw(NamedTuple):
    """A message's bytes, exactly as they stand in the log."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class Record(msgspec.Struct, gc=False):
    """One message to be written. The partition is the log's choice unless given.

    ``headers`` holds everything but the ID, which every log writes itself.
    """

    value: bytes | None
    key: bytes | None
    id: str
    headers: Headers = ()
    partition: int | None = None


ALL_READABLE: Mapping[int, str] = MappingProxyType({})
"""What :attr:`Batch.unreadable` is where all headers can be read."""


class Batch:
    """Consecutive messages of one partition, as columns of equal length.

    ``offsets`` ascend, with gaps where the log has them. ``ids`` are identities
    (:func:`identity`), None for a message that carries none. ``times`` are the log's own, in
    seconds since the epoch. ``assignment`` is what the subscription that polled this batch was
    given, None for a plain read. ``unreadable`` says of each message whose headers the log's driver
    cannot read, by index, why not; such a message has the one header :data:`UNREADABLE`. It is
    complete once ``ids`` or :meth:`marks` were read.

    A log whose driver keeps headers and times inside objects of its own subclasses this and
    overrides :meth:`headers`, :meth:`extra_headers` and :meth:`time`, so that nothing is converted
    before it is read.
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
    """Why the values of some messages cannot be decoded, by index, where that is known before."""

    skipped_to = 0
    """Where messages were left out because they are none (:mod:`streams.log.event_filter`): all
    below this offset was looked at. 0 where nothing was. Such a batch may be empty."""

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
        """The headers of one message, the ID included where there is one."""
        return (self._headers[index] if self._headers is not None else None) or ()

    def extra_headers(self, index: int) -> Headers:
        """The headers of one message without the ID, where leaving it out is cheaper; else all."""
        return self.headers(index)

    def may_have_header(self, part: bytes) -> bool:
        """Whether a header of any message may have these bytes in its value. False where the log
        can tell without decoding them that none has."""
        return True

    def time(self, index: int) -> float:
        """The log's own time of one message, in seconds since the epoch."""
        return self._times[index] if self._times is not None else 0.0

    def offset(self, index: int) -> int:
        """The offset of one message, as the log likes to show it."""
        return self.offsets[index]

    def id(self, index: int) -> str:
        """The message ID; a message without one is named by its position."""
        found = self.ids[index]
        if found is None:
            return f"{self.topic}/{self.partition}/{wire.format_offset(self.offset(index))}"
        return found.partition("\0")[0]

    def identity_suffixes(self) -> list[str] | None:
        """What the identity of each message has beside its ID (source, redrive count,
        first position), empty where that is nothing; None where it is so for all."""
        suffixes = [identity_suffix(identity) for identity in self.ids]
        return suffixes if any(suffixes) else None

    def release(self, index: int) -> None:
        """Let go of one settled message's bytes."""
        self.keys[index] = self.values[index] = None

    def total_and_largest(self) -> tuple[int, int]:
        """The bytes of all keys and values together, and of the largest value: -1 where one of
        them is null."""
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
    """What ``message.transaction`` is on a SQLite log, for annotations:
    ``message: Message[Order, Transaction]``."""

    def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        """Run one SQL statement in the transaction that will commit this message's position.

        :returns: the rows, as tuples.
        """
        ...

    async def __aenter__(self) -> Self:
        """Wait for other handlers' transactions to end; ours ends with the handler."""
        ...

    async def __aexit__(self, *exc: object) -> None: ...


class Message(Generic[T_co, X_co]):
    """One message as a handler sees it: a view, to be used while the handler runs.

    Keep the parts you need, not the message: once it is settled, its key and bytes may be let go
    of (``value``, ``attempt``, ``topic``, ``partition``, ``offset`` and ``id`` stay).

    ``Message[Order]`` is a message whose value is an ``Order``; ``Message[Order, Transaction]``
    also says of what type ``transaction`` is. A type left out is ``Any`` for the value, and
    ``Transaction`` for the transaction.

    :param value: the decoded value.
    :param id: the message ID (CloudEvents ``id``).
    :param key: the key as text; messages of one key are handled in order.
    :param topic: the topic it stands in.
    :param partition: the partition it stands in.
    :param offset: where it stands in that partition.
    :param timestamp: when it happened (``ce_time``), else when the log took it; UTC.
    :param headers: a mapping of str; where a name repeats, the last one.
    :param attempt: which call of the handler this is, from 1.
    :param transaction: what :attr:`transaction` is, in a test of a handler.
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
        """The message ID; ``topic/partition/offset`` where the message carries none."""
        return self._batch.id(self._index)

    @property
    def key(self) -> str | None:
        """The key as text, None for a keyless message."""
        key = self._batch.keys[self._index]
        return None if key is None else text(key)

    @property
    def topic(self) -> str:
        """The topic this message stands in."""
        return self._batch.topic

    @property
    def partition(self) -> int:
        """The partition this message stands in."""
        return self._batch.partition

    @property
    def offset(self) -> int:
        """Where it stands in its partition: ordered, not always consecutive."""
        return self._batch.offset(self._index)

    @property
    def position(self) -> Position:
        """Topic, partition and offset together."""
        return Position(self.topic, self.partition, self.offset)

    @property
    def assignment(self) -> Any:
        """The ownership of its partition under which it was polled, as its log made it; None
        outside a processor. All messages of one ownership have the same object."""
        return self._batch.assignment

    @property
    def timestamp(self) -> datetime:
        """``ce_time`` where the message carries it, else the time the log took it; UTC.

        A log's time before the year 1 or after 9999, which datetime cannot hold, is the first or
        the last moment that it can: ``datetime.min`` or ``datetime.max`` in UTC.
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
        """All headers as text; where a name repeats, the last one."""
        return {
            name: "" if value is None else text(value)
            for name, value in self._batch.headers(self._index)
        }

    def header(self, name: str) -> bytes | None:
        """One header as bytes, None where it is absent or null; where the name repeats, the last.

        Cheaper than :attr:`headers`, which makes text of all of them.
        """
        batch, index = self._batch, self._index
        found = None
        for each, value in batch.headers(index) if name == ID else batch.extra_headers(index):
            if each == name:
                found = value
        return found

    @property
    def correlation_id(self) -> str | None:
        """What this message belongs to, such as a saga or a request: ``ce_correlationid``, or
        ``correlationid`` as it is called where CloudEvents' prefix is left out."""
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
        """Key, value and headers as bytes, exactly as they stand in the log."""
        batch, index = self._batch, self._index
        return Raw(batch.keys[index], batch.values[index], batch.headers(index))

    @property
    def transaction(self) -> X_co:
        """The transaction that this message is handled in.

        Of a processor with ``transaction=``, the connection or session of the user's database that
        it names: what the handler does with it is committed once for each message, when the
        handler returns.

        Of another one on a SQLite log, the transaction that will commit this message's position:
        ``message.transaction.execute(sql, parameters)`` runs in it, and the handler's rows and the
        position become durable together, or neither does.

        :raises ConfigError: there is none: without ``transaction=``, on another log, with ``to=``
            or ``DeadLetters(sequenced=True)``, in a replay, or outside a processor. In a handler
            it ends the processor, and the message stays unsettled.
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
        # The value stays out: it may hold what must not reach a log line.
        key = None if self.key is None else wire.shorten(self.key)
        return (
            f"<Message {wire.shorten(self.id)!r} key={key!r} at "
            f"{self.position} attempt {self.attempt}>"
        )


def make_message(
    value: Any, batch: Batch, index: int, attempt: int, transaction: Any = None
) -> Message[Any]:
    """A message as a view of one row of a batch (what the executors build)."""
    # Not by a method of the class: one call less for each message.
    message: Message[Any] = Message.__new__(Message)
    message.value = value
    message.attempt = attempt
    message._batch = batch  # noqa: SLF001 - the class is this module's
    message._index = index  # noqa: SLF001
    message._transaction = transaction  # noqa: SLF001
    return message


def identity_and_offset(message: Message[Any]) -> tuple[str | None, int]:
    """What a log says of a message's identity (:func:`identity`), and its offset."""
    batch, index = message._batch, message._index  # noqa: SLF001 - the class is this module's
    return batch.ids[index], batch.offsets[index]


def row_of(message: Message[Any]) -> tuple[Batch, int]:
    """The batch that a message stands in, and which of it it is."""
    return message._batch, message._index  # noqa: SLF001 - the class is this module's


def with_transaction(message: Message[Any], transaction: Any) -> None:
    """Give a message its transaction, for the call of the handler that follows."""
    message._transaction = transaction  # noqa: SLF001 - the class is this module's


def numbered_message(message: Message[Any], value: Any, number: int) -> Message[Any]:
    """One of the values that a message stands for, as a message of its own at the same place.

    :param number: which one, from 0; its ID is the message's with ``#number``.
    """
    batch = numbered_batch(message._batch, message._index, number)  # noqa: SLF001
    return make_message(value, batch, 0, message.attempt, message._transaction)  # noqa: SLF001


def numbered_batch(batch: Batch, index: int, number: int) -> Batch:
    """One row of a batch as one of the values that it stands for."""
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
