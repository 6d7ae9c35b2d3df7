"""Where the tests keep claims: memory, a file, Redis, Valkey; and whose time counts there.

A test that takes ``place`` runs on each of them. On memory and SQLite a clock is advanced; a server
has its own time, so there ``elapse`` waits, and leases that shall end are short.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams.log.claims import ClaimStore, GetClaim, StoredClaim
from streams.log.url import open_claims
from streams.patterns import IdempotencyStore
from streams.testing import Clock

PATIENCE = 60.0

KINDS = ("memory", "sqlite", "redis", "valkey")


class Place:
    """One place for claims, with a name that nobody else uses."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.name = f"test-{uuid4().hex[:12]}"
        self.clock = Clock() if kind in ("memory", "sqlite") else None
        self.lease = 30.0 if self.clock else 0.4
        """Seconds of what is to end within the test; nothing may hang on its not ending sooner."""
        self._anchor = self.claims()
        """What is in memory lasts as long as somebody holds it."""

    def claims(self) -> ClaimStore:
        return open_claims(self.url, clock=self.clock)

    def store(self, **options: Any) -> IdempotencyStore:
        """A store of its own, as another process would have it."""
        options.setdefault("name", self.name)
        return IdempotencyStore(self.url, clock=self.clock, **options)

    async def elapse(self, seconds: float) -> None:
        """Let time pass."""
        if self.clock:
            self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds + 0.05)  # its clock is another one

    async def over(self, key: str | bytes) -> None:
        """Let the claim or the outcome under a key end: as long as that takes, by its own clock."""
        if self.clock:
            self.clock.advance(self.left(key))
        await until(lambda: self._look(key) is None, "over")

    def left(self, key: str | bytes) -> float:
        """Seconds until the claim or the outcome under a key is over; 0 where there is none.

        :param key: one of this place's stores, or bytes as they stand in the log.
        """
        found = self._look(key)
        return 0.0 if found is None else found.expires_in

    def _look(self, key: str | bytes) -> StoredClaim | None:
        place = key if isinstance(key, bytes) else f"{self.name}:{key}".encode()
        (found,) = self._anchor.execute([GetClaim(place)])
        return found if isinstance(found, StoredClaim) else None

    def close(self) -> None:
        self._anchor.close()


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A place for claims, on each log that keeps them."""
    opened = Place(request.param, url_of(request.param, request, tmp_path))
    yield opened
    opened.close()


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if kind == "memory":
        return f"memory://{uuid4().hex}"
    if kind == "sqlite":
        return f"sqlite:///{folder / 'claims.db'}?synchronous=normal"
    url: str = request.getfixturevalue(f"{kind}_server").url
    return f"{url}?lease=60&socket_timeout=30"  # a server that stands still is no outage


async def until(over: Callable[[], Any], what: str) -> Any:
    """Wait for a condition; fails with ``what`` when it does not come about."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + PATIENCE
    while True:
        found = over()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert loop.time() < give_up, f"after {PATIENCE:g} s not {what}"
        await asyncio.sleep(0.002)
