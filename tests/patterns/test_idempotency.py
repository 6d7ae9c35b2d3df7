"""One execution a key: the store and the processor, on every log that keeps claims."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_codecs import DecodeError, EncodeError, MessagePack
from streams.errors import (
    ConfigError,
    InvalidValue,
    LogError,
    NotRunning,
    StreamsError,
    Unavailable,
)
from streams.patterns import (
    ClaimLost,
    IdempotencyStore,
    IdempotentProcessor,
    InProgress,
    KeyReused,
    OperationFailed,
)
from streams.testing import Clock
from tests.patterns.keeping import Place, place, until
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis, any_program

__all__ = ["place"]


class Receipt(msgspec.Struct, frozen=True):
    id: str
    cents: int


class Work:
    """An operation that counts its runs, and ends when it is told to."""

    def __init__(self, result: Any = "done") -> None:
        self.result = result
        self.runs = 0
        self.running = 0
        self.cancelled = 0
        self.go = asyncio.Event()

    async def __call__(self) -> Any:
        self.runs += 1
        self.running += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def begun(self, runs: int = 1) -> None:
        await until(lambda: self.runs >= runs and self.running, "begun")


@pytest.fixture
async def store(place: Place) -> AsyncIterator[IdempotencyStore]:
    async with place.store() as opened:
        yield opened


@pytest.fixture
async def other(place: Place) -> AsyncIterator[IdempotencyStore]:
    """As another process has it."""
    async with place.store() as opened:
        yield opened


def instant(result: Any, calls: list[Any]) -> Callable[[], Any]:
    async def run() -> Any:
        calls.append(result)
        return result

    return run


# -- the store ------------------------------------------------------------------------------------


async def test_get_and_set(store: IdempotencyStore, other: IdempotencyStore) -> None:
    assert await store.get("k") is None
    assert await store.get("k", default=7) == 7
    await store.set("k", {"a": [1, None]})
    assert await other.get("k") == {"a": [1, None]}
    await store.set("k", None)
    assert await other.get("k", default=7) is None
    await store.set("k", Receipt("r", 5), ttl=60)
    assert await other.get("k", type=Receipt) == Receipt("r", 5)
    assert await other.get("k") == {"id": "r", "cents": 5}
    with pytest.raises(DecodeError):
        await store.get("k", type=int)
    assert await store.forget("k")
    assert not await store.forget("k")
    assert await other.get("k", default=7) == 7


async def test_what_was_set_is_forgotten_in_time(place: Place, store: IdempotencyStore) -> None:
    await store.set("k", 1, ttl=place.lease)
    await place.over("k")
    assert await store.get("k") is None


async def test_claim_complete_release(
    place: Place, store: IdempotencyStore, other: IdempotencyStore
) -> None:
    token = await store.claim("k", lease=30)
    assert token
    assert await other.claim("k") is None
    assert await store.get("k", default="nothing yet") == "nothing yet"
    assert await other.release("k", "somebody else's") is False
    assert await store.renew("k", token, place.lease)
    await place.over("k")
    successor = await until(lambda: other.claim("k"), "taken over")
    assert await store.renew("k", token) is False
    assert await store.complete("k", token, "late") is False
    assert await store.release("k", token) is False
    assert await other.renew("k", successor)
    assert await other.complete("k", successor, 0)
    assert await store.get("k", default="none") == 0
    assert await store.claim("k") is None


async def test_names_keep_stores_apart(place: Place, store: IdempotencyStore) -> None:
    async with place.store(name=f"{place.name}-other") as apart:
        await store.set("k", 1)
        assert await apart.get("k") is None


async def test_what_a_store_refuses(place: Place, store: IdempotencyStore) -> None:
    operation = instant(1, [])
    processor = IdempotentProcessor(store)
    bad: list[Callable[[], Any]] = [
        lambda: store.get(""),
        lambda: store.get("x" * 1025),
        lambda: store.get(7),  # type: ignore[arg-type]
        lambda: store.set("k", 1, ttl=0),
        lambda: store.set("k", 1, ttl=float("inf")),
        lambda: store.set("k", 1, ttl="day"),  # type: ignore[arg-type]
        lambda: store.claim("k", lease=-1),
        lambda: store.claim("k", fingerprint=object()),
        lambda: processor.process("", operation),
        lambda: processor.process("k", operation, fingerprint={1j: 2}),
    ]
    for call in bad:
        with pytest.raises(InvalidValue) as invalid:
            await call()
        assert "\n" not in str(invalid.value)
    misused: list[Callable[[], Any]] = [
        lambda: processor.process("k", operation()),
        lambda: processor.process("k", None),  # type: ignore[arg-type]
    ]
    for call in misused:
        with pytest.raises(ConfigError) as raised:
            await call()
        assert "\n" not in str(raised.value)
    for make in (
        lambda: IdempotentProcessor(store, 0),
        lambda: IdempotentProcessor(store, lease=float("nan")),
        lambda: IdempotentProcessor(store, errors=(int,)),  # type: ignore[arg-type]
        lambda: IdempotentProcessor("memory://"),  # type: ignore[arg-type]
        lambda: place.store(name="a:b"),
        lambda: place.store(name=""),
    ):
        with pytest.raises(ConfigError) as raised:
            make()
        assert "\n" not in str(raised.value)


async def test_a_store_shows_no_password() -> None:
    store = IdempotencyStore("redis://ada:geheim@localhost:1/0?socket_timeout=0.1")
    assert "geheim" not in repr(store)
    with pytest.raises(Unavailable) as raised:
        await store.get("k")
    assert "geheim" not in str(raised.value)
    assert "\n" not in str(raised.value)
    await store.close()


async def test_a_closed_store_says_so(place: Place) -> None:
    store = place.store()
    await store.set("k", 1)
    await store.close()
    await store.close()
    with pytest.raises(NotRunning, match="closed"):
        await store.get("k")
    with pytest.raises(NotRunning, match="closed"):
        await IdempotentProcessor(store).process("k", instant(1, []))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_store_is_opened_again_with_the_app_that_it_belongs_to(place: Place) -> None:
    store = place.store()
    for turn in range(2):
        async with store:
            await store.set(f"key-{turn}", turn)
            assert await store.get(f"key-{turn}") == turn


async def test_a_store_that_was_used_before_a_fork_says_so(tmp_path: Path) -> None:
    code = (
        "import asyncio, os, sys\n"
        "from streams.patterns import IdempotencyStore\n"
        f"store = IdempotencyStore('sqlite:///{tmp_path}/fork.db')\n"
        "asyncio.run(store.set('k', 1))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        asyncio.run(store.get('k'))\n"
        "    except Exception as error:\n"
        "        os._exit(0 if 'fork' in str(error) else 1)\n"
        "    os._exit(2)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await child.wait() == 0


# -- one execution --------------------------------------------------------------------------------


async def test_many_callers_are_one_execution(
    store: IdempotencyStore, other: IdempotencyStore
) -> None:
    work = Work({"n": 1})
    processors = [IdempotentProcessor(store), IdempotentProcessor(other)]
    calls = [
        asyncio.create_task(processors[i % 2].process("k", work, fingerprint=b"same"))
        for i in range(200)
    ]
    await work.begun()
    work.go.set()
    results = await asyncio.gather(*calls)
    assert results == [{"n": 1}] * 200
    assert work.runs == 1
    assert len({id(each) for each in results}) == 200  # nobody shares what others may change
    assert await processors[1].process("k", work) == {"n": 1}
    assert work.runs == 1
    assert not processors[0]._single_flight
    assert not processors[1]._single_flight


@pytest.mark.parametrize("result", [None, 0, "", False, [], {}], ids=repr)
async def test_whatever_it_returns_is_its_result(place: Place, result: Any) -> None:
    calls: list[Any] = []
    async with place.store() as store, place.store() as other:
        assert await IdempotentProcessor(store).process("k", instant(result, calls)) == result
        assert await IdempotentProcessor(store).process("k", instant("again", calls)) == result
        assert await IdempotentProcessor(other).process("k", instant("again", calls)) == result
    assert calls == [result]


async def test_results_have_their_type(store: IdempotencyStore, other: IdempotencyStore) -> None:
    first = IdempotentProcessor(store, type=Receipt)
    second = IdempotentProcessor(other, type=Receipt)
    calls: list[Any] = []
    assert await first.process("k", instant(Receipt("r", 5), calls)) == Receipt("r", 5)
    assert await second.process("k", instant(Receipt("s", 6), calls)) == Receipt("r", 5)
    packed = IdempotentProcessor(store, type=bytes | None, codec=MessagePack())
    assert await packed.process("bytes", instant(b"\x00\xff", calls)) == b"\x00\xff"
    assert await packed.process("none", instant(None, calls)) is None
    assert await packed.process("none", instant(b"x", calls)) is None


async def test_keys_do_not_hold_each_other_up(store: IdempotencyStore) -> None:
    processor, slow = IdempotentProcessor(store), Work()
    waiting = asyncio.create_task(processor.process("slow", slow))
    await slow.begun()
    for i in range(20):
        assert await processor.process(f"k{i}", instant(i, [])) == i
    slow.go.set()
    assert await waiting == "done"


@pytest.mark.parametrize("turns", [0, 3])
async def test_an_operation_that_ends_before_its_claim_is_renewed_costs_no_task(turns: int) -> None:
    """What renews a claim would otherwise wait for a loop that the next operation keeps.

    :param turns: how often the operation lets the loop run.
    """
    before = asyncio.all_tasks()

    async def short() -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        return 1

    async with IdempotencyStore("memory://") as store:
        charges = IdempotentProcessor(store, type=int)
        for number in range(100):
            assert await charges.process(f"charge:{number}", short) == 1
        assert asyncio.all_tasks() == before


async def test_after_its_time_it_runs_again(place: Place, store: IdempotencyStore) -> None:
    processor, calls = IdempotentProcessor(store, ttl=place.lease), []  # type: ignore[var-annotated]
    assert await processor.process("k", instant(1, calls)) == 1
    await place.over("k")
    assert await processor.process("k", instant(3, calls)) == 3
    assert calls == [1, 3]


async def test_a_value_that_was_set_is_an_outcome(store: IdempotencyStore) -> None:
    await store.set("k", "set")
    assert await IdempotentProcessor(store).process("k", instant("run", [])) == "set"


# -- failing --------------------------------------------------------------------------------------


async def test_an_error_is_no_outcome(store: IdempotencyStore, other: IdempotencyStore) -> None:
    first, second = IdempotentProcessor(store), IdempotentProcessor(other)

    async def fail() -> str:
        raise ConnectionError("the bank sleeps")

    with pytest.raises(ConnectionError, match="the bank sleeps"):
        await first.process("k", fail, fingerprint=b"one")
    assert await store.get("k", default="nothing") == "nothing"
    # The key is free at once, for another request too.
    assert await second.process("k", instant(1, []), fingerprint=b"two") == 1


async def test_of_those_who_wait_the_next_takes_over(
    store: IdempotencyStore, other: IdempotencyStore
) -> None:
    order: list[int] = []
    begun = asyncio.Event()
    here, there = IdempotentProcessor(store), IdempotentProcessor(other)

    async def run(number: int) -> int:
        order.append(number)
        begun.set()
        await asyncio.sleep(0)
        if len(order) < 4:
            raise ValueError(number)
        return number

    calls = [
        asyncio.create_task(here.process("k", functools.partial(run, number)))
        for number in range(10)
    ]
    await begun.wait()
    calls.append(asyncio.create_task(there.process("k", functools.partial(run, 10))))
    results = await asyncio.gather(*calls, return_exceptions=True)
    failed = [each for each in results if isinstance(each, ValueError)]
    assert len(order) == 4
    assert len(failed) == 3
    assert [each for each in results if not isinstance(each, ValueError)] == [order[-1]] * 8
    mine = [number for number in order if number < 10]
    assert mine == sorted(mine)  # first come, first to take over


async def test_errors_that_are_outcomes(store: IdempotencyStore, other: IdempotencyStore) -> None:
    class Declined(Exception):
        pass

    calls = 0

    async def charge() -> str:
        nonlocal calls
        calls += 1
        raise Declined("not enough\nmoney")

    first = IdempotentProcessor(store, errors=(Declined,))
    second = IdempotentProcessor(other)
    with pytest.raises(OperationFailed) as raised:
        await first.process("k", charge)
    assert isinstance(raised.value.__cause__, Declined)
    for processor in (first, second):
        with pytest.raises(OperationFailed, match="Declined: not enough money") as raised:
            await processor.process("k", charge)
        assert (raised.value.kind, raised.value.reason) == ("Declined", "not enough money")
        assert raised.value.__cause__ is None
    assert calls == 1
    with pytest.raises(OperationFailed):
        await store.get("k")
    await store.forget("k")
    assert await second.process("k", instant(1, [])) == 1


async def test_a_result_that_cannot_be_stored_is_not_made_twice(
    store: IdempotencyStore, other: IdempotencyStore
) -> None:
    calls: list[Any] = []
    first = IdempotentProcessor(store, type=Receipt)
    with pytest.raises(OperationFailed, match="EncodeError") as raised:
        await first.process("k", instant("no receipt", calls))
    assert isinstance(raised.value.__cause__, EncodeError)
    with pytest.raises(OperationFailed, match="EncodeError"):
        await IdempotentProcessor(other, type=Receipt).process("k", instant("again", calls))
    assert calls == ["no receipt"]


# -- the same key for another request -------------------------------------------------------------


async def test_another_fingerprint_is_an_error(
    store: IdempotencyStore, other: IdempotencyStore
) -> None:
    here, there = IdempotentProcessor(store), IdempotentProcessor(other)
    work, calls = Work(), []  # type: ignore[var-annotated]
    running = asyncio.create_task(here.process("k", work, fingerprint={"b": 2, "a": 1}))
    await work.begun()
    for processor in (here, there):
        with pytest.raises(KeyReused, match="'k'"):
            await processor.process("k", instant(1, calls), fingerprint={"a": 1, "b": 3})
    same = asyncio.create_task(there.process("k", work, fingerprint={"a": 1, "b": 2}))
    none = asyncio.create_task(there.process("k", work))
    work.go.set()
    assert list(await asyncio.gather(running, same, none)) == ["done"] * 3
    for processor in (here, there):
        with pytest.raises(KeyReused):
            await processor.process("k", instant(1, calls), fingerprint=b"other")
    assert calls == []


async def test_a_fingerprint_is_told_to_those_who_come_together(store: IdempotencyStore) -> None:
    processor = IdempotentProcessor(store)
    calls: list[Any] = []
    results = await asyncio.gather(
        *(
            processor.process("k", instant(i % 2, calls), fingerprint=Receipt("r", i % 2))
            for i in range(10)
        ),
        return_exceptions=True,
    )
    assert len(calls) == 1
    for i, each in enumerate(results):
        assert each == calls[0] if i % 2 == calls[0] else isinstance(each, KeyReused)


async def test_a_fingerprint_is_compared_with_what_others_found(store: IdempotencyStore) -> None:
    processor, calls = IdempotentProcessor(store), []  # type: ignore[var-annotated]
    await processor.process("k", instant(1, calls), fingerprint=b"one")
    results = await asyncio.gather(
        processor.process("k", instant(2, calls)),
        processor.process("k", instant(3, calls), fingerprint=b"two"),
        return_exceptions=True,
    )
    assert results[0] == 1
    assert isinstance(results[1], KeyReused)
    assert calls == [1]


# -- not waiting ----------------------------------------------------------------------------------


async def test_who_will_not_wait_is_told(store: IdempotencyStore, other: IdempotencyStore) -> None:
    here, there = IdempotentProcessor(store), IdempotentProcessor(other, wait=False)
    work = Work()
    running = asyncio.create_task(here.process("k", work))
    await work.begun()
    with pytest.raises(InProgress) as raised:
        await there.process("k", work)
    assert 0 < raised.value.left <= 30
    with pytest.raises(InProgress):
        await here.process("k", work, wait=False)
    waiting = asyncio.create_task(there.process("k", work, wait=True))
    work.go.set()
    assert await running == "done"
    assert await waiting == "done"
    assert await there.process("k", work) == "done"
    assert work.runs == 1


async def test_who_will_not_wait_still_gets_what_is_there(store: IdempotencyStore) -> None:
    """Also while others of its process are only looking it up."""
    await store.set("k", "there")
    processor = IdempotentProcessor(store)
    results = await asyncio.gather(
        *(processor.process("k", instant("run", []), wait=bool(i % 2)) for i in range(20))
    )
    assert results == ["there"] * 20


async def test_who_takes_over_has_not_begun_yet(store: IdempotencyStore) -> None:
    """Nor will it, as there is an outcome: who will not wait asks for that."""
    processor, later = IdempotentProcessor(store), Work()

    async def overtaken() -> None:
        await store.set("k", "there")
        raise ValueError

    first = asyncio.create_task(processor.process("k", overtaken))
    await asyncio.sleep(0)
    second = asyncio.create_task(processor.process("k", later))
    with pytest.raises(ValueError):
        await first
    assert await processor.process("k", later, wait=False) == "there"
    assert await second == "there"
    assert later.runs == 0


async def test_many_who_will_not_wait_are_one_execution(store: IdempotencyStore) -> None:
    processor, work = IdempotentProcessor(store, wait=False), Work()
    calls = [asyncio.create_task(processor.process("k", work)) for _ in range(50)]
    await work.begun()
    await until(lambda: sum(call.done() for call in calls) == 49, "told")
    work.go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results.count("done") == 1
    assert sum(isinstance(each, InProgress) for each in results) == 49
    assert work.runs == 1


# -- cancelling -----------------------------------------------------------------------------------


async def test_a_cancelled_winner_frees_the_key(
    store: IdempotencyStore, other: IdempotencyStore
) -> None:
    here, there = IdempotentProcessor(store), IdempotentProcessor(other)
    work = Work()
    winner = asyncio.create_task(here.process("k", work))
    await work.begun()
    second = asyncio.create_task(here.process("k", work))
    winner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await winner
    await work.begun(2)
    second.cancel()
    third = asyncio.create_task(there.process("k", work))
    await work.begun(3)
    work.go.set()
    assert await third == "done"
    assert work.runs == 3
    assert work.cancelled == 2
    assert not here._single_flight


async def test_a_cancelled_waiter_disturbs_nobody(store: IdempotencyStore) -> None:
    processor, work = IdempotentProcessor(store), Work()
    calls = [asyncio.create_task(processor.process("k", work)) for _ in range(10)]
    await work.begun()
    for each in calls[1::2]:
        each.cancel()
    work.go.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[::2] == ["done"] * 5
    assert all(isinstance(each, asyncio.CancelledError) for each in results[1::2])
    assert work.runs == 1


@pytest.mark.parametrize("seed", range(5))
async def test_cancelled_and_failing_at_any_moment_nothing_is_stuck(
    store: IdempotencyStore, other: IdempotencyStore, seed: int
) -> None:
    import random

    random_ = random.Random(seed)
    processors = [IdempotentProcessor(store), IdempotentProcessor(other)]
    running = dict.fromkeys("abc", 0)
    done = dict.fromkeys("abc", 0)

    async def run(key: str) -> str:
        running[key] += 1
        assert running[key] == 1
        assert not done[key]
        try:
            for _ in range(random_.randrange(3)):
                await asyncio.sleep(0)
            if random_.random() < 0.6:
                raise ValueError
        finally:
            running[key] -= 1
        done[key] += 1
        return key

    async def strike(call: asyncio.Task[Any]) -> None:
        for _ in range(random_.randrange(40)):
            await asyncio.sleep(0)
        call.cancel()

    calls: list[asyncio.Task[Any]] = []
    for _ in range(120):
        key = random_.choice("abc")
        calls.append(
            asyncio.create_task(
                random_.choice(processors).process(key, functools.partial(run, key))
            )
        )
    strikes = [asyncio.create_task(strike(call)) for call in calls if random_.random() < 0.4]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)
    await asyncio.gather(*strikes)
    assert not [
        each for each in results if not isinstance(each, (str, ValueError, asyncio.CancelledError))
    ]
    for key, count in done.items():
        # A winner may be cancelled while its outcome is being stored; that is stored nevertheless.
        assert count <= 1
        assert await processors[0].process(key, instant(key, [])) == key
    assert not processors[0]._single_flight
    assert not processors[1]._single_flight


# -- plain functions ------------------------------------------------------------------------------


async def test_a_plain_function_runs_beside_the_loop(store: IdempotencyStore) -> None:
    threads: list[str] = []
    ticks = 0
    hold = threading.Event()

    def plain() -> int:
        threads.append(threading.current_thread().name)
        assert hold.wait(30)
        return 5

    processor = IdempotentProcessor(store)
    call = asyncio.create_task(processor.process("k", plain))
    await until(lambda: threads, "begun")
    ticks += 1  # the loop goes on
    hold.set()
    assert await call == 5
    assert threading.current_thread().name not in threads
    assert await processor.process("k", lambda: asyncio.sleep(0, 6)) == 5
    # A lambda binds arguments, and is called where there is a loop.
    assert await processor.process("a", lambda: asyncio.ensure_future(asyncio.sleep(0, 6))) == 6


async def test_a_cancelled_plain_function_ends_and_its_result_is_kept(
    store: IdempotencyStore, other: IdempotencyStore
) -> None:
    begun, hold = threading.Event(), threading.Event()

    def plain() -> int:
        begun.set()
        assert hold.wait(30)
        return 5

    call = asyncio.create_task(IdempotentProcessor(store).process("k", plain))
    await until(begun.is_set, "begun")
    call.cancel()
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(InProgress):
        await IdempotentProcessor(other).process("k", instant(6, []), wait=False)
    hold.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await IdempotentProcessor(other).process("k", instant(6, [])) == 5


# -- leases ---------------------------------------------------------------------------------------


async def test_a_claim_is_renewed_while_the_work_runs(place: Place) -> None:
    async with place.store() as store, place.store() as other:
        work, calls = Work(), []  # type: ignore[var-annotated]
        lease = place.lease if place.clock else 12.0
        running = asyncio.create_task(IdempotentProcessor(store, lease=lease).process("k", work))
        await work.begun()
        watcher = IdempotentProcessor(other, lease=lease)
        for _ in range(6 if place.clock else 1):  # real seconds: once is enough
            if place.clock:
                place.clock.advance(0.4 * lease)
            else:
                await until(lambda: place.left("k") < 0.75 * lease, "older")
            await until(lambda: place.left("k") > 0.8 * lease, "renewed")
            with pytest.raises(InProgress):
                await watcher.process("k", instant("stolen", calls), wait=False)
        work.go.set()
        assert await running == "done"
        assert calls == []


async def test_a_lost_claim_cancels_the_work(
    place: Place, store: IdempotencyStore, other: IdempotencyStore
) -> None:
    work = Work()
    # Long enough that it is not over before somebody else has the key; a third of it is waited for.
    lease = 30.0 if place.clock else 12.0
    running = asyncio.create_task(IdempotentProcessor(store, lease=lease).process("k", work))
    await work.begun()
    await other.forget("k")
    assert await IdempotentProcessor(other).process("k", instant("other", [])) == "other"
    if place.clock:
        place.clock.advance(lease / 2)
    with pytest.raises(ClaimLost, match="another caller has taken it over"):
        await running
    assert work.cancelled == 1
    assert await store.get("k") == "other"


async def test_a_claim_lost_at_the_last_moment_stores_nothing(
    store: IdempotencyStore, other: IdempotencyStore
) -> None:
    work = Work("mine")
    running = asyncio.create_task(IdempotentProcessor(store).process("k", work))
    await work.begun()
    await other.set("k", "other's")
    work.go.set()
    with pytest.raises(ClaimLost):
        await running
    assert work.cancelled == 0
    assert await store.get("k") == "other's"


async def test_what_has_run_is_not_said_to_be_not_begun_where_its_outcome_is_refused(
    tmp_path: Path,
) -> None:
    async with Place("sqlite", f"sqlite:///{tmp_path}/claims.db").store() as store:
        work = Work()
        running = asyncio.create_task(IdempotentProcessor(store).process("k", work))
        await work.begun()
        with closing(sqlite3.connect(tmp_path / "claims.db")) as file, file:
            file.execute("UPDATE streams_claims SET until = 'never'")  # by somebody else
        work.go.set()
        with pytest.raises(ClaimLost, match="cannot be stored") as caught:
            await running
        assert isinstance(caught.value.__cause__, LogError)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_loop_that_stood_still_asks_before_it_gives_up(kind: str, tmp_path: Path) -> None:
    """The lease is over, but nobody wanted the key meanwhile."""
    place = Place(kind, "memory://still" if kind == "memory" else f"sqlite:///{tmp_path}/claims.db")
    assert place.clock
    async with place.store() as store:
        work = Work()
        running = asyncio.create_task(IdempotentProcessor(store, lease=30).process("k", work))
        await work.begun()
        place.clock.advance(100)
        await until(lambda: place.left("k") > 29, "renewed")
        work.go.set()
        assert await running == "done"
        assert work.cancelled == 0
    place.close()


# -- outages --------------------------------------------------------------------------------------


async def test_a_server_that_comes_back_gets_the_outcome(lifetime: Lifetime) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with Redis(lifetime, any_program(), options) as server:
        async with IdempotencyStore(server.url) as store:
            processor, work = IdempotentProcessor(store), Work()
            call = asyncio.create_task(processor.process("k", work))
            await work.begun()
            await asyncio.to_thread(server.kill)
            with pytest.raises(LogError):
                await processor.process("other", instant(1, []))
            work.go.set()
            await until(lambda: not work.running, "ended")
            await asyncio.to_thread(server.restart)
            assert await call == "done"
            assert await store.get("k") == "done"


async def test_a_server_that_stays_away_ends_the_work_with_the_lease(lifetime: Lifetime) -> None:
    with Redis(lifetime, any_program()) as server:
        async with IdempotencyStore(server.url) as store:
            processor, work = IdempotentProcessor(store, lease=0.5), Work()
            call = asyncio.create_task(processor.process("k", work))
            await work.begun()
            await asyncio.to_thread(server.kill)
            with pytest.raises(ClaimLost, match="could not be renewed"):
                await call
            assert work.cancelled == 1


async def test_a_disk_that_is_full_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    folder = tmp_path / "gone"
    folder.mkdir()
    async with IdempotencyStore(f"sqlite:///{folder}/claims.db") as store:
        folder.rmdir()
        with pytest.raises(LogError) as raised:
            await IdempotentProcessor(store).process("k", instant(1, calls))
        assert "\n" not in str(raised.value)
        assert calls == []
        folder.mkdir()
        assert await IdempotentProcessor(store).process("k", instant(1, calls)) == 1


# -- loops and threads ----------------------------------------------------------------------------


async def test_one_processor_on_two_loops(store: IdempotencyStore) -> None:
    processor, work = IdempotentProcessor(store), Work()
    here = asyncio.create_task(processor.process("k", work))
    await work.begun()
    elsewhere = asyncio.create_task(
        asyncio.to_thread(lambda: asyncio.run(processor.process("k", instant("stolen", []))))
    )
    await until(lambda: len(processor._single_flight) == 2, "waiting on the other loop")
    work.go.set()
    assert await here == await elsewhere == "done"


async def test_nothing_is_logged_when_all_is_well(
    store: IdempotencyStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    processor = IdempotentProcessor(store)
    await processor.process("first", instant(1, []))
    caplog.clear()  # it may have said that its file is new
    await processor.process("k", instant(1, []))
    assert not [record for record in caplog.records if record.name.startswith("streams")]


def test_errors_are_of_one_family() -> None:
    for kind in (InProgress, KeyReused, ClaimLost, OperationFailed):
        assert issubclass(kind, StreamsError)
    assert "\n" not in str(InProgress("k", 1.0))


def test_a_store_has_a_clock_of_its_log() -> None:
    clock = Clock()
    assert IdempotencyStore("memory://", clock=clock).clock is clock
    assert IdempotencyStore("redis://localhost:1", clock=clock).clock is not clock
