"""The common part of commands that change views: they work on a connected app of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from streams.cli import output
from streams.cli.views.view_log import open_view_log

if TYPE_CHECKING:
    from streams.cli.views.view_log import ViewLog
    from streams.eventsourcing.views.operations import ViewOperator
    from streams.log.url import ChosenUrl

T = TypeVar("T")

LOOK_INTERVAL = 0.2
"""Seconds between checks of a version's progress."""


def run(source: ChosenUrl, name: str, act: Callable[[ViewOperator], Awaitable[T]]) -> T:
    """Call a function with the operator of a view."""
    from streams.eventsourcing.views.operations import connected_operator

    async def connect() -> T:
        async with connected_operator(source.url, name) as view:
            return await act(view)

    return asyncio.run(connect())


def await_built(source: ChosenUrl, name: str, number: int) -> None:
    """Wait until a version is built, and show its progress."""
    bar = output.progress_bar(f"building {name} version {number}")
    with open_view_log(source) as view_log, bar as show_progress:
        while True:
            inspector = view_log.inspector(name, number)
            if not inspector.known.is_building:
                return
            progress = inspector.tracker.progress()
            show_progress(progress.folded or 0, progress.total)
            time.sleep(LOOK_INTERVAL)


def stopped_reason(view_log: ViewLog, name: str, number: int, key: bytes) -> str:
    """Why a document is stopped."""
    inspector = view_log.inspector(name, number)
    found = inspector.stopped_key(key)
    return "" if found is None else f"{found.reason} (at {found.position})"
