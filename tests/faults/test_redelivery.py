"""How much is done again after ``kill -9``: what was in flight, and little more.

That little is a time, so it is judged only behind ``make faults``; and it is the worker's time:
where none of its jobs ended for a while, it stood still, as the machine was busy with something
else. What it follows from is proved without a clock in ``tests/engine/test_pace.py`` and
``tests/processing/test_poller.py``.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple
from uuid import uuid4

import pytest

from streams import Streams
from streams.engine.progress import decode_progress
from streams.errors import ProcessorDied
from streams.log.protocol import Committed
from streams.log.url import open_log
from tests.faults.jobs import AT_ONCE, Record, declare, done
from tests.faults.sizes import SEED
from tests.servers.find import KafkaAddress, RedisAddress
from tests.servers.lifetime import until

JOBS = 4_000
KILLS = 20
PARTITIONS = 8
STILL = 0.01
"""Seconds without any of 64 jobs of 5 ms ending, from which on the whole process stood still."""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1_200)]
logger = logging.getLogger("tests.faults")


class Killed(NamedTuple):
    """One life that was ended."""

    handled: int
    again: int
    """Of these, how many are handled again."""
    lately: int
    """How many were handled within the time that is allowed."""
    oldest: float
    """How many seconds before the kill the oldest of those was handled."""


def judge(log: str, lives: list[Killed], within: float) -> None:
    again = sorted(life.again for life in lives)
    logger.warning(
        "%s, %d kills, seed %d: of %d to %d handled, %d to %d come again (median %g); the oldest "
        "was handled %.0f ms before the kill (median %.0f)",
        log, len(lives), SEED, min(life.handled for life in lives),
        max(life.handled for life in lives), again[0], again[-1], median(again),
        1000 * max(life.oldest for life in lives), 1000 * median(life.oldest for life in lives),
    )  # fmt: skip
    for life in lives:
        assert life.again <= AT_ONCE + life.lately, f"{life}, {within:g} s are allowed"


def ended(first: dict[str, float], again: set[str], killed: float, within: float) -> Killed:
    left, last, lately = within, killed, 0
    for at in sorted(first.values(), reverse=True):
        left -= min(last - at, STILL)  # what another process took of the machine is not counted
        last = at
        if left < 0:
            break
        lately += 1
    oldest = max((killed - first[id] for id in again), default=0.0)
    return Killed(len(first), len(again), lately, oldest)


async def publish(url: str, topic: str, number: int) -> None:
    app = Streams(url)
    jobs = app.topic(topic, bytes, partitions=PARTITIONS)
    async with app.connected():
        records = [jobs.record(b"job", key=f"k{n % 1_000}", id=f"m{n}") for n in range(number)]
        await app.publisher.publish_many(topic, records)


def live_once(url: str, folder: Path, random: Random, within: float) -> Killed:
    """Kill a worker amid its jobs, and have another do the rest."""
    name = f"jobs-{uuid4().hex[:8]}"
    asyncio.run(publish(url, name, JOBS))
    first, second = folder / f"{name}-first", folder / f"{name}-second"

    def start(path: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.jobs", str(path), url, name, name]
        return subprocess.Popen(command, stdin=subprocess.PIPE)

    moment = random.randrange(300, JOBS * 3 // 4)
    with start(first) as worker:
        until(lambda: len(done(first)) >= moment, 60, f"{moment} jobs are done")
        worker.kill()
        killed = time.monotonic()
        worker.wait()
    with start(second) as worker:
        until(lambda: done(first).keys() | done(second).keys() >= all_ids(), 120, "all are done")
        worker.terminate()
        worker.wait()
    before = done(first)
    return ended(before, before.keys() & done(second).keys(), killed, within)


def all_ids() -> set[str]:
    return {f"m{n}" for n in range(JOBS)}


def test_sqlite_does_what_was_in_flight_and_50_ms_again(tmp_path: Path) -> None:
    random, url = Random(SEED), f"sqlite:///{tmp_path / 'log.db'}"
    judge("sqlite", [live_once(url, tmp_path, random, 0.05) for _ in range(KILLS)], 0.05)


def test_redis_does_what_was_in_flight_and_50_ms_again(
    redis_server: RedisAddress, tmp_path: Path
) -> None:
    random, url = Random(SEED), f"{redis_server.url}?lease=2"
    judge("redis", [live_once(url, tmp_path, random, 0.05) for _ in range(KILLS)], 0.05)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_kafka_does_what_was_in_flight_and_200_ms_again(
    kafka: KafkaAddress, tmp_path: Path, protocol: str
) -> None:
    options = "session.timeout.ms=3000" if protocol == "classic" else "group.protocol=consumer"
    random, url = Random(SEED), f"{kafka.url}?{options}"
    lives = [live_once(url, tmp_path, random, 0.2) for _ in range(KILLS)]
    judge(f"kafka, {protocol}", lives, 0.2)


async def test_memory_does_what_was_in_flight_and_50_ms_again(tmp_path: Path) -> None:
    """Here a member crashes; what another one would do again is what is not stored."""
    random, lives = Random(SEED), list[Killed]()
    for number in range(KILLS):
        url, name, path = f"memory://{uuid4().hex}", "jobs", tmp_path / str(number)
        log = open_log(url)
        await publish(url, name, JOBS)
        app = Streams(url)
        declare(app, name, name, Record(path))
        moment = random.randrange(300, JOBS * 3 // 4)
        killed = 0.0
        with pytest.raises(ProcessorDied, match="crashed by a test"):
            async with app:
                await asyncio.to_thread(
                    until, lambda path=path, moment=moment: len(done(path)) >= moment, 60, "jobs"
                )
                poller = app.processors[0].poller
                assert poller is not None
                assert poller._subscription is not None
                poller._subscription.crash()  # type: ignore[attr-defined]
                killed = time.monotonic()
                await asyncio.sleep(60)
        first = {id: at for id, at in done(path).items() if at <= killed}
        again: set[str] = set()
        for partition in range(PARTITIONS):
            place = log.describe_group(name).positions[name, partition]
            reader = log.reader(name, partition, *log.watermarks(name, partition))
            while (batch := reader.read(1_000)) is not None:
                again.update(
                    batch.id(index)
                    for index, offset in enumerate(batch.offsets)
                    if not covered(place, offset)
                )
        lives.append(ended(first, again & first.keys(), killed, 0.05))
        log.close()
    judge("memory", lives, 0.05)


def covered(place: Committed, offset: int) -> bool:
    settled = decode_progress(place.position, place.progress)[1] if place.progress else []
    return offset < place.position or any(low <= offset < high for low, high in settled)
