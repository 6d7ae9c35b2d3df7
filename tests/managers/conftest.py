"""Which tests run on which log: one that asks for ``stage`` runs on each that keeps histories."""

from __future__ import annotations

from tests.eventsourcing.conftest import pytest_generate_tests, stage

__all__ = ["pytest_generate_tests", "stage"]
