"""What somebody has damaged does no more harm than it must: a history fails alone, and others that
are read in the same call do not; a snapshot of another history is not used."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from redis import Redis

from streams.errors import LogError
from streams.eventsourcing import Cache, Snapshot
from streams.log.events import Base, EventLog, StoredSnapshot
from streams.log.kafka.snapshot_index import record_header, record_key, snapshot_topic
from tests.eventsourcing.bank import accounts, deposit
from tests.hostile.ground import Ground
from tests.hostile.kafka_wire import Written

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


@pytest.mark.only("sqlite")
async def test_damaged_headers_of_an_event_are_told_by_who_reads_them(stage: Ground) -> None:
    """States are folded from the values alone."""
    app = stage.app()
    ledger = accounts(app, stage.topic_name, partitions=1, cache=Cache(count=0))
    async with app:
        for _ in range(2):
            await ledger.decide("a", deposit, 3)
        (first, _) = [each async for each in ledger.read("a")]
        path = stage.url.removeprefix("sqlite:///").partition("?")[0]
        with closing(sqlite3.connect(path)) as db, db:
            ((data,),) = db.execute("SELECT data FROM streams_events WHERE version = 1")
            offset, time, value, _ = msgspec.msgpack.decode(data)
            damaged = msgspec.msgpack.encode((offset, time, value, [17]))
            db.execute("UPDATE streams_events SET data = ? WHERE version = 1", (damaged,))
        assert (await ledger.load("a")).state.cents == 6
        with pytest.raises(LogError, match="the events of a history are damaged"):
            assert [each async for each in ledger.read("a")] != [first]


def forge_snapshot(stage: Ground, forged: StoredSnapshot) -> None:
    """Put a snapshot in place of the one of its key, in a topic with one partition."""
    topic, name = f"{stage.topic_name}.events", stage.case.name
    version, last_id = forged.base
    if name == "sqlite":
        db = sqlite3.connect(stage.url.removeprefix("sqlite:///").partition("?")[0])
        changed = "UPDATE streams_snapshots SET version = ?, last_id = ?, data = ? WHERE key = ?"
        db.execute(changed, (version, last_id, forged.data, forged.key))
        db.commit()
        db.close()
    elif name == "redis":
        place = urlsplit(stage.url)
        key = f"{{{topic}}}:snapshots:{forged.fingerprint}"
        with Redis(host=place.hostname or "", port=place.port or 0) as redis:
            kept = redis.hget(key, forged.key)
            assert isinstance(kept, bytes)
            entry = kept.split(b" ", 3)[2]
            value = b"%d %s %s %s" % (version, last_id.encode(), entry, forged.data)
            redis.hset(key, forged.key, value)
    else:
        header, value = record_header(forged)
        key_there = record_key(forged.key, forged.fingerprint)
        stage.write(
            snapshot_topic(topic), [Written(forged.data, key_there, [(header.encode(), value)])]
        )


SNAPSHOTS: Any = {"partitions": 1, "cache": Cache(count=0), "snapshot": Snapshot(every=3)}


async def deposit_four_times(stage: Ground, *ids: str) -> StoredSnapshot:
    """Four events of each of these accounts, and the snapshot of the first one."""
    log, app = stage.anchor, stage.app()
    assert isinstance(log, EventLog)
    ledger = accounts(app, stage.topic_name, **SNAPSHOTS)
    async with app:
        for id in ids:
            for _ in range(4):
                await ledger.decide(id, deposit, 1)
    (kept,) = log.list_snapshots(f"{stage.topic_name}.events", ids[0].encode())
    return kept


@pytest.mark.only("sqlite", "redis", "kafka")  # what is in memory cannot be changed
@pytest.mark.parametrize("base", [Base(3, "of another history"), Base(9, "lost with its events")])
async def test_a_snapshot_of_another_history_is_not_used_and_is_replaced(
    stage: Ground, base: Base
) -> None:
    kept = await deposit_four_times(stage, "a")
    assert kept.base.version == 3
    forge_snapshot(stage, kept._replace(base=base, data=kept.data.replace(b"3", b"7")))
    for used in (0, 1):
        app = stage.app()
        ledger = accounts(app, stage.topic_name, **SNAPSHOTS)
        async with app:
            found = await ledger.load("a")
            assert (found.version, found.state.cents) == (4, 4)
            assert ledger.stats().snapshots_used == used


@pytest.mark.only("redis")  # where an entry's ID is text
@pytest.mark.parametrize("rest", ["x {}", f"{'9' * 5_000}-0 {{}}", "1-0"])
async def test_a_snapshot_that_stands_nowhere_is_not_used_and_is_replaced(
    stage: Ground, rest: str
) -> None:
    """The last one ends where its state should follow."""
    topic, log = f"{stage.topic_name}.events", stage.anchor
    assert isinstance(log, EventLog)
    kept = await deposit_four_times(stage, "a", "b")
    place = urlsplit(stage.url)
    with Redis(host=place.hostname or "", port=place.port or 0) as redis:
        key = f"{{{topic}}}:snapshots:{kept.fingerprint}"
        redis.hset(key, "a", f"{kept.base.version} {kept.base.last_id} {rest}")
    assert log.list_snapshots(topic, b"a") == []
    for used in (1, 2):
        app = stage.app()
        ledger = accounts(app, stage.topic_name, **SNAPSHOTS)
        async with app:
            for found in await asyncio.gather(ledger.load("a"), ledger.load("b")):
                assert (found.version, found.state.cents) == (4, 4)
            assert ledger.stats().snapshots_used == used


@pytest.mark.only("sqlite")
@pytest.mark.parametrize("version", ["'x'", "x'00'", "-1.5"])
async def test_an_append_to_a_damaged_history_fails_alone(stage: Ground, version: str) -> None:
    """The states come from the cache, so nothing is read of the histories before."""
    app = stage.app()
    ledger = accounts(app, stage.topic_name, partitions=1)
    ids = [f"a-{number}" for number in range(40)]
    async with app:
        await asyncio.gather(*(ledger.decide(id, deposit, 1) for id in ids))
        db = sqlite3.connect(stage.url.removeprefix("sqlite:///").partition("?")[0])
        changed = f"UPDATE streams_histories SET version = {version} WHERE key = ?"
        db.execute(changed, (b"a-17",))
        db.commit()
        db.close()
        done = await asyncio.gather(
            *(ledger.decide(id, deposit, 1) for id in ids), return_exceptions=True
        )
        failed = {
            id: each for id, each in zip(ids, done, strict=True) if isinstance(each, Exception)
        }
        assert list(failed) == ["a-17"]
        assert isinstance(failed["a-17"], LogError)
        for id in ids:
            if id != "a-17":
                assert (await ledger.load(id)).state.cents == 2
