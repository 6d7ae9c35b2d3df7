"""An app with versions of one projection, and a reader of their tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any

import psycopg

from streams import Streams, Topic
from streams.projections import Projection
from tests.inbox.kinds import Kind

NAME = "sums"
SERVING = "SELECT version FROM streams_projections WHERE name = 'sums' AND serves"


class World:
    """One process's app: each version adds up in a table of its own, ``sums_v1``, ``sums_v2``.

    :param versions: those that its code has.
    """

    def __init__(
        self,
        url: str,
        topic: str,
        kind: Kind,
        place: str,
        versions: Iterable[int],
        *,
        name: str = NAME,
        **options: Any,
    ) -> None:
        self.before: Callable[[int, int], None] = lambda version, value: None
        """Called with each version's values before they are handled."""
        self.app = Streams(url)
        self.topic: Topic[int] = self.app.topic(topic, int, partitions=2)
        database = kind.make(place)
        mark = {"asyncpg": "$1", "sqlite": "?"}.get(kind.name, "%s")

        def declare(version: int) -> None:
            insert = f"INSERT INTO sums_v{version} VALUES ({mark})"

            async def add(values: list[int], messages: list[Any]) -> None:
                for value in values:
                    self.before(version, value)
                    parameters: Any = value if kind.name == "asyncpg" else (value,)
                    if kind.name == "asyncpg":
                        await messages[0].transaction.execute(insert, parameters)
                    else:
                        await messages[0].transaction.execute(insert, parameters)

            def add_plain(values: list[int], messages: list[Any]) -> None:
                for value in values:
                    self.before(version, value)
                    messages[0].transaction.execute(insert, (value,))

            views = [
                "DROP VIEW IF EXISTS sums",
                f"CREATE VIEW sums AS SELECT value FROM sums_v{version}",
            ]

            async def switch(connection: Any) -> None:
                for statement in views:
                    await connection.execute(statement)

            def switch_plain(connection: Any) -> None:
                for statement in views:
                    connection.execute(statement)

            given: Any = {"group": name, "batch": 50, "transaction": database, "version": version}
            given["on_promote"] = switch if kind.asynchronous else switch_plain
            declared: Any = self.app.processor
            declared(self.topic, **(given | options))(add if kind.asynchronous else add_plain)

        for version in versions:
            declare(version)

    def projection(self, version: int) -> Projection:
        (found,) = [each for each in self.app.projections if each.version == version]
        return found


class Reader:
    """Reads the tables as a user does, past the toolkit."""

    def __init__(self, place: str) -> None:
        self._is_server = "://" in place
        self._connection: Any
        if self._is_server:
            self._connection = psycopg.connect(place, autocommit=True)
        else:
            self._connection = sqlite3.connect(
                place, isolation_level=None, timeout=30, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode = WAL")

    def create(self, versions: Iterable[int] = (1, 2)) -> None:
        for version in versions:
            self.run(f"CREATE TABLE sums_v{version} (value integer NOT NULL)")

    def run(self, sql: str) -> list[Any]:
        cursor = self._connection.execute(sql)
        return cursor.fetchall() if cursor.description else []

    def serving(self) -> int | None:
        rows = self.run(SERVING)
        return rows[0][0] if rows else None

    def look(self) -> tuple[int, int]:
        """The version that serves, and how many rows its table has, as of one moment."""
        level = " ISOLATION LEVEL REPEATABLE READ" if self._is_server else ""
        self.run(f"BEGIN{level}")
        try:
            ((version,),) = self.run(SERVING)
            ((count,),) = self.run(f"SELECT count(*) FROM sums_v{version}")
            return version, count
        finally:
            self.run("COMMIT")

    def values(self, version: int) -> list[int]:
        return [row[0] for row in self.run(f"SELECT value FROM sums_v{version} ORDER BY value")]

    def close(self) -> None:
        self._connection.close()
