"""The harness says that everything is settled when it is, on any log: what waits for its time is
waited for on the real clock, and what nobody has taken up yet is not settled."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from streams import (
    ConfigError,
    ConsumerConfig,
    DeadLetters,
    Delays,
    Message,
    MessageQueue,
    QueueMessage,
    Reject,
    Retry,
    RetryAfter,
    Streams,
)
from streams.patterns import EventBus
from streams.processing.partition_lifecycle import PartitionLifecycle
from streams.replay import reset
from streams.testing import Clock, harness
from tests.conformance.member import PATIENCE
from tests.conformance.stage import Stage

SOON = 0.2
"""Seconds: later than a look at what is at rest, and sooner than any test's patience."""


@pytest.mark.parametrize("retry", [Retry(3), Retry(3, in_order=False), Retry(3, durable=True)])
async def test_a_retry_is_waited_for(stage: Stage, retry: Retry) -> None:
    app = stage.app()
    topic = stage.topic(app)

    def fail_twice(value: int, message: Message[int]) -> None:
        if message.attempt < 3:
            raise RetryAfter(SOON)

    app.processor(topic, group=stage.group, retry=retry)(stage.recorder(fail_twice))
    async with harness(app, url=stage.url) as h:
        await topic.publish(7, key="k")
        await h.settled()
        assert (stage.seen.attempts[7], stage.seen.values) == ([1, 2, 3], [7])


async def test_what_nobody_has_taken_up_yet_is_not_settled(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=4)
    app.processor(topic, group=stage.group)(stage.recorder())
    async with harness(app, url=stage.url) as h:
        await topic.publish_many(list(range(20)))
        await h.settled()
        assert sorted(stage.seen.values) == list(range(20))


async def test_a_group_that_was_set_back_by_force_is_not_settled(stage: Stage) -> None:
    """Its member hears of it later, and until then it has nothing to do."""
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    app.processor(topic, group=stage.group)(stage.recorder())
    async with harness(app, url=stage.url) as h:
        await topic.publish_many(list(range(20)))
        for times in range(1, 6):
            await h.settled()
            assert len(stage.seen.values) == times * 20
            await reset(app, stage.group, topic, "earliest", force=True)


async def test_what_is_lost_and_taken_again_is_not_settled_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log says that the member owns its partitions again, and it was not told yet that it had
    lost them; of what it has handled nothing was committed."""
    app = Streams("memory://")
    topic = app.topic("numbers", int, partitions=2)
    seen: list[int] = []
    app.processor(topic, group="g")(seen.append)
    is_told, may_go_on, lost = threading.Event(), threading.Event(), PartitionLifecycle.lost

    def lose_later(self: PartitionLifecycle, assignments: Any) -> None:
        is_told.set()
        assert may_go_on.wait(PATIENCE)
        lost(self, assignments)

    async with harness(app) as h:
        await topic.publish_many(list(range(20)))
        await h.settled()
        monkeypatch.setattr(PartitionLifecycle, "lost", lose_later)
        poller = app.processors[0].poller
        assert poller is not None
        for each in list(poller._owned.values()):
            each.committed = each.submitted = None
        await reset(app, "g", topic, "earliest", force=True)
        assert await asyncio.to_thread(is_told.wait, PATIENCE)
        assert h._unfinished()
        may_go_on.set()
        await h.settled()
        assert len(seen) == 40


async def test_a_delayed_message_is_waited_for(stage: Stage) -> None:
    app = stage.app()
    queue = MessageQueue(app, partitions=1)
    got: list[Any] = []
    name = f"{stage.topic_name}-mails"

    def take(message: QueueMessage[Any]) -> None:
        got.append(message.data)

    _ = queue.subscribe(name, take)
    async with harness(app, url=stage.url) as h:
        await queue.publish(name, "later", delay=SOON)
        await h.settled()
        assert got == ["later"]


async def test_more_members_than_partitions_are_settled(memory_url: str) -> None:
    app = Streams(memory_url)
    queue = MessageQueue(app, partitions=1)
    got: list[Any] = []
    for _ in range(3):
        _ = queue.subscribe("mails", lambda message: got.append(message.data))
    bus = EventBus(app)
    bus.subscribe("told", lambda event: got.append(event.data))
    async with harness(app) as h:
        await h.settled()
        await queue.publish("mails", 1)
        await bus.publish("told", 2)
        await h.settled()
        assert sorted(got) == [1, 2]


async def test_a_retry_that_is_due_too_late_is_said_at_once(memory_url: str) -> None:
    app = Streams(memory_url)
    topic = app.topic("orders", int)
    tried: list[int] = []

    @app.processor(topic, group="billing", retry=Retry(2))
    async def bill(value: int, message: Message[int]) -> None:
        tried.append(message.attempt)
        raise RetryAfter(3600)

    loop = asyncio.get_running_loop()
    async with harness(app) as h:
        await topic.publish(7, key="ada")
        began = loop.time()
        with pytest.raises(TimeoutError) as told:
            await h.settled(within=600)
        assert loop.time() - began < 300
        said = str(told.value)
        for part in ("bill", "1 message", "orders/0", "'ada'", "attempt 2", "due in 3", "Clock()"):
            assert part in said
        assert "\n" not in said
    assert tried == [1]


async def test_a_delay_that_is_due_too_late_is_said_at_once(memory_url: str) -> None:
    app = Streams(memory_url)
    topic = app.topic("orders", int)
    delays = Delays(app, "later")
    async with harness(app) as h:
        for value in (1, 2):
            await delays.publish(topic, value, delay=3600)
        with pytest.raises(
            TimeoutError, match=r"later: 2 delayed messages wait; due in 3\d+\.\d s"
        ):
            await h.settled()


async def test_in_the_tests_hand_it_returns_when_only_time_can_help(memory_url: str) -> None:
    app = Streams(memory_url)
    topic = app.topic("orders", int)
    tried: list[int] = []

    @app.processor(topic, group="billing", retry=Retry(2))
    async def bill(value: int, message: Message[int]) -> None:
        tried.append(message.attempt)
        if message.attempt == 1:
            raise RetryAfter(3600)

    async with harness(app, clock=Clock()) as h:
        await topic.publish(7)
        await h.settled()
        assert tried == [1]
        h.clock.advance(3600)
        await h.settled()
        assert tried == [1, 2]


async def test_a_queues_messages_and_letters_are_at_hand(stage: Stage) -> None:
    app, name, lost = stage.app(), f"{stage.topic_name}-mails", f"{stage.topic_name}-lost"
    queue = MessageQueue(app, partitions=1)
    mails = queue.declare(name, int)
    others = queue.declare(f"{name}-others", int)

    def refuse(message: QueueMessage[int]) -> None:
        if message.data > 1:
            raise Reject("too many")

    _ = mails.subscribe(refuse, ConsumerConfig(dead_letter_queue=lost))
    _ = others.subscribe(refuse)
    async with harness(app, url=stage.url) as h:
        for data in (1, 2):
            await mails.publish(data)
        await others.publish(3)
        await h.settled()
        for whole in (mails, mails.topic, queue.topic(name)):
            assert [message.value for message in await h.messages(whole)] == [1, 2]
        for letters in (
            await h.dead(mails),
            await h.dead(mails.topic, name),
            await h.dead(mails, name, lost),
            await h.dead(mails, letters=lost),
            await h.dead(mails, name, DeadLetters(topic=lost)),
        ):
            assert [letter.value for letter in letters] == [b"2"]
        assert [letter.value for letter in await h.dead(others)] == [b"3"]


async def test_the_letters_of_a_processor_are_looked_for_where_it_puts_them() -> None:
    app = Streams("memory://")
    numbers = app.topic("numbers", int)

    @app.processor(numbers, group="g", dead_letters=DeadLetters(topic="lost"))
    def refuse(value: int) -> None:
        raise Reject

    async with harness(app) as h:
        await numbers.publish(5)
        await h.settled()
        assert [letter.value for letter in await h.dead(numbers, "g")] == [b"5"]


async def test_the_harness_says_what_it_takes() -> None:
    app = Streams("memory://")
    numbers = app.topic("numbers", int)
    takes = (
        r"a topic as app\.topic\(\.\.\.\) returns it, or a queue as queue\.declare\(\.\.\.\) does"
    )
    async with harness(app) as h:
        asked: Any = h
        for given in ("numbers", None, 5, MessageQueue(app)):
            with pytest.raises(ConfigError, match=rf"^messages\(.*\): {takes}"):
                await asked.messages(given)
            with pytest.raises(ConfigError, match=rf"^dead\(.*\): {takes}"):
                await asked.dead(given, "g")
        for group in (None, 5, numbers):
            with pytest.raises(ConfigError, match=r"^dead\('numbers', .*\): the group whose dead"):
                await asked.dead(numbers, group)
        for letters in (5, numbers):
            with pytest.raises(ConfigError, match=r"^dead\('numbers', 'g', .*DeadLetters\("):
                await asked.dead(numbers, "g", letters)
