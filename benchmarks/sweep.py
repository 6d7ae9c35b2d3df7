"""What each setting gains: ``python -m benchmarks.sweep [NAME ...] [--log kafka]``.

One setting at a time is changed, and measured alternately with the default. The result is the
median of the ratios, as a Markdown table. docs/tuning.md was written from these tables.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks import machine
from benchmarks.orders import KEYS
from benchmarks.process import MeasureError, WorkerProcess
from benchmarks.servers import Missing, Servers, StartError

LOGS = ("kafka", "redis", "sqlite", "memory")
MESSAGES = 400_000
"""Messages in the topic that most settings are measured on."""

WAIT = 0.005
"""Seconds that a waiting handler takes."""


@dataclass(frozen=True)
class Sweep:
    """One setting, and its values.

    :param values: each with the task's arguments; the first is the default.
    :param in_url: whether they are settings in the log's URL.
    """

    name: str
    task: str
    base: dict[str, Any]
    values: dict[str, dict[str, Any]]
    logs: tuple[str, ...] = LOGS
    in_url: bool = False
    messages: int = MESSAGES


def _flow_values(name: str, values: Sequence[float]) -> dict[str, dict[str, Any]]:
    return {f"{value:,}": {"flow": {name: value}} for value in values}


def _driver_values(name: str, values: Sequence[object]) -> dict[str, dict[str, Any]]:
    return {str(value): {name: value} for value in values}


PLAIN = {"shape": "plain"}
WAITS = {"shape": "async", "wait": WAIT}
KAFKA = ("kafka",)

SWEEPS = [
    Sweep("Flow.bytes", "consume", PLAIN,
          _flow_values("bytes", [64 << 20, 1 << 20, 4 << 20, 16 << 20])),
    Sweep("Flow.messages", "consume", PLAIN,
          _flow_values("messages", [10_000, 100, 1_000, 100_000])),
    Sweep("Flow.commit", "consume", PLAIN, _flow_values("commit", [1.0, 0.05, 0.2, 5.0])),
    Sweep(
        "batch=", "consume", {"shape": "batch"},
        {f"{size:,}": {"size": size} for size in (1_000, 10, 100, 10_000)},
    ),
    Sweep(
        "concurrency=, a handler that waits 5 ms", "consume", WAITS,
        {f"{count:,}": {"concurrency": count} for count in (64, 16, 256, 1_024)}, messages=40_000,
    ),
    Sweep(
        "concurrency=, an async handler that does not wait", "consume", {"shape": "async"},
        {f"{count:,}": {"concurrency": count} for count in (64, 1, 16, 1_024)},
    ),
    Sweep(
        "fetch.queue.backoff.ms", "consume", PLAIN,
        _driver_values("fetch.queue.backoff.ms", [5, 1, 50, 1_000]), KAFKA, in_url=True,
    ),
    Sweep(
        "fetch.max.bytes", "consume", PLAIN,
        _driver_values("fetch.max.bytes", [1 << 20, 256 << 10, 512 << 10, 2 << 20, 4 << 20]), KAFKA,
        in_url=True,
    ),
    Sweep(
        "queued.max.messages.kbytes", "consume", PLAIN,
        _driver_values("queued.max.messages.kbytes", [8_192, 1_024, 2_048, 65_536]), KAFKA,
        in_url=True,
    ),
    Sweep(
        "queued.min.messages", "consume", PLAIN,
        _driver_values("queued.min.messages", [26_214, 1_000, 5_000, 100_000]), KAFKA, in_url=True,
    ),
    Sweep(
        "linger.ms, publish_many of 1,000", "publish_many", {"size": 1_000},
        _driver_values("linger.ms", [1, 0, 5, 50]), KAFKA, in_url=True, messages=100_000,
    ),
    Sweep(
        "batch.size, publish_many of 10,000", "publish_many", {"size": 10_000},
        _driver_values("batch.size", [1_000_000, 16_384, 131_072]), KAFKA, in_url=True,
        messages=200_000,
    ),
    Sweep(
        "compression.type, publish_many of 10,000", "publish_many", {"size": 10_000},
        _driver_values("compression.type", ["none", "lz4", "zstd"]), KAFKA, in_url=True,
        messages=200_000,
    ),
]  # fmt: skip


def run(sweep: Sweep, url: str, topics: dict[str, str], repeats: int) -> list[str]:
    """The table's lines: value, messages a second, ratio to the default, its spread."""
    fill = sweep.task == "consume"
    topic = topics.get(url)
    default = next(iter(sweep.values))
    rates: dict[str, list[float]] = {value: [] for value in sweep.values}
    with WorkerProcess() as worker:
        if fill and topic is None:
            topic = topics[url] = f"sweep-{uuid4().hex}"
            worker.run_task("fill", url=url, topic=topic, messages=MESSAGES, keys=KEYS)
        for turn in range(repeats):
            order = list(sweep.values) if turn % 2 == 0 else list(reversed(sweep.values))
            for value in order:
                more = sweep.values[value]
                address = url
                if sweep.in_url:
                    address += ("&" if "?" in url else "?") + "&".join(
                        f"{name}={each}" for name, each in more.items()
                    )
                    more = {}
                arguments = {"url": address, "messages": sweep.messages, **sweep.base, **more}
                if fill:
                    arguments["topic"] = topic
                rates[value].append(worker.run_task(sweep.task, **arguments)["rate"])
    lines = []
    for value, found in rates.items():
        ratios = [rate / base for rate, base in zip(found, rates[default], strict=True)]
        name = f"**{value}**" if value == default else value
        lines.append(
            f"| {name} | {statistics.median(found):,.0f}/s | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("names", nargs="*", help="only settings with one of these in their name")
    parser.add_argument("--log", choices=LOGS, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    chosen = [
        each
        for each in SWEEPS
        if not arguments.names or any(name in each.name for name in arguments.names)
    ]
    print(", ".join(f"{name} {what}" for name, what in machine.machine_facts().items()))
    topics: dict[str, str] = {}
    with ExitStack() as stack:
        servers = stack.enter_context(Servers())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for log in arguments.log or ["kafka", "sqlite"]:
            try:
                url = servers.url(log) if log in ("kafka", "redis") else _local_url(log, folder)
            except (Missing, StartError) as error:
                print(f"{log}: {error}", file=sys.stderr)
                return 1
            for sweep in chosen:
                if log not in sweep.logs:
                    continue
                print(f"\n{sweep.name}, {log}\n\n| value | rate | of the default's | spread |")
                print("|---|---|---|---|")
                try:
                    print("\n".join(run(sweep, url, topics, arguments.repeats)), flush=True)
                except MeasureError as error:
                    print(f"{sweep.name}: {error}", file=sys.stderr)
    return 0


def _local_url(log: str, folder: Path) -> str:
    return f"sqlite:///{folder / 'sweep.db'}" if log == "sqlite" else f"memory://{uuid4().hex}"


if __name__ == "__main__":
    raise SystemExit(main())
