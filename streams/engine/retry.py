"""Decides what follows a failure: a retry, and when, or a dead letter."""

from __future__ import annotations

from streams.config import Retry
from streams.errors import Reject, RetryAfter, find_config_error


def retry_delay(policy: Retry, attempt: int, error: BaseException, random: float) -> float | None:
    """Seconds until the next attempt after ``attempt`` (from 1) failed; None: no more, write a dead
    letter.

    Exponential backoff with full jitter (see :class:`~streams.config.Retry`): ``random`` is
    a number in [0, 1).
    """
    if isinstance(error, Reject) or attempt >= policy.attempts or isinstance(error, policy.never):
        return None
    if find_config_error(error) is not None:
        return None
    if isinstance(error, RetryAfter):
        return error.seconds
    return random * policy.backoff_bound(attempt)
