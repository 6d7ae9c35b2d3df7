"""Pydantic models as the type of a topic: key, ID, unknown tags and poison, through a processor."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from streams import ConfigError, Message, Streams
from streams.testing import harness

pytestmark = pytest.mark.anyio


class Paid(BaseModel):
    kind: Literal["paid"] = "paid"
    order_id: str
    cents: int = Field(gt=0)


class Refused(BaseModel):
    kind: Literal["refused"] = "refused"
    order_id: str


Payment = Annotated[Paid | Refused, Field(discriminator="kind")]


async def test_models_are_published_handled_read_and_dead_lettered() -> None:
    app = Streams("memory://")
    payments = app.topic("payments", Payment, key="order_id", unknown="skip")
    raw = app.topic("payments", bytes)
    seen: list[tuple[str | None, object]] = []

    @app.processor(payments, group="books")
    async def book(value: Paid | Refused, message: Message[Paid | Refused]) -> None:
        seen.append((message.key, value))

    async with harness(app) as h:
        await payments.publish(Paid(order_id="o-1", cents=5))
        await payments.publish_many([Refused(order_id="o-2"), Paid(order_id="o-3", cents=7)])
        await raw.publish(b'{"kind": "unheard of"}')
        await raw.publish(b'{"kind": "paid", "order_id": "o-4", "cents": 0}')
        await h.settled()
        assert seen == [
            ("o-1", Paid(order_id="o-1", cents=5)),
            ("o-2", Refused(order_id="o-2")),
            ("o-3", Paid(order_id="o-3", cents=7)),
        ]
        letters = [m async for m in app.topic("payments.books.dead").read()]
        (letter,) = letters
        assert letter.value == b'{"kind": "paid", "order_id": "o-4", "cents": 0}'
        assert "$.paid.cents" in letter.headers["__streams.errors.message"]
        read = [m.value async for m in payments.read(errors="skip")]
        assert read == [value for _, value in seen]


def test_a_field_that_no_model_has_is_refused_when_the_topic_is_declared() -> None:
    app = Streams("memory://")
    with pytest.raises(ConfigError, match="Refused has no such field, it has kind, order_id"):
        app.topic("payments", Payment, key="cents")
    with pytest.raises(ConfigError, match="has no tags"):
        app.topic("payments", Paid | Refused, unknown="skip")
