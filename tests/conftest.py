"""What all tests share: real servers, which tests need one, and how coroutine tests run.

A server that this machine lacks skips the tests that need it, with the command that helps; with
``CI=true`` they fail instead, so that nothing is passed over in silence where it counts.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Generator, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.chosen_logs import not_chosen
from tests.conformance.logs import Case
from tests.log_urls import (
    kafka_brokers_url,
    kafka_url,
    kip848_url,
    memory_url,
    redis_cluster_url,
    redis_url,
    sqlite_url,
    three_brokers,
    valkey_url,
)
from tests.servers import find
from tests.servers.find import KafkaAddress, Missing, PostgresAddress, RedisAddress
from tests.servers.lifetime import Lifetime
from tests.servers.postgres import database

__all__ = [
    "kafka_brokers_url", "kafka_url", "kip848_url", "memory_url", "redis_cluster_url", "redis_url",
    "sqlite_url", "three_brokers", "valkey_url",
]  # fmt: skip

# Collecting the tests makes some million objects, none of which is ever garbage: the collector does
# not look at them while they are made (a fifth of the time), nor afterwards.
gc.disable()


@pytest.hookimpl(tryfirst=True)  # before xdist's worker tells what it collected
def pytest_collection_finish(session: pytest.Session) -> None:
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            _name_group(item)
    gc.freeze()
    gc.enable()


def _name_group(item: pytest.Item) -> None:
    """The scheduler reads a test's group at the end of its ID. xdist 3.8 writes it where pytest 9.2
    does not look any more, and then every worker starts the servers that a group shares."""
    marker = item.get_closest_marker("xdist_group")
    if marker is not None and not item.nodeid.endswith(suffix := f"@{marker.args[0]}"):
        item._id = type(item.id).parse(item.nodeid + suffix)
        assert item.nodeid.endswith(suffix)


_FOLDER = "STREAMS_TEST_LIFETIME"
CI = os.environ.get("CI", "").lower() in ("1", "true")

# No deadline: a test that fails on a busy machine proves nothing. With CI the examples are the
# same in every run, so that what it says can be repeated.
settings.register_profile("streams", deadline=None, print_blob=True, derandomize=CI)
settings.load_profile("streams")


class _Owner:
    """Keeps the servers of a session with several workers, in the process that outlives them."""

    def __init__(self) -> None:
        self.lifetime = Lifetime()
        os.environ[_FOLDER] = str(self.lifetime.folder)

    def pytest_unconfigure(self) -> None:
        os.environ.pop(_FOLDER, None)
        self.lifetime.close()


SERVERS = frozenset({"lifetime", "kafka", "redis_server", "valkey_server", "postgres_server"})
"""The fixtures that a server comes from."""

_NAMES = SERVERS | {
    "cluster", "kafka_classic", "kafka_kip848", "kip848", "postgres", "redis", "redis_durable",
    "valkey",
}  # fmt: skip
"""What a test's parameters call a fixture or a log that needs a server."""


PROCESSES = (
    "app/test_asgi.py", "app/test_run.py", "benchmarks/", "cli/test_dead_command.py",
    "cli/test_hostile_output.py", "cli/test_look.py", "cli/test_publish.py",
    "cli/test_replay_command.py", "cli/test_run_command.py", "cli/test_saga_command.py",
    "cli/test_web.py", "cli/test_workers.py", "docs/", "examples/", "faults/test_decisions.py",
    "faults/test_inbox.py",
    "faults/test_kill.py",
    "faults/test_lost_histories.py", "faults/test_unhappy_writers.py", "faults/test_views.py",
    "inbox/test_django.py", "inbox/test_outages.py",
    "log/test_sqlite_processes.py", "managers/test_manager_kill.py", "outbox/test_django.py",
    "outbox/test_kill.py", "outbox/test_watching.py",
    "monitoring/test_serving.py", "patterns/test_saga_kill.py",
    "patterns/test_sequenced_freeze.py", "patterns/test_sequenced_kill.py", "servers/",
    "test_bad_input.py", "tooling/", "web/browser/", "web/test_redrive_killed.py",
)  # fmt: skip
"""Where tests start programs, or measure, most of the time: half of what the others need together.
Only who is in a hurry leaves them out."""

_HERE = Path(__file__).parent


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Generator[None]:
    """Mark the tests that need a server, or processes, and those that one worker should run; leave
    out what a log cannot do, which is not a skip as there is nothing to run, the long fault runs
    unless they are meant, and the logs on which a case is not run this time."""
    for item in items:
        if _needs_server(item):
            item.add_marker("servers")
        if _starts_processes(item.path):
            item.add_marker("processes")
        group = _module_fixtures(item)
        if group and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(group))
    meant = "faults" in config.option.markexpr
    left_out = [
        item
        for item in items
        if not _log_can(item) or (item.get_closest_marker("faults") and not meant)
    ]
    _leave_out(config, items, left_out)
    yield  # -k and -m
    if not config.getoption("--every-log"):
        _leave_out(config, items, not_chosen(items))


def _leave_out(
    config: pytest.Config, items: list[pytest.Item], left_out: Sequence[pytest.Item]
) -> None:
    if left_out:
        gone = set(left_out)
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=left_out)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-log",
        action="store_true",
        help="run what stands above the log on every log, not on two (tests/chosen_logs.py)",
    )


@cache
def _starts_processes(path: Path) -> bool:
    return path.is_relative_to(_HERE) and path.relative_to(_HERE).as_posix().startswith(PROCESSES)


def _module_fixtures(item: pytest.Item) -> str:
    """A name for those that share fixtures of one module, often a server, or ""."""
    if not isinstance(item, pytest.Function):
        return ""
    indices = item.callspec.indices if hasattr(item, "callspec") else {}
    shared = [
        f"{name}{indices.get(name, '')}"
        for name, found in item._fixtureinfo.name2fixturedefs.items()
        if found[-1].scope == "module"
    ]
    return "-".join([item.path.stem, *shared]) if shared else ""


def _log_can(item: pytest.Item) -> bool:
    """The log that the test is for can do what its ``needs`` name."""
    spec = getattr(item, "callspec", None)
    chosen = spec.params.get("case") if spec is not None else None
    needs = [need for marker in item.iter_markers("needs") for need in marker.args]
    return not isinstance(chosen, Case) or all(chosen.can(need) for need in needs)


def _needs_server(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function):
        return False
    if not SERVERS.isdisjoint(item.fixturenames):
        return True
    # A fixture that is chosen by a parameter: by its name, or by the log's.
    chosen = item.callspec.params.values() if hasattr(item, "callspec") else ()
    if "request" not in item.fixturenames:
        return False
    names = {name for name in chosen if isinstance(name, str)}
    is_on_server = any(isinstance(each, Case) and not each.embedded for each in chosen)
    return is_on_server or not names.isdisjoint(_NAMES)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> None:
    """A server is started only for a test that is marked: `-m "not servers"` starts none."""
    item = request._pyfuncitem
    if fixturedef.argname in SERVERS and item.get_closest_marker("servers") is None:
        pytest.fail(f"{item.nodeid} needs a server, which tests/conftest.py did not see")


def pytest_configure(config: pytest.Config) -> None:
    distributed = config.getoption("numprocesses", None)
    if distributed and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Owner(), "streams-servers")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    yield from _or_skip()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    yield from _or_skip()


def _or_skip() -> Generator[None]:
    try:
        yield
    except Missing as missing:
        if CI:
            raise
        pytest.skip(str(missing))


@pytest.fixture
def disk_path(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder beside the tests. ``tmp_path`` may be in memory, of which the doctor warns."""
    cache = request.config.cache
    assert cache is not None
    with tempfile.TemporaryDirectory(dir=cache.mkdir("files")) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutine tests run on asyncio; a module that also wants uvloop overrides this."""
    return "asyncio"


@pytest.fixture(scope="session")
def lifetime() -> Iterator[Lifetime]:
    """What servers of one's own are started in: ``with Kafka(lifetime, brokers=3) as kafka:``."""
    folder = os.environ.get(_FOLDER)
    opened = Lifetime(Path(folder)) if folder else Lifetime()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def kafka(lifetime: Lifetime) -> KafkaAddress:
    """The session's broker, shared: ``kafka.url``, ``kafka.bootstrap``."""
    return find.kafka(lifetime)


@pytest.fixture(scope="session")
def redis_server(lifetime: Lifetime) -> RedisAddress:
    """The session's Redis, shared: ``redis_server.url``."""
    return find.redis(lifetime)


@pytest.fixture(scope="session")
def valkey_server(lifetime: Lifetime) -> RedisAddress:
    """The session's Valkey, shared: ``valkey_server.url``."""
    return find.valkey(lifetime)


@pytest.fixture(scope="session")
def postgres_server(lifetime: Lifetime) -> PostgresAddress:
    """The session's PostgreSQL, shared: ``postgres_server.url``."""
    return find.postgres(lifetime)


@pytest.fixture
def postgres(postgres_server: PostgresAddress) -> Iterator[str]:
    """A database of the test's own in the session's PostgreSQL, as a DSN."""
    with database(postgres_server.url) as dsn:
        yield dsn
