"""Processors and readers of event topics: what they are given of old events, and of bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from msgspec import Struct

from streams import Message
from streams.config import Retry
from streams.errors import BatchError, EventTopicError, InvalidValue, ProcessorDied, Reject
from streams.eventsourcing import Aggregate
from streams.patterns import DeadLetterManager
from streams.replay import replay
from tests.conformance.stage import Stage
from tests.eventsourcing.test_evolution import (
    OLD,
    Noise,
    Paid,
    PaidEuros,
    Split,
    Total,
    fold,
    history_of_old_events,
    today,
)

pytestmark = pytest.mark.anyio

NO_DELAY = Retry(attempts=3, delay=0.0)


def upcast(pays: Aggregate[Any, Total]) -> Aggregate[Any, Total]:
    """The old events of the bank are today's."""

    @pays.upcast(PaidEuros)
    def euros(old: PaidEuros) -> Paid:
        return Paid(old.euros * 100)

    @pays.upcast(Split)
    def split(old: Split) -> Sequence[Paid]:
        return [Paid(each) for each in old.parts]

    @pays.upcast(Noise)
    def noise(old: Noise) -> None:
        return None

    return pays


async def old_and_new(stage: Stage) -> None:
    await history_of_old_events(stage, Paid(1), Split((2, 3, 4)), Noise(), PaidEuros(5), Paid(6))


CENTS = [1, 2, 3, 4, 500, 6]


class Seen:
    """What handlers were given: cents, message ID, version, attempt."""

    def __init__(self) -> None:
        self.cents: list[int] = []
        self.ids: list[str] = []
        self.attempts: list[int] = []

    def add(self, event: Paid, message: Message[Any]) -> None:
        self.cents.append(event.cents)
        self.ids.append(message.id)
        self.attempts.append(message.attempt)
        assert message.value is event


@pytest.mark.parametrize("kind", ["async", "plain", "value", "async batch", "plain batch"])
async def test_a_processor_gets_old_events_as_todays_in_order(stage: Stage, kind: str) -> None:
    await old_and_new(stage)
    app = stage.app()
    pays = upcast(today(stage, app))
    seen = Seen()
    options: dict[str, Any] = {"group": stage.group, "retry": NO_DELAY}
    if "batch" in kind:
        options["batch"] = 100
    declare: Callable[..., Any] = app.processor(pays.events, **options)

    if kind == "async":

        @declare
        async def handle(event: Paid, message: Message[Paid]) -> None:
            seen.add(event, message)

    elif kind == "plain":

        @declare
        def handle_plain(event: Paid, message: Message[Paid]) -> None:
            seen.add(event, message)

    elif kind == "value":

        @declare
        def handle_value(event: Paid) -> None:
            seen.cents.append(event.cents)

    elif kind == "async batch":

        @declare
        async def handle_batch(events: list[Paid], messages: list[Message[Paid]]) -> None:
            for event, message in zip(events, messages, strict=True):
                seen.add(event, message)

    else:

        @declare
        def handle_plain_batch(events: list[Paid], messages: list[Message[Paid]]) -> None:
            for event, message in zip(events, messages, strict=True):
                seen.add(event, message)

    async with app:
        await stage.until(lambda: len(seen.cents) >= 6, "6 events")
        assert seen.cents == CENTS
        if kind != "value":
            stored = [each.id async for each in pays.read("a")]
            assert seen.ids == stored
            numbers = [id.partition("#")[2] for id in seen.ids]
            assert numbers == ["", "0", "1", "2", "", ""]
        await stage.until(
            lambda: (
                sum(each.handled + each.filtered for each in app.stats().processors.values()) >= 5
            ),
            "all five settled",
        )


async def test_what_one_event_has_become_is_settled_together(stage: Stage) -> None:
    await old_and_new(stage)
    app = stage.app()
    pays = upcast(today(stage, app))
    seen = Seen()

    @app.processor(pays.events, group=stage.group, retry=NO_DELAY)
    async def handle(event: Paid, message: Message[Paid]) -> None:
        seen.add(event, message)
        if event.cents == 3 and message.attempt < 3:
            raise RuntimeError("the second of three")

    async with app:
        await stage.until(lambda: 6 in seen.cents, "the last event")
        assert seen.cents == [1, 2, 3, 2, 3, 2, 3, 4, 500, 6]
        assert seen.attempts == [1, 1, 1, 2, 2, 3, 3, 3, 1, 1]


async def test_it_is_dead_as_one_and_comes_back_as_one(stage: Stage) -> None:
    await old_and_new(stage)
    app = stage.app()
    pays = upcast(today(stage, app))
    seen = Seen()
    healthy = False

    @app.processor(pays.events, group=stage.group)
    async def handle(event: Paid, message: Message[Paid]) -> None:
        if event.cents == 3 and not healthy:
            raise Reject("the second of three")
        seen.add(event, message)

    async with app:
        await stage.until(lambda: 6 in seen.cents, "the last event")
        assert seen.cents == [1, 2, 500, 6]
        letters = DeadLetterManager(app, f"{pays.events.name}.{stage.group}.dead")
        await stage.until(lambda: app.wait(letters.count()) == 1, "a dead letter")
        (letter,) = await letters.get_dead_letters()
        assert letter.original_message.value == [Paid(2), Paid(3), Paid(4)]
        healthy = True
        await letters.reprocess()
        await stage.until(lambda: len(seen.cents) == 7, "what came back")
        assert seen.cents[4:] == [2, 3, 4]
        assert [id.partition("#")[2] for id in seen.ids[4:]] == ["0", "1", "2"]


class PaidText(Struct, tag="paid", frozen=True):
    """An event of a tag of today, with a field that is none of today's."""

    cents: str


async def test_an_event_that_cannot_be_decoded_is_a_dead_letter(stage: Stage) -> None:
    """No newer code would read it. (One with another tag waits: see test_newer_code.py.)"""
    writer = stage.app()
    old: Aggregate[Any, Total] = Aggregate(
        writer, stage.topic_name, PaidText, Total, fold, partitions=2
    )
    async with writer:
        await old.append("b", [PaidText("much")], expected="new")
    await history_of_old_events(stage, Paid(1), Paid(2))
    app = stage.app()
    pays = today(stage, app)
    seen = Seen()

    @app.processor(pays.events, group=stage.group)
    async def handle(event: Paid, message: Message[Paid]) -> None:
        seen.add(event, message)

    async with app:
        await stage.until(lambda: len(seen.cents) == 2, "the events that are known")
        letters = DeadLetterManager(app, f"{pays.events.name}.{stage.group}.dead")
        await stage.until(lambda: app.wait(letters.count()) == 1, "a dead letter")
        (letter,) = await letters.get_dead_letters()
        assert b"much" in (letter.original_message.raw.value or b"")


async def test_filters_and_results_are_of_each_event(stage: Stage) -> None:
    await old_and_new(stage)
    app = stage.app()
    pays = upcast(today(stage, app))
    results = app.topic(f"{stage.topic_name}-results", int, partitions=1)
    batches = app.topic(f"{stage.topic_name}-batches", int, partitions=1)

    def is_even(event: Paid) -> bool:
        return event.cents % 2 == 0

    @app.processor(pays.events, group=stage.group, to=results, filter=is_even)
    def handle(event: Paid) -> Iterator[int]:
        yield event.cents
        yield -event.cents

    @app.processor(pays.events, group=f"{stage.group}-2", to=batches, filter=is_even, batch=10)
    async def handle_batch(events: list[Paid]) -> list[int | None]:
        return [event.cents if event.cents != 500 else None for event in events]

    async with app:
        await stage.until(lambda: len(list(results.read())) >= 8, "8 results")
        found = [each async for each in results.read()]
        assert [each.value for each in found] == [2, -2, 4, -4, 500, -500, 6, -6]
        assert len({each.id for each in found}) == 8
        await stage.until(lambda: len(list(batches.read())) >= 3, "3 results")
        found = [each async for each in batches.read()]
        assert [each.value for each in found] == [2, 4, 6]
        assert len({each.id for each in found}) == 3


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_batch_error_names_the_event_that_stands_in_the_log(
    stage: Stage, kind: str
) -> None:
    await history_of_old_events(stage, Paid(1), Split((2, 3, 4)), Paid(5))
    app = stage.app()
    pays = upcast(today(stage, app))
    calls: list[list[int]] = []

    def note(events: list[Paid]) -> None:
        calls.append([event.cents for event in events])
        if 3 in calls[-1] and len(calls) < 3:
            raise BatchError({calls[-1].index(3): RuntimeError("the second of three")})

    declare = app.processor(pays.events, group=stage.group, retry=NO_DELAY, batch=10)
    if kind == "async":

        @declare
        async def handle(events: list[Paid]) -> None:
            note(events)

    else:

        @declare
        def handle_plain(events: list[Paid]) -> None:
            note(events)

    async with app:
        await stage.until(
            lambda: sum(each.handled for each in app.stats().processors.values()) >= 3, "3 settled"
        )
        assert [each for call in calls for each in call if each in (1, 5)] == [1, 5]
        assert [each for call in calls for each in call if each == 3] == [3, 3, 3]
        assert [2, 3, 4] in calls


async def test_readers_and_replays_get_todays_events(stage: Stage) -> None:
    await old_and_new(stage)
    app = stage.app()
    pays = upcast(today(stage, app))
    async with app.connected():
        found = [each async for each in pays.events.read()]
        assert [each.value.cents for each in found] == CENTS
        assert [each.id for each in found] == [each.id async for each in pays.read("a")]
        assert [pays.events.version_of(each) for each in found] == [1, 2, 2, 2, 4, 5]
        assert len({each.offset for each in found}) == 4
        with pytest.raises(InvalidValue, match="no event"):
            pays.events.version_of(Message(Paid(1), id="x"))
        replayed: list[int] = []

        def handle(event: Paid) -> None:
            replayed.append(event.cents)

        done = await replay(app, pays.events, handle)
        assert replayed == CENTS
        assert (done.handled, done.filtered) == (4, 1)


async def test_a_processor_decides_upon_each_event_once(stage: Stage) -> None:
    await history_of_old_events(stage, Split((2, 3, 4)))
    app = stage.app()
    pays = upcast(today(stage, app))
    totals: Aggregate[Any, Total] = Aggregate(
        app, f"{stage.topic_name}-totals", OLD, Total, fold, partitions=1
    )
    calls = 0

    @app.processor(pays.events, group=stage.group, retry=NO_DELAY)
    async def handle(event: Paid, message: Message[Paid]) -> None:
        nonlocal calls
        calls += 1
        await totals.append("all", event, expected="any")
        if calls == 2:
            raise RuntimeError("after the second of three")

    async with app:
        await stage.until(lambda: calls == 5, "five calls")
        await stage.until(
            lambda: sum(each.handled for each in app.stats().processors.values()) == 1, "settled"
        )
        assert [each.event.cents async for each in totals.read("all")] == [2, 3, 4]


async def test_nothing_publishes_to_an_event_topic(stage: Stage) -> None:
    app = stage.app()
    pays = today(stage, app)
    async with app:
        with pytest.raises(EventTopicError, match="cannot be published to"):
            await pays.events.publish(Paid(1))
        with pytest.raises(EventTopicError, match="cannot be published to"):
            await pays.events.publish_many([Paid(1)])


async def test_a_coroutine_of_a_plain_handler_is_a_mistake(stage: Stage) -> None:
    await history_of_old_events(stage, Split((2, 3, 4)))
    app = stage.app()
    pays = upcast(today(stage, app))

    async def decide(event: Paid) -> None:
        raise AssertionError("nobody awaits it")

    @app.processor(pays.events, group=stage.group)
    def handle(event: Paid) -> Any:
        return decide(event)

    with pytest.raises(ProcessorDied, match="coroutine"):
        async with app:
            await app.failed()
            await asyncio.Event().wait()
