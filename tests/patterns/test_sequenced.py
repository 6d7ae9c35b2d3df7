"""Ordered dead letters: one suite over four logs."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from streams import (
    BatchError,
    ConfigError,
    DeadLetters,
    Flow,
    InvalidValue,
    Message,
    NotFound,
    Reject,
    Retry,
    Streams,
    TopicMismatch,
)
from streams.derived_records import (
    ERROR_PREFIX,
    FIRST_ERROR,
    FIRST_FAILED,
    ORIGIN,
    PUT_BACK,
    header_text,
)
from streams.errors import Fenced, Unavailable
from streams.log.appending import append_and_wait
from streams.log.protocol import Committed
from streams.message import FIRST_POSITION, REDRIVE, Position, Record
from streams.parking import key_parking, read_state
from streams.parking import records as parking_records
from streams.patterns import ClosedKey, ClosedKeys, NotClosed
from streams.patterns.deadletters.closed_keys import ClosedKeyReader
from streams.testing import Clock, harness
from tests.conformance.stage import PATIENCE, QUICK, Stage

SEQUENCED = DeadLetters(sequenced=True)


class World:
    """A processor with ordered dead letters, which fails over what it is told to."""

    def __init__(self, stage: Stage, *, plain: bool = False, **options: Any) -> None:
        self.stage = stage
        self.bad: set[int] = set()
        self.app = stage.app()
        self.topic = stage.topic(self.app, partitions=options.pop("partitions", 2))
        self.messages: list[Message[int]] = []
        options.setdefault("retry", Retry(attempts=1))
        options.setdefault("concurrency", 8)
        options.setdefault("flow", QUICK)
        declare = self.app.processor(
            self.topic, group=stage.group, dead_letters=SEQUENCED, **options
        )
        declare(self.plainly if plain else stage.recorder(self.act))
        self.keys = ClosedKeys(self.app, self.topic, stage.group)

    def act(self, value: int, message: Message[int]) -> None:
        self.messages.append(message)
        if value in self.bad:
            raise ValueError(f"{value} is no good")

    def plainly(self, value: int, message: Message[int]) -> None:
        self.stage.seen.begin(message.key, value, message.attempt)
        ok = False
        try:
            self.act(value, message)
            ok = True
        finally:
            self.stage.seen.end(message.key, value, ok=ok)

    async def closed(self, count: int, parked: int | None = None) -> list[ClosedKey]:
        """Wait until so many keys are closed by a dead message, with so many parked behind."""
        found: list[Any] = []
        for _ in range(3_000):
            found = await self.keys.keys(10_000)
            there = sum(each.parked for each in found)
            dead = all(each.dead for each in found)
            if len(found) == count and dead and parked in (None, there):
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"closed: {[(each.key, each.dead, each.parked) for each in found]}")

    async def failing(self, *values: int, **options: Any) -> None:
        self.bad |= set(values)
        await self.stage.publish(self.topic, *values, **options)


def in_order(stage: Stage) -> None:
    for key, values in stage.seen.by_key().items():
        assert values == sorted(values), key
    assert stage.seen.overlaps == []


@pytest.mark.parametrize("plain", [False, True])
async def test_later_messages_of_a_dead_key_are_parked_and_run_in_order_after_it(
    stage: Stage, plain: bool
) -> None:
    world = World(stage, plain=plain)
    async with world.app:
        await world.failing(0, key="a")
        await stage.publish(world.topic, *range(1, 30), key=lambda value: "ab"[value % 2])
        (closed,) = await world.closed(1, 14)
        assert (closed.key, closed.letter.error) == ("a", "ValueError: 0 is no good")
        assert closed.letter.original_message.value == 0
        assert (closed.letter.queue, closed.letter.group) == (world.topic.name, stage.group)
        await stage.committed(world.app)
        assert stage.seen.by_key() == {"b": list(range(1, 30, 2))}
        world.bad.clear()
        await world.keys.retry("a")
        await stage.handled(30)
        assert stage.seen.by_key()["a"] == list(range(0, 30, 2))
        await stage.publish(world.topic, 30, 31, key=lambda value: "ab"[value % 2])
        await stage.handled(32)
        await world.closed(0)
        with pytest.raises(NotClosed, match="'a' is not closed"):
            await world.keys.retry("a")
        assert await stage.letters(world.app) == []
    in_order(stage)
    assert Counter(stage.seen.values) == dict.fromkeys(range(32), 1)


async def test_what_a_handler_sees_of_a_message_that_came_back(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        world.bad.add(1)
        headers = {"h": "v"}
        first = await world.topic.publish(1, key="k", id="m1", headers=headers)
        second = await world.topic.publish(2, key="k", id="m2", headers=headers)
        await world.closed(1, 1)
        world.bad.clear()
        await world.keys.retry("k")
        await stage.handled(2)
    failed, again, parked = world.messages
    assert (again.id, again.key, again.value, again.attempt) == ("m1", "k", 1, 1)
    assert (
        parked.id,
        parked.key,
        parked.value,
        parked.attempt,
    ) == ("m2", "k", 2, 1)
    assert [tuple(each.position) for each in (failed, again)] == [tuple(failed.position)] * 2
    assert tuple(again.position)[:2] == (first.topic, first.partition)
    assert tuple(parked.position)[:2] == (second.topic, second.partition)
    shown = [str(each.offset) for each in (failed, again, parked)]  # on Redis the entry ID
    assert shown == [stage.anchor.format_offset(each.offset) for each in (first, first, second)]
    assert abs(again.timestamp - failed.timestamp).total_seconds() < 0.001
    seen = dict(again.headers)
    assert (
        seen.pop(ORIGIN)
        == f"{first.topic}/{first.partition}/{stage.anchor.format_offset(first.offset)}"
    )
    assert seen.pop(FIRST_ERROR).startswith("ValueError: ")
    assert seen.pop(FIRST_FAILED)
    del seen[FIRST_POSITION]
    assert seen == {"ce_id": "m1", "h": "v", REDRIVE: "1", PUT_BACK: "1"}
    assert dict(parked.headers) == {"ce_id": "m2", "h": "v"}


async def test_it_fails_again_and_so_does_one_behind_it(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(stage, partitions=1)
    async with world.app:
        await world.failing(0, 3, key="k")
        await stage.publish(world.topic, 1, 2, 4, key="k")
        await world.closed(1, 4)
        await world.keys.retry("k")
        await stage.until(lambda: len(stage.seen.attempts[0]) == 2, "0 failed again")
        (closed,) = await world.closed(1, 4)
        assert closed.letter.redrives == 1
        world.bad -= {0}
        await world.keys.retry("k")
        await stage.until(lambda: stage.seen.attempts[3], "3 failed")
        (closed,) = await world.closed(1, 3)
        assert (closed.letter.original_message.value, closed.letter.redrives) == (3, 0)
        position = world.messages[-1].position
        assert f"attempt: {position}: ValueError('3 is no good')" in caplog.text
        shown = str(closed.letter.original_message.offset)
        assert shown == stage.anchor.format_offset(position.offset)
        assert stage.seen.values == [0]
        world.bad.clear()
        await world.keys.retry("k")
        await stage.handled(5)
    assert stage.seen.values == [0, 3, 1, 2, 4]


async def test_edited_and_dropped(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        await world.failing(0, 1, 2, key=lambda value: f"k{value}")
        await stage.publish(world.topic, 10, 11, 12, key=lambda value: f"k{value % 10}")
        await world.closed(3, 3)
        await world.keys.edit("k0", 100)
        await world.keys.edit("k1", b"101")
        await world.keys.drop("k2")
        await stage.handled(5)
        await world.closed(0)
        await stage.publish(world.topic, 20, 21, 22, key=lambda value: f"k{value % 10}")
        await stage.handled(8)
    assert stage.seen.by_key() == {"k0": [100, 10, 20], "k1": [101, 11, 21], "k2": [12, 22]}
    assert {each.id for each in world.messages if each.value == 100} == {
        each.id for each in world.messages if each.value == 0
    }


async def test_a_command_given_twice_or_too_late_does_nothing(stage: Stage) -> None:
    world = World(stage, partitions=1)
    async with world.app:
        await world.failing(0, key="k")
        await stage.publish(world.topic, 1, key="k")
        await world.closed(1, 1)
        heads = ClosedKeyReader(world.app.log, stage.group, world.topic.name)
        head = await asyncio.to_thread(heads.dead_head, b"k")
        for command in ("retry", "retry", "drop", "edit"):
            await asyncio.to_thread(heads.send_command, command, head, b"7")
        await stage.until(lambda: len(stage.seen.attempts[0]) == 2, "failed again")
        (closed,) = await world.closed(1, 1)
        assert closed.letter.redrives == 1
        for command in ("drop", "retry"):  # it was another failure that they were about
            await asyncio.to_thread(heads.send_command, command, head)  # type: ignore[arg-type]
        await world.failing(5, key="other")
        await world.closed(2)
        assert len(stage.seen.attempts[0]) == 2
        world.bad.clear()
        await world.keys.retry("other")
        await stage.handled(1)
        assert stage.seen.values == [5]
        await world.keys.retry("k")
        await stage.handled(3)
    assert stage.seen.values == [5, 0, 1]


async def test_keys_stay_closed_across_restarts(stage: Stage) -> None:
    first = World(stage)
    async with first.app:
        await first.failing(0, key="k")
        await stage.publish(first.topic, 1, 2, key="k")
        await first.closed(1, 2)
    second = World(stage)
    second.bad.add(0)
    async with second.app:
        await stage.publish(second.topic, 3, 4, key="k")
        await second.closed(1, 4)
        assert stage.seen.values == []
    third = World(stage)
    async with third.app.connected():
        await third.keys.retry("k")  # while nobody runs
    async with third.app:
        await stage.publish(third.topic, 5, key="k")
        await stage.handled(6)
        await stage.committed(third.app)
        await third.closed(0)
    fourth = World(stage)
    async with fourth.app:
        await stage.publish(fourth.topic, 6, key="k")
        await stage.handled(7)
    assert stage.seen.values == list(range(7))


async def test_a_rebalance_takes_closed_keys_along(stage: Stage) -> None:
    first = World(stage, partitions=4)
    async with first.app:
        await first.failing(*range(8), key=lambda value: f"k{value}")
        await stage.publish(first.topic, *range(8, 40), key=lambda value: f"k{value % 8}")
        await first.closed(8, 32)
        second = World(stage, partitions=4)
        async with second.app:
            (processor,) = second.app.processors
            await stage.until(
                lambda: len(processor.key_parking._partitions) == 2,  # type: ignore[union-attr]
                "half of the partitions are the second's",
            )
            await stage.publish(first.topic, *range(40, 48), key=lambda value: f"k{value % 8}")
            await first.closed(8, 40)
            assert stage.seen.values == []
            first.bad.clear()
            for key in range(4):
                await first.keys.retry(f"k{key}")
            await stage.handled(24)
        for key in range(4, 8):
            await first.keys.retry(f"k{key}")
        await stage.handled(48)
    in_order(stage)
    assert Counter(stage.seen.values) == dict.fromkeys(range(48), 1)


async def test_what_cannot_be_decoded_closes_its_key_too(stage: Stage) -> None:
    world = World(stage)
    raw_app = stage.app()
    raw = raw_app.topic(world.topic.name, bytes)
    async with world.app, raw_app.connected():
        await raw.publish(b"{not JSON", key="k")
        await stage.publish(world.topic, 1, key="k")
        (closed,) = await world.closed(1, 1)
        assert closed.letter.error.startswith("DecodeError")
        assert closed.letter.original_message.value == b"{not JSON"
        await world.keys.edit("k", 0)
        await stage.handled(2)
    assert stage.seen.values == [0, 1]


async def test_closed_keys_are_among_the_figures(stage: Stage) -> None:
    world = World(stage)
    (name,) = [each.name for each in world.app.processors]

    def figures() -> tuple[int, int]:
        stats = world.app.stats().processors[name]
        return stats.closed_keys, stats.parked

    async with world.app:
        assert figures() == (0, 0)
        await world.failing(0, key="a")
        await world.failing(1, key="b")
        await stage.publish(world.topic, 2, 3, key="a")
        await stage.until(lambda: figures() == (2, 2))
        world.bad.clear()
        await world.closed(2, 2)
        await world.keys.retry("a")
        await stage.until(lambda: figures() == (1, 0))


async def test_what_has_no_key_goes_to_the_dead_letters(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        await world.failing(1)
        await stage.publish(world.topic, 2, 3)
        await stage.handled(2)
        await stage.committed(world.app)
        (letter,) = await stage.letters(world.app)
        assert letter.raw.value == b"1"
        await world.closed(0)
    assert sorted(stage.seen.values) == [2, 3]


async def test_a_message_published_twice_is_parked_and_handled_once(stage: Stage) -> None:
    world = World(stage, partitions=1)
    async with world.app:
        await world.failing(0, key="k")
        for _ in range(3):
            await world.topic.publish(1, key="k", id="twice")
            await world.topic.publish(2, key="k", id="also")
        await world.closed(1, 2)
        await stage.committed(world.app)
    again = World(stage, partitions=1)
    async with again.app:
        await again.topic.publish(1, key="k", id="twice")
        await again.keys.retry("k")
        await stage.handled(3)
        await again.topic.publish(2, key="k", id="also")
        await stage.publish(again.topic, 3, key="k")
        await stage.handled(4)
    assert stage.seen.values == [0, 1, 2, 3]


async def test_attempts_and_filters_and_results(stage: Stage) -> None:
    """What comes back is tried as often, filtered and published like any other."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    results = app.topic(f"{stage.topic_name}-results", int, partitions=1)
    bad = {0}

    def act(value: int) -> None:
        if value in bad:
            raise ConnectionError("no")

    @app.processor(
        topic, group=stage.group, to=results, filter=lambda value: value != 2, flow=QUICK,
        retry=Retry(attempts=3, delay=0.001), dead_letters=SEQUENCED,
    )  # fmt: skip
    async def double(value: int, message: Message[int]) -> int:
        stage.seen.begin(message.key, value, message.attempt)
        ok = False
        try:
            act(value)
            ok = True
        finally:
            stage.seen.end(message.key, value, ok=ok)
        return value * 2

    keys = ClosedKeys(app, topic, stage.group)
    async with app:
        await stage.publish(topic, 0, 1, 2, 3, key="k")
        await stage.until(lambda: len(stage.seen.attempts[0]) == 3, "given up")
        await stage.committed(app)
        bad.clear()
        await keys.retry("k")
        await stage.handled(3)
        await stage.until(lambda: app.log.watermarks(results.name, 0)[1], "written")
        found: list[int] = []
        for _ in range(3_000):
            found = [each.value for each in await asyncio.to_thread(lambda: list(results.read()))]
            if len(found) == 3:
                break
            await asyncio.sleep(0.01)
    assert found == [0, 2, 6]
    assert stage.seen.values == [0, 1, 3]


@pytest.mark.parametrize("plain", [False, True])
async def test_batches(stage: Stage, plain: bool) -> None:
    """Parked messages come back one by one; the others still come in batches."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    bad = {5}
    sizes: list[int] = []

    def act(values: list[int], messages: list[Message[int]]) -> None:
        sizes.append(len(values))
        failed = {index: Reject("no") for index, value in enumerate(values) if value in bad}
        for index, (value, message) in enumerate(zip(values, messages, strict=True)):
            stage.seen.begin(message.key, value, message.attempt)
            stage.seen.end(message.key, value, ok=index not in failed)
        if failed:
            # Later messages of a failed key must not count as done.
            keys = {messages[index].key for index in failed}
            first = min(failed)
            for index in range(first, len(values)):
                if messages[index].key in keys and index not in failed:
                    stage.seen.handled.remove((messages[index].key, values[index]))
                    failed[index] = ConnectionError("behind it")  # type: ignore[assignment]
            raise BatchError(failed)

    async def asynchronous(values: list[int], messages: list[Message[int]]) -> None:
        act(values, messages)

    def plainly(values: list[int], messages: list[Message[int]]) -> None:
        act(values, messages)

    app.processor(
        topic, group=stage.group, batch=10, flow=QUICK, retry=Retry(attempts=3, delay=0.001),
        dead_letters=SEQUENCED,
    )(plainly if plain else asynchronous)  # fmt: skip
    keys = ClosedKeys(app, topic, stage.group)
    async with app:
        await stage.publish(topic, *range(60), key=lambda value: f"k{value % 3}")
        await stage.committed(app)
        (closed,) = await keys.keys()
        assert (closed.key, closed.parked) == ("k2", 18)
        bad.clear()
        await keys.retry("k2")
        await stage.handled(60)
    in_order(stage)
    assert Counter(stage.seen.values) == dict.fromkeys(range(60), 1)
    assert max(sizes) > 1


async def test_many_keys_and_long_queues_come_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_parking, "FETCH_AHEAD", 4)
    monkeypatch.setattr(key_parking, "FETCH_LIMIT", 7)
    monkeypatch.setattr(key_parking, "FETCH_BYTES", 40)
    world = World(stage)
    keys = 6
    async with world.app:
        await world.failing(*range(keys), key=lambda value: f"k{value % keys}")
        await stage.publish(
            world.topic, *range(keys, 40 * keys), key=lambda value: f"k{value % keys}"
        )
        await world.closed(keys, 39 * keys)
        world.bad = {20 * keys}
        for key in range(keys):
            await world.keys.retry(f"k{key}")
        await stage.handled(40 * keys - 20)
        await world.closed(1, 19)
        world.bad.clear()
        await world.keys.retry("k0")
        await stage.handled(40 * keys)
        await world.closed(0)
    in_order(stage)
    assert Counter(stage.seen.values) == dict.fromkeys(range(40 * keys), 1)


async def test_no_more_is_held_than_is_allowed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be parked waits in its key queue, and its partition with it; other keys go on."""
    monkeypatch.setattr(key_parking, "PARKED_LIMIT", 3)
    monkeypatch.setattr("streams.processing.outcomes.WRITE_PAUSE", 0.02)
    world = World(stage, partitions=1)
    async with world.app:
        await world.failing(0, key="k")
        await stage.publish(world.topic, *range(1, 10), key="k")
        await stage.publish(world.topic, *range(10, 20), key="other")
        await stage.handled(10)
        await world.closed(1, 2)
        world.bad.clear()
        await world.keys.retry("k")
        await stage.handled(20)
        await stage.committed(world.app)
    assert stage.seen.by_key() == {"k": list(range(10)), "other": list(range(10, 20))}


async def test_what_is_over_is_not_read_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_parking, "FLOOR_INTERVAL", 0.02)
    world = World(stage, partitions=1)
    name = f"{world.topic.name}.{stage.group}.parked"
    async with world.app:
        log = world.app.log

        def floor() -> int:
            return log.committed(name, name)[0].position

        await world.failing(0, key="k")
        await stage.publish(world.topic, 1, 2, key="k")
        await world.closed(1, 2)
        (head,) = await asyncio.to_thread(
            lambda: list(ClosedKeyReader(log, stage.group, world.topic.name).heads())
        )
        await stage.committed(world.app)
        assert await asyncio.to_thread(floor) <= head.position
        world.bad.clear()
        await world.keys.retry("k")
        await stage.handled(3)
        end = (await asyncio.to_thread(log.watermarks, name, 0))[1]
        await stage.until(lambda: floor() >= end, "the floor is at the end")
    again = World(stage, partitions=1)
    async with again.app:
        await stage.publish(again.topic, 3, key="k")
        await stage.handled(4)
    assert stage.seen.values == [0, 1, 2, 3]


async def test_a_reset_makes_everything_come_again_but_what_waits(stage: Stage) -> None:
    world = World(stage, partitions=1)
    async with world.app:
        await stage.publish(world.topic, 0, key="k")
        await world.failing(1, key="k")
        await stage.publish(world.topic, 2, key="k")
        await world.failing(3, key="other")
        await world.closed(2, 1)
        world.bad.clear()
        await world.keys.retry("other")
        await stage.handled(2)
        await stage.committed(world.app)
    anchor = stage.anchor
    first = await asyncio.to_thread(lambda: anchor.watermarks(world.topic.name, 0)[0])
    await asyncio.to_thread(
        lambda: anchor.reset_offsets(
            stage.group, world.topic.name, {0: Committed(first)}, force=True
        )
    )
    again = World(stage, partitions=1)
    async with again.app:
        await stage.handled(4)  # 0 and 3 come again; 1 and 2 wait
        await stage.committed(again.app)
        assert sorted(stage.seen.values) == [0, 0, 3, 3]
        await again.keys.retry("k")
        await stage.handled(6)
    assert stage.seen.by_key()["k"] == [0, 0, 1, 2]


async def lost_commits(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, *, decided: bool
) -> tuple[World, int]:
    """A life of which nothing was committed but that 9 was handled: as after a crash. In it 0 was
    handled, 1 dead and 2 parked. Also where the record of 1 stands."""
    monkeypatch.setattr(key_parking, "FLOOR_INTERVAL", 0.02)
    first = World(stage, partitions=1)
    async with first.app:
        await stage.publish(first.topic, 9, key="other")
        await stage.committed(first.app)
        place = (await asyncio.to_thread(stage.places, first.app))[0]
    with monkeypatch.context() as uncommitted:
        # What was not read back is not committed, neither meanwhile nor in the end.
        uncommitted.setattr(
            key_parking.DurableKeyParking, "is_confirmed", lambda parking, assignment: False
        )
        head = await uncommitted_life(stage, decided=decided)
    assert (await asyncio.to_thread(stage.places, stage.opened()))[0] == place
    return World(stage, partitions=1), head


async def uncommitted_life(stage: Stage, *, decided: bool) -> int:
    """See :func:`lost_commits`. It ends once the floor stands at the record of 1, or above."""
    world = World(stage, partitions=1)
    name = f"{world.topic.name}.{stage.group}.parked"
    async with world.app:
        await stage.publish(world.topic, 0, key="k")
        await world.failing(1, key="k")
        await stage.publish(world.topic, 2, key="k")
        await world.closed(1, 1)
        log = world.app.log
        (head,) = await asyncio.to_thread(
            lambda: list(ClosedKeyReader(log, stage.group, world.topic.name).heads())
        )
        if decided:
            world.bad.clear()
            await world.keys.retry("k")
            await stage.handled(4)
            await world.closed(0)
            parked = world.app.processors[0].key_parking._partitions[world.topic.name, 0]  # type: ignore[union-attr]
            await stage.until(lambda: not parked.state.has_unread, "everything is read")
            for _ in range(2):  # the second look is one that began after this
                before = parked._next_floor_commit

                def looked(before: float = before) -> bool:
                    return bool(parked._next_floor_commit > before)

                await stage.until(looked, "looked at the floor")
        await stage.until(
            lambda: log.committed(name, name)[0].position >= head.position, "the floor has moved"
        )
    return head.position


async def test_what_was_parked_and_handled_is_not_handled_again_although_a_commit_was_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = await lost_commits(stage, monkeypatch, decided=True)
    async with world.app:
        await stage.publish(world.topic, 3, key="k")
        await stage.until(lambda: 3 in stage.seen.values, "what came later is handled")
    # What was handled the usual way, 0, comes again as after any crash.
    assert stage.seen.by_key() == {"other": [9], "k": [0, 1, 2, 0, 3]}


async def test_what_is_parked_is_parked_once_although_a_commit_was_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, _ = await lost_commits(stage, monkeypatch, decided=False)
    async with world.app:
        await stage.publish(world.topic, 3, key="k")
        await world.closed(1, 2)
        await stage.committed(world.app)
        # 0 comes again, as after any crash; 1 and 2 wait.
        assert stage.seen.by_key() == {"other": [9], "k": [0, 0]}
        await world.keys.retry("k")
        await stage.handled(6)
    assert stage.seen.by_key()["k"] == [0, 0, 1, 2, 3]


async def test_who_fails_after_its_partition_went_elsewhere_decides_nothing(
    stage: Stage,
) -> None:
    """A plain handler cannot be interrupted: it outlives the drain deadline, and then fails."""
    held = threading.Event()
    began: set[int] = set()

    def refuse(value: int) -> None:
        began.add(value)
        held.wait(PATIENCE)
        raise Reject("too late")

    first = stage.app()
    topic = stage.topic(first, partitions=2)
    flow = Flow(commit=0.05, drain=0.05)
    first.processor(topic, group=stage.group, concurrency=4, flow=flow, dead_letters=SEQUENCED)(
        refuse
    )
    keys = ("a", "b", "c", "d", "e", "f")
    try:
        async with first:
            for number, key in enumerate(keys):
                await stage.publish(topic, number, key=key)
            await stage.until(lambda: len(began) == 4, "four are running")
            second = World(stage)
            async with second.app:
                await stage.until(lambda: stage.seen.handled, "one was handled by the second")
                held.set()
                await stage.until(lambda: len(began) + len(stage.seen.handled) >= 6, "all done")
                await stage.committed(first)
                assert await stage.letters(second.app) == []
                handled = {key for key, _ in stage.seen.handled}
                closed = {each.key for each in await second.keys.keys()}
                assert handled | closed == set(keys)
                assert not handled & closed
    finally:
        held.set()


async def test_what_a_former_owner_still_writes_counts_for_nobody(stage: Stage) -> None:
    world = World(stage, partitions=1)
    async with world.app:
        await world.failing(0, key="k")
        await stage.publish(world.topic, 1, key="k")
        await world.closed(1, 1)
        (processor,) = world.app.processors
        parked = processor.key_parking._partitions[world.topic.name, 0]  # type: ignore[union-attr]
        name, former = parked.name, parked.epoch
        offsets = list(parked.state.keys[b"k"].source_offsets)
    again = World(stage, partitions=1)
    async with again.app:
        await stage.until(lambda: again.app.processors[0].key_parking._partitions, "owned")  # type: ignore[union-attr]
        for record in (
            parking_records.done_record(former, 0, offsets[0], b"k"),
            parking_records.parked_record(
                "dead", former, 0, offsets[1] + 10, again.topic.record(9, key="late"), 0.0
            ),
        ):
            await again.app.publisher.publish(name, record)
        assert len(await again.keys.keys()) == 1
        await again.keys.retry("k")
        await stage.handled(2)
        await again.closed(0)
    third = World(stage, partitions=1)
    async with third.app:
        await stage.publish(third.topic, 2, key="k")
        await stage.handled(3)
        await third.closed(0)
    assert stage.seen.values == [0, 1, 2]


def forged(what: str, **said: str) -> Record:
    """A record as anybody could write it."""
    headers = [(f"__streams.parked.{name}", value.encode()) for name, value in said.items()]
    return Record(None, None, uuid4().hex, [("__streams.parked.what", what.encode()), *headers], 0)


async def test_a_strangers_owner_record_loses_nothing_and_is_told(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(stage, partitions=1)
    name = f"{stage.topic_name}.{stage.group}.parked"
    async with world.app:
        publish = world.app.publisher.publish
        await world.failing(0, key="k")
        await stage.publish(world.topic, 1, key="k")
        await world.closed(1, 1)
        await stage.committed(world.app)
        assert world.app.health().ok
        in_force = (await asyncio.to_thread(read_state, world.app.log, name, 0)).epoch
        await publish(name, forged("owner", owner="stranger", replaces=in_force))
        await stage.publish(world.topic, 2, 3, key="k")
        await world.failing(10, key="other")
        await stage.publish(world.topic, 11, key="other")
        await world.closed(2, 4)
        await stage.committed(world.app)
        assert world.app.health().processors["handle"].contested == 1
        assert not world.app.health().ok
        replaced = [each for each in caplog.records if "has replaced this owner" in each.message]
        assert len(replaced) == 1
        # Those that count for nobody change nothing: of another release, of an earlier owner.
        await publish(name, forged("owner", owner="older"))
        await publish(name, forged("owner", owner="late", replaces=in_force))
        world.bad.clear()
        for key in ("k", "other"):
            await world.keys.retry(key)
        await stage.handled(6)
        await world.closed(0)
        await stage.publish(world.topic, 4, key="k")
        await stage.handled(7)
        replaced = [each for each in caplog.records if "has replaced this owner" in each.message]
        assert len(replaced) == 1
    assert list(dict.fromkeys(stage.seen.by_key()["k"])) == [0, 1, 2, 3, 4]
    assert list(dict.fromkeys(stage.seen.by_key()["other"])) == [10, 11]
    assert stage.seen.overlaps == []


@pytest.mark.parametrize("plain", [False, True])
async def test_while_a_partition_is_let_go_nothing_of_it_is_handled(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    """Which keys are closed is not known any more, and the executor was not told yet."""
    world = World(stage, partitions=1, plain=plain)
    async with world.app:
        await world.failing(0, key="k")
        await world.closed(1)
        await stage.committed(world.app)  # and its letter was read back
        parking: Any = world.app.processors[0].key_parking
        asked: list[Any] = []
        decide = parking.decide

        def count(delivery: Any) -> Any:
            asked.append(delivery)
            return decide(delivery)

        monkeypatch.setattr(parking, "decide", count)
        owned = list(parking._partitions.values())
        parking.release([each.assignment for each in owned])
        await stage.publish(world.topic, 1, key="k")
        await stage.until(lambda: len(asked) >= 2, "it was asked for, and again later")
        assert parking.is_closed(asked[0])
        with pytest.raises(Unavailable, match="not owned any more"):
            parking.close_key(asked[0], ("dead", Record(None, b"k", "1")))
        assert stage.seen.handled == []
        parking._partitions.update({(each.assignment.topic, 0): each for each in owned})
        await world.closed(1, 1)  # ours again: it is parked
        world.bad.clear()
        await world.keys.retry("k")
        await stage.handled(2)
    assert stage.seen.values == [0, 1]


async def test_a_partition_whose_closed_keys_cannot_be_read_holds_up_no_other(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(stage)
    keys = "abcdefghijklmnop"
    async with world.app:
        for value, key in enumerate(keys):
            await world.failing(value, key=key)
        await world.closed(len(keys))
        parking: Any = world.app.processors[0].key_parking
        readable, other = parking._partitions.values()
        assert readable.state.keys
        assert other.state.keys
        fetch, asked, away = other._fetcher.fetch, 0, True

        def fetch_unless_away(*given: Any) -> Any:
            nonlocal asked
            asked += 1
            if away:
                raise Unavailable("the log is away for a moment")
            return fetch(*given)

        monkeypatch.setattr(other._fetcher, "fetch", fetch_unless_away)
        count = len(readable.state.keys)
        world.bad.clear()
        for key in keys:
            await world.keys.retry(key)
        await stage.handled(count)
        await stage.until(lambda: asked >= 2, "it is asked again")
        await stage.publish(world.topic, 100, key="another")
        await stage.handled(count + 1)
        away = False
        await stage.handled(len(keys) + 1)
        await world.closed(0)
    assert sorted(stage.seen.values) == [*range(len(keys)), 100]


def test_a_partition_that_is_replaced_again_and_again_is_begun_less_and_less_often() -> None:
    parking = key_parking.DurableKeyParking.__new__(key_parking.DurableKeyParking)
    parked = SimpleNamespace(
        ended_reason="replaced", is_fenced=False, name="t", partition=0, assignment=object()
    )
    parking._partitions = {("t", 0): parked}  # type: ignore[dict-item]
    parking._replacements = {}
    pauses = [parking.replaced_epochs()[0][1] for _ in range(9)]
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert parking.contested_partitions() == 1
    parked.ended_reason = ""
    assert parking.replaced_epochs() == []


@pytest.mark.needs("fences_appends")
@pytest.mark.parametrize("what", ["dead", "waits", "done"])
async def test_an_owner_whose_record_is_refused_lets_go_of_its_partition(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The partition is given away between the owner's decision and its write."""
    world = World(stage, partitions=1)
    answers: list[object] = []
    async with world.app:
        if what != "dead":
            await world.failing(0, key="k")
            await world.closed(1)
        if what == "done":
            await stage.publish(world.topic, 1, key="k")
            await world.closed(1, 1)
        parking: Any = world.app.processors[0].key_parking
        await stage.until(lambda: parking._partitions, "owned")
        await stage.until(lambda: stage.places(world.app), "its start is committed")
        await stage.committed(world.app)
        (parked,) = parking._partitions.values()
        owner: Any = parked.assignment
        write, places = owner.append_as_owners, stage.places(world.app)

        def write_late(topic: str, records: Any, owners: Any, done: Any) -> None:
            def told(outcomes: Any) -> None:
                answers.extend(outcomes)
                done(outcomes)

            assert header_text(records[0].headers, parking_records.KIND) == what
            stage.anchor.reset_offsets(stage.group, stage.topic_name, places, force=True)
            write(topic, records, owners, told)

        monkeypatch.setattr(owner, "append_as_owners", write_late)
        if what == "dead":
            await world.failing(0, key="k")
            await world.closed(1)
        if what != "done":
            await stage.publish(world.topic, 1, key="k")
            await world.closed(1, 1)
            await stage.committed(world.app)
        world.bad.clear()
        await world.keys.retry("k")
        await stage.until(lambda: 1 in stage.seen.values, "what was parked is handled")
        await world.closed(0)
        assert [type(each) for each in answers] == [Fenced]
        # It was an ordinary loss: nobody has written beside the owner.
        assert world.app.health().processors["handle"].contested == 0
    assert list(dict.fromkeys(stage.seen.values)) == [0, 1]


async def test_what_was_confirmed_and_is_not_in_the_log_is_parked_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover may lose what was acknowledged: here a record is not written at all."""
    monkeypatch.setattr(key_parking, "LOST_AFTER", 0.2)
    world = World(stage, partitions=1)
    name = f"{stage.topic_name}.{stage.group}.parked"
    async with world.app:
        await world.failing(0, key="k")
        await world.closed(1)
        log: Any = world.app.log
        (parked,) = world.app.processors[0].key_parking._partitions.values()  # type: ignore[union-attr]
        owner = parked.assignment
        write, lost = owner.append_as_owners or log.append, list[str]()

        def append(topic: str, records: Any, *given: Any) -> None:
            if (
                topic != name
                or lost
                or header_text(records[0].headers, parking_records.KIND) != "waits"
            ):
                write(topic, records, *given)
                return
            lost.append(records[0].id)
            given[-1]([Position(name, 0, 1 << 60)] * len(records))

        if owner.append_as_owners is None:
            monkeypatch.setattr(log, "append", append)
        else:
            monkeypatch.setattr(owner, "append_as_owners", append)
        await stage.publish(world.topic, 1, key="k")
        await world.closed(1, 1)
        assert lost
        await stage.committed(world.app)
        await stage.publish(world.topic, 2, key="k")
        await world.closed(1, 2)
        world.bad.clear()
        await world.keys.retry("k")
        await stage.handled(3)
    assert stage.seen.values == [0, 1, 2]


async def test_a_group_goes_on_with_what_an_older_release_parked(stage: Stage) -> None:
    """Its owner records do not name the ones that they replace."""
    anchor, topic = stage.anchor, stage.topic_name
    name = parking_records.parked_topic(topic, stage.group)

    def older() -> None:
        anchor.create_topic(topic, 1)
        key_parking.ensure_parked_topic(anchor, name, 1, topic)
        records = [Record(b"%d" % value, b"k", f"m{value}") for value in range(3)]
        places = [each.offset for each in append_and_wait(anchor, topic, records)]  # type: ignore[union-attr]
        anchor.reset_offsets(stage.group, topic, {0: Committed(places[2] + 1)}, force=True)
        first, second = uuid4().hex, uuid4().hex
        written = [forged("owner", owner=first, fresh="1")]
        written.append(parking_records.parked_record("dead", first, 0, places[0], records[0], 0.0))
        written.append(parking_records.parked_record("waits", first, 0, places[1], records[1], 0.0))
        written.append(forged("owner", owner=second))
        written.append(
            parking_records.parked_record("waits", first, 0, places[1] + 9, records[1], 0.0)
        )
        written.append(
            parking_records.parked_record("waits", second, 0, places[2], records[2], 0.0)
        )
        assert not [each for each in append_and_wait(anchor, name, written) if not each]

    await asyncio.to_thread(older)
    world = World(stage, partitions=1)
    async with world.app.connected():
        (closed,) = await world.keys.keys()
        assert (closed.key, closed.parked, closed.dead) == ("k", 2, True)
    async with world.app:
        await stage.publish(world.topic, 3, key="k")
        await world.closed(1, 3)
        # A worker of the older release that still runs: from the first of ours on, it does not
        # count, which is told.
        await world.app.publisher.publish(name, forged("owner", owner=uuid4().hex))
        await stage.publish(world.topic, 4, key="k")
        await world.closed(1, 4)
        await world.keys.retry("k")
        await stage.handled(5)
        await world.closed(0)
    assert stage.seen.values == [0, 1, 2, 3, 4]


async def test_durable_attempts_and_closed_keys(stage: Stage) -> None:
    world = World(stage, partitions=1, retry=Retry(attempts=2, delay=0.001, durable=True))
    async with world.app:
        await world.failing(0, key="k")
        await stage.publish(world.topic, 1, key="k")
        await world.closed(1, 1)
        await world.keys.retry("k")
        await stage.until(lambda: len(stage.seen.attempts[0]) == 4, "tried twice again")
        await world.closed(1, 1)
        world.bad.clear()
        await world.keys.retry("k")
        await stage.handled(2)
    assert stage.seen.attempts[0] == [1, 2, 1, 2, 1]


async def test_what_cannot_be_is_said_in_a_line(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    keys = ClosedKeys(app, topic, stage.group)
    async with app.connected():
        with pytest.raises(NotFound, match=r"sequenced=True"):
            await keys.keys()
        with pytest.raises(InvalidValue, match="limit=0"):
            await keys.keys(0)
        with pytest.raises(ConfigError, match="declare it with"):
            await ClosedKeys(app, "elsewhere", "g").edit("k", 1)
        with pytest.raises(ConfigError, match="group"):
            ClosedKeys(app, topic, "no/such group")
        await asyncio.to_thread(app.log.create_topic, f"{topic.name}.{stage.group}.parked", 5)
    world = World(stage)
    with pytest.raises(TopicMismatch, match=r"has 5 partitions, but .* has 2"):
        await world.app.__aenter__()


async def test_a_test_can_hold_its_time_in_its_hand() -> None:
    app = Streams("memory://")
    topic = app.topic("orders", int)
    bad = {1}
    seen: list[int] = []

    @app.processor(
        topic, group="g", retry=Retry(attempts=2, delay=60, cap=60), dead_letters=SEQUENCED
    )
    async def handle(value: int) -> None:
        if value in bad:
            raise ValueError("no")
        seen.append(value)

    keys = ClosedKeys(app, topic, "g")
    async with harness(app, clock=Clock()) as running:
        for value in (1, 2):
            await topic.publish(value, key="k")
        await running.settled()
        assert await keys.keys() == []
        running.clock.advance(60)
        await running.settled()
        (closed,) = await keys.keys()
        assert (closed.parked, seen) == (1, [])
        await keys.retry("k")
        await running.settled()
        running.clock.advance(60)
        await running.settled()
        bad.clear()
        await keys.retry("k")
        await running.settled()
        assert seen == [1, 2]
        assert not any(
            name.startswith(ERROR_PREFIX) for name in closed.letter.original_message.headers
        )
