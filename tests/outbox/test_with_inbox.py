"""Publishing in a handler whose transaction records its message, too: what is published is as its
effect, once or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streams import Message, Outbox, Retry, Streams
from tests.inbox.kinds import KINDS, Kind
from tests.outbox.world import Place, until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_what_a_failed_attempt_published_is_rolled_back(
    kind: Kind, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = str(tmp_path / "effects.db")
    dsn = request.getfixturevalue("postgres") if kind.server else f"sqlite:///{path}"
    place = Place(dsn)
    app = Streams("memory://")
    numbers = app.topic("numbers", int, partitions=1)
    doubles = app.topic("doubles", int, partitions=1)
    outbox = Outbox(app, dsn)
    await outbox.create_tables()
    found: list[int] = []

    async def publish(value: int, message: Message[Any]) -> None:
        await outbox.publish(doubles, 2 * value, connection=message.transaction, key="k")
        if message.attempt == 1:
            raise ValueError("not yet")

    def publish_plain(value: int, message: Message[Any]) -> None:
        outbox.publish_sync(doubles, 2 * value, connection=message.transaction, key="k")
        if message.attempt == 1:
            raise ValueError("not yet")

    declare: Any = app.processor
    retry = Retry(attempts=3, delay=0.001)
    database = kind.make(dsn if kind.server else path)
    declare(numbers, group="doubling", transaction=database, retry=retry)(
        publish if kind.asynchronous else publish_plain
    )

    @app.processor(doubles, group="found")
    async def collect(value: int) -> None:
        found.append(value)

    async with app:
        await numbers.publish_many([1, 2, 3])
        await until(lambda: len(found) >= 3, lambda: found)
        await until(lambda: not place.rows(), place.rows)
    assert sorted(found) == [2, 4, 6]  # keyless messages that failed have no order
