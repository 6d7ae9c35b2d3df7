"""Documents on Redis: what servers lose, do not answer or have no room for, and what anybody may
have put into the keys of a partition."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import redis

from streams.errors import (
    Fenced,
    LogError,
    NotFound,
    OutcomeUnknown,
    TooLarge,
    TopicMismatch,
    Unavailable,
)
from streams.log.documents import Checkpoint, DocumentChange, DocumentStore, StoredDocument
from streams.log.redis import RedisLog, documents
from streams.log.redis.errors import WritesRefused
from streams.log.redis.keys import COLLECTIONS_KEY, DocumentKeys
from tests.log.redis_support import Proxy, has_everything, name, open_redis, until
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis

A, B = b"a", b"b"
PARTS = ("checkpoint", "values", "failures", "keys", "stopped")


@pytest.fixture
def client(server: Redis) -> Iterator[redis.Redis]:
    """What one test damages is no other's."""
    with server.client() as client:
        client.flushall()
        yield client


class Made(NamedTuple):
    """A collection of one partition with two documents, one of them stopped."""

    store: DocumentStore
    name: str
    keys: DocumentKeys


def made(log: RedisLog) -> Made:
    collection = name("documents")
    log.documents.create(collection, 1)
    log.documents.claim(collection, 0).write([change(A), change(B, b"1", b"why")], Checkpoint(1))
    return Made(log.documents, collection, DocumentKeys(collection, 0))


def change(key: bytes, value: bytes = b"1", failure: bytes = b"") -> DocumentChange:
    return DocumentChange(key, StoredDocument(value, failure))


def dumped(client: redis.Redis, keys: DocumentKeys) -> dict[bytes, Any]:
    """All that a partition has, as a replica has it."""
    return {key: client.dump(key) for key in keys.all}


def put_back(client: redis.Redis, state: dict[bytes, Any]) -> None:
    for key, data in state.items():
        client.delete(key)
        if data is not None:
            client.restore(key, 0, data)


# -- what the server loses -------------------------------------------------------------------------


def test_a_writer_is_fenced_when_everything_was_flushed(log: RedisLog, client: redis.Redis) -> None:
    store, collection, _ = made(log)
    writer = store.claim(collection, 0)
    client.flushall()
    with pytest.raises(Fenced, match="not in Redis any more"):
        writer.write([change(A, b"2")], Checkpoint(2))
    assert client.dbsize() == 0
    for ask in (
        lambda: store.read(collection, 0, [A]),
        lambda: store.claim(collection, 0),
        lambda: store.scan(collection, 0, b"", None, 1),
    ):
        with pytest.raises(NotFound, match=collection):
            ask()


def test_a_writer_from_before_a_flush_is_fenced_from_what_was_made_since(
    log: RedisLog, client: redis.Redis
) -> None:
    store, collection, _ = made(log)
    writer = store.claim(collection, 0)
    writer.write([change(A, b"2")], Checkpoint(2))
    client.flushall()
    store.create(collection, 1)
    with pytest.raises(Fenced):
        writer.write([change(A, b"3")], Checkpoint(3))
    writer = store.claim(collection, 0)
    assert writer.checkpoint is None
    writer.write([change(A, b"new")], Checkpoint(1))
    assert store.read(collection, 0, [A]) == ([StoredDocument(b"new")], Checkpoint(1))


def test_a_writer_whose_last_write_was_lost_does_not_go_on(
    log: RedisLog, client: redis.Redis
) -> None:
    """A replica that lacks it is promoted: the next write would leave a hole."""
    store, collection, keys = made(log)
    writer = store.claim(collection, 0)
    writer.write([change(A, b"2")], Checkpoint(2))
    state = dumped(client, keys)
    writer.write([change(A, b"3")], Checkpoint(3))
    put_back(client, state)
    with pytest.raises(Fenced, match="does not have what was written to it last"):
        writer.write([change(B, b"4")], Checkpoint(4))
    assert dumped(client, keys) == state
    again = store.claim(collection, 0)
    assert again.checkpoint == Checkpoint(2)
    assert list(again.read([A])) == [StoredDocument(b"2")]


def test_a_claim_that_was_lost_fences_its_writer(log: RedisLog, client: redis.Redis) -> None:
    store, collection, keys = made(log)
    first = store.claim(collection, 0)
    first.write([change(A, b"2")], Checkpoint(2))
    state = dumped(client, keys)
    second = store.claim(collection, 0)
    put_back(client, state)
    with pytest.raises(Fenced, match="another process"):
        second.write([change(A, b"lost")], Checkpoint(3))
    first.write([change(A, b"3")], Checkpoint(3))
    assert store.read(collection, 0, [A]) == ([StoredDocument(b"3")], Checkpoint(3))


def test_a_partition_that_one_node_has_lost_is_created_again(
    log: RedisLog, client: redis.Redis
) -> None:
    store, collection, keys = made(log)
    client.delete(*keys.all)
    with pytest.raises(NotFound, match="create the collection again") as caught:
        store.read(collection, 0, [A])
    assert keys.checkpoint.decode() in str(caught.value)
    with pytest.raises(NotFound):
        store.clear(collection, 0)
    store.create(collection, 1)
    assert store.read(collection, 0, [A]) == ([None], None)


def test_scripts_that_the_server_forgot_are_sent_again(log: RedisLog, client: redis.Redis) -> None:
    store, collection, _ = made(log)
    writer = store.claim(collection, 0)
    for number in range(2, 4):
        client.script_flush()
        writer.write([change(A, b"%d" % number)], Checkpoint(number))
        client.script_flush()
        assert store.read(collection, 0, [A]).checkpoint == Checkpoint(number)


# -- answers that do not come ----------------------------------------------------------------------


def test_a_lost_answer_is_unknown_and_ends_the_writer(server: Redis, log: RedisLog) -> None:
    _, collection, _ = made(log)
    with Proxy(server.port) as proxy:
        far = open_redis(f"redis://127.0.0.1:{proxy.port}")
        writer = far.documents.claim(collection, 0)
        # Over a connection that was idle it is sent once more, as that may have been dead.
        proxy.cut_reply(2, b"NEVER-ANSWERED")
        with pytest.raises(OutcomeUnknown):
            writer.write([change(A, b"NEVER-ANSWERED")], Checkpoint(2))
        assert proxy.cut
        with pytest.raises(Fenced, match="claim it again"):
            writer.write([change(A, b"another")], Checkpoint(3))
        far.close()
    again = log.documents.claim(collection, 0)
    assert again.checkpoint == Checkpoint(2)
    assert list(again.read([A])) == [StoredDocument(b"NEVER-ANSWERED")]


def test_a_write_whose_connection_was_dead_is_done_once(server: Redis, log: RedisLog) -> None:
    _, collection, keys = made(log)
    with Proxy(server.port) as proxy:
        far = open_redis(f"redis://127.0.0.1:{proxy.port}")
        writer = far.documents.claim(collection, 0)
        writer.write([change(A, b"2")], Checkpoint(2))
        proxy.cut_reply(1, b"ANSWERED-LATER")
        writer.write([change(A, b"ANSWERED-LATER")], Checkpoint(3))
        assert proxy.cut == 1
        writer.write([change(B, b"4")], Checkpoint(4))
        far.close()
    found = log.documents.read(collection, 0, [A, B])
    assert found == ([StoredDocument(b"ANSWERED-LATER"), StoredDocument(b"4")], Checkpoint(4))
    with server.client() as client:
        assert client.hget(keys.checkpoint, "writes") == b"3"


# -- servers that refuse ---------------------------------------------------------------------------


def refused(server: Redis, log: RedisLog, error: type[LogError], option: str, value: int) -> None:
    """While the server is set so, nothing is written; afterwards it goes on."""
    store, collection, keys = made(log)
    writer = store.claim(collection, 0)
    with server.client() as client:
        client.hset(b"room", "x", b"x" * 2_000_000)
        before = dumped(client, keys)
        kept = client.config_get(option)[option] or "0"
        client.config_set(option, value)
        try:
            with pytest.raises(error):
                writer.write([change(b"%d" % number) for number in range(2_000)], Checkpoint(2))
            assert store.read(collection, 0, [A]).checkpoint == Checkpoint(1)
            assert dumped(client, keys) == before
            if option == "maxmemory":  # what frees memory goes on
                store.clear(collection, 0)
                assert store.checkpoint(collection, 0) is None
        finally:
            client.config_set(option, kept)
        store.claim(collection, 0).write([change(A, b"2")], Checkpoint(2))
        assert store.read(collection, 0, [A]) == ([StoredDocument(b"2")], Checkpoint(2))


def test_a_full_memory_is_back_pressure(server: Redis, log: RedisLog, client: redis.Redis) -> None:
    refused(server, log, WritesRefused, "maxmemory", 1_000_000)


def test_too_few_replicas_are_back_pressure(
    server: Redis, log: RedisLog, client: redis.Redis
) -> None:
    refused(server, log, WritesRefused, "min-replicas-to-write", 1)


def test_waiting_for_replicas(lifetime: Lifetime, server: Redis, log: RedisLog) -> None:
    _, collection, keys = made(log)
    far = open_redis(f"{server.url}?wait=1&wait_timeout=0.1")
    with pytest.raises(OutcomeUnknown, match="0 replicas have it"):
        far.documents.claim(collection, 0).write([change(A, b"2")], Checkpoint(2))
    far.close()
    far = open_redis(f"{server.url}?wait=1&wait_timeout=60")
    options = ("--replicaof", f"127.0.0.1 {server.port}")
    with (
        Redis(lifetime, server.program, options) as replica,
        replica.client() as follower,
        server.client() as client,
    ):
        until(lambda: follower.info("replication")["master_link_status"] == "up", "it follows")
        writer = far.documents.claim(collection, 0)
        for number in range(3, 13):
            client.script_flush()
            writer.write([change(A, b"%d" % number)], Checkpoint(number))
            assert follower.hget(keys.values, A) == b"%d" % number
            assert follower.hget(keys.checkpoint, "position") == b"%d" % number
        # No replica is counted that has what the connection wrote before, but not this.
        near = open_redis(f"{server.url}?wait=1&wait_timeout=0.1")
        other = made(log).name
        waiting = near.documents.claim(other, 0)
        writer.write([], Checkpoint(13))
        client.script_flush()

        until(lambda: has_everything(client), "the replica has said that it has everything")
        replica.pause()
        with pytest.raises(OutcomeUnknown, match="0 replicas have it"):
            waiting.write([change(A, b"2")], Checkpoint(2))
        replica.resume()
        near.close()
    far.close()


def test_a_replica_that_was_the_primary_is_unavailable(lifetime: Lifetime, server: Redis) -> None:
    with Redis(lifetime, server.program) as demoted, demoted.client() as client:
        log = open_redis(f"{demoted.url}?timeout=0.2")
        store, collection, _ = made(log)
        writer = store.claim(collection, 0)
        client.replicaof("127.0.0.1", demoted.port)
        for ask in (
            lambda: writer.write([change(A, b"2")], Checkpoint(2)),
            lambda: store.claim(collection, 0),
        ):
            with pytest.raises(Unavailable):
                ask()
        log.close()


def test_a_server_that_is_gone_is_unavailable(lifetime: Lifetime, server: Redis) -> None:
    with Redis(lifetime, server.program) as gone:
        log = open_redis(f"{gone.url}?timeout=0.2")
        store, collection, _ = made(log)
        writer = store.claim(collection, 0)
    asks: list[Callable[[], Any]] = [
        lambda: store.read(collection, 0, [A]),
        lambda: store.claim(collection, 0),
        lambda: store.create(collection, 1),
        store.list,
        lambda: writer.read([A]),
    ]
    for ask in asks:
        with pytest.raises(Unavailable):
            ask()
    with pytest.raises((Unavailable, OutcomeUnknown)):
        writer.write([], Checkpoint(2))
    log.close()


def test_a_write_that_is_too_large_is_refused_before_it_is_sent(
    log: RedisLog, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, collection, keys = made(log)
    before = dumped(client, keys)
    monkeypatch.setattr(documents, "MAX_BYTES", 5_000)
    with pytest.raises(TooLarge, match="change fewer documents at once"):
        store.claim(collection, 0).write([change(A, b"x" * 5_000)], Checkpoint(2))
    assert dumped(client, keys)[keys.values] == before[keys.values]
    store.claim(collection, 0).write([change(A, b"x" * 4_000)], Checkpoint(2))


# -- what anybody may have written -----------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_another_kind_of_key_is_named_and_nothing_is_half_written(
    log: RedisLog, client: redis.Redis, part: str
) -> None:
    store, collection, keys = made(log)
    writer = store.claim(collection, 0)
    damaged: bytes = getattr(keys, part)
    client.delete(damaged)
    client.set(damaged, b"\xff no such type")
    before = dumped(client, keys)
    asks: list[Callable[[], Any]] = [
        lambda: writer.write([change(A, b"2"), change(b"c", b"3", b"why")], Checkpoint(2)),
        lambda: store.read(collection, 0, [A]),
        lambda: store.claim(collection, 0),
        lambda: store.scan(collection, 0, b"", None, 10),
        lambda: store.stopped(collection, 0, None, 10),
        lambda: store.totals(collection),
    ]
    failures: list[str] = []
    for number, ask in enumerate(asks):
        try:
            ask()
        except TopicMismatch as error:
            failures.append(str(error))
        if not number:
            assert failures, "it was written"
            assert dumped(client, keys) == before
    for each in failures:
        assert damaged.decode() in each
        assert "delete or rename it" in each
    store.delete(collection)
    assert not client.exists(*keys.all)
    store.create(collection, 1)
    assert store.read(collection, 0, [A]) == ([None], None)


@pytest.mark.parametrize("part", PARTS)
def test_what_is_cleared_is_whole_again(log: RedisLog, client: redis.Redis, part: str) -> None:
    store, collection, keys = made(log)
    client.delete(getattr(keys, part))
    client.set(getattr(keys, part), b"x")
    store.clear(collection, 0)
    assert store.read(collection, 0, [A]) == ([None], None)
    store.claim(collection, 0).write([change(A, b"2", b"why")], Checkpoint(2))
    assert [each.key for each in store.stopped(collection, 0, None, 10)] == [A]


@pytest.mark.parametrize(
    "position",
    [b"", b"abc", b"\xff\xfe", b"-5", b"1e300", b"nan", b" 7", b"9" * 39, b"9" * 5_000],
)
def test_a_position_that_is_none_is_said(
    log: RedisLog, client: redis.Redis, position: bytes
) -> None:
    store, collection, keys = made(log)
    client.hset(keys.checkpoint, "position", position)
    for ask in (
        lambda: store.read(collection, 0, [A]),
        lambda: store.checkpoint(collection, 0),
        lambda: store.claim(collection, 0),
    ):
        with pytest.raises(TopicMismatch, match="'position'") as caught:
            ask()
        assert keys.checkpoint.decode() in str(caught.value)
        assert len(str(caught.value)) < 600
    assert [each.key for each in store.scan(collection, 0, b"", None, 9)] == [A, B]
    store.clear(collection, 0)
    assert store.claim(collection, 0).checkpoint is None


@pytest.mark.parametrize("value", [b"", b"abc", b"\xff", b"-5", b"9" * 400, b"nan", None])
@pytest.mark.parametrize("field", ["writer", "writes", "data"])
def test_fields_of_a_checkpoint_that_are_damaged(
    log: RedisLog, client: redis.Redis, field: str, value: bytes | None
) -> None:
    """Nobody writes any more who claimed it before; whoever claims it goes on."""
    store, collection, keys = made(log)
    writer = store.claim(collection, 0)
    if value is None:
        client.hdel(keys.checkpoint, field)
    else:
        client.hset(keys.checkpoint, field, value)
    before = dumped(client, keys)
    if field != "data":
        with pytest.raises(Fenced):
            writer.write([change(A, b"2")], Checkpoint(2))
        assert dumped(client, keys) == before
    if (field, value) == ("writer", None):
        with pytest.raises(NotFound, match="without a writer"):
            store.claim(collection, 0)
        store.create(collection, 1)
    writer = store.claim(collection, 0)
    expected = (value or b"") if field == "data" else b""
    assert writer.checkpoint == Checkpoint(1, expected)
    writer.write([change(A, b"2")], Checkpoint(2))
    assert store.read(collection, 0, [A]) == ([StoredDocument(b"2")], Checkpoint(2))


def test_keys_without_documents_are_left_out(log: RedisLog, client: redis.Redis) -> None:
    store, collection, keys = made(log)
    client.zadd(keys.keys, {b"%04d" % number: 0 for number in range(2_500)})
    client.zadd(keys.stopped, {b"\xff": 0})
    assert [each.key for each in store.scan(collection, 0, b"", None, 10)] == [A, B]
    assert [each.key for each in store.stopped(collection, 0, None, 10)] == [B]


@pytest.mark.parametrize("value", [b"", b"many", b"\xff", b"-5", b"0", b"9" * 400, b"2.5"])
def test_a_collection_whose_partitions_are_no_number(
    log: RedisLog, client: redis.Redis, caplog: pytest.LogCaptureFixture, value: bytes
) -> None:
    store, collection, _ = made(log)
    other = made(log).name
    client.hset(COLLECTIONS_KEY, collection, value)
    client.hset(COLLECTIONS_KEY, b"\xff no name", b"3")
    with caplog.at_level(logging.WARNING, "streams"):
        assert [each.name for each in store.list()] == [other]
    assert collection in caplog.text
    for ask in (
        lambda: store.find(collection),
        lambda: store.create(collection, 1),
        lambda: store.totals(collection),
        lambda: store.delete(collection),
    ):
        with pytest.raises(TopicMismatch, match="streams:documents"):
            ask()
    client.hset(COLLECTIONS_KEY, collection, 1)
    assert store.read(collection, 0, [A]).checkpoint == Checkpoint(1)
    store.delete(collection)


def test_a_list_of_collections_that_is_none(log: RedisLog, client: redis.Redis) -> None:
    store, collection, _ = made(log)
    client.delete(COLLECTIONS_KEY)
    client.set(COLLECTIONS_KEY, "x")
    for ask in (store.list, lambda: store.find(collection), lambda: store.create(collection, 1)):
        with pytest.raises(TopicMismatch, match="streams:documents"):
            ask()
    # What is in it goes on.
    store.claim(collection, 0).write([change(A, b"2")], Checkpoint(2))
    assert store.read(collection, 0, [A]).checkpoint == Checkpoint(2)


@pytest.mark.parametrize("odd", ["a}b", "{", "a:0", "", "\udcff", "ключ", "x" * 1_000])
def test_names_that_no_collection_has_are_not_found(
    log: RedisLog, client: redis.Redis, odd: str
) -> None:
    for ask in (
        lambda: log.documents.find(odd),
        lambda: log.documents.read(odd, 0, [A]),
        lambda: log.documents.delete(odd),
    ):
        with pytest.raises(NotFound):
            ask()
