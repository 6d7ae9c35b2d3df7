"""``/metrics``, ``/healthz`` and ``/readyz`` over HTTP, in threads of their own.

* ``/metrics``: the metrics for Prometheus, together with the process's other metrics in
  ``prometheus_client``'s registry. 501 if the package is not installed.
* ``/healthz``: 200 while a restart would not help: no processor died, and the event loop answers.
* ``/readyz``: 200 while messages are handled: the app is entered and not stopping, every processor
  runs and its log answers.

The last two answer with JSON that gives the reason; texts of exceptions stay out of it, for they
may hold secrets. There is no login: listen where only clients that may see it can connect.

Clients are bounded: a request must be complete within :data:`REQUEST_TIMEOUT` seconds and
:data:`MAX_REQUEST_BYTES` bytes, its response be read within as many seconds, and then the
connection is closed. Beyond :data:`MAX_CONNECTIONS` at once, the connection that has been sending
its request for longest is closed for the next one, so that no client can shut out the others by
holding connections open.
"""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from typing_extensions import override

from streams.app import Streams
from streams.errors import ConfigError
from streams.health import Health
from streams.patterns.arguments import check_app, check_int, check_seconds
from streams.text import get_logger

logger = get_logger("streams")

STUCK_AFTER = 5.0
"""Seconds after which an event loop that does not answer counts as stuck."""

REQUEST_TIMEOUT = 10.0
"""Seconds within which a request must be complete; the same for the reading of its response."""

MAX_REQUEST_BYTES = 16 << 10
"""Bytes of a request's line and headers together."""

MAX_CONNECTIONS = 64
"""The most connections at once; each has a thread."""


class HttpResponse(NamedTuple):
    """The answer to a request."""

    status: HTTPStatus
    content_type: str
    body: bytes


class MetricsRoute(NamedTuple):
    """The function that answers ``/metrics``."""

    respond: Callable[[str], HttpResponse]
    unregister: Callable[[], None]
    """Undoes the registration with ``prometheus_client``."""


class MonitoringServer:
    """Serves an app's metrics and health until it is closed; also a context manager.

    :param app: entered or not; as long as it does not run it is not ready.
    :param host: the address to listen on; ``"0.0.0.0"`` is all of IPv4, ``"::"`` all.
    :param port: 0 chooses a free one; :attr:`port` says which.
    :param stuck: seconds after which a loop that does not answer fails ``/healthz``.
    :raises ConfigError: it cannot listen there.
    """

    def __init__(
        self, app: Streams, host: str = "127.0.0.1", port: int = 9100, *, stuck: float = STUCK_AFTER
    ) -> None:
        check_app(app, "MonitoringServer")
        if not isinstance(host, str):
            raise ConfigError(f"MonitoringServer(host={host!r}): an address, such as '127.0.0.1'")
        check_int("MonitoringServer", "port", port, 0)
        check_seconds("MonitoringServer", "stuck", stuck)
        self._app = app
        self._stuck = stuck
        metrics, self._unregister = _metrics_route(app)
        routes = {"/metrics": metrics, "/healthz": self._healthz, "/readyz": self._readyz}
        try:
            self._server = _HttpServer(host, port, routes)
        except (OSError, OverflowError, UnicodeError) as error:
            self._unregister()
            why = getattr(error, "strerror", None) or str(error)
            raise ConfigError(f"cannot listen on {host}:{port}: {why}") from error
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="streams-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening. It may be called again.

        The app's metrics stay in ``prometheus_client``'s registry while another server has them.
        """
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        unregister, self._unregister = self._unregister, lambda: None
        unregister()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the three pages

    def _healthz(self, accept: str) -> HttpResponse:
        health = self._app.health()
        stuck = not self._is_loop_responsive()
        return _health_response(health.live and not stuck, health, loop="stuck" if stuck else "ok")

    def _readyz(self, accept: str) -> HttpResponse:
        health = self._app.health()
        return _health_response(health.ready, health)

    def _is_loop_responsive(self) -> bool:
        loop = self._app.runtime.loop
        if loop is None:
            return True  # the app is not entered
        answered = threading.Event()
        try:
            loop.call_soon_threadsafe(answered.set)
        except RuntimeError:  # it was closed just now
            return True
        return answered.wait(self._stuck)


def _health_response(ok: bool, health: Health, **extra: str) -> HttpResponse:
    summary = health.summary(ok=ok, **extra)
    status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
    return HttpResponse(status, "application/json", json.dumps(summary).encode() + b"\n")


_registered: dict[Any, int] = {}
"""The collectors that servers have registered with ``prometheus_client``, with the number of
servers that use each."""

_registered_lock = threading.Lock()


def _unregister(collector: Any) -> None:
    """Count one server less for a collector; the last one removes it from the registry."""
    from prometheus_client import REGISTRY

    with _registered_lock:
        _registered[collector] -= 1
        if not _registered[collector]:
            del _registered[collector]
            REGISTRY.unregister(collector)


def _metrics_route(app: Streams) -> MetricsRoute:
    try:
        from prometheus_client import REGISTRY, CollectorRegistry
        from prometheus_client.exposition import choose_encoder

        from streams.patterns.monitoring.prometheus import MetricsCollector
    except (ImportError, ConfigError):
        logger.warning("/metrics has nothing to say: pip install prometheus-client for it")
        text = b"the package prometheus-client is not installed\n"
        missing = HttpResponse(HTTPStatus.NOT_IMPLEMENTED, "text/plain", text)
        return MetricsRoute(lambda accept: missing, lambda: None)

    collector, registry = MetricsCollector(app), REGISTRY
    unregister: Callable[[], None] = lambda: None  # noqa: E731 - there is nothing to undo
    with _registered_lock:
        try:
            registry.register(collector)
            _registered[collector] = 0
        except ValueError:
            names = registry._names_to_collectors  # noqa: SLF001 - there is no public API
            registered = names.get("streams_app_up")
            if isinstance(registered, MetricsCollector) and registered.app is app:
                collector = registered
            else:  # another app of this process has taken the names
                registry = CollectorRegistry()
                registry.register(collector)
        if collector in _registered:  # else it is registered elsewhere, or not visible elsewhere
            _registered[collector] += 1
            unregister = partial(_unregister, collector)

    def respond(accept: str) -> HttpResponse:
        encode, kind = choose_encoder(accept)
        return HttpResponse(HTTPStatus.OK, kind, encode(registry))

    return MetricsRoute(respond, unregister)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(
        self,
        host: str,
        port: int,
        routes: dict[str, Callable[[str], HttpResponse]],
        *,
        request_timeout: float = REQUEST_TIMEOUT,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        self.routes = routes
        self.request_timeout = request_timeout
        self._max_connections = max_connections
        self._lock = threading.Lock()
        self._incomplete: dict[socket.socket, None] = {}
        """Connections whose request is incomplete, the oldest first."""
        self._open_count = 0
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        self.address_family = found[0][0]
        super().__init__((host, port), _RequestHandler)

    @override
    def server_bind(self) -> None:
        # Not HTTPServer's, which asks DNS for this machine's name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @override
    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether one more connection is allowed; the oldest that still sends is closed for it."""
        with self._lock:
            if self._open_count >= self._max_connections:
                oldest = next(iter(self._incomplete), None)
                if oldest is None:  # all of them are being answered
                    return False
                del self._incomplete[oldest]
                # Its thread reads the end of the connection, and closes it.
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            self._open_count += 1
            self._incomplete[request] = None
        return True

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._release_connection(request)
            raise

    @override
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._release_connection(request)

    def _release_connection(self, request: socket.socket) -> None:
        with self._lock:
            self._open_count -= 1
            self._incomplete.pop(request, None)

    def complete_request(self, request: socket.socket) -> bool:
        """Record that a request is complete; returns whether its connection is still wanted."""
        with self._lock:
            still_open = request in self._incomplete
            self._incomplete.pop(request, None)
        return still_open

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("http %s went away: %r", client_address[0], sys.exc_info()[1])


class _RequestTooLarge(Exception):
    """A request is larger than its bound."""


class _RequestReader(io.RawIOBase):
    """Reads a request, up to a number of bytes and a deadline."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + timeout
        self._bytes_left = MAX_REQUEST_BYTES

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any, /) -> int:
        seconds_left = self._deadline - time.monotonic()
        if seconds_left <= 0:
            raise TimeoutError("the request took too long")
        if self._bytes_left <= 0:
            raise _RequestTooLarge
        self._connection.settimeout(seconds_left)
        received = self._connection.recv_into(memoryview(buffer)[: self._bytes_left])
        self._bytes_left -= received
        return received


class _RequestHandler(BaseHTTPRequestHandler):
    server: _HttpServer  # pyright: ignore[reportIncompatibleVariableOverride]
    server_version = "streams"
    sys_version = ""

    @override
    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_RequestReader(self.connection, self.server.request_timeout))

    @override
    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except _RequestTooLarge:
            self.requestline = self.request_version = self.command = ""
            self._restart_timeout()
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        self.close_connection = True

    def _restart_timeout(self) -> None:
        # sendall counts its timeout for the whole of what it sends.
        self.connection.settimeout(self.server.request_timeout)

    def do_GET(self) -> None:
        if not self.server.complete_request(self.request):
            return
        self._restart_timeout()
        route = self.server.routes.get(self.path.partition("?")[0])
        if route is None:
            text = f"there are {' '.join(self.server.routes)}\n".encode()
            response = HttpResponse(HTTPStatus.NOT_FOUND, "text/plain", text)
        else:
            try:
                response = route(self.headers.get("Accept", ""))
            except Exception:
                logger.exception("%s could not be answered", self.path)
                failed = HTTPStatus.INTERNAL_SERVER_ERROR
                response = HttpResponse(failed, "text/plain", b"see the log\n")
        status, content_type, body = response
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    @override
    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("http %s: %s", self.client_address[0], format % args)
