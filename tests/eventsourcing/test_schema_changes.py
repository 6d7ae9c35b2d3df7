"""A schema that changes in all ways at once, over a history in the log, with both codes running."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from streams import Streams
from streams.eventsourcing import Aggregate, Cache, Loaded, Snapshot, Undecodable
from streams.log.events import EventLog
from tests.conformance.stage import Stage

pytestmark = pytest.mark.anyio

# -- the first version of the code -----------------------------------------------------------------


class Registered(Struct, tag="registered", frozen=True):
    name: str


class Paid(Struct, tag="paid", frozen=True):
    cents: int


class Ordered(Struct, tag="ordered", frozen=True):
    items: tuple[str, ...]


class Greeted(Struct, tag="greeted", frozen=True):
    pass


class Moved(Struct, tag="moved", frozen=True):
    city: str


class Customer(Struct, frozen=True):
    name: str = ""
    cents: int = 0
    items: int = 0


FirstEvent = Registered | Paid | Ordered | Greeted | Moved


def fold_first(customer: Customer, event: Any) -> Customer:
    match event:
        case Registered(name):
            return msgspec.structs.replace(customer, name=name)
        case Paid(cents):
            return msgspec.structs.replace(customer, cents=customer.cents + cents)
        case Ordered(items):
            return msgspec.structs.replace(customer, items=customer.items + len(items))
        case _:
            return customer


# -- the second: another field name, a new field, an event that is gone, one that has become several


class Registered2(Struct, tag="registered-2", frozen=True):
    full_name: str


class Paid2(Struct, tag="paid", frozen=True):
    """The same event with one field more, and one that is called otherwise in the code alone."""

    amount: int = msgspec.field(name="cents")
    currency: str = "EUR"


class ItemOrdered(Struct, tag="item-ordered", frozen=True):
    item: str


class Customer2(Struct, frozen=True):
    full_name: str = ""
    cents: int = 0
    items: tuple[str, ...] = ()
    events: int = 0


SecondEvent = Registered2 | Paid2 | ItemOrdered | Moved


class Fold:
    """Folds, and counts what it is given."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, customer: Customer2, event: Any) -> Customer2:
        self.calls += 1
        replaced: dict[str, Any] = {"events": customer.events + 1}
        match event:
            case Registered2(full_name):
                replaced["full_name"] = full_name
            case Paid2(amount):
                replaced["cents"] = customer.cents + amount
            case ItemOrdered(item):
                replaced["items"] = (*customer.items, item)
            case _:
                pass
        return msgspec.structs.replace(customer, **replaced)


EVERY = 4


def first_code(stage: Stage) -> tuple[Streams, Aggregate[Any, Customer]]:
    app = stage.app()
    options: Any = {"snapshot": Snapshot(every=EVERY), "cache": Cache(count=0)}
    return app, Aggregate(
        app, stage.topic_name, FirstEvent, Customer, fold_first, partitions=2, **options
    )


def second_code(stage: Stage) -> tuple[Streams, Aggregate[Any, Customer2], Fold]:
    app, fold = stage.app(), Fold()
    options: Any = {"snapshot": Snapshot(every=EVERY), "cache": Cache(count=0)}
    customers: Aggregate[Any, Customer2] = Aggregate(
        app, stage.topic_name, SecondEvent, Customer2, fold, partitions=2, **options
    )

    @customers.upcast(Registered)
    def registered(old: Registered) -> Registered2:
        return Registered2(old.name)

    @customers.upcast(Ordered)
    def ordered(old: Ordered) -> Sequence[ItemOrdered]:
        return [ItemOrdered(each) for each in old.items]

    @customers.upcast(Greeted)
    def greeted(old: Greeted) -> None:
        return None

    return app, customers, fold


OLD: list[Any] = [
    Registered("ada"),
    Greeted(),
    Paid(100),
    Ordered(("tea", "milk", "bread")),
    Greeted(),
    Ordered(()),
    Moved("London"),
    Paid(23),
    Greeted(),
]
"""Nine events, of which today's code makes three, nothing, or another."""

TODAY = Customer2("ada", 123, ("tea", "milk", "bread"), 7)


async def old_history(stage: Stage) -> None:
    app, customers = first_code(stage)
    async with app:
        for number, each in enumerate(OLD):
            await customers.append("a", each, expected=number)
        assert (await customers.load("a")).state == Customer("ada", 123, 3)
        await customers.append("other", [Registered("bob"), Paid(1)], expected="new")


async def kinds(app: Streams, customers: Aggregate[Any, Any]) -> int:
    """How many kinds of snapshots there are of one aggregate."""
    log = app.log
    assert isinstance(log, EventLog)
    return len(log.event_totals(customers.events.name).snapshots)


async def test_an_old_history_loads_under_new_code_and_keeps_its_versions(stage: Stage) -> None:
    await old_history(stage)
    app, customers, _ = second_code(stage)
    async with app:
        assert await customers.load("a") == Loaded(TODAY, len(OLD))
        found = [(each.version, each.event) async for each in customers.read("a")]
        assert found == [
            (1, Registered2("ada")),
            (3, Paid2(100, "EUR")),
            (4, ItemOrdered("tea")),
            (4, ItemOrdered("milk")),
            (4, ItemOrdered("bread")),
            (7, Moved("London")),
            (8, Paid2(23)),
        ]
        # Every version that there was can be gone back to, whatever has become of its event.
        for version in range(len(OLD) + 1):
            assert (await customers.load("a", at=version)).version == version
        done = await customers.append("a", Paid2(7, "GBP"), expected=len(OLD))
        assert (done.version, done.state.cents) == (len(OLD) + 1, 130)
        assert (await customers.load("other")).state == Customer2("bob", 1, (), 2)


async def test_snapshots_are_rebuilt_for_new_code_and_kept_for_the_old(stage: Stage) -> None:
    await old_history(stage)
    app, customers, fold = second_code(stage)
    async with app:
        assert await kinds(app, customers) == 1
        assert (await customers.load("a")).state == TODAY
        assert fold.calls == TODAY.events, "the old code's snapshot is of no use"
        for number in range(EVERY):
            await customers.append("a", Paid2(1), expected=len(OLD) + number)
    app, customers, fold = second_code(stage)
    async with app:
        assert await kinds(app, customers) == 2
        assert (await customers.load("a")).state.cents == 123 + EVERY
        version = len(OLD) + EVERY
        assert fold.calls == version % EVERY, "its own was written, and used"
        log = app.log
        assert isinstance(log, EventLog)
        log.delete_snapshots(customers.events.name)
        again = await customers.load("a")
        assert (again.version, again.state.cents) == (version, 123 + EVERY)
        assert fold.calls == version % EVERY + TODAY.events + EVERY
    # The old code has its own, and what it can decode goes on meanwhile.
    old_app, old_customers = first_code(stage)
    async with old_app:
        assert (await old_customers.load("a")).state.cents == 123 + EVERY


async def test_old_code_that_meets_a_new_event_stops_there_and_harms_nothing(
    stage: Stage,
) -> None:
    """In a rolling deployment both run side by side."""
    await old_history(stage)
    old_app, old_customers = first_code(stage)
    app, customers, _ = second_code(stage)
    async with old_app, app:
        await customers.append("a", ItemOrdered("jam"), expected=len(OLD))
        for _ in range(2):
            with pytest.raises(Undecodable) as caught:
                await old_customers.append("a", Paid(1), expected="any")
            assert (caught.value.id, caught.value.version) == ("a", len(OLD) + 1)
        # Whatever the old code can decode it still decides upon, and the new code reads.
        assert (await old_customers.append("other", Paid(4), expected=2)).version == 3
        assert (await customers.load("other")).state.cents == 5
        # Nor has it stopped anybody else.
        assert (await customers.append("a", Paid2(1), expected=len(OLD) + 1)).version == 11
        assert (await customers.load("a")).state.items == ("tea", "milk", "bread", "jam")


async def test_an_event_that_was_removed_without_an_upcast_stops_its_aggregate_until_it_has_one(
    stage: Stage,
) -> None:
    await old_history(stage)
    app = stage.app()
    less: Any = Registered | Paid | Ordered | Moved
    customers: Aggregate[Any, Customer] = Aggregate(
        app, stage.topic_name, less, Customer, fold_first, partitions=2, cache=Cache(count=0)
    )
    async with app:
        with pytest.raises(Undecodable, match=r"event 2 cannot be decoded: .*a tag that"):
            await customers.load("a")
        assert (await customers.load("a", at=1)).version == 1
        assert (await customers.load("other")).version == 2
    app = stage.app()
    customers = Aggregate(
        app, stage.topic_name, less, Customer, fold_first, partitions=2, cache=Cache(count=0)
    )

    @customers.upcast(bytes)
    def forget(data: bytes) -> Any:
        return None if b"greeted" in data else NotImplemented

    async with app:
        assert await customers.load("a") == Loaded(Customer("ada", 123, 3), len(OLD))
        assert (await customers.append("a", Paid(1), expected=len(OLD))).version == len(OLD) + 1
