"""A history that somebody has damaged fails alone: others that are read in the same call do not."""

from __future__ import annotations

import asyncio
import sqlite3
from urllib.parse import urlsplit

import pytest
from redis import Redis

from streams.errors import LogError
from streams.eventsourcing import Cache
from tests.eventsourcing.bank import accounts, deposit
from tests.hostile.ground import Ground

pytestmark = pytest.mark.anyio


def damage(stage: Ground, id: str) -> None:
    """Take away the first event of a history in a topic with one partition."""
    topic = f"{stage.topic_name}.events"
    if stage.case.name == "sqlite":
        path = stage.url.removeprefix("sqlite:///").partition("?")[0]
        db = sqlite3.connect(path)
        db.execute("UPDATE streams_events SET data = x'ff' WHERE key = ?", (id.encode(),))
        db.commit()
        db.close()
        return
    place = urlsplit(stage.url)
    with Redis(host=place.hostname or "", port=place.port or 0) as redis:
        (entry,) = redis.lrange(f"{{{topic}}}:history:{id}", 0, -1)
        redis.xdel(topic, entry)


@pytest.mark.only("sqlite", "redis")  # the others' records cannot be changed
async def test_a_damaged_history_hides_no_other(stage: Ground) -> None:
    app = stage.app()
    ledger = accounts(app, stage.topic_name, partitions=1, cache=Cache(count=0))
    ids = [f"a-{number}" for number in range(40)]
    async with app:
        await asyncio.gather(*(ledger.decide(id, deposit, 1) for id in ids))
        damage(stage, "a-17")
        found = await asyncio.gather(*(ledger.load(id) for id in ids), return_exceptions=True)
        failed = [id for id, each in zip(ids, found, strict=True) if isinstance(each, LogError)]
        assert failed == ["a-17"]
        done = await asyncio.gather(
            *(ledger.decide(id, deposit, 1) for id in ids), return_exceptions=True
        )
        failed = [id for id, each in zip(ids, done, strict=True) if isinstance(each, Exception)]
        assert failed == ["a-17"]
        assert ledger.stats().failures == 2
