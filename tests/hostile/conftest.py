"""Which tests run on which log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import kafka_url, memory_url, redis_url, sqlite_url
from tests.conformance.logs import Case
from tests.hostile.ground import Ground
from tests.patterns.conftest import FOUR

__all__ = ["kafka_url", "memory_url", "redis_url", "sqlite_url"]

FOREIGN = ("kafka", "redis")
"""Logs into which others write what our own client would not: times, and names that are no text."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "foreign: for logs that others write to")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        foreign = metafunc.definition.get_closest_marker("foreign") is not None
        cases = [case for case in FOUR if case.name in FOREIGN or not foreign]
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Ground(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
