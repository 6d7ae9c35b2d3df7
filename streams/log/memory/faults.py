"""Injects errors and delays into a memory log, for tests."""

from __future__ import annotations

from collections.abc import Callable

Fault = Callable[[str, str], None]
"""Called as ``fault(point, name)``: may block, or raise what the log should raise there."""

POINTS = (
    *("append", "append.done", "commit.before", "commit.after"),
    *("outputs.before", "outputs.after", "poll", "read"),
)
"""The points at which a fault can be injected: before and after an append, a commit, or a write of
outputs with a commit; and before a poll or a read. ``name`` is the topic's name; for commits,
outputs and polls it is the group's."""


class FaultPoints:
    """The fault hook of one opener's handle."""

    def __init__(self) -> None:
        self.hook: Fault | None = None

    def strike(self, point: str, name: str) -> None:
        """Call the hook, if there is one (no lock is held)."""
        if self.hook is not None:
            self.hook(point, name)
