"""Servers in containers, where a container engine answers: the same images as docker-compose.yml.

``testcontainers`` starts them. Its own reaper follows the process that started a container, which
with pytest-xdist is a worker that may end before the others; so the reaper is off, and the
lifetime's warden removes the container.
"""

from __future__ import annotations

import os
import socket
import sys
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from tests.servers.lifetime import Lifetime, StartError, free_port, until

KAFKA_IMAGE = (
    "apache/kafka:4.3.1@sha256:77e3df9054047a88b520d0cc46e16696d3b22022e1d580aeccd2632df6532837"
)
REDIS_IMAGE = "redis:8.6.1@sha256:315270d166080f537bbdf1b489b603aaaa213cb55a544acfa51feb7481abb1c0"
VALKEY_IMAGE = (
    "valkey/valkey:9.1.0@sha256:8e8d64b405ce18f41b8e5ee20aa4687a8ed0022d1298f2ce31cdcf3a76e09411"
)
POSTGRES_IMAGE = (
    "postgres:17.6@sha256:00bc86618629af00d2937fdc5a5d63db3ff8450acf52f0636ec813c7f4902929"
)

_REMOVE = "import docker, sys; docker.from_env().containers.get(sys.argv[1]).remove(force=True)"


@lru_cache(maxsize=1)
def engine() -> bool:
    """Whether a container engine answers a ping within 2 seconds (a client proves nothing).

    Asked here rather than through the client's library, which leaves sockets open where none is.
    """
    host = urlsplit(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    try:
        if host.scheme == "unix":
            link = socket.socket(socket.AF_UNIX)
            address: Any = host.path
        else:
            link = socket.socket(socket.AF_INET)
            address = (host.hostname or "127.0.0.1", host.port or 2375)
        with link:
            link.settimeout(2)
            link.connect(address)
            link.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            return b" 200 " in link.recv(64)
    except OSError:
        return False


def start_kafka(lifetime: Lifetime) -> str:
    """The bootstrap address of a broker in a new container."""
    port = free_port()
    environment = {
        "KAFKA_NODE_ID": "1",
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://127.0.0.1:{port}",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_GROUP_CONSUMER_MIN_HEARTBEAT_INTERVAL_MS": "100",
        "KAFKA_GROUP_CONSUMER_HEARTBEAT_INTERVAL_MS": "200",
        "KAFKA_GROUP_CONSUMER_MIN_ASSIGNMENT_INTERVAL_MS": "0",
        "KAFKA_GROUP_CONSUMER_ASSIGNMENT_INTERVAL_MS": "0",
        "KAFKA_GROUP_CONSUMER_MIN_SESSION_TIMEOUT_MS": "1000",
        "KAFKA_GROUP_CONSUMER_SESSION_TIMEOUT_MS": "6000",
    }
    _start(lifetime, KAFKA_IMAGE, 9092, port, environment)
    return f"127.0.0.1:{port}"


def start_redis(lifetime: Lifetime, image: str = REDIS_IMAGE) -> str:
    """The URL of a Redis or Valkey in a new container."""
    port = free_port()
    _start(lifetime, image, 6379, port, {})
    return f"redis://127.0.0.1:{port}"


def start_postgres(lifetime: Lifetime) -> str:
    """The DSN of a PostgreSQL in a new container."""
    port = free_port()
    _start(lifetime, POSTGRES_IMAGE, 5432, port, {"POSTGRES_HOST_AUTH_METHOD": "trust"})
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


def _start(
    lifetime: Lifetime, image: str, inside: int, port: int, environment: dict[str, str]
) -> None:
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.core.container import DockerContainer

    container: Any = DockerContainer(image)
    container.ports[f"{inside}/tcp"] = ("127.0.0.1", port)  # reachable from this machine only
    for name, value in environment.items():
        container.with_env(name, value)
    container.start()
    wrapped = container.get_wrapped_container()
    lifetime.undo(f"container-{wrapped.short_id}", [sys.executable, "-c", _REMOVE, wrapped.id])

    def running() -> bool | None:
        wrapped.reload()
        if wrapped.status in ("exited", "dead"):
            logs = wrapped.logs(tail=30).decode(errors="replace")
            raise StartError(f"{image} ended at its start:\n{logs}")
        return True if wrapped.status == "running" else None

    until(running, 60, f"{image} runs")
