"""Following a topic from code: for views in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from stream_codecs import DecodeError
from streams import InvalidValue, NotFound, TopicFollower
from streams.errors import Unavailable
from streams.message import Record
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import Deposited, accounts, deposit
from tests.views.bank import unique

pytestmark = pytest.mark.anyio


class Totals:
    """A view in memory: what was deposited to each account."""

    def __init__(self) -> None:
        self.cents: Counter[str] = Counter()
        self.count = 0

    async def follow(self, follower: TopicFollower[Any]) -> None:
        async for message in follower:
            if isinstance(message.value, Deposited):
                self.cents[message.key or ""] += message.value.cents
            self.count += 1


async def test_a_follower_tells_when_it_has_caught_up_and_goes_on(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, unique())
    async with app.connected():
        for number in range(30):
            await bank.decide(f"a-{number % 3}", deposit, number)
        totals, follower = Totals(), bank.events.follow()
        task = asyncio.create_task(totals.follow(follower))
        try:
            await follower.wait_caught_up()
            assert follower.caught_up
            assert totals.count == 30
            await bank.decide("a-0", deposit, 1_000)
            await stage.until(lambda: totals.count == 31, "the next event")
            assert totals.cents == {
                f"a-{n}": sum(range(n, 30, 3)) + (1_000 if n == 0 else 0) for n in range(3)
            }
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_a_follower_goes_on_where_another_has_left(stage: Stage) -> None:
    app = stage.app()
    numbers = stage.topic(app, partitions=3)
    async with app.connected():
        await stage.publish(numbers, *range(20), key=lambda value: f"k{value % 5}")
        seen: list[int] = []
        first = numbers.follow()
        async for message in first:
            seen.append(message.value)
            if len(seen) == 8:
                break
        # The one at which it left is not handled for certain, and comes again.
        async for message in numbers.follow(first.positions):
            if message.value not in seen[:7]:
                seen.append(message.value)
            if len(set(seen)) == 20:
                break
        assert sorted(set(seen)) == list(range(20))
        assert not first.caught_up


async def test_an_empty_topic_is_caught_up_at_once(stage: Stage) -> None:
    app = stage.app()
    numbers = stage.topic(app)
    async with app.connected():
        follower = numbers.follow("latest")

        async def first() -> Any:
            async for message in follower:
                return message.value
            return None

        task = asyncio.create_task(first())
        await follower.wait_caught_up()
        await numbers.publish(7)
        assert await task == 7


async def test_it_follows_from_a_place_of_one_partition(stage: Stage) -> None:
    app = stage.app()
    numbers = stage.topic(app)
    async with app.connected():
        await stage.publish(numbers, 1, 2, 3, key="k")
        found = [message async for message in numbers.read()]
        second = found[1].position
        async for message in numbers.follow(second):
            assert message.value == 2
            break
        with pytest.raises(NotFound):
            numbers.follow(partition=99)
        with pytest.raises(InvalidValue):
            numbers.follow("yesterday")


async def test_after_an_outage_nothing_comes_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was handed out before the log could not be read was handled."""
    monkeypatch.setattr("streams.topic_follower.OUTAGE_PAUSE", 0.01)
    app = stage.app()
    numbers = stage.topic(app, partitions=1)
    reads = 0

    class Failing:
        """Reads few at once, and fails each third time."""

        def __init__(self, reader: Any) -> None:
            self._reader = reader

        def read(self, limit: int, *args: Any, **options: Any) -> Any:
            nonlocal reads
            reads += 1
            if reads % 3 == 0:
                raise Unavailable("the broker is restarted")
            return self._reader.read(4, *args, **options)

        def close(self) -> None:
            self._reader.close()

    async with app.connected():
        for start in range(0, 40, 4):
            await stage.publish(numbers, *range(start, start + 4), key="k")
        log, new_reader = app.log, app.log.reader
        monkeypatch.setattr(log, "reader", lambda *args: Failing(new_reader(*args)))
        seen: list[int] = []
        follower = numbers.follow()
        async for message in follower:
            seen.append(message.value)
            if message.value == 39:
                break
        assert reads > 3
        assert seen == list(range(40))


async def test_a_value_that_cannot_be_decoded_ends_it_behind_what_was_handled(stage: Stage) -> None:
    app = stage.app()
    numbers = stage.topic(app, partitions=1)
    async with app.connected():
        await stage.publish(numbers, 0, 1, 2, key="k")
        await app.publisher.publish(numbers.name, Record(b"{", b"k", "bad"))
        follower = numbers.follow()
        handled = 0
        with pytest.raises(DecodeError):
            async for _ in follower:
                handled += 1
        assert handled == 3
        places = [each.position.offset async for each in numbers.read(errors="skip")]
        assert follower.positions == {0: places[-1] + 1}


async def test_a_position_beyond_the_end_is_followed_from_the_first_message(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """The topic was made anew, or the log has lost its end."""
    app = stage.app()
    numbers = stage.topic(app, partitions=1)
    async with app.connected():
        await stage.publish(numbers, *range(5), key="k")
        last = [each.position.offset async for each in numbers.read()][-1]
        follower = numbers.follow({0: last + 1_000})
        assert not follower.caught_up
        seen: list[int] = []
        async for message in follower:
            seen.append(message.value)
            if len(seen) == 5:
                break
        assert seen == list(range(5))
        assert "is beyond the log's end" in caplog.text
