"""Grouped calls: many callers share a call of the log, and none pays for another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import Streams
from streams.errors import Fatal, LogError, NotRunning, Unavailable
from streams.eventsourcing.batching import RequestBatcher
from streams.log.events import EventLog
from streams.log.names import partition_for
from streams.log.url import open_log
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import accounts, deposit
from tests.patterns.counting import Counting
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until

pytestmark = pytest.mark.anyio

Answer = Callable[[Sequence[Any]], None]


class Calls:
    """Answers each request with itself, once it may."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.has_begun = threading.Event()
        self.may_answer = threading.Event()

    def __call__(self, requests: Sequence[int], answer: Answer) -> None:
        self.calls.append(list(requests))
        self.has_begun.set()
        assert self.may_answer.wait(60)
        answer(requests)


async def test_what_is_asked_during_a_call_is_asked_in_the_next_one() -> None:
    calls = Calls()
    batcher: RequestBatcher[int, int] = RequestBatcher("test", calls, max_requests=5)
    first = batcher.send(0)
    assert await asyncio.to_thread(calls.has_begun.wait, 60)
    others = [batcher.send(number) for number in range(1, 9)]
    calls.may_answer.set()
    assert await asyncio.gather(first, *others) == list(range(9))
    assert calls.calls == [[0], [1, 2, 3, 4, 5], [6, 7, 8]]
    batcher.close()


async def test_what_was_handed_in_is_asked_before_the_end_and_nothing_after() -> None:
    calls = Calls()
    batcher: RequestBatcher[int, int] = RequestBatcher("test", calls)
    asked = [batcher.send(number) for number in range(100)]
    asked[7].cancel()
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    calls.may_answer.set()
    await closing
    with pytest.raises(NotRunning):
        await batcher.send(100)
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [each for each in found if isinstance(each, int)] == [*range(7), *range(8, 100)]
    assert sum(map(len, calls.calls)) == 100
    batcher.close()


async def test_a_batcher_that_was_never_used_is_closed_at_once() -> None:
    RequestBatcher("test", Calls()).close()


async def test_a_thread_that_is_not_kept_ends_where_nothing_is_left_to_be_asked() -> None:
    calls = Calls()
    name = f"test-{uuid4().hex}"
    batcher: RequestBatcher[int, int] = RequestBatcher(name, calls, keeps_thread=False)

    def is_gone() -> bool:
        return name not in [each.name for each in threading.enumerate()]

    for number in (0, 10):  # and again
        calls.may_answer.clear()
        calls.has_begun.clear()
        first = batcher.send(number)
        assert await asyncio.to_thread(calls.has_begun.wait, 60)
        others = [batcher.send(number + more) for more in (1, 2)]
        calls.may_answer.set()
        assert await asyncio.gather(first, *others) == [number, number + 1, number + 2]
        await asyncio.to_thread(until, is_gone, 60, "the thread has ended")
    assert calls.calls == [[0], [1, 2], [10], [11, 12]]
    calls.may_answer.clear()
    last = batcher.send(20)
    closing = asyncio.create_task(asyncio.to_thread(batcher.close))
    calls.may_answer.set()
    await closing
    assert await last == 20
    with pytest.raises(NotRunning):
        await batcher.send(21)
    await asyncio.to_thread(until, is_gone, 60, "the thread has ended")


@pytest.mark.parametrize("error", [Unavailable("away"), RuntimeError("a defect")])
async def test_a_call_that_fails_fails_for_all_who_share_it(error: Exception) -> None:
    def call(requests: Sequence[int], answer: Answer) -> None:
        raise error

    batcher: RequestBatcher[int, int] = RequestBatcher("test", call)
    found = await asyncio.gather(*(batcher.send(n) for n in range(3)), return_exceptions=True)
    assert [type(each) for each in found] == [
        type(error) if isinstance(error, LogError) else LogError
    ] * 3
    assert len({id(each) for each in found}) == 3  # a traceback grows on each
    batcher.close()


async def test_a_damaged_history_hides_no_other(tmp_path: Path) -> None:
    app = Streams(f"sqlite:///{tmp_path}/log.db")
    bank = accounts(app, "bank")
    ids = [f"account-{number}" for number in range(20)]
    async with app:
        for id in ids:
            await bank.decide(id, deposit, 5)
        log: Any = app.log
        with log._database.write() as db:
            db.execute("UPDATE streams_events SET data = x'93c0' WHERE key = ?", (b"account-7",))
    again = Streams(app.url)
    bank = accounts(again, "bank")
    async with again:
        found = await asyncio.gather(*map(bank.load, ids), return_exceptions=True)
        failed = [id for id, each in zip(ids, found, strict=True) if isinstance(each, Exception)]
        assert failed == ["account-7"]
        with pytest.raises(Fatal, match="damaged"):
            await bank.load("account-7")


async def test_a_thousand_decisions_are_few_calls_of_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Counting] = []

    def open_counting(*arguments: Any) -> Counting:
        counted.append(Counting(open_log(*arguments)))
        return counted[-1]

    monkeypatch.setattr("streams.runtime.open_log", open_counting)
    app = stage.app()
    bank = accounts(app, stage.topic_name, partitions=2)
    async with app:
        (log,) = counted
        log.reset()
        done = await asyncio.gather(
            *(bank.decide(f"a-{number}", deposit, number) for number in range(1_000))
        )
        assert [each.state.cents for each in done] == list(range(1_000))
        assert isinstance(stage.anchor, EventLog)
        if not stage.anchor.never_blocks:  # else nobody waits for anything
            assert log.calls["read_histories"] <= 100
            assert log.calls["append_events"] <= 100


async def test_a_partition_out_of_reach_holds_up_no_load_of_another(
    kafka: KafkaAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Streams(kafka.url)
    bank = accounts(app, f"reach-{uuid4().hex[:8]}")
    away, there = (
        next(id for id in map(str, range(99)) if partition_for(id.encode(), "", 2) == number)
        for number in range(2)
    )
    began, go_on, hangs, gives_up = (threading.Event() for _ in range(4))
    async with app:
        for id in (away, there):
            await bank.decide(id, deposit, 1)
        readers: Any = app.log._readers  # type: ignore[attr-defined]
        ends = readers.ends

        def ends_but_of_one(topic: str, partitions: Sequence[int]) -> Any:
            """Its leader is away, which takes long to be found."""
            if not began.is_set():
                began.set()
                assert go_on.wait(60)
            if 0 in partitions:
                if len(partitions) == 1:
                    hangs.set()
                    assert gives_up.wait(60)
                raise Unavailable("there is no leader")
            return ends(topic, partitions)

        monkeypatch.setattr(readers, "ends", ends_but_of_one)
        loads = [asyncio.create_task(bank.load(there))]
        assert await asyncio.to_thread(began.wait, 60)
        loads += [asyncio.create_task(bank.load(id)) for id in (there, away)]
        histories = bank._runtime._histories
        assert histories is not None
        while histories._reads._requests.qsize() < 2:  # noqa: ASYNC110 - then one call asks for both
            await asyncio.sleep(0)
        go_on.set()
        assert [each.version for each in await asyncio.gather(*loads[:2])] == [1, 1]
        assert await asyncio.to_thread(hangs.wait, 60)
        assert (await bank.load(there)).version == 1
        assert not loads[2].done()
        gives_up.set()
        for load in (loads[2], bank.load(away)):
            with pytest.raises(Unavailable, match="no leader"):
                await load
        monkeypatch.undo()
        assert (await bank.load(away)).version == 1
        assert not histories._apart
