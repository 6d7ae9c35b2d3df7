"""Which tests run on which log: one that asks for ``stage`` runs on each that keeps histories."""

from __future__ import annotations

from tests.eventsourcing.conftest import (
    kafka_url,
    memory_url,
    pytest_generate_tests,
    redis_url,
    sqlite_url,
    stage,
)

__all__ = ["kafka_url", "memory_url", "pytest_generate_tests", "redis_url", "sqlite_url", "stage"]
