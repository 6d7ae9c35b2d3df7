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
)
from psycopg import AsyncConnection, Connection
from sqlalchemy.orm import Session

from streams import Message, Psycopg, SQLAlchemy, Sqlite, Transaction


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
async def batch(
    values: list[Order], messages: list[Message[Order, Connection]]
) -> None: ...  # error


app.processor(orders, group="g", transaction="postgresql://")  # error
Psycopg(1)  # error
Sqlite(1)  # error
SQLAlchemy("postgresql://")  # error
