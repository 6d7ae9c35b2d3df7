"""Views: documents follow the events, and are read with what was decided before."""

from __future__ import annotations

import random
from typing import Any

import pytest
from msgspec import Struct

from streams import (
    DocumentStopped,
    InvalidValue,
    Message,
    NotRunning,
    Position,
    Streams,
    Topic,
    View,
    ViewNotReady,
    ViewTimeout,
)
from streams.message import Record
from tests.conformance.records import ABSURD_PARTITIONS, append
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import Account, Deposited, deposit, open_with
from tests.views.bank import (
    Balance,
    Bank,
    Holder,
    fold_balance,
    fold_holder,
    owner_of,
    unique,
)

pytestmark = pytest.mark.anyio


async def test_documents_follow_events(stage: Stage) -> None:
    bank = Bank(stage.app(), unique())
    async with bank.app:
        done = await bank.accounts.decide("a-1", open_with, "ada", 500)
        assert await bank.balances.get("a-1", wait_for=done) == Balance("ada", 500, 1)
        done = await bank.accounts.decide("a-1", Account.withdraw, 200)
        assert await bank.balances.get("a-1", wait_for=done) == Balance("ada", 300, 2)
        assert await bank.balances.get("a-2", wait_for=done) is None
        done = await bank.accounts.decide("a-1", Account.close)
        assert await bank.balances.get("a-1", wait_for=done) is None
        done = await bank.accounts.decide("a-1", deposit, 1)
        assert await bank.balances.get("a-1", wait_for=done) == Balance("", 1, 1)
        health = bank.app.health()
        assert health.ready
        assert health.ok
        assert health.views[f"{bank.balances.name}.v1"].serving == 1
    with pytest.raises(NotRunning):
        await bank.balances.get("a-1")


async def test_another_process_reads_what_was_decided(stage: Stage) -> None:
    """One app decides, another folds, a third only reads, by the decision's token."""
    name = unique()
    decides, folds, reads = (Bank(stage.app(), name) for _ in range(3))
    async with folds.app, decides.app.connected(), reads.app.connected():
        for number in range(30):
            key = f"a-{number % 5}"
            done = await decides.accounts.decide(key, deposit, number)
            found = await reads.balances.get(key, wait_for=str(done))
            assert found is not None
            assert found.cents == done.state.cents


async def test_many_are_read_at_once_and_in_order(stage: Stage) -> None:
    bank = Bank(stage.app(), unique())
    async with bank.app:
        decided = [await bank.accounts.decide(f"a-{n:02}", deposit, n) for n in range(20)]
        last = [await bank.accounts.decide("b", deposit, 7), *decided]
        for done in last:
            await bank.balances.get("b", wait_for=done)
        found = await bank.balances.get_many(["a-03", "a-19", "missing", "b"])
        assert {key: balance.cents for key, balance in found.items()} == {
            "a-03": 3,
            "a-19": 19,
            "b": 7,
        }
        page = await bank.balances.scan("a-", limit=7)
        assert [key for key, _ in page] == [f"a-{n:02}" for n in range(7)]
        rest = await bank.balances.scan("a-", start=page[-1][0] + "\0", limit=100)
        assert [key for key, _ in rest] == [f"a-{n:02}" for n in range(7, 20)]
        assert [balance.cents for _, balance in await bank.balances.scan("b")] == [7]
        assert await bank.balances.scan("c") == []
        with pytest.raises(InvalidValue, match="limit=0"):
            await bank.balances.scan(limit=0)


async def test_documents_of_other_keys_than_the_aggregates(stage: Stage) -> None:
    """The events of a holder's accounts stand in several partitions."""
    name = unique()
    bank = Bank(stage.app(), name)
    holders: View[Holder] = bank.accounts.view("holders", Holder, key=owner_of)(fold_holder)
    both: View[Holder] = bank.accounts.view(
        "both", Holder, key=lambda event: [owner, "all"] if (owner := owner_of(event)) else None
    )(fold_holder)
    async with bank.app:
        decided = []
        for number in range(24):
            decided.append(
                await bank.accounts.decide(f"a-{number}", open_with, f"o-{number % 3}", 1)
            )
            found = await holders.get(f"o-{number % 3}", wait_for=decided[-1])
            assert found is not None
            assert found.accounts == number // 3 + 1
        for done in decided:
            await both.get("all", wait_for=done)
        assert await both.get("all") == Holder(24)
        assert await both.get("o-1", wait_for=decided[-1]) == Holder(8)
        assert [key for key, _ in await both.scan()] == ["all", "o-0", "o-1", "o-2"]


async def test_records_of_strangers_in_a_keyed_topic_hide_nothing(stage: Stage) -> None:
    """Anybody can write there; none of these is believed."""
    bank = Bank(stage.app(), unique())
    holders: View[Holder] = bank.accounts.view("holders", Holder, key=owner_of)(fold_holder)
    async with bank.app:
        done = await bank.accounts.decide("a-0", open_with, "ada", 1)
        assert await holders.get("ada", wait_for=done) == Holder(1)
        events, keyed = bank.accounts.events.name, f"{holders.name}.v1.keyed"
        headers = [
            b"0/%d/0/0.1/-/./%s" % (1 << 120, events.encode()),
            b"99/1/0/0.1/-/./%s" % events.encode(),
            b"99999999999999999999/5/0/0.1/-/./%s" % events.encode(),
            *(b"%d/5/0/0.1/-/./%s" % (each, events.encode()) for each in ABSURD_PARTITIONS),
            b"0/1/0/0.1/-/./elsewhere",
            b"0/" + b"9" * 300 + b"/0/0.1/-/./x",
            b"0/0/%s/0.1/-/./%s" % (b"9" * 60, events.encode()),
            b"0/0/9/0.1/%s.0/./%s" % (b"9" * 60, events.encode()),
            b"\xff/1/0/0.1/-/./%s" % events.encode(),
            b"",
        ]
        forged = [
            Record(
                b'{"type":"opened","owner":"eve"}', b"ada", f"f{n}", [("__streams.view", each)], p
            )
            for n, each in enumerate(headers)
            for p in range(2)
        ]
        # Of an event that there is, and under no document's key.
        position = done.last
        assert position is not None
        place = b"%d/%d/9/0.1/-/./%s" % (position.partition, position.offset, events.encode())
        forged += [Record(b"?", None, f"k{p}", [("__streams.view", place)], p) for p in range(2)]
        answers = append(bank.app.log, keyed, forged)
        assert not [each for each in answers if isinstance(each, Exception)]
        for number in range(1, 6):
            done = await bank.accounts.decide(f"a-{number}", open_with, "ada", 1)
            assert await holders.get("ada", wait_for=done) == Holder(number + 1)
    again = Bank(stage.app(), bank.accounts.name)
    holders = again.accounts.view("holders", Holder, key=owner_of)(fold_holder)
    async with again.app:  # nor is it once more, where a process begins with them
        answers = append(again.app.log, keyed, forged)
        assert not [each for each in answers if isinstance(each, Exception)]
        done = await again.accounts.decide("a-6", open_with, "ada", 1)
        assert await holders.get("ada", wait_for=done) == Holder(7)
        assert again.app.health().ok


class Order(Struct, frozen=True):
    customer: str
    cents: int


class Refund(Struct, frozen=True):
    customer: str
    cents: int


class Customer(Struct, frozen=True):
    spent: int = 0
    orders: tuple[int, ...] = ()


async def test_a_view_of_several_topics(stage: Stage) -> None:
    app = stage.app()
    orders = app.topic(f"{stage.topic_name}-orders", Order, key="customer", partitions=3)
    refunds = app.topic(f"{stage.topic_name}-refunds", Refund, key="customer", partitions=2)

    def fold(customer: Customer | None, event: Order | Refund) -> Customer:
        found = customer or Customer()
        if isinstance(event, Order):
            return Customer(found.spent + event.cents, (*found.orders, event.cents))
        return Customer(found.spent - event.cents, found.orders)

    customers = View(app, f"{stage.topic_name}-customers", Customer, fold, orders, refunds)
    async with app:
        choose = random.Random(3)
        expected: dict[str, list[int]] = {}
        positions = []
        for number in range(60):
            customer = f"c{choose.randrange(6)}"
            expected.setdefault(customer, []).append(number)
            positions.append(await orders.publish(Order(customer, number)))
            if number % 3 == 0:
                expected.setdefault(customer, [])
                positions.append(await refunds.publish(Refund(customer, 1)))
        for position in positions[-12:]:
            for customer in expected:
                await customers.get(customer, wait_for=position)
        found = await customers.get_many(expected)
        # An order keeps the order of its own topic and key.
        assert {key: list(each.orders) for key, each in found.items()} == expected
        assert sum(each.spent for each in found.values()) == sum(range(60)) - 20


async def test_the_function_may_take_the_message(stage: Stage) -> None:
    class Noted(Struct, frozen=True):
        key: str
        ids: tuple[str, ...]
        topics: tuple[str, ...]
        times: tuple[float, ...]

    app = stage.app()
    orders = app.topic(stage.topic_name, Order, key="customer", partitions=2)
    others = app.topic(f"{stage.topic_name}-b", Order, key="customer", partitions=1)

    def fold(noted: Noted | None, order: Order, message: Message[Order]) -> Noted:
        before = noted or Noted("", (), (), ())
        return Noted(
            message.key or "",
            (*before.ids, message.id),
            (*before.topics, message.topic),
            (*before.times, message.timestamp.timestamp()),
        )

    one = View(app, f"{stage.topic_name}-one", Noted, fold, orders)
    two = View(app, f"{stage.topic_name}-two", Noted, fold, orders, others)
    async with app:
        first = await orders.publish(Order("c", 1), id="first")
        second = await others.publish(Order("c", 2), id="second")
        plain = await one.get("c", wait_for=first)
        assert plain is not None
        assert (plain.key, plain.ids, plain.topics) == ("c", ("first",), (orders.name,))
        await two.get("c", wait_for=first)
        keyed = await two.get("c", wait_for=second)
        assert keyed is not None
        assert set(zip(keyed.ids, keyed.topics, strict=True)) == {
            ("first", orders.name),
            ("second", others.name),
        }
        # The time is the source's, so that a rebuild comes to the same.
        assert plain.times[0] in keyed.times


async def test_a_document_is_watched(stage: Stage) -> None:
    bank = Bank(stage.app(), unique())
    async with bank.app:
        await bank.balances.ready()
        watching = bank.balances.watch("a-1")
        assert await anext(watching) is None
        seen: list[int] = []
        for cents in (1, 10, 100):
            await bank.accounts.decide("a-1", deposit, cents)
            found = await anext(watching)
            assert found is not None
            seen.append(found.cents)
        assert seen == [1, 11, 111]
        await watching.aclose()  # type: ignore[attr-defined]


async def test_a_restart_goes_on_at_the_checkpoint_wherever_the_group_stands(stage: Stage) -> None:
    name = unique()
    folded: list[int] = []

    def fold(balance: Balance | None, event: Any) -> Balance | None:
        folded.append(event.cents)
        return fold_balance(balance, event)

    bank = Bank(stage.app(), name, fold)
    async with bank.app:
        for number in range(10):
            done = await bank.accounts.decide("a", deposit, number)
            await bank.balances.get("a", wait_for=done)
    assert folded == list(range(10))
    with_log = Bank(stage.app(), name)
    async with with_log.app.connected():
        log, topic = with_log.app.log, bank.accounts.events.name
        group = f"{bank.balances.name}.v1"
        positions = log.committed(group, topic)
        assert positions
        from streams.log.protocol import Committed

        starts = {number: Committed(log.watermarks(topic, number)[0]) for number in positions}
        log.reset_offsets(group, topic, starts, force=True)
    again = Bank(stage.app(), name, fold)
    async with again.app:
        done = await again.accounts.decide("a", deposit, 10)
        assert await again.balances.get("a", wait_for=done) == Balance("", 55, 11)
    assert folded == list(range(11))


@pytest.mark.parametrize("is_keyed", [False, True], ids=["of one topic", "keyed"])
async def test_an_id_that_is_no_text_is_one_as_well(stage: Stage, is_keyed: bool) -> None:
    """Anybody may give a message any bytes for an ID; the checkpoint names the last one."""
    name, odd = unique(), "\udcc9\udcff"

    class Total(Struct, frozen=True):
        of: int

    def declare(app: Streams) -> tuple[View[Total], Topic[int]]:
        topic = app.topic(name, int, partitions=1)
        key = (lambda value: "a") if is_keyed else None
        add = lambda found, value: Total((found.of if found else 0) + value)  # noqa: E731
        return View(app, f"{name}-total", Total, add, topic, key=key), topic

    app = stage.app()
    view, topic = declare(app)
    async with app:
        (place,) = append(stage.anchor, name, [Record(b"7", b"a", odd)])
        assert isinstance(place, Position)
        assert await view.get("a", wait_for=place) == Total(7)
    app = stage.app()
    view, topic = declare(app)
    async with app:  # which holds the checkpoint against the log
        place = await topic.publish(1, key="a")
        assert await view.get("a", wait_for=place) == Total(8)


async def test_no_version_is_ready_before_it_was_built(stage: Stage) -> None:
    name = unique()
    reads = Bank(stage.app(), name)
    async with reads.app.connected():
        with pytest.raises(ViewNotReady, match="version 1 is not built yet") as raised:
            await reads.balances.get("a")
        assert raised.value.progress is None
        assert not reads.app.health().ready
        with pytest.raises(ViewNotReady):
            await reads.balances.ready(timeout=0.01)
        folds = Bank(stage.app(), name)
        async with folds.app:
            await folds.balances.ready()
            await reads.balances.ready()
            assert await reads.balances.get("a") is None
            done = await reads.accounts.decide("a", deposit, 1)
        with pytest.raises(ViewTimeout, match="has not folded in time"):
            done = await reads.accounts.decide("a", deposit, 1)
            await reads.balances.get("a", wait_for=done, timeout=0.05)
        with pytest.raises(InvalidValue, match=r"it reads .*\.events"):
            await reads.balances.get("a", wait_for=Position("elsewhere", 0, 1))
        with pytest.raises(InvalidValue, match="not a position"):
            await reads.balances.get("a", wait_for="rubbish")


async def test_where_the_function_fails_one_document_stops_and_is_folded_on_later(
    stage: Stage,
) -> None:
    name = unique()
    poison = 13

    def fold(balance: Balance | None, event: Any) -> Balance | None:
        if isinstance(event, Deposited) and event.cents == poison:
            raise ZeroDivisionError("thirteen")
        return fold_balance(balance, event)

    bank = Bank(stage.app(), name, fold)
    async with bank.app:
        for cents in (1, poison, 100):
            done = await bank.accounts.decide("a", deposit, cents)
            other = await bank.accounts.decide("b", deposit, cents if cents != poison else 5)
        assert await bank.balances.get("b", wait_for=other) == Balance("", 106, 3)
        with pytest.raises(DocumentStopped, match="ZeroDivisionError: thirteen") as raised:
            await bank.balances.get("a", wait_for=done)
        assert raised.value.key == "a"
        assert Position.parse(raised.value.position).topic == bank.accounts.events.name
        assert [key for key, _ in await bank.balances.scan()] == ["b"]
        named = f"{bank.balances.name}.v1"  # it is counted a moment after it can be read
        await stage.until(lambda: bank.app.health().views[named].stopped == 1, "it is counted")
        assert not bank.app.health().ok
        assert bank.app.health().ready
        # The same code fails at the same event.
        assert not await bank.balances.retry("a")
        with pytest.raises(DocumentStopped):
            await bank.balances.get("a")
        poison = -1
        assert await bank.balances.retry("a")
        assert bank.app.health().ok
        poison = 13
        done = await bank.accounts.decide("a", deposit, poison)
        with pytest.raises(DocumentStopped):
            await bank.balances.get("a", wait_for=done)
    mended = Bank(stage.app(), name)
    async with mended.app:
        done = await mended.accounts.decide("a", deposit, 1_000)
        with pytest.raises(DocumentStopped):
            await mended.balances.get("a", wait_for=done)
        assert await mended.balances.retry("a")
        assert await mended.balances.get("a") == Balance("", 1_127, 5)
        done = await mended.accounts.decide("a", deposit, 1)
        assert await mended.balances.get("a", wait_for=done) == Balance("", 1_128, 6)


class Capped(Struct, frozen=True):
    """What it takes is changed by a test, as new code would, and its shape is not."""

    cents: int = 0

    def __post_init__(self) -> None:
        if self.cents > LIMITS[-1]:
            raise ValueError(f"{self.cents} cents are too many")


LIMITS = [1_000]


async def test_a_stored_document_that_cannot_be_read_is_not_folded_on(stage: Stage) -> None:
    """Who asks for that is told so, whoever folds lives, and the reason is kept."""
    name, is_mended = unique(), False

    def fold(capped: Capped | None, event: Any) -> Capped:
        if event.cents == 13 and not is_mended:
            raise ZeroDivisionError("thirteen")
        return Capped((capped.cents if capped else 0) + event.cents)

    def declared() -> tuple[Bank, View[Capped]]:
        bank = Bank(stage.app(), name)
        return bank, bank.accounts.view("capped", Capped)(fold)

    bank, capped = declared()
    async with bank.app:
        for account, amounts in (("a", (500, 13)), ("b", (1,)), ("c", (700,))):
            for cents in amounts:
                done = await bank.accounts.decide(account, deposit, cents)
        assert await capped.get("c", wait_for=done) == Capped(700)
        tracker = capped.declared.tracker(bank.app.log)
        await stage.until(lambda: tracker.progress().share == 1.0, "all is folded")
    is_mended = True
    LIMITS.append(100)
    try:
        bank, capped = declared()
        async with bank.app:
            for cents in (2, 3):
                assert not await capped.retry("a", timeout=60)
                with pytest.raises(DocumentStopped, match="the type's own check") as raised:
                    await capped.get("a")
                assert "the stored document of key 'a' cannot be read" in raised.value.reason
                assert "streams views rebuild" in str(raised.value)
                assert Position.parse(raised.value.position).topic == bank.accounts.events.name
                done = await bank.accounts.decide("b", deposit, cents)
                assert await capped.get("b", wait_for=done) is not None
            remedy = f"streams views rebuild {capped.name} --version 1$"
            with pytest.raises(DocumentStopped, match=remedy):
                await capped.get("c")
            LIMITS.pop()
            assert await capped.retry("a", timeout=60)
            assert await capped.get("a") == Capped(513)
            assert await capped.get("b") == Capped(6)
    finally:
        del LIMITS[1:]


async def test_keys_that_are_no_text(memory_url: str) -> None:
    """They may come from a client."""
    bank = Bank(Streams(memory_url), unique())
    async with bank.app:
        await bank.balances.ready()
        assert await bank.balances.get("\udcff") is None  # a byte that is not UTF-8
        for ask in (bank.balances.get, bank.balances.retry, bank.balances.scan):
            with pytest.raises(InvalidValue, match="lone surrogate, which is no text"):
                await ask("\ud800")
        with pytest.raises(InvalidValue, match="lone surrogate"):
            await bank.balances.get_many(["a", "\ud800"])
        with pytest.raises(InvalidValue, match="lone surrogate"):
            await bank.balances.scan(start="\ud800")


async def test_what_cannot_be_written_stops_its_document_at_that_event(stage: Stage) -> None:
    def fold(balance: Balance | None, event: Any) -> Any:
        found = fold_balance(balance, event)
        if event.cents == 13:
            return Balance("\ud800", 0, 0)  # no UTF-8
        if event.cents == 14:
            return "no balance"
        return found

    bank = Bank(stage.app(), unique(), fold)
    async with bank.app:
        for key, cents in (("a", 13), ("b", 14)):
            for each in (1, cents, 100):
                done = await bank.accounts.decide(key, deposit, each)
            with pytest.raises(DocumentStopped):
                await bank.balances.get(key, wait_for=done)
        done = await bank.accounts.decide("c", deposit, 1)
        assert await bank.balances.get("c", wait_for=done) == Balance("", 1, 1)
        found = bank.app.log.documents.stopped(  # type: ignore[attr-defined]
            f"{bank.balances.name}.v1", 0, None, 10
        )
        found = [
            *found,
            *bank.app.log.documents.stopped(  # type: ignore[attr-defined]
                f"{bank.balances.name}.v1", 1, None, 10
            ),
        ]
        # What they were before that event is kept.
        assert {each.key: each.document.value for each in found} == {
            b"a": b'{"owner":"","cents":1,"moves":1}',
            b"b": b'{"owner":"","cents":1,"moves":1}',
        }
