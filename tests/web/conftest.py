"""Which tests run on which log. Screens are the same on every log, so most tests run on two that
cost nothing; those that are marked ``everywhere`` run on Redis and Kafka, too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import kafka_url, memory_url, redis_url, sqlite_url
from tests.conformance.logs import LOGS, Case
from tests.conformance.stage import Stage

__all__ = ["kafka_url", "memory_url", "redis_url", "sqlite_url"]

CHEAP = [case for case in LOGS if case.name in {"memory", "sqlite"}]
FOUR = [case for case in LOGS if case.name in {"memory", "sqlite", "kafka", "redis"}]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        everywhere = metafunc.definition.get_closest_marker("everywhere") is not None
        metafunc.parametrize("case", FOUR if everywhere else CHEAP, ids=lambda case: case.name)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
