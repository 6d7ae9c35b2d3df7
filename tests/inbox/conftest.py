"""Which database and which log each test gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from streams.log.url import open_log
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


@pytest.fixture(params=["memory", "sqlite", "redis_server", "kafka"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory":
        found = f"memory://{uuid4().hex}"
    elif request.param == "sqlite":
        found = f"sqlite:///{tmp_path / 'log.db'}"
    else:
        found = str(request.getfixturevalue(request.param).url)
    kept = open_log(found)  # what is in memory lasts as long as somebody has it open
    yield found
    kept.close()
