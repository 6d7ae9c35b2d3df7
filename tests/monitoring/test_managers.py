"""What is said of process managers is what happened in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from streams import Streams
from streams.errors import Unavailable
from streams.patterns import MonitoringServer
from tests.managers.desk import Desk, Tick
from tests.monitoring.conftest import scrape, until

pytestmark = pytest.mark.anyio


async def test_reactions_commands_refusals_and_failures_are_counted() -> None:
    desk = Desk(Streams("memory://"), "figures")
    of = {"manager": desk.manager.name}
    with MonitoringServer(desk.app, port=0) as server:
        async with desk.app:
            await desk.ticks.publish(Tick("a", "open 5, take 9, schedule soon 3600"))
            await desk.ticks.publish(Tick("b", "end"))
            await desk.ticks.publish(Tick("b", "notice"))
            await desk.ticks.publish(Tick("c", "break"))
            group = desk.manager.name
            await until(server, lambda now: now.of("dead_letters_total", group=group) == [1])
            found = await until(server, lambda now: now.of("manager_timeouts_waiting", **of) == [1])
            assert found.one("manager_reactions_total", **of) == 5  # a, its refusal, b, twice c
            assert found.one("manager_passed_over_total", **of) == 1
            assert found.one("manager_commands_total", **of) == 1
            assert found.one("manager_commands_refused_total", **of) == 1
            assert found.one("manager_failures_total", **of) == 2  # both attempts
            assert found.one("manager_timeouts_overdue_seconds", **of) == 0
            assert desk.app.stats().managers[desk.manager.name] == desk.manager.stats()


async def test_a_timeout_that_cannot_be_delivered_is_overdue() -> None:
    desk = Desk(Streams("memory://"), "overdue")
    of = {"manager": desk.manager.name}
    due_topic, is_broken = f"{desk.manager.name}.timeouts", True
    with MonitoringServer(desk.app, port=0) as server:
        async with desk.app:
            log: Any = desk.app.log
            append = log.append

            def appending(
                topic: str, records: Sequence[Any], done: Callable[[Sequence[Any]], None]
            ) -> None:
                if topic == due_topic and is_broken:
                    done([Unavailable("it is down") for _ in records])
                else:
                    append(topic, records, done)

            log.append = appending
            await desk.ticks.publish(Tick("a", "schedule soon 0"))
            found = await until(
                server,
                lambda now: now.of("manager_timeouts_overdue_seconds", **of) > [0.0],
            )
            assert found.one("manager_timeouts_waiting", **of) == 1
            is_broken = False
            await until(server, lambda now: now.of("manager_timeouts_waiting", **of) == [0])
            assert (await scrape(server)).one("manager_timeouts_overdue_seconds", **of) == 0
            assert (await desk.manager.load("a")).version >= 1
