"""Where the tests of the bus run: in one process without a log, and over each of four logs.

The same handlers and the same assertions: whoever takes ``world`` is run five times.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest

from streams import Flow, Streams
from streams.log.url import open_log
from streams.patterns import Event, EventBus, PatternEventBus
from tests.conformance.logs import MAIN_LOGS
from tests.processing.support import until

QUICK = Flow(commit=0.05, drain=5.0)


class Calls:
    """What a bus told its error hook, and what handlers got."""

    def __init__(self) -> None:
        self.errors: list[tuple[str, str, Any]] = []
        """Error's words, topic, handler."""
        self.got: list[tuple[str, Any]] = []
        """Topic and data."""

    def hook(self, error: Exception, event: Event, handler: Any) -> None:
        self.errors.append((str(error), event.topic, handler))

    async def take(self, event: Event) -> None:
        """A handler."""
        self.got.append((event.topic, event.data))

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _ in self.got]


class World:
    """Buses of one name: local (``url`` is None), or over the log under a URL."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self.name = f"events-{uuid4().hex[:8]}"
        self.group = f"group-{uuid4().hex[:8]}"
        self.calls = Calls()
        self.anchor = open_log(url) if url is not None else None
        """What is in memory lasts as long as somebody holds it."""

    def close(self) -> None:
        if self.anchor is not None:
            self.anchor.close()

    def bus(self, kind: type[EventBus] = PatternEventBus, **options: Any) -> EventBus:
        """A bus; over a log with an app of its own, as another process would have it."""
        options.setdefault("on_error", self.calls.hook)
        app = Streams(self.url) if self.url is not None else None
        if app is not None:
            options.setdefault("partitions", 2)
        return kind(app, self.name, **options)

    @asynccontextmanager
    async def running(self, *buses: EventBus) -> AsyncIterator[None]:
        """Enter the apps of these buses, where they have any."""
        if not buses:
            yield
        elif buses[0].app is None:
            async with self.running(*buses[1:]):
                yield
        else:
            async with buses[0].app, self.running(*buses[1:]):
                yield

    async def until(self, over: Callable[[], object], what: str = "") -> None:
        await until(
            over, f"{what or 'it did not come about'}: {self.calls.got} {self.calls.errors}"
        )


@pytest.fixture(params=["local", *(case.name for case in MAIN_LOGS)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """On each place that a bus can be."""
    yield from _opened(request)


@pytest.fixture(params=[case.name for case in MAIN_LOGS])
def logged(request: pytest.FixtureRequest) -> Iterator[World]:
    """On each log."""
    yield from _opened(request)


def _opened(request: pytest.FixtureRequest) -> Iterator[World]:
    urls = {case.name: case.url for case in MAIN_LOGS}
    fixture = urls.get(request.param)
    found = World(None if fixture is None else request.getfixturevalue(fixture))
    yield found
    found.close()
