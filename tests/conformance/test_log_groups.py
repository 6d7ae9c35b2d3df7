"""Groups: begun once, seen as they are, moved and forgotten only while nobody runs."""

from __future__ import annotations

import pytest

from streams.errors import ConfigError, GroupNotEmpty, NotFound
from streams.log.protocol import PROGRESS_LIMIT, Committed
from tests.conformance.world import World


def test_a_group_begins_once_in_each_topic(world: World) -> None:
    topic, other, group = world.topic(2), world.topic(), world.group()
    assert world.log.initialize_offsets(group, topic, {0: 0, 1: 0})
    assert not world.log.initialize_offsets(group, topic, {0: 5, 1: 5})
    assert world.log.initialize_offsets(group, other, {0: 0})
    places = world.open().describe_group(group).positions
    assert {part: place.position for part, place in places.items()} == {
        (topic, 0): 0,
        (topic, 1): 0,
        (other, 0): 0,
    }


def test_groups_are_listed_and_strangers_not_found(world: World) -> None:
    topic, groups = world.topic(), sorted(world.group() for _ in range(3))
    for group in groups:
        world.log.initialize_offsets(group, topic, {0: 0})
    names = world.log.list_groups()
    assert names == sorted(names)
    assert [name for name in names if name in groups] == groups
    stranger = world.group()
    assert stranger not in names
    for call in (world.log.describe_group, world.log.delete_group):
        with pytest.raises(NotFound):
            call(stranger)


def test_a_group_is_moved_with_its_progress(world: World) -> None:
    topic, group = world.topic(2), world.group()
    world.log.initialize_offsets(group, topic, {0: 0, 1: 0})
    place = Committed(1, "~" * PROGRESS_LIMIT)
    world.log.reset_offsets(group, topic, {1: place})
    positions = world.log.describe_group(group).positions
    assert positions[topic, 1] == place
    assert positions[topic, 0].position == 0


def test_a_forgotten_group_may_begin_anew(world: World) -> None:
    topic, group = world.topic(), world.group()
    world.log.initialize_offsets(group, topic, {0: 1})
    world.log.delete_group(group)
    assert group not in world.log.list_groups()
    assert world.log.initialize_offsets(group, topic, {0: 0})
    assert world.position(group, topic) == 0


def test_a_running_group_shows_its_members_and_what_they_own(world: World) -> None:
    topic, group = world.topic(3), world.group()
    one, two = world.member(group, topic), world.member(group, topic)
    world.history.until(
        lambda: min(len(one.owned), len(two.owned)) == 1 and len(one.owned) + len(two.owned) == 3,
        "all is owned",
    )
    members = world.log.describe_group(group).members
    assert len({member.id for member in members}) == 2
    owned = sorted(part for member in members for part in member.partitions)
    assert owned == [(topic, 0), (topic, 1), (topic, 2)]
    assert group in world.log.list_groups()


def test_positions_may_be_asked_for_in_some_topics_alone(world: World) -> None:
    topic, other, group = world.topic(2), world.topic(), world.group()
    world.log.initialize_offsets(group, topic, {0: 0, 1: 0})
    world.log.initialize_offsets(group, other, {0: 0})
    member = world.member(group, topic)
    member.until_owns(2)
    found = world.log.describe_group(group, [topic, f"{topic}-missing"])
    assert sorted(found.positions) == [(topic, 0), (topic, 1)]
    assert [each.partitions for each in found.members] == [((topic, 0), (topic, 1))]
    nothing = world.log.describe_group(group, ())
    assert (len(nothing.members), nothing.positions) == (1, {})
    with pytest.raises(NotFound):
        world.log.describe_group(world.group(), ())


def test_a_running_group_is_not_moved_and_not_forgotten(world: World) -> None:
    topic, group = world.topic(), world.group()
    world.log.initialize_offsets(group, topic, {0: 0})
    member = world.member(group, topic)
    member.until_owns(1)
    with pytest.raises(GroupNotEmpty, match=group):
        world.log.reset_offsets(group, topic, {0: Committed(1)})
    with pytest.raises(GroupNotEmpty, match=group):
        world.log.delete_group(group)
    assert world.position(group, topic) == 0
    world.leave(member)
    world.log.reset_offsets(group, topic, {0: Committed(1)})
    assert world.position(group, topic) == 1
    world.log.delete_group(group)


def test_a_forced_move_makes_the_members_start_over_from_there(world: World) -> None:
    topic, group = world.topic(2), world.group()
    end = {p: world.log.watermarks(topic, p)[1] for p in range(2)}
    world.append(topic, [b"%d" % i for i in range(20)])
    member = world.member(group, topic)
    member.until_delivered(20)
    before = list(member.past)
    world.log.reset_offsets(group, topic, {0: Committed(end[0])}, force=True)
    again = len(world.values(topic, 0))
    member.until_delivered(20 + again)
    assert member.delivered()[20:] == world.values(topic, 0)
    lost = [event.part for event in world.history.events if event.what == "lost"]
    assert lost == [(topic, 0)]
    (old,) = (assignment for assignment in before if assignment.partition == 0)
    new = member.owned[topic, 0]
    assert new.epoch > old.epoch
    assert new.committed == Committed(end[0])
    assert old.valid_until == float("-inf")


@pytest.mark.parametrize("name", ["", "a/b", "a b", "x" * 250])
def test_a_group_name_that_kafka_tools_cannot_write_is_refused(world: World, name: str) -> None:
    with pytest.raises(ConfigError, match="group"):
        world.log.initialize_offsets(name, world.topic(), {0: 0})
