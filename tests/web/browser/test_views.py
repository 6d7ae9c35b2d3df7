"""What can be done to the versions of a view, in a row, on each log; on Redis and Kafka behind
``make faults``, as it takes a while there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from streams import Streams
from streams.eventsourcing.views.inspection import read_view
from streams.log.url import open_log
from streams.web import Dashboard
from tests.conformance.stage import PATIENCE
from tests.eventsourcing.bank import deposit
from tests.views.bank import Balance, Bank, fold_balance, unique
from tests.web.browser.acting import Act, perform
from tests.web.browser.running import Running
from tests.web.browser.tab import Tab, watch
from tests.web.serving import serving

pytestmark = pytest.mark.xdist_group("browser")

OF_VERSION = ":has(input[name=version][value='%d'])"


class Unlucky(Bank):
    """A bank whose view has two versions, which both stand still at 13 cents until it is mended."""

    def __init__(self, url: str) -> None:
        self.is_mended = False
        super().__init__(Streams(url), unique(), self.fold)
        declare = self.accounts.view("balances", Balance, version=2, promote=False)
        self.second = declare(self.fold)

    def fold(self, balance: Balance | None, event: Any) -> Balance | None:
        if getattr(event, "cents", 0) == 13 and not self.is_mended:
            raise ValueError("unlucky")
        return fold_balance(balance, event)

    async def build(self) -> None:
        """Have both versions fold what is decided, as far as they can."""
        await self.accounts.decide("a", deposit, 13)
        done = await self.accounts.decide("b", deposit, 1)
        for view in (self.balances, self.second):
            await view.get("b", wait_for=done, timeout=PATIENCE)


@asynccontextmanager
async def entered(bank: Unlucky) -> AsyncIterator[None]:
    """The bank while its app runs, with both versions built."""
    async with bank.app:
        await bank.build()
        yield


@pytest.mark.parametrize(
    "url",
    [
        "sqlite_url",
        pytest.param("redis_url", marks=pytest.mark.faults),
        pytest.param("kafka_url", marks=pytest.mark.faults),
    ],
)
def test_versions_are_folded_on_promoted_rebuilt_and_dropped(
    browser: Browser, shop: Running, request: pytest.FixtureRequest, url: str
) -> None:
    address = request.getfixturevalue(url)
    bank = Unlucky(address)
    name = bank.balances.name
    page = f"/views/show?view={name}"
    with (
        serving(Dashboard(bank.app, access="all")) as dashboard,
        browser.new_context(reduced_motion="reduce") as context,
    ):
        watch(context)
        tab = Tab(context, dashboard)
        with shop.entered(entered(bank)):
            tab.get(page)
            expect(tab.find("main")).to_contain_text("ValueError: unlucky")
            bank.is_mended = True
            for number in (2, 1):
                perform(tab, Act("/views/retry", page, form=OF_VERSION % number))
                expect(tab.find("main .notice.good")).to_have_text("The document has been resumed.")
            perform(tab, Act("/views/promote", page, form=OF_VERSION % 2))
            expect(tab.find("main .notice.good")).to_contain_text("Version 2 of")
            perform(tab, Act("/views/rebuild", page, form=OF_VERSION % 2))
            expect(tab.find("main .notice.good")).to_contain_text("is being rebuilt")
        perform(tab, Act("/views/drop", page, form=OF_VERSION % 1))  # nobody runs it any more
        expect(tab.find("main .notice.good")).to_contain_text("is dropped")
    log = open_log(address)
    try:
        view = read_view(log, name)
    finally:
        log.close()
    assert view.promoted == 2
    assert [each.version for each in view.versions] == [2]
