"""Finds an address of every screen, as a visitor does: from the overview, by its links."""

from __future__ import annotations

from collections import deque
from urllib.parse import urljoin, urlsplit

import httpx
from starlette.routing import Match, Route

from streams.web.screens import screens
from tests.web.visiting import Seen

MOST = 400
"""Pages that are asked for, at most."""

EACH = 25
"""Pages of one screen that are looked through for links."""

NOT_LINKED = {"/jobs/{job}"}
"""Screens that an action leads to."""

FOR_SCRIPTS = {"/dead/kinds", "/series"}
"""What pages ask for themselves: no visitor goes there."""


def screen_paths() -> list[str]:
    """All screens that a visitor goes to, by the paths that they are declared with."""
    return [screen.path for screen in screens() if screen.path not in FOR_SCRIPTS]


class Site:
    """What can be reached.

    :param pages: by a screen's declared path, an address that shows it.
    :param files: the paths of what is saved, not shown.
    """

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.files: set[str] = set()


def explore(address: str) -> Site:
    """Follow links from the overview, until each screen was seen or there are no more."""
    routes = [Route(path, lambda request: None, methods=["GET"]) for path in screen_paths()]
    site = Site()
    visits = dict.fromkeys(screen_paths(), 0)
    waiting, met = deque(["/"]), {"/"}
    wanted = set(screen_paths()) - NOT_LINKED
    with httpx.Client(base_url=address, timeout=60) as client:
        while waiting and sum(visits.values()) < MOST and wanted - set(site.pages) - site.files:
            path = waiting.popleft()
            screen = _screen_of(routes, path)
            if screen is None or visits[screen] >= EACH:
                continue
            visits[screen] += 1
            response = client.get(path)
            if response.status_code == 404:  # others on the same log have deleted theirs
                continue
            assert response.status_code < 400, f"{response.status_code} {path}"
            if "html" not in response.headers.get("content-type", ""):
                site.files.add(screen)
                continue
            site.pages.setdefault(screen, path)
            for _, href in Seen(response).links:
                found = urljoin(str(response.url), href)
                parts = urlsplit(found)
                if parts.netloc != urlsplit(address).netloc or "lang=" in parts.query:
                    continue
                inner = parts.path + (f"?{parts.query}" if parts.query else "")
                if inner not in met:
                    met.add(inner)
                    waiting.append(inner)
    return site


def _screen_of(routes: list[Route], path: str) -> str | None:
    scope = {"type": "http", "method": "GET", "path": urlsplit(path).path}
    for route in routes:
        if route.matches(scope)[0] == Match.FULL:
            return str(route.path)
    return None
