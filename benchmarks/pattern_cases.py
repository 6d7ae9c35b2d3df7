"""The cases of the patterns: their baselines, and the ratio that each should reach.

The baseline is ours too: the bare processor, publish or call that does the same work on the same
log, in the same process, alternately. So a ratio is the cost of a pattern and not of the toolkit.
If the bare call takes a microsecond the ratio is small and means little; the page also
shows the difference in microseconds.

Metrics, and retries that are counted in the log while nothing fails, should cost 5 % at most. The
others write, read or keep more than a bare processor does, and have no target. Nor have spans:
OpenTelemetry creates an object for each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.cases import Case, LogTarget, Metric, Rival, Side, Sizes

PATTERN_PREFIX = "pattern: "
"""The first part of the names of these cases."""

CONCURRENCY = 64
"""Handlers at once, if they are async."""

NEARLY_FREE = 0.95
"""The target for features that should cost at most 5 %."""
NEARLY_FREE_CPU = 1.05
"""The same in CPU time, which is steadier than a rate."""
MANY, FEW = 10_000, 10
"""Patterns on one bus that do not match."""
SAME = 1.1
"""The target for two figures that should be the same."""

QUICK = {
    "memory": (
        "message queue", "event bus, a durable subscriber", "event bus, local, 10 subscribers",
        "event bus, local, 10 plain subscribers", "event bus, 10,000 patterns",
        "saga, durable, 3 steps", "backpressure, 64 places",
        "metrics, plain", "metrics, async",
    ),
    "sqlite": ("saga, durable, 3 steps",),
}  # fmt: skip
"""The cases that ``--quick`` measures, which must stay fast."""

EVENTS = Metric("rate", "events/s")
CALLS = Metric("rate", "calls/s")
SAGAS = Metric("rate", "sagas/s")
CPU = Metric("cpu_us", "µs/message", "less")
COST = Metric("cost", "µs/publish", "less")

DEFAULTS = "Retry(), Dedup(), DeadLetters(), Flow() as they come"


def pattern_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """The cases of the patterns on a log; those without a log are in the memory log's."""
    if log_target.log == "codecs":
        return []
    found = [
        *_overhead_cases(log_target, sizes),
        *_consuming_cases(log_target, sizes),
        *_publishing_cases(log_target, sizes),
    ]
    found += _end_to_end_cases(log_target, sizes)
    if log_target.log != "kafka":  # Kafka cannot order concurrent claims, so it stores none
        found.append(_idempotency_case(log_target, sizes))
    if log_target.log == "memory":
        found += _local_cases(sizes)
    if not sizes.all_patterns:
        names = {PATTERN_PREFIX + name for name in QUICK.get(log_target.log, ())}
        found = [case for case in found if case.name in names]
    return found


def _side(name: str, task: str, said: str = "", /, **arguments: Any) -> Side:
    settings = {"with": said} if said else {}
    return Side(name, task, arguments, process="patterns", settings=settings)


def _case(log: str, name: str, ours: Side, *rivals: Rival) -> Case:
    return Case(PATTERN_PREFIX + name, log, ours, rivals)


# -- features outside a message's path -------------------------------------------------------------


def _overhead_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """The same processor with and without a feature that should not slow down a message."""
    shapes: dict[str, dict[str, Any]] = {
        "plain": {"shape": "plain"},
        "async": {"shape": "async", "concurrency": CONCURRENCY},
    }

    def case(
        name: str, said: str, way: str, shape: str, messages: int, target: float | None
    ) -> Case:
        given = {**_topic_arguments(log_target, messages), **shapes[shape]}
        ours = _with_filled_topic(
            log_target, messages, _side("streams", "processor", said, way=way, **given)
        )
        bare = _side("without", "processor", DEFAULTS, way="bare", **given)
        by_cpu = None if target is None else NEARLY_FREE_CPU
        return _case(
            log_target.log, name, ours, Rival(bare, target),
            Rival(bare, by_cpu, CPU, ", CPU time"),
        )  # fmt: skip

    count, fewer, few = sizes.messages, sizes.messages // 4, 5 * sizes.per_pattern
    scraped = "MetricsCollector, scraped once a second (Prometheus by default: every 15 s)"
    spans = "instrument(app), a BatchSpanProcessor whose exporter does nothing"
    return [
        case("metrics, plain", scraped, "metrics", "plain", count, NEARLY_FREE),
        case("metrics, async", scraped, "metrics", "async", count, NEARLY_FREE),
        case(
            "dead letters in order, nothing fails", "DeadLetters(sequenced=True)", "sequenced",
            "plain", fewer, None,
        ),
        case(
            "retries counted in the log, nothing fails", "Retry(durable=True)", "durable", "plain",
            fewer, None,
        ),
        case("spans, 1 in 100 sampled", spans, "sampled spans", "async", few, None),
        case("spans, all", spans, "spans", "async", few, None),
    ]  # fmt: skip


def _topic_arguments(log_target: LogTarget, messages: int) -> dict[str, Any]:
    return {"url": log_target.url, "topic": log_target.topic, "messages": messages}


def _with_filled_topic(log_target: LogTarget, messages: int, side: Side) -> Side:
    """Fill a log in memory in the process that reads it; the others are filled once for all
    cases."""
    if log_target.log != "memory":
        return side
    return replace(side, prepare=("fill", _topic_arguments(log_target, messages)))


# -- what handles ----------------------------------------------------------------------------------


def _consuming_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    log, count = log_target.log, 5 * sizes.per_pattern
    given = _topic_arguments(log_target, count)
    queue = _side(
        "streams",
        "queue",
        f"ConsumerConfig(concurrency={CONCURRENCY})",
        url=log_target.url,
        messages=count,
    )

    def processor(name: str, way: str, **where: Any) -> Side:
        return _side(
            name, "processor", f"an async handler, concurrency={CONCURRENCY}; {DEFAULTS}", way=way,
            shape="async", concurrency=CONCURRENCY, **where,
        )  # fmt: skip

    events = {**given, "topic": f"{log_target.topic}-events"}
    subscriber = _side(
        "streams", "subscriber", f"group=..., concurrency={CONCURRENCY}, a typed bus", **events
    )
    return [
        _case(
            log, "message queue", _with_filled_topic(log_target, count, queue),
            Rival(processor("the bare processor", "bare", **given)),
            Rival(processor("the bare processor, with the message", "message", **given)),
        ),
        _case(
            log, "event bus, a durable subscriber",
            replace(subscriber, prepare=("fill_events", events)),
            Rival(processor("the bare processor", "bare", **events)),
        ),
    ]  # fmt: skip


# -- what publishes --------------------------------------------------------------------------------


def _publishing_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    count = 5 * sizes.per_pattern
    given = {"url": log_target.url, "messages": count, "tasks": 1_000}
    said = "1,000 concurrent calls"

    def case(name: str, way: str) -> Case:
        ours = _side("streams", "publishing", said, way=way, **given)
        bare = _side("bare publish", "publishing", said, way="bare", **given)
        return _case(log_target.log, f"{name}, publish", ours, Rival(bare))

    return [case("message queue", "queue"), case("event bus", "bus")]


# -- from publish to handler -----------------------------------------------------------------------


def _end_to_end_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    log, count = log_target.log, sizes.per_pattern
    tasks = min(250, count)
    given = {"url": log_target.url, "messages": count, "tasks": tasks}
    said = f"{tasks} concurrent calls that publish, {CONCURRENCY} handlers at once"

    def side(name: str, way: str) -> Side:
        return _side(name, "passing", said, way=way, **given)

    bare = Rival(side("the bare processor", "bare"))
    chain = Rival(side("three bare processors in a row", "chain"), metric=SAGAS)
    return [
        _case(log, "delayed delivery, due at once", side("streams", "delay"), bare),
        _case(log, "event bus, an ephemeral subscriber", side("streams", "ephemeral"), bare),
        _case(log, "saga, durable, 3 steps", side("streams", "saga"), chain),
        _case(log, "saga, choreographed, 3 steps", side("streams", "choreography"), chain),
    ]


def _idempotency_case(log_target: LogTarget, sizes: Sizes) -> Case:
    store = "memory://" if log_target.log == "memory" else log_target.url
    given = {"url": store, "calls": sizes.per_pattern}
    said = f"{CONCURRENCY} callers, each call under another key"
    ours = _side("streams", "once", said, way="idempotent", **given)
    return _case(
        log_target.log, "idempotency, an operation", ours,
        Rival(_side("a plain call", "once", way="bare", **given), metric=CALLS),
    )  # fmt: skip


# -- without a log ---------------------------------------------------------------------------------


def _local_cases(sizes: Sizes) -> list[Case]:
    slow, quick = sizes.per_pattern, 5 * sizes.per_pattern

    def case(
        name: str, task: str, way: str, against: str, metric: Metric, calls: int, **more: Any
    ) -> Case:
        ours = _side("streams", task, calls=calls, way=way, **more)
        bare = _side(against, task, calls=calls, way="bare", **more)
        return _case("memory", name, ours, Rival(bare, metric=metric))

    many = _side("streams", "matching", calls=quick, patterns=MANY)
    few = _side(f"with {FEW} patterns", "matching", calls=quick, patterns=FEW)
    return [
        case(
            "event bus, local, 10 subscribers", "local", "bus", "direct calls", EVENTS, slow,
            subscribers=10,
        ),
        case(
            "event bus, local, 10 plain subscribers", "local", "bus", "direct calls", EVENTS, quick,
            subscribers=10, plain=True,
        ),
        _case("memory", f"event bus, {MANY:,} patterns", many, Rival(few, SAME, COST)),
        case("saga, in memory, 3 steps", "saga_in_memory", "saga", "direct calls", SAGAS, slow),
        case(
            "idempotency, IDs in one process", "deduplicated", "deduplicated", "a plain call",
            CALLS, quick,
        ),
        case(
            f"backpressure, {CONCURRENCY} "
            "places", "places", "controller", "asyncio.Semaphore", CALLS,
            quick, tasks=1_000,
        ),
    ]  # fmt: skip
