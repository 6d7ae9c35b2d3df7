"""Everything can be done with the keyboard, and single keys can be turned off."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.web.browser.tab import Tab

pytestmark = pytest.mark.xdist_group("browser")


def test_slash_goes_to_the_filter(tab: Tab) -> None:
    tab.get("/topics")
    tab.page.keyboard.press("/")
    expect(tab.find("#filter")).to_be_focused()
    tab.page.keyboard.type("parc/")  # a slash in a field is a slash
    expect(tab.find("#filter")).to_have_value("parc/")
    tab.page.keyboard.press("Backspace")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_url("**q=parc")
    rows = tab.find("main tbody tr").all_text_contents()
    assert rows
    assert all("parc" in row for row in rows)


def test_j_and_k_choose_a_row_and_enter_opens_it(tab: Tab) -> None:
    tab.get("/topics")
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("j")
    chosen = tab.find("main tbody tr").nth(1)
    expect(chosen).to_have_class("chosen")
    name = chosen.locator("a").first.text_content() or ""
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("k")
    tab.page.keyboard.press("Enter")
    expect(tab.find("main h1")).to_have_text(name)


def test_the_list_of_keys_opens_closes_and_turns_keys_off(tab: Tab) -> None:
    tab.get("/topics")
    tab.page.keyboard.press("?")
    expect(tab.find("#keys")).to_be_visible()
    tab.page.keyboard.press("Escape")
    expect(tab.find("#keys")).to_be_hidden()
    tab.find("#show-keys").click()
    tab.find("#keys-off").check()
    tab.page.keyboard.press("Escape")
    expect(tab.find("#show-keys")).to_be_focused()
    tab.get("/topics")  # it is remembered
    tab.page.keyboard.press("/")
    tab.page.keyboard.press("j")
    tab.page.keyboard.press("?")
    expect(tab.find("#keys")).to_be_hidden()
    expect(tab.find("#filter")).not_to_be_focused()
    expect(tab.find("tr.chosen")).to_have_count(0)


def test_the_first_tab_stop_skips_the_navigation(tab: Tab) -> None:
    tab.get("/groups")
    tab.page.keyboard.press("Tab")
    expect(tab.find(".skip")).to_be_focused()
    tab.page.keyboard.press("Enter")
    expect(tab.find("#main")).to_be_focused()
