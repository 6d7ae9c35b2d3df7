"""An aggregate's events as a topic: processors, groups, readers, replays; and who may not write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from streams import ConfigError, DeadLetters, Message, Reject, Retry, Streams
from streams.errors import EventTopicError
from streams.eventsourcing import Aggregate
from streams.log.event_headers import EVENT
from streams.log.events import Appended, EventLog, HistoryRequest
from streams.log.protocol import Retention
from streams.patterns.bus import EventBus
from streams.patterns.deadletters import ClosedKeys, DeadLetterManager, ReprocessStopped
from streams.patterns.delay import Delays
from streams.patterns.queue import MessageQueue
from streams.replay import replay, reset
from tests.conformance.histories import append
from tests.conformance.stage import PATIENCE, QUICK, Stage
from tests.eventsourcing.bank import Deposited, Opened, accounts, deposit, open_with

pytestmark = pytest.mark.anyio


def declared(stage: Stage) -> tuple[Streams, Aggregate[Any, Any]]:
    app = stage.app()
    return app, accounts(app, stage.topic_name)


async def until(over: Callable[[], Awaitable[Any]]) -> None:
    """Wait for a condition that is awaited itself."""
    async with asyncio.timeout(PATIENCE):
        while not await over():  # noqa: ASYNC110 - another process could have changed it
            await asyncio.sleep(0.01)


def refuse(stage: Stage, bank: Aggregate[Any, Any], *keys: str) -> None:
    """Causes of these aggregates are refused: records that are no events."""
    log, topic = stage.anchor, bank.events.name
    assert isinstance(log, EventLog)
    for key in keys:
        (found,) = log.read_histories(topic, [HistoryRequest(key.encode())])
        _, outcome = append(
            log, topic, key.encode(), found.head.base, b"", cause="refused", is_refusal=True
        )
        assert isinstance(outcome, Appended)


async def test_a_processor_is_given_each_event_once_and_in_order(stage: Stage) -> None:
    app, bank = declared(stage)
    app.processor(bank.events, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        for key in ("a", "b", "c"):
            await bank.decide(key, open_with, key, 1)
            await bank.decide(key, deposit, 2)
        refuse(stage, bank, "a", "b", "c", "a")
        await bank.decide("c", deposit, 3)
        refuse(stage, bank, "b")
        await stage.until(lambda: len(stage.seen.handled) == 10, "all were handled")
        ends = {number: stage.anchor.watermarks(bank.events.name, number)[1] for number in range(2)}

        def positions() -> dict[int, int]:
            found = stage.anchor.committed(stage.group, bank.events.name)
            return {number: each.position for number, each in found.items()}

        await stage.until(lambda: positions() == ends, "the group is at the end")
    assert stage.seen.by_key() == {
        "a": [Opened("a"), Deposited(1), Deposited(2)],
        "b": [Opened("b"), Deposited(1), Deposited(2)],
        "c": [Opened("c"), Deposited(1), Deposited(2), Deposited(3)],
    }
    assert stage.seen.overlaps == []


async def test_a_group_that_is_reset_reads_them_again(stage: Stage) -> None:
    app, bank = declared(stage)
    app.processor(bank.events, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await bank.decide("a", open_with, "ada", 1)
        refuse(stage, bank, "a")
        await stage.until(lambda: len(stage.seen.handled) == 2)
    async with app.connected():
        await reset(app, stage.group, bank.events, "earliest", force=True)
    app, bank = declared(stage)
    app.processor(bank.events, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await stage.until(lambda: len(stage.seen.handled) == 4)
    assert stage.seen.values == [Opened("ada"), Deposited(1)] * 2


async def test_readers_and_replays_have_the_events_alone(stage: Stage) -> None:
    app, bank = declared(stage)
    replayed: list[Any] = []
    async with app:
        refuse(stage, bank, "a")
        await bank.decide("a", open_with, "ada", 1)
        refuse(stage, bank, "a")
        await bank.decide("a", deposit, 2)
        refuse(stage, bank, "a")
        read = [message async for message in bank.events.read()]
        result = await replay(app, bank.events, replayed.append)
        key = [message.value async for message in bank.events.read(key="a")]
        other = [message.value async for message in bank.events.read(key="b")]
    values = [Opened("ada"), Deposited(1), Deposited(2)]
    assert [message.value for message in read] == replayed == key == values
    assert other == []
    assert (result.handled, result.failed) == (3, 0)


async def test_a_dead_event_is_put_back_to_its_group_and_never_into_the_topic(
    stage: Stage,
) -> None:
    app, bank = declared(stage)
    fails = True
    versions: list[int] = []

    def act(value: Any, message: Message[Any]) -> None:
        versions.append(bank.events.version_of(message))
        if fails and value == Deposited(1):
            raise Reject("not now")

    app.processor(bank.events, group=stage.group, flow=QUICK)(stage.recorder(act))
    async with app:
        await bank.decide("a", open_with, "ada", 1)
        await bank.decide("a", deposit, 2)
        (stored, *_) = [e async for e in bank.read("a", start=1)]
        await stage.until(lambda: len(stage.seen.handled) == 2)
        dead = DeadLetters().name(bank.events.name, stage.group)
        letters = DeadLetterManager(app, dead)
        await until(lambda: letters.count())
        (letter,) = [each async for each in app.topic(dead, bytes).read()]
        ends = [stage.anchor.watermarks(bank.events.name, each) for each in range(2)]
        with pytest.raises(ReprocessStopped, match="cannot be published to"):
            await letters.reprocess(target=bank.events.name)
        assert ends == [stage.anchor.watermarks(bank.events.name, each) for each in range(2)]
        assert await letters.count() == 1
        fails = False
        assert await letters.reprocess() == 1
        await stage.until(lambda: len(stage.seen.handled) == 3)
        assert versions == [1, 2, 3, 2]  # it is the same event
        assert ends == [stage.anchor.watermarks(bank.events.name, each) for each in range(2)]
        await bank.decide("a", deposit, 3)
        assert [e.version async for e in bank.read("a")] == [1, 2, 3, 4]
    assert (letter.key, letter.id) == ("a", stored.id)
    assert letter.raw.value == b'{"type":"deposited","cents":1}'
    assert letter.headers["streams_event_version"] == "2"
    assert EVENT not in letter.headers
    assert stage.seen.values[-1] == Deposited(1) or stage.seen.values[-2] == Deposited(1)
    assert not stage.anchor.describe_topic(dead).is_event_topic


async def test_events_behind_a_dead_one_wait_for_it(stage: Stage) -> None:
    app, bank = declared(stage)
    fails = True

    def act(value: Any, message: Message[Any]) -> None:
        if fails and value == Deposited(1):
            raise Reject("not now")

    app.processor(
        bank.events, group=stage.group, flow=QUICK, dead_letters=DeadLetters(sequenced=True)
    )(stage.recorder(act))
    async with app:
        await bank.decide("a", open_with, "ada", 1)
        await bank.decide("a", deposit, 2)
        await bank.decide("b", open_with, "bob", 7)
        await stage.until(lambda: len(stage.seen.handled) == 3)
        closed = ClosedKeys(app, bank.events, stage.group)
        await until(closed.keys)
        fails = False
        await closed.retry("a")
        await stage.until(lambda: len(stage.seen.handled) == 5)
    assert stage.seen.by_key()["a"] == [Opened("ada"), Deposited(1), Deposited(2)]


async def test_an_event_is_tried_again_later_out_of_order(stage: Stage) -> None:
    app, bank = declared(stage)

    def act(value: Any, message: Message[Any]) -> None:
        if value == Deposited(1) and message.attempt == 1:
            raise ValueError("once")

    app.processor(
        bank.events,
        group=stage.group,
        flow=QUICK,
        retry=Retry(attempts=3, delay=0.01, in_order=False),
    )(stage.recorder(act))
    async with app:
        await bank.decide("a", open_with, "ada", 1)
        await stage.until(lambda: len(stage.seen.handled) == 2)
        assert [e.version async for e in bank.read("a")] == [1, 2]
    assert sorted(map(str, stage.seen.values)) == [str(Deposited(1)), str(Opened("ada"))]


async def test_nothing_but_the_aggregate_writes_them(stage: Stage) -> None:
    app, bank = declared(stage)
    topic = bank.events.name
    orders = app.topic(f"{stage.topic_name}-orders", bytes, partitions=1)
    async with app:
        await bank.decide("a", open_with, "ada", 1)
        await orders.publish(b"x")
        with pytest.raises(EventTopicError, match="replayed into"):
            await replay(app, orders, topic)
        with pytest.raises(EventTopicError, match="replayed into"):
            await replay(app, orders, bank.events)
    for name in ("to", "a topic of the same name"):
        other = stage.app()
        if name == "to":
            written: Any = accounts(other, stage.topic_name).events
            with pytest.raises(ConfigError, match=r"to=.* holds the histories"):
                other.processor(other.topic("orders", bytes), group="g", to=written)(lambda it: it)
            continue
        written = other.topic(topic, bytes)
        async with other:
            with pytest.raises(EventTopicError, match="published to"):
                await written.publish(b"x", key="a")
            with pytest.raises(EventTopicError, match="published to"):
                await written.publish_many([b"x", b"y"])
    with pytest.raises(EventTopicError, match="trimmed"):
        stage.anchor.set_retention(topic, Retention(seconds=60))


async def test_another_app_that_declares_no_aggregate_reads_them_as_any_topic(
    stage: Stage,
) -> None:
    app, bank = declared(stage)
    async with app:
        await bank.decide("a", open_with, "ada", 1)
        refuse(stage, bank, "a")
        await bank.decide("a", deposit, 2)
    other = stage.app()
    topic = other.topic(bank.events.name, bytes)
    other.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with other:
        await stage.until(lambda: len(stage.seen.handled) == 3)
        assert len([message async for message in topic.read()]) == 3
    assert [b'"type":"opened"' in value for value in stage.seen.values] == [True, False, False]


async def test_no_pattern_writes_them_either(stage: Stage) -> None:
    app, bank = declared(stage)
    topic = bank.events.name
    async with app:
        await bank.decide("a", open_with, "ada", 1)
    other = stage.app()
    bus = EventBus(other, name=topic)
    delayed, delays = stage.app(), f"{stage.topic_name}-delays"
    later = Delays(delayed, delays)
    written = delayed.topic(topic, bytes)
    async with other:
        with pytest.raises(EventTopicError, match="published to"):
            await bus.publish("opened", b"x")
    other = stage.app()
    queues = MessageQueue(other)
    async with other:
        with pytest.raises(EventTopicError, match="published to"):
            await queues.publish(topic, b"x")
    async with delayed:
        await later.publish(written, b"x", delay=0.0)
        dead = delayed.topic(f"{delays}.dead", bytes)

        async def letters() -> list[Any]:
            return [each async for each in dead.read()]

        await until(letters)
    found = [each async for each in _read_all(stage)]
    assert len(found) == 2


async def _read_all(stage: Stage) -> AsyncIterator[Message[bytes]]:
    app = stage.app()
    topic = app.topic(f"{stage.topic_name}.events", bytes)
    async with app.connected():
        async for each in topic.read():
            yield each
