"""Inspects an outbox and retries failed rows, for the command line.

Each function opens and closes its own connection; nothing is relayed here, and a missing SQLite
file is not created.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from streams.databases.protocol import Steps
from streams.errors import NotFound
from streams.log.protocol import OpenMode
from streams.message import Headers
from streams.outbox.databases import RelayDatabase
from streams.outbox.outbox import Outbox
from streams.outbox.rows import InvalidRow as InvalidRow
from streams.outbox.rows import decode_headers, record_of
from streams.outbox.tables import (
    FAILED,
    READY,
    UNDECLARED,
    Dialect,
    OutboxBacklog,
    RelayRow,
    statement,
)
from streams.outbox.tables import HeldRow as HeldRow
from streams.outbox.tables import UndeclaredTopic as UndeclaredTopic
from streams.wire import parse_int

STATES = {READY: "ready", FAILED: "failed", UNDECLARED: "undeclared"}
"""The displayed names of the states; any other state is ``waiting``."""

MAX_TOPICS = 20
"""The most undeclared topics that are named."""

LEASE = 30.0
"""Seconds after which an idle transaction of these functions is given up."""


class RelaysSeen(NamedTuple):
    """The registered relays.

    :param number: how many.
    :param seconds: seconds since the last heartbeat of any of them; None: there is no relay.
    """

    number: int
    seconds: float | None


class InspectedOutbox(NamedTuple):
    """An outbox.

    :param rows: the failed rows, or all, up to the requested number.
    :param undeclared: topics of rows that wait for a relay whose app declares them; those with the
        most rows, :data:`MAX_TOPICS` at most.
    """

    backlog: OutboxBacklog
    relays: RelaysSeen
    rows: list[HeldRow]
    undeclared: list[UndeclaredTopic]


class InspectedRow(NamedTuple):
    """A row with the message that it would be published as.

    :param headers: the headers, as stored in the table.
    :param problem: why the row is no message; empty: it is one.
    """

    row: HeldRow
    payload: bytes | None
    headers: str | None
    problem: str


def state_name(state: int) -> str:
    """The displayed name of a state."""
    return STATES.get(state, "waiting")


@asynccontextmanager
async def open_existing(outbox: Outbox, mode: OpenMode = "ro") -> AsyncIterator[RelayDatabase]:
    """A connection to an outbox whose tables exist.

    :param mode: ``rw`` to change rows.
    :raises NotFound: the tables or the SQLite file do not exist.
    :raises LogError: the database cannot be reached.
    """
    database = outbox.open(mode)
    try:
        await database.connect(LEASE)
        if not await database.has_tables():
            raise NotFound(
                f"{database.place} has no table {outbox.name!r} with its relays and buckets; "
                "a relay creates them, and so does outbox.create_tables()"
            )
        yield database
    finally:
        await database.close()


async def inspect_outbox(
    outbox: Outbox, limit: int, *, all_states: bool = False
) -> InspectedOutbox:
    """The current state of an outbox.

    :param limit: the most rows.
    """
    async with open_existing(outbox) as database:
        dialect = database.dialect
        (backlog,) = await database.execute(dialect.backlog())
        (relays,) = await database.execute(dialect.relays_seen())
        rows = await database.execute(dialect.list_rows(all_states=all_states), {"limit": limit})
        topics = await database.execute(dialect.undeclared_topics(), {"limit": MAX_TOPICS})
    return InspectedOutbox(
        OutboxBacklog(*backlog),
        RelaysSeen(*relays),
        [HeldRow(*row) for row in rows],
        [UndeclaredTopic(*topic) for topic in topics],
    )


async def find_rows(outbox: Outbox, name: str, limit: int = 100) -> list[InspectedRow]:
    """The rows of a message ID, or of a sequence number.

    :raises NotFound: there is no such row.
    """
    async with open_existing(outbox) as database:
        found = await _select_rows(database, name, limit)
    if not found:
        raise NotFound(f"outbox {outbox.name!r} has no row {name!r}; it may have been published")
    return [_inspect_row(row) for row in found]


async def _select_rows(database: RelayDatabase, name: str, limit: int) -> list[Any]:
    sequence = parse_int(name)
    return await database.execute(
        database.dialect.find_rows(),
        {"name": name, "sequence": -1 if sequence is None else sequence, "limit": limit},
    )


def _inspect_row(found: Any) -> InspectedRow:
    *columns, headers, payload = found
    row = HeldRow(*columns)
    as_read = RelayRow(
        row.sequence, 0, row.id, row.topic, row.key, payload, row.keytype, headers, row.size, False
    )
    try:
        record_of(as_read)
        problem = ""
    except InvalidRow as error:
        problem = str(error)
    return InspectedRow(row, payload, headers, problem)


def headers_of(found: InspectedRow) -> Headers:
    """The headers of a row.

    :raises InvalidRow: they cannot be read.
    """
    return decode_headers(found.headers) if found.headers else ()


async def retry_rows(outbox: Outbox, names: Collection[str] | None) -> int:
    """Have failed rows, and the rows that wait behind them, tried again; returns the number of the
    failed rows.

    :param names: message IDs or sequences; None: all.
    :raises NotFound: one of them does not exist or has not failed; nothing was changed.
    """
    async with open_existing(outbox, "rw") as database:
        wanted: set[int] | None = None
        if names is not None:
            wanted = set()
            for name in names:
                rows = [HeldRow(*row[:-2]) for row in await _select_rows(database, name, 1_000)]
                failed = {row.sequence for row in rows if row.state == FAILED}
                if not failed:
                    what = "has not failed" if rows else "is not there"
                    raise NotFound(f"outbox {outbox.name!r}: row {name!r} {what}")
                wanted |= failed
        return await database.transaction(_retry_steps(database.dialect, wanted))


def _retry_steps(dialect: Dialect, wanted: Collection[int] | None) -> Steps[int]:
    """Have these failed rows tried again (None: all); returns their number."""
    tried, keys = 0, dict[tuple[str, str], bool]()
    for sequence, topic, key in (yield statement(dialect.keys_of_failed())):
        again = wanted is None or sequence in wanted
        # A key continues only if no other row of it has failed.
        keys[topic, key] = keys.get((topic, key), True) and again
        if again:
            tried += 1
            yield statement(dialect.retry_row(), {"sequence": sequence})
    for (topic, key), goes_on in keys.items():
        if goes_on:
            yield statement(dialect.retry_key(), {"topic": topic, "key": key})
    return tried
