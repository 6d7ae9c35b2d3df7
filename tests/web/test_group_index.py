"""What the dashboard knows of all groups, though not all topics are asked for each time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streams.log.memory.log import MemoryLog
from streams.log.protocol import Assignment
from streams.log.url import open_log
from streams.web import group_index
from streams.web.group_index import GroupIndex, lag_grows


class Member:
    """A listener that takes what it gets."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Reads from where the group is."""

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Has nothing to commit."""

    lost = revoked


def topics_of(index: GroupIndex) -> tuple[str, ...]:
    return index.look(10.0).known["readers"].topics


def test_a_group_that_begins_another_topic_is_seen_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_index, "FRESH", 0.0)
    log = open_log("memory://")
    assert isinstance(log, MemoryLog)
    for topic in ("orders", "invoices", "mails"):
        log.create_topic(topic, 1)
    log.initialize_offsets("readers", "orders", {0: 0})
    index = GroupIndex(lambda: log)
    assert topics_of(index) == ("orders",)

    # A running member says where it reads.
    log.initialize_offsets("readers", "invoices", {0: 0})
    subscription = log.subscribe("readers", ["invoices"], Member())
    subscription.poll(1, 0.0)
    assert topics_of(index) == ("invoices", "orders")
    subscription.close()

    # Where nobody runs, that is found out a while later, and at once after an action.
    log.initialize_offsets("readers", "mails", {0: 0})
    assert topics_of(index) == ("invoices", "orders")
    index.expire()
    assert topics_of(index) == ("invoices", "mails", "orders")
    index.close()
    log.close()


@pytest.mark.parametrize(
    ("lags", "grows"),
    [
        ([200, 300, 400, 500], True),
        ([0, 0, 0, 0, 150, 180], True),
        ([200, 300, 400], False),  # too few to know
        ([500, 500, 510, 520], False),
        ([10, 20, 40, 90], False),  # too few messages
        ([900, 100, 900, 100, 900, 950], False),  # positions that move in steps
        ([900, 600, 300, 200], False),
    ],
)
def test_when_a_lag_grows(lags: list[float], grows: bool) -> None:
    now = 1_000_000.0
    points = [(now - 10 * (len(lags) - number), lag) for number, lag in enumerate(lags)]
    assert lag_grows(points, now) is grows
    assert not lag_grows(points, now + 3_600)  # long ago
    assert not lag_grows([(now - number / 10, lag) for number, lag in enumerate(lags)], now)


def test_a_few_lags_of_a_group_are_kept_and_the_first_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(group_index, "FRESH", 0.0)
    log = open_log("memory://")
    log.create_topic("orders", 1)
    log.initialize_offsets("readers", "orders", {0: 0})
    index = GroupIndex(lambda: log)
    first = index.look(10.0).known["readers"].lags[0]
    for _ in range(3 * group_index.MAX_POINTS):
        known = index.look(10.0).known["readers"].lags
        assert len(known) <= group_index.MAX_POINTS
        assert known[0] == first
        assert list(known) == sorted(known)
    index.close()
    log.close()
