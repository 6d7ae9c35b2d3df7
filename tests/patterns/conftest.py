"""Which tests run on which log: a test that asks for ``stage`` runs once on each of four."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import kafka_url, memory_url, redis_url, sqlite_url
from tests.conformance.logs import LOGS, Case
from tests.conformance.stage import Stage

__all__ = ["kafka_url", "memory_url", "redis_url", "sqlite_url"]

FOUR = [case for case in LOGS if case.name in {"memory", "sqlite", "kafka", "redis"}]
"""Group protocols and kinds of Redis are the business of tests/conformance."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", FOUR, ids=lambda case: case.name)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
