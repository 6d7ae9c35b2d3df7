"""On which logs a test is run that stands above the log.

``tests/conformance`` proves of every log that it keeps the one protocol, and ``tests/log`` what is
its own. The patterns, aggregates, views and screens know that protocol alone. So each case of
their tests runs on two logs: memory or SQLite, and Kafka or Redis. The cases of the conformance
suite run on all four, on one of Kafka's group protocols and on one of Redis, Valkey and a cluster.

The case's name decides which, so that it is the same in every run, while the cases of a pattern
come to all logs. With ``--every-log`` each runs on all of them, as it does where its log is named
(a node ID, ``-k``), and where the test is marked ``everywhere``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import chain
from pathlib import Path
from zlib import crc32

import pytest

from tests.conformance.logs import LOGS, MAIN_LOGS, Case

Kinds = tuple[tuple[str, ...], ...]

ABOVE = (
    "cli", "eventsourcing", "faults", "managers", "monitoring", "patterns", "projections",
    "views", "web",
)  # fmt: skip
"""The folders of such tests. The short fault runs are among them: the long ones run everywhere."""

KINDS = (
    tuple(case.name for case in MAIN_LOGS if case.embedded),
    tuple(case.name for case in MAIN_LOGS if not case.embedded),
)
"""A case of theirs runs on one of each: on a log without a server, and on one with one."""

CONFORMANCE_KINDS = tuple(
    (main.name, *variants)
    for main in MAIN_LOGS
    if (variants := [case.name for case in LOGS if case.variant_of == main.name])
)
"""Each log that has variants, with them. A case of the conformance suite runs on one of each, too;
and on the logs that are not among them."""

_LOGS = {name: log for log in chain(*KINDS) for name in (log, f"{log}_url")} | {
    "kafka_classic": "kafka",
    "redis_durable": "redis",
}
"""What a parameter calls a log."""

_HERE = Path(__file__).parent


def choose(case: str, logs: Collection[str], kinds: Kinds) -> set[str]:
    """The logs on which a case runs: one of each kind, and all that are of no kind.

    :param case: its name, without a log.
    :param logs: those that it is for.
    """
    number = crc32(case.encode())
    chosen = set(logs).difference(*kinds)
    for kind in kinds:
        possible = [log for log in kind if log in logs]
        if possible:
            number, place = divmod(number, len(possible))
            chosen.add(possible[place])
    return chosen


def not_chosen(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Those that are left out."""
    cases: defaultdict[tuple[Kinds, str], dict[str, pytest.Item]] = defaultdict(dict)
    for item in items:
        kinds = _kinds(item)
        log = _log_of(item) if kinds else None
        if log is not None:
            case = re.sub(rf"(?<=[\[-]){log}(?![a-z])", "", item.nodeid, count=1)
            cases[kinds, case][log] = item
    return [
        item
        for (kinds, case), by_log in cases.items()
        for log, item in by_log.items()
        if log not in choose(case, by_log, kinds)
    ]


def _kinds(item: pytest.Item) -> Kinds:
    if not item.path.is_relative_to(_HERE):
        return ()
    if item.get_closest_marker("everywhere") or item.get_closest_marker("faults"):
        return ()
    folder, *rest = item.path.relative_to(_HERE).parts
    if folder == "conformance":
        return CONFORMANCE_KINDS
    return KINDS if folder in ABOVE and "browser" not in rest else ()


def _log_of(item: pytest.Item) -> str | None:
    """The log that the test's parameters name."""
    spec = getattr(item, "callspec", None)
    for value in () if spec is None else spec.params.values():
        if isinstance(value, Case):
            return value.name
        if isinstance(value, str) and value in _LOGS:
            return _LOGS[value]
    return None
