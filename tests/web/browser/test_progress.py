"""How far something is that takes a while: told by the one stream that a browser's tabs share, so
that no page asks for it again and again; and renewed without taking away what somebody does
meanwhile."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from streams import DeadLetters, Retry, Streams
from streams.errors import NotFound, StreamsError, Unavailable
from streams.inspection.closed_keys import ClosedKeyIndex, KeyCounts
from streams.inspection.delayed import DelayIndex, PendingCounts
from streams.log.url import open_log
from streams.web import Dashboard, sampler
from streams.web.doctor_runs import DoctorRuns
from tests.conformance.stage import QUICK
from tests.servers.lifetime import free_port
from tests.web.browser.running import Running
from tests.web.browser.tab import Tab, watch
from tests.web.browser.test_live import TURN
from tests.web.gates import lasting_job
from tests.web.serving import serving

pytestmark = pytest.mark.xdist_group("browser")

COUNT = """() => {
  window.swaps = 0;
  window.asked = [];
  document.addEventListener("htmx:after:swap", () => { window.swaps += 1; });
  const real = window.fetch;
  window.fetch = (what, ...rest) => {
    window.asked.push(String(what.url || what));
    return real(what, ...rest);
  };
}"""
"""Has a page count what it asks for, and what was put into it."""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are told twenty times a second."""
    monkeypatch.setattr(sampler, "INTERVAL", 0.05)


def counting(tab: Tab, path: str) -> None:
    """Go to a page that counts."""
    tab.get(path)
    tab.script(COUNT)


def swapped(tab: Tab, times: int) -> None:
    """Wait until so many answers were put into the page from now on."""
    wanted = tab.script("window.swaps") + times
    tab.until(lambda: tab.script("window.swaps") >= wanted, f"{times} swaps")


def test_how_far_an_action_is_comes_with_the_stream_and_nothing_is_asked_for(
    tab: Tab, shop: Running
) -> None:
    dashboard = shop.dashboard
    with lasting_job(dashboard) as (job, say):
        tab.page.clock.install()
        counting(tab, f"/jobs/{job.id}")
        other = Tab(tab.page.context, shop.address)
        other.get(f"/jobs/{job.id}")
        say(3)
        for each in (tab, other):
            expect(each.find("#job")).to_contain_text("3 of 10 done")
            expect(each.find("#job progress")).to_have_js_property("value", 3)
        tab.until(lambda: dashboard.streams_open == 1, "one stream for both")
        other.page.close()
        for stop, go_on, done in (
            (tab.find("#pause").click, tab.find("#pause").click, 4),
            (lambda: tab.script(TURN, True), lambda: tab.script(TURN, False), 5),
        ):
            stop()
            tab.until(lambda: dashboard.streams_open == 0, "no stream")
            say(done)
            tab.until(lambda: job.done == done, "more is done")  # noqa: B023
            expect(tab.find("#job")).to_contain_text(f"{done - 1} of 10 done")
            go_on()
            expect(tab.find("#job")).to_contain_text(f"{done} of 10 done")
        tab.page.clock.run_for(20_000)
        assert tab.script("window.asked") == []
    expect(tab.find("#job")).to_contain_text("It is over.")
    tab.until(lambda: dashboard.streams_open == 0, "nothing is watched any more")
    assert len(tab.script("window.asked")) == 1


def test_progress_goes_on_when_the_connection_was_lost(browser: Browser, tmp_path: Path) -> None:
    dashboard = Dashboard(Streams(f"sqlite:///{tmp_path / 'log.db'}"), access="all")
    port = free_port()
    with lasting_job(dashboard) as (job, say), browser.new_context() as context:
        watch(context)
        with serving(dashboard, port, lifespan="off") as address:
            tab = Tab(context, address)
            counting(tab, f"/jobs/{job.id}")
            say(3)
            expect(tab.find("#job")).to_contain_text("3 of 10 done")
        expect(tab.find("#outage")).to_be_visible()
        say(7)
        with serving(dashboard, port, lifespan="off"):
            expect(tab.find("#job")).to_contain_text("7 of 10 done")
            expect(tab.find("#outage")).to_be_hidden()
            assert tab.script("window.asked") == []
            del dashboard.jobs._jobs[job.id]  # as if it was started again, and knew of none
            expect(tab.find("main [role=alert]")).to_contain_text("is known here")
    dashboard.close()


def test_a_page_of_a_log_that_was_out_of_reach_goes_on_by_itself(
    browser: Browser, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'later.db'}"
    with (
        serving(Dashboard(Streams(url), access="all")) as address,
        browser.new_context() as context,
    ):
        watch(context)
        tab = Tab(context, address)
        tab.get("/topics")
        expect(tab.find("main h1")).to_have_text("The log does not answer")
        with closing(open_log(url)) as log:
            log.create_topic("orders", 1)
            expect(tab.find("main h1")).to_have_text("Topics")  # with or without that one
        assert any(each.startswith("503 ") for each in tab.wrong)


@asynccontextmanager
async def closed_keys(keys: str) -> AsyncIterator[Streams]:
    """An app with these keys closed, in this order."""
    app = Streams("memory://")
    topic = app.topic("orders", int, partitions=1)
    failed = threading.Semaphore(0)

    @app.processor(
        topic,
        group="stock",
        retry=Retry(attempts=1),
        dead_letters=DeadLetters(sequenced=True),
        flow=QUICK,
    )
    async def handle(value: int) -> None:
        failed.release()
        raise ValueError(f"{value} is no good")

    async with app:
        for value, key in enumerate(keys):
            await topic.publish(value, key=key)
        yield app


@pytest.fixture
def stock(browser: Browser, shop: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tab]:
    """A tab on a dashboard of its own: the keys a, b and c are closed, and still being read."""
    counts = ClosedKeyIndex._counts

    def still_reading(index: ClosedKeyIndex, is_complete: bool) -> KeyCounts:
        return counts(index, False)

    monkeypatch.setattr(ClosedKeyIndex, "_counts", still_reading)
    with (
        shop.entered(closed_keys("abc")) as app,
        serving(Dashboard(app, access="all")) as address,
        browser.new_context(reduced_motion="reduce") as context,
    ):
        watch(context)
        tab = Tab(context, address)
        yield tab
        tab.check()


def test_what_is_ticked_typed_and_focused_stays_while_keys_are_read(stock: Tab) -> None:
    tab, address = stock, "/keys?topic=orders&group=stock"

    def are_listed() -> bool:
        tab.get(address)
        return tab.find("main tbody tr").count() == 3

    tab.until(are_listed, "three keys")
    counting(tab, address)
    row = tab.find("main tbody tr", has_text="1 is no good")
    row.locator("input").check()
    tab.find("#filter").fill("half of a na")
    row.locator("a").focus()
    # Another visitor lets go of the key before it, so that the rows move up.
    first = tab.find("main tbody input").nth(0).get_attribute("value") or ""
    fields: dict[str, str | float | bool] = {"topic": "orders", "group": "stock"}
    fields |= {"letter": first, "confirm": "1"}
    dropped = tab.page.request.post(
        f"{tab.address}/keys/drop", form=fields, headers={"origin": tab.address}
    )
    assert dropped.ok, dropped.text()

    def is_gone() -> bool:
        swapped(tab, 1)
        return tab.find("main tbody tr").count() == 2

    tab.until(is_gone, "two keys")
    swapped(tab, 2)
    expect(row.locator("input")).to_be_checked()
    expect(tab.find("main tbody input:checked")).to_have_count(1)
    expect(row.locator("a")).to_be_focused()
    expect(tab.find("#filter")).to_have_value("half of a na")
    expect(tab.find("[data-tick-all]")).to_be_visible()
    tab.find("#filter").focus()
    tab.page.keyboard.type("me")
    swapped(tab, 2)
    expect(tab.find("#filter")).to_be_focused()
    expect(tab.find("#filter")).to_have_value("half of a name")


def test_what_is_ticked_stays_while_delayed_messages_are_read(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = DelayIndex._counts
    failures: list[StreamsError] = []

    def still_reading(index: DelayIndex, is_complete: bool) -> PendingCounts:
        if failures:
            raise failures[0]
        return counts(index, False)

    monkeypatch.setattr(DelayIndex, "_counts", still_reading)
    counting(tab, "/delayed/show?topic=delays")
    box = tab.find("main tbody input").nth(1)
    box.check()
    tab.find("main tbody a").nth(1).focus()
    swapped(tab, 2)

    failures.append(Unavailable("for a while"))
    expect(tab.find("#outage")).to_be_visible()
    failures.clear()
    expect(tab.find("#outage")).to_be_hidden()
    swapped(tab, 2)
    expect(box).to_be_checked()
    expect(tab.find("main tbody a").nth(1)).to_be_focused()
    failures.append(NotFound("It is gone for good."))
    expect(tab.find("main")).to_contain_text("It is gone for good.")
    expect(tab.find("[data-progress]")).to_have_count(0)
    tab.wrong.clear()


def test_the_focus_stays_while_the_doctor_looks_again(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab.get("/doctor")
    tab.until(lambda: tab.find("main .tiles").count() == 1, "findings")
    result = DoctorRuns.result
    monkeypatch.setattr(DoctorRuns, "result", lambda *a, **b: (result(*a, **b)[0], True))
    counting(tab, "/doctor")
    tab.find("main a", has_text="Check again").focus()
    swapped(tab, 2)
    expect(tab.find("main a", has_text="Check again")).to_be_focused()
    expect(tab.find("#outage")).to_have_count(1)  # which says that the log does not answer
