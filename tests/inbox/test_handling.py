"""What a transaction means for its messages, in each library and database."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec import Struct

from streams import (
    BatchError,
    DeadLetterManager,
    Message,
    Reject,
    Retry,
    Sqlite,
    Streams,
)
from streams.eventsourcing import Aggregate
from streams.testing import harness
from tests.inbox.kinds import Kind, Place


def url() -> str:
    return f"memory://{uuid4().hex}"


def by_id(message: Message[Any]) -> str:
    return message.id


def nothing(message: Message[Any]) -> None:
    pass


async def test_what_returns_is_committed_and_what_raises_is_not(kind: Kind, place: Place) -> None:
    app = Streams(url())
    topic = app.topic("numbers", int)
    attempts: list[int] = []

    def once_in_three(message: Message[Any]) -> None:
        attempts.append(message.value)
        if message.value == 7 and attempts.count(7) < 3:
            raise ValueError("not yet")

    app.processor(
        topic, group="g", concurrency=4, transaction=kind.make(place.place),
        retry=Retry(attempts=5, delay=0.001),
    )(kind.handler(once_in_three, by_id))  # fmt: skip
    async with harness(app) as h:
        for number in range(10):
            await topic.publish(number, id=f"m{number}")
        await h.settled()
    assert place.effects() == {f"m{number}": 1 for number in range(10)}
    assert attempts.count(7) == 3
    assert place.execute("SELECT count(*) FROM streams_inbox") == [(10,)]


async def test_an_error_that_cannot_be_asked_for_its_code_is_rolled_back_as_well(
    kind: Kind, place: Place
) -> None:
    """Where the code of a driver's error is looked for, this one raises another error."""

    class Refused(Exception):
        def __getattr__(self, name: str) -> Any:
            return {"status": 503}[name]

    app = Streams(url())
    topic = app.topic("numbers", int)
    attempts: list[int] = []

    def fail(message: Message[Any]) -> None:
        attempts.append(message.attempt)
        if message.attempt < 3:
            raise Refused

    app.processor(
        topic, group="g", transaction=kind.make(place.place), retry=Retry(attempts=3, delay=0.001)
    )(kind.handler(fail, by_id))  # fmt: skip
    async with harness(app) as h:
        await topic.publish(1, id="m1")
        await h.settled()
        assert await h.dead(topic, group="g") == []
    assert attempts == [1, 2, 3]
    assert place.effects() == {"m1": 1}


async def test_a_message_that_comes_again_is_settled_without_running(
    kind: Kind, place: Place
) -> None:
    """A copy in another place, which deduplication by the window would let pass: it is off."""
    from streams import Dedup

    app = Streams(url())
    topic = app.topic("numbers", int)
    database = kind.make(place.place)
    handler = app.processor(
        topic, group="g", transaction=database, dedup=Dedup(window=0)
    )(kind.handler(nothing, by_id))  # fmt: skip
    async with harness(app) as h:
        for _ in range(3):
            await topic.publish(1, id="same")
        await topic.publish(2, id="other")
        await h.settled()
        assert handler.inbox is not None
        assert handler.inbox.stats.duplicates == 2
    assert place.effects() == {"same": 1, "other": 1}


async def test_a_batch_is_one_transaction(kind: Kind, place: Place) -> None:
    app = Streams(url())
    topic = app.topic("numbers", int)
    sizes: list[int] = []
    failed: list[int] = []

    def look(values: list[int]) -> None:
        sizes.append(len(values))
        if 5 in values and len(failed) < 2:
            failed.append(len(values))
            raise BatchError({values.index(5): ValueError("not yet")})

    if kind.asynchronous:

        async def handle_async(values: list[int], messages: list[Message[int, Any]]) -> None:
            for value, message in zip(values, messages, strict=True):
                await kind.write(message.transaction, message.id, value)
            look(values)

        handler: Any = handle_async
    else:

        def handle_plain(values: list[int], messages: list[Message[int, Any]]) -> None:
            for value, message in zip(values, messages, strict=True):
                kind.write(message.transaction, message.id, value)
            look(values)

        handler = handle_plain
    processor = app.processor(
        topic, group="g", batch=10, transaction=kind.make(place.place),
        retry=Retry(attempts=5, delay=0.001),
    )(handler)  # fmt: skip
    processor.pause()
    async with harness(app) as h:
        for number in range(20):
            await topic.publish(number, id=f"m{number}")
        processor.resume()
        await h.settled()
    assert place.effects() == {f"m{number}": 1 for number in range(20)}
    assert failed[0] > 1  # the batch, whose others were rolled back with it
    assert failed[1] == 1  # and the message alone, which was tried again
    assert processor.inbox is not None
    assert processor.inbox.stats.committed < 20


async def test_a_dead_message_comes_back_and_a_done_one_does_not(kind: Kind, place: Place) -> None:
    app = Streams(url())
    topic = app.topic("numbers", int)
    poison = True

    def refuse(message: Message[Any]) -> None:
        if message.value == 3 and poison:
            raise Reject("not today")

    app.processor(topic, group="g", transaction=kind.make(place.place))(kind.handler(refuse, by_id))
    async with harness(app) as h:
        for number in range(5):
            await topic.publish(number, id=f"m{number}")
        await h.settled()
        name = (
            "convert_from(substr(id, 9), 'UTF8')" if kind.server else "CAST(substr(id, 9) AS TEXT)"
        )
        dead = f"SELECT {name}, redrive FROM streams_inbox WHERE dead"
        assert place.execute(dead) == [("m3", 0)]
        assert "m3" not in place.effects()
        letters = DeadLetterManager(app, "numbers.g.dead")
        for expected in (1, 2):
            if expected == 2:
                poison = False
            assert await letters.reprocess() == 1
            await h.settled()
            if poison:
                assert place.execute(dead) == [("m3", expected)]
    assert place.effects() == {f"m{number}": 1 for number in range(5)}
    assert place.execute(dead) == []


async def test_a_handler_that_ends_the_transaction_itself_ends_the_processor(
    kind: Kind, place: Place
) -> None:
    from streams import ProcessorDied

    app = Streams(url())
    topic = app.topic("numbers", int)
    if kind.asynchronous:

        async def commit_async(value: int, message: Message[int, Any]) -> None:
            if kind.name == "asyncpg":
                await message.transaction.execute("COMMIT")
            else:
                await message.transaction.commit()

        handler: Any = commit_async
    else:

        def commit_plain(value: int, message: Message[int, Any]) -> None:
            message.transaction.commit()

        handler = commit_plain
    app.processor(
        topic, group="g", transaction=kind.make(place.place), retry=Retry(attempts=1)
    )(handler)  # fmt: skip
    if kind.name in ("psycopg", "async-psycopg"):  # psycopg refuses it
        async with harness(app) as h:
            await topic.publish(1, id="m1")
            await h.settled()
        assert place.execute("SELECT dead FROM streams_inbox") == [(True,)]
        return
    with pytest.raises(ProcessorDied, match=r"committed or rolled back message\.transaction"):
        async with harness(app) as h:
            await topic.publish(1, id="m1")
            await h.settled()


async def test_an_error_that_the_handler_swallows_fails_the_message(
    kind: Kind, place: Place
) -> None:
    if not kind.server:
        pytest.skip("SQLite goes on after a statement that failed")
    app = Streams(url())
    topic = app.topic("numbers", int)
    if kind.asynchronous:

        async def swallow_async(value: int, message: Message[int, Any]) -> None:
            await kind.write(message.transaction, message.id, value)
            with pytest.raises(Exception, match=r"NULL|null"):
                await kind.write(message.transaction, None, value)  # type: ignore[arg-type]

        handler: Any = swallow_async
    else:

        def swallow_plain(value: int, message: Message[int, Any]) -> None:
            kind.write(message.transaction, message.id, value)
            with pytest.raises(Exception, match=r"NULL|null"):
                kind.write(message.transaction, None, value)  # type: ignore[arg-type]

        handler = swallow_plain
    app.processor(
        topic, group="g", transaction=kind.make(place.place), retry=Retry(attempts=1)
    )(handler)  # fmt: skip
    async with harness(app) as h:
        await topic.publish(1, id="m1")
        await h.settled()
        (letter,) = await h.dead(topic, "g")
    assert place.effects() == {}
    assert "SwallowedError" in letter.headers["__streams.errors.exception"]


async def test_processors_that_share_a_database(kind: Kind, place: Place) -> None:
    app = Streams(url())
    database = kind.make(place.place)
    topic = app.topic("numbers", int)
    for group in ("one", "two"):

        def key(message: Message[Any], group: str = group) -> str:
            return f"{group}-{message.id}"

        app.processor(topic, group=group, concurrency=4, transaction=database)(
            kind.handler(nothing, key)
        )
    for generation in range(2):  # it is opened again with the app
        async with harness(app) as h:
            for number in range(5):
                await topic.publish(number, id=f"{generation}-m{number}")
            await h.settled()
    assert len(place.effects()) == 20


async def test_a_handler_that_runs_again_is_given_the_value_as_it_was(tmp_path: Path) -> None:
    """Also in the same attempt, after a transaction that met another; and where IDs stand in the
    values, which are decoded ahead."""
    app = Streams(f"memory://{uuid4().hex}")
    plain = app.topic("plain", dict[str, int], partitions=1)
    with_id = app.topic("with-id", dict[str, int], id=lambda value: str(value["n"]), partitions=1)
    rerun = app.topic("rerun", dict[str, int], partitions=1)
    batch = app.topic("batch", dict[str, int], partitions=1)
    given: dict[str, list[int]] = defaultdict(list)
    conflict = sqlite3.OperationalError("met another")
    conflict.sqlite_errorname = "SQLITE_BUSY_SNAPSHOT"

    def spend(name: str, value: dict[str, int], error: Exception) -> None:
        given[name].append(value["cents"])
        value["cents"] -= 1
        if len(given[name]) == 1:
            raise error

    retry = Retry(delay=0.001)

    @app.processor(plain, group="g", retry=retry)
    async def of_plain(value: dict[str, int]) -> None:
        spend("plain", value, ValueError())

    @app.processor(with_id, group="g", retry=retry)
    async def of_with_id(value: dict[str, int]) -> None:
        spend("with-id", value, ValueError())

    @app.processor(rerun, group="g", retry=retry, transaction=Sqlite(tmp_path / "a.db"))
    def of_rerun(value: dict[str, int], message: Message[dict[str, int], Any]) -> None:
        assert message.value is value
        spend("rerun", value, conflict)

    @app.processor(batch, group="g", retry=retry, batch=5, transaction=Sqlite(tmp_path / "b.db"))
    def of_batch(
        values: list[dict[str, int]], messages: list[Message[dict[str, int], Any]]
    ) -> None:
        spend("batch", values[0], conflict)

    async with harness(app) as h:
        for topic in (plain, with_id, rerun, batch):
            await topic.publish({"n": 7, "cents": 100})
        await h.settled()
    assert given == {name: [100, 100] for name in ("plain", "with-id", "rerun", "batch")}


class Split(Struct, tag="split", frozen=True):
    parts: tuple[int, ...]


class Paid(Struct, tag="paid", frozen=True):
    cents: int


async def test_an_event_that_is_several_today_is_given_up_by_each_of_its_ids(
    tmp_path: Path,
) -> None:
    """Under these its values are taken, one by one: so whoever was frozen with one of them does not
    handle it when its letter is written, and what was handled stays so."""
    place, log = Place(str(tmp_path / "effects.db")), f"sqlite:///{tmp_path / 'log.db'}"

    def count(total: int, event: Any) -> int:
        return total + 1

    old = Streams(log)
    splits: Aggregate[Split, int] = Aggregate(old, "pays", Split, int, count)
    async with old:
        await splits.append("a", Split((1, 2, 3)), expected="new")
    app = Streams(log)
    pays: Aggregate[Paid, int] = Aggregate(app, "pays", Paid, int, count)

    @pays.upcast(Split)
    def split(event: Split) -> list[Paid]:
        return [Paid(each) for each in event.parts]

    @app.processor(
        pays.events, group="g", transaction=Sqlite(place.place), retry=Retry(attempts=1),
        filter=lambda event: event.cents != 3,
    )  # fmt: skip
    def handle(event: Paid, message: Message[Paid, sqlite3.Connection]) -> None:
        if event.cents == 2:
            raise ValueError("not this one")
        message.transaction.execute("INSERT INTO effects VALUES (?, 1)", (message.id,))

    async with harness(app, url=log) as h:
        await h.settled()
        stats = handle.stats()
        assert stats is not None
        assert stats.dead_letters == 1
    rows = place.execute("SELECT CAST(substr(id, 9) AS TEXT), dead FROM streams_inbox ORDER BY id")
    assert [(id.rpartition("#")[2], dead) for id, dead in rows] == [("0", 0), ("1", 1)]
    assert len(place.effects()) == 1
