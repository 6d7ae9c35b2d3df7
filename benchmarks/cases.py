"""The table of all benchmarks: the cases, their rivals, and the ratio that each should reach.

A *case* is one task done with the toolkit and its *rivals*: the same by hand, by a peer, or a
limit that arithmetic sets. Each rival gives one row. A target is a promise about the ratio of ours
to the rival; rivals without one are only for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from benchmarks import baseline
from benchmarks.orders import KEYS, PARTITIONS
from streams.config import Flow
from streams.log.kafka.settings import read_settings as kafka_settings
from streams.log.protocol import OpenRequest

LOGS = ("memory", "sqlite", "redis", "kafka", "codecs")
"""The values of ``--log``: four logs, and the codecs, which need none."""
LOGS_WITH_SERVER = ("redis", "kafka")
"""Logs that need a server."""

HANDLER_WAIT = 0.005
"""Seconds that a handler waits, in the cases with waiting handlers."""
LATENCY_RATE = 1_000
"""Messages per second in the cases that measure latency."""
HANDLER_CPU = 50e-6
"""Seconds of CPU that a handler takes, in the cases in which processes share the work."""

Settings = Mapping[str, str]


@dataclass(frozen=True)
class Side:
    """One way of doing the work of a case.

    :param name: its name in a table.
    :param task: a task of :mod:`benchmarks.worker`, or of a peer's program.
    :param peer: the peer that runs it; empty: a worker of ours.
    :param prepare: a task that is run once before, in the same process.
    :param fresh: run every measurement in a new process.
    :param process: sides with the same name run in one process, in turn; empty: in one of its own.
    :param settings: its settings, for display.
    """

    name: str
    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    peer: str = ""
    prepare: tuple[str, Mapping[str, Any]] | None = None
    fresh: bool = False
    process: str = ""
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Limit:
    """A rival that needs no run: a limit that arithmetic or a promise sets."""

    name: str
    value: float


@dataclass(frozen=True)
class Metric:
    """One figure of a measurement's answer.

    :param key: its name there.
    :param better: whether more or less of it is better; a target is a bound on that side.
    :param scale: the factor by which it is multiplied when it is shown.
    """

    key: str
    unit: str
    better: Literal["more", "less"] = "more"
    scale: float = 1.0


MESSAGE_RATE = Metric("rate", "messages/s")
P50 = Metric("p50", "ms", "less")
P99 = Metric("p99", "ms", "less")
PERCENT = Metric("percent", "% of a core", "less")
GROWTH = Metric("growth", "MiB", "less", 1 / (1 << 20))


@dataclass(frozen=True)
class Rival:
    """A rival that ours is compared with.

    :param target: the ratio that ours should reach: at least that, or at most if less is better.
    :param suffix: added to the case's name, if one case gives several figures.
    """

    side: Side | Limit
    target: float | None = None
    metric: Metric = MESSAGE_RATE
    suffix: str = ""


@dataclass(frozen=True)
class Case:
    """One task, done by ours and by its rivals in turn.

    :param check: run once in addition; ``violations`` of a key's order in its answer are reported.
    """

    name: str
    log: str
    ours: Side
    rivals: Sequence[Rival]
    check: Side | None = None
    concurrency: int | None = None


@dataclass(frozen=True)
class Sizes:
    """The amounts of work that are measured.

    :param messages: in the topic that most cases read.
    :param waiting: seconds that a case with waiting handlers takes.
    :param backlog: messages of the backlog case, a tenth as many keys.
    :param publish: messages that are published.
    :param pings: messages whose latency is taken.
    :param idle: seconds of doing nothing.
    :param shared: messages that processes share.
    :param slow_peer: messages for slow peers.
    :param per_pattern: sagas, or messages through a pattern that writes for each; five times as
        many for patterns that do not. At most a fifth of ``messages``.
    :param all_patterns: all patterns on all logs, or a few; and aggregates at length.
    :param aggregates: the number of aggregates of which one is loaded.
    :param view_events: the events that a view is rebuilt from; it has a hundredth as many
        documents.
    :param view_documents: the number of documents of which one is read; 0: none is.
    """

    messages: int
    waiting: float
    backlog: int
    publish: int
    pings: int
    idle: float
    shared: int
    slow_peer: int
    per_pattern: int
    all_patterns: bool
    aggregates: int
    view_events: int
    view_documents: int


FULL = Sizes(
    1_000_000, 3.0, 2_000_000, 100_000, 10_000, 10.0, 200_000, 20_000, 10_000, True, 1_000_000,
    100_000, 200_000,
)  # fmt: skip
QUICK = Sizes(60_000, 0.5, 0, 20_000, 1_000, 1.0, 20_000, 2_000, 1_000, False, 0, 10_000, 0)


@dataclass(frozen=True)
class LogTarget:
    """A log and the files and databases beside it.

    :param url: the log's.
    :param topic: the topic with all orders.
    :param file: the hand-made table, for SQLite.
    :param folder: for files that a case makes.
    :param database: the DSN of a PostgreSQL, for data beside the log; empty: there is none.
    """

    log: str
    url: str
    topic: str
    file: str = ""
    folder: str = ""
    database: str = ""


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def ours_on_kafka() -> dict[str, Any]:
    """The client settings of our consumers, without those that differ by address and group."""
    found = kafka_settings(OpenRequest("kafka://localhost", ""))
    member = found.member_config("group", Flow(), lambda text: None)
    hidden = ("bootstrap.servers", "group.id", "stats_cb")
    return {name: value for name, value in member.items() if name not in hidden}


def _our_settings(log_target: LogTarget, description: str) -> Settings:
    said = {"processor": f"{description}; Flow(), Retry(), Dedup(), DeadLetters() as they come"}
    if log_target.log == "kafka":
        said["client"] = _settings_text(ours_on_kafka())
    return said


def _hand_loop(log_target: LogTarget, ours: Side) -> Callable[..., Side]:
    """A function that makes the hand-written loop of this log: ``loop(batch=..., header=...)``."""
    messages = ours.arguments["messages"]

    def loop(**more: Any) -> Side:
        if log_target.log == "kafka":
            given = {"url": log_target.url, "topic": log_target.topic, "messages": messages, **more}
            said = {"client": _settings_text(baseline.KAFKA_CONSUMER)}
            return Side("by hand", "kafka", given, settings=said)
        if log_target.log == "redis":
            given = {"url": log_target.url, "topic": log_target.topic, "messages": messages, **more}
            said = {"client": "redis-py's connection, XREAD one batch ahead, hiredis"}
            return Side("by hand, reading ahead", "redis_ahead", given, settings=said)
        if log_target.log == "sqlite":
            given = {"path": log_target.file, "messages": messages, **more}
            said = {"client": "apsw, WAL, synchronous=FULL, SELECT of 1,000 rows"}
            return Side("by hand", "sqlite", given, settings=said)
        return Side("by hand", "listed", {"messages": messages, **more}, settings={"": "a list"})

    return loop


def cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """All cases of a log except the patterns (:mod:`benchmarks.pattern_cases`), including peers as
    rivals."""
    if log_target.log == "codecs":
        return _codec_cases()
    found = [*_consuming_cases(log_target, sizes), *_waiting_cases(log_target, sizes)]
    if log_target.log != "memory":
        found += _publishing_cases(log_target, sizes)
    if log_target.log in LOGS_WITH_SERVER:
        found.append(_latency_case(log_target, sizes, "plain", 1))
        found.append(_latency_case(log_target, sizes, "async", 64))
    found.append(_idle_case(log_target, sizes))
    if log_target.log == "kafka":
        found.append(_pipeline_case(log_target, sizes))
        if sizes.backlog:
            found += _backlog_cases(log_target, sizes)
        found.append(_sharing_case(log_target, sizes))
    return found


def _consume_side(log_target: LogTarget, messages: int, description: str, **more: Any) -> Side:
    arguments = {"url": log_target.url, "topic": log_target.topic, "messages": messages, **more}
    prepare = None
    if log_target.log == "memory":
        given = {"url": log_target.url, "topic": log_target.topic, "messages": messages}
        prepare = ("fill", given)
    return Side(
        "streams",
        "consume",
        arguments,
        prepare=prepare,
        settings=_our_settings(log_target, description),
    )


def _faststream_side(
    log_target: LogTarget, client: str, mode: str, messages: int, **more: Any
) -> Side:
    named = {"ordered": "ordered, at least once", "default": "default, at most once"}
    name = f"FastStream {client}, {named.get(mode, mode)}"
    topic = log_target.topic if client != "redis" else f"{log_target.topic}-faststream"
    arguments = {
        "client": client, "url": log_target.url, "topic": topic, "messages": messages, "mode": mode,
        **more,
    }  # fmt: skip
    return Side(name, "consume", arguments, peer="faststream")


def _peer_side(log_target: LogTarget, name: str, peer: str, messages: int, **more: Any) -> Side:
    given = {"url": log_target.url, "topic": log_target.topic, "messages": messages, **more}
    return Side(name, "consume", given, peer=peer)


def _consuming_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    log, count = log_target.log, sizes.messages
    plain = _consume_side(log_target, count, "a plain handler, concurrency=1")
    batch = _consume_side(log_target, count, "a plain handler, batch=1000", shape="batch")
    at_once = _consume_side(
        log_target, count, "an async handler, concurrency=64", shape="async", concurrency=64
    )
    loop = _hand_loop(log_target, plain)
    slow, medium = sizes.slow_peer, min(count, sizes.slow_peer * 10)
    if log == "kafka":
        by_header = loop(header=True)
        return [
            Case(
                "plain handler, ID in a header", log, plain,
                (
                    Rival(by_header, 0.85),
                    Rival(_peer_side(log_target, "Quix Streams", "quix", medium), 4.0),
                ),
            ),
            *_id_in_payload_cases(log_target, count),
            Case(
                "batch handler", log, batch,
                (
                    Rival(loop(batch=True), 0.90),
                    Rival(_faststream_side(log_target, "aiokafka", "batch", medium)),
                    Rival(_faststream_side(log_target, "confluent", "batch", medium)),
                ),
            ),
            Case(
                "async handler that does not wait, 64 at once", log, at_once,
                (
                    Rival(by_header, 0.65),
                    Rival(_faststream_side(log_target, "aiokafka", "ordered", slow), 80),
                    Rival(_faststream_side(log_target, "confluent", "ordered", slow), 80),
                    Rival(_faststream_side(log_target, "aiokafka", "default", slow)),
                    Rival(_faststream_side(log_target, "confluent", "default", slow)),
                    Rival(_peer_side(log_target, "aiokafka, a loop by hand", "aiokafka", medium)),
                    Rival(
                        _peer_side(
                            log_target, "Parallel Consumer (JVM), key order", "parallel-consumer",
                            medium, concurrency=64,
                        ),
                        15,
                    ),
                ),
                concurrency=64,
            ),
        ]  # fmt: skip
    if log == "redis":
        given = {"url": log_target.url, "topic": log_target.topic, "messages": count}
        said = {"client": "redis-py, XREADGROUP of 1,000 a stream, XACK, hiredis"}
        in_turn = Side("by hand, in turn", "redis_in_turn", given, settings=said)
        return [
            Case("plain handler", log, plain, (Rival(in_turn, 1.5), Rival(loop(), 0.85))),
            Case(
                "batch handler", log, batch,
                (
                    Rival(loop(batch=True)),
                    Rival(_faststream_side(log_target, "redis", "batch", medium)),
                ),
            ),
            Case(
                "async handler that does not wait, 64 at once", log, at_once,
                (Rival(loop()), Rival(_faststream_side(log_target, "redis", "ordered", slow))),
                concurrency=64,
            ),
        ]  # fmt: skip
    target = 0.80 if log == "memory" else 0.85
    return [
        Case("plain handler", log, plain, (Rival(loop(), target),)),
        Case("batch handler", log, batch, (Rival(loop(batch=True)),)),
        Case(
            "async handler that does not wait, 64 at once", log, at_once, (Rival(loop()),),
            concurrency=64,
        ),
    ]  # fmt: skip


def _id_in_payload_cases(log_target: LogTarget, count: int) -> list[Case]:
    """The ID in the payload: in messages without headers, as other clients write them, and in ours.
    In the latter, ours reads the headers too, for their source and whether they were put back."""
    foreign = LogTarget(log_target.log, log_target.url, f"{log_target.topic}-foreign")
    fill = ("kafka_fill", {"url": foreign.url, "topic": foreign.topic, "messages": count})
    found = []
    for where, name, prepare, target in (
        (foreign, "plain handler, ID in the payload, no headers", fill, 0.85),
        (log_target, "plain handler, ID in the payload, headers too", None, None),
    ):
        what = "a plain handler, concurrency=1, id=order_id"
        ours = _consume_side(where, count, what, id="order_id")
        loop = _hand_loop(where, ours)(header=False)
        case = Case(name, log_target.log, replace(ours, prepare=prepare), (Rival(loop, target),))
        found.append(case)
    return found


def _pipeline_case(log_target: LogTarget, sizes: Sizes) -> Case:
    """An exactly-once pipeline, beside the same at least once, a loop by hand and a peer's."""
    count = min(sizes.messages, 200_000)
    given = {"url": log_target.url, "topic": log_target.topic}
    ours = {**given, "messages": count, "concurrency": 64}
    what = "an async handler with to=, concurrency=64"
    quix = {**given, "messages": min(count, sizes.slow_peer * 10)}
    return Case(
        "pipeline, exactly once", log_target.log,
        Side(
            "streams", "pipeline", {**ours, "exactly_once": True},
            settings=_our_settings(log_target, f"{what}, exactly_once=True"),
        ),
        (
            Rival(
                Side(
                    "streams, at least once", "pipeline", ours,
                    settings=_our_settings(log_target, what),
                ),
                0.6,
            ),
            Rival(
                Side(
                    "a loop by hand, exactly once, a transaction each 0.1 s", "kafka_pipeline",
                    {**given, "messages": count, "commit_interval": 0.1},
                )
            ),
            Rival(
                Side(
                    "Quix Streams, exactly once, a transaction each 0.1 s", "pipeline",
                    {**quix, "commit_interval": 0.1}, peer="quix",
                ),
                3.0,
            ),
            Rival(
                Side(
                    "Quix Streams, exactly once, a transaction each 5 s", "pipeline",
                    {**quix, "commit_interval": 5.0}, peer="quix",
                )
            ),
        ),
        concurrency=64,
    )  # fmt: skip


def _waiting_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    found = []
    for concurrency, target in ((64, 0.96), (256, 0.94), (1024, 0.70)):
        if log_target.log in ("memory", "sqlite") and concurrency == 1024:
            continue
        limit = concurrency / HANDLER_WAIT
        count = min(sizes.messages, int(limit * sizes.waiting))
        what = f"an async handler, concurrency={concurrency}"
        side = _consume_side(
            log_target,
            count,
            what,
            shape="async",
            concurrency=concurrency,
            wait=HANDLER_WAIT,
            skip=concurrency,
        )
        name = f"async handler that waits 5 ms, {concurrency} at once"
        rivals = [Rival(Limit("the limit", limit), target)]
        if log_target.log == "kafka":
            slow = {"concurrency": concurrency, "wait": HANDLER_WAIT}
            given = {"url": log_target.url, "topic": log_target.topic, "messages": count, **slow}
            said = {"client": _settings_text(baseline.KAFKA_CONSUMER)}
            title = "by hand, tasks, without order or commits"
            rivals.append(Rival(Side(title, "kafka_tasks", given, settings=said)))
            title = f"Parallel Consumer (JVM), key order, {concurrency} threads"
            rivals.append(
                Rival(
                    _peer_side(
                        log_target,
                        title,
                        "parallel-consumer",
                        min(count, sizes.slow_peer * 4),
                        **slow,
                    )
                )
            )
            if concurrency == 64:
                few = max(100, sizes.slow_peer // 10)
                side_ = _faststream_side(
                    log_target, "aiokafka", "ordered", few, wait=HANDLER_WAIT, workers=PARTITIONS
                )
                rivals.append(Rival(side_))
        check = Side(
            "streams", "keeps_order",
            {
                "url": log_target.url, "topic": log_target.topic, "messages": max(2, count // 4),
                "concurrency": concurrency, "wait": HANDLER_WAIT,
            },
            prepare=side.prepare,
        )  # fmt: skip
        found.append(Case(name, log_target.log, side, tuple(rivals), check, concurrency))
    limit = 64 / HANDLER_WAIT
    count = min(sizes.messages, int(limit * sizes.waiting))
    side = _consume_side(
        log_target, count, "a plain handler, concurrency=64", shape="threads", concurrency=64,
        wait=HANDLER_WAIT, skip=64,
    )  # fmt: skip
    name = "plain handler that waits 5 ms, 64 threads"
    found.append(Case(name, log_target.log, side, (Rival(Limit("the limit", limit), 0.90),)))
    return found


def _publishing_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    log, count = log_target.log, sizes.publish
    where: dict[str, Any] = {"url": log_target.url}
    said = {
        "kafka": _settings_text(baseline.KAFKA_PRODUCER),
        "redis": "redis-py, pipelines of XADD, hiredis",
        "sqlite": "apsw, WAL, synchronous=FULL, executemany",
    }[log]
    task, at = (
        ("sqlite_publish", {"folder": log_target.folder})
        if log == "sqlite"
        else (f"{log}_publish", where)
    )
    found = []
    for size in (10_000,) if log == "kafka" else (1_000, 10_000):
        given: dict[str, Any] = {"messages": count, "size": min(size, count)}
        ours = Side("streams", "publish_many", {**where, **given}, settings={"client": "defaults"})
        by_hand = Side("by hand", task, {**at, **given}, settings={"client": said})
        name = f"publish_many, {size:,} at a time"
        found.append(Case(name, log, ours, (Rival(by_hand, 0.80),)))
    if log not in LOGS_WITH_SERVER:
        return found
    tasks = min(1_000, count)
    each = {"messages": max(tasks, count // 2), "tasks": tasks}
    few = {"messages": max(tasks, count // 10), "tasks": tasks, "topic": f"{log_target.topic}-each"}
    rivals = []
    for client in ("aiokafka", "confluent") if log == "kafka" else ("redis",):
        arguments = {"client": client, **where, **few}
        side = Side(f"FastStream {client}", "publish", arguments, peer="faststream")
        rivals.append(Rival(side, 5.0))
    if log == "kafka":
        side = Side("aiokafka, send_and_wait", "publish", {**where, **few}, peer="aiokafka")
        rivals.append(Rival(side))
        by_hand = Side(
            "by hand, a future a message", "kafka_publish_each", {**where, **each},
            settings={"client": said},
        )  # fmt: skip
        rivals.append(Rival(by_hand))
    create = ("create", {**where, "topic": few["topic"]})
    ours = Side(
        "streams", "publish_each", {**where, **each}, prepare=create,
        settings={"client": "defaults"},
    )  # fmt: skip
    found.append(Case(f"{tasks:,} concurrent `await publish`", log, ours, tuple(rivals)))
    return found


def _latency_case(log_target: LogTarget, sizes: Sizes, shape: str, concurrency: int) -> Case:
    given: dict[str, Any] = {"url": log_target.url, "messages": sizes.pings, "rate": LATENCY_RATE}
    more = {"shape": shape, "concurrency": concurrency}
    what = f"{'an async' if shape == 'async' else 'a plain'} handler, concurrency={concurrency}"
    ours = Side("streams", "latency", {**given, **more}, settings=_our_settings(log_target, what))
    said = baseline.KAFKA_CONSUMER if log_target.log == "kafka" else {"XREAD": "BLOCK 100"}
    hand = Side(
        "by hand, a poll loop",
        f"{log_target.log}_latency",
        given,
        settings={"client": _settings_text(said)},
    )
    target = 1.25 if shape == "plain" else None
    return Case(
        f"latency at {LATENCY_RATE:,} a second, {shape} handler", log_target.log, ours,
        (Rival(hand, target, P50, ", p50"), Rival(hand, target, P99, ", p99")),
    )  # fmt: skip


def _idle_case(log_target: LogTarget, sizes: Sizes) -> Case:
    ours = Side(
        "streams", "idle", {"url": log_target.url, "seconds": sizes.idle},
        settings=_our_settings(log_target, "an async handler, concurrency=64, an empty topic"),
    )  # fmt: skip
    rivals = [Rival(Limit("1 % of a core", 1.0), 1.0, PERCENT)]
    if log_target.log == "kafka":
        hand = Side("by hand, a poll loop", "kafka_idle", ours.arguments)
        rivals.append(Rival(hand, None, PERCENT))
    return Case("idle processor", log_target.log, ours, tuple(rivals))


def _backlog_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    found = []
    keys = max(KEYS, sizes.backlog // 10)
    large = LogTarget(log_target.log, log_target.url, f"{log_target.topic}-backlog")
    for shape, more in (("plain", {}), ("async", {"concurrency": 64})):
        what = f"{'an async handler, concurrency=64' if more else 'a plain handler'}"
        big = _consume_side(large, sizes.backlog, what, shape=shape, **more)
        small = _consume_side(log_target, sizes.messages, what, shape=shape, **more)
        prepare = (
            "fill",
            {"url": large.url, "topic": large.topic, "messages": sizes.backlog, "keys": keys},
        )
        ours = Side(
            "streams", "consume", big.arguments, fresh=True, settings=big.settings,
            prepare=prepare if shape == "plain" else None,
        )  # fmt: skip
        name = f"streams, {sizes.messages:,} messages, {KEYS:,} keys"
        rival = Side(name, "consume", small.arguments, fresh=True, settings=small.settings)
        found.append(
            Case(
                f"backlog of {sizes.backlog:,}, {keys:,} keys, {shape} "
                "handler", log_target.log, ours,
                (
                    Rival(rival, 0.85),
                    Rival(Limit("Flow.bytes", Flow().bytes), 1.0, GROWTH, ", memory"),
                ),
            )
        )  # fmt: skip
    return found


def _sharing_case(log_target: LogTarget, sizes: Sizes) -> Case:
    given = {
        "url": log_target.url,
        "topic": log_target.topic,
        "messages": sizes.shared,
        "work": HANDLER_CPU,
    }
    topic = f"{log_target.topic}-shared"
    fill = ("fill", {"url": log_target.url, "topic": topic, "messages": sizes.shared})
    what = _our_settings(log_target, "a plain handler that works for 50 µs, concurrency=1")
    both = Side(
        "streams, two processes", "share", {**given, "topic": topic, "processes": 2},
        prepare=fill, settings=what,
    )  # fmt: skip
    one = Side("streams, one process", "share", {**both.arguments, "processes": 1}, settings=what)
    name = f"two processes, {PARTITIONS} partitions, a handler of 50 µs"
    return Case(name, log_target.log, both, (Rival(one, 1.7),))


def _codec_cases() -> list[Case]:
    encode = Metric("encode", "calls/s")
    decode = Metric("decode", "calls/s")
    size = Metric("size", "bytes", "less")

    def side(name: str, title: str) -> Side:
        return Side(title, "codec", {"name": name})

    json, packed = side("JSON", "stream_codecs.Json"), side("MessagePack", "MessagePack")
    found = []
    for name, title in (("msgspec", "msgspec"), ("orjson", "orjson"), ("json", "json")):
        untyped = "" if name == "msgspec" else ", untyped"
        other = side(name, title + untyped)
        rivals = (Rival(other, None, encode, ", encode"), Rival(other, None, decode, ", decode"))
        found.append(Case(f"JSON against {title}", "codecs", json, rivals))
    all_three = (
        Rival(json, None, size, ", size"),
        Rival(json, None, encode, ", encode"),
        Rival(json, None, decode, ", decode"),
    )
    found.append(Case("MessagePack against JSON", "codecs", packed, all_three))
    return found
