"""Which tests run on which log, and the world each one gets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conformance.logs import LOGS, THREE_BROKERS, Case
from tests.conformance.stage import Stage
from tests.conformance.world import World

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

    def is_for_long_runs(case: Case) -> bool:
        """To what stands above the log, a variant is that log again."""
        by_slot = case.name == "cluster" and module in SLOTS
        return bool(case.variant_of) and not of_the_log and not by_slot

    cases = [
        pytest.param(case, marks=pytest.mark.faults) if is_for_long_runs(case) else case
        for case in LOGS
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


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Apps on one log, under a URL of their own, and what their handlers did."""
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()
