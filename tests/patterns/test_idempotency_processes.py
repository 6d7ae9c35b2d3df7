"""One execution among many processes; and what is killed or frozen is taken over from."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from streams.patterns import IdempotencyStore, IdempotentProcessor
from tests.patterns.keeping import Place, until, url_of
from tests.patterns.racer import Racer, write

LEASE = 5.0
"""Seconds. A process of a test that stands still longer than this by itself has lost its claim."""

PATIENT_LEASE = 15.0
"""The same of one that must not lose it before it is killed."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(params=["sqlite", "redis", "valkey"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_of(request.param, request, tmp_path)


@pytest.fixture
def name() -> str:
    return f"test-{uuid4().hex[:12]}"


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    return tmp_path / "effects"


def lines(effects: Path) -> list[str]:
    return effects.read_text().split() if effects.exists() else []


@pytest.mark.parametrize("processes", [5, pytest.param(20, marks=pytest.mark.faults)])
def test_100_callers_in_each_of_many_processes_are_one_execution(
    url: str, name: str, effects: Path, processes: int
) -> None:
    with Racer("race", url, name, effects, processes, 100) as racer:
        results = racer.rest()
    (winner,) = lines(effects)
    assert len(results) == processes
    assert sum(map(Counter, results), Counter()) == {winner: 100 * processes}


async def take_over(url: str, name: str, effects: Path) -> str:
    """A caller in this process."""

    async def once() -> str:
        write(str(effects), "here")
        return "here"

    async with IdempotencyStore(url, name=name) as store:
        return str(await IdempotentProcessor(store, lease=LEASE).process("k", once))


@pytest.fixture
def place(url: str, name: str) -> Iterator[Place]:
    """A look at the claims from here."""
    opened = Place("server", url)
    opened.name = name
    yield opened
    opened.close()


async def test_a_killed_winners_claim_is_taken_over_after_its_lease(
    place: Place, url: str, name: str, effects: Path
) -> None:
    with Racer("hold", url, name, effects, PATIENT_LEASE) as winner:
        assert await asyncio.to_thread(winner.next) == "begun"
        calls = [asyncio.create_task(take_over(url, name, effects)) for _ in range(3)]
        await until(lambda: place.left("k") < 0.75 * PATIENT_LEASE, "older")
        await until(lambda: place.left("k") > 0.8 * PATIENT_LEASE, "renewed")
        assert len(lines(effects)) == 1  # while it lives, nobody else begins
        winner.signal(signal.SIGKILL)
        await asyncio.to_thread(winner.process.wait)
        loop = asyncio.get_running_loop()
        killed, left = loop.time(), place.left("k")
        assert await asyncio.gather(*calls) == ["here"] * 3
        assert loop.time() - killed >= left - 0.01
    assert lines(effects) == [str(winner.process.pid), "here"]


async def test_a_frozen_winner_is_fenced_when_it_wakes_up(
    url: str, name: str, effects: Path
) -> None:
    with Racer("hold", url, name, effects, LEASE) as winner:
        assert await asyncio.to_thread(winner.next) == "begun"
        winner.signal(signal.SIGSTOP)
        assert await take_over(url, name, effects) == "here"
        winner.signal(signal.SIGCONT)
        assert "another caller has taken it over" in await asyncio.to_thread(winner.next)
        assert await asyncio.to_thread(winner.process.wait) == 0
        async with IdempotencyStore(url, name=name) as store:
            assert await store.get("k") == "here"
    assert lines(effects) == [str(winner.process.pid), "here"]


@pytest.mark.faults
async def test_twenty_winners_are_killed_one_after_the_other(
    url: str, name: str, effects: Path
) -> None:
    """Each begins once its predecessor's lease is over; in the end one outcome is left."""
    pids = []
    for _ in range(20):
        with Racer("hold", url, name, effects, LEASE) as winner:
            assert await asyncio.to_thread(winner.next) == "begun"
            pids.append(str(winner.process.pid))
    assert await take_over(url, name, effects) == "here"
    assert lines(effects) == [*pids, "here"]
