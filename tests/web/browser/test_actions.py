"""Every action in a real Chromium; behind ``make faults``, as it takes a while on each log."""

from __future__ import annotations

from uuid import uuid4

import pytest
from playwright.sync_api import Browser

from streams.web.screens import actions
from tests.web.browser.acting import ACTS, ELSEWHERE, perform
from tests.web.browser.running import running
from tests.web.browser.tab import Tab, watch

pytestmark = pytest.mark.xdist_group("browser")


def test_no_action_is_left_out() -> None:
    known = {act.action for act in ACTS} | ELSEWHERE
    assert not {each.path for each in actions()} - known


@pytest.mark.faults
@pytest.mark.parametrize("url", ["", "redis_url", "kafka_url"], ids=["sqlite", "redis", "kafka"])
def test_every_action_is_done_and_says_so(
    browser: Browser, request: pytest.FixtureRequest, url: str
) -> None:
    address = request.getfixturevalue(url) if url else ""
    suffix = f"-{uuid4().hex[:6]}" if url else ""
    with (
        running(address, suffix) as shop,
        browser.new_context(reduced_motion="reduce") as context,
    ):
        watch(context)
        tab = Tab(context, shop.address)
        for act in ACTS:
            perform(tab, act, suffix)
