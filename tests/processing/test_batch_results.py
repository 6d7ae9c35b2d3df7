"""A batch handler that publishes and fails in part: no result is lost, none is written twice."""

from __future__ import annotations

import pytest

from streams import BatchError, ConfigError, Reject, Retry, Streams
from streams.testing import harness


@pytest.mark.parametrize("known", [True, False])
async def test_the_results_of_the_others_are_published(known: bool) -> None:
    app = Streams("memory://")
    source, out = app.topic("numbers", int), app.topic("doubles", int)
    calls: list[list[int]] = []

    @app.processor(source, group="g", batch=10, to=out, retry=Retry(attempts=1))
    async def double(values: list[int]) -> list[int]:
        calls.append(values)
        results = [value * 2 for value in values]
        if 3 in values:
            raise BatchError({values.index(3): Reject("three")}, results if known else None)
        return results

    async with harness(app) as h:
        await source.publish_many(range(6))
        await h.settled()
        found = sorted(message.value for message in await h.messages(out))
        letters = await h.dead(source, "g")
    assert found == [0, 2, 4, 8, 10]
    assert [letter.raw.value for letter in letters] == [b"3"]


async def test_a_processor_declared_in_a_running_app_is_refused() -> None:
    app = Streams("memory://")
    topic = app.topic("numbers", int)
    async with app:
        with pytest.raises(ConfigError, match="before it is entered"):
            app.processor(topic, group="g")
