"""What is said of views is what happened: figures of this process, and what the log says of all."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import Struct

from streams import Aggregate, Streams
from streams.eventsourcing.views import inline_subscription
from streams.patterns import MonitoringServer
from tests.eventsourcing.bank import Account, Deposited, accounts, deposit, open_with
from tests.monitoring.conftest import scrape, until
from tests.views.bank import Balance, Bank, fold_balance, owner_of

pytestmark = pytest.mark.anyio


def of(bank: Bank, version: int = 1) -> dict[str, str]:
    return {"view": bank.balances.name, "version": str(version)}


async def test_what_a_process_folds_is_counted_and_the_log_says_the_rest(
    tmp_path: Any,
) -> None:
    url = f"sqlite:////{str(tmp_path / 'views.db').lstrip('/')}"
    bank, reads = Bank(Streams(url), "accounts"), Bank(Streams(url), "accounts")
    with MonitoringServer(bank.app, port=0) as server, MonitoringServer(reads.app, port=0) as other:
        async with bank.app:
            for number in range(5):
                done = await bank.accounts.decide(f"a-{number}", open_with, "ada", number)
                await bank.balances.get(f"a-{number}", wait_for=done, timeout=60)
            found = await until(server, lambda now: now.of("view_serving") == [1])
            assert found.one("view_events_total", **of(bank)) == 10
            assert found.one("view_lag_messages", **of(bank)) == 0
            assert found.one("view_folded_ratio", **of(bank)) == 1
            assert found.one("view_waiting_partitions", **of(bank)) == 0
            assert found.one("view_stopped_documents", **of(bank)) == 0
            assert bank.app.stats().views[f"{bank.balances.name}.v1"].events == 10
        async with reads.app.connected():
            await reads.accounts.decide("a-1", deposit, 1)
            seen = await scrape(other)
            assert seen.one("view_events_total", **of(reads)) == 0
            assert seen.one("view_lag_messages", **of(reads)) == 1
            assert seen.one("view_folded_ratio", **of(reads)) == pytest.approx(10 / 11)
            assert seen.one("view_serving", **of(reads)) == 1
        gone = await scrape(server)
        assert gone.one("view_serving", **of(bank)) == 0
        assert gone.of("view_lag_messages") == []
        assert gone.one("backlog_known") == 0


class Unknown(Struct, tag="unknown", frozen=True):
    x: int


async def test_documents_that_stand_still_and_partitions_that_wait_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inline_subscription, "RETRY_PAUSE", 0.01)
    url = "memory://monitored-views"

    def fold(balance: Balance | None, event: Any) -> Balance | None:
        if isinstance(event, Deposited) and event.cents == 13:
            raise ZeroDivisionError("thirteen")
        return fold_balance(balance, event)

    bank = Bank(Streams(url), "accounts", fold)
    elsewhere = Streams(url)
    newer: Aggregate[Any, Account] = Aggregate(
        elsewhere, "accounts", Unknown | Deposited, Account, lambda state, _: state, partitions=2
    )
    with MonitoringServer(bank.app, port=0) as server:
        async with bank.app, elsewhere.connected():
            await bank.accounts.decide("a", deposit, 13)
            await until(server, lambda now: now.of("view_stopped_documents", **of(bank)) == [1])
            await newer.append("b", Unknown(1), expected="any")
            found = await until(
                server, lambda now: now.of("view_waiting_partitions", **of(bank)) == [1]
            )
            assert found.one("view_lag_messages", **of(bank)) == 1
            assert not bank.app.health().ok


async def test_the_count_of_events_goes_on_when_partitions_are_assigned_anew() -> None:
    bank = Bank(Streams("memory://"), "accounts")
    with MonitoringServer(bank.app, port=0) as server:
        async with bank.app:
            for number in range(4):
                done = await bank.accounts.decide(f"a-{number}", deposit, 1)
                await bank.balances.get(f"a-{number}", wait_for=done, timeout=60)
            before = bank.app.stats().processors[f"{bank.balances.name}.v1"].rebalances
            bank.balances.declared.retries.request_restart()
            await until(
                server,
                lambda now: now.one("rebalances_total", group="accounts.balances.v1") > before,
            )
            for number in range(4):
                done = await bank.accounts.decide(f"a-{number}", deposit, 1)
                await bank.balances.get(f"a-{number}", wait_for=done, timeout=60)
            assert (await scrape(server)).one("view_events_total", **of(bank)) == 8


async def test_a_version_that_is_built_says_how_far_it_is_and_does_not_serve() -> None:
    url = "memory://monitored-versions"
    old = Bank(Streams(url), "accounts")
    app = Streams(url)
    ledger = accounts(app)
    both = [
        ledger.view("balances", Balance, version=number, promote=number == 1)(fold_balance)
        for number in (1, 2)
    ]
    holders: Any = ledger.view("holders", Balance, key=owner_of)(lambda _, event: Balance("x"))
    with MonitoringServer(app, port=0) as server:
        async with old.app, app:
            await both[0].ready()
            done = await ledger.decide("a", open_with, "ada", 1)
            await holders.get("ada", wait_for=done, timeout=60)
            found = await until(
                server,
                lambda now: (
                    now.of("view_folded_ratio", **of(old, 2)) == [1]
                    and now.of("view_serving", **of(old, 1)) == [1]
                ),
            )
            assert found.one("view_serving", **of(old, 2)) == 0
            # Each event counts once, however many records it is written again in.
            keyed = {"view": holders.name, "version": "1"}
            assert found.one("view_events_total", **keyed) == 1
            assert found.one("view_folded_ratio", **keyed) == 1
