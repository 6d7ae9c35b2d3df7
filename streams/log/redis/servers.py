"""Which server a key lives on: one server, the primary that Sentinels name, or a cluster's node.

What was learned is kept until a server says otherwise (MOVED) or fails; then it is asked for
again. ASK is not remembered, as it concerns one request (Redis Cluster specification,
"Redirection and resharding").
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from streams.errors import Fatal, LogError, Unavailable
from streams.log.redis.errors import translate
from streams.log.redis.link import Link
from streams.log.redis.settings import Address, Settings


class Servers(Protocol):
    """Where keys live. Usable from any thread."""

    clustered: bool

    def of(self, key: bytes) -> Address:
        """The server to ask for a key.

        :raises Unavailable: none is known now.
        """
        ...

    def all(self) -> list[Address]:
        """Every server that has keys of its own."""
        ...

    def moved(self, key: bytes, address: Address) -> None:
        """A server said that a key lives there now."""
        ...

    def failed(self, address: Address) -> None:
        """A server does not answer, or is not the one to ask any more: ask again who is."""
        ...

    def close(self) -> None:
        """Nobody will ask any more."""
        ...


class Single:
    """One server."""

    clustered = False

    def __init__(self, settings: Settings) -> None:
        self._address = settings.addresses[0]

    def of(self, key: bytes) -> Address:
        """The one."""
        return self._address

    def all(self) -> list[Address]:
        """The one."""
        return [self._address]

    def moved(self, key: bytes, address: Address) -> None:
        """It answered as a cluster's node."""
        raise Fatal(
            f"{self._address[0]}:{self._address[1]} is a node of a cluster: write redis+cluster://"
        )

    def failed(self, address: Address) -> None:
        """There is no other."""

    def close(self) -> None:
        """Nothing is held."""


class Sentinels:
    """The primary of a service, as its Sentinels say."""

    clustered = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._known: Address | None = None
        make: Any = Sentinel
        self._sentinel = make(
            list(settings.addresses),
            sentinel_kwargs={
                **settings.sentinel,
                "retry": Retry(NoBackoff(), 0),
                "ssl": settings.tls,
                "protocol": 2,
            },
        )

    def of(self, key: bytes) -> Address:
        """The primary."""
        known = self._known
        if known is not None:
            return known
        settings = self._settings
        with self._lock:
            if self._known is None:
                try:
                    host, port = self._sentinel.discover_master(settings.service)
                except MasterNotFoundError as error:
                    settings.secrets.hide_in(error)
                    raise Unavailable(
                        f"{settings.name}: no Sentinel answers that names a primary for "
                        f"{settings.service!r}; are they running, and is the name right?"
                    ) from error
                except (RedisError, OSError) as error:
                    settings.secrets.hide_in(error)
                    raise translate(error, settings.name) from error
                self._known = (str(host), int(port))
            return self._known

    def all(self) -> list[Address]:
        """The primary."""
        return [self.of(b"")]

    def moved(self, key: bytes, address: Address) -> None:
        """It answered as a cluster's node."""
        raise Fatal(f"{self._settings.name}: Sentinels do not watch clusters; use redis+cluster://")

    def failed(self, address: Address) -> None:
        """Ask the Sentinels again."""
        with self._lock:
            if self._known == address:
                self._known = None

    def close(self) -> None:
        """Let go of the Sentinels."""
        self._sentinel.close()


class Cluster:
    """The nodes of a cluster, by slot."""

    clustered = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: set[Address] = set(settings.addresses)
        self._fresh = False
        self._answers: Address | None = None
        """Who answered last."""

    def of(self, key: bytes) -> Address:
        """The node that has a key's slot."""
        slot = key_slot(key)
        found = self._slots[slot] if self._fresh else None
        if found is None:
            with self._lock:
                if not self._fresh:
                    self._learn()
                found = self._slots[slot]
                if found is None:
                    self._fresh = False  # perhaps a moment ago only
                    raise Unavailable(f"{self._settings.name}: no node has slot {slot} now")
        return found

    def all(self) -> list[Address]:
        """Every primary."""
        self.of(b"")
        return sorted({address for address in self._slots if address is not None})

    def moved(self, key: bytes, address: Address) -> None:
        """That slot now, and the rest at the next request: slots seldom move alone."""
        with self._lock:
            self._nodes.add(address)
            self._fresh = False
            self._learn(first=address)
            self._slots[key_slot(key)] = address

    def failed(self, address: Address) -> None:
        """Ask the others."""
        self._fresh = False

    def close(self) -> None:
        """Nothing is held."""

    def _learn(self, first: Address | None = None) -> None:
        """Ask the nodes one after the other for the slots. Called with the lock held."""
        last: LogError | None = None
        good = self._answers
        asked = sorted(self._nodes, key=lambda node: (node != first, node != good, node))
        for node in asked:
            try:
                link = Link(self._settings, node)
            except LogError as error:
                last = error
                continue
            try:
                rows: list[list[Any]] = link.ask("CLUSTER", "SLOTS")
            except (RedisError, OSError) as error:
                last = translate(error, f"{node[0]}:{node[1]}")
                continue
            finally:
                link.close()
            slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for low, high, primary, *_ in rows:
                # A node that does not know its own name leaves it empty: it is the one asked.
                host = bytes(primary[0] or b"").decode() or node[0]
                address = (host, int(primary[1]))
                slots[low : high + 1] = [address] * (high + 1 - low)
            self._slots, self._answers = slots, node
            self._nodes = {
                *self._settings.addresses,
                *(address for address in slots if address is not None),
            }
            self._fresh = True
            return
        if isinstance(last, Fatal):
            raise last
        raise Unavailable(f"{self._settings.name}: no node answers ({last})") from last


def find(settings: Settings) -> Servers:
    """The servers a URL names."""
    if settings.kind == "single":
        return Single(settings)
    return Sentinels(settings) if settings.kind == "sentinel" else Cluster(settings)
