"""What anybody may have written into the keys that this log keeps: every hash, every set.

It is passed over and written anew, or it is an error of ours that names the key and says what to
do; never an error of Python's, and nothing stands still because of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from streams.errors import StreamsError, TopicMismatch
from streams.log.claims import Claim, Complete, GetClaim, Release, Renew, Request
from streams.log.protocol import Committed, Retention, StaticMember
from streams.log.redis import RedisLog
from streams.log.url import open_claims
from tests.cli.conftest import Shell
from tests.log.redis_support import (
    SHORT,
    Member,
    append,
    name,
    named,
    open_redis,
    outcomes,
    patient,
    record,
    until,
)
from tests.servers.redis import Redis

NONSENSE = (
    b"",
    b"abc",
    b"\xff\xfe",
    b"-5",
    b"9" * 15,
    b"9" * 400,
    b"1e300",
    b"nan",
    b"0-0-0",
    b"?",
    None,  # the field is gone
)

FIELDS = ("owner", "epoch", "beat", "until", "lease", "version", "window", "progress", "read")
"""Of a group's hash in a partition, all but the position."""


@pytest.fixture
def client(server: Redis) -> Iterator[redis.Redis]:
    """What one test damages is no other's."""
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def put(client: redis.Redis, key: bytes | str, field: str, value: bytes | None) -> None:
    if value is None:
        client.hdel(key, field)
    else:
        client.hset(key, field, value)


def damage(client: redis.Redis, topic: str, group: str) -> int:
    """Another damage in each partition; how many there are."""
    cases = [(field, value) for field in FIELDS for value in NONSENSE]
    for number, (field, value) in enumerate(cases):
        put(client, f"{{{topic}:{number}}}:group:{group}", field, value)
    return len(cases)


PARTITIONS = len(FIELDS) * len(NONSENSE)


def one_each(log: RedisLog, topic: str, word: str) -> None:
    append(
        log, topic, [record(b"%s %d" % (word.encode(), n), partition=n) for n in range(PARTITIONS)]
    )


def settled(log: RedisLog, group: str, topic: str) -> bool:
    places = log.describe_group(group).committed_in(topic)
    return all(
        number in places and places[number].position == log.watermarks(topic, number)[1]
        for number in range(PARTITIONS)
    )


def values(*words: str) -> set[bytes | None]:
    return {b"%s %d" % (word.encode(), n) for n in range(PARTITIONS) for word in words}


# -- leases ----------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_leases_of_the_dead_are_taken_whatever_stands_there(
    server: Redis, log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log, PARTITIONS, Retention(messages=5))
    dead = Member(log, group, topic)
    one_each(log, topic, "old")
    dead.take_in(PARTITIONS)
    assert damage(client, topic, group) == PARTITIONS
    one_each(log, topic, "new")
    other = patient(open_redis(f"{server.url}?{SHORT}"))
    successor = Member(other, group, topic)
    members.append(successor)
    successor.poll_until(lambda: values("new") <= set(successor.values), "everything is handled")
    until(successor.commit_all, "and committed")
    assert settled(log, group, topic)
    # None of it is left, and trimming goes on.
    for part in log._topics.all_partition_keys(topic):
        other._trimmer.trim(part)
    for number in range(PARTITIONS):
        row: Any = client.hgetall(f"{{{topic}:{number}}}:group:{group}")
        assert row[b"owner"].decode() == successor.subscription._membership.member_id
        assert int(row[b"epoch"]) >= 1
    dead.subscription.close()


@pytest.mark.timeout(300)
def test_leases_of_the_living_are_mended(
    log: RedisLog, client: redis.Redis, members: list[Member]
) -> None:
    topic, group = named(log, PARTITIONS)
    owner = Member(log, group, topic)
    members.append(owner)
    one_each(log, topic, "old")
    owner.take_in(PARTITIONS)
    damage(client, topic, group)
    # A position, too, where the lease stays: its owner knows it.
    at = FIELDS.index("beat") * len(NONSENSE)
    for number in range(at, at + 10):
        put(client, f"{{{topic}:{number}}}:group:{group}", "position", b"\xff no place")
    one_each(log, topic, "new")

    def over() -> bool:
        owner.poll()
        owner.commit_all()
        return values("new") <= set(owner.values) and settled(log, group, topic)

    until(over, "everything is handled and committed")
    assert len(owner.owned) == PARTITIONS


@pytest.mark.parametrize("value", [b"", b"abc", b"\xff-\xfe", b"-5-0", b"9" * 21 + b"-0", b"01-0"])
def test_a_position_that_is_none_is_said_with_its_key(
    log: RedisLog,
    client: redis.Redis,
    members: list[Member],
    caplog: pytest.LogCaptureFixture,
    value: bytes,
) -> None:
    topic, group = named(log, 2)
    log.initialize_offsets(group, topic, {0: 0, 1: 0})
    key = f"{{{topic}:1}}:group:{group}"
    put(client, key, "position", value)
    member = Member(log, group, topic)
    with pytest.raises(TopicMismatch) as caught:
        member.owns(2)
    said = str(caught.value)
    assert key in said
    assert f"streams reset {group} {topic} --partition 1 --to" in said
    assert len(said.splitlines()) == 1
    member.subscription.close()
    # Whoever looks is shown the rest, and told what is left out.
    with caplog.at_level(logging.WARNING, "streams"):
        assert set(log.describe_group(group).committed_in(topic)) == {0}
    assert key in caplog.text
    # And what is said helps.
    log.reset_offsets(group, topic, {1: Committed(0)})
    again = Member(log, group, topic)
    members.append(again)
    again.owns(2)


# -- members ---------------------------------------------------------------------------------------


def test_ghosts_keep_nothing(
    log: RedisLog, client: redis.Redis, members: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of members that are none: they count for a lease at most, and then they are gone."""
    topic, group = named(log, 8)
    log.create_topic("other", 3)
    client.set("{broken}:topic", "no hash")
    key = f"{{group:{group}}}:members"
    far = b"9" * 15
    rows = [
        *(value for value in NONSENSE if value is not None),
        b"1 " + far + b" " + far + b" " + topic.encode(),
        b"1 10 " + far + b" " + topic.encode(),
        b"1 1000 " + far + b" other,broken,missing," + topic.encode(),
        b"1 1000 " + far + b" \xff,,..,a b,{x}",
        far + b" " + topic.encode(),  # as a release before this one wrote them
    ]
    for number, row in enumerate(rows):
        client.hset(key, f"ghost-{number}", row)
        client.hset(key, b"\xff:%d" % number, row)
    client.hset(key, "", b"1700000000000")
    for number in range(8):
        ghost: Any = {"owner": f"ghost-{number}", "until": far, "lease": far, "epoch": 7}
        client.hset(f"{{{topic}:{number}}}:group:{group}", mapping=ghost)
    append(log, topic, [record(b"%d" % n, partition=n) for n in range(8)])
    member = Member(log, group, topic)
    members.append(member)
    member.owns(8)
    member.take_in(8)
    member.poll_until(lambda: client.hlen(key) == 1, "the ghosts are gone")
    own = member.subscription._membership.member_id
    member.poll_until(
        lambda: [each.id for each in log.describe_group(group).members] == [own],
        "it alone is there",
    )


# -- everything else -------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [each for each in NONSENSE if each])
@pytest.mark.parametrize("field", ["partitions", "seconds", "messages", "most"])
def test_a_topics_facts(
    log: RedisLog,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    field: str,
    value: bytes,
) -> None:
    fine = log.create_topic(name("topic"), 1).name
    topic = log.create_topic(name("topic"), 2, Retention(seconds=5, messages=7)).name
    put(client, f"{{{topic}}}:topic", field, value)
    if (
        value in (b"9" * 15, b"1e300")
        and field != "partitions"
        and (field == "seconds" or value != b"1e300")
    ):
        assert log.describe_topic(topic).partitions == 2  # unusual, and possible
        append(log, topic, [b"x"])
        return
    for ask in (
        lambda: log.describe_topic(topic),
        lambda: log.create_topic(topic, 2),
        lambda: log.delete_topic(topic),
    ):
        with pytest.raises(TopicMismatch, match=topic) as caught:
            ask()
        assert f"field {field!r} of {{{topic}}}:topic in Redis" in str(caught.value) or (
            field == "partitions" and "declare it so" in str(caught.value)
        )
    with caplog.at_level(logging.WARNING, "streams"):
        assert fine in [each.name for each in log.describe_topics()]
    assert f"{{{topic}}}:topic" in caplog.text


@pytest.mark.parametrize("value", [each for each in NONSENSE if each])
def test_where_a_group_began(
    log: RedisLog,
    client: redis.Redis,
    members: list[Member],
    caplog: pytest.LogCaptureFixture,
    value: bytes,
) -> None:
    topic, group = named(log)
    append(log, topic, [b"1", b"2"])
    log.initialize_offsets(group, topic, {0: 0})
    client.delete(f"{{{topic}}}:group:{group}")
    key = f"{{group:{group}}}:topics"
    client.hset(key, topic, value)
    client.hset(key, b"\xff", value)
    with caplog.at_level(logging.WARNING, "streams"):
        member = Member(log, group, topic)
        members.append(member)
        member.take_in(2)
    assert key in caplog.text
    log.describe_group(group)


def test_names_that_are_none(
    log: RedisLog, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    topic, group = named(log, 1, Retention(messages=1))
    log.initialize_offsets(group, topic, {0: 0})
    for key in ("streams:topics", "streams:groups"):
        client.sadd(key, b"\xff\xfe", b"a b", b"", b"x" * 300, b"..", b"{a}")
    assert topic in [each.name for each in log.describe_topics()]
    assert group in log.list_groups()
    log._trimmer.trim(log._topics.partition_keys(topic, 0))
    log.delete_topic(topic)


def test_message_ids(log: RedisLog, client: redis.Redis) -> None:
    topic = log.create_topic(name("topic"), 1).name
    (first,) = append(log, topic, [record(b"1", id="m")])
    (key,) = [key for key in client.keys(f"{{{topic}}}:ids:*") if client.hexists(key, "m")]
    last = first.offset
    for value in NONSENSE:
        if value is None:
            continue
        client.hset(key, "m", value)
        (position,) = append(log, topic, [record(b"1", id="m")])
        assert position.offset > last
        last = position.offset
        client.hset(key, "", value)
        (position,) = append(log, topic, [record(b"1", id="m")])
        assert position.offset >= last
        last = position.offset


KEYS = (
    "{TOPIC}",
    "{TOPIC}:topic",
    "{TOPIC}:group:GROUP",
    "{TOPIC}:ids:0",
    "{TOPIC}:ids:1",
    "{TOPIC}:ids:2",
    "{group:GROUP}:members",
    "{group:GROUP}:topics",
    "streams:topics",
    "streams:groups",
)


@pytest.mark.parametrize("kind", ["string", "list"])
@pytest.mark.parametrize("pattern", KEYS)
def test_another_kind_of_key_is_named(
    log: RedisLog,
    server: Redis,
    client: redis.Redis,
    caplog: pytest.LogCaptureFixture,
    pattern: str,
    kind: str,
) -> None:
    topic, group = named(log, 1, Retention(messages=5))
    append(log, topic, [b"1"])
    first = Member(log, group, topic)
    first.take_in(1)
    first.subscription.close()
    key = pattern.replace("TOPIC", topic).replace("GROUP", group)
    if key == f"{{{topic}}}":
        key = topic
    client.delete(key)
    if kind == "string":
        client.set(key, b"\xff")
    else:
        client.rpush(key, b"\xff")
    fresh = patient(open_redis(f"{server.url}?{SHORT}"))
    said: list[str] = []

    def take_part() -> None:
        member = Member(fresh, group, topic)
        try:
            member.subscription.poll(10, 0.05)
            member.subscription.poll(10, 0.05)
        finally:
            member.subscription.close()

    asks: list[Callable[[], Any]] = [
        take_part,
        lambda: fresh.describe_topic(topic),
        fresh.describe_topics,
        fresh.list_groups,
        lambda: fresh.describe_group(group),
        lambda: fresh.watermarks(topic, 0),
        lambda: fresh.initialize_offsets(group, topic, {0: 0}),
        lambda: fresh.reset_offsets(group, topic, {}),
        lambda: fresh.remove_member(group, StaticMember("a", "b")),
        lambda: fresh._trimmer.trim(fresh._topics.partition_keys(topic, 0)),
        lambda: fresh.delete_group(group),
    ]
    with caplog.at_level(logging.WARNING, "streams"):
        for ask in asks:
            try:
                ask()
            except StreamsError as error:
                said.append(str(error))
        answers = outcomes(fresh, topic, [record(b"%d" % n) for n in range(3)])
    said += [str(each) for each in answers if isinstance(each, Exception)]
    fresh.close()
    unread = ":ids:" in key and not said  # one of three that take turns
    assert unread or any(key in text for text in (*said, caplog.text)), said


@pytest.mark.parametrize("field", ["token", "fingerprint", "until", "value"])
def test_claims(server: Redis, client: redis.Redis, field: str) -> None:
    claims = open_claims(server.url)
    for number, value in enumerate(NONSENSE):
        for prepared in ([], [Complete]):
            key = f"damage:{number}:{len(prepared)}"
            full = f"streams:claims:{key}"
            claims.execute([Claim(key.encode(), "token", 30.0, "print")])
            if prepared:
                claims.execute([Complete(key.encode(), "token", b"outcome", 30.0)])
            put(client, full, field, value)
            requests: list[Request] = [
                GetClaim(key.encode()),
                Claim(key.encode(), "other", 30.0, "print"),
                Renew(key.encode(), "token", 30.0),
                Release(key.encode(), "token"),
                GetClaim(key.encode()),
            ]
            for answer in claims.execute(requests):
                assert not isinstance(answer, Exception), answer
    client.set("streams:claims:damage:string", "x")
    (answer,) = claims.execute([GetClaim(b"damage:string")])
    assert isinstance(answer, TopicMismatch)
    assert "streams:claims:damage:string" in str(answer)
    claims.close()


def test_commands_name_what_they_leave_out(
    server: Redis, log: RedisLog, client: redis.Redis, shell: Shell
) -> None:
    topic, group = named(log, 2)
    log.initialize_offsets(group, topic, {0: 0, 1: 0})
    put(client, f"{{{topic}:1}}:group:{group}", "position", b"\xff")
    broken = log.create_topic(name("topic"), 2).name
    put(client, f"{{{broken}}}:topic", "partitions", b"many")
    shell.environment["STREAMS_URL"] = server.url
    for words, key in (
        (("groups", "show", group), f"{{{topic}:1}}:group:{group}"),
        (("groups", "ls"), f"{{{topic}:1}}:group:{group}"),
        (("topics", "ls"), f"{{{broken}}}:topic"),
        (("topics", "show", broken), f"{{{broken}}}:topic"),
    ):
        ended = shell(*words)
        assert "Traceback" not in ended.err
        assert key in ended.err, words
        assert ended.status == (1 if broken in words else 0)
