"""Redis: entries that redis-cli writes, and what it shows of ours."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import pytest

from streams import Streams
from tests.interop.conftest import Order, name, publish, reading, until
from tests.servers.find import RedisAddress
from tests.servers.java import Missing

pytestmark = pytest.mark.anyio


async def cli(server: RedisAddress, *words: str) -> Any:
    """What redis-cli answers, as JSON."""
    program = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if program is None:
        raise Missing(
            "redis-cli was not found (apt-get install redis-tools, or brew install redis)"
        )
    command = [program, "-u", server.url, "--json", *words]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


async def test_redis_cli_adds_to_a_plain_stream_and_our_processor_reads(
    redis_server: RedisAddress,
) -> None:
    topic = name("orders")
    value = '{"customer":"ada","cents":5}'
    first = await cli(redis_server, "XADD", topic, "*", "value", value, "key", "ada")
    named = ("ce_id", "a2", "origin", "cli")
    await cli(redis_server, "XADD", topic, "*", "value", value, "key", "ada", *named)
    async with reading(redis_server.url, topic, name("group")) as seen:
        await until(lambda: len(seen) == 2, "both are handled")
        value = '{"customer":"bob","cents":7}'
        await cli(redis_server, "XADD", topic, "*", "value", value)
        await until(lambda: len(seen) == 3, "what comes meanwhile is handled")
    assert [each.order for each in seen] == [Order("ada", 5), Order("ada", 5), Order("bob", 7)]
    assert [each.id for each in seen[:2]] == [f"{topic}/0/{first}", "a2"]
    assert [each.key for each in seen] == ["ada", "ada", None]
    assert seen[1].headers["origin"] == "cli"


async def test_an_entry_of_fields_is_the_object_of_its_fields(redis_server: RedisAddress) -> None:
    topic = name("orders")
    await cli(redis_server, "XADD", topic, "*", "amount", "5", "currency", "EUR", "key", "ada")
    app = Streams(redis_server.url)
    seen: list[Any] = []

    @app.processor(app.topic(topic, dict), group=name("group"))
    async def note(order: dict[str, Any]) -> None:
        seen.append(order)

    async with app:
        await until(lambda: seen, "it is handled")
    assert seen == [{"amount": "5", "currency": "EUR", "key": "ada"}]


async def test_our_publisher_writes_what_the_documentation_shows(
    redis_server: RedisAddress,
) -> None:
    topic, group = name("orders"), name("group")
    orders = [(f"a{n}", Order("ada", n)) for n in range(3)]
    await publish(redis_server.url, topic, orders, partitions=1)
    entries = await cli(redis_server, "XRANGE", topic, "-", "+")
    for n, (_, flat) in enumerate(entries):
        assert flat[:6:2] == ["value", "key", "ce_id"]
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        assert json.loads(fields["value"]) == {"customer": "ada", "cents": n}
        assert (fields["key"], fields["ce_id"], fields["origin"]) == ("ada", f"a{n}", "ours")
    assert len(entries) == 3

    async with reading(redis_server.url, topic, group) as seen:
        await until(lambda: len(seen) == 3, "all are handled")
    await publish(redis_server.url, topic, [("a3", Order("ada", 3)), *orders], partitions=1)
    (found,) = await cli(redis_server, "XINFO", "GROUPS", topic)
    found = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
    assert found == {
        "name": group,
        "consumers": 0,
        "pending": 0,
        "last-delivered-id": entries[-1][0],
        "entries-read": 3,
        "lag": 1,  # what was published again under its ID is no second entry
    }
