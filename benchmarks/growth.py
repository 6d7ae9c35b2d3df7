"""Operations that slow down as history grows: ``python -m benchmarks.growth [--log redis]
[--quick]``.

A log is filled with a thousand, 20,000 and a million ended sagas, resolved dead letters,
delivered messages of a delay topic, and stored outcomes; a few of each kind still
wait. Then every operation that reads them is called in turns on all three, and its time is
compared with the shortest history, turn by turn. The records that were read are counted, too, which
a busy machine does not change.

*First* is the cost in a process that was just started; the others are the later costs.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from rich.console import Console

from benchmarks import machine
from benchmarks.filling import fill_topic
from benchmarks.report import words
from benchmarks.servers import Missing, Servers, StartError
from streams import (
    DeadLetters,
    Delays,
    IdempotencyStore,
    IdempotentProcessor,
    SagaOrchestrator,
    SagaStep,
    Streams,
    Topic,
    runtime,
)
from streams.cli import root
from streams.derived_records import ERROR_GROUP, ERROR_MESSAGE, ERROR_TOPIC
from streams.inspection.doctor.app_inspection import AppInspection
from streams.inspection.doctor.checklist import run_checks
from streams.inspection.doctor.prometheus import PrometheusClient
from streams.log import url as log_url
from streams.log.claims import PutOutcome
from streams.log.protocol import Committed, Log, ensure_topic
from streams.log.url import open_claims, open_log
from streams.message import Record
from streams.patterns.saga.journal_entry import StoredEntry
from streams.retries import floor_group
from streams.retries.checkpoints import parse_place
from streams.retries.records import entry_record, mark_record
from streams.retries.scheduler import ensure_delay_topic
from tests.patterns.counting import Counting

LOGS = ("sqlite", "redis", "kafka")
HISTORIES = (1_000, 20_000, 1_000_000)
REPEATS = 7

PARTITIONS = 4
"""Partitions of the journal."""

CHUNK = 5_000
"""Records that are appended at once."""

LATE, LATE_CHUNK = 500, 20
"""The sagas that ended last, and how many of their entries are appended at once: few, as in
production. Kafka returns records whole that were appended together."""

WAITING = 10
"""How many of each kind are not over."""

CALLS = 20
"""How many calls of a fast operation one turn has."""

YEAR = 365 * 24 * 3600.0

CHECKPOINTED = 12_000
"""Records of a delay topic from which on it has a checkpoint."""

LIMIT = 600.0
"""The longest wait, in seconds."""


class Context(msgspec.Struct):
    """The context of a saga."""

    cents: int = 0


class World(NamedTuple):
    """One log with one history."""

    log: str
    url: str
    name: str
    """The name or the prefix of its topics and groups."""
    history: int


class App:
    """The app on that history."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.streams = app = Streams(world.url)
        self.orders: Topic[int] = app.topic(f"{world.name}-orders", int, partitions=1)

        @app.processor(self.orders, group=f"{world.name}-billing")
        async def bill(order: int) -> None: ...

        self.delays = Delays(app, f"{world.name}-delays")
        self.sagas = SagaOrchestrator(
            app, f"{world.name}-sagas", context=Context, partitions=PARTITIONS
        )

        async def pay(context: Context) -> None: ...

        self.sagas.add_step(SagaStep("pay", pay))
        self.charges: IdempotentProcessor[int] | None = None
        if world.log != "kafka":  # Kafka cannot order concurrent claims, so it stores none
            store = IdempotencyStore(app, name=f"{world.name}-once")
            self.charges = IdempotentProcessor(store, type=int)


# -- filling it -----------------------------------------------------------------------------------


def fill(world: World) -> None:
    """Write everything that is over, and the few that are not; blocks."""
    log = open_log(world.url)
    try:
        _fill_letters(log, world)
        _fill_sagas(log, world)
        _fill_delays(log, world)
    finally:
        log.close()
    if world.log != "kafka":
        _fill_outcomes(world)
    asyncio.run(_begin(world))


def _letter_topic(world: World) -> str:
    return DeadLetters().name(f"{world.name}-orders", f"{world.name}-billing")


def _fill_letters(log: Log, world: World) -> None:
    topic = _letter_topic(world)
    ensure_topic(log, topic, 1, config=log.capabilities.dead_letter_config)
    headers = (
        (ERROR_TOPIC, f"{world.name}-orders".encode()),
        (ERROR_GROUP, f"{world.name}-billing".encode()),
        (ERROR_MESSAGE, b"no such account"),
    )

    def letters(prefix: str, count: int) -> Iterator[Record]:
        for number in range(count):
            yield Record(b"%d" % number, b"k-%d" % number, f"{prefix}-{number}", headers)

    fill_topic(log, topic, letters("over", world.history), CHUNK)
    _, end = log.watermarks(topic, 0)
    log.reset_offsets(topic, topic, {0: Committed(end)})
    fill_topic(log, topic, letters("waits", WAITING), CHUNK)


def _fill_sagas(log: Log, world: World) -> None:
    topic = f"{world.name}-sagas.saga"
    ensure_topic(log, topic, PARTITIONS)

    def entries(prefix: str, count: int) -> Iterator[Record]:
        context, plan = msgspec.Raw(b'{"cents":1}'), (("pay",),)
        for number in range(count):
            begun = StoredEntry(saga=f"{prefix}-{number}", context=context, plan=plan, at=1.0)
            ended = begun.next_entry(2.0, status="completed", stage=1, done=("pay",))
            for entry in (begun, ended):
                data = msgspec.json.encode(entry)
                yield Record(data, entry.saga.encode(), entry.message_id)

    fill_topic(log, topic, entries("over", world.history), CHUNK)
    fill_topic(log, topic, entries("late", LATE), LATE_CHUNK)
    ends = {each: Committed(log.watermarks(topic, each)[1]) for each in range(PARTITIONS)}
    log.reset_offsets(f"{world.name}-sagas", topic, ends)


def _fill_delays(log: Log, world: World) -> None:
    topic, orders = f"{world.name}-delays", f"{world.name}-orders"
    ensure_delay_topic(log, topic, 1)
    due = int((time.time() + YEAR) * 1_000)

    def records() -> Iterator[Record]:
        for number in range(WAITING):
            yield entry_record(Record(b"1", b"k", f"waits-{number}"), orders, due)
        for number in range(world.history):
            entry = entry_record(Record(b"1", b"k", f"over-{number}"), orders, 1)
            yield entry
            yield mark_record(entry.key or b"", "delivered", f"mark-{number}")

    fill_topic(log, topic, records(), CHUNK)


def _fill_outcomes(world: World) -> None:
    store = IdempotencyStore(world.url, name=f"{world.name}-once")
    claims = open_claims(world.url)
    try:
        for first in range(0, world.history, 1_000):
            numbers = range(first, min(first + 1_000, world.history))
            claims.execute(
                [PutOutcome(store.store_key(f"over-{each}"), b"=1", YEAR) for each in numbers]
            )
    finally:
        claims.close()


async def _begin(world: World) -> None:
    """The first process, which writes once what all later ones use."""
    app = App(world)
    async with app.streams:
        await _until(lambda: app.delays.stats().pending == WAITING)
        if 2 * world.history > CHECKPOINTED:
            log, group, topic = app.streams.log, floor_group(app.delays.name), app.delays.name

            def is_checkpointed() -> bool:
                found = log.committed(group, topic).get(0)
                return found is not None and parse_place(found.progress) is not None

            await _until(is_checkpointed)
        await app.sagas.execute(Context(), id="last")


async def _until(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + LIMIT
    while not is_so():
        if time.monotonic() > give_up:
            raise RuntimeError("it took too long")
        await asyncio.sleep(0.005)


# -- measuring ------------------------------------------------------------------------------------


class Taken(NamedTuple):
    """The cost of one call."""

    seconds: float
    cpu: float
    """CPU time of this process, in seconds."""
    records: float
    """The records that were read outside groups."""


Measured = dict[str, Taken]


class _Stopwatch:
    """A stopwatch that starts at its creation."""

    def __init__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Seconds that have passed, and this process's CPU time in them."""
        return time.perf_counter() - self._began[0], time.process_time() - self._began[1]


@contextmanager
def _counted() -> Iterator[list[Counting]]:
    """Count the reads of the logs that are opened in the block."""
    opened: list[Counting] = []

    def open_counting(*arguments: Any, **options: Any) -> Any:
        opened.append(Counting(open_log(*arguments, **options)))
        return opened[-1]

    modules: tuple[Any, ...] = (runtime, log_url)
    for module in modules:
        module.open_log = open_counting
    try:
        yield opened
    finally:
        for module in modules:
            module.open_log = open_log


def _read(opened: Sequence[Counting]) -> int:
    return sum(each.records for each in opened)


async def turn(world: World) -> Measured:
    """Call every operation once."""
    found: Measured = {}
    for name, arguments in _commands(world):
        found[name] = _run_command([*arguments, "--url", world.url])
    with _counted() as opened:
        found |= await _inside_app(world, opened)
    return found


def _commands(world: World) -> list[tuple[str, list[str]]]:
    group, topic, sagas = (f"{world.name}-{each}" for each in ("billing", "orders", "sagas"))
    return [
        ("streams saga list", ["saga", "list", sagas]),
        ("streams saga status, the last one", ["saga", "status", sagas, "last"]),
        ("streams dead ls", ["dead", "ls", group, topic]),
        ("streams dead show, by ID", ["dead", "show", group, topic, f"waits-{WAITING - 1}"]),
    ]


def _run_command(arguments: Sequence[str]) -> Taken:
    with _counted() as opened, redirect_stdout(io.TextIOWrapper(io.BytesIO())):
        stopwatch = _Stopwatch()
        status = root.run([*arguments, "--json"])
        seconds, cpu = stopwatch.read()
    if status:
        raise RuntimeError(f"streams {' '.join(arguments)}: status {status}")
    return Taken(seconds, cpu, _read(opened))


async def _inside_app(world: World, opened: Sequence[Counting]) -> Measured:
    found: Measured = {}

    @asynccontextmanager
    async def timed(name: str, calls: int = 1) -> AsyncIterator[None]:
        before, stopwatch = _read(opened), _Stopwatch()
        yield
        seconds, cpu = stopwatch.read()
        found[name] = Taken(seconds / calls, cpu / calls, (_read(opened) - before) / calls)

    async def times(name: str, call: Callable[[int], Awaitable[Any]]) -> None:
        async with timed(name, CALLS):
            for number in range(CALLS):
                await call(number)

    app, unique = App(world), uuid4().hex
    stopwatch = _Stopwatch()
    async with app.streams:
        await _until(lambda: app.delays.stats().pending >= WAITING)
        found["a delay topic is taken over"] = Taken(*stopwatch.read(), _read(opened))
        # So that its processor has its partitions, and the IDs that were handled there.
        await asyncio.gather(*(app.sagas.execute(Context()) for _ in range(10 * PARTITIONS)))
        async with timed("saga.execute(id=...), first"):
            await app.sagas.execute(Context(), id=f"{unique}-first")
        # Each partition is read once, whichever these are in.
        known = [f"{unique}-known-{number}" for number in range(10 * PARTITIONS)]
        await asyncio.gather(*(app.sagas.execute(Context(), id=each) for each in known))
        await times(
            "saga.execute(id=...)", lambda each: app.sagas.execute(Context(), id=f"{unique}-{each}")
        )
        await times("saga.execute()", lambda each: app.sagas.execute(Context()))
        await times("saga.status(id)", lambda each: app.sagas.status(f"{unique}-{each}"))
        await times(
            "delays.publish", lambda each: app.delays.publish(app.orders, 1, delay=0.0, key="k")
        )
        charges = app.charges
        if charges is not None:

            async def operation() -> int:
                return 1

            await times(
                "idempotency, a new key",
                lambda each: charges.process(f"{unique}-{each}", operation),
            )
            await times(
                "idempotency, an outcome", lambda each: charges.process(f"over-{each}", operation)
            )
        async with timed("doctor's checks"):
            inspection = AppInspection(app.streams, app.streams.log, "", PrometheusClient(None))
            await asyncio.to_thread(lambda: list(run_checks(inspection)))
    return found


# -- reports --------------------------------------------------------------------------------------


class GrowthRow(NamedTuple):
    """One operation on one log.

    :param seconds: by history, the median; of ``cpu`` and ``records`` the same.
    :param ratio: its time with the longest history divided by that with the shortest: the median
        over the turns.
    :param spread: the lowest and the highest of these ratios.
    :param cpu_ratio: the same for this process's CPU time, which a busy machine changes less; the
        server's work is not in it.
    """

    log: str
    what: str
    seconds: dict[int, float]
    ratio: float
    spread: tuple[float, float]
    cpu: dict[int, float]
    cpu_ratio: float
    records: dict[int, float]


def rows(log: str, turns: Sequence[dict[int, Measured]]) -> list[GrowthRow]:
    """:param turns: for each turn, the measurements by history."""
    histories = sorted(turns[0])
    found = []
    for what in turns[0][histories[0]]:
        taken = {history: [each[history][what] for each in turns] for history in histories}
        pairs = list(zip(taken[histories[-1]], taken[histories[0]], strict=True))
        ratios = [after.seconds / before.seconds for after, before in pairs]
        found.append(
            GrowthRow(
                log,
                what,
                {each: statistics.median(one.seconds for one in taken[each]) for each in histories},
                statistics.median(ratios),
                (min(ratios), max(ratios)),
                {each: statistics.median(one.cpu for one in taken[each]) for each in histories},
                statistics.median(after.cpu / max(before.cpu, 1e-6) for after, before in pairs),
                {each: statistics.median(one.records for one in taken[each]) for each in histories},
            )
        )
    return found


def markdown(found: Sequence[GrowthRow]) -> str:
    """A Markdown table."""
    histories = list(found[0].seconds)
    columns = [
        "log", "what", *(f"{each:,}: ms" for each in histories), "ratio", "spread",
        *(f"CPU ms, {each:,}" for each in histories), "CPU ratio",
        *(f"records, {each:,}" for each in histories),
    ]  # fmt: skip
    lines = [
        [
            row.log,
            row.what,
            *(words.short_figure(each * 1_000) for each in row.seconds.values()),
            words.short_figure(row.ratio),
            "-".join(map(words.short_figure, row.spread)),
            *(words.short_figure(each * 1_000) for each in row.cpu.values()),
            words.short_figure(row.cpu_ratio),
            *(f"{each:,.6g}" for each in row.records.values()),
        ]
        for row in found
    ]
    return words.markdown(columns, ("log", "what"), lines)


def measure(log: str, url: str, histories: Sequence[int], repeats: int) -> list[GrowthRow]:
    """Fill a log, and measure everything in turns."""
    console = Console(stderr=True, highlight=False)
    unique = uuid4().hex[:8]
    worlds = []
    for history in histories:
        console.print(f"{log}: filling {history:,}")
        worlds.append(World(log, url, f"g{history}-{unique}", history))
        fill(worlds[-1])
    turns: list[dict[int, Measured]] = []
    for number in range(repeats):
        console.print(f"{log}: turn {number + 1} of {repeats}")
        ordered = worlds if number % 2 == 0 else worlds[::-1]
        turns.append({world.history: asyncio.run(turn(world)) for world in ordered})
    return rows(log, turns)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description="What becomes slower as history grows: sagas, dead letters, delays, claims.",
    )
    add = parser.add_argument
    add("--log", choices=LOGS, action="append", help="only this one; repeatable")
    add(
        "--history", type=int, action="append", metavar="N",
        help=f"how much there was; repeatable ({', '.join(f'{each:,}' for each in HISTORIES)})",
    )  # fmt: skip
    add("--repeats", type=int, default=REPEATS, help=f"turns ({REPEATS})")
    add("--quick", action="store_true", help="SQLite alone, 500 and 5,000, two turns")
    add("--json", type=Path, metavar="FILE", help="also write the rows as JSON")
    arguments = parser.parse_args(argv)
    histories = arguments.history or list(HISTORIES)
    logs, repeats = arguments.log or list(LOGS), arguments.repeats
    if arguments.quick:
        logs, histories, repeats = ["sqlite"], [500, 5_000], 2
    if min(histories) < CALLS or repeats < 1:
        parser.error(f"--history of at least {CALLS}, and --repeats of at least 1")
    print(", ".join(f"{name} {what}" for name, what in machine.machine_facts().items()))
    found: list[GrowthRow] = []
    with ExitStack() as stack:
        servers = stack.enter_context(Servers())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streams-growth-")))
        for log in logs:
            try:
                url = f"sqlite:///{folder}/log.db" if log == "sqlite" else servers.url(log)
            except (Missing, StartError) as error:
                print(f"{log}: {error}", file=sys.stderr)
                return 1
            found += measure(log, url, sorted(set(histories)), repeats)
    print(markdown(found))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([row._asdict() for row in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
