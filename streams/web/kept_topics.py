"""Topics that are read continuously while visitors watch, shared by all: the bounds of each kind,
and counts of several within the time of a page."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from streams.errors import NotFound
from streams.inspection.reading_on import CountingReader
from streams.web.group_index import LOOK

C = TypeVar("C")

MAX_SURVEYS = 6
"""How many topics of dead letters have their surveys by error kept."""

MAX_CLOSED_KEYS = 20
"""How many topics of closed keys are read continuously."""

MAX_DELAYS = 50
"""How many delay topics are read continuously."""


class CountingReaders(Protocol[C]):
    """The readers that are kept (:class:`~streams.inspection.reading_on.KeptReaders`)."""

    def get(self, name: str) -> CountingReader[C]:
        """The reader of a topic, which is kept from now on."""
        ...

    def values_by_name(self) -> Mapping[str, CountingReader[C]]:
        """All kept readers, the one that was requested last at the end."""
        ...


def counted(
    names: Sequence[str], readers: CountingReaders[C], *, most: int, seconds: float
) -> dict[str, C | None]:
    """The counts of each topic; None: it was not read yet, as those after the first ``most``
    never are. A topic that is gone is left out.

    Topics are read on, those that waited longest for their turn first: one, and others while there
    is time. For the rest the known counts are returned.

    :param seconds: seconds of real time for which one of them is waited for.
    """
    deadline = time.monotonic() + LOOK
    kept = readers.values_by_name()
    asked = {name: turn for turn, name in enumerate(kept)}
    turns = sorted(names[:most], key=lambda name: asked.get(name, -1))
    found: dict[str, C | None] = dict.fromkeys(names)
    for name in turns:
        if name == turns[0] or time.monotonic() < deadline:
            try:
                found[name] = readers.get(name).counts(seconds)
            except NotFound:
                del found[name]
        elif name in kept:
            found[name] = kept[name].known()
    return found
