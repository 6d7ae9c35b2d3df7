"""``to=`` with ``transaction=``: what a handler returns is rows of an outbox in its transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streams import (
    AsyncPsycopg,
    BatchError,
    ConfigError,
    Dedup,
    Message,
    Outbox,
    ProcessorDied,
    Psycopg,
    Retry,
    Sqlite,
    Streams,
    Topic,
)
from streams.databases.protocol import run_steps
from streams.testing import harness
from tests.inbox.kinds import KINDS, Kind, Place
from tests.outbox.world import PATIENCE, until

pytestmark = pytest.mark.anyio

RETRY = Retry(attempts=4, delay=0.001)


SOME = [each for each in KINDS if each.name in ("async-sqlalchemy", "sqlite")]
"""An async one and a plain one, where only the toolkit's own code can differ."""


def on(kinds: list[Kind]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.name)


@pytest.fixture
def effects(kind: Kind, tmp_path: Path, request: pytest.FixtureRequest) -> Place:
    """An empty database of the kind."""
    if kind.server:
        return Place(request.getfixturevalue("postgres"))
    return Place(str(tmp_path / "effects.db"))


class Shop:
    """An app whose processor turns numbers into what they are made to."""

    def __init__(self, kind: Kind, place: str) -> None:
        self.app = Streams("memory://")
        self.numbers: Topic[int] = self.app.topic("numbers", int, partitions=1)
        self.results: Topic[int] = self.app.topic("results", int, partitions=1)
        self.database = kind.make(place)
        self.outbox = Outbox(self.app, self.database)
        self.kind = kind

    def declare(self, make: Any, **options: Any) -> Any:
        """A processor whose handler writes an effect and returns ``make(value, message)``."""
        write, asynchronous = self.kind.write, self.kind.asynchronous

        async def handle_async(value: int, message: Message[int, Any]) -> Any:
            await write(message.transaction, message.id, value)
            return make(value, message)

        def handle_plain(value: int, message: Message[int, Any]) -> Any:
            write(message.transaction, message.id, value)
            return make(value, message)

        return self.processor(handle_async if asynchronous else handle_plain, **options)

    def declare_batch(self, make: Any, **options: Any) -> Any:
        """The same with a handler of batches, which returns ``make(values)``."""
        write, asynchronous = self.kind.write, self.kind.asynchronous

        async def handle_async(values: list[int], messages: list[Message[int, Any]]) -> Any:
            for value, message in zip(values, messages, strict=True):
                await write(message.transaction, message.id, value)
            return make(values)

        def handle_plain(values: list[int], messages: list[Message[int, Any]]) -> Any:
            for value, message in zip(values, messages, strict=True):
                write(message.transaction, message.id, value)
            return make(values)

        return self.processor(handle_async if asynchronous else handle_plain, **options)

    def processor(self, handler: Any, **options: Any) -> Any:
        declare: Any = self.app.processor
        options = {"retry": RETRY, "dedup": Dedup(window=0)} | options
        return declare(
            self.numbers, group="g", to=self.results, transaction=self.database, **options
        )(handler)


def several(value: int, message: Message[Any]) -> Any:
    """Two results, none, or one, and at first now and then an error."""
    if value % 5 == 3 and message.attempt < 2:
        raise ValueError("not yet")
    if value % 3 == 0:
        return [value, -value]
    return None if value % 3 == 1 else value


def expected(count: int) -> dict[str, int]:
    """What ``several`` comes to, by message ID."""
    found: dict[str, int] = {}
    for value in range(count):
        made = [value, -value] if value % 3 == 0 else [value][: value % 3 - 1]
        found |= {f"m{value}/g/{number}": each for number, each in enumerate(made)}
    return found


async def relayed(place: Place) -> None:
    """Until nothing is in the outbox any more."""
    rows = "SELECT sequence, state, error FROM outbox"
    await until(lambda: not place.execute(rows), lambda: place.execute(rows))


async def published(h: Any, topic: Topic[int]) -> list[tuple[str, int]]:
    return [(message.id, message.value) for message in await h.messages(topic)]


@on(KINDS)
async def test_each_result_once_by_its_derived_id(kind: Kind, effects: Place) -> None:
    shop = Shop(kind, effects.place)
    shop.declare(several, concurrency=4)
    async with harness(shop.app, relay=True) as h:
        for value in [*range(12), *range(6)]:  # some once more, which deduplication lets pass
            await shop.numbers.publish(value, id=f"m{value}")
        await h.settled()
        await relayed(effects)
        found = await published(h, shop.results)
        causes = {message.causation_id for message in await h.messages(shop.results)}
    assert sorted(found) == sorted(expected(12).items())
    assert causes == {f"m{value}" for value in range(12) if value % 3 != 1}
    assert effects.effects() == {f"m{value}": 1 for value in range(12)}


@on(SOME)
async def test_a_batch_and_what_it_returns_are_one_transaction(kind: Kind, effects: Place) -> None:
    shop = Shop(kind, effects.place)
    sizes: list[int] = []

    def make(values: list[int]) -> list[Any]:
        sizes.append(len(values))
        if 7 in values and sizes[0] == len(values) > 1:
            results = [[value, -value] for value in values]
            raise BatchError({values.index(7): ValueError("not yet")}, results)
        return [[value, -value] if value % 2 else None for value in values]

    processor = shop.declare_batch(make, batch=70)
    processor.pause()
    async with harness(shop.app, relay=True) as h:
        for value in range(70):
            await shop.numbers.publish(value, id=f"m{value}")
        processor.resume()
        await h.settled()
        await relayed(effects)
        found = await published(h, shop.results)
    odd = range(1, 70, 2)
    assert sorted(found) == sorted(
        (f"m{value}/g/{number}", each)
        for value in odd
        for number, each in enumerate((value, -value))
    )
    assert effects.effects() == {f"m{value}": 1 for value in range(70)}


@on(SOME)
async def test_a_batch_is_written_in_order_by_few_statements(kind: Kind, effects: Place) -> None:
    shop = Shop(kind, effects.place)
    shop.outbox.relayed_by = "command"
    processor = shop.declare_batch(lambda values: [list(range(value)) for value in values], batch=9)
    processor.pause()
    async with harness(shop.app) as h:
        await shop.numbers.publish_many([100, 30])
        processor.resume()
        await h.settled()
    rows = effects.execute("SELECT payload, aggregatetype, type FROM outbox ORDER BY sequence")
    assert [int(bytes(row[0])) for row in rows] == [*range(100), *range(30)]
    assert {tuple(row[1:]) for row in rows} == {("results", "int")}


@on(SOME)
async def test_a_wrong_number_of_results_fails_each_message(kind: Kind, effects: Place) -> None:
    shop = Shop(kind, effects.place)
    processor = shop.declare_batch(lambda values: [1, 2, 3], batch=9, retry=Retry(attempts=1))
    processor.pause()
    async with harness(shop.app, relay=True) as h:
        await shop.numbers.publish_many([1, 2])
        processor.resume()
        await h.settled()
        letters = await h.dead(shop.numbers, "g")
    assert effects.effects() == {}
    assert effects.execute("SELECT 1 FROM outbox") == []
    said = {letter.headers["__streams.errors.message"] for letter in letters}
    assert said == {
        "handle_async returned 3 results for a batch of 1 messages: return one for each, None for "
        "nothing".replace("handle_async", processor.name)
    }
    assert len(letters) == 2


@on(SOME)
async def test_what_cannot_be_published_is_rolled_back_with_its_effect(
    kind: Kind, effects: Place
) -> None:
    """A result that does not fit its topic, and one that is too large for the outbox."""
    shop = Shop(kind, effects.place)
    shop.outbox.max_bytes = 60

    def make(value: int, message: Message[Any]) -> Any:
        return "no number" if value == 1 else 10 ** (20 * value)

    shop.declare(make, retry=Retry(attempts=1))
    async with harness(shop.app, relay=True) as h:
        await shop.numbers.publish_many([1, 5, 0])
        await h.settled()
        letters = await h.dead(shop.numbers, "g")
    errors = [letter.headers["__streams.errors.exception"] for letter in letters]
    assert sorted(errors) == ["stream_codecs.errors.EncodeError", "streams.errors.TooLarge"]
    assert list(effects.effects().values()) == [1]  # of the third


async def test_a_commit_that_fails_publishes_nothing(postgres: str) -> None:
    place = Place(postgres)
    place.execute(
        "ALTER TABLE effects ADD CONSTRAINT once UNIQUE (number) DEFERRABLE INITIALLY DEFERRED"
    )
    kind = next(each for each in KINDS if each.name == "async-psycopg")
    shop = Shop(kind, postgres)
    shop.declare(lambda value, message: value, retry=Retry(attempts=1))
    async with harness(shop.app, relay=True) as h:
        await shop.numbers.publish(5, id="m1")
        await shop.numbers.publish(5, id="m2")  # refused by COMMIT alone
        await h.settled()
        await relayed(place)
        found = await published(h, shop.results)
        letters = await h.dead(shop.numbers, "g")
    assert found == [("m1/g/0", 5)]
    assert [letter.id for letter in letters] == ["m2"]


async def test_a_generator_runs_inside_the_transaction(tmp_path: Path) -> None:
    place = Place(str(tmp_path / "effects.db"))
    app = Streams("memory://")
    numbers, results = app.topic("numbers", int), app.topic("results", int)
    database = Sqlite(place.place)
    Outbox(app, database)

    @app.processor(numbers, group="g", to=results, transaction=database)
    def count(value: int, message: Message[int, Any]) -> Iterator[int]:
        for number in range(value):
            message.transaction.execute("INSERT INTO effects VALUES (?, ?)", (message.id, number))
            yield number

    async with harness(app, relay=True) as h:
        await numbers.publish(3, id="m")
        await h.settled()
        await relayed(place)
        assert [each for _, each in await published(h, results)] == [0, 1, 2]
    assert place.effects() == {"m": 3}


async def test_ids_that_stand_in_the_values(tmp_path: Path) -> None:
    """The results' IDs are those that ``to=`` derives without a transaction."""
    app = Streams("memory://")
    numbers = app.topic("numbers", dict[str, str], id="name")
    results = [app.topic(name, str) for name in ("plain", "transacted")]
    database = Sqlite(tmp_path / "effects.db")
    Outbox(app, database)

    def name_of(value: dict[str, str]) -> str:
        return value["name"]

    app.processor(numbers, group="g", to=results[0])(name_of)
    app.processor(numbers, group="g2", to=results[1], transaction=database)(name_of)
    place = Place(str(tmp_path / "effects.db"))
    async with harness(app, relay=True) as h:
        await numbers.publish({"name": "a"})
        await h.settled()
        await relayed(place)
        plain, transacted = [(await h.messages(topic))[0] for topic in results]
    assert plain.id == "a/g/0"
    assert transacted.id == "a/g2/0"
    assert transacted.headers == {**plain.headers, "ce_id": "a/g2/0"}


async def test_debezium_leaves_nothing_behind(postgres: str) -> None:
    place = Place(postgres)
    app = Streams("memory://")
    numbers, results = app.topic("numbers", int), app.topic("results", int)
    database = AsyncPsycopg(postgres)
    Outbox(app, database, relayed_by="debezium")
    place.execute("CREATE SEQUENCE written")

    @app.processor(numbers, group="g", to=results, transaction=database)
    async def twice(value: int) -> list[int]:
        return [value, value]

    async with harness(app) as h:
        await numbers.publish(1)
        await h.settled()
    assert place.execute("SELECT 1 FROM outbox") == []
    last = "SELECT last_value FROM pg_sequences WHERE sequencename = 'outbox_sequence_seq'"
    assert place.execute(last) == [(2,)]


async def test_an_error_that_the_handler_swallows(postgres: str) -> None:
    place = Place(postgres)
    app = Streams("memory://")
    numbers, results = app.topic("numbers", int), app.topic("results", int)
    database = Psycopg(postgres)
    Outbox(app, database)

    @app.processor(numbers, group="g", to=results, transaction=database, retry=Retry(attempts=1))
    def swallow(value: int, message: Message[int, Any]) -> int:
        with pytest.raises(Exception, match="nowhere"):
            message.transaction.execute("SELECT * FROM nowhere")
        return value

    async with harness(app) as h:
        await numbers.publish(1)
        await h.settled()
        (letter,) = await h.dead(numbers, "g")
    assert "SwallowedError" in letter.headers["__streams.errors.exception"]
    assert place.execute("SELECT 1 FROM outbox") == []


async def test_a_handler_that_ends_the_transaction_ends_the_processor(tmp_path: Path) -> None:
    app = Streams("memory://")
    numbers, results = app.topic("numbers", int), app.topic("results", int)
    database = Sqlite(tmp_path / "effects.db")
    Outbox(app, database)

    @app.processor(numbers, group="g", to=results, transaction=database)
    def end(value: int, message: Message[int, Any]) -> int:
        message.transaction.commit()
        return value

    with pytest.raises(ProcessorDied, match=r"committed or rolled back message\.transaction"):
        async with harness(app) as h:
            await numbers.publish(1)
            await h.settled()


async def test_a_replay_into_the_handler_publishes_nothing(tmp_path: Path) -> None:
    from streams.replay import replay

    place = Place(str(tmp_path / "effects.db"))
    app = Streams("memory://")
    numbers, results = app.topic("numbers", int), app.topic("results", int)
    database = Sqlite(place.place)
    Outbox(app, database)

    @app.processor(numbers, group="g", to=results, transaction=database)
    def same(value: int, message: Message[int, Any]) -> int:
        message.transaction.execute("INSERT INTO effects VALUES (?, ?)", (message.id, value))
        return value

    async with harness(app) as h:
        await numbers.publish(1, id="m")
        await h.settled()
        await replay(app, numbers, same)
    assert place.effects() == {"m": 2}
    assert place.execute("SELECT count(*) FROM outbox") == [(1,)]


# -- which outbox


def declared(database: Any, *outboxes: Any) -> Streams:
    """An app with a processor whose results go through one of these."""
    app = Streams("memory://")
    numbers, results = app.topic("numbers", int), app.topic("results", int)
    for number, (place, options) in enumerate(outboxes):
        Outbox(app, place, table=f"outbox{number}", relayed_by="command", **options)

    if database.asynchronous:

        async def same_async(value: int) -> int:
            return value

        app.processor(numbers, group="g", to=results, transaction=database)(same_async)
    else:

        def same(value: int) -> int:
            return value

        app.processor(numbers, group="g", to=results, transaction=database)(same)
    return app


DSN = "postgresql://me:secret@127.0.0.1:1/shop"


def pool() -> Any:
    raise AssertionError("nothing is opened")


@pytest.mark.parametrize(
    ("database", "outboxes", "said"),
    [
        (Psycopg(DSN), (), r"and the app has none: declare outbox = Outbox\(app, database\)"),
        (
            Psycopg(DSN), [("postgresql://me@127.0.0.1:1/other", {})],
            r"none of the app's is known to be there: declare outbox = Outbox\(app, database\)",
        ),
        (
            AsyncPsycopg(pool), [(DSN, {})],
            r"declare outbox = Outbox\(app, 'postgresql://\.\.\.', transaction=database\)",
        ),
        (Psycopg(DSN), [(DSN, {}), (DSN, {})], "'outbox0', 'outbox1' are all in that database"),
    ],
)  # fmt: skip
async def test_without_an_outbox_that_is_known(database: Any, outboxes: Any, said: str) -> None:
    app = declared(database, *outboxes)
    with pytest.raises(ConfigError, match=f"to='results' with transaction=.*{said}") as caught:
        async with app:
            pass
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "address"),
    [
        (Psycopg(DSN), "postgresql+asyncpg://me@127.0.0.1:1/shop?sslmode=disable"),
        (Psycopg(DSN), "host=127.0.0.1 port=1 dbname='shop' user=me"),
        (Psycopg("postgresql:///shop?host=/run/pg"), "host=/run/pg dbname=shop"),
        (Psycopg("host=/run/pg user=shop"), "postgresql://shop@/shop?host=%2Frun%2Fpg&port=5432"),
        (Sqlite("folder/../a.db"), "sqlite:///a.db"),
    ],
)
def test_an_outbox_of_the_same_address(given: Any, address: str) -> None:
    app = Streams("memory://")
    assert Outbox(app, address).is_in(given)
    other = Psycopg("host=elsewhere dbname=shop user=me")
    assert not Outbox(app, address, table="other").is_in(other)


def test_another_user_may_find_another_table() -> None:
    """By default PostgreSQL looks first into the schema that is called as the user is."""
    there = "postgresql://relay@127.0.0.1:1/shop"
    assert not Outbox(Streams("memory://"), there).is_in(Psycopg(DSN))
    assert Outbox(Streams("memory://"), there, table="app.outbox").is_in(Psycopg(DSN))
    elsewhere = "postgresql://relay@127.0.0.1:1/other"
    assert not Outbox(Streams("memory://"), elsewhere, table="app.outbox").is_in(Psycopg(DSN))


def test_other_options_may_choose_another_schema() -> None:
    """So its table of that name may be another one."""
    there = "postgresql://127.0.0.1:1/shop?options=-csearch_path%3Dtenant"
    assert Outbox(Streams("memory://"), there).is_in(Psycopg(there))
    assert not Outbox(Streams("memory://"), there).is_in(Psycopg("postgresql://127.0.0.1:1/shop"))


def test_one_that_names_the_database_goes_first() -> None:
    from streams.inbox.results import choose_outbox

    app, database = Streams("memory://"), AsyncPsycopg(DSN)
    Outbox(app, DSN, table="a")
    named = Outbox(app, DSN, table="b", transaction=[Psycopg(DSN), database])
    assert choose_outbox(list(app.outboxes.values()), database, "here") is named


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"database": AsyncPsycopg(pool)}, r"a pool or a function of yours does not say where to"),
        ({"database": DSN, "transaction": DSN}, r"Outbox\(transaction=str\): what a processor has"),
        ({"database": DSN, "transaction": 7}, r"Outbox\(transaction=int\)"),
        ({"database": DSN, "transaction": [Psycopg(DSN), None]}, r"transaction=NoneType\)"),
    ],
)
def test_a_declaration_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Outbox(Streams("memory://"), **options)


async def test_a_pool_of_the_users_and_an_address_for_the_relay(postgres: str) -> None:
    from psycopg_pool import AsyncConnectionPool

    place = Place(postgres)
    app = Streams("memory://")
    numbers, results = app.topic("numbers", int), app.topic("results", int)
    async with AsyncConnectionPool(postgres, min_size=1, max_size=3, open=False) as opened:
        database = AsyncPsycopg(lambda: opened)
        Outbox(app, postgres, transaction=database)

        @app.processor(numbers, group="g", to=results, transaction=database)
        async def double(value: int) -> int:
            return 2 * value

        async with harness(app, relay=True) as h:
            await numbers.publish(4, id="m")
            await h.settled()
            await relayed(place)
            assert await published(h, results) == [("m/g/0", 8)]


@on([each for each in KINDS if each.name == "psycopg"])
async def test_who_makes_the_tables_and_freezes_holds_nobody_up(
    kind: Kind, effects: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends its transaction."""
    monkeypatch.setattr("streams.databases.locking.IDLE_WITH_LOCK", 0.3)
    shop = Shop(kind, effects.place)
    shop.database.reserve_connections(2)
    shop.database.enter()

    def make_tables() -> None:
        session = shop.database.begin()
        try:
            run_steps(session, shop.outbox.create_tables_there("postgresql"))
            session.commit()
        finally:
            session.rollback()

    frozen = shop.database.begin()
    try:
        run_steps(frozen, shop.outbox.create_tables_there("postgresql"))
        await asyncio.wait_for(asyncio.to_thread(make_tables), PATIENCE)
    finally:
        frozen.rollback()
        shop.database.leave()


@on(SOME)
async def test_missing_tables_that_must_not_be_made(kind: Kind, effects: Place) -> None:
    from streams.inbox import ddl

    if kind.server:
        effects.execute(ddl("postgresql"))
    else:
        import sqlite3

        sqlite3.connect(effects.place).executescript(ddl("sqlite")).connection.close()
    database = kind.make(effects.place, create=False)
    app = declared(database, (database, {}))
    with pytest.raises(ProcessorDied, match=r"outbox 'outbox0' is missing there.*create_tables"):
        async with harness(app) as h:
            await app.topics["numbers"].publish(1)
            await h.settled()
