"""A log, and how bytes that no client of ours would write get into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from redis import Redis, ResponseError

from streams.message import Record
from tests.conformance.records import append
from tests.conformance.stage import Stage
from tests.hostile import kafka_wire

ANY_TIME = {
    "message.timestamp.after.max.ms": str(2**63 - 1),
    "message.timestamp.before.max.ms": str(2**63 - 1),
}
"""Settings under which a broker takes a record whatever its time."""


class Ground(Stage):
    """A stage whose log can be written to past our own client."""

    def create(self, topic: str, partitions: int = 1) -> None:
        """A topic that takes records of any time."""
        config = ANY_TIME if self.case.name == "kafka" else None
        self.anchor.create_topic(topic, partitions, config=config)

    def write(self, topic: str, records: Sequence[kafka_wire.Written]) -> None:
        """Write records as they are, to partition 0: also names and times that no client takes.

        Where nobody but our own client writes, names are text, and times are the log's.
        """
        if self.case.name == "kafka":
            kafka_wire.produce(urlsplit(self.url).netloc, topic, records)
        elif self.case.name == "redis":
            self._write_redis(topic, records)
        else:
            append(self.anchor, topic, [_ours(record) for record in records])

    def _write_redis(self, topic: str, records: Sequence[kafka_wire.Written]) -> None:
        place = urlsplit(self.url)
        partitions = self.anchor.describe_topic(topic).partitions
        stream = topic if partitions == 1 else f"{{{topic}:0}}"
        with Redis(host=place.hostname or "", port=place.port or 0) as redis:
            for record in records:
                fields: list[Any] = []
                if record.value is not None:
                    fields += [b"value", record.value]
                if record.key is not None:
                    fields += [b"key", record.key]
                for name, value in record.headers:
                    fields += [b"null:" + name if value is None else name, value or b""]
                fields = fields or [b"", b""]
                try:
                    redis.execute_command("XADD", stream, _entry_id(record.time), *fields)
                except ResponseError:  # entry IDs ascend, and this one's time is past
                    redis.execute_command("XADD", stream, "*", *fields)


def _entry_id(time: int) -> str:
    """Redis' own time, unless the record has one that lies beyond it."""
    return f"{time}-*" if time > 4_000_000_000_000 else "*"


def _ours(record: kafka_wire.Written) -> Record:
    pairs = [(name.decode("utf-8", "surrogateescape"), value) for name, value in record.headers]
    id = next((value for name, value in pairs if name == "ce_id" and value), b"")
    others = [pair for pair in pairs if pair[0] != "ce_id"]
    return Record(
        record.value, record.key, id.decode("utf-8", "surrogateescape"), others, partition=0
    )
