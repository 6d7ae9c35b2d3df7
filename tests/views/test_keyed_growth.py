"""The keyed topic of a view keeps what its documents may still need, and not all there ever was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import pytest
from msgspec import Struct

from streams import DocumentStopped, Streams, View
from streams.eventsourcing.views import keyed_topic, operations
from streams.eventsourcing.views.checkpoint_check import CheckpointBeyondLog
from streams.eventsourcing.views.failures import decode_failure
from streams.eventsourcing.views.inspection import VersionInspector, read_view
from streams.eventsourcing.views.keyed_topic import check_above_floor, trimmed_below
from streams.eventsourcing.views.operations import ViewOperationRefused, connected_operator
from streams.log.memory import membership
from streams.log.redis import retention
from tests.conformance.stage import Stage

pytestmark = pytest.mark.anyio

KEPT = 200
PARTITIONS = 2
BOUND = PARTITIONS * (KEPT + 400)
"""Messages of a keyed topic in which nothing is behind. A log trims in blocks: SQLite of up to a
hundred messages above the bound, Redis of a hundred."""


class Sold(Struct, tag="sold", frozen=True):
    shop: str
    item: str
    pieces: int


class Count(Struct, frozen=True):
    pieces: int = 0
    sales: int = 0


def count(found: Count | None, event: Sold) -> Count:
    found = found or Count()
    return Count(found.pieces + event.pieces, found.sales + 1)


def broken(found: Count | None, event: Sold) -> Count:
    """The function before it was mended."""
    if event.item == "bad":
        raise ZeroDivisionError("bad")
    return count(found, event)


@pytest.fixture(autouse=True)
def trimmed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyed_topic, "KEPT", KEPT)
    monkeypatch.setattr(keyed_topic, "FLOOR_INTERVAL", 0.2)
    monkeypatch.setattr(retention, "TRIM_INTERVAL", 0.05)
    monkeypatch.setattr(membership, "TRIM_MARGIN", 0)
    monkeypatch.setattr(operations, "HEARD_AFTER", 0.0)


class Shops:
    """Sales, and how many there were of each item: a keyed view, as one process has it."""

    def __init__(self, app: Streams, name: str, fold: Any = count) -> None:
        self.app, self.name = app, name
        self.sales = app.topic(f"{name}-sales", Sold, key="shop", partitions=PARTITIONS)
        self.items: View[Count] = View(
            app, f"{name}-items", Count, fold, self.sales, key=lambda event: event.item
        )
        self.topic = f"{self.items.name}.v1.keyed"

    async def sell(self, number: int, item: Callable[[int], str] = lambda n: f"i-{n % 7}") -> None:
        await self.sales.publish_many([Sold(f"s-{n % 5}", item(n), 1) for n in range(number)])

    async def folded(self) -> None:
        """Wait until all of it is."""

        async def is_folded() -> bool:
            progress = await self.items.progress()
            return progress.share == 1.0 and self.items.health().serving == 1

        await until(is_folded)

    async def sizes(self) -> int | None:
        """Messages that the keyed topic has."""
        return await asyncio.to_thread(self._size)

    def _size(self) -> int:
        log, total = self.app.log, 0
        for partition in range(log.describe_topic(self.topic).partitions):
            first, _ = log.watermarks(self.topic, partition)
            total += log.lag(self.topic, partition, first) or 0
        return total

    async def pieces(self) -> dict[str, int]:
        return {key: each.pieces for key, each in await self.items.scan("", limit=1_000)}


async def until(condition: Callable[[], Coroutine[Any, Any, bool]], seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110 - it is in the log
            await asyncio.sleep(0.1)


def sold(number: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for n in range(number):
        found[f"i-{n % 7}"] = found.get(f"i-{n % 7}", 0) + 1
    return found


def add(*parts: dict[str, int]) -> dict[str, int]:
    return {key: sum(each.get(key, 0) for each in parts) for key in {*parts[0], *parts[-1]}}


async def test_it_is_bounded_while_nothing_is_lost(stage: Stage) -> None:
    name = f"shops-{uuid4().hex[:8]}"
    shops = Shops(stage.app(), name)
    async with shops.app:
        for _ in range(4):
            await shops.sell(1_500)
            await shops.folded()

        async def is_bounded() -> bool:
            # What is appended has a log trim that does so then.
            await shops.sell(1, lambda n: "more")
            return (await shops.sizes() or 0) <= BOUND

        await until(is_bounded)
        await shops.folded()
        found = await shops.pieces()
        assert found.pop("more") >= 1
        assert found == {key: 4 * pieces for key, pieces in sold(1_500).items()}
        # A process that begins now goes on at the checkpoint.
        more = await shops.items.get("more")
    again = Shops(stage.app(), name)
    async with again.app:
        await again.sell(1, lambda n: "more")
        await again.folded()
        assert more is not None
        assert await again.items.get("more") == Count(more.pieces + 1, more.sales + 1)


async def test_a_document_that_stands_still_keeps_its_messages(stage: Stage) -> None:
    name = f"shops-{uuid4().hex[:8]}"
    shops = Shops(stage.app(), name, broken)
    async with shops.app:
        await shops.sell(50, lambda n: "bad")
        for _ in range(3):
            await shops.sell(1_000)
            await shops.folded()
        await shops.sell(50, lambda n: "bad")
        await shops.folded()
        with pytest.raises(DocumentStopped):
            await shops.items.get("bad")
        found = _inspector(shops).find_document(b"bad")
        assert found is not None
        stopped_in, document = found

        async def goes_on() -> bool:
            """The other partition is trimmed."""
            await shops.sell(1, lambda n: "more")
            return 1 - stopped_in in trimmed_below(shops.app.log, shops.topic)

        await until(goes_on)
        # This one keeps all since it stopped, though it is folded.
        stopped_at = decode_failure(document.failure).place[0]
        assert trimmed_below(shops.app.log, shops.topic).get(stopped_in, 0) <= stopped_at
        assert shops.app.log.watermarks(shops.topic, stopped_in)[0] <= stopped_at
    mended = Shops(stage.app(), name)
    async with mended.app:
        await mended.items.ready()
        assert await mended.items.retry("bad", timeout=60)
        assert await mended.items.get("bad") == Count(100, 100)

        async def is_bounded() -> bool:
            await mended.sell(1, lambda n: "more")
            return (await mended.sizes() or 0) <= BOUND

        await until(is_bounded)
        await mended.folded()
        pieces = await mended.pieces()
        assert pieces.pop("more") >= 1
        assert pieces == {"bad": 100, **{key: 3 * each for key, each in sold(1_000).items()}}


def _inspector(shops: Shops) -> VersionInspector:
    log = shops.app.log
    known = read_view(log, shops.items.name)
    version = known.find_version(1)
    assert version is not None
    return VersionInspector(log, shops.items.name, known, version)


@asynccontextmanager
async def trimmed(stage: Stage, name: str) -> AsyncIterator[Shops]:
    """A view whose keyed topic was trimmed, and that runs."""
    shops = Shops(stage.app(), name)
    async with shops.app:
        for _ in range(3):
            await shops.sell(1_000)
            await shops.folded()

        async def is_trimmed() -> bool:
            await shops.sell(1, lambda n: "more")
            first = [shops.app.log.watermarks(shops.topic, n)[0] for n in range(PARTITIONS)]
            return bool(trimmed_below(shops.app.log, shops.topic)) and any(first)

        await until(is_trimmed)
        await shops.folded()
        yield shops


async def test_it_is_made_anew_from_its_sources_once_it_was_trimmed(stage: Stage) -> None:
    name = f"shops-{uuid4().hex[:8]}"
    async with trimmed(stage, name) as shops, connected_operator(stage.url, shops.items.name) as by:
        expected = await shops.pieces()
        with pytest.raises(ViewOperationRefused, match="stop the processes that declare it") as no:
            await by.rebuild(1)
        assert "\n" not in str(no.value)
        assert await shops.pieces() == expected
    async with connected_operator(stage.url, shops.items.name) as by:

        async def is_left() -> bool:
            view = await by.load()
            known = view.find_version(1)
            assert known is not None
            inspector = VersionInspector(stage.anchor, shops.items.name, view, known)
            return not await asyncio.to_thread(inspector.members)

        await until(is_left)
        assert await by.rebuild(1) == PARTITIONS
        assert not trimmed_below(stage.anchor, shops.topic)
    again = Shops(stage.app(), name)
    async with again.app:
        await again.items.ready(90)
        assert await again.pieces() == expected
        await again.sell(7)
        await again.folded()
        assert await again.pieces() == add(expected, sold(7))


async def test_documents_that_were_lost_are_not_made_of_what_is_left(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"shops-{uuid4().hex[:8]}"
    async with trimmed(stage, name) as shops:
        (partition, floor), *_ = trimmed_below(shops.app.log, shops.topic).items()
    store: Any = stage.anchor.documents  # type: ignore[attr-defined]
    store.clear(f"{shops.items.name}.v1", partition)
    with pytest.raises(CheckpointBeyondLog, match="streams views rebuild"):
        check_above_floor(stage.anchor, "", shops.topic, partition, None)
    again = Shops(stage.app(), name)
    async with again.app.connected():
        problems = [each.problem for each in _inspector(again).partitions()]
        assert sum("was deleted there" in each for each in problems) == 1
    async with again.app:
        await again.sell(20)

        async def is_said() -> bool:
            return f"{shops.topic}/{partition}: what was folded below" in caplog.text

        await until(is_said)
        assert store.checkpoint(f"{shops.items.name}.v1", partition) is None  # nothing was folded
        assert floor > 0
