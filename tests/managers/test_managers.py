"""Process managers: events lead to commands and timeouts, each of which has its effect once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from msgspec import Struct
from redis import Redis

from streams import (
    Aggregate,
    Cancel,
    Command,
    ConfigError,
    End,
    InvalidValue,
    ProcessManager,
    Retry,
    Schedule,
    Snapshot,
    Streams,
    Unavailable,
)
from streams.config import Retention
from streams.log.protocol import Committed
from streams.message import Record
from streams.replay import reset
from streams.replay.fixed_groups import check_may_delete_group
from streams.testing import Clock, harness
from tests.conformance.stage import Stage
from tests.managers.purses import (
    RESERVE,
    Given,
    GivenBack,
    Noticed,
    Opened,
    Order,
    Poor,
    Purse,
    PurseEvent,
    Taken,
    TooLate,
    Transfer,
    World,
    evolve,
    give_back,
    notice,
)

pytestmark = pytest.mark.anyio


def unique() -> str:
    return f"m-{uuid4().hex[:8]}"


async def ended(world: World, transfer: str) -> None:
    async with asyncio.timeout(60):
        while not await world.has_ended(transfer):  # noqa: ASYNC110 - it is in the log
            await asyncio.sleep(0.01)


async def test_what_it_does_follows_from_what_happens(stage: Stage) -> None:
    world = World(stage.app(), unique())
    async with world.app:
        await world.open(ada=100, bob=0, reserve=50)
        await world.orders.publish(Order("t1", "ada", "bob", 70))
        await ended(world, "t1")
        # Refused, and then another command; again refused, and tried later; then given back.
        await world.orders.publish(Order("t2", "ada", "nobody", 40))
        await ended(world, "t2")
        await world.orders.publish(Order("t3", "ada", "bob", 90))
        await ended(world, "t3")
        assert await world.events("ada") == [Opened(100), Taken("t1", 70), Noticed("t2")]
        assert await world.events("bob") == [Opened(0), Given("t1", 70)]
        assert await world.events(RESERVE) == [Opened(50), Taken("t2", 40), GivenBack("t2", 40)]
        assert await world.events("nobody") == []
        found = await world.transfers.load("t2")
        assert found.state == Transfer("t2", RESERVE, "nobody", 40, tries=1)
        assert (found.version, found.is_closed) == (8, True)
        # The third notice came to nothing, which is no refusal.
        assert (await world.transfers.load("t3")).version == 3
        stats = world.transfers.stats()
        assert (stats.refused, stats.reacted) == (5, 3 + 8 + 3)


async def test_a_message_that_comes_again_changes_nothing(stage: Stage) -> None:
    world = World(stage.app(), unique())
    async with world.app:
        await world.open(ada=10, bob=0, reserve=50)
        await world.orders.publish(Order("t1", "ada", "bob", 20))
        await ended(world, "t1")
    # A reset of the group handles everything again. The purse has money by then.
    world = World(stage.app(), world.name)
    async with world.app.connected():
        await world.purses.append("ada", Opened(1_000), expected="any")
        log, group = world.app.log, world.transfers.name
        for topic in (world.orders.name, world.purses.events.name):
            start = {0: Committed(log.watermarks(topic, 0)[0])}
            log.reset_offsets(group, topic, start, force=True)
    other = World(stage.app(), world.name)
    async with other.app:
        await other.orders.publish(Order("t2", "ada", "bob", 1))
        await ended(other, "t2")
        found = await other.transfers.load("t1")
        assert (found.version, found.is_closed) == (5, True)
        assert await other.events("ada") == [
            Opened(10), Noticed("t1"), Opened(1_000), Taken("t2", 1),
        ]  # fmt: skip
        assert await other.events("bob") == [Opened(0), Given("t1", 20), Given("t2", 1)]
        assert await other.events(RESERVE) == [Opened(50), Taken("t1", 20)]
        await stage.until(lambda: other.transfers.stats().refused > 0, "it is told so by the log")
        assert other.transfers.stats().refused == 1


def take_ten(purse: Purse, transfer: str) -> Taken | None:
    """All or nothing; who has nothing at all refuses."""
    if not purse.cents:
        raise Poor
    return Taken(transfer, 10) if purse.cents >= 10 else None


@pytest.mark.parametrize("cents", [(0, 5), (5, 0)])
async def test_processes_agree_why_a_command_was_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, cents: tuple[int, int]
) -> None:
    """Between the note why it is about to be refused and the refusal the state changes: the
    decision comes to nothing instead of refusing, or the other way round."""
    decisions, name = [give_back, notice, take_ten], unique()
    one, two = (World(stage.app(), name, decisions=decisions) for _ in range(2))
    first, second = (each.transfers._definition.commands for each in (one, two))
    note, changes = first._note_reason, list(cents[1:])

    async def note_and_change(*args: Any) -> Any:
        noted = await note(*args)
        if changes:
            await two.open(ada=changes.pop())
        return noted

    monkeypatch.setattr(first, "_note_reason", note_and_change)
    async with one.app.connected(), two.app.connected():
        await two.open(ada=cents[0])
        command = first.stored_command(Command(one.purses, "ada", take_ten, "t"))
        reason = await first.carry_out(command, "cause")
        assert not changes
        assert [await each.carry_out(command, "cause") for each in (first, second)] == [reason] * 2
        log: Any = one.app.log
        found = await asyncio.to_thread(first.inspect_outcome, log, command, "cause")
        assert (found.outcome, found.reason) == ("refused" if reason else "nothing", reason or "")
        assert await one.events("ada") == [Opened(each) for each in cents]


def deal_out(purse: Purse, transfer: str) -> Sequence[PurseEvent]:
    """To nobody, in a sequence that is neither a list nor a tuple."""
    return deque()


async def test_an_empty_sequence_of_any_kind_comes_to_nothing(stage: Stage) -> None:
    world = World(stage.app(), unique(), decisions=[give_back, notice, deal_out])
    commands = world.transfers._definition.commands
    async with world.app.connected():
        command = commands.stored_command(Command(world.purses, "ada", deal_out, "t"))
        assert await commands.carry_out(command, "cause") is None
        log: Any = world.app.log
        found = await asyncio.to_thread(commands.inspect_outcome, log, command, "cause")
        assert found.outcome == "nothing"
        assert await world.events("ada") == []


class Tick(Struct, tag="tick", frozen=True):
    key: str
    do: str


class Rang(Struct, tag="rang", frozen=True):
    number: int


class Heard(Struct, frozen=True):
    heard: tuple[int, ...] = ()


def clocks(app: Streams, name: str) -> tuple[Any, ProcessManager[Heard]]:
    """What is to be done stands in the messages: ``schedule NAME SECONDS NUMBER``, ``cancel NAME``
    or ``end``."""
    ticks = app.topic(f"{name}-ticks", Tick, key="key", partitions=1)

    def react(state: Heard, event: Any) -> tuple[Heard, list[Any]]:
        if isinstance(event, Rang):
            return Heard((*state.heard, event.number)), []
        actions: list[Any] = []
        for each in event.do.split(", "):
            match each.split():
                case ["schedule", name, seconds, number]:
                    actions.append(Schedule(float(seconds), Rang(int(number)), name=name))
                case ["cancel", name]:
                    actions.append(Cancel(name))
                case ["end"]:
                    actions.append(End())
        return state, actions

    manager = ProcessManager(
        app, name, Heard, react, ticks, key=lambda event: event.key, timeouts=Rang, partitions=1
    )
    return ticks, manager


async def test_a_timeout_comes_once_or_is_cancelled_or_replaced() -> None:
    clock, app = Clock(), Streams("memory://")
    ticks, manager = clocks(app, unique())
    async with harness(app, clock=clock) as h:
        for key, do in (
            ("comes", "schedule a 10 1, schedule b 20 2"),
            ("cancelled", "schedule a 10 1, schedule b 20 2"),
            ("cancelled", "cancel a, cancel nothing"),
            ("replaced", "schedule a 10 1"),
            ("replaced", "schedule a 20 2, schedule b 5 3, schedule b 6 4"),
            ("at once", "schedule a 10 1, cancel a, schedule b 0 2"),
            ("ended", "schedule a 10 1"),
            ("ended", "end"),
            ("ended", "schedule a 10 1"),
        ):
            await ticks.publish(Tick(key, do))
        # One that says that it is due, and is not the one that is waited for.
        due: Any = app.topics[f"{manager.name}.timeouts"]
        await due.publish(due.type("comes", "a", "1.7"), key="comes")
        await h.settled()
        for seconds in (10, 20, 30):
            clock.advance(seconds)
            await h.settled()

        async def heard(key: str) -> tuple[int, ...]:
            return (await manager.load(key)).state.heard

        assert await heard("comes") == (1, 2)
        assert (await manager.load("comes")).version == 3
        assert await heard("cancelled") == (2,)
        assert await heard("replaced") == (4, 2)
        assert await heard("at once") == (2,)
        assert await heard("ended") == ()
        assert (await manager.load("ended")).version == 2
        # What is due, though nobody waits for it, is passed over: it comes once for all.
        passed_over = manager.stats().passed_over
        for wrong in ("1.0", "7.3", ""):
            await due.publish(due.type("comes", "a", wrong), key="comes")
        await due.publish(due.type("", "a", "1.0"))
        await h.settled()
        assert manager.stats().passed_over == passed_over + 3
        assert manager.stats().reacted == 8 + 6 + 1
        assert await heard("comes") == (1, 2)


# -- declared or answered wrongly


async def later(state: Transfer, event: Any) -> Any:
    return state, []


def deposit(purse: Purse, cents: int) -> Opened:
    return Opened(cents)


async def deposit_later(purse: Purse, cents: int) -> Opened:
    return Opened(cents)


class Changeable(Struct):
    pass


def nothing(state: Any, event: Any) -> Any:
    return state, []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"react": later}, "react=later: it must be a plain function"),
        ({"react": None}, "react=None: a function of (state, event)"),
        ({"react": lambda state: (state, [])}, "it is called as (state, event)"),
        ({"key": None}, "key=None: a function of the event"),
        ({"key": lambda: "k"}, "it is called as (event)"),
        ({"topics": ()}, "give at least one topic"),
        ({"topics": ("orders",)}, "'orders' is not a topic"),
        ({"state": Changeable}, "declare it with frozen=True"),
        ({"refusals": "Poor"}, "refusals='Poor': a type of exception, or several"),
        ({"refusals": (ValueError, ValueError)}, "are the same"),
        ({"decisions": deposit}, "functions, or functions by name"),
        ({"decisions": [deposit_later]}, "'deposit_later' is async"),
        ({"timeouts": int}, "has no tag"),
        ({"partitions": 0}, "partitions=0: must be a positive integer"),
    ],
)
def test_what_cannot_work_is_said_when_it_is_declared(given: dict[str, Any], error: str) -> None:
    app = Streams("memory://")
    topics = given.pop("topics", (app.topic("orders", Order),))
    state, react = given.pop("state", Transfer), given.pop("react", nothing)
    given.setdefault("key", transfer_key)
    with pytest.raises(ConfigError) as caught:
        ProcessManager(app, "transfers", state, react, *topics, **given)
    assert error in str(caught.value)


def transfer_key(event: Order) -> str:
    return event.transfer


def unannotated(purse, numbers):  # type: ignore[no-untyped-def]
    return Opened(len(numbers))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda world: None, "react returned None"),
        (lambda world: (Purse(), []), "react returned a state of type"),
        (lambda world: (Transfer(), End()), "react returned actions End()"),
        (lambda world: (Transfer(), ["give"]), "react returned the action 'give'"),
        (
            lambda world: (Transfer(), [Command(world.purses, "ada", deposit, 1)]),
            "decisions=[deposit]",
        ),
        (
            lambda world: (Transfer(), [Command(world.purses, "ada", Purse.open)]),  # type: ignore[call-arg]
            "missing a required argument: 'cents'",
        ),
        (
            lambda world: (Transfer(), [Command(world.purses, "ada", Purse.open, "1")]),  # type: ignore[arg-type]
            "Expected `int`, got `str`",
        ),
        (
            lambda world: (Transfer(), [Command(world.purses, "ada", give_back, "t1", -1)]),
            "Expected `int` >= 0",
        ),
        (
            lambda world: (Transfer(), [Command(world.purses, "ada", unannotated, (1, 2))]),
            "annotate the decision's parameters",
        ),
        (
            lambda world: (Transfer(), [Command(world.purses, "", give_back, "t", 1)]),
            "an aggregate's ID is a non-empty str",
        ),
        (
            lambda world: (
                Transfer(),
                [Command(world.purses.with_options(cause=False), "a", give_back, "t", 1)],
            ),
            "is no aggregate of its app as it was declared",
        ),
        (lambda world: (Transfer(), [Schedule(-1, TooLate())]), "seconds, or a timedelta"),
        (lambda world: (Transfer(), [Schedule(1, Opened(1))]), "it is not one of its timeouts="),
        (lambda world: (Transfer(), [End(), Schedule(1, TooLate())]), "beside End()"),
    ],
)
async def test_a_wrong_answer_is_a_dead_letter_and_nothing_was_done(
    answer: Any, error: str
) -> None:
    app = Streams("memory://")
    world = World(
        app, unique(), retry=Retry(attempts=2, delay=0.001),
        decisions=[give_back, unannotated],
    )  # fmt: skip
    world.transfers._definition.react = lambda state, event: answer(world)
    async with harness(app) as h:
        await world.orders.publish(Order("t1", "ada", "bob", 1))
        await h.settled()
        (letter,) = await h.dead(world.orders, group=world.transfers.name)
        assert error in str(letter.headers)
        assert (await world.transfers.load("t1")).version == 0
        assert await world.events("ada") == []


async def test_refusals_without_an_end_are_a_dead_letter() -> None:
    app = Streams("memory://")
    world = World(app, unique(), retry=Retry(attempts=1))
    command = Command(world.purses, "ada", Purse.take, "t1", 1)
    world.transfers._definition.react = lambda state, event: (state, [command])
    async with harness(app) as h:
        await world.orders.publish(Order("t1", "ada", "bob", 1))
        await h.settled()
        (letter,) = await h.dead(world.orders, group=world.transfers.name)
        assert "answered 100 refusals" in str(letter.headers)


async def test_one_message_may_have_more_commands_refused_than_may_follow_each_other() -> None:
    app = Streams("memory://")
    world = World(app, unique(), retry=Retry(attempts=1))
    poor = [Command(world.purses, f"poor-{n}", Purse.take, "t1", 1) for n in range(120)]
    world.transfers._definition.react = lambda state, event: (
        state,
        poor if isinstance(event, Order) else [],
    )
    async with harness(app) as h:
        await world.orders.publish(Order("t1", "ada", "bob", 1))
        await h.settled()
        assert not await h.dead(world.orders, group=world.transfers.name)
        assert (await world.transfers.load("t1")).version == 121
        stats = world.transfers.stats()
        assert (stats.reacted, stats.refused, stats.failures) == (121, 120, 0)


@contextmanager
def purses_out_of_reach(app: Streams, world: World) -> Iterator[None]:
    """No command reaches a purse meanwhile."""
    log: Any = app.log
    append = log.append_events

    def stop(topic: str, appends: Any, done: Any) -> None:
        if topic == world.purses.events.name:
            done([Unavailable("stopped by a test") for _ in appends])
        else:
            append(topic, appends, done)

    log.append_events = stop
    try:
        yield
    finally:
        log.append_events = append


async def test_a_restart_goes_by_what_was_stored() -> None:
    """The function has changed between the reaction and what it led to."""
    app = Streams("memory://")
    world = World(app, unique(), retry=Retry(attempts=1))
    async with harness(app, clock=Clock()) as h:
        await world.open(ada=100, bob=0)
        with purses_out_of_reach(app, world):
            await world.orders.publish(Order("t1", "ada", "bob", 70))
            await h.settled()
            assert (await world.transfers.load("t1")).version == 1
        world.transfers._definition.react = lambda state, event: (state, [End()])
        # The next message of the instance first carries out what is left.
        await world.orders.publish(Order("t1", "x", "y", 1), headers={"ce_source": "another"})
        await h.settled()
        assert await world.events("ada") == [Opened(100), Taken("t1", 70)]
        assert await world.has_ended("t1")


async def test_an_app_that_is_entered_again_knows_nothing_of_what_was_carried_out() -> None:
    app = Streams("memory://")
    world = World(app, unique(), retry=Retry(attempts=1))
    command = Command(world.purses, "ada", Purse.open, 1)
    world.transfers._definition.react = lambda state, event: (
        state,
        [command] if isinstance(event, Order) else [],
    )
    async with harness(app) as h:
        await world.orders.publish(Order("t1", "ada", "bob", 1))
        await h.settled()
        assert await world.events("ada") == [Opened(1)]
    async with harness(app) as h:  # with another log
        with purses_out_of_reach(app, world):
            await world.orders.publish(Order("t1", "ada", "bob", 1))
            await h.settled()
            assert (await world.transfers.load("t1")).version == 1
        await world.orders.publish(Order("t1", "x", "y", 1), headers={"ce_source": "another"})
        await h.settled()
        assert await world.events("ada") == [Opened(1), Opened(1)]


async def until(over: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not over():  # noqa: ASYNC110 - it is a figure
            await asyncio.sleep(0.01)


async def test_a_reaction_in_place_of_one_that_was_lost_is_carried_out(redis_url: str) -> None:
    """In a failover, say."""
    is_broken = False

    def pay(purse: Purse, cents: int) -> Opened:
        if is_broken:
            raise ZeroDivisionError
        return Opened(cents)

    world = World(
        Streams(redis_url), unique(), decisions=[pay], retry=Retry(attempts=3, delay=0.001)
    )
    name = world.transfers.name

    def react(state: Transfer, event: Any) -> tuple[Transfer, list[Any]]:
        if not isinstance(event, Order):
            return state, []
        return state, [Command(world.purses, event.target, pay, event.cents)]

    world.transfers._definition.react = react
    async with world.app as app:

        async def publish(cents: int) -> None:
            headers = {"ce_source": f"source {cents}"}
            order = Order("t1", "ada", f"purse {cents}", cents)
            await world.orders.publish(order, headers=headers)

        await publish(1)
        await until(lambda: world.transfers.stats().commands == 1)
        place = urlsplit(redis_url)
        with Redis(host=place.hostname or "", port=place.port or 0) as redis:
            topic = world.transfers.instances.events.name
            redis.delete(*(f"{{{topic}}}:{each}" for each in ("history:t1", "keys", "causes")))
            redis.xtrim(topic, maxlen=0, approximate=False)
        is_broken = True
        await publish(2)
        await until(lambda: app.stats().processors[name].dead_letters)
        is_broken = False
        await publish(3)
        await until(lambda: world.transfers.stats().commands == 3)
        for cents in (1, 2, 3):
            assert await world.events(f"purse {cents}") == [Opened(cents)]


async def test_an_aggregate_that_is_closed_refuses() -> None:
    app = Streams("memory://")
    name = unique()
    orders = app.topic(f"{name}-orders", Order, partitions=1)
    purses: Aggregate[PurseEvent, Purse] = Aggregate(
        app, f"{name}-purses", PurseEvent, Purse, evolve, partitions=1, final=GivenBack
    )
    reasons: list[str] = []

    def react(transfer: Transfer, event: Any) -> tuple[Transfer, list[Any]]:
        if isinstance(event, Order):
            return transfer, [Command(purses, "ada", Purse.open, 1)]
        reasons.append(event.reason)
        return transfer, [End()]

    ProcessManager(app, name, Transfer, react, orders, key=transfer_key)
    async with harness(app) as h:
        await purses.append("ada", GivenBack("t0", 1), expected="new")
        await orders.publish(Order("t1", "ada", "bob", 1))
        await h.settled()
        assert set(reasons) == {"AggregateClosed"}


async def test_what_anybody_writes_to_its_topic_harms_nothing() -> None:
    app, clock = Streams("memory://"), Clock()
    ticks, manager = clocks(app, unique())
    due = f"{manager.name}.timeouts"
    async with harness(app, clock=clock) as h:
        await ticks.publish(Tick("k", "schedule a 10 1"))
        for number, value in enumerate(
            (None, b"", b"[]", b"\xff", b'{"type":"timeout","key":"k"}', b"1" * 100_000)
        ):
            await app.publisher.publish(due, Record(value, b"k", f"wrong-{number}"))
            await app.publisher.publish(f"{due}.delay", Record(value, b"k", f"wrong-{number}"))
        await h.settled()
        clock.advance(11)
        await h.settled()
        assert (await manager.load("k")).state == Heard((1,))
        assert len(await h.dead(app.topics[due], group=due)) >= 5


async def test_instances_are_kept_as_snapshots_and_read_by_another_process() -> None:
    url, name = f"memory://{unique()}", unique()
    world = World(Streams(url), name, snapshot=Snapshot(every=2))
    async with world.app:
        await world.open(ada=100, reserve=0)
        await world.orders.publish(Order("t1", "ada", "nobody", 70))
        await ended(world, "t1")
        other = World(Streams(url), name, snapshot=Snapshot(every=2))
        async with other.app.connected():
            assert await other.has_ended("t1")
            assert (await other.transfers.load("t1")).state == Transfer(
                "t1", "ada", "nobody", 70, tries=1
            )
            assert other.transfers._instances.stats().snapshots_used == 1


async def test_groups_of_its_timeouts_cannot_be_moved(stage: Stage) -> None:
    name = unique()
    ticks, manager = clocks(stage.app(), name)
    async with manager.app:
        await ticks.publish(Tick("a", "schedule x 3600 1"))
        async with asyncio.timeout(60):
            while (await manager.load("a")).version < 1:  # noqa: ASYNC110 - it is in the log
                await asyncio.sleep(0.01)
    timeouts = f"{name}.timeouts"
    _, there = clocks(stage.app(), name)
    async with there.app.connected() as app:
        await there.load("a")
        for group, topic, instead in (
            (timeouts, timeouts, f"streams managers show MODULE:APP {name}"),
            (f"{timeouts}.delay", f"{timeouts}.delay", f"streams tail {timeouts}.delay"),
            (f"{timeouts}.delay.floor", f"{timeouts}.delay", "streams groups show"),
        ):
            with pytest.raises(InvalidValue, match="cannot be moved") as caught:
                await reset(app, group, topic, "latest", force=True)
            assert instead in str(caught.value)
            assert "\n" not in str(caught.value)
        with pytest.raises(InvalidValue, match="cannot be deleted") as caught:
            check_may_delete_group(app.log, f"{timeouts}.delay.floor")
        assert f"streams topics delete {timeouts}.delay" in str(caught.value)
        # The one that reads its topics may be: each message is reacted to once, whatever comes.
        assert await reset(app, name, ticks.name, "earliest")


async def test_timeouts_that_came_are_not_kept_for_ever(stage: Stage) -> None:
    ticks, manager = clocks(stage.app(), unique())
    async with manager.app as app:
        await ticks.publish(Tick("a", "schedule x 3600 1"))
        timeouts, log = f"{manager.name}.timeouts", app.log
        is_trimmed = "messages" in log.capabilities.retention  # Kafka deletes by its own rules
        await stage.until(
            lambda: (
                (log.describe_topic(timeouts).retention == Retention(messages=10_000)) == is_trimmed
            ),
            "what was settled is trimmed",
        )
