"""Figures as they change, to browsers: server-sent events, one stream a browser.

A browser's tabs share a stream (``static/live-worker.js``), since over HTTP/1.1 it has six
connections to a site and no more; tabs in the background ask for nothing. What is sent is made once
for each subject and sample, however many look.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING

from starlette.responses import PlainTextResponse, Response, StreamingResponse

if TYPE_CHECKING:
    from starlette.requests import Request

    from streams.web.dashboard import Dashboard

MAX_STREAMS = 500
"""Streams at the same time, at most: figures, and messages that arrive."""

MAX_TABS = 8
"""Tokens of one stream, at most: one for each tab in the foreground."""

HEARTBEAT = 15.0
"""Seconds of silence after which a comment is sent, so that nothing between closes the stream."""

SSE_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx passes on what it has
}


def live_response(dashboard: Dashboard, request: Request) -> Response:
    """The stream of the subjects whose tokens the address has (``?watch=``, repeated)."""
    if (refused := too_many_streams(dashboard)) is not None:
        return refused
    if request.method == "HEAD":  # which asks for no stream
        return Response(media_type="text/event-stream", headers=SSE_HEADERS)
    tokens = request.query_params.getlist("watch")[:MAX_TABS]
    subjects = frozenset(each for token in tokens for each in dashboard.sampler.subjects(token))
    return StreamingResponse(
        _events(dashboard, subjects), media_type="text/event-stream", headers=SSE_HEADERS
    )


def too_many_streams(dashboard: Dashboard) -> Response | None:
    """What is answered where no further stream may begin."""
    if dashboard.streams_open < MAX_STREAMS:
        return None
    return PlainTextResponse("too many browsers look\n", 503, {"retry-after": "30"})


async def _events(dashboard: Dashboard, subjects: frozenset[str]) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    latest: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)

    def put(message: bytes) -> None:
        if latest.full():  # a browser that is slow gets the newest, and no backlog
            latest.get_nowait()
        latest.put_nowait(message)

    def told(found: Mapping[str, Mapping[str, float | int | None]] | None) -> None:
        message = _message(found)
        try:
            loop.call_soon_threadsafe(put, message)
        except RuntimeError:
            pass  # the server ended just now

    with dashboard.streaming(), dashboard.sampler.watch(subjects, told):
        yield b"retry: 3000\n\n"
        while True:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    message = await latest.get()
            except TimeoutError:
                message = b": still here\n\n"
            yield message


def _message(found: Mapping[str, Mapping[str, float | int | None]] | None) -> bytes:
    if found is None:
        return b"event: outage\ndata: {}\n\n"
    return b"event: figures\ndata: " + json.dumps(found, separators=(",", ":")).encode() + b"\n\n"
