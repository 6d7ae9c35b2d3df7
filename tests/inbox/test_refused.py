"""What cannot work is said when it is declared, or when the app starts."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import (
    Asyncpg,
    AsyncPsycopg,
    ConfigError,
    DeadLetters,
    Message,
    ProcessorDied,
    Psycopg,
    SQLAlchemy,
    Sqlite,
    Streams,
)
from streams.inbox import ddl
from streams.testing import harness
from tests.inbox.kinds import Kind, Place

DSN = "postgresql://somebody:secret@nowhere/nothing"


def plain(value: int, message: Message[int, Any]) -> None: ...


async def asynchronous(value: int, message: Message[int, Any]) -> None: ...


@pytest.mark.parametrize(
    ("handler", "options", "said"),
    [
        (plain, {"transaction": DSN}, "such as transaction=Psycopg"),
        (plain, {"transaction": AsyncPsycopg(DSN)}, "make it `async def`, or use Psycopg"),
        (asynchronous, {"transaction": Psycopg(DSN)}, "make it a plain `def`, or use AsyncPsycopg"),
        (asynchronous, {"transaction": Sqlite("a.db")}, "would block the event loop"),
        (plain, {"transaction": Asyncpg(DSN)}, "is for async ones"),
        (
            plain,
            {"transaction": Psycopg(DSN), "dead_letters": DeadLetters(sequenced=True)},
            r"DeadLetters\(sequenced=True\) with transaction=",
        ),
    ],
)
def test_a_declaration(handler: Any, options: dict[str, Any], said: str) -> None:
    app = Streams("memory://refused")
    topic = app.topic("numbers", int)
    with pytest.raises(ConfigError, match=said) as caught:
        app.processor(topic, group="g", **options)(handler)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Psycopg(""), "an empty text"),
        (lambda: Psycopg(7), "a DSN, or a function that returns a psycopg_pool.ConnectionPool"),  # type: ignore[arg-type]
        (lambda: Psycopg(DSN, keep=-1), "seconds, 0 or more"),
        (lambda: Sqlite(":memory:"), "its own database|a database of its own"),
        (lambda: Sqlite("sqlite:///a.db"), "not a URL"),
        (lambda: SQLAlchemy("postgresql://"), "a sessionmaker"),  # type: ignore[call-overload]
    ],
)
def test_a_database(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("keep", [math.inf, math.nan, 1e12, -0.1, True, "7"])
def test_a_time_that_no_database_can_go_back(keep: Any) -> None:
    with pytest.raises(ConfigError, match="seconds, 0 or more, and a century"):
        Sqlite("a.db", keep=keep)


async def test_mysql() -> None:
    from sqlalchemy.dialects.mysql.base import MySQLDialect

    database = SQLAlchemy.__new__(SQLAlchemy)
    with pytest.raises(ConfigError, match="its engine is mysql; the inbox works on PostgreSQL"):
        database._set_dialect(MySQLDialect.name)


async def test_the_logs_own_file(tmp_path: Path) -> None:
    app = Streams(f"sqlite:///{tmp_path / 'log.db'}")
    topic = app.topic("numbers", int)
    app.processor(topic, group="g", transaction=Sqlite(tmp_path / "log.db"))(plain)
    with pytest.raises(ConfigError, match="names the log's own file"):
        async with app:
            pass


async def test_missing_tables_that_must_not_be_made(kind: Kind, place: Place) -> None:
    app = Streams("memory://refused")
    topic = app.topic("numbers", int)
    app.processor(topic, group="g", transaction=kind.make(place.place, create=False))(
        kind.handler(lambda message: None, lambda message: message.id)
    )
    with pytest.raises(ProcessorDied, match=r"tables are missing.*streams inbox ddl"):
        async with harness(app) as h:
            await topic.publish(1)
            await h.settled()


async def test_missing_tables_of_a_message_that_cannot_be_decoded(
    file_kind: Kind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its dead letter is the first that needs them: that is not tried for ever."""
    url = f"memory://{uuid4().hex}"
    app, writer = Streams(url), Streams(url)
    numbers, texts = app.topic("numbers", int), writer.topic("numbers", str)
    app.processor(
        numbers, group="g", transaction=file_kind.make(str(tmp_path / "a.db"), create=False)
    )(file_kind.handler(lambda message: None, lambda message: message.id))
    with pytest.raises(ProcessorDied, match="tables are missing"):
        async with writer.connected(), app:
            await texts.publish("no number")
            await asyncio.Event().wait()  # is cancelled
    assert "cannot write the dead letter" not in caplog.text


def test_the_command_prints_what_makes_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streams.cli", "inbox", "ddl"]
    for dialect in ("postgresql", "sqlite"):
        done = subprocess.run([*command, dialect], capture_output=True, text=True, check=True)
        assert done.stdout == ddl(dialect)
    done = subprocess.run([*command, "mysql"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "postgresql or sqlite" in done.stderr


def test_a_fake_in_a_test() -> None:
    class Fake:
        rows: list[int] = []  # noqa: RUF012

    app = Streams("memory://fake")
    topic = app.topic("numbers", int)

    @app.processor(topic, group="g", transaction=Psycopg(DSN))
    def handle(value: int, message: Message[int, Any]) -> None:
        message.transaction.rows.append(value)

    handle(7, Message(7, transaction=Fake))
    assert Fake.rows == [7]
