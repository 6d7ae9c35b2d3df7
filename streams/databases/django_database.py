"""A database of Django's settings, on PostgreSQL or SQLite, for plain handlers.

The handler runs inside ``transaction.atomic()`` of that database, so the ORM is used as in a view.
Django's connections belong to threads; as in a request, one that is too old or unusable is closed
before it is used again.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any
from urllib.parse import quote

from typing_extensions import override

from streams.databases.execution import django_rows
from streams.databases.protocol import (
    DAY,
    Database,
    DialectName,
    EndedByHandler,
    FailureKind,
    Rows,
    Session,
    Statement,
    SwallowedError,
    failure_of_driver,
    has_aborted,
    has_lost_transaction,
    import_error,
    known_dialect,
)
from streams.errors import ConfigError
from streams.secrets import is_secret_name


def address_of(using: str, caller: str) -> str:
    """The address of a database in Django's settings: a URL of a SQLite file, or libpq's form.

    The backend's vendor decides, not its name: PostGIS is PostgreSQL, too. libpq's form has all
    settings that the backend gives libpq.

    :param caller: the beginning of an error's text.
    :raises ConfigError: there is no database with that alias, or it is not PostgreSQL or SQLite.
    """
    from django.core.exceptions import ImproperlyConfigured  # type: ignore[import-untyped]
    from django.db import connections  # type: ignore[import-untyped]
    from django.utils.connection import ConnectionDoesNotExist  # type: ignore[import-untyped]

    try:
        connection = connections[using]
        if connection.vendor == "sqlite":
            return f"sqlite:///{quote(str(connection.settings_dict['NAME']), safe='/')}"
        if connection.vendor != "postgresql":
            raise ConfigError(f"{caller}: it is on {connection.vendor}, not PostgreSQL or SQLite")
        given = connection.get_connection_params()
    except ConnectionDoesNotExist as error:
        raise ConfigError(f"{caller}: DATABASES has no such alias") from error
    except ImproperlyConfigured as error:
        raise ConfigError(f"{caller}: Django has no settings of it: {error}") from error
    words = {
        name: str(value)
        for name, value in given.items()
        if name not in _DRIVER_ARGUMENTS and value not in (None, "")
    }
    if role := connection.settings_dict["OPTIONS"].get("assume_role"):  # Django's SET ROLE
        escaped = re.sub(r"([\\ ])", r"\\\1", role)
        words["options"] = f"{words.get('options', '')} -c role={escaped}".strip()
    # Text behind a secret is treated as a part of it when errors are shown.
    ordered = sorted(words, key=is_secret_name)
    return " ".join(f"{name}={_quote_value(words[name])}" for name in ordered)


_DRIVER_ARGUMENTS = frozenset(
    {
        "autocommit", "connection_factory", "context", "cursor_factory", "prepare_threshold",
        "row_factory",
    }
)  # fmt: skip
"""The arguments of psycopg and psycopg2 themselves; all others are libpq's."""


def _quote_value(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


class _DjangoSession(Session[Any]):
    def __init__(self, connection: Any, block: Any) -> None:
        self.connection = connection
        self._block = block
        self._open = False
        connection.close_if_unusable_or_obsolete()
        block.__enter__()
        self._open = True

    @override
    def execute(self, statement: Statement) -> Rows:
        return django_rows(self.connection, statement)

    @override
    def commit(self) -> None:
        if not self.connection.in_atomic_block:
            self._open = False
            raise EndedByHandler("Django(...)")
        inner = self.connection.connection
        if self.connection.needs_rollback or has_aborted(inner) or has_lost_transaction(inner):
            raise SwallowedError  # marked by Django, or by the database
        self._open = False
        self._block.__exit__(None, None, None)

    @override
    def rollback(self, *, close: bool = False) -> None:
        if self._open:
            self._open = False
            error = RuntimeError("rolled back")
            with suppress(Exception):
                self._block.__exit__(type(error), error, None)
            if close:
                with suppress(Exception):
                    self.connection.close()

    @override
    def is_broken(self) -> bool:
        inner = self.connection.connection
        return inner is None or bool(getattr(inner, "closed", False))

    @override
    def has_failed(self) -> bool:
        return bool(self.connection.errors_occurred)  # since the session began


class Django(Database[Any]):
    """A database of your Django settings, for plain handlers: the ORM works inside its transaction,
    and ``message.transaction`` is ``django.db.connections[using]``.

    :param using: the database's alias in ``DATABASES``.
    :param keep: see :class:`~streams.databases.protocol.Database`.
    :param create: see there.
    """

    def __init__(self, using: str = "default", *, keep: float = DAY, create: bool = True) -> None:
        super().__init__(keep=keep, create=create)
        if not isinstance(using, str) or not using:
            raise ConfigError(f"Django(using={using!r}): an alias of DATABASES")
        self.using = using
        """The database's alias in ``DATABASES``."""
        self._dialect: DialectName | None = None

    @override
    def address(self) -> str | None:
        return address_of(self.using, f"Django({self.using!r})")

    @property
    @override
    def asynchronous(self) -> bool:
        return False

    @property
    @override
    def dialect(self) -> DialectName:
        if self._dialect is None:
            raise RuntimeError("not known before it is open")
        return self._dialect

    @override
    def classify(self, error: BaseException) -> FailureKind:
        from django.db import Error
        from django.db.utils import InterfaceError, OperationalError  # type: ignore[import-untyped]

        if not isinstance(error, Error):
            return FailureKind.FAULT
        from_client = isinstance(error, (OperationalError, InterfaceError))
        return failure_of_driver(error.__cause__, from_client=from_client)

    @override
    def open(self, connections: int) -> None:
        try:
            from django.core.exceptions import (
                ImproperlyConfigured,
            )
            from django.db import connections as known
        except ImportError as error:
            raise import_error(self.name, "django", error) from None
        try:
            connection = known[self.using]
        except ImproperlyConfigured as error:
            raise ConfigError(f"transaction=Django({self.using!r}): {error}") from error
        except Exception as error:
            raise ConfigError(
                f"transaction=Django({self.using!r}): DATABASES has no such database"
            ) from error
        found = known_dialect(connection.vendor)
        if found is None:
            raise ConfigError(
                f"transaction=Django({self.using!r}): it is {connection.vendor}; the inbox works "
                "on PostgreSQL and SQLite"
            )
        if not connection.settings_dict["AUTOCOMMIT"]:
            raise ConfigError(
                f"transaction=Django({self.using!r}): with AUTOCOMMIT: False in DATABASES, "
                "transaction.atomic() commits nothing: leave it out"
            )
        self._dialect = found

    @override
    def begin(self) -> Session[Any]:
        from django.db import connections, transaction

        try:
            return _DjangoSession(
                connections[self.using], transaction.atomic(using=self.using, durable=True)
            )
        except Exception as error:
            self.hide_secrets(error)
            raise
