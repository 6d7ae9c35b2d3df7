"""Parts of a page that are asked for again while they are being found out: only while somebody
looks, and without taking away what that person does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
from playwright.sync_api import Browser, expect

from streams import DeadLetters, Retry, Streams
from streams.errors import NotFound, StreamsError, Unavailable
from streams.inspection.closed_keys import ClosedKeyIndex, KeyCounts
from streams.inspection.delayed import DelayIndex, PendingCounts
from streams.web import Dashboard
from streams.web.doctor_runs import DoctorRuns
from streams.web.jobs import Report
from streams.web.page import Done
from tests.conformance.stage import PATIENCE, QUICK
from tests.web.browser.running import Running
from tests.web.browser.tab import Tab, watch
from tests.web.browser.test_live import TURN
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


def counting(tab: Tab, path: str) -> None:
    """Go to a page that counts, with a clock that can be turned on."""
    tab.page.clock.install()
    tab.get(path)
    tab.script(COUNT)


def swapped(tab: Tab, times: int) -> None:
    """Wait until so many answers were put into the page from now on."""
    wanted = tab.script("window.swaps") + times

    def is_so() -> bool:
        tab.page.clock.run_for(1_000)
        return bool(tab.script("window.swaps") >= wanted)

    tab.until(is_so, f"{times} swaps")


@contextmanager
def lasting_job(shop: Running) -> Iterator[str]:
    """The address of a job that runs meanwhile."""
    over = threading.Event()

    def work(report: Report) -> Done:
        report(1, 2)
        assert over.wait(PATIENCE)
        return Done("It is over.")

    job = shop.dashboard.jobs.start(
        work,
        action="retry",
        who="",
        title="A long one",
        back=("/", "Back"),
        on_end=lambda job: None,
    )
    try:
        yield f"/jobs/{job.id}"
    finally:
        over.set()


def test_nothing_is_asked_for_in_the_background_or_while_updates_are_paused(
    tab: Tab, shop: Running
) -> None:
    with lasting_job(shop) as path:
        counting(tab, path)
        swapped(tab, 1)
        for stop, go_on in (
            (lambda: tab.script(TURN, True), lambda: tab.script(TURN, False)),
            (tab.find("#pause").click, tab.find("#pause").click),
        ):
            stop()
            asked = tab.script("window.asked")
            tab.page.clock.run_for(20_000)
            assert tab.script("window.asked") == asked
            go_on()
            swapped(tab, 2)
    expect(tab.find("#job")).to_contain_text("It is over.")
    tab.page.clock.run_for(2_000)
    asked = tab.script("window.asked")
    tab.page.clock.run_for(20_000)
    assert tab.script("window.asked") == asked


@asynccontextmanager
async def closing(keys: str) -> AsyncIterator[Streams]:
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
    entered = closing("abc")
    app = shop.call(entered.__aenter__())
    try:
        with (
            serving(Dashboard(app, access="all")) as address,
            browser.new_context(reduced_motion="reduce") as context,
        ):
            watch(context)
            tab = Tab(context, address)
            yield tab
            tab.check()
    finally:
        shop.call(entered.__aexit__(None, None, None))


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

    def is_answered(status: int) -> bool:
        tab.page.clock.run_for(1_000)
        return any(each.startswith(f"{status} ") for each in tab.wrong)

    failures.append(Unavailable("for a while"))
    tab.until(lambda: is_answered(503), "out of reach")
    failures.clear()
    swapped(tab, 2)
    expect(box).to_be_checked()
    expect(tab.find("main tbody a").nth(1)).to_be_focused()
    failures.append(NotFound("It is gone for good."))
    tab.until(lambda: is_answered(404), "gone")
    expect(tab.find("main")).to_contain_text("It is gone for good.")
    expect(tab.find("[data-again]")).to_have_count(0)
    tab.wrong.clear()


def test_the_focus_stays_while_the_doctor_looks_again(
    tab: Tab, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab.get("/doctor")
    tab.until(lambda: tab.find("main .tiles").count() == 1, "findings")
    result = DoctorRuns.result
    monkeypatch.setattr(DoctorRuns, "result", lambda *a, **b: (result(*a, **b)[0], True))
    counting(tab, "/doctor")
    tab.find("main a", has_text="Look again").focus()
    swapped(tab, 2)
    expect(tab.find("main a", has_text="Look again")).to_be_focused()
    expect(tab.find("#outage")).to_have_count(1)  # which says that the log does not answer
