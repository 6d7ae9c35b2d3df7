"""The event bus: the same handlers do the same in one process and over every log."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest

from stream_codecs import EncodeError
from streams import ConfigError, InvalidValue, Retry, Streams
from streams.patterns import Event, EventBus, EventFilter, FilteredSubscriber, PatternEventBus
from tests.patterns.bus_world import QUICK, Calls, World, world

__all__ = ["world"]

pytestmark = pytest.mark.anyio


async def test_a_handler_gets_what_was_published(world: World) -> None:
    bus, got = world.bus(EventBus), list[Event]()

    async def handle(event: Event) -> None:
        got.append(event)

    bus.subscribe("order.paid", handle)
    then = datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    async with world.running(bus):
        id = await bus.publish(
            "order.paid", {"total": 7}, key="ada", headers={"tenant": "x"}, timestamp=then
        )
        await bus.publish("order.shipped", 1)
        await bus.publish("order.paid", None, id="mine")
        await world.until(lambda: len(got) == 2)
    first = next(event for event in got if event.id == id)
    assert (first.topic, first.data, first.key, first.attempt) == (
        "order.paid", {"total": 7}, "ada", 1,
    )  # fmt: skip
    assert first.timestamp == then
    assert first.timestamp.tzinfo == timezone.utc
    assert first.headers["tenant"] == "x"
    assert first.headers["ce_type"] == "order.paid"
    assert first.headers["ce_id"] == id
    second = next(event for event in got if event.id == "mine")
    assert (second.data, second.key, second.causation_id) == (None, None, None)
    assert datetime.now(timezone.utc) - second.timestamp < timedelta(minutes=1)
    assert "7" not in repr(first).replace(id, "")  # no data in a log line


async def test_a_time_at_the_edge_of_the_calendar_is_published(world: World) -> None:
    """In UTC it would be in the year 10000."""
    bus, got = world.bus(EventBus), list[Event]()

    async def handle(event: Event) -> None:
        got.append(event)

    bus.subscribe("order.paid", handle)
    last = datetime.max.replace(tzinfo=timezone(timedelta(hours=-14)))
    async with world.running(bus):
        await bus.publish("order.paid", 1, timestamp=last)
        await world.until(lambda: got)
    assert got[0].timestamp == datetime.max.replace(tzinfo=timezone.utc)


async def test_plain_handlers_run_beside_the_loop(world: World) -> None:
    bus, threads = world.bus(), list[threading.Thread]()
    later = list[str]()

    def handle(event: Event) -> None:
        threads.append(threading.current_thread())

    async def coroutine(event: Event) -> None:
        later.append(event.topic)

    bus.subscribe("a", handle)
    bus.subscribe("a", handle, group=world.group, flow=QUICK)
    bus.subscribe("a", lambda event: coroutine(event))  # a plain function that returns an awaitable
    async with world.running(bus):
        await bus.publish("a", 1)
        await world.until(lambda: len(threads) == 2 and later == ["a"])
    assert threading.main_thread() not in threads
    assert world.calls.errors == []


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("durable", [False, True])
async def test_a_failure_reaches_the_hook_and_stops_nobody(
    world: World, durable: bool, plain: bool
) -> None:
    bus = world.bus()
    options: dict[str, Any] = {"group": world.group, "flow": QUICK} if durable else {}
    if durable:
        options["retry"] = Retry(attempts=1)

    def fails_plainly(event: Event) -> None:
        raise ValueError(f"no {event.topic}")

    async def fails_too(event: Event) -> None:
        fails_plainly(event)

    fails: Any = fails_plainly if plain else fails_too
    bus.subscribe("a.*", fails, **options)
    bus.subscribe("a.*", world.calls.take)
    async with world.running(bus):
        await bus.publish("a.b", 1)
        await bus.publish("a.c", 2)
        await world.until(lambda: len(world.calls.got) == 2 and len(world.calls.errors) == 2)
    assert sorted(world.calls.errors) == [("no a.b", "a.b", fails), ("no a.c", "a.c", fails)]


async def test_an_async_hook_is_awaited_and_may_fail_itself(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async def hook(error: Exception, event: Event, handler: Any) -> None:
        await asyncio.sleep(0)
        raise LookupError("the hook's own")

    bus = world.bus(on_error=hook)

    def fails(event: Event) -> None:
        raise ValueError("the handler's")

    bus.subscribe("a", fails)
    bus.subscribe("a", world.calls.take)
    async with world.running(bus):
        await bus.publish("a", "secret")
        said = ("the hook's own", "the handler's")
        await world.until(lambda: all(each in caplog.text for each in said) and world.calls.got)
    assert "the hook's own" in caplog.text
    assert "the handler's" in caplog.text
    assert "secret" not in caplog.text


async def test_without_a_hook_failures_are_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    bus = world.bus(on_error=None)

    async def fails(event: Event) -> None:
        raise ValueError("no")

    bus.subscribe("a", fails)
    async with world.running(bus):
        id = await bus.publish("a", "secret")
        await world.until(lambda: id in caplog.text)
    assert "failed in fails: ValueError('no')" in caplog.text
    assert "secret" not in caplog.text


async def test_one_call_an_event_however_many_patterns_fit(world: World) -> None:
    bus, ids = world.bus(), list[tuple[str, str]]()

    async def handle(event: Event) -> None:
        ids.append((event.topic, event.id))

    patterns = ("order.*", "order.*.paid", "*", "order.eu.paid", "order.eu.paid")
    subscriptions = [bus.subscribe(pattern, handle) for pattern in patterns]
    async with world.running(bus):
        first = await bus.publish("order.eu.paid", 1)
        await world.until(lambda: ids == [("order.eu.paid", first)])
        for subscription in subscriptions[:3]:
            subscription()
        second = await bus.publish("order.us.paid", 2)
        third = await bus.publish("order.eu.paid", 3)
        await world.until(lambda: len(ids) == 2)
    assert ids == [("order.eu.paid", first), ("order.eu.paid", third)]
    assert second not in dict(map(reversed, ids))  # type: ignore[arg-type]


async def test_patterns(world: World) -> None:
    bus = world.bus()
    wanted = {
        "order.*": {"order.paid", "order.eu.paid", "order.eu.de.paid"},
        "order.*.paid": {"order.eu.paid"},
        "*.paid": {"order.paid"},
        "*.*.paid": {"order.eu.paid"},
        "*": {"order", "order.paid", "order.eu.paid", "order.eu.de.paid", "orders.paid.eu"},
        "order": {"order"},
    }
    got: dict[str, set[str]] = {pattern: set() for pattern in wanted}
    for pattern in wanted:

        async def handle(event: Event, pattern: str = pattern) -> None:
            got[pattern].add(event.topic)

        bus.subscribe(pattern, handle)
    async with world.running(bus):
        for topic in sorted(wanted["*"]):
            await bus.publish(topic, None)
        await world.until(lambda: got == wanted)


async def test_unsubscribing_during_delivery(world: World) -> None:
    bus = world.bus()

    async def once(event: Event) -> None:
        subscriptions[0]()
        subscriptions[0]()  # again is harmless
        subscriptions[1]()
        world.calls.got.append(("once", event.data))

    async def never(event: Event) -> None:
        world.calls.got.append(("never", event.data))

    async def late(event: Event) -> None:
        world.calls.got.append(("late", event.data))

    async def stays(event: Event) -> None:
        if event.data == 1:
            bus.subscribe("a", late)
        world.calls.got.append(("stays", event.data))

    subscriptions = [bus.subscribe("a", each) for each in (once, never, stays)]
    async with world.running(bus):
        await bus.publish("a", 1, key="k")
        await world.until(lambda: ("stays", 1) in world.calls.got)
        await bus.publish("a", 2, key="k")
        await world.until(lambda: {("stays", 2), ("late", 2)} <= set(world.calls.got))
    assert sorted(world.calls.got) == [("late", 2), ("once", 1), ("stays", 1), ("stays", 2)]


@pytest.mark.parametrize("durable", [False, True])
async def test_subscribing_and_unsubscribing_while_it_runs(world: World, durable: bool) -> None:
    bus = world.bus()
    options: dict[str, Any] = {}
    if durable:
        options = {"group": world.group, "flow": QUICK, "start": "latest"}
    async with world.running(bus):
        await bus.publish("a.0", 0)
        subscription = bus.subscribe("a.*", world.calls.take, **options)
        if durable:
            await subscription.ready()  # a new group begins when it is known to the log
        await bus.publish("a.1", 1)
        await world.until(lambda: world.calls.got == [("a.1", 1)])
        subscription()
        await subscription.closed()
        await bus.publish("a.2", 2)
        last = list[Event]()
        bus.subscribe("the.end", last.append)
        await bus.publish("the.end", 3)
        await world.until(lambda: bool(last))
        if bus.app is not None:
            assert bus.app.health().ok
    assert world.calls.got == [("a.1", 1)]


async def test_a_new_subscriber_gets_nothing_that_was_published_before(world: World) -> None:
    """Also while a reading of the log is under way, which may not have come that far."""
    bus, other = world.bus(), list[int]()
    gate = asyncio.Event()

    async def slow(event: Event) -> None:
        await gate.wait()

    async def later(event: Event) -> None:
        other.append(event.data)

    bus.subscribe("*", slow)
    async with world.running(bus):
        async with asyncio.TaskGroup() as group:
            before = [group.create_task(bus.publish("a", n)) for n in range(100)]
            if bus.app is None:
                await asyncio.sleep(0)  # all have begun
            else:
                await asyncio.gather(*before)  # durable, and most of it not delivered yet
            bus.subscribe("a", later)
            after = [group.create_task(bus.publish("a", n)) for n in range(100, 110)]
            gate.set()
            await asyncio.gather(*after)
        await world.until(lambda: len(other) >= 10)
    assert sorted(other) == list(range(100, 110))


async def test_events_of_a_key_come_in_order_and_one_at_a_time(world: World) -> None:
    bus, got, running = world.bus(), list[tuple[str, int]](), set[str]()
    overlaps = list[int]()

    async def handle(event: Event) -> None:
        key = event.key or ""
        if key in running:
            overlaps.append(event.data)
        running.add(key)
        await asyncio.sleep(0)
        running.discard(key)
        got.append((key, event.data))

    bus.subscribe("*", handle)
    async with world.running(bus):
        for n in range(60):
            await bus.publish(f"t.{n}", n, key=f"k{n % 3}")
        await world.until(lambda: len(got) == 60)
    for key in ("k0", "k1", "k2"):
        numbers = [n for each, n in got if each == key]
        assert numbers == sorted(numbers)
    assert not overlaps


async def test_what_an_event_causes_names_it(world: World) -> None:
    bus, got = world.bus(), list[Event]()

    async def answer(event: Event) -> None:
        await bus.publish("answer", event.data + 1, cause=event, headers={"tenant": "y"})

    async def collect(event: Event) -> None:
        got.append(event)

    bus.subscribe("question", answer, group=world.group, flow=QUICK)
    bus.subscribe("answer", collect)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with world.running(bus):
        root = await bus.publish("question", 1, headers={"traceparent": trace, "other": "x"})
        await world.until(lambda: len(got) == 1)
        await bus.publish("question", 2, headers={"correlationid": "c-1"}, id="q2")
        await world.until(lambda: len(got) == 2)
    first, second = got
    assert (first.data, first.correlation_id, first.causation_id) == (2, root, root)
    assert first.headers["traceparent"] == trace
    assert first.headers["tenant"] == "y"
    assert "other" not in first.headers
    assert (second.correlation_id, second.causation_id) == ("c-1", "q2")


async def test_everybody_hears_of_the_cause_before_the_effect(world: World) -> None:
    bus = world.bus()

    async def answer(event: Event) -> None:
        if event.data < 5:
            await bus.publish(f"n.{event.data + 1}", event.data + 1, key="k", cause=event)

    for number in range(5):
        bus.subscribe(f"n.{number}", answer)
    bus.subscribe("n.*", world.calls.take)  # the last event has no other subscriber
    async with world.running(bus):
        await bus.publish("n.0", 0, key="k")
        await world.until(lambda: len(world.calls.got) == 6)
    assert [data for _, data in world.calls.got] == list(range(6))


class Paid(msgspec.Struct, tag="paid"):
    amount: int
    currency: str = "EUR"


class Lost(msgspec.Struct, tag="lost"):
    why: str


async def test_filters_look_at_the_event_itself(world: World) -> None:
    bus = world.bus(EventBus, type=Paid | Lost)
    got: dict[str, list[Any]] = {}

    def listen(name: str, **wanted: Any) -> None:
        async def handle(event: Event) -> None:
            got.setdefault(name, []).append((event.topic, event.id))

        FilteredSubscriber(bus, EventFilter(**wanted)).subscribe(handle)

    listen("pattern", topic="order.*")
    listen("expression", topic=re.compile(r"order\.(eu|us)\.\w+$"))
    listen("class", type=Paid)
    listen("tag", type="lost")
    listen("field", topic="order.*", attributes={"currency": "USD"})
    listen("asked", attributes={"amount": lambda amount: amount > 5})
    listen("header", attributes={"tenant": re.compile("a.*")})
    async with world.running(bus):
        a = await bus.publish("order.eu.paid", Paid(3), headers={"tenant": "abc"})
        b = await bus.publish("order.us.paid", Paid(9, "USD"), headers={"tenant": "b"})
        c = await bus.publish("order.asia.x", Lost("at sea"))
        d = await bus.publish("preorder.eu.x", Paid(1, "USD"))
        everything = {"pattern": 3, "expression": 2, "class": 3, "tag": 1, "field": 1}
        everything |= {"asked": 1, "header": 1}
        await world.until(lambda: {k: len(v) for k, v in got.items()} == everything)
    ids = {name: {id for _, id in events} for name, events in got.items()}
    assert ids == {
        "pattern": {a, b, c},
        "expression": {a, b},
        "class": {a, b, d},
        "tag": {c},
        "field": {b},
        "asked": {b},
        "header": {a},
    }
    assert dict(got["expression"]) == {"order.eu.paid": a, "order.us.paid": b}


FILTERS: list[tuple[dict[str, Any], bool]] = [
    ({}, True),
    ({"topic": "order.eu.paid"}, True),
    ({"topic": "order.*.paid"}, True),
    ({"topic": "order"}, False),
    ({"topic": "*.paid"}, False),
    ({"topic": re.compile(r"\w+\.eu")}, True),
    ({"topic": re.compile(r"order$")}, False),
    ({"topic": re.compile(r"eu")}, False),  # from the beginning
    ({"type": dict}, True),
    ({"type": (list, str)}, False),
    ({"type": (str, dict)}, True),
    ({"type": Paid | Lost}, False),
    ({"type": "paid"}, True),
    ({"type": "unpaid"}, False),
    ({"attributes": {"n": 1, "currency": "EUR"}}, True),
    ({"attributes": {"n": 1, "currency": "USD"}}, False),
    ({"attributes": {"currency": re.compile("E.R")}}, True),
    ({"attributes": {"currency": re.compile("U")}}, False),  # in full
    ({"attributes": {"n": re.compile("1")}}, False),  # of text
    ({"attributes": {"missing": None}}, False),
    ({"attributes": {"tenant": "a"}}, True),
    ({"attributes": {"n": lambda n: n == 1}}, True),
    ({"topic": "order.*", "type": dict, "attributes": {"n": 2}}, False),
]


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_what_a_filter_lets_through(number: int) -> None:
    wanted, yes = FILTERS[number]
    data = {"n": 1, "currency": "EUR", "type": "paid"}
    event = Event(
        topic="order.eu.paid",
        data=data,
        id="1",
        key=None,
        timestamp=datetime.now(timezone.utc),
        headers={"tenant": "a", "n": "2"},
    )
    assert EventFilter(**wanted).matches(event) is yes


async def test_a_filter_that_fails_is_its_subscribers_failure(world: World) -> None:
    bus = world.bus()

    def asks(value: Any) -> bool:
        raise ZeroDivisionError("asked too much")

    FilteredSubscriber(bus, EventFilter(attributes={"n": asks})).subscribe(world.calls.take)
    bus.subscribe("a", world.calls.take)
    other = list[Event]()
    bus.subscribe("a", lambda event: other.append(event))
    async with world.running(bus):
        await bus.publish("a", {"n": 1})
        await world.until(lambda: len(other) == 1 and len(world.calls.errors) == 1)
    assert world.calls.errors == [("asked too much", "a", world.calls.take)]


async def test_a_durable_filter(world: World) -> None:
    bus = world.bus()
    even = EventFilter(topic="n.*", attributes={"n": lambda n: n % 2 == 0})
    FilteredSubscriber(bus, even, group=world.group, flow=QUICK).subscribe(world.calls.take)
    async with world.running(bus):
        for n in range(6):
            await bus.publish(f"n.{n}", {"n": n}, key="k")
        await world.until(lambda: len(world.calls.got) == 3)
    assert world.calls.topics == ["n.0", "n.2", "n.4"]


async def test_a_handler_cancelled_from_within_is_a_failure(world: World) -> None:
    bus = world.bus()

    async def handle(event: Event) -> None:
        task = asyncio.create_task(asyncio.sleep(60))
        task.cancel()
        await task

    bus.subscribe("a", handle)
    bus.subscribe("a", world.calls.take)
    async with world.running(bus):
        await bus.publish("a", 1)
        await world.until(lambda: len(world.calls.errors) == 1 and len(world.calls.got) == 1)
    assert world.calls.errors[0][0] == "handle was cancelled from within"


async def test_bound_methods_are_one_handler(world: World) -> None:
    bus, kind = world.bus(), list[str]()

    class Listener:
        async def handle(self, event: Event) -> None:
            kind.append(event.topic)

    one, two = Listener(), Listener()
    bus.subscribe("a", one.handle)
    bus.subscribe("*", one.handle)
    bus.subscribe("*", two.handle)
    async with world.running(bus):
        await bus.publish("a", 1)
        await world.until(lambda: len(kind) >= 2)
        await bus.publish("b", 1)
        await world.until(lambda: len(kind) >= 4)
    assert kind == ["a", "a", "b", "b"]


def test_kinds_of_bus() -> None:
    assert issubclass(PatternEventBus, EventBus)
    assert repr(EventBus()) == "<EventBus 'events' local>"
    assert "secret" not in repr(EventBus(Streams("redis://user:secret@host/0")))


class Holder:
    """Something that cannot be hashed and can be called."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def __call__(self, event: Event) -> None:
        self.got.append(event.data)


async def test_a_handler_that_cannot_be_hashed(world: World) -> None:
    bus, holder = world.bus(), Holder()
    first = bus.subscribe("a", holder)
    bus.subscribe("*", holder)
    async with world.running(bus):
        await bus.publish("a", 1, key="k")
        first()
        await bus.publish("b", 2, key="k")
        await world.until(lambda: len(holder.got) >= 2)
    assert holder.got == [1, 2]


@pytest.mark.parametrize("local", [True, False])
async def test_a_publish_that_cannot_be_is_refused_before_anything_happens(local: bool) -> None:
    app = None if local else Streams("memory://")
    bus, got = PatternEventBus(app), list[Event]()
    bus.subscribe("*", got.append)
    publish: Any = bus.publish
    naive = datetime(2024, 1, 1)  # noqa: DTZ001 - that is what is wrong with it
    cases: list[tuple[type[Exception], dict[str, Any]]] = [
        (InvalidValue, {"topic": "a.*"}),
        (InvalidValue, {"topic": ""}),
        (EncodeError, {"topic": "a", "id": ""}),
        (EncodeError, {"topic": "a", "id": 7}),
        (EncodeError, {"topic": "a", "key": 1.5}),
        (EncodeError, {"topic": "a", "headers": [("a", "b")]}),
        (EncodeError, {"topic": "a", "headers": {"n": 1}}),
        (EncodeError, {"topic": "a", "headers": {"ce_type": "b"}}),
        (EncodeError, {"topic": "a", "headers": {"ce_id": "b"}}),
        (EncodeError, {"topic": "a", "timestamp": naive}),
        (EncodeError, {"topic": "a", "timestamp": "today"}),
    ]
    async with app if app is not None else nullcontext():
        for kind, wrong in cases:
            with pytest.raises(kind) as caught:
                await publish(data=1, **wrong)
            assert "\n" not in str(caught.value)
        if app is not None:
            assert app.log.watermarks("events", 0)[1] == 0
    assert got == []


class Unfit:
    def __call__(self) -> None: ...


async def generator(event: Event) -> Any:
    yield


def two(one: Event, other: Event) -> None: ...


def fine(event: Event) -> None: ...


WRONG: dict[str, Callable[[Any], Any]] = {
    "pattern on a bus without": lambda bus: bus.subscribe("a.*", fine),
    "topic": lambda bus: bus.subscribe("a b", fine),
    "no topic": lambda bus: bus.subscribe(None, fine),
    "no handler": lambda bus: bus.subscribe("a", None),
    "a class": lambda bus: bus.subscribe("a", Unfit),
    "its call takes nothing": lambda bus: bus.subscribe("a", Unfit()),
    "takes two": lambda bus: bus.subscribe("a", two),
    "a generator": lambda bus: bus.subscribe("a", generator),
    "group": lambda bus: bus.subscribe("a", fine, group="a b"),
    "option without group": lambda bus: bus.subscribe("a", fine, concurrency=2),
    "unknown option": lambda bus: bus.subscribe("a", fine, group="g", fast=True),
    "option's value": lambda bus: bus.subscribe("a", fine, group="g", concurrency=0),
    "option's type": lambda bus: bus.subscribe("a", fine, group="g", retry=5),
    "filter's topic": lambda bus: EventFilter(topic="a*"),
    "filter's expression": lambda bus: EventFilter(topic=re.compile(b"a")),  # type: ignore[arg-type]
    "filter's type": lambda bus: EventFilter(type=7),  # type: ignore[arg-type]
    "filter's attributes": lambda bus: EventFilter(attributes=["a"]),  # type: ignore[arg-type]
    "no filter": lambda bus: FilteredSubscriber(bus, "a"),  # type: ignore[arg-type]
    "no bus": lambda bus: FilteredSubscriber("bus", EventFilter()),  # type: ignore[arg-type]
    "hook": lambda bus: EventBus(on_error=3),  # type: ignore[arg-type]
    "hook's parameters": lambda bus: EventBus(on_error=fine),  # type: ignore[arg-type]
    "app": lambda bus: EventBus("sqlite:///x.db"),  # type: ignore[arg-type]
    "name": lambda bus: EventBus(name="a b"),
    "concurrency": lambda bus: EventBus(concurrency=0),
    "partitions": lambda bus: EventBus(Streams("memory://"), partitions=0),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("local", [True, False])
def test_bad_input_is_said_in_one_line(what: str, local: bool) -> None:
    app = None if local else Streams("memory://")
    bus = EventBus(app)
    with pytest.raises(ConfigError) as caught:
        WRONG[what](bus)
    assert "\n" not in str(caught.value)
    assert app is None or app.processors == []
    assert not bus._registry.subscribers
    assert not bus._registry.by_group
    assert len(bus._registry.shared_trie) == 0


@pytest.mark.parametrize("local", [True, False])
def test_a_group_has_one_handler(local: bool) -> None:
    app = None if local else Streams("memory://")
    bus = PatternEventBus(app)
    first = bus.subscribe("a", fine, group="g", concurrency=4)
    second = bus.subscribe("b.*", fine, group="g")  # one topic more
    with pytest.raises(ConfigError, match="give take a group of its own"):
        bus.subscribe("c", Calls().take, group="g")
    with pytest.raises(ConfigError, match="other options"):
        bus.subscribe("c", fine, group="g", concurrency=5)
    assert app is None or len(app.processors) == 1
    first()
    assert app is None or len(app.processors) == 1
    second()
    assert app is None or app.processors == []
    bus.subscribe("c", Calls().take, group="g")  # the group is free again
    assert app is None or len(app.processors) == 1


def test_two_buses_in_one_process_are_two() -> None:
    one, other = EventBus(), EventBus()
    one.subscribe("a", fine)
    assert not other._registry.subscribers
