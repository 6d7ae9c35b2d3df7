"""Messages that cannot be decoded, in views of several topics."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from streams import DocumentStopped, Streams, View
from streams.message import Record
from tests.conformance.records import append
from tests.conformance.stage import Stage

pytestmark = pytest.mark.anyio


class Ordered(Struct, frozen=True):
    customer: str


class Paid(Struct, frozen=True):
    customer: str


class Moves(Struct, frozen=True):
    count: int = 0


def fold(moves: Moves | None, event: Ordered | Paid) -> Moves:
    return Moves((moves or Moves()).count + 1)


class Desk:
    """An app with orders and payments, as one process has it."""

    def __init__(self, app: Streams, name: str, key: Any = None) -> None:
        self.app = app
        self.orders = app.topic(f"{name}-orders", Ordered, key="customer", partitions=1)
        self.payments = app.topic(f"{name}-payments", Paid, key="customer", partitions=1)
        self.moves: View[Moves] = View(
            app, f"{name}-moves", Moves, fold, self.orders, self.payments, key=key
        )


def put(app: Streams, topic: str, value: bytes) -> None:
    answers = append(app.log, topic, [Record(value, b"bad", "x1")])
    assert not [each for each in answers if isinstance(each, Exception)]


async def test_only_its_document_stops_and_is_folded_on_once_it_can_be_decoded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the message's key is the document's, as in a view of one topic."""
    desk = Desk(stage.app(), stage.topic_name)
    async with desk.app:
        await desk.orders.publish(Ordered("ada"))
        await desk.orders.publish(Ordered("bad"))
        put(desk.app, desk.orders.name, b"garbage")
        last = await desk.orders.publish(Ordered("bad"))
        await desk.orders.publish(Ordered("ada"))
        position = await desk.payments.publish(Paid("ada"))
        with pytest.raises(DocumentStopped, match=f"{desk.orders.name}/0/"):
            await desk.moves.get("bad", wait_for=last)
        assert (await desk.moves.get("ada", wait_for=position)) is not None
        await stage.until(lambda: desk.moves.health().stopped == 1, "health says it")
        assert desk.moves.health().waiting == ()
        assert not await desk.moves.retry("bad")
        decode = desk.orders.decoding.decode_one

        def decode_all(batch: Any, index: int) -> Any:
            if batch.values[index] == b"garbage":
                return Ordered("bad")
            return decode(batch, index)

        monkeypatch.setattr(desk.orders.decoding, "decode_one", decode_all)
        assert await desk.moves.retry("bad")
        assert await desk.moves.get("bad", wait_for=last) == Moves(3)
        assert await desk.moves.get("ada", wait_for=position) == Moves(3)


async def test_where_the_key_is_made_of_it_the_partition_waits_and_says_what_to_do(
    stage: Stage,
) -> None:
    desk = Desk(stage.app(), stage.topic_name, key=lambda event: "all")
    async with desk.app:
        await desk.moves.get("all", wait_for=await desk.orders.publish(Ordered("ada")))
        put(desk.app, desk.orders.name, b"garbage")
        (reason,) = await stage.until(lambda: desk.moves.health().waiting, "it waits")
        assert reason.startswith(f"{desk.orders.name}/0: UnknownDocument: ")
        assert "it is not skipped" in reason
        position = await desk.payments.publish(Paid("ada"))  # the others go on
        assert await desk.moves.get("all", wait_for=position) == Moves(2)
