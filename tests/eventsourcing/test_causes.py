"""Causes: a message that is handled again finds what was decided for it, and appends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from streams import Message, Streams
from streams.config import Retry
from streams.engine.progress import decode_generation, encode_progress
from streams.errors import (
    ConfigError,
    InvalidValue,
    LogError,
    OutcomeUnknown,
    ProcessorDied,
    Reject,
    TooLarge,
    Unavailable,
)
from streams.eventsourcing import Aggregate, Decided, DecisionRefused, WrongExpectedVersion
from streams.log.protocol import Committed
from streams.message import Record
from streams.patterns import DeadLetterManager, instrument
from streams.replay import replay, reset
from streams.testing import harness
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import (
    Account,
    Closed,
    Deposited,
    Overdrawn,
    Withdrawn,
    accounts,
    deposit,
    nothing,
)

pytestmark = pytest.mark.anyio

NO_DELAY = Retry(attempts=3, delay=0.0)


class Bank:
    """An app as one process has it: a topic of orders, a handler of them, and accounts."""

    def __init__(
        self, stage: Stage, act: Callable[[Bank, int, Message[Any]], Any], **options: Any
    ) -> None:
        self.stage = stage
        self.app = stage.app()
        self.accounts: Aggregate[Any, Account] = accounts(self.app, f"{stage.topic_name}-accounts")
        self.orders = stage.topic(self.app)
        self.handled: list[int] = []
        options.setdefault("group", stage.group)
        options.setdefault("retry", NO_DELAY)

        async def handle(value: int, message: Message[Any]) -> None:
            await act(self, value, message)
            self.handled.append(value)

        self.processor = self.app.processor(self.orders, **options)(handle)

    async def events(self, id: str = "a") -> list[Any]:
        return [each.event async for each in self.accounts.read(id)]

    async def until_handled(self, count: int) -> None:
        await self.stage.until(lambda: len(self.handled) >= count, f"{count} handled")


async def decide_once(bank: Bank, value: int, message: Message[Any]) -> None:
    await bank.accounts.decide("a", deposit, value)


async def test_a_message_that_is_tried_again_appends_once(stage: Stage) -> None:
    async def fail_twice(bank: Bank, value: int, message: Message[Any]) -> None:
        done = await bank.accounts.decide("a", deposit, value)
        assert done.events == (Deposited(value),)
        if message.attempt < 3:
            raise RuntimeError("after the decision")

    bank = Bank(stage, fail_twice)
    async with bank.app:
        await stage.publish(bank.orders, 1, 2, key="k")
        await bank.until_handled(2)
        assert await bank.events() == [Deposited(1), Deposited(2)]


async def test_several_calls_of_a_handler_are_told_apart(stage: Stage) -> None:
    async def decide_three(bank: Bank, value: int, message: Message[Any]) -> None:
        await bank.accounts.decide("a", deposit, 10)
        await bank.accounts.decide("b", deposit, 20)
        await bank.accounts.decide("a", deposit, 30)
        await bank.accounts.append("a", Deposited(40), expected="exists")
        if message.attempt < 3:
            raise RuntimeError("after the decisions")

    bank = Bank(stage, decide_three)
    async with bank.app:
        await stage.publish(bank.orders, 1, key="k")
        await bank.until_handled(1)
        assert await bank.events("a") == [Deposited(10), Deposited(30), Deposited(40)]
        assert await bank.events("b") == [Deposited(20)]


async def test_a_message_that_failed_between_two_calls_makes_the_second_only(stage: Stage) -> None:
    async def fail_between(bank: Bank, value: int, message: Message[Any]) -> None:
        await bank.accounts.decide("a", deposit, 1)
        if message.attempt < 3:
            raise RuntimeError("between")
        await bank.accounts.decide("a", deposit, 2)

    bank = Bank(stage, fail_between)
    async with bank.app:
        await stage.publish(bank.orders, 1, key="k")
        await bank.until_handled(1)
        assert await bank.events() == [Deposited(1), Deposited(2)]


async def test_two_groups_decide_each_for_itself(stage: Stage) -> None:
    first = Bank(stage, decide_once)
    second = Bank(stage, decide_once, group=f"{stage.group}-2")
    async with first.app, second.app:
        await stage.publish(first.orders, 1, key="k")
        await first.until_handled(1)
        await second.until_handled(1)
        assert await first.events() == [Deposited(1)] * 2


async def test_another_process_finds_it_after_later_events(stage: Stage) -> None:
    first = Bank(stage, decide_once)
    async with first.app:
        await stage.publish(first.orders, 5, key="k")
        await first.until_handled(1)
        await first.accounts.decide("a", Account.withdraw, 3)
    # The position is lost, as that of a process which was killed before it could commit.
    stage.anchor.delete_group(stage.group)
    answers = []

    async def decide_again(bank: Bank, value: int, message: Message[Any]) -> None:
        answers.append(await bank.accounts.decide("a", deposit, value))

    second = Bank(stage, decide_again)
    async with second.app:
        await second.until_handled(1)
        assert await second.events() == [Deposited(5), Withdrawn(3)]
        assert (answers[0].version, answers[0].state) == (1, Account("", 5))
        assert second.accounts.stats().caused == 1


@pytest.mark.parametrize("resets", [0, 1])
async def test_a_redriven_message_finds_what_it_decided(stage: Stage, resets: int) -> None:
    healthy = False

    async def fail_at_first(bank: Bank, value: int, message: Message[Any]) -> None:
        await bank.accounts.decide("a", deposit, value)
        if not healthy:
            raise Reject("not yet")

    bank = Bank(stage, fail_at_first)
    async with bank.app.connected():  # so that the group has a place to be moved from
        await stage.publish(bank.orders, 1, key="k")
        await asyncio.to_thread(
            stage.anchor.initialize_offsets, stage.group, bank.orders.name, {0: 0, 1: 0}
        )
        for _ in range(resets):
            await reset(bank.app, stage.group, bank.orders, "earliest")
    async with bank.app:
        letters = DeadLetterManager(bank.app, f"{bank.orders.name}.{stage.group}.dead")
        await stage.until(lambda: bank.app.wait(letters.count()) == 1, "a dead letter")
        healthy = True
        await letters.reprocess()
        await bank.until_handled(1)
        assert await bank.events() == [Deposited(1)]


async def test_after_a_reset_it_is_decided_upon_anew(stage: Stage) -> None:
    bank = Bank(stage, decide_once)
    async with bank.app:
        await stage.publish(bank.orders, 1, 2, key="k")
        await bank.until_handled(2)
    for times in (2, 3):
        async with bank.app.connected():
            await reset(bank.app, stage.group, bank.orders, "earliest")
        async with bank.app:
            await bank.until_handled(2 * times)
            assert len(await bank.events()) == 2 * times
    # Redelivered without another reset, after several commits, they find what was decided last.
    places = {
        partition: Committed(
            stage.anchor.watermarks(bank.orders.name, partition)[0], place.progress
        )
        for partition, place in stage.anchor.committed(stage.group, bank.orders.name).items()
    }
    for partition, place in places.items():
        generation = decode_generation(place.progress)
        assert generation > 0
        progress = encode_progress(
            place.position, place.position, (), generation=generation
        ).progress
        places[partition] = Committed(place.position, progress)
    stage.anchor.reset_offsets(stage.group, bank.orders.name, places)
    async with bank.app:
        await bank.until_handled(8)
        assert len(await bank.events()) == 6


async def test_a_reset_of_a_running_group_decides_anew(stage: Stage) -> None:
    bank = Bank(stage, decide_once)
    async with bank.app:
        await stage.publish(bank.orders, 1, key="k")
        await bank.until_handled(1)
        await reset(bank.app, stage.group, bank.orders, "earliest", force=True)
        await bank.until_handled(2)
        assert await bank.events() == [Deposited(1)] * 2


async def test_each_replay_into_a_processor_decides_anew(stage: Stage) -> None:
    tries: list[int] = []

    async def fail_once(bank: Bank, value: int, message: Message[Any]) -> None:
        await bank.accounts.decide("a", deposit, value)
        tries.append(value)
        if message.attempt == 1:
            raise RuntimeError("after the decision")

    bank = Bank(stage, fail_once)
    async with bank.app:
        await stage.publish(bank.orders, 1, key="k")
        await bank.until_handled(1)
        for times in (2, 3):
            await replay(bank.app, bank.orders, bank.processor)
            assert await bank.events() == [Deposited(1)] * times
        assert len(tries) == 6


async def test_a_plain_handler_is_the_cause_through_app_wait(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, f"{stage.topic_name}-accounts")
    orders = stage.topic(app)

    @app.processor(orders, group=stage.group, retry=NO_DELAY)
    def handle(value: int, message: Message[Any]) -> None:
        app.wait(bank.decide("a", deposit, value))
        app.wait(bank.decide("a", deposit, value))
        if message.attempt < 3:
            raise RuntimeError("after the decisions")
        stage.seen.handled.append((None, value))

    @app.processor(orders, group=f"{stage.group}-2", concurrency=4, retry=NO_DELAY)
    def handle_value(value: int) -> None:
        app.wait(bank.decide("b", deposit, value))
        if not stage.seen.attempts[value]:
            stage.seen.attempts[value].append(1)
            raise RuntimeError("after the decision")
        stage.seen.handled.append((None, value))

    async with app:
        await stage.publish(orders, 1, 2, key="k")
        await stage.handled(4)
        assert [each.event async for each in bank.read("a")] == [
            Deposited(1), Deposited(1), Deposited(2), Deposited(2),
        ]  # fmt: skip
        assert [each.event async for each in bank.read("b")] == [Deposited(1), Deposited(2)]


async def test_a_generator_decides_while_its_message_is_handled(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, f"{stage.topic_name}-accounts")
    orders, results = stage.topic(app), app.topic(f"{stage.topic_name}-results", int, partitions=1)
    tries: list[int] = []

    @app.processor(orders, group=stage.group, retry=NO_DELAY, to=results)
    def handle(value: int) -> Any:
        tries.append(value)
        yield app.wait(bank.decide("a", deposit, value)).version
        if len(tries) == 1:
            raise RuntimeError("after the decision")
        stage.seen.handled.append((None, value))

    async with app:
        await stage.publish(orders, 1, key="k")
        await stage.handled(1)
        assert [each.event async for each in bank.read("a")] == [Deposited(1)]


# -- causes that have to be named, and are


async def died_of(bank: Bank, *values: int) -> str:
    with pytest.raises(ProcessorDied) as caught:
        async with bank.app:
            await bank.stage.publish(bank.orders, *values, key="k")
            await bank.app.failed()
            await asyncio.Event().wait()
    return str(caught.value.__cause__)


async def test_calls_at_the_same_time_upon_one_aggregate_name_their_causes(stage: Stage) -> None:
    async def decide_both(bank: Bank, value: int, message: Message[Any]) -> None:
        await asyncio.gather(
            bank.accounts.decide("a", deposit, 1), bank.accounts.decide("b", deposit, 1)
        )
        found = await asyncio.gather(
            bank.accounts.decide("a", deposit, 2),
            bank.accounts.decide("a", deposit, 3),
            return_exceptions=True,
        )
        raise next(each for each in found if isinstance(each, Exception))

    error = await died_of(Bank(stage, decide_both), 1)
    assert "two calls upon 'a' at the same time" in error
    assert "with_options(cause=...)" in error


async def test_calls_at_the_same_time_that_are_named(stage: Stage) -> None:
    async def decide_both(bank: Bank, value: int, message: Message[Any]) -> None:
        named = [bank.accounts.with_options(cause=f"{message.id}/{n}") for n in range(3)]
        await asyncio.gather(*(each.decide("a", deposit, 1) for each in named))
        if message.attempt < 3:
            raise RuntimeError("after the decisions")

    bank = Bank(stage, decide_both)
    async with bank.app:
        await stage.publish(bank.orders, 1, key="k")
        await bank.until_handled(1)
        assert await bank.events() == [Deposited(1)] * 3


@pytest.mark.parametrize("ending", [Unavailable("no"), OutcomeUnknown("perhaps"), None])
async def test_a_call_that_ended_without_an_answer_is_not_followed_by_one_without_a_name(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, ending: LogError | None
) -> None:
    """When the message is handled again, the first call would take the second one's place: it would
    find nothing of its own, and append once more. (None: the call is cancelled.)"""
    appending = asyncio.Event()
    told: list[str] = []

    async def decide_again(bank: Bank, value: int, message: Message[Any]) -> None:
        if message.attempt > 1:
            await bank.accounts.decide("a", deposit, value)
            return
        first = asyncio.ensure_future(bank.accounts.decide("a", deposit, value))
        await appending.wait()
        if ending is None:
            first.cancel()
        with pytest.raises(asyncio.CancelledError if ending is None else type(ending)):
            await first
        named = bank.accounts.with_options(cause="named")
        assert (await named.decide("b", deposit, value)).version == 1
        await bank.accounts.decide("b", deposit, value)  # of which nothing is unknown
        try:
            await bank.accounts.decide("a", deposit, value)
        except Unavailable as error:
            told.append(str(error))
            raise

    bank = Bank(stage, decide_again)
    append = bank.accounts._runtime._append

    async def append_without_answer(histories: Any, events: Any) -> Any:
        if appending.is_set():
            return await append(histories, events)
        if not isinstance(ending, Unavailable):
            await append(histories, events)
        appending.set()
        if ending is not None:
            raise ending
        return await asyncio.Event().wait()

    monkeypatch.setattr(bank.accounts._runtime, "_append", append_without_answer)
    async with bank.app:
        await stage.publish(bank.orders, 7, key="k")
        await bank.until_handled(1)
        assert await bank.events() == [Deposited(7)]
    (error,) = told
    assert "upon 'a'" in error
    assert "with_options(cause=" in error


async def test_a_call_in_which_others_were_faster_is_not_followed_by_one_without_a_name(
    stage: Stage,
) -> None:
    """Handled again, the message would have no such conflict, and its first call would append what
    the second one has appended."""
    other = stage.app()
    others = accounts(other, f"{stage.topic_name}-accounts")
    tries: list[int] = []
    conflicts: list[WrongExpectedVersion] = []
    told: list[str] = []

    def deposit_late(account: Account, cents: int) -> Deposited:
        if len(tries) == 1:
            other.wait(others.with_options(cause=False).decide("a", deposit, 1))
        return Deposited(cents)

    async def decide_again(bank: Bank, value: int, message: Message[Any]) -> None:
        tries.append(value)
        once = bank.accounts.with_options(retry=Retry(attempts=1))
        try:
            await once.decide("a", deposit_late, value)
        except WrongExpectedVersion as error:
            conflicts.append(error)
            tries.append(value)
            try:
                await bank.accounts.decide("a", deposit_late, value)
            except Unavailable as unavailable:
                told.append(str(unavailable))
                raise

    bank = Bank(stage, decide_again)
    with other.background():
        async with bank.app:
            await stage.publish(bank.orders, 10, key="k")
            await bank.until_handled(1)
            assert await bank.events() == [Deposited(1), Deposited(10)]
    assert [each.is_conflict for each in conflicts] == [True]
    (error,) = told
    assert "ended in WrongExpectedVersion" in error


async def test_a_call_that_expected_another_version_may_be_followed_by_one(stage: Stage) -> None:
    async def decide_after(bank: Bank, value: int, message: Message[Any]) -> None:
        with pytest.raises(WrongExpectedVersion) as caught:
            await bank.accounts.append("a", Deposited(1), expected=7)
        assert not caught.value.is_conflict
        await bank.accounts.decide("a", deposit, value)

    bank = Bank(stage, decide_after)
    async with bank.app:
        await stage.publish(bank.orders, 10, key="k")
        await bank.until_handled(1)
        assert await bank.events() == [Deposited(10)]


async def test_an_append_that_was_too_large_may_be_followed_by_a_smaller_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def decide_less(bank: Bank, value: int, message: Message[Any]) -> None:
        with pytest.raises(TooLarge):
            await bank.accounts.decide("a", deposit, value)
        await bank.accounts.decide("a", deposit, 1)

    bank = Bank(stage, decide_less)
    append = bank.accounts._runtime._append

    async def append_small(histories: Any, events: Any) -> Any:
        if b"1" not in events.records[0].value:
            raise TooLarge("2 is too much")
        return await append(histories, events)

    monkeypatch.setattr(bank.accounts._runtime, "_append", append_small)
    async with bank.app:
        await stage.publish(bank.orders, 2, key="k")
        await bank.until_handled(1)
        assert await bank.events() == [Deposited(1)]


async def test_a_batch_handler_names_its_causes(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, f"{stage.topic_name}-accounts")
    orders = stage.topic(app)
    names_causes = False
    tries: list[int] = []

    @app.processor(orders, group=stage.group, retry=NO_DELAY, batch=10)
    async def handle(values: list[int], messages: list[Message[int]]) -> None:
        if not names_causes:
            await bank.decide("a", deposit, values[0])
        tries.append(len(values))
        for message in messages:
            named = bank.with_options(cause=message)
            await named.decide("a", deposit, message.value)
            await named.decide("a", deposit, message.value)
        if len(tries) < 3:
            raise RuntimeError("after the decisions")
        stage.seen.handled.extend((None, value) for value in values)

    with pytest.raises(ProcessorDied) as caught:
        async with app:
            await stage.publish(orders, 1, 2, key="k")
            await app.failed()
            await asyncio.Event().wait()
    assert "in a batch handler" in str(caught.value.__cause__)
    names_causes = True
    async with app:
        await stage.handled(2)
        found = [each.event async for each in bank.read("a")]
        assert sorted(each.cents for each in found) == [1, 1, 2, 2]


async def test_what_outlives_its_handler_names_its_causes(stage: Stage) -> None:
    ended = asyncio.Event()
    failures: list[Exception] = []

    async def decide_later(bank: Bank) -> None:
        await ended.wait()
        try:
            await bank.accounts.decide("a", deposit, 1)
        except Exception as error:
            failures.append(error)
        await bank.accounts.with_options(cause=False).decide("a", deposit, 2)

    tasks: list[asyncio.Task[None]] = []

    async def start(bank: Bank, value: int, message: Message[Any]) -> None:
        tasks.append(asyncio.create_task(decide_later(bank)))

    bank = Bank(stage, start)
    async with bank.app:
        await stage.publish(bank.orders, 1, key="k")
        await bank.until_handled(1)
        ended.set()
        await tasks[0]
        assert isinstance(failures[0], ConfigError)
        assert "outlives the handler" in str(failures[0])
        assert await bank.events() == [Deposited(2)]


async def test_no_cause_where_none_is_wanted(stage: Stage) -> None:
    async def decide_each_time(bank: Bank, value: int, message: Message[Any]) -> None:
        await bank.accounts.with_options(cause=False).decide("a", deposit, value)
        if message.attempt < 3:
            raise RuntimeError("after the decision")

    bank = Bank(stage, decide_each_time)
    async with bank.app:
        await stage.publish(bank.orders, 1, key="k")
        await bank.until_handled(1)
        assert await bank.events() == [Deposited(1)] * 3


async def test_a_message_is_a_cause_outside_a_handler(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, f"{stage.topic_name}-accounts")
    orders = stage.topic(app)
    async with app.connected():
        await stage.publish(orders, 7, 8, key="k")
        for _ in range(2):
            async for message in orders.read():
                await bank.with_options(cause=message).decide("a", deposit, message.value)
        assert [each.event async for each in bank.read("a")] == [Deposited(7), Deposited(8)]


async def test_long_causes_are_told_apart(stage: Stage) -> None:
    bank = Bank(stage, decide_once)
    long = "x" * 2_000
    async with bank.app:
        for end in "ab":
            await stage.publish(bank.orders, 1, key="k", id=long + end)
        await bank.until_handled(2)
        assert await bank.events() == [Deposited(1)] * 2


async def test_one_id_under_two_keys_is_of_two_messages(stage: Stage) -> None:
    """As in deduplication: of partitions, each has messages of its own."""
    bank = Bank(stage, decide_once)
    async with bank.app:
        for partition, value in enumerate([1, 2]):
            record = bank.orders.record(value, key="k", id="same")
            record.partition = partition
            await bank.app.publisher.publish_many(bank.orders.name, [record])
        await bank.until_handled(2)
        assert sorted(event.cents for event in await bank.events()) == [1, 2]


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_message_without_an_id_is_another_where_its_topic_is_made_anew(
    stage: Stage, comes_back: bool
) -> None:
    async def fail_and_decide(bank: Bank, value: int, message: Message[Any]) -> None:
        await bank.accounts.decide("a", deposit, value)
        if comes_back and message.attempt == 1:
            raise RuntimeError("after the decision")

    if not stage.url.startswith(("memory", "sqlite")):
        return  # Redis takes no record without an ID; on Kafka who reads a deleted topic ends
    retry = Retry(attempts=2, delay=0.0, in_order=not comes_back)
    bank = Bank(stage, fail_and_decide, retry=retry)
    topic = bank.orders.name
    for value in (1, 2):
        async with bank.app:
            record = Record(str(value).encode(), b"k", "", partition=0)
            await bank.app.publisher.publish_many(topic, [record])
            await bank.until_handled(value)
            assert [event.cents for event in await bank.events()] == [1, 2][:value]
            await asyncio.to_thread(bank.app.log.delete_topic, topic)
        bank = Bank(stage, fail_and_decide, retry=retry)
        bank.handled.extend(range(value))


async def test_topics_with_the_same_message_ids_are_told_apart(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, f"{stage.topic_name}-accounts")
    topics = [app.topic(f"{stage.topic_name}-{n}", int, partitions=1) for n in range(2)]

    @app.processor(*topics, group=stage.group)
    async def handle(value: int) -> None:
        await bank.decide("a", deposit, value)
        stage.seen.handled.append((None, value))

    async with app:
        for topic in topics:
            await stage.publish(topic, 1, key="k", id="order-1")
        await stage.handled(2)
        assert [each.event async for each in bank.read("a")] == [Deposited(1)] * 2


@pytest.mark.parametrize("traced_first", [True, False])
@pytest.mark.parametrize("kind", ["async", "plain", "batch"])
async def test_causes_and_traces_do_not_disturb_each_other(kind: str, traced_first: bool) -> None:
    app = Streams(f"memory://traced-{kind}-{traced_first}")
    provider = TracerProvider()
    if traced_first:
        instrument(app, tracer_provider=provider)
    bank = accounts(app)
    if not traced_first:
        instrument(app, tracer_provider=provider)
    orders = app.topic("orders", int)
    tries: list[int] = []

    def note(value: int) -> None:
        tries.append(value)
        if len(tries) == 1:
            raise RuntimeError("after the decision")

    if kind == "async":

        @app.processor(orders, group="g", retry=NO_DELAY)
        async def handle(value: int) -> None:
            await bank.decide("a", deposit, value)
            note(value)

    elif kind == "plain":

        @app.processor(orders, group="g", retry=NO_DELAY)
        def handle_plain(value: int, message: Message[int]) -> None:
            app.wait(bank.decide("a", deposit, message.value))
            note(value)

    else:

        @app.processor(orders, group="g", retry=NO_DELAY, batch=5)
        async def handle_batch(values: list[int], messages: list[Message[int]]) -> None:
            for message in messages:
                await bank.with_options(cause=message).decide("a", deposit, message.value)
            note(values[0])

    async with harness(app) as h:
        await orders.publish(1, key="k")
        await h.settled()
        assert [each.event async for each in bank.read("a")] == [Deposited(1)]
        assert tries == [1, 1]


@pytest.mark.needs("transactions")
async def test_no_decision_within_a_transaction(stage: Stage) -> None:
    async def decide_within(bank: Bank, value: int, message: Message[Any]) -> None:
        async with message.transaction:
            message.transaction.execute("CREATE TABLE rows (value)")
            await bank.accounts.decide("a", deposit, value)

    error = await died_of(Bank(stage, decide_within), 1)
    assert "decide before the first execute" in error


# -- refusals


async def test_a_refusal_is_remembered_under_its_cause(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        command = bank.with_options(cause="transfer-1", refusals=Overdrawn)
        with pytest.raises(DecisionRefused) as caught:
            await command.decide("a", Account.withdraw, 5)
        assert isinstance(caught.value.__cause__, Overdrawn)
        assert await bank.load("a") == await bank.load("never")
        await bank.decide("a", deposit, 100)
        with pytest.raises(DecisionRefused) as again:
            await command.decide("a", Account.withdraw, 5)
        assert again.value.cause == "transfer-1"
        assert [each.event async for each in bank.read("a")] == [Deposited(100)]
        done = await bank.with_options(cause="transfer-2", refusals=Overdrawn).decide(
            "a", Account.withdraw, 5
        )
        assert done.state == Account("", 95)


async def test_a_refusal_stands_in_the_way_of_what_was_decided_before_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A predecessor that was frozen between its decision and its append appends nothing later."""
    first, second = stage.app(), stage.app()
    one, two = accounts(first, stage.topic_name), accounts(second, stage.topic_name)
    async with first, second:
        await one.decide("a", deposit, 10)
        frozen = one.with_options(cause="transfer-1", refusals=Overdrawn)
        calls = 0

        def withdraw(account: Account) -> Withdrawn:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise AssertionError("the cause was refused, so it is not decided upon again")
            return Withdrawn(5)

        append = one._runtime._append
        other = two.with_options(cause="transfer-1", refusals=Overdrawn)

        async def append_late(histories: Any, events: Any) -> Any:
            with pytest.raises(DecisionRefused):
                await other.decide("a", Account.withdraw, 50)
            return await append(histories, events)

        monkeypatch.setattr(one._runtime, "_append", append_late)
        with pytest.raises(DecisionRefused):
            await frozen.decide("a", withdraw)
        assert [each.event async for each in two.read("a")] == [Deposited(10)]


def withdraw_five(account: Account) -> Withdrawn:
    return account.withdraw(5)


@pytest.mark.parametrize(
    ("decision", "retry"), [(Account.close, Retry()), (withdraw_five, Retry(attempts=1))]
)
async def test_what_another_process_has_carried_out_meanwhile_is_not_refused(
    stage: Stage, decision: Callable[[Account], Any], retry: Retry
) -> None:
    """A predecessor that was frozen before its append appends between the decision of its successor
    and that one's append: the aggregate is closed by it, or no attempt is left."""
    app, frozen = stage.app(), stage.app()
    one = accounts(app, stage.topic_name, final=Closed)
    two = accounts(frozen, stage.topic_name, final=Closed)
    done: list[Decided[Any, Account]] = []

    def decide_late(account: Account) -> Any:
        found = decision(account)
        if not done:
            other = two.with_options(cause="transfer-1")
            done.append(frozen.wait(other.decide("a", decision)))
        return found

    with frozen.background():
        async with app:
            await one.decide("a", deposit, 10)
            late = one.with_options(cause="transfer-1", retry=retry)
            assert await late.decide("a", decide_late) == done[0]
            assert len([each async for each in one.read("a")]) == 2


async def test_a_refusal_that_another_process_has_recorded_meanwhile_is_told(stage: Stage) -> None:
    app, other = stage.app(), stage.app()
    one = accounts(app, stage.topic_name, final=Closed)
    two = accounts(other, stage.topic_name, final=Closed)
    calls: list[Account] = []

    def decide_late(account: Account) -> Any:
        calls.append(account)
        refused = two.with_options(cause="transfer-1", refusals=Overdrawn)
        with pytest.raises(DecisionRefused):
            other.wait(refused.decide("a", Account.withdraw, 11))
        other.wait(two.decide("a", Account.close))
        return account.withdraw(5)

    with other.background():
        async with app:
            await one.decide("a", deposit, 10)
            with pytest.raises(DecisionRefused):
                await one.with_options(cause="transfer-1").decide("a", decide_late)
            assert len(calls) == 1


async def test_a_programs_mistake_is_no_refusal(stage: Stage) -> None:
    app = stage.app()
    bank = accounts(app, stage.topic_name)
    async with app:
        command = bank.with_options(cause="transfer-1", refusals=(Overdrawn,))

        def mistaken(account: Account) -> Deposited:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await command.decide("a", mistaken)
        assert (await command.decide("a", nothing)).version == 0
        assert (await command.decide("a", deposit, 1)).version == 1
        with pytest.raises(ConfigError, match="remembers refusals by their causes"):
            await bank.with_options(refusals=Overdrawn).decide("a", deposit, 1)


async def test_wrong_options_say_so(app: Streams) -> None:
    bank = accounts(app)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"cause": ""}, "a non-empty str, a message, or False"),
        ({"cause": 3}, "a non-empty str, a message, or False"),
        ({"cause": "\ud800"}, "a lone surrogate"),
        ({"headers": {"by": "\ud800"}}, "a lone surrogate"),
        ({"headers": {"\ud800": "ada"}}, "a lone surrogate"),
        ({"cause": "x" * 1_001}, "at most 1000 bytes"),
        ({"refusals": "Overdrawn"}, "a type of exception"),
        ({"refusals": BaseException}, "a type of exception"),
        ({"retry": 3}, "give a Retry"),
        ({"headers": "x"}, "a mapping of str"),
        ({"headers": {"a": 1}}, "names and values are str"),
        ({"headers": {"streams_event": "0/1/0/"}}, "written by the append"),
        ({"headers": {"streams_void": "x"}}, "written by the append"),
        ({"expected": -1}, "a version from 0"),
        ({"expected": True}, "a version from 0"),
    ]
    for options, message in wrong:
        with pytest.raises(InvalidValue, match=message):
            bank.with_options(**options)


@pytest.fixture
def app() -> Streams:
    return Streams("memory://causes")
