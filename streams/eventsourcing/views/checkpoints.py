"""What a view keeps with its checkpoint, and how it is held against the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from streams import wire
from streams.errors import ConfigError, StreamsError
from streams.log.documents import Checkpoint
from streams.log.names import check_topic
from streams.log.protocol import TopicPartition

SourcePosition = tuple[int, int]
"""How far a source partition is folded: the offset of a message, and which of its copies that is
(:mod:`streams.eventsourcing.views.keyed_records`)."""

NO_INCARNATIONS: Mapping[str, str] = {}

MAX_COPY = 10**wire.MAX_DIGITS - 1
"""The largest number of a copy."""


class UnreadableCheckpoint(StreamsError):
    """What is stored with a checkpoint was not written by a view."""


class CheckpointData(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored.

    :param offset: of the last message that was folded, as text: it may have more bits than JSON's
        numbers. Empty: of none.
    :param id: its message ID. A log that has another message there, or none, is another log, or has
        lost what it had acknowledged.
    :param id_bytes: the same in hexadecimal digits, where it is not UTF-8.
    :param sources: of a keyed view, how far each source partition is folded.
    :param incarnations: of the topics that all this is of, as far as they are known
        (:mod:`streams.eventsourcing.views.incarnations`).
    """

    offset: str = ""
    id: str = ""
    id_bytes: str = ""
    sources: dict[str, tuple[str, int]] = {}
    incarnations: dict[str, str] = {}


class FoldedUpTo(NamedTuple):
    """What a checkpoint says.

    :param last: offset and ID of the last message that was folded; None: of none.
    :param sources: of a keyed view, how far each source partition is folded.
    :param incarnations: of each topic that the documents are made of, where it is known.
    """

    last: tuple[int, str] | None
    sources: dict[str, SourcePosition]
    incarnations: dict[str, str]


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(CheckpointData)


def encode_checkpoint(
    last: tuple[int, str] | None,
    sources: Mapping[str, SourcePosition],
    incarnations: Mapping[str, str] = NO_INCARNATIONS,
) -> bytes:
    """What to store; as in :class:`FoldedUpTo`."""
    topics = dict(incarnations)
    offset, id = ("", "") if last is None else (str(last[0]), last[1])
    places = source_texts(sources)
    try:
        return _encode(CheckpointData(offset, id, "", places, topics))
    except UnicodeEncodeError:
        id_bytes = id.encode("utf-8", "surrogatepass").hex()
        return _encode(CheckpointData(offset, "", id_bytes, places, topics))


def decode_checkpoint(checkpoint: Checkpoint | None) -> FoldedUpTo:
    """What was stored with a checkpoint.

    :raises UnreadableCheckpoint: something else has written it.
    """
    if checkpoint is None or not checkpoint.data:
        return FoldedUpTo(None, {}, {})
    try:
        found = _decoder.decode(checkpoint.data)
        id = found.id
        if found.id_bytes:
            id = bytes.fromhex(found.id_bytes).decode("utf-8", "surrogatepass")
        last = (parse_offset(found.offset), id) if found.offset else None
        for topic in found.incarnations:
            check_topic(topic)
        return FoldedUpTo(last, parse_sources(found.sources), found.incarnations)
    except (msgspec.DecodeError, ValueError, ConfigError, RecursionError) as error:
        raise UnreadableCheckpoint(f"it was written by something else: {error}") from error


def source_texts(sources: Mapping[str, SourcePosition]) -> dict[str, tuple[str, int]]:
    """How far sources are folded, as it is stored."""
    return {name: (str(offset), copy) for name, (offset, copy) in sources.items()}


def parse_sources(written: Mapping[str, tuple[str, int]]) -> dict[str, SourcePosition]:
    """How far sources are folded.

    :raises ValueError: no view has written this.
    """
    found: dict[str, SourcePosition] = {}
    for name, (offset, copy) in written.items():
        parse_source(name)
        if not 0 <= copy <= MAX_COPY:
            raise ValueError("a copy's number is out of bounds")
        found[name] = parse_offset(offset), copy
    return found


def parse_source(name: str) -> TopicPartition:
    """A source partition that was written as ``topic/partition``.

    :raises ValueError: it is none.
    """
    topic, _, number = name.rpartition("/")
    partition = wire.parse_partition(number)
    if partition is None:
        raise ValueError("a source is a topic and the number of a partition")
    return topic, partition


def parse_offset(written: str) -> int:
    """An offset that was written as text.

    :raises ValueError: it is none.
    """
    found = wire.parse_offset(written)
    if found is None:
        raise ValueError("an offset is a number")
    return found
