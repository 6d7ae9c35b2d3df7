"""Claims in this process's memory: ``memory://name`` is shared, ``memory://`` is private.

All time is the opener's monotonic clock. The next call removes what has expired: a heap has an item
for each entry, in order of expiry, and is rebuilt when most of its items are of removed entries.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from streams.clock import Clock
from streams.errors import LogError, Unavailable
from streams.log.claims import (
    CLAIM_GRACE,
    Answer,
    ClaimState,
    DeleteRow,
    Request,
    WriteClaim,
    WriteOutcome,
    decide,
)
from streams.log.memory.registry import NamedRegistry
from streams.log.protocol import OpenRequest


@dataclass(slots=True)
class _ClaimRow:
    """What a key has. ``value`` is None for a claim, whose lease ends at ``until``."""

    token: str
    fingerprint: str
    value: bytes | None
    until: float
    ticket: int = 0
    """The heap's item that is this row's."""

    @property
    def expires(self) -> float:
        return self.until if self.value is not None else self.until + CLAIM_GRACE


class ClaimTable:
    """The claims of one name."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.users = 0
        self._lock = threading.Lock()
        self._rows: dict[bytes, _ClaimRow] = {}
        self._expiry_heap: list[tuple[float, int, bytes]] = []
        self._last_ticket = 0

    def __len__(self) -> int:
        return len(self._rows)

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer."""
        with self._lock:
            now = self.clock.monotonic()
            self._delete_expired(now)
            return [self._execute_one(request, now) for request in requests]

    def _execute_one(self, request: Request, now: float) -> Answer:
        key, row = request.key, self._rows.get(request.key)
        state = None
        if row is not None and row.expires > now:
            state = ClaimState(row.token, row.fingerprint, row.value, row.until - now)
        answer, write = decide(request, state)
        match write:
            case WriteClaim(token, fingerprint, lease):
                self._put(key, _ClaimRow(token, fingerprint, None, now + lease))
            case WriteOutcome(token, fingerprint, value, ttl):
                self._put(key, _ClaimRow(token, fingerprint, value, now + ttl))
            case DeleteRow():
                self._rows.pop(key, None)
            case None:
                pass
        return answer

    def _put(self, key: bytes, row: _ClaimRow) -> None:
        self._last_ticket += 1
        row.ticket = self._last_ticket
        self._rows[key] = row
        heappush(self._expiry_heap, (row.expires, row.ticket, key))

    def _delete_expired(self, now: float) -> None:
        ends, rows = self._expiry_heap, self._rows
        while ends and ends[0][0] <= now:
            _, ticket, key = heappop(ends)
            row = rows.get(key)
            if row is None or row.ticket != ticket:
                continue
            del rows[key]
        if len(ends) > 2 * len(rows) + 64:
            self._expiry_heap = [(row.expires, row.ticket, key) for key, row in rows.items()]
            heapify(self._expiry_heap)


_registry = NamedRegistry(
    ClaimTable, private_description="claims of one's own", shared_description="some that are shared"
)


class MemoryClaimStore:
    """One opener's handle on the claims."""

    never_blocks = True

    def __init__(self, table: ClaimTable) -> None:
        self.table = table
        self._closed = False
        self._close_lock = threading.Lock()

    @property
    def clock(self) -> Clock:
        """The opener's."""
        return self.table.clock

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer in order."""
        if self._closed:
            raise Unavailable(f"memory://{self.table.name}: closed")
        return self.table.execute(requests)

    def close(self) -> None:
        """Close; with the last handle of a name, its claims are gone."""
        with self._close_lock:
            if self._closed:
                return
            self._closed = True
        _registry.release(self.table)


def open_claims(request: OpenRequest) -> MemoryClaimStore:
    """Claims in memory.

    :raises ConfigError: the URL has settings, or the shared claims use another clock.
    """
    return MemoryClaimStore(_registry.acquire(request))
