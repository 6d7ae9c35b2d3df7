"""Kafka: a partition of which the driver fetches nothing any more is fetched anew."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from streams.errors import Unavailable
from streams.log.kafka import fetch_watch
from streams.log.kafka.fetch_watch import (
    CONFIRMATION,
    MAX_INTERVAL,
    RESTARTS,
    STALL_TIMEOUT,
    FetchWatch,
    Stalled,
)
from streams.log.kafka.log import CAPABILITIES
from streams.log.kafka.statistics import Snapshot, decode_snapshot
from streams.log.url import open_log
from tests.conformance.logs import Case
from tests.conformance.world import World
from tests.servers.find import KafkaAddress

CASE = Case("kafka_url", CAPABILITIES, trims=False)
A, B = ("orders", 0), ("orders", 1)


class Log:
    """Where partitions end, and how often this was asked."""

    def __init__(self, **ends: int) -> None:
        self.ends = {A: ends.get("a", 0), B: ends.get("b", 0)}
        self.asked: list[tuple[str, int]] = []
        self.is_down = False

    def end_of(self, topic: str, partition: int) -> int:
        self.asked.append((topic, partition))
        if self.is_down:
            raise Unavailable("nobody answers")
        return self.ends[topic, partition]


def report(next_offsets: Mapping[tuple[str, int], int], queued: int = 0) -> Snapshot:
    partitions = {
        str(number): {"next_offset": offset, "fetchq_cnt": queued}
        for (_, number), offset in next_offsets.items()
    }
    return decode_snapshot(json.dumps({"ts": 1, "topics": {"orders": {"partitions": partitions}}}))


class Watched:
    """A watch that gets a report a second."""

    def __init__(self, log: Log) -> None:
        self.watch = FetchWatch(log.end_of)
        self.now = 0.0

    def run(self, seconds: float, *reports: Snapshot, begin: int = 0) -> list[Stalled]:
        """What it found in that time."""
        found = []
        ends = self.now + seconds
        number = 0
        while self.now < ends:
            self.now += 1.0
            stalled = self.watch.observe(
                reports[number % len(reports)], {A: begin, B: begin}, self.now
            )
            number += 1
            if self.watch._ends._thread is not None:
                self.watch._ends._thread.join()
            if stalled is not None:
                found.append(stalled)
        return found


def test_what_moves_is_not_asked_for() -> None:
    log = Log(a=1_000_000, b=1_000_000)
    watched = Watched(log)
    moving = [report({A: n, B: n}) for n in range(2)]
    assert watched.run(10 * STALL_TIMEOUT, *moving) == []
    # What waits for us is no fault of the driver's.
    assert watched.run(10 * STALL_TIMEOUT, report({A: 7, B: 7}, queued=3)) == []
    assert log.asked == []


def test_an_idle_partition_is_asked_for_ever_less() -> None:
    log = Log(a=7, b=9)
    watched = Watched(log)
    idle = report({A: 7, B: 9})
    assert watched.run(2_000, idle) == []
    assert log.asked.count(A) == log.asked.count(B) < 15
    before = len(log.asked)
    assert watched.run(2 * MAX_INTERVAL, idle) == []
    assert 0 < len(log.asked) - before <= 6


def test_one_that_stands_still_before_its_end_is_stalled_and_the_other_is_not() -> None:
    log = Log(a=7, b=9)
    watched = Watched(log)
    idle = report({A: 7, B: 9})
    assert watched.run(STALL_TIMEOUT + 2, idle) == []
    log.ends[B] = 10
    found = watched.run(2 * STALL_TIMEOUT + CONFIRMATION + 3, idle)
    assert found[0] == Stalled([B], is_hopeless=False)


def test_what_came_late_is_not_stalled() -> None:
    log = Log(a=8, b=0)
    watched = Watched(log)
    watched.run(STALL_TIMEOUT + 2, report({A: 7, B: 0}))
    assert log.asked
    # It was behind when the log was asked, and has moved since.
    log.ends[A] = 8
    assert watched.run(3 * STALL_TIMEOUT, report({A: 8, B: 0})) == []


def test_one_that_fetching_anew_does_not_help_needs_another_consumer() -> None:
    watched = Watched(Log(a=8, b=0))
    # While a fetch begins, its offset is not known: that is no progress.
    still = [*[report({A: 7, B: 0})] * 12, report({A: -1001, B: 0})]
    began = watched.now
    found = watched.run(2 * STALL_TIMEOUT, *still)
    assert [each.is_hopeless for each in found] == [False]
    # The next time it may take twice as long.
    assert watched.run(began + 3 * STALL_TIMEOUT - watched.now, *still) == []
    found += watched.run(12 * STALL_TIMEOUT, *still)
    assert [each.is_hopeless for each in found[: RESTARTS + 1]] == [False] * RESTARTS + [True]
    assert all(each.partitions == [A] for each in found)


def test_one_of_which_nothing_was_ever_fetched_counts_from_where_it_began() -> None:
    log = Log(a=5, b=5)
    watched = Watched(log)
    begins = report({A: -1001, B: -1001})
    assert watched.run(3 * STALL_TIMEOUT, begins, begin=5) == []
    found = watched.run(30 * STALL_TIMEOUT, begins, begin=4)
    assert found[0].partitions == [A, B]


def test_a_log_that_does_not_answer_says_nothing_about_a_partition() -> None:
    log = Log(a=8, b=0)
    log.is_down = True
    watched = Watched(log)
    still = report({A: 7, B: 0})
    assert watched.run(4 * STALL_TIMEOUT, still) == []
    log.is_down = False
    assert watched.run(8 * STALL_TIMEOUT, still)[0].partitions == [A]


def test_what_is_not_fetched_is_not_watched() -> None:
    log = Log(a=8, b=8)
    watch = FetchWatch(log.end_of)
    for now in range(100):
        assert watch.observe(report({A: 7, B: 7}), {}, float(now)) is None
    assert log.asked == []


@pytest.fixture
def world(kafka: KafkaAddress) -> Iterator[World]:
    opened = World(CASE, f"{kafka.url}?session.timeout.ms=60000&heartbeat.interval.ms=100")
    yield opened
    opened.close()


@pytest.mark.parametrize("restarts", [RESTARTS, 0], ids=["anew", "another"])
@pytest.mark.parametrize(
    "setting",
    ["partition.assignment.strategy=range", "group.protocol=classic", "group.protocol=consumer"],
    ids=["eager", "cooperative", "kip848"],
)
def test_a_member_goes_on(
    world: World,
    setting: str,
    restarts: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(fetch_watch, "STALL_TIMEOUT", 0.5)
    monkeypatch.setattr(fetch_watch, "CONFIRMATION", 0.5)
    monkeypatch.setattr(fetch_watch, "RESTARTS", restarts)
    url = f"{world.url}&{setting}"
    if "consumer" in setting:
        url = f"{world.url.partition('?')[0]}?{setting}"
    log = open_log(url)
    world._logs.append(log)
    topic, group = world.topic(2), world.group()
    member = world.member(group, topic, log=log)
    member.until_owns(2)
    world.append(topic, [b"%d" % n for n in range(20)])
    member.until_delivered(20)
    driver: Any = member.subscription

    def stop_fetching() -> None:
        """Behind the back of all that is ours, as a driver does that has lost an answer."""
        driver._consumer._consumer.pause([TopicPartition(topic, n) for n in range(2)])

    with caplog.at_level(logging.WARNING, "streams.kafka"):
        member.do(stop_fetching)
        world.append(topic, [b"%d" % n for n in range(20, 40)])
        member.until_delivered(40)
    action = "restarting the fetch" if restarts else "rejoining"
    assert f"though there is more: {action}" in caplog.text
    # All that it was given was committed, so nothing comes again.
    assert sorted(map(int, filter(None, member.delivered()))) == list(range(40))
