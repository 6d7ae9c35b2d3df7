"""The cost of Kafka's index of an event topic, which knows the events that count, as tasks of a
worker process.

The events are those of single decisions: each an append of its own, without a cause, as nearly all
are. They are written by the driver itself, as that is faster than deciding each.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from benchmarks import baseline
from benchmarks.aggregates import DEPOSIT, PARTITIONS, account_id, open_accounts, wait_built
from benchmarks.machine import MemorySampler
from benchmarks.ours import TIME_LIMIT, Answer, Stalled, run
from streams import Streams
from streams.log.kafka.index_records import index_topic_name
from streams.log.names import partition_for

SAMPLE = 0.05
"""Seconds between two samples of the memory."""


def fill_index(url: str, name: str, accounts: int, events: int) -> Answer:
    """Fill a bank whose accounts have ``events`` events each, interleaved; once."""
    app = Streams(url)
    bank = open_accounts(app, name, cached=False)

    async def main() -> bool:
        async with app:
            return any(app.log.watermarks(bank.events.name, each)[1] for each in range(PARTITIONS))

    if not run(main):
        _write(url, bank.events.name, accounts, events)
    return {}


def _write(url: str, topic: str, accounts: int, events: int) -> None:
    producer = Producer({**baseline.KAFKA_PRODUCER, "bootstrap.servers": _hosts(url)})
    value = msgspec.json.encode(DEPOSIT)
    keys = [account_id(number).encode() for number in range(accounts)]
    partitions = [partition_for(key, "", PARTITIONS) for key in keys]
    ends = [b""] * accounts
    for version in range(events):
        for account, key in enumerate(keys):
            id = uuid4().hex.encode()
            headers: list[Any] = [
                ("ce_id", id), ("streams_event", b"0/1/%d/%b" % (version, ends[account]))
            ]  # fmt: skip
            ends[account] = id
            while True:
                try:
                    producer.produce(topic, value, key, partitions[account], headers=headers)
                    break
                except BufferError:
                    producer.poll(0.1)
    producer.flush()


def _hosts(url: str) -> str:
    return url.partition("://")[2]


def build_index(
    url: str, name: str, accounts: int, events: int, folder: str = "", snapshots: bool = False
) -> Answer:
    """Seconds until a process has indexed all events of a bank, and its growth.

    :param folder: for the index's file; events that it has already are not read again.
    :param snapshots: whether it begins with snapshots of the index.
    """
    config: dict[str, Any] = {"event_index": folder} if folder else {}
    if snapshots:
        config = _with_snapshots(accounts, events)
    app = Streams(url, config=config)
    bank = open_accounts(app, name, cached=False)

    async def main() -> Answer:
        async with app.connected():
            with MemorySampler(SAMPLE) as memory:
                began, cpu = time.perf_counter(), time.process_time()
                await wait_built(app, bank)
                seconds, used = time.perf_counter() - began, time.process_time() - cpu
            loaded = await bank.load(account_id(accounts - 1))
            assert loaded.version == events
        return _answer(accounts * events, seconds, used, memory)

    answer: Answer = run(main)
    return answer


def keep_index(url: str, name: str, accounts: int, events: int, folder: str) -> Answer:
    """Fill such a bank, and keep the index's file in a folder."""
    fill_index(url, name, accounts, events)
    return build_index(url, name, accounts, events, folder)


def _with_snapshots(accounts: int, events: int) -> dict[str, Any]:
    """Settings with which the smallest partition has snapshots, too."""
    return {"index_snapshots": max(1, accounts * events // PARTITIONS // 2)}


def snapshot_index(url: str, name: str, accounts: int, events: int) -> Answer:
    """Fill such a bank, and write a snapshot of each partition's index; returns the time."""
    fill_index(url, name, accounts, events)
    app = Streams(url, config=_with_snapshots(accounts, events))
    bank = open_accounts(app, name, cached=False)

    def is_written() -> bool:
        topic = index_topic_name(bank.events.name)
        return topic in app.log.list_topics() and all(
            app.log.watermarks(topic, each)[1] for each in range(PARTITIONS)
        )

    async def main() -> Answer:
        async with app.connected():
            began = time.perf_counter()
            await wait_built(app, bank)
            while not await asyncio.to_thread(is_written):
                if time.perf_counter() > began + TIME_LIMIT:
                    raise Stalled(f"no snapshots within {TIME_LIMIT:g} s")
                await asyncio.sleep(SAMPLE)
            return {"seconds": time.perf_counter() - began}

    answer: Answer = run(main)
    return answer


def index_by_hand(url: str, name: str, accounts: int, events: int) -> Answer:
    """The same as a loop: the rule of docs/event-sourcing.md, as far as these events need it."""
    topic, count = f"{name}.events", accounts * events
    consumer = Consumer(
        {
            **baseline.KAFKA_CONSUMER,
            "bootstrap.servers": _hosts(url),
            "group.id": "nobody",
            "isolation.level": "read_uncommitted",
        }
    )
    consumer.assign([TopicPartition(topic, each, 0) for each in range(PARTITIONS)])
    ends: dict[Any, Any] = {}
    places: dict[Any, Any] = {}
    looked_at = 0
    with MemorySampler(SAMPLE) as memory:
        began, cpu = time.perf_counter(), time.process_time()
        while looked_at < count:
            for message in consumer.consume(baseline.BATCH, 0.1):
                if message.error():
                    raise KafkaException(message.error())
                looked_at += 1
                key, headers = message.key(), dict(message.headers() or ())
                offsets = places.get(key)
                if offsets is None:
                    offsets = places[key] = array("q")
                base = b"0/1/%d/%b" % (len(offsets), ends.get(key, b""))
                if headers["streams_event"] == base:
                    ends[key] = headers["ce_id"]
                    offsets.append(message.offset() or 0)
        seconds, used = time.perf_counter() - began, time.process_time() - cpu
    consumer.close()
    assert len(places[account_id(accounts - 1).encode()]) == events
    return _answer(count, seconds, used, memory)


def _answer(count: int, seconds: float, used: float, memory: MemorySampler) -> Answer:
    return {
        "rate": count / seconds,
        "seconds": seconds,
        "cpu_us": used / count * 1e6,
        "growth": memory.growth,
    }


TASKS: dict[str, Callable[..., Answer]] = {
    task.__name__: task
    for task in (fill_index, build_index, keep_index, snapshot_index, index_by_hand)
}
