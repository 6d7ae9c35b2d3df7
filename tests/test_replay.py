"""Replay into functions and topics: ranges, order, dedup, failures, and nobody disturbed."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from streams import (
    BatchError,
    ConfigError,
    Dedup,
    Flow,
    InvalidValue,
    Message,
    NotFound,
    NotRunning,
    Position,
    ProcessorDied,
    Reject,
    Retry,
    Streams,
    TooLarge,
    Topic,
)
from streams.log.protocol import Reader
from streams.message import ID, Batch, Record
from streams.processing.poller import Poller
from streams.replay import ReplayFailed, ReplayResult, into_function, replay
from tests.processing.support import PATIENCE, until

pytestmark = pytest.mark.anyio

COUNT = 40


def write(app: Streams, topic: str, records: list[Record]) -> None:
    """Each by an append of its own, so that each has its own time."""
    for record in records:
        answers: list[Any] = []
        app.log.append(topic, [record], answers.extend)
        assert isinstance(answers[0], Position)


def numbers(count: int = COUNT, keys: int = 5) -> list[Record]:
    return [Record(b"%d" % n, b"k%d" % (n % keys), f"m{n}") for n in range(count)]


class World:
    """An app with numbers in four partitions, nothing running."""

    def __init__(self, url: str = "memory://") -> None:
        self.app = Streams(url)
        self.topic: Topic[int] = self.app.topic("t", int, partitions=4)
        self.app.topic("copy", bytes, partitions=2)

    @asynccontextmanager
    async def filled(self, records: list[Record] | None = None) -> AsyncIterator[Streams]:
        async with self.app.connected():
            await asyncio.to_thread(write, self.app, "t", records or numbers())
            yield self.app


# -- what is read, in which order ----------------------------------------------------------------


async def test_one_at_a_time_in_the_order_of_the_logs_time() -> None:
    world, seen = World(), list[int]()
    async with world.filled() as app:
        result = await replay(app, world.topic, seen.append)
    assert seen == list(range(COUNT))
    assert (result.total, result.scanned, result.read, result.handled) == (COUNT,) * 4


async def test_keys_keep_their_order_however_many_run_at_once() -> None:
    world, seen = World(), dict[str | None, list[int]]()
    crowded = asyncio.Event()
    running = 0

    @world.app.processor(world.topic, group="g", concurrency=16, retry=Retry(4, delay=0.001))
    async def handle(value: int, message: Message[int]) -> None:
        nonlocal running
        running += 1
        if running > 4:
            crowded.set()
        await crowded.wait()
        await asyncio.sleep(random.random() * 0.003)
        running -= 1
        if value % 7 == 0 and message.attempt < 3:
            raise ValueError("not yet")
        seen.setdefault(message.key, []).append(value)

    async with world.filled(numbers(200, keys=9)) as app:
        result = await replay(app, world.topic, handle)
    assert {key: sorted(each) for key, each in seen.items()} == seen
    assert sorted(chain.from_iterable(seen.values())) == list(range(200))
    assert result.retries == 2 * len(range(0, 200, 7))


async def test_plain_functions_leave_the_loop_alone_and_async_ones_run_on_it() -> None:
    world, threads = World(), set[threading.Thread]()

    def plain(value: int) -> None:
        threads.add(threading.current_thread())

    async def on_loop(value: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        asyncio.get_running_loop()

    async with world.filled() as app:
        await replay(app, world.topic, plain)
        assert (await replay(app, world.topic, on_loop)).handled == COUNT
    assert len(threads) == 1
    assert threading.main_thread() not in threads


async def test_ranges() -> None:
    world = World()
    async with world.filled() as app:
        messages = await asyncio.to_thread(lambda: list(world.topic.read()))

        async def values(**options: Any) -> list[int]:
            seen = list[int]()
            await replay(app, world.topic, seen.append, **options)
            return seen

        by_partition = {
            p: [each.value for each in messages if each.partition == p] for p in range(4)
        }
        taken = messages[9].timestamp  # the log's time, rounded to a microsecond
        moment = taken - timedelta(microseconds=1)
        some = max(by_partition, key=lambda p: len(by_partition[p]))
        place = Position("t", some, 3)

        assert await values(key="k3") == list(range(3, COUNT, 5))
        assert await values(partition=some, start=2, end=4) == by_partition[some][2:4]
        assert await values(start=place) == by_partition[some][3:]
        assert await values(end=place) == by_partition[some][:3]
        assert await values(partition=some, start=-2) == by_partition[some][-2:]
        assert sorted(await values(start=-2)) == sorted(
            value for each in by_partition.values() for value in each[-2:]
        )
        since = await values(start=moment)
        assert set(range(9, COUNT)) <= set(since)
        assert set(await values(end=moment)) == set(range(COUNT)) - set(since)
        assert await values(start={some: 1}, end=3) == by_partition[some][1:3]
        assert await values(partition=some, start=99_999) == []
        assert await values(partition=some, end=99_999) == by_partition[some]


async def test_what_arrives_meanwhile_is_not_part_of_it() -> None:
    world, seen = World(), list[int]()
    async with world.filled() as app:

        async def handle(value: int) -> None:
            seen.append(value)
            await world.topic.publish(value + 1_000)

        await replay(app, world.topic, handle)
    assert len(seen) == COUNT


# -- dedup, filters, batches ---------------------------------------------------------------------


async def test_the_window_is_the_replays_own_and_can_be_turned_off() -> None:
    records = [*numbers(), *numbers(10)]
    world = World()
    async with world.filled(records) as app:
        for _ in range(2):
            seen = list[int]()
            result = await replay(app, world.topic, seen.append)
            assert (result.handled, result.duplicates) == (COUNT, 10)
            assert sorted(seen) == list(range(COUNT))
        seen = []
        result = await replay(app, world.topic, seen.append, dedup=Dedup(window=0))
        assert (len(seen), result.duplicates) == (COUNT + 10, 0)


async def test_filter_and_batches_are_the_processors() -> None:
    world, batches = World(), list[list[int]]()

    @world.app.processor(world.topic, group="g", batch=8, filter=lambda value: value % 2 == 0)
    def handle(values: list[int]) -> None:
        batches.append(values)
        if 4 in values and len(values) > 1:
            raise BatchError({values.index(4): ValueError("alone, please")})

    async with world.filled() as app:
        result = await replay(app, world.topic, handle)
    assert (result.handled, result.filtered) == (COUNT // 2, COUNT // 2)
    assert max(map(len, batches)) > 1
    assert sorted(chain.from_iterable(batches)) == sorted([*range(0, COUNT, 2), 4])


async def test_a_dead_letter_topic_is_decoded_as_its_source_is() -> None:
    world, seen = World(), list[int | str]()

    @world.app.processor(world.topic, world.app.topic("other", str), group="g")
    def handle(value: int | str) -> None:
        seen.append(value)

    world.app.topic("t.g.dead")
    async with world.app.connected() as app:
        await asyncio.to_thread(write, app, "t.g.dead", numbers(3))
        await replay(app, "t.g.dead", handle)
        with pytest.raises(ConfigError, match="declared are: copy, other, t, "):
            await replay(app, "unknown", handle)
    assert seen == [0, 1, 2]


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("concurrency", "attempts"), [(1, 1), (8, 2)])
@pytest.mark.parametrize("bad", [0, 17, COUNT - 1])
async def test_a_failure_stops_it_and_going_on_misses_nothing(
    concurrency: int, attempts: int, bad: int
) -> None:
    world, seen, broken = World(), list[int](), True

    @world.app.processor(
        world.topic, group="g", concurrency=concurrency, retry=Retry(attempts, delay=0.001)
    )
    async def handle(value: int) -> None:
        await asyncio.sleep(0)
        if value == bad and broken:
            raise ValueError("no")
        seen.append(value)

    async with world.filled() as app:
        with pytest.raises(ReplayFailed, match="ValueError: no") as caught:
            await replay(app, world.topic, handle)
        failure, result = caught.value.failure, caught.value.result
        assert (failure.id, failure.key, failure.attempts) == (f"m{bad}", f"k{bad % 5}", attempts)
        assert isinstance(caught.value.__cause__, ValueError)
        assert result.handled == len(seen)
        if concurrency == 1:
            assert seen == list(range(bad))
        broken = False
        await replay(app, world.topic, handle, start=result.positions)
    assert set(seen) == set(range(COUNT))
    assert seen.count(bad) == 1
    if concurrency == 1:
        assert len(seen) == COUNT


async def test_failures_can_be_passed_over_with_what_cannot_be_decoded() -> None:
    records = numbers()
    records[5].value = b"{not a number"
    world, seen = World(), list[int]()

    def handle(value: int) -> None:
        if value == 6:
            raise Reject("six")
        seen.append(value)

    async with world.filled(records) as app:
        result = await replay(app, world.topic, handle, errors="skip")
        with pytest.raises(ReplayFailed, match="DecodeError"):
            await replay(app, world.topic, handle)
    assert (result.handled, result.failed) == (COUNT - 2, 2)
    assert [each.id for each in result.failures] == ["m5", "m6"]
    assert "k0" in str(result.failures[0])
    assert seen[: COUNT - 2] == [n for n in range(COUNT) if n not in (5, 6)]


async def test_a_handler_that_would_end_the_process_ends_the_replay() -> None:
    world = World()
    async with world.filled() as app:
        for handle in (lambda value: exec("raise SystemExit(4)"),):
            with pytest.raises(ProcessorDied, match="SystemExit"):
                await replay(app, world.topic, handle)


async def test_cancelled_it_finishes_what_runs_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = set(threading.enumerate())
    world, ended, pollers = World(), list[int](), list[Poller]()
    begun, go, results = asyncio.Event(), asyncio.Event(), list[ReplayResult]()

    class Known(Poller):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            pollers.append(self)

    monkeypatch.setattr(into_function, "Poller", Known)

    async def handle(value: int) -> None:
        begun.set()
        await go.wait()
        ended.append(value)

    async with world.filled() as app:
        task = asyncio.create_task(replay(app, world.topic, handle, progress=results.append))
        await begun.wait()
        task.cancel()
        await until(lambda: pollers[0]._finishing)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == [0]
        rest = list[int]()
        await replay(app, world.topic, rest.append, start=results[-1].positions)
        assert sorted(rest) == list(range(1, COUNT))
    await until(
        lambda: (
            not any(each.name.startswith("streams") for each in set(threading.enumerate()) - others)
        )
    )


class Endless:
    """A partition without an end, and without the key that is looked for."""

    def __init__(self, partition: int, over: threading.Event) -> None:
        self._partition = partition
        self._over = over
        self._offset = 0

    def read(self, limit: int, timeout: float = 5.0) -> Batch | None:
        if self._over.wait(0.001):
            return None
        self._offset += 1
        return Batch("t", self._partition, (self._offset,), [b"k"], [b"1"], [None])

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize("into", ["function", "topic"])
async def test_looking_for_a_key_says_how_far_it_is_and_can_be_stopped(
    into: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, over, results = World(), threading.Event(), list[ReplayResult]()
    async with world.filled() as app:
        monkeypatch.setattr(
            app.log, "reader", lambda topic, partition, start, end: Endless(partition, over)
        )
        target: Any = "copy" if into == "topic" else (lambda value: None)
        task = asyncio.create_task(
            replay(app, world.topic, target, key="nobody", progress=results.append)
        )
        try:
            await until(lambda: len({each.scanned for each in results}) > 2)
            task.cancel()
            ended, _ = await asyncio.wait([task], timeout=PATIENCE)
            assert ended
        finally:
            over.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_what_was_opened_is_closed_where_another_partition_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, opened = World(), set[Reader]()
    async with world.filled() as app:
        open_reader = app.log.reader

        def reader(topic: str, partition: int, start: int, end: int) -> Reader:
            if partition == 2:
                raise NotFound("it is gone")
            found = open_reader(topic, partition, start, end)
            close = found.close

            def closed() -> None:
                opened.discard(found)
                close()

            found.close = closed  # type: ignore[method-assign]
            opened.add(found)
            return found

        monkeypatch.setattr(app.log, "reader", reader)
        with pytest.raises(NotFound, match="it is gone"):
            await replay(app, world.topic, lambda value: None)
        with pytest.raises(NotFound, match="it is gone"):
            list(world.topic.read())
        assert opened == set()


# -- speed and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("into", ["function", "topic"])
async def test_it_is_never_faster_than_its_rate(into: str) -> None:
    world = World()
    async with world.filled() as app:
        target: Any = "copy" if into == "topic" else (lambda value: None)
        began = time.monotonic()
        result = await replay(app, world.topic, target, rate=200)
        assert result.handled == COUNT
        # A tenth of a second's messages may be caught up at once.
        assert time.monotonic() - began >= (COUNT - 21) / 200


async def test_what_is_held_stays_within_the_processors_flow() -> None:
    world, go, results = World(), asyncio.Event(), list[ReplayResult]()

    @world.app.processor(world.topic, group="g", concurrency=2, flow=Flow(messages=6))
    async def handle(value: int) -> None:
        await go.wait()

    async with world.filled() as app:
        task = asyncio.create_task(replay(app, world.topic, handle, progress=results.append))
        await until(lambda: len(results) >= 5)
        assert max(each.read for each in results) == 6
        go.set()
        assert (await task).handled == COUNT


# -- into a topic --------------------------------------------------------------------------------


async def test_a_copy_is_what_the_original_was() -> None:
    records = [
        Record(
            b"\x00\xff raw", b"\xfe key", "one", [("h", b"\xff"), ("h", None), ("ce_time", b"x")]
        ),
        Record(None, b"gone", "two"),
        Record(b"", None, "three", [("streams_redrive", b"2")]),
    ]
    world = World()
    async with world.filled(records) as app:
        result = await replay(app, world.topic, "copy")
        assert result.handled == 3
        copy = app.topic("copy", bytes | None)
        copied = {each.id: each for each in await asyncio.to_thread(lambda: list(copy.read()))}
        for record in records:
            raw = copied[record.id].raw
            assert (raw.key, raw.value) == (record.key, record.value)
            assert [pair for pair in raw.headers if pair[0] != ID] == list(record.headers)


async def test_into_a_topic_without_doubles_and_of_one_key() -> None:
    world = World()
    async with world.filled([*numbers(), *numbers(5)]) as app:
        result = await replay(app, world.topic, "copy", dedup=Dedup(), key="k1")
        assert (result.read, result.handled, result.duplicates) == (9, 8, 1)
        assert (result.scanned, result.total) == (COUNT + 5, COUNT + 5)


async def test_a_message_the_target_refuses(tmp_path: Path) -> None:
    # The file took it once; reopened with a smaller limit, it does not.
    url = f"sqlite:///{tmp_path}/log.db"
    records = numbers()
    records[7].value = b"1" * 3_000
    async with World(url).filled(records):
        pass
    world = World(f"{url}?max_record=2000")
    async with world.app.connected() as app:
        with pytest.raises(ReplayFailed, match="m7") as caught:
            await replay(app, world.topic, "copy")
        assert isinstance(caught.value.__cause__, TooLarge)
        result = await replay(
            app, world.topic, "copy", start=caught.value.result.positions, errors="skip"
        )
        assert result.failed == 1
        copy = app.topic("copy", bytes)
        copied = await asyncio.to_thread(lambda: [each.id for each in copy.read()])
    # What was written behind it already comes twice under one ID.
    assert set(copied) == {f"m{n}" for n in range(COUNT) if n != 7}


async def test_a_copy_of_what_was_refused_is_no_double(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/log.db"
    records = [Record(b"1" * 3_000, b"k", "same"), Record(b"1", b"k", "same"), *numbers(3)]
    async with World(url).filled([*records, Record(b"1", b"k", "same")]):
        pass
    world = World(f"{url}?max_record=2000")
    async with world.app.connected() as app:
        result = await replay(app, world.topic, "copy", dedup=Dedup(), errors="skip")
        assert (result.failed, result.handled, result.duplicates) == (1, 4, 1)


# -- nobody is disturbed, and what cannot be -----------------------------------------------------


async def test_a_live_group_goes_on_beside_it() -> None:
    world, live = World(), list[int]()

    @world.app.processor(world.topic, group="live")
    def handle(value: int) -> None:
        live.append(value)

    async with world.app as app:
        await world.topic.publish_many(range(COUNT))
        replayed = list[int]()

        async def slow(value: int) -> None:
            replayed.append(value)
            await world.topic.publish(1_000 + value)

        await replay(app, world.topic, slow)
        await until(lambda: len(live) == 2 * COUNT)
        assert app.log.list_groups() == ["live"]
        assert app.stats().processors["handle"].rebalances == 1
    assert sorted(replayed) == list(range(COUNT))
    assert sorted(live) == [*range(COUNT), *range(1_000, 1_000 + COUNT)]


async def test_what_makes_no_sense_is_said_before_anything_is_read() -> None:
    world = World()

    def never(value: int) -> None:
        raise AssertionError("called")

    def three(a: int, b: int, c: int) -> None: ...

    with pytest.raises(NotRunning):
        await replay(world.app, world.topic, never)
    async with world.filled() as app:
        cases: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
            (ConfigError, "itself", "t", {}),
            (NotFound, "nowhere", "nowhere", {}),
            (ConfigError, "rate=0", never, {"rate": 0}),
            (ConfigError, "errors='ignore'", never, {"errors": "ignore"}),
            (InvalidValue, "offset of one partition", never, {"start": 5}),
            (ConfigError, "leave partition out", never, {"start": {1: 0}, "partition": 1}),
            (
                InvalidValue,
                "another partition",
                never,
                {"start": Position("t", 1, 0), "partition": 2},
            ),
            (NotFound, "0 to 3, not 4", never, {"partition": 4}),
            (InvalidValue, "no time zone", never, {"start": datetime(2013, 1, 1)}),  # noqa: DTZ001
            (ConfigError, "three", three, {}),
            (ConfigError, "into=5", 5, {}),
        ]
        for error, says, into, options in cases:
            with pytest.raises(error, match=says):
                await replay(app, world.topic, into, **options)
