"""Samples the progress of a version of a view: the subject ``view:VERSION:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.errors import NotFound
from streams.eventsourcing.views.inspection import VersionInspector, read_view

if TYPE_CHECKING:
    from streams.log.protocol import Log
    from streams.web.figures import SubjectFigures

TOTALS_AGE = 10.0
"""Seconds of real time after which documents are counted again."""

RATE_TIME = 20.0
"""Seconds of real time over which the rate of folding is measured."""


def view_subject(name: str, version: int) -> str:
    """The sampler's subject of a version."""
    return f"view:{version}:{name}"


def sample_view(log: Log, subject: str, figures: SubjectFigures, now: float) -> None:
    """Sample a version's progress; its series is of the messages that are folded.

    :raises NotFound: there is no such version.
    """
    number, _, name = subject.partition(":")
    view = read_view(log, name)
    known = view.find_version(int(number)) if number.isdecimal() and len(number) < 10 else None
    if known is None:
        raise NotFound(f"view {name!r} has no version {number}")
    inspector = VersionInspector(log, name, view, known)
    progress = inspector.tracker.progress(inspector.partition_count)
    documents, stopped = figures.now.get("documents"), figures.now.get("stopped")
    if now - figures.partitions_at > TOTALS_AGE:
        totals = inspector.tracker.totals()
        documents, stopped = totals.documents, totals.stopped
        figures.partitions_at = now
    rate = left = None
    if progress.folded is not None:
        recent = [each for each in figures.series.points(20) if now - each[0] < RATE_TIME]
        figures.series.add(now, progress.folded)
        if recent and now > recent[0][0]:
            rate = max(0.0, (progress.folded - recent[0][1]) / (now - recent[0][0]))
        if rate and progress.total is not None:
            left = (progress.total - progress.folded) / rate
    figures.now = {
        "folded": progress.folded,
        "total": progress.total,
        "share": progress.share,
        "rate": rate,
        "left": left,
        "documents": documents,
        "stopped": stopped,
        "processes": len(inspector.members()),
    }
