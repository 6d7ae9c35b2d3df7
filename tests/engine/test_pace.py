"""When to commit next, with a clock in the test's hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.engine.commit_pace import CORE_SHARE, LONGEST_LOOK, SAVED_UP, CommitPace

seconds = st.floats(0.0, 10.0)
intervals = st.floats(0.001, 10.0)
steps = st.lists(st.tuples(st.booleans(), seconds, st.floats(0.0, 2.0)), max_size=60)
"""Whether something had moved, how long after it was due the look came, and what it cost."""

HAIR = 1e-6


@given(intervals, intervals, steps)
def test_it_is_due_within_its_bounds(
    longest: float, shortest: float, steps: list[tuple[bool, float, float]]
) -> None:
    pace, now = CommitPace(longest, shortest), 1_000.0
    assert pace.due <= now
    for moved, late, cost in steps:
        now = max(now, pace.due) + late + cost
        (pace.record_commit if moved else pace.record_idle_check)(now, cost)
        assert now + min(longest, shortest) - HAIR <= pace.due <= now + longest + HAIR


@given(intervals, intervals, steps)
def test_it_takes_no_more_than_its_share(
    longest: float, shortest: float, steps: list[tuple[bool, float, float]]
) -> None:
    """Of all time, from any moment on; the longest interval is waited whatever commits cost."""
    pace, now, spent = CommitPace(longest, shortest), 0.0, list[tuple[float, float]]()
    for moved, late, cost in steps:
        now = max(now, pace.due) + late
        (pace.record_commit if moved else pace.record_idle_check)(now, cost)
        spent.append((now, min(cost, longest * CORE_SHARE)))
    for first, (began, _) in enumerate(spent):
        total = 0.0
        for at, cost in spent[first:]:
            assert total <= (at - began) * CORE_SHARE + SAVED_UP + HAIR
            total += cost


@given(st.floats(0.001, 0.5), st.lists(st.floats(0.0, 0.001), min_size=1, max_size=20))
def test_while_nothing_moves_it_looks_less_and_less_often(
    shortest: float, costs: list[float]
) -> None:
    pace, now, waits = CommitPace(3_600.0, shortest), 0.0, list[float]()
    for cost in costs:
        now = max(now, pace.due)
        pace.record_idle_check(now, cost)
        waits.append(pace.due - now)
    assert all(wait <= max(LONGEST_LOOK, shortest, 0.001 / CORE_SHARE) + HAIR for wait in waits)
    if len(costs) > 10:
        assert waits[-1] >= min(LONGEST_LOOK, waits[0] * 2) - HAIR
    now = pace.due
    pace.record_commit(now, 0.0)
    assert pace.due <= now + shortest + HAIR


def test_a_commit_that_costs_little_is_followed_soon_by_the_next() -> None:
    pace = CommitPace(1.0, 0.025)
    pace.record_commit(100.0, 0.0)
    assert pace.due == 100.025
    pace.record_commit(200.0, SAVED_UP)
    assert pace.due == 200.025
    pace.record_commit(200.0, 0.005)
    assert pace.due == pytest.approx(200.0 + 0.005 / CORE_SHARE)
    pace.record_commit(300.0, 5.0)
    assert pace.due == pytest.approx(301.0)
    pace.record_commit(301.0, 0.0)
    assert pace.due == pytest.approx(301.025)


def test_who_wants_commits_more_often_than_the_log_gets_them() -> None:
    pace = CommitPace(0.05, 0.1)
    pace.record_commit(100.0, 0.0)
    assert pace.due == 100.05
