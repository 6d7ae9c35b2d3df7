"""When enough is held in memory: one gate with a high and a low mark.

Pausing a driver throws away what it has prefetched, so the gate is coarse: it shuts when a bound
is reached and opens again when both measures are below half of it.
"""

from __future__ import annotations

from streams.config import Flow


class Gate:
    """Bounds what one processor holds, by count and by bytes."""

    __slots__ = ("_bytes", "_messages", "shut")

    def __init__(self, flow: Flow, *, share: float = 0.5) -> None:
        """``share`` of the bytes is ours; the rest is the driver's prefetch."""
        self._messages = flow.messages
        self._bytes = max(1, int(flow.bytes * share))
        self.shut = False

    def room(self, messages: int, bytes: int) -> int:
        """How many more messages may be taken in while this much is held; 0 while shut."""
        if messages >= self._messages or bytes >= self._bytes:
            self.shut = True
        elif self.shut and messages * 2 <= self._messages and bytes * 2 <= self._bytes:
            self.shut = False
        return 0 if self.shut else self._messages - messages
