"""Old code beside newer code that writes events which the old code does not know: old processors
hold back what they cannot read, in order, until newer code has it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from streams import Message, Retry, Streams
from streams.eventsourcing import Aggregate
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import (
    Account,
    AccountEvent,
    Credited,
    Deposited,
    accounts,
    credit,
    deposit,
    evolve,
)

pytestmark = pytest.mark.anyio


def evolve_newer(account: Account, event: AccountEvent | Credited) -> Account:
    if isinstance(event, Credited):
        return Account(account.owner, account.cents + event.cents)
    return evolve(account, event)


def newer_accounts(app: Streams, name: str, partitions: int = 1) -> Aggregate[Any, Account]:
    """The bank as tomorrow's code has it."""
    return Aggregate(
        app, name, AccountEvent | Credited, Account, evolve_newer, partitions=partitions
    )


NO_DELAY = Retry(attempts=2, delay=0.0)

HISTORIES: dict[str, list[int]] = {"known": [1, 2, 3], "newer": [1, -2, 3, -4, 5]}
"""What is deposited on each account; credited where it is negative."""


def declare(kind: str, app: Streams, topic: Any, group: str, seen: dict[Any, list[int]]) -> Any:
    """A processor that notes the cents of each key; of a credited amount, negative."""

    def note(event: Any, message: Message[Any]) -> None:
        seen[message.key].append(-event.cents if type(event) is Credited else event.cents)
        assert message.attempt == 1

    if kind == "async":

        async def handle(event: Any, message: Message[Any]) -> None:
            note(event, message)

        return app.processor(topic, group=group, retry=NO_DELAY, concurrency=8)(handle)
    if kind == "plain":
        return app.processor(topic, group=group, retry=NO_DELAY)(note)

    def handle_batch(events: list[Any], messages: list[Message[Any]]) -> None:
        for event, message in zip(events, messages, strict=True):
            note(event, message)

    return app.processor(topic, group=group, retry=NO_DELAY, batch=100)(handle_batch)


@pytest.mark.parametrize("kind", ["async", "plain", "batch"])
async def test_a_processor_holds_back_what_it_does_not_know(stage: Stage, kind: str) -> None:
    """Its key waits, in order, and other keys go on; newer code goes on where the old one waits."""
    name = f"{stage.topic_name}-accounts"
    seen: dict[Any, list[int]] = defaultdict(list)
    newer = stage.app()
    written = newer_accounts(newer, name)
    async with newer.connected():
        for number in range(5):
            for key, amounts in HISTORIES.items():
                for cents in amounts[number : number + 1]:
                    decision: Any = deposit if cents > 0 else credit
                    await written.decide(key, decision, abs(cents))
    old = stage.app()
    processor = declare(kind, old, accounts(old, name, partitions=1).events, stage.group, seen)
    async with old:
        await stage.until(lambda: old.health().processors[processor.name].held_back, "it waits")
        await stage.until(lambda: len(seen["known"]) == 3, "other keys go on")
        health, stats = old.health(), old.stats().processors[processor.name]
        assert (health.ok, health.ready, health.live) == (False, True, True)
        assert (stats.held_back, stats.dead_letters, stats.retries) == (1, 0, 0)
        assert dict(seen) == {"known": [1, 2, 3], "newer": [1]}
    declare(kind, newer, written.events, stage.group, seen)
    async with newer:
        await stage.until(lambda: len(seen["newer"]) >= 5, "newer code has taken over")
        assert newer.health().ok
    assert dict(seen) == HISTORIES


async def test_a_handler_that_decides_waits_for_newer_code(stage: Stage) -> None:
    """An aggregate with an event that this code does not know makes no dead letter of a command."""
    name = f"{stage.topic_name}-accounts"

    def declare_commands(app: Streams, aggregate: Aggregate[Any, Account]) -> None:
        commands = stage.topic(app, int, partitions=1)

        @app.processor(commands, group=stage.group, retry=NO_DELAY)
        async def take(cents: int, message: Message[int]) -> None:
            await aggregate.decide(message.key or "", deposit, cents)

    newer, old = stage.app(), stage.app()
    written = newer_accounts(newer, name)
    declare_commands(old, accounts(old, name, partitions=1))
    async with newer.connected():
        await written.decide("newer", credit, 1)
    async with old:
        commands = old.topics[stage.topic_name]
        await commands.publish(2, key="newer")
        await commands.publish(3, key="known")
        await stage.until(lambda: old.health().processors["take"].held_back, "it waits")
        assert old.stats().processors["take"].retries == 0
    declare_commands(newer, written)
    async with newer:
        await stage.until(
            lambda: newer.stats().processors["take"].handled, "newer code has taken over"
        )
        assert newer.stats().processors["take"].dead_letters == 0
        for key, events in {"newer": [Credited(1), Deposited(2)], "known": [Deposited(3)]}.items():
            assert [each.event async for each in written.read(key)] == events
