"""What handlers return is in the log exactly as their effects are in the database, whatever is
killed.

Workers with an inbox and ``to=`` are killed and frozen; each also relays the outbox through which
their results go. In the end every effect has its result in the log, once by its message ID, and
nothing else is there; the first copies of a key are in the order in which its messages were
handled.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from streams import Streams
from tests.faults.inbox_worker import is_poison
from tests.faults.sizes import SEED
from tests.faults.test_inbox import (
    PARTITIONS,
    STALLED,
    WORKERS,
    Books,
    Fleet,
    log_place,
    publish,
    put_back,
    stack,
)
from tests.servers.lifetime import Lifetime, until

logger = logging.getLogger("tests.faults")

__all__ = ["stack"]


class Size(NamedTuple):
    """How much happens."""

    messages: int
    kills: int
    freezes: int
    database_restarts: int


SHORT = Size(messages=400, kills=2, freezes=0, database_restarts=0)
LONG = Size(messages=10_000, kills=30, freezes=5, database_restarts=5)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("log", "kind", "size"),
    [
        pytest.param("sqlite", "single", SHORT, id="sqlite-single-short"),
        *(
            pytest.param(log, kind, LONG, id=f"{log}-{kind}-long", marks=pytest.mark.faults)
            for log in ("sqlite", "redis", "kafka")
            for kind in ("single", "batch", "sqlite")
        ),
    ],
)
def test_each_effect_has_its_result(
    lifetime: Lifetime, tmp_path: Path, stack: ExitStack, log: str, kind: str, size: Size
) -> None:
    random = Random(SEED)
    place = log_place(log, lifetime, tmp_path, stack)
    books = Books(kind, lifetime, tmp_path, stack)
    topic, group = f"orders-{uuid4().hex[:8]}", f"books-{uuid4().hex[:8]}"
    target = f"{topic}-done"
    keys = publish(place.url, topic, size.messages, random)
    create(place.url, target)
    fleet = Fleet([place.url, topic, group, kind, books.place, target])
    stack.callback(fleet.end, signal.SIGKILL)
    for _ in range(WORKERS):
        fleet.start()

    def progress(effects: int) -> None:
        moved, last = time.monotonic(), -1
        while True:
            fleet.check()
            found = books.count()
            if found is not None and found >= effects:
                return
            if found is not None and found != last:
                moved, last = time.monotonic(), found
            assert time.monotonic() - moved < STALLED, f"stands at {found} of {effects}"
            time.sleep(0.02)

    def freeze() -> None:
        victim = random.choice(fleet.workers).process
        victim.send_signal(signal.SIGSTOP)
        ends = time.monotonic() + place.lease + 1.5
        until(lambda: time.monotonic() > ends, 60, "its leases are over")
        victim.send_signal(signal.SIGCONT)

    def restart_database() -> None:
        if books.server is not None:
            books.server.kill()
            books.server.restart()

    faults = [
        *[lambda: fleet.kill(random)] * size.kills,
        *[freeze] * size.freezes,
        *[restart_database] * size.database_restarts,
    ]
    random.shuffle(faults)
    moments = sorted(random.randrange(size.messages * 9 // 10) for _ in faults)
    for moment, fault in zip(moments, faults, strict=True):
        progress(moment)
        fault()
    progress(size.messages - sum(map(is_poison, range(size.messages))))

    def all_done() -> bool | None:
        if books.count() == size.messages:
            return True
        put_back(place.url, topic, group)
        return None

    until(all_done, 60, "what was given up and put back")
    until(lambda: books.select("SELECT count(*) FROM outbox")[0][0] == 0, 60, "all is relayed")
    fleet.end()
    check(asyncio.run(first_copies(place.url, target)), keys)
    effects = Counter(row[0] for row in books.select("SELECT value FROM effects"))
    assert effects == dict.fromkeys(keys, 1)


def create(url: str, target: str) -> None:
    """The topic of the results, with as many partitions as their source has: a key's results are in
    one of them."""

    async def enter() -> None:
        app = Streams(url)
        app.topic(target, dict[str, Any], partitions=PARTITIONS)
        async with app.connected():
            pass

    asyncio.run(enter())


async def first_copies(url: str, target: str) -> dict[str, dict[str, Any]]:
    """What is in the log, by message ID, in its order."""
    app = Streams(url)
    topic = app.topic(target, dict[str, Any])
    found: dict[str, dict[str, Any]] = {}
    async with app.connected():
        async for message in topic.read():
            assert found.setdefault(message.id, message.value) == message.value
    return found


def check(found: dict[str, dict[str, Any]], keys: dict[int, str]) -> None:
    """Each number is there once, under one ID; those that were never given up in order."""
    times = Counter(result["value"] for result in found.values())
    assert {number: count for number, count in times.items() if count != 1} == {}
    assert set(times) == set(keys)
    last: dict[str, int] = {}
    for id, result in found.items():
        key, value = result["key"], result["value"]
        assert keys[value] == key
        if not result["redriven"]:
            assert last.get(key, -1) < value, f"{id} of {key} after {last[key]}"
            last[key] = value
    logger.warning("seed %d: %d results, each once", SEED, len(found))
