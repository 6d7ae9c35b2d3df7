"""A Django app for the outbox: ``INSTALLED_APPS = [..., "streams.outbox.django"]``.

Its migration creates the tables, on PostgreSQL or SQLite; the model
:class:`~streams.outbox.django.models.OutboxRow` shows what waits there, in the admin as elsewhere.
:func:`publish_on_commit` publishes with the transaction that is open there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from streams.databases.django_database import address_of

if TYPE_CHECKING:
    from streams.outbox.outbox import Outbox
    from streams.topic import Key, Topic

T = TypeVar("T")


def database_of(using: str = "default") -> Callable[[], str]:
    """What says where a database of Django's settings is: give it to ``Outbox``.

    :param using: the database's alias in ``DATABASES``.
    """
    return lambda: address_of(using, f"database_of({using!r})")


def publish_on_commit(
    outbox: Outbox,
    topic: Topic[T],
    value: T,
    *,
    using: str = "default",
    key: Key | None = None,
    id: str | None = None,
    headers: Mapping[str, str] | None = None,
    timestamp: datetime | None = None,
) -> str:
    """Publish a message if the transaction that is open commits; without one, at once.

    Unlike what is given to ``transaction.on_commit``, it is not lost if the process dies behind the
    commit: the row is part of the transaction. Plain code; from a coroutine, within
    ``sync_to_async`` as everything of Django's transactions.

    :param using: the alias of the database.
    :returns: the message ID.
    :raises EncodeError: the value does not fit the topic's type; nothing was written.
    :raises TooLarge: it has more than the outbox's ``max_bytes``; nothing was written.
    :raises InvalidValue: the key is too long, or the ID is no text; nothing was written.
    :raises ConfigError: the topic cannot be used, or the database is neither PostgreSQL nor SQLite.
    """
    from django.db import connections  # type: ignore[import-untyped]

    from streams.outbox.connections import django_connection

    connection = django_connection(connections[using])
    return outbox.write_row(connection, topic, value, key, id, headers, timestamp)
