"""A server's clock that is stepped: no lease is held for ever by it, and none is taken too early.

What a stepped clock leaves behind are stored times that are far ahead or long past; they are
written here as it would have left them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from streams.errors import Unavailable
from streams.log.membership import MAX_LEASE
from streams.log.protocol import Committed
from streams.log.redis import RedisLog
from streams.log.redis.membership import HeartbeatResult
from tests.log.redis_support import SHORT, Member, Proxy, append, named, open_redis, patient, until
from tests.servers.find import RedisAddress

HOUR = 3_600_000


@pytest.fixture(params=["redis_server", "valkey_server"], ids=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> RedisAddress:
    address: RedisAddress = request.getfixturevalue(request.param)
    return address


@pytest.fixture
def client(server: RedisAddress) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def logs() -> Iterator[list[RedisLog]]:
    """Those that are to be closed at the end."""
    found: list[RedisLog] = []
    yield found
    for log in found:
        log.close()


def step(client: redis.Redis, topic: str, group: str, milliseconds: int) -> None:
    """Leave every stored time as a clock that was so much ahead would have left it."""
    for key in client.keys(f"{{{topic}*}}:group:{group}"):
        until = int(client.hget(key, "until") or 0)
        client.hset(key, "until", until + milliseconds)
    key = f"{{group:{group}}}:members"
    rows: Any = client.hgetall(key)
    for id, row in rows.items():
        moved = re.sub(rb"\d{13,}", lambda found: b"%d" % (int(found[0]) + milliseconds), row)
        client.hset(key, id, moved)
    client.persist(key)  # whatever expires by that clock would stay as well


def test_a_clock_that_was_ahead_keeps_no_lease_for_ever(
    server: RedisAddress, client: redis.Redis, logs: list[RedisLog], members: list[Member]
) -> None:
    logs += [patient(open_redis(f"{server.url}?{SHORT}")) for _ in range(2)]
    topic, group = named(logs[0], 4)
    dead = Member(logs[0], group, topic)
    dead.owns(4)
    # It is killed, and then the clock is set back: its rows are valid for another hour.
    step(client, topic, group, HOUR)
    append(logs[1], topic, [b"%d" % n for n in range(20)])
    heir = Member(logs[1], group, topic)
    members.append(heir)
    heir.owns(4)
    heir.poll_until(lambda: len(heir.values) == 20, "everything is handled")
    # Nor does it count as running for people, or keep anybody from moving the group.
    heir.poll_until(lambda: len(logs[1].group(group).members) == 1, "it alone counts")
    heir.subscription.close()
    logs[1].reset_offsets(group, topic, {0: Committed(0)})
    dead.subscription.close()


def test_a_clock_that_is_set_forward_makes_no_second_owner(
    server: RedisAddress, client: redis.Redis, logs: list[RedisLog], members: list[Member]
) -> None:
    # Of the owner no sign of life comes in time, unless the lease really is over.
    logs += [open_redis(f"{server.url}?lease={MAX_LEASE}&socket_timeout=5") for _ in range(2)]
    topic, group = named(logs[0], 4)
    owner = Member(logs[0], group, topic)
    members.append(owner)
    owner.owns(4)
    step(client, topic, group, -HOUR * 2)
    other = Member(logs[1], group, topic)
    members.append(other)
    subscription: Any = other.subscription
    for _ in range(50):
        subscription._next_heartbeat = 0.0
        other.poll(timeout=0.0)
    assert other.owned == {}
    assert all(each.valid_until > time.monotonic() for each in owner.owned.values())

    def both_poll() -> bool:
        for member in (owner, other):
            member.poll()
        return len(owner.owned) == len(other.owned) == 2

    until(both_poll, "the owner gives half of them up, in good order")
    assert [what for what, _ in owner.events] == ["assigned"] * 4 + ["revoked"] * 2


@pytest.mark.parametrize("milliseconds", [HOUR, -HOUR], ids=["ahead", "behind"])
def test_members_that_live_do_not_notice_a_step(
    server: RedisAddress,
    client: redis.Redis,
    logs: list[RedisLog],
    members: list[Member],
    milliseconds: int,
) -> None:
    logs += [patient(open_redis(f"{server.url}?{SHORT}")) for _ in range(2)]
    topic, group = named(logs[0], 4)
    members += [Member(log, group, topic) for log in logs]

    def poll() -> bool:
        for member in members:
            member.poll(timeout=0.01)
        return False

    until(lambda: poll() or [len(m.owned) for m in members] == [2, 2], "shared out")
    told = [list(member.events) for member in members]
    beats = members[0].subscription._membership._heartbeats
    step(client, topic, group, milliseconds)
    # For longer than a lease, by the number of heartbeats (at most three in its length).
    until(lambda: poll() or members[0].subscription._membership._heartbeats > beats + 6, "a while")
    assert [member.events for member in members] == told
    until(lambda: poll() or len(logs[0].group(group).members) == 2, "both count")


def test_a_lease_is_taken_only_as_it_was_seen(
    server: RedisAddress, client: redis.Redis, logs: list[RedisLog], members: list[Member]
) -> None:
    """An owner that confirms its lease between the look and the taking keeps it."""
    logs += [patient(open_redis(f"{server.url}?{SHORT}")) for _ in range(2)]
    topic, group = named(logs[0])
    owner = Member(logs[0], group, topic)
    members.append(owner)
    owner.owns(1)
    other = Member(logs[1], group, topic)
    members.append(other)
    membership = other.subscription._membership
    until(lambda: membership.heartbeat([]).plan.acquire, "its length is over")
    owner.subscription.keep_alive()
    assert membership.leases.acquire([(topic, 0)]) == []
    (assignment,) = owner.owned.values()

    def is_certain() -> bool:
        owner.commit(assignment, 0)
        return assignment.valid_until > time.monotonic()

    until(is_certain, "it is certain")


def test_time_in_which_nobody_answers_is_nobodys_death(
    server: RedisAddress, logs: list[RedisLog], members: list[Member]
) -> None:
    """Whoever was cut off has not seen a lease stand unchanged meanwhile."""
    port = int(server.url.rpartition(":")[2].partition("/")[0])
    with Proxy(port) as proxy:
        logs += [patient(open_redis(f"{server.url}?{SHORT}"))]
        logs += [open_redis(f"redis://127.0.0.1:{proxy.port}?{SHORT}")]
        topic, group = named(logs[0])
        owner = Member(logs[0], group, topic)
        members.append(owner)
        owner.owns(1)
        other = Member(logs[1], group, topic)
        members.append(other)
        membership = other.subscription._membership
        assert not membership.heartbeat([]).plan.acquire
        proxy.refusing = True
        proxy.cut_all()
        over = time.monotonic() + 3  # three leases
        while time.monotonic() < over:
            with pytest.raises(Unavailable):
                membership.heartbeat([])
            time.sleep(0.05)
        proxy.refusing = False
        found: list[HeartbeatResult] = []

        def answered() -> bool:
            try:
                found.append(membership.heartbeat([]))
            except Unavailable:
                return False
            return True

        until(answered, "it is answered again")
        assert not found[0].plan.acquire
        assert not membership._dead_members
