"""Which tests run on which log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.logs import MAIN_LOGS, Case
from tests.hostile.ground import Ground


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "only(*logs): on which logs a test runs; elsewhere on all")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        only = metafunc.definition.get_closest_marker("only")
        cases = [case for case in MAIN_LOGS if only is None or case.name in only.args]
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Ground]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Ground(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
