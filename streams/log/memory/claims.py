"""Claims in this process's memory: ``memory://name`` is shared, ``memory://`` is private.

All times are by the opener's monotonic clock. Each call first removes the expired entries: a heap
has an item for each entry, in order of expiry, and is rebuilt when most of its items belong to
replaced entries.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from streams.clock import Clock
from streams.errors import LogError, Unavailable
from streams.log.claims import (
    CLAIM_GRACE,
    Answer,
    ClaimState,
    Request,
    decide,
)
from streams.log.memory.registry import NamedRegistry
from streams.log.protocol import OpenRequest


class ClaimTable:
    """The claims of one name."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.users = 0
        self._lock = threading.Lock()
        self._states: dict[bytes, ClaimState] = {}
        self._expiry_heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._states)

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """The answers to all requests."""
        with self._lock:
            now = self.clock.monotonic()
            self._delete_expired(now)
            return [self._execute_one(request, now) for request in requests]

    def _execute_one(self, request: Request, now: float) -> Answer:
        key = request.key
        state = self._states.get(key)
        answer, changed = decide(request, state, now)
        if changed is None:
            self._states.pop(key, None)
        elif changed is not state:
            self._states[key] = changed
            heappush(self._expiry_heap, (_expires(changed), key))
        return answer

    def _delete_expired(self, now: float) -> None:
        ends, states = self._expiry_heap, self._states
        while ends and ends[0][0] <= now:
            _, key = heappop(ends)
            state = states.get(key)
            if state is not None and _expires(state) <= now:  # else it was replaced
                del states[key]
        if len(ends) > 2 * len(states) + 64:
            self._expiry_heap = [(_expires(state), key) for key, state in states.items()]
            heapify(self._expiry_heap)


def _expires(state: ClaimState) -> float:
    """The time at which the entry is forgotten."""
    return state.until if state.value is not None else state.until + CLAIM_GRACE


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
        """The clock of the app that opened the store."""
        return self.table.clock

    def execute(self, requests: Sequence[Request]) -> list[Answer | LogError]:
        """The answers to all requests, in order."""
        if self._closed:
            raise Unavailable(f"memory://{self.table.name}: closed")
        return self.table.execute(requests)

    def close(self) -> None:
        """Close the handle; closing the last handle of a name deletes its claims."""
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
