"""An app inside somebody else's server: its health over HTTP, and its end when a processor dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Mount, Route

from streams import ConfigError, HealthEndpoint, NotRunning, ProcessorDied, Streams, exit_on_failure
from streams.health import Health, ProcessorHealth
from streams.publisher import Publisher
from tests.processing.support import until
from tests.servers.lifetime import until as wait_until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]

SERVICE = """
import asyncio
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.routing import Route

from streams import Fatal, HealthEndpoint, Streams, exit_on_failure

events = Streams("memory://")
orders = events.topic("orders", str)


@events.processor(orders, group="billing")
async def bill(order: str) -> None:
    if order == "bad":
        raise SystemExit("out of order, token=hunter2")


@asynccontextmanager
async def pool():
    try:
        yield
    finally:
        await asyncio.sleep(0.05)
        print("pool closed", flush=True)


@asynccontextmanager
async def lifespan(api):
    async with pool(), ENTERED:
        yield


api = FastAPI(lifespan=lifespan, routes=[Route("/healthz", HealthEndpoint(events))])
api.mount("/health", HealthEndpoint(events))
answering = asyncio.Event()


@api.post("/orders/{order}")
async def place(order: str) -> str:
    return str(await orders.publish(order))


@api.get("/slow")
async def slow() -> str:
    answering.set()
    await events.failed()
    await asyncio.sleep(0.5)
    return "answered"


@api.get("/answering")
async def is_answering() -> bool:
    await answering.wait()
    return True
"""


class Server:
    """A service under a real uvicorn."""

    def __init__(self, folder: Path, entered: str, *options: str) -> None:
        (folder / "served.py").write_text(SERVICE.replace("ENTERED", entered))
        self.log = folder / "uvicorn.log"
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'codecs'}"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "uvicorn", "served:api", "--port", "0", *options],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.address = ""

    async def started(self) -> httpx.AsyncClient:
        def listening() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(r"running on (http://\S+)", self.log.read_text())
            self.address = found[1] if found else ""
            return bool(found)

        await until(listening)
        return httpx.AsyncClient(base_url=self.address, timeout=30)

    async def status(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    started: list[Server] = []
    yield started
    for server in started:
        server.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_death_ends_uvicorn_with_status_1(
    tmp_path: Path, servers: list[Server], loop: str
) -> None:
    servers.append(server := Server(tmp_path, "exit_on_failure(events)", "--loop", loop))
    async with await server.started() as client:
        assert (await client.get("/healthz")).status_code == 200
        slow = asyncio.create_task(client.get("/slow"))
        await client.get("/answering")
        assert (await client.post("/orders/bad")).status_code == 200
        # What is being answered is answered; then the lifespan ends in order.
        assert (await slow).json() == "answered"
        assert await server.status() == 1
    said = server.log.read_text()
    assert "processor bill died: SystemExit: out of order" in said
    assert "pool closed" in said
    assert "Event loop stopped" not in said


@pytest.mark.parametrize(
    ("number", "loop"),
    [(signal.SIGINT, "asyncio"), (signal.SIGINT, "uvloop"), (signal.SIGTERM, "asyncio")],
)
async def test_a_signal_after_a_death(
    tmp_path: Path, servers: list[Server], number: signal.Signals, loop: str
) -> None:
    """Ctrl-C while the server is being stopped: not everything is finished, but it shows."""
    servers.append(server := Server(tmp_path, "exit_on_failure(events)", "--loop", loop))
    async with await server.started() as client:
        slow = asyncio.create_task(client.get("/slow"))
        await client.get("/answering")
        await client.post("/orders/bad")
        await until(lambda: "Shutting down" in server.log.read_text())
        server.process.send_signal(number)
        assert await server.status() not in (0, 130)
        await asyncio.wait([slow])
        assert slow.exception() is None or isinstance(slow.exception(), httpx.HTTPError)


async def test_without_a_death_it_ends_as_ever(tmp_path: Path, servers: list[Server]) -> None:
    servers.append(server := Server(tmp_path, "exit_on_failure(events)"))
    async with await server.started() as client:
        assert (await client.post("/orders/good")).status_code == 200
    server.process.send_signal(signal.SIGINT)
    assert await server.status() == 0
    assert "Application shutdown complete" in server.log.read_text()


async def test_one_that_goes_on_shows_in_its_health(tmp_path: Path, servers: list[Server]) -> None:
    """``async with events`` alone does not stop a server, which goes on without its processors."""
    servers.append(server := Server(tmp_path, "events"))
    async with await server.started() as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()["ok"]) == (200, True)
        await client.post("/orders/bad")

        connected = True
        while connected:  # the test's timeout is the guard
            connected = (await client.get("/healthz")).json()["connected"]
        for path in ("/healthz", "/health/livez", "/health/readyz", "/health/"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert answer.json()["processors"]["bill"]["error"] == "SystemExit"
            assert "hunter2" not in answer.text
        assert (await client.post("/orders/good")).status_code == 500
    why = "ProcessorDied: the app has stopped: processor bill died: SystemExit: out of"
    await until(lambda: why in server.log.read_text())
    assert "NotRunning" not in server.log.read_text()


# -- the endpoint


def app_of(health: Health) -> Streams:
    """An app that is as it is told."""
    app = Streams("memory://")
    app.health = lambda: health  # type: ignore[method-assign]
    return app


def processor(**changed: Any) -> ProcessorHealth:
    fields: dict[str, Any] = {
        "running": True,
        "paused": False,
        "reachable": True,
        "overdue": 0,
        "error": None,
    }
    return ProcessorHealth(**{**fields, **changed})


WELL = Health(True, {"bill": processor()})
DEAD = Health(
    False, {"bill": processor(running=False, error="ValueError: secret"), "x": processor()}
)


@pytest.mark.parametrize(
    ("health", "live", "ready", "ok"),
    [
        (WELL, True, True, True),
        (DEAD, False, False, False),
        (Health(False, {}), True, False, False),
        (Health(True, {}, stopping=True), True, False, True),
        (Health(True, {"bill": processor(reachable=False)}), True, False, False),
        (Health(True, {"bill": processor(overdue=2)}), True, True, False),
        (Health(True, {"bill": processor(paused=True)}), True, True, True),
        (Health(True, {"bill": processor(running=False)}), True, False, False),
    ],
)
async def test_what_it_answers(health: Health, live: bool, ready: bool, ok: bool) -> None:
    endpoint = HealthEndpoint(app_of(health))
    api = FastAPI(routes=[Route("/healthz", endpoint), Mount("/health", endpoint)])
    for target in (endpoint, api):
        transport = httpx.ASGITransport(app=target)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path, well in (
                ("/health/livez", live),
                ("/health/livez/", live),
                ("/health/readyz", ready),
                ("/health/", ok),
                ("/healthz", ok),
            ):
                answer = await client.get(path)
                assert (path, answer.status_code) == (path, 200 if well else 503)
                assert answer.json()["ok"] is well
                assert answer.headers["content-type"] == "application/json"
                assert answer.headers["cache-control"] == "no-store"
                assert "secret" not in answer.text
                assert answer.json()["processors"].keys() == health.processors.keys()
                head = await client.head(path)
                assert (head.status_code, head.content) == (answer.status_code, b"")
                assert head.headers["content-length"] == str(len(answer.content))
            for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
                refused = await client.request(method, "/healthz")
                assert refused.status_code == 405
                assert refused.headers["allow"] == "GET, HEAD"
                assert json.loads(refused.content)["ok"] is False


async def test_it_takes_part_in_a_lifespan_and_refuses_a_websocket() -> None:
    endpoint, sent = HealthEndpoint(app_of(WELL)), list[str]()
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await endpoint({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    await endpoint({"type": "websocket", "path": "/"}, receive, send)
    assert sent[2:] == ["websocket.close"]


async def test_what_is_no_app_is_refused() -> None:
    wrong: Any = FastAPI()
    with pytest.raises(ConfigError, match="a Streams app is needed"):
        HealthEndpoint(wrong)
    with pytest.raises(ConfigError, match="a Streams app is needed"):
        async with exit_on_failure(wrong):
            pass


# -- failed()


class Shop:
    """An app with two processors, of which one can be made to die."""

    def __init__(self) -> None:
        self.app = Streams("memory://")
        self.topic = self.app.topic("t", str)

        @self.app.processor(self.topic, group="g")
        async def bill(value: str) -> None:
            if value == "bad":
                raise ConfigError("it cannot work")

        @self.app.processor(self.topic, group="other")
        async def count(value: str) -> None: ...


async def test_everybody_who_waits_is_told() -> None:
    shop = Shop()
    app = shop.app
    found: list[BaseException] = []
    waiting: list[asyncio.Task[ProcessorDied]] = []
    before = asyncio.create_task(app.failed())  # also before it is entered

    def on_a_loop_of_its_own() -> None:
        found.append(asyncio.run(app.failed()))

    thread = threading.Thread(target=on_a_loop_of_its_own)
    thread.start()
    await until(lambda: len(app._failures.waiters) == 2)
    with pytest.raises(ProcessorDied) as died:
        async with app:
            waiting += [asyncio.create_task(app.failed()) for _ in range(3)]
            gone = asyncio.create_task(app.failed())
            await until(lambda: len(app._failures.waiters) == 6)
            gone.cancel()
            await asyncio.wait([gone])
            assert gone.cancelled()
            await shop.topic.publish("good")
            assert not any(each.done() for each in waiting)
            await shop.topic.publish("bad")
            await asyncio.Event().wait()
    for each in (*waiting, before):
        assert await each is died.value
    await asyncio.to_thread(thread.join)
    assert found == [died.value]
    assert await app.failed() is died.value  # it stays
    assert app._failures.waiters == set()
    assert isinstance(died.value.__cause__, ConfigError)


async def test_what_is_said_after_a_death() -> None:
    shop, held = Shop(), list[Publisher]()
    app = shop.app
    with pytest.raises(ProcessorDied):
        async with app:
            held.append(app.publisher)
            await shop.topic.publish("bad")
            await asyncio.Event().wait()
    with pytest.raises(ProcessorDied, match="processor bill died"):  # also while it is closing
        await held[0].publish("t", shop.topic.record("good"))
    said = "the app has stopped: processor bill died: ConfigError: it cannot work"
    for use in (
        lambda: shop.topic.publish("good"),
        lambda: asyncio.to_thread(lambda: app.wait(app.failed())),
        lambda: app.runtime.start_processor(app.processors[0]),
    ):
        with pytest.raises(ProcessorDied) as died:
            await use()
        assert str(died.value) == said
        assert isinstance(died.value.__cause__, ConfigError)
    health = app.health()
    assert (health.live, health.ready, health.ok) == (False, False, False)
    assert health.processors["bill"].error == "ConfigError: it cannot work"
    assert health.processors["count"].error is None
    async with app.connected():
        # Entered again: all that is forgotten.
        assert app.health().live
        await shop.topic.publish("good")
        waiting = asyncio.create_task(app.failed())
        await until(lambda: app._failures.waiters)
    with pytest.raises(NotRunning):
        await shop.topic.publish("good")
    assert not waiting.done()
    waiting.cancel()


def test_a_plain_service_waits_in_a_thread() -> None:
    shop, found = Shop(), list[ProcessorDied]()
    with pytest.raises(ProcessorDied) as died, shop.app.background():
        thread = threading.Thread(
            target=lambda: found.append(shop.app.wait(shop.app.failed())), daemon=True
        )
        thread.start()
        wait_until(lambda: bool(shop.app._failures.waiters), 60, "the thread waits")
        shop.app.wait(shop.topic.publish("bad"))
        thread.join(30)
    assert found == [died.value]


async def test_an_app_that_is_left_in_order_tells_nobody() -> None:
    shop = Shop()
    async with shop.app:
        waiting = asyncio.create_task(shop.app.failed())
        await shop.topic.publish("good")
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_exit_on_failure_without_a_failure() -> None:
    shop = Shop()
    async with exit_on_failure(shop.app) as app:
        assert app is shop.app
        assert app.health().ok
        await shop.topic.publish("good")
    assert not app.health().connected
    with pytest.raises(LookupError):
        async with exit_on_failure(shop.app):
            raise LookupError
    assert not app.health().connected
