"""Kafka groups: static members, other assignors, members that are not ours, forced moves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from confluent_kafka import Consumer, ConsumerGroupState, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.errors import ConfigError, Fatal, GroupNotEmpty, NotFound
from streams.log.kafka import forced_resets, offsets
from streams.log.kafka.log import CAPABILITIES
from streams.log.protocol import Assignment, Committed
from streams.log.protocol import TopicPartition as Partition
from streams.log.url import open_log
from tests.conformance.logs import Case
from tests.conformance.member import PATIENCE, Member
from tests.conformance.records import record
from tests.conformance.world import World
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

CASE = Case("kafka_url", CAPABILITIES, trims=False)


@pytest.fixture
def world(kafka: KafkaAddress) -> Iterator[World]:
    # A rebalance waits for the members' next heartbeats.
    opened = World(CASE, f"{kafka.url}?session.timeout.ms=60000&heartbeat.interval.ms=100")
    yield opened
    opened.close()


def named(world: World, **settings: str) -> Any:
    """A handle with settings of its own."""
    query = "&".join(f"{name.replace('_', '.')}={value}" for name, value in settings.items())
    log = open_log(f"{world.url}&{query}")
    world._logs.append(log)
    return log


def shared(world: World, members: Sequence[Member], sizes: list[int]) -> None:
    world.history.until(
        lambda: sorted(len(member.owned) for member in members) == sizes, f"shares of {sizes}"
    )


def test_a_static_member_that_comes_back_takes_over_what_it_had(world: World) -> None:
    topic, group = world.topic(4), world.group()
    logs = [named(world, group_instance_id=f"worker-{n}") for n in range(2)]
    members = [world.member(group, topic, log=log) for log in logs]
    shared(world, members, [2, 2])
    before, told = set(members[0].owned), len(world.history.events)
    world.leave(members[0])  # stays in the group
    assert len(world.log.describe_group(group).members) == 2
    again = world.member(group, topic, log=logs[0])
    # No session has to end for that, and nobody else is disturbed.
    again.until_owns(2)
    assert set(again.owned) == before
    since = world.history.events[told:]
    assert [e.what for e in since if e.member == members[1].name and e.what != "message"] == []
    assert len(members[1].owned) == 2


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_member_that_owns_nothing_says_that_it_leaves(
    world: World, kafka: KafkaAddress, protocol: str
) -> None:
    """The driver's own close does not, and the group would wait for it for a whole session."""
    topic, group = world.topic(), world.group()
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})

    def stable(count: int) -> bool:
        found = admin.describe_consumer_groups([group])[group].result()
        return len(found.members) == count and found.state == ConsumerGroupState.STABLE

    def member() -> Member:
        url = f"{kafka.url}?group.protocol={protocol}"
        if protocol == "classic":
            url += "&session.timeout.ms=120000&heartbeat.interval.ms=100"
        log = open_log(url)
        world._logs.append(log)
        return world.member(group, topic, log=log)

    member().until_owns(1)
    second = member()
    until(lambda: stable(2), PATIENCE, "the second joined")
    world.leave(second)
    until(lambda: stable(1), PATIENCE, "the second left")


class Silent:
    """A listener that begins at the first message there is."""

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        for each in assignments:
            each.position = 0

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Nothing is to be committed."""

    lost = revoked


def test_a_member_that_closes_as_it_joins_leaves_the_group(
    world: World, kafka: KafkaAddress
) -> None:
    """Its session lasts longer than anybody waits here."""
    topic = world.topic(2)
    log = open_log(f"{kafka.url}?session.timeout.ms=120000&heartbeat.interval.ms=100")
    world._logs.append(log)
    groups = [world.group() for _ in range(16)]
    for number, group in enumerate(groups):
        subscription: Any = log.subscribe(group, [topic], Silent())
        driver = subscription._consumer._consumer
        give_up = time.monotonic() + PATIENCE
        while not driver.memberid():  # which it has from the answer to its first request
            subscription.poll(1, 0.0)
            assert time.monotonic() < give_up, "the group does not answer"
        for _ in range(number % 8):
            driver.memberid()  # a moment, so as to meet the driver in each phase of joining
            subscription.poll(1, 0.0)
        subscription.close()
    until(lambda: not any(members_of(log, each) for each in groups), PATIENCE, "all are left")


def members_of(log: Any, group: str) -> Any:
    try:
        return log.describe_group(group).members
    except NotFound:
        return ()


def test_a_second_member_of_one_instance_id_ends_the_first(world: World) -> None:
    topic, group = world.topic(), world.group()
    first = world.member(group, topic, log=named(world, group_instance_id="one"))
    first.until_owns(1)
    second = world.member(group, topic, log=named(world, group_instance_id="one"))
    second.until_owns(1)
    world.history.until(lambda: first.error is not None, "the first is told")
    with pytest.raises(Fatal, match=r"group\.instance\.id"):
        world.leave(first)
    assert not first.owned


@pytest.mark.parametrize("strategy", ["range", "roundrobin"])
def test_eager_assignors_work_too(world: World, strategy: str) -> None:
    topic, group = world.topic(4), world.group()
    log = named(world, partition_assignment_strategy=strategy)
    one = world.member(group, topic, log=log)
    one.until_owns(4)
    world.append(topic, [record(b"%d" % i, b"%d" % (i % 7)) for i in range(100)])
    one.until_delivered(100)
    two = world.member(group, topic, log=log)
    shared(world, [one, two], [2, 2])
    quiet = next(iter(one.owned.values()))
    one.do(lambda: one.subscription.pause([quiet]))
    world.append(topic, [record(b"%d" % i, b"%d" % (i % 7)) for i in range(100, 200)])
    one.do(lambda: one.subscription.resume([quiet]))
    world.history.until(lambda: len(world.history.values()) >= 200, "all is delivered")
    for partition in range(4):
        assert world.history.values((topic, partition)) == world.values(topic, partition)
    world.leave(two)
    one.until_owns(4)


def test_members_that_are_not_ours_share_the_group(kafka: KafkaAddress, world: World) -> None:
    topic, group = world.topic(4), world.group()
    ours = world.member(group, topic)
    ours.until_owns(4)
    theirs = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": group,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 60_000,
            "auto.offset.reset": "earliest",
        }
    )
    theirs.subscribe([topic])
    deadline = time.monotonic() + PATIENCE
    while len(theirs.assignment()) != 2 and time.monotonic() < deadline:
        theirs.consume(1, 0.1)
    assert len(theirs.assignment()) == 2
    ours.until_owns(2)
    mine = {partition for _, partition in ours.owned}
    world.append(topic, [record(b"%d" % p, partition=p) for p in range(4)])
    ours.until_delivered(2)
    got: list[Any] = []
    while len(got) < 2 and time.monotonic() < deadline:
        got += theirs.consume(10, 0.1)
    assert {message.partition() for message in got} == {0, 1, 2, 3} - mine
    theirs.close()
    ours.until_owns(4)


def test_a_member_with_another_assignor_is_told_why_it_cannot_join(world: World) -> None:
    topic, group = world.topic(), world.group()
    world.member(group, topic).until_owns(1)
    log = named(world, partition_assignment_strategy="range")
    stranger = world.member(group, topic, log=log)
    world.history.until(lambda: stranger.error is not None, "it is refused")
    with pytest.raises(Fatal, match=r"partition\.assignment\.strategy"):
        world.leave(stranger)


def test_what_a_listener_raises_in_a_revocation_comes_out_of_poll(world: World) -> None:
    def drain(assignments: Sequence[Assignment]) -> None:
        raise ZeroDivisionError("while draining")

    topic, group = world.topic(2), world.group()
    old = world.member(group, topic, drain=drain)
    old.until_owns(2)
    new = world.member(group, topic)
    world.history.until(lambda: old.error is not None, "poll raises")
    with pytest.raises(ZeroDivisionError):
        world.leave(old)
    new.until_owns(1)  # the partition went all the same


def test_readers_of_groups_are_kept_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = world.topic()
    groups = [world.group() for _ in range(offsets.MAX_IDLE + 2)]
    for group in groups:
        world.log.initialize_offsets(group, topic, {0: 0})
    log: Any = world.open()
    made: list[str] = []
    connect = offsets.OffsetReader

    def note(*given: Any) -> offsets.OffsetReader:
        made.append(given[1])
        return connect(*given)

    monkeypatch.setattr(offsets, "OffsetReader", note)
    monkeypatch.setattr(log._groups._offsets._readers, "_seconds", 3_600.0)
    for _ in range(3):
        assert log.committed(groups[0], topic)[0].position == 0
    assert len(made) == 1
    for group in groups:
        assert log.committed(group, topic)[0].position == 0
    assert made == groups
    for group in reversed(groups):  # the last ones are there, the first ones are not any more
        assert log.committed(group, topic)[0].position == 0
    assert made[len(groups) :] == [groups[1], groups[0]]


# -- moving ---------------------------------------------------------------------------------------


def test_members_that_do_not_look_cannot_be_forced(
    kafka: KafkaAddress, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forced_resets, "RESET_TIMEOUT", 1.0)
    topic, group = world.topic(), world.group()
    world.log.initialize_offsets(group, topic, {0: 0})
    theirs = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    theirs.subscribe([topic])
    deadline = time.monotonic() + PATIENCE
    while not theirs.assignment() and time.monotonic() < deadline:
        theirs.consume(1, 0.1)
    with pytest.raises(GroupNotEmpty, match="stop them first"):
        world.log.reset_offsets(group, topic, {0: Committed(5)}, force=True)
    theirs.close()
    assert world.position(group, topic) == 0
    assert world.log.list_groups().count(forced_resets.reset_group_name(group)) == 0
    world.log.reset_offsets(group, topic, {0: Committed(5)}, force=True)
    assert world.position(group, topic) == 5


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """When members look for a forced reset; they do it quickly one after the other."""
    monkeypatch.setattr(forced_resets, "POLL_INTERVAL", 0.1)
    found: list[str] = []
    read = forced_resets.ResetRequests._look

    def look(requests: forced_resets.ResetRequests, keys: Sequence[Partition]) -> None:
        found.append("begins")
        read(requests, keys)
        found.append("ends")

    monkeypatch.setattr(forced_resets.ResetRequests, "_look", look)
    return found


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_members_look_for_a_forced_reset_only_when_the_group_changes(
    kafka: KafkaAddress, looks: list[str], protocol: str
) -> None:
    world = World(CASE, f"{kafka.url}?group.protocol={protocol}")
    topic, group = world.topic(4), world.group()
    members = [world.member(group, topic) for _ in range(2)]
    shared(world, members, [2, 2])
    until(lambda: _is_quiet(looks), PATIENCE, "nobody looks any more")
    assert looks.count("begins") == looks.count("ends")
    told = len(world.history.events)
    partition = min(members[0].owned)[1]
    world.log.reset_offsets(group, topic, {partition: Committed(0)}, force=True)
    changes = {"assigned", "revoked", "lost"}

    def changed() -> list[str]:
        return [each.what for each in world.history.events[told:] if each.what in changes]

    world.history.until(lambda: changed()[-1:] == ["assigned"], "it started over")
    events = [each for each in world.history.events[told:] if each.what in changes]
    assert [(each.what, each.part) for each in events] == [
        ("lost", (topic, partition)),
        ("assigned", (topic, partition)),
    ]
    until(
        lambda: looks.count("begins") == looks.count("ends"), PATIENCE, "the last looks have ended"
    )
    world.close()


def _is_quiet(looks: list[str]) -> bool:
    """Thirty times as long as between two looks nobody looked."""
    before = len(looks)
    time.sleep(3)
    return len(looks) == before and looks.count("begins") == looks.count("ends")


KILLED = """
import os, signal, sys
from streams.log.kafka.groups import Groups
from streams.log.protocol import Committed
from streams.log.url import open_log

alter_offsets = Groups.alter_offsets

def killed(groups, group, *given):
    alter_offsets(groups, group, *given)
    if group.startswith("__streams"):
        os.kill(os.getpid(), signal.SIGKILL)

Groups.alter_offsets = killed
url, group, topic = sys.argv[1:]
open_log(url).reset_offsets(group, topic, {0: Committed(0)}, force=True)
"""
"""Forces a reset, and is killed as soon as it has written the request."""


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_request_of_a_process_that_is_killed_does_not_lie_there_unseen(
    kafka: KafkaAddress, looks: list[str], protocol: str
) -> None:
    """Else a rebalance of some later day would reset the group, when nobody thinks of it."""
    world = World(CASE, f"{kafka.url}?group.protocol={protocol}")
    topic, group = world.topic(1), world.group()
    member = world.member(group, topic)
    member.until_owns(1)
    until(lambda: _is_quiet(looks), PATIENCE, "nobody looks any more")
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, world.url, group, topic], timeout=PATIENCE, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    # The killed one's session has to end: 10 s, with KIP-848 what the broker says.
    until(lambda: len(member.past) == 2, 2 * PATIENCE, "it started over")
    world.close()


def test_members_with_an_eager_assignor_obey_a_forced_reset_without_a_rebalance(
    world: World,
) -> None:
    topic, group = world.topic(2), world.group()
    log = named(world, partition_assignment_strategy="range")
    members = [world.member(group, topic, log=log) for _ in range(2)]
    shared(world, members, [1, 1])
    told = len(world.history.events)
    key = next(iter(members[0].owned))
    world.log.reset_offsets(group, topic, {key[1]: Committed(0)}, force=True)
    world.history.until(
        lambda: [each.what for each in world.history.events[told:]][-1:] == ["assigned"],
        "it started over",
    )
    assert [(each.what, each.part) for each in world.history.events[told:]] == [
        ("lost", key),
        ("assigned", key),
    ]


def test_a_move_keeps_progress_of_full_length(world: World) -> None:
    topic, group = world.topic(), world.group()
    member = world.member(group, topic)
    member.until_owns(1)
    place = Committed(0, "x" * 4095)
    world.log.reset_offsets(group, topic, {0: place}, force=True)
    world.history.until(lambda: len(member.past) == 2, "it started over")
    assert member.past[1].committed == place


def test_a_running_group_cannot_begin_in_another_topic(world: World) -> None:
    topic, other, group = world.topic(), world.topic(), world.group()
    world.member(group, topic).until_owns(1)
    with pytest.raises(GroupNotEmpty):
        world.log.initialize_offsets(group, other, {0: 0})


# -- what is asked for wrongly --------------------------------------------------------------------


def test_a_drain_that_outlasts_the_membership_is_warned_of(
    world: World, kafka: KafkaAddress, caplog: pytest.LogCaptureFixture
) -> None:
    log = open_log(f"{kafka.url}?session.timeout.ms=6000&max.poll.interval.ms=6000")
    world._logs.append(log)
    member = world.member(world.group(), world.topic(), log=log)
    member.until_owns(1)
    assert "max.poll.interval.ms" in caplog.text


def test_there_is_no_transaction(world: World) -> None:
    member = world.member(world.group(), world.topic())
    with pytest.raises(ConfigError, match="sqlite"):
        member.subscription.begin_transaction()


def test_a_plain_tool_sees_the_position_as_it_is(kafka: KafkaAddress, world: World) -> None:
    topic, group = world.topic(), world.group()
    world.append(topic, [b"1", b"2", b"3"])
    member = world.member(group, topic, limit=2)
    member.until_delivered(3)
    member.do(lambda: None)
    plain = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": group})
    (part,) = plain.committed([TopicPartition(topic, 0)], PATIENCE)
    plain.close()
    assert part.offset == 3
