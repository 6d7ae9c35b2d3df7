"""The screens of groups: who reads, which message holds them up; moving and deleting them."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streams import Message, Streams
from streams.web import Dashboard, group_index, sampler
from streams.web.group_index import GroupIndex, GroupOverview
from streams.web.page import Page
from streams.web.problem_board import Problem
from streams.web.screens import closed_keys, delayed
from tests.conformance.stage import QUICK, Stage
from tests.views.bank import Bank, unique
from tests.web.gates import Gate
from tests.web.visiting import Visitor, eventually, seen_with, visit


@pytest.mark.everywhere
async def test_a_group_says_which_key_it_waits_for_and_since_when(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    release = asyncio.Event()

    async def handle(value: int, message: Message[int]) -> None:
        if value == 3:
            await release.wait()

    app.processor(topic, group=stage.group, concurrency=8, flow=QUICK)(handle)
    async with app:
        await stage.publish(topic, *range(10), key=lambda value: f"key-{value}")
        async with visit(Dashboard(app, access="all")) as visitor:

            async def waits_for_key() -> bool:
                seen = await visitor.get(f"/groups/show?group={stage.group}")
                return "Waits for" in seen.text and "key-3" in seen.text

            await eventually(waits_for_key)
            await seen_with(visitor, f"/groups?q={stage.group}", stage.group, stage.topic_name)
        release.set()


async def test_the_log_is_asked_about_a_group_once_for_its_page(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 3_600.0)  # its figures stay fresh
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, 1)
        await stage.handled(1)
        dashboard = Dashboard(app, access="all")
        async with visit(dashboard) as visitor:
            await visitor.get(f"/groups/show?group={stage.group}")
            asked = Gate(app.log.describe_group)
            asked.open()
            app.log.describe_group = asked  # type: ignore[method-assign]
            await visitor.get(f"/groups/show?group={stage.group}")
            assert asked.calls == 1


async def handled_and_gone(stage: Stage, messages: int, *, partitions: int) -> None:
    """A group has settled so many messages, and nobody runs any more."""
    app = stage.app()
    topic = stage.topic(app, partitions=partitions)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, *range(messages), key=str)
        await stage.handled(messages)
        await stage.committed(app)


async def test_many_partitions_are_on_several_pages(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.web.screens.groups.PARTITIONS_A_PAGE", 2)
    await handled_and_gone(stage, 50, partitions=5)
    async with stage.app().connected() as idle, visit(Dashboard(idle, access="all")) as visitor:
        page, found = f"?group={stage.group}", list[str]()
        while page:
            seen = await visitor.get(f"/groups/show{page}")
            found += re.findall(rf"{stage.topic_name} (\d) ", seen.text)
            page = next((href for text, href in seen.links if text == "next"), "")
        assert sorted(found) == ["0", "1", "2", "3", "4"]


@pytest.mark.everywhere
async def test_a_reset_is_previewed_and_then_done(stage: Stage) -> None:
    await handled_and_gone(stage, 8, partitions=2)
    async with stage.app().connected() as idle, visit(Dashboard(idle, access="all")) as visitor:
        seen = await visitor.get(f"/groups/show?group={stage.group}")
        plan = await visitor.submit(seen, "Where to", to="earliest", topic=stage.topic_name)
        assert "to be handled again: 8" in plan.text
        before = stage.places(idle)
        done = await visitor.submit(plan, "Move it")
        assert "To be handled again: 8; skipped: 0" in done.text
        assert all(
            stage.places(idle)[number].position <= before[number].position for number in before
        )
        firsts = {n: idle.log.watermarks(stage.topic_name, n)[0] for n in before}
        assert {n: held.position for n, held in stage.places(idle).items()} == firsts


async def test_a_group_is_moved_to_where_it_was_shown_whatever_moves_meanwhile(
    stage: Stage,
) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        places = [await topic.publish(number) for number in range(3)]
        app.log.initialize_offsets(stage.group, stage.topic_name, {0: places[0].offset})
        end = app.log.watermarks(stage.topic_name, 0)[1]
        async with visit(Dashboard(app, access="all")) as visitor:
            seen = await visitor.get(f"/groups/show?group={stage.group}")
            plan = await visitor.submit(seen, "Where to", to="latest")
            assert "to be skipped: 3" in plan.text
            await stage.publish(topic, 4)
            done = await visitor.submit(plan, "Move it")
            assert "skipped: 3." in done.text
            assert stage.places(app)[0].position == end

            seen = await visitor.get(f"/groups/show?group={stage.group}")
            plan = await visitor.submit(seen, "Where to", to="-1")
            held = stage.places(app)[0]
            app.log.delete_group(stage.group)
            app.log.initialize_offsets(stage.group, stage.topic_name, {0: places[1].offset})
            await visitor.submit(plan, "Move it")
            assert held.position == end
            assert stage.places(app)[0].position == places[2].offset


@asynccontextmanager
async def group_at_the_start(stage: Stage) -> AsyncIterator[tuple[Streams, Visitor]]:
    """Somebody who may do all looks at a group with one message before it."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await stage.publish(topic, 1)
        app.log.initialize_offsets(stage.group, stage.topic_name, {0: 0})
        async with visit(Dashboard(app, access="all")) as visitor:
            yield app, visitor


@pytest.mark.parametrize("confirm", ["x", "0:x", "0", "0:1:2", "0:", "-1:0"])
async def test_a_plan_that_nobody_was_shown_is_refused(stage: Stage, confirm: str) -> None:
    async with group_at_the_start(stage) as (app, visitor):
        fields = {"group": stage.group, "topic": stage.topic_name, "to": "latest"}
        await visitor.post("/groups/reset", fields | {"confirm": confirm}, status=400)
        assert stage.places(app)[0].position == 0


async def test_a_place_that_means_nothing_is_said_so(stage: Stage) -> None:
    async with group_at_the_start(stage) as (_, visitor):
        seen = await visitor.get(f"/groups/show?group={stage.group}")
        refused = await visitor.submit(seen, "Where to", to="yesterday", status=400)
        assert "'yesterday'" in refused.text
        assert "earliest, latest" in refused.text


async def test_a_group_is_deleted_once_that_is_confirmed(stage: Stage) -> None:
    async with group_at_the_start(stage) as (app, visitor):
        seen = await visitor.get(f"/groups/show?group={stage.group}")
        question = await visitor.submit(seen, "Delete the group")
        assert stage.group in app.log.list_groups()
        await visitor.submit(question, "Delete it")
        assert stage.group not in app.log.list_groups()
        await visitor.get(f"/groups/show?group={stage.group}", status=404)


async def test_a_group_of_a_view_is_not_deleted(stage: Stage) -> None:
    bank = Bank(stage.app(), unique())
    topic = stage.topic(bank.app, partitions=1)
    async with bank.app.connected():
        group = f"{bank.balances.name}.v1"
        log: Any = bank.app.log
        log.documents.create(group, 1)
        await stage.publish(topic, 1)
        log.initialize_offsets(group, stage.topic_name, {0: 0})
        async with visit(Dashboard(bank.app, access="all")) as visitor:
            fields = {"group": group, "confirm": group}
            refused = await visitor.post("/groups/delete", fields, status=400)
            assert f"streams views drop {bank.balances.name} --version 1" in refused.text
        assert group in log.list_groups()


async def test_while_groups_are_looked_at_the_overview_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not that there is no problem."""
    for module in (closed_keys, delayed):
        monkeypatch.setattr(module, "READ_SECONDS", 0.0)
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        app.log.initialize_offsets(stage.group, topic.name, {0: 0})
        await stage.publish(topic, 1)
        gate = Gate(GroupIndex._look_at)
        monkeypatch.setattr(GroupIndex, "_look_at", gate.bound())
        async with visit(Dashboard(app, access="all")) as visitor:
            await seen_with(visitor, "/", "0 of 1 groups checked so far; each visit checks more.")
            await asyncio.to_thread(gate.entered)
            gate.open()
            seen = await seen_with(
                visitor, "/", f"No consumer is running for {stage.group}: 1 message"
            )
            assert "checked so far" not in seen.text


async def test_nobody_consuming_is_a_problem(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await stage.publish(topic, 1, 2)
        app.log.initialize_offsets(stage.group, stage.topic_name, {0: 0})
        async with visit(Dashboard(app, access="read")) as visitor:
            text = f"No consumer is running for {stage.group}: 2 messages are waiting."
            group = await visitor.get((await seen_with(visitor, "/", text)).link(text))
            assert "No consumer is running for this group." in group.text


async def test_a_lag_that_grows_is_a_problem_though_nobody_watches_the_group(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_index, "FRESH", 0.0)
    monkeypatch.setattr(group_index, "GROWTH_SPAN", 0.0)
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    release = asyncio.Event()

    async def handle(value: int, message: Message[int]) -> None:
        await release.wait()

    app.processor(topic, group=stage.group, flow=QUICK)(handle)
    async with app:
        dashboard = Dashboard(app, access="read")
        async with visit(dashboard) as visitor:
            for number in range(1, 5):
                await topic.publish_many([0] * 100)
                groups = await asyncio.to_thread(dashboard.groups.look, 10.0)
                assert groups.known[stage.group].lag == 100 * number
            text = f"The lag of {stage.group} grows: 400 messages wait."
            seen = await visitor.get("/")
            await visitor.get(seen.link(text))
        release.set()


async def test_a_reader_without_the_permission_sees_no_key(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    async with app.connected():
        await stage.publish(topic, 1, key="secret-key")
        app.log.initialize_offsets(stage.group, stage.topic_name, {0: 0})
        async with visit(Dashboard(app, access="read")) as visitor:
            seen = await visitor.get(f"/groups/show?group={stage.group}")
            assert "Waits for" in seen.text
            assert "secret-key" not in seen.html
            assert "not shown" in seen.text


async def test_problems_that_take_long_come_after_the_page(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.anchor.create_topic(stage.topic_name, 1)
    dashboard = Dashboard(stage.app(), access="read")
    go_on = threading.Event()

    def find(page: Page) -> Iterator[Problem]:
        go_on.wait()
        yield Problem(0, "Everything is on fire.", page.url("/topics"))

    dashboard.site = dashboard.site._replace(problem_finders=(find,))
    async with visit(dashboard) as visitor:
        dashboard.problem_patience = 0.01
        seen = await visitor.get("/")
        assert "Checking for problems." in seen.text
        assert 'hx-get="/problems"' in seen.html
        go_on.set()

        async def found() -> bool:
            return "Everything is on fire." in (await visitor.get("/")).text

        await eventually(found)
        part = await visitor.get("/problems", headers={"hx-request": "true"})
        assert "Everything is on fire." in part.text
        assert "<html" not in part.html


def test_a_group_that_was_not_looked_at_yet_is_not_hidden() -> None:
    names, topics = ["billing", "orders.billing.dead"], ["orders", "orders.billing.dead"]
    unknown = GroupOverview({}, names, frozenset(topics[1:]), topics)
    assert [name for name in names if not unknown.is_internal(name)] == ["billing"]
