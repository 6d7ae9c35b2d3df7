"""A dashboard behind a real server, on a loop in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import uvicorn

from streams.web import Dashboard
from streams.web.server import _Server


@contextmanager
def serving(
    dashboard: Dashboard, port: int = 0, lifespan: Literal["on", "off"] = "on"
) -> Iterator[str]:
    """Serve it at a port of this machine; its address.

    :param port: 0: one that is free.
    :param lifespan: "off": the dashboard is not closed with the server.
    """
    started = threading.Event()
    addresses: list[str] = []

    def on_start(address: str) -> None:
        addresses.append(address)
        started.set()

    config = uvicorn.Config(
        dashboard,
        host="127.0.0.1",
        port=port,
        lifespan=lifespan,
        log_config=None,
        timeout_graceful_shutdown=0,
    )
    server = _Server(config, dashboard, on_start)
    thread = threading.Thread(target=server.run, name="serving")
    thread.start()
    try:
        assert started.wait(60), "the server did not start"
        yield addresses[0].rstrip("/")
    finally:
        server.should_exit = True
        thread.join()
