"""The servers that the benchmarks need: from the environment, a container, or a child process.

They come from ``tests/servers`` and end with this program, however it ends. A broker that is
started here gets the memory of a small one in production; the tests' own starts quickly instead.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import psycopg
import redis
from confluent_kafka.admin import AdminClient

from tests.servers import containers, find
from tests.servers.find import Missing
from tests.servers.java import KAFKA_VERSION
from tests.servers.kafka import FAST_JAVA, Kafka
from tests.servers.lifetime import Lifetime, StartError

__all__ = ["Missing", "Servers", "StartError"]


class Servers:
    """Starts a server at its first use. A context manager; leaving ends what it started."""

    def __init__(self) -> None:
        self._lifetime: Lifetime | None = None
        self.versions: dict[str, str] = {}
        """By log: the server that answered, and its source."""
        self._urls: dict[str, str] = {}
        self._starts: dict[str, Callable[[], str]] = {"kafka": self._kafka, "redis": self._redis}

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lifetime is not None:
            self._lifetime.close()

    def url(self, log: str) -> str:
        """The URL of the server of ``kafka`` or ``redis``.

        :raises Missing: this machine has none; says what to do.
        :raises StartError: it did not come up, or does not answer.
        """
        if log not in self._urls:
            self._urls[log] = self._starts[log]()
        return self._urls[log]

    def database(self) -> str:
        """A PostgreSQL's DSN; empty: this machine has none."""
        if "postgres" not in self._urls:
            try:
                found = find.postgres(self.lifetime)
            except Missing:
                self._urls["postgres"] = ""
            else:
                self._urls["postgres"] = found.url
                with psycopg.connect(found.url) as connection:
                    version = connection.info.parameter_status("server_version")
                self.versions["postgres"] = f"PostgreSQL {version}, {found.origin}"
        return self._urls["postgres"]

    @property
    def lifetime(self) -> Lifetime:
        """The lifetime that the servers end with."""
        if self._lifetime is None:
            self._lifetime = Lifetime()
        return self._lifetime

    def _kafka(self) -> str:
        if os.environ.get(find.KAFKA) or containers.engine():
            found = find.kafka(self.lifetime)
            url, origin = found.url, found.origin
        else:
            cluster = Kafka(self.lifetime, java_options=FAST_JAVA)
            cluster.start()
            url, origin = cluster.url, "process"
        admin = AdminClient({"bootstrap.servers": url.partition("://")[2]})
        brokers = len(admin.list_topics(timeout=20).brokers)
        version = "" if origin == "environment" else f" {KAFKA_VERSION}"
        self.versions["kafka"] = f"Kafka{version}, {brokers} broker(s), {origin}"
        return url

    def _redis(self) -> str:
        found = find.redis(self.lifetime)
        with redis.Redis.from_url(found.url) as client:
            info = client.info("server")
        name = info.get("server_name", "redis")
        version = info.get("valkey_version") or info["redis_version"]
        self.versions["redis"] = f"{name} {version}, {found.origin}"
        return found.url
