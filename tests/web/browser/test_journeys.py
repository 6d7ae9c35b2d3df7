"""What people come for, from end to end in a real Chromium."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.web.browser.running import Running
from tests.web.browser.tab import Tab

pytestmark = pytest.mark.xdist_group("browser")


def test_a_message_is_published_watched_found_and_opened(tab: Tab, shop: Running) -> None:
    tab.get("/topics/orders/messages")
    tab.find("#watch-arriving").click()
    other = Tab(tab.page.context, shop.address)
    other.get("/topics/orders")
    other.find("main a", has_text="Publish").click()
    for name, text in (("order", "o-77777"), ("customer", "佐藤"), ("cents", "1250")):
        other.page.get_by_label(name).fill(text)
    other.page.get_by_label("items").fill('["cup-1"]')
    other.find("form[method=post] button.strong").click()
    expect(other.find(".notice.good")).to_be_visible()
    other.check()
    expect(tab.find("#arriving tr").first).to_contain_text("佐藤")  # without being asked for

    tab.get("/topics/orders/messages")
    tab.find("summary", has_text="Search").click()
    tab.page.get_by_label("JSON path").fill("order")
    tab.page.get_by_label("equals").fill("o-77777")
    tab.find("button", has_text="Search").click()
    rows = tab.find("main table tbody tr", has_text="佐藤")
    expect(rows).to_have_count(1)
    rows.locator("a").first.click()
    expect(tab.find("main")).to_contain_text('"o-77777"')


def test_what_is_in_messages_is_text(tab: Tab) -> None:
    tab.get("/topics/orders/messages?count=200")
    hostile = tab.find("main tr", has_text="<script>alert(1)</script>")
    expect(hostile).to_have_count(1)
    expect(hostile).to_contain_text(r"\x1b[31m")
    hostile.locator("a").first.click()
    expect(tab.find("main h1")).to_be_visible()
