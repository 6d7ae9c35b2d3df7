"""Views over old events: one of which today's code makes several events, and one of which none."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from streams import DocumentStopped, Message, Streams, View
from streams.eventsourcing import Aggregate
from streams.eventsourcing.views.operations import connected_operator
from tests.conformance.stage import Stage
from tests.eventsourcing.test_evolution import (
    Noise,
    Paid,
    PaidEuros,
    Split,
    Total,
    history_of_old_events,
    today,
)
from tests.eventsourcing.test_processing import upcast
from tests.views.bank import until_nobody_runs

pytestmark = pytest.mark.anyio

HISTORY = [Noise(), Paid(1), Split((2, 3, 4)), Noise(), Split(()), PaidEuros(5), Noise()]
CENTS = (1, 2, 3, 4, 500)


class Payments(Struct, frozen=True):
    cents: tuple[int, ...] = ()


def collect(payments: Payments | None, event: Paid) -> Payments:
    return Payments((*(payments.cents if payments else ()), event.cents))


def collect_message(payments: Payments | None, event: Paid, message: Message[Any]) -> Payments:
    assert message.value == event
    return collect(payments, event)


def parity(event: Paid) -> list[str]:
    return ["odd" if event.cents % 2 else "even", "all"]


class Till:
    """An app with views of what was paid, as one process has it."""

    def __init__(self, stage: Stage, fold: Any = collect, keyed: Any = collect_message) -> None:
        self.app: Streams = stage.app()
        self.pays: Aggregate[Any, Total] = upcast(today(stage, self.app))
        view = self.pays.view
        self.plain: View[Payments] = view("plain", Payments)(fold)
        self.keyed: View[Payments] = view("keyed", Payments, key=parity)(keyed)


async def test_a_view_folds_what_old_events_are_today(stage: Stage) -> None:
    """In their order, each once, whatever stands before the end: also after a restart."""
    await history_of_old_events(stage, *HISTORY)
    till = Till(stage)
    async with till.app:
        done = await till.pays.append("a", Paid(7), expected="any")
        assert await till.plain.get("a", wait_for=done) == Payments((*CENTS, 7))
        assert await till.keyed.get("all", wait_for=done) == Payments((*CENTS, 7))
        assert await till.keyed.get("odd", wait_for=done) == Payments((1, 3, 7))
        assert await till.keyed.get("even", wait_for=done) == Payments((2, 4, 500))
        assert (await till.plain.progress()).share == 1.0
        assert till.app.health().ok
    await history_of_old_events(stage, Split((8, 9)), Noise())
    till = Till(stage)
    async with till.app:
        # The last event of all is none today; what is folded comes to its end all the same.
        end = (await till.pays.load("a")).version
        assert end == len(HISTORY) + 3
        await stage.until(lambda: folded(till) == end, "all is folded")
        assert await till.plain.get("a") == Payments((*CENTS, 7, 8, 9))
        done = await till.pays.append("a", Paid(11), expected="any")
        assert await till.keyed.get("odd", wait_for=done) == Payments((1, 3, 7, 9, 11))


def folded(till: Till) -> int | None:
    return till.plain._version.tracker(till.app.log).progress().folded


async def test_made_anew_by_today_s_code_a_keyed_view_has_all_parts_of_an_old_event(
    stage: Stage,
) -> None:
    """Which were one event when it was written by key."""
    name = stage.topic_name
    app = stage.app()
    old: Any = Aggregate(app, name, Split | Paid, Total, lambda total, event: total, partitions=2)
    view = f"{name}.keyed"
    summed: Any = old.view("keyed", Payments, key=lambda event: "all")(
        lambda payments, event: Payments((*(payments.cents if payments else ()), -1))
    )
    async with app:
        done = await old.append("a", [Split((2, 3, 4)), Paid(7)], expected="new")
        assert await summed.get("all", wait_for=done) == Payments((-1, -1))
    async with connected_operator(stage.url, view) as operator:
        await until_nobody_runs(stage, operator)
        await operator.rebuild(1)
    app = stage.app()
    new: Any = upcast(today(stage, app))
    summed = new.view("keyed", Payments, key=parity)(collect)
    async with app:
        assert await summed.get("all", wait_for=done) == Payments((2, 3, 4, 7))
        assert await summed.get("odd", wait_for=done) == Payments((3, 7))


async def test_one_that_fails_at_a_part_of_an_old_event_is_folded_on_from_that_part(
    stage: Stage,
) -> None:
    await history_of_old_events(stage, *HISTORY)
    poison = 3

    def fold(payments: Payments | None, event: Paid) -> Payments:
        if event.cents == poison:
            raise ValueError("three")
        return collect(payments, event)

    till = Till(stage, fold, fold)
    async with till.app:
        done = await till.pays.append("a", Paid(6), expected="any")
        for view, key in ((till.plain, "a"), (till.keyed, "all"), (till.keyed, "odd")):
            with pytest.raises(DocumentStopped, match="three"):
                await view.get(key, wait_for=done)
        assert await till.keyed.get("even", wait_for=done) == Payments((2, 4, 500, 6))
        poison = -1
        for view, key in ((till.plain, "a"), (till.keyed, "all"), (till.keyed, "odd")):
            assert await view.retry(key)
        assert await till.plain.get("a") == Payments((*CENTS, 6))
        assert await till.keyed.get("all") == Payments((*CENTS, 6))
        assert await till.keyed.get("odd") == Payments((1, 3))
