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


async def place(client: httpx.AsyncClient, key: str, sku: str, quantity: int) -> httpx.Response:
    """An order under an idempotency key."""
    params: dict[str, str | int] = {"sku": sku, "quantity": quantity}
    return await client.post("/orders", params=params, headers={"Idempotency-Key": key})


async def test_orders_are_decided_in_order_and_once(tmp_path: Path) -> None:
    files = (
        f"sqlite:///{tmp_path}/log.db",
        f"{tmp_path}/stock.db",
        f"sqlite:///{tmp_path}/claims.db",
    )
    orders: dict[str, str] = {}
    async with served(create(*files)) as client:
        assert (await client.get("/healthz")).json()["ok"]
        await client.post("/stock/cup", params={"count": 5})
        for key, quantity in [("a", 3), ("b", 3), ("a", 3), ("c", 2), ("d", 0)]:
            answered = await place(client, key, "cup", quantity)
            assert answered.status_code == 202
            assert orders.setdefault(key, answered.json()["order"]) == answered.json()["order"]
        # b comes after a, so it finds too little; the second a is the first, and c gets the rest.
        assert await decided(client, orders["c"]) is True
        assert await decided(client, orders["a"]) is True
        assert await decided(client, orders["b"]) is False
        assert (await client.get("/stock/cup")).json() == {"left": 0}
        done = {
            "reserve": {"handled": 3, "dead_letters": 1},  # d is for nothing
            "mail": {"handled": 3, "dead_letters": 0},
        }
        await answer(client, "/stats", lambda each: each == done)

    # The same service again: what it decided is there, and nothing is decided anew.
    api = create(*files)
    async with served(api) as client:
        assert (await place(client, "b", "cup", 3)).json()["order"] == orders["b"]
        assert await decided(client, orders["b"]) is False
        assert (await client.get("/stock/cup")).json() == {"left": 0}
        assert (await client.get("/stats")).json()["reserve"]["handled"] == 0
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=api), base_url="http://test"
    ) as client:
        assert (await client.get("/healthz")).status_code == 503


async def test_a_key_is_one_order_however_often_it_is_asked_for(tmp_path: Path) -> None:
    api = create("memory://", f"{tmp_path}/stock.db", "memory://")
    async with served(api) as client:
        await client.post("/stock/cup", params={"count": 100})
        answers = await asyncio.gather(*(place(client, "a", "cup", 1) for _ in range(20)))
        assert {each.status_code for each in answers} == {202}
        (said,) = {each.text for each in answers}
        assert await decided(client, answers[0].json()["order"]) is True
        # The last order behind it: whatever the others had led to would be decided by then.
        last = (await place(client, "b", "cup", 1)).json()["order"]
        assert await decided(client, last) is True
        assert (await client.get("/stock/cup")).json() == {"left": 98}
        assert (await place(client, "a", "cup", 1)).text == said
        assert (await place(client, "a", "cup", 2)).status_code == 422  # another request
        nameless = await client.post("/orders", params={"sku": "cup", "quantity": 1})
        assert nameless.status_code == 422


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
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            client.post("/stock/cup", params={"count": 1}).raise_for_status()
            answered = client.post(
                "/orders", params={"sku": "cup", "quantity": 1}, headers={"Idempotency-Key": "a"}
            )
            order = answered.raise_for_status().json()["order"]
            path = f"/orders/{order}"
            until(lambda: client.get(path).json() == {"reserved": True}, 30, "an answer")
            assert client.get("/healthz").json()["ok"]
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


async def test_its_dashboard_is_there_for_those_who_have_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = (
        f"sqlite:///{tmp_path}/log.db",
        f"{tmp_path}/stock.db",
        f"sqlite:///{tmp_path}/claims.db",
    )
    async with served(create(*files)) as client:
        assert (await client.get("/ops/")).status_code == 404
    monkeypatch.setenv("STREAMS_WEB_PASSWORDS", "ada:enchantress")
    async with served(create(*files)) as client:
        assert (await place(client, "a", "cup", 0)).status_code == 202
        await answer(client, "/stats", lambda each: each["reserve"]["dead_letters"] == 1)
        assert (await client.get("https://test/ops/")).status_code == 401
        seen = await client.get("https://test/ops/topics/orders", auth=("ada", "enchantress"))
        assert seen.status_code == 200
        assert "1 message" in " ".join(re.sub("<[^>]*>", " ", seen.text).split())
