"""What docs/redis.md says of the layout, seen with plain Redis commands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import redis

from streams.log.protocol import Retention
from streams.log.redis.settings import _OPTIONS
from tests.log.redis_support import Member, append, name, open_redis, record
from tests.log.test_redis_servers import RIGHTS
from tests.servers.find import RedisAddress

DOCS = (Path(__file__).parents[2] / "docs" / "redis.md").read_text(encoding="utf-8")


def test_the_layout_is_the_documented_one(redis_server: RedisAddress) -> None:
    log = open_redis(redis_server.url)
    one, many, group = name("one"), name("many"), name("group")
    log.create_topic(one, 1, Retention(seconds=3600))
    log.create_topic(many, 2)
    for topic, partitions in ((one, 1), (many, 2)):
        log.initialize_offsets(group, topic, dict.fromkeys(range(partitions), 0))
    member = Member(log, group, [one, many])
    append(log, one, [record(b"v", b"k", "id")])
    append(log, many, [record(b"v", partition=each) for each in range(2)])
    member.take_in(3)
    with redis.Redis.from_url(redis_server.url) as client:
        names: Any = client.keys("*")
        kinds = {key.decode(errors="replace"): client.type(key) for key in names}

        def shape(key: str) -> str:
            """The key as the documentation has it."""
            key = key.replace(one, "orders").replace(many, "orders").replace(group, "billing")
            key = re.sub(r"\{orders:\d\}", "{orders:3}", key)
            return re.sub(r":ids:\d$", ":ids:0", key)

        own = [key for key in kinds if one in key or many in key or group in key]
        assert {key: kinds[key] for key in (one, f"{{{many}:0}}")} == {
            one: b"stream",
            f"{{{many}:0}}": b"stream",
        }
        documented = set(re.findall(r"`([^`\s]+)`", DOCS))
        # With one partition the side keys have the topic's own tag, as is said in the text.
        for key in own:
            assert shape(key).replace("{orders}:ids", "{orders:3}:ids") in documented, key
        assert {"streams:topics", "streams:groups"} <= kinds.keys()
        fields: Any = client.hkeys(f"{{{one}}}:group:{group}")
        for field in fields:
            assert f"`{field.decode()}`" in DOCS, field
        facts: Any = client.hkeys(f"{{{one}}}:topic")
        for field in facts:
            assert f"`{field.decode()}`" in DOCS, field
    member.subscription.close()
    for topic in (one, many):
        log.delete_topic(topic)
    log.delete_group(group)
    log.close()


def test_every_option_is_documented_and_the_rights_are_the_tested_ones() -> None:
    for option in _OPTIONS:
        assert f"| `{option}` |" in DOCS
    assert RIGHTS in " ".join(DOCS.split())
