"""Random reads on real servers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis

from streams.log.events import Appended
from streams.log.range_reader import read_batches
from streams.log.redis import RedisLog, reader
from streams.log.redis.keys import PartitionKeys, entry_id
from tests.conformance.histories import append as histories_append
from tests.conformance.histories import grow
from tests.log.redis_support import Member, Proxy, append, name, open_redis, record
from tests.servers.find import RedisAddress


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


def test_steps_over_many_entries(log: RedisLog) -> None:
    topic = log.create_topic(name("topic"), 1).name
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(3_500)])]
    end = log.watermarks(topic, 0)[1]
    for count in (0, 1, 999, 1_000, 1_001, 2_500, 3_500):
        assert log.offset_before(topic, 0, end, count) == (offsets[-count] if count else end)
    assert log.offset_before(topic, 0, end, 10_000) == offsets[0]
    assert log.offset_before(topic, 0, offsets[2_100], 2_000) == offsets[100]
    for count in (0, 1, 999, 1_000, 3_400):
        assert log.lag(topic, 0, offsets[-count] if count else end) == count


def test_a_lag_that_would_have_to_be_counted_for_long_is_unknown(
    log: RedisLog, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = log.create_topic(name("topic"), 1).name, name("group")
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(3_000)])]
    monkeypatch.setattr(reader, "MAX_COUNTED", 1_000)
    assert log.lag(topic, 0, offsets[500]) is None
    assert log.lag(topic, 0, offsets[2_500]) == 500
    # Where a group stands, the server counts.
    log.initialize_offsets(group, topic, {0: offsets[0]})
    member = Member(log, group, topic)
    member.poll_until(lambda: len(member.values) == 3_000, "all")
    (assignment,) = member.owned.values()
    member.commit(assignment, offsets[500])
    assert log.lag(topic, 0, offsets[500]) == 2_500
    # Near it, what lies between is counted, on either side.
    assert log.lag(topic, 0, offsets[900]) == 2_100
    assert log.lag(topic, 0, offsets[1_499]) == 1_501
    assert log.lag(topic, 0, offsets[100]) == 2_900
    member.subscription.close()


def test_a_reader_reads_on_whatever_it_is_asked_for(log: RedisLog) -> None:
    topic = log.create_topic(name("topic"), 1).name
    values = [b"%d" % n for n in range(1_000)]
    offsets = [each.offset for each in append(log, topic, values)]
    reader = log.reader(topic, 0, offsets[10], offsets[900])
    read: list[bytes | None] = []
    for limit in (1, 100, 100, 7, 7, 300, 50, 1_000, 1_000):
        batch = reader.read(limit)
        if batch is None:
            break
        assert 1 <= len(batch) <= limit
        read += batch.values
    assert read == values[10:900]
    assert reader.read(1) is None
    reader.close()


def test_a_reader_survives_a_cut_connection(log: RedisLog, address: RedisAddress) -> None:
    topic = log.create_topic(name("topic"), 1).name
    values = [b"%d" % n for n in range(1_000)]
    append(log, topic, values)
    with Proxy(int(address.url.rpartition(":")[2])) as proxy:
        cut = open_redis(f"redis://127.0.0.1:{proxy.port}")
        reader = cut.reader(topic, 0, *cut.watermarks(topic, 0))
        read: list[bytes | None] = []
        while (batch := reader.read(100)) is not None:
            read += batch.values
            proxy.cut_all()
        assert read == values
        cut.close()


def test_what_comes_just_before_the_end_is_looked_for_is_read(
    log: RedisLog, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader whose end is beyond the stream's finds nothing; before it asks where the stream
    ends, a message comes, and one beyond the reader's end."""
    topic = log.create_topic(name("topic"), 1).name
    (first,) = append(log, topic, [b"first"])
    end = first.offset + (3_600_000 << 64)
    stream_info = reader.OffsetLookup.stream_info
    come: list[bytes] = []

    def append_before(lookup: reader.OffsetLookup, keys: PartitionKeys) -> Any:
        if not come:
            come.append(b"within")
            append(log, topic, come)
            entries: Any = client.xrange(topic, count=1)
            ((_, fields),) = entries
            client.xadd(topic, fields, id=entry_id(end))
        return stream_info(lookup, keys)

    monkeypatch.setattr(reader.OffsetLookup, "stream_info", append_before)
    batches = list(read_batches(log, topic, 0, first.offset + 1, end))
    assert [value for batch in batches for value in batch.values] == come == [b"within"]


def test_a_begin_in_the_midst_is_counted(log: RedisLog, client: redis.Redis) -> None:
    topic, group = log.create_topic(name("topic"), 1).name, name("group")
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(2_345)])]
    client.xtrim(topic, maxlen=2_000, approximate=False)
    log.initialize_offsets(group, topic, {0: offsets[1_234]})
    (shown,) = client.xinfo_groups(topic)
    assert (shown["entries-read"], shown["lag"]) == (1_234, 2_345 - 1_234)


def test_bounds_of_what_is_empty(log: RedisLog, client: redis.Redis) -> None:
    topic = log.create_topic(name("topic"), 1).name
    assert log.watermarks(topic, 0) == (0, 0)
    (position,) = append(log, topic, [record(b"v")])
    assert log.watermarks(topic, 0) == (0, position.offset + 1)
    client.xtrim(topic, maxlen=0, approximate=False)
    assert log.watermarks(topic, 0) == (position.offset + 1, position.offset + 1)
    assert log.lag(topic, 0, 0) == 0
    assert log.offset_for_time(topic, 0, 0.0) == position.offset + 1


def test_what_others_add_to_an_event_topic_is_left_out_and_reported(
    log: RedisLog, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    topic = log.create_event_topic(name("events"), 1).name
    head = grow(log, topic, b"k", b"1", b"2")
    stream = log._topics.partition_keys(topic, 0).stream
    foreign: Any = client.xadd(stream, {"amount": "5"})
    _, outcome = histories_append(log, topic, b"k", head.base, b"3")
    assert isinstance(outcome, Appended), outcome
    last: Any = client.xadd(stream, {"value": "x", "key": "k", "ce_id": "x"})
    _, end = log.watermarks(topic, 0)
    for _ in range(2):
        found = [batch.values for batch in read_batches(log, topic, 0, 0, end)]
        assert [value for values in found for value in values] == [b"1", b"2", b"3"]
    member = Member(log, name("group"), topic)
    member.poll_until(lambda: len(member.values) == 3, "all")
    assert member.values == [b"1", b"2", b"3"]
    member.subscription.close()
    said = "\n".join(each.getMessage() for each in caplog.records)
    assert said.count("something else has written to it") == 1
    assert f"offset {foreign.decode()}, and 1 more up to {last.decode()}" in said


def test_a_user_who_may_not_ask_for_a_size_is_told_of_none(
    address: RedisAddress, log: RedisLog, client: redis.Redis
) -> None:
    topic, user = log.create_topic(name("topic"), 2).name, name("user")
    append(log, topic, [b"x" * 100] * 10)
    known = log.topic_bytes(topic)
    assert known is not None
    assert known >= 1_000
    client.acl_setuser(
        user, enabled=True, passwords=["+secret"], keys=["*"], channels=["*"],
        commands=["+@all", "-memory"],
    )  # fmt: skip
    try:
        other = open_redis(address.url.replace("://", f"://{user}:secret@"))
        try:
            assert other.topic_bytes(topic) is None
        finally:
            other.close()
    finally:
        client.acl_deluser(user)


def test_what_is_appended_while_entries_are_counted_is_not_counted(
    log: RedisLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = log.create_topic(name("topic"), 1).name
    offsets = [each.offset for each in append(log, topic, [b"%d" % n for n in range(3)])]
    lookup = log._offsets
    find_info = lookup.stream_info

    def find_and_append(keys: PartitionKeys) -> Any:
        found = find_info(keys)
        append(log, topic, [b"more" for _ in range(5)])
        return found

    monkeypatch.setattr(lookup, "stream_info", find_and_append)
    assert lookup.entries_below(log._topics.partition_keys(topic, 0), offsets[1]) == 1
