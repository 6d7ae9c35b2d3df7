"""Keeping a claim while its work runs, and stopping the work when the claim is lost.

A claim is renewed each third of its lease. It is lost when the store says so, or when the store
has not answered until its end: then somebody else may begin, so the work is cancelled. If the
loop itself stood still beyond the lease, the store is asked first: perhaps nobody else wanted it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streams.clock import Clock
from streams.errors import LogError, NotRunning
from streams.log.claims import Renew
from streams.patterns.idempotency.desk import Desk
from streams.patterns.idempotency.errors import ClaimLost

_AGAIN = 0.1
"""Of a lease: how soon the store is asked again that did not answer."""


@asynccontextmanager
async def kept(
    desk: Desk, key: str, place: bytes, token: str, lease: float, since: float
) -> AsyncIterator[None]:
    """Keep a claim during the block.

    :param since: when it was asked for, at the latest: the lease counts from then.
    :raises ClaimLost: it was lost, and the block cancelled.
    """
    why: list[str] = []
    scope = asyncio.timeout(None)
    try:
        async with scope:

            async def renew() -> None:
                why.append(await _renew(desk, place, token, lease, since))
                scope.reschedule(asyncio.get_running_loop().time())

            renewing = asyncio.create_task(renew())
            try:
                yield
            finally:
                renewing.cancel()
    except TimeoutError:
        if not scope.expired():
            raise
        raise ClaimLost(key, why[0]) from None


async def _renew(desk: Desk, place: bytes, token: str, lease: float, since: float) -> str:
    """Renew it again and again; ends when it is lost, and says why."""
    clock = desk.clock
    ends = since + lease
    due = since + lease / 3
    while True:
        await sleep(clock, due - clock.monotonic())
        asked = clock.monotonic()
        patience = clock.timeout(max(ends - asked, lease / 3))
        try:
            async with asyncio.timeout(patience):
                mine = await desk.ask(Renew(place, token, lease))
        except (LogError, NotRunning, TimeoutError) as error:
            if clock.monotonic() >= ends:
                said = str(error) or "no answer"
                return f"it could not be renewed in time ({said})"
            due = clock.monotonic() + _AGAIN * lease
            continue
        if not mine:
            return "somebody else has taken it over"
        ends = asked + lease
        due = asked + lease / 3


async def sleep(clock: Clock, seconds: float) -> None:
    """Let time pass on a clock, which a test may move."""
    loop = asyncio.get_running_loop()
    due = clock.monotonic() + seconds
    moved = asyncio.Event()

    def tell() -> None:
        loop.call_soon_threadsafe(moved.set)

    unwatch = clock.watch(tell)
    try:
        while (left := due - clock.monotonic()) > 0:
            moved.clear()
            try:
                async with asyncio.timeout(clock.timeout(left)):
                    await moved.wait()
            except TimeoutError:
                continue
    finally:
        unwatch()
