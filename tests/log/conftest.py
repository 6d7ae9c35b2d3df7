"""What tests of several logs need: servers of their own, and members that are closed at the end."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import redis

from streams.log.redis import RedisLog
from tests.log.redis_support import SHORT, Member, open_redis, patient
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis, redis_program, valkey_program


@pytest.fixture
def closing() -> Iterator[int]:
    """The port of a server that hangs up on whoever calls, as one for TLS does."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                with link:
                    link.recv(1024)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def no_voids(monkeypatch: pytest.MonkeyPatch) -> None:
    """No append is declared void because the test stood still between its parts."""
    monkeypatch.setattr("streams.log.kafka.event_index.VOID_AFTER", 600.0)


# -- Redis and Valkey ------------------------------------------------------------------------------


# On Valkey with the long fault runs: the conformance suite shows what it does otherwise than Redis.
PROGRAMS = [
    pytest.param(redis_program, id="redis"),
    pytest.param(valkey_program, id="valkey", marks=pytest.mark.faults),
]


@pytest.fixture(scope="module", params=PROGRAMS)
def server(request: pytest.FixtureRequest, lifetime: Lifetime) -> Iterator[Redis]:
    """One that a module has for itself."""
    with Redis(lifetime, request.param()) as server:
        yield server


@pytest.fixture
def client(server: Redis) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


@pytest.fixture
def log(server: Redis) -> Iterator[RedisLog]:
    """A handle on the module's server, with leases that a test may wait for."""
    log = patient(open_redis(f"{server.url}?{SHORT}"))
    yield log
    log.close()


@pytest.fixture
def members() -> Iterator[list[Member]]:
    """Those that are to be closed at the end."""
    found: list[Member] = []
    yield found
    for member in found:
        member.subscription.close()
