"""Says which servers the tests will use here, and fetches what has to be fetched once.

The exit status is 1 if one is missing and ``CI`` is set: there a missing server is a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys

from confluent_kafka import KafkaException

from tests.servers import containers, find
from tests.servers.java import KAFKA, Missing, class_archive, java
from tests.servers.kafka import make_class_archive
from tests.servers.lifetime import StartError
from tests.servers.postgres import programs as postgres_programs
from tests.servers.redis import redis_program, valkey_program


def _kafka() -> str:
    if not KAFKA.are_here:
        print(f"Fetching Kafka {KAFKA.version} with Maven, once", flush=True)
    program = java()
    found = f"Kafka {KAFKA.version}, jars in {KAFKA.folder()}, Java {program}"
    if not class_archive().exists():
        print("Running Kafka once, so that it starts faster from now on", flush=True)
        try:
            make_class_archive()
        except (StartError, KafkaException) as error:  # it goes without
            print(error, flush=True)
    return found


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return f"{done.stdout.strip()}, {program}"


def _postgres() -> str:
    found = postgres_programs()
    return f"{found.version}, {found.folder}"


def main() -> int:
    """One line for each kind of server; the exit status."""
    missing = 0
    for name, variable, local in (
        ("kafka", find.KAFKA, _kafka),
        ("redis", find.REDIS, lambda: _version(redis_program())),
        ("valkey", find.VALKEY, lambda: _version(valkey_program())),
        ("postgres", find.POSTGRES, _postgres),
    ):
        if os.environ.get(variable):
            print(f"{name}: what {variable} names")
        elif containers.engine():
            print(f"{name}: a container")
        else:
            try:
                print(f"{name}: {local()}")
            except Missing as error:
                missing += 1
                print(f"{name}: MISSING, its tests {'fail' if _ci() else 'skip'}: {error}")
    return 1 if missing and _ci() else 0


def _ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


if __name__ == "__main__":
    sys.exit(main())
