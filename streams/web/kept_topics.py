"""Topics that are read on while somebody looks, for all visitors alike: how many of each kind, and
counts of several within the time of a page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from streams.errors import NotFound
from streams.inspection.reading_on import CountingReader
from streams.web.group_index import LOOK

C = TypeVar("C")

MAX_SURVEYS = 6
"""Topics of dead letters whose surveys by error are kept."""

MAX_CLOSED_KEYS = 20
"""Topics of closed keys that are read on."""

MAX_DELAYS = 50
"""Delay topics that are read on."""


class CountingReaders(Protocol[C]):
    """Those that are kept (:class:`~streams.inspection.reading_on.KeptReaders`)."""

    def of(self, name: str) -> CountingReader[C]:
        """That of a topic, which is kept from now on."""
        ...

    def all(self) -> Mapping[str, CountingReader[C]]:
        """Those that are kept, the one that was asked for last at the end."""
        ...


def counted(
    names: Sequence[str], readers: CountingReaders[C], *, most: int, seconds: float
) -> dict[str, C | None]:
    """What is counted of each topic; None: it was not read yet, as those behind the first ``most``
    never are. A topic that is gone is left out.

    Topics are read on, those that waited longest for their turn first: one, and others while there
    is time. Of the rest it is said what is known.

    :param seconds: real seconds that one of them is waited for.
    """
    deadline = time.monotonic() + LOOK
    kept = readers.all()
    asked = {name: turn for turn, name in enumerate(kept)}
    turns = sorted(names[:most], key=lambda name: asked.get(name, -1))
    found: dict[str, C | None] = dict.fromkeys(names)
    for name in turns:
        if name == turns[0] or time.monotonic() < deadline:
            try:
                found[name] = readers.of(name).counts(seconds)
            except NotFound:
                del found[name]
        elif name in kept:
            found[name] = kept[name].known()
    return found
