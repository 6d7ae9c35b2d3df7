"""The loops one would write by hand. They do the same work as ours, with the same client settings.

Each decodes a message to the same typed Struct, reads its key, partition, offset and message ID
(from the header, or from the payload, as ours does in that case), skips an ID that it has seen in a
bounded window, calls a function, and commits its positions once a second. None of them keeps order
by key, retries, writes dead letters, drains or survives a rebalance: the ratios show what that
costs.

The work for each message is repeated in each loop: a shared function would make them slower, and
ours look better.
"""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import apsw
import msgspec
import redis
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from uuid_utils import uuid7

from benchmarks.orders import PARTITIONS, Order, Ping

Handle = Callable[[Order], None]
HandleMany = Callable[[list[Order]], None]
IsOver = Callable[[], bool]
Commit = Callable[[dict[Any, Any]], object]

Row = tuple[int, Any, Any, Any, bytes]
"""Partition, offset, message ID, key, value."""

WINDOW = 10_000 * PARTITIONS
"""The least number of message IDs that are remembered: 10,000 per partition."""
COMMIT = 1.0
"""Seconds between commits."""
BATCH = 1_000
"""Messages requested from a client at once: larger batches do not make these loops faster."""

KAFKA_CONSUMER: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",
    "session.timeout.ms": 10_000,
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 8_192,
    "queued.min.messages": 26_214,
    "fetch.max.bytes": 1_048_576,
    "max.partition.fetch.bytes": 1_048_576,
}
"""The settings that ours uses too (a test compares them); only ``auto.offset.reset`` differs, as
ours positions a new group itself."""

KAFKA_PRODUCER: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",
    "queue.buffering.max.ms": 1,
    "batch.size": 1_000_000,
    "queue.buffering.max.kbytes": 65_536,
}

REDIS_READ_SIZE = 128 * 1024
"""``socket_read_size`` of redis-py, as ours sets it."""


# -- Kafka ----------------------------------------------------------------------------------------


def kafka(consumer: Consumer, topic: str, function: Handle, over: IsOver, *, header: bool) -> None:
    """One message after the other; the ID is in the header ``ce_id``, else in the payload."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[Any, None] = {}
    old: dict[Any, None] = {}
    positions: dict[int, int] = {}
    next_commit = time.monotonic() + COMMIT
    while not over():
        for message in _poll_available(consumer):
            if message.error():
                raise KafkaException(message.error())
            _key, partition, offset = message.key(), message.partition(), message.offset()
            if header:
                id = None
                for name, value in message.headers():
                    if name == "ce_id":
                        id = value
                if id in new or id in old:
                    continue
                event = decode(message.value())
            else:
                event = decode(message.value())
                id = event.order_id
                if id in new or id in old:
                    continue
            function(event)
            new[id] = None
            positions[partition] = offset + 1
        if len(new) >= WINDOW:
            old, new = new, {}
        if positions and time.monotonic() >= next_commit:
            consumer.commit(offsets=_topic_partitions(topic, positions), asynchronous=True)
            next_commit = time.monotonic() + COMMIT
    consumer.commit(offsets=_topic_partitions(topic, positions), asynchronous=False)


def kafka_batches(consumer: Consumer, topic: str, function: HandleMany, over: IsOver) -> None:
    """The same for a function that takes lists, with the ID in the header."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[Any, None] = {}
    old: dict[Any, None] = {}
    positions: dict[int, int] = {}
    next_commit = time.monotonic() + COMMIT
    while not over():
        events = []
        for message in _poll_available(consumer):
            if message.error():
                raise KafkaException(message.error())
            _key, partition, offset = message.key(), message.partition(), message.offset()
            id = None
            for name, value in message.headers():
                if name == "ce_id":
                    id = value
            if id in new or id in old:
                continue
            events.append(decode(message.value()))
            new[id] = None
            positions[partition] = offset + 1
        if events:
            function(events)
        if len(new) >= WINDOW:
            old, new = new, {}
        if positions and time.monotonic() >= next_commit:
            consumer.commit(offsets=_topic_partitions(topic, positions), asynchronous=True)
            next_commit = time.monotonic() + COMMIT
    consumer.commit(offsets=_topic_partitions(topic, positions), asynchronous=False)


async def kafka_tasks(
    consumer: Consumer, function: Callable[[Order], Awaitable[None]], over: IsOver, tasks: int
) -> None:
    """As many messages at once as there are ``tasks``: a thread polls ahead, each task takes the
    next message. It neither keeps order nor commits: which position may be committed while messages
    overtake each other is what ours keeps track of."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[Any, None] = {}
    old: dict[Any, None] = {}
    loop = asyncio.get_running_loop()
    waiting: deque[Any] = deque()
    idle: list[asyncio.Future[None]] = []
    room, ended = threading.Event(), threading.Event()

    def wake() -> None:
        for future in idle:
            if not future.done():
                future.set_result(None)
        idle.clear()

    def poll() -> None:
        while not (over() or ended.is_set()):
            waiting.extend(_poll_available(consumer))
            loop.call_soon_threadsafe(wake)
            while len(waiting) > 2 * BATCH and not (over() or ended.is_set()):
                room.clear()
                if len(waiting) > 2 * BATCH:
                    room.wait(0.1)
        loop.call_soon_threadsafe(wake)  # waiting tasks still see the end

    async def take() -> None:
        nonlocal new, old
        while not over():
            if not waiting:
                idle.append(future := loop.create_future())
                await future
                continue
            message = waiting.popleft()
            if len(waiting) < 2 * BATCH and not room.is_set():
                room.set()
            if message.error():
                raise KafkaException(message.error())
            _key, _partition, _offset = message.key(), message.partition(), message.offset()
            id = None
            for name, value in message.headers():
                if name == "ce_id":
                    id = value
            if id in new or id in old:
                continue
            new[id] = None
            if len(new) >= WINDOW:
                old, new = new, {}
            await function(decode(message.value()))

    try:
        await asyncio.gather(asyncio.to_thread(poll), *(take() for _ in range(tasks)))
    finally:
        ended.set()


def kafka_publish(producer: Producer, topic: str, orders: Sequence[Order], size: int) -> None:
    """Encode, put a fresh ID in a header, produce; every ``size`` messages wait until all of them
    are acknowledged, and keep the position of each."""
    encode = msgspec.json.encode
    positions: list[tuple[int, int]] = []

    def acknowledged(error: Any, message: Any) -> None:
        if error is not None:
            raise KafkaException(error)
        positions.append((message.partition(), message.offset()))

    for start in range(0, len(orders), size):
        for each in orders[start : start + size]:
            producer.produce(
                topic,
                encode(each),
                each.customer.encode(),
                on_delivery=acknowledged,
                headers=[("ce_id", str(uuid7()).encode())],
            )
            producer.poll(0)
        producer.flush()
    assert len(positions) == len(orders)


def kafka_pipeline(
    consumer: Consumer,
    producer: Producer,
    topic: str,
    target: str,
    interval: float,
    function: Callable[[Order], Order],
    stored: Callable[[int], bool],
) -> None:
    """Write a function's result for each order to another topic, with an ID that follows from the
    source's, in transactions of ``interval`` seconds; until ``stored``, called from time to time
    with the number of messages, returns that it is over."""
    decode, encode = msgspec.json.Decoder(Order).decode, msgspec.json.encode
    new: dict[Any, None] = {}
    old: dict[Any, None] = {}
    waiting = 0
    failed: list[Any] = []

    def reported(error: Any, message: Any) -> None:
        if error is not None:
            failed.append(error)

    producer.init_transactions()
    is_over = False
    while not is_over:
        positions: dict[int, int] = {}
        producer.begin_transaction()
        until = time.monotonic() + interval
        while time.monotonic() < until:
            for message in _poll_available(consumer):
                if message.error():
                    raise KafkaException(message.error())
                key, partition, offset = message.key(), message.partition(), message.offset()
                id = None
                for name, value in message.headers():
                    if name == "ce_id":
                        id = value
                if id in new or id in old:
                    continue
                value = encode(function(decode(message.value())))
                headers: Any = [("ce_id", b"%s/by-hand/0" % id), ("ce_causationid", id)]
                while True:
                    try:
                        producer.produce(target, value, key, -1, reported, headers=headers)
                        break
                    except BufferError:
                        producer.poll(0.01)
                new[id] = None
                waiting += 1
                positions[partition] = offset + 1
            if len(new) >= WINDOW:
                old, new = new, {}
            producer.poll(0)
        producer.flush()
        if failed:
            raise KafkaException(failed[0])
        producer.send_offsets_to_transaction(
            _topic_partitions(topic, positions), consumer.consumer_group_metadata()
        )
        producer.commit_transaction()
        is_over, waiting = stored(waiting), 0


def _poll_available(consumer: Consumer) -> list[Any]:
    """The messages available now. With a timeout, consume() would wait for the *whole* batch."""
    return consumer.consume(BATCH, 0.0) or consumer.consume(1, 0.1)


def _topic_partitions(topic: str, positions: dict[int, int]) -> list[TopicPartition]:
    return [TopicPartition(topic, partition, offset) for partition, offset in positions.items()]


# -- rows of a list, a table or a stream -----------------------------------------


def handle_rows(batches: Iterator[list[Row]], function: Handle, commit: Commit) -> None:
    """One message after the other."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[Any, None] = {}
    old: dict[Any, None] = {}
    positions: dict[Any, Any] = {}
    next_commit = time.monotonic() + COMMIT
    for batch in batches:
        for partition, offset, id, _key, value in batch:
            if id in new or id in old:
                continue
            function(decode(value))
            new[id] = None
            positions[partition] = offset
        if len(new) >= WINDOW:
            old, new = new, {}
        if time.monotonic() >= next_commit:
            commit(positions)
            next_commit = time.monotonic() + COMMIT
    commit(positions)


def handle_row_batches(batches: Iterator[list[Row]], function: HandleMany, commit: Commit) -> None:
    """The same for a function that takes lists."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[Any, None] = {}
    old: dict[Any, None] = {}
    positions: dict[Any, Any] = {}
    next_commit = time.monotonic() + COMMIT
    for batch in batches:
        events = []
        for partition, offset, id, _key, value in batch:
            if id in new or id in old:
                continue
            events.append(decode(value))
            new[id] = None
            positions[partition] = offset
        function(events)
        if len(new) >= WINDOW:
            old, new = new, {}
        if time.monotonic() >= next_commit:
            commit(positions)
            next_commit = time.monotonic() + COMMIT
    commit(positions)


def batches_of_list(whole: list[Row]) -> Iterator[list[Row]]:
    """Batches of a list in memory."""
    for start in range(0, len(whole), BATCH):
        yield whole[start : start + BATCH]


# -- SQLite ---------------------------------------------------------------------------------------


class SqliteFile:
    """A table for this purpose, read and written with apsw."""

    def __init__(self, path: str) -> None:
        self._connection = apsw.Connection(path)
        self._connection.execute("PRAGMA journal_mode = wal; PRAGMA synchronous = full")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, partition INTEGER, "
            "id TEXT, key BLOB, value BLOB);"
            "CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, position INTEGER)"
        )

    def append(self, whole: list[Row]) -> None:
        """Write rows in one transaction."""
        with self._connection:
            self._connection.executemany(
                "INSERT INTO records (partition, id, key, value) VALUES (?, ?, ?, ?)",
                [(partition, id, key, value) for partition, _, id, key, value in whole],
            )

    def batches(self) -> Iterator[list[Row]]:
        """All rows, in the order of their numbers."""
        last = 0
        query = (
            "SELECT partition, number, id, key, value FROM records "
            "WHERE number > ? ORDER BY number LIMIT ?"
        )
        while True:
            found: list[Any] = self._connection.execute(query, (last, BATCH)).fetchall()
            if not found:
                return
            last = found[-1][1]
            yield found

    def commit(self, positions: dict[Any, Any]) -> None:
        """Store the positions."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO positions VALUES (?, ?)", list(positions.items())
            )

    def publish(self, orders: Sequence[Order], size: int) -> None:
        """Encode, with fresh IDs, ``size`` rows per transaction."""
        encode = msgspec.json.encode
        for start in range(0, len(orders), size):
            self.append(
                [
                    (
                        zlib.crc32(key := each.customer.encode()) % PARTITIONS,
                        None,
                        str(uuid7()),
                        key,
                        encode(each),
                    )
                    for each in orders[start : start + size]
                ]
            )

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


# -- Redis ----------------------------------------------------------------------------------------


def redis_one_by_one(
    client: redis.Redis, streams: Sequence[bytes], group: str, function: Handle, over: IsOver
) -> None:
    """The loop of redis-py's documentation: XREADGROUP, handle, XACK."""
    decode = msgspec.json.Decoder(Order).decode
    new: dict[Any, None] = {}
    old: dict[Any, None] = {}
    wanted: dict[Any, Any] = dict.fromkeys(streams, ">")
    while not over():
        reply: Any = client.xreadgroup(group, "by-hand", wanted, count=BATCH, block=100)
        for stream, entries in reply:
            for _entry, fields in entries:
                id, _key = fields[b"ce_id"], fields[b"key"]
                if id in new or id in old:
                    continue
                function(decode(fields[b"value"]))
                new[id] = None
            client.xack(stream, group, *[entry for entry, _ in entries])
            if len(new) >= WINDOW:
                old, new = new, {}


def redis_read_ahead(
    connection: Any, streams: Sequence[bytes], over: IsOver
) -> Iterator[list[Row]]:
    """Batches for :func:`handle_rows`, read on redis-py's connection level: without its callbacks
    for replies, from positions of our own, and with the next batch requested before this one is
    handled."""
    last: dict[bytes, bytes] = dict.fromkeys(streams, b"0")
    number = {stream: partition for partition, stream in enumerate(streams)}

    def ask() -> None:
        connection.send_command(
            "XREAD", "COUNT", BATCH, "BLOCK", 100, "STREAMS", *last, *last.values()
        )

    ask()
    while not over():
        reply: Any = connection.read_response(disable_decoding=True)
        for stream, entries in reply or ():
            last[stream] = entries[-1][0]
        ask()
        for stream, entries in reply or ():
            partition = number[stream]
            # XADD stream * value ... key ... ce_id ...
            yield [(partition, entry, each[5], each[3], each[1]) for entry, each in entries]
    connection.read_response(disable_decoding=True)


def redis_publish(
    client: redis.Redis, streams: Sequence[bytes], orders: Sequence[Order], size: int
) -> None:
    """Encode, with fresh IDs, ``size`` times XADD in one pipeline."""
    encode = msgspec.json.encode
    for start in range(0, len(orders), size):
        with client.pipeline(transaction=False) as pipeline:
            for each in orders[start : start + size]:
                key = each.customer.encode()
                pipeline.xadd(
                    streams[zlib.crc32(key) % len(streams)],
                    {"value": encode(each), "key": key, "ce_id": str(uuid7())},
                )
            pipeline.execute()


# -- latency: one event at a time -----------------------------------------------------------------


def kafka_pings(consumer: Consumer, function: Callable[[Ping], None], over: IsOver) -> None:
    """The poll loop of every tutorial."""
    decode = msgspec.json.Decoder(Ping).decode
    while not over():
        message: Any = consumer.poll(0.1)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        function(decode(message.value()))


def redis_pings(
    client: redis.Redis, streams: Sequence[bytes], function: Callable[[Ping], None], over: IsOver
) -> None:
    """XREAD with BLOCK, from the last entry it read."""
    decode = msgspec.json.Decoder(Ping).decode
    last: dict[Any, Any] = dict.fromkeys(streams, b"0")
    while not over():
        reply: Any = client.xread(last, count=BATCH, block=100)
        for stream, entries in reply:
            for entry, fields in entries:
                function(decode(fields[b"value"]))
                last[stream] = entry


# -- many publishers, each waiting for its own message --------------------------------------------


class FuturePublisher:
    """``await publish(...)`` over Kafka's client: a future per message, and a thread that polls."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    async def publish(self, topic: str, order: Order) -> tuple[int, int]:
        """The message's position, once it is acknowledged."""
        future: asyncio.Future[tuple[int, int]] = self._loop.create_future()

        def acknowledged(error: Any, message: Any) -> None:
            if error is not None:
                self._loop.call_soon_threadsafe(future.set_exception, KafkaException(error))
            else:
                position = message.partition(), message.offset()
                self._loop.call_soon_threadsafe(future.set_result, position)

        self._producer.produce(
            topic,
            msgspec.json.encode(order),
            order.customer.encode(),
            on_delivery=acknowledged,
            headers=[("ce_id", str(uuid7()).encode())],
        )
        return await future

    def _poll(self) -> None:
        while not self._over:
            self._producer.poll(0.1)

    def close(self) -> None:
        """End the thread."""
        self._over = True
        self._thread.join()
