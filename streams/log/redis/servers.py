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
from streams.log.redis.connection import RedisConnection
from streams.log.redis.errors import translate
from streams.log.redis.settings import Address, Settings


class Servers(Protocol):
    """Where keys live. Usable from any thread."""

    is_cluster: bool

    def address_of(self, key: bytes) -> Address:
        """The server to ask for a key.

        :raises Unavailable: none is known now.
        """
        ...

    def all_addresses(self) -> list[Address]:
        """Every server that has keys of its own."""
        ...

    def slot_moved(self, key: bytes, address: Address) -> None:
        """A server said that a key lives there now."""
        ...

    def report_failure(self, address: Address) -> None:
        """A server does not answer, or is not the one to ask any more: ask again who is."""
        ...

    def close(self) -> None:
        """Nobody will ask any more."""
        ...


class SingleServer:
    """One server."""

    is_cluster = False

    def __init__(self, settings: Settings) -> None:
        self._address = settings.addresses[0]

    def address_of(self, key: bytes) -> Address:
        """The one."""
        return self._address

    def all_addresses(self) -> list[Address]:
        """The one."""
        return [self._address]

    def slot_moved(self, key: bytes, address: Address) -> None:
        """It answered as a cluster's node."""
        raise Fatal(
            f"{self._address[0]}:{self._address[1]} is a node of a cluster: write redis+cluster://"
        )

    def report_failure(self, address: Address) -> None:
        """There is no other."""

    def close(self) -> None:
        """Nothing is held."""


class SentinelServers:
    """The primary of a service, as its Sentinels say."""

    is_cluster = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._primary: Address | None = None
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

    def address_of(self, key: bytes) -> Address:
        """The primary."""
        primary = self._primary
        if primary is not None:
            return primary
        settings = self._settings
        with self._lock:
            if self._primary is None:
                try:
                    host, port = self._sentinel.discover_master(settings.service)
                except MasterNotFoundError as error:
                    settings.secrets.hide_in_error(error)
                    raise Unavailable(
                        f"{settings.name}: no Sentinel answers that names a primary for "
                        f"{settings.service!r}; are they running, and is the name right?"
                    ) from error
                except (RedisError, OSError) as error:
                    settings.secrets.hide_in_error(error)
                    raise translate(error, settings.name) from error
                self._primary = (str(host), int(port))
            return self._primary

    def all_addresses(self) -> list[Address]:
        """The primary."""
        return [self.address_of(b"")]

    def slot_moved(self, key: bytes, address: Address) -> None:
        """It answered as a cluster's node."""
        raise Fatal(f"{self._settings.name}: Sentinels do not watch clusters; use redis+cluster://")

    def report_failure(self, address: Address) -> None:
        """Ask the Sentinels again."""
        with self._lock:
            if self._primary == address:
                self._primary = None

    def close(self) -> None:
        """Let go of the Sentinels."""
        self._sentinel.close()


class ClusterServers:
    """The nodes of a cluster, by slot."""

    is_cluster = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: set[Address] = set(settings.addresses)
        self._slots_current = False
        self._last_answered: Address | None = None
        """Who answered last."""

    def address_of(self, key: bytes) -> Address:
        """The node that has a key's slot."""
        slot = key_slot(key)
        found = self._slots[slot] if self._slots_current else None
        if found is None:
            with self._lock:
                if not self._slots_current:
                    self._load_slots()
                found = self._slots[slot]
                if found is None:
                    self._slots_current = False  # perhaps a moment ago only
                    raise Unavailable(f"{self._settings.name}: no node has slot {slot} now")
        return found

    def all_addresses(self) -> list[Address]:
        """Every primary."""
        self.address_of(b"")
        return sorted({address for address in self._slots if address is not None})

    def slot_moved(self, key: bytes, address: Address) -> None:
        """That slot now, and the rest at the next request: slots seldom move alone."""
        with self._lock:
            self._nodes.add(address)
            self._slots_current = False
            self._load_slots(first=address)
            self._slots[key_slot(key)] = address

    def report_failure(self, address: Address) -> None:
        """Ask the others."""
        self._slots_current = False

    def close(self) -> None:
        """Nothing is held."""

    def _load_slots(self, first: Address | None = None) -> None:
        """Ask the nodes one after the other for the slots. Called with the lock held."""
        last_error: LogError | None = None
        last_answered = self._last_answered
        candidates = sorted(
            self._nodes, key=lambda node: (node != first, node != last_answered, node)
        )
        for node in candidates:
            try:
                connection = RedisConnection(self._settings, node)
            except LogError as error:
                last_error = error
                continue
            try:
                rows: list[list[Any]] = connection.request("CLUSTER", "SLOTS")
            except (RedisError, OSError) as error:
                last_error = translate(error, f"{node[0]}:{node[1]}")
                continue
            finally:
                connection.close()
            slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
            for low, high, primary, *_ in rows:
                # A node that does not know its own name leaves it empty: it is the one asked.
                host = bytes(primary[0] or b"").decode() or node[0]
                address = (host, int(primary[1]))
                slots[low : high + 1] = [address] * (high + 1 - low)
            self._slots, self._last_answered = slots, node
            self._nodes = {
                *self._settings.addresses,
                *(address for address in slots if address is not None),
            }
            self._slots_current = True
            return
        if isinstance(last_error, Fatal):
            raise last_error
        raise Unavailable(f"{self._settings.name}: no node answers ({last_error})") from last_error


def servers_for(settings: Settings) -> Servers:
    """The servers a URL names."""
    if settings.topology == "single":
        return SingleServer(settings)
    return (
        SentinelServers(settings) if settings.topology == "sentinel" else ClusterServers(settings)
    )
