"""The inbox's tables, for PostgreSQL and SQLite, and every statement that is run upon them.

``streams_inbox``
    A row for each message that was handled, or given up as dead, by its identity: eight bytes, and
    the message ID unchanged (``convert_from(substr(id, 9), 'UTF8')``). ``first_scope`` and
    ``first_position`` are the first partition and position of a message that came back: its row
    stays until the marks of both partitions cover it.
``streams_inbox_marks``
    A row for each partition that was begun: below its ``mark`` everything was settled, and messages
    from there count as handled. It is 0 at first.
``streams_inbox_schema``
    The version of these tables.

On PostgreSQL a message is *taken* by one call of a function of the inbox, so that it costs one
round trip. It inserts first and reads the mark after that, in a later snapshot. That is safe
because purging raises the mark, and deletes rows only when every transaction has ended that could
have read the old mark (:mod:`streams.inbox.purging`). A transaction that has one snapshot for all
its statements (REPEATABLE READ, SERIALIZABLE) locks the mark's row, and fails with a serialization
error if the mark was raised meanwhile.

On SQLite there is one writer at a time, and none of this is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from streams.databases.locking import begin_locking, milliseconds
from streams.databases.protocol import DialectName, Statement, Steps
from streams.errors import ConfigError
from streams.inbox.identity import Entry, FirstStood, Scope, position_text

VERSION = 2

PREPARING = 7_305_236_104_410_227
"""The number of the advisory lock that is held while tables are created; arbitrary."""


class Verdict(IntEnum):
    """The inbox's verdict on a message."""

    NEW = 0
    """The message is recorded now, and to be handled in this very transaction."""
    HANDLED = 1
    """The message was handled."""
    PURGED = 2
    """The message is below the mark: it was settled so long ago that its row is gone."""
    DEAD = 3
    """The message was given up, and was not redriven since."""


_VERDICTS = {str(verdict.value): verdict for verdict in Verdict}


class Timeouts(NamedTuple):
    """How long a transaction of the inbox waits, in seconds."""

    lock: float
    """For a lock that another transaction holds."""
    idle: float
    """For the next statement, before the server ends the transaction."""


_POSTGRESQL = (
    """\
CREATE TABLE streams_inbox (
    id bytea PRIMARY KEY,
    scope bigint NOT NULL,
    position numeric(39) NOT NULL,
    redrive integer NOT NULL,
    dead boolean NOT NULL,
    handled_at timestamptz NOT NULL DEFAULT now(),
    first_scope bigint,
    first_position numeric(39)
)""",
    "CREATE INDEX streams_inbox_positions ON streams_inbox (scope, position)",
    """\
CREATE INDEX streams_inbox_first_positions ON streams_inbox (first_scope, first_position)
WHERE first_scope IS NOT NULL""",
    """\
CREATE TABLE streams_inbox_marks (
    scope bigint PRIMARY KEY,
    incarnation text NOT NULL,
    group_name text NOT NULL,
    generation numeric(20) NOT NULL,
    topic text NOT NULL,
    partition integer NOT NULL,
    mark numeric(39) NOT NULL,
    purge_after bigint
)""",
    """\
CREATE FUNCTION streams_inbox_take(
    all_ids text, all_scopes text, all_positions text, all_redrives text,
    all_first_scopes text, all_first_positions text, lock_timeout text, idle_timeout text
) RETURNS text LANGUAGE plpgsql AS $body$
DECLARE
    -- Lists as texts: a driver makes an array far more slowly.
    ids bytea[];
    scopes bigint[];
    positions numeric[];
    redrives integer[];
    first_scopes bigint[];
    first_positions numeric[];
    total integer;
    fresh bytea[];
    purged bytea[];
    verdicts integer[];
    known record;
    n integer;
BEGIN
    PERFORM set_config('lock_timeout', lock_timeout, true),
        set_config('idle_in_transaction_session_timeout', idle_timeout, true);
    -- One that is new, as nearly all are: without lists, which cost more than the insertion.
    IF strpos(all_ids, ',') = 0 AND all_first_scopes = ''
        AND current_setting('transaction_isolation') = 'read committed'
    THEN
        INSERT INTO streams_inbox (id, scope, position, redrive, dead)
        VALUES (
            decode(all_ids, 'hex'), all_scopes::bigint, all_positions::numeric,
            all_redrives::integer, false
        )
        ON CONFLICT DO NOTHING;
        IF FOUND THEN
            IF NOT EXISTS (
                SELECT 1 FROM streams_inbox_marks AS m
                WHERE m.scope = all_scopes::bigint AND all_positions::numeric < m.mark
            ) THEN
                RETURN '0';
            END IF;
            DELETE FROM streams_inbox AS i WHERE i.id = decode(all_ids, 'hex');
            RETURN '2';
        END IF;
    END IF;
    ids := ARRAY(SELECT decode(e, 'hex') FROM unnest(string_to_array(all_ids, ',')) AS e);
    scopes := string_to_array(all_scopes, ',')::bigint[];
    positions := string_to_array(all_positions, ',')::numeric[];
    redrives := string_to_array(all_redrives, ',')::integer[];
    first_scopes := string_to_array(all_first_scopes, ',', '')::bigint[];
    first_positions := string_to_array(all_first_positions, ',', '')::numeric[];
    total := cardinality(ids);
    verdicts := array_fill(0, ARRAY[total]);
    WITH inserted AS (
        INSERT INTO streams_inbox
            (id, scope, position, redrive, dead, first_scope, first_position)
        SELECT e.id, e.scope, e.position, e.redrive, false, e.first_scope, e.first_position
        FROM unnest(ids, scopes, positions, redrives, first_scopes, first_positions)
            AS e (id, scope, position, redrive, first_scope, first_position)
        ORDER BY e.id
        ON CONFLICT DO NOTHING
        RETURNING id
    )
    SELECT array_agg(inserted.id) INTO fresh FROM inserted;
    IF fresh IS NULL OR cardinality(fresh) < total THEN
        FOR n IN 1 .. total LOOP
            CONTINUE WHEN ids[n] = ANY (fresh);
            -- One that is done stays so: it is not locked, or batches would meet in two orders.
            SELECT i.dead, i.redrive INTO known FROM streams_inbox AS i WHERE i.id = ids[n];
            IF known.dead THEN
                SELECT i.dead, i.redrive INTO known FROM streams_inbox AS i WHERE i.id = ids[n]
                FOR UPDATE;
            END IF;
            IF NOT FOUND THEN
                RAISE EXCEPTION 'purged meanwhile' USING ERRCODE = 'serialization_failure';
            ELSIF NOT known.dead THEN
                verdicts[n] := 1;
            ELSIF redrives[n] <= known.redrive THEN
                verdicts[n] := 3;
            ELSE
                UPDATE streams_inbox AS i
                SET dead = false, redrive = redrives[n], scope = scopes[n],
                    position = positions[n], handled_at = now(),
                    first_scope = first_scopes[n], first_position = first_positions[n]
                WHERE i.id = ids[n];
            END IF;
        END LOOP;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM 1 FROM streams_inbox_marks AS m WHERE m.scope = ANY (scopes) FOR SHARE;
    END IF;
    SELECT array_agg(e.id) INTO purged
    FROM unnest(ids, scopes, positions, verdicts) AS e (id, scope, position, verdict)
    JOIN streams_inbox_marks AS m ON m.scope = e.scope
    WHERE e.verdict = 0 AND e.position < m.mark;
    IF purged IS NOT NULL THEN
        DELETE FROM streams_inbox AS i WHERE i.id = ANY (purged);
        FOR n IN 1 .. total LOOP
            IF ids[n] = ANY (purged) THEN verdicts[n] := 2; END IF;
        END LOOP;
    END IF;
    RETURN array_to_string(verdicts, '');
END $body$""",
    """\
CREATE FUNCTION streams_inbox_mark_dead(
    entry bytea, entry_scope bigint, entry_position text, entry_redrive integer,
    entry_first_scope bigint, entry_first_position text, lock_timeout text, idle_timeout text
) RETURNS integer LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM set_config('lock_timeout', lock_timeout, true),
        set_config('idle_in_transaction_session_timeout', idle_timeout, true);
    INSERT INTO streams_inbox AS i
        (id, scope, position, redrive, dead, first_scope, first_position)
    VALUES (
        entry, entry_scope, entry_position::numeric, entry_redrive, true,
        entry_first_scope, entry_first_position::numeric
    )
    ON CONFLICT (id) DO UPDATE
    SET redrive = excluded.redrive, scope = excluded.scope, position = excluded.position,
        first_scope = excluded.first_scope, first_position = excluded.first_position,
        handled_at = excluded.handled_at
    WHERE i.dead AND i.redrive < excluded.redrive;
    IF NOT FOUND THEN
        IF EXISTS (SELECT 1 FROM streams_inbox AS i WHERE i.id = entry AND i.dead) THEN
            RETURN 3;
        END IF;
        RETURN 1;
    END IF;
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        PERFORM 1 FROM streams_inbox_marks AS m WHERE m.scope = entry_scope FOR SHARE;
    END IF;
    IF EXISTS (
        SELECT 1 FROM streams_inbox_marks AS m
        WHERE m.scope = entry_scope AND entry_position::numeric < m.mark
    ) THEN
        RETURN 2;
    END IF;
    RETURN 3;
END $body$""",
    "CREATE TABLE streams_inbox_schema (version integer NOT NULL)",
    f"INSERT INTO streams_inbox_schema VALUES ({VERSION})",  # noqa: S608
)

# A driver may run each of these in a separate transaction, concurrently with another process: so
# each does nothing if it was done.
_SQLITE = (
    """\
CREATE TABLE IF NOT EXISTS streams_inbox (
    id BLOB PRIMARY KEY,
    scope INTEGER NOT NULL,
    position TEXT NOT NULL,         -- 39 digits
    redrive INTEGER NOT NULL,
    dead INTEGER NOT NULL,
    handled_at REAL NOT NULL,       -- seconds since 1970
    first_scope INTEGER,
    first_position TEXT
) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS streams_inbox_positions ON streams_inbox (scope, position)",
    """\
CREATE INDEX IF NOT EXISTS streams_inbox_first_positions
ON streams_inbox (first_scope, first_position) WHERE first_scope IS NOT NULL""",
    """\
CREATE TABLE IF NOT EXISTS streams_inbox_marks (
    scope INTEGER PRIMARY KEY,
    incarnation TEXT NOT NULL,
    group_name TEXT NOT NULL,
    generation TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    mark TEXT NOT NULL
)""",
    "CREATE TABLE IF NOT EXISTS streams_inbox_schema (version INTEGER NOT NULL)",
    f"""\
INSERT INTO streams_inbox_schema
SELECT {VERSION} WHERE NOT EXISTS (SELECT 1 FROM streams_inbox_schema)""",  # noqa: S608
)

_TABLES: dict[DialectName, tuple[str, ...]] = {"postgresql": _POSTGRESQL, "sqlite": _SQLITE}


def ddl(dialect: DialectName) -> str:
    """The statements that create the inbox's tables, for an administrator to run."""
    return "".join(f"{statement};\n\n" for statement in _TABLES[dialect]).rstrip() + "\n"


def find_version(dialect: DialectName) -> Steps[int | None]:
    """The version of the existing tables; None: there are none."""
    if dialect == "postgresql":
        # Not to_regclass(), whose answer may be older than the wait for the lock.
        rows = yield Statement(
            "SELECT count(*) FROM pg_catalog.pg_class "
            "WHERE relname = 'streams_inbox_schema' AND pg_catalog.pg_table_is_visible(oid)"
        )
        exists = bool(rows[0][0])
    else:
        rows = yield Statement(
            "SELECT count(*) FROM sqlite_master WHERE name = 'streams_inbox_schema'"
        )
        exists = bool(rows[0][0])
    if not exists:
        return None
    rows = yield Statement("SELECT max(version) FROM streams_inbox_schema")
    return rows[0][0] if rows else None


def create_missing(dialect: DialectName) -> Steps[int]:
    """Create the tables if they are missing, once, even if several processes try; returns their
    version. Must be the first statements of their transaction."""
    yield from begin_locking(dialect)
    if dialect == "postgresql":
        yield Statement(f"SELECT pg_advisory_xact_lock({PREPARING})")
    found = yield from find_version(dialect)
    if found is None:
        for statement in _TABLES[dialect]:
            yield Statement(statement)
        found = VERSION
    return found


def check_version(found: int | None, database: str, dialect: DialectName) -> None:
    """:raises ConfigError: the tables are missing, or another version of this package made them."""
    if found is None:
        raise ConfigError(
            f"transaction={database}: the inbox's tables are missing in this database; make them "
            f"with what `streams inbox ddl {dialect}` prints, or leave out create=False"
        )
    if found != VERSION:
        raise ConfigError(
            f"transaction={database}: the inbox's tables are of version {found}, and this package "
            f"works with version {VERSION}: another version of streams-toolkit made them"
        )


@lru_cache(64)
def _milliseconds(timeouts: Timeouts) -> tuple[str, str]:
    """Seconds as milliseconds for PostgreSQL's settings, which have a maximum."""
    return milliseconds(timeouts.lock), milliseconds(timeouts.idle)


_TAKE = Statement(
    "SELECT streams_inbox_take(CAST($1 AS text), CAST($2 AS text), CAST($3 AS text), "
    "CAST($4 AS text), CAST($5 AS text), CAST($6 AS text), CAST($7 AS text), CAST($8 AS text))"
)
_MARK_DEAD = Statement(
    "SELECT streams_inbox_mark_dead(CAST($1 AS bytea), CAST($2 AS bigint), CAST($3 AS text), "
    "CAST($4 AS integer), CAST($5 AS bigint), CAST($6 AS text), CAST($7 AS text), "
    "CAST($8 AS text))"
)


def take(
    dialect: DialectName, entries: Sequence[Entry], timeouts: Timeouts
) -> Steps[list[Verdict]]:
    """Record the messages that are to be handled now as handled; returns a verdict for each.

    :param entries: the entries of distinct messages.
    """
    if dialect == "postgresql":
        ids, *numbers, firsts = zip(*entries, strict=True)
        rows = yield _TAKE._replace(
            parameters=(
                ",".join(map(bytes.hex, ids)),
                *(",".join(map(str, each)) for each in numbers),
                *_first_stood(firsts),
                *_milliseconds(timeouts),
            )
        )
        return [_VERDICTS[each] for each in rows[0][0]]
    verdicts = []
    yield _BEGIN_TO_WRITE
    for entry in entries:
        verdicts.append((yield from _take_in_sqlite(entry)))  # noqa: PERF401 - it cannot be
    return verdicts


def _first_stood(firsts: Sequence[FirstStood | None]) -> tuple[str, str]:
    """The messages' first positions, as the function takes them: null for most messages, and empty
    if none has come back."""
    if not any(firsts):
        return "", ""
    scopes = ",".join("" if first is None else str(first.scope) for first in firsts)
    positions = ",".join("" if first is None else str(first.position) for first in firsts)
    return scopes, positions


def _columns_of(first: FirstStood | None) -> tuple[int | None, str | None]:
    """``first_scope`` and ``first_position`` of a row."""
    return (None, None) if first is None else (first.scope, position_text(first.position))


_BEGIN_TO_WRITE = Statement("UPDATE streams_inbox_schema SET version = version")
"""A driver may begin SQLite's transaction as a reader, or only with the first statement that
writes: so the first one writes without a change, and no other writer can come between the following
ones."""


def _take_in_sqlite(entry: Entry) -> Steps[Verdict]:
    rows = yield Statement("SELECT mark FROM streams_inbox_marks WHERE scope = $1", (entry.scope,))
    position = position_text(entry.position)
    is_below_mark = bool(rows) and position < rows[0][0]
    rows = yield Statement("SELECT dead, redrive FROM streams_inbox WHERE id = $1", (entry.id,))
    if rows:
        dead, redrive = rows[0]
        if not dead:
            return Verdict.HANDLED
        if entry.redrive <= redrive:
            return Verdict.DEAD
    if is_below_mark:
        return Verdict.PURGED
    yield Statement(
        "INSERT OR REPLACE INTO streams_inbox VALUES ($1, $2, $3, $4, 0, "
        "(julianday('now') - 2440587.5) * 86400, $5, $6)",
        (
            entry.id, entry.scope, position, entry.redrive, *_columns_of(entry.first),
        ),
    )  # fmt: skip
    return Verdict.NEW


def mark_dead(dialect: DialectName, entry: Entry, timeouts: Timeouts) -> Steps[Verdict]:
    """Give a message up: it is not handled any more, unless it is redriven after that.

    :returns: DEAD; or HANDLED or PURGED, if it is not given up for that reason.
    """
    if dialect == "postgresql":
        id, scope, position, redrive, first = entry
        rows = yield _MARK_DEAD._replace(
            parameters=(
                id, scope, str(position), redrive, *_columns_of(first), *_milliseconds(timeouts),
            )
        )  # fmt: skip
        return Verdict(rows[0][0])
    yield _BEGIN_TO_WRITE
    verdict = yield from _take_in_sqlite(entry)
    if verdict is Verdict.NEW:
        yield Statement("UPDATE streams_inbox SET dead = 1 WHERE id = $1", (entry.id,))
        return Verdict.DEAD
    return verdict


# -- purging (see streams.inbox.purging for the order of these)


class Pending(NamedTuple):
    """A mark that was raised, whose rows are not deleted yet."""

    is_due: bool
    """Whether every transaction has ended that could have read the old mark."""


def pending(dialect: DialectName, scope: int) -> Steps[Pending | None]:
    """Whether rows below the mark are to be deleted."""
    if dialect == "sqlite":
        return None
    # A number in the future is from another server, from which this database was restored.
    rows = yield Statement(
        "SELECT purge_after < txid_snapshot_xmin(txid_current_snapshot()) "
        "FROM streams_inbox_marks WHERE scope = CAST($1 AS bigint) "
        "AND purge_after < txid_snapshot_xmax(txid_current_snapshot())",
        (scope,),
    )
    return Pending(bool(rows[0][0])) if rows else None


_IS_KNOWN_WHERE_IT_STOOD_FIRST = (
    "NOT EXISTS (SELECT 1 FROM streams_inbox_marks AS f "
    "WHERE f.scope = i.first_scope AND f.mark <= i.first_position)"
)
"""Whether the mark of a message's first partition covers it there, too (a partition without a mark
was never begun). So while an earlier message is open there, the row of a message that came back
stays, although its retry topic's mark has passed it."""


class OldRows(NamedTuple):
    """The rows of a partition that may be deleted."""

    mark: str
    """Everything below this position was settled, and no row below it is young."""
    rows: int
    """The number of rows below the mark that may be deleted."""
    is_last: bool
    """Whether no more rows may be deleted: a young row is at the mark, or nothing from there on is
    settled."""


def rows_to_purge(
    dialect: DialectName, scope: int, start: str, settled: str, keep: float, limit: int
) -> Steps[OldRows]:
    """How far rows may be deleted, of those from position ``start`` to below ``settled``: among the
    first ``limit`` of them, up to the first one that is not older than ``keep`` seconds.

    Messages without a row there were settled all the same. Their rows may be in another partition,
    as those of messages that came back.
    """
    now = _NOW[dialect]
    select = (
        f"SELECT CAST(position AS text), handled_at < {now} - {_KEEP[dialect]}, "  # noqa: S608
        f"handled_at > {now}, {_IS_KNOWN_WHERE_IT_STOOD_FIRST} "
        f"FROM streams_inbox AS i WHERE scope = CAST($2 AS bigint) "
        f"AND position >= {_position(dialect, 3)} AND position < {_position(dialect, 4)} "
        "ORDER BY position LIMIT CAST($5 AS integer)"
    )
    parameters = (keep, scope, start, settled, limit)
    rows = yield Statement(select, parameters)
    if any(is_ahead for _, _, is_ahead, _ in rows):
        # Rows written while the clock was ahead would stay until it gets there again.
        yield Statement(
            f"UPDATE streams_inbox SET handled_at = {now} "  # noqa: S608
            f"WHERE scope = CAST($1 AS bigint) AND handled_at > {now}",
            (scope,),
        )
        rows = yield Statement(select, parameters)
    count = 0
    for position, is_old, _, is_known in rows:
        if not is_old:
            return OldRows(position_text(int(position)), count, is_last=True)
        count += bool(is_known)
    if len(rows) < limit:
        return OldRows(settled, count, is_last=True)
    return OldRows(position_text(int(rows[-1][0]) + 1), count, is_last=False)


_NOW: Mapping[DialectName, str] = {
    "postgresql": "clock_timestamp()",
    "sqlite": "(julianday('now') - 2440587.5) * 86400",
}
_KEEP: Mapping[DialectName, str] = {
    "postgresql": "make_interval(secs => CAST($1 AS double precision))",
    "sqlite": "$1",
}
"""The expression of the seconds for which rows are kept."""


def _position(dialect: DialectName, at: int) -> str:
    """The parameter with this number, which is a position as text."""
    return f"CAST(CAST(${at} AS text) AS numeric)" if dialect == "postgresql" else f"${at}"


def raise_mark(dialect: DialectName, scope: Scope, number: int, mark: str) -> Steps[None]:
    """Raise the mark: messages below it count as settled for ever. If the partition has this mark
    or a higher one already, its row is not changed, not even locked."""
    incarnation, group, generation, topic, partition = scope
    yield Statement(
        "INSERT INTO streams_inbox_marks AS m "  # noqa: S608
        "(scope, incarnation, group_name, generation, topic, partition, mark) "
        "SELECT CAST($1 AS bigint), CAST($2 AS text), CAST($3 AS text), "
        f"{_position(dialect, 4)}, CAST($5 AS text), CAST($6 AS integer), {_position(dialect, 7)} "
        "WHERE NOT EXISTS (SELECT 1 FROM streams_inbox_marks AS known "
        f"WHERE known.scope = CAST($8 AS bigint) AND known.mark >= {_position(dialect, 9)}) "
        "ON CONFLICT (scope) DO UPDATE SET mark = excluded.mark WHERE m.mark < excluded.mark",
        (number, incarnation, group, str(generation), topic, partition, mark, number, mark),
    )
    if dialect == "sqlite":
        yield Statement(
            "DELETE FROM streams_inbox AS i WHERE i.scope = $1 AND i.position < $2 "  # noqa: S608
            f"AND {_IS_KNOWN_WHERE_IT_STOOD_FIRST}",
            (number, mark),
        )


class Known(NamedTuple):
    """The database's facts about a partition when its owner begins."""

    mark: int
    """The partition's mark."""
    end: int
    """The position behind the last known message: by a row, or by the mark."""


def begin_partition(
    dialect: DialectName, scope: Scope, number: int, *, start: int, settled: int, end: int | None
) -> Steps[Known]:
    """Check a partition's mark and rows against the log before a new owner handles its messages,
    and insert the row of its mark if it is missing.

    If they are ahead of the log, the log was restored from an older copy, or has lost its end, and
    other messages get the positions of those that are gone. So the mark goes back to the position
    that is certainly settled, and rows of messages without an ID, which are identified by their
    positions, are deleted. Other rows stay: a message with an ID is the same one at any position.

    :param start: the position at which the owner begins.
    :param settled: the position below which everything is settled according to the log.
    :param end: the log's end when the owner began; None: unknown.
    """
    # As the row exists, a transaction with an old snapshot is refused by a mark that was raised
    # since.
    yield from raise_mark(dialect, scope, number, position_text(0))
    rows = yield Statement(
        "SELECT CAST(m.mark AS text), (SELECT CAST(max(i.position) AS text) "
        "FROM streams_inbox AS i WHERE i.scope = CAST($1 AS bigint)) "
        "FROM streams_inbox_marks AS m WHERE m.scope = CAST($2 AS bigint)",
        (number, number),
    )
    mark, last = rows[0]
    known = Known(int(mark), max(int(mark), -1 if last is None else int(last) + 1))
    if end is not None and known.end > end:
        mark = position_text(min(settled, end))
        yield Statement(
            f"UPDATE streams_inbox_marks SET mark = {_position(dialect, 1)} "  # noqa: S608
            f"WHERE scope = CAST($2 AS bigint) AND mark > {_position(dialect, 3)}",
            (mark, number, mark),
        )
        yield Statement(
            f"DELETE FROM streams_inbox WHERE scope = CAST($1 AS bigint) "  # noqa: S608
            f"AND position >= {_position(dialect, 2)} "
            f"AND substr(id, 9) = {_place(dialect, 'position')}",
            (number, position_text(start), f"{scope.topic}/{scope.partition}/"),
        )
        yield Statement(
            f"DELETE FROM streams_inbox WHERE first_scope = CAST($1 AS bigint) "  # noqa: S608
            f"AND first_position >= {_position(dialect, 2)} "
            f"AND substr(id, 9) = {_place(dialect, 'first_position')}",
            (number, position_text(start), f"{scope.topic}/{scope.partition}/"),
        )
    return known


def _place(dialect: DialectName, position: str) -> str:
    """The ID of a message without one, from its position in this column. (On Redis, which never
    reuses a position, it has another form.)"""
    if dialect == "postgresql":
        return f"convert_to(CAST($3 AS text) || CAST({position} AS text), 'UTF8')"
    return f"CAST($3 || CAST({position} AS integer) AS blob)"


def schedule_deletion(scope: int) -> Steps[None]:
    """On PostgreSQL, after :func:`raise_mark` was committed: transactions without a number yet will
    read the new mark."""
    yield Statement(
        "UPDATE streams_inbox_marks SET purge_after = txid_current() "
        "WHERE scope = CAST($1 AS bigint)",
        (scope,),
    )


def delete_purged(scope: int, limit: int) -> Steps[int]:
    """On PostgreSQL: delete rows below the mark; returns how many. If it is ``limit``, there may be
    more."""
    rows = yield Statement(
        "WITH gone AS (DELETE FROM streams_inbox "  # noqa: S608
        "WHERE id IN (SELECT i.id FROM streams_inbox AS i "
        "JOIN streams_inbox_marks AS m ON m.scope = i.scope AND i.position < m.mark "
        f"WHERE i.scope = CAST($1 AS bigint) AND {_IS_KNOWN_WHERE_IT_STOOD_FIRST} "
        "LIMIT CAST($2 AS integer)) RETURNING 1) "
        "SELECT count(*) FROM gone",
        (scope, limit),
    )
    deleted = int(rows[0][0])
    if deleted < limit:
        yield Statement(
            "UPDATE streams_inbox_marks SET purge_after = NULL WHERE scope = CAST($1 AS bigint)",
            (scope,),
        )
    return deleted
