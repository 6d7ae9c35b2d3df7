"""Workers killed with SIGKILL under load, again and again, at seeded moments."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from random import Random

import pytest

from streams import Streams
from tests.faults.fleet import Fleet
from tests.faults.history import Recorder, Sent, check, read

SEED = int(os.environ.get("STREAMS_SEED", "20130101"))
MESSAGES = int(os.environ.get("STREAMS_FAULT_MESSAGES", "200000"))
WORKERS = 4
PARTITIONS = 8
KEYS = 5_000


async def publish(url: str, topic: str, folder: Path, messages: int, random: Random) -> None:
    """Publish numbered messages, and write down what was acknowledged."""
    app = Streams(url)
    source = app.topic(topic, bytes, partitions=PARTITIONS)
    recorder = Recorder(folder)
    async with app.connected():
        for start in range(0, messages, 5_000):
            numbers = range(start, min(start + 5_000, messages))
            keys = [f"k{random.randrange(KEYS)}" for _ in numbers]
            records = [
                source.record(str(number).encode(), key=key, id=f"m{number}")
                for number, key in zip(numbers, keys, strict=True)
            ]
            positions = await app.publisher.publish_many(topic, records)
            for record, key, position in zip(records, keys, positions, strict=True):
                recorder.write(Sent(0.0, *position, key, record.id))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("kills", "messages"),
    [
        pytest.param(6, 20_000, id="short"),
        pytest.param(20, MESSAGES, id="long", marks=pytest.mark.faults),
    ],
)
def test_four_processes_killed_nothing_lost_order_kept_redelivery_bounded(
    tmp_path: Path, kills: int, messages: int
) -> None:
    random = Random(SEED)
    folder = tmp_path / "history"
    folder.mkdir()
    url, topic = f"sqlite:///{tmp_path / 'log.db'}?synchronous=normal", "numbers"
    asyncio.run(publish(url, topic, folder, messages, random))
    with Fleet(folder, url, topic, "g", concurrency=32, pause=0.002) as fleet:
        for _ in range(WORKERS):
            fleet.start()
        moments = sorted(random.randrange(messages // 50, messages) for _ in range(kills))
        for moment in moments:
            fleet.until(lambda handled, moment=moment: handled >= moment)  # type: ignore[misc]
            fleet.kill_one(random)
        fleet.until(lambda handled: handled >= messages)
        fleet.stop()
    report = check(read(folder))
    logging.getLogger("tests.faults").info(
        "seed %d: %d sent, %d handled, %d redelivered over %d kills, %d lives",
        SEED, report.sent, report.handled, report.redelivered, kills, report.lives - 1,
    )  # fmt: skip
    assert report.anomalies == []
    assert report.handled == messages
