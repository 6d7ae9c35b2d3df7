"""A process manager killed at every step, and standing still while its successor goes on.

Its instance comes by all there is: a command that is refused, another that it tries instead, one
that comes to nothing, a timeout that comes, one that is cancelled, and the end. Whatever happens to
the process, each command has had its effect once, a refusal has stayed one (the purse that was too
poor is rich in the meantime), and each timeout came once or never.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from streams.eventsourcing.managers.reactions import Reacted
from tests.conformance.stage import Stage
from tests.eventsourcing.conftest import HISTORIES
from tests.managers import world as worlds
from tests.managers.purses import (
    RESERVE,
    GivenBack,
    Noticed,
    Opened,
    Order,
    Taken,
    Transfer,
    World,
)
from tests.managers.world import COMMITS, TRANSFER, Life
from tests.patterns.saga_world import ROOT, Nursery
from tests.servers.lifetime import until

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    opened = Nursery(worlds.__name__)
    yield opened
    opened.close()


@pytest.fixture
def arena(log: str, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The log of that name, under a URL of its own."""
    case = next(case for case in HISTORIES if case.name == log)
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()


REFUSED = "-purses.events ada -transfers/t1/1.1 after"
"""It is recorded that the purse was too poor, and nobody knows yet."""


class Trial:
    """One transfer on one log, and the lives that carry it out."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.life = Life(stage.url, f"m-{uuid4().hex[:8]}", str(folder / "failpoints"))

    def world(self) -> World:
        return World(self.stage.app(), self.life.name)

    async def start(self) -> None:
        world = self.world()
        async with world.app.connected():
            await world.open(ada=10, reserve=50)
            await world.purses.append("ada", Noticed("t0"), expected="any")
            await world.orders.publish(Order(TRANSFER, "ada", "nobody", 40))

    async def make_rich(self) -> None:
        """From now on what was refused would not be."""
        world = self.world()
        async with world.app.connected():
            if len(await world.events("ada")) == 2:
                await world.purses.append("ada", Opened(1_000), expected="any")

    async def check(self) -> None:
        world = self.world()
        async with world.app.connected():
            ada = await world.events("ada")
            assert [each for each in ada if not isinstance(each, Opened)] == [Noticed("t0")]
            taken, back = Taken(TRANSFER, 40), GivenBack(TRANSFER, 40)
            assert await world.events(RESERVE) == [Opened(50), taken, back]
            assert await world.events("nobody") == []
            found = await world.transfers.load(TRANSFER)
            assert found.state == Transfer(TRANSFER, RESERVE, "nobody", 40, tries=1)
            assert found.is_closed
            instances = world.transfers._instances
            reacted = [each.event async for each in instances.read(TRANSFER)]
            assert [_what(each) for each in reacted] == [
                "order", "take", "purses", "give", "try-again", "give", "purses",
            ]  # fmt: skip


def _what(reacted: Reacted) -> str:
    first, *_, last = reacted.to.split()
    if first in ("refused", "timeout"):
        return last
    return first.removesuffix(".events").rpartition("-")[2].replace("orders", "order")


async def killed(trial: Trial, nursery: Nursery, fuse: str) -> bool:
    """Live a life; whether it was killed."""
    status = await asyncio.to_thread(nursery.live, replace(trial.life, fuse=fuse))
    assert status in (0, -signal.SIGKILL)
    return status != 0


@pytest.mark.parametrize(
    "log",
    ["sqlite"]
    + [
        pytest.param(log, marks=[pytest.mark.faults, pytest.mark.timeout(3000)])
        for log in ("redis", "kafka")  # each of some fifty lives joins its groups anew
    ],
)
async def test_killed_at_every_failpoint_in_turn(
    arena: Stage, nursery: Nursery, tmp_path: Path
) -> None:
    trial = Trial(arena, tmp_path)
    await trial.start()
    kills = 0
    while await killed(trial, nursery, "*"):
        kills += 1
        if REFUSED in trial.life.passed():
            await trial.make_rich()
    await trial.check()
    assert kills == len(trial.life.passed())
    assert kills > 40
    kinds = {(words[0], words[-1]) for words in map(str.split, trial.life.passed())}
    assert {(each, when) for each in COMMITS for when in ("before", "after")} <= kinds


@pytest.mark.parametrize("log", ["redis", "kafka"])
async def test_killed_on_a_server(arena: Stage, nursery: Nursery, tmp_path: Path) -> None:
    trial = Trial(arena, tmp_path)
    await trial.start()
    fuses = [
        REFUSED,
        "-transfers.events t1 version 4 before",
        "-purses.events reserve -transfers/t1/6.1 after",  # given back, and not told
    ]
    for fuse in fuses[:1] if "kafka" in arena.url else fuses:  # its members start slowly
        assert await killed(trial, nursery, fuse), trial.life.passed()
        await trial.make_rich()
    assert not await killed(trial, nursery, "")
    await trial.check()


REFUSING = "-purses.events ada -transfers/t1/1.1 before"
NOTHING = "-purses.events ada -transfers/t1/2.0= before"
TAKING = "-purses.events reserve -transfers/t1/2.1 before"


@pytest.mark.short_lease
@pytest.mark.parametrize(
    ("log", "fuse"),
    [
        ("sqlite", REFUSING),
        ("sqlite", NOTHING),
        ("sqlite", TAKING),
        ("redis", REFUSING),
        pytest.param("kafka", TAKING, marks=pytest.mark.faults),
    ],
)
async def test_it_stands_still_while_its_successor_goes_on(
    arena: Stage, nursery: Nursery, tmp_path: Path, fuse: str
) -> None:
    trial = Trial(arena, tmp_path)
    if "sqlite" in arena.url:
        trial.life = replace(trial.life, url=f"{arena.url}?lease=1")
    await trial.start()
    life = replace(trial.life, fuse=fuse, freezes=True)
    process = started(life)
    try:
        await asyncio.to_thread(until, lambda: _stands_still(process), 60, "it stands still")
        if fuse != REFUSING:
            await trial.make_rich()
        assert not await killed(trial, nursery, "")
        await trial.make_rich()
        process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(process.wait, 60)  # fenced, or done: either is well
        await trial.check()
    finally:
        process.kill()
        process.wait()


def started(life: Life) -> subprocess.Popen[bytes]:
    paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(worlds.words(life), cwd=ROOT, env=environment)


def _stands_still(process: subprocess.Popen[bytes]) -> bool:
    states = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
    found = os.waitid(os.P_PID, process.pid, states)
    assert found is None or found.si_code == os.CLD_STOPPED, "it ended by itself"
    return found is not None
