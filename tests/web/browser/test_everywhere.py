"""Every screen once more over Redis and Kafka; behind ``make faults``, as it takes a minute."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, expect

from tests.web.browser.looking import look_at
from tests.web.browser.running import Running, running
from tests.web.browser.site import NOT_LINKED, explore, screen_paths
from tests.web.browser.tab import Tab, watch
from tests.web.showcase import Parcel

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.faults]


@pytest.fixture(params=["redis_url", "kafka_url"])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[Running]:
    """The shop on another log."""
    url = request.getfixturevalue(request.param)
    with running(url, f"-{uuid4().hex[:6]}") as found:
        yield found


def test_every_screen_and_its_figures(browser: Browser, elsewhere: Running) -> None:
    shop = elsewhere.shop
    with browser.new_context(reduced_motion="reduce") as context:
        watch(context)
        tab = Tab(context, elsewhere.address)
        site = explore(elsewhere.address)
        missing = set(screen_paths()) - NOT_LINKED - set(site.pages) - site.files
        assert not missing, f"no link leads to {missing}"
        for path in site.pages.values():
            look_at(tab, path)
        tab.get(f"/topics/{shop.parcels.name}")
        figure = tab.find("[data-figure=messages]").first
        before = int((figure.text_content() or "").replace(",", ""))
        elsewhere.call(shop.parcels.publish(Parcel("late", 1.0), key="late"))
        expect(figure).to_have_text(f"{before + 1:,}")
        tab.check()
