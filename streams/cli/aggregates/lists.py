"""Lists of aggregates, of their IDs, and of those that the app's code cannot read.

Records that can be listed are, whatever else is in the log; the others are named on standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from streams.cli import output
from streams.cli.aggregates.log_and_app import LogAndApp
from streams.cli.command_errors import print_error
from streams.cli.key_arguments import as_argument
from streams.cli.log_queries import await_index
from streams.text import escape
from streams.wire import shorten

if TYPE_CHECKING:
    from streams.eventsourcing.inspection import StoppedAt
    from streams.log.events import EventLog, HistoryKey
    from streams.log.protocol import TopicInfo

T = TypeVar("T")

CHECK_SIZE = 100
"""How many aggregates are checked at once."""

PAGE = 1_000
"""How many keys are listed at once, unless fewer are requested."""


def list_topics(opened: LogAndApp, scan: int | None, *, json: bool) -> None:
    """A row for each event topic of the app, or of the log.

    :param scan: also count the aggregates that the app's code cannot read, among this many.
    """
    from streams.inspection.aggregates import event_topics

    found: list[dict[str, Any]] = []
    if opened.app is None:
        for info in event_topics(opened.log):
            row = output.call_or_report(info.name, partial(_topic_json, opened.log, info))
            if row is not None:
                found.append(row)
    else:
        for name in opened.app.aggregates:
            row = output.call_or_report(name, partial(_declared_json, opened, name, scan))
            if row is not None:
                found.append(row)
        if not opened.app.aggregates:
            output.print_note(f"{opened.target} declares no aggregates")
    if json:
        output.print_json(found)
        return
    rows = [{**row, "snapshots": _snapshots_text(row)} for row in found]
    columns = ["aggregate", "partitions", "aggregates", "events", "causes", "cause_bytes"]
    columns += ["undecodable"] if scan is not None else []
    output.print_rows(rows, [*columns, "snapshots"], json=False)


def _topic_json(log: Any, info: TopicInfo) -> dict[str, Any]:
    from streams.inspection.aggregates import SUFFIX
    from streams.log.events import ArbitratingLog

    await_index(log, info.name)
    totals = log.event_totals(info.name)
    if isinstance(log, ArbitratingLog):
        log.stop_following(info.name)  # there may be many topics
    return {
        "aggregate": info.name.removesuffix(SUFFIX),
        "topic": info.name,
        "partitions": info.partitions,
        "aggregates": totals.keys,
        "events": totals.events,
        "causes": totals.causes,
        "cause_bytes": totals.cause_bytes,
        "snapshots": {
            output.printable_text(str(kind)): count for kind, count in totals.snapshots.items()
        },
    }


def _declared_json(opened: LogAndApp, name: str, scan: int | None) -> dict[str, Any]:
    """A row for an aggregate that the app declares."""
    from streams.errors import NotFound

    aggregate = opened.aggregate(name)
    try:
        opened.log.describe_topic(aggregate.events.name)
    except NotFound:
        output.print_note(f"{name}: its topic does not exist yet; the app creates it when it runs")
        nothing = dict.fromkeys(("aggregates", "events", "causes", "cause_bytes"), 0)
        row: dict[str, Any] = {
            "aggregate": name,
            "topic": aggregate.events.name,
            "partitions": aggregate.events.partitions,
            **nothing,
            "snapshots": {},
        }
        stopped = 0
    else:
        info = opened.event_topic(name)
        row = _topic_json(opened.log, info)
        stopped = 0
        if scan is not None:
            keys = list_keys(opened.log, info, b"", None, PAGE)
            stopped = sum(1 for _ in _check(opened, name, keys, scan))
    row["fingerprint"] = aggregate.definition.fingerprint or None
    if scan is not None:
        row["undecodable"] = stopped
    return row


def _snapshots_text(row: Mapping[str, Any]) -> str | None:
    used = row.get("fingerprint")
    texts = [
        f"{kind}: {count:,}{' (this code)' if kind == used else ''}"
        for kind, count in sorted(row["snapshots"].items(), key=lambda pair: pair[0] != used)
    ]
    return ", ".join(texts) or None


def list_keys(
    log: EventLog, info: TopicInfo, prefix: bytes, after: bytes | None, size: int
) -> Iterator[HistoryKey]:
    """The keys of an event topic in the order of their bytes, with the ends of their histories;
    keys that cannot be listed are named on standard error.

    :param size: how many are read at once.
    """
    from streams.inspection.aggregates import ordered_keys

    return ordered_keys(log, info, prefix, after, size, _Named())


class _Named:
    """Names keys that cannot be listed on standard error (KeyProblems)."""

    def call(self, where: str, make: Callable[[], T]) -> T | None:
        return output.call_or_report(where, make)

    def odd_key(self, where: str, key: object) -> None:
        print_error(f"{where}: a key that is not bytes: {escape(shorten(repr(key), 60))}")


def list_ids(keys: Iterator[HistoryKey], number: int, *, json: bool) -> None:
    """A row for each ID, at most this number; 0: all."""
    found: list[dict[str, Any]] = []
    last = None
    for each in islice(keys, number or None):
        where = output.bytes_text(each.key) or ""
        row = output.call_or_report(where, partial(_key_json, each))
        last = each
        if row is not None:
            found.append(row)
    output.print_rows(found, {"id": "id", "version": "version", "closed": "closed"}, json=json)
    if last is not None and number and next(keys, None) is not None:
        output.print_note(
            f"there are more: -n 0 lists all, --after {as_argument(last.key)} continues"
        )


def _key_json(found: HistoryKey) -> dict[str, Any]:
    return {
        **output.lossless_json("id", found.key),
        "version": int(found.head.base.version),
        "closed": bool(found.head.is_final),
    }


def list_stopped(
    opened: LogAndApp, name: str, keys: Iterator[HistoryKey], number: int, scan: int, *, json: bool
) -> None:
    """The aggregates that the app's code cannot read."""
    found: list[dict[str, Any]] = []
    checked = _check(opened, name, keys, scan)
    last = b""
    for last, stopped in islice(checked, number or None):
        found.append(
            {**output.lossless_json("id", last), "version": stopped.version, "why": stopped.reason}
        )
    checked.close()
    output.print_rows(found, {"id": "id", "version": "version", "why": "why"}, json=json)
    if number and len(found) == number:
        output.print_note(
            f"there may be more: -n 0 lists all, --after {as_argument(last)} continues"
        )


def _check(
    opened: LogAndApp, name: str, keys: Iterator[HistoryKey], scan: int
) -> Generator[tuple[bytes, StoppedAt], None, None]:
    """The stopped aggregates and their errors; shows the progress, and where the scan ended.

    :param scan: how many are checked; 0: all.
    """
    from streams.errors import LogError

    inspector, looked_at, last = opened.inspector(name), 0, b""
    total = None if scan == 0 else scan
    with output.progress_bar(f"reading {name}") as show_progress:
        while chunk := [each.key for each in islice(keys, _next_size(looked_at, scan))]:
            for key, found in zip(chunk, inspector.find_stops(chunk), strict=True):
                if isinstance(found, LogError):
                    print_error(f"{name} {output.bytes_text(key)}: cannot be read: {found}")
                elif found is not None:
                    yield key, found
            looked_at += len(chunk)
            last = chunk[-1]
            show_progress(looked_at, total)
    if scan and looked_at == scan and next(keys, None) is not None:
        output.print_note(
            f"{name}: only {scan:,} aggregates were checked; --scan 0 checks all, --after "
            f"{as_argument(last)} continues"
        )


def _next_size(looked_at: int, scan: int) -> int:
    return min(CHECK_SIZE, scan - looked_at) if scan else CHECK_SIZE
