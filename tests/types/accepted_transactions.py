"""Handlers with ``transaction=`` that both type checkers accept (see ``accepted.py``)."""

from __future__ import annotations

import sqlite3
from typing import Any, assert_type

import msgspec
from psycopg import AsyncConnection, Connection
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from streams import (
    AsyncPsycopg,
    Database,
    LogTransaction,
    Message,
    Outbox,
    Psycopg,
    SQLAlchemy,
    Sqlite,
    Streams,
)


class Order(msgspec.Struct):
    n: int


app = Streams("memory://typing-transactions")
orders = app.topic("orders", Order)

DSN = "postgresql://nobody@nowhere/nothing"
plain = Psycopg(DSN)
asynchronous = AsyncPsycopg(DSN)
file = Sqlite("typing.db")
sessions = SQLAlchemy(sessionmaker(create_engine("sqlite://")))
async_sessions = SQLAlchemy(async_sessionmaker(create_async_engine("sqlite+aiosqlite://")))
assert_type(sessions, SQLAlchemy[Session])
assert_type(async_sessions, SQLAlchemy[AsyncSession])


def current_sessions() -> sessionmaker[Session]:
    return sessionmaker(create_engine("sqlite://"))


def current_async_sessions() -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(create_async_engine("sqlite+aiosqlite://"))


assert_type(SQLAlchemy(current_sessions), SQLAlchemy[Session])
assert_type(SQLAlchemy(current_async_sessions), SQLAlchemy[AsyncSession])
pool: AsyncConnectionPool[AsyncConnection] | None = None


def current_pool() -> AsyncConnectionPool[AsyncConnection]:
    assert pool is not None
    return pool


@app.processor(orders, group="a", transaction=plain)
def with_psycopg(order: Order, message: Message[Order, Connection]) -> None:
    message.transaction.execute("SELECT %s", (order.n,))


@app.processor(orders, group="b", transaction=AsyncPsycopg(current_pool), concurrency=64)
async def with_async_psycopg(order: Order, message: Message[Order, AsyncConnection]) -> None:
    await message.transaction.execute("SELECT %s", (order.n,))


@app.processor(orders, group="c", transaction=file)
def with_sqlite(order: Order, message: Message[Order, sqlite3.Connection]) -> None:
    message.transaction.execute("SELECT ?", (order.n,))


@app.processor(orders, group="d", transaction=sessions)
def with_session(order: Order, message: Message[Order, Session]) -> None:
    message.transaction.flush()


@app.processor(orders, group="e", transaction=async_sessions)
async def with_async_session(order: Order, message: Message[Order, AsyncSession]) -> None:
    await message.transaction.flush()


@app.processor(orders, group="f", transaction=asynchronous, batch=100)
async def batch(values: list[Order], messages: list[Message[Order, AsyncConnection]]) -> None: ...


@app.processor(orders, group="g", transaction=plain)
def without_message(order: Order) -> None: ...


@app.processor(orders, group="h", transaction=plain)
def any_message(order: Order, message: Message[Order, Any]) -> None: ...


@app.processor(orders, group="i", transaction=plain, filter=lambda order: order.n > 1)
def filtered(order: Order, message: Message[Order, Connection]) -> None: ...


@app.processor(orders, group="j", to=orders, transaction=plain)
def with_results(order: Order, message: Message[Order, Connection]) -> Order | None:
    message.transaction.execute("SELECT %s", (order.n,))
    return order


@app.processor(orders, group="k", to=orders, transaction=asynchronous, batch=10)
async def with_batch_results(
    values: list[Order], messages: list[Message[Order, AsyncConnection]]
) -> list[list[Order]]:
    return [[order, order] for order in values]


@app.processor(orders, group="l", to=orders, transaction=plain)
def results_of_value(order: Order) -> list[Order]:
    return [order]


def switch(connection: Connection) -> None:
    connection.execute("CREATE OR REPLACE VIEW totals AS SELECT * FROM totals_v2")


@app.processor(orders, group="m", transaction=plain, batch=10, version=2, on_promote=switch)
def projected(values: list[Order], messages: list[Message[Order, Connection]]) -> None:
    messages[0].transaction.execute("INSERT INTO totals_v2 VALUES (1)")


serving: int | None = None if projected.projection is None else projected.projection.serving

through = Outbox(app, plain)
beside = Outbox(app, DSN, table="others", transaction=[asynchronous, sessions])


async def of_the_log() -> None:
    async with app.transaction(timeout=2.0) as connection:
        assert_type(connection, LogTransaction)
        rows = connection.execute("SELECT ?", (1,))
        assert_type(rows, list[tuple[Any, ...]])
    with app.transaction() as connection:
        connection.execute("SELECT :one", {"one": 1})


def in_a_test(database: Database[Connection], fake: Connection) -> None:
    with_psycopg(Order(1), Message(Order(1), transaction=fake))
