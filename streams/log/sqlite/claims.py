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
    CLAIM_GRACE,
    Answer,
    Claim,
    ClaimState,
    DeleteRow,
    GetClaim,
    Request,
    WriteClaim,
    WriteOutcome,
    decide,
)
from streams.log.protocol import OpenRequest
from streams.log.sqlite import settings
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.member_locks import timeline_of

_CREATE_TABLES = """
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

_SELECT_CLAIM = (
    "SELECT token, fingerprint, value, lease, timeline, until FROM streams_claims WHERE key = ?"
)
_INSERT_CLAIM = "INSERT OR REPLACE INTO streams_claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

# A claim of this machine goes by its own clock alone: the time of day may have been set.
_DELETE_EXPIRED = """
DELETE FROM streams_claims WHERE key IN (
    SELECT key FROM streams_claims
    WHERE expires <= ?1 AND (lease IS NULL OR timeline <> ?2 OR lease + ?3 <= ?4)
    ORDER BY expires LIMIT ?5
)
"""


class _Instant(NamedTuple):
    """One moment, on every clock that counts."""

    monotonic: float
    time: float
    timeline: str


class _ClaimRow(NamedTuple):
    """What stands under a key."""

    token: str
    fingerprint: str
    value: bytes | None
    lease: float | None
    timeline: str
    until: float

    def remaining(self, now: _Instant) -> float:
        """Seconds until it is over; negative when it is."""
        if self.lease is not None and self.timeline == now.timeline:
            return self.lease - now.monotonic
        return self.until - now.time

    def state(self, now: _Instant) -> ClaimState | None:
        """As decisions depend on it; None if it is as if it had been deleted already."""
        expires_in = self.remaining(now)
        if expires_in <= (0 if self.value is not None else -CLAIM_GRACE):
            return None
        return ClaimState(self.token, self.fingerprint, self.value, expires_in)


class SqliteClaimStore:
    """Claims in one file."""

    never_blocks = False

    def __init__(self, request: OpenRequest) -> None:
        self._settings = settings.read_settings(request)
        self._clock = request.clock or SYSTEM
        self._database: Database | None = None
        self._closed = False

    @property
    def clock(self) -> Clock:
        """The opener's."""
        return self._clock

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer in order.

        :raises LogError: the file cannot be used now; nothing was written.
        """
        database = self._open_database()
        answers: list[Answer | LogError] = [None] * len(requests)
        writes = self._answer_without_writing(database, requests, answers)
        if writes:
            try:
                with database.write() as connection:
                    now = self._now()
                    for index in writes:
                        answers[index] = _execute_one(connection, requests[index], now)
                    _delete_expired(connection, now, 2 * len(writes) + 8)
            except LogError as error:
                for index in writes:
                    answers[index] = error
        return answers

    def close(self) -> None:
        """Close the file."""
        self._closed = True
        if self._database is not None:
            self._database.close()

    def _open_database(self) -> Database:
        if self._closed:
            raise Unavailable(f"{self._settings.path}: closed")
        if self._database is None:
            database = Database(self._settings, self._clock, "file of claims")
            try:
                with database.read() as connection:
                    has_table = connection.table_exists("main", "streams_claims")
                if not has_table:
                    with database.write() as connection:
                        connection.execute(_CREATE_TABLES)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _now(self) -> _Instant:
        return _Instant(self._clock.monotonic(), self._clock.time(), timeline_of(self._clock))

    def _answer_without_writing(
        self, database: Database, requests: Sequence[Request], answers: list[Answer | LogError]
    ) -> list[int]:
        """Answer what needs no writing; the others. What follows a writing of the same key must
        see it, so it goes along."""
        to_write: list[int] = []
        written_keys: set[bytes] = set()
        with database.read() as connection:
            now = self._now()
            for index, request in enumerate(requests):
                if isinstance(request, Claim | GetClaim) and request.key not in written_keys:
                    answer, write = decide(request, _find_state(connection, request.key, now))
                    if write is None:
                        answers[index] = answer
                        continue
                written_keys.add(request.key)
                to_write.append(index)
        return to_write


def _find_state(connection: SqliteConnection, key: bytes, now: _Instant) -> ClaimState | None:
    for found in connection.fetch_rows(_SELECT_CLAIM, (key,)):
        return _ClaimRow(*found).state(now)
    return None


def _execute_one(connection: SqliteConnection, request: Request, now: _Instant) -> Answer:
    """Do one request within a transaction."""
    key = request.key
    answer, write = decide(request, _find_state(connection, key, now))
    match write:
        case WriteClaim(token, fingerprint, lease):
            _write_claim(connection, key, token, fingerprint, lease, now)
        case WriteOutcome(token, fingerprint, value, ttl):
            _write_outcome(connection, key, token, fingerprint, value, now.time + ttl)
        case DeleteRow():
            connection.execute("DELETE FROM streams_claims WHERE key = ?", (key,))
        case None:
            pass
    return answer


def _write_claim(
    connection: SqliteConnection,
    key: bytes,
    token: str,
    fingerprint: str,
    lease: float,
    now: _Instant,
) -> None:
    until = now.time + lease
    lease_end = now.monotonic + lease
    row = (key, token, fingerprint, None, lease_end, now.timeline, until, until + CLAIM_GRACE)
    connection.execute(_INSERT_CLAIM, row)


def _write_outcome(
    connection: SqliteConnection,
    key: bytes,
    token: str,
    fingerprint: str,
    value: bytes,
    expires: float,
) -> None:
    connection.execute(_INSERT_CLAIM, (key, token, fingerprint, value, None, "", expires, expires))


def _delete_expired(connection: SqliteConnection, now: _Instant, limit: int) -> None:
    connection.execute(_DELETE_EXPIRED, (now.time, now.timeline, CLAIM_GRACE, now.monotonic, limit))


def open_claims(request: OpenRequest) -> SqliteClaimStore:
    """Claims in a file, which is made when it is first used.

    :raises ConfigError: the URL cannot be used.
    """
    return SqliteClaimStore(request)
