"""The endpoint: ``uvicorn --factory examples.shop.service:create_api``, with SHOP_LOG and
SHOP_DATABASE in the environment. It only publishes; workers run the processors."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from examples.shop.shop import Placed, create


def create_api() -> FastAPI:
    """The service on the log and the database that the environment names."""
    shop = create(os.environ["SHOP_LOG"], os.environ["SHOP_DATABASE"])

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncGenerator[None]:
        yield
        shop.sessions.kw["bind"].dispose()

    api = FastAPI(lifespan=lifespan)

    @api.put("/orders/{id}")
    def order(id: str, article: str, pieces: int) -> dict[str, bool]:
        """Place an order; a repetition is harmless, as a client may retry."""
        return {"new": shop.place(Placed(id, article, pieces))}

    @api.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"ok": True}

    return api
