"""Messages of the driver as columns, at C speed.

``list(map(KMessage.value, messages))`` calls the driver's methods without a Python frame, about
20 ns a message. What is rarely read stays where it is: a :class:`KafkaBatch` keeps the driver's
message objects and asks them for headers and time when somebody looks.

The IDs are the expensive part, because the driver builds a list of tuples for the headers (about
230 ns a message in all, more than all other columns together). They are made when ``ids`` is first
read: a subscriber that takes the ID from the payload never pays for them.

``Message.headers()`` of a message with a header name that is not UTF-8 raises SystemError, and
leaves a list in the driver's object whose use crashes the process (confluent-kafka 2.16: the tuple
holds a null pointer). So it is never called a second time: the batch notes why, and answers with
the header ``streams_unreadable_headers`` from then on. And it is called through ``map`` or
``operator.call`` only: there Python checks what a C function returned, and where the interpreter
has specialized a call (``headers(message)``, after a few times) it does not, and would go on with
the broken list.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import call, length_hint
from typing import Any

from confluent_kafka import Message as KMessage
from typing_extensions import override

from streams.message import ID, UNREADABLE, Batch, Headers, identity_of, identity_suffix

_value = KMessage.value
_key = KMessage.key
_offset = KMessage.offset
_partition = KMessage.partition
_topic = KMessage.topic
_headers: Any = KMessage.headers
_error = KMessage.error


class KafkaBatch(Batch):
    """Messages of one partition, in the driver's own objects until they are read."""

    __slots__ = ("_ids", "_messages", "_unreadable")

    _messages: list[KMessage | None]
    _ids: list[str | None] | None
    _unreadable: dict[int, str]

    def __init__(
        self, topic: str, partition: int, messages: list[Any], assignment: Any = None
    ) -> None:
        """``messages`` is the batch's own from here on."""
        self.topic = topic
        self.partition = partition
        self.offsets = offsets_of(messages)
        self.keys = list(map(_key, messages))
        self.values = list(map(_value, messages))
        self.assignment = assignment
        self._messages = messages
        self._ids = None
        self._headers = None
        self._times = None
        self.unreadable = self._unreadable = {}

    @property
    def ids(self) -> list[str | None]:  # type: ignore[override]
        """Identities, made when first read (read it once a batch, not once a message)."""
        if self._ids is None:
            self._ids = self._read_ids()
        return self._ids

    def _read_ids(self) -> list[str | None]:
        messages = self._messages
        # Our publisher writes one header unless asked for more, so that is tried for the whole
        # batch; anything else does not match the pattern, or makes the list shorter.
        if not self._unreadable:
            source = iter(messages)
            try:
                ids: list[str | None] = [
                    id.decode() for ((name, id),) in map(_headers, source) if id and name == ID
                ]
                if len(ids) == len(messages):
                    return ids
            except SystemError as error:
                self._mark_unreadable(len(messages) - length_hint(source) - 1, error)
            except (TypeError, ValueError, AttributeError):
                pass
        return [identity_of(self.headers(index)) for index in range(len(messages))]

    def _mark_unreadable(self, index: int, error: SystemError) -> None:
        """The driver could not read the headers of this message, and must not be asked again."""
        cause = error.__cause__
        if isinstance(cause, UnicodeDecodeError):
            self._unreadable[index] = f"the header name {cause.object[:64]!r} is not UTF-8"
        else:
            self._unreadable[index] = f"the Kafka driver failed: {error}"

    @override
    def identity_suffixes(self) -> list[str] | None:
        messages = self._messages
        if not self._unreadable:
            source = iter(messages)
            try:
                if not any(map(_headers, source)):
                    return None
                source = iter(messages)
                for ((name, _),) in map(_headers, source):
                    if name != ID:
                        break
                else:
                    return None
            except SystemError as error:
                self._mark_unreadable(len(messages) - length_hint(source) - 1, error)
            except (TypeError, ValueError):
                pass  # other headers, or none here and there
        suffixes = [
            identity_suffix(identity_of(self.headers(index))) for index in range(len(messages))
        ]
        return suffixes if any(suffixes) else None

    @override
    def id(self, index: int) -> str:
        ids = self._ids
        identity = identity_of(self.headers(index)) if ids is None else ids[index]
        if identity is None:
            return f"{self.topic}/{self.partition}/{self.offsets[index]}"
        return identity.partition("\0")[0]

    @override
    def headers(self, index: int) -> Headers:
        if index in self._unreadable:
            return ((UNREADABLE, self._unreadable[index].encode()),)
        message = self._messages[index]
        if message is None:
            return ()
        try:
            return call(_headers, message) or ()
        except SystemError as error:
            self._mark_unreadable(index, error)
        return self.headers(index)

    def all_headers(self) -> list[Headers]:
        """The headers of all messages, read in one go. Before any message is released."""
        source = iter(self._messages)
        try:
            return [headers or () for headers in map(_headers, source)]
        except SystemError as error:
            self._mark_unreadable(len(self._messages) - length_hint(source) - 1, error)
        return [self.headers(index) for index in range(len(self._messages))]

    @override
    def time(self, index: int) -> float:
        """The broker's or the producer's time of one message, in seconds since the epoch."""
        message = self._messages[index]
        return 0.0 if message is None else message.timestamp()[1] / 1000

    def split_at(self, offset: int) -> tuple[KafkaBatch, KafkaBatch | None]:
        """Its messages before an offset, of which there are some, and those from there on."""
        if self.offsets[-1] < offset:
            return self, None
        count = bisect_left(self.offsets, offset)
        messages, assignment = self._messages, self.assignment
        return (
            KafkaBatch(self.topic, self.partition, messages[:count], assignment),
            KafkaBatch(self.topic, self.partition, messages[count:], assignment),
        )

    @override
    def release(self, index: int) -> None:
        self.keys[index] = self.values[index] = self._messages[index] = None


def offsets_of(messages: Sequence[KMessage]) -> Sequence[int]:
    """The offsets of messages of one partition, which ascend. Mostly without gaps, and then none
    but the first and the last is asked for."""
    first: Any = messages[0].offset()
    last: Any = messages[-1].offset()
    if last - first == len(messages) - 1:
        return range(first, last + 1)
    found: list[Any] = list(map(_offset, messages))
    return found


def remove_errors(messages: list[KMessage]) -> list[KMessage]:
    """Take out those that are not messages but errors (usually none)."""
    # The driver's objects are never compared, so neither count(None) nor remove(): comparing errors
    # with None leaves an exception behind, and comparing messages reads their headers.
    if not any(map(_error, messages)):
        return []
    errors = [message for message in messages if message.error() is not None]
    messages[:] = [message for message in messages if message.error() is None]
    return errors


def split_by_partition(
    messages: list[Any], only_topic: str | None
) -> Iterator[tuple[str, int, list[Any]]]:
    """Cut what was polled into runs of one partition.

    :param only_topic: the one topic there is; None if there are several.
    """
    if not messages:
        return
    one_topic, count = only_topic is not None, len(messages)
    partitions = list(map(_partition, messages))
    topics: list[Any] = [only_topic] * count if one_topic else list(map(_topic, messages))
    # A fetch answers with a partition at a time, so most batches are of one.
    if partitions.count(partitions[0]) == count and (one_topic or topics.count(topics[0]) == count):
        yield topics[0], partitions[0], messages  # type: ignore[misc]
        return
    start = 0
    for (topic, partition), group in groupby(zip(topics, partitions, strict=True)):
        end = start + sum(1 for _ in group)
        yield topic, partition, messages[start:end]  # type: ignore[misc]
        start = end
