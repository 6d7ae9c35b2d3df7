"""``app.transaction()``: SQL in the log's file and what is published, both or neither."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from streams import (
    Aggregate,
    ConfigError,
    LogError,
    Message,
    NotRunning,
    Retry,
    Streams,
    TooLarge,
    Topic,
    TransactionTimeout,
    Unavailable,
)
from tests.app.transaction_child import POINTS, build
from tests.processing.support import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


class Shop:
    """An app on a file, with a table and a topic."""

    def __init__(self, url: str) -> None:
        self.app = Streams(url)
        self.numbers: Topic[int] = self.app.topic("numbers", int, partitions=1)
        self.handled: list[int] = []

        @self.app.processor(self.numbers, group="g", retry=Retry(attempts=1))
        async def handle(value: int) -> None:
            self.handled.append(value)

    async def rows(self) -> list[int]:
        return [row[0] for row in await self.app.query("SELECT number FROM placed ORDER BY number")]

    async def messages(self) -> list[int]:
        return [message.value async for message in self.numbers.read()]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


@pytest.fixture
async def shop(url: str) -> AsyncIterator[Shop]:
    found = Shop(url)
    async with found.app:
        async with found.app.transaction() as connection:
            connection.execute("CREATE TABLE placed (number INTEGER PRIMARY KEY)")
        yield found


INSERT = "INSERT INTO placed VALUES (?)"


# -- both or neither


async def test_rows_and_messages_are_there_together(shop: Shop) -> None:
    async with shop.app.transaction() as connection:
        connection.execute(INSERT, (1,))
        one = await shop.numbers.publish(1, id="one")
        assert connection.execute("SELECT number FROM placed") == [(1,)]
        many = await shop.numbers.publish_many([2, 3])
        assert await shop.numbers.publish_many([]) == []
        # Nobody else sees any of it yet.
        assert await shop.rows() == []
        assert await asyncio.to_thread(shop.app.log.watermarks, "numbers", 0) == (0, 0)
        assert not shop.handled
        before = shop.app.stats().published
    assert [each.offset for each in (one, *many)] == [0, 1, 2]
    assert shop.app.stats().published == before + 3
    await until(lambda: shop.handled == [1, 2, 3])
    assert await shop.rows() == [1]
    found = [message async for message in shop.numbers.read()]
    assert found[0].id == "one"
    assert [message.position for message in found] == [one, *many]


async def test_what_raises_leaves_neither(shop: Shop) -> None:
    with pytest.raises(ZeroDivisionError):
        async with shop.app.transaction() as connection:
            connection.execute(INSERT, (1,))
            lost = await shop.numbers.publish(1)
            _ = 1 / 0
    assert await shop.rows() == []
    kept = await shop.numbers.publish(2)
    assert kept == lost  # as if it had never been
    assert await shop.messages() == [2]


async def test_what_is_cancelled_leaves_neither(shop: Shop) -> None:
    inside = asyncio.Event()

    async def place() -> None:
        async with shop.app.transaction() as connection:
            connection.execute(INSERT, (1,))
            await shop.numbers.publish(1)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(place())
    await inside.wait()
    waiting = asyncio.create_task(place())  # for its turn
    await asyncio.sleep(0)
    waiting.cancel()
    task.cancel()
    for each in (task, waiting):
        with pytest.raises(asyncio.CancelledError):
            await each
    await shop.numbers.publish(2)  # which waits for nothing
    assert (await shop.rows(), await shop.messages()) == ([], [2])


async def test_one_that_is_cancelled_while_it_begins_holds_nothing(shop: Shop) -> None:
    lock = shop.app.runtime.transaction_turns
    assert lock is not None
    begin, began, go_on = lock.begin, threading.Event(), threading.Event()

    def slowly() -> Any:
        found = begin()
        began.set()
        go_on.wait()
        return found

    lock.begin = slowly  # type: ignore[method-assign]

    async def place() -> None:
        async with shop.app.transaction():
            raise AssertionError("it was cancelled")

    task = asyncio.create_task(place())
    await asyncio.to_thread(began.wait)
    task.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    lock.begin = begin  # type: ignore[method-assign]
    async with shop.app.transaction() as connection:
        connection.execute(INSERT, (1,))
    await shop.numbers.publish(1)
    assert await shop.rows() == [1]


async def test_a_message_that_is_refused_leaves_the_rest(tmp_path: Path) -> None:
    app = Streams(f"sqlite:///{tmp_path}/log.db?max_record=100")
    texts, missing = app.topic("texts", str), app.topic("missing", str)
    async with app.connected():
        await asyncio.to_thread(app.log.delete_topic, "missing")
        async with app.transaction() as connection:
            connection.execute("CREATE TABLE placed (number INTEGER)")
            with pytest.raises(TooLarge):
                await texts.publish("x" * 200)
            with pytest.raises(TooLarge):
                await texts.publish_many(["small", "x" * 200])
            with pytest.raises(LogError):
                await missing.publish("nowhere")
            with pytest.raises(LogError, match="no such table"):
                connection.execute("INSERT INTO others VALUES (1)")
            await texts.publish("kept")
        assert [message.value async for message in texts.read()] == ["kept"]


async def test_one_that_sqlite_rolled_back_is_not_taken_for_committed(shop: Shop) -> None:
    async with shop.app.transaction() as connection:
        connection.execute(INSERT, (1,))
    with pytest.raises(LogError, match="has ended"):
        async with shop.app.transaction() as connection:
            await shop.numbers.publish(1)
            with pytest.raises(LogError):
                connection.execute("INSERT OR ROLLBACK INTO placed VALUES (1)")
    assert await shop.messages() == []


# -- whose it is


async def test_what_others_publish_meanwhile_is_not_part_of_it(shop: Shop) -> None:
    inside, other = asyncio.Event(), asyncio.Event()

    async def publish_beside() -> None:
        await inside.wait()
        publishing = asyncio.create_task(shop.numbers.publish(7))
        other.set()
        await publishing

    beside = asyncio.create_task(publish_beside())
    with pytest.raises(ZeroDivisionError):
        async with shop.app.transaction() as connection:
            connection.execute(INSERT, (1,))
            inside.set()
            await other.wait()
            await shop.numbers.publish(1)
            _ = 1 / 0
    await beside
    assert (await shop.rows(), await shop.messages()) == ([], [7])


async def test_tasks_of_the_block_are_part_of_it_until_it_ends(shop: Shop) -> None:
    ended = asyncio.Event()

    async def later() -> None:
        await ended.wait()
        await shop.numbers.publish(9)

    with pytest.raises(ZeroDivisionError):
        async with shop.app.transaction():
            outlives = asyncio.create_task(later())
            await asyncio.gather(*(shop.numbers.publish(each) for each in range(5)))
            _ = 1 / 0
    ended.set()
    await outlives
    assert await shop.messages() == [9]


async def test_in_plain_code(shop: Shop) -> None:
    app, numbers = shop.app, shop.numbers

    def place(number: int) -> None:
        with app.transaction() as connection:
            connection.execute(INSERT, (number,))
            app.wait(numbers.publish(number))
            if number == 2:
                raise ZeroDivisionError

    await asyncio.to_thread(place, 1)
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(place, 2)
    await asyncio.to_thread(place, 3)
    assert await shop.rows() == [1, 3]
    await until(lambda: shop.handled == [1, 3])


async def test_in_a_handler(url: str) -> None:
    app = Streams(url)
    orders, mails = app.topic("orders", int, partitions=1), app.topic("mails", int)

    @app.processor(orders, group="async", concurrency=8, retry=Retry(attempts=2, delay=0.001))
    async def place(order: int, message: Message[int]) -> None:
        async with app.transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS placed (number INTEGER)")
            connection.execute(INSERT, (order,))
            await mails.publish(order)
            if order == 3 and message.attempt == 1:
                raise ValueError("not yet")

    @app.processor(orders, group="plain", concurrency=4)
    def place_plain(order: int) -> None:
        with app.transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS placed (number INTEGER)")
            connection.execute(INSERT, (100 + order,))
            app.wait(mails.publish(100 + order))

    @app.processor(orders, group="own", concurrency=4)
    async def own(order: int, message: Message[int]) -> None:
        async with message.transaction:
            message.transaction.execute("CREATE TABLE IF NOT EXISTS own (number INTEGER)")
            await asyncio.sleep(0)

    async with app:
        await orders.publish_many(range(10))
        await until(lambda: sum(each.handled for each in app.stats().processors.values()) == 30)
        sent = sorted([message.value async for message in mails.read()])
        rows = await app.query("SELECT number FROM placed ORDER BY number")
    assert sent == [row[0] for row in rows] == [*range(10), *range(100, 110)]


async def test_writers_that_fill_the_pool_of_threads_do_not_hold_it_up(shop: Shop) -> None:
    """Those who wait for the file have all threads; a block needs none of them."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    record = shop.numbers.record(5)
    async with shop.app.transaction(timeout=60) as connection:
        waiting = [
            loop.run_in_executor(None, shop.app.log.append, "numbers", [record], lambda _: None)
            for _ in range(4)
        ]
        connection.execute(INSERT, (1,))
        await shop.numbers.publish(1)
    await asyncio.gather(*waiting)
    assert (await shop.messages())[0] == 1


# -- what would wait for itself


class Opened(Struct, frozen=True, tag="opened"):
    pass


class Account(Struct, frozen=True):
    pass


async def test_what_would_wait_for_its_own_end_is_refused(url: str) -> None:
    app, other = Streams(url), Streams(url)
    numbers, others = app.topic("numbers", int), other.topic("others", int)
    accounts = Aggregate(app, "accounts", Opened, Account, lambda account, event: account)
    async with app.connected(), other.connected():
        async with app.transaction():
            with pytest.raises(ConfigError, match=r"inside a block of app\.transaction\(\)"):
                async with app.transaction():
                    pass
            with pytest.raises(ConfigError, match="by another app on the same file"):
                await others.publish(1)
            with pytest.raises(ConfigError, match="deciding and appending"):
                await accounts.decide("a", lambda account: Opened())
            with pytest.raises(Unavailable, match=r"app\.transaction\(\) is open here"):
                await asyncio.to_thread(app.log.create_topic, "more", 1)
            await numbers.publish(1)
        block = app.transaction()
        async with block:
            pass
        with pytest.raises(ConfigError, match="entered once"):
            async with block:
                pass
        with pytest.raises(ConfigError, match="write `async with`"), app.transaction():
            pass


async def test_with_a_handlers_own_transaction(url: str) -> None:
    app, said = Streams(url), dict[str, str]()
    numbers = app.topic("numbers", int)

    @app.processor(numbers, group="a")
    async def inside(value: int, message: Message[int]) -> None:
        async with message.transaction:  # nothing is executed yet
            with pytest.raises(ConfigError) as caught:
                async with app.transaction():
                    pass
        said["inside"] = str(caught.value)

    @app.processor(numbers, group="b")
    async def outside(value: int, message: Message[int]) -> None:
        async with app.transaction():
            with pytest.raises(ConfigError) as caught:
                async with message.transaction:
                    pass
        said["outside"] = str(caught.value)

    @app.processor(numbers, group="c")
    def plain(value: int, message: Message[int]) -> None:
        with app.transaction(), pytest.raises(ConfigError) as caught:
            message.transaction.execute("SELECT 1")
        said["plain"] = str(caught.value)

    async with app:
        await numbers.publish(1)
        await until(lambda: len(said) == 3)
    assert "message.transaction is open" in said["inside"]
    assert "inside a block of app.transaction()" in said["outside"]
    assert said["plain"] == said["outside"]


async def test_another_log(url: str) -> None:
    app = Streams("memory://")
    async with app.connected():
        with pytest.raises(ConfigError, match=r"this is a memory log.*Outbox"):
            app.transaction()
    with pytest.raises(NotRunning):
        Streams(url).transaction()
    with pytest.raises(ConfigError, match="positive number of seconds"):
        Streams(url).transaction(timeout=0)


async def test_the_logs_tables_are_not_written(shop: Shop) -> None:
    """Not even by the very statement with which the log has just written."""
    async with shop.app.transaction() as connection:
        await shop.numbers.publish(1)
        for sql, bindings in (
            ("INSERT INTO streams_blocks VALUES (?, ?, ?, ?)", (1, 1, 1, b"")),
            ("DELETE FROM streams_blocks", ()),
            ("COMMIT", ()),
            ("SAVEPOINT mine", ()),
            ("PRAGMA user_version = 3", ()),
        ):
            with pytest.raises(ConfigError, match=r"app\.transaction\(\)"):
                connection.execute(sql, bindings)
        assert connection.execute("SELECT count(*) FROM streams_blocks") == [(1,)]
    assert await shop.messages() == [1]


# -- one that does not end


async def test_one_that_is_open_for_too_long_is_rolled_back(shop: Shop) -> None:
    with pytest.raises(TransactionTimeout, match=r"open for 600 s and is rolled back"):
        async with shop.app.transaction(timeout=600) as connection:
            connection.execute(INSERT, (1,))
            await shop.numbers.publish(1)
            turns = shop.app.runtime.transaction_turns
            assert turns is not None
            with turns.watchdog._changed:  # its time is over, however long those two lines took
                turns.watchdog._due = 0.0
                turns.watchdog._changed.notify()
            in_time = asyncio.get_running_loop().create_task(beside(shop))
            await in_time
            with pytest.raises(TransactionTimeout):
                connection.execute(INSERT, (2,))
            with pytest.raises(TransactionTimeout):
                await shop.numbers.publish(2)
    assert (await shop.rows(), await shop.messages()) == ([], [7])
    async with shop.app.transaction() as connection:
        connection.execute(INSERT, (3,))
    assert await shop.rows() == [3]


async def beside(shop: Shop) -> None:
    """Publish what is no part of the block, once that is rolled back."""
    from contextvars import Context

    task = asyncio.get_running_loop().create_task(shop.numbers.publish(7), context=Context())
    await task


async def test_a_statement_that_takes_too_long_is_interrupted(shop: Shop) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT sum(i) FROM n"

    def place() -> None:
        with shop.app.transaction(timeout=0.05) as connection:
            connection.execute(endless)

    with pytest.raises(TransactionTimeout):
        await asyncio.to_thread(place)
    await shop.numbers.publish(1)


async def test_one_that_begins_just_as_the_time_is_over_is_interrupted_too(shop: Shop) -> None:
    """SQLite interrupts what runs: so once is not enough."""
    long = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000000) "
        "SELECT sum(i) FROM n"
    )

    def place() -> None:
        with shop.app.transaction(timeout=0.05) as connection:
            inner: Any = connection._transaction
            interrupt, execute, interrupted = inner.interrupt, inner.execute, threading.Event()

            def note() -> None:
                interrupt()
                interrupted.set()

            def execute_late(sql: str, parameters: Any) -> Any:
                assert interrupted.wait(60)
                return execute(sql, parameters)

            inner.interrupt, inner.execute = note, execute_late
            with pytest.raises(TransactionTimeout):
                connection.execute(long)

    with pytest.raises(TransactionTimeout):
        await asyncio.to_thread(place)


async def test_one_that_is_open_when_the_app_ends(url: str) -> None:
    app = Streams(url)
    async with app.connected():
        block = app.transaction(timeout=3_000)
        connection = await block.__aenter__()
        connection.execute("CREATE TABLE placed (number INTEGER)")
    with pytest.raises(TransactionTimeout):
        await block.__aexit__(None, None, None)


# -- kill -9


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point: str, url: str) -> None:
    acknowledged: list[int] = []
    for times in (3, 1):
        done = subprocess.run(
            [sys.executable, "-m", "tests.app.transaction_child", url, point, str(times)],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        acknowledged += map(int, done.stdout.split())
    app, numbers = build(url)

    async def look() -> tuple[list[int], list[int]]:
        async with app.connected():
            rows = await app.query("SELECT number FROM placed ORDER BY number")
            return [row[0] for row in rows], sorted([m.value async for m in numbers.read()])

    rows, messages = asyncio.run(look())
    assert rows == messages
    unknown = 1 if point == "commit.after" else 0  # of each life, what it did not come to know
    assert len(rows) == len(acknowledged) + 2 * unknown
    assert set(acknowledged) <= set(rows)
