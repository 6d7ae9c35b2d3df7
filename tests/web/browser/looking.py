"""What holds on every screen: nothing fails, nothing is refused, it fits a phone, and axe-core
finds no violation in either colour scheme."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from playwright.sync_api import ViewportSize

from tests.web.browser.tab import Tab

AXE = Path(__file__).parent / "vendor" / "axe.min.js"

WIDE: ViewportSize = {"width": 1280, "height": 800}
PHONE: ViewportSize = {"width": 360, "height": 740}


@cache
def _axe() -> str:
    return AXE.read_text(encoding="utf-8")


def violations(tab: Tab, *rules: str) -> list[str]:
    """What axe-core finds on the page, each in a line.

    :param rules: those to be checked alone; all, if none is given.
    """
    if not tab.script("'axe' in window"):
        tab.script(_axe())
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = list(rules)
    found = tab.script("(options) => axe.run(options)", options)
    return [
        f"{violation['id']}: {violation['help']}: {node['html'][:200]}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def look_at(tab: Tab, path: str) -> None:
    """See that a page is as every page is to be."""
    tab.page.set_viewport_size(WIDE)
    tab.get(path)
    look_here(tab)
    tab.check()


def look_here(tab: Tab) -> None:
    """See that the page that is shown is as every page is to be, whatever led there."""
    what = tab.page.url.removeprefix(tab.address)
    tab.page.set_viewport_size(WIDE)
    tab.page.emulate_media(color_scheme="light")
    assert not (found := violations(tab)), "\n".join([f"{what}, light:", *found])
    tab.page.emulate_media(color_scheme="dark")  # other colours, nothing else
    found = violations(tab, "color-contrast", "link-in-text-block")
    assert not found, "\n".join([f"{what}, dark:", *found])
    tab.page.set_viewport_size(PHONE)
    # Charts are made narrower once they are told.
    tab.until(lambda: not tab.is_wider_than_its_window(), f"{what} without scrolling sideways")
    tab.page.set_viewport_size(WIDE)
