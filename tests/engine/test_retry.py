"""What a failure means."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.config import Retry
from streams.engine.retry import retry_delay
from streams.errors import HandlerTimeout, Reject, RetryAfter
from tests.engine.support import runs


class Hopeless(Exception):
    pass


class Worse(Hopeless):
    pass


@pytest.mark.parametrize(
    ("attempt", "error", "random", "delay"),
    [
        (1, ValueError(), 0.0, 0.0),
        (1, ValueError(), 0.5, 0.05),
        (2, ValueError(), 0.5, 0.1),
        (3, HandlerTimeout(), 0.5, 0.2),
        (4, ValueError(), 0.5, 0.25),  # capped: 0.8 would be more than 0.5
        (5, ValueError(), 0.5, None),  # the first call included
        (6, ValueError(), 0.5, None),
        (1, Reject("no"), 0.5, None),
        (1, Hopeless(), 0.5, None),
        (1, Worse(), 0.5, None),
        (1, RetryAfter(7.0), 0.5, 7.0),  # as asked, even over the cap
        (4, RetryAfter(7.0), 0.0, 7.0),
        (5, RetryAfter(7.0), 0.5, None),  # it uses up an attempt like any failure
    ],
)
def test_again(attempt: int, error: Exception, random: float, delay: float | None) -> None:
    policy = Retry(attempts=5, delay=0.1, cap=0.5, never=(Hopeless,))
    assert retry_delay(policy, attempt, error, random) == (
        None if delay is None else pytest.approx(delay)
    )


def test_one_attempt_is_no_retry() -> None:
    assert retry_delay(Retry(attempts=1), 1, ValueError(), 0.5) is None


@runs(100)
@given(
    st.builds(
        Retry,
        attempts=st.integers(1, 5_000),
        delay=st.floats(0, 1e300),
        cap=st.floats(0, 1e300),
    ),
    st.integers(1, 6_000),
    st.floats(0, 1, exclude_max=True),
)
def test_no_backoff_is_longer_than_its_bound(policy: Retry, attempt: int, random: float) -> None:
    delay = retry_delay(policy, attempt, ValueError(), random)
    if attempt >= policy.attempts:
        assert delay is None
    else:
        bound = policy.delay * 2.0 ** min(attempt - 1, 1_000)
        assert delay is not None
        assert 0 <= delay <= min(policy.cap, bound)
