"""On which logs a fault run takes place, how large it is, and from which seed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

SEED = int(os.environ.get("STREAMS_SEED", "20130101"))
"""Everything a run chooses at random follows from it: a failure can be run again."""

_FIXTURES = {"kafka": "kafka_classic", "kip848": "kafka_kip848", "redis": "redis_durable"}
BOTH = ("kafka", "redis")


def on(*logs: str) -> pytest.MarkDecorator:
    """Run a test with ``ground`` on these: ``kafka``, ``kip848``, ``redis``."""
    return pytest.mark.parametrize(
        "ground", [_FIXTURES[log] for log in logs], ids=list(logs), indirect=True
    )


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
    cases = [pytest.param(_FIXTURES[log], short, id=f"{log}-short") for log in logs]
    cases += [
        pytest.param(_FIXTURES[log], long, id=f"{log}-long", marks=marks) for log in long_logs
    ]
    return pytest.mark.parametrize(("ground", "size"), cases, indirect=["ground"])
