"""The screens of process managers: what they wait for, and one instance with what it did."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Struct

from streams import ProcessManager, Schedule, Streams, Topic
from streams.eventsourcing.managers.actions import Action
from streams.eventsourcing.managers.inspection import ManagerInspector
from streams.web import Dashboard
from streams.web.page import Page
from tests.conformance.stage import Stage
from tests.managers.purses import QUICK, Order, TooLate, World, transfer_of
from tests.web.visiting import eventually, seen_with, visit


async def transferred(world: World) -> None:
    """A transfer that has ended."""
    await world.open(lovelace=90_000, menabrea=0)
    await world.orders.publish(Order("t-done", "lovelace", "menabrea", 77_123))

    async def has_ended() -> bool:
        return await world.has_ended("t-done")

    await eventually(has_ended)


@pytest.mark.everywhere
async def test_a_manager_and_its_instances_are_shown(stage: Stage) -> None:
    world = World(stage.app(), f"w-{stage.group}")
    async with world.app:
        await transferred(world)
        async with visit(Dashboard(world.app, access="all")) as visitor:
            listed = await seen_with(visitor, "/managers", world.transfers.name, "1 0")
            shown = await visitor.get(listed.link(world.transfers.name))
            assert "Transfer" in shown.text
            assert f"{world.name}-orders" in shown.text
            one = await visitor.get(shown.link("t-done"))
            assert "ended" in one.text
            assert '"target": "menabrea"' in one.text
            assert "take" in one.text
            assert "timeout begun: too-late" in one.text
            assert "not needed any more" in one.text  # the timeout, as the transfer has ended
            await visitor.get(
                f"/managers/instance?manager={world.transfers.name}&key=zoe", status=404
            )


async def test_what_is_in_its_messages_is_not_shown_without_the_permission(stage: Stage) -> None:
    world = World(stage.app(), f"w-{stage.group}")
    async with world.app:
        await transferred(world)
        async with visit(Dashboard(world.app, access="read")) as visitor:
            name = world.transfers.name
            shown = await seen_with(visitor, f"/managers/show?manager={name}", "not shown")
            assert "t-done" not in shown.html
            one = await visitor.get(f"/managers/instance?manager={name}&key=t-done")
            assert "take" in one.text
            for secret in ("lovelace", "menabrea", "77123", "cents"):
                assert secret not in one.text.partition("What it did")[2], secret


class Waiting(Struct, frozen=True):
    """What an instance keeps."""

    cents: int = 0


def waiting_manager(stage: Stage) -> tuple[Streams, Topic[Order], ProcessManager[Waiting]]:
    """A manager whose instances wait for a timeout in an hour."""
    app = stage.app()
    orders = app.topic(f"o-{stage.group}", Order, key="transfer", partitions=1)

    def react(state: Waiting, event: Any) -> tuple[Waiting, list[Action]]:
        return Waiting(event.cents), [Schedule(3_600, TooLate())]

    manager = ProcessManager(
        app, f"m-{stage.group}", Waiting, react, orders,
        key=transfer_of, timeouts=TooLate, partitions=1, flow=QUICK,
    )  # fmt: skip
    return app, orders, manager


async def test_timeouts_that_are_overdue_are_a_problem(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, orders, manager = waiting_manager(stage)
    async with app:
        await orders.publish(Order("t-waits", "ada", "bob", 30))

        async def waits() -> bool:
            inspector = ManagerInspector(manager, app.log)
            return bool((await asyncio.to_thread(inspector.timeouts, None)).entries)

        await eventually(waits)
    # Nobody runs it any more, and its timeout is due in an hour: two hours pass.
    monkeypatch.setattr(Page, "now", property(lambda page: page.app.clock.time() + 7_200))
    later, _, _ = waiting_manager(stage)
    async with visit(Dashboard(later, access="all")) as visitor:
        text = f"1 timeout of the process manager m-{stage.group} is overdue."
        overview = await seen_with(visitor, "/", text)
        shown = await visitor.get(overview.link(text))
        assert "no process runs it" in shown.text
        one = await visitor.get(shown.link("t-waits"))
        assert "waits overdue" in one.text


async def test_a_manager_that_is_not_declared_is_said_so(stage: Stage) -> None:
    app = stage.app()
    async with visit(Dashboard(app, access="all")) as visitor:
        overview = await visitor.get("/")
        assert "Process managers" not in [text for text, _ in overview.links]
        assert "declares no process managers" in (await visitor.get("/managers")).text
        await visitor.get("/managers/show?manager=nobody", status=404)
        await visitor.get("/managers/instance?manager=nobody&key=a", status=404)
    world = World(stage.app(), f"w-{stage.group}")
    async with visit(Dashboard(world.app, access="all")) as visitor:
        assert "does not exist yet" in (await visitor.get("/managers")).text
        shown = await visitor.get(f"/managers/show?manager={world.transfers.name}")
        assert "does not exist yet" in shown.text
