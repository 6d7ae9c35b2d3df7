"""Handlers with ``transaction=`` that type checkers refuse (see ``refused.py``)."""

from __future__ import annotations

import sqlite3

from accepted_transactions import (
    Order,
    app,
    async_sessions,
    asynchronous,
    file,
    orders,
    plain,
    sessions,
)
from psycopg import AsyncConnection, Connection
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from streams import AsyncPsycopg, Message, Psycopg, SQLAlchemy, Sqlite, Transaction


@app.processor(orders, group="a", transaction=plain)
def another_kind(order: Order, message: Message[Order, AsyncConnection]) -> None: ...  # error


@app.processor(orders, group="b", transaction=asynchronous)
async def plain_one(order: Order, message: Message[Order, Connection]) -> None: ...  # error


@app.processor(orders, group="c", transaction=file)
def the_logs_own(order: Order, message: Message[Order, Transaction]) -> None: ...  # error


@app.processor(orders, group="d", transaction=async_sessions)
async def plain_session(order: Order, message: Message[Order, Session]) -> None: ...  # error


@app.processor(orders, group="e")
def without(order: Order, message: Message[Order, sqlite3.Connection]) -> None: ...  # error


@app.processor(orders, group="f", transaction=asynchronous, batch=10)
async def batch(orders: list[Order], them: list[Message[Order, Connection]]) -> None: ...  # error


@app.processor(orders, group="h", transaction=plain, batch=10)
def one(order: Order, message: Message[Order, Connection]) -> None: ...  # error


@app.processor(orders, group="i", transaction=plain)
def several(values: list[Order], messages: list[Message[Order, Connection]]) -> None: ...  # error


@app.processor(orders, group="j", transaction=plain)
def another_value(value: str, message: Message[str, Connection]) -> None: ...  # error


@app.processor(orders, group="k", transaction=sessions)
def async_one(order: Order, message: Message[Order, AsyncSession]) -> None: ...  # error


@app.processor(orders, group="m", to=orders, transaction=plain)
def to_another(order: Order, message: Message[Order, AsyncConnection]) -> Order: ...  # error


@app.processor(orders, group="n", to=orders, transaction=plain)
def another_result(order: Order, message: Message[Order, Connection]) -> str: ...  # error


app.processor(orders, group="g", transaction="postgresql://")  # error
app.processor(orders, group="l", transaction=Psycopg)  # error
Psycopg(1)  # error
AsyncPsycopg(None)  # error
Sqlite(1)  # error
SQLAlchemy("postgresql://")  # error
SQLAlchemy(sessions)  # error
