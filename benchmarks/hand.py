"""The loops of :mod:`benchmarks.baseline` as tasks of a worker process, with topics and ends."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import baseline
from benchmarks.counting import MessageCounter
from benchmarks.orders import KEYS, PARTITIONS, Order, Ping, message_id, order, ping
from benchmarks.ours import (
    Answer,
    ArrivalTimes,
    call_at_rate,
    create,
    handler,
    publish_concurrently,
)
from benchmarks.process import WorkerProcess
from streams.event_loop import loop_factory

Over = Callable[[], bool]


def _host(url: str) -> str:
    return url.partition("://")[2]


# -- Kafka ----------------------------------------------------------------------------------------


def _consumer(url: str) -> Consumer:
    return Consumer(
        {
            **baseline.KAFKA_CONSUMER,
            "bootstrap.servers": _host(url),
            "group.id": f"by-hand-{uuid4().hex}",
        }
    )


def _producer(url: str) -> Producer:
    return Producer({**baseline.KAFKA_PRODUCER, "bootstrap.servers": _host(url)})


def _kafka_topic(url: str) -> str:
    name = f"by-hand-{uuid4().hex}"
    create(url, name)
    return name


def kafka(url: str, topic: str, messages: int, header: bool = True, batch: bool = False) -> Answer:
    """The consume loop in a new group."""
    counter = MessageCounter(messages)
    consumer = _consumer(url)
    try:
        consumer.subscribe([topic])
        if batch:
            baseline.kafka_batches(consumer, topic, counter.count_batch, counter.done.is_set)
        else:
            baseline.kafka(consumer, topic, counter.count_one, counter.done.is_set, header=header)
    finally:
        consumer.close()
    return counter.result


def kafka_pipeline(url: str, topic: str, messages: int, commit_interval: float) -> Answer:
    """The loop that passes on what it consumes, exactly once, in a new group; from the first order
    until ``messages`` are stored."""
    consumer, target = _consumer(url), _kafka_topic(url)
    config = {**baseline.KAFKA_PRODUCER, "transactional.id": f"by-hand-{uuid4().hex}"}
    producer = Producer({**config, "bootstrap.servers": _host(url), "retry.backoff.ms": 1})
    began = cpu = 0.0
    count = 0

    def pass_on(value: Order) -> Order:
        nonlocal began, cpu
        if not began:
            began, cpu = time.perf_counter(), time.process_time()
        return value

    def stored(new: int) -> bool:
        nonlocal count
        count += new
        return count >= messages

    try:
        consumer.subscribe([topic])
        baseline.kafka_pipeline(consumer, producer, topic, target, commit_interval, pass_on, stored)
    finally:
        consumer.close()
    seconds, used = time.perf_counter() - began, time.process_time() - cpu
    return {"rate": count / seconds, "seconds": seconds, "cpu_us": used / count * 1e6}


def kafka_tasks(url: str, topic: str, messages: int, concurrency: int, wait: float) -> Answer:
    """Tasks that take what a thread polls, in a new group; each waits ``wait`` seconds."""
    counter = MessageCounter(messages, skip=concurrency)
    consumer = _consumer(url)
    later = handler("async", counter, wait)
    try:
        consumer.subscribe([topic])
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            over = counter.done.is_set
            runner.run(baseline.kafka_tasks(consumer, later, over, concurrency))
    finally:
        consumer.close()
    return counter.result


def kafka_fill(url: str, topic: str, messages: int) -> Answer:
    """Fill the topic as a client without the toolkit would: without headers."""
    create(url, topic)
    producer = _producer(url)
    for number in range(messages):
        each = order(number)
        value, key = msgspec.json.encode(each), each.customer.encode()
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    return {}


def kafka_publish(url: str, messages: int, size: int) -> Answer:
    """produce() and flush()."""
    producer, topic = _producer(url), _kafka_topic(url)
    orders = [order(number) for number in range(messages)]
    baseline.kafka_publish(producer, topic, orders[:size], size)  # open the connections
    began = time.perf_counter()
    baseline.kafka_publish(producer, topic, orders, size)
    return {"rate": messages / (time.perf_counter() - began)}


def kafka_publish_each(url: str, messages: int, tasks: int) -> Answer:
    """Publish with a future per message."""
    producer, topic = _producer(url), _kafka_topic(url)

    async def main() -> float:
        futures = baseline.FuturePublisher(producer)
        try:
            return await publish_concurrently(
                lambda each: futures.publish(topic, each), messages, tasks
            )
        finally:
            futures.close()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        return {"rate": runner.run(main())}


def kafka_latency(url: str, messages: int, rate: int) -> Answer:
    """Latency from produce() in another process to the function's call in the poll loop here."""
    arrivals = ArrivalTimes(messages, skip=rate // 2)
    topic = _kafka_topic(url)
    consumer = _consumer(url)
    with WorkerProcess() as other:
        # Assigned by hand: there is no group to wait for, and none whose cost would be added.
        consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        pacing = threading.Thread(
            target=other.run_task,
            args=("kafka_pace",),
            kwargs={"url": url, "topic": topic, "messages": messages + rate // 2, "rate": rate},
        )
        pacing.start()
        baseline.kafka_pings(consumer, arrivals.record, arrivals.done.is_set)
        pacing.join()
    consumer.close()
    return arrivals.result


def kafka_pace(url: str, topic: str, messages: int, rate: int) -> Answer:
    """Produce ``rate`` pings a second."""
    producer = _producer(url)
    encode = msgspec.json.encode

    def send(number: int) -> None:
        event = ping(time.monotonic_ns(), number)
        producer.produce(topic, encode(event), event.customer.encode())
        producer.poll(0)

    call_at_rate(send, messages, rate)
    producer.flush()
    return {}


def kafka_idle(url: str, seconds: float) -> Answer:
    """A poll loop on an empty topic: the process's CPU time in percent of a core."""
    topic = _kafka_topic(url)
    consumer = _consumer(url)
    consumer.subscribe([topic])
    while not consumer.assignment():
        consumer.poll(0.1)
    began, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < seconds:
        consumer.poll(0.1)
    used = (time.process_time() - cpu) / (time.perf_counter() - began) * 100
    consumer.close()
    return {"percent": used}


# -- Redis ----------------------------------------------------------------------------------------


def _streams(topic: str) -> list[bytes]:
    """The streams of a topic, as ours names them."""
    return [b"{%s:%d}" % (topic.encode(), partition) for partition in range(PARTITIONS)]


def _client(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, socket_read_size=baseline.REDIS_READ_SIZE, protocol=2)


def redis_in_turn(url: str, topic: str, messages: int) -> Answer:
    """XREADGROUP, handle, XACK."""
    counter = MessageCounter(messages)
    streams, group = _streams(topic), f"by-hand-{uuid4().hex}"
    with _client(url) as client:
        for stream in streams:
            client.xgroup_create(stream, group, "0")
        try:
            baseline.redis_one_by_one(
                client, streams, group, counter.count_one, counter.done.is_set
            )
        finally:
            for stream in streams:
                client.xgroup_destroy(stream, group)
    return counter.result


def redis_ahead(url: str, topic: str, messages: int, batch: bool = False) -> Answer:
    """XREAD on the connection level, one batch ahead; positions in a hash."""
    counter = MessageCounter(messages)
    with _client(url) as client:
        connection: Any = client.connection_pool.get_connection()
        batches = baseline.redis_read_ahead(connection, _streams(topic), counter.done.is_set)
        key = f"by-hand-{uuid4().hex}"

        def commit(positions: dict[Any, Any]) -> None:
            client.hset(key, mapping=positions)

        try:
            if batch:
                baseline.handle_row_batches(batches, counter.count_batch, commit)
            else:
                baseline.handle_rows(batches, counter.count_one, commit)
        finally:
            connection.disconnect()
            client.delete(key)
    return counter.result


def redis_publish(url: str, messages: int, size: int) -> Answer:
    """Pipelines of XADD."""
    orders = [order(number) for number in range(messages)]
    streams = _streams(f"by-hand-{uuid4().hex}")
    with _client(url) as client:
        baseline.redis_publish(client, streams, orders[:size], size)
        began = time.perf_counter()
        baseline.redis_publish(client, streams, orders, size)
        rate = messages / (time.perf_counter() - began)
        client.delete(*streams)
    return {"rate": rate}


def redis_latency(url: str, messages: int, rate: int) -> Answer:
    """Latency from XADD in another process to the function's call here."""
    arrivals = ArrivalTimes(messages, skip=rate // 2)
    topic = f"by-hand-{uuid4().hex}"
    with _client(url) as client, WorkerProcess() as other:
        pacing = threading.Thread(
            target=other.run_task,
            args=("redis_pace",),
            kwargs={"url": url, "topic": topic, "messages": messages + rate // 2, "rate": rate},
        )
        pacing.start()
        baseline.redis_pings(client, _streams(topic), arrivals.record, arrivals.done.is_set)
        pacing.join()
        client.delete(*_streams(topic))
    return arrivals.result


def redis_pace(url: str, topic: str, messages: int, rate: int) -> Answer:
    """XADD ``rate`` pings a second."""
    encode, streams = msgspec.json.encode, _streams(topic)
    with _client(url) as client:

        def send(number: int) -> None:
            event: Ping = ping(time.monotonic_ns(), number)
            fields: Any = {"value": encode(event), "key": event.customer}
            client.xadd(streams[number % PARTITIONS], fields)

        call_at_rate(send, messages, rate)
    return {}


# -- SQLite and memory ----------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _rows(messages: int) -> list[baseline.Row]:
    found: list[baseline.Row] = []
    for number in range(messages):
        each = order(number)
        id, key = message_id(number), each.customer.encode()
        found.append((number % PARTITIONS, number, id, key, msgspec.json.encode(each)))
    gc.collect()
    gc.freeze()  # the collector must not scan the list while we measure
    return found


def listed(messages: int, batch: bool = False) -> Answer:
    """The loop over a list."""
    whole = _rows(messages)
    counter = MessageCounter(messages)

    def commit(positions: dict[Any, Any]) -> None: ...

    if batch:
        baseline.handle_row_batches(baseline.batches_of_list(whole), counter.count_batch, commit)
    else:
        baseline.handle_rows(baseline.batches_of_list(whole), counter.count_one, commit)
    return counter.result


def sqlite_fill(path: str, messages: int) -> Answer:
    """The table with all orders."""
    file = baseline.SqliteFile(path)
    whole = _rows(messages)
    for start in range(0, messages, 10_000):
        file.append(whole[start : start + 10_000])
    file.close()
    _rows.cache_clear()
    return {}


def sqlite(path: str, messages: int, batch: bool = False) -> Answer:
    """The loop over a table."""
    counter = MessageCounter(messages)
    file = baseline.SqliteFile(path)
    if batch:
        baseline.handle_row_batches(file.batches(), counter.count_batch, file.commit)
    else:
        baseline.handle_rows(file.batches(), counter.count_one, file.commit)
    file.close()
    return counter.result


def sqlite_publish(folder: str, messages: int, size: int) -> Answer:
    """Insert with executemany, a transaction each, into a new file."""
    orders = [order(number) for number in range(messages)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        file = baseline.SqliteFile(str(Path(place, "raw.db")))
        file.publish(orders[:size], size)
        began = time.perf_counter()
        file.publish(orders, size)
        rate = messages / (time.perf_counter() - began)
        file.close()
    return {"rate": rate}


# -- codecs ---------------------------------------------------------------------------------------


def codec(name: str, seconds: float = 0.2) -> Answer:
    """Encodes and decodes an order over and over.

    :param name: ``JSON``, ``MessagePack`` (ours), ``msgspec``, ``orjson`` or ``json``. The last two
        know no types: they encode from and decode to dicts.
    """
    encode, decode, value = _codec(name)
    data = encode(value)
    return {
        "size": len(data),
        "encode": _turns(lambda: encode(value), seconds),
        "decode": _turns(lambda: decode(data), seconds),
    }


def _codec(name: str) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any], Any]:
    import json

    import orjson

    from stream_codecs import Json, MessagePack

    value = order(KEYS // 2)
    plain = msgspec.to_builtins(value)
    if name in ("JSON", "MessagePack"):
        kind = Json if name == "JSON" else MessagePack
        bound = kind().bind(Order, topic="orders", role="value")
        return bound.encode, bound.decode, value
    if name == "msgspec":
        return msgspec.json.encode, msgspec.json.Decoder(Order).decode, value
    if name == "orjson":
        return orjson.dumps, orjson.loads, plain
    return lambda each: json.dumps(each).encode(), json.loads, plain


def _turns(call: Callable[[], Any], seconds: float) -> float:
    """Calls per second of CPU time."""
    turns = 0
    began = time.process_time()
    while (used := time.process_time() - began) < seconds:
        for _ in range(1_000):
            call()
        turns += 1_000
    return turns / used
