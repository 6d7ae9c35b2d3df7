"""English and Japanese in the browser."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import CI
from tests.web.browser.running import Running
from tests.web.browser.tab import Tab, watch

pytestmark = pytest.mark.xdist_group("browser")

DRAWN = """(texts) => texts.map((text) => {
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  pen.font = "40px " + getComputedStyle(document.documentElement).fontFamily;
  pen.fillText(text, 5, 60);
  return canvas.toDataURL();
})"""


def test_the_browsers_language_is_spoken_and_another_one_can_be_asked_for(
    browser: Browser, shop: Running
) -> None:
    with browser.new_context(locale="ja-JP") as context:
        watch(context)
        tab = Tab(context, shop.address)
        tab.get("/groups")
        expect(tab.find("h1")).to_have_text("グループ")
        tab.find("footer a", has_text="English").click()
        expect(tab.find("h1")).to_have_text("Groups")
        tab.find("nav a", has_text="Topics").click()  # it stays
        expect(tab.find("h1")).to_have_text("Topics")
        tab.get("/topics/orders/messages")
        expect(tab.find("main time").first).to_have_text(re.compile(r"^\d+ (秒|分)前$"))
        tab.check()


def test_japanese_is_drawn_with_a_font_that_has_it(tab: Tab) -> None:
    tab.get("/?lang=ja")
    first, second, again = tab.script(DRAWN, ["概", "要", "概"])
    assert first == again
    if first == second and not CI:
        pytest.skip("no font has Japanese: apt-get install fonts-noto-cjk")
    assert first != second, "boxes instead of characters"
