"""What outlives a process, and what several processes share. ``kill -9`` is the real one."""

from __future__ import annotations

import pytest

from streams.log.protocol import Retention
from tests.conformance.child import Child
from tests.conformance.records import record
from tests.conformance.world import World


@pytest.mark.needs("durable")
def test_everything_is_there_when_the_log_is_opened_again(world: World) -> None:
    topic, group = world.name("topic"), world.group()
    made = world.log.create_topic(topic, 2, Retention(seconds=3600))
    world.append(topic, [record(b"%d" % i, partition=i % 2) for i in range(20)])
    member = world.member(group, topic)
    member.until_delivered(20)
    epochs = {place: assignment.epoch for place, assignment in member.owned.items()}
    world.leave(member)
    places = world.log.describe_group(group).positions
    world.log.close()
    world.log = world.open()
    assert world.log.describe_topic(topic) == made
    assert world.log.describe_group(group).positions == places
    assert world.values(topic, 1) == [b"%d" % i for i in range(1, 20, 2)]
    again = world.member(group, topic)
    again.until_owns(2)
    assert all(again.owned[place].epoch > epoch for place, epoch in epochs.items())


@pytest.mark.needs("durable")
def test_what_was_acknowledged_outlives_kill_9(world: World) -> None:
    topic = world.topic()
    with Child("append", world.url, topic) as child:
        for _ in range(20):
            child.next()
        child.kill()
        acknowledged = max([200, *child.rest()])
    values = [int(value or b"-1") for value in world.values(topic)]
    assert values == list(range(len(values)))
    assert len(values) >= acknowledged
    world.append(topic, [b"the log goes on"])


@pytest.mark.needs("processes")
def test_two_processes_share_a_group_and_wake_each_other(world: World) -> None:
    topic, group = world.topic(4), world.group()
    member = world.member(group, topic)
    member.until_owns(4)
    with Child("member", world.url, topic, group) as child:
        theirs = {child.next()[1] for _ in range(2)}
        member.until_owns(2)
        assert theirs == {0, 1, 2, 3} - {number for _, number in member.owned}
        for number in range(20):
            partition = min(theirs)
            (position,) = world.append(topic, [record(b"%d" % number, partition=partition)])
            assert child.next() == ["message", partition, position.offset, str(number)]


@pytest.mark.short_lease
@pytest.mark.needs("processes")
def test_a_killed_members_partitions_are_taken_over_where_it_had_committed(world: World) -> None:
    topic, group = world.topic(2), world.group()
    world.append(topic, [record(b"%d" % i, partition=i % 2) for i in range(100)])
    with Child("member", world.url, topic, group) as child:
        delivered: set[str] = set()
        while len(delivered) < 100:
            what, _, _, value = child.next()
            if what == "message":
                delivered.add(value)
        child.kill()
    assert delivered == {str(i) for i in range(100)}
    world.append(topic, [record(b"%d" % i, partition=i % 2) for i in range(100, 120)])
    successor = world.member(group, topic, log=world.open(lasting=True))
    successor.until_owns(2)
    # The last message of each: what was not committed comes again, of one partition all at once.
    world.history.until(
        lambda: {b"118", b"119"} <= set(successor.delivered()), "the successor is at both ends"
    )
    successor.do(lambda: None)
    for partition in range(2):  # from the last commit on nothing is missing
        values = world.history.values((topic, partition))
        expected = world.values(topic, partition)
        assert values == expected[len(expected) - len(values) :]
        assert len(values) >= 10
    # All but the last of its batches were committed, and a batch is of one partition.
    assert len(world.history.values()) <= 20 + 50
    assert world.position(group, topic, 0) == world.log.watermarks(topic, 0)[1]
