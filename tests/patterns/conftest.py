"""Which tests run on which log: a test that asks for ``stage`` runs on each of the main logs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.logs import MAIN_LOGS, Case
from tests.conformance.stage import Stage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", MAIN_LOGS, ids=lambda case: case.name)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
