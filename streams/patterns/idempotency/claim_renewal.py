"""Keeping a claim while its work runs, and stopping the work when the claim is lost.

A claim is renewed after each third of its lease. It is lost when the store says so, or when the
store has not answered before the lease ends: then another process may begin, so the work is
cancelled. If the loop itself was blocked beyond the lease, the store is asked first: perhaps no
other process took it.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from typing_extensions import override

from streams.errors import LogError, NotRunning
from streams.log.claims import Renew
from streams.patterns.clock_waits import Interrupted, interrupt_after, sleep_until
from streams.patterns.idempotency.claims_client import ClaimsClient
from streams.patterns.idempotency.errors import ClaimLost

_RETRY_FRACTION = 0.1
"""The part of a lease after which a store that did not answer is asked again."""


class renewed_claim(interrupt_after):  # noqa: N801 - it is used like a function
    """``async with``: keep a claim during the block.

    :param claimed_at: when the claim was requested, at the latest: the lease counts from then.
    :raises ClaimLost: it was lost, and the block cancelled.
    """

    def __init__(
        self,
        client: ClaimsClient,
        key: str,
        store_key: bytes,
        token: str,
        lease: float,
        claimed_at: float,
    ) -> None:
        super().__init__(
            client.clock,
            _first_renewal(lease, claimed_at),
            lambda: _renew_until_lost(client, store_key, token, lease, claimed_at),
        )
        self._key = key

    @override
    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(kind, error, traceback)
        except Interrupted as interrupted:
            raise ClaimLost(self._key, *interrupted.args) from None


def _first_renewal(lease: float, claimed_at: float) -> float:
    return claimed_at + lease / 3


async def _renew_until_lost(
    client: ClaimsClient, store_key: bytes, token: str, lease: float, claimed_at: float
) -> str:
    """Renew it repeatedly; returns the reason when it is lost."""
    clock = client.clock
    ends = claimed_at + lease
    due = _first_renewal(lease, claimed_at)
    while True:
        await sleep_until(clock, due)
        asked_at = clock.monotonic()
        timeout = clock.real_timeout(max(ends - asked_at, lease / 3))
        try:
            async with asyncio.timeout(timeout):
                still_ours = await client.send(Renew(store_key, token, lease))
        except (LogError, NotRunning, TimeoutError) as error:
            if clock.monotonic() >= ends:
                return f"it could not be renewed in time ({str(error) or 'no answer'})"
            due = clock.monotonic() + _RETRY_FRACTION * lease
            continue
        if not still_ours:
            return "another caller has taken it over"
        ends = asked_at + lease
        due = asked_at + lease / 3
