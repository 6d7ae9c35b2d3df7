"""A server's clock that is stepped: no lease is held for ever by it, and none is taken too early.

What a stepped clock leaves behind are stored times that are far ahead or long past; they are
written here as it would have left them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis

from streams.errors import LogError, Unavailable
from streams.log.claims import Answer, Claim, Complete, GetClaim, Renew, Request, StoredClaim
from streams.log.membership import MAX_LEASE
from streams.log.protocol import Committed
from streams.log.redis import RedisLog
from streams.log.redis.claims import KEY_PREFIX, RedisClaimStore
from streams.log.redis.membership import HeartbeatResult
from streams.log.url import open_claims
from streams.testing import Clock
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
    successor = Member(logs[1], group, topic)
    members.append(successor)
    successor.owns(4)
    successor.poll_until(lambda: len(successor.values) == 20, "everything is handled")
    # Nor does it count as running for people, or keep anybody from moving the group.
    successor.poll_until(lambda: len(logs[1].describe_group(group).members) == 1, "it alone counts")
    successor.subscription.close()
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
    until(lambda: poll() or len(logs[0].describe_group(group).members) == 2, "both count")


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


# -- claims of idempotency


def claim_stores(server: RedisAddress) -> tuple[RedisClaimStore, RedisClaimStore, Clock]:
    """Two processes' claims, and the own clock of the second."""
    stores: list[RedisClaimStore] = []
    for _ in range(2):
        opened = open_claims(server.url)
        assert isinstance(opened, RedisClaimStore)
        stores.append(opened)
    stores[1].clock = clock = Clock()
    return stores[0], stores[1], clock


def step_claim(client: redis.Redis, key: bytes, milliseconds: int) -> None:
    """Leave a claim as a clock that was so much ahead would have left it."""
    name = KEY_PREFIX + key
    client.hset(name, "until", int(client.hget(name, "until") or 0) + milliseconds)
    client.pexpire(name, client.pttl(name) + milliseconds)


def ask(claims: RedisClaimStore, request: Request) -> Answer:
    (answer,) = claims.execute([request])
    assert not isinstance(answer, LogError), answer
    return answer


def is_held(answer: Answer | LogError) -> bool:
    return isinstance(answer, StoredClaim) and answer.value is None


def test_a_clock_that_was_ahead_keeps_no_claim_for_ever(
    server: RedisAddress, client: redis.Redis
) -> None:
    one, other, clock = claim_stores(server)
    key = f"claims:{uuid4().hex}".encode()
    assert ask(one, Claim(key, "a", 30.0)) is None
    # Its owner is killed, and then the clock is set back.
    step_claim(client, key, HOUR)
    found = ask(other, Claim(key, "b", 30.0))
    assert isinstance(found, StoredClaim)
    assert found.expires_in == 30.0
    clock.advance(29.5)
    assert is_held(ask(other, Claim(key, "b", 30.0)))
    assert is_held(ask(other, GetClaim(key)))
    clock.advance(0.5)
    assert ask(other, GetClaim(key)) is None
    assert ask(other, Claim(key, "b", 30.0)) is None
    assert ask(one, Renew(key, "a", 30.0)) is False
    for each in (one, other):
        each.close()


def test_a_clock_that_is_set_forward_gives_no_claim_to_two(
    server: RedisAddress, client: redis.Redis
) -> None:
    one, other, clock = claim_stores(server)
    key = f"claims:{uuid4().hex}".encode()
    assert ask(one, Claim(key, "a", 30.0)) is None
    for _ in range(4):
        step_claim(client, key, -HOUR // 2)
        assert is_held(ask(other, Claim(key, "b", 30.0)))
        assert ask(one, Renew(key, "a", 30.0)) is True
        clock.advance(29.0)
    assert is_held(ask(other, Claim(key, "b", 30.0)))
    assert ask(one, Complete(key, "a", b"=1", 60.0)) is True
    for each in (one, other):
        each.close()


def test_a_claim_is_taken_only_as_it_was_seen(server: RedisAddress, client: redis.Redis) -> None:
    """Its owner renews it, or another one takes it, between the look and the taking."""
    one, other, clock = claim_stores(server)
    third, _, its_clock = claim_stores(server)
    key = f"claims:{uuid4().hex}".encode()
    third.clock = its_clock
    assert ask(one, Claim(key, "a", 30.0)) is None
    for claims in (other, third):
        assert is_held(ask(claims, Claim(key, "b", 30.0)))
    clock.advance(31)
    assert ask(one, Renew(key, "a", 30.0)) is True
    # By the server's clock it may even be the same moment again.
    client.hset(KEY_PREFIX + key, "until", "1")
    assert is_held(ask(other, Claim(key, "b", 30.0)))
    clock.advance(31)
    its_clock.advance(62)
    assert ask(other, Claim(key, "b", 30.0)) is None
    assert is_held(ask(third, Claim(key, "c", 30.0)))
    for each in (one, other, third):
        each.close()


def test_a_claim_of_a_former_version_has_what_seems_to_be_left(
    server: RedisAddress, client: redis.Redis
) -> None:
    """It names no length; and an owner of that version renews it as it does."""
    _, other, clock = claim_stores(server)
    key = f"claims:{uuid4().hex}".encode()
    seconds, microseconds = client.time()
    until = seconds * 1000 + microseconds // 1000 + 100_000
    row: Any = {"token": "a", "fingerprint": "", "until": until}
    client.hset(KEY_PREFIX + key, mapping=row)
    found = ask(other, Claim(key, "b", 30.0))
    assert isinstance(found, StoredClaim)
    assert 30.0 < found.expires_in <= 100.0
    clock.advance(99)
    client.hset(KEY_PREFIX + key, "until", until + 10_000)
    assert is_held(ask(other, Claim(key, "b", 30.0)))
    clock.advance(111)
    assert ask(other, Claim(key, "b", 30.0)) is None
    other.close()


def test_a_claim_store_remembers_so_many_claims(
    server: RedisAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.claims.MAX_CLAIMS_SEEN", 10)
    one, other, clock = claim_stores(server)
    run = uuid4().hex
    keys = [f"claims:{run}-{number}".encode() for number in range(12)]
    assert one.execute([Claim(key, "a", 30.0) for key in keys]) == [None] * 12
    assert all(map(is_held, other.execute([Claim(key, "b", 30.0) for key in keys])))
    clock.advance(31)
    answers = other.execute([Claim(key, "b", 30.0) for key in keys])
    assert [is_held(each) for each in answers] == [True] * 2 + [False] * 10
    for each in (one, other):
        each.close()
