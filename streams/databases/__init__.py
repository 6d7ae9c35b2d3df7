"""The user's databases: runs handlers in their transactions, and the toolkit's statements with
them.

A :class:`~streams.databases.protocol.Database` is one of the classes below, created from a DSN or
from a function that returns the user's own pool. It opens, begins transactions on connections of
that library, runs the toolkit's statements in them, and classifies errors: the database is
unreachable, the same transaction may succeed when it is repeated, or the statement is at fault.

=====================  ==========================================================
``protocol``           the terms: database, session, statement, kinds of failure
``psycopg_database``   :class:`Psycopg`, :class:`AsyncPsycopg`
``asyncpg_database``   :class:`Asyncpg`
``sqlite_database``    :class:`Sqlite`
``sqlalchemy_database``  :class:`SQLAlchemy`
``django_database``    :class:`Django`
``execution``          a statement of ours on a connection of any library, and what an
                       error of a driver means: for sessions, and for outboxes
``locking``            how transactions begin that wait for locks, and are bounded
``addresses``          where a database is, as a URL or in libpq's words
``sqlite_files``       SQLite files that are opened without making or changing them
=====================  ==========================================================

A driver is imported by its own module alone, when it is first used.
"""

from typing import TYPE_CHECKING

from streams.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from streams.databases.asyncpg_database import Asyncpg as Asyncpg
    from streams.databases.django_database import Django as Django
    from streams.databases.protocol import Database as Database
    from streams.databases.psycopg_database import AsyncPsycopg as AsyncPsycopg
    from streams.databases.psycopg_database import Psycopg as Psycopg
    from streams.databases.sqlalchemy_database import SQLAlchemy as SQLAlchemy
    from streams.databases.sqlite_database import Sqlite as Sqlite
else:
    __all__, __getattr__, __dir__ = lazy_exports(
        __name__,
        {
            "streams.databases.asyncpg_database": "Asyncpg",
            "streams.databases.django_database": "Django",
            "streams.databases.protocol": "Database",
            "streams.databases.psycopg_database": "AsyncPsycopg Psycopg",
            "streams.databases.sqlalchemy_database": "SQLAlchemy",
            "streams.databases.sqlite_database": "Sqlite",
        },
    )
