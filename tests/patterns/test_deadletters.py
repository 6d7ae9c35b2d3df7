"""The manager of dead letters: one suite over four logs."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streams import (
    ConfigError,
    DeadLetters,
    InvalidValue,
    Message,
    NotFound,
    Reject,
    Retry,
    Streams,
)
from streams.derived_records import ERROR_PREFIX
from streams.engine.progress import encode_progress
from streams.log.appending import append_and_wait
from streams.log.protocol import Log
from streams.message import REDRIVE
from streams.patterns import DeadLetter, DeadLetterManager, MessageQueue, QueueMessage
from streams.patterns.deadletters import ReprocessStopped, redriving
from streams.replay import reset
from tests.conformance.stage import QUICK, Stage, keys_of_all_partitions

ROOT = Path(__file__).parents[2]
ONCE = Retry(attempts=1)


class World:
    """A processor that fails as long as it is told to, and the manager of its dead letters."""

    def __init__(self, stage: Stage, **options: Any) -> None:
        self.stage = stage
        self.failing = True
        self.app = stage.app()
        self.topic = stage.topic(self.app, partitions=options.pop("partitions", 2))
        options.setdefault("retry", ONCE)
        self.app.processor(self.topic, group=stage.group, flow=QUICK, **options)(
            stage.recorder(self.act)
        )
        letters = options.get("dead_letters", DeadLetters())
        self.manager = DeadLetterManager(self.app, letters.name(self.topic.name, stage.group))

    def act(self, value: int, message: Message[int]) -> None:
        if self.failing:
            raise ValueError(f"{value} is no good")

    async def fail(self, *values: int, **options: Any) -> None:
        """Let these fail."""
        before = len(await self.manager.get_dead_letters(10_000, everything=True))
        await self.stage.publish(self.topic, *values, **options)
        await self.waiting(before + len(values), everything=True)

    async def waiting(self, count: int, **options: Any) -> list[DeadLetter]:
        """Wait until there are so many letters."""
        found: list[Any] = []
        for _ in range(3_000):
            found = await self.manager.get_dead_letters(10_000, **options)
            if len(found) >= count:
                assert len(found) == count
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"there are {len(found)} letters, not {count}")


async def test_a_letter_says_what_there_is_to_know(stage: Stage) -> None:
    world = World(stage, retry=Retry(attempts=3, delay=0.001))
    async with world.app:
        assert await world.manager.get_dead_letters() == []
        position = await world.topic.publish(7, key="k", id="m7", headers={"h": "v"})
        (letter,) = await world.waiting(1)
        assert letter.original_message.value == 7
        assert (letter.id, letter.key) == ("m7", "k")
        assert dict(letter.original_message.headers) == {"ce_id": "m7", "h": "v"}
        assert letter.original_message.raw.value == b"7"
        place = letter.original_message.position
        assert (place.topic, place.partition) == position[:2]
        assert stage.anchor.format_offset(place.offset) == stage.anchor.format_offset(
            position.offset
        )
        assert letter.error == "ValueError: 7 is no good"
        assert "raise ValueError" in letter.traceback
        assert letter.retry_count == 2
        assert (letter.queue, letter.group) == (world.topic.name, stage.group)
        assert (letter.redrives, letter.waiting) == (0, True)
        assert letter.failed_at.tzinfo is not None
        assert letter.position.topic == world.manager.name
        assert "7 is no good" not in repr(letter.original_message)


async def test_put_back_once_through_the_retry_topic_and_in_order(stage: Stage) -> None:
    world = World(stage, partitions=3)
    async with world.app:
        await world.fail(*range(60), key=lambda value: f"k{value % 7}")
        world.failing = False
        assert await world.manager.reprocess() == 60
        assert await world.manager.reprocess() == 0
        await stage.handled(60)
        assert await world.manager.get_dead_letters() == []
        assert len(await world.manager.get_dead_letters(everything=True)) == 60
        back = world.app.topic(f"{world.topic.name}.{stage.group}.retry", int)
        again = await asyncio.to_thread(lambda: list(back.read()))
    assert {message.headers[REDRIVE] for message in again} == {"1"}
    assert not any(name.startswith(ERROR_PREFIX) for each in again for name in each.headers)
    for key, values in stage.seen.by_key().items():
        assert values == [value for value in range(60) if f"k{value % 7}" == key]


async def test_the_loop_counter_counts_and_a_filter_ends_the_loop(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        await world.fail(1, 2, key="k")
        for times in (1, 2, 3):
            assert await world.manager.reprocess(filter=lambda each: each.redrives < 3) == 2
            letters = await world.waiting(2)
            assert [each.redrives for each in letters] == [times, times]
            assert [each.queue for each in letters] == [world.topic.name] * 2
        assert await world.manager.reprocess(filter=lambda each: each.redrives < 3) == 0
        assert len(await world.manager.get_dead_letters()) == 2
    assert stage.seen.attempts[1] == [1, 1, 1, 1]


async def test_those_picked_out_are_noted_and_the_others_wait(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        # With keys: of messages without one, the last 13 may all be in one partition by chance.
        await world.fail(*range(40), key=lambda value: f"k{value}")
        world.failing = False

        def third(letter: DeadLetter) -> bool:
            return bool(letter.original_message.value % 3 == 0)

        assert await world.manager.reprocess(filter=third) == 14
        assert await world.manager.reprocess(filter=third) == 0
        left = await world.manager.get_dead_letters(filter=lambda each: not third(each))
        assert len(left) == len(await world.manager.get_dead_letters()) == 26
        assert len(await world.manager.get_dead_letters(5)) == 5
        assert await world.manager.purge(lambda each: bool(each.original_message.value % 2)) == 13
        assert await world.manager.reprocess(limit=1) == 2  # of each partition
        assert await world.manager.reprocess() == 11
        assert await world.manager.purge() == 0
        await stage.handled(27)
        await stage.committed(world.app)
    handled = [value for value in range(40) if value % 3 == 0 or value % 2 == 0]
    assert sorted(stage.seen.values) == handled


async def test_more_picked_out_than_can_be_noted_is_refused_and_nothing_is_lost(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redriving, "REDRIVE_CHUNK", 1)
    whole = encode_progress

    def narrow(position: int, floor: int, settled: Any) -> Any:
        return whole(position, floor, settled, limit=16)

    monkeypatch.setattr(redriving, "encode_progress", narrow)
    world = World(stage, partitions=1)
    async with world.app:
        await world.fail(*range(200))
        world.failing = False

        def tenth(letter: DeadLetter) -> bool:
            return bool(letter.original_message.value % 10 == 5)

        with pytest.raises(ReprocessStopped, match="without a filter") as stopped:
            await world.manager.reprocess(filter=tenth)
        assert 0 < stopped.value.done < 20
        monkeypatch.setattr(redriving, "REDRIVE_CHUNK", 500)
        assert await world.manager.reprocess() == 200 - stopped.value.done
        await stage.handled(200)
        await stage.committed(world.app)
    assert Counter(stage.seen.values) == dict.fromkeys(range(200), 1)


async def test_what_somebody_else_noted_meanwhile_is_not_taken_back(stage: Stage) -> None:
    await buried(stage, 20)
    letters = redriving.DeadLetterTopic(stage.anchor, f"{stage.topic_name}.{stage.group}.dead")

    def meanwhile(rows: Any) -> list[None]:
        redriving.DeadLetterTopic(stage.anchor, letters.name).purge()
        return [None] * len(rows)

    def both() -> int:
        return letters._resolve_request(redriving.ResolveRequest(meanwhile, None, 1, None))

    assert await asyncio.to_thread(both) == 2  # one of each partition
    assert await asyncio.to_thread(waiting, stage.anchor, letters.name) == 0


async def test_what_is_put_back_again_after_a_reset_is_handled_again(stage: Stage) -> None:
    """It has the ID and the count of what was put back before."""
    world = World(stage, partitions=1)
    async with world.app:
        await world.fail(1, key="k", id="m1")
        world.failing = False
        await world.manager.reprocess()
        await stage.handled(1)
    world.failing = True
    async with world.app.connected():
        await reset(world.app, stage.group, world.topic, "earliest")
    async with world.app:
        await world.waiting(1)
        world.failing = False
        await world.manager.reprocess()
        await stage.handled(2)


@pytest.mark.parametrize("retry", [ONCE, Retry(attempts=3, delay=0.001, in_order=False)])
async def test_messages_of_one_id_under_several_keys_are_all_put_back(
    stage: Stage, retry: Retry
) -> None:
    """In several partitions they are several messages, also in the one that they come back to."""
    world = World(stage, retry=retry, partitions=4)
    async with world.app:
        for value, key in enumerate(keys_of_all_partitions(4)):
            await stage.publish(world.topic, value, key=key, id="x")
        letters = await world.waiting(4)
        assert [letter.redrives for letter in letters] == [0] * 4  # nobody has put them back
        world.failing = False
        assert await world.manager.reprocess(filter=lambda each: each.redrives < 1) == 4
        await stage.handled(4)
    assert sorted(stage.seen.values) == [0, 1, 2, 3]


async def test_another_target(stage: Stage) -> None:
    world = World(stage)
    app = stage.app()
    elsewhere = app.topic(f"{stage.topic_name}-elsewhere", int, partitions=1)
    async with world.app, app.connected():
        await world.fail(1, 2, 3, key="k")
        assert await world.manager.reprocess(elsewhere) == 3
        found = await asyncio.to_thread(lambda: list(elsewhere.read()))
        assert [(each.value, each.key) for each in found] == [(1, "k"), (2, "k"), (3, "k")]
        with pytest.raises(NotFound, match="nowhere"):
            await world.manager.reprocess("nowhere")


async def test_moved_by_hand(stage: Stage) -> None:
    """By a handler, with its message; with a message made by hand; with a queue's message."""
    app = stage.app()
    topic = stage.topic(app)
    name = f"{stage.topic_name}-failed"
    manager = DeadLetterManager(app, name)
    refusing = True

    async def act(value: int, message: Message[int]) -> None:
        if refusing:
            await manager.move_to_dead_letter(message, ValueError("odd"), topic)

    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder(act))
    async with app:
        await topic.publish(3, key="k", id="m3", headers={"h": "v"})
        await stage.committed(app)
        await manager.move_to_dead_letter(Message(4, id="m4", key="k"), "by hand", topic.name)
        await manager.move_to_dead_letter(
            Message(5, id="m5"), "told whose", topic.name, group="others"
        )
        letters = await manager.get_dead_letters()
        by_id = {each.id: each for each in letters}
        assert by_id["m3"].error == "ValueError: odd"
        assert by_id["m3"].original_message.headers["h"] == "v"
        assert by_id["m4"].error == "Reject: by hand"
        assert by_id["m4"].original_message.value == 4
        assert {each.queue for each in letters} == {topic.name}
        assert by_id["m4"].group == stage.group
        assert by_id["m5"].group == "others"
        refusing = False
        assert await manager.reprocess(filter=lambda each: each.group == stage.group) == 2
        await stage.handled(3)
    assert stage.seen.values == [3, 3, 4]


async def test_of_a_queue(stage: Stage) -> None:
    app = stage.app()
    queue = MessageQueue(app, partitions=2)
    name = stage.topic_name
    manager = DeadLetterManager(app, f"{name}.{name}.dead")
    done: list[Any] = []
    failing = True

    async def work(message: QueueMessage[Any]) -> None:
        if failing and message.data == "moved":
            await manager.move_to_dead_letter(message, "not now", name)
        elif failing:
            raise Reject("no")
        else:
            done.append((message.id, message.data))

    _ = queue.subscribe(name, work)
    async with app:
        first = await queue.publish(name, "rejected")
        second = await queue.publish(name, "moved")
        letters: list[DeadLetter] = []
        for _ in range(3_000):
            letters = await manager.get_dead_letters()
            if len(letters) == 2:
                break
            await asyncio.sleep(0.01)
        assert {each.id: each.original_message.value for each in letters} == {
            first: "rejected",
            second: "moved",
        }
        failing = False
        assert await manager.reprocess() == 2
        await stage.until(lambda: len(done) == 2, "both handled")
    assert sorted(done) == sorted([(first, "rejected"), (second, "moved")])


async def test_what_cannot_be_is_said_in_a_line(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    with pytest.raises(ConfigError, match="name"):
        DeadLetterManager(app, "no such/topic")
    manager = DeadLetterManager(app, f"{topic.name}.lost")
    async with app.connected():
        assert await manager.get_dead_letters() == []
        for action in (manager.reprocess, manager.purge):
            with pytest.raises(NotFound, match=r"no dead letter topic .*\.lost"):
                await action()
        with pytest.raises(InvalidValue, match="limit=0"):
            await manager.get_dead_letters(0)
        with pytest.raises(ConfigError, match="plain function"):
            await manager.reprocess(filter=3)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="where the letters are"):
            await manager.reprocess(manager.name)
        with pytest.raises(ConfigError, match="Message or QueueMessage"):
            await manager.move_to_dead_letter(b"bytes", "no", topic)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="an exception"):
            await manager.move_to_dead_letter(Message(1), 5, topic)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="declare it"):
            await manager.move_to_dead_letter(Message(1), "no", "elsewhere")
        await manager.move_to_dead_letter(Message(1, id="m1"), "nobody reads it", topic)
        with pytest.raises(InvalidValue, match="which group's"):
            await manager.reprocess()
        await manager.move_to_dead_letter(Message(b"1", id="m2"), "x", "elsewhere", group="g")
        with pytest.raises(InvalidValue, match="'elsewhere', which this app does not declare"):
            await manager.reprocess(filter=lambda each: each.id == "m2")
        assert len(await manager.get_dead_letters()) == 2


async def test_what_cannot_be_decoded_is_shown_as_bytes(stage: Stage) -> None:
    class Order(msgspec.Struct):
        n: int

    app = stage.app()
    topic = stage.topic(app, Order)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    manager = DeadLetterManager(app, f"{topic.name}.{stage.group}.dead")
    raw_app = stage.app()
    raw = raw_app.topic(topic.name, bytes)
    async with app, raw_app.connected():
        await raw.publish(b"{not JSON")
        await stage.committed(app)
        (letter,) = await manager.get_dead_letters()
    assert letter.original_message.value == b"{not JSON"
    assert letter.error.startswith("DecodeError")


async def buried(stage: Stage, count: int) -> None:
    """So many dead letters, of keys whose values ascend."""
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    letters = DeadLetterManager(app, f"{topic.name}.{stage.group}.dead")

    @app.processor(topic, group=stage.group, concurrency=64, retry=ONCE, flow=QUICK)
    async def refuse(value: int) -> None:
        raise Reject("not yet")

    async with app:
        await stage.publish(topic, *range(count), key=lambda value: f"k{value % 50}")
        await stage.committed(app)
        assert await asyncio.to_thread(waiting, app.log, letters.name) == count


def waiting(log: Log, name: str) -> int:
    return redriving.DeadLetterTopic(log, name).count_waiting()


class Ended(BaseException):
    """Where one process is the whole world, whoever puts letters back ends like this."""


def ended(stage: Stage, dead: str, chunk: int, chunks: int, when: str) -> None:
    left = chunks

    def failing(log: Log, topic: str, records: Any) -> Any:
        nonlocal left
        left -= 1
        if not left and when == "before":
            raise Ended
        answers = append_and_wait(log, topic, records)
        if not left:
            raise Ended
        return answers

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Ended):
        patch.setattr(redriving, "REDRIVE_CHUNK", chunk)
        patch.setattr(redriving, "append_and_wait", failing)
        retry = f"{stage.topic_name}.{stage.group}.retry"
        redriving.DeadLetterTopic(stage.anchor, dead).redrive(lambda row: retry)


def killed(stage: Stage, chunk: int, chunks: int, when: str) -> None:
    """Put letters back in a process that is killed."""
    dead = f"{stage.topic_name}.{stage.group}.dead"
    if not stage.case.capabilities.processes:
        ended(stage, dead, chunk, chunks, when)
        return
    words = [stage.url, dead, stage.topic_name, str(chunk), str(chunks), when]
    command = [sys.executable, "-m", "tests.patterns.deadletters_child", *words]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=500)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


async def reprocessed(stage: Stage, count: int, chunk: int, kills: list[tuple[int, str]]) -> None:
    """Each is handled once, none is lost, and those of a key in order, whatever was killed."""
    await buried(stage, count)
    for chunks, when in kills:
        await asyncio.to_thread(killed, stage, chunk, chunks, when)
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    app.processor(topic, group=stage.group, concurrency=16, flow=QUICK)(stage.recorder())
    manager = DeadLetterManager(app, f"{topic.name}.{stage.group}.dead")
    async with app:
        await manager.reprocess()
        await stage.handled(count)
        retry = f"{topic.name}.{stage.group}.retry"
        end = (await asyncio.to_thread(app.log.watermarks, retry, 0))[1]
        await stage.until(lambda: stage.places(app, retry)[0].position >= end, "all settled")
        assert await manager.get_dead_letters() == []
    assert Counter(stage.seen.values) == dict.fromkeys(range(count), 1)
    for values in stage.seen.by_key().values():
        assert values == sorted(values)


async def test_500_put_back_killed_midway_and_again(stage: Stage) -> None:
    await reprocessed(stage, 500, 60, [(2, "after"), (1, "before"), (3, "after")])


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_10_000_put_back_killed_midway_and_again(stage: Stage) -> None:
    kills = [(9, "after"), (3, "before"), (2, "after")]
    await reprocessed(stage, 10_000, redriving.REDRIVE_CHUNK, kills)


async def test_a_reprocess_that_is_cancelled_has_noted_what_it_wrote(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await buried(stage, 200)
    monkeypatch.setattr(redriving, "REDRIVE_CHUNK", 20)
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def told(log: Log, topic: str, records: Any) -> Any:
        answers = append_and_wait(log, topic, records)
        loop.call_soon_threadsafe(written.set)
        return answers

    monkeypatch.setattr(redriving, "append_and_wait", told)
    app: Streams = stage.app()
    topic = stage.topic(app, partitions=2)
    manager = DeadLetterManager(app, f"{topic.name}.{stage.group}.dead")
    async with app.connected():
        task = asyncio.create_task(manager.reprocess())
        await written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left = await asyncio.to_thread(waiting, app.log, manager.name)
        retry = f"{topic.name}.{stage.group}.retry"
        first = (await asyncio.to_thread(app.log.watermarks, retry, 0))[0]
        back = await asyncio.to_thread(app.log.lag, retry, 0, first)
    assert back == 200 - left
