"""What is appended as a partition's owner is in the log only if it was still the owner then."""

from __future__ import annotations

import pytest

from streams.errors import Fenced, LogError, NotFound
from streams.log.protocol import Assignment, Committed
from streams.message import Position
from tests.conformance.records import append, record
from tests.conformance.world import World


def written(world: World, owner: Assignment, topic: str, value: bytes) -> Position | LogError:
    """Append one message as an owner, in this thread, which is not its member's."""
    (outcome,) = append(world.log, topic, [record(value)], owner)
    return outcome


def test_an_assignment_can_append_where_the_log_says_so(world: World) -> None:
    source = world.topic()
    member = world.member(world.group(), source)
    member.until_owns(1)
    can = world.case.capabilities.fences_appends
    assert world.log.capabilities.fences_appends == can
    assert (member.owned[source, 0].append_as_owners is not None) == can


@pytest.mark.needs("fences_appends")
def test_an_owner_appends_like_anybody(world: World) -> None:
    source, target = world.topic(2), world.topic(2)
    member = world.member(world.group(), source)
    member.until_owns(2)
    owner = member.owned[source, 1]
    records = [record(b"%d" % number, partition=number % 2) for number in range(2_500)]
    outcomes = append(world.log, target, records, owner)
    for partition in range(2):
        values = [each.value for each in records if each.partition == partition]
        assert world.values(target, partition) == values
        offsets = [offset for batch in world.read(target, partition) for offset in batch.offsets]
        assert outcomes[partition::2] == [Position(target, partition, each) for each in offsets]
    again = append(world.log, target, records[:3], owner)
    assert (again == outcomes[:3]) == world.log.capabilities.append_once
    good, bad = record(b"good", partition=0), record(b"bad", partition=7)
    assert [type(each) for each in append(world.log, target, [good, bad], owner)] == [
        Position,
        *map(type, append(world.log, target, [bad])),
    ]
    (missing,) = append(world.log, world.name("missing"), [good], owner)
    assert isinstance(missing, NotFound)
    assert append(world.log, target, [], owner) == []


@pytest.mark.short_lease
@pytest.mark.needs("fences_appends")
def test_an_owner_that_stood_still_appends_nothing_once_another_one_owns(world: World) -> None:
    source, target, group = world.topic(), world.topic(), world.group()
    old = world.member(group, source)
    old.until_owns(1)
    mine = old.owned[source, 0]
    old.freeze()
    assert isinstance(written(world, mine, target, b"in time"), Position)
    new = world.member(group, source, log=world.open(lasting=True))
    world.outlive_leases()
    new.until_owns(1)
    assert isinstance(written(world, mine, target, b"late"), Fenced)
    assert isinstance(written(world, new.owned[source, 0], target, b"theirs"), Position)
    assert isinstance(written(world, mine, target, b"later"), Fenced)
    old.thaw()
    old.until_owns(0)
    assert isinstance(written(world, mine, target, b"last"), Fenced)
    assert world.values(target) == [b"in time", b"theirs"]


@pytest.mark.needs("fences_appends")
def test_who_gave_a_partition_up_appends_nothing_as_its_owner(world: World) -> None:
    source, target, group = world.topic(2), world.topic(), world.group()
    member = world.member(group, source, commit=False)
    member.until_owns(2)
    given_up, kept = member.owned[source, 0], member.owned[source, 1]

    def give_up() -> None:
        member._forget([given_up])
        member.subscription.reassign([given_up])

    member.do(give_up)
    member.until_owns(2)
    assert isinstance(written(world, given_up, target, b"given up"), Fenced)
    assert isinstance(written(world, member.owned[source, 0], target, b"anew"), Position)
    world.log.reset_offsets(group, source, {1: Committed(0)}, force=True)
    assert isinstance(written(world, kept, target, b"reset"), Fenced)
    world.history.until(lambda: member.owned.get((source, 1)) not in (None, kept), "assigned anew")
    owned = list(member.owned.values())
    for owner in owned:
        assert isinstance(written(world, owner, target, b"again"), Position)
    world.leave(member)
    for owner in owned:
        assert isinstance(written(world, owner, target, b"closed"), Fenced)
    assert world.values(target) == [b"anew", b"again", b"again"]


@pytest.mark.needs("fences_appends")
def test_of_several_owners_those_that_are_none_any_more_append_nothing(world: World) -> None:
    source, target, group = world.topic(4), world.topic(2), world.group()
    member = world.member(group, source, commit=False)
    member.until_owns(4)
    owned = [member.owned[source, number] for number in range(4)]
    member.freeze()
    world.log.reset_offsets(group, source, {1: Committed(0), 2: Committed(0)}, force=True)
    records = [record(b"%d" % number, partition=number // 4 % 2) for number in range(40)]
    outcomes: list[Position | LogError] = []
    append_as_owners = owned[0].append_as_owners
    assert append_as_owners is not None
    append_as_owners(target, records, owned * 10, outcomes.extend)
    assert [type(each) for each in outcomes] == [Position, Fenced, Fenced, Position] * 10
    for partition in range(2):
        numbers = [n for n in range(40) if n // 4 % 2 == partition and n % 4 in (0, 3)]
        assert world.values(target, partition) == [b"%d" % number for number in numbers]
    append_as_owners(target, records[:2], owned[1:3], outcomes.extend)
    assert [type(each) for each in outcomes[40:]] == [Fenced, Fenced]
    member.thaw()


@pytest.mark.needs("fences_appends")
def test_what_is_drained_while_a_partition_leaves_is_appended(world: World) -> None:
    source, target = world.topic(), world.topic()
    outcomes: list[Position | LogError] = []

    def drain(assignments: object) -> None:
        outcomes.append(written(world, owner, target, b"drained"))

    member = world.member(world.group(), source, drain=drain)
    member.until_owns(1)
    owner = member.owned[source, 0]
    world.leave(member)
    assert [type(each) for each in outcomes] == [Position]
    assert world.values(target) == [b"drained"]
