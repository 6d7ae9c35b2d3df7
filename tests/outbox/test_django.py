"""A small Django project, run as one: migrated, called over its views, and relayed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from tests.outbox.world import Place

ROOT = Path(__file__).parents[2]

SETTINGS = '''
"""The settings of a shop."""

DATABASES = {"default": DATABASE}
INSTALLED_APPS = ["streams.outbox.django", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "s"
ROOT_URLCONF = "shop.urls"
ALLOWED_HOSTS = ["*"]
USE_TZ = True
'''

EVENTS = '''
"""The topics of the shop, and what takes its outbox to them."""

import os

from msgspec import Struct

from streams import Streams
from streams.outbox import Outbox
from streams.outbox.django import database_of


class Placed(Struct):
    id: str
    cents: int


app = Streams(os.environ["SHOP_LOG"])
orders = app.topic("orders", Placed, key="id", partitions=2)
outbox = Outbox(app, database_of(), relayed_by="command")
'''

MODELS = """
from django.db import models


class Order(models.Model):
    name = models.CharField(max_length=40)
    cents = models.IntegerField()
"""

URLS = '''
from django.db import transaction
from django.http import JsonResponse
from django.urls import path
from shop import events
from shop.models import Order
from streams.outbox.django import publish_on_commit


@transaction.atomic
def place(request, name, cents):
    Order.objects.create(name=name, cents=cents)
    id = publish_on_commit(events.outbox, events.orders, events.Placed(name, cents))
    if cents == 0:
        raise ValueError("for nothing")
    return JsonResponse({"id": id})


def place_later(request, name, cents):
    """With the outbox's own call, on Django's connection."""
    from django.db import connection

    with transaction.atomic():
        events.outbox.publish_sync(
            events.orders, events.Placed(name, cents), connection=connection
        )
    return JsonResponse({})


urlpatterns = [
    path("place/<str:name>/<int:cents>", place),
    path("later/<str:name>/<int:cents>", place_later),
]
'''

SCRIPT = """
import asyncio
import json

import django

django.setup()

from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.test.utils import setup_test_environment

setup_test_environment()
call_command("migrate", verbosity=0)
call_command("makemigrations", "--check", "--dry-run", "streams_outbox", verbosity=0)

from shop import events
from streams import ConfigError
from streams.outbox.django.models import OutboxRow

with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE shop_order (id serial PRIMARY KEY, name text, cents integer)"
                   if connection.vendor == "postgresql" else
                   "CREATE TABLE shop_order (id integer PRIMARY KEY, name text, cents integer)")

client = Client(raise_request_exception=False)
answers = [client.post(f"/place/{name}/{cents}").status_code
           for name, cents in (("a", 1), ("b", 0), ("a", 2))]
client.post("/later/a/3")
try:
    events.outbox.publish_sync(events.orders, events.Placed("a", 4), connection=connection)
    refused = ""
except ConfigError as error:
    refused = str(error)
rows = [(row.aggregatetype, row.aggregateid, row.type, bytes(row.payload).decode(),
         str(row.id) == row.messageid) for row in OutboxRow.objects.all()]


async def relay():
    async with events.app.connected():
        task = asyncio.create_task(events.outbox.relay())
        while await OutboxRow.objects.acount():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return [(m.key, m.value.cents) async for m in events.orders.read()]


published = asyncio.run(relay())
call_command("migrate", "streams_outbox", "zero", verbosity=0)
print(json.dumps({"answers": answers, "rows": rows, "published": published, "refused": refused,
                  "tables": connection.introspection.table_names()}))
"""


def database_settings(place: Place) -> dict[str, Any]:
    if not place.is_postgres:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": place.path}
    found = conninfo_to_dict(place.dsn)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found["dbname"],
        "USER": found.get("user"),
        "PASSWORD": found.get("password"),
        "HOST": found.get("host"),
        "PORT": found.get("port"),
    }


def test_a_django_project(place: Place, tmp_path: Path) -> None:
    for table in ("outbox", "outbox_relays", "outbox_buckets"):
        place.run(f"DROP TABLE {table}")
    project = tmp_path / "project"
    (project / "shop").mkdir(parents=True)
    settings = SETTINGS.replace("DATABASE}", f"{database_settings(place)!r}}}")
    for name, text in {
        "settings.py": settings,
        "try_it.py": SCRIPT,
        "shop/__init__.py": "",
        "shop/events.py": EVENTS,
        "shop/models.py": MODELS,
        "shop/urls.py": URLS,
    }.items():
        (project / name).write_text(text)
    paths = [str(ROOT), str(ROOT / "codecs"), str(project)]
    done = subprocess.run(
        [sys.executable, "try_it.py"],
        cwd=project,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "DJANGO_SETTINGS_MODULE": "settings",
            "SHOP_LOG": f"sqlite:///{tmp_path}/log.db",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answers"] == [200, 500, 200]
    assert found["rows"] == [
        ["orders", "a", "Placed", f'{{"id":"a","cents":{cents}}}', True] for cents in (1, 2, 3)
    ]
    assert found["published"] == [["a", 1], ["a", 2], ["a", 3]]
    assert "no transaction is open" in found["refused"]
    assert not {"outbox", "outbox_relays", "outbox_buckets"} & set(found["tables"])


def test_a_relay_connects_with_all_that_django_does() -> None:
    """Of several hosts, to the one that takes writes; as the role that owns the tables."""
    options = {
        "target_session_attrs": "read-write", "passfile": "/run/pass file", "keepalives": 0,
        "options": "-c search_path=shop", "isolation_level": 2, "server_side_binding": True,
        "assume_role": "the clerk",
    }  # fmt: skip
    settings = {
        "ENGINE": "django.db.backends.postgresql", "NAME": "shop", "HOST": "a,b", "USER": "u",
        "OPTIONS": options,
    }  # fmt: skip
    program = f"""
from django.conf import settings
settings.configure(DATABASES={{"default": {settings!r}}})
from streams.outbox.django import database_of
print(database_of()())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert conninfo_to_dict(done.stdout.strip()) == {
        "dbname": "shop", "user": "u", "host": "a,b", "client_encoding": "UTF8",
        "target_session_attrs": "read-write", "passfile": "/run/pass file", "keepalives": "0",
        "options": r"-c search_path=shop -c role=the\ clerk",
    }  # fmt: skip
