"""Retention on real servers: what may go, and what stays whatever the retention."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from streams.errors import ConfigError
from streams.log.protocol import Committed, Retention, TopicInfo
from streams.log.redis import RedisLog
from streams.log.redis.keys import topic_key
from tests.log.redis_support import Member, append, name, open_redis
from tests.servers.find import RedisAddress

NODE = 100
"""Entries of one node of a stream's tree (stream-node-max-entries): only whole ones are dropped."""


@pytest.fixture(params=["redis_server", "valkey_server"])
def address(request: pytest.FixtureRequest) -> RedisAddress:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, RedisAddress)
    return found


@pytest.fixture
def log(address: RedisAddress) -> Iterator[RedisLog]:
    log = open_redis(address.url)
    yield log
    log.close()


@pytest.fixture
def client(address: RedisAddress) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(address.url) as client:
        yield client


def trim(log: RedisLog, topic: str) -> int:
    """Have its turn at trimming now."""
    return log._trimmer.trim(log._topics.partition_keys(topic, 0))


def filled(log: RedisLog, retention: Retention, count: int = 3_000, **config: str) -> str:
    topic = log.create_topic(name("topic"), 1, retention, config).name
    log._trimmer._next_trim[topic, 0] = float("inf")  # only when the test says so
    append(log, topic, [b"%d" % n for n in range(count)])
    return topic


def test_the_newest_stay(log: RedisLog, client: redis.Redis) -> None:
    topic = filled(log, Retention(messages=500))
    trim(log, topic)
    assert 500 <= client.xlen(topic) < 500 + NODE
    reader = log.reader(topic, 0, *log.watermarks(topic, 0))
    batch = reader.read(10_000)
    assert batch is not None
    assert batch.values[-500:] == [b"%d" % n for n in range(2_500, 3_000)]


def test_the_young_stay(log: RedisLog, client: redis.Redis) -> None:
    # Hours lie between the old and the young, so no pause of this test makes one of the other.
    hour = 3_600
    topic = log.create_topic(name("topic"), 1, Retention(seconds=12 * hour)).name
    log._trimmer._next_trim[topic, 0] = float("inf")
    now: Any = client.time()
    with client.pipeline() as pipeline:
        for n in range(3_000):
            pipeline.xadd(topic, {"value": b"old"}, id=f"{(now[0] - 24 * hour) * 1_000}-{n}")
        pipeline.execute()
    append(log, topic, [b"%d" % n for n in range(3_000)])
    trim(log, topic)
    assert 3_000 <= client.xlen(topic) < 3_000 + NODE
    reader = log.reader(topic, 0, *log.watermarks(topic, 0))
    batch = reader.read(10_000)
    assert batch is not None
    assert batch.values[-3_000:] == [b"%d" % n for n in range(3_000)]
    assert trim(log, topic) == 0


@pytest.mark.parametrize(
    ("settled", "window"), [(0, 0), (2_000, 0), (2_000, 1_500), (2_000, 5_000)]
)
def test_what_a_group_has_not_settled_stays_and_its_window_too(
    log: RedisLog, client: redis.Redis, settled: int, window: int
) -> None:
    topic, group = filled(log, Retention(messages=1)), name("group")
    log.initialize_offsets(group, topic, {0: log.watermarks(topic, 0)[0]})
    member = Member(log, group, topic, trim_margin=window)
    member.owns(1)
    (assignment,) = member.owned.values()
    member.poll_until(lambda: len(member.values) == 3_000, "all")
    offsets = [offset for batch in member.batches for offset in batch.offsets]
    if settled:
        member.commit(assignment, offsets[settled])
    member.subscription.close()
    trim(log, topic)
    kept = 3_000 - max(0, settled - window)
    assert kept <= client.xlen(topic) < kept + NODE
    assert log.describe_group(group).positions[topic, 0].position >= log.watermarks(topic, 0)[0]


def test_a_group_that_waits_for_its_first_member_keeps_everything(
    log: RedisLog, client: redis.Redis
) -> None:
    topic, group = log.create_topic(name("topic"), 1, Retention(messages=1)).name, name("group")
    log.initialize_offsets(group, topic, {0: 0})
    log._trimmer._next_trim[topic, 0] = float("inf")
    append(log, topic, [b"%d" % n for n in range(500)])
    assert trim(log, topic) == 0
    log.reset_offsets(group, topic, {0: Committed(log.watermarks(topic, 0)[1])})
    trim(log, topic)
    assert client.xlen(topic) < NODE
    log.delete_group(group)


def test_what_a_group_of_others_has_pending_stays(log: RedisLog, client: redis.Redis) -> None:
    topic = filled(log, Retention(messages=1))
    client.xgroup_create(topic, "theirs", id="0")
    assert trim(log, topic) == 0
    client.xreadgroup("theirs", "consumer", {topic: ">"}, count=2_000)
    assert trim(log, topic) == 0, "nothing of it is acknowledged"
    entries: Any = client.xrange(topic, count=1_000)
    client.xack(topic, "theirs", *(entry[0] for entry in entries))
    trim(log, topic)
    assert 2_000 <= client.xlen(topic) < 2_000 + NODE


def test_a_hard_bound_overrides_groups_and_says_so(
    log: RedisLog, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = filled(log, Retention(), most="1000"), name("group")
    log.initialize_offsets(group, topic, {0: 0})
    with caplog.at_level(logging.WARNING, "streams"):
        trim(log, topic)
    assert 1_000 <= client.xlen(topic) < 1_000 + NODE
    assert "had not settled" in caplog.text
    assert log.describe_group(group).positions[topic, 0].position < log.watermarks(topic, 0)[0]
    with pytest.raises(ConfigError, match="most"):
        log.create_topic(name("topic"), 1, config={"retention.ms": "1"})
    with pytest.raises(ConfigError, match="number"):
        log.create_topic(name("topic"), 1, config={"most": "many"})


def test_one_step_is_bounded(
    log: RedisLog, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = filled(log, Retention(messages=1))
    monkeypatch.setattr("streams.log.redis.retention.TRIM_STEP", 1_000)
    monkeypatch.setattr("streams.log.redis.retention.MAX_STEPS", 2)
    assert 1_000 < trim(log, topic) <= 2_000


def test_appending_and_owning_trim_by_themselves(log: RedisLog, client: redis.Redis) -> None:
    topic = log.create_topic(name("topic"), 1, Retention(messages=10)).name
    append(log, topic, [b"%d" % n for n in range(1_000)])
    assert client.xlen(topic) < 10 + NODE
    old = filled(log, Retention(messages=10), 1_000)
    log._trimmer._next_trim.clear()
    member = Member(log, name("group"), old, trim_margin=0)
    member.take_in(1_000)
    log._trimmer._next_trim.clear()
    member.poll_until(lambda: client.xlen(old) < 10 + NODE, "it trims what it owns")
    member.subscription.close()


def test_a_retention_is_kept_with_the_topic(log: RedisLog, address: RedisAddress) -> None:
    topic, kept = name("topic"), Retention(seconds=1.5, messages=7)
    log.create_topic(topic, 2, kept, {"most": "9"})
    other = open_redis(address.url)
    assert other.describe_topic(topic) == TopicInfo(topic, 2, kept)
    # Declaring it again without one changes nothing; with one, it counts.
    assert other.create_topic(topic, 2).retention == kept
    assert other.create_topic(topic, 2, Retention(messages=8)).retention == Retention(messages=8)
    assert log.describe_topic(topic).retention == Retention(messages=8)
    other.close()


def test_a_running_process_hears_of_another_retention(
    log: RedisLog, client: redis.Redis, address: RedisAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.topics.CACHE_SECONDS", 0.0)
    monkeypatch.setattr("streams.log.redis.retention.TRIM_INTERVAL", 0.0)
    other = open_redis(address.url)
    topic = log.create_topic(name("topic"), 1).name
    append(log, topic, [b"%d" % n for n in range(1_000)])
    assert client.xlen(topic) == 1_000
    other.set_retention(topic, Retention(messages=10))
    append(log, topic, [b"more"])
    assert client.xlen(topic) < 10 + NODE
    other.set_retention(topic, Retention())
    append(log, topic, [b"%d" % n for n in range(1_000)])
    assert client.xlen(topic) > 1_000
    other.close()


def test_a_retention_that_the_server_has_lost_is_remembered(
    log: RedisLog, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.log.redis.topics.CACHE_SECONDS", 0.0)
    topic = log.create_topic(name("topic"), 1, Retention(seconds=3600)).name
    client.delete(topic_key(topic))
    append(log, topic, [b"1"])
    assert log._topics.lookup_recent(topic).info.retention == Retention(seconds=3600)
    log._topics.restore(topic)
    assert log.describe_topic(topic).retention == Retention(seconds=3600)


def test_changing_the_retention_leaves_the_hard_bound(log: RedisLog) -> None:
    topic = log.create_topic(name("topic"), 1, Retention(messages=10), {"most": "99"}).name
    log.set_retention(topic, Retention(seconds=60))
    facts = log._topics.lookup(topic, fresh=True)
    assert (facts.info.retention, facts.max_entries) == (Retention(seconds=60), 99)


def test_a_stream_of_others_can_be_given_a_retention(log: RedisLog, client: redis.Redis) -> None:
    topic = name("topic")
    client.xadd(topic, {"value": "1"})
    assert log.set_retention(topic, Retention(messages=10)).partitions == 1
    assert log.describe_topic(topic) == TopicInfo(topic, 1, Retention(messages=10))
