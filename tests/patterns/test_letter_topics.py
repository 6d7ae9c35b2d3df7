"""Dead letter topics with names of their own, which no command without the app can know: found by
what stands in them, over four logs."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from streams import DeadLetters, Message, Retry
from streams.patterns import ClosedKeys, DeadLetterManager
from tests.conformance.stage import QUICK, Stage
from tests.hostile.commands import Ended, command

ONCE = Retry(attempts=1)


@pytest.fixture(autouse=True)
def _only_topics_of_this_test(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a server that the whole session shares: looking at all of them takes long."""
    kind = type(stage.anchor)
    topics = kind.describe_topics
    monkeypatch.setattr(
        kind,
        "describe_topics",
        lambda log: [each for each in topics(log) if stage.topic_name in each.name],
    )


async def asked(stage: Stage, *words: str) -> Ended:
    return await asyncio.to_thread(command, stage.url, "dead", *words)


async def letters(manager: DeadLetterManager, count: int) -> None:
    for _ in range(6_000):
        if len(await manager.get_dead_letters()) == count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"there are not {count} letters")


async def closed(keys: ClosedKeys, count: int) -> None:
    for _ in range(6_000):
        if len(await keys.keys()) == count:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"there are not {count} closed keys")


async def test_letters_in_a_topic_of_another_name_are_found(stage: Stage) -> None:
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    grave, group = f"{topic.name}-grave", stage.group

    @app.processor(
        topic, group=group, retry=ONCE, flow=QUICK, dead_letters=DeadLetters(topic=grave)
    )
    async def fail(value: int) -> None:
        raise ValueError("no good")

    async with app:
        for value in range(3):
            await topic.publish(value, key=f"k{value}", id=f"m{value}")
        await letters(DeadLetterManager(app, grave), 3)

    (found,) = [
        each
        for each in json.loads((await asked(stage, "ls", "--json")).out)
        if each["dead_letters"] == grave
    ]
    assert (found["waiting"], found["total"]) == (3, 3)
    assert found["of"] == [{"group": group, "topic": topic.name}]
    shown = await asked(stage, "ls")
    assert f"{grave} " in shown.out
    assert "is given as --name: streams dead ls " in shown.err

    usual = f"{topic.name}.{group}.dead"
    for words in (["ls"], ["show"], ["retry"], ["purge", "--yes"]):
        refused = await asked(stage, words[0], group, topic.name, *words[1:])
        assert refused.status == 1
        assert refused.err == (
            f"streams: there is no dead letter topic {usual!r}; dead letters of group {group} and "
            f"topic {topic.name} are in {grave}: add --name {grave}\n"
        )

    # --name alone lists whatever stands there, and the usual options pick out of it.
    every = json.loads((await asked(stage, "ls", "--name", grave, "--json")).out)
    assert {each["id"] for each in every} == {"m0", "m1", "m2"}
    assert {each["group"] for each in every} == {group}
    some = json.loads((await asked(stage, "ls", "--name", grave, "--key", "k1", "--json")).out)
    assert [each["id"] for each in some] == ["m1"]
    wrong = await asked(stage, "ls", "--name", f"{grave}s")
    assert wrong.status == 1
    assert wrong.err.endswith(f"; did you mean {grave!r}?\n")
    other = await asked(stage, "ls", f"{group}x", topic.name, "--name", grave)
    assert f"{grave} holds dead letters of GROUP TOPIC: {group} {topic.name}\n" in other.err

    # The group's topic of the usual name may be there as well, from before the name was changed.
    stage.anchor.create_topic(usual, 1)
    empty = await asked(stage, "ls", group, topic.name)
    assert f"are in {grave}: add --name {grave}\n" in empty.err


async def test_what_only_looks_like_letters_is_none(stage: Stage) -> None:
    """Messages put back, records of closed keys, and headers that anybody can write."""
    app = stage.app()
    topic = stage.topic(app, partitions=1)
    broken = True

    @app.processor(
        topic, group=stage.group, retry=ONCE, flow=QUICK, dead_letters=DeadLetters(sequenced=True)
    )
    async def fail(value: int, message: Message[int]) -> None:
        if broken:
            raise ValueError("no good")

    async with app:
        await topic.publish(1, id="without a key")
        await topic.publish(2, key="k", id="with a key")
        await letters(DeadLetterManager(app, f"{topic.name}.{stage.group}.dead"), 1)
        await closed(ClosedKeys(app, topic, stage.group), 1)
        broken = False
        odd = {"__streams.errors.topic": "no\x1b[31m topic", "__streams.errors.group": "g"}
        await topic.publish(3, headers=odd)
    assert (await asked(stage, "retry", stage.group, topic.name, "--yes")).status == 0
    found: list[Any] = json.loads((await asked(stage, "ls", "--json")).out)
    mine = [each for each in found if each["dead_letters"].startswith(topic.name)]
    names = [each["dead_letters"] for each in mine]
    assert names == [f"{topic.name}.{stage.group}.{kind}" for kind in ("dead", "parked")]
    assert mine[0]["of"] == [{"group": stage.group, "topic": topic.name}]
