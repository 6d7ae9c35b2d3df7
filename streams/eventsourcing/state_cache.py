"""Caches states of aggregates, so that a decision need not read their events again.

A cached state may be stale: another process may have appended since. No result relies on one
alone. An append on its base validates it; a decision that appends nothing is taken again on a state
that was read to the log's end.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

from streams.errors import ConfigError
from streams.log.events import Head
from streams.numbers import is_int


@dataclass(frozen=True, slots=True)
class Cache:
    """How many states of an aggregate type are cached in memory (LRU).

    :param count: states, at most; 0: none is cached.
    :param bytes: their total size, at most; a state counts as much as its snapshot would.
    """

    count: int = 10_000
    bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        for name in ("count", "bytes"):
            value = getattr(self, name)
            if not is_int(value, 0):
                raise ConfigError(f"Cache({name}={value!r}): must be an integer of at least 0")


class KnownState(NamedTuple):
    """An aggregate's state at one moment.

    :param offset: the offset of the last record that it was folded from; -1: there is none.
    :param partition: the partition of its events; -1: not known.
    """

    state: Any
    head: Head
    partition: int
    offset: int


class StateCache:
    """The most recently used states, by aggregate ID. On the app's loop only."""

    def __init__(self, limits: Cache) -> None:
        self._limits = limits
        self._states: OrderedDict[str, tuple[KnownState, int]] = OrderedDict()
        self.bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._states)

    @property
    def keeps_any(self) -> bool:
        """Whether its limits allow any state to be cached."""
        return bool(self._limits.count and self._limits.bytes)

    def get(self, id: str) -> KnownState | None:
        """The cached state of an aggregate."""
        found = self._states.get(id)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._states.move_to_end(id)
        return found[0]

    def size_of(self, id: str) -> int:
        """The size of an aggregate's cached state, in bytes; 0: none is cached."""
        found = self._states.get(id)
        return 0 if found is None else found[1]

    def put(self, id: str, known: KnownState, size: int) -> None:
        """Cache a state, and evict the least recently used ones beyond the limits."""
        states, limits = self._states, self._limits
        old = states.pop(id, None)
        if old is not None:
            self.bytes -= old[1]
        if size > limits.bytes or not limits.count:
            return
        states[id] = known, size
        self.bytes += size
        while len(states) > limits.count or self.bytes > limits.bytes:
            _, (_, dropped) = states.popitem(last=False)
            self.bytes -= dropped

    def drop(self, id: str) -> None:
        """Evict an aggregate's state."""
        found = self._states.pop(id, None)
        if found is not None:
            self.bytes -= found[1]
