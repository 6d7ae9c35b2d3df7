"""Where a promise is put to the test: apps on one log, and a record of what their handlers did."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from streams import DeadLetters, Message, Streams, Topic
from streams.config import Flow
from streams.log.names import partition_for
from streams.log.protocol import Committed
from streams.log.url import open_log
from streams.message import Record
from tests.conformance.logs import Case

QUICK = Flow(commit=0.05)
PATIENCE = 60.0
"""Real seconds after which a condition that does not come about fails its test."""


def keys_of_all_partitions(count: int) -> list[str]:
    """A key for each of so many partitions."""
    found: dict[int, str] = {}
    for number in itertools.count():
        found.setdefault(partition_for(f"k{number}".encode(), "", count), f"k{number}")
        if len(found) == count:
            return list(found.values())
    raise AssertionError("unreachable: keys have no end")


class Seen:
    """What handlers did, in the order they did it; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.handled: list[tuple[str | None, Any]] = []
        """Key and value of each call that succeeded."""
        self.attempts: dict[Any, list[int]] = defaultdict(list)
        """The attempts of each value, in order."""
        self.overlaps: list[str] = []
        self.most_at_once = 0
        self._running: dict[str | None, int] = defaultdict(int)

    def begin(self, key: str | None, value: Any, attempt: int = 1) -> None:
        with self._lock:
            self.attempts[value].append(attempt)
            if key is not None and self._running[key]:
                self.overlaps.append(f"{key}: {value!r}")
            self._running[key] += 1
            self.most_at_once = max(self.most_at_once, sum(self._running.values()))

    def end(self, key: str | None, value: Any, *, ok: bool = True) -> None:
        with self._lock:
            self._running[key] -= 1
            if ok:
                self.handled.append((key, value))

    @property
    def values(self) -> list[Any]:
        with self._lock:
            return [value for _, value in self.handled]

    def by_key(self) -> dict[str | None, list[Any]]:
        found: dict[str | None, list[Any]] = defaultdict(list)
        with self._lock:
            for key, value in self.handled:
                found[key].append(value)
        return found


class Stage:
    """Apps under one URL, with names that nobody else uses."""

    def __init__(self, case: Case, url: str) -> None:
        self.case = case
        self.url = url
        run = uuid4().hex[:8]
        self.topic_name = f"topic-{run}"
        self.group = f"group-{run}"
        self.seen = Seen()
        self.anchor = open_log(url)
        """A handle of our own: what is in memory lasts as long as somebody holds it."""

    def close(self) -> None:
        self.anchor.close()

    def app(self) -> Streams:
        """An app of its own on the log, as another process would have it."""
        return Streams(self.url)

    def opened(self) -> Any:
        """What :meth:`committed` takes for an app: the log alone."""
        return SimpleNamespace(log=self.anchor)

    def topic(self, app: Streams, type: Any = int, **options: Any) -> Topic[Any]:
        """The topic of this test, declared on ``app``."""
        options.setdefault("partitions", 2)
        return app.topic(self.topic_name, type, **options)

    def recorder(
        self,
        act: Callable[[Any, Message[Any]], Any] | None = None,
    ) -> Callable[[Any, Message[Any]], Any]:
        """An async handler that records what it does; ``act`` may sleep or raise."""

        async def handle(value: Any, message: Message[Any]) -> None:
            self.seen.begin(message.key, value, message.attempt)
            ok = False
            try:
                if act is not None:
                    waits = act(value, message)
                    if waits is not None:
                        await waits
                ok = True
            finally:
                self.seen.end(message.key, value, ok=ok)

        return handle

    def plain_recorder(self) -> Callable[[Any, Message[Any]], Any]:
        """A plain handler that records what it does."""

        def handle(value: Any, message: Message[Any]) -> None:
            self.seen.begin(message.key, value, message.attempt)
            self.seen.end(message.key, value)

        return handle

    async def publish(self, topic: Topic[Any], *values: Any, **options: Any) -> list[Any]:
        """Publish one after the other; ``key`` may be a function of the value."""
        key: Any = options.pop("key", None)
        keys: list[Any] = [key(value) if callable(key) else key for value in values]
        records: list[Record] = [
            topic.record(value, key=each, **options)
            for value, each in zip(values, keys, strict=True)
        ]
        return list(await topic.connection.publisher.publish_many(topic.name, records))

    async def until(self, over: Callable[[], Any], what: str = "") -> Any:
        """Wait for a condition; fails with ``what`` when it does not come about.

        The longer it has waited, the less often it looks: most conditions ask a server, which other
        tests want as well.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            found = await asyncio.to_thread(over)
            if found:
                return found
            waited = loop.time() - began
            assert waited < PATIENCE, (
                f"after {PATIENCE:g} s not {what or over}; handled {len(self.seen.handled)}: "
                f"{self.seen.handled[-5:]}"
            )
            await asyncio.sleep(min(max(0.005, waited / 10), 0.1))

    async def handled(self, count: int) -> None:
        """Wait until so many calls have succeeded."""
        await self.until(lambda: len(self.seen.handled) >= count, f"{count} handled")

    def places(self, app: Streams, topic: str = "") -> dict[int, Committed]:
        """Where the group is in one topic, by partition: the server has those of all tests."""
        return dict(app.log.committed(self.group, topic or self.topic_name))

    def at_end(self, app: Streams) -> bool:
        """The group's committed position is behind the last message of every partition."""
        places = self.places(app)
        for partition in range(app.log.describe_topic(self.topic_name).partitions):
            first, end = app.log.watermarks(self.topic_name, partition)
            place = places.get(partition)
            if end > first and (place is None or place.position < end):
                return False
        return True

    async def committed(self, app: Streams) -> None:
        """Wait until everything is settled and committed."""
        await self.until(lambda: self.at_end(app), "committed to the end")

    async def letters(self, app: Streams) -> list[Message[Any]]:
        """The group's dead letters of the topic."""
        name = DeadLetters().name(self.topic_name, self.group)
        topic = app.topic(name, bytes | None)
        return await asyncio.to_thread(lambda: list(topic.read()))
