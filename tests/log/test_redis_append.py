"""Appending on real servers: one entry per message ID, and never a false success."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from streams.errors import (
    Fatal,
    Fenced,
    LogError,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    TopicMismatch,
    Unavailable,
)
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Appended, AppendOutcome
from streams.log.redis import RedisLog, producer
from streams.log.redis.batch import identity_of_record
from streams.log.redis.client import Command, Pipeline
from streams.log.redis.errors import translate
from streams.log.redis.events import CALL_APPENDS
from streams.message import ID, REDRIVE, SOURCE, Position, Record
from tests.conformance.histories import event
from tests.log.redis_support import Member, Proxy, append, name, open_redis, outcomes, record, until
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis, redis_program, valkey_program


@pytest.fixture(scope="module", params=[redis_program, valkey_program], ids=["redis", "valkey"])
def server(request: pytest.FixtureRequest, lifetime: Lifetime) -> Iterator[Redis]:
    options = ("--enable-protected-configs", "local", "--repl-diskless-sync-delay", "0")
    with Redis(lifetime, request.param(), options) as server:
        yield server


@pytest.fixture
def client(server: Redis) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.fixture
def log(server: Redis) -> Iterator[RedisLog]:
    log = open_redis(server.url)
    yield log
    log.close()


@pytest.fixture
def topic(log: RedisLog) -> str:
    return log.create_topic(name("topic"), 1).name


@pytest.fixture
def proxy(server: Redis) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def through(proxy: Proxy, query: str = "") -> RedisLog:
    return open_redis(f"redis://127.0.0.1:{proxy.port}?{query}")


# -- one entry per message ID ----------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [1, 2, 4])
def test_a_lost_answer_leaves_one_entry(
    topic: str, proxy: Proxy, client: redis.Redis, cuts: int
) -> None:
    log = through(proxy)
    records = [record(b"%d" % n, b"k") for n in range(10)]
    (first,) = append(log, topic, records[:1])
    proxy.cut_reply(cuts, b"EVALSHA")
    positions = append(log, topic, records)
    assert proxy.cut == cuts
    assert positions[0] == first
    assert positions == sorted(set(positions))
    assert client.xlen(topic) == 10
    assert append(log, topic, records) == positions
    assert client.xlen(topic) == 10
    log.close()


def test_an_outcome_that_stays_unknown_is_said_and_asking_again_is_harmless(
    topic: str, proxy: Proxy, client: redis.Redis
) -> None:
    log = through(proxy, "timeout=0.2")
    records = [record(b"%d" % n) for n in range(3)]
    append(log, topic, [b"first"])
    proxy.cut_reply(1_000, b"EVALSHA")
    assert {type(each) for each in outcomes(log, topic, records)} == {OutcomeUnknown}
    proxy.cut_reply(0, b"")
    append(log, topic, records)
    assert client.xlen(topic) == 4
    log.close()


def test_a_write_whose_answer_is_lost_is_unknown_where_it_cannot_be_sent_again(
    topic: str, proxy: Proxy, client: redis.Redis
) -> None:
    """The server writes, and cannot be reached any more before its answer has come."""
    log = through(proxy, "timeout=0.01")
    events = log.create_event_topic(name("events"), 1).name

    def write_message() -> Position | LogError:
        return outcomes(log, topic, [record(b"v")])[0]

    def write_event() -> AppendOutcome | LogError:
        told: list[AppendOutcome | LogError] = []
        made = make_append(name("key").encode(), NO_HISTORY, [event()])
        log.append_events(events, [made], told.extend)
        return told[0]

    write: Callable[[], object]
    for write, stream in ((write_message, topic), (write_event, events)):
        assert not isinstance(write(), LogError)  # and a connection is idle from now on
        proxy.cut_reply(1, b"EVALSHA")
        proxy.refusing = True
        assert isinstance(found := write(), OutcomeUnknown), found
        assert client.xlen(stream) == 2
        proxy.refusing = False
        log._client.pool._backoffs.clear()
    log.close()


def test_an_append_that_is_sent_once_has_its_error_at_once(
    proxy: Proxy, client: redis.Redis
) -> None:
    """Nothing waits for ``timeout``, and it is told whether it was sent."""
    log = through(proxy, "timeout=5")
    events = log.create_event_topic(name("events"), 1).name
    # More than one script call takes: the second one is not sent any more.
    appends = [
        make_append(b"%d" % number, NO_HISTORY, [event()]) for number in range(CALL_APPENDS + 1)
    ]

    def kinds() -> list[type[AppendOutcome]]:
        told: list[AppendOutcome] = []
        log.append_events_once(events, appends, told.extend)
        return list(map(type, told))

    proxy.cut_reply(1_000, b"EVALSHA")
    assert kinds() == [OutcomeUnknown] * CALL_APPENDS + [Unavailable]
    assert proxy.cut == 2  # the connection was idle and may have been dead, so a new one was tried
    proxy.cut_reply(0, b"")
    proxy.refusing = True
    proxy.cut_all()
    assert set(kinds()) == {Unavailable}
    proxy.refusing = False
    log._client.pool._backoffs.clear()
    assert set(kinds()) == {Appended}
    assert client.xlen(events) == len(appends)
    log.close()


def test_without_memory_of_ids_nothing_is_sent_twice(
    topic: str, proxy: Proxy, client: redis.Redis
) -> None:
    log = through(proxy, "once=0")
    assert not log.capabilities.append_once
    append(log, topic, [b"first"])
    proxy.cut_reply(1, b"XADD")
    assert {type(each) for each in outcomes(log, topic, [record(b"second")])} == {OutcomeUnknown}
    assert client.xlen(topic) == 2
    log.close()


@pytest.mark.parametrize("once", [120, 0])
def test_what_an_owner_appends_is_written_once_and_under_its_lease(
    proxy: Proxy, client: redis.Redis, once: int
) -> None:
    """Answers are lost, the server forgets its scripts, and the lease goes to somebody else."""
    log = through(proxy, f"once={once}&lease=600")
    source, target = (log.create_topic(name("topic"), 1).name for _ in range(2))
    member = Member(log, "group", source)
    member.owns(1)
    owner = member.owned[source, 0]
    append_as_owners = owner.append_as_owners
    assert append_as_owners is not None

    def written(number: int) -> Position | LogError:
        told: list[Position | LogError] = []
        append_as_owners(target, [record(b"%d" % number, id=f"m{number}")], [owner], told.extend)
        return told[0]

    client.script_flush()
    first = written(1)
    assert isinstance(first, Position)
    proxy.cut_reply(2, b"EVALSHA")
    assert isinstance(written(2), Position)
    assert (proxy.cut, client.xlen(target)) == (2, 2)
    assert written(1) == first
    send_all = log._client.send_all

    def lose_the_answer_and_the_lease(commands: Sequence[Command]) -> Pipeline:
        if commands[0].is_append and client.xlen(target) == 3:
            client.hset(f"{{{source}}}:group:group", "epoch", "99")
        return send_all(commands)

    log._client.send_all = lose_the_answer_and_the_lease  # type: ignore[method-assign]
    proxy.cut_reply(1, b"EVALSHA")
    late = written(3)
    assert isinstance(late, OutcomeUnknown)
    assert "has assigned it to another member; sent before" in str(late)
    assert isinstance(written(4), Fenced)
    assert client.xlen(target) == 3
    member.subscription.close()
    log.close()


RECORDS = 5


@pytest.mark.parametrize(
    ("refused", "written"),
    [
        ((0, 2), (1, 3, 4)),
        ((3, 4), range(RECORDS)),
        (range(RECORDS), range(RECORDS)),
    ],
    ids=["some", "the last", "all"],
)
def test_without_memory_of_ids_only_what_nothing_was_written_behind_is_sent_again(
    server: Redis,
    topic: str,
    client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    refused: Sequence[int],
    written: Sequence[int],
) -> None:
    """Each record is an XADD, of which the server refuses some for a moment (somebody's script
    runs too long); here they are not sent, and answered as it does."""
    log = open_redis(f"{server.url}?once=0")
    monkeypatch.setattr(producer, "CHUNK_RECORDS", RECORDS)
    refusals = list(refused)
    send_all = log._client.send_all

    def send(commands: Sequence[Command]) -> Pipeline:
        chosen: list[int] = []
        if commands[0].args[0] == "XADD":
            chosen, refusals[:] = refusals[:], []
        pipeline = send_all([each for at, each in enumerate(commands) if at not in chosen])
        read_replies = pipeline.read_replies

        def with_refusals() -> list[Any]:
            replies = read_replies()
            for at in chosen:
                error = redis.ResponseError("BUSY Redis is busy running a script.")
                replies.insert(at, translate(error, topic))
            return replies

        monkeypatch.setattr(pipeline, "read_replies", with_refusals)
        return pipeline

    monkeypatch.setattr(log._client, "send_all", send)
    found = outcomes(log, topic, [record(b"%d" % number, b"k") for number in range(RECORDS + 1)])
    entries: Any = client.xrange(topic)
    values = [fields[b"value"] for _, fields in entries]
    if len(written) < RECORDS:
        assert [type(each) for each in found] == [
            Position if number in written else Unavailable for number in range(RECORDS + 1)
        ]
        assert "not sent" in str(found[-1])  # it would be after those that failed
        assert values == [b"%d" % number for number in written]
    else:
        assert {type(each) for each in found} == {Position}
        assert values == [b"%d" % number for number in range(RECORDS + 1)]
    log.close()


def test_a_twin_gets_the_place_of_the_first(log: RedisLog, topic: str, client: redis.Redis) -> None:
    records = [record(b"%d" % n, id=f"m{n % 3}") for n in range(9)]
    positions = append(log, topic, records)
    assert positions == positions[:3] * 3
    assert client.xlen(topic) == 3


def test_source_and_redrive_count_are_part_of_the_identity(
    log: RedisLog, topic: str, client: redis.Redis
) -> None:
    variants: list[list[tuple[str, bytes | None]]] = [
        [],
        [(SOURCE, b"here")],
        [(SOURCE, b"there"), ("h", b"x")],
        [(REDRIVE, b"1")],
        [(REDRIVE, b"0")],
    ]
    records = [Record(b"v", None, "same", headers) for headers in variants]
    positions = append(log, topic, records * 2)
    assert positions[5:] == positions[:5]
    # A redrive count of 0 is as good as none.
    assert positions[4] == positions[0]
    assert client.xlen(topic) == len({identity_of_record(each) for each in records}) == 4
    # What is compared is not written.
    batch = log.reader(topic, 0, *log.watermarks(topic, 0)).read(10)
    assert batch is not None
    found = [list(batch.headers(index)) for index in range(len(batch))]
    assert found == [[(ID, b"same"), *headers] for headers in variants[:4]]


def test_ids_are_forgotten_in_the_end(server: Redis, client: redis.Redis) -> None:
    log = open_redis(f"{server.url}?once=0.5&timeout=0.1")
    topic = log.create_topic(name("topic"), 1).name
    (first,) = append(log, topic, [record(b"v", id="m")])
    seen: set[bytes] = set()

    def forgotten() -> bool:
        (again,) = append(log, topic, [record(b"v", id="m")])
        kept: Any = client.keys(f"{{{topic}}}:ids:*")
        assert len(kept) <= 2
        assert -1 not in map(client.pttl, kept), "one that is never thrown away"
        seen.update(kept)
        return again != first

    until(forgotten, "the ID is forgotten")
    until(lambda: forgotten() and len(seen) == 3, "each of them had its turn")
    log.close()


def test_a_stream_that_was_deleted_takes_its_ids_along(
    log: RedisLog, topic: str, client: redis.Redis
) -> None:
    append(log, topic, [record(b"v", id="m")])
    client.delete(topic)
    append(log, topic, [record(b"v", id="m")])
    assert client.xlen(topic) == 1
    log.delete_topic(topic)
    log.create_topic(topic, 1)
    append(log, topic, [record(b"v", id="m")])
    assert client.xlen(topic) == 1


# -- never a false success -------------------------------------------------------------------------


def test_a_full_memory_is_back_pressure(log: RedisLog, topic: str, client: redis.Redis) -> None:
    append(log, topic, [record(b"v", id="before")])
    client.config_set("maxmemory", 1_000_000)
    try:
        before = client.xlen(topic)
        found = outcomes(log, topic, [record(b"x" * 1_000) for _ in range(2_500)])
        assert all(isinstance(each, Unavailable) for each in found)
        assert "maxmemory" in str(found[0])
        assert client.xlen(topic) == before
        # What was there already is acknowledged all the same.
        assert isinstance(outcomes(log, topic, [record(b"v", id="before")])[0], Position)
    finally:
        client.config_set("maxmemory", 0)
    append(log, topic, [b"again"])


def test_a_disk_that_fails_is_back_pressure(
    log: RedisLog, topic: str, client: redis.Redis, tmp_path: Path
) -> None:
    folder = str(client.config_get("dir")["dir"])
    gone = tmp_path / "gone"
    gone.mkdir()
    client.config_set("dir", str(gone))
    gone.rmdir()
    client.config_set("save", "3600 1")
    try:
        client.bgsave()
        until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "saving fails")
        (found,) = outcomes(log, topic, [record(b"v")])
        assert isinstance(found, Unavailable)
        assert "disk" in str(found)
        assert not client.exists(topic)
    finally:
        client.config_set("dir", folder)
        client.config_set("save", "")
    append(log, topic, [b"again"])


def test_too_few_replicas_are_back_pressure(log: RedisLog, topic: str, client: redis.Redis) -> None:
    client.config_set("min-replicas-to-write", 1)
    try:
        (found,) = outcomes(log, topic, [record(b"v")])
        assert isinstance(found, Unavailable)
        assert not client.exists(topic)
    finally:
        client.config_set("min-replicas-to-write", 0)
    append(log, topic, [b"again"])


def test_scripts_that_the_server_forgot_are_sent_again(
    log: RedisLog, topic: str, client: redis.Redis
) -> None:
    append(log, topic, [b"1"])
    client.script_flush()
    append(log, topic, [b"%d" % n for n in range(3_000)])
    assert client.xlen(topic) == 3_001


def test_a_server_that_is_gone_is_unavailable_and_a_closed_log_too(
    lifetime: Lifetime, server: Redis
) -> None:
    with Redis(lifetime, server.program) as gone:
        log = open_redis(f"{gone.url}?timeout=0.2")
        topic = log.create_topic(name("topic"), 1).name
    with pytest.raises(Unavailable):
        log.describe_topics()
    assert type(outcomes(log, topic, [record(b"v")])[0]) is Unavailable
    log.close()
    assert type(outcomes(log, topic, [record(b"v")])[0]) is Unavailable


def test_waiting_for_replicas(
    lifetime: Lifetime, server: Redis, topic: str, client: redis.Redis
) -> None:
    log = open_redis(f"{server.url}?wait=1&wait_timeout=0.1&timeout=0.3")
    (found,) = outcomes(log, topic, [record(b"v", id="m")])
    assert isinstance(found, OutcomeUnknown)
    assert "replicas" in str(found)
    log.close()
    log = open_redis(f"{server.url}?wait=1&wait_timeout=60")
    options = ("--replicaof", f"127.0.0.1 {server.port}")
    with Redis(lifetime, server.program, options) as replica, replica.client() as follower:
        until(lambda: follower.info("replication")["master_link_status"] == "up", "it follows")
        append(log, topic, [record(b"v", id="m")])
        assert follower.xlen(topic) == client.xlen(topic) == 1
    log.close()


# -- shapes and sizes ------------------------------------------------------------------------------


def test_order_and_place_over_many_chunks(log: RedisLog, client: redis.Redis) -> None:
    topic = log.create_topic(name("topic"), 3).name
    shapes: list[list[tuple[str, bytes | None]]] = [[], [("a", b"1")], [("b", None)], []]
    records = [
        record(
            b"%d" % n if n % 7 else None,
            b"k%d" % (n % 50) if n % 5 else None,
            headers=shapes[n % 4] if n > 3_000 else [],
        )
        for n in range(12_000)
    ]
    positions = append(log, topic, records)
    places = [each.partition for each in positions]
    assert set(places) == {0, 1, 2}
    keys: dict[bytes, int] = {}
    for each, place in zip(records, places, strict=True):
        if each.key is not None:
            assert keys.setdefault(each.key, place) == place
    for partition in range(3):
        own = [p for p in positions if p.partition == partition]
        assert own == sorted(set(own))
        ids = [r.id for r, p in zip(records, places, strict=True) if p == partition]
        reader = log.reader(topic, partition, *log.watermarks(topic, partition))
        read: list[str | None] = []
        while (batch := reader.read(1_000)) is not None:
            read += batch.ids
        assert read == ids


def test_a_record_that_cannot_be_fails_alone(log: RedisLog, topic: str) -> None:
    many = [(f"h{n}", b"") for n in range(4_000)]
    found = outcomes(
        log,
        topic,
        [record(b"1"), record(b"2", headers=many), Record(b"3", None, ""), record(b"4")],
    )
    assert [type(each) for each in found] == [Position, TooLarge, LogError, Position]
    found = outcomes(log, topic, [record(b"5", partition=1), record(b"6", partition=0)])
    assert [type(each) for each in found] == [LogError, Position]


def test_a_large_record_goes_alone(log: RedisLog, topic: str, client: redis.Redis) -> None:
    append(log, topic, [b"s", b"x" * 9_000_000, b"s", b"y" * 5_000_000, b"s"])
    assert client.xlen(topic) == 5


def test_what_is_no_stream_is_no_topic(log: RedisLog, client: redis.Redis) -> None:
    topic = name("topic")
    client.set(topic, "text")
    with pytest.raises(TopicMismatch, match="string"):
        log.describe_topic(topic)
    with pytest.raises(TopicMismatch):
        log.create_topic(topic, 1)
    (found,) = outcomes(log, topic, [record(b"v")])
    assert isinstance(found, TopicMismatch)
    (found,) = outcomes(log, name("topic"), [record(b"v")])
    assert isinstance(found, NotFound)


def test_a_login_that_is_refused_is_fatal_and_shows_no_password(server: Redis) -> None:
    log = open_redis(f"redis://someone:pa55word@{server.address}")
    with pytest.raises(Fatal, match="check user and password") as found:
        log.describe_topics()
    assert "pa55word" not in str(found.value)
    log.close()
