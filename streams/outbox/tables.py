"""The tables of an outbox and every statement on them, for PostgreSQL and for SQLite.

The outbox has Debezium's columns (``id``, ``aggregatetype``, ``aggregateid``, ``type``,
``payload``) and columns of our own beside them, all of which have defaults: a row that was written
with Debezium's five alone is relayed, too.

====================  ==========================================================================
``sequence``          the primary key: the order in which rows were written
``messageid``         the message ID; where it is absent, ``id`` is
``keytype``           how ``aggregateid`` stands for the key: ``text``; ``bytes``, as hexadecimal
                      digits; ``none``, where the message has no key and it is the row's ``id``
``headers``           a JSON array of pairs, a name and a text or null
``created``           when the row was written, by the database's clock
``state``             :data:`READY`, :data:`FAILED`, :data:`WAITING` or :data:`UNDECLARED`
``error``             why it could not be published
====================  ==========================================================================

Two more tables say which relays there are and which of them owns which bucket of keys
(:mod:`streams.outbox.buckets`).

Statements have named parameters, as in ``:name``, from which :func:`statement` makes what
:mod:`streams.databases` runs. What differs between the databases is in :class:`Dialect`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from streams.databases.protocol import DialectName, Statement
from streams.errors import ConfigError

READY, FAILED, WAITING, UNDECLARED = 0, 1, 2, 3
"""States of a row: to be relayed; it could not be; a row before it of the same key could not be, or
is undeclared; the app of the relay that read it does not declare its topic."""

BUCKETS = 16
"""Buckets of keys that the relays of one outbox share, on PostgreSQL."""

ROW_BYTES = 256
"""Bytes that a row counts besides its payload, where bytes are bounded."""

_IS_WITHIN_BYTES = f"total - size - {ROW_BYTES} < :bytes"
"""Whether the rows before a row leave room for it; the first row is always taken."""

COUNT_LIMIT = 100_000
"""The most rows that are counted; larger numbers are reported as this one."""

_TABLE = re.compile(r"(?:[a-z_][a-z0-9_]{0,47}\.)?[a-z_][a-z0-9_]{0,47}", re.ASCII)

_PARAMETER = re.compile(r"(?<![:\w]):([a-z_][a-z0-9_]*)")

_ORDER_OF_TOPIC = "aggregatetype, sequence"
"""The columns of the index of topics."""

_COLUMNS = "id, aggregatetype, aggregateid, type, payload, messageid, keytype, headers"
_PARAMETERS = ("id", "topic", "key", "type", "payload", "messageid", "keytype", "headers")

ROWS_AT_ONCE = 64
"""The most rows that one statement writes."""


Parameters = Mapping[str, Any]
NO_PARAMETERS: Parameters = {}


def statement(sql: str, parameters: Parameters = NO_PARAMETERS) -> Statement:
    """A statement in the form that :mod:`streams.databases` runs."""
    numbered, names = _numbered(sql)
    return Statement(numbered, [parameters[name] for name in names])


@lru_cache(256)
def _numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    """The SQL with ``$1``, ``$2``..., each once, and the names of these parameters."""
    names: list[str] = []

    def replace(found: re.Match[str]) -> str:
        names.append(found[1])
        return f"${len(names)}"

    return _PARAMETER.sub(replace, sql), tuple(names)


class RelayRow(NamedTuple):
    """A row that a relay reads.

    :param id: the message ID.
    :param key: ``aggregateid``.
    :param size: bytes of payload, headers and ID.
    :param held: an earlier row of the same key has failed, waits itself, or is undeclared, so this
        one must wait.
    """

    sequence: int
    bucket: int
    id: str
    topic: str
    key: str
    payload: bytes | None
    keytype: str
    headers: str | None
    size: int
    held: bool


_PAYLOAD = RelayRow._fields.index("payload")


class OutboxBacklog(NamedTuple):
    """The numbers of rows, each up to :data:`COUNT_LIMIT`.

    :param depth: to be relayed.
    :param oldest: seconds since the first of them was written; None: there is none.
    :param failed: rows that could not be published.
    :param waiting: rows behind those, of the same keys.
    :param undeclared: rows that wait for a relay whose app declares their topic.
    """

    depth: int
    oldest: float | None
    failed: int
    waiting: int
    undeclared: int


class UndeclaredTopic(NamedTuple):
    """A topic of rows that wait for a relay whose app declares it.

    :param rows: the number of rows; all topics together up to :data:`COUNT_LIMIT`.
    :param age: seconds since the first of those was written.
    """

    topic: str
    rows: int
    age: float


class HeldRow(NamedTuple):
    """A row for display.

    :param age: seconds since it was written.
    :param waiting: rows of its key that wait behind it.
    """

    sequence: int
    id: str
    topic: str
    key: str
    keytype: str
    type: str
    state: int
    error: str | None
    size: int
    age: float
    waiting: int


def _suffixes(rows: int) -> Iterator[str]:
    """The suffixes of the parameters' names for each of several rows."""
    return iter([""] if rows == 1 else [f"_{row}" for row in range(rows)])


def parameters_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of :meth:`Dialect.insert_row` for several rows."""
    return {
        f"{name}{suffix}": row[name]
        for suffix, row in zip(_suffixes(len(rows)), rows, strict=True)
        for name in _PARAMETERS
    }


def split_by_powers(count: int) -> Iterator[slice]:
    """Splits a number of rows into powers of two, so that there are few different statements."""
    start, size = 0, ROWS_AT_ONCE
    while start < count:
        while size > count - start:
            size //= 2
        yield slice(start, start + size)
        start += size


class TableNames:
    """The names of the tables.

    :param table: the outbox's table, in lower case, with or without a schema.
    :raises ConfigError: it is no such name.
    """

    def __init__(self, table: str) -> None:
        if not isinstance(table, str) or not _TABLE.fullmatch(table):
            shown = "..." if "://" in str(table) else repr(table)  # an address has a password
            raise ConfigError(
                f"Outbox(table={shown}): a name such as outbox or app.outbox, in lower-case "
                "letters, digits and _, of 48 characters at most"
            )
        schema, _, name = table.rpartition(".")
        self.table = table
        self.name = name
        prefix = f'"{schema}".' if schema else ""
        self.schema_prefix = prefix
        self.outbox = f'{prefix}"{name}"'
        self.bare = f'"{name}"'
        self.relays = f'{prefix}"{name}_relays"'
        self.buckets = f'{prefix}"{name}_buckets"'
        self.ready_index = f'"{name}_ready"'
        self.topic_index = f'"{name}_topics"'
        self.failed_index = f'"{name}_failed"'
        self.waiting_index = f'"{name}_waiting"'
        self.undeclared_index = f'"{name}_undeclared"'
        self.state_indexes = (
            (self.failed_index, FAILED),
            (self.waiting_index, WAITING),
            (self.undeclared_index, UNDECLARED),
        )
        self.channel = f"streams_{table}".replace(".", "_")[:63]
        """The channel of the relays' LISTEN on PostgreSQL."""


class Dialect:
    """The statements for one database."""

    bucket_count: int
    returns_notification = False

    def __init__(self, tables: TableNames) -> None:
        self.tables = tables

    # -- what differs

    def schema(self) -> Sequence[str]:
        """The statements that create missing tables."""
        raise NotImplementedError

    def list_of(self, name: str, kind: str) -> str:
        """A query of the values of a list parameter; its column is ``value``."""
        raise NotImplementedError

    def is_in_list(self, value: str, name: str, kind: str) -> str:
        """A condition: the value is in a list parameter."""
        return f"{value} IN ({self.list_of(name, kind)})"

    def list_parameter(self, found: Sequence[int] | Sequence[str]) -> object:
        """Convert a list to a parameter."""
        raise NotImplementedError

    def length_of(self, text: str) -> str:
        """The bytes of a text column."""
        raise NotImplementedError

    bucket = "0"
    """The bucket of a row."""
    age = ""
    """Seconds since a row was written."""
    now = ""
    payload = "payload"
    size = ""
    """Bytes of the payload."""
    id_type = "TEXT"

    # -- publishing

    def insert_row(self, *, notify: bool, rows: int = 1) -> str:
        """Write a row, and wake the relays once that is committed.

        :param rows: write this many rows, in their order; see :func:`parameters_of_rows`.
        """
        id, *others = _PARAMETERS
        values = ", ".join(
            f"(CAST(:{id}{suffix} AS {self.id_type}), "
            + ", ".join(f":{name}{suffix}" for name in others)
            + ")"
            for suffix in _suffixes(rows)
        )
        sql = f"INSERT INTO {self.tables.outbox} ({_COLUMNS}) VALUES {values}"
        if notify and self.returns_notification:
            sql += f" RETURNING pg_notify('{self.tables.channel}', '')"
        return sql

    def insert_for_debezium(self) -> str:
        """Write a row and return its sequence, for :meth:`delete_one`."""
        return f"{self.insert_row(notify=False)} RETURNING sequence"

    def delete_one(self) -> str:
        """Delete a row."""
        return f"DELETE FROM {self.tables.outbox} WHERE sequence = :sequence"

    def has_outbox(self) -> str:
        """Whether the table exists: one row, true or false."""
        raise NotImplementedError

    def lock_creation(self) -> str:
        """Keep others from creating tables until the transaction ends; empty: not needed."""
        return ""

    def has_topic_index(self) -> str:
        """Whether the index of topics exists, by which a topic is read alone: one row, true or
        false."""
        raise NotImplementedError

    # -- relaying

    def fetch_rows(self, *, of_topic: bool = False) -> str:
        """Rows of a relay's buckets in their order, up to a number and a size, but at least one.

        :param of_topic: see :meth:`ready_rows`.
        """
        order = _ORDER_OF_TOPIC if of_topic else "sequence"
        return f"""
            SELECT sequence, bucket, id, aggregatetype, aggregateid, payload, keytype, headers,
                size, held
            FROM ({self._with_total(self.ready_rows(of_topic=of_topic), order)}) AS r
            WHERE {_IS_WITHIN_BYTES} ORDER BY {order}
            """

    def _with_total(self, rows: str, order: str) -> str:
        """Rows with the cumulative bytes up to each, for :data:`_IS_WITHIN_BYTES`."""
        return (
            f"SELECT r.*, sum(size + {ROW_BYTES}) OVER ("
            f"ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS total FROM ({rows}) AS r"
        )

    def ready_rows(self, *, of_topic: bool = False) -> str:
        """As :meth:`fetch_rows`, up to a number.

        :param of_topic: rows of one topic, without scanning those of others; needs the index of
            topics. Else rows of all topics except the busy ones, whose rows are scanned.
        """
        return self._ready_rows(
            f"""sequence, {self.bucket} AS bucket,
                coalesce(messageid, CAST(id AS text)) AS id, aggregatetype, aggregateid,
                {self.payload} AS payload, keytype, headers,
                {self._row_size()} AS size, {self._is_held("o")} AS held""",
            of_topic=of_topic,
        )

    def _row_size(self) -> str:
        return f"{self.size} + {self.length_of('headers')} + {self.length_of('messageid')}"

    def _ready_rows(self, columns: str, *, of_topic: bool) -> str:
        """See :meth:`ready_rows`.

        :param columns: the columns to select.
        """
        which = f"aggregatetype NOT IN ({self.list_of('busy', 'text')})"
        order = "sequence"
        if of_topic:  # with = an index in the order of the sequence would do, and be walked through
            topic, order = "CAST(:topic AS text)", _ORDER_OF_TOPIC
            which = f"aggregatetype >= {topic} AND aggregatetype <= {topic}"
        return f"""
            SELECT {columns}
            FROM {self.tables.outbox} AS o
            WHERE state = {READY} AND {self._is_owned()}
                AND {which}
                AND sequence NOT IN ({self.list_of("skipped", "bigint")})
            ORDER BY {order} LIMIT :limit
            """

    def topics_with_rows(self) -> str:
        """The topics among some that have rows to be relayed, in any bucket; needs the index of
        topics, in which each is looked up."""
        first = (
            f"SELECT aggregatetype FROM {self.tables.outbox} WHERE state = {READY} "
            "AND aggregatetype >= t.value ORDER BY aggregatetype LIMIT 1"
        )
        return (
            f"SELECT t.value FROM ({self.list_of('topics', 'text')}) AS t WHERE t.value = ({first})"
        )

    def _is_owned(self) -> str:
        """Whether a row is in a relay's buckets."""
        owned = (
            f"SELECT bucket FROM {self.tables.buckets} WHERE owner = :relay "
            f"AND {self.is_in_list('bucket', 'buckets', 'integer')}"
        )
        return self.is_in_query(self.bucket, owned)

    def is_in_query(self, value: str, query: str) -> str:
        """A condition: the value is in the result of a query, which is run once."""
        return f"{value} IN ({query})"

    def _is_held(self, row: str) -> str:
        """Whether an earlier row of the same key is not to be relayed."""
        states = (FAILED, WAITING, UNDECLARED)
        return f"({' OR '.join(self._has_earlier(row, state) for state in states)})"

    def _has_earlier(self, row: str, state: int) -> str:
        """Whether an earlier row of the same key is in a state. Nearly always no row of any key is:
        that is looked up once per statement, and no row needs a lookup then (with AND instead of
        CASE, SQLite would look up both)."""
        outbox = self.tables.outbox
        return (
            f"CASE WHEN EXISTS (SELECT 1 FROM {outbox} WHERE state = {state}) "
            f"THEN EXISTS (SELECT 1 FROM {outbox} AS f WHERE f.state = {state} "
            f"AND f.aggregatetype = {row}.aggregatetype AND f.aggregateid = {row}.aggregateid "
            f"AND f.sequence < {row}.sequence) ELSE false END"
        )

    def delete_rows(self) -> str:
        """Delete rows that the log has confirmed."""
        rows = self.is_in_list("sequence", "sequences", "bigint")
        return f"DELETE FROM {self.tables.outbox} WHERE {rows}"

    def fail_rows(self) -> str:
        """Mark rows that cannot be published."""
        rows = self.is_in_list("sequence", "sequences", "bigint")
        return f"UPDATE {self.tables.outbox} SET state = {FAILED}, error = :error WHERE {rows}"

    def hold_rows(self) -> str:
        """Make rows wait behind one of their key that failed, waits, or is undeclared."""
        rows = self.is_in_list("sequence", "sequences", "bigint")
        return (
            f"UPDATE {self.tables.outbox} AS o SET state = {WAITING} "
            f"WHERE state = {READY} AND {rows} AND {self._is_held('o')}"
        )

    def set_aside_undeclared(self) -> str:
        """Make rows wait for a relay whose app declares their topic."""
        rows = self.is_in_list("sequence", "sequences", "bigint")
        return (
            f"UPDATE {self.tables.outbox} SET state = {UNDECLARED} WHERE state = {READY} AND {rows}"
        )

    def release_undeclared(self) -> str:
        """Release the undeclared rows of a relay's buckets whose topic its app declares."""
        return (
            f"UPDATE {self.tables.outbox} SET state = {READY} WHERE state = {UNDECLARED} "
            f"AND {self.is_in_list('aggregatetype', 'topics', 'text')} AND {self._is_owned()}"
        )

    def keys_to_release(self) -> str:
        """Keys of a relay's buckets and of some topics that wait behind a row that is gone: the
        first waiting row of each, up to a number.

        However many rows of a key wait, only one is read: from one key the next is looked up, in
        the order of the index.
        """

        def first(column: str, topic: str, where: str = "") -> str:
            order = "w.aggregateid" if column == "aggregateid" else "w.aggregateid, w.sequence"
            return (
                f"(SELECT w.{column} FROM {self.tables.outbox} AS w WHERE w.state = {WAITING} "
                f"AND w.aggregatetype = {topic} {where} ORDER BY {order} LIMIT 1)"
            )

        topic, key = "k.aggregatetype", "k.aggregateid"
        return f"""
            WITH RECURSIVE k (aggregatetype, aggregateid) AS (
                SELECT t.value, {first("aggregateid", "t.value")}
                FROM ({self.list_of("topics", "text")}) AS t
                UNION ALL
                SELECT {topic}, {first("aggregateid", topic, f"AND w.aggregateid > {key}")}
                FROM k WHERE {key} IS NOT NULL
            )
            SELECT k.sequence FROM (
                SELECT {topic}, {key},
                    {first("sequence", topic, f"AND w.aggregateid >= {key}")} AS sequence
                FROM k WHERE {key} IS NOT NULL
            ) AS k WHERE {self._is_owned()} AND NOT {self._has_earlier("k", FAILED)} LIMIT :limit
            """

    def release_waiting(self) -> str:
        """Release the first waiting rows of a key, up to a number; returns those that were
        released.

        The key is that of the row ``:first``.
        """
        outbox, held = self.tables.outbox, self._has_earlier("o", FAILED)

        def of_first(column: str) -> str:
            return f"(SELECT {column} FROM {outbox} WHERE sequence = :first)"

        rows = (  # in the order of the index, as in keys_to_release()
            f"SELECT w.sequence FROM {outbox} AS w WHERE w.state = {WAITING} "
            f"AND w.aggregatetype = {of_first('aggregatetype')} "
            f"AND w.aggregateid >= {of_first('aggregateid')} "
            f"AND w.aggregateid <= {of_first('aggregateid')} "
            "ORDER BY w.aggregateid, w.sequence LIMIT :limit"
        )
        return (
            f"UPDATE {outbox} AS o SET state = {READY} WHERE state = {WAITING} "
            f"AND {self.is_in_query('sequence', rows)} AND NOT {held} RETURNING sequence"
        )

    def backlog(self) -> str:
        """See :class:`OutboxBacklog`."""
        outbox = self.tables.outbox

        def count(state: int) -> str:
            rows = f"SELECT 1 FROM {outbox} WHERE state = {state} LIMIT {COUNT_LIMIT}"
            return f"(SELECT count(*) FROM ({rows}) AS counted)"

        oldest = (
            f"(SELECT {self.age} FROM {outbox} WHERE state = {READY} ORDER BY sequence LIMIT 1)"
        )
        held = ", ".join(map(count, (FAILED, WAITING, UNDECLARED)))
        return f"SELECT {count(READY)}, {oldest}, {held}"

    # -- for people

    def list_rows(self, *, all_states: bool) -> str:
        """Failed rows, or all; see :class:`HeldRow`."""
        where = "" if all_states else f"WHERE o.state = {FAILED}"
        return f"{self._people_select()} {where} ORDER BY o.sequence LIMIT :limit"

    def undeclared_topics(self) -> str:
        """See :class:`UndeclaredTopic`; those with the most rows first."""
        return (
            "SELECT aggregatetype, count(*), max(age) FROM (SELECT aggregatetype, "
            f"{self.age} AS age FROM {self.tables.outbox} WHERE state = {UNDECLARED} "
            f"LIMIT {COUNT_LIMIT}) AS u GROUP BY aggregatetype "
            "ORDER BY count(*) DESC, aggregatetype LIMIT :limit"
        )

    def find_rows(self) -> str:
        """Find rows by a message ID or a sequence."""
        return (
            f"{self._people_select(', o.headers, ' + self.payload)} "
            f"WHERE o.messageid = :name OR CAST(o.id AS text) = :name OR o.sequence = :sequence "
            "ORDER BY o.sequence LIMIT :limit"
        )

    def _people_select(self, more: str = "") -> str:
        outbox = self.tables.outbox
        waiting = (
            f"CASE WHEN o.state = {FAILED} THEN (SELECT count(*) FROM {outbox} AS w "
            f"WHERE w.state = {WAITING} AND w.aggregatetype = o.aggregatetype "
            "AND w.aggregateid = o.aggregateid) ELSE 0 END"
        )
        return (
            "SELECT o.sequence, coalesce(o.messageid, CAST(o.id AS text)), o.aggregatetype, "
            f"o.aggregateid, o.keytype, o.type, o.state, o.error, {self.size}, {self.age}, "
            f"{waiting}{more} FROM {outbox} AS o"
        )

    def keys_of_failed(self) -> str:
        """The keys of the failed rows that are to be retried, some or all."""
        return (
            f"SELECT sequence, aggregatetype, aggregateid FROM {self.tables.outbox} "
            f"WHERE state = {FAILED} ORDER BY sequence"
        )

    def retry_row(self) -> str:
        """Retry a failed row."""
        return (
            f"UPDATE {self.tables.outbox} SET state = {READY}, error = NULL "
            f"WHERE state = {FAILED} AND sequence = :sequence"
        )

    def retry_key(self) -> str:
        """Release the rows that waited behind a retried one."""
        return (
            f"UPDATE {self.tables.outbox} SET state = {READY} "
            f"WHERE state = {WAITING} AND aggregatetype = :topic AND aggregateid = :key"
        )

    # -- relays and buckets

    def register_relay(self) -> str:
        """Register a relay."""
        return (
            f"INSERT INTO {self.tables.relays} (relay, beat, lock_number, seen) "
            f"VALUES (:relay, 1, :lock, {self.now})"
        )

    def send_heartbeat(self) -> str:
        """Raise a relay's beat; returns no row if it was taken for dead."""
        return (
            f"UPDATE {self.tables.relays} SET beat = beat + 1, seen = {self.now} "
            "WHERE relay = :relay RETURNING beat"
        )

    def other_relays(self) -> str:
        """All other relays."""
        return f"SELECT relay, beat, lock_number FROM {self.tables.relays} WHERE relay <> :relay"

    def remove_relay(self) -> str:
        """Remove a dead relay, unless its beat has changed."""
        return (
            f"DELETE FROM {self.tables.relays} WHERE relay = :relay AND beat = :beat "
            "RETURNING relay"
        )

    def leave_relays(self) -> str:
        """Remove a relay that ends."""
        return f"DELETE FROM {self.tables.relays} WHERE relay = :relay"

    def add_bucket(self) -> str:
        """Insert a bucket."""
        return f"INSERT INTO {self.tables.buckets} (bucket) VALUES (:bucket) ON CONFLICT DO NOTHING"

    def bucket_owners(self) -> str:
        """The owner of each bucket, empty if it has no live one."""
        return (
            f"SELECT bucket, coalesce(r.relay, '') FROM {self.tables.buckets} AS b "
            f"LEFT JOIN {self.tables.relays} AS r ON r.relay = b.owner ORDER BY bucket"
        )

    def set_owner(self) -> str:
        """Set or clear the owner of buckets."""
        return (
            f"UPDATE {self.tables.buckets} SET owner = :owner "
            f"WHERE {self.is_in_list('bucket', 'buckets', 'integer')}"
        )

    def relays_seen(self) -> str:
        """The number of relays, and the seconds since the last heartbeat."""
        raise NotImplementedError


def _element_for(found: Sequence[int] | Sequence[str]) -> Callable[[Any], str]:
    """A function that formats each element for the text of a PostgreSQL array."""
    return str if found and isinstance(found[0], int) else _text_element


def _text_element(found: str) -> str:
    escaped = found.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_OWN_COLUMNS: Mapping[str, str] = {
    "sequence": "bigint GENERATED BY DEFAULT AS IDENTITY",
    "messageid": "text",
    "keytype": "varchar(8) NOT NULL DEFAULT 'text'",
    "headers": "text",
    "created": "timestamptz NOT NULL DEFAULT now()",
    "state": f"smallint NOT NULL DEFAULT {READY}",
    "error": "text",
}
"""The columns of an outbox on PostgreSQL that Debezium's does not have."""


class PostgresDialect(Dialect):
    """PostgreSQL, 13 and later."""

    bucket_count = BUCKETS
    returns_notification = True
    id_type = "uuid"
    bucket = (
        "mod(abs(CAST(hashtext(CAST(aggregatetype || '/' || aggregateid AS text)) AS bigint)), "
        f"{BUCKETS})"
    )
    age = "CAST(extract(epoch FROM clock_timestamp() - created) AS double precision)"
    now = "clock_timestamp()"
    size = "coalesce(octet_length(payload), 0)"

    def has_outbox(self) -> str:
        """See :meth:`Dialect.has_outbox`."""
        return f"SELECT to_regclass('{self.tables.outbox}') IS NOT NULL"

    def has_topic_index(self) -> str:
        """See :meth:`Dialect.has_topic_index`."""
        tables = self.tables
        return (
            "SELECT EXISTS (SELECT 1 FROM pg_index WHERE indisvalid "
            f"AND indexrelid = to_regclass('{tables.schema_prefix}{tables.topic_index}'))"
        )

    def lock_creation(self) -> str:
        """See :meth:`Dialect.lock_creation`."""
        return f"SELECT pg_advisory_xact_lock(hashtext('{self.tables.channel}'), 1)"

    def read_payload_as(self, column_type: str) -> None:
        """Read the type of ``payload``; in an outbox made for Debezium it may be ``jsonb``."""
        if column_type != "bytea":
            self.payload = "convert_to(CAST(payload AS text), 'UTF8')"
            self.size = "coalesce(octet_length(CAST(payload AS text)), 0)"

    def missing_columns(self, found: Container[str]) -> Sequence[str]:
        """The own columns that are missing among those of a table."""
        return [name for name in _OWN_COLUMNS if name not in found]

    def add_columns(self, missing: Sequence[str]) -> str:
        """The statements that add missing columns to an outbox made for Debezium."""
        added = ", ".join(
            f"ADD COLUMN {name} {_OWN_COLUMNS[name]}{' UNIQUE' if name == 'sequence' else ''}"
            for name in missing
        )
        return f"ALTER TABLE {self.tables.table} {added}"

    def schema(self) -> Sequence[str]:
        """See :meth:`Dialect.schema`."""
        tables = self.tables
        (sequence, *others) = (f"{name} {kind}" for name, kind in _OWN_COLUMNS.items())
        own = ",\n    ".join(others)
        return (
            f"""CREATE TABLE IF NOT EXISTS {tables.outbox} (
    {sequence} PRIMARY KEY,
    id uuid NOT NULL,
    aggregatetype varchar(255) NOT NULL,
    aggregateid varchar(255) NOT NULL,
    type varchar(255) NOT NULL,
    payload bytea,
    {own}
)""",
            (
                f"CREATE INDEX IF NOT EXISTS {tables.ready_index} ON {tables.outbox} (sequence) "
                f"WHERE state = {READY}"
            ),
            (
                f"CREATE INDEX IF NOT EXISTS {tables.topic_index} ON {tables.outbox} "
                f"({_ORDER_OF_TOPIC}) WHERE state = {READY}"
            ),
            *(
                f"CREATE INDEX IF NOT EXISTS {index} ON {tables.outbox} "
                f"(aggregatetype, aggregateid, sequence) WHERE state = {state}"
                for index, state in tables.state_indexes
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {tables.relays} (relay varchar(64) PRIMARY KEY, "
                "beat bigint NOT NULL, lock_number bigint NOT NULL, seen timestamptz NOT NULL)"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {tables.buckets} (bucket integer PRIMARY KEY, "
                "owner varchar(64))"
            ),
        )

    def length_of(self, text: str) -> str:
        """See :meth:`Dialect.length_of`."""
        return f"coalesce(octet_length({text}), 0)"

    def list_of(self, name: str, kind: str) -> str:
        """See :meth:`Dialect.list_of`."""
        return f"SELECT unnest({self._array_parameter(name, kind)}) AS value"

    def _array_parameter(self, name: str, kind: str) -> str:
        return f"CAST(CAST(:{name} AS text) AS {kind}[])"

    def is_in_list(self, value: str, name: str, kind: str) -> str:
        """See :meth:`Dialect.is_in_list`. Not a query, so that an index is used whatever the
        planner's statistics."""
        return f"{value} = ANY({self._array_parameter(name, kind)})"

    def list_parameter(self, found: Sequence[int] | Sequence[str]) -> object:
        """See :meth:`Dialect.list_parameter`. A text: a driver makes an array far more slowly."""
        return "{" + ",".join(map(_element_for(found), found)) + "}"

    def is_in_query(self, value: str, query: str) -> str:
        """See :meth:`Dialect.is_in_query`. Not a join, so that rows come in the index's order."""
        return f"{value} = ANY(CAST(ARRAY({query}) AS bigint[]))"

    def relays_seen(self) -> str:
        """See :meth:`Dialect.relays_seen`."""
        return (
            "SELECT count(*), CAST(extract(epoch FROM clock_timestamp() - max(seen)) AS "
            f"double precision) FROM {self.tables.relays}"
        )


class SqliteDialect(Dialect):
    """SQLite, 3.35 and later. One relay at a time owns all keys."""

    bucket_count = 1
    now = "(julianday('now') - 2440587.5) * 86400.0"
    age = f"{now} - created"
    size = (  # a blob's length is known without reading it
        "CASE typeof(payload) WHEN 'blob' THEN length(payload) "
        "ELSE coalesce(length(CAST(payload AS blob)), 0) END"
    )
    payload = "CAST(payload AS blob)"

    def has_outbox(self) -> str:
        """See :meth:`Dialect.has_outbox`."""
        tables = self.tables
        return (
            f"SELECT count(*) FROM {tables.schema_prefix}sqlite_master WHERE name = '{tables.name}'"
        )

    def has_topic_index(self) -> str:
        """See :meth:`Dialect.has_topic_index`."""
        tables = self.tables
        return (
            f"SELECT count(*) FROM {tables.schema_prefix}sqlite_master "
            f"WHERE name = '{tables.name}_topics'"
        )

    def schema(self) -> Sequence[str]:
        """See :meth:`Dialect.schema`."""
        tables = self.tables
        return (
            f"""CREATE TABLE IF NOT EXISTS {tables.outbox} (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    id CHAR(36) NOT NULL,
    aggregatetype VARCHAR(255) NOT NULL,
    aggregateid VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL,
    payload BLOB,
    messageid TEXT,
    keytype VARCHAR(8) NOT NULL DEFAULT 'text',
    headers TEXT,
    created REAL NOT NULL DEFAULT ({self.now}),
    state SMALLINT NOT NULL DEFAULT {READY},
    error TEXT
)""",
            (
                f"CREATE INDEX IF NOT EXISTS {tables.ready_index} ON {tables.bare} (sequence) "
                f"WHERE state = {READY}"
            ),
            (
                f"CREATE INDEX IF NOT EXISTS {tables.topic_index} ON {tables.bare} "
                f"({_ORDER_OF_TOPIC}) WHERE state = {READY}"
            ),
            *(
                f"CREATE INDEX IF NOT EXISTS {index} ON {tables.bare} "
                f"(aggregatetype, aggregateid, sequence) WHERE state = {state}"
                for index, state in tables.state_indexes
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {tables.relays} (relay VARCHAR(64) PRIMARY KEY, "
                "beat BIGINT NOT NULL, lock_number BIGINT NOT NULL, seen REAL NOT NULL)"
            ),
            (
                f"CREATE TABLE IF NOT EXISTS {tables.buckets} (bucket INTEGER PRIMARY KEY, "
                "owner VARCHAR(64))"
            ),
        )

    def length_of(self, text: str) -> str:
        """See :meth:`Dialect.length_of`."""
        return f"coalesce(length(CAST({text} AS blob)), 0)"

    def fetch_as_document(self, *, of_topic: bool = False) -> str:
        """As :meth:`fetch_rows`, with all rows in one, for :func:`rows_of_document`: a JSON
        document of the rows, with the length of each payload in its place, and the concatenated
        payloads. Sizes are added up without reading the contents, which are read only for the rows
        that are taken.

        It fails if a row has values that JSON cannot hold, or if the text is too long for SQLite;
        and the document of a file with UTF-16 texts is UTF-16 itself, which is no JSON.
        """
        columns = f"sequence, {self._row_size()} AS size, {self._is_held('o')} AS held"
        ready = self._ready_rows(columns, of_topic=of_topic)
        return f"""
            SELECT CAST(json_group_array(json_array(
                o.sequence, {self.bucket}, coalesce(o.messageid, CAST(o.id AS text)),
                o.aggregatetype, o.aggregateid,
                CASE WHEN o.payload IS NULL THEN NULL ELSE {self.size} END,
                o.keytype, o.headers, r.size, r.held
            )) AS blob), CAST(coalesce(group_concat(o.payload, ''), '') AS blob)
            FROM ({self._with_total(ready, "sequence")}) AS r
            CROSS JOIN {self.tables.outbox} AS o ON o.sequence = r.sequence
            WHERE {_IS_WITHIN_BYTES}
            """

    def list_of(self, name: str, kind: str) -> str:
        """See :meth:`Dialect.list_of`."""
        return f"SELECT value FROM json_each(:{name})"

    def list_parameter(self, found: Sequence[int] | Sequence[str]) -> object:
        """See :meth:`Dialect.list_parameter`."""
        import json

        return json.dumps(list(found))

    def relays_seen(self) -> str:
        """See :meth:`Dialect.relays_seen`."""
        return f"SELECT count(*), {self.now} - max(seen) FROM {self.tables.relays}"


def rows_of_document(document: bytes, payloads: bytes) -> list[RelayRow]:
    """The rows in the result of :meth:`SqliteDialect.fetch_as_document`.

    :raises ValueError: a text is not UTF-8, or the payloads do not match the document.
    """
    found: list[list[Any]] = orjson.loads(document)
    end = 0
    for row in found:
        if (length := row[_PAYLOAD]) is not None:
            start, end = end, end + length
            row[_PAYLOAD] = payloads[start:end]
    if end != len(payloads):
        raise ValueError(f"payloads of {len(payloads):,} bytes, and of {end:,} by the document")
    return list(map(RelayRow._make, found))


def dialect_of(name: DialectName, tables: TableNames) -> Dialect:
    """The statements for a database."""
    return PostgresDialect(tables) if name == "postgresql" else SqliteDialect(tables)
