"""What pages show after an action: what it did, also where reading was under way; and without
everything being read once more."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from streams import Topic
from streams.inspection import background, closed_keys, delayed, letter_survey
from streams.inspection.delayed import DelayIndex
from streams.inspection.letter_survey import LetterSurvey
from streams.inspection.letter_topics import letter_counts, sample_sources
from streams.inspection.offset_texts import parse_offsets
from streams.inspection.sagas import SagaIndex
from streams.patterns import Delays
from streams.replay.offset_reset import apply_reset, plan_reset
from streams.web import Dashboard, dead_index, group_index, saga_indexes
from streams.web.group_index import GroupIndex
from streams.web.screens import delayed as delayed_screen
from tests.conformance.stage import PATIENCE, QUICK, Stage
from tests.web.gates import Gate
from tests.web.test_closed_keys_screens import World as ClosedWorld
from tests.web.test_dead_screens import all_counted, write_letters
from tests.web.test_delayed_screens import CANCELLED_WITHIN, delays_of
from tests.web.test_sagas_screens import three_sagas
from tests.web.visiting import Visitor, eventually, visit


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page waits for as long as it takes: no test depends on how quick the machine is."""
    for module in (background, saga_indexes, group_index):
        monkeypatch.setattr(module, "AFTER_CHANGE", PATIENCE)
    monkeypatch.setattr(delayed_screen, "ANSWER_SECONDS", CANCELLED_WITHIN)


class Reads:
    """How many records are read by the modules that read on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: Counter[str] = Counter()
        for module in (letter_survey, closed_keys, delayed):
            monkeypatch.setattr(module, "read_batches", partial(self._read, module.read_batches))

    def _read(self, read: Any, *args: Any) -> Iterator[Any]:
        for batch in read(*args):
            self.records[args[1]] += len(batch)
            yield batch

    def taken(self, part: str) -> int:
        """Since this was asked last, from topics with this in their names: on a server there may be
        those of other tests."""
        found, self.records = self.records, Counter()
        return sum(count for topic, count in found.items() if part in topic)


async def delayed_messages(
    visitor: Visitor, topic: Topic[int], delays: Delays, count: int
) -> tuple[str, list[str]]:
    """Publish messages for later; the page that lists them, and their places."""
    for number in range(count):
        await delays.publish(topic, number, delay=3_600 + number, id=f"m{number}")

    async def is_read() -> bool:
        return f"{delays.name} {count} " in (await visitor.get("/delayed")).text

    await eventually(is_read)
    path = f"/delayed/show?topic={delays.name}"
    seen = await visitor.get(path)
    return path, [text for text, href in seen.links if f"/{delays.name}/messages/" in href]


@pytest.mark.everywhere
async def test_letters_are_not_read_again_after_an_action(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    sampled: list[str] = []

    def sample(log: Any, info: Any, most: int) -> Any:
        sampled.append(info.name)
        return sample_sources(log, info, most)

    monkeypatch.setattr(dead_index, "sample_sources", sample)
    app = stage.app()
    dashboard = Dashboard(app, access="all")
    async with app.connected(), visit(dashboard) as visitor:
        name = write_letters(stage, app, [ValueError(f"order {n}") for n in range(40)])
        seen = await all_counted(visitor, name)
        assert "40 ValueError: order" in seen.text

        async def is_listed() -> bool:
            listed = await visitor.get("/dead")
            return f"{name} {stage.group} {stage.topic_name} 40 40" in listed.text

        await eventually(is_listed)
        assert reads.taken(name) == 40
        places = [text for text, href in seen.links if "/dead/letter?" in href]
        for left, place in zip((39, 38, 37), places, strict=False):
            fields = {"name": name, "letter": place, "confirm": "1"}
            await visitor.post("/dead/drop", fields)
            # The next look shows it, without waiting for what anybody else asks for.
            seen = await visitor.get(f"/dead/show?name={name}")
            assert f"{left} ValueError: order" in seen.text
            listed = await visitor.get("/dead")
            assert f"{name} {stage.group} {stage.topic_name} {left} 40" in listed.text
            overview = await visitor.get("/")
            assert f"{left} dead letters are waiting in {name}." in overview.text
        assert reads.taken(name) == 0
        assert sampled.count(name) == 1  # a server may have letters of other tests


@pytest.mark.everywhere
async def test_delays_are_not_read_again_after_an_action(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    app = stage.app()
    topic = stage.topic(app)
    delays = delays_of(stage, app, partitions=1)
    dashboard = Dashboard(app, access="all")
    async with app, visit(dashboard) as visitor:
        path, places = await delayed_messages(visitor, topic, delays, 40)
        index = dashboard.delays.get(delays.name)
        assert reads.taken(delays.name) > 0
        for number in range(3):
            fields = {"topic": delays.name, "message": places[number], "confirm": "1"}
            done = await visitor.post("/delayed/cancel", fields)
            assert "1 message was cancelled." in done.text
            seen = await visitor.get(path)
            assert f"m{number} " not in seen.text
            assert f"m{number + 1} " in seen.text
        # A request and its answer for each, which the action itself waits for, too.
        assert reads.taken(delays.name) <= 3 * 2 * 2
        assert dashboard.delays.get(delays.name) is index


@pytest.mark.everywhere
async def test_closed_keys_are_not_read_again_after_an_action(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    world = ClosedWorld(stage)
    async with world.app, visit(Dashboard(world.app, access="all")) as visitor:
        await world.close(*(f"k{number}" for number in range(30)))
        seen = await world.listed(visitor, "30 waiting for a decision")
        shown = [href for _, href in seen.links if "/keys/show?" in href]
        places = [parse_qs(urlsplit(href).query)["at"][0] for href in shown]
        world.bad.clear()
        assert reads.taken(stage.topic_name) > 0
        fields = {"topic": stage.topic_name, "group": stage.group}
        for number in range(2):
            await visitor.post("/keys/retry", {**fields, "letter": places[number], "confirm": "1"})
            await stage.handled(number + 1)
            await world.listed(visitor, f"{29 - number} waiting for a decision")
        assert reads.taken(stage.topic_name) < 30


def held_up(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Gate:
    """A function of a module, held up the first time that it is called."""
    gate = Gate(getattr(module, name))
    monkeypatch.setattr(module, name, gate.bound() if isinstance(module, type) else gate)
    return gate


@pytest.mark.everywhere
async def test_letters_that_were_dropped_while_a_survey_was_under_way(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stage.app()
    dashboard = Dashboard(app, access="all")
    async with app.connected(), visit(dashboard) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 6)
        path = f"/dead/show?name={name}"
        # It knows by then which letters wait, and has not counted them.
        gate = held_up(monkeypatch, LetterSurvey, "_read_partition")
        seen = await visitor.get(path)
        await asyncio.to_thread(gate.entered)
        assert "Still counting" in seen.text
        places = [text for text, href in seen.links if "/dead/letter?" in href]
        await visitor.post("/dead/drop", {"name": name, "letter": places[:2], "confirm": "2"})
        runs = dashboard.surveys.get(name)._runs
        page = asyncio.create_task(visitor.get(path))
        await stage.until(lambda: runs._wanted > runs._begun, "the page waits for another run")
        gate.open()
        seen = await page
        assert "Still counting" not in seen.text
        assert " 4 ValueError: x" in seen.text


@pytest.mark.everywhere
async def test_topics_of_letters_that_were_dropped_while_they_were_counted(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stage.app()
    dashboard = Dashboard(app, access="all")
    async with app.connected(), visit(dashboard) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 6)
        dashboard.groups.look(PATIENCE)
        gate = Gate(letter_counts, after=True)
        monkeypatch.setattr(dead_index, "letter_counts", gate)
        await visitor.get("/dead")
        await asyncio.to_thread(gate.entered)
        seen = await visitor.get(f"/dead/show?name={name}")
        places = [text for text, href in seen.links if "/dead/letter?" in href]
        await visitor.post("/dead/drop", {"name": name, "letter": places[:2], "confirm": "2"})
        page = asyncio.create_task(visitor.get("/dead"))
        await asyncio.wait({page}, timeout=0.3)  # so that it waits by then
        gate.open()
        assert f"{name} {stage.group} {stage.topic_name} 4 6" in (await page).text


@pytest.mark.everywhere
async def test_a_message_that_was_cancelled_while_delays_were_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = stage.app()
    topic = stage.topic(app)
    delays = delays_of(stage, app, partitions=1)
    dashboard = Dashboard(app, access="all")
    async with app, visit(dashboard) as visitor:
        path, places = await delayed_messages(visitor, topic, delays, 3)
        # Somebody's reading is held up where it knows the topic's end, and no more.
        gate = held_up(monkeypatch, delayed, "read_batches")
        index = dashboard.delays.get(delays.name)
        assert not await asyncio.to_thread(index.read_on, 0.0)
        await asyncio.to_thread(gate.entered)
        fields = {"topic": delays.name, "message": places[0], "confirm": "1"}
        with monkeypatch.context() as patch:  # the action would wait for it
            patch.setattr(DelayIndex, "counts", lambda *_: None)
            done = await visitor.post("/delayed/cancel", fields)
        assert "1 message was cancelled." in done.text
        page = asyncio.create_task(visitor.get(path))
        await asyncio.wait({page}, timeout=0.3)  # so that it waits by then
        gate.open()
        assert "m0 " not in (await page).text


async def test_a_page_waits_for_a_while_and_says_that_it_is_not_all(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "AFTER_CHANGE", 0.05)
    app = stage.app()
    dashboard = Dashboard(app, access="all")
    async with app.connected(), visit(dashboard) as visitor:
        name = write_letters(stage, app, [ValueError("x")] * 6)
        gate = held_up(monkeypatch, LetterSurvey, "_read_partition")
        seen = await visitor.get(f"/dead/show?name={name}")
        await asyncio.to_thread(gate.entered)
        places = [text for text, href in seen.links if "/dead/letter?" in href]
        await visitor.post("/dead/drop", {"name": name, "letter": places[:2], "confirm": "2"})
        seen = await visitor.get(f"/dead/show?name={name}")
        assert "Still counting" in seen.text
        gate.open()
        seen = await all_counted(visitor, name)
        assert " 4 ValueError: x" in seen.text


@pytest.mark.everywhere
async def test_a_group_that_was_deleted_while_groups_were_listed(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, 1)
        await stage.handled(1)
        await stage.committed(app)
    log = stage.anchor
    index = GroupIndex(lambda: log)
    gate = Gate(log.list_groups, after=True)
    log.list_groups = gate  # type: ignore[method-assign]
    looking = asyncio.create_task(asyncio.to_thread(index.look, PATIENCE))
    await asyncio.to_thread(gate.entered)
    await asyncio.to_thread(log.delete_group, stage.group)
    index.expire()
    after = asyncio.create_task(asyncio.to_thread(index.look, PATIENCE))
    gate.open()
    assert stage.group not in (await after).names
    await looking
    assert stage.group not in (await asyncio.to_thread(index.look, PATIENCE)).names


@pytest.mark.everywhere
async def test_a_group_that_was_moved_while_its_lag_was_counted(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    async with app:
        await stage.publish(topic, 1, 2, 3)
        await stage.handled(3)
        await stage.committed(app)
    log = stage.anchor
    index = GroupIndex(lambda: log)
    gate = Gate(log.describe_group, after=True)
    log.describe_group = gate  # type: ignore[method-assign]
    looking = asyncio.create_task(asyncio.to_thread(index.look, PATIENCE))
    await asyncio.to_thread(gate.entered)

    def move() -> None:
        to = parse_offsets("earliest", "to", stage.topic_name)
        moves = plan_reset(log, stage.group, stage.topic_name, to, now=time.time())
        apply_reset(log, stage.group, stage.topic_name, moves, now=time.time())

    await stage.until(lambda: not stage.anchor.describe_group(stage.group).members, "nobody runs")
    await asyncio.to_thread(move)
    index.expire((stage.group,))
    gate.open()
    await looking
    known = (await asyncio.to_thread(index.look, PATIENCE)).known
    assert known[stage.group].lag == 3


async def test_a_saga_that_was_abandoned_while_the_journal_was_read(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with three_sagas(stage) as (world, visitor):
        path = f"/sagas?saga={world.name}&state=all"

        async def is_read() -> bool:
            return "3 sagas, in" in (await visitor.get(path)).text

        await eventually(is_read)
        shown = await visitor.get(f"/sagas/show?saga={world.name}&id=stuck")
        question = await visitor.submit(shown, "Abandon", reason="told by phone")
        gate = Gate(SagaIndex.read, after=True)
        monkeypatch.setattr(SagaIndex, "read", gate.bound())
        reading = asyncio.create_task(visitor.get(path))
        await asyncio.to_thread(gate.entered)
        await visitor.submit(question, "Abandon it")
        page = asyncio.create_task(visitor.get(path))
        await asyncio.wait({page}, timeout=0.3)
        gate.open()
        assert "stuck abandoned" in (await page).text
        await reading


@pytest.mark.everywhere
async def test_nothing_is_read_once_the_dashboard_is_closed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = Reads(monkeypatch)
    app = stage.app()
    async with app.connected():
        name = write_letters(stage, app, [ValueError("x")] * 6)
        dashboard = Dashboard(app, access="all")
        gate = held_up(monkeypatch, LetterSurvey, "_read_partition")
        kinds: tuple[Any, ...] = (dashboard.surveys, dashboard.closed_keys, dashboard.delays)
        readers = [each.get(name) for each in kinds]
        async with visit(dashboard) as visitor:
            await visitor.get(f"/dead/show?name={name}")
            await asyncio.to_thread(gate.entered)
        gate.open()
        assert gate.thread is not None
        await asyncio.to_thread(gate.thread.join, PATIENCE)
        assert not gate.thread.is_alive()
        assert reads.taken(name) <= 6  # a batch
        for each in readers:
            assert not each.read_on(PATIENCE)
        assert reads.taken(name) == 0
