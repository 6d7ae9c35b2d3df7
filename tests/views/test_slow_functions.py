"""A view whose function is slow: what is folded is written long before a whole batch is. So its
process stays in its group, and one that loses a partition loses a moment's work."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from streams import View
from streams.eventsourcing.views import inline_subscription
from streams.eventsourcing.views.folding_subscription import FoldingSubscription
from streams.log import range_reader
from tests.conformance.stage import PATIENCE, Stage
from tests.eventsourcing.bank import deposit, open_with
from tests.views.bank import Balance, Bank, Holder, fold_balance, fold_holder, unique

pytestmark = pytest.mark.anyio

COUNT = 20
HELD = 10
"""The deposit at which the function waits: by then all before it is to be in the log."""


class Held:
    """Waits at one deposit until it is released."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def wait(self, event: Any) -> None:
        if getattr(event, "cents", None) == HELD:
            assert self.released.wait(PATIENCE)


async def written(stage: Stage, name: str) -> Any:
    """The deposits of 0, 1, 2, … cents, in one partition; the last one."""
    bank = Bank(stage.app(), name, partitions=1)
    async with bank.app.connected():
        for cents in range(COUNT):
            done = await bank.accounts.decide("a", deposit, cents)
    return done


async def test_what_is_folded_is_written_before_the_whole_batch_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_subscription, "HANDLING_TIME", 0.0)
    name, held = unique(), Held()
    done = await written(stage, name)

    def fold(balance: Balance | None, event: Any) -> Balance | None:
        held.wait(event)
        return fold_balance(balance, event)

    bank = Bank(stage.app(), name, fold, partitions=1)
    version = bank.balances.declared
    async with bank.app:
        try:
            await stage.until(
                lambda: (
                    version.read(bank.app.log, b"a").document == Balance("", sum(range(HELD)), HELD)
                ),
                "what came before is written",
            )
        finally:
            held.released.set()
        found = await bank.balances.get("a", wait_for=done)
        assert found == Balance("", sum(range(COUNT)), COUNT)


async def test_what_is_written_by_key_is_written_before_the_whole_batch_is(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inline_subscription, "HANDLING_TIME", 0.0)
    name, held = unique(), Held()
    done = await written(stage, name)
    bank = Bank(stage.app(), name, partitions=1)

    def key(event: Any) -> str:
        held.wait(event)
        return "all"

    holders: View[Holder] = bank.accounts.view("holders", Holder, key=key)(fold_holder)
    topic = f"{holders.name}.v1.keyed"

    def copies() -> int:
        first, _ = bank.app.log.watermarks(topic, 0)
        return bank.app.log.lag(topic, 0, first) or 0

    async with bank.app:
        try:
            await stage.until(lambda: copies() >= HELD, "what came before is written")
        finally:
            held.released.set()
        assert await holders.get("all", wait_for=done) == Holder(COUNT)


async def test_a_document_that_is_folded_on_for_long_loses_no_partition(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signs of life come between its events, too, not only between batches."""
    name, is_mended = unique(), threading.Event()

    def fold(balance: Balance | None, event: Any) -> Balance | None:
        if not is_mended.is_set():
            raise ValueError("not yet")
        return fold_balance(balance, event)

    signs: list[int] = []
    keep_alive = FoldingSubscription.keep_alive

    def note(subscription: FoldingSubscription) -> None:
        signs.append(1)
        keep_alive(subscription)

    bank = Bank(stage.app(), name, fold, partitions=1)
    async with bank.app:
        await bank.accounts.decide("a", open_with, "ada", 1)
        for cents in range(COUNT):
            done = await bank.accounts.decide("a", deposit, cents)
        tracker = bank.balances.declared.tracker(bank.app.log)
        await stage.until(lambda: tracker.count_stopped() == 1, "it stands still")
        await stage.until(lambda: tracker.progress().share == 1.0, "all was passed")
        is_mended.set()
        monkeypatch.setattr(range_reader, "KEEP_ALIVE_EVERY", -1.0)
        monkeypatch.setattr(FoldingSubscription, "keep_alive", note)
        assert await bank.balances.retry("a", timeout=PATIENCE)
        assert len(signs) > COUNT
        found = await bank.balances.get("a", wait_for=done)
        assert found == Balance("ada", 1 + sum(range(COUNT)), 1 + COUNT)
