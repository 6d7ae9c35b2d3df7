"""Which tests run on which log: one that asks for ``stage`` runs on each that keeps documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from streams import View
from tests.conformance.logs import MAIN_LOGS, Case
from tests.conformance.stage import Stage

DOCUMENTS = [case for case in MAIN_LOGS if case.capabilities.documents]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        needs = [need for mark in metafunc.definition.iter_markers("needs") for need in mark.args]
        cases = [case for case in DOCUMENTS if all(case.can(need) for need in needs)]
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read waits as long as a test does, unless it says how long: no measure of speed."""
    for read in (View.get, View.get_many):
        given: Any = read
        monkeypatch.setitem(given.__kwdefaults__, "timeout", 60.0)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
