"""The fixtures that give the URLs of the logs of ``tests/conformance/logs.py``; nobody else uses
them. ``tests/conftest.py`` has them for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from tests.conformance.logs import HEARTBEAT, LEASE, SESSION, lasting_url
from tests.servers import find
from tests.servers.find import KafkaAddress, RedisAddress
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime


def url_of(base: str, request: pytest.FixtureRequest, **short: object) -> str:
    """A log's URL; with leases or sessions that last so long if the test waits for their end, else
    with such as outlast it."""
    url = f"{base}?{urlencode(short)}"
    return url if request.node.get_closest_marker("short_lease") else lasting_url(url)


SMALL_FETCHES = {"max.partition.fetch.bytes": 1000, "batch.num.messages": 20}
"""What a test writes takes several fetches."""

NO_POLL = {"max.poll.interval.ms": int(SESSION * 1000)}
"""A member that does not poll has lost its partitions as soon as one that is dead."""


@pytest.fixture
def memory_url() -> str:
    return f"memory://{uuid4().hex}"


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'log.db'}"


@pytest.fixture
def kafka_url(kafka: KafkaAddress, request: pytest.FixtureRequest) -> str:
    settings = {
        "session.timeout.ms": int(SESSION * 1000),
        "heartbeat.interval.ms": int(HEARTBEAT * 1000),
        **NO_POLL,
        **SMALL_FETCHES,
    }
    return url_of(kafka.url, request, **settings)


@pytest.fixture(scope="session")
def three_brokers(lifetime: Lifetime) -> Iterator[Kafka]:
    config = {"default.replication.factor": "3", "min.insync.replicas": "2"}
    with Kafka(lifetime, brokers=3, config=config) as cluster:
        yield cluster


@pytest.fixture
def kafka_brokers_url(three_brokers: Kafka, request: pytest.FixtureRequest) -> str:
    return url_of(three_brokers.url, request, **SMALL_FETCHES)


@pytest.fixture
def kip848_url(kafka: KafkaAddress, request: pytest.FixtureRequest) -> str:
    # How long its sessions are is the broker's affair.
    settings = {"group.protocol": "consumer", **NO_POLL, **SMALL_FETCHES}
    return url_of(kafka.url, request, **settings)


@pytest.fixture
def redis_url(redis_server: RedisAddress, request: pytest.FixtureRequest) -> str:
    return url_of(redis_server.url, request, lease=f"{LEASE:g}")


@pytest.fixture
def valkey_url(valkey_server: RedisAddress, request: pytest.FixtureRequest) -> str:
    return url_of(valkey_server.url, request, lease=f"{LEASE:g}")


@pytest.fixture
def redis_cluster_url(lifetime: Lifetime, request: pytest.FixtureRequest) -> str:
    url = find.redis_cluster(lifetime).url.replace("redis://", "redis+cluster://")
    return url_of(url, request, lease=f"{LEASE:g}")
