"""A small Django project, with PostgreSQL and with SQLite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from streams import ConfigError, Sqlite

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("engine", ["postgresql", "sqlite3"])
def test_a_small_project(engine: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    place = (str(tmp_path / "django.db"), "", "", "")
    if engine == "postgresql":
        found = urlsplit(request.getfixturevalue("postgres"))
        place = (found.path[1:], str(found.hostname), str(found.port), str(found.username))
    done = subprocess.run(
        [sys.executable, "-m", "tests.inbox.django_project", engine, *place],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    effects = [(f"m{number}", number + 1) for number in range(8)]
    written = [f"m{number}/g/0" for number in range(8)]
    assert done.stdout.splitlines() == [str(effects), str(written), "8 4 1 1 1"]


def test_a_database_whose_transactions_commit_nothing_is_refused() -> None:
    """Without autocommit ``atomic()`` commits nothing: its effects would be lost, and settled."""
    program = """
from django.conf import settings
one = {"ENGINE": "django.db.backends.sqlite3", "NAME": "a.db", "AUTOCOMMIT": False}
settings.configure(DATABASES={"default": one}, INSTALLED_APPS=[])
import django
django.setup()
from streams import Django
Django().open(1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert "ConfigError: transaction=Django('default'): with AUTOCOMMIT: False" in done.stderr


def test_an_error_of_the_orm_that_the_handler_swallows_fails_the_message(tmp_path: Path) -> None:
    """Django has marked the transaction: nothing of it can be committed. Others are handled."""
    program = """
import asyncio
import sys
from django.conf import settings
one = {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1]}
settings.configure(DATABASES={"default": one}, INSTALLED_APPS=[])
import django
django.setup()
from django.db import IntegrityError, connection, models
from streams import Django, Message, Retry, Streams
from streams.testing import harness

class Effect(models.Model):
    key = models.TextField(unique=True)
    class Meta:
        app_label = "shop"

with connection.schema_editor() as editor:
    editor.create_model(Effect)
app = Streams("memory://")
orders = app.topic("orders", str, partitions=1)

@app.processor(orders, group="g", transaction=Django(), retry=Retry(attempts=1))
def handle(key: str, message: Message[str]) -> None:
    try:
        Effect.objects.create(key=key)
    except IntegrityError:
        pass

async def main() -> None:
    async with harness(app) as h:
        await orders.publish_many(["a", "a", "b"])
        await h.settled()
        dead = await h.dead(orders, "g")
        print([letter.headers["__streams.errors.exception"] for letter in dead])

asyncio.run(main())
print(sorted(Effect.objects.values_list("key", flat=True)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.db")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "['streams.databases.protocol.SwallowedError']", "['a', 'b']",
    ]  # fmt: skip


ENGINE = '''
from django.db.backends.postgresql import base


class DatabaseWrapper(base.DatabaseWrapper):
    """As that of PostGIS, and many others."""
'''


def test_an_outage_with_an_engine_that_is_called_otherwise(tmp_path: Path) -> None:
    """Its messages wait, as with Django's own."""
    (tmp_path / "geo").mkdir()
    (tmp_path / "geo" / "__init__.py").touch()
    (tmp_path / "geo" / "base.py").write_text(ENGINE)
    program = """
import asyncio
from django.conf import settings
one = {"ENGINE": "geo", "NAME": "shop", "HOST": "127.0.0.1", "PORT": "1", "PASSWORD": "it's"}
settings.configure(DATABASES={"default": one}, INSTALLED_APPS=[])
import django
django.setup()
from streams import Django, Message, Streams
from streams.testing import harness

database = Django()
app = Streams("memory://")
orders = app.topic("orders", str)

@app.processor(orders, group="g", transaction=database)
def handle(key: str, message: Message[str]) -> None: ...

async def main() -> None:
    async with harness(app):
        await orders.publish("a")
        async with asyncio.timeout(60):
            while handle.inbox.stats.reachable:
                await asyncio.sleep(0.01)
        stats = handle.stats()
        print(stats.retries, stats.dead_letters)

asyncio.run(main())
print(database.address())
"""
    paths = (str(tmp_path), str(ROOT), str(ROOT / "codecs"))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "0 0",
        r"dbname='shop' client_encoding='UTF8' host='127.0.0.1' port='1' password='it\'s'",
    ]


def test_an_error_counts_also_where_the_address_cannot_be_told() -> None:
    class Elsewhere(Sqlite):
        def address(self) -> str:
            raise ConfigError("no such alias")

    error = OSError("no route")
    Elsewhere("a.db").hide_secrets(error)
    assert str(error) == "no route"
