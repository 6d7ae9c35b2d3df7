"""Ordered dead letters under ``kill -9`` and rebalances: real processes, killed at seeded moments.

Messages of some keys fail once, of some twice, and are retried all along. Whatever is killed, every
message is handled, and those of a key in their order, through failure, retry and reopening: a call
may repeat what was handled before, but never comes before its turn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from streams.log.appending import append_and_wait
from streams.log.url import open_log
from streams.message import Record
from streams.patterns.deadletters.closed_keys import ClosedKeyReader
from tests.conformance.logs import MAIN_LOGS
from tests.conformance.stage import Stage
from tests.patterns.sequenced_child import fails

ROOT = Path(__file__).parents[2]
SEED = int(os.environ.get("STREAMS_SEED", "20130101"))
PARTITIONS = 4
KEYS = 24
WORKERS = 2

logger = logging.getLogger("tests.patterns")

pytestmark = pytest.mark.short_lease


class Crowd:
    """Workers of one group, and what they say."""

    def __init__(self, stage: Stage, folder: Path, random: Random, kind: str) -> None:
        self.stage = stage
        self.kind = kind
        """``async`` or ``plain``: what handles in each of them."""
        self.folder = folder
        self.said = folder / "handled.txt"
        self.said.touch()
        self.random = random
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        stage = self.stage
        words = [stage.url, stage.topic_name, stage.group, str(PARTITIONS), str(self.said)]
        words.append(self.kind)
        with (self.folder / "workers.log").open("ab") as log:
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.patterns.sequenced_child", *words],
                    cwd=ROOT,
                    stdout=log,
                    stderr=log,
                )
            )

    def kill(self) -> None:
        worker = self.workers.pop(self.random.randrange(len(self.workers)))
        assert worker.poll() is None, self.log()
        worker.kill()
        worker.wait()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()

    def lines(self) -> list[tuple[str, int]]:
        text = self.said.read_text()
        words = [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]
        return [(key, int(value)) for key, value, _ in words]

    def log(self) -> str:
        return (self.folder / "workers.log").read_text()[-3_000:]


@pytest.fixture
def arena(log: str, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The log of that name, under a URL of its own."""
    case = next(case for case in MAIN_LOGS if case.name == log)
    url: str = request.getfixturevalue(case.url)
    opened = Stage(case, f"{url}?synchronous=normal" if log == "sqlite" else url)
    yield opened
    opened.close()


def key_of(value: int) -> str:
    return f"k{value * 7 % KEYS}"


def publish(stage: Stage, first: int, last: int) -> None:
    log = open_log(stage.url)
    try:
        records = [
            Record(str(value).encode(), key_of(value).encode(), f"m{value}")
            for value in range(first, last)
        ]
        assert not [each for each in append_and_wait(log, stage.topic_name, records) if not each]
    finally:
        log.close()


def retry_all(stage: Stage) -> int:
    """Let everything that closes a key be handled again; how many."""
    log = open_log(stage.url)
    try:
        heads = ClosedKeyReader(log, stage.group, stage.topic_name)
        found = [head for head in heads.heads() if head.is_dead]
        for head in found:
            heads.send_command("retry", head)
        return len(found)
    finally:
        log.close()


async def killed(
    stage: Stage, folder: Path, kind: str, *, messages: int, kills: int, patience: float
) -> None:
    crowd = Crowd(stage, folder, Random(SEED), kind)
    stage.anchor.create_topic(stage.topic_name, PARTITIONS)
    # Spread over the run: of the messages, the kills, and the retries.
    moments = sorted(crowd.random.randrange(messages // 20, messages) for _ in range(kills))
    loop = asyncio.get_running_loop()
    published = retried = lives = 0
    handled: set[int] = set()
    try:
        for _ in range(WORKERS):
            crowd.start()
        give_up = loop.time() + patience
        while len(handled) < messages:
            ahead = min(messages, len(handled) + messages // 5)
            if published < ahead:
                await asyncio.to_thread(publish, stage, published, ahead)
                published = ahead
            handled = {value for _, value in await asyncio.to_thread(crowd.lines)}
            if moments and len(handled) >= moments[0]:
                del moments[0]
                crowd.kill()
                crowd.start()
                lives += 1
            try:
                retried += await asyncio.to_thread(retry_all, stage)
            except LookupError:
                assert not handled  # nobody runs yet
            assert loop.time() < give_up, (
                f"{len(handled)} of {messages} handled, {lives} kills\n{crowd.log()}"
            )
            await asyncio.sleep(0.05)
        assert not moments
    finally:
        crowd.close()
    lines = crowd.lines()
    expected = defaultdict(list)
    for value in range(messages):
        expected[key_of(value)].append(value)
    by_key = defaultdict(list)
    for key, value in lines:
        by_key[key].append(value)
    assert by_key.keys() == expected.keys()
    for key, values in by_key.items():
        # The first time that each is handled is in order; what is repeated was handled before.
        assert list(dict.fromkeys(values)) == expected[key], key
    failing = sum(fails(value, 0) + fails(value, 1) for value in range(messages))
    assert retried >= failing
    logger.info(
        "%s, %s, seed %d: %d messages, %d kills, %d retries of %d failures, %d handled again",
        stage.case.name, kind, SEED, messages, lives, retried, failing, len(lines) - messages,
    )  # fmt: skip


kinds = pytest.mark.parametrize("kind", ["async", "plain"])


@kinds
@pytest.mark.parametrize("log", ["sqlite"])
async def test_order_is_kept_through_3_kills(arena: Stage, tmp_path: Path, kind: str) -> None:
    await killed(arena, tmp_path, kind, messages=600, kills=3, patience=500)


@pytest.mark.faults
@pytest.mark.timeout(900)
@kinds
@pytest.mark.parametrize("log", ["sqlite", "redis", "kafka"])
async def test_order_is_kept_through_20_kills(arena: Stage, tmp_path: Path, kind: str) -> None:
    await killed(arena, tmp_path, kind, messages=4_000, kills=20, patience=800)
