"""Which tests run on which log. Screens are the same on every log, so most tests run on two that
cost nothing; those that are marked ``everywhere`` run on Redis and Kafka, too: on servers of their
own, as what other tests leave on shared ones fills pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from streams.web.screens import closed_keys, dead, delayed
from tests.conformance.logs import MAIN_LOGS, Case
from tests.conformance.stage import PATIENCE, Stage
from tests.servers.find import KafkaAddress, RedisAddress
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis

CHEAP = [case for case in MAIN_LOGS if case.embedded]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        everywhere = metafunc.definition.get_closest_marker("everywhere") is not None
        cases = [
            pytest.param(case, id=case.name, marks=_marks(case))
            for case in (MAIN_LOGS if everywhere else CHEAP)
        ]
        metafunc.parametrize("case", cases)


def _marks(case: Case) -> list[pytest.MarkDecorator]:
    """One of pytest's workers runs all that need a server: each has one of its own."""
    if not case.embedded:
        return [pytest.mark.xdist_group(f"web-{case.name}")]
    return []


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page waits for what it shows for as long as it takes: no test depends on how quick the
    machine is."""
    for name in ("READ_SECONDS", "SURVEY_SECONDS"):
        monkeypatch.setattr(dead, name, PATIENCE)
    for module in (closed_keys, delayed):
        monkeypatch.setattr(module, "READ_SECONDS", PATIENCE)


@pytest.fixture(scope="session")
def kafka(lifetime: Lifetime) -> Iterator[KafkaAddress]:
    """A broker for these tests alone."""
    with Kafka(lifetime, config={"broker.session.timeout.ms": "120000"}) as broker:
        yield KafkaAddress(broker.bootstrap, "process")


@pytest.fixture(scope="session")
def redis_server(lifetime: Lifetime) -> Iterator[RedisAddress]:
    """A Redis for these tests alone."""
    with Redis(lifetime) as server:
        yield RedisAddress(server.url, "process")


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
