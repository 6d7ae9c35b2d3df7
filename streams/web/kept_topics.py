"""Topics that are read on while somebody looks, for all visitors alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from streams.errors import NotFound
from streams.inspection.reading_on import BackgroundReader, KeptReaders
from streams.web.page import LOOK

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.web.dashboard import Dashboard

R = TypeVar("R", bound=BackgroundReader)
S = TypeVar("S")
C = TypeVar("C")


def kept_reader(
    dashboard: Dashboard, kind: Callable[[str, Callable[[], Log]], R], name: str, *, most: int
) -> R:
    """The reader of this kind of a topic.

    :param most: topics of that kind that are read on, at most.
    """
    open_log = dashboard.source.log

    def make() -> KeptReaders[R]:
        return KeptReaders(lambda topic: kind(topic, open_log), most)

    return dashboard.shared(kind, float("inf"), make).of(name)


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
