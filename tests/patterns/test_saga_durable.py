"""Durable sagas on every log: the journal, other processes, commands, and what cannot go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from stream_codecs import EncodeError
from streams import (
    ConfigError,
    Dedup,
    Flow,
    LogError,
    NotRunning,
    Retry,
    RetryAfter,
    Streams,
    Unavailable,
)
from streams.log.protocol import Assignment, Committed
from streams.message import Batch, Message, make_message
from streams.patterns import (
    SagaError,
    SagaFailedError,
    SagaOrchestrator,
    SagaStep,
    SagaStoppedError,
    StepCall,
    StepError,
    UnknownSaga,
)
from streams.patterns.saga.journal import Journal
from streams.patterns.saga.journal_entry import (
    Failure,
    JournalEntry,
    StoredEntry,
    abandon_entry,
    resume_entry,
)
from streams.patterns.saga.successor_reader import SuccessorReader
from streams.testing import Clock, harness
from tests.conformance.stage import PATIENCE, Stage

pytestmark = pytest.mark.anyio

FAST = Retry(attempts=3, delay=0.001, cap=0.002)


class Order(msgspec.Struct):
    """What a saga of these tests is about."""

    n: int
    did: list[str] = []
    hotel: str = ""
    flight: str = ""


class Refused(Exception):
    pass


async def eventually(so: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what only an answer of the log can say."""
    async with asyncio.timeout(PATIENCE):
        while not await so():  # noqa: ASYNC110 - nothing tells us when
            await asyncio.sleep(0.01)


class Shop:
    """One process's app with a saga on a stage's log; what its steps do is in ``diary``."""

    def __init__(self, stage: Stage, name: str, diary: list[str] | None = None) -> None:
        self.app = stage.app()
        self.diary: list[str] = [] if diary is None else diary
        self.refuse: set[str] = set()
        """Actions that fail."""
        self.saga: SagaOrchestrator[Order] = SagaOrchestrator(
            self.app, name, context=Order, partitions=2, flow=Flow(commit=0.05, drain=0.3)
        )

    def add(self, *names: str, **options: Any) -> Shop:
        for name in names:
            self.saga.add_step(self.step(name, **options))
        return self

    def step(self, name: str, **options: Any) -> SagaStep[Order]:
        def act(what: str) -> Callable[..., Any]:
            async def action(order: Order, call: StepCall) -> None:
                self.diary.append(what)
                if what in self.refuse:
                    raise Refused(what)
                order.did.append(what)

            return action

        options.setdefault("compensation_retry", FAST)
        return SagaStep(name, act(f"do {name}"), act(f"undo {name}"), **options)

    async def standing(self, id: str, status: str) -> None:
        """Wait until the saga stands so."""

        async def so() -> bool:
            return (await self.saga.status(id)).status == status

        await eventually(so)


@pytest.fixture
def name() -> str:
    return f"saga-{uuid4().hex[:8]}"


async def test_forward_backward_side_by_side_and_once_per_id(stage: Stage, name: str) -> None:
    shop = Shop(stage, name).add("reserve", "charge", "ship")

    async def only_odd(order: Order) -> None:
        if order.n % 2 == 0:
            raise Refused("even")

    shop.saga.add_step("odd", only_odd)
    async with shop.app:
        ended = await asyncio.gather(
            *(shop.saga.execute(Order(n), id=f"o{n}") for n in range(12)), return_exceptions=True
        )
        done = ["do reserve", "do charge", "do ship"]
        undone = ["undo ship", "undo charge", "undo reserve"]
        for n, result in enumerate(ended):
            if n % 2:
                assert result == Order(n, done)
                continue
            assert isinstance(result, SagaFailedError)
            assert (result.saga_id, result.step) == (f"o{n}", "odd")
            assert isinstance(result.cause, StepError)
            assert (result.cause.kind, result.cause.message) == ("Refused", "even")
            assert result.context == Order(n, done + undone)
        calls = len(shop.diary)
        # The same again is the saga that there is.
        assert await shop.saga.execute(Order(99), id="o1") == Order(1, done)
        with pytest.raises(SagaFailedError, match="even"):
            await shop.saga.execute(Order(99), id="o2")
        assert len(shop.diary) == calls

        assert await shop.saga.list() == []
        assert {each.id for each in await shop.saga.list("compensated")} == {
            f"o{n}" for n in range(0, 12, 2)
        }
        found = await shop.saga.status("o2")
        assert (found.status, found.done, found.context.n) == ("compensated", (), 2)
        assert found.failure is not None
        assert (found.failure.step, found.failure.kind) == ("odd", "Refused")
        assert "context" not in repr(found)
        with pytest.raises(UnknownSaga, match="'o77'"):
            await shop.saga.status("o77")


async def test_whoever_starts_a_saga_need_not_be_who_runs_it(stage: Stage, name: str) -> None:
    front, back = Shop(stage, name), Shop(stage, name).add("a", "b")
    async with front.app.connected():  # it has not even the steps
        waiting = asyncio.create_task(front.saga.execute(Order(1)))
        started = await front.saga.start(Order(2))
        async with back.app:
            assert await waiting == Order(1, ["do a", "do b"])
            await front.standing(started, "completed")


async def test_a_renamed_step_stops_the_saga_until_it_has_its_name_back(
    stage: Stage, name: str
) -> None:
    old = Shop(stage, name).add("a", "b")
    gate = asyncio.Event()

    async def wait(order: Order) -> None:
        old.diary.append("waits")
        await gate.wait()

    old.saga.add_step("c", wait)
    async with old.app:
        await old.saga.start(Order(1), id="s")
        await stage.until(lambda: "waits" in old.diary, "the third step")
    renamed = Shop(stage, name).add("a", "b", "see")
    async with renamed.app:
        await renamed.standing("s", "stopped")
        found = await renamed.saga.status("s")
        assert f"{name} has no step 'c' any more" in found.reason
        assert (found.steps, found.done) == (("c",), ("a", "b"))
        assert [each.id for each in await renamed.saga.list()] == ["s"]
        with pytest.raises(SagaStoppedError, match="'c'"):
            await renamed.saga.execute(Order(1), id="s")
    mended = Shop(stage, name).add("a", "b", "c")
    async with mended.app:
        assert (await mended.saga.resume("s")).status == "running"
        await mended.standing("s", "completed")
        with pytest.raises(SagaError, match="nothing to resume"):
            await mended.saga.resume("s")
        assert await mended.saga.execute(Order(1), id="s") == Order(1, ["do a", "do b", "do c"])
    assert (renamed.diary, mended.diary) == ([], ["do c"])


async def test_a_failed_compensation_is_tried_again_on_resume(stage: Stage, name: str) -> None:
    shop = Shop(stage, name).add("a", "b", "c", "d")
    shop.refuse = {"do d", "undo c", "undo a"}
    async with shop.app:
        with pytest.raises(SagaFailedError) as caught:
            await shop.saga.execute(Order(1), id="s")
        failed = caught.value.failed_compensations
        assert [(each.step, each.attempts, str(each.error)) for each in failed] == [
            ("c", 3, "Refused: undo c"),
            ("a", 3, "Refused: undo a"),
        ]
        assert shop.diary[4:] == [*["undo c"] * 3, "undo b", *["undo a"] * 3]
        found = await shop.saga.status("s")
        assert (found.status, found.steps) == ("failed", ("c", "a"))
        shop.refuse = set()
        shop.diary.clear()
        assert (await shop.saga.resume("s")).status == "compensating"
        await shop.standing("s", "compensated")
        assert shop.diary == ["undo c", "undo a"]
        assert (await shop.saga.status("s")).failed_compensations == ()


async def test_an_abandoned_saga_goes_no_further(stage: Stage, name: str) -> None:
    shop = Shop(stage, name).add("a")
    begun, gate = asyncio.Event(), asyncio.Event()

    async def wait(order: Order) -> None:
        begun.set()
        await gate.wait()

    shop.saga.add_step("wait", wait)
    shop.add("c")
    async with shop.app:
        waiting = asyncio.create_task(shop.saga.execute(Order(1), id="s"))
        await begun.wait()
        left = await shop.saga.abandon("s", "by hand")
        assert (left.status, left.steps, left.done) == ("abandoned", ("wait",), ("a",))
        gate.set()
        with pytest.raises(SagaStoppedError, match="abandoned: by hand"):
            await waiting
        with pytest.raises(SagaError, match="abandoned already"):
            await shop.saga.abandon("s")
        with pytest.raises(UnknownSaga):
            await shop.saga.abandon("t")
    assert shop.diary == ["do a"]


async def test_who_waits_for_a_saga_is_told_that_the_app_was_left(stage: Stage, name: str) -> None:
    front = Shop(stage, name)  # nobody runs it
    durable = front.saga._durable
    assert durable is not None
    async with front.app.connected():
        waiting = asyncio.create_task(front.saga.execute(Order(1), id="s"))
        await stage.until(lambda: durable._poll_task, "somebody who waits")
    with pytest.raises(NotRunning, match="before the saga had ended"):
        await asyncio.wait_for(waiting, PATIENCE)


async def test_the_apps_next_life_waits_for_sagas_of_its_own(stage: Stage, name: str) -> None:
    front, back = Shop(stage, name), Shop(stage, name).add("a")
    durable = front.saga._durable
    assert durable is not None
    async with front.app.connected():
        before = asyncio.create_task(front.saga.execute(Order(1), id="before"))
        await stage.until(lambda: durable._poll_task, "somebody who waits")
    async with front.app.connected():
        after = asyncio.create_task(front.saga.execute(Order(2), id="after"))
        async with back.app:
            assert await asyncio.wait_for(after, PATIENCE) == Order(2, ["do a"])
    with pytest.raises(NotRunning, match="before the saga had ended"):
        await asyncio.wait_for(before, PATIENCE)


async def test_commands_at_the_same_time_make_one_course(stage: Stage, name: str) -> None:
    """Every one is carried out on what is there when its turn comes, or refused."""
    shop = Shop(stage, name)
    async with shop.app.connected():
        await shop.saga.start(Order(1), id="s")
        ended = await asyncio.gather(
            *(shop.saga.abandon("s", f"reason {n}") for n in range(4)), return_exceptions=True
        )
        (won,) = (each for each in ended if not isinstance(each, BaseException))
        lost = [each for each in ended if isinstance(each, BaseException)]
        assert [str(each) for each in lost] == ["saga s is abandoned already"] * 3
        assert (await shop.saga.status("s")).reason == won.reason


async def test_a_command_that_came_second_looks_again(stage: Stage, name: str) -> None:
    shop = Shop(stage, name)
    tries: list[int] = []
    async with shop.app.connected():
        await shop.saga.start(Order(1), id="s")
        journal = Journal(shop.app.log, name)

        def overtaken(last: StoredEntry) -> StoredEntry:
            tries.append(last.n)
            if len(tries) == 1:
                journal.append_command(
                    "s", lambda last: last.next_entry(1.0, status="stopped", stood="running")
                )
            return abandon_entry(last, 2.0)

        entry = await asyncio.to_thread(journal.append_command, "s", overtaken)
        assert (tries, entry.n) == ([0, 1], 2)
        assert (await shop.saga.status("s")).status == "abandoned"


async def test_attempts_are_counted_across_restarts(stage: Stage, name: str) -> None:
    attempts: list[int] = []
    shops: list[Shop] = []

    def shop() -> Shop:
        made = Shop(stage, name)
        shops.append(made)

        async def fail(order: Order, call: StepCall) -> None:
            attempts.append(call.attempt)
            if call.attempt == 2 and len(shops) == 1:  # the first process makes no third one
                await stage.until(lambda: made.app.runtime.stopping, "the end of the first process")
            raise Refused(f"attempt {call.attempt}")

        made.saga.add_step("a", fail, retry=Retry(attempts=3, delay=0.2, cap=0.2))
        return made

    first = shop()
    async with first.app:
        await first.saga.start(Order(1), id="s")
        await stage.until(lambda: attempts, "the first attempt")

        async def written() -> bool:
            found = await first.saga.status("s")
            return len(attempts) > 1 or bool(found.retrying)

        await eventually(written)
    begun = len(attempts)
    second = shop()
    async with second.app:
        await second.standing("s", "compensated")
    # The last call of the first process may have come again, under the number it had.
    assert sorted(set(attempts)) == [1, 2, 3]
    assert len(attempts) - 3 <= 1
    assert begun <= 2


async def test_a_group_of_steps_and_what_failed_in_it(stage: Stage, name: str) -> None:
    shop = Shop(stage, name)
    both = asyncio.Barrier(2)

    def book(what: str) -> SagaStep[Order]:
        async def execute(order: Order) -> None:
            await asyncio.wait_for(both.wait(), PATIENCE)
            setattr(order, what, "booked")

        async def compensate(order: Order) -> None:
            setattr(order, what, "cancelled")

        return SagaStep(what, execute, compensate)

    shop.saga.add_parallel(book("hotel"), book("flight")).add_step(shop.step("pay"))
    async with shop.app:
        ended = await shop.saga.execute(Order(1))
        assert ended == Order(1, ["do pay"], "booked", "booked")
        shop.refuse.add("do pay")
        with pytest.raises(SagaFailedError) as caught:
            await shop.saga.execute(Order(2))
        assert caught.value.context == Order(2, [], "cancelled", "cancelled")


async def test_what_a_late_writer_says_of_a_number_does_not_count(stage: Stage, name: str) -> None:
    """As a process does that was thought dead, and finishes the step at which it was frozen."""
    shop = Shop(stage, name).add("a")
    begun, gate = asyncio.Event(), asyncio.Event()

    async def wait(order: Order) -> None:
        begun.set()
        await gate.wait()

    shop.saga.add_step("wait", wait)
    shop.add("c")
    async with shop.app:
        waiting = asyncio.create_task(shop.saga.execute(Order(1), id="s"))
        await begun.wait()
        late = StoredEntry(
            saga="s", n=1, status="compensating", context=msgspec.Raw(b'{"n":666}'),
            plan=(("a",), ("wait",), ("c",)), done=("a",), failure=Failure("a", "Refused"),
        )  # fmt: skip
        durable = shop.saga._durable
        assert durable is not None
        await durable.topic.publish(late)
        assert (await shop.saga.status("s")).status == "running"
        gate.set()
        assert await waiting == Order(1, ["do a", "do c"])
    assert shop.diary == ["do a", "do c"]


async def test_any_client_can_start_a_saga(stage: Stage, name: str) -> None:
    shop = Shop(stage, name).add("a")
    app = stage.app()
    topic = app.topic(f"{name}.saga", bytes, partitions=2)
    async with shop.app, app.connected():
        await topic.publish(b'{"saga": "s", "context": {"n": 3}}', key="s")
        await shop.standing("s", "completed")
        assert (await shop.saga.status("s")).context == Order(3, ["do a"])


# -- where one log stands for all -----------------------------------------------------------------


@asynccontextmanager
async def memory(*steps: SagaStep[Any], clock: Clock | None = None) -> AsyncIterator[Any]:
    """A saga of these steps on a private log: it, and its harness."""
    app = Streams("memory://")
    saga: SagaOrchestrator[Order] = SagaOrchestrator(app, "orders", context=Order, partitions=1)
    for step in steps:
        saga.add_step(step)
    async with AsyncExitStack() as stack:
        yield saga, await stack.enter_async_context(harness(app, clock=clock))


async def test_backoff_and_timeout_follow_the_apps_clock() -> None:
    attempts: list[int] = []

    async def hang(order: Order, call: StepCall) -> None:
        attempts.append(call.attempt)
        if call.attempt < 3:
            await asyncio.Event().wait()

    step = SagaStep("a", hang, retry=Retry(attempts=3, delay=3600, cap=3600), timeout=600)
    async with memory(step, clock=Clock()) as (saga, h):
        await saga.start(Order(1), id="s")
        for attempt in (1, 2):
            while len(attempts) < attempt:  # noqa: ASYNC110 - a handler of ours is waited for
                await asyncio.sleep(0.001)
            h.clock.advance(601)
            await h.settled()
            (retrying,) = (await saga.status("s")).retrying
            assert (retrying.kind, retrying.attempts) == ("StepTimeout", attempt)
            h.clock.advance(3600)
        await h.settled()
        assert (await saga.status("s")).status == "completed"
    assert attempts == [1, 2, 3]


async def nothing(order: Order) -> None:
    return None


async def refuse(order: Order) -> None:
    raise Refused("no")


@pytest.mark.parametrize("backward", [False, True])
async def test_what_waits_to_be_tried_again_is_not_called_once_its_saga_is_abandoned(
    backward: bool,
) -> None:
    calls: list[int] = []

    async def later(order: Order) -> None:
        calls.append(order.n)
        raise RetryAfter(3600)

    retry = Retry(attempts=3)
    steps: tuple[SagaStep[Order], ...] = (SagaStep("a", later, retry=retry),)
    if backward:
        undone = SagaStep("a", nothing, later, compensation_retry=retry)
        steps = (undone, SagaStep("b", refuse))
    async with memory(*steps, clock=Clock()) as (saga, h):
        await saga.start(Order(1), id="s")
        await h.settled()
        assert calls == [1]
        await saga.abandon("s")
        h.clock.advance(3600)
        await h.settled()
        assert (await saga.status("s")).status == "abandoned"
        # Another one that waits: what it reads for itself begins further back, or ends later.
        await saga.start(Order(2), id="t")
        await h.settled()
        h.clock.advance(3600)
        await h.settled()
    assert calls == [1, 2, 2]


async def test_a_saga_that_is_abandoned_before_its_turn_is_not_begun() -> None:
    calls: list[int] = []
    gate = asyncio.Event()

    async def wait(order: Order) -> None:
        calls.append(order.n)
        await gate.wait()

    app = Streams("memory://")
    saga: SagaOrchestrator[Order] = SagaOrchestrator(
        app, "orders", context=Order, partitions=1, concurrency=1
    )
    saga.add_step(SagaStep("wait", wait))
    async with harness(app, clock=Clock()) as h:
        await saga.start(Order(1), id="s")
        await saga.start(Order(2), id="t")
        while not calls:  # noqa: ASYNC110 - a handler of ours is waited for
            await asyncio.sleep(0.001)
        await saga.abandon("t")
        h.clock.advance(60)
        gate.set()
        await h.settled()
        assert (await saga.status("s")).status == "completed"
    assert calls == [1]


async def test_a_former_end_that_comes_again_is_not_the_end_of_a_saga_that_was_resumed() -> None:
    broken = True

    async def undo(order: Order) -> None:
        if broken:
            raise Refused("not yet")

    steps = SagaStep("a", nothing, undo, compensation_retry=FAST), SagaStep("b", refuse)
    async with memory(*steps) as (saga, h):
        with pytest.raises(SagaFailedError):
            await saga.execute(Order(1), id="s")
        broken = False
        await saga.resume("s")
        await h.settled()
        durable, journal = saga._durable, Journal(h.log, "orders")
        places = list(journal.read_range(0, 0, h.log.watermarks(journal.topic, 0)[1]))
        waiter = durable._waiters["s"] = {asyncio.get_running_loop().create_future()}
        (future,) = waiter
        assignment = Assignment(journal.topic, 0, 9, Committed(0))
        for status in ("failed", "compensated"):
            assert not future.done()
            entry, at = next(each for each in places if each.entry.status == status)
            batch = Batch(
                journal.topic, 0, (at.offset,), [b"s"], [b""], [None], assignment=assignment
            )
            await durable.processor.function(entry, make_message(None, batch, 0, 1))
        assert future.result().status == "compensated"


async def test_nobody_reads_the_journal_once_the_app_was_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads: list[int] = []

    def failing(journal: Journal, partition: int, start: int) -> dict[str, int]:
        reads.append(partition)
        raise Unavailable("away")

    monkeypatch.setattr(Journal, "last_numbers", failing)
    app = Streams("memory://")
    saga: SagaOrchestrator[Order] = SagaOrchestrator(
        app, "orders", context=Order, partitions=1, flow=Flow(drain=0.05)
    )
    saga.add_step(SagaStep("a", nothing))
    before = asyncio.all_tasks()
    async with app:
        await saga.start(Order(1))
        while not reads:  # noqa: ASYNC110 - a thread of ours is waited for
            await asyncio.sleep(0.001)
    async with asyncio.timeout(PATIENCE):
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 - nothing tells us when
            await asyncio.sleep(0.01)


async def test_a_context_that_cannot_be_written_fails_its_step_which_is_undone() -> None:
    undone = []

    async def grow(order: Order) -> None:
        order.hotel = "x" * (600 << 10)

    async def undo(order: Order) -> None:
        undone.append(len(order.hotel))

    async with memory(SagaStep("grow", grow, undo, retry=FAST)) as (saga, _):
        with pytest.raises(SagaFailedError, match=r"EncodeError.*bytes; at most 524288"):
            await saga.execute(Order(1))
        with pytest.raises(EncodeError, match="524288"):
            await saga.start(Order(1, hotel="x" * (600 << 10)))
        with pytest.raises(EncodeError, match="expected Order"):
            await saga.start({"n": 1})
    assert undone == [0]


async def test_a_context_of_another_type_stops_the_saga() -> None:
    async with memory(SagaStep("a", nothing)) as (saga, h):
        topic = h.app.topics["orders.saga"]
        await topic.publish(StoredEntry(saga="s", context=msgspec.Raw(b'{"n":"many"}')))
        await h.settled()
        found = await saga.status("s")
        assert found.status == "stopped"
        assert "its context cannot be read" in found.reason
        assert "many" not in found.reason


async def test_what_is_no_entry_is_a_dead_letter() -> None:
    async with memory(SagaStep("a", nothing)) as (saga, h):
        topic = h.app.topics["orders.saga"]
        await topic.publish(StoredEntry(saga="s", context=msgspec.Raw(b"{}")), key="another")
        raw = topic.record(StoredEntry(saga="t", context=msgspec.Raw(b"{}")))
        raw.value = b'{"saga": 7}'
        await h.app.publisher.publish(topic.name, raw)
        await h.settled()
        letters = await h.dead(topic, "orders")
        assert len(letters) == 2
        said = "".join(each.headers["__streams.errors.message"] for each in letters)
        assert "under another key" in said
        with pytest.raises(UnknownSaga):
            await saga.status("t")


async def test_steps_that_nobody_has_stop_the_saga() -> None:
    async with memory() as (saga, h):
        await saga.start(Order(1), id="s")
        await h.settled()
        assert (await saga.status("s")).reason == "orders has no steps here"


async def test_a_compensation_that_was_taken_away_stops_the_saga() -> None:
    async with memory(SagaStep("a", nothing)) as (saga, h):
        await h.app.topics["orders.saga"].publish(
            StoredEntry(
                saga="s",
                n=3,
                status="compensating",
                context=msgspec.Raw(b'{"n":1}'),
                plan=(("a",),),
                done=("a",),
                failure=Failure("a", "Refused"),
            )
        )
        await h.settled()
        assert (await saga.status("s")).status == "stopped"


async def test_errors_are_kept_short() -> None:
    async def fail(order: Order) -> None:
        raise Refused("x" * 5000)

    async with memory(SagaStep("a", fail)) as (saga, _):
        with pytest.raises(SagaFailedError):
            await saga.execute(Order(1), id="s")
        found = await saga.status("s")
        assert len(found.failure.message) == 1024


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"context": Order}, "needs a name"),
        ({"name": "orders"}, "type of its context"),
        ({"name": "or ders", "context": Order}, "group name|topic name"),
        ({"name": "orders", "context": Refused}, "msgspec does not know"),
        ({"name": "orders", "context": Order, "concurrency": 0}, "concurrency"),
        ({"name": "orders", "context": Order, "partitions": 0}, "partitions"),
        ({"name": "orders", "context": Order, "dedup": 3}, "use Dedup"),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_declared(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        SagaOrchestrator(Streams("memory://"), **arguments)


def test_one_name_twice_in_an_app_is_an_error() -> None:
    app = Streams("memory://")
    SagaOrchestrator(app, "orders", context=Order, dedup=Dedup(window=100))
    with pytest.raises(ConfigError, match="already reads"):
        SagaOrchestrator(app, "orders", context=Order)


async def test_what_was_written_when_a_partition_came_is_looked_up_each_time_it_comes() -> None:
    async with memory(SagaStep("a", nothing)) as (saga, h):
        journal = Journal(h.log, "orders")
        await saga.start(Order(1), id="s")
        await h.settled()  # entries 0 and 1

        def message(number: int, assignment: Assignment | None) -> Message[StoredEntry]:
            batch = Batch(journal.topic, 0, (number,), [b"s"], [b""], [None], assignment=assignment)
            return make_message(None, batch, 0, 1)

        async def followed(number: int, assignment: Assignment | None) -> bool:
            entry = StoredEntry(saga="s", n=number, context=msgspec.Raw(b"{}"))
            return await tails.has_successor(journal, entry, message(number, assignment))

        tails = SuccessorReader()
        first = Assignment(journal.topic, 0, 1, Committed(0))
        assert await followed(0, first)
        assert not await followed(1, first)
        await h.app.topics[journal.topic].publish(
            StoredEntry(
                saga="s", n=2, status="abandoned", stood="running", context=msgspec.Raw(b"{}")
            )
        )
        assert not await followed(1, first)
        assert await followed(1, Assignment(journal.topic, 0, 2, Committed(1)))
        assert not await followed(0, Assignment(journal.topic, 0, 3, Committed(3)))
        assert not await followed(0, None)


async def test_a_journal_that_could_not_be_read_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Exception] = [LogError("odd"), Unavailable("away")]
    numbers = Journal.last_numbers

    def failing(journal: Journal, partition: int, start: int) -> dict[str, int]:
        if answers:
            raise answers.pop(0)
        return numbers(journal, partition, start)

    monkeypatch.setattr(Journal, "last_numbers", failing)
    monkeypatch.setattr("streams.patterns.saga.successor_reader.RETRY_PAUSE", 0.001)
    async with memory(SagaStep("a", nothing)) as (saga, _):
        assert await saga.execute(Order(1)) == Order(1)
    assert answers == []


def test_a_stopped_saga_is_resumed_the_way_it_went() -> None:
    entry = JournalEntry(
        saga="s", n=4, context=None, status="stopped", stood="compensating", done=("a",)
    )
    back = resume_entry(entry, 1.0)
    assert (back.status, back.n, back.current_steps, back.stood) == (
        "compensating",
        5,
        ("a",),
        None,
    )


def test_an_entry_says_which_steps_are_at_hand() -> None:
    plan = (("a",), ("b", "c"))
    entry = JournalEntry(saga="s", context=None, plan=plan, stage=1, done=("a", "b"))
    assert entry.current_steps == ("c",)
    back = entry.next_entry(0.0, status="compensating")
    assert back.current_steps == ("b",)
    assert back.message_id == "s/1"
