"""One browser and one shop for all tests of this folder: they run on one worker, one after the
other, and are plain functions, as Playwright keeps a loop of its own in their thread."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.servers.browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.web.browser.running import Running
    from tests.web.browser.tab import Tab

# There is none for PyPy, and not at once for a new Python.
collect_ignore_glob = [] if importlib.util.find_spec("playwright") else ["test_*.py"]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = chromium()
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@pytest.fixture(scope="package")
def shop() -> Iterator[Running]:
    from tests.web.browser.running import running

    with running() as found:
        yield found


@pytest.fixture
def tab(browser: Browser, shop: Running) -> Iterator[Tab]:
    """A tab on the shop's dashboard; whatever went wrong in it fails the test."""
    from tests.web.browser.tab import Tab, watch

    with browser.new_context(reduced_motion="reduce") as context:
        watch(context)
        opened = Tab(context, shop.address)
        yield opened
        opened.check()
