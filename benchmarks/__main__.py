"""The command line: ``python -m benchmarks [--quick] [--log kafka] [--peer all] [--save FOLDER]``,
or ``python -m benchmarks --against REV``.

Exit status: 0 when everything requested was measured, whatever the figures (a benchmark is not a
test); 1 when something could not be; 2 for an invalid command line; 130 when interrupted.
Figures that were measured until then are reported in any case.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, cast
from uuid import uuid4

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from benchmarks import against, machine
from benchmarks.against import Comparison, UnknownRevision
from benchmarks.aggregate_cases import aggregate_cases
from benchmarks.cases import FULL, LOGS, LOGS_WITH_SERVER, QUICK, Case, LogTarget, Sizes, cases
from benchmarks.inbox_cases import inbox_cases
from benchmarks.measure import Row, measure
from benchmarks.outbox_cases import outbox_cases
from benchmarks.pattern_cases import pattern_cases
from benchmarks.peers.install import PEERS, InstalledPeer, PeerMissing, install
from benchmarks.process import ROOT, MeasureError, WorkerProcess
from benchmarks.report.page import page
from benchmarks.report.table import markdown, table
from benchmarks.servers import Missing, Servers, StartError
from benchmarks.view_cases import view_cases

REPEATS = 5

LISTED = "postgresql://"
"""Stands for a database that may exist, if cases are only listed."""


class CannotMeasure(Exception):
    """A request that cannot be met here; the message says why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = _parse(argv)
    console = Console(stderr=True, highlight=False)
    rows: list[Row] = []
    compared: list[Comparison] = []
    status = 0
    try:
        if arguments.list:
            _list(arguments)
        elif arguments.source is not None:
            rows = _read_rows(arguments.source)
        else:
            signal.signal(signal.SIGTERM, _interrupted)
            if arguments.against is not None:
                status = _compare(arguments, compared, console)
            else:
                status = _run(arguments, rows, console)
    except KeyboardInterrupt:
        console.print("Interrupted.")
        status = 130
    except (CannotMeasure, UnknownRevision) as error:
        console.print(f"benchmarks: {error}", markup=False, soft_wrap=True)
        status = 1
    if rows:
        _report(arguments, rows)
    if compared:
        _report_comparison(arguments, compared)
    return status


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


# -- the command line -----------------------------------------------------------------------------


def _whole_number(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        number = int(text.replace(",", "").replace("_", ""))
        if number < least:
            raise argparse.ArgumentTypeError(f"{text}: at least {least:,}")
        return number

    whole.__name__ = "whole number"
    return whole


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="What the toolkit costs, beside loops by hand and beside its peers; and what "
        "each pattern costs, beside the bare processor.",
        epilog="Servers come from STREAMS_TEST_KAFKA and STREAMS_TEST_REDIS, a container or a "
        "process; `python -m tests.servers` says what this machine has.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer messages, no server, no peer: under 2 minutes")
    add("--log", choices=LOGS, action="append", help="only this one; repeatable")
    add("--case", action="append", metavar="TEXT", help="only cases with this text in their name")
    add(
        "--peer", action="append", choices=[*PEERS, "all"],
        help="also measure this peer (made ready at its first use); repeatable",
    )  # fmt: skip
    add(
        "--against", metavar="REV",
        help="measure this checkout beside another commit in turns, not beside loops by hand",
    )  # fmt: skip
    add(
        "--repeats", type=_whole_number(1),
        help=f"turns a case ({REPEATS}; with --against {against.REPEATS})",
    )  # fmt: skip
    add("--messages", type=_whole_number(1_000), help=f"in a topic ({FULL.messages:,})")
    add(
        "--backlog", type=_whole_number(0),
        help=f"messages of the backlog case ({FULL.backlog:,}; a full run: 10,000,000; 0: none)",
    )  # fmt: skip
    add(
        "--aggregates", type=_whole_number(1_000),
        help=f"of which one is loaded ({FULL.aggregates:,}; a full run on SQLite: 10,000,000)",
    )  # fmt: skip
    add(
        "--view-events", type=_whole_number(10_000),
        help=f"from which views are rebuilt ({FULL.view_events:,}; a full run: 1,000,000)",
    )  # fmt: skip
    add(
        "--view-documents", type=_whole_number(0),
        help=f"of which one is read ({FULL.view_documents:,}; a full run: 10,000,000; 0: none)",
    )  # fmt: skip
    add("--list", action="store_true", help="the cases that would be measured, and no more")
    add("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    add("--html", type=Path, metavar="FILE", help="also write the page")
    add("--markdown", type=Path, metavar="FILE", help="also write the table as Markdown")
    add(
        "--save", type=Path, metavar="FOLDER",
        help="write all three there: results.json, results.html, results.md",
    )  # fmt: skip
    add(
        "--from", dest="source", type=Path, metavar="FILE",
        help="measure nothing: tell what an earlier --json wrote",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.repeats is None:
        arguments.repeats = REPEATS if arguments.against is None else against.REPEATS
    if arguments.against is not None:
        if arguments.repeats < against.MIN_TURNS:
            parser.error(f"--against needs --repeats of at least {against.MIN_TURNS}")
        if arguments.peer or arguments.source or arguments.html or arguments.save:
            parser.error("--against goes without --peer, --from, --html and --save")
    if arguments.save is not None:
        arguments.json = arguments.json or arguments.save / "results.json"
        arguments.html = arguments.html or arguments.save / "results.html"
        arguments.markdown = arguments.markdown or arguments.save / "results.md"
    for file in (arguments.json, arguments.html, arguments.markdown):
        if file is not None and file.is_dir():
            parser.error(f"{file} is a folder, a file's name is needed")
    return arguments


def _sizes(arguments: argparse.Namespace) -> Sizes:
    sizes = QUICK if arguments.quick else FULL
    if arguments.messages is not None:
        slow = max(200, min(sizes.slow_peer, arguments.messages // 20))
        sizes = replace(sizes, messages=arguments.messages, slow_peer=slow)
        sizes = replace(
            sizes,
            publish=min(sizes.publish, arguments.messages),
            shared=min(sizes.shared, arguments.messages),
            per_pattern=min(sizes.per_pattern, arguments.messages // 5),
        )
    if arguments.backlog is not None:
        sizes = replace(sizes, backlog=arguments.backlog)
    if arguments.aggregates is not None:
        sizes = replace(sizes, aggregates=arguments.aggregates)
    if arguments.view_events is not None:
        sizes = replace(sizes, view_events=arguments.view_events)
    if arguments.view_documents is not None:
        sizes = replace(sizes, view_documents=arguments.view_documents)
    return sizes


def _read_rows(source: Path) -> list[Row]:
    try:
        rows = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise CannotMeasure(f"{source}: {error.strerror}") from error
    except ValueError as error:
        raise CannotMeasure(f"{source} is no JSON: {error}") from error
    wanted = Row.__annotations__.keys()
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, dict) or not wanted <= row.keys():
            raise CannotMeasure(f"{source} is no list of rows as --json writes them")
    return cast("list[Row]", rows)


# -- measuring ------------------------------------------------------------------------------------


def _list(arguments: argparse.Namespace) -> None:
    """Print the cases; with ``--against`` those of this checkout."""
    targets = [_log_target(log, "", "", LISTED) for log in _logs(arguments)]
    for case in _selected_cases(targets, _sizes(arguments), arguments.case):
        print(f"{case.log}: {case.name}")


def _run(arguments: argparse.Namespace, rows: list[Row], console: Console) -> int:
    """Measure what was requested; fills ``rows``."""
    sizes = _sizes(arguments)
    status = 0
    with ExitStack() as stack:
        servers = stack.enter_context(Servers())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="streams-bench-"))
        peers = _peers(arguments, console)
        targets = _log_targets(arguments, servers, folder, console)
        wanted = _selected_cases(targets, sizes, arguments.case)
        if not wanted:
            raise CannotMeasure(NO_SUCH_CASE)
        facts = _machine_facts(servers)
        with _progress(console) as progress:
            total = progress.add_task("", total=len(wanted))
            for log_target in targets:
                mine = [case for case in wanted if case.log == log_target.log]
                if mine and log_target.log not in ("memory", "codecs"):
                    progress.update(total, description=f"{log_target.log}: filling")
                    _fill_topic(log_target, sizes)
                for case in mine:

                    def report(what: str, case: Case = case) -> None:
                        said = f"{case.log}: {case.name}: {what}"
                        progress.update(total, description=said)

                    found = measure(case, arguments.repeats, peers, facts, report)
                    for row in found:
                        if row["error"] is not None:
                            status = 1
                            message = f"{row['log']}: {row['case']} against {row['against']} failed"
                            console.print(
                                f"{message}: {row['error']}", markup=False, soft_wrap=True
                            )
                    rows += found
                    progress.advance(total)
    return status


def _compare(arguments: argparse.Namespace, rows: list[Comparison], console: Console) -> int:
    """Measure both commits; fills ``rows``."""
    sizes = _sizes(arguments)
    commit = against.resolve(arguments.against)
    status = 0
    with ExitStack() as stack:
        servers = stack.enter_context(Servers())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streams-bench-")))
        roots = (ROOT, folder / "commit")
        against.unpack(commit, roots[1])
        # Each commit has its own topics and files, so neither has to read the other's records.
        ours, theirs = folder / "now", folder / "before"
        ours.mkdir()
        theirs.mkdir()
        targets = _log_targets(arguments, servers, str(ours), console)
        other_targets = [
            _log_target(each.log, each.url, str(theirs), each.database) for each in targets
        ]
        both = against.pairs(
            _selected_cases(targets, sizes, arguments.case),
            _selected_cases(other_targets, sizes, arguments.case),
        )
        if not both:
            raise CannotMeasure(NO_SUCH_CASE)
        console.print(f"This checkout beside {commit[:12]} ({arguments.against})", markup=False)
        with _progress(console) as progress:
            total = progress.add_task("", total=len(both))
            filled: set[str] = set()
            for mine, other in both:
                if mine.log not in {"memory", "codecs", *filled}:
                    filled.add(mine.log)
                    progress.update(total, description=f"{mine.log}: filling")
                    for root, found in zip(roots, (targets, other_targets), strict=True):
                        _fill_topic(
                            next(each for each in found if each.log == mine.log), sizes, root
                        )

                def report(what: str, case: Case = mine) -> None:
                    progress.update(total, description=f"{case.log}: {case.name}: {what}")

                found_rows = against.compare(mine, other, roots[1], arguments.repeats, report)
                for row in found_rows:
                    if row.error is not None:
                        status = 1
                        said = f"{row.log}: {row.case} failed: {row.error}"
                        console.print(said, markup=False, soft_wrap=True)
                rows += found_rows
                progress.advance(total)
    return status


NO_SUCH_CASE = "no case has such a name; --list shows them"


def _logs(arguments: argparse.Namespace) -> list[str]:
    default = [log for log in LOGS if not (arguments.quick and log in LOGS_WITH_SERVER)]
    return list(dict.fromkeys(arguments.log or default))


def _log_targets(
    arguments: argparse.Namespace, servers: Servers, folder: str, console: Console
) -> list[LogTarget]:
    """The requested logs, with their URLs; a missing server is left out and reported."""
    found = []
    for log in _logs(arguments):
        try:
            url = servers.url(log) if log in LOGS_WITH_SERVER else ""
        except (Missing, StartError) as error:
            if arguments.log:
                raise CannotMeasure(f"{log}: {error}") from error
            console.print(f"{log} is left out: {error}", markup=False, soft_wrap=True)
            continue
        named = arguments.case is None or any(
            "outbox" in each.casefold() for each in arguments.case
        )
        database = servers.database() if named and not arguments.quick else ""
        found.append(_log_target(log, url, folder, database))
    return found


def _machine_facts(servers: Servers) -> dict[str, str]:
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    facts = {"when": when, **machine.machine_facts(), **servers.versions}
    load = machine.load_average()
    if load is not None:
        facts["load at the start"] = str(load)
    return facts


def _log_target(log: str, url: str, folder: str, database: str) -> LogTarget:
    if log == "memory":
        url = f"memory://bench-{uuid4().hex}"
    elif log == "sqlite":
        url = f"sqlite:///{folder}/log.db"
    name = f"orders-{uuid4().hex[:8]}"
    return LogTarget(log, url, name, f"{folder}/by-hand.db", folder, database)


def _selected_cases(
    targets: Sequence[LogTarget], sizes: Sizes, texts: Sequence[str] | None
) -> list[Case]:
    return [
        case
        for place in targets
        for case in [
            *cases(place, sizes),
            *pattern_cases(place, sizes),
            *aggregate_cases(place, sizes),
            *view_cases(place, sizes),
            *inbox_cases(place, sizes),
            *outbox_cases(place, sizes),
        ]
        if not texts or any(text.casefold() in case.name.casefold() for text in texts)
    ]


def _peers(arguments: argparse.Namespace, console: Console) -> dict[str, InstalledPeer]:
    names = arguments.peer or []
    wanted = list(PEERS) if "all" in names else list(dict.fromkeys(names))
    found: dict[str, InstalledPeer] = {}
    for name in wanted:
        with console.status(f"{PEERS[name].title}: being made ready"):
            try:
                found[name] = install(name)
            except PeerMissing as error:
                if "all" not in names:
                    raise CannotMeasure(f"{name}: {error}") from error
                console.print(f"{name} is left out: {error}", markup=False, soft_wrap=True)
    return found


def _fill_topic(log_target: LogTarget, sizes: Sizes, root: Path = ROOT) -> None:
    """Fill the topic that all cases read, and for SQLite the hand-made table."""
    try:
        with WorkerProcess(root) as worker:
            worker.run_task(
                "fill", url=log_target.url, topic=log_target.topic, messages=sizes.messages
            )
            if log_target.log == "sqlite":
                worker.run_task("sqlite_fill", path=log_target.file, messages=sizes.messages)
    except MeasureError as error:
        raise CannotMeasure(f"{log_target.log} could not be filled: {error}") from error


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        BarColumn(20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=console,
        transient=True,
    )


# -- reports --------------------------------------------------------------------------------------


def _report_comparison(arguments: argparse.Namespace, rows: Sequence[Comparison]) -> None:
    console = _wide_console()
    title = f"This checkout beside {arguments.against}: medians of {arguments.repeats} turns"
    console.print(against.table(rows, title))
    console.print(against.summary(rows), markup=False)
    texts: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (arguments.json, lambda: json.dumps([row._asdict() for row in rows], indent=1) + "\n"),
        (arguments.markdown, lambda: f"{against.markdown(rows)}\n{against.summary(rows)}\n"),
    )
    _write(texts)


def _wide_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=240)


def _write(texts: Sequence[tuple[Path | None, Callable[[], str]]]) -> None:
    for file, text in texts:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text(), encoding="utf-8")


def _report(arguments: argparse.Namespace, rows: Sequence[Row]) -> None:
    console = _wide_console()
    turns = max(len(row["ratios"]) for row in rows)
    console.print(table(rows, f"Ours beside theirs: medians of {turns} turns"))
    facts = ", ".join(f"{name} {value}" for name, value in rows[0]["machine"].items())
    console.print(facts, markup=False, soft_wrap=True)
    texts: tuple[tuple[Path | None, Callable[[], str]], ...] = (
        (arguments.json, lambda: json.dumps(rows, indent=1, ensure_ascii=False) + "\n"),
        (arguments.html, lambda: page(rows)),
        (arguments.markdown, lambda: f"{markdown(rows)}\n{facts}\n"),
    )
    _write(texts)


if __name__ == "__main__":
    sys.exit(main())
