"""An app inside an ASGI server (uvicorn with FastAPI, Starlette, ...): its health, and its end.

Such a server goes on when a processor dies: it does not look at its application's lifespan between
startup and shutdown. So whoever is to restart the service must be told in another way, by the
process's end (:func:`exit_on_failure`) or by a health check (:class:`HealthEndpoint`). Nothing here
needs a web framework.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from streams.app import Streams
from streams.errors import ConfigError

logger = logging.getLogger("streams")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@asynccontextmanager
async def exit_on_failure(app: Streams, status: int = 1) -> AsyncIterator[Streams]:
    """Enter an app in a server's lifespan; when one of its processors dies, end the process.

    It is ``async with app`` for a server that is somebody else's::

        @asynccontextmanager
        async def lifespan(api):
            async with exit_on_failure(events):
                yield

    A processor that dies stops the server as Ctrl-C does: no new requests, those that are being
    answered finish, and the lifespan ends in order, the other processors with it. Then
    :class:`~streams.ProcessorDied` is raised here, and the process ends with ``status`` instead of
    the server's own, so that whatever watches over it starts it again.

    The server must run in the main thread and stop on SIGINT, as uvicorn and most others do.

    :param status: the process's exit status, 1 to 255.
    :raises ProcessorDied: at the end, if a processor died.
    """
    if not isinstance(app, Streams):
        raise ConfigError(f"exit_on_failure({app!r}): a Streams app is needed")
    if not isinstance(status, int) or not 1 <= status <= 255:
        raise ConfigError(f"exit_on_failure(status={status!r}): a whole number from 1 to 255")
    await app._enter(process=True, cancel_body=False)
    try:
        async with AsyncExitStack() as stack:
            stack.push_async_exit(app.__aexit__)
            watching = asyncio.create_task(_interrupt_on_failure(app), name="streams-failure")
            stack.callback(watching.cancel)
            yield app
    finally:
        task = asyncio.current_task()
        if app._failure is not None and task is not None:
            # Servers catch what their application's lifespan raises, SystemExit too, and end with
            # a status of their own. What a callback of the loop raises nobody catches. It comes
            # when the server's own task for the lifespan is over, and not before: whatever else
            # was opened in it is closed by then.
            task.add_done_callback(lambda _: _exit(status))


async def _interrupt_on_failure(app: Streams) -> None:
    died = await app.failed()
    logger.critical("%s; the server is stopped", died)
    # Not SIGTERM: servers send themselves once more the signal that stopped them, and SIGTERM
    # would end the process there, with a status that systemd takes for success.
    signal.raise_signal(signal.SIGINT)


def _exit(status: int) -> None:
    raise SystemExit(status)


class HealthEndpoint:
    """An app's health as an ASGI application: 200 where all is well, 503 where not.

    It may be a route or be mounted, in any framework, or be served alone::

        api = FastAPI(lifespan=lifespan, routes=[Route("/healthz", HealthEndpoint(events))])
        api.mount("/health", HealthEndpoint(events))  # /health/livez and /health/readyz

    The last part of the path says what is asked:

    * ``livez``: no processor died, so a restart would not help;
    * ``readyz``: messages are handled: the app is entered and not stopping, its processors run, and
      the log answers;
    * anything else: :attr:`streams.Health.ok`, which is both, and no handler is overdue.

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
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})

    async def _answer(self, scope: Scope, send: Send) -> None:
        method, headers = scope["method"], [(b"cache-control", b"no-store")]
        if method not in ("GET", "HEAD"):
            status, body = 405, b'{"ok": false, "error": "only GET and HEAD"}\n'
            headers.append((b"allow", b"GET, HEAD"))
        else:
            status, body = self._state(scope["path"].rstrip("/").rpartition("/")[2])
        headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        body = b"" if method == "HEAD" else body
        await send({"type": "http.response.body", "body": body})

    def _state(self, asked: str) -> tuple[int, bytes]:
        health = self._app.health()
        ok = {"livez": health.live, "readyz": health.ready}.get(asked, health.ok)
        return 200 if ok else 503, json.dumps(health.summary(ok=ok)).encode() + b"\n"


async def _lifespan(receive: Receive, send: Send) -> None:
    """There is nothing to open: the app's life is somebody else's."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
