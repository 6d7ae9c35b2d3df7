"""What can be imported from where: every name is found, and the patterns are all re-exported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest

import streams
from streams import eventsourcing, patterns, testing
from streams.patterns import monitoring


def test_every_public_name_is_found_where_it_is_said_to_be() -> None:
    for module in (streams, patterns, eventsourcing):
        assert list(module.__all__) == sorted(module.__all__)
        for name in module.__all__:
            assert getattr(module, name) is not None
    for name in dir(patterns):
        assert getattr(streams, name) is getattr(patterns, name)
    for name in {*dir(eventsourcing)} - {"Given", "When", "given"}:
        assert getattr(streams, name) is getattr(eventsourcing, name)
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    assert testing.given is eventsourcing.given


@pytest.mark.parametrize("module", [streams, patterns, monitoring, eventsourcing])
def test_type_checkers_are_told_the_same_names(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    names = {each.name for node in branch.body for each in cast(ast.ImportFrom, node).names}
    if "*" in names:
        names = (names - {"*"}) | {*dir(patterns)}
    assert names | ({"__version__"} & {*module.__all__}) == {*module.__all__}


@pytest.mark.parametrize(
    ("former", "name"),
    [("GroupLive", "GroupNotEmpty"), ("Mismatch", "TopicMismatch"), ("Reading", "TopicReader")],
)
def test_former_names_still_work_and_say_so(former: str, name: str) -> None:
    with pytest.warns(DeprecationWarning, match=name):
        assert getattr(streams, former) is getattr(streams, name)


def test_the_package_imports_no_driver_and_no_pattern_until_it_is_asked_to() -> None:
    code = "import streams, sys; print([m for m in sys.modules if m.startswith('streams.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['streams.lazy_exports', 'streams.version']"


@pytest.mark.parametrize("module", ["streams", "streams.patterns", "streams.patterns.monitoring"])
def test_everything_can_be_imported_without_extras_and_says_what_is_missing_when_used(
    module: str,
) -> None:
    code = f"""
import sys
for package in ("prometheus_client", "opentelemetry", "fastapi", "starlette", "pydantic"):
    sys.modules[package] = None
from {module} import *
from streams import ConfigError, Streams
for use in (MetricsCollector, instrument):
    try:
        use(Streams("memory://"))
    except ConfigError as error:
        print(use.__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        (
            "MetricsCollector metrics need the package prometheus-client (the extra prometheus): "
            "pip install prometheus-client"
        ),
        (
            "instrument tracing needs the package opentelemetry-api (the extra otel): "
            "pip install opentelemetry-api"
        ),
    ]
