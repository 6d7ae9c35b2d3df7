"""The patterns' rows: each can be measured, on every log, beside the bare thing."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from benchmarks import ours
from benchmarks.__main__ import _parse, _sizes
from benchmarks.cases import FULL, LOGS, QUICK, Case, LogTarget, Side, Sizes
from benchmarks.measure import SideRunner
from benchmarks.pattern_cases import MANY, PATTERN_PREFIX, pattern_cases
from benchmarks.pattern_cases import QUICK as IN_QUICK
from benchmarks.patterns import TOPIC, UNMATCHED_PATTERNS, _observed
from benchmarks.worker import task_of
from streams import Streams
from streams.patterns.bus.trie import Trie
from tests.servers.find import KafkaAddress, RedisAddress

SMALL = replace(FULL, messages=2_000, publish=500, per_pattern=300)

EVERYWHERE = {
    "metrics, plain", "metrics, async", "dead letters in order, nothing fails",
    "retries counted in the log, nothing fails", "spans, 1 in 100 sampled",
    "spans, all", "message queue", "event bus, a durable subscriber",
    "message queue, publish", "event bus, publish", "delayed delivery, due at once",
    "event bus, an ephemeral subscriber", "saga, durable, 3 steps", "saga, choreographed, 3 steps",
}  # fmt: skip
WITH_CLAIMS = EVERYWHERE | {"idempotency, an operation"}
IN_PROCESS = {
    "event bus, local, 10 subscribers", "event bus, local, 10 plain subscribers",
    "event bus, 10,000 patterns", "saga, in memory, 3 steps",
    "idempotency, IDs in one process", "backpressure, 64 places",
}  # fmt: skip


def place(log: str, url: str = "url") -> LogTarget:
    return LogTarget(log, url, f"orders-{uuid4().hex[:8]}")


A_FEW = "message queue", "saga, durable, 3 steps", "idempotency, an operation"
"""What differs between the logs, once all were measured in memory: a worker is started for each."""


def named(log: str, sizes: Sizes) -> dict[str, Case]:
    return {
        case.name.removeprefix(PATTERN_PREFIX): case for case in pattern_cases(place(log), sizes)
    }


# -- which there are ------------------------------------------------------------------------------


def test_every_pattern_has_a_row_on_every_log() -> None:
    assert named("kafka", FULL).keys() == EVERYWHERE
    assert named("redis", FULL).keys() == named("sqlite", FULL).keys() == WITH_CLAIMS
    assert named("memory", FULL).keys() == WITH_CLAIMS | IN_PROCESS
    assert not named("codecs", FULL)


def test_a_few_are_measured_in_a_quick_run() -> None:
    for log in LOGS:
        assert tuple(named(log, QUICK)) == tuple(
            name for name in named(log, FULL) if name in IN_QUICK.get(log, ())
        )
        assert len(named(log, QUICK)) == len(IN_QUICK.get(log, ()))


@pytest.mark.parametrize("log", LOGS)
def test_all_sides_run_in_turn_in_one_process(log: str) -> None:
    for case in named(log, FULL).values():
        for side in (case.ours, *(rival.side for rival in case.rivals)):
            assert isinstance(side, Side)
            assert side.process == "patterns"
            task_of(side.task)  # it is there
            if side.prepare is not None:
                assert side is case.ours  # once, not once a side
                task_of(side.prepare[0])  # it is there


def test_sides_of_one_process_share_a_worker() -> None:
    with ExitStack() as stack:
        runner = SideRunner({}, stack)
        one, other = (Side(name, "codec", process="both") for name in ("one", "other"))
        assert runner._worker(one) is runner._worker(other)
        assert runner._worker(one) is not runner._worker(Side("alone", "codec"))


@pytest.mark.parametrize("log", ["memory", "sqlite", "redis", "kafka"])
def test_the_promised_ratios_are_targets(log: str) -> None:
    found = {
        name: [rival.target for rival in case.rivals] for name, case in named(log, FULL).items()
    }
    for name in ("metrics, plain", "metrics, async"):
        assert found[name] == [0.95, 1.05]  # of the rate, and of CPU time
    if log == "memory":
        assert found["event bus, 10,000 patterns"] == [1.1]


def test_there_are_messages_enough_however_few_are_asked_for() -> None:
    for given in (["--messages", "1000"], ["--quick", "--messages", "1234"], ["--quick"], []):
        sizes = _sizes(_parse(given))
        for case in pattern_cases(place("sqlite"), sizes):
            for side in (case.ours, *(rival.side for rival in case.rivals)):
                assert isinstance(side, Side)
                messages = side.arguments.get("messages", sizes.per_pattern)
                assert side.arguments.get("tasks", 1) <= messages <= sizes.messages


# -- what they measure ----------------------------------------------------------------------------


def test_the_patterns_that_shall_not_fit_do_not() -> None:
    trie: Trie[int] = Trie()
    for number in range(MANY):
        trie.add(UNMATCHED_PATTERNS[number % len(UNMATCHED_PATTERNS)].format(number), number)
    trie.add("order.*.paid", -1)
    assert trie.match(TOPIC) == [-1]


def test_what_is_said_to_be_on_is_on() -> None:
    app = Streams("memory://")
    with _observed(app, "bare"):
        assert not app.timing_enabled
        assert app.publish_observer is None
    with _observed(app, "metrics"):
        assert app.timing_enabled
    with _observed(app, "spans"):
        assert app.publish_observer is not None


def measured(where: LogTarget, *names: str) -> None:
    """Both sides of each case, once, in one worker; all or those of these names."""
    wanted = [
        case
        for case in pattern_cases(where, SMALL)
        if not names or case.name.removeprefix(PATTERN_PREFIX) in names
    ]
    assert len(wanted) >= len(names)
    with ExitStack() as stack:
        runner = SideRunner({}, stack)
        for case in wanted:
            runner.prepare(case.ours)
            ours = runner.run(case.ours)
            for rival in case.rivals:
                assert ours[rival.metric.key] > 0, case.name
                if isinstance(rival.side, Side):
                    assert runner.run(rival.side)[rival.metric.key] > 0, case.name


def test_they_can_be_measured_in_memory() -> None:
    measured(place("memory", f"memory://{uuid4().hex}"))


def test_they_can_be_measured_on_sqlite(tmp_path: Path) -> None:
    where = place("sqlite", f"sqlite:///{tmp_path}/log.db")
    ours.fill(where.url, where.topic, SMALL.messages)
    measured(where, *A_FEW)


def test_they_can_be_measured_on_redis(redis_server: RedisAddress) -> None:
    where = place("redis", redis_server.url)
    ours.fill(where.url, where.topic, SMALL.messages)
    measured(where, *A_FEW)


def test_they_can_be_measured_on_kafka(kafka: KafkaAddress) -> None:
    where = place("kafka", kafka.url)
    ours.fill(where.url, where.topic, SMALL.messages)
    measured(where, "message queue", "message queue, publish", "saga, durable, 3 steps")
