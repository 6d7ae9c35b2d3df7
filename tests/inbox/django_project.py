"""A small Django project with a processor: ``python -m tests.inbox.django_project ENGINE NAME HOST
PORT USER``. Prints what was handled, and what the inbox has."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from django.conf import settings  # type: ignore[import-untyped]

ENGINE, NAME, HOST, PORT, USER = sys.argv[1:6]
settings.configure(
    DATABASES={
        "default": {
            "ENGINE": f"django.db.backends.{ENGINE}",
            "NAME": NAME,
            "HOST": HOST,
            "PORT": PORT,
            "USER": USER,
            "CONN_MAX_AGE": None,
        }
    },
    INSTALLED_APPS=[],
)

import django  # type: ignore[import-untyped] # noqa: E402

django.setup()

from django.db import connection, models, transaction  # type: ignore[import-untyped] # noqa: E402

from streams import Dedup, Django, Message, Outbox, Retry, Streams  # noqa: E402
from streams.testing import harness  # noqa: E402


class Effect(models.Model):  # type: ignore[misc]
    key = models.TextField()
    number = models.IntegerField()

    class Meta:
        app_label = "shop"


app = Streams("memory://django")
orders = app.topic("orders", int)
doubles = app.topic("doubles", int)
database = Django()
outbox = Outbox(app, database)
failed: list[int] = []
stalled: list[int] = []
retries: list[int] = []


def lacks_room(cursor: Any) -> None:
    """Fail as where the disk is full."""
    if ENGINE == "postgresql":
        cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$")
    cursor.execute("PRAGMA max_page_count = 1")  # as many as there are
    cursor.execute("UPDATE shop_effect SET key = %s || key", ["x" * 20_000])


@app.processor(
    orders, group="g", concurrency=4, to=doubles, transaction=database, dedup=Dedup(window=0),
    retry=Retry(attempts=3, delay=0.001),
)  # fmt: skip
def handle(number: int, message: Message[int]) -> int:
    assert connection.in_atomic_block
    Effect.objects.create(key=message.id, number=number)
    with transaction.atomic():  # a savepoint
        Effect.objects.filter(key=message.id).update(number=number + 1)
    if number == 5 and not stalled:
        stalled.append(number)
        with transaction.atomic(), connection.cursor() as cursor:
            lacks_room(cursor)
    if number == 3 and not failed:
        failed.append(number)
        raise ValueError("not yet")
    return 2 * number


async def main() -> None:
    async with harness(app) as h:
        for number in range(8):
            await orders.publish(number, id=f"m{number}", key=str(number))
        for number in range(4):
            await orders.publish(number, id=f"m{number}", key=str(number))  # once more
        await h.settled()
        stats = handle.stats()
        assert stats is not None
        retries.append(stats.retries)


def create() -> None:
    with connection.schema_editor() as editor:
        editor.create_model(Effect)


create()
asyncio.run(main())
with connection.cursor() as cursor:
    cursor.execute("SELECT count(*) FROM streams_inbox")
    rows = cursor.fetchone()[0]
    cursor.execute("SELECT messageid FROM outbox")
    written = sorted(row[0] for row in cursor.fetchall())
assert handle.inbox is not None
print(sorted(Effect.objects.values_list("key", "number")))  # noqa: T201
print(written)  # noqa: T201
print(rows, handle.inbox.stats.duplicates, len(failed), len(stalled), retries[0])  # noqa: T201
