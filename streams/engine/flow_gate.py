"""When enough is held in memory: one gate with a high and a low mark.

Pausing a driver throws away what it has prefetched, so the gate is coarse: it shuts when a bound
is reached and opens again when both measures are below half of it.
"""

from __future__ import annotations

from streams.config import Flow

FIRST_INTAKE = 16
"""Messages taken in before anything is known of their size, at most."""


class FlowGate:
    """Bounds what one processor holds, by count and by bytes."""

    __slots__ = ("_bytes", "_mean_bytes", "_messages", "is_shut")

    def __init__(self, flow: Flow, *, share: float = 0.5) -> None:
        """``share`` of the bytes is ours; the rest is the driver's prefetch."""
        self._messages = flow.messages
        self._bytes = max(1, int(flow.bytes * share))
        self._mean_bytes = 0.0
        self.is_shut = False

    def record_size(self, messages: int, bytes: int) -> None:
        """So many messages were taken in, of so many bytes together: later ones may be alike."""
        mean = bytes / messages
        self._mean_bytes = max(mean, (7 * self._mean_bytes + mean) / 8)

    def is_byte_bound(self, bytes: int) -> bool:
        """Whether so many bytes are what keeps the gate from opening."""
        return bytes * 2 > self._bytes

    def capacity(self, messages: int, bytes: int) -> int:
        """How many more messages may be taken in while this much is held; 0 while shut."""
        if messages >= self._messages or bytes >= self._bytes:
            self.is_shut = True
        elif self.is_shut and messages * 2 <= self._messages and bytes * 2 <= self._bytes:
            self.is_shut = False
        if self.is_shut:
            return 0
        left = self._messages - messages
        if not self._mean_bytes:
            return min(left, FIRST_INTAKE)  # nothing is known yet of their size
        return max(1, min(left, int((self._bytes - bytes) / self._mean_bytes)))
