"""The identity of a message in the database.

**Its identity** is its log's and topic's incarnation, the group, the group's reset generation, its
source and its ID, but not its redrive count: so redelivered, duplicate and redriven messages keep
their identity, and a message that is handled after a reset, or is of a topic that was created
again, has another one. The source is CloudEvents' if the message names one, else the topic and
partition; a message without an ID is identified by its position.

**Its partition** (:class:`Scope`) is the one in which its position counts: a partition in one
incarnation, of one group in one generation. A message whose row was purged is recognized by its
position there. A message that came back by a retry topic has two positions: there, and its first
one. A process that read it at either may still hold it, so its row stays until both positions
identify it.

An identity is stored as the ID behind eight bytes of a digest (BLAKE2b) of all the rest, so that
ascending IDs, such as UUIDv7, are written at the end of the table's index; a partition is eight
bytes of a digest, and the texts it is made of are stored with its mark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from streams.derived_records import (
    first_place,
    header_text,
    message_generation,
    redrives_of,
)
from streams.log.protocol import Assignment
from streams.message import (
    GENERATION,
    INCARNATION,
    SOURCE,
    Batch,
    Message,
    identity_and_offset,
    row_of,
)
from streams.processing.job import reset_generation

POSITION_DIGITS = 39
"""Digits of a position as text: with a fixed number of digits it sorts as the number does (on Redis
a position has 128 bits)."""

MAX_REDRIVES = 2**31 - 1


class Scope(NamedTuple):
    """One partition, in which positions are compared."""

    incarnation: str
    group: str
    generation: int
    topic: str
    partition: int

    @property
    def number(self) -> int:
        """The partition's number in the database: 63 bits of its digest."""
        return int.from_bytes(digest(*self)[:8], "big") >> 1


class FirstPosition(NamedTuple):
    """The first position of a message that has come back."""

    scope: int
    position: int


class Entry(NamedTuple):
    """A message's identity and position in the inbox.

    :param first: the message's first position, if that is in another partition.
    """

    id: bytes
    scope: int
    position: int
    redrive: int
    first: FirstPosition | None = None


class OwnedPartition(NamedTuple):
    """An owned partition, with the facts on which its messages' identities depend."""

    assignment: Assignment
    scope: Scope
    number: int
    source_topic: str
    """The topic itself, or the one that its retry topic belongs to."""
    source_incarnation: str
    source: bytes
    """The start of the identity of a message that names no source and has not come back."""
    is_retry_topic: bool
    """Whether the topic's messages have come back, and were in the source topic first."""


def digest(*parts: object) -> bytes:
    """A digest of 16 bytes of some texts and numbers, which are delimited unambiguously."""
    found = blake2b(digest_size=16)
    for part in parts:
        data = str(part).encode("utf-8", "surrogateescape")
        found.update(b"%d:%b" % (len(data), data))
    return found.digest()


MAX_ID = 240
"""Bytes of an ID that are stored unchanged, at most; an index of PostgreSQL takes 2,700."""


def entry_id(source: bytes, id: str) -> bytes:
    """The identity of a message, from its source's bytes and its ID."""
    data = id.encode("utf-8", "surrogateescape")
    if len(data) > MAX_ID:
        data = data[: MAX_ID - 40] + digest(id)
    return source + data


def position_text(position: int) -> str:
    """A position's text in SQLite."""
    return f"{int(position):0{POSITION_DIGITS}d}"  # str() of a Redis offset is its entry ID


class Identities:
    """Makes the entries of one processor's messages.

    :param sources: retry topics, with the topics that they belong to.
    :param incarnation: returns the incarnation of a topic; asks the log.
    """

    def __init__(
        self, group: str, sources: Mapping[str, str], incarnation: Callable[[str], str]
    ) -> None:
        self._group = group
        self._sources = sources
        self._incarnation = incarnation
        self._owned: dict[tuple[str, int], OwnedPartition] = {}

    def known_entry(self, message: Message[Any], value_id: str | None = None) -> Entry | None:
        """As :meth:`entry`; None: the partition was not learned under this ownership yet."""
        owned = self._owned_of(row_of(message)[0])
        return None if owned is None else self.entry(message, owned, value_id)

    def known_entries(self, messages: Sequence[Message[Any]]) -> list[Entry] | None:
        """As :meth:`known_entry` for each message; None: one of their partitions was not learned
        yet."""
        found: list[Entry] = []
        last: Batch | None = None
        owned: OwnedPartition | None = None
        for message in messages:
            batch, _ = row_of(message)
            if owned is None or batch is not last:
                last, owned = batch, self._owned_of(batch)
                if owned is None:
                    return None
            found.append(self.entry(message, owned))
        return found

    def _owned_of(self, batch: Batch) -> OwnedPartition | None:
        """The partition of a batch; None: it was not learned under this ownership yet."""
        owned = self._owned.get((batch.topic, batch.partition))
        return owned if owned is not None and owned.assignment is batch.assignment else None

    def learn(self, owned: OwnedPartition) -> None:
        """Note a partition whose messages are handled from now on."""
        self._owned[owned.assignment.topic_partition] = owned

    def look_up(self, assignment: Assignment) -> OwnedPartition:
        """Look up a partition's facts; asks the log, and blocks.

        :raises LogError: it does not answer.
        """
        topic, partition = assignment.topic_partition
        source = self._sources.get(topic, topic)
        incarnation = self._incarnation(topic)
        scope = Scope(incarnation, self._group, reset_generation(assignment), topic, partition)
        source_incarnation = incarnation if source == topic else self._incarnation(source)
        assignment.incarnation = incarnation
        source_digest = digest(
            source_incarnation, self._group, scope.generation, f"{source}/{partition}"
        )
        return OwnedPartition(
            assignment=assignment,
            scope=scope,
            number=scope.number,
            source_topic=source,
            source_incarnation=source_incarnation,
            source=source_digest[:8],
            is_retry_topic=source != topic,
        )

    def entry(
        self, message: Message[Any], owned: OwnedPartition, value_id: str | None = None
    ) -> Entry:
        """The inbox's entry of a message.

        :param value_id: the ID in the message's value, if its topic has one there; as in
            deduplication, it takes precedence over the headers' ID (the copy of a message without
            an ID has its position there).
        """
        identity, offset = identity_and_offset(message)
        came_back = owned.is_retry_topic
        if identity is not None and not came_back and "\0" not in identity:
            # The usual case, which costs least.
            id = entry_id(owned.source, identity if value_id is None else value_id)
            return Entry(id, owned.number, int(offset), 0)
        name = message.id if value_id is None else value_id
        headers = message.raw.headers
        generation = message_generation(
            message.header(GENERATION) if came_back else None, owned.assignment
        )
        place = first_place(message, has_come_back=came_back)
        source = header_text(headers, SOURCE) or f"{owned.source_topic}/{place.partition}"
        # The topic may have been created again since the message failed.
        stated = header_text(headers, INCARNATION) if came_back else None
        incarnation = stated or owned.source_incarnation
        first: FirstPosition | None = None
        if came_back and place.topic == owned.source_topic:
            scope = Scope(incarnation, self._group, generation, place.topic, place.partition)
            first = FirstPosition(scope.number, int(place.offset))
        return Entry(
            entry_id(digest(incarnation, self._group, generation, source)[:8], name),
            owned.number,
            int(offset),  # str() of a Redis offset is its entry ID
            min(redrives_of(headers), MAX_REDRIVES),
            first,
        )


__all__ = [
    "Entry",
    "FirstPosition",
    "Identities",
    "OwnedPartition",
    "Scope",
    "digest",
    "position_text",
]
