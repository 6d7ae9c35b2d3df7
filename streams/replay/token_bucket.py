"""A rate limit in messages per second of real time."""

from __future__ import annotations

import time

from streams.errors import ConfigError

BURST_SECONDS = 0.1
"""The size of a burst, in seconds' worth of messages."""


class TokenBucket:
    """A token bucket that holds a tenth of a second's messages, one at least.

    :param rate: messages per second; None: no limit.
    """

    def __init__(self, rate: float | None) -> None:
        if rate is not None and not 0 < rate < float("inf"):
            raise ConfigError(f"rate={rate!r}: messages a second, more than 0, or None")
        self._rate = rate
        self._burst = max(1.0, (rate or 0.0) * BURST_SECONDS)
        self._tokens = 1.0
        self._since = time.monotonic()

    def available(self, wanted: int) -> int:
        """How many of ``wanted`` messages may go now."""
        if self._rate is None:
            return wanted
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._rate)
        self._since = now
        return min(wanted, int(self._tokens))

    def consume(self, messages: int) -> None:
        """Take this many tokens."""
        self._tokens -= messages

    def seconds_to_next(self) -> float:
        """Seconds until the next message may go."""
        if self._rate is None:
            return 0.0
        return max(0.0, (1.0 - self._tokens) / self._rate)
