"""Which messages are the same one: by source and ID, wherever the ID stands."""

from __future__ import annotations

import asyncio
import sqlite3
from copy import copy
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

import pytest
import redis

from streams import DeadLetterManager, Dedup, Message, Retry, Sqlite, Streams, Topic
from streams.derived_records import redrives_of
from streams.inbox.calls import run_calls
from streams.inbox.entries import Entries
from streams.inbox.identity import position_text
from streams.testing import harness
from tests.inbox.kinds import KINDS, Place
from tests.servers.find import RedisAddress

(SQLITE,) = (kind for kind in KINDS if kind.name == "sqlite")


async def test_a_source_makes_another_message_of_an_id(tmp_path: Path) -> None:
    """Where none is named, topic and partition are the source."""
    place = Place(str(tmp_path / "effects.db"))
    app = Streams("memory://")
    topic = app.topic("numbers", int, partitions=2)

    @app.processor(topic, group="g", transaction=Sqlite(place.place), dedup=Dedup(window=0))
    def handle(value: int, message: Message[int, sqlite3.Connection]) -> None:
        source = message.headers.get("ce_source") or f"partition {message.partition}"
        SQLITE.write(message.transaction, source, value)

    async with harness(app) as h:
        for partition in (0, 1):
            for source in (None, "/here", "/there", None, "/here"):
                headers = {} if source is None else {"ce_source": source}
                record = topic.record(partition, id="same", headers=headers)
                record.partition = partition
                await topic.connection.publisher.publish(topic.name, record)
        await h.settled()
        assert handle.inbox is not None
        assert handle.inbox.stats.duplicates == 6
    assert place.effects() == {"partition 0": 1, "partition 1": 1, "/here": 1, "/there": 1}


async def test_a_batch_gives_its_messages_the_names_that_each_has_alone(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "effects.db"))
    app = Streams("memory://")
    topic = app.topic("numbers", int, partitions=2)
    handled = list[int]()

    @app.processor(topic, group="g", batch=20, transaction=Sqlite(place.place))
    def handle(values: list[int], messages: list[Message[int, sqlite3.Connection]]) -> None:
        inbox: Any = handle.inbox
        identities = inbox.identities
        entries: Any = Entries(inbox._access, identities, inbox.partitions, {}, None)
        rows = zip(values, messages, strict=True)
        singly = [run_calls(entries.find(*each)) for each in rows]
        assert identities.known_entries(messages) == singly
        identities._owned.clear()
        assert identities.known_entries(messages) is None
        assert run_calls(entries.find_all(values, messages)) == singly
        handled.extend(values)

    async with harness(app) as h:
        for source in (None, "/here"):
            for number in range(40):
                headers = {} if source is None else {"ce_source": source}
                record = topic.record(number, headers=headers)
                record.partition = number % 2
                await topic.connection.publisher.publish(topic.name, record)
            await h.settled()
    assert sorted(handled) == sorted([*range(40), *range(40)])


async def test_who_may_have_lost_a_partition_begins_nothing_of_it(tmp_path: Path) -> None:
    """It was frozen, say: where it saw the log end, others have written and purged since."""
    place = Place(str(tmp_path / "effects.db"))
    app = Streams("memory://")
    topic = app.topic("numbers", int, partitions=1)

    @app.processor(topic, group="g", transaction=Sqlite(place.place))
    def handle(value: int, message: Message[int, sqlite3.Connection]) -> None:
        SQLITE.write(message.transaction, "handled", value)

    async with harness(app) as h:
        await topic.publish(1)
        await h.settled()
        inbox: Any = handle.inbox
        (owned,) = inbox.identities._owned.values()
        mark = position_text(100)
        place.execute(f"UPDATE streams_inbox_marks SET mark = '{mark}'")
        stale = copy(owned.assignment)
        stale.log_end = 1
        partitions, opening = inbox.partitions, inbox._opening
        partitions._to_begin[stale] = owned._replace(assignment=stale)
        # Before the transaction; within it.
        for is_owned in ([False], [True, False]):
            partitions.is_owned = Mock(side_effect=is_owned)
            await asyncio.to_thread(run_calls, opening.make_ready())
            assert stale in partitions._to_begin
            assert stale not in partitions.begun
            assert place.execute("SELECT mark FROM streams_inbox_marks") == [(mark,)]
        partitions.is_owned = lambda _: True
        await asyncio.to_thread(run_calls, opening.make_ready())
        assert stale in partitions.begun
        assert place.execute("SELECT mark FROM streams_inbox_marks") != [(mark,)]


async def test_an_id_in_the_value_goes_before_one_in_the_headers(
    redis_server: RedisAddress, tmp_path: Path
) -> None:
    """What another producer wrote without our help; the same rule as for deduplication."""
    place = Place(str(tmp_path / "effects.db"))
    app = Streams(redis_server.url)
    name = f"orders-{uuid4().hex[:8]}"
    topic = app.topic(name, dict[str, str], id="number")

    @app.processor(
        topic, group=f"g-{uuid4().hex[:8]}", transaction=Sqlite(place.place), dedup=Dedup(window=0)
    )
    def handle(value: dict[str, str], message: Message[dict[str, str], sqlite3.Connection]) -> None:
        source = message.headers.get("ce_source", "none")
        SQLITE.write(message.transaction, f"{source} {value['number']}", 1)

    with redis.Redis.from_url(redis_server.url) as client:
        for number, id in (("o1", None), ("o2", "same"), ("o1", "same"), ("o1", "other")):
            for source in ("/here", "/there", None):
                fields = {"value": f'{{"number": "{number}"}}', "ce_source": source, "ce_id": id}
                client.xadd(name, {key: each for key, each in fields.items() if each is not None})
    async with harness(app, url=redis_server.url) as h:
        await h.settled()
        assert handle.inbox is not None
        assert handle.inbox.stats.duplicates == 6
    assert place.effects() == {
        f"{source} {number}": 1 for source in ("/here", "/there", "none") for number in ("o1", "o2")
    }
    rows = place.execute("SELECT id FROM streams_inbox")
    assert sorted(bytes(row[0])[8:].decode() for row in rows) == 3 * ["o1"] + 3 * ["o2"]


@pytest.mark.parametrize("first", ["new", "old"])
async def test_a_dead_letter_of_a_topic_that_was_made_anew_is_no_message_of_the_new_one(
    tmp_path: Path, first: str
) -> None:
    """Though both have one ID, and stood in one place."""
    url, handled = f"sqlite:///{tmp_path / 'log.db'}", list[str]()

    def make() -> tuple[Streams, Topic[str]]:
        app = Streams(url)
        topic = app.topic("orders", str, partitions=1)

        @app.processor(
            topic, group="g", transaction=Sqlite(tmp_path / "a.db"), retry=Retry(attempts=1)
        )
        def handle(value: str, message: Message[str, sqlite3.Connection]) -> None:
            if value == "old" and not redrives_of(message.raw.headers):
                raise ValueError("at first")
            handled.append(value)

        return app, topic

    app, topic = make()
    async with harness(app, url=url) as h:
        await topic.publish("old", id="order-1")
        await h.settled()
        await asyncio.to_thread(h.log.delete_topic, "orders")
    app, topic = make()
    async with harness(app, url=url) as h:
        for which in (first, "old" if first == "new" else "new"):
            if which == "new":
                await topic.publish("new", id="order-1")
            else:
                assert await DeadLetterManager(app, "orders.g.dead").reprocess() == 1
            await h.settled()
    assert sorted(handled) == ["new", "old"]
