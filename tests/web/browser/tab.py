"""A tab of the browser, which notes everything that goes wrong on its pages."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from playwright.sync_api import (
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    Response,
    expect,
)

from tests.conformance.stage import PATIENCE

_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


def watch(context: BrowserContext) -> None:
    """Have a context's pages say what the security policy refused."""
    context.add_init_script(_REPORT_VIOLATIONS)
    context.set_default_timeout(PATIENCE * 1000)
    expect.set_options(timeout=PATIENCE * 1000)  # the context's is not that of assertions


class Tab:
    """A tab.

    :param address: where the dashboard is.
    """

    def __init__(self, context: BrowserContext, address: str) -> None:
        self.page: Page = context.new_page()
        self.address = address
        self.wrong: list[str] = []
        """Console errors, failed requests, refused scripts, exceptions."""
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.wrong.append(f"exception: {error}"))
        self.page.on("requestfailed", self._on_failure)
        self.page.on("response", self._on_response)

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(f"{message.type} on {self.page.url}: {message.text}")

    def _on_failure(self, request: Request) -> None:
        # A stream or a picture that is being asked for ends with the page that asked.
        if request.failure != "net::ERR_ABORTED":
            self.wrong.append(f"{request.method} {request.url}: {request.failure}")

    def _on_response(self, response: Response) -> None:
        if response.status >= 400:
            self.wrong.append(f"{response.status} {response.url}")

    def get(self, path: str = "/") -> None:
        """Go to a page."""
        self.page.goto(self.address + path)

    def find(self, selector: str, **options: Any) -> Locator:
        """What a selector finds."""
        return self.page.locator(selector, **options)

    def script(self, source: str, argument: Any = None) -> Any:
        """What JavaScript comes to."""
        return self.page.evaluate(source, argument)

    def until(self, holds: Callable[[], object], what: str = "") -> None:
        """Wait for something that the browser's own waiting does not know of."""
        began = time.monotonic()
        while not holds():
            assert time.monotonic() - began < PATIENCE, f"after {PATIENCE:g} s not {what or holds}"
            self.page.wait_for_timeout(20)

    def check(self) -> None:
        """Nothing went wrong."""
        wrong, self.wrong = self.wrong, []
        assert not wrong, "\n".join(wrong)

    def is_wider_than_its_window(self) -> bool:
        """One has to scroll sideways."""
        return bool(
            self.script(
                "document.documentElement.scrollWidth > document.documentElement.clientWidth"
            )
        )
