"""How often Python looks for unreachable cycles: in all processes that measure, ours, loops by hand
and peers alike, as seldom as ``streams run`` has it.

It knows the standard library alone.
"""

from __future__ import annotations

import gc

GC_THRESHOLD = 20_000
"""Objects that may come into being until it looks (Python's own: 700)."""


def raise_gc_threshold() -> None:
    """From here on, in this process; what is imported is not looked at any more."""
    gc.set_threshold(GC_THRESHOLD, *gc.get_threshold()[1:])
    gc.freeze()
