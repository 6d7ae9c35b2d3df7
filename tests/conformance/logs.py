"""The logs under test, one line each."""

from __future__ import annotations

from dataclasses import dataclass, replace

from streams.log.kafka.log import CAPABILITIES as KAFKA
from streams.log.memory.log import CAPABILITIES as MEMORY
from streams.log.protocol import Capabilities
from streams.log.redis.log import CAPABILITIES as REDIS
from streams.log.sqlite.log import CAPABILITIES as SQLITE


@dataclass(frozen=True)
class Case:
    """A log under test.

    :param url: the fixture that gives a URL under which nobody else is.
    :param capabilities: what the log says of itself.
    :param trims: it applies :class:`~streams.log.protocol.Retention` itself, and at once.
    :param crashes: its subscriptions have a ``crash``, a simulated ``kill -9`` of one member.
    :param lease: seconds after which a silent member has lost its partitions, under that URL.
    """

    url: str
    capabilities: Capabilities
    trims: bool = True
    crashes: bool = False
    lease: float = 10.0

    @property
    def name(self) -> str:
        return self.capabilities.name

    def can(self, need: str) -> bool:
        """Whether it has a capability, one of :class:`Capabilities` or of this class."""
        return bool(getattr(self if hasattr(self, need) else self.capabilities, need))


LOGS = [
    Case("memory_url", MEMORY, crashes=True),
    Case("sqlite_url", SQLITE),
    Case("kafka_url", KAFKA, trims=False, lease=3.0),
    Case("kip848_url", replace(KAFKA, name="kip848"), trims=False, lease=3.0),
    Case("redis_url", REDIS, trims=False, lease=2.0),
    Case("valkey_url", replace(REDIS, name="valkey"), trims=False, lease=2.0),
    Case("redis_cluster_url", replace(REDIS, name="cluster"), trims=False, lease=2.0),
]
