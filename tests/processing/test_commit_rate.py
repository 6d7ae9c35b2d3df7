"""How often a member of a Kafka group commits, on a clock in the test's hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from streams import Streams
from streams.log.kafka.log import CAPABILITIES
from streams.log.memory import log as memory
from streams.log.memory.subscription import MemorySubscription
from streams.testing import Clock, harness
from tests.processing.support import until

pytestmark = pytest.mark.anyio

SECONDS = 4
STEP = 0.02


async def test_a_member_commits_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is settled meanwhile: here a message each 20 ms."""
    assert CAPABILITIES.commit_interval == 0.1  # as docs/kafka.md says
    clock, times = Clock(), list[float]()

    def noted(call: Callable[..., Any]) -> Callable[..., Any]:
        def commit(self: MemorySubscription, *args: Any) -> Any:
            times.append(clock.monotonic())
            return call(self, *args)

        return commit

    paced = replace(memory.CAPABILITIES, commit_interval=CAPABILITIES.commit_interval)
    monkeypatch.setattr(memory, "CAPABILITIES", paced)
    # Memory submits by it, too.
    monkeypatch.setattr(MemorySubscription, "commit", noted(MemorySubscription.commit))
    app = Streams("memory://")
    work = app.topic("work", int, partitions=1)
    handled: list[int] = []

    @app.processor(work, group="g")
    async def handle(value: int) -> None:
        handled.append(value)

    async with harness(app, clock=clock):
        times.clear()
        began = clock.monotonic()
        for number in range(int(SECONDS / STEP)):
            await work.publish(number, key="k")
            await until(lambda number=number: handled[-1:] == [number])  # type: ignore[misc]
            clock.advance(STEP)
        await until(lambda: times and times[-1] > began + SECONDS - 1)
    # For good once each Flow.commit seconds, between the others.
    most = SECONDS * (10 + 1) + 2
    assert SECONDS <= len(times) <= most, len(times)
