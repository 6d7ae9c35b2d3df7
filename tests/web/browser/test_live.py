"""What changes on a page while it is open."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from playwright.sync_api import expect

from streams.web import live
from tests.web.browser.running import Running
from tests.web.browser.tab import Tab
from tests.web.showcase import Parcel

pytestmark = pytest.mark.xdist_group("browser")

TURN = """(hidden) => {
  Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
  document.dispatchEvent(new Event("visibilitychange"));
}"""
"""What a browser does when its page goes to the background, or comes back."""


def test_a_figure_follows_the_log(tab: Tab, shop: Running) -> None:
    tab.get("/topics/parcels")
    figure = tab.find("[data-figure=messages]").first
    before = int((figure.text_content() or "").replace(",", ""))
    shop.call(shop.shop.parcels.publish(Parcel("late", 1.0), key="late"))
    expect(figure).to_have_text(f"{before + 1:,}")
    expect(tab.find("[data-figure=bytes]")).to_have_text(re.compile(r"^[\d.,]+ (B|KiB)$"))


def test_the_chart_is_drawn_and_has_a_table(tab: Tab) -> None:
    tab.get("/topics/parcels")
    expect(tab.find(".plot canvas")).to_be_visible()
    tab.find(".chart summary").click()
    expect(tab.find(".chart table")).to_be_visible()


def test_tabs_share_a_stream_and_stop_in_the_background(tab: Tab, shop: Running) -> None:
    dashboard = shop.dashboard
    tab.get("/topics/parcels")
    tab.until(lambda: dashboard.streams_open == 1, "connected")
    other = Tab(tab.page.context, shop.address)
    other.get("/topics/orders")
    figure = other.find("[data-figure=messages]").first
    before = int((figure.text_content() or "").replace(",", ""))
    # The stream that both share is told of what the second shows, too.
    shop.call(shop.shop.publish_bytes(b"{}", "empty"))
    expect(figure).to_have_text(f"{before + 1:,}")
    tab.until(lambda: dashboard.streams_open == 1, "one stream again")
    other.script(TURN, True)
    tab.script(TURN, True)
    tab.until(lambda: dashboard.streams_open == 0, "disconnected in the background")
    tab.until(lambda: not dashboard.sampler.is_running, "nothing is asked of the log")
    tab.script(TURN, False)
    tab.until(lambda: dashboard.streams_open == 1, "connected again")
    other.check()


def test_updates_can_be_paused_and_that_lasts(tab: Tab, shop: Running) -> None:
    tab.get("/groups")
    tab.until(lambda: shop.dashboard.streams_open == 1, "connected")
    pause = tab.find("#pause")
    pause.click()
    expect(pause).to_have_attribute("aria-pressed", "true")
    tab.until(lambda: shop.dashboard.streams_open == 0, "disconnected")
    tab.get("/topics")
    expect(tab.find("#pause")).to_have_attribute("aria-pressed", "true")
    tab.find("#pause").click()
    tab.until(lambda: shop.dashboard.streams_open == 1, "connected")


def test_windows_that_watch_what_arrives_share_the_stream_too(tab: Tab, shop: Running) -> None:
    first, second = (Tab(tab.page.context, shop.address) for _ in range(2))
    for each, topic in ((tab, "orders"), (first, "parcels"), (second, "parcels")):
        each.get(f"/topics/{topic}/messages")
        each.find("#watch-arriving").click()

    def arrives(which: Tab, key: str) -> bool:
        shop.call(shop.shop.parcels.publish(Parcel(key, 1.0), key=key))
        return which.find("#arriving tr", has_text=key).count() > 0

    first.until(lambda: arrives(first, "parcel-1"), "rows")
    second.until(lambda: arrives(second, "parcel-2"), "rows")
    tab.until(lambda: shop.dashboard.streams_open == 1, "one stream")
    expect(tab.find("#arriving tr")).to_have_count(0)
    first.find("#pause").click()
    shown = first.find("#arriving tr").count()
    second.until(lambda: arrives(second, "while-paused"), "rows")
    assert first.find("#arriving tr").count() == shown
    first.find("#pause").click()
    first.until(lambda: arrives(first, "later"), "rows")
    first.check()
    second.check()


def test_a_browser_without_shared_workers_has_a_stream_a_tab(tab: Tab, shop: Running) -> None:
    tab.page.add_init_script("delete window.SharedWorker")
    tab.get("/topics/parcels/messages")
    tab.find("#watch-arriving").click()

    def arrives() -> bool:
        shop.call(shop.shop.parcels.publish(Parcel("alone", 1.0), key="alone"))
        return tab.find("#arriving tr", has_text="alone").count() > 0

    tab.until(arrives, "rows")
    tab.find("#watch-arriving").click()
    tab.until(lambda: shop.dashboard.streams_open == 0, "no stream")


@pytest.mark.parametrize("shared", [True, False])
def test_a_stream_that_ends_is_opened_again_and_nothing_is_missed(
    tab: Tab, shop: Running, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """The server ends each after some seconds."""
    opened: list[None] = []
    streaming = shop.dashboard.streaming

    def count(end: Callable[[], None]) -> AbstractContextManager[None]:
        opened.append(None)
        return streaming(end)

    monkeypatch.setattr(live, "STREAM_SECONDS", 0.2)
    monkeypatch.setattr(shop.dashboard, "streaming", count)
    if not shared:
        tab.page.add_init_script("delete window.SharedWorker")
    tab.get("/topics/parcels/messages")
    tab.find("#watch-arriving").click()

    def arrives() -> bool:
        shop.call(shop.shop.parcels.publish(Parcel("first", 1.0), key="first"))
        return tab.find("#arriving tr", has_text="first").count() > 0

    tab.until(arrives, "rows")
    for number in range(5):
        before = len(opened)
        key = f"again-{shared}-{number}"
        shop.call(shop.shop.parcels.publish(Parcel(key, 1.0), key=key))
        expect(tab.find("#arriving tr", has_text=key)).to_have_count(1)
        tab.until(lambda: len(opened) > before, "the next stream")  # noqa: B023
        expect(tab.find("#outage")).to_be_hidden()
    for number in range(5):
        expect(tab.find("#arriving tr", has_text=f"again-{shared}-{number}")).to_have_count(1)
