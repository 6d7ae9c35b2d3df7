"""Claims in a SQLite file, a log's or one of their own; shared by the processes of one machine.

All requests of a call that write share one transaction; what can be answered from what is already
there (an outcome, a claim that runs) takes none. A lease is counted on the machine's monotonic
clock, which nobody sets; where that is another one's (the machine was restarted meanwhile, or the
claim is of another time namespace) the time of day decides. Outcomes end by the time of day.

What is over is deleted beside what is written, some rows a transaction, more than it adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from streams.clock import SYSTEM, Clock
from streams.errors import LogError, Unavailable
from streams.log.claims import (
    GRACE,
    Answer,
    Claim,
    Complete,
    Entry,
    Forget,
    Look,
    Put,
    Release,
    Renew,
    Request,
)
from streams.log.protocol import Opened
from streams.log.sqlite import settings
from streams.log.sqlite.alive import timeline
from streams.log.sqlite.database import Connection, Database

_TABLES = """
CREATE TABLE IF NOT EXISTS streams_claims (
    key BLOB PRIMARY KEY,
    token TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    value BLOB,                 -- the outcome; NULL while its owner works on it
    lease REAL,                 -- when the claim is over, on a monotonic clock; NULL for an outcome
    timeline TEXT NOT NULL,     -- which clock that is
    until REAL NOT NULL,        -- the same by the time of day; when an outcome is over
    expires REAL NOT NULL       -- when the row may be deleted, by the time of day
);
CREATE INDEX IF NOT EXISTS streams_claims_expires ON streams_claims (expires);
"""

_FIND = "SELECT token, fingerprint, value, lease, timeline, until FROM streams_claims WHERE key = ?"
_PUT = "INSERT OR REPLACE INTO streams_claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

# A claim of this machine goes by its own clock alone: the time of day may have been set.
_SWEEP = """
DELETE FROM streams_claims WHERE key IN (
    SELECT key FROM streams_claims
    WHERE expires <= ?1 AND (lease IS NULL OR timeline <> ?2 OR lease + ?3 <= ?4)
    ORDER BY expires LIMIT ?5
)
"""


class _Now(NamedTuple):
    """One moment, on every clock that counts."""

    monotonic: float
    time: float
    timeline: str


class _Row(NamedTuple):
    """What stands under a key."""

    token: str
    fingerprint: str
    value: bytes | None
    lease: float | None
    timeline: str
    until: float

    def left(self, now: _Now) -> float:
        """Seconds until it is over; negative when it is."""
        if self.lease is not None and self.timeline == now.timeline:
            return self.lease - now.monotonic
        return self.until - now.time

    def gone(self, now: _Now) -> bool:
        """It is as if it had been deleted already."""
        return self.left(now) <= (0 if self.value is not None else -GRACE)

    def seen(self, now: _Now) -> Entry | None:
        """As others see it."""
        left = self.left(now)
        return Entry(self.fingerprint, self.value, left) if left > 0 else None


class SqliteClaims:
    """Claims in one file."""

    immediate = False

    def __init__(self, opened: Opened) -> None:
        self._settings = settings.read(opened)
        self._clock = opened.clock or SYSTEM
        self._database: Database | None = None
        self._closed = False

    @property
    def clock(self) -> Clock:
        """The opener's."""
        return self._clock

    def run(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer in order.

        :raises LogError: the file cannot be used now; nothing was written.
        """
        database = self._open()
        answers: list[Answer | LogError] = [None] * len(requests)
        writes = self._read(database, requests, answers)
        if writes:
            try:
                with database.write() as connection:
                    now = self._now()
                    for index in writes:
                        answers[index] = _one(connection, requests[index], now)
                    _sweep(connection, now, 2 * len(writes) + 8)
            except LogError as error:
                for index in writes:
                    answers[index] = error
        return answers

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        if self._database is not None:
            self._database.close()

    def _open(self) -> Database:
        if self._closed:
            raise Unavailable(f"{self._settings.path}: closed")
        if self._database is None:
            database = Database(self._settings, self._clock, "file of claims")
            try:
                with database.read() as connection:
                    there = connection.table_exists("main", "streams_claims")
                if not there:
                    with database.write() as connection:
                        connection.execute(_TABLES)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _now(self) -> _Now:
        return _Now(self._clock.monotonic(), self._clock.time(), timeline(self._clock))

    def _read(
        self, database: Database, requests: Sequence[Request], answers: list[Answer | LogError]
    ) -> list[int]:
        """Answer what needs no writing; the others. What follows a writing of the same key must
        see it, so it goes along."""
        left: list[int] = []
        written: set[bytes] = set()
        with database.read() as connection:
            now = self._now()
            for index, request in enumerate(requests):
                if isinstance(request, Claim | Look) and request.key not in written:
                    row = _find(connection, request.key, now)
                    found = row.seen(now) if row else None
                    if isinstance(request, Look) or (row and found and _stands(row, request)):
                        answers[index] = found
                        continue
                written.add(request.key)
                left.append(index)
        return left


def _find(connection: Connection, key: bytes, now: _Now) -> _Row | None:
    for found in connection.rows(_FIND, (key,)):
        row = _Row(*found)
        return None if row.gone(now) else row
    return None


def _stands(row: _Row, claim: Claim) -> bool:
    """Whether a row that is not over is in this claim's way."""
    return row.value is not None or row.token != claim.token


def _one(connection: Connection, request: Request, now: _Now) -> Answer:
    """Do one request within a transaction."""
    row = _find(connection, request.key, now)
    mine = row is not None and row.token == getattr(request, "token", None)
    match request:
        case Claim(key, token, lease, fingerprint):
            found = row.seen(now) if row else None
            if row and found and _stands(row, request):
                return found
            _claimed(connection, key, token, fingerprint, lease, now)
            return None
        case Renew(key, token, lease):
            if row is None or not mine:
                return False
            if row.value is None:
                _claimed(connection, key, token, row.fingerprint, lease, now)
            return True
        case Complete(key, token, value, ttl):
            if row is None or not mine:
                return False
            if row.value is None:
                _done(connection, key, token, row.fingerprint, value, now.time + ttl)
            return True
        case Release(key):
            if row is None or not mine or row.value is not None:
                return False
            connection.execute("DELETE FROM streams_claims WHERE key = ?", (key,))
            return True
        case Look():
            return row.seen(now) if row else None
        case Put(key, value, ttl):
            _done(connection, key, "", "", value, now.time + ttl)
            return True
        case Forget(key):
            connection.execute("DELETE FROM streams_claims WHERE key = ?", (key,))
            return row is not None


def _claimed(
    connection: Connection, key: bytes, token: str, fingerprint: str, lease: float, now: _Now
) -> None:
    until = now.time + lease
    ends = now.monotonic + lease
    row = (key, token, fingerprint, None, ends, now.timeline, until, until + GRACE)
    connection.execute(_PUT, row)


def _done(
    connection: Connection, key: bytes, token: str, fingerprint: str, value: bytes, ends: float
) -> None:
    connection.execute(_PUT, (key, token, fingerprint, value, None, "", ends, ends))


def _sweep(connection: Connection, now: _Now, most: int) -> None:
    connection.execute(_SWEEP, (now.time, now.timeline, GRACE, now.monotonic, most))


def open_claims(opened: Opened) -> SqliteClaims:
    """Claims in a file, which is made when it is first used.

    :raises ConfigError: the URL cannot be used.
    """
    return SqliteClaims(opened)
