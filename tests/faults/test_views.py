"""Views while their processes are killed, frozen and rebalanced, and servers are restarted: at
every moment, and at the end, documents are the fold of the history up to their checkpoint."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from streams.errors import LogError, Unavailable
from streams.eventsourcing.views.keyed_topic import trimmed_below
from streams.eventsourcing.views.version import document_store
from streams.log.protocol import Log
from streams.log.url import open_log
from tests.faults.decider import PARTITIONS
from tests.faults.ground import Ground
from tests.faults.sizes import SEED, sizes
from tests.faults.views import (
    Look,
    Views,
    decide_until,
    declare_views,
    differences,
    fold_until,
    look_at,
    read_events,
    run_process,
)

logger = logging.getLogger("tests.faults")

FOLDERS = 3
"""Processes that fold at the same time."""

STALLED = 90.0
"""Seconds after which a run has failed in which nothing is folded any more."""

PROBE = "probe"
"""A collection that is written to see whether any can be."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.faults.views", "streams.log.sqlite", "streams.log.redis", "streams.log.kafka"]
)


class Size(NamedTuple):
    """How much happens in a run.

    :param kills: of processes that fold.
    :param freezes: of others, each beyond its lease.
    :param moves: how often one leaves and another comes.
    :param restarts: of the server, after a ``kill -9``.
    :param pause: seconds between two decisions.
    """

    kills: int
    freezes: int
    moves: int
    restarts: int = 0
    pause: float = 0.002


SHORT = Size(3, 1, 1)
SHORT_ON_REDIS = SHORT._replace(restarts=1)
LONG = Size(20, 5, 5)
LONG_ON_SERVER = LONG._replace(restarts=3)


class Folders:
    """The processes of one run. A context manager: nothing is left running."""

    def __init__(self, url: str, name: str, lease: float) -> None:
        self.url = url
        self.name = name
        self._lease = lease
        self.random = Random(SEED)
        self.running: list[BaseProcess] = []
        self._all: list[BaseProcess] = []

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *exc: object) -> None:
        for each in self._all:
            each.kill()
        for each in self._all:
            each.join()

    def start(self, work: Callable[..., Any], *given: Any) -> BaseProcess:
        """One more process."""
        process = _context.Process(target=run_process, args=(work, self.url, self.name, *given))
        process.start()
        self._all.append(process)
        return process

    def fold(self) -> None:
        """One more that folds."""
        self.running.append(self.start(fold_until))

    def kill_one(self) -> None:
        """``kill -9``, and another in its place."""
        victim = self.running.pop(self.random.randrange(len(self.running)))
        victim.kill()
        victim.join()
        self.fold()

    def move_one(self) -> None:
        """One leaves in peace, another comes."""
        victim = self.running.pop(0)
        victim.terminate()
        victim.join(60)
        assert victim.exitcode in (0, -signal.SIGTERM), victim.exitcode
        self.fold()

    async def freeze_one(self, folded_on: Callable[[], Any]) -> None:
        """SIGSTOP one for longer than its lease, and until the others have folded on; then
        SIGCONT."""
        frozen = self.random.choice(self.running)
        assert frozen.pid is not None
        os.kill(frozen.pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._lease * 1.5)  # what is tested is what follows a lease's end
            await folded_on()
        finally:
            os.kill(frozen.pid, signal.SIGCONT)

    def check(self) -> None:
        """None has ended by itself."""
        for each in self.running:
            assert each.exitcode is None, f"a process that folds ended by itself: {each.exitcode}"


class Judge:
    """Looks at the documents again and again, and holds each look against the history."""

    def __init__(self, log: Log, views: Views) -> None:
        self._log = log
        self._views = views
        self._kept: list[Look] = []
        self.looks = 0
        self.wrong: list[str] = []

    async def look(self) -> dict[tuple[str, int], int]:
        """Look once more; how far each partition is folded. Empty while the log cannot be
        reached."""
        try:
            found = await asyncio.to_thread(lambda: list(look_at(self._log, self._views)))
        except LogError:
            return {}
        self._kept += found
        self.looks += len(found)
        if len(self._kept) > 400:
            await self.judge()
        return {(each.collection, each.partition): each.position for each in found}

    async def judge(self) -> None:
        """Hold what was looked at against the history."""
        kept, self._kept = self._kept, []
        try:
            history = await read_events(self._views)
        except LogError:
            self._kept = kept
            return
        for each in kept:
            self.wrong += differences(each, self._views, history, PARTITIONS)
        assert self.wrong == []

    async def _is_locked(self) -> bool:
        """Whether nobody can write: a process that stands still amid a transaction of SQLite's
        keeps all others from writing the file until it goes on."""
        store = document_store(self._log, "test")

        def write() -> None:
            store.create(PROBE, 1)
            store.claim(PROBE, 0).close()

        try:
            await asyncio.to_thread(write)
        except Unavailable:
            return True
        return False

    async def until_folded_on(
        self, folders: Folders, partitions: int, *, or_locked: bool = False
    ) -> None:
        """Until so many partitions of the views are folded further than now."""
        before: dict[tuple[str, int], int] = {}
        ends = time.monotonic() + STALLED
        while True:
            folders.check()
            now = await self.look()
            for each, position in now.items():
                before.setdefault(each, position)
            moved = sum(position > before[each] for each, position in now.items())
            if now and moved >= partitions:
                return
            if or_locked and await self._is_locked():
                return
            assert time.monotonic() < ends, f"nothing is folded on any more: {now}"
            await asyncio.sleep(0.02)

    async def until_all_is_folded(self, folders: Folders) -> int:
        """Until both views have folded the whole history; how many events that are."""
        ends = time.monotonic() + STALLED
        history = await read_events(self._views)
        last: dict[int, int] = {}
        for each in history:
            last[each.partition] = each.offset
        topic = self._views.accounts.events.name
        while True:
            folders.check()
            looks = [] if not await self.look() else self._kept[-2 * PARTITIONS :]
            direct = {
                each.partition: each.position
                for each in looks
                if each.collection.startswith(self._views.by_account.name)
            }
            expected = await self._views.by_group.progress()
            if all(direct.get(number, 0) > offset for number, offset in last.items()) and (
                expected.folded == expected.total
            ):
                return len(history)
            assert time.monotonic() < ends, f"{topic}: not all is folded: {direct}, {expected}"
            await asyncio.sleep(0.05)


async def prove(url: str, direct: str, size: Size, lease: float, ground: Ground | None) -> None:
    name = f"bank-{uuid4().hex[:8]}"
    views = declare_views(direct, name)
    log = open_log(direct)
    began = time.monotonic()
    try:
        with Folders(url, name, lease) as folders:
            for _ in range(FOLDERS):
                folders.fold()
            decider = folders.start(decide_until, size.pause, None)
            async with views.app.connected():
                judge = Judge(log, views)
                await judge.until_folded_on(folders, PARTITIONS)
                faults = ["kill"] * size.kills + ["freeze"] * size.freezes
                faults += ["move"] * size.moves + ["restart"] * size.restarts
                folders.random.shuffle(faults)
                for fault in faults:
                    for _ in range(folders.random.randrange(5)):  # at any instant
                        await judge.look()
                    if fault == "kill":
                        folders.kill_one()
                    elif fault == "move":
                        await asyncio.to_thread(folders.move_one)
                    elif fault == "freeze":
                        await folders.freeze_one(
                            lambda: judge.until_folded_on(folders, 1, or_locked=ground is None)
                        )
                    elif ground is not None:
                        await asyncio.to_thread(ground.server.kill)
                        await asyncio.to_thread(ground.server.restart)
                    await judge.until_folded_on(folders, PARTITIONS // 2)
                decider.terminate()
                await asyncio.to_thread(decider.join)
                assert decider.exitcode == 0
                events = await judge.until_all_is_folded(folders)
                await judge.judge()
            trimmed = trimmed_below(log, f"{views.by_group.name}.v1.keyed")
        logger.warning(
            "%s, seed %d: %s: %d events, %d looks, all of them folds, %.1f s",
            url.partition(":")[0], SEED, size, events, judge.looks, time.monotonic() - began,
        )  # fmt: skip
        assert judge.looks > 50
        # On a machine with much else to do, there may be no more events than stay.
        assert trimmed or events < 500, "nothing of the keyed topic was deleted"
    finally:
        log.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "size",
    [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.faults)],
)
async def test_views_are_folds_on_sqlite(tmp_path: Path, size: Size) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}?lease=1&timeout=1"
    await prove(url, url, size, 1.0, None)


@sizes(SHORT_ON_REDIS, LONG_ON_SERVER, logs=["redis"], long_logs=["redis"], seconds=1800)
async def test_views_are_folds_on_redis(ground: Ground, size: Size) -> None:
    await prove(ground.direct, ground.direct, size, ground.lease, ground)


@sizes(SHORT, LONG_ON_SERVER, logs=["kafka"], long_logs=["kafka"], seconds=1800)
async def test_views_are_folds_on_kafka(ground: Ground, size: Size) -> None:
    await prove(ground.direct, ground.direct, size, ground.lease, ground)


# -- read your writes ------------------------------------------------------------------------------


async def read_what_was_decided(url: str, count: int) -> None:
    """One process decides, another folds, and this one reads by the decision's token."""
    name = f"bank-{uuid4().hex[:8]}"
    views = declare_views(url, name)
    took: list[float] = []
    with Folders(url, name, 1.0) as folders:
        folders.fold()
        tokens, tell = _context.Pipe(duplex=False)
        async with views.app.connected():
            await views.by_account.ready(60)
            folders.start(decide_until, 0.0, tell)
            while len(took) < count:
                account, version, token = await asyncio.to_thread(tokens.recv)
                began = time.perf_counter()
                found = await views.by_account.get(account, wait_for=token, timeout=60)
                took.append(time.perf_counter() - began)
                assert found is not None
                assert found.count >= version, f"stale: {found} after {token}"
            folders.check()
    took.sort()
    logger.warning(
        "%s: %d decisions read by another process: none stale, p50 %.2f ms, p99 %.2f ms",
        url.partition(":")[0], count, took[count // 2] * 1e3, took[count * 99 // 100] * 1e3,
    )  # fmt: skip


COUNTS = [
    pytest.param(2_000, id="short"),
    pytest.param(10_000, id="long", marks=pytest.mark.faults),
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", COUNTS)
async def test_reads_see_what_was_decided_on_sqlite(tmp_path: Path, count: int) -> None:
    await read_what_was_decided(f"sqlite:///{tmp_path / 'log.db'}?timeout=1", count)


@sizes(500, 10_000, logs=["redis", "kafka"], long_logs=["redis", "kafka"])
async def test_reads_see_what_was_decided(ground: Ground, size: int) -> None:
    # Nothing is cut off here: a server that has much else to do is waited for.
    url = ground.direct
    if ground.name == "redis":
        url = f"{url.partition('?')[0]}?lease=150&socket_timeout=60"
    await read_what_was_decided(url, size)
