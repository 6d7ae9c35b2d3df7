"""Which databases the tests run on: one that asks for ``place`` runs on each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.outbox.world import Place


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    said = {
        name.strip()
        for mark in metafunc.definition.iter_markers("parametrize")
        for name in (mark.args[0].split(",") if isinstance(mark.args[0], str) else mark.args[0])
    }
    if "place" in metafunc.fixturenames and "database" not in said:
        metafunc.parametrize("database", ["postgres", "sqlite"])


@pytest.fixture
def place(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A database of the test's own, with an outbox's tables."""
    dsn = (
        request.getfixturevalue("postgres")
        if database == "postgres"
        else f"sqlite:///{tmp_path}/outbox.db"
    )
    opened = Place(dsn)
    opened.create()
    yield opened
    opened.close()
