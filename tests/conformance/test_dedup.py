"""**dedup**: a message ID within the window is handled once per group."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stream_codecs import EncodeError
from streams import Dedup, Message
from streams.message import REDRIVE, Record
from tests.conformance.stage import QUICK, Stage
from tests.conformance.test_at_least_once import rewind


async def test_an_id_published_twice_is_handled_once(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, concurrency=16, flow=QUICK)(stage.recorder())
    async with app:
        for copy in range(3):
            for n in range(50):
                await stage.publish(topic, n, key=str(n % 7), id=f"m{n}")
            assert copy == 0 or len(stage.seen.handled) <= 50
        await stage.publish(topic, 999, key="last")
        await stage.committed(app)
        duplicates = app.stats().processors["handle"].duplicates
    assert sorted(stage.seen.values) == [*range(50), 999]
    assert duplicates == (0 if stage.case.capabilities.append_once else 100)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("batch", [None, 8])
async def test_twins_in_one_batch_are_handled_once(
    stage: Stage, asynchronous: bool, batch: int | None
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    handled: list[int] = []

    def plain(value: Any) -> None:
        handled.extend(value if batch else [value])

    async def later(value: Any) -> None:
        await asyncio.sleep(0)
        plain(value)

    app.processor(topic, group=stage.group, batch=batch, flow=QUICK)(
        later if asynchronous else plain
    )
    async with app.connected():
        records = [topic.record(n // 2, key="k", id=f"m{n // 2}") for n in range(100)]
        await app.publisher.publish_many(topic.name, records)
    async with app:
        await stage.committed(app)
    assert handled == list(range(50))


async def test_keyless_twins_land_together_and_the_second_waits(stage: Stage) -> None:
    app, gate = stage.app(), asyncio.Event()
    topic = stage.topic(app, partitions=2)
    handler = stage.recorder(lambda value, _: gate.wait() if value == 1 else None)
    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(handler)
    async with app:
        first, second = await stage.publish(topic, 1, 1, id="twin")
        assert first.partition == second.partition
        await stage.publish(topic, 2)
        await stage.handled(1)
        await stage.until(lambda: stage.seen.attempts[1], "the first of them begun")
        assert stage.seen.attempts[1] == [1], "the twin of a message in flight was handled too"
        gate.set()
        await stage.committed(app)
    assert sorted(stage.seen.values) == [1, 2]


async def test_a_failed_message_is_not_swallowed_by_its_own_twin(stage: Stage) -> None:
    """An ID counts as seen when it is settled, never before."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)

    def fail(value: int, message: Message[int]) -> None:
        if message.attempt < 3:
            raise ConnectionError("twice")

    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(stage.recorder(fail))
    async with app:
        await stage.publish(topic, 1, 1, 1, key="k", id="same")
        await stage.committed(app)
        duplicates = app.stats().processors["handle"].duplicates
    assert stage.seen.values == [1]
    assert stage.seen.attempts[1] == [1, 2, 3]
    assert duplicates == (0 if stage.case.capabilities.append_once else 2)


async def test_after_a_restart(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        for n in range(20):
            await stage.publish(topic, n, key=str(n), id=f"m{n}")
        await stage.committed(app)
    again = stage.app()
    topic = stage.topic(again)
    again.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with again:
        for n in range(20):
            await stage.publish(topic, n, key=str(n), id=f"m{n}")
        await stage.publish(topic, 99, key="k")
        await stage.committed(again)
    assert sorted(stage.seen.values) == [*range(20), 99]


async def test_after_a_restart_with_one_message_stuck(stage: Stage) -> None:
    """What was settled above the position counts as seen; what was not does not."""
    from streams import Flow

    app, never = stage.app(), asyncio.Event()
    topic = stage.topic(app, partitions=1)
    handler = stage.recorder(lambda value, _: never.wait() if value == 0 else None)
    flow = Flow(commit=0.05, drain=0.1)
    app.processor(topic, group=stage.group, concurrency=8, flow=flow)(handler)
    async with app:
        for n in range(5):
            await stage.publish(topic, n, key=str(n), id=f"m{n}")
        await stage.handled(4)
    again = stage.app()
    topic = stage.topic(again, partitions=1)
    again.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(stage.recorder())
    async with again:
        for n in range(5):
            await stage.publish(topic, n, key=str(n), id=f"m{n}")
        await stage.committed(again)
    assert sorted(stage.seen.values) == [0, 1, 2, 3, 4]


async def test_identity_is_source_and_id(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await topic.publish(1, key="k", id="same", headers={"ce_source": "/here"})
        await topic.publish(2, key="k", id="same", headers={"ce_source": "/there"})
        await topic.publish(3, key="k", id="same", headers={"ce_source": "/here"})
        await stage.committed(app)
    assert stage.seen.values == [1, 2]


class Order(msgspec.Struct):
    number: str
    amount: int


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_an_id_inside_the_payload(stage: Stage, concurrency: int) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, key="number", id="number")
    amounts: list[int] = []

    @app.processor(topic, group=stage.group, concurrency=concurrency, flow=QUICK)
    async def handle(order: Order) -> None:
        amounts.append(order.amount)

    async with app:
        for n in range(30):
            await topic.publish(Order(f"o{n % 10}", n))
        await stage.committed(app)
    assert sorted(amounts) == list(range(10))


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_an_id_inside_the_payload_has_its_source_beside_it(
    stage: Stage, asynchronous: bool
) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, key="number", id="number", partitions=1)
    amounts: list[int] = []

    def plain(order: Order) -> None:
        amounts.append(order.amount)

    async def later(order: Order) -> None:
        plain(order)

    app.processor(topic, group=stage.group, flow=QUICK)(later if asynchronous else plain)
    async with app:
        for amount, source in enumerate(["/here", "/there", None, "/here", None, "/there"]):
            headers = {} if source is None else {"ce_source": source}
            await topic.publish(Order("same", amount), headers=headers)
        await stage.committed(app)
    assert amounts == [0, 1, 2]


async def test_a_reset_empties_the_window(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, *range(10), key=str)
        await stage.committed(app)
    await asyncio.to_thread(rewind, stage)
    again = stage.app()
    topic = stage.topic(again)
    again.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with again:
        await stage.handled(20)
        await stage.committed(again)
    assert sorted(stage.seen.values) == sorted([*range(10), *range(10)])


async def test_another_group_sees_everything(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    app.processor(topic, group=f"{stage.group}-2", flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, *range(10))
        await stage.handled(20)
    assert sorted(stage.seen.values) == sorted([*range(10), *range(10)])


async def test_it_can_be_turned_off(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, dedup=Dedup(window=0), flow=QUICK)(stage.recorder())
    async with app:
        await topic.publish(1, key="k", id="first")
        await topic.publish(1, key="k", id="second")
        await stage.committed(app)
    assert stage.seen.values == [1, 1]


async def test_the_window_is_bounded(stage: Stage) -> None:
    """An ID far enough back is forgotten: at least ``window`` are kept, at most twice that."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, dedup=Dedup(window=50), flow=QUICK)(stage.recorder())
    if stage.case.capabilities.append_once:
        return  # the log itself keeps the second copy out
    async with app:
        await stage.publish(topic, 0, key="k", id="old")
        for start in (1_000, 1_050, 1_100):
            await stage.publish(topic, *range(start, start + 50), key="k")
            await stage.committed(app)
        await stage.publish(topic, 0, key="k", id="old")
        await stage.committed(app)
        owned = next(each.state for each in app.processors[0].poller._owned.values())  # type: ignore[union-attr]
        assert owned.window is not None
        assert len(owned.window) <= 100
    assert stage.seen.values.count(0) == 2


async def test_an_empty_id_inside_the_payload_is_no_identity(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, dict, id="number", partitions=1)
    handled: list[int] = []

    @app.processor(topic, group=stage.group, flow=QUICK)
    async def handle(order: dict[str, Any]) -> None:
        handled.append(order["amount"])

    async with app:
        with pytest.raises(EncodeError, match="ID is empty"):
            await topic.publish({"number": None, "amount": 1})
        for n, body in enumerate((b'{"number":null,"amount":1}', b'{"number":"","amount":2}')):
            await app.publisher.publish(topic.name, Record(body, b"k", f"foreign-{n}"))
        await topic.publish({"number": "o1", "amount": 3})
        await stage.committed(app)
        assert len(await stage.letters(app)) == 2
    assert handled == [3]


async def test_a_redrive_of_an_id_inside_the_payload_is_handled_again(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, Order, id="number", partitions=1)
    amounts: list[int] = []

    @app.processor(topic, group=stage.group, flow=QUICK)
    async def handle(order: Order) -> None:
        amounts.append(order.amount)

    async with app:
        for redrive in (b"0", b"1", b"2", b"2"):
            record = topic.record(Order("o1", 5), key="k")
            record.headers = [(REDRIVE, redrive)]
            await app.publisher.publish(topic.name, record)
        await stage.committed(app)
    assert amounts == [5, 5, 5]
