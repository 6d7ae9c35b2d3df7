"""Queues by their handles: what both type checkers take, and what they refuse.

Each line that ends in ``# wrong`` must be an error of each checker, and no other line may be one
(``tests/typing/queue_test.py``). Nothing here is run.
"""

from __future__ import annotations

from datetime import datetime, timezone
from functools import partial
from typing import Any, assert_type

import msgspec

from streams import (
    ConsumerConfig,
    MessageConsumer,
    MessageQueue,
    Queue,
    QueueMessage,
    Streams,
)


class Mail(msgspec.Struct):
    to: str


now = datetime.now(timezone.utc)
app = Streams("memory://")
queue = MessageQueue(app)
mails = queue.declare("mails", Mail, partitions=4)
either = queue.declare("either", Mail | int)
anything = queue.declare("anything")
assert_type(mails, Queue[Mail])
assert_type(either, Queue[Mail | int])
assert_type(anything, Queue[Any])


# -- handlers


@mails.subscribe()
async def send(message: QueueMessage[Mail]) -> None:
    assert_type(message.data, Mail)


@mails.subscribe(config=ConsumerConfig(concurrency=3))
def send_plain(message: QueueMessage[Mail]) -> int:
    return len(message.data.to)


@either.subscribe()
async def wider(message: QueueMessage[Mail | int | str]) -> None: ...


@anything.subscribe()
async def of_anything(message: QueueMessage[dict[str, Any]]) -> None: ...


@queue.subscribe("mails")
async def by_name(message: QueueMessage[Any]) -> None: ...


@mails.subscribe()  # type: ignore[arg-type]  # wrong
async def number(message: QueueMessage[int]) -> None: ...


@mails.subscribe()  # type: ignore[arg-type]  # wrong
async def send_data(data: Mail) -> None: ...


@either.subscribe()  # type: ignore[arg-type]  # wrong
async def narrower(message: QueueMessage[Mail]) -> None: ...


@mails.subscribe()  # type: ignore[arg-type]  # wrong
async def two(message: QueueMessage[Mail], other: int) -> None: ...


async def send_number(message: QueueMessage[int]) -> None: ...


async def send_with(message: QueueMessage[Mail], host: str) -> None: ...


# -- uses


async def uses(consumer: MessageConsumer) -> None:
    assert_type(await mails.publish(Mail("ada"), key="ada", delay=3, id="1"), str)
    await either.publish(3)
    await anything.publish(3)
    await queue.publish("mails", Mail("ada"))
    declared: MessageConsumer = mails.subscribe(send)
    started: MessageConsumer = await mails.subscribe(send, ConsumerConfig())
    assert declared is not started
    _ = await mails.subscribe(partial(send_with, host="smtp"))
    await consumer.start(mails, send)
    await consumer.start("mails", send)
    assert_type(await send(QueueMessage("1", now, Mail("ada"), 0, "mails")), None)
    assert_type(send_plain(QueueMessage("1", now, Mail("ada"), 0, "mails")), int)

    await mails.publish(3)  # type: ignore[arg-type]  # wrong
    await mails.publish("ada")  # type: ignore[arg-type]  # wrong
    await either.publish("ada")  # type: ignore[arg-type]  # wrong
    await mails.publish(Mail("ada"), delay="3")  # type: ignore[arg-type]  # wrong
    await mails.publish()  # type: ignore[call-arg]  # wrong
    _ = await mails.subscribe(send_number)  # type: ignore[arg-type]  # wrong
    _ = await mails.subscribe(send, 3)  # type: ignore[call-overload]  # wrong
    await mails.subscribe(config=ConsumerConfig())  # type: ignore[misc]  # wrong
    await consumer.start(mails, send_number)  # type: ignore[arg-type]  # wrong
    await consumer.start(mails)  # type: ignore[call-overload]  # wrong
    await mails.cancel(3)  # type: ignore[arg-type]  # wrong
    await send(3)  # type: ignore[arg-type]  # wrong
    queue.declare("mails", Mail, 4)  # type: ignore[call-overload]  # wrong
