"""On which logs a fault run takes place, how large it is, and from which seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

SEED = int(os.environ.get("STREAMS_SEED", "20130101"))
"""Everything a run chooses at random follows from it: a failure can be run again."""

KAFKA = "kafka", "kip848"
_FIXTURES = {"kafka": "kafka_classic", "kip848": "kafka_kip848", "redis": "redis_durable"}
BOTH = ("kafka", "redis")


def _marks(log: str, what: str) -> list[pytest.MarkDecorator]:
    """A broker costs some seconds of processor time, so one of pytest's workers runs all that
    need it: one the cases, another the runs, neither of which takes long beside all other tests."""
    return [pytest.mark.xdist_group(f"faults-kafka-{what}")] if log in KAFKA else []


def on(*logs: str) -> pytest.MarkDecorator:
    """Run a test with ``ground`` on these: ``kafka``, ``kip848``, ``redis``."""
    cases = [pytest.param(_FIXTURES[log], id=log, marks=_marks(log, "cases")) for log in logs]
    return pytest.mark.parametrize("ground", cases, indirect=True)


def sizes(
    short: Any,
    long: Any,
    *,
    logs: Sequence[str] = BOTH,
    long_logs: Sequence[str] = ("kafka", "kip848", "redis"),
    seconds: float = 600,
) -> pytest.MarkDecorator:
    """Run a test with ``ground`` and ``size``: small in every ``make test``, large behind
    ``make faults``.

    :param logs: where the short one runs.
    :param long_logs: where the long one runs.
    :param seconds: after which a long one counts as hanging.
    """
    marks = [pytest.mark.faults, pytest.mark.timeout(seconds)]
    cases = [
        pytest.param(_FIXTURES[log], short, id=f"{log}-short", marks=_marks(log, "runs"))
        for log in logs
    ]
    cases += [
        pytest.param(_FIXTURES[log], long, id=f"{log}-long", marks=[*marks, *_marks(log, "runs")])
        for log in long_logs
    ]
    return pytest.mark.parametrize(("ground", "size"), cases, indirect=["ground"])
