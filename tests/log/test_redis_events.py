"""Histories whose keys in Redis somebody has changed: what is appended, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from streams.errors import (
    LogError,
    NotFound,
    OutcomeUnknown,
    PartitionCountMismatch,
    TopicMismatch,
    Unavailable,
)
from streams.log.event_headers import make_append
from streams.log.events import (
    EMPTY,
    NO_HISTORY,
    Appended,
    Base,
    EventAppend,
    History,
    StoredSnapshot,
)
from streams.log.redis import RedisLog
from streams.log.redis.client import Command
from streams.message import Record
from tests.conformance.histories import append_all, event, history, values
from tests.log.redis_support import name, open_redis
from tests.servers.redis import Redis


@pytest.fixture
def log(server: Redis) -> Iterator[RedisLog]:
    log = open_redis(server.url)
    yield log
    log.close()


def made(key: bytes, cause: str = "") -> EventAppend:
    return make_append(key, NO_HISTORY, [event(key)], cause=cause)


def test_an_append_to_a_damaged_history_fails_alone(server: Redis, log: RedisLog) -> None:
    topic = log.create_event_topic(name("events"), 1).name
    with server.client() as client:
        client.set(f"{{{topic}}}:history:damaged", "no list")
    good, other = made(b"good"), made(b"other")
    first, failed, last = append_all(log, topic, [good, made(b"damaged"), other])
    assert (first, last) == tuple(
        Appended(0, (history(log, topic, key).events[0].offset,)) for key in (b"good", b"other")
    )
    assert isinstance(failed, LogError)
    assert not isinstance(failed, OutcomeUnknown)
    assert "nothing was appended" in str(failed)
    assert append_all(log, topic, [good, other]) == [first, last]
    assert values(history(log, topic, b"good")) == [b"good"]


@pytest.mark.parametrize("shared", ["keys", "causes", "refusals", "refused"])
def test_nothing_is_appended_where_a_key_of_all_histories_is_damaged(
    server: Redis, log: RedisLog, shared: str
) -> None:
    topic = log.create_event_topic(name("events"), 1).name
    with server.client() as client:
        keys: list[bytes] = client.keys(f"{{{topic}}}:*")
        client.set(f"{{{topic}}}:{shared}", "of another type")
        outcomes = append_all(log, topic, [made(b"one", "cause"), made(b"two")])
        for each in outcomes:
            assert isinstance(each, TopicMismatch), each
            assert shared in str(each)
        assert client.xlen(topic) == 0
        assert set(client.keys(f"{{{topic}}}:*")) == {*keys, f"{{{topic}}}:{shared}".encode()}


def test_what_these_tests_damage_is_what_the_log_keeps(server: Redis, log: RedisLog) -> None:
    topic = log.create_event_topic(name("events"), 1).name
    one = make_append(b"one", NO_HISTORY, [event()], cause="cause", is_refusal=True)
    append_all(log, topic, [one, made(b"two", "cause")])
    with server.client() as client:
        found: list[bytes] = client.keys(f"{{{topic}}}:*")
    kept = {each.decode().removeprefix(f"{{{topic}}}:") for each in found}
    assert {"keys", "causes", "refusals", "refused", "history:two"} <= kept


def test_an_append_that_comes_again_to_a_damaged_history_fails_alone(
    server: Redis, log: RedisLog
) -> None:
    topic = log.create_event_topic(name("events"), 1).name
    refused = make_append(b"refused", NO_HISTORY, [event()], is_refusal=True)
    sent = make_append(b"sent", NO_HISTORY, [event(), event(), event()])
    for each in append_all(log, topic, [refused, sent]):
        assert isinstance(each, Appended)
    with server.client() as client:
        client.lset(f"{{{topic}}}:history:sent", 1, "1")
        (field,) = client.hkeys(f"{{{topic}}}:refusals")
        client.hset(f"{{{topic}}}:refusals", field, "0 x")
    found = append_all(log, topic, [made(b"first"), sent, refused, made(b"last")])
    assert [isinstance(each, Appended) for each in found] == [True, False, False, True]
    for each in found[1:3]:
        assert isinstance(each, LogError)
    for key in (b"first", b"last"):
        assert values(history(log, topic, key)) == [key]


def test_a_snapshot_is_kept_of_an_event_whose_id_is_no_text(log: RedisLog) -> None:
    topic = log.create_event_topic(name("events"), 1).name
    kept = []
    for key, id in ((b"strange", "\udcff"), (b"plain", "plain")):
        append_all(log, topic, [make_append(key, NO_HISTORY, [Record(b"1", None, id)])])
        offset = history(log, topic, key).events[0].offset
        kept.append(StoredSnapshot(key, "kind", Base(1, id), offset, b"state"))
    log.write_snapshots(topic, kept)
    assert [each for one in kept for each in log.list_snapshots(topic, one.key)] == kept


# -- topics that are deleted, and made anew


@pytest.fixture
def other(server: Redis) -> Iterator[RedisLog]:
    """The same, as another process has it."""
    other = open_redis(server.url)
    yield other
    other.close()


def test_nothing_is_appended_where_the_topic_has_other_partitions_by_now(
    log: RedisLog, other: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.topics.CACHE_SECONDS", 0.0)
    topic = log.create_event_topic(name("events"), 2).name
    keys = [b"%d" % number for number in range(20)]
    append_all(log, topic, [made(key) for key in keys])
    other.delete_topic(topic)
    (outcome,) = append_all(log, topic, [made(b"gone")])
    assert isinstance(outcome, NotFound)
    other.create_event_topic(topic, 3)
    append_all(other, topic, [made(key) for key in keys])
    for outcome in append_all(log, topic, [made(key) for key in keys]):
        assert isinstance(outcome, PartitionCountMismatch)
    # What there is can be read.
    for key in keys:
        assert values(history(log, topic, key)) == [key]
    # Until it is declared so.
    log.create_event_topic(topic, 3)
    for outcome in append_all(log, topic, [made(b"new")]):
        assert isinstance(outcome, Appended)
    assert values(history(other, topic, b"new")) == [b"new"]


@pytest.mark.parametrize("cut", range(7))
def test_a_deletion_that_was_cut_off_is_finished_by_the_next(
    log: RedisLog, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """:param cut: how many commands it comes to."""
    monkeypatch.setattr("streams.log.redis.topics.DELETED_KEYS", 2)
    topic = log.create_event_topic(name("events"), 1).name
    keys = [b"%d" % number for number in range(5)]
    append_all(log, topic, [made(key, "cause") for key in keys])
    execute, done = log._client.execute, 0

    def execute_some(command: Command) -> Any:
        nonlocal done
        if done == cut:
            raise Unavailable("killed")
        done += 1
        return execute(command)

    with monkeypatch.context() as patched:
        patched.setattr(log._client, "execute", execute_some)
        with suppress(Unavailable):
            log.delete_topic(topic)
    with suppress(NotFound):
        log.delete_topic(topic)
    log.create_event_topic(topic, 1)
    for key in keys:
        assert history(log, topic, key, cause="cause") == History(0, [], EMPTY)
        append_all(log, topic, [made(key)])
        assert values(history(log, topic, key)) == [key]


@pytest.mark.parametrize("deletions", [1, 2])
@pytest.mark.parametrize("partitions", [1, 2])
def test_what_is_appended_while_its_topic_is_deleted_is_there_wholly_or_not_at_all(
    server: Redis,
    log: RedisLog,
    other: RedisLog,
    monkeypatch: pytest.MonkeyPatch,
    partitions: int,
    deletions: int,
) -> None:
    """Those who append have not noticed yet."""
    topic = log.create_event_topic(name("events"), partitions).name
    append_all(log, topic, [made(b"old", "cause")])
    execute, keys = log._client.execute, [b"old"]

    def append_and_execute(command: Command) -> Any:
        keys.append(b"%d" % len(keys))
        append_all(other, topic, [made(keys[-1], "cause")])
        return execute(command)

    with monkeypatch.context() as patched:
        patched.setattr(log._client, "execute", append_and_execute)
        log.delete_topic(topic)
    assert len(keys) > 3 * partitions
    if deletions == 2:
        with suppress(NotFound):
            log.delete_topic(topic)
    log.create_event_topic(topic, partitions)
    kept = {key for key in keys if values(history(log, topic, key)) == [key]}
    assert kept == {key for key in keys if history(log, topic, key).head != EMPTY}
    assert b"old" not in kept
    listed = [log.list_keys(topic, each, None, 100) for each in range(partitions)]
    assert {each.key for found in listed for each in found} == kept
    with server.client() as client:
        streams = [topic] if partitions == 1 else [f"{{{topic}:{each}}}" for each in (0, 1)]
        assert sum(map(client.xlen, streams)) == len(kept)
