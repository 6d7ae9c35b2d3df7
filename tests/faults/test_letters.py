"""The dead letter topic cannot be reached: the source waits, other keys go on, and it recovers."""

from __future__ import annotations

import asyncio

from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,  # pyright: ignore[reportPrivateImportUsage]
    ConfigEntry,  # pyright: ignore[reportPrivateImportUsage]
    ConfigResource,  # pyright: ignore[reportPrivateImportUsage]
    ResourceType,  # pyright: ignore[reportPrivateImportUsage]
)

from streams import DeadLetters, Flow, Message, Reject, Retry, Streams
from tests.faults.load import stored
from tests.faults.run import Run, wait
from tests.faults.sizes import sizes
from tests.servers.lifetime import until


@sizes(2.0, 20.0)
async def test_nothing_is_settled_before_its_dead_letter_is_written(run: Run, size: float) -> None:
    # An append that gets no answer is told so soon, so that waiting for the topic is what is seen.
    patience = "&timeout=6" if run.ground.once else ""
    app = Streams(run.ground.through + patience)
    topic = app.topic(run.topic, bytes)
    letters = DeadLetters().name(run.topic, run.group)
    seen: list[str] = []
    poisoned = asyncio.Event()

    @app.processor(
        topic, group=run.group, concurrency=8, retry=Retry(attempts=2, delay=0.01),
        flow=Flow(commit=0.1),
    )  # fmt: skip
    async def work(value: bytes, message: Message[bytes]) -> None:
        if value == b"poison":
            poisoned.set()
            raise Reject("cannot be handled")
        seen.append(message.id)

    async with app:
        await asyncio.to_thread(refuse, run, letters)
        poison = await topic.publish(b"poison", key="bad", id="poison")
        await poisoned.wait()
        after = [
            await topic.publish(b"fine", key="good", id=f"fine{number}") for number in range(50)
        ]
        await asyncio.to_thread(until, lambda: len(seen) == len(after), 60, "others go on")
        await asyncio.to_thread(wait, size)

        def position() -> int:
            place = run.log.describe_group(run.group).positions[run.topic, poison.partition]
            return place.position

        assert await asyncio.to_thread(position) <= poison.offset
        assert await asyncio.to_thread(stored, run.log, letters) == {}
        await asyncio.to_thread(accept, run, letters)
        await asyncio.to_thread(until, run.at_end, 60, "the source is settled")
        found = await asyncio.to_thread(stored, run.log, letters)
    assert set(found.values()) == {"poison"}
    assert len(seen) == len(after), "nothing was handled twice"
    if run.ground.once:
        assert len(found) == 1


def refuse(run: Run, topic: str) -> None:
    """From here on, nothing can be written to this topic, and to others it can.

    On Kafka the topic takes messages of one byte at most; on Redis no request that names it gets
    through. (On Kafka all topics of a broker share a connection, so that would stop all of them.)
    """
    if run.ground.name == "kafka":
        _largest(run, topic, "1")
    else:
        run.ground.proxy.block(topic.encode())


def accept(run: Run, topic: str) -> None:
    """Undo :func:`refuse`."""
    if run.ground.name == "kafka":
        _largest(run, topic, str(1 << 25))
    else:
        run.ground.proxy.block(b"")


def _largest(run: Run, topic: str, size: str) -> None:
    bootstrap = run.ground.direct.removeprefix("kafka://").partition("?")[0]
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    change = ConfigEntry("max.message.bytes", size, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[change])
    admin.incremental_alter_configs([resource])[resource].result(30)
