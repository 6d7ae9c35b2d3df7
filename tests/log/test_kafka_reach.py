"""When a client is cut off for so long that it gives way to a new one."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.log.kafka.reconnect import (
    DISCONNECTED_LIMIT,
    MAX_LIMIT,
    NOT_CONNECTING_LIMIT,
    RECONNECT_GRACE,
    ConnectivityMonitor,
    IsolationCheck,
)
from streams.log.kafka.statistics import Snapshot, decode_snapshot

PARTS = {("orders", 0), ("orders", 1)}


def report(
    *,
    coordinator: str | None = "UP",
    one: str = "UP",
    two: str = "UP",
    leaders: tuple[int, int] = (1, 2),
    waiting: int = 0,
) -> Snapshot:
    """As the driver writes it: two brokers, a topic of two partitions."""
    brokers: dict[str, Any] = {
        "b1:9092/1": {"nodeid": 1, "state": one, "source": "learned"},
        "b2:9092/2": {"nodeid": 2, "state": two},
        "b3:9092/bootstrap": {"nodeid": -1, "state": "UP"},
    }
    if coordinator is not None:
        brokers["GroupCoordinator"] = {"nodeid": 1, "state": coordinator}
    partitions: dict[str, Any] = {
        str(n): {"partition": n, "leader": leader, "msgq_cnt": 0, "xmit_msgq_cnt": waiting}
        for n, leader in enumerate(leaders)
    }
    partitions["-1"] = {"partition": -1, "leader": -1}
    topics = {"orders": {"topic": "orders", "partitions": partitions}}
    text = {"ts": 1, "brokers": brokers, "topics": topics, "msg_cnt": waiting}
    return decode_snapshot(json.dumps(text))


def after(snapshot: Snapshot, parts: Any = frozenset(PARTS)) -> ConnectivityMonitor:
    """What is known of a member whose reports have been these for ever."""
    reach = ConnectivityMonitor()
    reach.observe_member(snapshot, parts, 0.0)
    return reach


@pytest.mark.parametrize(
    ("snapshot", "cut"),
    [
        (report(), False),
        (report(coordinator="TRY_CONNECT"), True),
        (report(coordinator=None), True),
        (report(one="INIT"), True),
        (report(two="DOWN"), True),
        (report(leaders=(1, -1)), False),  # nobody leads it: another client would not help
        (report(two="DOWN", leaders=(1, 1)), False),  # nothing is to be read there
        (report(one="INIT", leaders=(-1, -1), coordinator="TRY_CONNECT"), True),
    ],
    ids=str,
)
def test_a_member_needs_its_coordinator_and_whoever_leads_what_it_reads(
    snapshot: Snapshot, cut: bool
) -> None:
    reach = after(snapshot)
    assert not reach.is_cut_off(DISCONNECTED_LIMIT - 0.1)
    assert reach.is_cut_off(DISCONNECTED_LIMIT) is cut


def test_a_member_that_reads_from_a_follower_does_not_miss_the_leader() -> None:
    """client.rack: the leader's connection is not used, and closed by its broker in time."""
    snapshot = report(one="INIT")
    snapshot.topics["orders"].partitions["0"].broker = 2
    assert not after(snapshot).is_cut_off(DISCONNECTED_LIMIT)
    snapshot.topics["orders"].partitions["0"].broker = 1
    assert after(snapshot).is_cut_off(DISCONNECTED_LIMIT)


def test_where_nothing_is_to_be_read_no_broker_is_tried_and_that_says_nothing() -> None:
    outage = report(one="INIT", two="INIT", coordinator="TRY_CONNECT")
    outage.brokers["b3:9092/bootstrap"].state = "INIT"
    assert not after(outage, frozenset()).is_cut_off(DISCONNECTED_LIMIT - 0.1)
    assert after(outage, frozenset()).is_cut_off(DISCONNECTED_LIMIT)


def test_what_is_not_to_be_read_is_not_missed() -> None:
    assert not after(report(two="INIT"), {("orders", 0), ("other", 1)}).is_cut_off(
        DISCONNECTED_LIMIT
    )
    assert not after(report(one="INIT", two="INIT"), frozenset()).is_cut_off(DISCONNECTED_LIMIT)


def test_which_partition_is_missed_is_known() -> None:
    assert after(report(two="INIT")).unreached == ("orders", 1)
    assert after(report(coordinator="DOWN")).unreached is None


@pytest.mark.parametrize(
    ("snapshot", "cut"),
    [
        (report(coordinator=None, waiting=3), False),
        (report(one="INIT", two="INIT", waiting=0), False),  # nothing to write
        (report(one="INIT", waiting=3), True),
        (report(one="INIT", two="INIT", leaders=(-1, -1), waiting=3), False),  # the bootstrap's is
    ],
    ids=str,
)
def test_a_producer_needs_whoever_leads_what_waits(snapshot: Snapshot, cut: bool) -> None:
    reach = ConnectivityMonitor()
    reach.observe_producer(snapshot, 0.0)
    assert reach.is_cut_off(DISCONNECTED_LIMIT) is cut


def test_a_producer_that_reaches_nobody_is_cut_off() -> None:
    snapshot = report(one="INIT", two="TRY_CONNECT", leaders=(-1, -1), waiting=1)
    snapshot.brokers["b3:9092/bootstrap"].state = "CONNECT"
    reach = ConnectivityMonitor()
    reach.observe_producer(snapshot, 0.0)
    assert reach.is_cut_off(DISCONNECTED_LIMIT)
    assert reach.unreached is None


def test_a_connection_that_comes_and_goes_between_reports_is_one() -> None:
    """Each reply is lost, and the driver waits before it connects again: seldom seen as up."""
    reach = ConnectivityMonitor()
    snapshot = report(coordinator="DOWN", one="TRY_CONNECT", two="TRY_CONNECT", waiting=1)
    snapshot.brokers["b3:9092/bootstrap"].state = "DOWN"
    for second in range(60):
        for broker in snapshot.brokers.values():
            broker.rx = 3 * second + 3
        reach.observe_producer(snapshot, float(second))
        assert not reach.is_cut_off(float(second))
        assert not after(snapshot).is_cut_off(DISCONNECTED_LIMIT)
    for second in range(60, 60 + int(DISCONNECTED_LIMIT)):
        reach.observe_producer(snapshot, float(second))
        assert not reach.is_cut_off(float(second))
    assert reach.is_cut_off(60.0 + DISCONNECTED_LIMIT)
    for broker in snapshot.brokers.values():
        broker.rx = 1  # a new client's counts begin anew
    reach.observe_producer(snapshot, 60.0 + DISCONNECTED_LIMIT)
    assert not reach.is_cut_off(60.0 + DISCONNECTED_LIMIT)


def test_a_driver_that_does_not_even_try_gets_less_time() -> None:
    given_up = report(one="INIT", two="INIT", leaders=(-1, -1), coordinator="TRY_CONNECT")
    given_up.brokers["b3:9092/bootstrap"].state = "INIT"
    trying = report(one="TRY_CONNECT", two="INIT", leaders=(-1, -1), coordinator="DOWN")
    trying.brokers["b3:9092/bootstrap"].state = "INIT"
    reach = after(given_up)
    assert not reach.is_cut_off(NOT_CONNECTING_LIMIT - 0.1)
    assert reach.is_cut_off(NOT_CONNECTING_LIMIT)
    reach.observe_member(trying, PARTS, NOT_CONNECTING_LIMIT)
    assert not reach.is_cut_off(DISCONNECTED_LIMIT - 0.1)
    assert reach.is_cut_off(DISCONNECTED_LIMIT)
    reach.observe_member(given_up, PARTS, DISCONNECTED_LIMIT - 1.0)
    reach.back_off()
    reach.observe_member(given_up, PARTS, 100.0)
    assert not reach.is_cut_off(100.0 + NOT_CONNECTING_LIMIT)
    assert reach.is_cut_off(100.0 + 2 * NOT_CONNECTING_LIMIT)


def test_a_member_keeps_its_client_for_the_length_of_its_session() -> None:
    reach = ConnectivityMonitor(45.0)
    reach.observe_member(report(coordinator="DOWN"), PARTS, 0.0)
    assert not reach.is_cut_off(44.9)
    assert reach.is_cut_off(45.0)


class Others:
    """Clients that are new: whether they are answered, and when they were asked."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.missed: list[Any] = []

    def __call__(self, missed: Any) -> bool:
        self.missed.append(missed)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)


def turned(alone: IsolationCheck, now: float) -> bool:
    """A turn, and whoever it asked has answered."""
    found = alone.should_replace(now)
    if alone._probe_thread is not None:
        alone._probe_thread.join()
    return found


def test_only_who_is_cut_off_alone_is_replaced_and_not_before_it_had_time_to_connect() -> None:
    reach, others = ConnectivityMonitor(), Others(False, OSError("no more threads"), True)
    alone = IsolationCheck(reach, others)
    down = report(coordinator="DOWN")
    reach.observe_member(down, PARTS, 0.0)
    assert not turned(alone, 1.0)
    assert others.missed == []
    assert not turned(alone, DISCONNECTED_LIMIT)  # asks: nobody is answered
    assert reach.disconnected_limit == 2 * DISCONNECTED_LIMIT
    reach.observe_member(down, PARTS, 20.0)
    assert not turned(alone, 20.0 + 2 * DISCONNECTED_LIMIT)  # asks: that fails
    reach.observe_member(down, PARTS, 100.0)
    assert not turned(alone, 100.0 + 4 * DISCONNECTED_LIMIT)  # asks: one is answered
    assert others.missed == [None, None, None]
    answered = alone._other_reached_at
    assert answered is not None
    reach.observe_member(down, PARTS, answered + RECONNECT_GRACE - 0.1)
    assert not turned(alone, answered + 1e6)
    reach.observe_member(down, PARTS, answered + RECONNECT_GRACE)
    assert turned(alone, answered + 1e6)


def test_who_connects_after_all_is_not_replaced() -> None:
    reach = ConnectivityMonitor()
    alone = IsolationCheck(reach, Others(True, True))
    reach.observe_member(report(coordinator="DOWN"), PARTS, 0.0)
    assert not turned(alone, DISCONNECTED_LIMIT)
    assert alone._other_reached_at is not None
    reach.observe_member(report(), PARTS, time.monotonic() + 1e3)
    assert not turned(alone, time.monotonic() + 1e6)
    assert alone._other_reached_at is None


@given(st.lists(st.tuples(st.booleans(), st.floats(0.1, 60.0)), min_size=1, max_size=60))
def test_only_an_outage_without_a_break_counts_and_each_replacement_waits_longer(
    reports: list[tuple[bool, float]],
) -> None:
    reach, now = ConnectivityMonitor(), 0.0
    since: float | None = None
    patience = DISCONNECTED_LIMIT
    for reached, pause in reports:
        now += pause
        reach.observe_member(report(coordinator="UP" if reached else "DOWN"), PARTS, now)
        if reached:
            since, patience = None, DISCONNECTED_LIMIT
        elif since is None:
            since = now
        over = since is not None and now >= since + patience
        assert reach.is_cut_off(now) is over
        if over:
            reach.back_off()
            since, patience = None, min(MAX_LIMIT, patience * 2)
        assert reach.disconnected_limit == patience
