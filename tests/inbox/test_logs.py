"""The same on every log: what identities are made of."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from confluent_kafka import Producer

from streams import AsyncPsycopg, Message, NotFound, Psycopg, Retry, Sqlite, Streams
from streams.health import InboxStats
from streams.log.url import open_log
from streams.replay import replay, reset
from streams.testing import harness
from tests.inbox.kinds import KINDS, Place
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, until

ASYNC = KINDS[1]
BY_NAME = {kind.name: kind for kind in KINDS}


def test_an_incarnation_lasts_as_long_as_the_topic(url: str) -> None:
    name = f"topic-{uuid4().hex[:8]}"
    log, again = open_log(url), open_log(url)
    with pytest.raises(NotFound):
        log.incarnation(name)
    log.create_topic(name, 2)
    log.create_topic(f"{name}-other", 2)
    first = log.incarnation(name)
    assert first
    assert again.incarnation(name) == first
    assert log.incarnation(f"{name}-other") != first
    log.delete_topic(name)
    log.create_topic(name, 2)
    assert log.incarnation(name) not in ("", first)
    log.delete_topic(name)
    log.delete_topic(f"{name}-other")
    log.close()
    again.close()


async def test_resets_and_replays_have_their_own_generation(url: str, postgres: str) -> None:
    place = Place(postgres)
    app = Streams(url)
    topic = app.topic(f"orders-{uuid4().hex[:8]}", int, partitions=2)
    group = f"g-{uuid4().hex[:8]}"
    calls: list[str] = []

    @app.processor(topic, group=group, concurrency=64, transaction=AsyncPsycopg(postgres))
    async def handle(value: int, message: Message[int, Any]) -> None:
        calls.append(message.id)
        await ASYNC.write(message.transaction, message.id, value)

    numbers = range(20)
    async with harness(app, url=url) as h:
        for number in numbers:
            await topic.publish(number, id=f"m{number}", key=str(number))
        await h.settled()
        assert place.effects() == {f"m{number}": 1 for number in numbers}
        await replay(app, topic, into=handle)
        assert place.effects() == {f"m{number}": 2 for number in numbers}
    async with app.connected():
        await reset(app, group, topic, "earliest")
    async with harness(app, url=url) as h:
        await h.settled()
        assert handle.inbox is not None
    assert place.effects() == {f"m{number}": 3 for number in numbers}
    assert len(calls) == 60


@pytest.mark.parametrize(
    ("url", "settings", "lease", "limit"),
    [
        ("memory", "", 10.0, 20.0),
        ("sqlite", "?lease=0.9", 0.9, None),
        ("sqlite", "?lease=120", 120.0, 100.0),
        ("redis_server", "?lease=120", 120.0, None),
        ("kafka", "?session.timeout.ms=120000", 120.0, 500.0),
    ],
    indirect=["url"],
)
async def test_a_transaction_waits_for_as_long_as_the_lease(
    url: str, settings: str, lease: float, limit: float | None, postgres: str
) -> None:
    """And idles so long at most, or for as long as its handler may take."""
    app = Streams(f"{url}{settings}")
    topic = app.topic(f"orders-{uuid4().hex[:8]}", int, partitions=1)
    found: list[float] = []

    @app.processor(
        topic, group=f"g-{uuid4().hex[:8]}", transaction=AsyncPsycopg(postgres), timeout=limit
    )
    async def handle(value: int, message: Message[int, Any]) -> None:
        for name in ("lock_timeout", "idle_in_transaction_session_timeout"):
            rows = await message.transaction.execute(
                "SELECT extract(epoch FROM current_setting(%s)::interval)", (name,)
            )
            found.append(float((await rows.fetchone())[0]))

    async with harness(app, url=f"{url}{settings}") as h:
        await topic.publish(0)
        await h.settled()
    assert found[-2:] == [lease, max(lease, limit or 0.0)]


async def test_a_handler_that_idles_for_too_long_loses_its_transaction(
    tmp_path: Path, postgres: str
) -> None:
    place = Place(postgres)
    url = f"sqlite:///{tmp_path / 'log.db'}?lease=1"
    app = Streams(url)
    topic = app.topic("orders", int)
    lost: list[str] = []

    @app.processor(topic, group="g", transaction=Psycopg(postgres), retry=Retry(attempts=1))
    def handle(value: int, message: Message[int, Any]) -> None:
        KINDS[0].write(message.transaction, message.id, value)
        if not lost:
            process = message.transaction.info.backend_pid
            until(
                lambda: not place.execute(f"SELECT 1 FROM pg_stat_activity WHERE pid = {process}"),
                60, "the server has ended the transaction",
            )  # fmt: skip
            with pytest.raises(psycopg.Error) as caught:
                message.transaction.execute("SELECT 1")
            lost.append(str(caught.value))
            raise caught.value

    async with harness(app, url=url) as h:
        await topic.publish(0, id="m0")
        await h.settled()
        stats = handle.stats()
        assert stats is not None
        assert (stats.dead_letters, stats.retries) == (0, 0)
    assert len(lost) == 1
    assert place.effects() == {"m0": 1}


async def test_a_topic_made_anew_has_other_messages(url: str, postgres: str) -> None:
    """Places recur there, and so do IDs that are made from places."""
    place = Place(postgres)
    name, group = f"orders-{uuid4().hex[:8]}", f"g-{uuid4().hex[:8]}"
    for _ in range(2):
        app = Streams(url)
        topic = app.topic(name, int, partitions=1)

        @app.processor(topic, group=group, transaction=AsyncPsycopg(postgres))
        async def handle(value: int, message: Message[int, Any]) -> None:
            await ASYNC.write(message.transaction, message.id, value)

        async with harness(app, url=url) as h:
            for number in range(3):
                await topic.publish(number, id=f"m{number}")
            await h.settled()

        log = await asyncio.to_thread(open_log, url)
        await asyncio.to_thread(log.delete_topic, name)
        await asyncio.to_thread(log.delete_group, group)
        await asyncio.to_thread(log.close)
    assert place.effects() == {f"m{number}": 2 for number in range(3)}


@pytest.mark.parametrize("is_purged", [True, False])
async def test_what_takes_the_place_of_messages_that_a_log_has_lost_is_handled(
    tmp_path: Path,
    is_purged: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log is restored from an older copy. What was settled in these places is known by the mark
    where rows were purged, and where they were not by the place, if the messages have no IDs."""
    monkeypatch.setattr("streams.inbox.purging.PURGE_INTERVAL", 0.05)
    place = Place(str(tmp_path / "effects.db"))
    log, copy = tmp_path / "log", tmp_path / "copy"
    url = f"sqlite:///{log / 'log.db'}"
    log.mkdir()

    async def handle_more(numbers: range) -> InboxStats:
        app = Streams(url)
        topic = app.topic("orders", int, partitions=1)
        database = Sqlite(place.place, keep=0 if is_purged else 86_400)

        @app.processor(topic, group="g", transaction=database)
        def handle(value: int, message: Message[int, Any]) -> None:
            BY_NAME["sqlite"].write(message.transaction, f"m{value}", value)

        async with harness(app, url=url) as h:
            records = [topic.record(number, id=f"m{number}") for number in numbers]
            for record in records:
                record.id = record.id if is_purged else ""
            await app.publisher.publish_many(topic.name, records)
            await h.settled()
            marked = "SELECT mark FROM streams_inbox_marks WHERE topic = 'orders'"
            ends = h.log.watermarks(topic.name, 0)[1] if is_purged else 0
            await asyncio.to_thread(
                until, lambda: [int(mark) for (mark,) in place.execute(marked)] == [ends], 60,
                "it is purged",
            )  # fmt: skip
            assert handle.inbox is not None
            return handle.inbox.stats

    assert (await handle_more(range(3))).losses == 0
    shutil.copytree(log, copy)
    assert (await handle_more(range(3, 8))).losses == 0
    shutil.rmtree(log)
    shutil.copytree(copy, log)
    assert (await handle_more(range(8, 11))).losses == 1
    assert "its database knows messages up to 8: the log was restored" in caplog.text
    assert (await handle_more(range(11, 13))).losses == 0
    assert place.effects() == {f"m{number}": 1 for number in range(13)}


async def test_what_takes_the_place_of_a_kafka_logs_lost_end_is_handled(
    lifetime: Lifetime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The group stands beyond the end that is left. Others write, without IDs, what then stands in
    places that the database knows."""
    place = Place(str(tmp_path / "effects.db"))
    with Kafka(lifetime) as cluster:
        partition = cluster.nodes[0].folder / "data" / "orders-0"

        def produce(numbers: Sequence[int]) -> None:
            producer = Producer({"bootstrap.servers": cluster.bootstrap})
            for number in numbers:
                producer.produce("orders", str(number).encode(), partition=0)
            assert producer.flush(60) == 0

        async def handle(numbers: Sequence[int]) -> InboxStats:
            app = Streams(cluster.url)
            topic = app.topic("orders", int, partitions=1)

            @app.processor(topic, group="g", transaction=Sqlite(place.place))
            def write(value: int, message: Message[int, Any]) -> None:
                BY_NAME["sqlite"].write(message.transaction, f"m{value}", value)

            # A group beyond the end has nothing to do, until it has gone back.
            expected = {f"m{number}" for number in numbers}
            async with harness(app, url=cluster.url) as h:
                await asyncio.to_thread(
                    until, lambda: expected <= set(place.effects()), 120, "they are handled"
                )
                await h.settled(within=120)
                assert write.inbox is not None
                return write.inbox.stats

        log = open_log(cluster.url)
        log.create_topic("orders", 1)
        log.close()
        produce(range(3))
        await handle(range(3))
        await asyncio.to_thread(cluster.stop)
        shutil.copytree(partition, tmp_path / "copy")
        await asyncio.to_thread(cluster.start)
        produce(range(3, 8))
        assert (await handle(range(8))).losses == 0
        assert place.effects() == {f"m{number}": 1 for number in range(8)}
        await asyncio.to_thread(cluster.stop)
        shutil.rmtree(partition)
        shutil.copytree(tmp_path / "copy", partition)
        await asyncio.to_thread(cluster.start)
        produce([8, 9])  # in the places of 3 and 4
        assert (await handle([8, 9])).losses == 1
        assert "or has lost its end" in caplog.text
        effects = place.effects()
        assert {effects[f"m{number}"] for number in range(3, 10)} == {1}
