"""The servers of the fault runs: started at first use, one of each kind, ended with the last run.

A test asks for ``ground`` and says with ``on(...)`` or ``sizes(...)`` on which logs it runs: what a
log does not support is not collected there. :func:`~tests.faults.sizes.sizes` gives each run two
sizes: a short one, which every ``make test`` runs, and a long one behind ``make faults``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.ground import (
    BROKER_SESSION,
    KAFKA,
    KIP848,
    Ground,
    kafka_ground,
    proxied_kafka,
    proxied_redis,
)
from tests.faults.proxy import Proxy
from tests.faults.run import Run
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime


@pytest.fixture(scope="package")
def broker(lifetime: Lifetime) -> Iterator[tuple[Kafka, Proxy]]:
    with ExitStack() as stack:
        yield proxied_kafka(lifetime, stack)


@pytest.fixture(scope="package")
def kafka_classic(broker: tuple[Kafka, Proxy]) -> Ground:
    return kafka_ground(*broker, KAFKA, KAFKA["session.timeout.ms"] / 1000)


@pytest.fixture(scope="package")
def kafka_kip848(broker: tuple[Kafka, Proxy]) -> Ground:
    return kafka_ground(*broker, KIP848, BROKER_SESSION)


@pytest.fixture(scope="package")
def redis_durable(lifetime: Lifetime) -> Iterator[Ground]:
    with ExitStack() as stack:
        yield proxied_redis(lifetime, stack)


@pytest.fixture
def ground(request: pytest.FixtureRequest) -> Iterator[Ground]:
    found: Ground = request.getfixturevalue(request.param)
    yield found
    found.heal()


@pytest.fixture
def run(ground: Ground, tmp_path: Path) -> Iterator[Run]:
    opened = Run(ground, tmp_path)
    yield opened
    ground.heal()
    opened.close()
