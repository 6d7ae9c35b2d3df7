"""Processes that build and promote versions are killed: each message is in the tables of each
version once, and who reads does not go back in time."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import Streams
from tests.projections.test_projections import BY_NAME
from tests.projections.world import Reader
from tests.servers.lifetime import until

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("log", "name"), [("sqlite", "async-psycopg"), ("redis", "psycopg"), ("kafka", "asyncpg")]
)
def test_thirty_kills(log: str, name: str, request: Any, tmp_path: Path) -> None:
    chance = random.Random(20130101)
    url = f"sqlite:///{tmp_path / 'log.db'}?lease=2"
    if log == "redis":
        url = f"{request.getfixturevalue('redis_server').url}?lease=2"
    elif log == "kafka":
        settings = "session.timeout.ms=6000&heartbeat.interval.ms=500"
        url = f"{request.getfixturevalue('kafka').url}?{settings}"
    place, topic = request.getfixturevalue("postgres"), f"numbers-{uuid4().hex[:8]}"
    assert BY_NAME[name].server
    reader = Reader(place)
    reader.create()
    running: list[tuple[tuple[str, ...], subprocess.Popen[bytes]]] = []

    def start(*versions: str) -> None:
        words = (url, topic, name, place, *versions)
        command = [sys.executable, "-m", "tests.projections.worker", *words]
        running.append((versions, subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE)))

    def kill() -> None:
        versions, victim = running.pop(chance.randrange(len(running)))
        end(victim)
        start(*versions)

    def publish(numbers: range) -> None:
        app = Streams(url)
        target = app.topic(topic, int, partitions=2)

        async def send() -> None:
            async with app.connected():
                records = [target.record(each, key=str(each % 50)) for each in numbers]
                await app.publisher.publish_many(topic, records)

        asyncio.run(send())

    try:
        publish(range(200))
        for _ in range(2):
            start("1")
        known = "SELECT 1 FROM pg_tables WHERE tablename = 'streams_projections'"
        until(lambda: bool(reader.run(known)) and reader.serving() == 1, 120, "version 1 serves")
        for _ in range(2):
            start("1", "2")
        last, total = reader.look(), 200
        for _ in range(30):
            publish(range(total, total + 100))
            total += 100
            kill()
            for _ in range(20):
                now = reader.look()
                assert now >= last and now[1] >= last[1], (last, now)  # noqa: PT018
                last = now
        until(lambda: reader.look()[0] == 2, 120, "version 2 serves")
        everything = list(range(total))
        until(lambda: reader.values(2) == everything, 120, "version 2 has everything")
        until(lambda: reader.values(1) == everything, 120, "version 1 has everything")
    finally:
        for _, process in running:
            end(process)
        reader.close()


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()
