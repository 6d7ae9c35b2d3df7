"""Dead letter queues that are declared as queues of their own, too."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import DeadLetters, Streams
from streams.log.kafka.settings import MAX_MESSAGE_BYTES
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.patterns import ConsumerConfig, MessageConsumer, MessageQueue, QueueMessage
from tests.hostile.commands import command


def most(log: Log, topic: str) -> int:
    """The bytes of the largest message that a topic takes."""
    (found,) = [fact.value for fact in log.durability(topic) if fact.name == "max.message.bytes"]
    return int(found)


async def fail(message: QueueMessage[Any]) -> None:
    raise ValueError("no good")


Names = tuple[str, str]


def queue_first(app: Streams, names: Names) -> None:
    queues = MessageQueue(app, partitions=2)
    mails, _ = queues.declare(names[0], str), queues.declare(names[1])
    _ = mails.subscribe(fail, ConsumerConfig(max_retries=0, dead_letter_queue=names[1]))


def consumer_first(app: Streams, names: Names) -> None:
    queues = MessageQueue(app, partitions=2)
    mails = queues.declare(names[0], str)
    _ = mails.subscribe(fail, ConsumerConfig(max_retries=0, dead_letter_queue=names[1]))
    queues.declare(names[1])


def two_objects(app: Streams, names: Names) -> None:
    MessageQueue(app, partitions=2).declare(names[1])
    mails = MessageQueue(app, partitions=2).declare(names[0], str)
    _ = mails.subscribe(fail, ConsumerConfig(max_retries=0, dead_letter_queue=names[1]))


def topics(app: Streams, names: Names) -> None:
    app.topic(names[1], partitions=2)
    mails = app.topic(names[0], str, partitions=2)

    @app.processor(mails, group=names[0], dead_letters=DeadLetters(topic=names[1]))
    async def handle(data: str) -> None:
        raise ValueError("no good")


@pytest.mark.parametrize("declare", [queue_first, consumer_first, two_objects, topics])
async def test_a_letter_queue_takes_letters_larger_than_their_messages(
    declare: Callable[[Streams, Names], None], kafka_url: str
) -> None:
    run = uuid4().hex[:8]
    names = (f"post-{run}", f"{run}-lost")
    app = Streams(kafka_url)
    declare(app, names)
    async with app:
        log = app.log
        assert most(log, names[0]) < most(log, names[1]) == MAX_MESSAGE_BYTES
        if declare is topics:
            return
        # Nearly all that the queue takes: what is said of the error makes it larger than that.
        await MessageQueue(app).publish(names[0], "x" * (most(log, names[0]) - 400), id="large")
        ends = [0]
        for _ in range(6_000):
            ends = [log.watermarks(names[1], partition)[1] for partition in range(2)]
            if sum(ends) == 1:
                break
            await asyncio.sleep(0.005)
        assert sum(ends) == 1


async def test_a_consumer_that_starts_later_counts_too(kafka_url: str) -> None:
    run = uuid4().hex[:8]
    app = Streams(kafka_url)
    queues = MessageQueue(app, partitions=1)
    queues.declare(f"post-{run}", str)
    queues.declare(f"{run}-lost")
    consumer = MessageConsumer(queues, ConsumerConfig(dead_letter_queue=f"{run}-lost"))
    async with app:
        assert most(app.log, f"{run}-lost") == MAX_MESSAGE_BYTES
        await consumer.start(f"post-{run}", fail)


def test_doctor_names_the_number_and_the_command(
    kafka_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = uuid4().hex[:8]
    names = (f"post-{run}", f"{run}-lost")
    (tmp_path / f"post_{run}.py").write_text(
        f"""
from streams import Streams
from streams.patterns import ConsumerConfig, MessageQueue

app = Streams()
mails = MessageQueue(app).declare({names[0]!r}, str)


@mails.subscribe(config=ConsumerConfig(dead_letter_queue={names[1]!r}))
async def send(message) -> None: ...
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    log = open_log(kafka_url)
    try:
        for name in names:
            log.create_topic(name, 1)
    finally:
        log.close()
    said = json.loads(command(kafka_url, "doctor", f"post_{run}:app", "--json").out)
    (found,) = [each for each in said["findings"] if each["item"] == "dead letters"]
    assert found["verdict"] == "no"
    brokers = kafka_url.partition("://")[2].partition("?")[0]
    assert shlex.split(found["do"]) == [
        "kafka-configs.sh", "--bootstrap-server", brokers, "--alter", "--topic", names[1],
        "--add-config", f"max.message.bytes={MAX_MESSAGE_BYTES}",
    ]  # fmt: skip
