"""Until when a member owns its partitions, from the driver's reports."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.log.kafka.ownership import RESPONSE_GRACE, Ownership
from streams.log.kafka.statistics import Broker, GroupState, Snapshot, decode_snapshot

SETTLED = int(RESPONSE_GRACE * 1e6)


class Driver:
    """What the driver would report, and the truth it reports about."""

    def __init__(self, kip848: bool = False, now: float = 100.0) -> None:
        self.kip848 = kip848
        self.now = now
        self.broker = Broker(rxidle=SETTLED, tx=0, req={"ApiVersion": 0})
        self.steady = True
        self.rebalances = 0
        self.ownership = Ownership(10.0, 300.0, kip848, now)
        self.report()  # the first one is only compared with

    def send(self, request: str = "Heartbeat") -> float:
        """A request goes out; when it did."""
        self.broker.tx += 1
        if not (self.kip848 and request == "Heartbeat"):
            self.broker.req[request] = self.broker.req.get(request, 0) + 1
        return self.now

    def report(self) -> float:
        """A report is made and heard; when."""
        state = GroupState("up", "steady" if self.steady else "wait-join", self.rebalances)
        self.ownership.polled_at = self.now
        snapshot = Snapshot(int(self.now * 1e6), {"GroupCoordinator": self.broker}, state)
        self.ownership.observe(snapshot, self.now)
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(params=[False, True], ids=["classic", "kip848"])
def driver(request: pytest.FixtureRequest) -> Driver:
    return Driver(request.param)


def test_an_answered_heartbeat_confirms_from_the_report_before_it(driver: Driver) -> None:
    driver.wait(1)
    before = driver.report()
    driver.wait(0.5)
    driver.send()
    driver.wait(0.5)
    driver.report()
    assert driver.ownership.confirmed_at == before
    assert driver.ownership.valid_until == before + 10


def test_silence_confirms_nothing(driver: Driver) -> None:
    start = driver.ownership.confirmed_at
    for _ in range(20):
        driver.wait(1)
        driver.send("Metadata")
        driver.report()
    assert driver.ownership.confirmed_at == start
    assert driver.ownership.valid_until < driver.now


@pytest.mark.parametrize(
    "trouble",
    ["connects", "disconnects", "req_timeouts", "rxerrs", "txerrs", "txretries"],
)
def test_trouble_on_the_way_takes_the_heartbeat_back(driver: Driver, trouble: str) -> None:
    start = driver.ownership.confirmed_at
    driver.wait(1)
    driver.send()
    setattr(driver.broker, trouble, 1)
    for _ in range(5):
        driver.wait(1)
        driver.report()
    assert driver.ownership.confirmed_at == start


def test_a_search_for_another_coordinator_is_trouble(driver: Driver) -> None:
    start = driver.ownership.confirmed_at
    driver.wait(1)
    driver.send()
    driver.send("FindCoordinator")
    driver.report()
    driver.wait(1)
    driver.report()
    assert driver.ownership.confirmed_at == start


@pytest.mark.parametrize("field", ["waitresp_cnt", "outbuf_cnt"])
def test_what_is_outstanding_confirms_once_it_is_answered(driver: Driver, field: str) -> None:
    start = driver.ownership.confirmed_at
    driver.wait(1)
    before = driver.report()
    driver.send()
    setattr(driver.broker, field, 1)
    driver.wait(1)
    driver.report()
    assert driver.ownership.confirmed_at == start
    setattr(driver.broker, field, 0)
    driver.wait(1)
    driver.report()
    assert driver.ownership.confirmed_at == before


def test_an_answer_that_may_not_have_been_judged_yet_waits(driver: Driver) -> None:
    start = driver.ownership.confirmed_at
    driver.send()
    driver.broker.rxidle = SETTLED - 1
    driver.wait(1)
    driver.report()
    assert driver.ownership.confirmed_at == start
    driver.broker.rxidle = 1_000_000
    driver.wait(1)
    driver.report()
    assert driver.ownership.confirmed_at == start  # that of the report before it was sent
    assert driver.ownership._before_heartbeat is None


def test_a_member_that_left_its_steady_state_is_not_confirmed_by_what_it_sent(
    driver: Driver,
) -> None:
    start = driver.ownership.confirmed_at
    driver.wait(1)
    driver.send()
    driver.steady = False
    driver.report()
    driver.steady = True
    driver.wait(1)
    driver.report()
    assert driver.ownership.confirmed_at == start


def test_a_stopped_process_wakes_up_uncertain_until_a_heartbeat_is_answered(
    driver: Driver,
) -> None:
    driver.wait(1)
    driver.send()
    driver.report()
    driver.wait(60)  # SIGSTOP
    assert driver.now > driver.ownership.valid_until
    before = driver.report()
    assert driver.now > driver.ownership.valid_until
    driver.send()
    driver.wait(1)
    driver.report()
    assert driver.ownership.valid_until == before + 10 > driver.now


def test_a_member_nobody_polls_is_owner_no_longer_than_the_driver_waits() -> None:
    ownership = Ownership(10.0, 3.0, False, 100.0)
    ownership.confirm(105.0)
    assert ownership.valid_until == 103.0
    ownership.polled_at = 104.0
    assert ownership.valid_until == 107.0


def test_a_classic_members_sync_confirms_from_the_last_report_without_it() -> None:
    driver = Driver()
    driver.wait(30)
    before = driver.report()
    driver.wait(0.2)
    driver.send("SyncGroup")
    driver.ownership.assignment_received()  # heard before the next report
    assert driver.ownership.confirmed_at == before
    driver.wait(30)
    before = driver.report()
    driver.send("SyncGroup")
    driver.wait(1)
    driver.report()  # and here after it
    driver.ownership.assignment_received()
    assert driver.ownership.confirmed_at == before


def test_counts_that_are_not_read_at_one_instant_make_no_heartbeat() -> None:
    driver = Driver(kip848=True)
    driver.send()
    driver.wait(1)
    driver.report()
    confirmed = driver.ownership.confirmed_at
    # tx was read before a commit was sent, the table after.
    driver.broker.req["OffsetCommit"] = 1
    driver.wait(1)
    driver.report()
    driver.broker.tx += 1
    driver.wait(1)
    driver.report()
    assert driver.ownership.confirmed_at == confirmed


steps = st.lists(
    st.sampled_from(
        ["wait", "send", "answer", "lose", "report", "metadata", "disconnect", "leave", "return"]
    ),
    max_size=40,
)


@given(st.booleans(), steps)
def test_it_never_claims_more_than_an_answered_heartbeat_gave(
    kip848: bool, happened: list[str]
) -> None:
    """A model: the coordinator's own view is the time at which a heartbeat that it answered well
    was sent; what is confirmed is never later than the latest of those."""
    driver = Driver(kip848)
    truth = driver.now
    outstanding: list[float] = []
    for step in happened:
        driver.wait(0.7)
        match step:
            case "send" if not outstanding and driver.steady:
                outstanding.append(driver.send())
                driver.broker.waitresp_cnt = 1
            case "answer" if outstanding:
                truth = max(truth, outstanding.pop())
                driver.broker.waitresp_cnt = 0
            case "lose" if outstanding:
                outstanding.clear()
                driver.broker.waitresp_cnt = 0
                driver.broker.req_timeouts += 1
            case "disconnect":
                outstanding.clear()
                driver.broker.waitresp_cnt = 0
                driver.broker.disconnects += 1
            case "leave":
                outstanding.clear()
                driver.broker.waitresp_cnt = 0
                driver.steady = False
                driver.rebalances += 1
            case "return":
                driver.steady = True
            case "metadata":
                driver.send("Metadata")
            case "report":
                driver.report()
            case _:
                pass
        assert driver.ownership.confirmed_at <= truth


def test_reports_are_read_from_the_drivers_json() -> None:
    ownership = Ownership(10.0, 300.0, False, 100.0)

    def report(ts: int, beats: int) -> str:
        return (
            f'{{"name":"x","ts":{ts},"brokers":{{"GroupCoordinator":{{"rxidle":50000,"tx":9,'
            f'"req":{{"Heartbeat":{beats}}},"toppars":{{}}}}}},"topics":{{"t":{{"partitions":{{"0":{{"leader":1,"app_offset":2}}}}}}}},'
            f'"cgrp":{{"state":"up","join_state":"steady","stateage":1}}}}'
        )

    reports: list[Any] = [report(101_000_000, 1), report(102_000_000, 1), report(103_000_000, 2)]
    for text in reports:
        snapshot = decode_snapshot(text)
        ownership.observe(snapshot, snapshot.ts / 1e6)
    assert ownership.confirmed_at == 102.0
