"""What the executors' tests share: waiting for a condition, and settings that do not dawdle."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from streams import Flow

QUICK = Flow(commit=0.05)
PATIENCE = 60.0
"""Real seconds after which a condition that does not come about fails its test."""


async def until(over: Callable[[], object], what: str = "") -> None:
    """Wait for a condition; fails with ``what`` when it does not come about."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + PATIENCE
    while not over():
        if loop.time() > give_up:
            raise AssertionError(what or "it did not come about")
        await asyncio.sleep(0.002)
