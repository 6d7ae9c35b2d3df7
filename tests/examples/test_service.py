"""The FastAPI service: its lifespan, its processor, its pool; and once under a real server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from examples.service.app import create
from tests.servers.lifetime import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def served(api: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """The service started, asked in this process, and stopped."""
    transport = httpx.ASGITransport(app=api)
    async with (
        api.router.lifespan_context(api),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def answer(client: httpx.AsyncClient, path: str, over: Callable[[Any], bool]) -> Any:
    """What a path answers, once it is what is waited for (the test's timeout is the guard)."""
    while True:
        found = (await client.get(path)).json()
        if over(found):
            return found
        await asyncio.sleep(0.01)


async def decided(client: httpx.AsyncClient, order: str) -> Any:
    """What became of an order, once that is known."""
    found = await answer(client, f"/orders/{order}", lambda each: each["reserved"] is not None)
    return found["reserved"]


async def test_orders_are_decided_in_order_and_once(tmp_path: Path) -> None:
    api = create(f"sqlite:///{tmp_path}/log.db", str(tmp_path / "stock.db"))
    async with served(api) as client:
        assert (await client.get("/healthz")).json() == {"ok": True}
        await client.post("/stock/cup", params={"count": 5})
        for order, quantity in [("a", 3), ("b", 3), ("a", 3), ("c", 2), ("d", 0)]:
            params: dict[str, str | int] = {"sku": "cup", "quantity": quantity}
            assert (await client.post(f"/orders/{order}", params=params)).status_code == 202
        # b comes after a, so it finds too little; the second a is the first, and c gets the rest.
        assert await decided(client, "c") is True
        assert await decided(client, "a") is True
        assert await decided(client, "b") is False
        assert (await client.get("/stock/cup")).json() == {"left": 0}
        wanted = {"handled": 3, "dead_letters": 1}  # d is for nothing
        await answer(client, "/stats", lambda each: each == wanted)

    # The same service again: what it decided is there, and nothing is decided anew.
    async with served(api) as client:
        assert await decided(client, "b") is False
        assert (await client.get("/stock/cup")).json() == {"left": 0}
        assert (await client.get("/stats")).json()["handled"] == 0
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=api), base_url="http://test"
    ) as client:
        assert (await client.get("/healthz")).status_code == 503


def test_under_a_real_server(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "uvicorn", "--factory", "examples.service.app:create"),
        *("--port", "0", "--no-access-log"),
    ]
    environment = {
        **os.environ,
        "STREAMS_URL": "sqlite:///log.db",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "codecs")]),
    }
    log = tmp_path / "uvicorn.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        port = found(log, server, re.compile(r"running on http://127\.0\.0\.1:(\d+)"))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            client.post("/stock/cup", params={"count": 1}).raise_for_status()
            client.post("/orders/a", params={"sku": "cup", "quantity": 1}).raise_for_status()
            until(lambda: client.get("/orders/a").json() == {"reserved": True}, 30, "an answer")
            assert client.get("/healthz").json() == {"ok": True}
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)  # uvicorn hands its signal on
    finally:
        server.kill()
        server.wait()
    said = log.read_text()
    assert "Application shutdown complete" in said
    assert "Traceback" not in said


def found(log: Path, server: subprocess.Popen[bytes], pattern: re.Pattern[str]) -> str:
    """The first group of a pattern, once the log has it."""

    def there() -> bool:
        assert server.poll() is None, log.read_text()
        return pattern.search(log.read_text()) is not None

    until(there, 60, "the server")
    match = pattern.search(log.read_text())
    assert match is not None
    return match[1]
