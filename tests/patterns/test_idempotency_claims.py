"""The rules of claims, on every log that keeps them; and against a naive model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.errors import ConfigError, LogError, OutcomeUnknown, Unavailable
from streams.log.claims import (
    CLAIM_GRACE,
    Answer,
    Claim,
    ClaimStore,
    Complete,
    DeleteClaim,
    GetClaim,
    PutOutcome,
    Release,
    Renew,
    Request,
    StoredClaim,
)
from streams.log.memory.claims import MemoryClaimStore
from streams.log.redis.claims import CLAIM_KEPT, KEY_PREFIX
from streams.log.sqlite.claims import SqliteClaimStore
from streams.log.url import open_claims
from streams.testing import Clock
from tests.patterns.keeping import Place, place, until
from tests.servers.find import RedisAddress
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis, RedisCluster

__all__ = ["place"]

DAY = 86_400.0


def ask(claims: ClaimStore, request: Request) -> Answer:
    (answer,) = claims.execute([request])
    assert not isinstance(answer, LogError), answer
    return answer


@pytest.fixture
def one(place: Place) -> Iterator[ClaimStore]:
    opened = place.claims()
    yield opened
    opened.close()


@pytest.fixture
def other(place: Place) -> Iterator[ClaimStore]:
    """As another process has it."""
    opened = place.claims()
    yield opened
    opened.close()


@pytest.fixture
def key(place: Place) -> bytes:
    return f"{place.name}:key".encode()


def test_a_key_is_claimed_once(one: ClaimStore, other: ClaimStore, key: bytes) -> None:
    assert ask(one, Claim(key, "a", 30.0, "print")) is None
    there = ask(other, Claim(key, "b", 30.0))
    assert isinstance(there, StoredClaim)
    assert there.value is None
    assert there.fingerprint == "print"
    assert 0 < there.expires_in <= 30.0
    assert isinstance(ask(other, GetClaim(key)), StoredClaim)


def test_a_claim_that_is_asked_for_again_is_still_ones_own(one: ClaimStore, key: bytes) -> None:
    assert ask(one, Claim(key, "a", 30.0)) is None
    assert ask(one, Claim(key, "a", 30.0)) is None


def test_an_outcome_stands_in_the_claims_place(
    one: ClaimStore, other: ClaimStore, key: bytes
) -> None:
    ask(one, Claim(key, "a", 30.0, "print"))
    assert ask(one, Complete(key, "a", b"", DAY)) is True
    for request in (GetClaim(key), Claim(key, "a", 30.0), Claim(key, "b", 30.0)):
        there = ask(other, request)
        assert isinstance(there, StoredClaim)
        assert (there.fingerprint, there.value) == ("print", b"")
        assert DAY - 60 < there.expires_in <= DAY


def test_completing_again_changes_nothing(one: ClaimStore, key: bytes) -> None:
    ask(one, Claim(key, "a", 30.0))
    ask(one, Complete(key, "a", b"first", DAY))
    assert ask(one, Complete(key, "a", b"second", DAY)) is True
    there = ask(one, GetClaim(key))
    assert isinstance(there, StoredClaim)
    assert there.value == b"first"
    # The answer to a completion may have been lost, so whoever completed it has not lost it.
    assert ask(one, Renew(key, "a", 30.0)) is True
    assert ask(one, Release(key, "a")) is False
    there = ask(one, GetClaim(key))
    assert isinstance(there, StoredClaim)
    assert there.expires_in > DAY - 60


def test_what_is_released_is_free(one: ClaimStore, other: ClaimStore, key: bytes) -> None:
    ask(one, Claim(key, "a", 30.0))
    assert ask(one, Release(key, "a")) is True
    assert ask(one, GetClaim(key)) is None
    assert ask(other, Claim(key, "b", 30.0)) is None
    assert ask(one, Release(key, "a")) is False


def test_another_token_may_do_nothing(one: ClaimStore, other: ClaimStore, key: bytes) -> None:
    ask(one, Claim(key, "a", 30.0))
    assert ask(other, Renew(key, "b", 30.0)) is False
    assert ask(other, Complete(key, "b", b"x", DAY)) is False
    assert ask(other, Release(key, "b")) is False
    there = ask(other, GetClaim(key))
    assert isinstance(there, StoredClaim)
    assert there.value is None


async def test_a_lease_ends_and_its_owner_is_fenced(
    place: Place, one: ClaimStore, other: ClaimStore, key: bytes
) -> None:
    ask(one, Claim(key, "a", place.lease))
    await place.over(key)
    # On a server by what each has seen itself.
    await until(lambda: ask(other, GetClaim(key)) is None, "over")
    assert ask(other, Claim(key, "b", 30.0, "second")) is None
    assert ask(one, Renew(key, "a", 30.0)) is False
    assert ask(one, Complete(key, "a", b"late", DAY)) is False
    assert ask(one, Release(key, "a")) is False
    assert ask(other, Complete(key, "b", b"good", DAY)) is True
    there = ask(one, GetClaim(key))
    assert isinstance(there, StoredClaim)
    assert (there.fingerprint, there.value) == ("second", b"good")


async def test_a_lease_that_nobody_took_over_can_still_be_used(
    place: Place, one: ClaimStore, key: bytes
) -> None:
    ask(one, Claim(key, "a", place.lease, "print"))
    await place.over(key)
    assert ask(one, Renew(key, "a", 30.0)) is True
    assert isinstance(ask(one, GetClaim(key)), StoredClaim)
    ask(one, Renew(key, "a", place.lease))
    await place.over(key)
    assert ask(one, Complete(key, "a", b"late", DAY)) is True
    there = ask(one, GetClaim(key))
    assert isinstance(there, StoredClaim)
    assert (there.fingerprint, there.value) == ("print", b"late")


async def test_renewing_keeps_a_claim(
    place: Place, one: ClaimStore, other: ClaimStore, key: bytes
) -> None:
    ask(one, Claim(key, "a", place.lease, "print"))
    assert ask(one, Renew(key, "a", 100 * place.lease)) is True
    await place.elapse(2 * place.lease)
    there = ask(other, Claim(key, "b", 30.0))
    assert isinstance(there, StoredClaim)
    assert there.fingerprint == "print"


async def test_an_outcome_is_forgotten_after_its_time(
    place: Place, one: ClaimStore, key: bytes
) -> None:
    ask(one, Claim(key, "a", 30.0))
    ask(one, Complete(key, "a", b"x", place.lease))
    await place.over(key)
    assert ask(one, GetClaim(key)) is None
    assert ask(one, Claim(key, "b", 30.0)) is None


def test_putting_an_outcome_fences_who_had_the_key(
    one: ClaimStore, other: ClaimStore, key: bytes
) -> None:
    ask(one, Claim(key, "a", 30.0, "print"))
    assert ask(other, PutOutcome(key, b"set", DAY)) is True
    assert ask(one, Renew(key, "a", 30.0)) is False
    assert ask(one, Complete(key, "a", b"late", DAY)) is False
    there = ask(one, Claim(key, "c", 30.0))
    assert isinstance(there, StoredClaim)
    assert (there.fingerprint, there.value) == ("", b"set")


def test_what_is_forgotten_is_free(one: ClaimStore, key: bytes) -> None:
    assert ask(one, DeleteClaim(key)) is False
    ask(one, PutOutcome(key, b"x", DAY))
    assert ask(one, DeleteClaim(key)) is True
    assert ask(one, GetClaim(key)) is None
    ask(one, Claim(key, "a", 30.0))
    assert ask(one, DeleteClaim(key)) is True
    assert ask(one, Complete(key, "a", b"x", DAY)) is False


def test_requests_of_one_call_see_each_other(one: ClaimStore, key: bytes) -> None:
    answers = one.execute(
        [
            Claim(key, "a", 30.0),
            Release(key, "a"),
            Claim(key, "b", 30.0),
            Complete(key, "b", b"x", DAY),
            GetClaim(key),
            DeleteClaim(key),
            GetClaim(key),
        ]
    )
    assert answers[:4] == [None, True, None, True]
    assert isinstance(answers[4], StoredClaim)
    assert answers[4].value == b"x"
    assert answers[5:] == [True, None]


def test_keys_are_bytes_of_any_kind(place: Place, one: ClaimStore) -> None:
    keys = [f"{place.name}:".encode() + tail for tail in (b"\xff\x00{x}", b"a", b"A", b"a ")]
    for each in keys:
        assert ask(one, Claim(each, "a", 30.0)) is None
    assert all(isinstance(ask(one, GetClaim(each)), StoredClaim) for each in keys)


def test_many_requests_in_one_call(place: Place, one: ClaimStore) -> None:
    keys = [f"{place.name}:{i}".encode() for i in range(1200)]
    assert one.execute([Claim(each, "a", 30.0) for each in keys]) == [None] * len(keys)
    assert one.execute([Complete(each, "a", each, DAY) for each in keys]) == [True] * len(keys)
    found = one.execute([GetClaim(each) for each in keys])
    assert [each.value for each in found if isinstance(each, StoredClaim)] == keys


def test_a_closed_one_does_nothing(place: Place, key: bytes) -> None:
    claims = place.claims()
    claims.execute([GetClaim(key)])
    claims.close()
    with pytest.raises(Unavailable, match="closed"):
        claims.execute([GetClaim(key)])


def test_a_log_without_claims_is_refused() -> None:
    with pytest.raises(ConfigError, match="kafka cannot say who came first") as raised:
        open_claims("kafka://user:geheim@localhost:9092")
    assert "geheim" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("url", ["memory://x?y=1", "sqlite:///", "redis://h?nonsense=1", "what"])
def test_a_url_that_cannot_be_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_claims(url)
    assert "\n" not in str(raised.value)


def test_claims_of_one_memory_share_a_clock() -> None:
    name = f"memory://{uuid4().hex}"
    claims = open_claims(name)
    with pytest.raises(ConfigError, match="on another clock"):
        open_claims(name, clock=Clock())
    claims.close()
    open_claims(name, clock=Clock()).close()


# -- what is over is removed ----------------------------------------------------------------------


def fill(claims: ClaimStore, round: int, count: int = 300) -> None:
    """Outcomes, claims that are never completed, claims that are released, renewed claims."""
    keys = [b"t:%d-%d" % (round, i) for i in range(count)]
    claims.execute([Claim(each, "a", 30.0, "f" * 32) for each in keys])
    third = count // 3
    claims.execute([Complete(each, "a", b"x" * 300, 600.0) for each in keys[:third]])
    claims.execute([Release(each, "a") for each in keys[third : 2 * third]])
    claims.execute([Renew(each, "a", 60.0) for each in keys[2 * third :]])


def test_memory_does_not_grow() -> None:
    clock = Clock()
    claims = open_claims("memory://", clock=clock)
    assert isinstance(claims, MemoryClaimStore)
    most = 0
    for round in range(30):
        fill(claims, round)
        most = max(most, len(claims.table))
        assert len(claims.table._expiry_heap) <= 2 * len(claims.table) + 64 + 300
        clock.advance(300)
    # Outcomes for two rounds, claims whose owner never came back for three.
    assert most <= 3 * 300
    clock.advance(CLAIM_GRACE + DAY)
    claims.execute([GetClaim(b"t:none")])
    assert len(claims.table) == len(claims.table._expiry_heap) == 0
    claims.close()


def test_memory_keeps_nothing_of_what_is_released() -> None:
    claims = open_claims("memory://", clock=Clock())
    assert isinstance(claims, MemoryClaimStore)
    for i in range(1000):
        claims.execute([Claim(b"t:%d" % i, "a", 30.0), Release(b"t:%d" % i, "a")])
    assert len(claims.table) == 0
    assert len(claims.table._expiry_heap) < 100
    claims.close()


def test_memory_forgets_what_was_renewed_and_given_up() -> None:
    clock = Clock()
    claims = open_claims("memory://", clock=clock)
    assert isinstance(claims, MemoryClaimStore)
    claims.execute([Claim(b"t:k", "a", 30.0), Renew(b"t:k", "a", 5000.0)])
    clock.advance(30 + CLAIM_GRACE)
    assert isinstance(ask(claims, GetClaim(b"t:k")), StoredClaim)
    clock.advance(5000)
    assert ask(claims, GetClaim(b"t:k")) is None
    assert len(claims.table) == 0
    claims.close()


def test_a_file_does_not_grow(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "claims.db"
    claims = open_claims(f"sqlite:///{path}?synchronous=normal", clock=clock)
    assert isinstance(claims, SqliteClaimStore)

    def rows() -> int:
        assert claims._database is not None
        with claims._database.read() as connection:
            return int(connection.fetch_rows("SELECT count(*) FROM streams_claims")[0][0])

    counts = []
    for round in range(20):
        fill(claims, round)
        counts.append(rows())
        clock.advance(300)
    assert max(counts) <= 5 * 300
    clock.advance(CLAIM_GRACE + DAY)
    for round in range(20, 26):
        fill(claims, round, 90)
        clock.advance(CLAIM_GRACE + DAY)
    claims.execute([Claim(b"t:last", "a", 30.0)])
    assert rows() < 100
    claims.close()
    assert os.path.getsize(path) < 2 << 20


def test_a_clock_that_is_set_takes_nobodys_claim(tmp_path: Path) -> None:
    """Leases go by the monotonic clock: the time of day jumps here, and nothing comes of it."""

    class Jumping(Clock):
        jump = 0.0

        def time(self) -> float:
            return super().time() + self.jump

    clock = Jumping()
    claims = open_claims(f"sqlite:///{tmp_path / 'claims.db'}", clock=clock)
    assert ask(claims, Claim(b"k", "a", 30.0)) is None
    clock.jump = 10 * DAY
    assert ask(claims, Claim(b"other", "b", 30.0)) is None  # which deletes what is over
    assert isinstance(ask(claims, Claim(b"k", "b", 30.0)), StoredClaim)
    assert ask(claims, Renew(b"k", "a", 30.0)) is True
    clock.advance(31)
    assert ask(claims, Claim(b"k", "b", 30.0)) is None
    claims.close()


def test_a_claim_from_before_a_restart_ends_by_the_time_of_day(tmp_path: Path) -> None:
    """Another clock stands for the machine's after a restart: its monotonic time is no measure."""

    class Restarted(Clock):
        def monotonic(self) -> float:
            return super().monotonic() + 1000

    url = f"sqlite:///{tmp_path / 'claims.db'}"
    before, after = Clock(), Restarted()
    after.advance(20)
    claims = open_claims(url, clock=before)
    ask(claims, Claim(b"k", "a", 30.0))
    claims.close()
    claims = open_claims(url, clock=after)
    assert isinstance(ask(claims, Claim(b"k", "b", 30.0)), StoredClaim)
    after.advance(11)
    assert ask(claims, Claim(b"k", "b", 30.0)) is None
    claims.close()


def test_in_redis_everything_expires(valkey_server: RedisAddress) -> None:
    import redis

    claims = open_claims(valkey_server.url)
    name = uuid4().hex.encode()
    with redis.Redis.from_url(valkey_server.url) as client:
        ask(claims, Claim(name + b":claim", "a", 30.0))
        ask(claims, Claim(name + b":renewed", "a", 30.0))
        ask(claims, Renew(name + b":renewed", "a", 60.0))
        ask(claims, Claim(name + b":put", "a", 30.0))
        ask(claims, PutOutcome(name + b":put", b"x", 100.0))
        ask(claims, Claim(name + b":done", "a", 30.0))
        ask(claims, Complete(name + b":done", "a", b"x", 50.0))

        def left(what: bytes) -> Any:
            return client.pttl(KEY_PREFIX + name + what) / 1000

        assert CLAIM_KEPT + 10 < left(b":claim") <= CLAIM_KEPT + 30
        assert CLAIM_KEPT + 40 < left(b":renewed") <= CLAIM_KEPT + 60
        assert 80 < left(b":put") <= 100
        assert 30 < left(b":done") <= 50
        # As the module says that it looks.
        for what in (b":done", b":put"):
            fields = set(client.hgetall(KEY_PREFIX + name + what))
            assert fields == {b"token", b"fingerprint", b"value"}
    claims.close()


def test_claims_in_a_cluster(lifetime: Lifetime) -> None:
    with RedisCluster(lifetime) as cluster:
        claims = open_claims(cluster.url.replace("redis://", "redis+cluster://"))
        keys = [b"t:%d" % i for i in range(200)]
        assert claims.execute([Claim(each, "a", 30.0) for each in keys]) == [None] * 200
        assert claims.execute([Complete(each, "a", each, DAY) for each in keys]) == [True] * 200
        found = claims.execute([Claim(each, "b", 30.0) for each in keys])
        assert [each.value for each in found if isinstance(each, StoredClaim)] == keys
        claims.close()


def test_what_no_replica_has_does_not_count(lifetime: Lifetime) -> None:
    with Redis(lifetime) as server:
        claims = open_claims(f"{server.url}?wait=1&wait_timeout=0.05")
        answers = claims.execute([Claim(b"t:k", "a", 30.0), GetClaim(b"t:other")])
        assert isinstance(answers[0], OutcomeUnknown)
        assert "0 replicas have it" in str(answers[0])
        assert answers[1] is None
        claims.close()


# -- against a naive model ------------------------------------------------------------------------


class Model:
    """The rules in the simplest form: a dict, and every time looked at when asked."""

    def __init__(self) -> None:
        self.rows: dict[bytes, dict[str, Any]] = {}

    def run(self, request: Request, now: float) -> Any:
        key = request.key
        row = self.rows.get(key)
        if row and now >= row["ends"] + (CLAIM_GRACE if row["value"] is None else 0):
            row = self.rows.pop(key) and None
        live = row if row and now < row["ends"] else None
        mine = row if row and row["token"] == getattr(request, "token", 0) else None
        pending = mine if mine and mine["value"] is None else None
        if isinstance(request, GetClaim):
            return self.seen(live, now)
        if isinstance(request, Claim):
            if live and not pending:
                return self.seen(live, now)
            self.rows[key] = {
                "token": request.token,
                "print": request.fingerprint,
                "value": None,
                "ends": now + request.lease,
            }
            return None
        if isinstance(request, Renew):
            if pending:
                pending["ends"] = now + request.lease
            return bool(mine)
        if isinstance(request, Complete):
            if pending:
                pending |= {"value": request.value, "ends": now + request.ttl}
            return bool(mine)
        if isinstance(request, Release):
            return bool(pending and self.rows.pop(key))
        if isinstance(request, PutOutcome):
            ends = now + request.ttl
            self.rows[key] = {"token": "", "print": "", "value": request.value, "ends": ends}
            return True
        return bool(self.rows.pop(key, None))

    @staticmethod
    def seen(row: Any, now: float) -> Any:
        return row and (row["print"], row["value"], row["ends"] - now)


KEYS = st.sampled_from([b"t:a", b"t:b"])
TOKENS = st.sampled_from(["x", "y", "z"])
TIMES = st.sampled_from([1.0, 8.0, 64.0])
REQUESTS: st.SearchStrategy[Request] = st.one_of(
    st.builds(Claim, KEYS, TOKENS, TIMES, st.sampled_from(["", "p", "q"])),
    st.builds(Claim, KEYS, TOKENS, TIMES, st.just("")),
    st.builds(Renew, KEYS, TOKENS, TIMES),
    st.builds(Complete, KEYS, TOKENS, st.sampled_from([b"", b"v", b"w"]), TIMES),
    st.builds(Release, KEYS, TOKENS),
    st.builds(GetClaim, KEYS),
    st.builds(PutOutcome, KEYS, st.just(b"put"), TIMES),
    st.builds(DeleteClaim, KEYS),
)
STEPS = st.lists(
    st.tuples(st.lists(REQUESTS, min_size=1, max_size=3), st.sampled_from([0, 0, 0, 3, 20, 700])),
    max_size=25,
)


def flat(answer: Any) -> Any:
    return tuple(answer) if isinstance(answer, StoredClaim) else answer


def agree(claims: ClaimStore, steps: Any, clock: Clock) -> None:
    model = Model()
    for requests, pause in steps:
        now = clock.monotonic()
        expected = [model.run(request, now) for request in requests]
        for answer, wanted in zip(claims.execute(requests), expected, strict=True):
            if isinstance(wanted, tuple):
                assert flat(answer)[:2] == wanted[:2]
                assert flat(answer)[2] == pytest.approx(wanted[2])
            else:
                assert answer is wanted
        clock.advance(pause)


@given(STEPS)
@settings(max_examples=300)
def test_memory_agrees_with_the_model(steps: Any) -> None:
    clock = Clock()
    claims = open_claims("memory://", clock=clock)
    agree(claims, steps, clock)
    claims.close()


@given(STEPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_agrees_with_the_model(tmp_path: Path, steps: Any) -> None:
    clock = Clock()
    file = tmp_path / f"{uuid4().hex}.db"
    claims = open_claims(f"sqlite:///{file}?synchronous=normal", clock=clock)
    agree(claims, steps, clock)
    claims.close()
    for each in tmp_path.glob(f"{file.name}*"):
        each.unlink()


@given(STEPS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_server_agrees_with_memory(valkey_server: RedisAddress, steps: Any) -> None:
    """Without time, which is the server's own there."""
    claims, model = open_claims(valkey_server.url), open_claims("memory://", clock=Clock())
    name = uuid4().hex.encode()
    for requests, _ in steps:
        # Leases and lives far longer than the test.
        there: list[Any] = [_longer(each, name + each.key) for each in requests]
        found, wanted = claims.execute(there), model.execute(there)
        for one, two in zip(found, wanted, strict=True):
            if isinstance(two, StoredClaim):
                assert flat(one)[:2] == flat(two)[:2]
            else:
                assert one is two
    claims.close()
    model.close()


def _longer(request: Any, key: bytes) -> Any:
    changes: dict[str, Any] = {"key": key}
    for name in ("lease", "ttl"):
        if hasattr(request, name):
            changes[name] = 1000 * getattr(request, name)
    return request._replace(**changes)
