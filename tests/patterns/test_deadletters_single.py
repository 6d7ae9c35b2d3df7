"""Single dead letters, filters, edited ones, and where a letter came from: over four logs, in code
and on the command line."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streams import (
    DeadLetters,
    InvalidValue,
    Message,
    NotFound,
    Retry,
)
from streams.derived_records import EDITED, FIRST_ERROR, FIRST_FAILED, ORIGIN
from streams.message import Position
from streams.patterns import ClosedKeys, DeadLetter, DeadLetterManager
from streams.patterns.deadletters import redriving
from tests.conformance.stage import QUICK, Stage
from tests.hostile.commands import Ended, command

ROOT = Path(__file__).parents[2]
ONCE = Retry(attempts=1)


class World:
    """A processor that fails as it is told to, and the manager of its dead letters."""

    def __init__(self, stage: Stage, **options: Any) -> None:
        self.stage = stage
        self.why: str | None = "no good"
        """What a handler's error says; None: it does not fail."""
        self.app = stage.app()
        self.topic = stage.topic(self.app, partitions=2)
        options.setdefault("retry", ONCE)
        self.app.processor(self.topic, group=stage.group, flow=QUICK, **options)(
            stage.recorder(self.act)
        )
        self.manager = DeadLetterManager(self.app, f"{self.topic.name}.{stage.group}.dead")

    def act(self, value: int, message: Message[int]) -> None:
        if self.why is not None and value < 1000:
            raise ValueError(f"{value}: {self.why}")

    async def fail(self, *values: int, **options: Any) -> list[Any]:
        """Let these fail; where they stand in the topic."""
        before = len(await self.manager.get_dead_letters(1_000, everything=True))
        positions = [await self.topic.publish(value, id=f"m{value}", **options) for value in values]
        await self.letters(before + len(values), everything=True)
        return positions

    async def letters(self, count: int, **options: Any) -> list[DeadLetter]:
        """Wait until there are so many letters."""
        found: list[DeadLetter] = []
        for _ in range(6_000):
            found = await self.manager.get_dead_letters(1_000, **options)
            if len(found) == count:
                return found
            await asyncio.sleep(0.005)
        raise AssertionError(f"there are {len(found)} letters, not {count}")

    async def command(self, *words: str) -> Ended:
        """Run ``streams dead``, for this group and topic."""
        first, *rest = words
        place = (self.stage.group, self.topic.name)
        return await asyncio.to_thread(command, self.stage.url, "dead", first, *place, *rest)


def places(stage: Stage, letter: DeadLetter) -> str:
    """A letter's own place, as the command line has it."""
    return f"{letter.position.partition}/{stage.anchor.format_offset(letter.position.offset)}"


async def test_single_ones_are_put_back_and_set_aside(stage: Stage) -> None:
    world = World(stage)
    manager = world.manager
    async with world.app:
        assert await manager.count() == 0
        await world.fail(*range(8))
        found = {letter.id: letter for letter in await world.letters(8)}
        world.why = None
        chosen: list[Any] = [found["m0"], found["m1"].position, "m2", places(stage, found["m3"])]
        missing = (*chosen, "nobody")
        with pytest.raises(NotFound, match="there is no letter 'nobody'"):
            await manager.reprocess(only=missing)
        assert await manager.count() == 8  # nothing was put back
        assert await manager.reprocess(only=chosen) == 4
        assert await manager.purge(only=found["m4"]) == 1
        for gone in (found["m0"], "m2", places(stage, found["m4"])):
            with pytest.raises(NotFound, match="put back or set aside already"):
                await manager.reprocess(only=gone)
        assert await manager.count() == 3
        assert await manager.count(lambda letter: letter.id == "m7") == 1
        assert await manager.reprocess(filter=lambda letter: letter.id > "m5", only="m5") == 0
        await stage.handled(4)
        await stage.committed(world.app)
        assert sorted(stage.seen.values) == [0, 1, 2, 3]
        assert {letter.id for letter in await manager.get_dead_letters()} == {"m5", "m6", "m7"}
        elsewhere = Position(world.topic.name, 0, 1)
        with pytest.raises(InvalidValue, match="not a position in"):
            await manager.purge(only=elsewhere)
        number: Any = 7
        with pytest.raises(InvalidValue, match="a int names no letter"):
            await manager.purge(only=number)


@pytest.mark.parametrize("retry", [ONCE, Retry(2, in_order=False)], ids=["once", "loose"])
async def test_it_shows_where_it_came_from_however_often_it_is_put_back(
    stage: Stage, retry: Retry
) -> None:
    world = World(stage, retry=Retry(retry.attempts, delay=0.001, in_order=retry.in_order))
    show = stage.anchor.format_offset
    async with world.app:
        (position,) = await world.fail(7, key="k")
        (letter,) = await world.letters(1)
        first = letter
        for redrives in range(3):
            assert (letter.redrives >= redrives, letter.edited) == (True, False)
            assert letter.origin is not None
            assert letter.origin[:2] == position[:2]
            assert show(letter.origin.offset) == show(position.offset)
            assert (letter.first_error, letter.first_failed_at) == (first.error, first.failed_at)
            assert letter.queue == world.topic.name
            world.why = f"again {redrives}"
            assert await world.manager.reprocess(only=letter) == 1
            (letter,) = await world.letters(1)
            assert letter.error == f"ValueError: 7: again {redrives}"
        (shown,) = (await world.command("ls", "--json")).documents[0]
        assert shown["origin"] == f"{position.topic}/{position.partition}/{show(position.offset)}"
        assert shown["first_error"] == "ValueError: 7: no good"
        assert shown["error"] == "ValueError: 7: again 2"


async def test_any_letter_can_be_edited(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        (position, *_) = await world.fail(1, 2, 3, key="k")
        by_id = {letter.id: letter for letter in await world.letters(3)}
        with pytest.raises(NotFound, match="there is no letter"):
            await world.manager.edit("nobody", 1)
        with pytest.raises(ValueError):  # it does not fit the topic's type
            await world.manager.edit("m1", "many")
        await world.manager.edit(by_id["m1"], 999)  # fails as well
        await world.letters(3)
        again = next(each for each in await world.letters(3) if each.redrives)
        assert (again.original_message.value, again.id, again.key) == (999, "m1", "k")
        assert (again.edited, again.first_error) == (True, "ValueError: 1: no good")
        assert again.origin is not None
        assert again.origin[:2] == position[:2]
        await world.manager.edit("m1", b"1001")
        await world.manager.edit(by_id["m2"].position, b"1002")
        await stage.handled(2)
        with pytest.raises(NotFound, match="already"):
            await world.manager.edit("m2", 2)
        assert stage.seen.values == [1001, 1002]  # in the order in which they were put back
        assert [letter.id for letter in await world.manager.get_dead_letters()] == ["m3"]
        back = world.app.topic(f"{world.topic.name}.{stage.group}.retry", int)
        again_all = await asyncio.to_thread(lambda: list(back.read()))
    for message in again_all:
        assert message.headers[EDITED] == "1"
        assert {ORIGIN, FIRST_ERROR, FIRST_FAILED} <= set(message.headers)


@pytest.mark.needs("processes")
async def test_an_edit_that_was_killed_can_be_made_again_and_is_handled_once(
    stage: Stage,
) -> None:
    world = World(stage)
    async with world.app:
        await world.fail(1, 2, key="k")
    words = [stage.url, world.manager.name, stage.topic_name, "500", "1"]
    for when in ("before", "after"):
        child = [
            sys.executable,
            "-m",
            "tests.patterns.deadletters_child",
            *words,
            when,
            "m1",
            "1001",
        ]
        done = await asyncio.to_thread(
            subprocess.run, child, cwd=ROOT, stderr=subprocess.PIPE, timeout=500, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    app = stage.app()
    topic = stage.topic(app, partitions=2)
    app.processor(topic, group=stage.group, flow=QUICK)(stage.recorder())
    manager = DeadLetterManager(app, world.manager.name)
    before = len(stage.seen.values)
    async with app:
        assert {letter.id for letter in await manager.get_dead_letters()} == {"m1", "m2"}
        await manager.edit("m1", b"1001")
        await manager.edit("m2", b"1002")
        retry = f"{topic.name}.{stage.group}.retry"
        end = (await asyncio.to_thread(app.log.watermarks, retry, 0))[1]
        await stage.until(lambda: stage.places(app, retry)[0].position >= end, "all settled")
    assert stage.seen.values[before:] == [1001, 1002]


async def test_a_closed_key_shows_where_it_came_from_and_stays_in_order(stage: Stage) -> None:
    world = World(stage, dead_letters=DeadLetters(sequenced=True))
    closed = ClosedKeys(world.app, world.topic, stage.group)

    async def one(error: str, **more: Any) -> Any:
        for _ in range(6_000):
            for key in await closed.keys():
                if key.dead and key.letter.error == error and key.parked == 2:
                    return key.letter
            await asyncio.sleep(0.005)
        raise AssertionError([each.letter.error for each in await closed.keys()])

    async with world.app:
        (position, *_) = [
            await world.topic.publish(n, key="k", id=f"m{n}") for n in (1, 1002, 1003)
        ]
        first = await one("ValueError: 1: no good")
        world.why = "again"
        found = await world.command("retry", "--keys", "--error", "no such error", "--json")
        assert found.documents[0]["retried"] == 0
        found = await world.command("retry", "--keys", "--error", "NO GOOD", "--yes", "--json")
        assert found.documents[0]["retried"] == 1
        again = await one("ValueError: 1: again")
        assert (again.first_error, again.first_failed_at) == (first.error, first.failed_at)
        assert again.origin is not None
        assert again.origin[:2] == position[:2]
        assert (await world.command("edit", "k", "--value", "2")).status == 0
        edited = await one("ValueError: 2: again")
        assert (edited.edited, edited.first_error) == (True, first.error)
        assert (await world.command("edit", "--key", "k", "--value", "1001")).status == 0
        await stage.handled(3)
        assert stage.seen.values == [1001, 1002, 1003]
        refused = await world.command("retry", "--key", "k")
        assert (refused.status, "not closed" in refused.err) == (1, True)


async def test_the_command_line_picks_out_counts_and_edits(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world = World(stage)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.delenv("EDITOR", raising=False)
    async with world.app:
        await world.fail(1, 2, 3, key="a")
        world.why = "Timeout of the bank"
        await world.fail(4, 5, 6, key="b")
        world.why = None
        listed = (await world.command("ls", "--error", "timeout", "--json")).documents[0]
        assert {each["id"] for each in listed} == {"m4", "m5", "m6"}
        for words, count in (
            (["--key", "a"], 3),
            (["--key", "a", "--key", "b"], 6),
            (["--error", "valueerror"], 6),
            (["--since", "1h"], 6),
            (["--until", "1h"], 0),
            (["--until", "2999-01-01T00:00Z", "--key", "b", "--error", "bank"], 3),
            (["--error", "bank", "-n", "1"], 1),
            ([], 6),
            (["m1", "m4"], 2),
        ):
            for verb in ("retry", "purge"):
                found = await world.command(verb, *words, "--dry-run", "--json")
                assert found.documents[0]["matching"] == count, (words, found)
        assert await world.manager.count() == 6
        unasked = await world.command("retry", "--error", "bank")
        assert (unasked.status, "3 dead letters" in unasked.err, "--yes" in unasked.err) == (
            2,
            True,
            True,
        )
        assert await world.manager.count() == 6

        place = next(each["place"] for each in listed if each["id"] == "m5")
        done = await world.command("retry", place, "m4", "--json")
        assert done.documents[0]["retried"] == 2
        refused = await world.command("retry", place, "m6")
        assert (refused.status, "already" in refused.err) == (1, True)
        done = await world.command("purge", "--error", "bank", "--yes", "--json")
        assert done.documents[0]["purged"] == 1
        await stage.handled(2)

        for words, status, said in (
            (["m1"], 2, "EDITOR"),
            (["m1", "--value", "1", "-f", "x"], 2, "not both"),
            (["--value", "1"], 2, "WHICH or --key"),
            (["nobody", "--value", "1"], 1, "no letter"),
        ):
            refused = await world.command("edit", *words)
            assert (refused.status, said in refused.err) == (status, True), refused
        monkeypatch.setenv("EDITOR", "true")
        unchanged = await world.command("edit", "m1")
        assert (unchanged.status, "not changed" in unchanged.err) == (1, True)
        monkeypatch.setenv("EDITOR", "false")
        assert (await world.command("edit", "m1")).status == 1
        monkeypatch.setenv("EDITOR", "sh -c 'echo 1001 > $0'")  # ends the file with a line break
        assert (await world.command("edit", "m1", "--json")).documents[0]["edited"] == 1
        (tmp_path / "value").write_bytes(b"1002")
        assert (await world.command("edit", "m2", "-f", str(tmp_path / "value"))).status == 0
        await stage.handled(4)
        assert stage.seen.values[2:] == [1001, 1002]
        assert [each.id for each in await world.manager.get_dead_letters()] == ["m3"]


async def test_a_message_that_fails_under_one_id_twice_is_named_by_its_position(
    stage: Stage,
) -> None:
    world = World(stage)
    async with world.app:
        await world.manager.move_to_dead_letter(
            Message(1, id="twice"), "one", world.topic, group=stage.group
        )
        other = await world.manager.move_to_dead_letter(
            Message(2, id="twice"), "two", world.topic, group=stage.group
        )
        if await world.manager.count() == 1:
            return  # this log keeps one record of an ID
        with pytest.raises(InvalidValue, match="by its position"):
            await world.manager.edit("twice", 1001)
        refused = await world.command("edit", "twice", "--value", "1001")
        assert (refused.status, "PARTITION/OFFSET" in refused.err) == (1, True)
        await world.manager.edit(other, 1002)
        assert await world.manager.reprocess(only="twice") == 1


async def test_what_fails_after_it_was_counted_is_not_touched(stage: Stage) -> None:
    world = World(stage)
    async with world.app:
        await world.fail(1, 2, 3)
        letters = redriving.DeadLetterTopic(stage.anchor, world.manager.name)
        chosen = await asyncio.to_thread(letters.select, lambda row: True)
        assert chosen.count == 3
        await world.fail(4, 5)

        def purge() -> int:
            return letters.purge(matches=chosen.matches, end_offsets=chosen.end_offsets)

        assert await asyncio.to_thread(purge) == 3
        assert {each.id for each in await world.manager.get_dead_letters()} == {"m4", "m5"}
