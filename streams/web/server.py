"""Serving a dashboard by itself, as ``streams web`` does."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from typing_extensions import override

from streams.errors import ConfigError
from streams.web.dashboard import Dashboard
from streams.web.passwords import is_loopback

try:
    import uvicorn
except ImportError as error:
    raise ConfigError(
        "serving the dashboard needs the package uvicorn (the extra web): pip install uvicorn"
    ) from error

if TYPE_CHECKING:
    from pathlib import Path

SHUTDOWN = 5
"""Seconds for which open responses may go on at the shutdown."""


def check_address(host: str, *, has_passwords: bool, has_tls: bool) -> None:
    """Check that an address is safe to listen on.

    :raises ConfigError: other machines can reach it, and no password is asked for, or it would be
        sent in clear.
    """
    if is_loopback(host):
        return
    if not has_passwords:
        raise ConfigError(
            f"other machines can reach {host}, and no password is required: give --password-file "
            "(or STREAMS_WEB_PASSWORDS), or leave --host out, so that only this machine reaches it"
        )
    if not has_tls:
        raise ConfigError(
            f"passwords would travel to {host} in the clear: give --tls-cert and --tls-key, or "
            "leave --host out and put a server with TLS in front of it"
        )


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, dashboard: Dashboard, started: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._dashboard = dashboard
        self._started = started

    @contextmanager
    @override
    def capture_signals(self) -> Generator[None, None, None]:
        """SIGINT and SIGTERM end it in order; uvicorn's own version would raise them once more
        then."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.signal(each, self.handle_exit) for each in wanted}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            name = f"[{host}]" if ":" in host else host
            self._started(f"{scheme}://{name}:{port}/")

    @override
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._dashboard.end_streams()
        await super().shutdown(sockets)


def serve(
    dashboard: Dashboard,
    host: str,
    port: int,
    started: Callable[[str], None],
    *,
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve a dashboard until SIGINT or SIGTERM; blocks.

    :param started: called with its address once it accepts requests.
    :raises ConfigError: the address or the certificate cannot be used.
    """
    try:
        config = uvicorn.Config(
            dashboard,
            host=host,
            port=port,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=SHUTDOWN,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        config.load()
    except OSError as error:
        raise ConfigError(f"the certificate or its key cannot be used: {error}") from error
    server = _Server(config, dashboard, started)
    try:
        server.run()
    except SystemExit:
        raise ConfigError(
            f"cannot listen on {host}:{port}: the address is in use, or not of this machine"
        ) from None
