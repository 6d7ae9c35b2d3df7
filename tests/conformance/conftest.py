"""Which tests run on which log, and the world each one gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from tests.conformance.logs import (
    HEARTBEAT,
    LEASE,
    LOGS,
    SESSION,
    THREE_BROKERS,
    Case,
    lasting_url,
)
from tests.conformance.stage import Stage
from tests.conformance.world import World
from tests.servers import find
from tests.servers.find import KafkaAddress, RedisAddress
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime

VARIANTS = {"kip848", "valkey", "cluster"}
"""Kafka and Redis again, to all that stands above the log: with the newer group protocol, from
another maker, on several nodes. There they run with the long fault runs only."""

EVERYWHERE = {"test_at_least_once", "test_order"}

SLOTS = {"test_event_log", "test_event_readers", "test_document_log"}
"""Where it matters on which node of a cluster something is."""

REPLICATED = {"test_event_log", "test_event_readers"}
"""What runs on three brokers, too, with the long fault runs."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    module = metafunc.module.__name__.rpartition(".")[2]
    of_the_log = module.startswith("test_log_") or module in EVERYWHERE

    def is_variant(case: Case) -> bool:
        by_slot = case.name == "cluster" and module in SLOTS
        return case.name in VARIANTS and not of_the_log and not by_slot

    cases = [
        pytest.param(case, marks=pytest.mark.faults) if is_variant(case) else case for case in LOGS
    ]
    if module in REPLICATED:
        cases.append(pytest.param(THREE_BROKERS, marks=pytest.mark.faults))
    metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture
def world(case: Case, request: pytest.FixtureRequest) -> Iterator[World]:
    """One log, opened under a URL of its own, and everything a test does with it."""
    opened = World(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()


# -- the URLs of logs.py --------------------------------------------------------------------------


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


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
