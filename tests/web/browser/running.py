"""The shop of :mod:`tests.web.showcase` and its dashboard, on a loop in a thread of its own."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from streams.web import Dashboard, live
from streams.web.server import _Server
from tests.conformance.stage import PATIENCE
from tests.web.showcase import Shop, build

T = TypeVar("T")

BELOW = "/ops/streams%20of%20events"


class Running:
    """A shop that runs, and where its dashboard is.

    :param loop: where the app lives; tests are elsewhere.
    :param address: of the dashboard.
    """

    def __init__(
        self, shop: Shop, dashboard: Dashboard, loop: asyncio.AbstractEventLoop, address: str
    ) -> None:
        self.shop = shop
        self.dashboard = dashboard
        self.address = address
        self.mounted = f"{address}{BELOW}"
        """The same dashboard, mounted below a path."""
        self._loop = loop

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Have something done by the app."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    @contextmanager
    def entered(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """Have something entered on the app's loop, and left when the block ends."""
        found = self.call(manager.__aenter__())
        try:
            yield found
        finally:
            self.call(manager.__aexit__(None, None, None))


@contextmanager
def running(url: str = "", suffix: str = "", **options: Any) -> Iterator[Running]:
    """Run the shop with all that happens in it, and serve its dashboard.

    :param url: of the log; a new SQLite file if not given.
    :param options: of the dashboard.
    """
    ready: Future[Running] = Future()
    end: Future[asyncio.Event] = Future()

    async def run(folder: Path) -> None:
        shop = build(url or f"sqlite:///{folder}/shop-log.db", folder, suffix)
        dashboard = Dashboard(shop.app, **{"access": "all", **options})
        over = asyncio.Event()
        end.set_result(over)

        def on_start(address: str) -> None:
            found = Running(shop, dashboard, asyncio.get_running_loop(), address.rstrip("/"))
            ready.set_result(found)

        both = Starlette(routes=[Mount("/ops/streams of events", dashboard), Mount("/", dashboard)])
        config = uvicorn.Config(
            both, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1
        )
        server = _Server(config, dashboard, on_start)
        async with shop.app:
            await shop.fill()
            serving = asyncio.create_task(server.serve())
            await over.wait()
            shop.gate.set()
            server.should_exit = True
            await serving

    # Tests count streams; those that are about their end set a shorter time.
    with (
        tempfile.TemporaryDirectory(prefix="showcase-") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(live, "STREAM_SECONDS", 3_600.0)
        loop = asyncio.new_event_loop()

        def work() -> None:
            try:
                loop.run_until_complete(run(Path(folder)))
            except BaseException as error:
                if ready.done():
                    raise
                ready.set_exception(error)
            finally:
                loop.close()

        thread = threading.Thread(target=work, name="showcase")
        thread.start()
        try:
            yield ready.result(PATIENCE)
        finally:
            if end.done() and thread.is_alive():
                loop.call_soon_threadsafe(end.result().set)
            thread.join(PATIENCE)
