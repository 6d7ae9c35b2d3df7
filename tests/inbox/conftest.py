"""Which database each test gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.inbox.kinds import KINDS, Kind, Place


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS, ids=lambda kind: kind.name)
    for name, server in (("server_kind", True), ("file_kind", False)):
        if name in metafunc.fixturenames:
            kinds = [kind for kind in KINDS if kind.server is server]
            metafunc.parametrize(name, kinds, ids=lambda kind: kind.name)


@pytest.fixture
def place(kind: Kind, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty database of the kind."""
    if kind.server:
        yield Place(request.getfixturevalue("postgres"))
    else:
        yield Place(str(tmp_path / "effects.db"))
