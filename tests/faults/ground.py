"""A log's own server for the fault runs: killed, frozen, cut off, and started again.

Clients can reach it directly or through a :class:`~tests.faults.proxy.Proxy`. The shared servers of
:mod:`tests.servers.find` are left alone: what happens here would fail other people's tests.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

from streams.log.kafka.log import CAPABILITIES as KAFKA_CAN
from streams.log.protocol import Capabilities
from streams.log.redis.log import CAPABILITIES as REDIS_CAN
from tests.faults.proxy import Proxy
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, free_port
from tests.servers.redis import Redis

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
"""What a Redis must be started with for an acknowledged write to survive its ``kill -9``."""


class Server(Protocol):
    """What the servers of :mod:`tests.servers` have in common."""

    def kill(self) -> None: ...
    def restart(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass
class Ground:
    """Where a fault run takes place.

    :ivar direct: the app's URL, straight to the server.
    :ivar through: the same through the proxy.
    :ivar lease: seconds after which a silent member has lost its partitions.
    """

    name: str
    server: Server
    proxy: Proxy
    capabilities: Capabilities
    direct: str
    through: str
    lease: float

    @property
    def once(self) -> bool:
        """One message ID written twice is one entry."""
        return self.capabilities.append_once

    def heal(self) -> None:
        """Undo what a run may have left."""
        self.proxy.delay = 0.0
        self.proxy.block(b"")
        self.proxy.open()
        self.server.resume()


KAFKA = {"session.timeout.ms": 3000, "heartbeat.interval.ms": 200}
KIP848 = {"group.protocol": "consumer"}
BROKER_SESSION = 6.0
"""KIP-848: the broker's group.consumer.session.timeout.ms (tests/servers/kafka.py)."""


def kafka_ground(server: Kafka, proxy: Proxy, settings: dict[str, Any], lease: float) -> Ground:
    """A broker's ground, with these driver settings."""
    query = urlencode(settings)
    return Ground(
        "kafka", server, proxy, KAFKA_CAN,
        f"{server.url}?{query}", f"kafka://127.0.0.1:{proxy.port}?{query}", lease,
    )  # fmt: skip


def proxied_kafka(lifetime: Lifetime, stack: ExitStack) -> tuple[Kafka, Proxy]:
    """One broker with a second listener, which it advertises under the proxy's port."""
    server = Kafka(lifetime)
    node = server.nodes[0]
    hidden = free_port()
    proxy = stack.enter_context(Proxy(hidden))
    listeners = {
        "PLAINTEXT": node.port, "CONTROLLER": node.controller_port, "PROXIED": hidden,
    }  # fmt: skip
    advertised = {"PLAINTEXT": node.port, "PROXIED": proxy.port}
    protocols = ",".join(f"{name}:PLAINTEXT" for name in listeners)
    with node.properties.open("a", encoding="utf-8") as properties:
        for setting, ports in (("listeners", listeners), ("advertised.listeners", advertised)):
            text = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
            properties.write(f"{setting}={text}\n")
        properties.write(f"listener.security.protocol.map={protocols}\n")
    stack.enter_context(server)
    return server, proxy


def proxied_redis(lifetime: Lifetime, stack: ExitStack, *, lease: float = 2.0) -> Ground:
    """One Redis that loses nothing it acknowledged, and a proxy before it."""
    server = stack.enter_context(Redis(lifetime, options=DURABLE))
    proxy = stack.enter_context(Proxy(server.port))
    return Ground(
        "redis", server, proxy, REDIS_CAN,
        f"{server.url}?lease={lease:g}", f"redis://127.0.0.1:{proxy.port}?lease={lease:g}",
        lease,
    )  # fmt: skip
