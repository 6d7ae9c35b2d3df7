"""A durable saga of five steps, killed at every one of its failpoints, forward and backward.

Whatever the instant, it is completed or fully compensated by the next life, and no step has its
effect twice when its idempotency key is honoured. The failpoints are found by a life that none of
them ends: before and after each effect, once all before it is committed, and before and after each
entry of the journal is written.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from streams import ProcessorDied, Streams
from streams.patterns.saga import SagaOrchestrator, SagaStatus
from tests.conformance.logs import MAIN_LOGS, lasting_url
from tests.conformance.stage import Stage
from tests.patterns.saga_world import STEPS, Context, Effects, Life, Nursery, World, expected

pytestmark = pytest.mark.anyio

WAYS = [pytest.param(False, id="forward"), pytest.param(True, id="backward")]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    opened = Nursery()
    yield opened
    opened.close()


@pytest.fixture
def arena(log: str, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The log of that name, under a URL of its own."""
    case = next(case for case in MAIN_LOGS if case.name == log)
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()


class Trial:
    """One saga on one log, and the lives that drive it."""

    def __init__(self, stage: Stage, nursery: Nursery, folder: Path, backward: bool) -> None:
        self.stage = stage
        self.nursery = nursery
        name = f"saga-{uuid4().hex[:8]}"
        self.life = Life(stage.url, name, "s1", str(folder / f"{name}.db"), backward)
        self.effects = Effects(self.life.effects)
        self.unsaid = 0
        """Lives that ended before they had said what became of a call."""

    def orchestrator(self, app: Streams) -> SagaOrchestrator[Context]:
        saga: SagaOrchestrator[Context] = SagaOrchestrator(
            app, self.life.name, context=Context, partitions=1
        )
        for step in STEPS:
            saga.add_step(step, _nothing, _nothing)
        return saga

    async def start(self) -> None:
        app = self.stage.app()
        saga = self.orchestrator(app)
        async with app.connected():
            await saga.start(Context(), id=self.life.id)

    async def live(self, fuse: str = "") -> None:
        """Drive the saga to its end, or to the fuse."""
        # Who is not killed must not lose its partition when it stands still for some seconds.
        url = self.life.url if fuse else lasting_url(self.life.url)
        life = replace(self.life, fuse=fuse, url=url)
        self.unsaid += fuse.startswith(("after", "unwritten"))
        if self.stage.case.crashes:
            await crashed(life) if fuse else await World(life, crash).live()
            return
        status = await asyncio.to_thread(self.nursery.live, life)
        assert status == (-signal.SIGKILL if fuse else 0), f"fuse {fuse!r}"

    async def check(self) -> None:
        """It ended well, every effect was had, in order, and none but these."""
        assert self.effects.keys == expected(self.life)
        calls = self.effects.calls
        # The failing step has no effect, and is called as well. What became of a call is asked
        # once: only what nobody said is asked again.
        assert len(calls) == len(expected(self.life)) + self.life.backward + self.unsaid
        status = await self.status()
        assert status.status == ("compensated" if self.life.backward else "completed")
        done = list(STEPS[:-1] if self.life.backward else STEPS)
        assert status.context.did == done
        assert status.context.undid == (done[::-1] if self.life.backward else [])

    async def status(self) -> SagaStatus[Context]:
        app = self.stage.app()
        saga = self.orchestrator(app)
        async with app.connected():
            return await saga.status(self.life.id)


async def _nothing(context: Context) -> None:
    return None


def crash(world: World) -> None:
    """Where one process is the whole world, its member of the group crashes."""
    (processor,) = world.app.processors
    assert processor.poller is not None
    processor.poller._subscription.crash()  # type: ignore[union-attr]


async def crashed(life: Life) -> None:
    world = World(life, crash)
    with pytest.raises(ProcessorDied, match="crashed by a test"):
        await world.live()
    assert world.dead


async def killed(trial: Trial, failpoint: str) -> None:
    """Killed there, the saga is ended by the next life."""
    await trial.start()
    await trial.live(failpoint)
    await trial.live()
    await trial.check()


async def failpoints(trial: Trial) -> list[str]:
    """All that a saga comes by when nothing happens to it."""
    await trial.start()
    await trial.live()
    await trial.check()
    found = trial.effects.failpoints
    assert len(set(found)) == len(found)
    return found


# On a file every run kills one saga at each of them in turn, see below.
@pytest.mark.parametrize("log", ["memory", pytest.param("sqlite", marks=pytest.mark.faults)])
@pytest.mark.parametrize("backward", WAYS)
async def test_killed_at_every_failpoint(
    arena: Stage, nursery: Nursery, tmp_path: Path, backward: bool
) -> None:
    every = await failpoints(Trial(arena, nursery, tmp_path, backward))
    steps, undone = (len(STEPS), len(STEPS) - 1) if backward else (len(STEPS), 0)
    assert len(every) == 5 * (steps + undone) - backward  # a step that fails has no "after"
    if arena.case.crashes:
        # Side by side: in memory the next life waits until the lease of the crashed one is over.
        await asyncio.gather(
            *(killed(Trial(arena, nursery, tmp_path, backward), each) for each in every)
        )
        return
    for each in every:
        await killed(Trial(arena, nursery, tmp_path, backward), each)


@pytest.mark.parametrize("log", ["sqlite"])
@pytest.mark.parametrize("backward", WAYS)
async def test_one_saga_killed_at_every_failpoint_in_turn(
    arena: Stage, nursery: Nursery, tmp_path: Path, backward: bool
) -> None:
    every = await failpoints(Trial(arena, nursery, tmp_path, backward))
    trial = Trial(arena, nursery, tmp_path, backward)
    await trial.start()
    for failpoint in every:
        await trial.live(failpoint)
    await trial.live()
    await trial.check()
    assert trial.effects.failpoints.count(every[-1]) == 1


@pytest.mark.parametrize("log", ["kafka", "redis"])
@pytest.mark.parametrize(
    ("backward", "failpoint"),
    [(False, "after do three"), (True, "written entry 6 (compensating)")],
    ids=["forward", "backward"],
)
@pytest.mark.short_lease
async def test_killed_on_a_server(
    arena: Stage, nursery: Nursery, tmp_path: Path, backward: bool, failpoint: str
) -> None:
    await killed(Trial(arena, nursery, tmp_path, backward), failpoint)


@pytest.mark.short_lease
@pytest.mark.parametrize("log", ["kafka", "redis"])
@pytest.mark.faults
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backward", WAYS)
async def test_killed_at_every_failpoint_on_a_server(
    arena: Stage, nursery: Nursery, tmp_path: Path, backward: bool
) -> None:
    for failpoint in await failpoints(Trial(arena, nursery, tmp_path, backward)):
        await killed(Trial(arena, nursery, tmp_path, backward), failpoint)
