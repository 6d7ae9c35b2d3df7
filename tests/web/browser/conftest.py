"""One browser and one shop for all tests of this folder: they run on one worker, one after the
other, and are plain functions, as Playwright keeps a loop of its own in their thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.servers.browser import chromium
from tests.web.browser.running import Running, running
from tests.web.browser.tab import Tab, watch


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    program = chromium()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="package")
def shop() -> Iterator[Running]:
    with running() as found:
        yield found


@pytest.fixture
def tab(browser: Browser, shop: Running) -> Iterator[Tab]:
    """A tab on the shop's dashboard; whatever went wrong in it fails the test."""
    with browser.new_context(reduced_motion="reduce") as context:
        watch(context)
        opened = Tab(context, shop.address)
        yield opened
        opened.check()
