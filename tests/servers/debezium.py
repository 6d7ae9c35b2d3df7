"""A Kafka Connect with Debezium's connector for PostgreSQL, in one process on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.servers.java import DEBEZIUM, java, log_option
from tests.servers.lifetime import Lifetime, Process, free_port

_WORKER = """\
bootstrap.servers={bootstrap}
listeners=http://127.0.0.1:{port}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
offset.storage.file.filename={folder}/offsets
offset.flush.interval.ms={flush_ms}
plugin.discovery=service_load
"""
_IS_ACTIVE = "SELECT 1 FROM pg_replication_slots WHERE active AND database = current_database()"


class Debezium:
    """One connector. A context manager: entering starts it, leaving kills it.

    :param lifetime: what it ends with at the latest.
    :param bootstrap: the Kafka that it writes to.
    :param dsn: a database of a server that has ``wal_level=logical``.
    :param connector: its configuration, ``name`` and ``config``, but for where the database is.
    :param flush_ms: how often it notes how far it is; what it sent since then it sends again after
        it was killed.
    """

    def __init__(
        self,
        lifetime: Lifetime,
        bootstrap: str,
        dsn: str,
        connector: Mapping[str, Any],
        flush_ms: int = 1_000,
    ) -> None:
        self._dsn = dsn
        folder = lifetime.place("debezium")
        place = urlsplit(dsn)
        where = {
            "database.hostname": place.hostname,
            "database.port": str(place.port),
            "database.dbname": place.path.removeprefix("/"),
            "database.user": place.username,
            "database.password": place.password or "none",
        }
        connector_file, worker_file = folder / "connector.json", folder / "worker.properties"
        connector_file.write_text(
            json.dumps({**connector, "config": {**connector["config"], **where}}), encoding="utf-8"
        )
        worker_file.write_text(
            _WORKER.format(bootstrap=bootstrap, port=free_port(), folder=folder, flush_ms=flush_ms),
            encoding="utf-8",
        )
        command = [
            java(), "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            log_option(folder, "info"), "-cp", f"{DEBEZIUM.folder()}/*",
            "org.apache.kafka.connect.cli.ConnectStandalone", str(worker_file), str(connector_file),
        ]  # fmt: skip
        self.process = Process(lifetime, command, folder / "worker.log")

    def __enter__(self) -> Debezium:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it; returns once it reads the database's log.

        :raises StartError: it ended, or it took too long.
        """
        self.process.start()
        self.process.wait_ready(self._reads)

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()

    def _reads(self) -> bool | None:
        with psycopg.connect(self._dsn) as connection:
            return bool(connection.execute(_IS_ACTIVE).fetchall()) or None
