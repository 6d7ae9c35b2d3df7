"""The screens of closed keys: what closes them, what is parked behind; opening them again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streams import DeadLetters, Message, Retry, Streams
from streams.config import Flow
from streams.inspection.closed_keys import ClosedKeyIndex, parked_sources
from streams.patterns.deadletters import ClosedKeyReader
from streams.web import Dashboard
from streams.web import page as page_module
from streams.web.screens import closed_keys
from tests.conformance.stage import QUICK, Stage
from tests.web.visiting import Seen, Visitor, eventually, visit


class World:
    """A processor whose dead messages close their keys, and fails over what it is told to."""

    def __init__(self, stage: Stage, flow: Flow = QUICK) -> None:
        self.stage = stage
        self.bad: set[int] = set()
        self.app: Streams = stage.app()
        self.topic = stage.topic(self.app)
        self.query = f"topic={stage.topic_name}&group={stage.group}"
        declare = self.app.processor(
            self.topic,
            group=stage.group,
            dead_letters=DeadLetters(sequenced=True),
            retry=Retry(attempts=1),
            concurrency=8,
            flow=flow,
        )
        declare(stage.recorder(self.act))

    def act(self, value: int, message: Message[int]) -> None:
        if value in self.bad:
            raise ValueError(f"{value} is no good")

    async def close(self, *keys: str, behind: int = 0) -> None:
        """Close these keys by a message each, with so many parked behind each."""
        self.bad |= set(range(len(keys)))
        await self.stage.publish(self.topic, *range(len(keys)), key=lambda value: keys[value])
        for key in keys:
            later = [100 + number for number in range(behind)]
            await self.stage.publish(self.topic, *later, key=key)
        await self.stage.committed(self.app)

    async def listed(self, visitor: Visitor, text: str) -> Seen:
        """The page of the keys, once this stands on it."""
        seen: list[Seen] = []

        async def is_there() -> bool:
            seen.append(await visitor.get(f"/keys?{self.query}"))
            return text in seen[-1].text

        await eventually(is_there)
        return seen[-1]


@pytest.mark.everywhere
async def test_a_closed_key_is_found_and_opened_again(stage: Stage) -> None:
    world = World(stage)
    async with world.app, visit(Dashboard(world.app, access="all")) as visitor:
        await world.close("a", behind=3)
        seen = await world.listed(visitor, "1 closed keys 1 waiting for a decision 3 parked")
        assert "ValueError: 0 is no good" in seen.text

        async def is_told() -> bool:
            topics = await visitor.get("/keys")
            overview = await visitor.get("/")
            return f"{stage.group} {stage.topic_name} 1 1 3" in topics.text and (
                f"1 key of {stage.topic_name} is closed for {stage.group}; 3 messages"
                in overview.text
            )

        await eventually(is_told)
        place = next(text for text, href in seen.links if "/keys/show?" in href)
        key = await visitor.get(seen.link(place))
        assert "parked behind it 3:" in key.text
        behind = [href for _, href in key.links if f"/topics/{stage.topic_name}/messages/" in href]
        assert len(behind) == 4  # and the message that closes it
        world.bad.clear()
        question = await visitor.submit(key, "Retry")
        assert f"Open 1 closed key of {stage.topic_name}.{stage.group}.parked?" in question.text
        done = await visitor.submit(question, "Retry")
        assert "1 key is opened again" in done.text
        await stage.handled(4)
        assert stage.seen.by_key() == {"a": [0, 100, 101, 102]}
        await world.listed(visitor, "No matching closed keys.")
        late = await visitor.submit(key, "Retry", status=404)
        assert "No key is closed by the message" in late.text


async def test_keys_are_ticked_dropped_and_edited(stage: Stage) -> None:
    world = World(stage)
    async with world.app, visit(Dashboard(world.app, access="all")) as visitor:
        await world.close("a", "b", "c", behind=1)
        seen = await world.listed(visitor, "3 waiting for a decision 3 parked")
        rows = {
            words[0]: words[1]
            for words in (
                part.split()[:2] for part in seen.text.partition("attempts")[2].split(" no good 1 ")
            )
        }
        fields: dict[str, Any] = {"topic": stage.topic_name, "group": stage.group}
        drop = {**fields, "letter": [rows["a"], rows["b"]]}
        question = await visitor.post("/keys/drop", drop)
        assert "Drop the messages that close 2 keys" in question.text
        await visitor.post("/keys/drop", {**drop, "confirm": "2"})
        await stage.handled(2)
        key = await visitor.get(f"/keys/show?{world.query}&at={rows['c']}")
        await visitor.submit(key, "New value", value="x", status=400)
        await visitor.submit(key, "New value", value="7")
        await stage.handled(4)
        assert stage.seen.by_key() == {"a": [100], "b": [100], "c": [7, 100]}


async def test_all_keys_are_opened_in_the_background(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closed_keys, "AT_ONCE", 7)
    world = World(stage)
    async with world.app, visit(Dashboard(world.app, access="all")) as visitor:
        await world.close(*(f"k{number}" for number in range(20)), behind=1)
        seen = await world.listed(visitor, "20 waiting for a decision 20 parked")
        world.bad.clear()
        question = await visitor.submit(seen, "Retry the messages that close any key")
        assert "Open 20 closed keys" in question.text
        await visitor.submit(question, "Retry", status=400, confirm="19")
        begun = await visitor.submit(question, "Retry", status=303, confirm="20")
        await stage.handled(40)

        async def is_done() -> bool:
            job = await visitor.get(begun.response.headers["location"])
            return "20 keys are opened again" in job.text

        await eventually(is_done)
        await world.listed(visitor, "No matching closed keys.")
    assert not stage.seen.overlaps


async def test_all_keys_that_match_are_opened_where_all_are_too_many(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_BULK", 3)
    world = World(stage)
    hidden = Dashboard(world.app, access="all", redact=lambda payload: payload.data[:2])
    async with world.app:
        await world.close("k-1", "k-2", "l-1", "l-2", "l-3")
        async with visit(Dashboard(world.app, access="all")) as visitor:
            seen = await world.listed(visitor, "5 waiting for a decision")
            all_of_them = "Retry the messages that close any key"
            refused = await visitor.submit(seen, all_of_them, status=400)
            assert "at most 3 can be processed at once. Narrow it down" in refused.text
            only = await visitor.get(f"/keys?{world.query}&key=k-")
            question = await visitor.submit(only, "Retry the messages that close any of these keys")
            assert "Open 2 closed keys" in question.text
            assert "Only keys that contain k- are affected." in question.text
            world.bad.clear()
            await visitor.submit(question, "Retry", confirm="2")
            await stage.handled(2)
            assert stage.seen.by_key() == {"k-1": [0], "k-2": [1]}
            await world.listed(visitor, "3 closed keys 3 waiting for a decision")
            nothing = await visitor.submit(
                only, "Retry the messages that close any of these", status=400
            )
            assert "No closed keys are waiting for a decision." in nothing.text
        async with visit(hidden) as visitor:  # what it does not show does not match
            fields = {"topic": stage.topic_name, "group": stage.group, "all": "1", "key": "l-1"}
            nothing = await visitor.post("/keys/retry", fields, status=400)
            assert "No closed keys are waiting for a decision." in nothing.text
            fields["key"] = "l-"
            assert "Open 3 closed keys" in (await visitor.post("/keys/retry", fields)).text
            monkeypatch.setattr(closed_keys, "LOOKS", 1)
            monkeypatch.setattr(closed_keys, "ALL_SECONDS", -1.0)
            late = await visitor.post("/keys/retry", fields, status=400)
            assert "Not all keys could be searched in time: nothing was done" in late.text
        async with visit(Dashboard(world.app, access={"retry"})) as visitor:
            refused = await visitor.post("/keys/retry", fields, status=400)
            assert "You may not search what is in messages." in refused.text


async def test_without_the_permission_no_key_is_shown(stage: Stage) -> None:
    world = World(stage)
    async with world.app, visit(Dashboard(world.app, access={"retry"})) as visitor:
        await world.close("secret-key", behind=1)
        seen = await world.listed(visitor, "1 waiting for a decision")
        place = next(text for text, href in seen.links if "/keys/show?" in href)
        key = await visitor.get(seen.link(place))
        assert "secret" not in seen.html + key.html
        assert "no good" not in seen.html + key.html
        await visitor.get(f"/keys?{world.query}&key=secret", status=400)
        world.bad.clear()
        await visitor.submit(await visitor.submit(key, "Retry"), "Retry")
        await stage.handled(2)


async def test_keys_are_filtered_and_paged(stage: Stage) -> None:
    world = World(stage)
    async with world.app, visit(Dashboard(world.app, access="all")) as visitor:
        await world.close(*(f"k-{number:03}" for number in range(60)))
        await stage.publish(world.topic, 100, 101, key="k-007")
        seen = await world.listed(visitor, "60 waiting for a decision 2 parked")
        following = await visitor.get(f"/keys{seen.link('next')}")
        places = [
            text for page in (seen, following) for text, href in page.links if "/keys/show" in href
        ]
        assert len(places) == len(set(places)) == 60
        only = await visitor.get(f"/keys?{world.query}&key=k-01")
        assert len([href for _, href in only.links if "/keys/show" in href]) == 10
        most = await visitor.get(f"/keys?{world.query}&sort=parked")
        assert "attempts k-007" in most.text
    await visitor_sees_nothing(stage)


async def visitor_sees_nothing(stage: Stage) -> None:
    async with visit(Dashboard(stage.app(), access="read")) as visitor:
        await visitor.get("/keys?topic=none&group=none", status=404)
        await visitor.get("/keys?topic=none", status=400)
        query = f"topic={stage.topic_name}&group={stage.group}"
        for at in ("x", "0/999999", "99/1", ""):
            await visitor.get(f"/keys/show?{query}&at={at}", status=404)


async def test_the_index_follows_the_log_as_a_reader_of_it_all_would(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        name = f"{stage.topic_name}.{stage.group}.parked"
        index = ClosedKeyIndex(name, lambda: world.app.log)
        for round in range(3):
            world.bad.clear()
            await world.close(*(f"{round}-{number}" for number in range(10)), behind=2)
            await stage.until(lambda: index.counts(10.0).dead == 10, "ten are closed")
            reader = ClosedKeyReader(world.app.log, stage.group, stage.topic_name)
            expected = [
                (head.key, head.partition, head.position, head.is_dead, head.parked)
                for head in reader.heads()
            ]
            assert sorted(row[:5] for row in index.rows(0, 100)) == sorted(expected)
            world.bad.clear()
            await asyncio.to_thread(reader.send_commands, "retry", index.dead())
            await stage.until(lambda: index.counts(10.0).keys == 0, "all are open")


def test_whose_closed_keys_a_topic_holds() -> None:
    topics = {"a", "a.b", "a.b.c.parked", "left.for.parked", "x.y.parked"}
    assert parked_sources(topics, {"c"}) == [("a.b.c.parked", "a.b", "c")]
    assert parked_sources(topics, set()) == [("a.b.c.parked", "a", "b.c")]


async def test_keys_are_looked_for_as_they_are_shown_and_for_a_while(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(stage)
    async with world.app:
        await world.close("card-4111", "other")
        dashboard = Dashboard(world.app, access="all", redact=lambda payload: payload.data[:5])
        async with visit(dashboard) as visitor:
            await world.listed(visitor, "2 waiting for a decision")
            hidden = await visitor.get(f"/keys?{world.query}&key=4111")
            assert "No matching closed keys." in hidden.text
            shown = await visitor.get(f"/keys?{world.query}&key=card")
            assert len([href for _, href in shown.links if "/keys/show" in href]) == 1
            monkeypatch.setattr(closed_keys, "SEARCH_SECONDS", -1.0)
            monkeypatch.setattr(closed_keys, "LOOKS", 1)
            late = await visitor.get(f"/keys?{world.query}&key=card")
            assert "Not all keys were searched" in late.text
