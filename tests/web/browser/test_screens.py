"""Every screen in a real Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from streams import Streams
from streams.web import Dashboard
from tests.web.browser.looking import PHONE, look_at, look_here
from tests.web.browser.running import Running
from tests.web.browser.site import NOT_LINKED, Site, explore, screen_paths
from tests.web.browser.tab import Tab, watch
from tests.web.gates import lasting_job
from tests.web.serving import serving

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="package")
def site(shop: Running) -> Site:
    return explore(shop.address)


@pytest.fixture(scope="package")
def same_tab(browser: Browser, shop: Running) -> Iterator[Tab]:
    """One tab for all screens: a new one is a process of the browser's, half a second each."""
    with browser.new_context(reduced_motion="reduce") as context:
        watch(context)
        yield Tab(context, shop.address)


@pytest.mark.parametrize("screen", [path for path in screen_paths() if path not in NOT_LINKED])
def test_a_screen_is_reached_by_links_and_nothing_is_wrong_with_it(
    same_tab: Tab, site: Site, screen: str
) -> None:
    if screen in site.files:
        return
    assert screen in site.pages, f"no link leads to it; there are {sorted(site.pages)}"
    look_at(same_tab, site.pages[screen])


def test_nothing_is_wrong_with_what_asks_and_what_says_that_it_is_done(
    same_tab: Tab, shop: Running
) -> None:
    tab = same_tab
    tab.get("/dead/show?name=orders.billing.dead")
    tab.find("main button", has_text="Count and retry").click()
    expect(tab.find("#confirm")).to_be_visible()  # a number is typed
    look_here(tab)
    tab.get("/groups/show?group=reports")
    tab.find("input[name=to]").fill("-3")
    tab.find("form[action$='/groups/reset'] button").click()
    expect(tab.find("form.confirm")).to_be_visible()  # there is a table
    look_here(tab)
    tab.find("form.confirm button").click()
    expect(tab.find("main .notice.good")).to_be_visible()
    look_here(tab)
    with lasting_job(shop.dashboard) as (job, _):
        look_at(tab, f"/jobs/{job.id}")
    expect(tab.find("main .notice.good")).to_be_visible()
    look_here(tab)
    tab.check()


@pytest.mark.parametrize(
    ("path", "status"), [("/topics/nowhere", 404), ("/doctor?verdict=perhaps", 400)]
)
def test_nothing_is_wrong_with_a_page_that_says_what_is_wrong(
    same_tab: Tab, path: str, status: int
) -> None:
    tab = same_tab
    tab.get(path)
    expect(tab.find("main [role=alert]")).to_be_visible()
    look_here(tab)
    wrong, tab.wrong = tab.wrong, []
    assert {each.partition(" ")[0] for each in wrong} == {str(status), "error"}, wrong


def test_nothing_is_wrong_with_the_page_of_a_log_that_is_out_of_reach(
    same_tab: Tab, tmp_path: Path
) -> None:
    app = Streams(f"sqlite:///{tmp_path / 'missing.db'}")
    with serving(Dashboard(app, access="all")) as address:
        tab = Tab(same_tab.page.context, address)
        tab.get()
        expect(tab.find("main h1")).to_have_text("The log does not answer")
        expect(tab.find("#outage")).to_be_visible()
        look_here(tab)
        tab.page.close()


def test_every_screen_fits_a_phone_in_japanese(same_tab: Tab, site: Site) -> None:
    tab = same_tab
    tab.page.set_viewport_size(PHONE)
    for path in site.pages.values():
        tab.get(path + ("&" if "?" in path else "?") + "lang=ja")
        assert tab.script("document.documentElement.lang") == "ja"
        tab.until(lambda: not tab.is_wider_than_its_window(), path)
    tab.check()


def test_every_screen_can_be_read_without_scripts(
    browser: Browser, shop: Running, site: Site
) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        tab = Tab(context, shop.address)
        for path in site.pages.values():
            tab.get(path)
            expect(tab.find("main h1")).to_be_visible()
            assert not tab.find("main .needs-script:visible").count(), path
        tab.check()


def test_a_group_is_moved_without_scripts(browser: Browser, shop: Running) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        tab = Tab(context, shop.address)
        tab.get("/groups/show?group=reports")
        tab.find("select[name=topic]").select_option("orders")
        tab.find("input[name=to]").fill("latest")
        tab.find("form[action$='/groups/reset'] button").click()
        expect(tab.find("h1")).to_have_text("Move reports in orders?")
        tab.find("form.confirm button").click()
        expect(tab.find(".notice.good")).to_contain_text("reports was moved in orders")
        tab.get("/groups/show?group=reports")
        expect(tab.find(".tiles li").first).to_contain_text("0")
        tab.check()


def test_below_a_path_nothing_is_asked_for_elsewhere(tab: Tab, shop: Running) -> None:
    asked: list[str] = []
    tab.page.on("request", lambda request: asked.append(request.url))
    tab.address = shop.mounted
    tab.get("/topics/parcels")
    tab.until(lambda: shop.dashboard.streams_open == 1, "connected")
    tab.find("nav a", has_text="Groups").click()
    expect(tab.find("h1")).to_have_text("Groups")
    assert asked
    assert not [url for url in asked if not url.startswith(shop.mounted + "/")]


def test_an_inline_script_would_be_refused_and_seen(tab: Tab) -> None:
    tab.get()
    tab.script(
        "() => { const script = document.createElement('script');"
        " script.textContent = 'window.owned = 1'; document.body.append(script); }"
    )
    tab.until(lambda: any("CSP" in each for each in tab.wrong), "reported")
    assert tab.script("window.owned") is None
    tab.wrong.clear()
