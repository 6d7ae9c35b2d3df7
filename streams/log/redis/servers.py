"""Finds the server of a key: the only one, the primary that Sentinels name, or a cluster's node.

Addresses are cached until a server says otherwise (MOVED) or fails. ASK is not remembered, as
it concerns one request (Redis Cluster specification, "Redirection and resharding").
"""

from __future__ import annotations

import threading
from typing import Any

from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel
from typing_extensions import override

from streams.errors import Fatal, LogError, Unavailable
from streams.log.redis.connection import RedisConnection
from streams.log.redis.errors import translate
from streams.log.redis.settings import Address, Settings


class Servers:
    """The servers of a URL, and of each key: here the URL's only one. Usable from any thread."""

    is_cluster = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def address_of(self, key: bytes) -> Address:
        """The server to ask for a key.

        :raises Unavailable: none is known now.
        """
        return self._settings.addresses[0]

    def all_addresses(self) -> list[Address]:
        """Every primary: the servers that have keys of their own."""
        return [self.address_of(b"")]

    def slot_moved(self, key: bytes, address: Address) -> None:
        """Note that a cluster's node said that a key's slot is on another node now."""
        host, port = self._settings.addresses[0]
        raise Fatal(f"{host}:{port} is a node of a cluster: write redis+cluster://")

    def report_failure(self, address: Address) -> None:
        """Note that a server does not answer or is no longer a primary: the servers are looked up
        again."""

    def close(self) -> None:
        """Close the connections that were opened to find the servers."""


class SentinelServers(Servers):
    """The primary of a service, as its Sentinels say."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
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

    @override
    def address_of(self, key: bytes) -> Address:
        with self._lock:
            if self._primary is None:
                self._primary = self._discover_primary()
            return self._primary

    def _discover_primary(self) -> Address:
        settings = self._settings
        try:
            host, port = self._sentinel.discover_master(settings.service)
        except (RedisError, OSError) as error:
            settings.secrets.hide_in_error(error)
            if isinstance(error, MasterNotFoundError):
                raise Unavailable(
                    f"{settings.name}: no Sentinel answers that names a primary for "
                    f"{settings.service!r}; are they running, and is the name right?"
                ) from error
            raise translate(error, settings.name) from error
        return str(host), int(port)

    @override
    def slot_moved(self, key: bytes, address: Address) -> None:
        raise Fatal(f"{self._settings.name}: Sentinels do not watch clusters; use redis+cluster://")

    @override
    def report_failure(self, address: Address) -> None:
        with self._lock:
            if self._primary == address:
                self._primary = None

    @override
    def close(self) -> None:
        self._sentinel.close()


class ClusterServers(Servers):
    """The nodes of a cluster, by slot."""

    is_cluster = True

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._lock = threading.Lock()
        self._slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._nodes: set[Address] = set(settings.addresses)
        self._slots_current = False
        self._last_answered: Address | None = None
        self._last_failed: Address | None = None

    @override
    def address_of(self, key: bytes) -> Address:
        slot = key_slot(key)
        found = self._slots[slot] if self._slots_current else None
        if found is None:
            with self._lock:
                if not self._slots_current:
                    self._load_slots()
                found = self._slots[slot]
                if found is None:
                    self._slots_current = False  # perhaps only for a moment
                    raise Unavailable(f"{self._settings.name}: no node has slot {slot} now")
        return found

    @override
    def all_addresses(self) -> list[Address]:
        self.address_of(b"")
        return sorted({address for address in self._slots if address is not None})

    @override
    def slot_moved(self, key: bytes, address: Address) -> None:
        with self._lock:
            self._nodes.add(address)
            # Slots seldom move alone, so all of them are loaded again.
            self._slots_current = False
            self._load_slots(first=address)
            self._slots[key_slot(key)] = address

    @override
    def report_failure(self, address: Address) -> None:
        self._last_failed = address
        self._slots_current = False

    def _load_slots(self, first: Address | None = None) -> None:
        """Ask one node after the other for the slots. Called with the lock held."""
        last_error: LogError | None = None
        last, failed = self._last_answered, self._last_failed

        def order(node: Address) -> tuple[object, ...]:
            # A node that has just failed may not answer, and all threads wait here, so it is asked
            # last.
            return node != first, node == failed, node != last, node

        for node in sorted(self._nodes, key=order):
            try:
                connection = RedisConnection(self._settings, node)
            except LogError as error:
                last_error = error
                continue
            try:
                rows: list[list[Any]] = connection.request("CLUSTER", "SLOTS")
            except (RedisError, OSError) as error:
                host, port = node
                last_error = translate(error, f"{host}:{port}")
                continue
            finally:
                connection.close()
            slots: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
            own_host, _ = node
            for low, high, (name, port, *_), *_ in rows:
                # A node that does not know its own name leaves it empty.
                host = bytes(name or b"").decode() or own_host
                slots[low : high + 1] = [(host, int(port))] * (high + 1 - low)
            self._slots, self._last_answered = slots, node
            self._nodes = {*self._settings.addresses, *filter(None, slots)}
            self._slots_current = True
            return
        if isinstance(last_error, Fatal):
            raise last_error
        raise Unavailable(f"{self._settings.name}: no node answers ({last_error})") from last_error


def servers_for(settings: Settings) -> Servers:
    """The servers that a URL names."""
    if settings.topology == "single":
        return Servers(settings)
    return (SentinelServers if settings.topology == "sentinel" else ClusterServers)(settings)
