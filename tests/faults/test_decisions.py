"""Decisions of several processes upon the same aggregates, while everything around them breaks.

What the clients were told must fit the histories that stand in the log at the end
(:mod:`tests.faults.decisions`): one history without gaps, the same for every reader; nothing lost
that was acknowledged; nothing there that was refused; every refusal right at some moment within its
call; the money all there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import pytest

from streams.log.url import open_log
from tests.faults.deciders import Deciders, Verdict, decide_in_one_process, judge
from tests.faults.ground import Ground
from tests.faults.sizes import SEED, sizes

logger = logging.getLogger("tests.faults")

CLIENTS = 8


class Size(NamedTuple):
    """How much happens in a run.

    :param answers: that tell what became of a call.
    :param kills: of clients, and how often others are frozen.
    :param frozen: seconds that a frozen client stands still at least.
    :param restarts: of the server, after a ``kill -9``.
    :param cuts: how often all connections are cut.
    """

    answers: int
    kills: int
    freezes: int
    frozen: float
    restarts: int = 0
    cuts: int = 0


SHORT = Size(1_500, 3, 1, 0.0)
SHORT_ON_REDIS = Size(800, 2, 1, 0.0, restarts=1, cuts=5)
SHORT_ON_KAFKA = SHORT_ON_REDIS._replace(restarts=0)  # a broker takes its time
LONG = Size(100_000, 20, 5, 15.0)
LONG_ON_SERVER = LONG._replace(restarts=3, cuts=40)


def run(
    folder: Path,
    url: str,
    size: Size,
    ground: Ground | None = None,
    urls: Sequence[str] = ("",),
) -> Deciders:
    """Let clients decide, and break things at seeded moments."""
    name = f"bank-{uuid4().hex[:8]}"
    with Deciders(folder, url, name, SEED, urls) as deciders:
        for _ in range(CLIENTS):
            deciders.start()
        deciders.until_all_are_answered()
        faults = ["kill"] * size.kills + ["freeze"] * size.freezes
        if ground is not None:
            faults += ["restart"] * size.restarts + ["cut"] * size.cuts
        deciders.random.shuffle(faults)
        for number, fault in enumerate(faults, 1):
            deciders.until_answers(size.answers * number // (len(faults) + 1))
            if fault == "kill":
                deciders.kill_one()
            elif fault == "freeze":
                deciders.freeze_one(size.frozen)
            elif ground is not None and fault == "cut":
                deciders.cuts += ground.proxy.cut()
            elif ground is not None:
                ground.server.kill()
                ground.server.restart()
                deciders.restarts += 1
        deciders.until_answers(size.answers)
        deciders.stop()
    return deciders


async def approve(folder: Path, url: str, deciders: Deciders) -> Verdict:
    """Whether all of it fits."""
    verdict = await judge(folder, url, deciders.name)
    report, figures = verdict.report, verdict.figures
    logger.warning(
        "%s, seed %d: %d calls (%d decided, %d looked, %d unknown of which %d are there), %d "
        "events, %d kills, %d freezes, %d restarts, %d connections cut, %d conflicts, %d causes "
        "found, %d snapshots; %s; %d anomalies",
        url.partition(":")[0], SEED, report.calls, report.decided, report.looked, report.unknown,
        report.found_after_all, report.events, deciders.kills, deciders.freezes, deciders.restarts,
        deciders.cuts,
        figures.conflicts, figures.caused, figures.snapshots, dict(verdict.reasons),
        len(report.anomalies),
    )  # fmt: skip
    assert report.anomalies == []
    assert not any("HistoryTruncated" in reason for reason in verdict.reasons)
    # It was not for nothing.
    assert report.decided > report.calls // 3
    assert figures.conflicts > 0
    assert figures.caused > 0
    return verdict


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "size",
    [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.faults)],
)
async def test_decisions_on_sqlite(tmp_path: Path, size: Size) -> None:
    folder = tmp_path / "calls"
    folder.mkdir()
    url = f"sqlite:///{tmp_path / 'log.db'}?timeout=1"
    await approve(folder, url, run(folder, url, size))


@sizes(SHORT_ON_REDIS, LONG_ON_SERVER, logs=["redis"], long_logs=["redis"], seconds=3000)
async def test_decisions_on_redis(ground: Ground, size: Size, tmp_path: Path) -> None:
    await approve(tmp_path, ground.direct, run(tmp_path, ground.through, size, ground))


@sizes(SHORT_ON_KAFKA, LONG_ON_SERVER, logs=["kafka"], long_logs=["kafka"], seconds=9000)
async def test_decisions_on_kafka(ground: Ground, size: Size, tmp_path: Path) -> None:
    """Half of the clients keep their index in a file, which the next one finds after a kill. A
    frozen client stands still for longer than its producer may take to deliver a message."""
    urls = [
        f"&event_index={tmp_path / f'index-{number}'}" if number % 2 else ""
        for number in range(CLIENTS)
    ]
    timeouts = "&message.timeout.ms=12000&socket.timeout.ms=10000"
    deciders = run(tmp_path, ground.through + timeouts, size, ground, urls)
    await approve(tmp_path, ground.direct, deciders)


async def test_decisions_in_memory(tmp_path: Path) -> None:
    url = f"memory://{uuid4().hex}"
    deciders = Deciders(tmp_path, url, "bank", SEED)
    anchor = open_log(url)  # what is in memory lasts as long as somebody holds it
    try:
        await decide_in_one_process(
            tmp_path, url, deciders.name, SEED, clients=CLIENTS, answers=SHORT.answers
        )
        await approve(tmp_path, url, deciders)
    finally:
        anchor.close()
