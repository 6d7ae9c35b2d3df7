"""Live figures for browsers: server-sent events, one stream per browser.

A stream ends after :data:`STREAM_SECONDS`, and the browser opens the next one at once. A server
that is shutting down waits for its open responses: a longer one would delay it, and the app that
the dashboard is mounted beside. The visitor's permissions are checked again with each stream.

A browser's tabs share a stream (``static/live-worker.js``), since over HTTP/1.1 it has six
connections to a site and no more; tabs in the background request nothing. Figures are made once for
each subject and sample, however many visitors watch; the progress of long work is among them
(:mod:`streams.web.progress`). Messages that arrive in a topic come with the same stream, once for
all tabs of the browser that watch it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from streams.errors import Fatal, InvalidValue, NotRunning, StreamsError, Unavailable
from streams.text import printable_text
from streams.web.arrivals import Arrivals
from streams.web.forms import parse_fields

if TYPE_CHECKING:
    from streams.web.access import Access
    from streams.web.dashboard_state import DashboardState
    from streams.web.forms import Fields
    from streams.web.page import Page

PageOf = Callable[["Request", "Access", "Fields"], "Page"]
"""Makes a visit from a request, the visitor's permissions and the fields of the address."""

MAX_STREAMS = 500
"""The most streams at the same time."""

MAX_TABS = 8
"""The most tabs in the foreground whose figures, and topics whose messages, one stream carries."""

MAX_TOKENS = 16
"""The most tokens of one stream: of a tab's page, and of its parts."""

TAIL_LOOK = 0.5
"""Seconds of real time between two polls for messages."""

STREAM_SECONDS = 5.0
"""Seconds of real time after which a browser is asked to reconnect."""

SSE_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx must not buffer it
}


def live_response(
    dashboard: DashboardState, page_of: PageOf, request: Request, access: Access
) -> Response:
    """The stream of the subjects whose tokens the address has (``?watch=``, repeated: for each tab
    its tokens, separated by commas), and of the messages in the topics that it names
    (``?arriving=``, see :mod:`streams.web.arrivals`)."""
    arriving = request.query_params.getlist("arriving")[:MAX_TABS]
    if arriving and not access.payloads:
        return PlainTextResponse("You may not see what is in messages.\n", 403)
    try:
        tails = [_arrivals(page_of, request, access, each) for each in arriving]
    except InvalidValue as error:
        return PlainTextResponse(f"{error}\n", 400)
    if (refused := _refused(dashboard)) is not None:
        return refused
    if request.method == "HEAD":  # it wants no stream
        return Response(media_type="text/event-stream", headers=SSE_HEADERS)
    tokens = ",".join(request.query_params.getlist("watch")[:MAX_TABS]).split(",")[:MAX_TOKENS]
    subjects = frozenset(
        each
        for token in tokens
        for each in dashboard.sampler.subjects(token)
        if _may_see(dashboard, access, each)
    )
    return StreamingResponse(
        _events(dashboard, subjects, tails), media_type="text/event-stream", headers=SSE_HEADERS
    )


def _may_see(dashboard: DashboardState, access: Access, subject: str) -> bool:
    """Whether a visitor may watch a subject: jobs only if he may do their actions himself."""
    kind, _, name = subject.partition(":")
    job = dashboard.jobs.find(name) if kind == "job" else None
    return job is None or access.may(job.action)


def _arrivals(page_of: PageOf, request: Request, access: Access, tail: str) -> Arrivals:
    """The arrivals that a tab asks for.

    :raises InvalidValue: the fields cannot be read.
    """
    encoded = tail.encode("utf-8", "surrogateescape")
    asked = Request({**request.scope, "query_string": encoded})
    return Arrivals(tail, page_of(asked, access, parse_fields(encoded)))


def _refused(dashboard: DashboardState) -> Response | None:
    """The response if no further stream may begin."""
    if dashboard.is_closed:
        return PlainTextResponse("the dashboard is closed\n", 503)
    if dashboard.streams_open < MAX_STREAMS:
        return None
    return PlainTextResponse("too many open browser tabs\n", 503, {"retry-after": "30"})


async def _events(
    dashboard: DashboardState, subjects: frozenset[str], tails: list[Arrivals]
) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    latest: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
    is_over = False

    def put(message: bytes) -> None:
        if latest.full():  # a slow browser gets the newest figures, and no backlog
            latest.get_nowait()
        latest.put_nowait(message)

    def told(found: Mapping[str, Mapping[str, float | int | None]], is_reachable: bool) -> None:
        soon(put, _event("figures" if is_reachable else "outage", found))

    def soon(call: Callable[..., None], *args: bytes) -> None:
        try:
            loop.call_soon_threadsafe(call, *args)
        except RuntimeError:
            pass  # the server ended just now

    def finish() -> None:
        nonlocal is_over
        is_over = True
        put(b"")

    with dashboard.streaming(lambda: soon(finish)), dashboard.sampler.watch(subjects, told):
        yield b"retry: 3000\n\n"
        look_at = time.monotonic()
        until = look_at + STREAM_SECONDS
        while not is_over and (now := time.monotonic()) < until:
            try:
                async with asyncio.timeout(
                    max(0.0, (min(until, look_at) if tails else until) - now)
                ):
                    message = await latest.get()
            except TimeoutError:
                message = b""
            if tails and not is_over and time.monotonic() >= look_at:
                for tail in list(tails):
                    arrived = await _poll_arrivals(dashboard, tails, tail)
                    if arrived is None:
                        break
                    message += arrived
                look_at = time.monotonic() + TAIL_LOOK
            if message:
                yield message
    yield _event("again", {})


async def _poll_arrivals(
    dashboard: DashboardState, tails: list[Arrivals], tail: Arrivals
) -> bytes | None:
    """The new messages for a tab; None: the log cannot be reached. A tab with an invalid tail gets
    the error, and is left out from then on."""
    try:
        found = await dashboard.source.run(tail.look)
    except NotRunning:  # the dashboard was closed
        tails.remove(tail)
        return b""
    except (Unavailable, Fatal):
        return None
    except StreamsError as error:
        tails.remove(tail)
        return _event("arriving", {"of": tail.name, "problem": printable_text(str(error))})
    if found is None:
        return b""
    return _event("arriving", {"of": tail.name, **found._asdict()})


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
