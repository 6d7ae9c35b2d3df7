"""What the dashboard costs: ``python -m benchmarks.dashboard [fill|pages|load|search]``.

``pages``: a log with 10,000 topics, 1,000 groups, a million dead letters, 100,000 closed keys and
100,000 sagas; how long the server needs for each screen, how soon a browser paints it, and how
much memory the server takes. ``load``: 50 visitors of an app that handles 10,000 messages a second;
the share of a core that they cost, and the handlers' throughput beside that without anybody
looking. ``search``: a million messages, and one that is not among them; how long it takes, how far
it looked, and for how long the event loop of the app that the dashboard is mounted in was held up.

The log is a temporary SQLite file unless ``--url`` says otherwise. It is filled once; ``--keep
FOLDER`` leaves it there for the next run. ``--quick`` tries all of it with small sizes.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import logging
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import uvicorn

from benchmarks.filling import fill_topic
from streams import DeadLetters, Reject, Streams
from streams.config import Flow
from streams.errors import StreamsError
from streams.log.protocol import Committed, Log
from streams.message import Record
from streams.patterns import SagaOrchestrator, SagaStep
from streams.web import Dashboard

ROOT = Path(__file__).resolve().parents[1]

CHUNK = 20_000
"""Records that are appended at once."""


class Sizes(NamedTuple):
    """The amounts of data."""

    topics: int = 10_000
    groups: int = 1_000
    letters: int = 1_000_000
    keys: int = 100_000
    sagas: int = 100_000
    messages: int = 1_000_000
    visits: int = 100
    visitors: int = 50
    rate: int = 10_000
    seconds: float = 14.0


QUICK = Sizes(300, 50, 5_000, 1_000, 500, 20_000, 8, 10, 2_000, 5.0)


class Transfer(msgspec.Struct):
    """The context of a saga."""

    cents: int


def build(url: str) -> tuple[Streams, SagaOrchestrator[Transfer]]:
    """The app whose screens are measured."""
    app = Streams(url)
    entries = app.topic("entries", int, partitions=4)

    @app.processor(
        entries, group="balance", concurrency=64, dead_letters=DeadLetters(sequenced=True)
    )
    async def book(amount: int) -> None:
        raise Reject("an entry of nothing")

    payments = app.topic("payments", int, partitions=4)

    @app.processor(payments, group="billing", concurrency=64)
    async def pay(cents: int) -> None:
        raise Reject("no such account")

    transfers = SagaOrchestrator(app, "transfers", context=Transfer, partitions=4, concurrency=64)

    async def send(transfer: Transfer) -> None:
        if transfer.cents % 10 == 0:
            raise ValueError("no money")

    async def nothing(transfer: Transfer) -> None:
        pass

    transfers.add_step(SagaStep("reserve", nothing, nothing))
    transfers.add_step(SagaStep("send", send))
    return app, transfers


async def fill(url: str, sizes: Sizes, report: Callable[[str], None]) -> None:
    """Write everything that the screens show."""
    app, transfers = build(url)
    async with app:
        topic = app.topics["payments"]
        await topic.publish(1, key="k")
        dead = DeadLetters().name("payments", "billing")
        while not _messages(app.log, dead):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        report("dead letters")
        await asyncio.to_thread(_copy_letters, app.log, dead, sizes.letters)
        report("topics and groups")
        await asyncio.to_thread(_topics_and_groups, app.log, sizes)
        report("closed keys")
        entries = app.topics["entries"]
        for start in range(0, sizes.keys, CHUNK):
            records = [
                entries.record(0, key=f"account-{number}", id=f"e-{number}")
                for number in range(start, min(start + CHUNK, sizes.keys))
            ]
            await app.publisher.publish_many("entries", records)
        while app.stats().processors["book"].dead_letters < sizes.keys:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        report("sagas")
        for start in range(0, sizes.sagas, 1_000):
            await asyncio.gather(
                *(
                    transfers.start(Transfer(number), id=f"transfer-{number}")
                    for number in range(start, min(start + 1_000, sizes.sagas))
                )
            )
        while await _running(transfers):  # noqa: ASYNC110
            await asyncio.sleep(1)


async def _running(transfers: SagaOrchestrator[Transfer]) -> int:
    return len(await transfers.list("running", "compensating"))


def _messages(log: Log, topic: str) -> int:
    try:
        partitions = log.describe_topic(topic).partitions
    except StreamsError:
        return 0
    return sum(
        log.lag(topic, each, log.watermarks(topic, each)[0]) or 0 for each in range(partitions)
    )


def _copy_letters(log: Log, topic: str, count: int) -> None:
    """Write copies of the dead letter that a handler has left."""
    found = None
    for partition in range(log.describe_topic(topic).partitions):
        first, end = log.watermarks(topic, partition)
        if end > first:
            with closing(log.reader(topic, partition, first, end)) as reader:
                found = reader.read(1)
            break
    assert found is not None
    headers = tuple(found.headers(0))
    errors = [f"Reject: no such account {number}".encode() for number in range(7)]

    def letters() -> Iterator[Record]:
        for number in range(count):
            changed = tuple(
                (name, errors[number % 7] if name.endswith("errors.message") else value)
                for name, value in headers
            )
            yield Record(str(number).encode(), f"k-{number}".encode(), f"l-{number}", changed)

    fill_topic(log, topic, letters(), CHUNK)


def _topics_and_groups(log: Log, sizes: Sizes) -> None:
    for number in range(sizes.topics):
        log.create_topic(f"topic-{number:05}", 1)
    for number in range(sizes.groups):
        topic = f"topic-{number:05}"
        first, _ = log.watermarks(topic, 0)
        fill_topic(
            log, topic, [Record(b"1", b"k", f"m-{each}") for each in range(number % 9)], CHUNK
        )
        log.reset_offsets(f"group-{number:04}", topic, {0: Committed(first)})


# -- serving it


@contextmanager
def served(url: str) -> Iterator[tuple[str, int]]:
    """The dashboard in a process of its own: its address, and its process ID."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "codecs")])
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.dashboard", "--serve", url],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the dashboard did not start")
        yield address.rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def serve_alone(url: str) -> None:
    """The program that :func:`served` starts."""
    from streams.web.server import serve

    app, _ = build(url)
    serve(Dashboard(app, access="all"), "127.0.0.1", 0, lambda address: print(address, flush=True))


def memory_of(pid: int) -> float:
    """A process's memory in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def _wait_until_idle(pid: int) -> None:
    """Wait until a process is nearly idle."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    while True:
        time.sleep(1)
        before, last = ticks(), before
        if before - last < 5:
            return


# -- pages

PAGES = (
    "/",
    "/topics",
    "/topics?page=150",
    "/topics?q=topic-0777",
    "/topics/topic-00001",
    "/topics/payments.billing.dead",
    "/topics/payments.billing.dead/messages",
    "/topics/payments.billing.dead/messages?from=earliest",
    "/groups",
    "/groups?sort=lag",
    "/groups/show?group=group-0007",
    "/publish?topic=payments",
    "/dead",
    "/dead/show?topic=payments&group=billing",
    "/keys",
    "/keys/show?topic=entries&group=balance",
    "/delayed",
    "/processors",
    "/sagas",
    "/sagas?name=transfers",
    "/sagas/show?name=transfers&id=transfer-77",
    "/aggregates",
    "/views",
    "/managers",
    "/outbox",
    "/doctor",
)


@dataclass
class Visit:
    """The cost of a screen: milliseconds of the first visit, the median and the 95th percentile,
    and until a browser painted it; and KB."""

    path: str
    first: float
    median: float
    p95: float
    kilobytes: float
    paint: float | None = None


def measure_pages(url: str, sizes: Sizes) -> tuple[list[Visit], float, float]:
    """Measure all screens; returns them, and the server's memory before and after."""
    visits: list[Visit] = []
    chance = random.Random(1)
    with served(url) as (address, pid), httpx.Client(base_url=address, timeout=60) as client:
        client.get("/static/style.css")
        before = memory_of(pid)
        there: list[str] = []
        for path in PAGES:
            began = time.perf_counter()
            answer = client.get(path)
            first = (time.perf_counter() - began) * 1e3
            if answer.status_code == 404:
                continue
            if answer.status_code != 200:
                print(f"{path}: {answer.status_code}", file=sys.stderr)
                continue
            there.append(path)
            visits.append(Visit(path, first, 0, 0, len(answer.content) / 1024))
        _wait_until_idle(pid)  # for data that threads read once, after the first visit
        taken: dict[str, list[float]] = {path: [] for path in there}
        for _ in range(sizes.visits):  # in turn, so that little is cached
            for path in there:
                began = time.perf_counter()
                client.get(path)
                taken[path].append((time.perf_counter() - began) * 1e3)
                time.sleep(chance.random() * 0.1)
        for visit in visits:
            visit.median = statistics.median(taken[visit.path])
            visit.p95 = statistics.quantiles(taken[visit.path], n=20)[-1]
        paints = first_paints(address, there)
        for visit in visits:
            visit.paint = paints.get(visit.path)
        return visits, before, memory_of(pid)


PAINT = """() => new Promise((done) => {
  const look = () => {
    const found = performance.getEntriesByName("first-contentful-paint")[0];
    found ? done(found.startTime) : setTimeout(look, 10);
  };
  look();
})"""


def first_paints(address: str, paths: list[str]) -> dict[str, float]:
    """Milliseconds until a browser has painted each page, median of five; empty without a
    browser."""
    program = next(filter(None, map(shutil.which, ("chromium-headless-shell", "chromium"))), None)
    if program is None or importlib.util.find_spec("playwright") is None:
        print("no Chromium or no playwright: first paints are left out", file=sys.stderr)
        return {}
    from playwright.sync_api import sync_playwright

    found: dict[str, float] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for path in paths:
            taken: list[float] = []
            for _ in range(5):
                context = browser.new_context()  # with an empty cache
                page = context.new_page()
                page.goto(address + path)
                taken.append(float(page.evaluate(PAINT)))
                context.close()
            found[path] = statistics.median(taken)
        browser.close()
    return found


# -- an app that works while visitors watch


class Worker:
    """An app with its dashboard, in one process and on one loop, as in a service."""

    def __init__(self, url: str, name: str) -> None:
        self.app = Streams(url)
        self.topic = self.app.topic(name, int, partitions=8)
        self.handled = 0
        self.address = ""

        @self.app.processor(self.topic, group=name, concurrency=256, flow=Flow(commit=0.5))
        async def handle(number: int) -> None:
            self.handled += 1

    async def publish(self, count: int) -> None:
        """Publish ``count`` messages with different keys."""
        records = [self.topic.record(number, key=str(number)) for number in range(count)]
        await self.app.publisher.publish_many(self.topic.name, records)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve the dashboard and handle messages."""
        dashboard = Dashboard(self.app, access="all")
        config = uvicorn.Config(
            dashboard, host="127.0.0.1", port=0, log_config=None, timeout_graceful_shutdown=1
        )
        server = uvicorn.Server(config)
        async with self.app:
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            host, port = server.servers[0].sockets[0].getsockname()[:2]
            self.address = f"http://{host}:{port}"
            try:
                yield
            finally:
                server.should_exit = True
                await serving


VISITOR = """
import asyncio, json, re, sys
import httpx
async def visitor(client, address, number):
    pages = ["/", "/topics", "/groups", "/topics/" + sys.argv[3]]
    seen = (await client.get(address + pages[number % 4])).text
    watch = re.search(r'data-watch="([^"]*)"', seen)[1]
    async with client.stream("GET", f"{address}/live?watch={watch}") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("event: figures"):
                counted[number] = counted.get(number, 0) + 1
counted = {}
async def main():
    address, visitors = sys.argv[1], int(sys.argv[2])
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        tasks = [asyncio.create_task(visitor(client, address, n)) for n in range(visitors)]
        while len(counted) < visitors:
            await asyncio.sleep(0.1)
        print("all look", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(sum(counted.values())))
asyncio.run(main())
"""
"""Visitors, each with a page open and its stream; in a process of their own."""


@asynccontextmanager
async def visitors(address: str, count: int, topic: str) -> AsyncIterator[None]:
    """Run ``count`` visitors during the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", VISITOR, address, str(count), topic,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    await process.stdout.readline()
    try:
        yield
    finally:
        process.stdin.close()
        await process.wait()


async def _steady(worker: Worker, sizes: Sizes, seconds: float) -> float:
    """The share of a core that the process takes while it publishes and handles at the rate."""
    began, cpu = time.perf_counter(), time.process_time()
    turn = 0
    while (now := time.perf_counter()) - began < seconds:
        if now - began < turn * 0.05:
            await asyncio.sleep(began + turn * 0.05 - now)
            continue
        turn += 1
        await worker.publish(sizes.rate // 20)
    return (time.process_time() - cpu) / (time.perf_counter() - began)


async def _drain(worker: Worker, count: int) -> float:
    """Messages that are published and handled per second of processor time, at full speed.

    Processor time, as throughput by the clock depends on the rest of the machine's work.
    """
    target = worker.handled + count
    began = time.process_time()
    for _ in range(count // 1_000):
        await worker.publish(1_000)
    while worker.handled < target:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return count / (time.process_time() - began)


async def measure_load(url: str, sizes: Sizes) -> dict[str, float]:
    """Measure with and without visitors, in turn, in one process, several times."""
    worker = Worker(url, f"load-{os.getpid()}")
    idle: list[float] = []
    watched: list[float] = []
    quick: list[float] = []
    quick_watched: list[float] = []
    async with worker.running():
        await _steady(worker, sizes, 3)
        await _drain(worker, 20_000)
        for turn in range(6):
            if turn % 2 == 0:
                quick.append(await _drain(worker, 20 * sizes.rate))
                idle.append(await _steady(worker, sizes, sizes.seconds / 3))
            async with visitors(worker.address, sizes.visitors, worker.topic.name):
                quick_watched.append(await _drain(worker, 20 * sizes.rate))
                watched.append(await _steady(worker, sizes, sizes.seconds / 3))
            if turn % 2 == 1:
                quick.append(await _drain(worker, 20 * sizes.rate))
                idle.append(await _steady(worker, sizes, sizes.seconds / 3))
    return {
        "core_without": statistics.median(idle),
        "core_with": statistics.median(watched),
        "core_of_visitors": statistics.median(watched) - statistics.median(idle),
        "throughput_without": statistics.median(quick),
        "throughput_with": statistics.median(quick_watched),
        "throughput_ratio": statistics.median(quick_watched) / statistics.median(quick),
    }


# -- search


async def measure_search(url: str, sizes: Sizes) -> dict[str, Any]:
    """A search for a text that does not exist, beside a task that measures the loop's delay."""
    worker = Worker(url, f"search-{os.getpid()}")
    worst: list[float] = []

    async def watch_loop() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            worst.append((time.perf_counter() - began - 0.001) * 1e3)

    async with worker.running():
        documents = (
            Record(
                b'{"order":"o-%d","customer":{"id":%d},"cents":%d}'
                % (number, number % 997, number),
                b"%d" % number,
                f"s-{number}",
            )
            for number in range(sizes.messages)
        )
        haystack = f"haystack-{os.getpid()}"
        worker.app.log.create_topic(haystack, 4)
        await asyncio.to_thread(fill_topic, worker.app.log, haystack, documents, CHUNK)
        watching = asyncio.create_task(watch_loop())
        await asyncio.sleep(2)
        quiet, worst = worst, []
        found: dict[str, Any] = {"late_without_ms": max(quiet)}
        # The client is in a thread: its own work must not count.
        client = await asyncio.to_thread(httpx.Client, base_url=worker.address, timeout=120)
        queries: tuple[tuple[str, dict[str, str]], ...] = (
            ("first_visit", {}),
            ("text", {"text": "nowhere"}),
            ("json", {"path": "customer.id", "path_value": "nobody"}),
        )
        for name, query in queries:
            await asyncio.sleep(0.5)
            worst.clear()
            began = time.perf_counter()
            address = f"/topics/{haystack}/messages"
            answer = await asyncio.to_thread(client.get, address, params=query)
            found[f"{name}_seconds"] = time.perf_counter() - began
            found[f"{name}_late_ms"] = max(worst)
            found[f"{name}_late_p99_ms"] = statistics.quantiles(worst, n=100)[-1]
            if query:
                found[f"{name}_says"] = _looked_at(answer.text)
        client.close()
        watching.cancel()
    return found


def _looked_at(html: str) -> str:
    text = " ".join(re.sub("<[^>]*>", " ", html).split())
    found = re.findall(r"[Ll]ooked at [^.]*", text)
    return found[-1] if found else text[-200:]


# -- the command


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("what", nargs="*", help="fill, pages, load, search; all if none is given")
    parser.add_argument("--url", default="", help="the log; a temporary SQLite file if not given")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where the file stays")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try it")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve_alone(arguments.serve)
        return 0
    logging.basicConfig(level=logging.ERROR)
    sizes = QUICK if arguments.quick else Sizes()
    chosen: list[str] = arguments.what or ["pages", "load", "search"]
    with tempfile.TemporaryDirectory(prefix="dashboard-") as scratch:
        folder: Path = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        url = arguments.url or f"sqlite:///{folder}/pages.db"
        if "pages" in chosen or "fill" in chosen:
            mark = folder / "filled.json"
            if not mark.exists():
                began = time.perf_counter()
                asyncio.run(fill(url, sizes, lambda line: print(f"· {line}", file=sys.stderr)))
                mark.write_text(json.dumps(sizes._asdict()))
                print(f"· filled in {time.perf_counter() - began:.0f} s", file=sys.stderr)
        if "pages" in chosen:
            visits, before, after = measure_pages(url, sizes)
            print("| screen | first | median | p95 | first paint | KB |\n|---|---|---|---|---|---|")
            for each in visits:
                paint = "" if each.paint is None else f"{each.paint:.0f} ms"
                print(
                    f"| `{each.path}` | {each.first:.0f} ms | {each.median:.0f} ms "
                    f"| {each.p95:.0f} ms | {paint} | {each.kilobytes:.0f} |"
                )
            print(f"\nmemory: {before:.0f} MB before the first page, {after:.0f} MB after all")
        for name, measure in (("load", measure_load), ("search", measure_search)):
            if name in chosen:
                url = arguments.url or f"sqlite:///{scratch}/{name}.db"
                for what, figure in asyncio.run(measure(url, sizes)).items():
                    shown = f"{figure:,.3f}" if isinstance(figure, float) else figure
                    print(f"{name}: {what}: {shown}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
