"""The inbox's tables and functions, for PostgreSQL and SQLite, and the statements that create them.

``streams_inbox``
    A row for each message that was handled, or given up as dead, by its identity: eight bytes, and
    the message ID unchanged (``convert_from(substr(id, 9), 'UTF8')``). ``first_scope`` and
    ``first_position`` are the first partition and position of a message that came back: its row
    stays until the marks of both partitions cover it.
``streams_inbox_marks``
    A row for each partition that was begun. Everything below its ``mark`` was settled, so a message
    with a position below it counts as handled. The mark is 0 at first.
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

from streams.databases.locking import begin_locking
from streams.databases.protocol import DialectName, Statement, Steps
from streams.errors import ConfigError

VERSION = 2

PREPARING = 7_305_236_104_410_227
"""The number of the advisory lock that is held while tables are created; arbitrary."""


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
