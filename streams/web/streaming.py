"""Pages that are sent while they are made: the visitor sees what a search has found so far, without
any script."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from streams.web.rendering import environment

if TYPE_CHECKING:
    from streams.web.log_source import LogLease
    from streams.web.page import Page

FLUSH = "<!-- -->"
"""Written by a template to send everything before it at once."""


def stream_page(page: Page, template: str, **context: Any) -> StreamingResponse:
    """A page that is sent in pieces, which end at :data:`FLUSH` in its template."""
    found = environment(page.language).get_template(template)
    pieces = found.generate(page.context(**context))
    return StreamingResponse(
        _send(page, pieces, page.dashboard.source.keep()),
        media_type="text/html",
        headers={"cache-control": "no-store", "vary": "accept-language", "x-accel-buffering": "no"},
    )


async def _send(page: Page, pieces: Iterator[str], lease: LogLease) -> AsyncIterator[str]:
    source = page.dashboard.source
    while True:
        part = await source.run(lambda: _until_flush(pieces), lease)
        if not part:
            return
        yield part


def _until_flush(pieces: Iterator[str]) -> str:
    found: list[str] = []
    for piece in pieces:
        found.append(piece)
        if FLUSH in piece:
            break
    return "".join(found)
