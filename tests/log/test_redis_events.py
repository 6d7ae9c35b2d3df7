"""Histories whose keys in Redis somebody has changed: what is appended, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streams.errors import LogError, OutcomeUnknown, TopicMismatch
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Appended, EventAppend
from streams.log.redis import RedisLog
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
