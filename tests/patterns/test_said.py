"""What is said of a failure, a wrong argument and a new file, in the right words."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from stream_codecs import EncodeError
from streams import Retry, Streams
from streams.patterns import IdempotencyStore, SagaOrchestrator
from streams.text import count_with_noun


def test_numbers_and_nouns() -> None:
    assert [count_with_noun(n, "attempt") for n in (0, 1, 2, 1_000)] == [
        "0 attempts", "1 attempt", "2 attempts", "1,000 attempts",
    ]  # fmt: skip


@pytest.mark.parametrize(("attempts", "said"), [(1, "1 attempt"), (2, "2 attempts")])
async def test_how_often_it_was_tried(
    attempts: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "streams")
    retry = Retry(attempts=attempts, delay=0.001)
    app = Streams("memory://")
    topic = app.topic("orders", int, partitions=1)

    @app.processor(topic, group="billing", retry=retry)
    async def fail(value: int) -> None:
        raise ValueError("no good")

    async def step(context: dict[str, Any]) -> None:
        raise ValueError("no money")

    saga = SagaOrchestrator(app, "trips", context=dict[str, Any])
    saga.add_step("charge", step, retry=retry)
    async with app:
        await topic.publish(1)
        await saga.start({}, id="t-1")
        for _ in range(6_000):
            if "dead letter after" in caplog.text and "charge failed after" in caplog.text:
                break
            await asyncio.sleep(0.005)
    assert f"dead letter after {said}: " in caplog.text
    assert f"step charge failed after {said}: " in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": ""}, "orders message ID: '' is not a non-empty str without NUL"),
        ({"id": "a\0"}, r"orders message ID: 'a\x00' is not a non-empty str without NUL"),
        ({"headers": [1]}, "orders headers: of type list, and a mapping of str is needed"),
        ({"headers": {"a": 1}}, "orders headers: 'a': names and values are str"),
        ({"headers": {"ce_id": "x"}}, "orders headers: 'ce_id' is the message ID: give it as id="),
        ({"timestamp": 1}, "orders timestamp: of type int, and a datetime is needed"),
        ({"timestamp": datetime(2026, 1, 1)}, "orders timestamp: datetime.datetime(2026, "),  # noqa: DTZ001
        ({"key": 1.5}, "orders key: key of type float"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], said: str) -> None:
    topic = Streams("memory://").topic("orders", int)
    with pytest.raises(EncodeError) as refused:
        topic.record(1, **options)
    assert str(refused.value).startswith(said)


async def test_a_new_file_of_claims_is_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streams")
    path = tmp_path / "claims.db"
    async with IdempotencyStore(f"sqlite:///{path}") as store:
        await store.set("k", 1)
    assert f"{path} is a new file of claims" in caplog.text
    assert "is a new log" not in caplog.text
