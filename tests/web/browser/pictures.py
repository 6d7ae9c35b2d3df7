"""The pictures of the documentation: ``python -m tests.web.browser.pictures [FOLDER]``.

They are taken of :mod:`tests.web.showcase` with a Chromium on this machine, in the light colours,
and written to ``docs/pictures``, where they are committed. A font with Japanese is needed for the
last one (Debian: ``fonts-noto-cjk``).
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from playwright.sync_api import expect, sync_playwright

from streams.web.sampler import Sampler
from tests.servers.browser import chromium
from tests.web.browser.running import running
from tests.web.browser.tab import Tab, watch

FOLDER = Path(__file__).resolve().parents[3] / "docs" / "pictures"

WIDTH, HEIGHT = 1080, 680


class Picture(NamedTuple):
    """A page as it is shown in the documentation.

    :param text: what must be on it.
    :param links: texts of links that are followed from ``path``, one after the other.
    :param rounds: how often figures are awaited before it is taken, so that there is a past.
    """

    name: str
    path: str
    text: str
    links: tuple[str, ...] = ()
    rounds: int = 0
    height: int = HEIGHT


PICTURES = (
    Picture("overview", "/", "orders.invoicing.dead", rounds=4, height=960),
    Picture("search", "/topics/orders/messages?path=customer&path_value=佐藤", "Searched"),
    Picture("group", "/groups/show?group=shipping", "Waits for", rounds=2),
    Picture("dead-letters", "/dead/show?name=orders.billing.dead", "the bank does not answer"),
    Picture("closed-keys", "/keys?topic=orders&group=stock", "chidi"),
    Picture("saga", "/sagas", "saga-9", ("saga-9",)),
    Picture("aggregate", "/aggregates", "accounts", ("accounts", "hanna")),
    Picture("publish", "/publish?topic=orders", "customer"),
    Picture("japanese", "/?lang=ja", "orders.invoicing.dead", rounds=2),
)


def take(folder: Path) -> None:
    """Take all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    socket.gethostname = lambda: "shop-1"  # what members are called, on any machine
    with tempfile.TemporaryDirectory() as scratch:
        home = Path.cwd()
        os.chdir(scratch)  # the log's name on every page is short, and no folder of this machine
        try:
            with (
                running("sqlite:///shop.db", environment="demo") as shop,
                sync_playwright() as play,
            ):
                browser = play.chromium.launch(
                    executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
                )
                context = browser.new_context(
                    viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce"
                )
                watch(context)
                tab = Tab(context, shop.address)
                for picture in PICTURES:
                    _take(tab, shop.dashboard.sampler, picture, folder)
                tab.check()
                context.close()
                browser.close()
        finally:
            os.chdir(home)


def _take(tab: Tab, sampler: Sampler, picture: Picture, folder: Path) -> None:
    tab.page.set_viewport_size({"width": WIDTH, "height": picture.height})

    def is_there() -> bool:
        tab.get(picture.path)
        for link in picture.links:
            tab.find("main a", has_text=link).first.click()
        return picture.text in (tab.find("main").text_content() or "")

    tab.until(is_there, f"{picture.text} on {picture.path}")
    for _ in range(picture.rounds):
        wanted = sampler.rounds + 1
        tab.until(lambda: sampler.rounds >= wanted, "a round")  # noqa: B023
    if picture.rounds:
        tab.page.reload()  # with the past that there is now
    if tab.find(".plot").count():
        expect(tab.find(".plot canvas").first).to_be_visible()
    tab.page.mouse.move(0, 0)
    path = folder / f"dashboard-{picture.name}.png"
    tab.page.screenshot(path=path, animations="disabled")
    sys.stdout.write(f"{path.name}: {path.stat().st_size / 1024:.0f} KB\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.web.browser.pictures",
        description="Take the pictures of the dashboard that the documentation shows.",
    )
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=FOLDER,
        help="where they go; by default the documentation's",
    )
    take(parser.parse_args().folder.resolve())
