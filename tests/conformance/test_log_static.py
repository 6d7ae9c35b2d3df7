"""Static members: a process that is started again has back what it had, by its name alone.

The leases outlast the test, so whoever takes anything over does not do it because a time was over.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode

import pytest

from streams.errors import ConfigError, LogError, MemberFenced
from streams.log.membership import MAX_LEASE
from streams.log.protocol import Log, StaticMember
from streams.log.url import open_log
from tests.conformance.member import Member
from tests.conformance.world import World

PATIENT: dict[str, dict[str, object]] = {
    "redis": {"lease": MAX_LEASE},
    "valkey": {"lease": MAX_LEASE},
    "cluster": {"lease": MAX_LEASE},
    "sqlite": {"lease": MAX_LEASE},
    "kafka": {"session.timeout.ms": 300_000, "max.poll.interval.ms": 300_000},
}


def opened(world: World) -> Log:
    """The log as one process more has it, with leases that do not end."""
    place, _, query = world.url.partition("?")
    settings: dict[str, object] = {**dict(parse_qsl(query)), **PATIENT.get(world.case.name, {})}
    log = open_log(f"{place}?{urlencode(settings)}" if settings else place, clock=world.clock)
    world._logs.append(log)
    return log


def one(name: str, life: str = "1") -> StaticMember:
    return StaticMember(name, life)


def shared(world: World, members: list[Member], sizes: list[int]) -> None:
    world.history.until(lambda: [len(m.owned) for m in members] == sizes, f"shares of {sizes}")


def ended_by_its_name(world: World, member: Member) -> None:
    """It is told that it is fenced, by its poll, and owns nothing any more."""
    world.history.until(lambda: member.error is not None, "it is told")
    with pytest.raises(MemberFenced):
        world.leave(member)
    assert not member.owned
    member.subscription.close()


static = pytest.mark.needs("static")


@static
def test_a_restart_has_its_partitions_back_and_disturbs_nobody(world: World) -> None:
    topic, group = world.topic(5), world.group()
    logs = [opened(world) for _ in range(3)]
    before = world.member(group, topic, logs[0], static=one("a"))
    other = world.member(group, topic, logs[1], static=one("b"))
    world.history.until(lambda: len(before.owned) + len(other.owned) == 5, "all are owned")
    world.history.until(lambda: min(len(before.owned), len(other.owned)) == 2, "evenly")
    had = dict(before.owned)
    kept = dict(other.owned)
    before.freeze()
    after = world.member(group, topic, logs[2], static=one("a", "2"))
    world.history.until(lambda: set(after.owned) == set(had), "it has what it had")
    assert other.owned == kept
    if world.case.name != "kafka":  # whose epochs are a process's own
        assert all(after.owned[part].epoch > each.epoch for part, each in had.items())
    before.thaw()
    ended_by_its_name(world, before)
    assert other.owned == kept
    assert set(after.owned) == set(had)


@static
def test_the_one_before_commits_nothing_any_more(world: World) -> None:
    topic, group = world.topic(2), world.group()
    logs = [opened(world) for _ in range(2)]
    before = world.member(group, topic, logs[0], static=one("a"), commit=False)
    before.until_owns(2)
    had = dict(before.owned)
    before.freeze()
    after = world.member(group, topic, logs[1], static=one("a", "2"))
    after.until_owns(2)
    world.append(topic, [b"%d" % n for n in range(20)])
    after.until_delivered(20)
    after.do(lambda: None)
    places = world.log.describe_group(group).positions
    for assignment in had.values():
        try:
            before.subscription.commit([before.place(assignment, 0)])
        except LogError:
            pass  # told at once
    assert world.log.describe_group(group).positions == places
    assert all(each.valid_until == float("-inf") for each in had.values()) or (
        world.case.name == "kafka"  # it is told by the next poll
    )
    before.thaw()
    ended_by_its_name(world, before)


@pytest.mark.needs("expels")
def test_an_expelled_members_partitions_are_free_at_once(world: World) -> None:
    topic, group = world.topic(4), world.group()
    logs = [opened(world) for _ in range(2)]
    dead = world.member(group, topic, logs[0], static=one("a"))
    lives = world.member(group, topic, logs[1], static=one("b"))
    shared(world, [dead, lives], [2, 2])
    had = dict(dead.owned)
    dead.freeze()
    # Somebody else's life, and a name that nobody has, are nobody's to expel.
    for stranger in (one("a", "2"), one("c")):
        logs[1].remove_member(group, stranger)
    assert len(world.log.describe_group(group).members) == 2
    logs[1].remove_member(group, one("a"))
    lives.until_owns(4)
    assert all(lives.owned[part].epoch > each.epoch for part, each in had.items())
    logs[1].remove_member("nobody", one("a"))
    # It was not dead at all: it has lost everything, and joins again.
    dead.thaw()
    world.history.until(
        lambda: all(dead.owned.get(part) is not each for part, each in had.items()),
        "it has lost what it had",
    )
    shared(world, [dead, lives], [2, 2])


@pytest.mark.needs("static", "leaves")
def test_members_leave_and_others_have_what_they_had(world: World) -> None:
    topic, group = world.topic(4), world.group()
    logs = [opened(world) for _ in range(2)]
    leaves = world.member(group, topic, logs[0], static=one("a"))
    stays = world.member(group, topic, logs[1], static=one("b"))
    shared(world, [leaves, stays], [2, 2])
    world.leave(leaves)
    stays.until_owns(4)


@pytest.mark.needs("kip848")
def test_kip848_refuses_a_name(world: World) -> None:
    topic, group = world.topic(), world.group()
    with pytest.raises(ConfigError, match=r"member='a'.*classic protocol"):
        world.member(group, topic, static=one("a"))
    with pytest.raises(ConfigError, match=r"member='a'.*classic protocol"):
        open_log(world.url, member="a")
