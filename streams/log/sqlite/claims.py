"""Claims in a SQLite file, a log's or a separate one; shared by the processes of one machine.

All requests of a call that write share one transaction; a request that can be answered by reading
(there is an outcome, or a claim is held) needs none. A lease is counted on the machine's monotonic
clock, which cannot be set; if the row names another clock (the machine was restarted meanwhile, or
the claim is of another time namespace) the time of day decides. Outcomes expire by the time of day.

Each transaction also deletes some expired rows, more than it adds.

Other programs may have written into the file. A damaged row does not show whether its operation has
run, so it counts neither as an outcome nor as absent: requests for its key get an error that names
it, until the key is forgotten or an outcome is stored under it. The call's other requests are
answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from streams.clock import SYSTEM, Clock
from streams.errors import LogError, Unavailable
from streams.log.claims import (
    CLAIM_GRACE,
    Answer,
    Claim,
    ClaimState,
    DeleteClaim,
    GetClaim,
    PutOutcome,
    Request,
    decide,
)
from streams.log.protocol import OpenRequest
from streams.log.sqlite import settings
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.member_locks import timeline_of
from streams.wire import shorten

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

# Text is read as bytes, and other types as they are: the driver refuses text that is not UTF-8.
_SELECT_CLAIM = """
SELECT CAST(token AS BLOB), CAST(fingerprint AS BLOB), iif(typeof(value) = 'text', 0, value),
    iif(typeof(lease) = 'text', x'', lease), CAST(timeline AS BLOB),
    iif(typeof(until) = 'text', x'', until), iif(typeof(expires) = 'text', x'', expires)
FROM streams_claims WHERE key = ?
"""
_INSERT_CLAIM = "INSERT OR REPLACE INTO streams_claims VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

# A claim of this machine expires by its monotonic clock alone: the time of day may have been set.
# (`until` is compared, too, as `expires` alone may be damaged.)
_DELETE_EXPIRED = """
DELETE FROM streams_claims WHERE key IN (
    SELECT key FROM streams_claims
    WHERE expires <= ?1 AND until <= ?1 AND (lease IS NULL OR timeline <> ?2 OR lease + ?3 <= ?4)
    ORDER BY expires LIMIT ?5
)
"""


_NOW = 0.0
"""The time for decisions: a row's time may be of either of two clocks, so states count from now."""


_UNREADABLE = ClaimState("", "", None, 0.0)
"""Replaces a damaged row where its contents do not matter."""


class _Instant(NamedTuple):
    """One moment, on each of the clocks in use."""

    monotonic: float
    time: float
    timeline: str


class _Damaged(ValueError):
    """A row is damaged, in the column that this names."""


class _ClaimRow(NamedTuple):
    """The row of a key, which other programs may have written."""

    token: bytes
    fingerprint: bytes
    value: object
    lease: object
    timeline: bytes
    until: object
    expires: object

    def state(self, now: _Instant) -> ClaimState | None:
        """The row, with its time as seconds from now; None if the row counts as deleted.

        :raises _Damaged: the row is damaged.
        """
        until, value = _finite("until", self.until), self.value
        if not isinstance(value, bytes | None):
            raise _Damaged("value")
        if (value is None) == (self.lease is None):
            raise _Damaged("lease")
        expires_in = until - now.time
        if value is not None:
            if self.expires != until:
                raise _Damaged("expires")
        else:
            lease = _finite("lease", self.lease)
            if self.timeline == now.timeline.encode():
                expires_in = lease - now.monotonic
        if expires_in <= (0 if value is not None else -CLAIM_GRACE):
            return None
        token, fingerprint = (
            text.decode("utf-8", "backslashreplace") for text in (self.token, self.fingerprint)
        )
        return ClaimState(token, fingerprint, value, expires_in)


def _finite(column: str, stored: object) -> float:
    if isinstance(stored, float) and isfinite(stored):
        return stored
    raise _Damaged(column)


class SqliteClaimStore:
    """Claims in one file."""

    never_blocks = False

    def __init__(self, request: OpenRequest) -> None:
        self._settings = settings.read_settings(request)
        self.clock: Clock = request.clock or SYSTEM
        self._database: Database | None = None
        self._closed = False

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """See :meth:`streams.log.claims.ClaimStore.execute`."""
        database = self._open_database()
        answers: list[Answer | LogError] = [None] * len(requests)
        writes = self._answer_without_writing(database, requests, answers)
        if writes:
            try:
                with database.write() as db:
                    now = self._now()
                    for index in writes:
                        answers[index] = self._execute_one(db, requests[index], now)
                    limit = 2 * len(writes) + 8
                    bindings = (now.time, now.timeline, CLAIM_GRACE, now.monotonic, limit)
                    db.execute(_DELETE_EXPIRED, bindings)
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
            database = Database(self._settings, self.clock, "file of claims")
            try:
                with database.read() as db:
                    has_table = db.table_exists("main", "streams_claims")
                if not has_table:
                    with database.write() as db:
                        db.execute(_CREATE_TABLES)
            except BaseException:
                database.close()
                raise
            self._database = database
        return self._database

    def _now(self) -> _Instant:
        return _Instant(self.clock.monotonic(), self.clock.time(), timeline_of(self.clock))

    def _answer_without_writing(
        self, database: Database, requests: Sequence[Request], answers: list[Answer | LogError]
    ) -> list[int]:
        """Answer the requests that write nothing; returns the indexes of the others. A request that
        follows a write of the same key must see that write, so it is one of the others."""
        to_write: list[int] = []
        written_keys: set[bytes] = set()
        with database.read() as db:
            now = self._now()
            for index, request in enumerate(requests):
                if isinstance(request, Claim | GetClaim) and request.key not in written_keys:
                    try:
                        state = _find_state(db, request.key, now)
                    except _Damaged as damage:
                        answers[index] = self._damaged(request, damage)
                        continue
                    answer, changed = decide(request, state, _NOW)
                    if changed is state:
                        answers[index] = answer
                        continue
                written_keys.add(request.key)
                to_write.append(index)
        return to_write

    def _execute_one(
        self, db: SqliteConnection, request: Request, now: _Instant
    ) -> Answer | LogError:
        """Do one request within a transaction."""
        key = request.key
        try:
            state = _find_state(db, key, now)
        except _Damaged as damage:
            if not isinstance(request, DeleteClaim | PutOutcome):
                return self._damaged(request, damage)
            state = _UNREADABLE
        answer, changed = decide(request, state, _NOW)
        if changed is None:
            db.execute("DELETE FROM streams_claims WHERE key = ?", (key,))
        elif changed is not state:
            db.execute(_INSERT_CLAIM, (key, *_row_of(changed, now)))
        return answer

    def _damaged(self, request: Request, damage: _Damaged) -> LogError:
        key = shorten(request.key)
        return LogError(
            f"{self._settings.path}: the row of the idempotency key {key!r} in streams_claims is "
            f"damaged (column {damage}), so it is unknown whether its operation has run: find that "
            "out, then store its outcome by IdempotencyStore.set() or remove the key by forget()"
        )


def _find_state(db: SqliteConnection, key: bytes, now: _Instant) -> ClaimState | None:
    for found in db.fetch_rows(_SELECT_CLAIM, (key,)):
        return _ClaimRow(*found).state(now)
    return None


def _row_of(state: ClaimState, now: _Instant) -> tuple[object, ...]:
    until = now.time + state.until
    if state.value is not None:
        return state.token, state.fingerprint, state.value, None, "", until, until
    lease_end = now.monotonic + state.until
    expires = until + CLAIM_GRACE
    return state.token, state.fingerprint, None, lease_end, now.timeline, until, expires


def open_claims(request: OpenRequest) -> SqliteClaimStore:
    """Claims in a file, which is created when it is first used.

    :raises ConfigError: the URL cannot be used.
    """
    return SqliteClaimStore(request)
