"""Members come and go: everyone gets an even share, nothing is owned twice, nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from streams.log.protocol import TopicPartition
from tests.conformance.member import PATIENCE, Member
from tests.conformance.records import record
from tests.conformance.world import World
from tests.servers.lifetime import until


def until_shared(world: World, members: Sequence[Member], sizes: list[int]) -> None:
    """Wait until these members own disjoint sets of these sizes."""

    def shared() -> bool:
        owned: list[TopicPartition] = [place for member in members for place in list(member.owned)]
        counts = sorted(len(member.owned) for member in members)
        return counts == sizes and len(owned) == len(set(owned))

    world.history.until(shared, f"shares of {sizes}")


def test_partitions_are_shared_evenly_as_members_come_and_go(world: World) -> None:
    topic, group = world.topic(8), world.group()
    members = [world.member(group, topic)]
    members[0].until_owns(8)
    for sizes in ([4, 4], [2, 3, 3], [2, 2, 2, 2]):
        members.append(world.member(group, topic, log=world.open()))
        until_shared(world, members, sizes)
    for sizes in ([2, 3, 3], [4, 4], [8]):
        world.leave(members.pop(0))
        until_shared(world, members, sizes)
    assert not world.history.owners_at_once()


def test_what_does_not_have_to_move_is_not_interrupted(world: World) -> None:
    topic, group = world.topic(6), world.group()
    one = world.member(group, topic)
    one.until_owns(6)
    two = world.member(group, topic)
    until_shared(world, [one, two], [3, 3])
    world.leave(two)
    one.until_owns(6)
    revoked = [event for event in world.history.events if event.what == "revoked"]
    assert len([event for event in revoked if event.member == one.name]) == 3


def test_members_may_subscribe_to_different_topics(world: World) -> None:
    left, right, group = world.topic(2), world.topic(2), world.group()
    one = world.member(group, left)
    two = world.member(group, [left, right])
    world.history.until(
        lambda: (
            set(one.owned) == {(left, 0), (left, 1)} and set(two.owned) == {(right, 0), (right, 1)}
        ),
        "each has what the other need not",
    )
    assert not world.history.owners_at_once()


@pytest.mark.short_lease
def test_the_partitions_of_a_silent_member_go_to_the_others(world: World) -> None:
    topic, group = world.topic(4), world.group()
    silent = world.member(group, topic)
    other = world.member(group, topic, log=world.open(lasting=True))
    until_shared(world, [silent, other], [2, 2])
    mine = list(silent.owned.values())
    silent.freeze()
    world.outlive_leases()
    other.until_owns(4)
    assert all(world.clock.monotonic() >= assignment.valid_until for assignment in mine)
    silent.thaw()
    # Both at once; and again, if it is not run for so long once more.
    world.history.until(
        lambda: (
            [e.what for e in world.history.events if e.member == silent.name].count("lost") >= 2
        ),
        "it is told that it has lost both",
    )
    until_shared(world, [silent, other], [2, 2])


def test_a_silent_member_that_nobody_replaced_goes_on_as_before(world: World) -> None:
    topic, group = world.topic(), world.group()
    member = world.member(group, topic)
    member.until_owns(1)
    mine = member.owned[topic, 0]
    member.freeze()
    world.outlive_leases()
    member.thaw()
    (position,) = world.append(topic, [b"v"])
    member.until_delivered(1)
    member.do(lambda: None)  # its commit is done
    assert world.position(group, topic) == position.offset + 1
    if world.case.capabilities.uses_app_clock:
        assert member.owned[topic, 0] is mine


def test_nothing_is_lost_or_reordered_while_members_come_and_go(world: World) -> None:
    topic, group = world.topic(4), world.group()
    members = [world.member(group, topic)]
    count = 0
    for step in range(12):
        world.append(
            topic, [record(b"%d" % i, b"k%d" % (i % 10)) for i in range(count, count + 50)]
        )
        count += 50
        if len(members) < 3 and step % 2 == 0:
            members.append(world.member(group, topic, log=world.open(), limit=10))
        elif len(members) > 1:
            world.leave(members.pop(0))
    world.history.until(lambda: len(world.history.values()) >= count, "all is delivered")
    # Each batch is committed before the next poll, and a revocation waits for that.
    for partition in range(4):
        assert world.history.values((topic, partition)) == world.values(topic, partition)
    assert not world.history.owners_at_once()


def test_a_member_that_owns_nothing_leaves_at_once(world: World) -> None:
    """Its session, or lease, lasts longer than anybody waits here: only a farewell ends it."""
    topic, group = world.topic(), world.group()
    world.member(group, topic).until_owns(1)
    second = world.member(group, topic)
    until(lambda: len(world.log.describe_group(group).members) == 2, PATIENCE, "the second joined")
    world.leave(second)
    until(lambda: len(world.log.describe_group(group).members) == 1, PATIENCE, "the second left")
