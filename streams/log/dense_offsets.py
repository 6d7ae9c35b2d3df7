"""The common part of logs whose offsets are consecutive numbers."""

from __future__ import annotations

from typing_extensions import override

from streams import wire
from streams.errors import ConfigError
from streams.log.protocol import Log


class DenseOffsets(Log):
    """The part of :class:`~streams.log.protocol.Log` that is arithmetic on such offsets."""

    @override
    def log_end_offset(self, topic: str, partition: int) -> int:
        return self.watermarks(topic, partition)[1]

    @override
    def offset_before(self, topic: str, partition: int, position: int, count: int) -> int:
        first, end = self.watermarks(topic, partition)
        return max(first, min(position, end) - count)

    @override
    def lag(self, topic: str, partition: int, position: int) -> int:
        first, end = self.watermarks(topic, partition)
        return max(0, end - max(position, first))

    @override
    def format_offset(self, offset: int) -> str:
        return str(offset)

    @override
    def parse_offset(self, text: str) -> int:
        offset = wire.parse_int(text)
        if offset is None:
            raise ConfigError(f"offset {wire.shorten(text, 60)!r}: a number such as 1042 is needed")
        return offset
