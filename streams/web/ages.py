"""The age of cached facts, by a clock that may be set back."""

from __future__ import annotations

import time


def is_recent(at: float, seconds: float) -> bool:
    """Whether facts are at most this many seconds old. A time in the future is from before the
    clock was set back, so it is not recent.

    :param at: seconds since the epoch.
    """
    return 0.0 <= time.time() - at < seconds
