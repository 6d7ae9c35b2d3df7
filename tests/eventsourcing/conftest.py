"""Which tests run on which log: one that asks for ``stage`` runs on each that keeps histories."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.conftest import world
from tests.conformance.logs import MAIN_LOGS, Case
from tests.conformance.stage import Stage

__all__ = ["world"]

HISTORIES = [case for case in MAIN_LOGS if case.capabilities.events]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", HISTORIES, ids=lambda case: case.name)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
