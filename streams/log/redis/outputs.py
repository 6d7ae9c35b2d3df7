"""Packs the records of an exactly-once processor for the script that stores them.

They are one argument, in MessagePack: the script takes fewer than 8,000. No message ID is
remembered, as an exactly-once processor's records are written once anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import NamedTuple

from streams.errors import LogError, TooLarge
from streams.log.events import events_only
from streams.log.names import partitions_for
from streams.log.protocol import OutputsRefused, by_topic_of
from streams.log.redis.batch import encode_fields
from streams.log.redis.keys import PartitionKeys
from streams.log.redis.producer import MAX_BYTES, MAX_FIELDS
from streams.log.redis.topics import Topics
from streams.message import Record

_head = Struct(">BI").pack
# Redis's MessagePack library (7.0) has no binary type, but accepts any bytes as text.
_ARRAY, _TEXT, _NUMBER = 0xDD, 0xDB, 0xCE


class PackedOutputs(NamedTuple):
    """Packed records, and the streams they go to.

    :param partitions: the partitions; each record has the index of its own, from 1.
    """

    partitions: list[PartitionKeys]
    records: bytes


def pack_outputs(topics: Topics, outputs: Sequence[tuple[str, Record]]) -> PackedOutputs:
    """Records, packed for the script.

    :raises NotFound: one of the topics is missing.
    :raises OutputsRefused: some can never be written.
    """
    partitions: dict[tuple[str, int], int] = {}
    found: list[PartitionKeys] = []
    refused: dict[int, LogError] = {}
    packed: list[bytes] = [b""] * len(outputs)
    for topic, indexes in by_topic_of(outputs).items():
        info = topics.lookup(topic).info
        if info.is_event_topic:
            refused.update(dict.fromkeys(indexes, events_only(topic, "published to")))
            continue
        records = [outputs[index][1] for index in indexes]
        routed = partitions_for(records, info.partitions)
        for index, record, partition in zip(indexes, records, routed, strict=True):
            if not 0 <= partition < info.partitions:
                refused[index] = LogError(f"{topic} has no partition {partition}")
                continue
            names, values, _ = encode_fields(record)
            size = sum(map(len, values))
            if size > MAX_BYTES or len(names) > MAX_FIELDS:
                refused[index] = TooLarge(
                    f"{topic}: a record of {size} bytes and {len(names)} fields; at most "
                    f"{MAX_BYTES} and {MAX_FIELDS}"
                )
                continue
            number = partitions.get((topic, partition))
            if number is None:
                found.append(topics.partition_keys(topic, partition))
                number = partitions[topic, partition] = len(found)
            packed[index] = _pack_record(number, names, values)
    if refused:
        raise OutputsRefused(refused)
    return PackedOutputs(found, _head(_ARRAY, len(packed)) + b"".join(packed))


def _pack_record(number: int, names: Sequence[bytes | str], values: Sequence[bytes]) -> bytes:
    pieces = [_head(_ARRAY, 1 + 2 * len(names)), _head(_NUMBER, number)]
    for name, value in zip(names, values, strict=False):  # the identity may follow the values
        encoded = name.encode() if isinstance(name, str) else name
        pieces += (_head(_TEXT, len(encoded)), encoded, _head(_TEXT, len(value)), value)
    return b"".join(pieces)
