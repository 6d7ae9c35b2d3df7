"""aiokafka by hand: ``getmany`` and a loop that does the work of ours, on uvloop."""

from __future__ import annotations

import asyncio
import importlib
import time
from typing import Any
from uuid import uuid4

import msgspec

from benchmarks.counting import MessageCounter
from benchmarks.orders import PARTITIONS, Order, message_id, order
from benchmarks.peers.program import Answer, main

WINDOW = 10_000 * PARTITIONS


def consume(url: str, topic: str, messages: int) -> Answer:
    """Decode, look at key, position and ID, deduplicate, call, commit once a second."""

    async def run() -> Answer:
        aiokafka: Any = importlib.import_module("aiokafka")
        counter = MessageCounter(messages)
        decode = msgspec.json.Decoder(Order).decode
        consumer = aiokafka.AIOKafkaConsumer(
            topic,
            bootstrap_servers=url.partition("://")[2],
            group_id=f"aiokafka-{uuid4().hex}",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            fetch_max_wait_ms=100,
            fetch_max_bytes=4_194_304,
            max_partition_fetch_bytes=1_048_576,
        )
        await consumer.start()
        new: dict[Any, None] = {}
        old: dict[Any, None] = {}
        positions: dict[Any, int] = {}
        next_commit = time.monotonic() + 1

        async def handle(value: Order) -> None:
            counter.count_one(value)

        while not counter.done.is_set():
            fetched = await consumer.getmany(timeout_ms=100, max_records=1_000)
            for topic_partition, batch in fetched.items():
                for message in batch:
                    id = None
                    for name, value in message.headers:
                        if name == "ce_id":
                            id = value
                    if id in new or id in old:
                        continue
                    await handle(decode(message.value))
                    new[id] = None
                    positions[topic_partition] = message.offset + 1
            if len(new) >= WINDOW:
                old, new = new, {}
            if positions and time.monotonic() >= next_commit:
                await consumer.commit(positions)
                next_commit = time.monotonic() + 1
        settings = {
            "toolkit": f"aiokafka {aiokafka.__version__}, a loop by hand, uvloop",
            "client": "fetch_max_wait_ms=100, fetch_max_bytes=4194304, getmany(max_records=1000)",
        }
        return {**counter.result, "settings": settings}

    return _run(run())


def publish(url: str, topic: str, messages: int, tasks: int) -> Answer:
    """``tasks`` coroutines that each send_and_wait one message after the other."""

    async def run() -> Answer:
        aiokafka: Any = importlib.import_module("aiokafka")
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=url.partition("://")[2],
            acks="all",
            enable_idempotence=True,
            linger_ms=1,
            max_batch_size=1_000_000,
        )
        await producer.start()
        encode = msgspec.json.encode

        async def send(number: int) -> None:
            each = order(number)
            headers = [("ce_id", message_id(number).encode())]
            await producer.send_and_wait(
                topic, encode(each), each.customer.encode(), headers=headers
            )

        share = messages // tasks
        await send(0)

        async def one(number: int) -> None:
            for turn in range(share):
                await send(number * share + turn)

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(tasks)))
        rate = share * tasks / (time.perf_counter() - began)
        settings = {
            "toolkit": f"aiokafka {aiokafka.__version__}, send_and_wait, uvloop",
            "client": "acks=all, enable_idempotence=True, linger_ms=1, max_batch_size=1000000",
        }
        return {"rate": rate, "settings": settings}

    return _run(run())


def _run(work: Any) -> Answer:
    uvloop = importlib.import_module("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer: Answer = runner.run(work)
        return answer


if __name__ == "__main__":
    main({"consume": consume, "publish": publish})
