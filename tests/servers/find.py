"""One server of each kind for a whole test session, from wherever this machine has it.

In this order: an address in the environment (``STREAMS_TEST_KAFKA=host:port``,
``STREAMS_TEST_REDIS=redis://host:port``, ``STREAMS_TEST_VALKEY=redis://host:port``,
``STREAMS_TEST_POSTGRES=postgresql://user@host:port/database``), else a
container where an engine answers, else a local process. It is started at first use, shared by all
of pytest-xdist's workers, and ended with the session's :class:`~tests.servers.lifetime.Lifetime`.

Shared means: use names of your own for topics, groups and keys, and do not stop it. A test that
kills or pauses starts its own :class:`~tests.servers.kafka.Kafka`,
:class:`~tests.servers.redis.Redis` or :class:`~tests.servers.postgres.Postgres`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

import redis as client
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.servers import containers
from tests.servers.java import Missing
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, StartError, until
from tests.servers.postgres import Postgres
from tests.servers.postgres import answers as postgres_answers
from tests.servers.redis import Redis, RedisCluster, any_program, valkey_program

KAFKA = "STREAMS_TEST_KAFKA"
REDIS = "STREAMS_TEST_REDIS"
VALKEY = "STREAMS_TEST_VALKEY"
POSTGRES = "STREAMS_TEST_POSTGRES"

__all__ = [
    "KafkaAddress", "Missing", "PostgresAddress", "RedisAddress", "kafka", "postgres", "redis",
    "redis_cluster", "valkey",
]  # fmt: skip


@dataclass(frozen=True)
class KafkaAddress:
    """A broker to talk to."""

    bootstrap: str
    """``host:port``, several separated by commas."""
    origin: str
    """Where it comes from: ``environment``, ``container`` or ``process``."""

    @property
    def url(self) -> str:
        """The same as an app's URL."""
        return f"kafka://{self.bootstrap}"


@dataclass(frozen=True)
class RedisAddress:
    """A Redis or Valkey to talk to."""

    url: str
    origin: str
    """Where it comes from: ``environment``, ``container`` or ``process``."""


@dataclass(frozen=True)
class PostgresAddress:
    """A PostgreSQL to talk to, as somebody who may create databases."""

    url: str
    """A DSN: ``postgresql://user@host:port/database``."""
    origin: str
    """Where it comes from: ``environment``, ``container`` or ``process``."""


def kafka(lifetime: Lifetime) -> KafkaAddress:
    """The session's broker.

    :raises Missing: there is none and none can be started; says what to do.
    :raises StartError: it does not answer.
    """
    named = os.environ.get(KAFKA)
    if named:
        found = KafkaAddress(named.removeprefix("kafka://"), "environment")
        _answers(lambda: _kafka_answers(found.bootstrap), 20, f"{KAFKA}={named}")
        return found

    def container() -> str:
        bootstrap = containers.start_kafka(lifetime)
        _answers(lambda: _kafka_answers(bootstrap), 90, containers.KAFKA_IMAGE)
        return bootstrap

    def process() -> str:
        # Nothing kills it, so it need not be missed soon: beside enough tests it may well take
        # seconds to send a heartbeat, and a broker that is fenced has no leader for anything.
        cluster = Kafka(lifetime, config={"broker.session.timeout.ms": "120000"})
        cluster.start()
        return cluster.bootstrap

    facts = lifetime.shared("kafka", lambda: _first(container, process))
    return KafkaAddress(facts["address"], facts["origin"])


def redis(lifetime: Lifetime) -> RedisAddress:
    """The session's Redis (a Valkey where Redis itself is not installed).

    :raises Missing: there is none and none can be started; says what to do.
    :raises StartError: it does not answer.
    """
    return _redis(lifetime, "redis", REDIS, containers.REDIS_IMAGE, any_program)


def valkey(lifetime: Lifetime) -> RedisAddress:
    """The session's Valkey.

    :raises Missing: there is none and none can be started; says what to do.
    :raises StartError: it does not answer.
    """
    return _redis(lifetime, "valkey", VALKEY, containers.VALKEY_IMAGE, valkey_program)


def redis_cluster(lifetime: Lifetime) -> RedisAddress:
    """The session's Redis Cluster of three processes; its first node's address.

    :raises Missing: there is no program to start; says what to do.
    """

    def start() -> dict[str, str]:
        # Nobody kills its nodes, and one that stands still for some seconds is not given up.
        cluster = RedisCluster(lifetime, options=("--cluster-node-timeout", "15000"))
        cluster.start()
        return {"address": cluster.url, "origin": "process"}

    facts = lifetime.shared("redis-cluster", start)
    return RedisAddress(facts["address"], facts["origin"])


def postgres(lifetime: Lifetime) -> PostgresAddress:
    """The session's PostgreSQL. A test makes a database of its own there.

    :raises Missing: there is none and none can be started; says what to do.
    :raises StartError: it does not answer.
    """
    named = os.environ.get(POSTGRES)
    if named:
        _answers(lambda: postgres_answers(named) or None, 20, POSTGRES)
        return PostgresAddress(named, "environment")

    def container() -> str:
        url = containers.start_postgres(lifetime)
        _answers(lambda: postgres_answers(url) or None, 60, containers.POSTGRES_IMAGE)
        return url

    def process() -> str:
        server = Postgres(lifetime)
        server.start()
        return server.url

    facts = lifetime.shared("postgres", lambda: _first(container, process))
    return PostgresAddress(facts["address"], facts["origin"])


def _redis(
    lifetime: Lifetime, name: str, variable: str, image: str, program: Callable[[], str]
) -> RedisAddress:
    named = os.environ.get(variable)
    if named:
        url = named if "://" in named else f"redis://{named}"
        _answers(lambda: _redis_answers(url), 20, f"{variable}={named}")
        return RedisAddress(url, "environment")

    def container() -> str:
        url = containers.start_redis(lifetime, image)
        _answers(lambda: _redis_answers(url), 60, image)
        return url

    def process() -> str:
        server = Redis(lifetime, program())
        server.start()
        return server.url

    facts = lifetime.shared(name, lambda: _first(container, process))
    return RedisAddress(facts["address"], facts["origin"])


def _first(container: Callable[[], str], process: Callable[[], str]) -> dict[str, str]:
    """A container's address where an engine answers and can start one, else a process's."""
    trouble = ""
    if containers.engine():
        try:
            return {"address": container(), "origin": "container"}
        except Exception as error:  # whatever the engine says: an image that cannot be had, ...
            trouble = f"a container did not start ({error}); "
            logging.getLogger(__name__).warning("%strying a local process", trouble)
    try:
        return {"address": process(), "origin": "process"}
    except Missing as error:
        raise Missing(trouble + str(error)) from error


def _answers(ready: Callable[[], bool | None], limit: float, what: str) -> None:
    try:
        until(ready, limit, f"{what} answers")
    except TimeoutError as error:
        raise StartError(str(error)) from error


def _kafka_answers(bootstrap: str) -> bool | None:
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    try:
        return bool(admin.list_topics(timeout=2).brokers) or None
    except KafkaException:
        return None


def _redis_answers(url: str) -> bool | None:
    with client.Redis.from_url(url) as connection:
        try:
            return bool(connection.ping()) or None
        except client.RedisError:
            return None
