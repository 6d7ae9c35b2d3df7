"""The cases of aggregates: their rivals, and the ratio that each should reach.

On SQLite the rival is eventsourcing, a Python toolkit of the same kind, with the same events and
the same durability. On the servers, and for features that no peer has, it is a promised limit. On
SQLite and Redis a hand-written loop beside them shows the limit of this machine.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.cases import GROWTH, P50, Case, Limit, LogTarget, Metric, Rival, Side, Sizes

AGGREGATE_PREFIX = "aggregates: "
"""The first part of the names of these cases."""

ACCOUNTS = 1_000
EVENTS_OF_A_LOAD = 20
EVENTS_OF_A_REPLAY = 100
"""Events of each account of a replay."""
EVENTS_OF_AN_INDEX = 10
"""Events of each account of an index."""
FEW_ACCOUNTS = 1_000
"""The small number of accounts that many are compared with."""

DECISIONS = Metric("rate", "decisions/s")
LOADS = Metric("rate", "loads/s")
EVENTS = Metric("rate", "events/s")
SECONDS = Metric("seconds", "s", "less")
CPU = Metric("cpu_us", "µs/call", "less")
"""Steadier than a rate on a busy machine; it leaves out the wait for the disk."""

CPU_OF_EVENT = Metric("cpu_us", "µs/event", "less")

MEMORY_LIMIT = 64 << 20
"""Bytes by which a process may grow while it loads one history of any length."""


def aggregate_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """All cases of aggregates on a log."""
    if log_target.log in ("codecs", "memory"):
        return []
    found = _peer_cases(log_target, sizes) if log_target.log == "sqlite" else []
    if log_target.log == "redis":
        loading = _hand_load_side("load_from_redis", sizes, url=log_target.url)
        found = [
            *_decision_cases(log_target, sizes, 5_000, 40_000),
            _case(
                log_target, "load of 20 events", _load_side(log_target, sizes),
                Rival(Limit("the limit", 5_000), 1.0, LOADS), Rival(loading, None, LOADS),
            ),
        ]  # fmt: skip
    if log_target.log == "kafka":
        found = _decision_cases(log_target, sizes, None, 15_000)
    if sizes.all_patterns:
        more = _index_cases if log_target.log == "kafka" else _growth_cases
        found += more(log_target, sizes)
        found += _long_cases(log_target, sizes)
    return found


def _side(name: str, task: str, said: str = "", /, **arguments: Any) -> Side:
    settings = {"with": said} if said else {}
    return Side(name, task, arguments, process="aggregates", settings=settings)


def _case(log_target: LogTarget, name: str, ours: Side, *rivals: Rival) -> Case:
    return Case(AGGREGATE_PREFIX + name, log_target.log, ours, rivals)


def _decide_side(log_target: LogTarget, sizes: Sizes, *, at_once: bool = False) -> Side:
    count = sizes.per_pattern * (5 if at_once else 1) // 2
    said = "1,000 concurrent calls, each account once a round" if at_once else "one after the other"
    return _side(
        "streams", "decide", f"{said}; states from the cache", url=log_target.url,
        accounts=ACCOUNTS, decisions=count, at_once=at_once,
    )  # fmt: skip


def _load_side(log_target: LogTarget, sizes: Sizes, *, at_once: bool = False) -> Side:
    said = "1,000 concurrent calls" if at_once else "one after the other"
    count = sizes.per_pattern * (5 if at_once else 1) // 5
    return _side(
        "streams", "load", f"{said}; nothing is cached", url=log_target.url,
        accounts=200, events=EVENTS_OF_A_LOAD, loads=count, at_once=at_once,
    )  # fmt: skip


def _hand_decide_side(
    task: str, sizes: Sizes, said: str = "one after the other", **where: Any
) -> Side:
    given = {"accounts": ACCOUNTS, "decisions": sizes.per_pattern // 2, **where}
    return Side("by hand", task, given, settings={"with": said})


def _hand_load_side(task: str, sizes: Sizes, **where: Any) -> Side:
    given = {"accounts": 200, "events": EVENTS_OF_A_LOAD, "loads": sizes.per_pattern // 5, **where}
    return Side("by hand", task, given, settings={"with": "one after the other"})


# -- beside the peer -------------------------------------------------------------------------------


def _peer_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    folder, events = log_target.folder, sizes.messages
    few = sizes.per_pattern // 5

    def peer(name: str, task: str, **arguments: Any) -> Side:
        return Side(name, task, {"folder": folder, **arguments}, peer="eventsourcing")

    plain = peer("eventsourcing", "decide", accounts=ACCOUNTS, decisions=few)
    cached = peer(
        "eventsourcing, its cache on", "decide", accounts=ACCOUNTS, decisions=few, cached=True
    )
    loading = peer("eventsourcing", "load", accounts=200, events=EVENTS_OF_A_LOAD, loads=few)
    replaying = peer(
        "eventsourcing", "replay", accounts=events // EVENTS_OF_A_REPLAY, events=EVENTS_OF_A_REPLAY
    )
    name = f"replayed-{events}"
    given = {"url": log_target.url, "name": name}
    return [
        _case(
            log_target, "decide, one at a time", _decide_side(log_target, sizes),
            Rival(plain, 2.0, DECISIONS), Rival(cached, None, DECISIONS),
            Rival(plain, None, CPU, ", CPU time"),
            Rival(_hand_decide_side("decide_in_sqlite", sizes, folder=folder), None, DECISIONS),
        ),
        _case(
            log_target, "decide, 1,000 at once", _decide_side(log_target, sizes, at_once=True),
            Rival(plain, 10.0, DECISIONS), Rival(cached, None, DECISIONS),
            Rival(plain, None, CPU, ", CPU time"),
        ),
        _case(
            log_target, "load of 20 events", _load_side(log_target, sizes),
            Rival(loading, 5.0, LOADS), Rival(loading, None, CPU, ", CPU time"),
            Rival(_hand_load_side("load_from_sqlite", sizes, folder=folder), None, LOADS),
        ),
        _case(
            log_target, "load of 20 events, 1,000 at once",
            _load_side(log_target, sizes, at_once=True), Rival(loading, None, LOADS),
        ),
        _case(
            log_target, f"replay of {events:,}",
            Side(
                "streams", "replay_events", {**given, "events": events}, process="aggregates",
                prepare=(
                    "fill_accounts",
                    {**given, "accounts": events // EVENTS_OF_A_REPLAY,
                     "events": EVENTS_OF_A_REPLAY},
                ),
                settings={"with": "replay() into a plain function"},
            ),
            Rival(replaying, 8.0, EVENTS),
        ),
    ]  # fmt: skip


# -- beside a limit --------------------------------------------------------------------------------


def _decision_cases(
    log_target: LogTarget, sizes: Sizes, singly: float | None, at_once: float
) -> list[Case]:
    one = [Rival(Limit("2 ms", 2.0), 1.0, P50)]
    many = [Rival(Limit("the limit", at_once), 1.0, DECISIONS)]
    if singly is not None:
        by_hand = partial(_hand_decide_side, "decide_in_redis", sizes, url=log_target.url)
        one = [Rival(Limit("the limit", singly), 1.0, DECISIONS), Rival(by_hand(), None, DECISIONS)]
        said = "1,000 in a pipeline, nobody waits for one alone"
        many.append(Rival(by_hand(said=said, at_once=True), None, DECISIONS))
    return [
        _case(log_target, "decide, one at a time", _decide_side(log_target, sizes), *one),
        _case(
            log_target, "decide, 1,000 at once", _decide_side(log_target, sizes, at_once=True),
            *many,
        ),
    ]  # fmt: skip


def _growth_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """Loads and decisions on one of many aggregates, beside one of few."""
    count, few = sizes.aggregates, FEW_ACCOUNTS
    given = {"url": log_target.url, "name": f"bank-of-{count}", "accounts": count}

    def case(way: str) -> Case:
        ours = Side(
            f"1 of {count:,}", "one_of_many", {**given, "way": way}, process="aggregates",
            prepare=("fill_accounts", given), settings={"with": "one event each, none cached"},
        )  # fmt: skip
        rival = _side(f"1 of {few:,}", "one_of_many", url=log_target.url, accounts=few, way=way)
        return _case(log_target, f"{way} 1 of {count:,}", ours, Rival(rival, 1.5, P50))

    return [case("load"), case("decide")]


def _index_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """Kafka's index of many events: built by a new process, and loaded from its file."""
    count, folder = sizes.messages, log_target.folder
    accounts = count // EVENTS_OF_AN_INDEX
    bank = {"url": log_target.url, "name": f"indexed-{count}", "accounts": accounts}
    given = {**bank, "events": EVENTS_OF_AN_INDEX}
    said = {"with": f"{EVENTS_OF_AN_INDEX} events an account, one a decision; in memory"}
    built = Side(
        "streams", "build_index", given, fresh=True, prepare=("fill_index", given), settings=said
    )
    again = Side(
        "streams", "build_index", {**given, "folder": f"{folder}/index"}, fresh=True,
        prepare=("keep_index", {**given, "folder": f"{folder}/index"}),
        settings={"with": "?event_index=, which has all of them"},
    )  # fmt: skip
    elsewhere = Side(
        "streams", "build_index", {**given, "snapshots": True}, fresh=True,
        prepare=("snapshot_index", given),
        settings={"with": "?index_snapshots=, which have all of them"},
    )  # fmt: skip
    loop = Side("the loop", "index_by_hand", given, fresh=True)
    seconds = count / 10_000_000 * 30
    name = f"index of {count:,} events"
    return [
        _case(
            log_target, name, built,
            Rival(Limit(f"{seconds:g} s", seconds), 1.0, SECONDS), Rival(loop, None, SECONDS),
            Rival(loop, None, GROWTH, ", memory"), Rival(loop, None, CPU_OF_EVENT, ", CPU time"),
        ),
        _case(
            log_target, f"{name}, from its file", again,
            Rival(Limit("2 s", 2.0), 1.0, SECONDS),
            Rival(Limit("64 MiB", MEMORY_LIMIT), None, GROWTH, ", memory"),
        ),
        _case(
            log_target, f"{name}, from snapshots", elsewhere,
            Rival(Limit("2 s", 2.0), None, SECONDS),
            Rival(Limit("64 MiB", MEMORY_LIMIT), None, GROWTH, ", memory"),
        ),
    ]  # fmt: skip


def _long_cases(log_target: LogTarget, sizes: Sizes) -> list[Case]:
    """One aggregate of very many events."""
    events = sizes.messages
    given = {"url": log_target.url, "name": f"long-{events}"}

    def side(way: str) -> Side:
        return Side(
            "streams", "load_long", {**given, "way": way}, fresh=True,
            prepare=("fill_long", {**given, "events": events}),
        )  # fmt: skip

    name = f"load of {events:,} events"
    milliseconds = events / 1_000_000 * 2_000
    return [
        _case(
            log_target, f"{name}, snapshot", side("snapshot"), Rival(Limit("5 ms", 5.0), 1.0, P50)
        ),
        _case(
            log_target, f"{name}, none", side("events"),
            Rival(Limit(f"{milliseconds:g} ms", milliseconds), 1.0, P50),
            Rival(Limit("64 MiB", MEMORY_LIMIT), 1.0, GROWTH, ", memory"),
        ),
    ]  # fmt: skip
