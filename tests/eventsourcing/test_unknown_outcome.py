"""Appends whose answers are lost: sent again, told as they are, and never there twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest

from streams import Streams
from streams.errors import OutcomeUnknown, Unavailable
from streams.eventsourcing import runtime
from streams.log.memory.log import MemoryLog
from streams.log.url import open_log
from tests.eventsourcing.bank import Account, accounts, deposit

pytestmark = pytest.mark.anyio


@pytest.fixture
def url() -> Iterator[str]:
    found = f"memory://{uuid4().hex}"
    anchor = open_log(found)  # what is in memory lasts as long as somebody holds it
    yield found
    anchor.close()


class Faults:
    """Each append strikes the next of these; None: it goes well. The last one strikes for ever.

    :param steps: ``before`` the write, when nothing is written, or ``after`` it.
    """

    def __init__(self, app: Streams, steps: Sequence[str | None]) -> None:
        assert isinstance(app.log, MemoryLog)
        self._steps = list(steps)
        self.calls = 0
        app.log.fault(self)

    def __call__(self, point: str, name: str) -> None:
        step = self._steps[min(self.calls, len(self._steps) - 1)]
        if point == "append":
            self.calls += 1
            if step == "before":
                raise Unavailable("not now")
        if point == "append.done":
            before = self._steps[min(self.calls - 1, len(self._steps) - 1)]
            if before == "after":
                raise OutcomeUnknown("no answer")


async def stored(url: str) -> list[int]:
    """The amounts in the history, as somebody else reads them."""
    app = Streams(url)
    bank = accounts(app)
    async with app:
        return [each.event.cents async for each in bank.read("a")]


@pytest.mark.parametrize("lost", [1, 2, 3])
async def test_an_append_whose_answer_is_lost_is_sent_again(
    url: str, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "RESEND_PAUSES", (0.0, 0.0, 0.0, 0.0))
    app = Streams(url)
    bank = accounts(app)
    async with app:
        faults = Faults(app, ["after"] * lost + [None])
        done = await bank.decide("a", deposit, 5)
        assert (done.version, faults.calls) == (1, lost + 1)
        assert (await bank.decide("a", Account.withdraw, 5)).version == 2
    assert await stored(url) == [5, 5]


@pytest.mark.parametrize(
    "steps", [["after"], ["after", "before"], ["after", "before", "after", "before"]]
)
async def test_what_may_be_there_is_never_told_as_refused(
    url: str, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that takes an append and dies before it answers cannot be reached when the append
    is sent again: that nothing was written then says nothing of the first time."""
    monkeypatch.setattr(runtime, "RESEND_PAUSES", (0.0, 0.0, 0.0, 0.0))
    app = Streams(url)
    bank = accounts(app)
    async with app:
        Faults(app, steps)
        with pytest.raises(OutcomeUnknown, match="no answer"):
            await bank.decide("a", deposit, 5)
    assert await stored(url) == [5]


async def test_what_was_certainly_not_written_is_told_as_such(url: str) -> None:
    app = Streams(url)
    bank = accounts(app)
    async with app:
        faults = Faults(app, ["before"])
        with pytest.raises(Unavailable):
            await bank.decide("a", deposit, 5)
        assert faults.calls == 1
    assert await stored(url) == []


async def test_an_app_that_closes_before_the_answer_leaves_it_open(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Streams(url)
    bank = accounts(app)
    closed = asyncio.Event()

    class Asyncio:
        """The library, whose pauses between two tries last until the app is closed."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def sleep(self, seconds: float) -> None:
            await closed.wait()

    monkeypatch.setattr(runtime, "asyncio", Asyncio())
    async with app:
        faults = Faults(app, ["after"])
        waiting = asyncio.ensure_future(bank.decide("a", deposit, 5))
        while faults.calls < 1:
            await asyncio.wait({waiting}, timeout=0.01)
    closed.set()
    with pytest.raises(OutcomeUnknown, match="clos"):
        await waiting
    assert await stored(url) == [5]
