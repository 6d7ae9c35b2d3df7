"""What the patterns are measured against, and the ratio each should reach.

The baseline is ours too: the bare processor, publish or call that does the same work on the same
log, in the same process, in turn. So a ratio says what a pattern costs and not what the toolkit
does. Where the bare call is a microsecond's work the ratio is small and means little; the page
tells the difference in microseconds beside it.

Metrics, and retries that are counted in the log while nothing fails, should cost 5 % at most. The
others write, read or keep more than a bare processor does, and have no target. So it is with spans:
OpenTelemetry makes an object of each.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.cases import Case, Metric, Place, Rival, Side, Sizes

PREFIX = "pattern: "
"""Begins the name of each of these cases."""

AT_ONCE = 64
"""Handlers at once, where they are async."""

FREE = 0.95
"""The ratio of what should cost 5 % at most."""
FREE_CPU = 1.05
"""The same in CPU time, which is steadier than a rate."""
MANY, FEW = 10_000, 10
"""Patterns that do not fit, on one bus."""
ALIKE = 1.1
"""The ratio of two figures that are promised to be the same."""

QUICK = {
    "memory": (
        "message queue", "event bus, a durable subscriber", "event bus, local, 10 subscribers",
        "event bus, local, 10 plain subscribers", "event bus, 10,000 patterns",
        "saga, durable, 3 steps", "backpressure, 64 places",
        "metrics, plain", "metrics, async",
    ),
    "sqlite": ("saga, durable, 3 steps",),
}  # fmt: skip
"""Those that ``--quick`` measures, which must stay quick."""

EVENTS = Metric("rate", "events/s")
CALLS = Metric("rate", "calls/s")
SAGAS = Metric("rate", "sagas/s")
CPU = Metric("cpu_us", "µs/message", "less")
COST = Metric("cost", "µs/publish", "less")

DEFAULTS = "Retry(), Dedup(), DeadLetters(), Flow() as they come"


def patterns(place: Place, sizes: Sizes) -> list[Case]:
    """The patterns on a log; those that need none are memory's."""
    if place.log == "codecs":
        return []
    found = [*_unseen(place, sizes), *_consuming(place, sizes), *_publishing(place, sizes)]
    found += _passing(place, sizes)
    if place.log != "kafka":  # it cannot say who came first, so it keeps no claims
        found.append(_once(place, sizes))
    if place.log == "memory":
        found += _local(sizes)
    if not sizes.every:
        names = {PREFIX + name for name in QUICK.get(place.log, ())}
        found = [case for case in found if case.name in names]
    return found


def _side(name: str, task: str, said: str = "", /, **arguments: Any) -> Side:
    settings = {"with": said} if said else {}
    return Side(name, task, arguments, process="patterns", settings=settings)


def _case(log: str, name: str, ours: Side, *rivals: Rival) -> Case:
    return Case(PREFIX + name, log, ours, rivals)


# -- what is not on a message's way ----------------------------------------------------------------


def _unseen(place: Place, sizes: Sizes) -> list[Case]:
    """The same processor with and without something that a message should not feel."""
    shapes: dict[str, dict[str, Any]] = {
        "plain": {"shape": "plain"},
        "async": {"shape": "async", "concurrency": AT_ONCE},
    }

    def case(
        name: str, said: str, way: str, shape: str, messages: int, target: float | None
    ) -> Case:
        given = {**_where(place, messages), **shapes[shape]}
        ours = _prepared(place, messages, _side("streams", "processor", said, way=way, **given))
        bare = _side("without", "processor", DEFAULTS, way="bare", **given)
        by_cpu = None if target is None else FREE_CPU
        return _case(
            place.log, name, ours, Rival(bare, target),
            Rival(bare, by_cpu, CPU, ", CPU time"),
        )  # fmt: skip

    count, fewer, few = sizes.messages, sizes.messages // 4, 5 * sizes.each
    scraped = "MetricsCollector, scraped once a second (Prometheus by default: every 15 s)"
    spans = "instrument(app), a BatchSpanProcessor whose exporter does nothing"
    return [
        case("metrics, plain", scraped, "metrics", "plain", count, FREE),
        case("metrics, async", scraped, "metrics", "async", count, FREE),
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


def _where(place: Place, messages: int) -> dict[str, Any]:
    return {"url": place.url, "topic": place.topic, "messages": messages}


def _prepared(place: Place, messages: int, side: Side) -> Side:
    """A log in memory is filled in the process that reads it; the others are, for all cases."""
    if place.log != "memory":
        return side
    return replace(side, prepare=("fill", _where(place, messages)))


# -- what handles ----------------------------------------------------------------------------------


def _consuming(place: Place, sizes: Sizes) -> list[Case]:
    log, count = place.log, 5 * sizes.each
    given = _where(place, count)
    queue = _side(
        "streams", "queue", f"ConsumerConfig(concurrency={AT_ONCE})", url=place.url, messages=count
    )

    def processor(name: str, way: str, **where: Any) -> Side:
        return _side(
            name, "processor", f"an async handler, concurrency={AT_ONCE}; {DEFAULTS}", way=way,
            shape="async", concurrency=AT_ONCE, **where,
        )  # fmt: skip

    events = {**given, "topic": f"{place.topic}-events"}
    subscriber = _side(
        "streams", "subscriber", f"group=..., concurrency={AT_ONCE}, a typed bus", **events
    )
    return [
        _case(
            log, "message queue", _prepared(place, count, queue),
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


def _publishing(place: Place, sizes: Sizes) -> list[Case]:
    count = 5 * sizes.each
    given = {"url": place.url, "messages": count, "tasks": 1_000}
    said = "1,000 concurrent calls"

    def case(name: str, way: str) -> Case:
        ours = _side("streams", "publishing", said, way=way, **given)
        bare = _side("bare publish", "publishing", said, way="bare", **given)
        return _case(place.log, f"{name}, publish", ours, Rival(bare))

    return [case("message queue", "queue"), case("event bus", "bus")]


# -- from publish to handler -----------------------------------------------------------------------


def _passing(place: Place, sizes: Sizes) -> list[Case]:
    log, count = place.log, sizes.each
    tasks = min(250, count)
    given = {"url": place.url, "messages": count, "tasks": tasks}
    said = f"{tasks} concurrent calls that publish, {AT_ONCE} handlers at once"

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


def _once(place: Place, sizes: Sizes) -> Case:
    store = "memory://" if place.log == "memory" else place.url
    given = {"url": store, "calls": sizes.each}
    said = f"{AT_ONCE} callers, each call under another key"
    ours = _side("streams", "once", said, way="idempotent", **given)
    return _case(
        place.log, "idempotency, an operation", ours,
        Rival(_side("a plain call", "once", way="bare", **given), metric=CALLS),
    )  # fmt: skip


# -- without a log ---------------------------------------------------------------------------------


def _local(sizes: Sizes) -> list[Case]:
    slow, quick = sizes.each, 5 * sizes.each

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
        _case("memory", f"event bus, {MANY:,} patterns", many, Rival(few, ALIKE, COST)),
        case("saga, in memory, 3 steps", "saga_in_memory", "saga", "direct calls", SAGAS, slow),
        case(
            "idempotency, IDs in one process", "deduplicated", "deduplicated", "a plain call",
            CALLS, quick,
        ),
        case(
            f"backpressure, {AT_ONCE} places", "places", "controller", "asyncio.Semaphore", CALLS,
            quick, tasks=1_000,
        ),
    ]  # fmt: skip
