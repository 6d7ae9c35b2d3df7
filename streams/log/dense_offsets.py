"""What the logs have in common whose offsets are numbers that follow each other."""

from __future__ import annotations

from abc import ABC, abstractmethod

from streams import wire
from streams.errors import ConfigError


class DenseOffsets(ABC):
    """The part of :class:`~streams.log.protocol.Log` that is arithmetic on such offsets."""

    @abstractmethod
    def watermarks(self, topic: str, partition: int) -> tuple[int, int]:
        """First position that can be read, and the one the next message will get or exceed."""

    def log_end_offset(self, topic: str, partition: int) -> int:
        """The end, all of which can be read."""
        return self.watermarks(topic, partition)[1]

    def offset_before(self, topic: str, partition: int, position: int, count: int) -> int:
        """The position ``count`` offsets before ``position``, or the first there is."""
        first, end = self.watermarks(topic, partition)
        return max(first, min(position, end) - count)

    def lag(self, topic: str, partition: int, position: int) -> int:
        """How many offsets stand at or behind ``position``."""
        first, end = self.watermarks(topic, partition)
        return max(0, end - max(position, first))

    def format_offset(self, offset: int) -> str:
        """An offset as people write it: a number."""
        return str(offset)

    def parse_offset(self, text: str) -> int:
        """An offset as :meth:`format_offset` writes it.

        :raises ConfigError: it is none.
        """
        offset = wire.parse_int(text)
        if offset is None:
            raise ConfigError(f"offset {wire.shorten(text, 60)!r}: a number such as 1042 is needed")
        return offset
