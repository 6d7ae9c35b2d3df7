"""A subscription: what it delivers, when it stops, and whose commits count."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Sequence
from functools import partial

import pytest

from streams.log.memory.subscription import MemorySubscription
from streams.log.protocol import PROGRESS_LIMIT, Assignment, Commit, Committed
from tests.conformance.member import PATIENCE, Member
from tests.conformance.records import record
from tests.conformance.world import World
from tests.servers.lifetime import until


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, last)]


# -- delivery and commits -------------------------------------------------------------------------


def test_a_new_group_owns_all_partitions_and_has_no_place(world: World) -> None:
    member = world.member(world.group(), [world.topic(2), world.topic()])
    member.until_owns(3)
    assert [assignment.committed for assignment in member.owned.values()] == [None] * 3
    assert all(world.clock.monotonic() < a.valid_until for a in member.owned.values())


def test_delivery_starts_where_the_listener_says(world: World) -> None:
    topic, group = world.topic(), world.group()
    offsets = [position.offset for position in world.append(topic, numbers(0, 10))]
    member = world.member(group, topic, start=offsets[6])
    member.until_delivered(4)
    world.append(topic, [b"next"])
    member.until_delivered(5)
    assert member.delivered() == [*numbers(6, 10), b"next"]


def test_a_group_goes_on_behind_what_it_committed(world: World) -> None:
    topic, group = world.topic(), world.group()
    world.append(topic, numbers(0, 10))
    first = world.member(group, topic)
    first.until_delivered(10)
    world.leave(first)
    world.append(topic, numbers(10, 15))
    second = world.member(group, topic, log=world.open())
    second.until_delivered(5)
    assert second.delivered() == numbers(10, 15)


def test_what_was_not_committed_is_delivered_again(world: World) -> None:
    topic, group = world.topic(), world.group()
    world.append(topic, numbers(0, 10))
    first = world.member(group, topic, commit=False)
    first.until_delivered(10)
    world.leave(first)
    second = world.member(group, topic)
    second.until_delivered(10)
    assert second.delivered() == numbers(0, 10)


def test_a_restarted_partition_is_assigned_anew_at_its_stored_place(world: World) -> None:
    topic, other, group = world.topic(), world.topic(), world.group()
    offsets = [position.offset for position in world.append(topic, numbers(0, 10))]
    world.append(other, [b"other"])
    member = world.member(group, [topic, other], commit=False)
    member.until_delivered(11)
    before, beside = member.owned[topic, 0], member.owned[other, 0]
    member.do(lambda: member.subscription.commit([member.place(before, offsets[4])]))

    def restart() -> None:
        member._forget([before])
        member.subscription.reassign([before])
        member.subscription.reassign([before])  # it is not owned any more

    member.do(restart)
    member.until_delivered(17)
    after = member.owned[topic, 0]
    assert after is not before
    assert after.committed is not None
    assert after.committed.position == offsets[4]
    assert member.delivered()[11:] == numbers(4, 10)
    assert member.owned[other, 0] is beside
    assert [event.what for event in world.history.events].count("lost") == 0
    member.do(
        lambda: member.subscription.commit(
            [member.place(after, offsets[7]), member.place(before, offsets[9])]
        )
    )
    assert world.position(group, topic) == offsets[7]


def test_progress_comes_back_as_it_was_stored(world: World) -> None:
    topic, group = world.topic(), world.group()
    (position,) = world.append(topic, [b"v"])
    progress = "".join(random.Random(1).choices("AZaz09-_~", k=PROGRESS_LIMIT))
    first = world.member(group, topic, commit=False)
    first.until_delivered(1)
    first.do(
        lambda: first.subscription.commit(
            [first.place(first.owned[topic, 0], position.offset + 1, progress)]
        )
    )
    place = Committed(position.offset + 1, progress)
    assert world.open().describe_group(group).positions[topic, 0] == place
    world.leave(first)
    second = world.member(group, topic)
    second.until_owns(1)
    assert second.owned[topic, 0].committed == place


def test_poll_gives_at_most_what_is_asked_and_every_partition_its_turn(world: World) -> None:
    topic, group = world.topic(3), world.group()
    world.append(topic, [record(b"%d" % i, partition=i % 3) for i in range(300)])
    member = world.member(group, topic, limit=20)
    member.until_delivered(300)
    assert max(member.sizes) <= 20
    for partition in range(3):
        assert world.history.values((topic, partition)) == world.values(topic, partition)
    parts = [event.part[1] for event in world.history.events if event.what == "message"]
    assert set(parts[:199]) == {0, 1, 2}, "one partition starves the others"


def test_poll_without_time_returns_at_once(world: World) -> None:
    member = world.member(world.group(), world.topic())
    member.until_owns(1)
    assert member.do(lambda: list(member.subscription.poll(10, 0))) == []


def test_two_groups_each_get_everything(world: World) -> None:
    topic = world.topic()
    world.append(topic, numbers(0, 10))
    members = [world.member(world.group(), topic) for _ in range(2)]
    for member in members:
        member.until_delivered(10)
        assert member.delivered() == numbers(0, 10)


def test_wake_ends_a_blocked_poll(world: World) -> None:
    member = world.member(world.group(), world.topic())
    member.until_owns(1)
    for _ in range(20):  # each waits for poll to return, which without wake takes a minute
        member.do(lambda: None)


def test_a_message_ends_a_blocked_poll(world: World) -> None:
    topic = world.topic()
    member = world.member(world.group(), topic)
    member.until_owns(1)
    for number in range(1, 20):
        world.append(topic, [b"v"])
        member.until_delivered(number)


def test_what_a_listener_raises_comes_out_of_poll(world: World) -> None:
    def refuse(assignments: Sequence[Assignment]) -> None:
        raise ZeroDivisionError("from the listener")

    topic, group = world.topic(), world.group()
    member = world.member(group, topic, greet=refuse)
    world.history.until(lambda: member.error is not None, "poll raises")
    with pytest.raises(ZeroDivisionError):
        world.leave(member)
    member.subscription.close()
    world.member(group, topic).until_owns(1)


# -- stale and fenced commits ---------------------------------------------------------------------


def test_an_older_version_does_not_move_a_group_backwards(world: World) -> None:
    topic, group = world.topic(), world.group()
    offsets = [position.offset for position in world.append(topic, numbers(0, 10))]
    member = world.member(group, topic, commit=False)
    member.until_delivered(10)
    mine = member.owned[topic, 0]
    for version, offset in ((1, 2), (5, 8), (3, 4)):
        member.do(partial(member.subscription.commit, [Commit(mine, offsets[offset], "", version)]))
    assert world.position(group, topic) == offsets[8]


def test_what_is_submitted_is_stored_and_that_is_said(world: World) -> None:
    topic, group = world.topic(), world.group()
    offsets = [position.offset for position in world.append(topic, numbers(0, 10))]
    member = world.member(group, topic, commit=False)
    member.until_delivered(10)
    mine = member.owned[topic, 0]
    answers: list[bool] = []

    def answered(stored: bool) -> None:
        answers.append(stored)
        world.history.add(())

    for count, offset in enumerate((2, 5, 9), 1):
        commits = [member.place(mine, offsets[offset], f"progress {offset}")]
        member.do(partial(member.subscription.commit_async, commits, answered))
        world.history.until(lambda count=count: len(answers) == count, "the log answers")  # type: ignore[misc]
        assert answers[-1]
        place = world.log.committed(group, topic)[0]
        assert place == Committed(offsets[offset], f"progress {offset}")
    # What is waited for comes behind what was submitted, answered or not.
    last = world.log.watermarks(topic, 0)[1]
    commits = [member.place(mine, last - 1)]
    member.do(partial(member.subscription.commit_async, commits, answered))
    member.do(partial(member.subscription.commit, [member.place(mine, last)]))
    assert world.position(group, topic) == last
    world.history.until(lambda: len(answers) == 4, "the log answers")


@pytest.mark.short_lease
def test_the_commit_of_an_owner_that_was_replaced_counts_for_nothing(world: World) -> None:
    topic, group = world.topic(), world.group()
    offsets = [position.offset for position in world.append(topic, numbers(0, 10))]
    old = world.member(group, topic, commit=False)
    old.until_delivered(10)
    mine = old.owned[topic, 0]
    old.do(lambda: old.subscription.commit([old.place(mine, offsets[3])]))
    old.freeze()
    new = world.member(group, topic, log=world.open(lasting=True), commit=False)
    world.outlive_leases()
    new.until_owns(1)
    assert world.clock.monotonic() >= mine.valid_until
    assert new.owned[topic, 0].epoch > mine.epoch
    old.thaw(lambda: old.subscription.commit([old.place(mine, offsets[9])]))
    old.until_owns(0)
    assert world.position(group, topic) == offsets[3]
    assert mine.valid_until == float("-inf")
    assert [
        e.what for e in world.history.events if e.member == old.name and e.what != "message"
    ] == [
        "assigned",
        "lost",
    ]
    new.until_delivered(7)
    assert new.delivered() == numbers(3, 10)


def test_the_commit_of_a_partition_that_was_given_up_is_dropped(world: World) -> None:
    topic, group = world.topic(2), world.group()
    old = world.member(group, topic)
    old.until_owns(2)
    before = dict(old.owned)
    new = world.member(group, topic)
    new.until_owns(1)
    old.until_owns(1)
    (gone,) = new.owned
    old.do(lambda: old.subscription.commit([old.place(before[gone], 10**6, "late")]))
    assert world.log.describe_group(group).positions.get(gone) is None
    assert before[gone].valid_until == float("-inf")


def test_a_partition_that_came_back_is_another_assignment(world: World) -> None:
    topic, group = world.topic(2), world.group()
    member = world.member(group, topic)
    member.until_owns(2)
    before = dict(member.owned)
    guest = world.member(group, topic)
    guest.until_owns(1)
    (gone,) = guest.owned
    world.leave(guest)
    member.until_owns(2)
    assert member.owned[gone] is not before[gone]
    assert member.owned[gone].epoch > before[gone].epoch
    late = member.place(before[gone], 10**6, "late")
    member.do(lambda: member.subscription.commit([late]))
    assert gone not in world.log.describe_group(group).positions


# -- revocation -----------------------------------------------------------------------------------


def test_nobody_gets_a_partition_before_its_owner_has_drained(world: World) -> None:
    topic, group = world.topic(2), world.group()
    for partition in range(2):
        world.append(topic, [record(b"%d" % i, partition=partition) for i in range(10)])
    draining, drained = threading.Event(), threading.Event()
    old: Member

    def drain(assignments: Sequence[Assignment]) -> None:
        draining.set()
        while not drained.wait(0.2):  # what an executor does while handlers finish
            old.subscription.keep_alive()
        old.subscription.commit(
            [
                old.place(a, world.log.watermarks(topic, a.partition)[1], "drained")
                for a in assignments
            ]
        )

    old = world.member(group, topic, commit=False, drain=drain)
    old.until_delivered(20)
    new = world.member(group, topic, log=world.open())
    assert draining.wait(PATIENCE)
    world.outlive_leases()  # the drain takes longer than a lease
    new.do(lambda: None)
    assert not new.owned
    drained.set()
    new.until_owns(1)
    (mine,) = new.owned.values()
    assert mine.committed == Committed(world.log.watermarks(topic, mine.partition)[1], "drained")
    assert not world.history.owners_at_once()
    assert len(new.delivered()) == 0


def test_closing_drains_and_its_commits_count(world: World) -> None:
    topic, group = world.topic(), world.group()
    world.append(topic, numbers(0, 5))
    end = world.log.watermarks(topic, 0)[1]
    member: Member

    def drain(assignments: Sequence[Assignment]) -> None:
        member.subscription.commit([member.place(a, end) for a in assignments])

    member = world.member(group, topic, commit=False, drain=drain)
    member.until_delivered(5)
    world.leave(member)
    assert world.position(group, topic) == end
    assert world.log.describe_group(group).members == ()
    assert [event.what for event in world.history.events][-2:] == ["revoking", "revoked"]


def test_a_log_keeps_nothing_of_a_subscription_that_was_closed(world: World) -> None:
    topic = world.topic()
    member = world.member(world.group(), topic)
    member.until_owns(1)
    closed = weakref.ref(member.subscription)
    world.leave(member)
    del member
    gc.collect()
    assert closed() is None


# -- pausing --------------------------------------------------------------------------------------


def test_a_paused_partition_is_silent_and_stays_owned(world: World) -> None:
    topic, group = world.topic(2), world.group()
    member = world.member(group, topic)
    member.until_owns(2)
    quiet = member.owned[topic, 0]
    member.do(lambda: member.subscription.pause([quiet]))
    world.append(topic, [record(b"%d" % i, partition=i % 2) for i in range(20)])
    member.until_delivered(10)
    assert member.do(lambda: list(member.subscription.poll(100, 0))) == []
    assert world.history.values((topic, 0)) == []
    assert member.owned[topic, 0] is quiet
    member.do(lambda: member.subscription.resume([quiet]))
    member.until_delivered(20)
    assert world.history.values((topic, 0)) == world.values(topic, 0)


def test_a_partition_that_was_paused_when_it_left_comes_back_unpaused(world: World) -> None:
    topic, group = world.topic(2), world.group()
    member = world.member(group, topic)
    member.until_owns(2)
    member.do(lambda: member.subscription.pause(list(member.owned.values())))
    other = world.member(group, topic)
    other.until_owns(1)
    member.until_owns(1)
    (kept,) = member.owned.values()
    other.do(lambda: other.subscription.pause(list(other.owned.values())))
    world.leave(other)
    member.until_owns(2)
    assert member.owned[topic, kept.partition] is kept
    world.append(topic, [record(b"%d" % i, partition=i % 2) for i in range(20)])
    member.until_delivered(10)
    back = 1 - kept.partition
    assert world.history.values((topic, back)) == world.values(topic, back)
    assert world.history.values((topic, kept.partition)) == []


def test_pausing_a_thousand_times_skips_and_repeats_nothing(world: World) -> None:
    topic, group = world.topic(3), world.group()
    member = world.member(group, topic, limit=7)
    member.until_owns(3)
    chance = random.Random(7)
    count = 0
    for _ in range(50):
        size = chance.randrange(40)
        world.append(topic, [record(b"%d" % (count + i)) for i in range(size)])
        count += size

        def flicker() -> None:
            for _ in range(20):
                some = chance.sample(list(member.owned.values()), 2)
                member.subscription.pause(some[:1])
                member.subscription.resume(some[1:])
                for batch in member.subscription.poll(chance.randrange(1, 9), 0):
                    member.deliver(batch)

        member.do(flicker)
    member.do(lambda: member.subscription.resume(member.owned.values()))
    member.until_delivered(count)
    for partition in range(3):
        assert world.history.values((topic, partition)) == world.values(topic, partition)


# -- leases ---------------------------------------------------------------------------------------


@pytest.mark.needs("uses_app_clock")
def test_keeping_alive_without_polling_keeps_the_partitions(world: World) -> None:
    topic, group = world.topic(), world.group()
    busy = world.member(group, topic)
    busy.until_owns(1)
    other = world.member(group, topic)
    other.do(lambda: None)

    def wait_for_handlers() -> None:
        for _ in range(10):
            assert world.manual
            world.manual.advance(world.case.lease / 2)
            busy.subscription.keep_alive()
            assert world.clock.monotonic() < busy.owned[topic, 0].valid_until

    busy.do(wait_for_handlers)
    other.do(lambda: None)
    assert not other.owned
    assert [event.what for event in world.history.events] == ["assigned"]


@pytest.mark.needs("uses_app_clock")
def test_a_blocked_poll_keeps_the_partitions_however_far_the_clock_jumps(world: World) -> None:
    topic, group = world.topic(), world.group()
    idle = world.member(group, topic)
    idle.until_owns(1)
    other = world.member(group, topic)
    subscriptions = [member.subscription for member in (idle, other)]
    in_memory = [each for each in subscriptions if isinstance(each, MemorySubscription)]
    for _ in range(10):
        for member in (idle, other):
            member.do(lambda: None)
        until(lambda: all(each.is_polling for each in in_memory), 60, "they poll")
        assert world.manual
        world.manual.advance(world.case.lease * 10)
        idle.do(lambda: None)
        other.do(lambda: None)
        assert world.clock.monotonic() < idle.owned[topic, 0].valid_until
    assert [event.what for event in world.history.events] == ["assigned"]
