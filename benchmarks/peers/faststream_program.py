"""FastStream over confluent-kafka, aiokafka and redis-py.

The fast options of its documentation are used: ``apply_types=False`` with a decoder of one's own
(msgspec, to the same Struct as ours), no logger, uvloop, and the client settings of ours
wherever FastStream accepts them.
"""

from __future__ import annotations

import asyncio
import importlib
import threading
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import msgspec

from benchmarks.counting import MessageCounter
from benchmarks.orders import Order, order
from benchmarks.peers.program import Answer, main

LIMIT = 300.0

CONFIG = {
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 8_192,
    "queued.min.messages": 26_214,
}


def _load(client: str) -> Any:
    module = {"confluent": "confluent", "aiokafka": "kafka", "redis": "redis"}[client]
    return importlib.import_module(f"faststream.{module}")


def _broker(client: str, url: str) -> tuple[Any, dict[str, str]]:
    """A broker, and its settings."""
    module = _load(client)
    place = url.partition("://")[2]
    common: dict[str, Any] = {"apply_types": False, "logger": None}
    said = {
        "toolkit": f"FastStream {version('faststream')} ({client})",
        "broker": "apply_types=False, logger=None, decoder=msgspec to the Struct; uvloop",
    }
    if client == "redis":
        # Each publish that waits holds a connection, and redis-py's pool refuses the 101st.
        said["client"] = "max_connections=2000"
        return module.RedisBroker(url, max_connections=2_000, **common), said
    common |= {"acks": "all", "enable_idempotence": True, "linger_ms": 1}
    said["producer"] = "acks=all, enable_idempotence=True, linger_ms=1"
    if client == "confluent":
        common["config"] = CONFIG
        said["client"] = ", ".join(f"{name}={value}" for name, value in CONFIG.items())
    return module.KafkaBroker(place, **common), said


def _decoder(client: str, mode: str) -> Callable[[Any], Awaitable[Any]]:
    one = msgspec.json.Decoder(Order).decode
    many = msgspec.json.Decoder(list[Order]).decode

    async def decoder(message: Any) -> Any:
        body = message.body
        if mode != "batch":
            return one(body)
        # Over Redis a batch is one JSON list by the time a decoder sees it.
        return many(body) if client == "redis" else [one(each) for each in body]

    return decoder


def _subscribe(broker: Any, client: str, topic: str, mode: str, workers: int) -> tuple[Any, str]:
    """A subscriber, and its declaration as text."""
    policy = importlib.import_module("faststream").AckPolicy
    group = f"faststream-{uuid4().hex}"
    options: dict[str, Any]
    if client == "redis":
        stream = _load(client).StreamSub(
            topic, group=group, consumer="one", last_id="0", max_records=1_000,
            batch=mode == "batch",
        )  # fmt: skip
        return broker.subscriber(
            stream=stream, decoder=_decoder(client, mode), ack_policy=policy.ACK
        ), ("StreamSub(group, max_records=1000), AckPolicy.ACK")
    options = {
        "group_id": group,
        "auto_offset_reset": "earliest",
        "decoder": _decoder(client, mode),
    }
    said = "auto_offset_reset=earliest"
    if mode != "default":
        options["ack_policy"] = policy.ACK
        said += ", ack_policy=ACK (commits after each call)"
    else:
        said += ", the default ack_policy=ACK_FIRST (at most once, commits by interval)"
    if mode == "batch":
        options |= {"batch": True, "max_records": 1_000}
        said += ", batch=True, max_records=1000"
    if workers > 1:
        options["max_workers"] = workers
        said += f", max_workers={workers} (one a partition)"
    if client == "aiokafka" and mode != "batch":
        options["max_poll_records"] = 1_000
        said += ", max_poll_records=1000"
    return broker.subscriber(topic, **options), said


async def _consume(
    client: str, url: str, topic: str, messages: int, mode: str, wait: float, workers: int
) -> Answer:
    counter = MessageCounter(messages)
    broker, said = _broker(client, url)
    subscribe, how = _subscribe(broker, client, topic, mode, workers)
    one, many = counter.count_one, counter.count_batch

    async def at_once(value: Any) -> None:
        one()

    async def later(value: Any) -> None:
        await asyncio.sleep(wait)
        one()

    async def batch(values: Any) -> None:
        many(values)

    subscribe(batch if mode == "batch" else later if wait else at_once)
    await broker.start()
    if not await asyncio.to_thread(counter.done.wait, LIMIT):
        raise TimeoutError(f"not over within {LIMIT:g} s")
    return {**counter.result, "settings": {**said, "subscriber": how}}


def consume(
    client: str,
    url: str,
    topic: str,
    messages: int,
    mode: str = "ordered",
    wait: float = 0.0,
    workers: int = 1,
) -> Answer:
    """An async handler over ``messages`` of a topic.

    :param mode: ``ordered`` (at least once: acknowledged after the handler), ``default``
        (FastStream's own, at most once) or ``batch``.
    """
    if client == "redis":
        _fill_stream(url, topic, messages)
    return _run(_consume(client, url, topic, messages, mode, wait, workers))


def _fill_stream(url: str, topic: str, messages: int) -> None:
    """The orders as FastStream writes them, in one stream (it knows no partitions)."""
    client = importlib.import_module("redis").Redis.from_url(url)
    client.delete(topic)
    encode = msgspec.json.encode
    for start in range(0, messages, 1_000):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + 1_000, messages)):
            pipeline.xadd(topic, {"__data__": encode(order(number))})
        pipeline.execute()
    client.close()


def publish(client: str, url: str, topic: str, messages: int, tasks: int) -> Answer:
    """``tasks`` coroutines that each publish one message after the other."""

    async def run() -> Answer:
        broker, said = _broker(client, url)
        encode = msgspec.json.encode
        await broker.connect()
        if client == "redis":

            async def send(each: Order) -> Any:
                return await broker.publish(encode(each), stream=topic)
        else:

            async def send(each: Order) -> Any:
                return await broker.publish(encode(each), topic, key=each.customer.encode())

        share = messages // tasks
        await send(order(0))

        async def one(number: int) -> None:
            for turn in range(share):
                await send(order(number * share + turn))

        began = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(tasks)))
        rate = share * tasks / (time.perf_counter() - began)
        return {"rate": rate, "settings": said}

    return _run(run())


def _run(work: Any) -> Answer:
    uvloop = importlib.import_module("uvloop")
    answer: Answer = {}
    failure: list[BaseException] = []

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            try:
                answer.update(runner.run(work))
            except BaseException as error:
                failure.append(error)
            over.set()

    # Its brokers stop slowly; the figures are known, and the process ends anyway.
    over = threading.Event()
    threading.Thread(target=run, daemon=True).start()
    over.wait()
    if failure:
        raise failure[0]
    return answer


if __name__ == "__main__":
    main({"consume": consume, "publish": publish})
