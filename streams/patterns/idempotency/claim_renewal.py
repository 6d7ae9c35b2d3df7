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
from streams.patterns.idempotency.claims_client import ClaimsClient
from streams.patterns.idempotency.errors import ClaimLost

_RETRY_FRACTION = 0.1
"""Of a lease: how soon the store is asked again that did not answer."""


@asynccontextmanager
async def renewed_claim(
    client: ClaimsClient, key: str, store_key: bytes, token: str, lease: float, claimed_at: float
) -> AsyncIterator[None]:
    """Keep a claim during the block.

    :param claimed_at: when it was asked for, at the latest: the lease counts from then.
    :raises ClaimLost: it was lost, and the block cancelled.
    """
    lost_reasons: list[str] = []
    timeout = asyncio.timeout(None)
    try:
        async with timeout:

            async def renew() -> None:
                lost_reasons.append(
                    await _renew_until_lost(client, store_key, token, lease, claimed_at)
                )
                timeout.reschedule(asyncio.get_running_loop().time())

            renewing = asyncio.create_task(renew())
            try:
                yield
            finally:
                renewing.cancel()
    except TimeoutError:
        if not timeout.expired():
            raise
        raise ClaimLost(key, lost_reasons[0]) from None


async def _renew_until_lost(
    client: ClaimsClient, store_key: bytes, token: str, lease: float, claimed_at: float
) -> str:
    """Renew it again and again; ends when it is lost, and says why."""
    clock = client.clock
    ends = claimed_at + lease
    due = claimed_at + lease / 3
    while True:
        await sleep_on_clock(clock, due - clock.monotonic())
        asked_at = clock.monotonic()
        timeout = clock.real_timeout(max(ends - asked_at, lease / 3))
        try:
            async with asyncio.timeout(timeout):
                still_ours = await client.send(Renew(store_key, token, lease))
        except (LogError, NotRunning, TimeoutError) as error:
            if clock.monotonic() >= ends:
                reason = str(error) or "no answer"
                return f"it could not be renewed in time ({reason})"
            due = clock.monotonic() + _RETRY_FRACTION * lease
            continue
        if not still_ours:
            return "somebody else has taken it over"
        ends = asked_at + lease
        due = asked_at + lease / 3


async def sleep_on_clock(clock: Clock, seconds: float) -> None:
    """Let time pass on a clock, which a test may move."""
    loop = asyncio.get_running_loop()
    due = clock.monotonic() + seconds
    advanced = asyncio.Event()

    def wake() -> None:
        loop.call_soon_threadsafe(advanced.set)

    unwatch = clock.on_jump(wake)
    try:
        while (seconds_left := due - clock.monotonic()) > 0:
            advanced.clear()
            try:
                async with asyncio.timeout(clock.real_timeout(seconds_left)):
                    await advanced.wait()
            except TimeoutError:
                continue
    finally:
        unwatch()
