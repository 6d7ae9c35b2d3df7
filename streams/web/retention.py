"""How long a topic keeps its messages, in the visitor's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streams.web.rendering import size

if TYPE_CHECKING:
    from streams.config import Retention
    from streams.web.page import Page


def retention_text(page: Page, retention: Retention) -> str:
    """A retention as text."""
    bounds: list[str] = []
    if retention.seconds is not None:
        bounds.append(page._("for %(length)s", length=_length(page, retention.seconds)))
    if retention.messages is not None:
        text = page._("about %(number)s messages per partition", number=f"{retention.messages:,}")
        bounds.append(text)
    if retention.bytes is not None:
        bounds.append(page._("about %(size)s per partition", size=size(retention.bytes)))
    if retention.compacted:
        bounds.append(page._("only the last message of each key"))
    return ", ".join(bounds) or page._("forever")


def _length(page: Page, seconds: float) -> str:
    for length, one, many in (
        (86_400, "%(number)s day", "%(number)s days"),
        (3_600, "%(number)s hour", "%(number)s hours"),
        (60, "%(number)s minute", "%(number)s minutes"),
    ):
        if seconds >= length and seconds % length == 0:
            return page.plural(one, many, int(seconds // length))
    return page._("%(number)s seconds", number=f"{seconds:,g}")
