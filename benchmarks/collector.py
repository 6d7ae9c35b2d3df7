"""The garbage collector's threshold: as high as ``streams run`` sets it, in all processes that
measure, those of hand-written loops and peers, too.

It knows the standard library alone.
"""

from __future__ import annotations

import gc

GC_THRESHOLD = 20_000
"""New objects until the collector runs (Python's default: 700)."""


def raise_gc_threshold() -> None:
    """Set it in this process, and exclude what is imported already."""
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    gc.freeze()
