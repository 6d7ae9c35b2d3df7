"""The event bus over a log: durable and ephemeral subscribers, and what stands on the wire."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec
import pytest

from streams import (
    ConfigError,
    Fatal,
    Flow,
    LogError,
    Message,
    NotRunning,
    Retry,
    Streams,
    Unavailable,
)
from streams.log.memory import MemoryLog
from streams.log.protocol import Assignment, Log, TopicInfo
from streams.log.url import open_log
from streams.message import Record
from streams.patterns import Event, EventBus, PatternEventBus
from streams.patterns.bus.ephemeral import EphemeralSubscription
from streams.processor import Processor
from streams.testing import Clock, harness
from tests.conformance.stage import PATIENCE
from tests.patterns.bus_world import QUICK, World, logged
from tests.processing.support import until

__all__ = ["logged"]

pytestmark = pytest.mark.anyio


async def test_a_durable_subscriber_misses_nothing_and_an_ephemeral_one_what_was_before(
    logged: World,
) -> None:
    durable, ephemeral = list[int](), list[int]()

    def subscribed() -> EventBus:
        bus = logged.bus()

        async def keep(event: Event) -> None:
            durable.append(event.data)

        async def watch(event: Event) -> None:
            ephemeral.append(event.data)

        bus.subscribe("n.*", keep, group=logged.group, flow=QUICK)
        bus.subscribe("n.*", watch)
        return bus

    publisher = logged.bus()
    async with logged.running(publisher):
        await publisher.publish("n.0", 0)
        for life in (1, 3):
            async with logged.running(subscribed()):
                await publisher.publish(f"n.{life}", life)
                await logged.until(lambda life=life: len(durable) == life + 1)  # type: ignore[misc]
                await logged.until(lambda life=life: life in ephemeral)  # type: ignore[misc]
            await publisher.publish(f"n.{life + 1}", life + 1)
    assert sorted(durable) == [0, 1, 2, 3]
    assert ephemeral == [1, 3]


async def test_a_durable_subscriber_that_comes_back_to_a_running_app(logged: World) -> None:
    bus = logged.bus()
    subscription = bus.subscribe("n", logged.calls.take, group=logged.group, flow=QUICK)
    async with logged.running(bus):
        await bus.publish("n", 1)
        await logged.until(lambda: len(logged.calls.got) == 1)
        subscription()
        await subscription.closed()
        await bus.publish("n", 2)
        again = bus.subscribe("n", logged.calls.take, group=logged.group, flow=QUICK)
        await again.ready()
        await bus.publish("n", 3)
        await logged.until(lambda: len(logged.calls.got) == 3)
    assert sorted(logged.calls.got) == [("n", 1), ("n", 2), ("n", 3)]


@pytest.mark.parametrize("plain", [False, True])
async def test_unsubscribing_in_the_middle_loses_nothing(logged: World, plain: bool) -> None:
    """Nobody wants what comes behind, and it is not settled for that."""
    bus, got, subscriptions = logged.bus(partitions=1), list[int](), list[Any]()

    def stops(event: Event) -> None:
        got.append(event.data)
        if event.data % 3 == 0:
            subscriptions.pop()()

    async def stops_too(event: Event) -> None:
        stops(event)

    handler: Any = stops if plain else stops_too
    async with logged.running(bus):
        await asyncio.gather(*(bus.publish("n", n, key=str(n)) for n in range(10)))
        order = [event.data async for event in bus.read()]
        seen = 0
        while len(got) < 10:
            subscription = bus.subscribe("n", handler, group=logged.group, flow=QUICK)
            subscriptions.append(subscription)
            await logged.until(lambda: not subscription.active or len(got) == 10)  # noqa: B023
            await subscription.closed()
            assert len(got) > seen
            seen = len(got)
    assert got == order


async def test_what_was_not_finished_comes_again(logged: World) -> None:
    attempts = list[int]()

    def subscribed(stuck: bool) -> EventBus:
        bus = logged.bus()

        async def handle(event: Event) -> None:
            attempts.append(event.data)
            if stuck:
                await asyncio.Event().wait()

        flow = Flow(commit=0.05, drain=0)
        bus.subscribe("n", handle, group=logged.group, flow=flow)
        return bus

    bus = subscribed(stuck=True)
    async with logged.running(bus):
        await bus.publish("n", 1)
        await logged.until(lambda: attempts == [1])
    async with logged.running(subscribed(stuck=False)):
        await logged.until(lambda: attempts == [1, 1])


async def test_processes_share_a_durable_subscriber_and_each_has_its_ephemeral_ones(
    logged: World,
) -> None:
    buses = [logged.bus() for _ in range(2)]
    durable, ephemeral = list[int](), [list[int](), list[int]()]
    for bus, mine in zip(buses, ephemeral, strict=True):

        async def keep(event: Event) -> None:
            durable.append(event.data)

        async def watch(event: Event, mine: list[int] = mine) -> None:
            mine.append(event.data)

        bus.subscribe("*", keep, group=logged.group, flow=QUICK)
        bus.subscribe("*", watch)
    async with logged.running(*buses):
        for n in range(40):
            await buses[n % 2].publish(f"n.{n}", n, key=str(n))
        await logged.until(lambda: len(durable) >= 40 and all(len(e) >= 40 for e in ephemeral))
    assert sorted(durable) == sorted(ephemeral[0]) == sorted(ephemeral[1]) == list(range(40))


async def test_a_durable_failure_is_tried_again_and_then_a_dead_letter(logged: World) -> None:
    bus, attempts = logged.bus(), list[int]()

    async def fails(event: Event) -> None:
        attempts.append(event.attempt)
        raise ValueError("never")

    retry = Retry(attempts=3, delay=0.005, cap=0.01)
    bus.subscribe("bad", fails, group=logged.group, retry=retry, flow=QUICK)
    assert bus.app is not None
    async with logged.running(bus):
        id = await bus.publish("bad", 1)
        await bus.publish("good", 2)
        dead = bus.app.topic(f"{logged.name}.{logged.group}.dead", bytes)
        found: list[Message[bytes]] = []

        def buried() -> bool:
            found[:] = dead.read()
            return bool(found)

        await logged.until(buried)
    (letter,) = found
    assert attempts == [1, 2, 3]
    assert logged.calls.errors == [("never", "bad", fails)] * 3
    assert (letter.id, letter.value, letter.headers["ce_type"]) == (id, b"1", "bad")


async def test_an_ephemeral_subscriber_leaves_nothing_behind(logged: World) -> None:
    bus = logged.bus()
    bus.subscribe("*", logged.calls.take)
    assert bus.app is not None
    log = bus.app

    def mine() -> tuple[set[str], set[str]]:  # others use the same servers
        groups, topics = log.log.list_groups(), [each.name for each in log.log.describe_topics()]
        return {each for each in groups if logged.name in each}, {
            each for each in topics if logged.name in each
        }

    async with logged.running(bus):
        before = groups, topics = mine()
        await bus.publish("a", 1)
        await logged.until(lambda: logged.calls.got)
        assert mine() == before
        assert not [name for name in groups if "ephemeral" in name]
        assert not [name for name in topics if name.startswith(f"{logged.name}.")]


async def test_an_event_is_an_ordinary_message(logged: World) -> None:
    bus, got = logged.bus(), list[Event]()
    assert bus.app is not None
    topic = bus.app.topic(logged.name, bytes)

    async def handle(event: Event) -> None:
        got.append(event)

    bus.subscribe("*", handle)
    bus.subscribe("order.*", logged.calls.take, group=logged.group, flow=QUICK)
    async with logged.running(bus):
        await bus.publish("order.paid", {"n": 1}, key="k", id="one")
        await topic.publish(b'{"n":2}', headers={"ce_type": "order.x"}, id="two", key="k")
        await topic.publish(b'{"n":3}', id="three", key="k")  # foreign: it names no topic
        await logged.until(lambda: len(got) == 3 and len(logged.calls.got) == 2)
        wire = [(each.id, each.key, each.raw.value) for each in topic.read()]
        again = [(event.topic, event.data) async for event in bus.read("order.*")]
        everything = [event.id async for event in bus.read()]
        latest = [event.id async for event in bus.read(start="latest")]
    assert wire[0] == ("one", "k", b'{"n":1}')
    assert [event.topic for event in got] == ["order.paid", "order.x", ""]
    assert logged.calls.got == again == [("order.paid", {"n": 1}), ("order.x", {"n": 2})]
    assert everything == ["one", "two", "three"]
    assert latest == []


class Paid(msgspec.Struct):
    amount: int


async def test_what_cannot_be_decoded_troubles_only_those_it_is_for(logged: World) -> None:
    bus = logged.bus(type=Paid)
    assert bus.app is not None
    topic = bus.app.topic(logged.name, bytes)
    bus.subscribe("paid", logged.calls.take)
    bus.subscribe("other", logged.calls.take)
    bus.subscribe("other", logged.calls.take, group=logged.group, flow=QUICK)
    dead = bus.app.topic(f"{logged.name}.{logged.group}.dead", bytes, partitions=2)
    async with logged.running(bus):
        await topic.publish(b'{"amount": "x"}', headers={"ce_type": "paid"}, key="k")
        await topic.publish(b"rubbish", headers={"ce_type": "nobody's"}, key="k")
        await bus.publish("other", Paid(1), key="k")
        await logged.until(lambda: len(logged.calls.got) == 2 and len(logged.calls.errors) == 1)
        assert not list(dead.read())
        await topic.publish(b"rubbish", headers={"ce_type": "other"}, key="k")
        await logged.until(lambda: list(dead.read()) and len(logged.calls.errors) == 2)
    assert logged.calls.got == [("other", Paid(1))] * 2
    assert [(topic, handler) for _, topic, handler in logged.calls.errors] == [
        ("paid", None), ("other", None),
    ]  # fmt: skip


async def test_the_same_id_twice_is_handled_once(logged: World) -> None:
    bus = logged.bus()
    bus.subscribe("*", logged.calls.take)
    bus.subscribe("*", logged.calls.take, group=logged.group, flow=QUICK)
    async with logged.running(bus):
        for _ in range(3):
            await bus.publish("a", 1, key="k", id="same")
        await bus.publish("b", 2, key="k")
        await logged.until(lambda: logged.calls.topics.count("b") == 2)
    assert sorted(logged.calls.topics) == ["a", "a", "b", "b"]


async def test_many_ephemeral_events_come_whole_and_in_order(logged: World) -> None:
    bus, got = logged.bus(partitions=3), dict[str | None, list[int]]()
    total = 1_500

    async def handle(event: Event) -> None:
        got.setdefault(event.key, []).append(event.data)

    bus.subscribe("*", handle)
    async with logged.running(bus):
        await asyncio.gather(*(bus.publish("n", n, key=str(n % 7)) for n in range(total)))
        await logged.until(lambda: sum(map(len, got.values())) == total)
    for key, numbers in got.items():
        assert numbers == [n for n in range(total) if str(n % 7) == key]


async def test_a_bus_that_is_made_while_the_app_runs(logged: World) -> None:
    assert logged.url is not None
    app, got = Streams(logged.url), list[Event]()
    async with app:
        bus = PatternEventBus(app, logged.name, partitions=1)
        await bus.publish("before", 1)
        subscription = bus.subscribe("*", got.append)
        await bus.publish("after", 2)
        await subscription.ready()
        await logged.until(lambda: [event.topic for event in got] == ["after"])
    async with app.connected():
        await bus.publish("connected", 3)
        assert [event.topic async for event in bus.read()][-1] == "connected"
    assert len(got) == 1


async def test_subscribing_at_the_very_end_of_an_app(logged: World) -> None:
    """Nothing hangs, and the next life serves who is still subscribed."""
    bus = logged.bus()
    before = set(threading.enumerate())
    first = bus.subscribe("*", logged.calls.take)
    async with logged.running(bus):
        for n in range(3):
            bus.subscribe("a", lambda event: None, group=f"{logged.group}-{n}", flow=QUICK)()
        bus.subscribe("a", logged.calls.take, group=logged.group, flow=QUICK)
        first()
        bus.subscribe("*", logged.calls.take)
    assert bus.app is not None
    async with logged.running(bus):
        await bus.publish("a", 1)
        await logged.until(lambda: len(logged.calls.got) == 2)
        assert len(bus.app.processors) == 2
    left = set(threading.enumerate()) - before
    assert not [each for each in left if each.name.endswith("-poller")]


# -- on memory alone: what does not differ by the log


async def test_the_harness_waits_for_all_subscribers() -> None:
    app = Streams("memory://")
    bus, got, clock = EventBus(app), list[str](), Clock()

    async def fails_first(event: Event) -> None:
        got.append(f"durable {event.attempt}")
        if event.attempt == 1:
            raise ValueError

    async def watch(event: Event) -> None:
        await asyncio.sleep(0.01)
        got.append("ephemeral")

    bus.subscribe("a", fails_first, group="g", retry=Retry(delay=10))
    bus.subscribe("a", watch)
    async with harness(app, clock=clock) as h:
        await bus.publish("a", 1)
        await h.settled()
        assert sorted(got) == ["durable 1", "ephemeral"]
        clock.advance(10)
        await h.settled()
        assert got[2:] == ["durable 2"]
        stats = app.stats().processors
        assert stats["events"].handled == 1
        assert stats["fails_first"].retries == 1


async def test_the_next_life_may_have_another_log() -> None:
    """Its positions begin anew, so those of the life before mean nothing."""
    app = Streams("memory://")
    bus, got = EventBus(app), list[int]()

    async def watch(event: Event) -> None:
        got.append(event.data)

    bus.subscribe("b", watch)
    async with harness(app) as h:
        for number in range(3):
            await bus.publish("a", number)
        await bus.subscribe("a", watch).ready()
        await bus.publish("a", 3)
        await h.settled()
        assert got == [3]
    async with harness(app) as h:
        await bus.publish("a", 4)
        await h.settled()
    assert got == [3, 4]


async def test_what_is_just_being_handed_over_when_nobody_wants_it_is_not_passed_over() -> None:
    """A durable event that is passed over counts as settled."""
    app = Streams("memory://")
    bus = PatternEventBus(app)
    one = bus.subscribe("a.*", print, group="g")
    two = bus.subscribe("b", print, group="g")
    (processor,) = app.processors
    (source,) = processor.options.topics
    wants, accepts = cast(Any, source.decoding)._wants, processor.options.filter
    assert accepts is not None
    assert (wants("a.b"), wants("b"), wants("c")) == (True, True, False)
    one()
    assert (wants("a.b"), wants("b")) == (False, True)  # it is no longer asked for
    two()
    assert wants("b")  # it stops: what it has not handled stays for when it comes back
    event = Event(topic="b", data=1, id="1", key=None, timestamp=Clock().now(), headers={})
    assert accepts(event)


async def test_an_outage_is_waited_out_and_told() -> None:
    app = Streams("memory://")
    bus, got, out = EventBus(app), list[int](), threading.Event()

    async def watch(event: Event) -> None:
        got.append(event.data)

    bus.subscribe("a", watch)

    def fault(point: str, name: str) -> None:
        if out.is_set() and point == "read":
            raise Unavailable("cut off")

    async with app:
        log = cast(MemoryLog, app.log)
        bounds = log.watermarks

        def asked(topic: str, partition: int) -> tuple[int, int]:
            if out.is_set():
                raise Unavailable("cut off")
            return bounds(topic, partition)

        log.fault(fault)
        log.watermarks = asked  # type: ignore[method-assign]  # an outage is one for every question
        out.set()
        await until_healthy(app, reachable=False)
        await bus.publish("a", 1)
        out.clear()
        await until_healthy(app, reachable=True)
        await bus.publish("a", 2)
        await until(lambda: got == [1, 2])


async def until_healthy(app: Streams, *, reachable: bool) -> None:
    await until(lambda: app.health().processors["events"].reachable is reachable)


async def test_a_subscriber_joining_in_an_outage_begins_afterwards() -> None:
    app = Streams("memory://")
    bus, got, tries = EventBus(app), list[int](), list[int]()

    async def watch(event: Event) -> None:
        got.append(event.data)

    bus.subscribe("b", watch)
    async with app:
        log = cast(MemoryLog, app.log)
        answer = log.describe_topic

        def asked(topic: str) -> TopicInfo:
            tries.append(1)
            if len(tries) == 1:
                raise Unavailable("cut off")
            return answer(topic)

        await bus.publish("a", 1)
        log.describe_topic = asked  # type: ignore[method-assign]
        subscription = bus.subscribe("a", watch)
        publishing = asyncio.create_task(bus.publish("a", 2))
        await subscription.ready()
        await publishing
        await until(lambda: got == [2])
    assert len(tries) == 2


async def test_a_paused_reading_goes_on() -> None:
    app = Streams("memory://")
    bus, got = EventBus(app, partitions=2), list[int]()

    async def watch(event: Event) -> None:
        got.append(event.data)

    bus.subscribe("a", watch)
    (follower,) = app.processors
    follower.pause()
    async with app:
        poller = follower.poller
        assert poller is not None
        await until(lambda: poller._driver_paused)
        await bus.publish("a", 1)
        follower.resume()
        await until(lambda: got == [1])


def test_what_is_followed_by_partition() -> None:
    log = open_log("memory://")
    log.create_topic("t", 3)
    told: list[list[int]] = []

    class Ear:
        def assigned(self, assignments: Sequence[Assignment]) -> None:
            told.append([each.position for each in assignments])

        def revoked(self, assignments: Sequence[Assignment]) -> None:
            told.append([each.partition for each in assignments])

        def lost(self, assignments: Sequence[Assignment]) -> None:
            raise AssertionError("nothing is lost here")

    def write(value: bytes, partition: int) -> None:
        log.append("t", [Record(value, None, value.decode(), partition=partition)], lambda _: None)

    def polled(limit: int = 10) -> list[bytes | None]:
        return [value for batch in follow.poll(limit, 0.0) for value in batch.values]

    write(b"before", 1)
    follow = EphemeralSubscription(log, "t")
    subscription = follow.listen(Ear())
    assert polled() == []
    assert told == [[0, 1, 0]]
    for partition in range(3):
        write(f"p{partition}".encode(), partition)
    assert polled(2) == [b"p0", b"p1"]
    assert polled(2) == [b"p2"]
    parts = [part.assignment for part in follow._partitions]
    follow.pause(parts[1:])
    for partition in range(3):
        write(f"q{partition}".encode(), partition)
    assert polled() == [b"q0"]
    follow.pause(parts[:1])
    assert polled() == []
    follow.resume(parts)
    assert polled() == [b"q1", b"q2"]
    follow.commit(())
    follow.keep_alive()
    with pytest.raises(ConfigError, match="no transaction"):
        subscription.begin_transaction()
    subscription.close()
    subscription.close()
    assert told[1:] == [[0, 1, 2]]
    log.close()


def test_a_partition_that_is_always_full_does_not_keep_the_others_from_being_read() -> None:
    log = open_log("memory://")
    log.create_topic("t", 3)
    follow = EphemeralSubscription(log, "t")
    for partition, count in ((0, 100), (1, 100), (2, 1)):
        records = [
            Record(b"", None, f"{partition}/{number}", partition=partition)
            for number in range(count)
        ]
        log.append("t", records, lambda _: None)
    polls = [[batch.partition for batch in follow.poll(10, 0.0)] for _ in range(4)]
    assert polls == [[0], [1], [2, 0], [1]]
    follow.close()
    log.close()


async def make_anew(log: Log, topic: str, partitions: int) -> None:
    before = await asyncio.to_thread(log.incarnation, topic)
    await asyncio.to_thread(log.delete_topic, topic)
    async with asyncio.timeout(PATIENCE):
        while True:  # on Kafka the brokers hear of it one after the other
            with suppress(LogError):
                await asyncio.to_thread(log.create_topic, topic, partitions)
                if await asyncio.to_thread(log.incarnation, topic) != before:
                    return
            await asyncio.sleep(0.05)


async def test_ephemeral_subscribers_go_on_with_a_topic_that_was_made_anew(logged: World) -> None:
    bus, got = logged.bus(), list[int]()

    async def watch(event: Event) -> None:
        got.append(event.data)

    bus.subscribe("n", watch)
    async with logged.running(bus):
        for number in range(8):
            await bus.publish("n", number, key="k")
        await logged.until(lambda: len(got) == 8)
        late: list[int] = []

        async def watch_late(event: Event) -> None:
            late.append(event.data)

        # Where it begins is a place in the topic that will be gone.
        await bus.subscribe("n", watch_late).ready()
        assert logged.anchor is not None
        await make_anew(logged.anchor, logged.name, 2)
        publisher = logged.bus()
        async with logged.running(publisher):
            await publisher.publish("n", 8, key="k")
            await logged.until(lambda: len(got) == 9 and len(late) == 1)
            for number in (9, 10, 11):
                await publisher.publish("n", number, key="k")
            await logged.until(lambda: len(got) == 12 and len(late) == 4)
    assert got == list(range(12))
    assert late == [8, 9, 10, 11]


async def test_a_start_that_is_refused_is_told_to_whoever_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = Streams("memory://")
    bus = EventBus(app)

    def refuses(self: Processor[..., Any], app: Streams) -> None:
        raise Fatal("not allowed")

    async with app:
        monkeypatch.setattr(Processor, "ensure_topics", refuses)
        subscription = bus.subscribe("a", print, group="g")
        with pytest.raises(Fatal, match="not allowed"):
            await subscription.ready()
        assert "cannot be started" in caplog.text
        assert not app.health().ok
        subscription()
        await subscription.closed()
        assert app.health().ok


async def test_from_another_thread() -> None:
    app = Streams("memory://")
    bus, got = EventBus(app), list[str]()

    def plain(event: Event) -> None:
        got.append(event.topic)
        if event.topic == "a":
            app.wait(bus.publish("b", 1, cause=event))

    with app.background():
        one = bus.subscribe("a", plain, group="g", flow=QUICK)
        two = bus.subscribe("b", plain)
        app.wait(one.ready())
        app.wait(two.ready())
        app.wait(bus.publish("a", 1))
        await until(lambda: got == ["a", "b"])
        one()
        app.wait(one.closed())
        two()
        assert app.processors == []


async def test_the_effect_in_the_transaction_of_its_position(tmp_path: Any) -> None:
    app = Streams(f"sqlite:///{tmp_path}/log.db")
    bus, attempts = EventBus(app), list[int]()

    def book(event: Event) -> None:
        assert event.message is not None
        execute = event.message.transaction.execute
        execute("CREATE TABLE IF NOT EXISTS booked (id TEXT PRIMARY KEY)")
        execute("INSERT INTO booked VALUES (?)", (event.id,))
        attempts.append(event.attempt)
        if event.attempt == 1:
            raise ValueError("rolled back")

    bus.subscribe("a", book, group="g", retry=Retry(delay=0), flow=QUICK)
    async with app:
        await bus.publish("a", 1, id="x")
        await until(lambda: attempts == [1, 2])


async def test_a_local_bus_keeps_nothing() -> None:
    with pytest.raises(NotRunning, match="keeps no events"):
        async for _ in EventBus().read():
            pass


async def test_two_buses_of_one_name_on_one_app() -> None:
    app = Streams("memory://")
    one, two, got = EventBus(app), PatternEventBus(app), list[str]()

    async def watch(event: Event) -> None:
        got.append(event.topic)

    one.subscribe("a", watch)
    two.subscribe("*", watch)
    with pytest.raises(ConfigError, match="already reads"):
        one.subscribe("a", watch, group="g")
        two.subscribe("a", watch, group="g")
    assert "g" not in two._registry.by_group  # what was refused left nothing behind
    async with harness(app) as h:
        await one.publish("a", 1)
        await h.settled()
    assert got == ["a"] * 3
