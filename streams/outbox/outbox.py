"""The outbox that users declare, and publishing through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from stream_codecs import tags_of
from streams.app import Streams
from streams.databases.addresses import is_same_database
from streams.databases.django_database import Django
from streams.databases.locking import begin_locking
from streams.databases.protocol import Database as ProviderDatabase
from streams.databases.protocol import (
    DialectName,
    Statement,
    Steps,
    is_file_of,
    run_steps,
    run_steps_async,
)
from streams.derived_records import TRACE_HEADERS, DerivedResult
from streams.errors import ConfigError
from streams.health import OutboxHealth, OutboxStats
from streams.log.protocol import OpenMode
from streams.message import TYPE, Record, headers_without
from streams.numbers import is_int, is_seconds
from streams.outbox.connections import AsyncConnection, PlainConnection, connection_of
from streams.outbox.databases import RelayDatabase, SqliteDatabase, open_database
from streams.outbox.relay import Relay, RelayOptions
from streams.outbox.rows import row_of
from streams.outbox.tables import (
    Dialect,
    TableNames,
    dialect_of,
    parameters_of_rows,
    split_by_powers,
    statement,
)
from streams.topic import Key, Topic

T = TypeVar("T")

RelayedBy = Literal["app", "command", "debezium"]
"""The publisher of the rows: the app's processes, ``streams outbox relay``, or Debezium."""


class _DatabaseCheck:
    """Checks, when the app is entered, that the outbox's database can be used."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    async def __aenter__(self) -> None:
        database, log = self._outbox.open(), self._outbox.app.log
        self._outbox.check_database(database)
        if isinstance(database, SqliteDatabase) and is_file_of(log, Path(database.path)):
            raise ConfigError(
                f"{self._outbox!r}: {database.path} is the log's own file, which no other "
                "SQLite may open: give the outbox its own, or publish within app.transaction()"
            )

    async def __aexit__(self, *exc: object) -> None:
        pass


class Outbox:
    """Publishes messages with a transaction of the user's own database.

    Published messages go into a table of that database, by the caller's own connection, so they get
    into the log if the caller's transaction commits, and never if it is rolled back. Messages of
    one topic and key are in order if one's transaction began after the other's had committed;
    within one transaction, in the order of the calls. A relay that is killed may publish a row
    again, under the same message ID, which consumers drop (:class:`~streams.Dedup`).

    :param app: the app whose topics are published to. Rows are relayed only to topics that it
        declares.
    :param database: the database's address, for the relay's own connections:
        ``postgresql://user@host/database`` or ``sqlite:///file.db``; or a function that returns it;
        or what processors have as ``transaction=``, made from an address.
    :param transaction: what processors with ``to=`` have as ``transaction=`` (one, or several),
        where that has another address or a pool of yours, and so cannot be seen to be this
        database: their results go through this outbox.
    :param table: the table's name, ``schema.table`` or without a schema. Two more tables, with
        ``_relays`` and ``_buckets`` behind that name, belong to it.
    :param relayed_by: ``"app"``: each process that runs the app's processors relays, too.
        ``"command"``: ``streams outbox relay`` does. ``"debezium"``: a Debezium connector does,
        from the database's own log, and a row is deleted by the transaction that wrote it.
    :param lease: seconds after which the keys of a relay without a heartbeat are taken over.
    :param poll: seconds between two polls for rows for which no relay was woken.
    :param batch: rows in memory at once, at most.
    :param batch_bytes: the bytes of those rows; a single larger row is taken alone.
    :param max_bytes: bytes of a message, with its key and headers. A larger one fails when it is
        published; the limit should not exceed the log's.
    :param notify: wake the relays by PostgreSQL's NOTIFY. Without it the poll finds the rows.
    :raises ConfigError: an argument is invalid; raised when the app is entered, if that depends on
        the result of ``database``.
    """

    def __init__(
        self,
        app: Streams,
        database: str | Callable[[], str] | ProviderDatabase[Any],
        *,
        transaction: ProviderDatabase[Any] | Iterable[ProviderDatabase[Any]] = (),
        table: str = "outbox",
        relayed_by: RelayedBy = "app",
        lease: float = 10.0,
        poll: float = 1.0,
        batch: int = 10_000,
        batch_bytes: int = 16 << 20,
        max_bytes: int = 1_000_000,
        notify: bool = True,
    ) -> None:
        if not isinstance(app, Streams):  # not shown: it may be the address, with a password
            raise ConfigError(
                f"Outbox(app, database): app is a Streams app, not a {type(app).__name__}"
            )
        self.tables = TableNames(table)
        self.name = table
        """The outbox's name: the table's."""
        if relayed_by not in get_args(RelayedBy):
            known = ", ".join(map(repr, get_args(RelayedBy)))
            raise ConfigError(f"Outbox(relayed_by={relayed_by!r}): one of {known}")
        for option, number in (("lease", lease), ("poll", poll)):
            if not is_seconds(number, positive=True):
                raise ConfigError(
                    f"Outbox({option}={number!r}): must be a positive number of seconds"
                )
        for option, count in (
            ("batch", batch), ("batch_bytes", batch_bytes), ("max_bytes", max_bytes),
        ):  # fmt: skip
            if not is_int(count, 1):
                raise ConfigError(f"Outbox({option}={count!r}): must be a positive integer")
        if table in app.outboxes:
            raise ConfigError(
                f"Outbox(table={table!r}): the app has an outbox of that table already"
            )
        self._app = app
        self._given: tuple[ProviderDatabase[Any], ...] = _databases_of(transaction)
        if isinstance(database, ProviderDatabase):
            self._given = (database, *self._given)
        self._given_address = _address_of(database)
        self.relayed_by: RelayedBy = relayed_by
        if isinstance(self._given_address, str):  # an invalid one is found now
            self.check_database(open_database(self._given_address, self.tables))
        self.max_bytes = max_bytes
        self._notify = notify
        self._dialects: dict[DialectName, Dialect] = {}
        self._type_names: dict[type, str] = {}
        self._relay = Relay(
            app, self.tables, self.address, RelayOptions(lease, poll, batch, batch_bytes)
        )
        app.outboxes[table] = self
        app.add_resource(_DatabaseCheck(self))
        if relayed_by == "app":
            app.add_service(self.relay)

    def __repr__(self) -> str:
        return f"<Outbox {self.name!r}>"

    # -- publishing

    async def publish(
        self,
        topic: Topic[T],
        value: T,
        *,
        connection: Any,
        key: Key | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        """Publish a message if the transaction that is open on a connection commits.

        This sends nothing to the log, and the app need not be entered.

        :param connection: of psycopg, asyncpg, SQLAlchemy (a connection or a session), aiosqlite or
            sqlite3. One in autocommit mode is refused.
        :param key: as in :meth:`streams.Topic.publish`, and so the other options. In an outbox a
            key has 255 characters at most.
        :returns: the message ID.
        :raises EncodeError: the value does not fit the topic's type; nothing was written.
        :raises TooLarge: it has more than ``max_bytes``; nothing was written.
        :raises InvalidValue: the key is too long, or the ID is no text; nothing was written.
        :raises ConfigError: the connection or the topic cannot be used.
        """
        found = connection_of(connection)
        steps = self._publish_steps(found.dialect, topic, value, key, id, headers, timestamp)
        if isinstance(found, PlainConnection):
            return run_steps(found, steps)
        return await run_steps_async(found, steps)

    def publish_sync(
        self,
        topic: Topic[T],
        value: T,
        *,
        connection: Any,
        key: Key | None = None,
        id: str | None = None,
        headers: Mapping[str, str] | None = None,
        timestamp: datetime | None = None,
    ) -> str:
        """As :meth:`publish`, for plain code: on a connection, session or cursor whose statements
        block, of psycopg, psycopg2, SQLAlchemy, Django or sqlite3."""
        found = connection_of(connection)
        if isinstance(found, AsyncConnection):
            raise ConfigError(
                f"outbox: connection={type(connection).__name__}: its statements are awaited; use "
                "`await outbox.publish(...)`"
            )
        return self.write_row(found, topic, value, key, id, headers, timestamp)

    def write_row(
        self,
        connection: PlainConnection,
        topic: Topic[T],
        value: T,
        key: Key | None,
        id: str | None,
        headers: Mapping[str, str] | None,
        timestamp: datetime | None,
    ) -> str:
        """Write a row by a connection that was checked already."""
        return run_steps(
            connection,
            self._publish_steps(connection.dialect, topic, value, key, id, headers, timestamp),
        )

    def _publish_steps(
        self,
        dialect: DialectName,
        topic: Topic[T],
        value: T,
        key: Key | None,
        id: str | None,
        headers: Mapping[str, str] | None,
        timestamp: datetime | None,
    ) -> Steps[str]:
        """Write a message's row; returns its ID."""
        row = self._make_row(topic, value, key, id, headers, timestamp)
        yield from self._write_steps(dialect, [row])
        message_id: str = row["messageid"]
        return message_id

    def _write_steps(self, name: DialectName, rows: Sequence[Mapping[str, Any]]) -> Steps[None]:
        """Write rows, in their order."""
        dialect = self._dialect_for(name)
        if self.relayed_by == "debezium":  # Debezium reads the insertion
            self._check_relayed(name)
            for row in rows:
                written = yield statement(dialect.insert_for_debezium(), row)
                yield statement(dialect.delete_one(), {"sequence": written[0][0]})
            return
        for portion in split_by_powers(len(rows)):
            some = rows[portion]
            sql = dialect.insert_row(notify=self._notify, rows=len(some))
            yield statement(sql, parameters_of_rows(some))

    def check_database(self, database: RelayDatabase) -> None:
        """:raises ConfigError: the relay of the rows cannot use it."""
        self._check_relayed("sqlite" if isinstance(database, SqliteDatabase) else "postgresql")

    def _check_relayed(self, dialect: DialectName) -> None:
        if self.relayed_by == "debezium" and dialect == "sqlite":
            raise ConfigError(
                f"{self!r}: relayed_by='debezium' is for PostgreSQL, whose write-ahead log "
                "Debezium reads; from a SQLite file nothing would be published: leave it out"
            )

    def _check_topic(self, topic: Topic[Any]) -> None:
        """:raises ConfigError: the topic cannot be published to from here."""
        if not isinstance(topic, Topic):
            raise ConfigError(f"{self!r}: {topic!r} is not a topic; use app.topic(...)")
        if self._app.topics.get(topic.name) is None or topic.connection is not self._app:
            raise ConfigError(f"{self!r}: topic {topic.name!r} is not declared on its app")
        if topic.is_read_only or topic.internal:
            raise ConfigError(f"{self!r}: topic {topic.name!r} is the toolkit's own")

    def _make_row(
        self,
        topic: Topic[T],
        value: T,
        key: Key | None,
        id: str | None,
        headers: Mapping[str, str] | None,
        timestamp: datetime | None,
    ) -> dict[str, Any]:
        """The columns of a message."""
        self._check_topic(topic)
        record = topic.record(value, key=key, id=id, headers=headers, timestamp=timestamp)
        observer = self._app.publish_observer
        with nullcontext() if observer is None else observer(topic.name, (record,)):
            pass  # it adds headers, such as traceparent; the partition is not known yet
        return row_of(topic.name, self._type_name(value, record), record, self.max_bytes)

    def _dialect_for(self, name: DialectName) -> Dialect:
        found = self._dialects.get(name)
        if found is None:
            found = self._dialects[name] = dialect_of(name, self.tables)
        return found

    def _type_name(self, value: object, record: Record) -> str:
        """The value of Debezium's column ``type``: the CloudEvents type, the tag, else the
        class."""
        for name, found in record.headers:
            if name == TYPE and found:
                return found.decode("utf-8", "replace")
        kind = type(value)
        known = self._type_names.get(kind)
        if known is None:
            tags = [tag for tag in tags_of(kind) if isinstance(tag, str)]
            known = self._type_names[kind] = tags[0] if tags else kind.__name__
        return known

    # -- what handlers with to= return (see streams.inbox.results)

    def was_given(self, database: ProviderDatabase[Any]) -> bool:
        """Whether the declaration names this database of a processor."""
        return any(each is database for each in self._given)

    def is_in(self, database: ProviderDatabase[Any]) -> bool:
        """Whether the table is in that database, as far as the addresses show it."""
        address, has_schema = database.address(), bool(self.tables.schema_prefix)
        return address is not None and is_same_database(
            address, self.address(), any_user=has_schema
        )

    def find_table(self, dialect: DialectName) -> Steps[bool]:
        """Whether the table exists where the statements run."""
        rows = yield Statement(self._dialect_for(dialect).has_outbox())
        return bool(rows[0][0])

    def create_tables_there(self, dialect: DialectName) -> Steps[None]:
        """Create the tables where the statements run, which must be the first ones of their
        transaction."""
        yield from begin_locking(dialect)
        found = self._dialect_for(dialect)
        if lock := found.lock_creation():
            yield Statement(lock)
        for sql in _creation_statements(found):
            yield Statement(sql)

    def write_results(
        self, connection: Any, topic: Topic[Any], results: Sequence[DerivedResult]
    ) -> None:
        """Write a handler's results, in the transaction that is open on a connection."""
        found = connection_of(connection)
        if isinstance(found, AsyncConnection):
            raise TypeError("a connection whose statements are awaited")
        run_steps(found, self._write_steps(found.dialect, self._rows_of_results(topic, results)))

    async def write_results_async(
        self, connection: Any, topic: Topic[Any], results: Sequence[DerivedResult]
    ) -> None:
        """As :meth:`write_results`, on a connection whose statements are awaited."""
        found = connection_of(connection)
        if isinstance(found, PlainConnection):
            raise TypeError("a connection whose statements block")
        rows = self._rows_of_results(topic, results)
        await run_steps_async(found, self._write_steps(found.dialect, rows))

    def _rows_of_results(
        self, topic: Topic[Any], results: Sequence[DerivedResult]
    ) -> list[dict[str, Any]]:
        self._check_topic(topic)
        records = [topic.derived_record(*each) for each in results]
        observer = self._app.publish_observer
        if observer is not None:
            for record in records:  # the handler's trace, which is open now, and not its source's
                record.headers = headers_without(record.headers, TRACE_HEADERS)
            with observer(topic.name, records):
                pass
        return [
            row_of(topic.name, self._type_name(each.value, record), record, self.max_bytes)
            for each, record in zip(results, records, strict=True)
        ]

    # -- relaying

    @property
    def app(self) -> Streams:
        """The app that the outbox was declared on."""
        return self._app

    @property
    def address(self) -> Callable[[], str]:
        """A function that returns the database's address."""
        given = self._given_address
        return given if callable(given) else lambda: given

    def open(self, mode: OpenMode = "rwc") -> RelayDatabase:
        """A connection to the database, which is not opened yet.

        :param mode: for a SQLite file: ``ro`` only reads, ``rw`` does not create it.
        :raises ConfigError: the address is invalid, or a driver is missing.
        """
        return open_database(self.address(), self.tables, mode)

    def schema(self) -> list[str]:
        """The statements that create missing tables; a relay runs them. They may also be put into
        migrations: running them again is harmless.

        :raises ConfigError: the database's address cannot work.
        """
        return list(_creation_statements(self.open().dialect))

    async def create_tables(self) -> None:
        """Create the missing tables.

        :raises LogError: the database cannot be reached, or does not allow it.
        """
        database = self.open()
        try:
            await database.connect(60.0)
            await database.create_tables()
        finally:
            await database.close()

    async def relay(self) -> None:
        """Relay rows to the log until cancelled; the app must be entered.

        The relay waits while the database or the log is unavailable. Any number of relays may run,
        in any processes: they share the keys, and take over from each other.

        :raises ConfigError: the database's address cannot work.
        """
        await self._relay.run()

    def stats(self) -> OutboxStats:
        """Figures of this moment (any thread)."""
        return self._relay.stats()

    def health(self) -> OutboxHealth:
        """The health of the outbox's relay in this process (any thread)."""
        return self._relay.health()


def _creation_statements(dialect: Dialect) -> Iterator[str]:
    """The statements that create missing tables."""
    yield from dialect.schema()
    for bucket in range(dialect.bucket_count):
        yield dialect.add_bucket().replace(":bucket", str(bucket))


def _databases_of(given: Any) -> tuple[ProviderDatabase[Any], ...]:
    """One database of processors, or several.

    :raises ConfigError: it is something else.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str)
    found: list[Any] = list(given) if several else [given]
    for each in found:
        if not isinstance(each, ProviderDatabase):
            raise ConfigError(
                f"Outbox(transaction={type(each).__name__}): what a processor has as transaction=, "
                "such as a Psycopg or an AsyncPsycopg"
            )
    return tuple(found)


def _address_of(
    given: str | Callable[[], str] | ProviderDatabase[Any],
) -> str | Callable[[], str]:
    """The address that the relay connects to.

    :raises ConfigError: a processors' database has no address.
    """
    if not isinstance(given, ProviderDatabase):
        return given
    if isinstance(given, Django):
        return lambda: given.address() or ""  # its settings may not be there yet
    address = given.address()
    if address is None:
        raise ConfigError(
            f"Outbox(app, {given.name}(...)): its relay connects by itself, and a pool or a "
            "function of yours does not say where to: give the address, and the database beside "
            "it: Outbox(app, 'postgresql://...', transaction=database)"
        )
    return address
