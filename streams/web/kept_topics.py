"""Topics that are read on while somebody looks, for all visitors alike: how many of each kind, and
counts of several within the time of a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from streams.errors import NotFound
from streams.web.page import LOOK

S = TypeVar("S")
C = TypeVar("C")

MAX_SURVEYS = 6
"""Topics of dead letters whose surveys by error are kept."""

MAX_CLOSED_KEYS = 20
"""Topics of closed keys that are read on."""

MAX_DELAYS = 50
"""Delay topics that are read on."""


def counted(
    sources: Iterable[S], count: Callable[[S], C], *, most: int
) -> list[tuple[S, C | None]]:
    """Each source with what is counted of it: of the first ``most``, while there is time for it;
    of the others None. One whose topic is gone is left out."""
    deadline = time.monotonic() + LOOK
    found: list[tuple[S, C | None]] = []
    for source in sources:
        counts = None
        if len(found) < most and time.monotonic() < deadline:
            try:
                counts = count(source)
            except NotFound:
                continue
        found.append((source, counts))
    return found
