"""**The message queue** on every log: the tests that well-known implementations fail, by name."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stream_codecs import EncodeError
from streams import ConfigError, InvalidValue, NotRunning, ProcessorDied, Retry, Streams
from streams.patterns import ConsumerConfig, MessageConsumer, MessageQueue, QueueMessage
from streams.testing import Clock, harness
from tests.conformance.logs import lasting_url
from tests.conformance.stage import Stage

ROOT = Path(__file__).parents[2]
FAST = ConsumerConfig(concurrency=4, max_retries=2, retry_delay=0.01, retry_cap=0.02)
STUBBORN = ConsumerConfig(concurrency=2, max_retries=40, retry_delay=0.01, retry_cap=0.02)
IMPATIENT = ConsumerConfig(max_retries=40, retry_delay=0.01, retry_cap=0.02, drain=0.0)


class Work:
    """What a consumer's handlers did."""

    def __init__(self, stage: Stage, act: Any = None) -> None:
        self.stage = stage
        self.act = act
        self.seen: list[QueueMessage[Any]] = []
        self.ended: list[Any] = []
        self.retries: dict[Any, list[int]] = defaultdict(list)
        self.running = 0
        self.most = 0

    async def __call__(self, message: QueueMessage[Any]) -> None:
        self.seen.append(message)
        self.retries[str(message.data)].append(message.retries)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.act is not None:
                waits = self.act(message)
                if waits is not None:
                    await waits
            self.ended.append(message.data)
        finally:
            self.running -= 1

    async def until(self, count: int) -> None:
        await self.stage.until(lambda: len(self.ended) >= count, f"{count} handled")


def letters(queue: MessageQueue, name: str) -> list[Any]:
    """What stands in a topic; blocks."""
    return list(queue.app.topic(name, bytes).read())


async def test_what_a_handler_sees(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue, work = MessageQueue(app, partitions=2), Work(stage)
    async with app:
        consumer = MessageConsumer(queue)
        await consumer.start(name, work)
        first = await queue.publish(name, {"to": "ada"})
        second = await queue.publish(name, [1, None, "x"], key=7, id="mine")
        third = await queue.publish(name, "late", delay=0.05)
        await work.until(3)
        await consumer.stop()
    by_id = {message.id: message for message in work.seen}
    assert by_id[first].data == {"to": "ada"}
    assert (by_id[second].data, by_id[second].key, second) == ([1, None, "x"], "7", "mine")
    assert by_id[third].data == "late"
    for message in work.seen:
        assert (message.queue, message.retries) == (name, 0)
        # A server's clock is its own.
        assert abs(datetime.now(timezone.utc) - message.timestamp) < timedelta(hours=1)


async def test_a_handler_sees_headers_key_correlation_and_causation(stage: Stage) -> None:
    """In every attempt, and what was delayed, too."""
    app, name = stage.app(), stage.topic_name
    queue = MessageQueue(app, partitions=1)
    seen: list[tuple[Any, ...]] = []

    def note(message: QueueMessage[Any]) -> None:
        headers = message.headers
        seen.append(
            (message.data, message.key, headers.get("tenant"), message.correlation_id,
             message.causation_id, headers["ce_id"] == message.id, message.retries)
        )  # fmt: skip
        assert "tenant" in dict(headers)
        assert pickle.loads(pickle.dumps(message)) == message
        if message.data == "again" and not message.retries:
            raise ConnectionError("once more")

    work = Work(stage, note)
    new = {"tenant": "t1", "ce_correlationid": "order-1", "ce_causationid": "e1"}
    old = {"tenant": "t1", "correlationid": "order-2", "causationid": "e2"}
    async with app:
        await MessageConsumer(queue, FAST).start(name, work)
        await queue.publish(name, "plain", headers={"tenant": "t1"})
        await queue.publish(name, "again", key="k", headers=new)
        await queue.publish(name, "later", headers=old, delay=0.05)
        await work.until(3)
    assert sorted(seen) == [
        ("again", "k", "t1", "order-1", "e1", True, 0),
        ("again", "k", "t1", "order-1", "e1", True, 1),
        ("later", None, "t1", "order-2", "e2", True, 0),
        ("plain", None, "t1", None, None, True, 0),
    ]
    made = QueueMessage("1", datetime.now(timezone.utc), 5, 0, "q", headers=new)
    assert (made.headers, made.correlation_id, made.causation_id) == (new, "order-1", "e1")
    assert hash(made)


async def test_a_failing_message_is_tried_again_and_then_a_dead_letter(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue = MessageQueue(app, partitions=2)

    def fail(message: QueueMessage[Any]) -> None:
        if message.data != "good":
            raise ConnectionError("the bank sleeps")

    work = Work(stage, fail)
    config = ConsumerConfig(4, 2, 0.01, f"{name}-dlq")
    async with app:
        consumer = MessageConsumer(queue, config)
        await consumer.start(name, work)
        await queue.publish(name, "keyless", id="m1")
        await queue.publish(name, "keyed", key="k", id="m2")
        await queue.publish(name, "good", key="k")
        await work.until(1)
        await stage.until(
            lambda: all(len(work.retries[data]) == 3 for data in ("keyless", "keyed")), "tried"
        )
        await consumer.stop()
        dead = {letter.id: letter for letter in letters(queue, f"{name}-dlq")}
    assert work.retries["keyless"] == work.retries["keyed"] == [0, 1, 2]
    assert work.ended == ["good"]
    # The message's own timestamp stays through its retries.
    assert len({m.timestamp for m in work.seen if m.data == "keyless"}) == 1
    assert {id: letter.value for id, letter in dead.items()} == {
        "m1": b'"keyless"',
        "m2": b'"keyed"',
    }
    for letter in dead.values():
        assert letter.headers["__streams.errors.message"] == "the bank sleeps"
        assert letter.headers["__streams.errors.attempts"] == "3"


async def test_a_retrying_message_holds_up_its_key_only(stage: Stage) -> None:
    app, name, mended = stage.app(), stage.topic_name, threading.Event()
    queue = MessageQueue(app, partitions=1)

    def until_mended(message: QueueMessage[Any]) -> None:
        if message.data in ("stuck", "alone") and not mended.is_set():
            raise ConnectionError("not yet")

    work = Work(stage, until_mended)
    config = ConsumerConfig(concurrency=2, max_retries=10_000, retry_delay=0.002, retry_cap=0.01)
    async with app:
        await MessageConsumer(queue, config).start(name, work)
        await queue.publish(name, "alone")
        await queue.publish(name, "stuck", key="k")
        await queue.publish(name, "behind", key="k")
        for number in range(20):
            await queue.publish(name, number, key=f"other-{number % 3}")
        await work.until(20)
        assert "behind" not in work.ended
        mended.set()
        await work.until(23)
    rest = [data for data in work.ended if data in ("stuck", "behind")]
    assert rest == ["stuck", "behind"]
    for key in range(3):
        mine = [data for data in work.ended if isinstance(data, int) and data % 3 == key]
        assert mine == sorted(mine)


@pytest.mark.parametrize("concurrency", [1, 5])
@pytest.mark.parametrize("asynchronous", [True, False])
async def test_concurrency_is_exactly_what_was_asked(
    stage: Stage, concurrency: int, asynchronous: bool
) -> None:
    app, name = stage.app(), stage.topic_name
    queue = MessageQueue(app, partitions=3)
    lock, running, most, handled = threading.Lock(), 0, 0, 0
    gate, agate = threading.Event(), asyncio.Event()

    def begin() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def end() -> None:
        nonlocal running, handled
        with lock:
            running -= 1
            handled += 1

    async def handle(message: QueueMessage[int]) -> None:
        begin()
        await agate.wait()
        await asyncio.sleep(0)
        end()

    def plain(message: QueueMessage[int]) -> None:
        begin()
        gate.wait(60)
        end()

    async with app:
        consumer = MessageConsumer(queue, ConsumerConfig(concurrency=concurrency))
        await consumer.start(name, handle if asynchronous else plain)
        for number in range(30):
            await queue.publish(name, number)
        await stage.until(lambda: running == concurrency, "as many at once")
        # Everything else is there and waits: whether one more begins shows in `most`.
        gate.set()
        agate.set()
        await stage.until(lambda: handled == 30, "all handled")
    assert most == concurrency


async def test_stop_returns_and_nothing_runs_after_it(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue, gate = MessageQueue(app, partitions=2), asyncio.Event()
    work = Work(stage, lambda message: gate.wait())
    async with app:
        consumer = MessageConsumer(queue, ConsumerConfig(concurrency=3))
        await consumer.start(name, work)
        for number in range(20):
            await queue.publish(name, number)
        await stage.until(lambda: work.running == 3, "three in flight")
        pollers = [processor.poller for processor in app.processors]
        stopping = asyncio.create_task(consumer.stop())
        await stage.until(
            lambda: any(poller is not None and poller._finishing for poller in pollers),
            "nothing more is begun",
        )
        again = asyncio.create_task(consumer.stop())
        for _ in range(10):  # whatever it does at once is done
            await asyncio.sleep(0)
        assert not again.done()
        gate.set()
        await again
        assert work.running == 0
        await stopping
        begun = len(work.seen)
        assert work.running == 0
        assert len(work.ended) == begun  # what was in flight is finished
        assert begun < 20
        assert app.processors == []
        assert not consumer.running
        # Anything that were still alive would take these.
        await queue.publish(name, 20)
        await queue.publish(name, 21)
        other = Work(stage)
        successor = MessageConsumer(queue, FAST)
        await successor.start(name, other)
        await other.until(22 - begun)
        assert len(work.seen) == begun
        # And what was finished and committed is not handled again.
        assert sorted(work.ended + other.ended) == list(range(22))
        # It may be started again.
        await successor.stop()
        await consumer.start(name, work)
        await queue.publish(name, 22)
        await work.until(begun + 1)
        await consumer.stop()


async def test_an_app_may_be_left_while_a_consumer_is_being_stopped(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue, gate = MessageQueue(app, partitions=2), asyncio.Event()
    work = Work(stage, lambda message: gate.wait())

    async def finish_once_the_app_is_left() -> None:
        await stage.until(lambda: app.runtime.stopping, "the app's end")
        gate.set()

    async with app:
        consumer = MessageConsumer(queue)
        await consumer.start(name, work)
        await queue.publish(name, 1)
        await stage.until(lambda: work.running == 1, "one in flight")
        stopping = asyncio.create_task(consumer.stop())
        finishing = asyncio.create_task(finish_once_the_app_is_left())
    await finishing
    await stopping
    assert work.ended == [1]


async def test_without_a_dead_letter_queue_nothing_is_dropped_silently(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue = MessageQueue(app, partitions=1)

    def fail(message: QueueMessage[Any]) -> None:
        raise ConnectionError("always")

    work = Work(stage, fail)
    async with app:
        await MessageConsumer(queue, FAST).start(name, work)
        for number in range(4):
            await queue.publish(name, number, key="k" if number % 2 else None)

        def dead() -> list[bytes]:
            return sorted(letter.value for letter in letters(queue, f"{name}.{name}.dead"))

        await stage.until(lambda: dead() == [b"0", b"1", b"2", b"3"], "all are dead letters")
    assert all(tries == [0, 1, 2] for tries in work.retries.values())


async def test_several_consumers_share_a_queue(stage: Stage) -> None:
    app, other, name = stage.app(), stage.app(), stage.topic_name
    queue, same = MessageQueue(app, partitions=4), MessageQueue(other, partitions=4)
    works = [Work(stage, lambda message: asyncio.sleep(0)) for _ in range(3)]
    async with app, other:
        consumers = [MessageConsumer(each, FAST) for each in (queue, queue, same)]
        for consumer, work in zip(consumers, works, strict=True):
            await consumer.start(name, work)

        def shared() -> bool:
            found = [app.stats().processors, other.stats().processors]
            mine = [stats.partitions for each in found for key, stats in each.items()
                    if not key.endswith(".delay") and ".delay-" not in key]  # fmt: skip
            return len(mine) == 3 and all(mine)

        await stage.until(shared, "each has a part")
        for number in range(200):
            await (queue, same)[number % 2].publish(name, number, key=f"k{number % 40}")
        await stage.until(lambda: sum(len(work.ended) for work in works) >= 200, "all handled")
        for consumer in consumers:
            await consumer.stop()
    handled = Counter(data for work in works for data in work.ended)
    assert handled == Counter(range(200))
    assert sum(bool(work.ended) for work in works) >= 2


async def test_a_delayed_message_can_be_cancelled(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue, work = MessageQueue(app, partitions=1), Work(stage)
    async with app.connected():
        id = await queue.publish(name, "later", delay=timedelta(days=1))
    async with app:
        consumer = await queue.subscribe(name, work)
        await queue.publish(name, "now")
        await work.until(1)
        assert await queue.cancel(name, id) == "cancelled"
        assert await queue.cancel(name, "nobody") == "unknown"
        await consumer.stop()
    assert work.ended == ["now"]


# -- killed


class Consumer:
    """A process that consumes a queue (see queue_child)."""

    def __init__(self, stage: Stage, what: str) -> None:
        paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
        names = [stage.url, stage.topic_name, what]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.patterns.queue_child", *names],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def next(self) -> tuple[Any, int]:
        """The next call it makes: what it handles, and how often that failed before."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the consumer ended by itself, status {self._process.wait()}"
        data, retries = json.loads(line)
        return data, retries

    def rest(self) -> list[tuple[Any, int]]:
        """What it still had said when it was killed."""
        assert self._process.stdout is not None
        return [json.loads(line) for line in self._process.stdout if line.endswith("\n")]

    def kill(self) -> None:
        """``kill -9``."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def shared(stage: Stage) -> bool:
    """Whether several processes can be on this log."""
    return stage.case.capabilities.processes


@pytest.mark.short_lease
async def test_a_consumer_killed_while_handling_loses_nothing(stage: Stage) -> None:
    app, name = stage.app(), stage.topic_name
    queue, work = MessageQueue(app, partitions=2), Work(stage)
    async with app.connected():
        for number in range(10):
            await queue.publish(name, number)
        if shared(stage):
            with Consumer(stage, "hang") as consumer:
                caught = [(await asyncio.to_thread(consumer.next))[0] for _ in range(2)]
                consumer.kill()
        else:
            caught = await crash(stage)
    async with app:
        await MessageConsumer(queue, FAST).start(name, work)
        await stage.until(lambda: set(work.ended) == set(range(10)), "all handled")
    assert set(caught) <= set(work.ended)


async def crash(stage: Stage) -> list[Any]:
    """Where one process is the whole world, a member crashes while it handles."""
    app, name = stage.app(), stage.topic_name
    never = asyncio.Event()
    work = Work(stage, lambda message: never.wait())
    with pytest.raises(ProcessorDied, match="crashed by a test"):
        async with app:
            consumer = MessageConsumer(MessageQueue(app), ConsumerConfig(concurrency=2, drain=0.0))
            await consumer.start(name, work)
            await stage.until(lambda: work.running == 2, "two in flight")
            for processor in app.processors:
                poller = processor.poller
                assert poller is not None
                subscription: Any = poller._subscription
                subscription.crash()
            await asyncio.sleep(60)
    return [message.data for message in work.seen]


@pytest.mark.short_lease
@pytest.mark.parametrize("key", [None, "k"])
async def test_the_retry_count_survives_restarts(stage: Stage, key: str | None) -> None:
    # Only who is killed needs a short session: this one must not lose its partition when it stalls.
    app, name = Streams(lasting_url(stage.url)), stage.topic_name
    queue = MessageQueue(app, partitions=1)
    lives: list[list[int]] = []
    async with app.connected():
        await queue.publish(name, "bad", key=key, id="m1")
        for _ in range(2):  # killed twice, each time in the middle of the retries
            if shared(stage):
                with Consumer(stage, "fail") as consumer:
                    life = [(await asyncio.to_thread(consumer.next))[1] for _ in range(2)]
                    consumer.kill()
                    lives.append(life + [retries for _, retries in consumer.rest()])
            else:
                lives.append(await failing(stage))

    def fail(message: QueueMessage[Any]) -> None:
        raise ConnectionError("still")

    work = Work(stage, fail)
    async with app:
        await MessageConsumer(queue, STUBBORN).start(name, work)
        (letter,) = await stage.until(lambda: letters(queue, f"{name}.{name}.dead"), "dead")
    lives.append(work.retries["bad"])
    before = -1
    for life in lives:
        # A failure that was being written down when the kill came counts again; without a key the
        # next attempt may have been on its way already.
        assert min(life) in range(before - (key is None), before + 2), lives
        assert Counter(life).most_common(1)[0][1] == 1, lives
        before = max(life)
    assert before == STUBBORN.max_retries
    assert sum(map(len, lives)) <= STUBBORN.max_retries + 1 + 2 * 2
    assert letter.id == "m1"
    assert letter.headers["__streams.errors.attempts"] == str(STUBBORN.max_retries + 1)


async def failing(stage: Stage) -> list[int]:
    """Two calls that fail, in a life that ends then."""
    app = stage.app()

    def fail(message: QueueMessage[Any]) -> Any:
        if len(work.seen) > 2:
            return asyncio.Event().wait()
        raise ConnectionError("not here")

    work = Work(stage, fail)
    async with app:
        await MessageConsumer(MessageQueue(app), IMPATIENT).start(stage.topic_name, work)
        await stage.until(lambda: len(work.seen) >= 3, "the third call has begun")
    return [message.retries for message in work.seen][:2]


# -- what needs no log of its own


async def test_the_waits_grow_and_are_capped() -> None:
    config = ConsumerConfig(max_retries=6, retry_delay=0.5, retry_cap=3)
    assert list(config.retry.backoff_bounds()) == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]
    assert config.retry == Retry(attempts=7, delay=0.5, cap=3, durable=True)


async def test_a_delay_and_retries_follow_the_clock() -> None:
    from streams import Streams

    app = Streams("memory://")
    queue = MessageQueue(app)
    calls: list[tuple[float, Any, int]] = []

    async def handle(message: QueueMessage[Any]) -> None:
        calls.append((app.clock.monotonic(), message.data, message.retries))
        if message.data == "bad":
            raise ConnectionError("no")

    consumer = queue.subscribe("mails", handle, ConsumerConfig(max_retries=3, retry_delay=60))
    clock = Clock()
    async with harness(app, clock=clock) as running:
        await queue.publish("mails", "later", delay=100)
        await queue.publish("mails", "bad")
        await running.settled()
        assert [call[1:] for call in calls] == [("bad", 0)]
        for _ in range(300):
            clock.advance(1)
            await running.settled()
        assert consumer.running
    found = {call[1:]: call[0] for call in calls}
    assert found["later", 0] == 100
    assert found["bad", 1] <= 60
    assert found["bad", 2] - found["bad", 1] <= 120
    assert found["bad", 3] - found["bad", 2] <= 240 or ("bad", 3) not in found


async def test_a_declared_queue_has_a_type(memory_url: str) -> None:
    from streams import Streams

    class Mail(msgspec.Struct):
        to: str

    app = Streams(memory_url)
    queue = MessageQueue(app)
    queue.declare("mails", Mail, partitions=1)
    got: list[Mail] = []

    def handle(message: QueueMessage[Mail]) -> None:
        got.append(message.data)

    async with harness(app, url=memory_url) as running:
        consumer = await queue.subscribe("mails", handle)
        assert consumer.running
        await queue.publish("mails", Mail("ada"))
        with pytest.raises(EncodeError):
            await queue.publish("mails", "ada")
        await running.settled()
        assert app.log.describe_topic("mails").partitions == 1
        others = MessageQueue(app)
        await others.publish("others", 1)
        assert app.log.describe_topic("others").partitions == 8
    assert got == [Mail("ada")]
    with pytest.raises(ConfigError, match="declare it once"):
        queue.declare("mails", Mail)


async def test_what_cannot_work_is_refused(memory_url: str) -> None:
    from streams import Streams

    app = Streams(memory_url)
    queue = MessageQueue(app)
    wrongs: list[dict[str, Any]] = [
        {"concurrency": 0}, {"concurrency": True}, {"max_retries": -1}, {"max_retries": 1.5},
        {"retry_delay": -1}, {"retry_delay": "1"}, {"timeout": 0}, {"drain": None}, {"commit": 0},
        {"retry_delay": float("nan")}, {"timeout": float("nan")},
        {"dead_letter_queue": "no spaces"},
    ]  # fmt: skip
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            ConsumerConfig(**wrong)
    with pytest.raises(ConfigError):
        _ = MessageConsumer(app)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        _ = MessageConsumer(queue, FAST.retry)  # type: ignore[arg-type]

    async def handle(message: QueueMessage[Any]) -> None: ...

    async def two(data: Any, message: Any) -> None: ...

    consumer = MessageConsumer(queue)
    with pytest.raises(NotRunning, match="inside `async with app:`"):
        await consumer.start("mails", handle)
    async with app.connected():
        with pytest.raises(NotRunning):
            await consumer.start("mails", handle)
    async with app:
        with pytest.raises(ConfigError, match="one parameter"):
            await consumer.start("mails", two)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="dead letters would go to"):
            await MessageConsumer(queue, ConsumerConfig(dead_letter_queue="mails")).start(
                "mails", handle
            )
        await consumer.start("mails", handle)
        with pytest.raises(ConfigError, match="stop it first"):
            await consumer.start("mails", handle)
        await consumer.stop()
        await consumer.stop()  # harmless
        for delay in (-1, float("nan"), "1"):
            with pytest.raises(InvalidValue, match="delay"):
                await queue.publish("mails", 1, delay=delay)  # type: ignore[arg-type]


async def test_a_handler_that_would_wait_for_itself_is_told(memory_url: str) -> None:
    from streams import Streams

    app = Streams(memory_url)
    queue, told = MessageQueue(app), asyncio.Event()
    stopping: list[asyncio.Task[None]] = []

    async def handle(message: QueueMessage[Any]) -> None:
        with pytest.raises(ConfigError, match="create_task"):
            await consumer.stop()
        stopping.append(asyncio.create_task(consumer.stop()))
        told.set()

    async with app:
        consumer = MessageConsumer(queue)
        await consumer.start("mails", handle)
        await queue.publish("mails", 1)
        await told.wait()
        await stopping[0]
        assert not consumer.running


def test_how_often_a_consumer_commits_is_said_in_its_configuration() -> None:
    assert ConsumerConfig().flow.commit == 1.0
    assert ConsumerConfig(commit=0.2).flow.commit == 0.2
