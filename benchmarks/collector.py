"""The garbage collector's threshold: as high as ``streams run`` sets it, in all processes that
measure, also those of hand-written loops and peers.

It uses the standard library alone.
"""

from __future__ import annotations

import gc

GC_THRESHOLD = 20_000
"""New objects before the collector runs (Python's default: 700)."""


def raise_gc_threshold() -> None:
    """Set the threshold in this process, and exclude the objects imported already."""
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    gc.freeze()
