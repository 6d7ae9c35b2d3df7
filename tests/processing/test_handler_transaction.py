"""``message.transaction``: turns, failures, and commits that meet the poller's own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from streams import ConfigError, HandlerTimeout, Message, Reject, Retry, Streams
from streams.engine.dispatcher import Delivery, PartitionState
from streams.engine.progress import Progress
from streams.log.protocol import Assignment, Commit
from streams.message import Batch
from streams.processing.committer import PartitionCommitState
from streams.processing.handler_transaction import HandlerTransaction, TransactionLock
from streams.testing import harness
from tests.processing.support import QUICK, until

pytestmark = pytest.mark.anyio

TABLE = "CREATE TABLE IF NOT EXISTS rows (value)"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/log.db"


@pytest.mark.parametrize("batch", [None, 10])
@pytest.mark.parametrize("end", ["rejects", "is late"])
async def test_an_async_handler_that_fails_inside_is_buried(
    url: str, end: str, batch: int | None
) -> None:
    app = Streams(url)
    topic = app.topic("t", int)
    timeout = 0.05 if end == "is late" else None

    async def handle(value: Any, messages: Any) -> None:
        message = messages if batch is None else messages[0]
        async with message.transaction:
            message.transaction.execute(TABLE)
            if end == "rejects":
                raise Reject("no")
            await asyncio.Event().wait()

    app.processor(
        topic, group="g", batch=batch, retry=Retry(attempts=1), timeout=timeout, flow=QUICK
    )(handle)

    async with harness(app, url=url) as h:
        await topic.publish(1)
        await until(lambda: app.stats().processors["handle"].dead_letters)
        (letter,) = await h.dead(topic, group="g")
    kind = Reject if end == "rejects" else HandlerTimeout
    assert letter.headers["__streams.errors.exception"].endswith(kind.__name__)


async def test_those_who_wait_for_their_turn_leave_the_thread_pool_alone(url: str) -> None:
    app, handled = Streams(url), []
    topic = app.topic("t", int)

    @app.processor(topic, group="g", concurrency=64, flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        async with message.transaction:
            message.transaction.execute(TABLE)
            await asyncio.to_thread(lambda: None)
            handled.append(value)

    async with app:
        await topic.publish_many(range(80))
        await until(lambda: len(handled) == 80)


async def test_what_a_handler_leaves_behind_may_publish(url: str) -> None:
    app, other = Streams(url), asyncio.Event()
    topic, out = app.topic("t", int), app.topic("out", int)
    tasks: list[asyncio.Task[object]] = []

    async def later() -> None:
        await other.wait()
        await out.publish(1)

    @app.processor(topic, group="g", flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        async with message.transaction:
            message.transaction.execute(TABLE)
            with pytest.raises(ConfigError, match="wait for itself"):
                await out.publish(2)
            tasks.append(asyncio.create_task(later()))

    async with harness(app, url=url) as h:
        await topic.publish(1)
        await h.settled()
        other.set()
        await tasks[0]
        assert [message.value for message in await h.messages(out)] == [1]


@pytest.mark.parametrize("kind", ["async", "async, waiting", "plain", "plain, fast"])
async def test_what_a_handler_leaves_behind_begins_no_transaction(url: str, kind: str) -> None:
    """Nobody would end it, and every other writer to the file would wait."""
    app, ended = Streams(url), asyncio.Event()
    topic = app.topic("t", int)
    tasks: list[asyncio.Task[object]] = []
    messages: list[Message[int]] = []

    async def later(message: Message[int]) -> None:
        await ended.wait()
        if kind == "async, waiting":
            async with message.transaction:
                pass
        message.transaction.execute(TABLE)

    async def handle(value: int, message: Message[int]) -> None:
        tasks.append(asyncio.create_task(later(message)))

    def plain(value: int, message: Message[int]) -> None:
        messages.append(message)

    app.processor(
        topic, group="g", flow=QUICK, concurrency=2 if kind == "plain" else 1
    )(plain if "plain" in kind else handle)  # fmt: skip
    async with harness(app, url=url) as h:
        await topic.publish(1)
        await h.settled()
        ended.set()
        with pytest.raises(ConfigError, match="after its handler has ended"):
            await (tasks[0] if tasks else asyncio.to_thread(messages[0].transaction.execute, TABLE))
        await topic.publish(2)
        await h.settled()


async def test_a_message_that_moved_on_is_no_dead_letter(url: str) -> None:
    app, calls = Streams(url), []
    topic = app.topic("t", int, partitions=1)

    @app.processor(topic, group="g", retry=Retry(attempts=1), flow=QUICK)
    async def handle(value: int, message: Message[int]) -> None:
        calls.append(value)
        if len(calls) == 1:
            places = {0: app.log.describe_group("g").positions["t", 0]}
            await asyncio.to_thread(lambda: app.log.reset_offsets("g", "t", places, force=True))
        async with message.transaction:
            message.transaction.execute(TABLE)
            message.transaction.execute("INSERT INTO rows VALUES (?)", (value,))

    async with harness(app, url=url) as h:
        await topic.publish(7)
        await until(lambda: app.stats().processors["handle"].handled)
        assert await h.dead(topic, group="g") == []
    assert calls == [7, 7]


async def test_the_pump_takes_no_snapshot_while_a_handler_commits() -> None:
    """Older in what it says and newer in its version, it would take the handler's message back."""
    app = Streams("memory://")
    topic = app.topic("t", int, partitions=1)

    @app.processor(topic, group="g")
    def handle(value: int, message: Message[int]) -> None: ...

    async with app:
        assert handle.poller is not None
        committer = handle.poller._committer
        assignment = Assignment("t", 0, 1, None)
        owned = PartitionState(assignment, Progress(0, 0), None)
        partition = PartitionCommitState(owned, None)
        batch = Batch("t", 0, [0, 1], [None] * 2, [b""] * 2, ["a", "b"])
        segment = owned.progress.add(owned, batch)
        meanwhile: list[Commit | None] = []
        fails = True

        class Transaction:
            def execute(self, sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
                return []

            def commit(self, commits: Sequence[Commit]) -> None:
                assert [commit.position for commit in commits] == [1]
                meanwhile.append(committer._make_commit(partition))
                if fails:
                    raise OSError("no")

            def rollback(self) -> None: ...

        joint = HandlerTransaction(
            Transaction, committer.commit_in_transaction, TransactionLock(), may_block=True
        )
        work = Delivery(segment, 0, None, "a")
        joint.execute("")
        with pytest.raises(OSError, match="no"):
            joint.commit([work])
        first = committer._make_commit(partition)
        assert first is not None
        assert first.position == 0
        fails = False
        joint.execute("")
        joint.commit([work])
        second = committer._make_commit(partition)
        assert second is not None
        assert second.position == 1
        assert meanwhile == [None, None]


async def test_a_turn_is_handed_on_also_when_who_waited_has_gone() -> None:
    turns = TransactionLock()
    assert turns.acquire(0)
    assert not turns.acquire(0)
    gone, stays = (
        asyncio.create_task(turns.acquire_async()),
        asyncio.create_task(turns.acquire_async()),
    )
    await asyncio.sleep(0)
    turns.release()  # to the first, which is cancelled before it can know
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await stays
    third = asyncio.create_task(turns.acquire_async())
    await asyncio.sleep(0)
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    turns.release()
    assert turns.acquire(0)
