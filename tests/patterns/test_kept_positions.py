"""Positions of groups in which nobody runs: committed again as long as a processor runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from streams import DeadLetters, Retry, Streams, kept_positions
from streams.kept_positions import KeptPositions, memberless_groups
from streams.log.protocol import Committed, Log
from streams.retries import delay_topic, floor_group
from tests.conformance.stage import Stage
from tests.patterns.test_deadletters import World

pytestmark = pytest.mark.anyio

Commits = list[tuple[str, dict[int, Committed]]]


def note_commits(log: Log, monkeypatch: pytest.MonkeyPatch) -> Commits:
    """The positions that are set from now on, by group."""
    commits: Commits = []
    reset = log.reset_offsets

    def noted(group: str, topic: str, offsets: Mapping[int, Committed], **options: Any) -> None:
        reset(group, topic, offsets, **options)
        commits.append((group, dict(offsets)))

    monkeypatch.setattr(log, "reset_offsets", noted)
    return commits


async def test_which_letters_were_dealt_with_is_committed_again_as_it_stands(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(stage, partitions=1)
    async with world.app:
        await world.fail(1, 2, 3)
        await world.manager.purge(lambda letter: letter.original_message.value == 2)
        log, name = world.app.log, world.manager.name
        before = log.committed(name, name)
        commits = note_commits(log, monkeypatch)
        kept = KeptPositions(log, lambda: memberless_groups(world.app.processors))
        await asyncio.to_thread(kept.commit_again)
        assert commits == []  # somebody may be about to move them
        await asyncio.to_thread(kept.commit_again)
        assert commits == [(name, before)]

        await world.manager.purge(limit=1)
        commits.clear()
        await asyncio.to_thread(kept.commit_again)
        assert commits == []
        await asyncio.to_thread(kept.commit_again)
        assert commits == [(name, log.committed(name, name))]
        (letter,) = await world.waiting(1)
        assert letter.original_message.value == 3


@pytest.mark.needs("forgets_positions")
async def test_a_process_that_runs_processors_commits_them_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_positions, "INTERVAL", 0.05)
    world = World(stage)
    async with world.app:
        await world.fail(1)
        await world.manager.purge()
        commits = note_commits(world.app.log, monkeypatch)
        await stage.until(lambda: len(commits) > 1, "two commits by nobody's hand")
        assert {group for group, _ in commits} == {world.manager.name}


def test_which_groups_are_meant() -> None:
    app = Streams("memory://")
    orders, mails = app.topic("orders", int), app.topic("mails", int)

    @app.processor(orders, group="g", dead_letters=DeadLetters(sequenced=True))
    async def bill(value: int) -> None: ...

    @app.processor(mails, group="h", retry=Retry(in_order=False))
    async def send(value: int) -> None: ...

    delays = delay_topic("mails", "h")
    found = memberless_groups(app.processors)
    expected = {
        "orders.g.dead": "orders.g.dead",
        "orders.g.parked": "orders.g.parked",
        "mails.h.dead": "mails.h.dead",
        f"{delays}.dead": f"{delays}.dead",
        floor_group(delays): delays,
    }
    assert {group: found.get(group) for group in expected} == expected
    assert "mails.floor" not in found
