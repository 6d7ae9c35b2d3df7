"""When enough is held in memory: one gate with a high and a low mark.

Pausing a driver throws away what it has prefetched, so the gate is coarse: it shuts when a bound
is reached and opens again when both measures are below half of it.
"""

from __future__ import annotations

from streams.config import Flow

FIRST = 16
"""Messages taken in before anything is known of their size, at most."""


class Gate:
    """Bounds what one processor holds, by count and by bytes."""

    __slots__ = ("_bytes", "_mean", "_messages", "shut")

    def __init__(self, flow: Flow, *, share: float = 0.5) -> None:
        """``share`` of the bytes is ours; the rest is the driver's prefetch."""
        self._messages = flow.messages
        self._bytes = max(1, int(flow.bytes * share))
        self._mean = 0.0
        self.shut = False

    def took(self, messages: int, bytes: int) -> None:
        """So many messages were taken in, of so many bytes together: later ones may be alike."""
        mean = bytes / messages
        self._mean = max(mean, (7 * self._mean + mean) / 8)

    def heavy(self, bytes: int) -> bool:
        """Whether so many bytes are what keeps the gate from opening."""
        return bytes * 2 > self._bytes

    def room(self, messages: int, bytes: int) -> int:
        """How many more messages may be taken in while this much is held; 0 while shut."""
        if messages >= self._messages or bytes >= self._bytes:
            self.shut = True
        elif self.shut and messages * 2 <= self._messages and bytes * 2 <= self._bytes:
            self.shut = False
        if self.shut:
            return 0
        room = self._messages - messages
        if not self._mean:
            return min(room, FIRST)  # nothing is known yet of their size
        return max(1, min(room, int((self._bytes - bytes) / self._mean)))
