"""Claims in this process's memory: ``memory://name`` is shared, ``memory://`` is private.

All time is the opener's monotonic clock. What is over is removed by whatever is asked next: a heap
has one item for each entry, in the order in which they end, and is made anew when most of its
items are of entries that are gone.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from streams.clock import Clock
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
from streams.log.memory.shared import Shared
from streams.log.protocol import Opened


class _Row:
    """What stands under a key. ``value`` is None for a claim, whose lease ends at ``until``."""

    __slots__ = ("expires", "fingerprint", "ticket", "token", "until", "value")

    def __init__(self, token: str, fingerprint: str, value: bytes | None, until: float) -> None:
        self.token = token
        self.fingerprint = fingerprint
        self.value = value
        self.until = until
        self.expires = until if value is not None else until + GRACE
        self.ticket = 0
        """The heap's item that is this row's."""


class Shelf:
    """The claims of one name."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.users = 0
        self._lock = threading.Lock()
        self._rows: dict[bytes, _Row] = {}
        self._ends: list[tuple[float, int, bytes]] = []
        self._tickets = 0

    def __len__(self) -> int:
        return len(self._rows)

    def run(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer."""
        with self._lock:
            now = self.clock.monotonic()
            self._sweep(now)
            return [self._one(request, now) for request in requests]

    def _one(self, request: Request, now: float) -> Answer:
        row = self._rows.get(request.key)
        if row is not None and row.expires <= now:
            row = None
        mine = row is not None and row.token == getattr(request, "token", None)
        match request:
            case Claim(key, token, lease, fingerprint):
                if row is not None and row.until > now and not (mine and row.value is None):
                    return Entry(row.fingerprint, row.value, row.until - now)
                self._put(key, _Row(token, fingerprint, None, now + lease))
                return None
            case Renew(_, _, lease):
                if row is None or not mine:
                    return False
                if row.value is None:
                    row.until = now + lease
                    row.expires = row.until + GRACE
                return True
            case Complete(key, token, value, ttl):
                if row is None or not mine:
                    return False
                if row.value is None:
                    self._put(key, _Row(token, row.fingerprint, value, now + ttl))
                return True
            case Release(key):
                if row is None or not mine or row.value is not None:
                    return False
                del self._rows[key]
                return True
            case Look():
                if row is None or row.until <= now:
                    return None
                return Entry(row.fingerprint, row.value, row.until - now)
            case Put(key, value, ttl):
                self._put(key, _Row("", "", value, now + ttl))
                return True
            case Forget(key):
                self._rows.pop(key, None)
                return row is not None

    def _put(self, key: bytes, row: _Row) -> None:
        self._tickets += 1
        row.ticket = self._tickets
        self._rows[key] = row
        heappush(self._ends, (row.expires, row.ticket, key))

    def _sweep(self, now: float) -> None:
        ends, rows = self._ends, self._rows
        while ends and ends[0][0] <= now:
            _, ticket, key = heappop(ends)
            row = rows.get(key)
            if row is None or row.ticket != ticket:
                continue
            if row.expires > now:  # it was renewed
                heappush(ends, (row.expires, ticket, key))
            else:
                del rows[key]
        if len(ends) > 2 * len(rows) + 64:
            self._ends = [(row.expires, row.ticket, key) for key, row in rows.items()]
            heapify(self._ends)


_shared = Shared(Shelf, own="claims of one's own", other="some that are shared")


class MemoryClaims:
    """One opener's handle on a shelf."""

    immediate = True

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._closed = False
        self._closing = threading.Lock()

    @property
    def clock(self) -> Clock:
        """The opener's."""
        return self.shelf.clock

    def run(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """Every request's answer in order."""
        if self._closed:
            raise Unavailable(f"memory://{self.shelf.name}: closed")
        return self.shelf.run(requests)

    def close(self) -> None:
        """Let go; the last of a name takes all of it along."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        _shared.leave(self.shelf)


def open_claims(opened: Opened) -> MemoryClaims:
    """Claims in memory.

    :raises ConfigError: the name cannot be one, or the shared claims run on another clock.
    """
    return MemoryClaims(_shared.take(opened))
