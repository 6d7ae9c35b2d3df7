"""The logs under test, one entry each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, urlencode

from streams.log.kafka.log import CAPABILITIES as KAFKA
from streams.log.memory.log import CAPABILITIES as MEMORY
from streams.log.protocol import Capabilities
from streams.log.redis.log import CAPABILITIES as REDIS
from streams.log.sqlite.log import CAPABILITIES as SQLITE


@dataclass(frozen=True)
class Case:
    """A log under test.

    :param url: the fixture that gives a URL under which nobody else is (``tests/log_urls.py``).
    :param capabilities: what the log says of itself.
    :param trims: it applies :class:`~streams.log.protocol.Retention` itself, and at once.
    :param crashes: its subscriptions have a ``crash``, a simulated ``kill -9`` of one member.
    :param static: it has static members, whose partitions a restart has back.
    :param leaves: a static member that closes its subscription leaves the group at once; where not,
        its session must end first.
    :param expels: a process can be expelled from the group by others.
    :param embedded: it needs no server.
    :param variant_of: the name of the log that this is another kind of: another protocol of its
        groups, another maker of its server, several nodes. Only the conformance suite and the long
        fault runs run on variants.
    :param lease: seconds after which a silent member has lost its partitions, under that URL, in
        a test that waits for that (``short_lease``).
    """

    url: str
    capabilities: Capabilities
    trims: bool = True
    crashes: bool = False
    static: bool = True
    leaves: bool = True
    expels: bool = False
    embedded: bool = False
    variant_of: str = ""
    lease: float = 10.0

    @property
    def name(self) -> str:
        return self.capabilities.name

    @property
    def kip848(self) -> bool:
        """Its groups speak Kafka's newer protocol."""
        return self.name == "kip848"

    @property
    def checks_appends(self) -> bool:
        """It checks the condition of an append of events when it writes it: Kafka cannot."""
        return self.capabilities.events and self.name not in ("kafka", "kip848", "brokers")

    def can(self, need: str) -> bool:
        """Whether it has a capability, one of :class:`Capabilities` or of this class."""
        return bool(getattr(self if hasattr(self, need) else self.capabilities, need))


LONG = 60.0
"""Seconds of a lease or session that outlasts the test: whoever is not run for a while on a busy
machine loses nothing."""

SESSION = 3.0
"""Seconds of a Kafka member's session, in a test that waits for its end."""

HEARTBEAT = 0.1
"""Seconds between two heartbeats of a Kafka member: a rebalance waits for the next one of each."""

LEASE = 2.0
"""Seconds of a Redis member's lease, in a test that waits for its end."""

LOGS = [
    Case("memory_url", MEMORY, crashes=True, embedded=True),
    Case("sqlite_url", SQLITE, embedded=True),
    Case("kafka_url", KAFKA, trims=False, leaves=False, lease=SESSION),
    Case(
        "kip848_url",
        replace(KAFKA, name="kip848"),
        trims=False,
        static=False,
        variant_of="kafka",
        lease=SESSION,
    ),
    Case("redis_url", REDIS, trims=False, expels=True, lease=LEASE),
    Case(
        "valkey_url",
        replace(REDIS, name="valkey"),
        trims=False,
        expels=True,
        variant_of="redis",
        lease=LEASE,
    ),
    Case(
        "redis_cluster_url",
        replace(REDIS, name="cluster", commits_outputs=False, fences_appends=False),
        trims=False,
        expels=True,
        variant_of="redis",
        lease=LEASE,
    ),
]

MAIN_LOGS = [case for case in LOGS if not case.variant_of]
"""One case of each log: what stands above the log runs on these."""


THREE_BROKERS = Case(
    "kafka_brokers_url",
    replace(KAFKA, name="brokers"),
    trims=False,
    leaves=False,
    variant_of="kafka",
)
"""Kafka with three replicas of everything, two of which take in what is acknowledged: for what
depends on where a record is confirmed and read, which histories do."""


def lasting_url(url: str) -> str:
    """The same log, for members that are not taken for dead while a test runs."""
    place, _, query = url.partition("?")
    settings = dict(parse_qsl(query))
    settings.pop("max.poll.interval.ms", None)
    if "session.timeout.ms" in settings:
        settings["session.timeout.ms"] = str(int(LONG * 1000))
    if "lease" in settings:
        settings["lease"] = f"{LONG:g}"
        settings["socket_timeout"] = f"{LONG / 2:g}"
    return f"{place}?{urlencode(settings)}" if settings else place
