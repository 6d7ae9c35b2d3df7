"""The Redis and Valkey servers that other tests stand on."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis as client
from redis.cluster import RedisCluster as ClusterClient
from redis.sentinel import MasterNotFoundError, Sentinel

from tests.servers.find import RedisAddress
from tests.servers.lifetime import Lifetime, until
from tests.servers.redis import Redis, RedisCluster, RedisSentinel, redis_program, valkey_program

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(params=["redis", "valkey"])
def program(request: pytest.FixtureRequest) -> str:
    return redis_program() if request.param == "redis" else valkey_program()


def test_killed_and_started_again_it_has_its_data(lifetime: Lifetime, program: str) -> None:
    with Redis(lifetime, program, DURABLE) as server, server.client() as connection:
        connection.set("key", "value")
        first = server.process.pid
        server.kill()
        with pytest.raises(client.ConnectionError):
            client.Redis.from_url(server.url, retry=None).ping()
        server.restart()
        assert server.process.pid != first
        assert connection.get("key") == b"value"
    assert not server.process.alive


def test_paused_it_answers_nothing_until_it_goes_on(lifetime: Lifetime, program: str) -> None:
    with Redis(lifetime, program) as server:
        server.pause()
        impatient = client.Redis.from_url(server.url, socket_timeout=0.2, retry=None)
        with pytest.raises(client.TimeoutError):
            impatient.ping()
        impatient.close()
        server.resume()
        with server.client() as connection:
            assert connection.ping()


def test_tls(lifetime: Lifetime) -> None:
    with Redis(lifetime, redis_program(), tls=True) as server, server.client() as connection:
        assert server.url.startswith("rediss://")
        assert connection.ping()


def test_cluster(lifetime: Lifetime, program: str) -> None:
    patient = ("--cluster-node-timeout", "15000")
    with RedisCluster(lifetime, program, options=patient) as cluster:
        connection = ClusterClient.from_url(cluster.url)
        for number in range(50):
            connection.set(f"key-{number}", number)
        sizes = []
        for node in cluster.nodes:
            with node.client() as one:
                sizes.append(one.dbsize())
        connection.close()
    assert sum(sizes) == 50
    assert all(sizes)


def test_sentinel_promotes_the_replica(lifetime: Lifetime, program: str) -> None:
    with RedisSentinel(lifetime, program) as service:
        kind: Any = Sentinel  # untyped
        sentinel = kind([("127.0.0.1", service.port)])

        def primary() -> int | None:
            try:
                return int(sentinel.discover_master(service.NAME)[1])
            except MasterNotFoundError:
                return None

        assert primary() == service.primary.port
        service.primary.kill()
        until(lambda: primary() == service.replica.port or None, 180, "the replica is promoted")
        for connection in sentinel.sentinels:
            connection.close()


def test_the_shared_servers(redis_server: RedisAddress, valkey_server: RedisAddress) -> None:
    for address in (redis_server, valkey_server):
        with client.Redis.from_url(address.url) as connection:
            assert connection.ping()
    with client.Redis.from_url(valkey_server.url) as connection:
        assert "valkey_version" in connection.info("server")


def test_the_wheel_carries_a_server() -> None:
    program = valkey_program()
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert "Valkey" in done.stdout or Path(program).name == "valkey-server"
