"""How old something is that was looked at, by a clock that may be set back."""

from __future__ import annotations

import time


def is_recent(at: float, seconds: float) -> bool:
    """Whether something was looked at within the last so many seconds. What was looked at ahead of
    now was looked at before the clock was set back, so it is not recent.

    :param at: seconds since the epoch.
    """
    return 0.0 <= time.time() - at < seconds
