"""A Chromium on this machine: what the dashboard is looked at with.

Debian's ``chromium-headless-shell`` or ``chromium``, or another one of the family on the PATH;
``STREAMS_TEST_CHROMIUM`` names a program elsewhere. It is driven by Playwright, whose own browsers
are neither needed nor fetched.
"""

from __future__ import annotations

import importlib.util
import os
import shutil

from tests.servers.java import Missing

CHROMIUM = "STREAMS_TEST_CHROMIUM"

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """The program.

    :raises Missing: there is none, or nothing to drive it with; says what to do.
    """
    if importlib.util.find_spec("playwright") is None:
        raise Missing("playwright is not installed: pip install playwright")
    named = os.environ.get(CHROMIUM)
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        raise Missing(
            f"{CHROMIUM}={named}: there is no such program"
            if named
            else f"no Chromium: apt-get install chromium-headless-shell, or set {CHROMIUM}"
        )
    return found
