"""An app inside an ASGI server (uvicorn with FastAPI, Starlette, ...): its health, and its end.

Such a server goes on when a processor dies: it does not look at its application's lifespan between
startup and shutdown. What restarts the service has to learn of it in another way: the process ends
(:func:`exit_on_failure`), or a health check fails (:class:`HealthEndpoint`). Nothing here needs a
web framework.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from streams.app import Streams
from streams.errors import ConfigError
from streams.text import get_logger

logger = get_logger("streams")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@asynccontextmanager
async def exit_on_failure(app: Streams) -> AsyncIterator[Streams]:
    """Enter an app in a server's lifespan; when one of its processors dies, end the process.

    It is ``async with app`` for a server that is somebody else's::

        @asynccontextmanager
        async def lifespan(api):
            async with exit_on_failure(events):
                yield

    A processor that dies stops the server as Ctrl-C does: it takes no new requests, finishes those
    it is answering, and ends the lifespan in order, with it the other processors. Then
    :class:`~streams.ProcessorDied` is raised here, and the process ends with status 1 instead of
    the server's own, so that whatever watches over it starts it again.

    The server must run in the main thread and stop on SIGINT, as uvicorn does.

    :raises ProcessorDied: at the end, if a processor died.
    """
    if not isinstance(app, Streams):
        raise ConfigError(f"exit_on_failure({app!r}): a Streams app is needed")
    await app.enter(cancel_body=False)
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(app.__aexit__)
            watching = asyncio.create_task(_interrupt_on_failure(app), name="streams-failure")
            stack.callback(watching.cancel)
            yield app
    finally:
        lifespan = asyncio.current_task()
        if app.failure is not None and lifespan is not None:
            lifespan.add_done_callback(_exit_soon)


async def _interrupt_on_failure(app: Streams) -> None:
    failure = await app.failed()
    logger.critical("%s; the server is stopped", failure)
    # Not SIGTERM: servers raise the signal that stopped them once more when they are done. SIGTERM
    # would then end the process, with a status that systemd takes for success.
    signal.raise_signal(signal.SIGINT)


def _exit_soon(lifespan: asyncio.Task[Any]) -> None:
    """The server's task for the lifespan is over, and whatever else was opened in it is closed.

    The server catches what the lifespan raises, SystemExit too, and would end with status 0. What
    a callback of the loop raises nobody catches. It is raised one iteration of the loop later, not
    in this callback: uvicorn's main task wakes up in this iteration and stops the loop in the next.
    """
    lifespan.get_loop().call_soon(_exit)


def _exit() -> None:
    raise SystemExit(1)


class HealthEndpoint:
    """An app's health as an ASGI application: 200 where all is well, 503 where not.

    It may be a route or be mounted, in any framework, or be served alone::

        api = FastAPI(lifespan=lifespan, routes=[Route("/healthz", HealthEndpoint(events))])
        api.mount("/health", HealthEndpoint(events))  # /health/livez and /health/readyz: the probes

    The last part of the path says what is asked:

    * ``livez``: no processor died, so a restart would not help;
    * ``readyz``: messages are handled: the app is entered and not stopping, its processors run, and
      the log answers;
    * anything else, and a route: :attr:`streams.Health.ok`, which is both, and that nothing needs a
      person: a document that has stopped, a handler that is overdue. It is no probe: no restart
      mends that.

    The answer is JSON that says for each processor how it is, and of an error its type alone: its
    text, which may hold what should not leave the process, is in the log and ``app.health()``.

    :param app: entered or not.
    """

    def __init__(self, app: Streams) -> None:
        if not isinstance(app, Streams):
            raise ConfigError(f"HealthEndpoint({app!r}): a Streams app is needed")
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or take part in a server's lifespan."""
        if scope["type"] == "lifespan":
            await _acknowledge_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._respond(scope, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _respond(self, scope: Scope, send: Send) -> None:
        method, headers = scope["method"], [(b"cache-control", b"no-store")]
        if method not in ("GET", "HEAD"):
            status, body = 405, b'{"ok": false, "error": "only GET and HEAD"}\n'
            headers.append((b"allow", b"GET, HEAD"))
        else:
            status, body = self._health_response(scope["path"].rstrip("/").rpartition("/")[2])
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = b"" if method == "HEAD" else body
        await send({"type": "http.response.body", "body": body})

    def _health_response(self, probe: str) -> tuple[int, bytes]:
        health = self._app.health()
        ok = {"livez": health.live, "readyz": health.ready}.get(probe, health.ok)
        return 200 if ok else 503, json.dumps(health.summary(ok=ok)).encode() + b"\n"


async def _acknowledge_lifespan(receive: Receive, send: Send) -> None:
    """There is nothing to open: the app's life is somebody else's."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
