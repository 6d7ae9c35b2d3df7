"""A Kafka header whose name is not UTF-8: the driver raises SystemError, and ends the process when
it is asked again. The record is a dead letter, and everything else goes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from streams import DeadLetters, Dedup, EventBus, Flow, Message, Retry, Streams
from streams.cli.root import run
from streams.log.kafka.batch import KafkaBatch, remove_errors
from streams.log.url import open_log
from streams.message import UNREADABLE
from streams.replay import replay
from tests.hostile.kafka_wire import Written, produce
from tests.processing.support import until
from tests.servers.find import KafkaAddress

pytestmark = pytest.mark.anyio

QUICK = Flow(commit=0.05, drain=5.0)
BAD: tuple[bytes, bytes | None] = (b"na\xffme", b"1")


class Item(msgspec.Struct):
    id: str
    n: int


def items(*numbers: int, id: bool = True) -> list[Written]:
    """Good ones, and under negative numbers ones whose headers cannot be read."""
    return [
        Written(
            msgspec.json.encode(Item(f"i{n}", n)),
            b"k%d" % (abs(n) % 3),
            [(b"ce_id", b"i%d" % n)] if n >= 0 else [(b"ce_id", b"i%d" % n), BAD],
        )
        for n in numbers
    ]


class Place:
    """A topic of its own, and an app on it."""

    def __init__(self, kafka: KafkaAddress) -> None:
        self.url = kafka.url
        self.bootstrap = kafka.bootstrap
        self.topic = f"hostile-{uuid4().hex[:8]}"
        self.group = f"group-{uuid4().hex[:8]}"
        log = open_log(self.url)
        log.create_topic(self.topic, 1)
        log.close()

    def write(self, records: list[Written]) -> None:
        produce(self.bootstrap, self.topic, records)

    async def letters(self, app: Streams) -> list[Message[Any]]:
        topic = app.topic(DeadLetters().name(self.topic, self.group), bytes | None)
        return await asyncio.to_thread(lambda: list(topic.read()))

    def settled(self, app: Streams, count: int) -> bool:
        found = app.log.committed(self.group, self.topic).get(0)
        return found is not None and found.position >= count


@pytest.fixture
def place(kafka: KafkaAddress) -> Place:
    return Place(kafka)


def plain(app: Streams, topic: Any, group: str, seen: list[int], **more: Any) -> None:
    def handle(item: Item) -> None:
        seen.append(item.n)

    app.processor(topic, group=group, flow=QUICK, **more)(handle)


def waiting(app: Streams, topic: Any, group: str, seen: list[int], **more: Any) -> None:
    async def handle(item: Item, message: Message[Item]) -> None:
        await asyncio.sleep(0)
        assert message.headers["ce_id"] == item.id
        seen.append(item.n)

    app.processor(topic, group=group, flow=QUICK, concurrency=8, **more)(handle)


def batches(app: Streams, topic: Any, group: str, seen: list[int], **more: Any) -> None:
    def handle(items: list[Item]) -> None:
        seen.extend(item.n for item in items)

    app.processor(topic, group=group, flow=QUICK, batch=10, **more)(handle)


OPTIONS: dict[str, dict[str, Any]] = {
    "by default": {},
    "without dedup": {"dedup": Dedup(window=0)},
    "out of order": {"retry": Retry(attempts=2, in_order=False)},
    "sequenced": {"dead_letters": DeadLetters(sequenced=True)},
}


@pytest.mark.parametrize("handler", [plain, waiting, batches])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("id", [None, "id"], ids=["id in a header", "id in the value"])
async def test_it_is_a_dead_letter_and_the_rest_goes_on(
    place: Place, handler: Callable[..., None], options: dict[str, Any], id: str | None
) -> None:
    numbers = [1, 2, -3, 4, -5, -6, 7]
    place.write(items(*numbers))
    app = Streams(place.url)
    topic = app.topic(place.topic, Item, id=id, partitions=1)
    seen: list[int] = []
    handler(app, topic, place.group, seen, **options)
    # Behind a dead message of their key, sequenced ones are parked; without, all good are handled.
    keys = {b"k0", b"k2"} if "dead_letters" in options else set()
    good = {n for n in numbers if n > 0 and b"k%d" % (n % 3) not in keys}
    async with app:
        await until(lambda: place.settled(app, len(numbers)), "all are settled")
        assert good <= set(seen)
        assert not {n for n in seen if n < 0}
        await asyncio.to_thread(place.write, items(10))
        if not keys:
            await until(lambda: 10 in seen, "it goes on")
        assert app.health().ok
        if "dead_letters" in options:
            return
        letters = await place.letters(app)
    assert [json.loads(letter.raw.value or b"")["n"] for letter in letters] == [-3, -5, -6]
    for letter, n in zip(letters, (-3, -5, -6), strict=True):
        assert letter.raw.key == b"k%d" % (abs(n) % 3)
        assert "na\\xffme" in letter.headers[UNREADABLE]
        assert letter.headers["__streams.errors.exception"] == "streams.errors.UnreadableHeaders"
        assert "headers cannot be read" in letter.headers["__streams.errors.message"]
        assert letter.headers["__streams.errors.attempts"] == "1"


async def test_behind_a_dead_message_it_waits_to_become_one(
    place: Place, command: Callable[..., tuple[int, str, str]]
) -> None:
    place.write(items(-3, -6, 9))
    app = Streams(place.url)
    topic = app.topic(place.topic, Item)
    seen: list[int] = []
    plain(app, topic, place.group, seen, dead_letters=DeadLetters(sequenced=True), retry=Retry(1))

    def closed_by(n: int) -> bool:
        _, out, _ = command("dead", "keys", place.group, place.topic, "--json")
        found = json.loads(out)
        return [each["state"] for each in found] == ["dead"] and f"/{n}" in found[0]["source"]

    async with app:
        await until(lambda: place.settled(app, 3), "the first is dead, the others are parked")
        assert closed_by(0)
        command("dead", "retry", place.group, place.topic, "--key", "k0")
        await until(lambda: closed_by(1), "the second is dead")
        assert seen == [-3]  # somebody decided that it be handled, without its headers
        command("dead", "drop", place.group, place.topic, "k0")
        await until(lambda: seen == [-3, 9], "the third is handled")


async def test_a_restart_and_the_window_read_past_it(place: Place) -> None:
    """The dedup window is rebuilt from records that hold one."""
    place.write(items(1, -2, 3))
    for extra in (4, 5):
        app = Streams(place.url)
        seen: list[int] = []
        plain(app, app.topic(place.topic, Item, partitions=1), place.group, seen)
        place.write(items(3, extra))
        async with app:
            await until(partial(seen.__contains__, extra), "the new one is handled")
            assert seen.count(3) == (1 if extra == 4 else 0)


async def test_reading_marks_it_and_goes_on(place: Place) -> None:
    place.write(items(1, -2, 3))
    app = Streams(place.url)
    topic = app.topic(place.topic, Item)
    async with app.connected():
        messages = await asyncio.to_thread(lambda: list(topic.read()))
    assert [message.value.n for message in messages] == [1, -2, 3]
    assert [UNREADABLE in message.headers for message in messages] == [False, True, False]
    assert messages[1].id == f"{place.topic}/0/1"
    assert messages[1].timestamp.year == 2023
    for message in messages:  # as often as one likes
        assert message.headers == message.headers
        assert repr(message)


async def test_replays_name_it_and_copies_say_what_they_lack(place: Place) -> None:
    place.write(items(1, -2, 3))
    app = Streams(place.url)
    topic = app.topic(place.topic, Item)
    seen: list[int] = []

    async def handle(item: Item) -> None:
        seen.append(item.n)

    async with app.connected():
        result = await replay(app, topic, handle, errors="skip")
        assert (result.handled, result.failed) == (2, 1)
        (failure,) = result.failures
        assert failure.position.offset == 1
        assert "headers cannot be read" in str(failure.error)
        copy = app.topic(f"{place.topic}-copy", bytes)
        await asyncio.to_thread(app.log.create_topic, copy.name, 1)
        await replay(app, topic, copy)
        copied = await asyncio.to_thread(lambda: list(copy.read()))
    assert seen == [1, 3]
    assert [UNREADABLE in message.headers for message in copied] == [False, True, False]


async def test_an_ephemeral_subscriber_passes_it_over(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    app = Streams(place.url)
    bus = EventBus(app, place.topic, partitions=1)
    got: list[Any] = []

    async def take(event: Any) -> None:
        got.append(event.data)

    bus.subscribe("order", take)
    async with app:
        await asyncio.to_thread(place.write, [Written(b'"x"', None, [(b"ce_type", b"order"), BAD])])
        await bus.publish("order", "y")
        await until(lambda: got, "the next one is handled")
        assert app.health().ok
    assert got == ["y"]
    assert f"{place.topic}/0/0: event passed over" in caplog.text


@pytest.fixture
def command(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("STREAMS_URL", place.url)

    def call(*arguments: str) -> tuple[int, str, str]:
        status = run(arguments)
        out, err = capfdbinary.readouterr()
        return status, out.decode(), err.decode()

    return call


def test_commands_list_it(place: Place, command: Callable[..., tuple[int, str, str]]) -> None:
    place.write(items(1, -2, 3))
    for words in (["tail", place.topic, "--json"], ["replay", place.topic]):
        status, out, err = command(*words)
        assert status == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["value"]["n"] for line in lines] == [1, -2, 3]
        assert [UNREADABLE in line["headers"] for line in lines] == [False, True, False]
    status, out, err = command("tail", place.topic)
    assert status == 0, err
    first, second, third = out.splitlines()
    assert "headers cannot be read" in second
    assert "headers" not in first + third


def test_what_ends_a_partition_is_told_from_messages(place: Place) -> None:
    """The driver tells the end of a partition among its messages. Comparing messages reads their
    headers, with the same end."""
    place.write(items(-1, -2, -3))
    settings = {"bootstrap.servers": place.bootstrap, "group.id": "g", "enable.partition.eof": True}
    consumer = Consumer(settings)
    try:
        consumer.assign([TopicPartition(place.topic, 0, 0)])
        messages: list[Any] = []
        while len(messages) < 4:
            messages += consumer.consume(4 - len(messages), 1.0)
        (end,) = remove_errors(messages)
        error = end.error()
        assert error is not None
        assert error.code() == KafkaError._PARTITION_EOF
        batch = KafkaBatch(place.topic, 0, messages)
        assert batch.ids == [None] * 3
        assert [name for index in range(3) for name, _ in batch.headers(index)] == [UNREADABLE] * 3
    finally:
        consumer.close()
