"""Sagas by choreography: the same steps in one process and over every log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, cast
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_codecs import DecodeError
from streams import ConfigError, Flow, InvalidValue, Reject, Retry, Streams, Unavailable
from streams.log.memory import MemoryLog
from streams.message import CORRELATION, TYPE, Record
from streams.patterns import (
    ChoreographySaga,
    Event,
    EventBus,
    PatternEventBus,
    SagaEvent,
    SagaState,
    SagaTracker,
    create_handler,
)
from streams.testing import Clock, harness
from tests.conformance.records import append
from tests.patterns.bus_world import QUICK, World, logged, world
from tests.processing.support import until

__all__ = ["logged", "world"]

pytestmark = pytest.mark.anyio

FAST: dict[str, Any] = {"flow": QUICK, "retry": Retry(attempts=2, delay=0.005)}


class Shop:
    """Reserve, charge, ship; a charge that fails is answered by releasing what was reserved."""

    def __init__(self, bus: EventBus, prefix: str) -> None:
        self.bus = bus
        self.did: list[tuple[str, str, Any]] = []
        """Step, saga, data."""
        self.events: list[Event] = []

        def step(listen_to: str, execute: Any, done: str | None, failed: str | None) -> None:
            group = f"{prefix}-{execute.__name__}"
            create_handler(bus, listen_to, execute, done, failed, group=group, **FAST)

        step("order.placed", self.reserve, "stock.reserved", "order.refused")
        step("stock.reserved", self.charge, "payment.charged", "payment.failed")
        step("payment.charged", self.ship, "order.shipped", None)
        step("payment.failed", self.release, "order.refused", None)
        bus.subscribe("*", self.look)

    async def look(self, event: Event) -> None:
        self.events.append(event)

    async def reserve(self, heard: SagaEvent) -> dict[str, Any]:
        self.did.append(("reserve", heard.saga_id, heard.data))
        return {**heard.data, "reserved": True}

    def charge(self, heard: SagaEvent) -> dict[str, Any] | None:  # plain: in a thread
        self.did.append(("charge", heard.saga_id, heard.data))
        if heard.data["amount"] > 100:
            raise Reject("no credit")
        return None

    async def ship(self, heard: SagaEvent) -> str:
        self.did.append(("ship", heard.saga_id, heard.data))
        return "on its way"

    async def release(self, heard: SagaEvent) -> None:
        assert heard.status == "failed"
        self.did.append(("release", heard.saga_id, heard.error))

    def of(self, saga_id: str) -> list[Event]:
        return [event for event in self.events if event.correlation_id == saga_id]

    def tracker(self, **options: Any) -> SagaTracker:
        options.setdefault("done", "order.shipped")
        options.setdefault("failed", ["order.refused"])
        return SagaTracker(self.bus, **options)


async def test_a_saga_goes_its_way(world: World) -> None:
    shop = Shop(world.bus(), world.group)
    saga = ChoreographySaga(shop.bus, "saga-1")
    async with world.running(shop.bus):
        started = await saga.start("order.placed", {"amount": 7})
        await world.until(lambda: len(shop.of("saga-1")) == 4)
    assert shop.did == [
        ("reserve", "saga-1", {"amount": 7}),
        ("charge", "saga-1", {"amount": 7, "reserved": True}),
        ("ship", "saga-1", {"amount": 7, "reserved": True}),
    ]
    events = shop.of("saga-1")
    assert [event.topic for event in events] == [
        "order.placed", "stock.reserved", "payment.charged", "order.shipped",
    ]  # fmt: skip
    assert {event.key for event in events} == {"saga-1"}
    # Each names what caused it, back to the start, which nothing caused.
    assert [event.causation_id for event in events] == [None, *(each.id for each in events[:-1])]
    assert events[0].id == started
    assert events[-1].data == "on its way"
    heard = [SagaEvent.of(event) for event in events]
    assert [(each.step_name, each.status) for each in heard] == [
        ("start", "started"), ("reserve", "succeeded"), ("charge", "succeeded"),
        ("ship", "succeeded"),
    ]  # fmt: skip
    assert "amount" not in repr(heard)


async def test_a_failed_step_says_so_and_the_others_make_up_for_it(world: World) -> None:
    shop = Shop(world.bus(), world.group)
    async with world.running(shop.bus):
        await ChoreographySaga(shop.bus, "poor").start("order.placed", {"amount": 700})
        await ChoreographySaga(shop.bus, "rich").start("order.placed", {"amount": 7})
        await world.until(lambda: len(shop.of("poor")) == len(shop.of("rich")) == 4)
    assert [name for name, saga, _ in shop.did if saga == "poor"] == [
        "reserve", "charge", "release",
    ]  # fmt: skip
    failed = next(event for event in shop.of("poor") if event.topic == "payment.failed")
    assert failed.data == {"amount": 700, "reserved": True}  # what the step got
    assert SagaEvent.of(failed).error == "Reject: no credit"
    assert shop.did[-1][0] in ("release", "ship")
    assert ("release", "poor", "Reject: no credit") in shop.did
    assert shop.of("poor")[-1].topic == "order.refused"
    assert shop.of("rich")[-1].topic == "order.shipped"


async def test_a_step_that_takes_too_long_or_is_cancelled_from_within_has_failed(
    logged: World,
) -> None:
    bus = logged.bus()
    outcomes: dict[str, str | None] = {}

    async def hang(heard: SagaEvent) -> None:
        await asyncio.Event().wait()

    async def cancelled(heard: SagaEvent) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    async def failed(heard: SagaEvent) -> None:
        outcomes[heard.step_name] = heard.error

    again = Retry(attempts=2, delay=0.001)
    for execute, timeout in ((hang, 0.01), (cancelled, None)):
        create_handler(
            bus, "payment", execute, None, "payment.failed", retry=again, timeout=timeout,
            group=f"{logged.group}-{execute.__name__}", flow=QUICK,
        )  # fmt: skip
    group = f"{logged.group}-failed"
    create_handler(bus, "payment.failed", failed, None, None, group=group, flow=QUICK)
    async with logged.running(bus):
        await ChoreographySaga(bus, "s").start("payment")
        await logged.until(lambda: len(outcomes) == 2)
    assert outcomes == {
        "hang": "HandlerTimeout: step hang ran longer than 0.01 s",
        "cancelled": "RuntimeError: step cancelled was cancelled from within",
    }


async def test_many_sagas_at_once_do_not_mix(world: World) -> None:
    shop = Shop(world.bus(), world.group)
    async with world.running(shop.bus):
        sagas = [ChoreographySaga(shop.bus) for _ in range(12)]
        assert len({saga.saga_id for saga in sagas}) == 12
        await asyncio.gather(*(s.start("order.placed", {"amount": n}) for n, s in enumerate(sagas)))
        await world.until(
            lambda: sum(event.topic == "order.shipped" for event in shop.events) == 12
        )
    for n, saga in enumerate(sagas):
        mine = [data["amount"] for _, saga_id, data in shop.did if saga_id == saga.saga_id]
        assert mine == [n, n, n]


async def test_a_saga_that_begins_with_an_ordinary_event(world: World) -> None:
    """Its own ID is the saga's."""
    shop = Shop(world.bus(), world.group)
    async with world.running(shop.bus):
        root = await shop.bus.publish("order.placed", {"amount": 1})
        await world.until(lambda: len(shop.of(root)) == 3)
    assert {saga for _, saga, _ in shop.did} == {root}
    assert shop.of(root)[0].causation_id == root


async def test_without_a_topic_for_failure_it_is_the_buses(world: World) -> None:
    bus = world.bus()

    async def fails(heard: SagaEvent) -> None:
        raise ValueError("no")

    create_handler(bus, "a", fails, "b", None, group=world.group, **FAST)
    async with world.running(bus):
        await ChoreographySaga(bus).start("a")
        await world.until(lambda: len(world.calls.errors) == (1 if world.url is None else 2))
    assert {(error, topic) for error, topic, _ in world.calls.errors} == {("no", "a")}


async def test_the_tracker_knows(world: World) -> None:
    shop = Shop(world.bus(), world.group)
    tracker, later = shop.tracker(), shop.tracker()
    async with world.running(shop.bus):
        async with tracker:
            await ChoreographySaga(shop.bus, "poor").start("order.placed", {"amount": 700})
            await ChoreographySaga(shop.bus, "rich").start("order.placed", {"amount": 7})
            await ChoreographySaga(shop.bus, "odd").start("nobody.listens")
            await shop.bus.publish("not.a.saga", 1, headers={"correlationid": "request-7"})
            await world.until(lambda: tracker.done() and tracker.failed() and tracker.open())
            await world.until(lambda: len(shop.events) == 10)
            (rich,), (poor,), (odd,) = tracker.done(), tracker.failed(), tracker.open()
            assert (rich.saga_id, rich.step_name, rich.topic) == ("rich", "ship", "order.shipped")
            assert (poor.saga_id, poor.error) == ("poor", "Reject: no credit")
            assert (odd.saga_id, odd.status, odd.topic) == ("odd", "open", "nobody.listens")
            assert tracker.get("rich") == rich
            assert tracker.get("request-7") is None
            assert tracker.stuck() == []
            assert rich.started <= rich.updated
        if world.url is not None:
            await later.start()  # one that comes afterwards reads the log
            assert (later.done(), later.failed(), later.open()) == ([rich], [poor], [odd])
            later.stop()
            recent = shop.tracker()
            await recent.start(since=None)
            assert recent.open() == recent.done() == []
            recent.stop()
    assert tracker.forget("odd")
    assert not tracker.forget("odd")
    assert tracker.open() == []


# -- over a log


async def test_a_step_is_tried_again_before_it_has_failed(logged: World) -> None:
    bus, attempts, answers = logged.bus(), list[int](), list[Event]()

    async def flaky(heard: SagaEvent) -> str:
        assert heard.event is not None
        attempts.append(heard.event.attempt)
        if heard.data == "never" or heard.event.attempt == 1:
            raise ConnectionError("not now")
        return "well"

    async def look(event: Event) -> None:
        answers.append(event)

    create_handler(bus, "a", flaky, "yes", "no", group=logged.group, **FAST)
    bus.subscribe("yes", look)
    bus.subscribe("no", look)
    async with logged.running(bus):
        await ChoreographySaga(bus, "one").start("a", "once")
        await ChoreographySaga(bus, "two").start("a", "never")
        await logged.until(lambda: len(answers) == 2)
    found = {event.correlation_id: (event.topic, event.data) for event in answers}
    assert found == {"one": ("yes", "well"), "two": ("no", "never")}
    assert sorted(attempts) == [1, 1, 2, 2]


@pytest.mark.parametrize("error", [Reject("no"), KeyError("never tried again")])
async def test_some_failures_are_final(logged: World, error: Exception) -> None:
    bus, attempts = logged.bus(), list[int]()

    async def step(heard: SagaEvent) -> None:
        assert heard.event is not None
        attempts.append(heard.event.attempt)
        raise error

    retry = Retry(attempts=5, delay=0.005, never=(KeyError,))
    create_handler(bus, "a", step, "yes", "no", group=logged.group, retry=retry, flow=QUICK)
    bus.subscribe("no", logged.calls.take)
    async with logged.running(bus):
        await ChoreographySaga(bus).start("a", 1)
        await logged.until(lambda: logged.calls.got)
    assert attempts == [1]
    assert logged.calls.got == [("no", 1)]
    assert logged.calls.errors == []


async def test_a_saga_that_is_started_twice_runs_once(logged: World) -> None:
    shop = Shop(logged.bus(), logged.group)
    async with logged.running(shop.bus):
        for _ in range(3):
            await ChoreographySaga(shop.bus, "same").start("order.placed", {"amount": 1})
        await ChoreographySaga(shop.bus, "other").start("order.placed", {"amount": 2})
        await logged.until(lambda: len(shop.of("other")) == len(shop.of("same")) == 4)
    assert [name for name, saga, _ in shop.did if saga == "same"] == ["reserve", "charge", "ship"]


async def test_of_two_answers_the_first_counts(logged: World) -> None:
    """A step whose answer was written is killed before its position is: it runs again, and says
    something else."""
    bus, heard_by_next, runs = logged.bus(), list[str](), list[int]()
    lived = asyncio.Event()

    async def step(heard: SagaEvent) -> str:
        runs.append(1)
        if len(runs) > 1:
            raise Reject("the second time")
        return "the first time"

    async def next_step(heard: SagaEvent) -> None:
        heard_by_next.append(f"{heard.status}: {heard.data}")

    def subscribed(bus: EventBus, *, killed: bool) -> None:
        now: Any = {**FAST, "flow": Flow(commit=0.05, drain=0)}
        create_handler(bus, "a", step, "yes", "no", group=logged.group, **now)
        if killed:
            answer = bus.publish_derived

            async def answers_and_hangs(*args: Any, **options: Any) -> None:
                await answer(*args, **options)
                lived.set()
                await asyncio.Event().wait()

            bus.publish_derived = answers_and_hangs  # type: ignore[method-assign]
        create_handler(bus, "yes", next_step, None, None, group=f"{logged.group}-y", **FAST)
        create_handler(bus, "no", next_step, None, None, group=f"{logged.group}-n", **FAST)

    subscribed(bus, killed=True)
    async with logged.running(bus):
        await ChoreographySaga(bus, "s").start("a", "start")
        await lived.wait()
    again = logged.bus()
    subscribed(again, killed=False)
    async with logged.running(again):
        await logged.until(lambda: len(runs) == 2 and heard_by_next)
        # An event behind the second answer, in its partition: both groups have passed that.
        await again.publish("yes", "last", key="s")
        await again.publish("no", "last", key="s")
        await logged.until(lambda: len([each for each in heard_by_next if "last" in each]) == 2)
    assert [each for each in heard_by_next if "last" not in each] == ["succeeded: the first time"]


# -- what does not differ by the log


async def test_stuck_after_a_time() -> None:
    app, clock = Streams("memory://"), Clock()
    shop = Shop(PatternEventBus(app), "shop")
    async with harness(app, clock=clock) as h:
        tracker = shop.tracker(stuck_after=60)
        await tracker.start()
        await ChoreographySaga(shop.bus, "lost").start("nobody.listens")
        await ChoreographySaga(shop.bus, "fine").start("order.placed", {"amount": 1})
        await h.settled()
        clock.advance(59)
        assert tracker.stuck() == []
        await ChoreographySaga(shop.bus, "young").start("nobody.listens")
        await h.settled()
        clock.advance(2)
        assert [each.saga_id for each in tracker.stuck()] == ["lost"]
        assert {each.saga_id for each in tracker.open()} == {"lost", "young"}
        await shop.bus.publish("a.sign.of.life", 1, headers={"correlationid": "lost"})
        await h.settled()
        assert tracker.stuck() == []
        tracker.stop()


async def test_an_answer_waits_out_an_outage_and_costs_no_attempt() -> None:
    app, clock = Streams("memory://"), Clock()
    bus, runs, answers = EventBus(app), list[int](), list[Event]()
    refused = list[str]()

    async def step(heard: SagaEvent) -> None:
        assert heard.event is not None
        runs.append(heard.event.attempt)

        def fault(point: str, name: str) -> None:
            if point == "append" and name == "events" and len(refused) < 4:
                refused.append(name)
                raise Unavailable("cut off")

        cast(MemoryLog, app.log).fault(fault)

    async def look(event: Event) -> None:
        answers.append(event)

    create_handler(bus, "a", step, "yes", "no", retry=Retry(attempts=1))
    bus.subscribe("yes", look)
    bus.subscribe("no", look)
    async with harness(app, clock=clock):
        await ChoreographySaga(bus, "s").start("a", 1)
        for tries in range(1, 5):
            await until(lambda tries=tries: len(refused) == tries)  # type: ignore[misc]
            await until(lambda: app.publisher._delayed)
            clock.advance(10)
        await until(lambda: answers)
    assert runs == [1]
    assert [(event.topic, event.data) for event in answers] == [("yes", 1)]


async def test_a_result_that_cannot_be_written_is_a_failure() -> None:
    app = Streams("memory://")
    bus, answers = EventBus(app), list[Event]()

    async def step(heard: SagaEvent) -> object:
        return object()

    async def look(event: Event) -> None:
        answers.append(event)

    create_handler(bus, "a", step, "yes", "no", group="g")
    create_handler(bus, "b", step, "yes", None, group="h")
    bus.subscribe("no", look)
    async with harness(app) as h:
        await ChoreographySaga(bus, "s").start("a", 1)
        await ChoreographySaga(bus, "t").start("b", 1)
        await h.settled()
        dead = app.topic("events.h.dead", bytes)
        assert len(await h.messages(dead)) == 1  # with nowhere to say it, a dead letter
    (answer,) = answers
    assert answer.data == 1
    assert (SagaEvent.of(answer).error or "").startswith("EncodeError: ")


def at(
    second: int, topic: str, *, saga: str = "s", step: str | None = "x", **headers: str
) -> Event:
    named = {"correlationid": saga, **headers}
    if step is not None:
        named |= {"saga_step": step, "saga_status": headers.get("saga_status", "succeeded")}
    moment = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=second)
    return Event(topic=topic, data=None, id=str(second), key=saga, timestamp=moment, headers=named)


STORY = [
    at(0, "placed", step="start", saga_status="started"),
    at(1, "reserved"),
    at(2, "payment.failed", saga_status="failed", saga_error="no credit"),
    at(3, "payment.charged"),
    at(4, "shipped"),
    at(5, "mail.sent"),
]


def tracker(**options: Any) -> SagaTracker:
    options.setdefault("done", "shipped")
    return SagaTracker(EventBus(), **options)


@given(st.permutations(STORY), st.lists(st.sampled_from(STORY)))
def test_the_order_in_which_a_tracker_sees_events_does_not_matter(
    order: list[Event], twice: list[Event]
) -> None:
    straight, mixed = tracker(), tracker()
    for event in STORY:
        straight.see(event)
    for event in (*order, *twice):
        mixed.see(event)
    assert mixed.get("s") == straight.get("s")
    assert mixed.done() == straight.done()
    assert not mixed.open()
    assert not mixed.failed()


@pytest.mark.parametrize(
    ("seen", "options", "status"),
    [
        (2, {}, "open"),
        (3, {}, "failed"),  # any step's failure, where no topics are said
        (3, {"failed": "order.*"}, "open"),
        (3, {"failed": ["other", "payment.*"]}, "failed"),
        (4, {}, "failed"),
        (5, {}, "done"),  # the later end counts
        (6, {}, "done"),  # what comes after an end does not open it again
        (6, {"done": "never"}, "failed"),
    ],
)
def test_how_a_saga_ends(seen: int, options: dict[str, Any], status: str) -> None:
    found = tracker(**options)
    for event in STORY[:seen]:
        found.see(event)
    state = found.get("s")
    assert isinstance(state, SagaState)
    assert state.status == status
    assert {"open": found.open, "failed": found.failed, "done": found.done}[status]() == [state]


def test_ended_sagas_are_forgotten_at_a_number_and_open_ones_are_not() -> None:
    found = tracker(keep=3)
    for n in range(10):
        found.see(at(n, "placed", saga=f"open-{n}"))
        found.see(at(n, "placed", saga=f"done-{n}"))
        found.see(at(n, "shipped", saga=f"done-{n}"))
    assert [each.saga_id for each in found.done()] == ["done-7", "done-8", "done-9"]
    assert len(found.open()) == 10
    assert len(found._ended_at) == 3


def nothing(heard: SagaEvent) -> None: ...


step: Any = create_handler
WRONG: dict[str, Callable[[Any], Any]] = {
    "saga: no bus": lambda bus: ChoreographySaga("bus"),  # type: ignore[arg-type]
    "saga: empty ID": lambda bus: ChoreographySaga(bus, ""),
    "saga: ID": lambda bus: ChoreographySaga(bus, 7),  # type: ignore[arg-type]
    "step: no bus": lambda bus: step("bus", "a", nothing, "b", "c"),
    "step: no function": lambda bus: step(bus, "a", "nothing", "b", "c"),
    "step: its parameters": lambda bus: step(bus, "a", lambda: None, "b", "c"),
    "step: pattern on a bus without": lambda bus: step(bus, "a.*", nothing, "b", "c"),
    "step: answers to a pattern": lambda bus: step(bus, "a", nothing, "b.*", "c"),
    "step: topic of failure": lambda bus: step(bus, "a", nothing, "b", "c d"),
    "step: listens to nothing": lambda bus: step(bus, "", nothing, "b", "c"),
    "step: name": lambda bus: step(bus, "a", nothing, "b", "c", name=""),
    "step: group": lambda bus: step(bus, "a", nothing, "b", "c", group="a/b"),
    "step: unknown option": lambda bus: step(bus, "a", nothing, "b", "c", attempts=3),
    "step: bad option": lambda bus: step(bus, "a", nothing, "b", "c", concurrency=0),
    "step: retry": lambda bus: step(bus, "a", nothing, "b", "c", retry=3),
    "tracker: no bus": lambda bus: SagaTracker("bus", done="x"),  # type: ignore[arg-type]
    "tracker: done": lambda bus: SagaTracker(bus, done="x y"),
    "tracker: one of done": lambda bus: SagaTracker(bus, done=["x", ""]),
    "tracker: failed": lambda bus: SagaTracker(bus, done="x", failed="x*"),
    "tracker: topics": lambda bus: SagaTracker(bus, done="x", topics=""),
    "tracker: stuck": lambda bus: SagaTracker(bus, done="x", stuck_after=0),
    "tracker: keep": lambda bus: SagaTracker(bus, done="x", keep=-1),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("local", [True, False])
def test_bad_input_is_said_in_one_line(what: str, local: bool) -> None:
    app = None if local else Streams("memory://")
    bus = EventBus(app)
    with pytest.raises(InvalidValue if what.endswith("ID") else ConfigError) as caught:
        WRONG[what](bus)
    assert "\n" not in str(caught.value)
    assert app is None or app.processors == []
    assert not bus._registry.subscribers


def test_names_of_steps_and_groups() -> None:
    app = Streams("memory://")
    bus = PatternEventBus(app)

    async def charge(heard: SagaEvent) -> None: ...

    one = create_handler(bus, "order.placed", charge, "paid", "refused")
    two = create_handler(bus, "order.*.x", lambda heard: None, None, None)
    three = ChoreographySaga.create_handler(bus, "a" * 200, charge, "b" * 200, None)
    four = create_handler(bus, "a" * 200, charge, "b" * 201, None)
    assert one.group == "order.placed.to.paid"
    assert two.group == "order._.x.to.end"
    assert three.group != four.group
    assert len(three.group or "") < 120
    assert [each.name for each in app.processors] == [
        "charge", "order.*.x", "charge-2", "charge-3",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="give charge a group of its own"):
        create_handler(bus, "order.placed", charge, "paid", "other")


async def test_what_cannot_be_decoded_blinds_no_tracker(caplog: pytest.LogCaptureFixture) -> None:
    app = Streams(f"memory://{uuid4().hex}")
    bus = EventBus(app, "steps")
    broken = Record(b"{", b"two", "x", ((TYPE, b"order.placed"), (CORRELATION, b"two")))
    async with app:
        await ChoreographySaga(bus, "one").start("order.placed", 1)
        append(app.log, "steps", [broken])
        await ChoreographySaga(bus, "three").start("order.placed", 1)
        found = SagaTracker(bus, done="order.shipped")
        await found.start()
        assert [each.saga_id for each in found.open()] == ["one", "three"]
        assert "reading steps/0/1" in caplog.text
        with pytest.raises(DecodeError):
            assert [each async for each in bus.read()]
        found.stop()


async def test_a_tracker_is_started_once() -> None:
    found = tracker()
    await found.start()
    with pytest.raises(ConfigError, match="it watches already"):
        await found.start()
    found.stop()
    found.stop()
    await found.start()


async def test_a_steps_event_is_always_there_with_its_id() -> None:
    """Also in a test of the step alone, which gives none."""
    bus = EventBus()
    heard: list[SagaEvent] = []
    create_handler(bus, "order.placed", heard.append, None, None)
    await ChoreographySaga(bus, "order-17").start("order.placed", {"total": 20})
    (event,) = heard
    assert event.id == event.event.id
    made = SagaEvent(
        saga_id="s", step_name="pay", status="failed", data={"total": 1}, error="no credit"
    )
    assert made.id == made.event.id != ""
    again = SagaEvent.of(made.event)
    assert (again.saga_id, again.step_name, again.status) == ("s", "pay", "failed")
    assert (again.data, again.error, again.id) == ({"total": 1}, "no credit", made.id)
