"""A message that was published twice counts once in a view, as it does for a processor."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from streams import ConfigError, Dedup, DocumentStopped, Streams, View
from streams.eventsourcing.views.repeats import RecentIdentities
from streams.message import Record
from tests.conformance.records import append
from tests.conformance.stage import Stage

pytestmark = pytest.mark.anyio

IDENTITIES = st.lists(st.one_of(st.none(), st.sampled_from("abcdefgh")), max_size=40)


def repeats_of(identities: list[str | None], size: int) -> list[int]:
    """By the rule, word for word."""
    return [
        index
        for index, identity in enumerate(identities)
        if identity is not None and identity in identities[max(0, index - size) : index]
    ]


@given(IDENTITIES, st.integers(1, 12), st.lists(st.integers(1, 9), min_size=1), st.data())
def test_what_is_a_repeat_does_not_depend_on_where_batches_end_and_processes_begin(
    identities: list[str | None], size: int, cuts: list[int], data: st.DataObject
) -> None:
    recent, found, at, number = RecentIdentities(size), list[int](), 0, 0
    while at < len(identities):
        if data.draw(st.booleans(), label="restart"):
            recent = RecentIdentities(size)
            recent.find_repeats(identities[max(0, at - size) : at])
        batch = identities[at : at + cuts[number % len(cuts)]]
        found += [at + index for index in sorted(recent.find_repeats(batch))]
        at, number = at + len(batch), number + 1
    assert found == repeats_of(identities, size)


def test_no_more_than_the_window_is_remembered() -> None:
    recent = RecentIdentities(100)
    for number in range(0, 10_000, 50):
        assert not recent.find_repeats([f"m{each}" for each in range(number, number + 50)])
    assert len(recent._last) == len(recent._order) == 100


class Moved(Struct, frozen=True):
    account: str
    cents: int
    id: str = ""


class Balance(Struct, frozen=True):
    cents: int = 0


def fold(balance: Balance | None, event: Moved) -> Balance:
    return Balance((balance or Balance()).cents + event.cents)


class World:
    """Views of one topic, as one process declares them."""

    def __init__(self, stage: Stage, function: Any = fold) -> None:
        self.app = app = stage.app()
        self.topic = app.topic(stage.topic_name, Moved, key="account", partitions=2)
        name = stage.topic_name
        self.plain: View[Balance] = View(app, f"{name}-plain", Balance, function, self.topic)
        self.keyed: View[Balance] = View(
            app, f"{name}-keyed", Balance, function, self.topic, key=lambda event: event.account
        )
        self.each: View[Balance] = View(
            app, f"{name}-each", Balance, function, self.topic, dedup=Dedup(window=0)
        )

    async def cents(self, stage: Stage, key: str, last: Any) -> tuple[int, int, int]:
        found = [await view.get(key, wait_for=last) for view in (self.plain, self.keyed, self.each)]
        plain, keyed, each = (0 if one is None else one.cents for one in found)
        return plain, keyed, each


async def test_it_counts_once_through_restarts(stage: Stage) -> None:
    first, second = World(stage), World(stage)
    # This log drops by itself what is published again within a while.
    drops = stage.case.name == "redis"
    async with first.app:
        for _ in range(2):
            await first.topic.publish(Moved("ada", 5), id="m1")
        last = await first.topic.publish(Moved("ada", 1), id="m2")
        expected = 6 if drops else 11
        assert await first.cents(stage, "ada", last) == (6, 6, expected)
    async with second.app:
        await second.topic.publish(Moved("ada", 5), id="m1")
        await second.topic.publish(Moved("bob", 1), id="m3")
        last = await second.topic.publish(Moved("ada", 1), id="m4")
        expected = 7 if drops else 17
        assert await second.cents(stage, "ada", last) == (7, 7, expected)


async def test_ids_that_stand_in_the_values_count(stage: Stage) -> None:
    app = stage.app()
    topic = app.topic(stage.topic_name, Moved, key="account", id="id", partitions=1)
    view: View[Balance] = View(app, f"{stage.topic_name}-sums", Balance, fold, topic)
    async with app:
        values = [b'{"account":"ada","cents":5,"id":"%s"}' % id for id in (b"a", b"a", b"b")]
        # Whoever wrote them gave each another ID of its own.
        records = [Record(each, b"ada", f"x{n}", [], 0) for n, each in enumerate(values)]
        last = append(app.log, topic.name, records)[-1]
        assert not isinstance(last, Exception)
        found = await view.get("ada", wait_for=last)
        assert found == Balance(10)


async def test_what_is_folded_on_later_passes_over_the_same(stage: Stage) -> None:
    """The repeat stands behind the event at which the document stopped, the first before it."""

    def broken(balance: Balance | None, event: Moved) -> Balance:
        if event.cents == 13:
            raise ValueError("thirteen")
        return fold(balance, event)

    first, second = World(stage, broken), World(stage)
    async with first.app:
        await first.topic.publish(Moved("ada", 5), id="m1")
        last = await first.topic.publish(Moved("ada", 13), id="m2")
        for view in (first.plain, first.keyed):
            with pytest.raises(DocumentStopped):
                await view.get("ada", wait_for=last)
    async with second.app:
        # To the log, these are other messages than the first: it drops none.
        answers = append(
            second.app.log,
            second.topic.name,
            [
                record
                for id, cents in (("m1", 5), ("m2", 13), ("m3", 2))
                for record in [second.topic.record(Moved("ada", cents), id=id)]
            ],
        )
        last = await second.topic.publish(Moved("ada", 100), id="m4")
        assert not [each for each in answers if isinstance(each, Exception)]
        for view in (second.plain, second.keyed):
            with pytest.raises(DocumentStopped):
                await view.get("ada", wait_for=last)
            assert await view.retry("ada")
            assert await view.get("ada") == Balance(120)


def test_what_is_no_dedup_is_refused() -> None:
    app = Streams("memory://")
    topic = app.topic("moved", Moved, key="account")
    wrong: Any = 5
    with pytest.raises(ConfigError, match="dedup=5: a Dedup, such as"):
        View(app, "sums", Balance, fold, topic, dedup=wrong)
