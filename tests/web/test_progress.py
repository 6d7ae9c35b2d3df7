"""How far something is that takes a while, as the stream of the browser's tabs tells it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from streams import Streams
from streams.errors import Unavailable
from streams.log.protocol import Log
from streams.web import Dashboard, sampler
from streams.web.access import Access
from streams.web.saga_indexes import SagaIndexes
from streams.web.sampler import Sampler
from tests.conformance.stage import Stage
from tests.web.gates import lasting_job
from tests.web.serving import serving
from tests.web.test_closed_keys_screens import World
from tests.web.test_dead_screens import write_letters
from tests.web.test_delayed_screens import delays_of
from tests.web.test_live import events
from tests.web.test_sagas_screens import World as SagaWorld
from tests.web.test_sagas_screens import ended


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "INTERVAL", 0.05)


async def told(address: str, *subjects: str) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """What a browser is told that watches these; fails where the stream ends by itself."""
    watch = f"{address}/live?watch={Sampler.token(subjects)}"
    async with httpx.AsyncClient(timeout=60) as client, client.stream("GET", watch) as answer:
        assert answer.status_code == 200
        async for event in events(answer):
            yield event
    raise AssertionError("the stream ended")


async def over(address: str, subject: str) -> dict[str, Any]:
    """What is told of something once it has come to its end."""
    async with aclosing(told(address, subject)) as found:
        while True:
            name, data = await anext(found)
            assert name == "figures"
            if data[subject].get("over"):
                return dict(data[subject])


async def test_of_an_action_those_are_told_who_may_do_it_though_the_log_is_out_of_reach() -> None:
    dashboard = Dashboard(Streams("memory://"), access={"retry"})
    reachable = True

    def open_log() -> Any:
        if not reachable:
            raise Unavailable("no answer")
        return dashboard.source.log()

    dashboard.sampler._open_log = open_log
    with lasting_job(dashboard) as (job, say), serving(dashboard) as address:
        say(3)
        subjects = f"job:{job.id}", "job:another", "topic:nowhere"
        async with aclosing(told(address, *subjects)) as found:
            async for name, data in found:
                if name == "figures" and data[subjects[0]]["done"] == 3:
                    assert data[subjects[0]]["total"] == 10
                    assert data[subjects[1]] == {}  # it is gone, which the page is told, too
                    reachable = False
                elif name == "outage" and data[subjects[0]]["done"] == 3:
                    assert subjects[2] not in data
                    break
        reachable = True
        dashboard._rule._constant = Access(read=True)
        async with aclosing(told(address, *subjects)) as found:
            async for _, data in found:
                assert subjects[0] not in data
                if subjects[1] in data:
                    break


async def test_a_page_that_still_found_what_is_told_to_be_gone_is_asked_for_anew() -> None:
    """It says no version, so whatever is told next is another one; "it is gone" included."""
    dashboard = Dashboard(Streams("memory://"), access="all")
    transport = httpx.ASGITransport(dashboard)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        with lasting_job(dashboard) as (job, _):
            figures = dashboard.sampler.figures(f"job:{job.id}")
            figures.now, figures.missing, figures.at = {}, True, time.time()
            page = (await client.get(f"/jobs/{job.id}")).text
    assert f'data-progress="job:{job.id}" data-version=""' in page
    dashboard.close()


async def test_of_what_is_read_it_is_told_how_far_and_when_that_was_all(stage: Stage) -> None:
    world = World(stage)
    delays = delays_of(stage, world.app)
    async with world.app:
        await world.close("a", "b", behind=1)
        await delays.publish(world.topic, 1, delay=3_600)
        letters = write_letters(stage, world.app, [ValueError("x")] * 3)
        dashboard = Dashboard(world.app, access="all")
        with serving(dashboard) as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                parked = f"{stage.topic_name}.{stage.group}.parked"
                for page, subject, looked_at in (
                    (f"/keys?{world.query}", f"keys:{parked}", 4),
                    (f"/delayed/show?topic={delays.name}", f"delays:{delays.name}", 1),
                    (f"/dead/show?name={letters}", f"letters:{letters}", 3),
                ):
                    # What nobody has looked at is not begun because somebody names it.
                    async with aclosing(told(address, subject)) as found:
                        assert await anext(found) == ("figures", {subject: {}})
                    assert (await client.get(page)).status_code == 200
                    assert (await over(address, subject))["looked_at"] == looked_at


async def test_of_journals_it_is_told_how_far_each_is_and_all_are(stage: Stage) -> None:
    world = SagaWorld(stage)
    async with world.app:
        await ended(world, "quill", "bob")
        with serving(Dashboard(world.app, access="read")) as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                assert (await client.get(f"/sagas?saga={world.name}")).status_code == 200
                one = await over(address, f"sagas:{world.name}")
                assert one["looked_at"] > 2
                assert await over(address, "sagas:") == one


async def test_a_journal_that_could_not_be_read_is_read_on_when_it_can(stage: Stage) -> None:
    world = SagaWorld(stage)
    async with world.app:
        await ended(world, "quill")
        reachable = True

        def open_log() -> Log:
            if not reachable:
                raise Unavailable("no answer")
            return stage.anchor

        indexes = SagaIndexes(open_log)
        indexes.look(world.name, 0.0)
        indexes._kept.get(world.name).is_read = reachable = False
        failures = 0

        def fails() -> bool:
            nonlocal failures
            try:
                indexes.progress(world.name)
            except Unavailable:
                failures += 1
            return failures >= 2

        await stage.until(fails, "it is said")
        reachable = True

        def goes_on() -> bool:
            try:
                return indexes.progress(world.name)[1]
            except Unavailable:
                return False

        await stage.until(goes_on, "all was read")
        indexes.close()


async def test_the_doctor_says_when_it_has_looked(stage: Stage) -> None:
    app = stage.app()
    stage.topic(app)
    async with app.connected():
        with serving(Dashboard(app, access="all")) as address:
            async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                before = (await over(address, "doctor:payloads"))["version"]
                assert before == 0
                assert (await client.get("/doctor")).status_code == 200
                async with aclosing(told(address, "doctor:payloads")) as found:
                    async for _, data in found:
                        if data["doctor:payloads"]["version"] > before:
                            break
                assert (await over(address, "doctor:"))["version"] == 0  # another's findings
