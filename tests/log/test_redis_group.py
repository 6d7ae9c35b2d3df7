"""Groups on real servers: who owns what, what Redis's own tools show, and what outlives a fault."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import msgspec
import pytest
import redis

from streams.errors import GroupNotEmpty, Unavailable
from streams.log.protocol import Committed, Retention
from streams.log.redis import RedisLog, fetcher
from streams.log.redis.fetcher import Fetcher
from streams.message import Position
from tests.log.redis_support import (
    PATIENCE,
    SHORT,
    Member,
    Proxy,
    append,
    name,
    named,
    open_redis,
    outcomes,
    patient,
    position,
    record,
    until,
)
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis

LONG = "lease=60"
"""A lease that outlasts the test, however long whoever holds it is not run."""


def native(client: redis.Redis, topic: str, group: str) -> dict[str, Any]:
    """A group as XINFO GROUPS shows it."""
    rows: Any = client.xinfo_groups(topic)
    (found,) = [row for row in rows if row["name"] == group.encode()]
    return dict(found)


# -- what others see, and what others write --------------------------------------------------------


def test_redis_tools_show_where_the_group_stands(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log)
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(10)])]
    log.initialize_offsets(group, topic, {0: offsets[3]})
    shown = native(client, topic, group)
    assert (shown["entries-read"], shown["lag"]) == (3, 7)
    member = Member(log, group, topic)
    members.append(member)
    member.owns(1)
    member.poll_until(lambda: len(member.values) == 7, "the rest")
    (assignment,) = member.owned.values()
    for count in (3, 4, 8, 10):
        place = offsets[count] if count < 10 else offsets[9] + 1
        member.commit(assignment, place, "progress")
        shown = native(client, topic, group)
        assert shown["last-delivered-id"].decode() == log.format_offset(place - 1)
        assert (shown["entries-read"], shown["lag"]) == (count, 10 - count)
        assert log.lag(topic, 0, place) == 10 - count
        assert position(log, group, topic) == Committed(place, "progress")


def test_a_stream_of_others_is_consumed_as_it_is(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = name("topic"), name("group")
    client.xadd(topic, {"amount": "5", "currency": "EUR"})
    assert log.describe_topic(topic).partitions == 1
    assert topic in [each.name for each in log.describe_topics()]
    log.initialize_offsets(group, topic, {0: log.watermarks(topic, 0)[0]})
    member = Member(log, group, topic)
    members.append(member)
    member.take_in(1)
    client.xadd(topic, {"value": "plain", "key": "k"})
    (entry,) = append(log, topic, [b"ours"])
    member.take_in(3)
    assert msgspec.json.decode(member.values[0] or b"") == {"amount": "5", "currency": "EUR"}
    assert member.values[1:] == [b"plain", b"ours"]
    assert native(client, topic, group)["lag"] == 0
    assert position(log, group, topic).position == entry.offset + 1


def test_our_entries_are_plain_fields(log: RedisLog, client: redis.Redis) -> None:
    topic = log.create_topic(name("topic"), 1).name
    append(log, topic, [record(b"v", b"k", "m1", headers=[("ce_type", b"t"), ("none", None)])])
    rows: Any = client.xrange(topic)
    assert rows[0][1] == {
        b"value": b"v",
        b"key": b"k",
        b"ce_id": b"m1",
        b"ce_type": b"t",
        b"null:none": b"",
    }


# -- blocking and being woken ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wake", "message"])
def test_a_blocked_poll_is_ended(log: RedisLog, members: list[Member], how: str) -> None:
    topic = log.create_topic(name("topic"), 2).name
    member = Member(log, name("group"), topic)
    members.append(member)
    member.owns(2)
    ended: list[Any] = []
    thread = threading.Thread(target=lambda: ended.append(member.subscription.poll(10, 10_000.0)))
    thread.start()
    if how == "wake":
        member.subscription.wakeup()
    else:
        append(log, topic, [b"came"])
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [batch.values for batch in ended[0]] == ([[b"came"]] if how == "message" else [])


@pytest.mark.parametrize("rights", ["+@all", "+@all -client|unblock", "+@all -client|id"])
def test_what_is_resumed_is_read_though_a_read_is_blocked(
    server: Redis,
    client: redis.Redis,
    members: list[Member],
    monkeypatch: pytest.MonkeyPatch,
    rights: str,
) -> None:
    # So long that the test would fail if it had to be waited for.
    monkeypatch.setattr(fetcher, "BLOCK_SECONDS", 10_000.0)
    user = name("user")
    client.acl_setuser(user, enabled=True, passwords=["+pw"], keys=["*"], commands=rights.split())
    log = patient(open_redis(f"redis://{user}:pw@{server.address}?{SHORT}"))
    topic = log.create_topic(name("topic"), 2).name
    member = Member(log, name("group"), topic)
    member.owns(2)
    first = member.owned[topic, 0]
    member.subscription.pause([first])
    append(log, topic, [record(b"other", partition=1), record(b"paused", partition=0)])
    member.poll_until(lambda: member.values == [b"other"], "the other partition")
    # A read is under way that does not include the paused partition.
    member.poll()
    assert member.values == [b"other"]
    member.subscription.resume([first])
    member.poll_until(lambda: member.values == [b"other", b"paused"], "what was paused")
    member.subscription.close()
    log.close()


def test_an_idle_member_asks_for_little(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic = log.create_topic(name("topic"), 4).name
    member = Member(log, name("group"), topic)
    members.append(member)
    member.owns(4)
    # Until nothing has changed for a while, and nothing is due before the polls are over.
    member.poll_until(
        lambda: time.monotonic() > member.subscription._rebalancing_until, "heartbeats are rare"
    )

    def asked() -> int:
        return int(client.info("stats")["total_commands_processed"])

    began, before = time.monotonic(), asked()
    for _ in range(20):
        member.poll(timeout=0.05)
    # A heartbeat is two scripts of a dozen commands, and a read is one; how many there may be goes
    # by the time that has passed: one a second each.
    took = time.monotonic() - began
    assert asked() - before < 100 * (took + 1)


# -- one owner -------------------------------------------------------------------------------------


def test_who_was_replaced_can_do_nothing_any_more(
    server: Redis, log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log)
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(5)])]
    old = Member(log, group, topic)
    old.owns(1)
    (stale,) = old.owned.values()
    old.poll_until(lambda: len(old.values) == 5, "all")
    old.commit(stale, offsets[1])
    # It is frozen: it neither polls nor answers, and its lease runs out.
    other = open_redis(f"{server.url}?{LONG}")
    new = Member(other, group, topic)
    members.append(new)
    new.owns(1)
    (fresh,) = new.owned.values()
    assert fresh.epoch > stale.epoch
    assert fresh.committed == Committed(offsets[1])
    assert stale.valid_until < time.monotonic()
    new.poll_until(lambda: len(new.values) == 4, "what was not committed")
    new.commit(fresh, offsets[2])
    # It wakes up.
    old.commit(stale, offsets[4])
    assert position(log, group, topic) == Committed(offsets[2])
    assert stale.valid_until == float("-inf")
    old.poll()
    assert old.events == [("assigned", 0), ("lost", 0)]
    old.commit(stale, offsets[4])
    old.subscription.keep_alive()
    old.subscription.close()
    owner = client.hget(f"{{{topic}}}:group:{group}", "owner")
    assert isinstance(owner, bytes)
    assert owner.decode() in [each.id for each in log.describe_group(group).members]
    new.commit(fresh, offsets[3])
    assert position(log, group, topic) == Committed(offsets[3])


def test_an_older_commit_cannot_undo_a_newer_one(log: RedisLog, members: list[Member]) -> None:
    """Also where it was delayed on the way: the server itself compares."""
    topic, group = named(log)
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(5)])]
    member = Member(log, group, topic)
    members.append(member)
    member.owns(1)
    (assignment,) = member.owned.values()
    (owned,) = member.subscription._owned.values()
    first = next(member.versions)
    member.commit(assignment, offsets[3])
    owned.committed_version = 0
    member.versions = iter([first, 10])  # type: ignore[assignment]
    member.commit(assignment, offsets[4])
    assert position(log, group, topic) == Committed(offsets[3])
    member.commit(assignment, offsets[2])
    assert position(log, group, topic) == Committed(offsets[3])


@pytest.mark.parametrize("is_older", [False, True])
def test_a_commit_that_comes_too_late_confirms_the_lease_for_everybody(
    log: RedisLog, client: redis.Redis, members: list[Member], is_older: bool
) -> None:
    """As one that is sent again because its answer was lost: if the owner went by its answer while
    the others see an unchanged lease, there would be two owners."""
    topic, group = named(log)
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(3)])]
    member = Member(log, group, topic)
    members.append(member)
    member.owns(1)
    (assignment,) = member.owned.values()
    (owned,) = member.subscription._owned.values()
    version = next(member.versions)
    member.versions = iter([version, version + is_older])  # type: ignore[assignment]
    member.commit(assignment, offsets[2])
    owned.committed_version = 0  # it got no answer
    before = assignment.valid_until
    beat = client.hget(f"{{{topic}}}:group:{group}", "beat")
    member.commit(assignment, offsets[1] if is_older else offsets[2])
    assert position(log, group, topic) == Committed(offsets[2])
    assert assignment.valid_until > before
    assert client.hget(f"{{{topic}}}:group:{group}", "beat") != beat


def test_keeping_alive_is_enough_to_stay(
    server: Redis, log: RedisLog, members: list[Member]
) -> None:
    topic, group = named(log)
    busy = Member(open_redis(f"{server.url}?lease=6"), group, topic)
    members.append(busy)
    busy.owns(1)
    waiting = Member(open_redis(f"{server.url}?{LONG}"), group, topic)
    members.append(waiting)
    (assignment,) = busy.owned.values()
    first = assignment.valid_until

    def kept() -> bool:
        busy.subscription.keep_alive()
        waiting.poll()
        return time.monotonic() > first

    until(kept, "the lease it had at first is over")
    assert waiting.owned == {}
    assert assignment.valid_until > first


def test_members_that_read_different_topics_agree(log: RedisLog, members: list[Member]) -> None:
    one, two = (log.create_topic(name("topic"), 4).name for _ in range(2))
    group = name("group")
    members += [Member(log, group, one), Member(log, group, [one, two])]

    def shared_out() -> bool:
        for member in members:
            member.poll()
        return [len(member.owned) for member in members] == [4, 4]

    # Who has another topic to itself leaves this one to the other.
    until(shared_out, "all is owned, evenly")
    assert {topic for topic, _ in members[0].owned} == {one}
    assert {topic for topic, _ in members[1].owned} == {two}


def test_a_group_is_moved_from_under_its_members_only_by_force(
    log: RedisLog, server: Redis, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log)
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(5)])]
    # Its lease is longer than it may stand still, so that it counts as a member.
    lasting = open_redis(f"{server.url}?lease=10")
    member = Member(lasting, group, topic)
    members.append(member)
    member.take_in(5)
    with pytest.raises(GroupNotEmpty):
        log.reset_offsets(group, topic, {0: Committed(offsets[1])})
    with pytest.raises(GroupNotEmpty):
        log.delete_group(group)
    log.reset_offsets(group, topic, {0: Committed(offsets[3])}, force=True)
    assert native(client, topic, group)["lag"] == 2
    member.take_in(7)
    assert member.values[5:] == [b"3", b"4"]
    assert ("lost", 0) in member.events


def test_a_group_that_began_is_taken_up_where_it_should_begin(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    """Also if who began it was killed before the partitions were told."""
    topic, group = named(log)
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(5)])]
    log.initialize_offsets(group, topic, {0: offsets[2]})
    client.delete(f"{{{topic}}}:group:{group}")
    assert position(log, group, topic) == Committed(offsets[2])
    member = Member(log, group, topic)
    members.append(member)
    member.take_in(3)
    assert member.values == [b"2", b"3", b"4"]


# -- what the server loses -------------------------------------------------------------------------


def test_a_server_that_lost_everything_is_gone_on_with(lifetime: Lifetime, server: Redis) -> None:
    with Redis(lifetime, server.program) as own, own.client() as client:
        # Each must be back before the other's patience ends, which is a lease.
        log = open_redis(f"{own.url}?lease=10")
        topic, group = named(log, 2)
        log.initialize_offsets(group, topic, {0: 0, 1: 0})
        one, two = Member(log, group, topic), Member(log, group, topic)
        until(
            lambda: (one.poll(), two.poll()) is None or len(one.owned) == len(two.owned) == 1,
            "shared out",
        )
        append(log, topic, [record(b"old", partition=n) for n in (0, 1)])
        one.take_in(1)
        two.take_in(1)
        epochs = {each: a.epoch for m in (one, two) for each, a in m.owned.items()}
        owners = (set(one.owned), set(two.owned))
        client.flushall()
        append(log, topic, [record(b"new%d" % n, partition=n % 2) for n in range(6)])
        expected = {b"old", *(b"new%d" % n for n in range(6))}
        until(
            lambda: (one.poll(), two.poll()) is None or {*one.values, *two.values} == expected,
            "what came after",
        )
        # Who owned a partition knew where the group stood, and has it again.
        until(
            lambda: (
                (one.poll(), two.poll()) is None
                or (
                    (set(one.owned), set(two.owned)) == owners and len(one.events + two.events) >= 6
                )
            ),
            "the same owners",
        )
        assert (one.values + two.values).count(b"old") == 2, "what was committed is settled"
        for member in (one, two):
            assert [what for what, _ in member.events[:2]] == ["assigned", "lost"]
            for place, assignment in member.owned.items():
                assert assignment.epoch > epochs[place]
                assert assignment.committed is not None
        assert log.describe_topic(topic).partitions == 2
        assert log.list_groups() == [group]
        assert topic in [each.name for each in log.describe_topics()]
        for member in (one, two):
            member.subscription.close()
        log.close()


@pytest.mark.parametrize("lost", ["native group", "hash", "stream", "stream and group"])
def test_a_part_that_was_lost_is_made_again(
    log: RedisLog, client: redis.Redis, members: list[Member], lost: str
) -> None:
    topic, group = named(log)
    member = Member(log, group, topic)
    members.append(member)
    append(log, topic, [b"%d" % n for n in range(5)])
    member.take_in(5)
    place = position(log, group, topic)
    if lost == "native group":
        client.xgroup_destroy(topic, group)
    if lost.startswith("stream"):
        client.delete(topic)
    if lost in ("hash", "stream and group"):
        client.delete(f"{{{topic}}}:group:{group}")
    (entry,) = append(log, topic, [b"5"])

    def committed() -> bool:
        member.poll()
        member.commit_all()
        places = log.describe_group(group).positions
        return places.get((topic, 0)) == Committed(entry.offset + 1)

    until(committed, "what came after is settled")
    assert place.position < entry.offset
    # What was not committed may have come twice, nothing else.
    assert set(member.values[5:]) == {b"5"}
    member.poll_until(lambda: native(client, topic, group)["lag"] == 0, "the tools agree")


def test_another_stream_of_the_name_is_read_from_its_beginning(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log)
    member = Member(log, group, topic)
    members.append(member)
    append(log, topic, [b"%d" % n for n in range(5)])
    member.take_in(5)
    client.delete(topic)
    for number in (1, 2):
        client.xadd(topic, {"value": b"small %d" % number}, id=f"{number}-0")
    member.take_in(7)
    assert member.values[5:] == [b"small 1", b"small 2"]
    assert position(log, group, topic).position == (2 << 64) + 1


def test_a_place_beyond_the_end_is_told_and_the_native_group_says_where_to_go_on(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log)
    first = Member(log, group, topic)
    entries = append(log, topic, [b"%d" % n for n in range(5)])
    first.poll_until(lambda: len(first.values) == 5, "all are read")
    (owned,) = first.owned.values()
    first.commit(owned, entries[3].offset)
    first.subscription.close()
    forged = entries[4].offset + (1 << 90)
    client.hset(f"{{{topic}}}:group:{group}", "position", log.format_offset(forged))
    second = Member(log, group, topic)
    members.append(second)
    second.owns(1)
    (assignment,) = second.owned.values()
    assert assignment.stored_beyond_end == forged
    assert assignment.committed == Committed(entries[3].offset)


def test_a_stream_that_lost_its_tail_is_told_and_gone_on_with_behind_what_is_left(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log)
    first = Member(log, group, topic)
    left = append(log, topic, [b"%d" % n for n in range(3)])
    first.take_in(3)
    before: Any = client.dump(topic)
    append(log, topic, [b"3", b"4"])
    first.take_in(5)
    place = position(log, group, topic).position
    first.subscription.close()
    client.restore(topic, 0, before, replace=True)
    second = Member(log, group, topic)
    members.append(second)
    second.owns(1)
    (assignment,) = second.owned.values()
    assert assignment.stored_beyond_end == place
    assert assignment.committed == Committed(left[-1].offset + 1)


def test_entries_trimmed_before_they_were_read_are_a_loss(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log)
    first = Member(log, group, topic)
    append(log, topic, [b"%d" % n for n in range(5)])
    first.take_in(5)
    first.subscription.close()
    # Nothing but what the group has read is gone: whatever the gap, it is none.
    client.xtrim(topic, maxlen=0, approximate=False)
    append(log, topic, [b"%d" % n for n in range(5, 10)])
    assert position(log, group, topic).position >= log.watermarks(topic, 0)[0]
    # Two of the five that it has not read go.
    client.xtrim(topic, maxlen=3, approximate=False)
    begins = log.watermarks(topic, 0)[0]
    assert position(log, group, topic).position < begins
    second = Member(log, group, topic)
    members.append(second)
    second.owns(1)
    (assignment,) = second.owned.values()
    assert assignment.committed is not None
    assert assignment.committed.position < begins
    second.take_in(3)
    assert second.values == [b"7", b"8", b"9"]
    assert position(log, group, topic).position >= log.watermarks(topic, 0)[0]


def test_entries_trimmed_under_a_running_member_are_reported(
    log: RedisLog,
    client: redis.Redis,
    members: list[Member],
    caplog: pytest.LogCaptureFixture,
) -> None:
    topic, group = named(log)
    member = Member(log, group, topic)
    members.append(member)
    append(log, topic, [b"0"])
    member.take_in(1)
    assert not member.poll()  # and leaves a read under way
    (assignment,) = member.owned.values()
    (owned,) = member.subscription._owned.values()
    member.subscription.pause([assignment])
    append(log, topic, [b"1"])
    # That read has this one; there is no other while it is paused.
    member.poll_until(lambda: owned.fetched, "it is read")
    append(log, topic, [b"%d" % n for n in range(2, 100)])
    client.xtrim(topic, maxlen=0, approximate=False)
    append(log, topic, [b"last"])
    member.subscription.resume([assignment])
    with caplog.at_level(logging.ERROR, "streams"):
        member.take_in(3)
        member.poll_until(lambda: caplog.records, "a report")
    assert member.values == [b"0", b"1", b"last"]
    assert "98 messages" in caplog.text
    member.poll_until(lambda: native(client, topic, group)["lag"] == 0, "the tools agree")


def test_a_full_memory_stops_writers_and_not_the_group_that_makes_room(
    lifetime: Lifetime, server: Redis
) -> None:
    with Redis(lifetime, server.program) as own, own.client() as client:
        log = patient(open_redis(f"{own.url}?{SHORT}"))
        topic, group = named(log, 1, Retention(messages=100))
        first = Member(log, group, topic, trim_margin=0)
        first.owns(1)
        append(log, topic, [b"x" * 1_000 for _ in range(5_000)])
        client.config_set("maxmemory", 3_000_000)
        assert isinstance(outcomes(log, topic, [record(b"refused")])[0], Unavailable)
        # Members come and go, take, renew, commit, and trim.
        first.take_in(1_000)
        first.subscription.close()
        second = Member(log, group, topic, trim_margin=0)
        second.poll_until(lambda: len(second.values) == 5_000 - len(first.values), "the rest")
        until(second.commit_all, "all is committed")
        assert position(log, group, topic).position == log.watermarks(topic, 0)[1]
        log._trimmer._next_trim.clear()
        second.poll_until(
            lambda: isinstance(outcomes(log, topic, [record(b"again")])[0], Position), "room"
        )
        second.subscription.close()
        log.close()


# -- faults on the way -----------------------------------------------------------------------------


def test_a_cut_connection_loses_and_repeats_nothing(server: Redis, log: RedisLog) -> None:
    topic, group = named(log, 2)
    values = [b"%06d" % n for n in range(8_000)]
    append(log, topic, [record(each, partition=n % 2) for n, each in enumerate(values)])
    with Proxy(server.port) as proxy:
        cut = open_redis(f"redis://127.0.0.1:{proxy.port}?{SHORT}")
        member = Member(cut, group, topic)
        member.owns(2)
        for count in range(500, 8_001, 500):
            member.take_in(count)
            proxy.cut_all()
        assert sorted(filter(None, member.values)) == values
        for partition in range(2):
            own = [v for v in member.values if v is not None and int(v) % 2 == partition]
            assert own == sorted(own)
        member.subscription.close()
        cut.close()


def test_what_was_read_is_delivered_though_no_more_can_be_asked_for(
    server: Redis, log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = named(log)
    with Proxy(server.port) as proxy:
        cut = open_redis(f"redis://127.0.0.1:{proxy.port}?{SHORT}")
        member = Member(cut, group, topic)
        member.owns(1)
        ask = Fetcher.send_read

        def ask_in_vain(feed: Fetcher, *args: Any) -> None:
            # The connection breaks after the answer was read, and there is no other.
            proxy.refusing = True
            proxy.cut_all()
            feed.disconnect()
            ask(feed, *args)

        (feed,) = member.subscription._fetchers._fetchers
        until(lambda: not member.poll() and feed.requested, "a read is under way")
        monkeypatch.setattr(Fetcher, "send_read", ask_in_vain)
        append(log, topic, [b"1", b"2"])
        member.poll_until(lambda: proxy.refusing, "the connection breaks")
        monkeypatch.undo()
        proxy.refusing = False
        append(log, topic, [b"3"])
        member.take_in(3)
        assert member.values == [b"1", b"2", b"3"]
        member.subscription.close()
        cut.close()


def test_a_server_that_was_frozen_changes_no_owner(lifetime: Lifetime, server: Redis) -> None:
    with Redis(lifetime, server.program) as own:
        log = open_redis(f"{own.url}?{SHORT}")
        topic, group = named(log, 2)
        both = [Member(log, group, topic), Member(log, group, topic)]

        def poll() -> bool | None:
            for member in both:
                member.poll()
            return None

        until(lambda: poll() or all(len(m.owned) == 1 for m in both), "shared out")
        quiet = time.monotonic() + 1
        until(lambda: poll() or time.monotonic() > quiet, "quiet")
        events = [list(member.events) for member in both]
        assignments = [a for m in both for a in m.owned.values()]
        own.pause()
        over = time.monotonic() + 3  # three leases
        until(lambda: poll() or time.monotonic() > over, "all leases over")
        assert all(each.valid_until < time.monotonic() for each in assignments)
        own.resume()
        until(
            lambda: poll() or all(a.valid_until > time.monotonic() for a in assignments),
            "confirmed again",
        )
        assert [list(member.events) for member in both] == events
        for member in both:
            member.subscription.close()
        log.close()


def test_what_was_acknowledged_outlives_a_killed_server(lifetime: Lifetime, server: Redis) -> None:
    durable = ("--appendonly", "yes", "--appendfsync", "always")
    with Redis(lifetime, server.program, durable) as own:
        log = patient(open_redis(f"{own.url}?{SHORT}"))
        topic, group = named(log)
        member = Member(log, group, topic)
        acknowledged: list[bytes] = []
        stop = threading.Event()

        def publish() -> None:
            while not stop.is_set():
                value = b"%d" % len(acknowledged)
                append(log, topic, [record(value)])  # rides through the restart
                acknowledged.append(value)

        publisher = threading.Thread(target=publish)
        publisher.start()
        for goal in (50, 100):
            member.take_in(goal)
            own.kill()
            own.restart()
        member.poll_until(lambda: len(member.values) > 150, "more")
        stop.set()
        publisher.join(PATIENCE)
        member.poll_until(lambda: len(member.values) >= len(acknowledged), "all of them")
        assert member.values == acknowledged
        member.subscription.close()
        log.close()
