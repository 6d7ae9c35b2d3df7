"""A view is the fold of its history up to its checkpoint, exactly, whatever is killed.

Processes fold two views under load: one by the messages' keys, and one by other keys, which goes
through a topic of its own. They are killed, frozen beyond their leases and continued, and come and
go; connections are cut, and the server is killed. All the while somebody looks at the documents.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from streams import ViewNotReady, ViewTimeout
from streams.errors import LogError
from tests.faults.folding import GROUPS, KEYS, PARTITIONS, Checker, Folding, Model
from tests.faults.ground import Ground
from tests.faults.sizes import SEED, sizes

logger = logging.getLogger("tests.faults")

WORKERS = 2
PATIENCE = 240.0


class Size(NamedTuple):
    """How much happens in a run.

    :param numbers: that are published.
    :param frozen: seconds that a frozen process stands still.
    """

    numbers: int
    kills: int
    freezes: int
    frozen: float
    restarts: int = 0
    cuts: int = 0


SHORT = Size(1_200, 4, 1, 0.0)
SHORT_ON_REDIS = Size(1_200, 3, 1, 2.5, restarts=1, cuts=2)
SHORT_ON_KAFKA = Size(1_200, 2, 1, 0.0)
LONG = Size(40_000, 20, 5, 15.0)
LONG_ON_SERVER = LONG._replace(restarts=3, cuts=20)


class Processes:
    """The processes that fold."""

    def __init__(self, folder: Path, url: str, name: str) -> None:
        self._command = [sys.executable, "-m", "tests.faults.folding", url, name]
        self._log = (folder / "folding.log").open("ab")
        self._running: list[subprocess.Popen[bytes]] = []
        self._frozen: list[subprocess.Popen[bytes]] = []
        self.random = random.Random(SEED)

    def start(self) -> None:
        self._running.append(subprocess.Popen(self._command, stdout=self._log, stderr=self._log))

    def kill_one(self) -> None:
        """One is killed, and another starts."""
        victim = self._running.pop(self.random.randrange(len(self._running)))
        victim.kill()
        victim.wait()
        self.start()

    async def freeze_one(self, seconds: float) -> None:
        """One stands still; its successor goes on; then it goes on itself."""
        victim = self.random.choice(self._running)
        victim.send_signal(signal.SIGSTOP)
        self.start()
        await asyncio.sleep(seconds)
        victim.send_signal(signal.SIGCONT)

    def check_alive(self) -> None:
        for each in self._running:
            assert each.poll() is None, f"a process has ended with {each.returncode}"

    def close(self) -> None:
        for each in self._running:
            each.send_signal(signal.SIGCONT)
            each.kill()
            each.wait()
        self._log.close()


async def run(folder: Path, url: str, direct: str, size: Size, ground: Ground | None) -> None:
    name = f"numbers-{uuid4().hex[:8]}"
    looks = Folding(direct, name)
    processes = Processes(folder, url, name)
    async with looks.app.connected():
        checker = Checker(looks.app.log, Model(looks.app.log, name))
        for _ in range(WORKERS):
            processes.start()
        try:
            await asyncio.wait_for(
                _break_things(looks, checker, processes, size, ground), PATIENCE * 10
            )
            await _finish(looks, checker)
            processes.check_alive()
        finally:
            processes.close()
    logger.warning(
        "%s, seed %d: %d numbers, %d looks, of which %d saw another checkpoint",
        url.partition(":")[0], SEED, size.numbers, checker.looks, checker.moved,
    )  # fmt: skip
    assert checker.moved > 10


async def _break_things(
    looks: Folding, checker: Checker, processes: Processes, size: Size, ground: Ground | None
) -> None:
    await looks.by_key.ready()
    await looks.by_group.ready()
    faults = ["kill"] * size.kills + ["freeze"] * size.freezes
    if ground is not None:
        faults += ["restart"] * size.restarts + ["cut"] * size.cuts
    processes.random.shuffle(faults)
    share = size.numbers // (len(faults) + 1)
    published = 0
    for fault in [*faults, ""]:
        until = size.numbers if not fault else published + share
        while published < until:
            count = min(20, until - published)
            for number in range(published, published + count):
                await _publish(looks, number)
            published += count
            await asyncio.to_thread(_look, checker)
        if fault == "kill":
            processes.kill_one()
        elif fault == "freeze":
            await processes.freeze_one(size.frozen)
        elif ground is not None and fault == "cut":
            ground.proxy.cut()
        elif ground is not None and fault == "restart":
            ground.server.kill()
            ground.server.restart()


async def _publish(looks: Folding, number: int) -> None:
    """Publish until it stands; twice does no harm, as the model reads the log."""
    while True:
        try:
            await looks.topic.publish(number)
            return
        except LogError:
            await asyncio.sleep(0.05)


def _look(checker: Checker) -> None:
    try:
        checker.look()
    except LogError as error:  # the server is gone for a moment
        logger.info("not looked at: %s", error)


async def _finish(looks: Folding, checker: Checker) -> None:
    """All is folded in the end."""
    log, name = looks.app.log, looks.topic.name
    for partition in range(PARTITIONS):
        messages = checker._model.messages(partition)
        if not messages:
            continue
        token = f"{name}/{partition}/{log.format_offset(messages[-1][0])}"
        for view, keys in ((looks.by_key, KEYS), (looks.by_group, GROUPS)):
            for key in keys:
                await _get(view, key, token)
    checker.look()
    numbers = sum(len(checker._model.messages(partition)) for partition in range(PARTITIONS))
    counted = {
        view.name: sum(
            count
            for document in (await view.get_many(keys)).values()
            for _, (count, _) in document.of
        )
        for view, keys in ((looks.by_key, KEYS), (looks.by_group, GROUPS))
    }
    without_group = sum(
        number % 13 == 0
        for partition in range(PARTITIONS)
        for _, _, number in checker._model.messages(partition)
    )
    assert counted == {
        looks.by_key.name: numbers,
        looks.by_group.name: numbers - without_group,
    }


async def _get(view: object, key: str, token: str) -> None:
    while True:
        try:
            await view.get(key, wait_for=token, timeout=PATIENCE)  # type: ignore[attr-defined]
            return
        except ViewTimeout:
            raise
        except (LogError, ViewNotReady):
            await asyncio.sleep(0.05)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "size",
    [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.faults)],
)
async def test_views_on_sqlite(tmp_path: Path, size: Size) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    await run(tmp_path, url, url, size, None)


@sizes(SHORT_ON_REDIS, LONG_ON_SERVER, logs=["redis"], long_logs=["redis"], seconds=3000)
async def test_views_on_redis(ground: Ground, size: Size, tmp_path: Path) -> None:
    await run(tmp_path, ground.through, ground.direct, size, ground)


@sizes(SHORT_ON_KAFKA, LONG_ON_SERVER, logs=["kafka"], long_logs=["kafka"], seconds=3000)
async def test_views_on_kafka(ground: Ground, size: Size, tmp_path: Path) -> None:
    await run(tmp_path, ground.through, ground.direct, size, ground)
