"""Several clients that decide at once: started, killed, frozen; and what became of all that."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec

from streams import Streams
from streams.eventsourcing import Aggregate, Cache
from streams.log.event_headers import VOID, event_header, parse_event
from streams.log.events import NO_HISTORY, Base, EventLog
from streams.log.protocol import Log
from streams.log.url import open_log
from streams.message import Headers, Position
from tests.faults.decider import (
    AGGREGATES,
    PARTITIONS,
    Account,
    AccountEvent,
    Client,
    Plan,
    Transfer,
    account_name,
    cents_of,
    declare,
    run_process,
)
from tests.faults.decisions import (
    IN,
    OUT,
    Answered,
    Figures,
    History,
    Line,
    Report,
    StoredEvent,
    check,
    check_money,
    pair,
    read_lines,
)

logger = logging.getLogger("tests.faults")

STALLED = 90.0
"""Seconds after which a run has failed in which nobody writes anything down."""

LINES_MEANWHILE = 100
"""What others write down at least while one of them is frozen."""

# Forked from one process that has imported everything: a client costs little to start.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["tests.faults.decider", "streams.log.sqlite", "streams.log.redis", "streams.log.kafka"]
)


class Tail:
    """Reads on in the files that clients write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[Path, int] = {}
        self.answers = 0
        """That told what became of a call."""
        self.lines = 0
        self.by_client: Counter[str] = Counter()
        """The same by client."""

    def read(self) -> None:
        """Count what was written since."""
        for path in self._folder.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._places.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._places[path] = self._places.get(path, 0) + len(whole)
            lines = read_lines(whole)
            found = sum(
                isinstance(line, Answered) and line.outcome in ("decided", "looked")
                for line in lines
            )
            self.lines += len(lines)
            self.answers += found
            self.by_client[path.stem] += found


class Deciders:
    """Client processes. A context manager: nothing is left running.

    :param url: of the log.
    :param name: of the aggregate.
    :param urls: what some clients add to the URL, in turn; whoever is started in the place of one
        that was killed adds what that did.
    """

    def __init__(
        self, folder: Path, url: str, name: str, seed: int, urls: Sequence[str] = ("",)
    ) -> None:
        self.folder = folder
        self._url = url
        self._urls = urls
        self._added: dict[str, str] = {}
        """What each client adds to the URL."""
        self.name = name
        self._seed = seed
        self.random = Random(seed)
        self._started = 0
        self.clients: dict[str, BaseProcess] = {}
        """Those that are to be running, by name."""
        self.tail = Tail(folder)
        self.kills = self.freezes = self.restarts = self.cuts = 0

    def __enter__(self) -> Deciders:
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self.clients.values():
            client.kill()
            client.join()

    def start(self, added: str | None = None) -> None:
        """One more client."""
        if added is None:
            added = self._urls[self._started % len(self._urls)]
        self._started += 1
        name = f"client-{self._started}"
        self._added[name] = added
        plan = Plan(self.folder, self._url + added, self.name, name, self._seed)
        self.clients[name] = _context.Process(target=run_process, args=(plan,), name=name)
        self.clients[name].start()

    def kill_one(self) -> None:
        """``kill -9`` one of them, and start another in its place."""
        name = self.random.choice(list(self.clients))
        victim = self.clients.pop(name)
        victim.kill()
        victim.join()
        self.kills += 1
        self.start(self._added[name])

    def freeze_one(self, seconds: float) -> None:
        """SIGSTOP one of them for so long, and until the others were told something meanwhile, if
        only that it holds what they need."""
        name = self.random.choice(list(self.clients))
        frozen = self.clients[name]
        assert frozen.pid is not None
        os.kill(frozen.pid, signal.SIGSTOP)
        self.freezes += 1
        self.tail.read()
        ends, enough = time.monotonic() + seconds, self.tail.lines + LINES_MEANWHILE
        self.until(lambda: time.monotonic() >= ends and self.tail.lines >= enough, "others went on")
        os.kill(frozen.pid, signal.SIGCONT)

    def until_answers(self, count: int) -> None:
        """Wait until so many calls were answered."""
        self.until(lambda: self.tail.answers >= count, f"{count} answers")

    def until_all_are_answered(self) -> None:
        """Wait until each that runs has been answered."""
        self.until(
            lambda: all(self.tail.by_client[name] for name in self.clients), "all were answered"
        )

    def until(self, over: Callable[[], bool], what: str) -> None:
        """Wait for a condition; fails when nobody is answered any more."""
        moved, last = time.monotonic(), -1
        while True:
            self._look()
            if over():
                return
            if self.tail.lines != last:
                moved, last = time.monotonic(), self.tail.lines
            elif time.monotonic() - moved > STALLED:
                raise AssertionError(
                    f"not {what}: nothing happens for {STALLED:g} s, after {self.tail.answers} "
                    "answers"
                )
            time.sleep(0.01)

    def _look(self) -> None:
        self.tail.read()
        for name, client in self.clients.items():
            assert client.exitcode is None, f"{name} ended by itself: {client.exitcode}"

    def stop(self) -> None:
        """SIGTERM to all, and wait until what they called was answered."""
        clients = list(self.clients.values())
        self.clients = {}
        for client in clients:
            client.terminate()
        for client in clients:
            client.join(STALLED)
            if client.exitcode is None:
                client.kill()
            # One that was not yet up has no handler for the signal, and has called nothing.
            assert client.exitcode in (0, -signal.SIGTERM), f"{client.name}: {client.exitcode}"


async def decide_in_one_process(
    folder: Path, url: str, name: str, seed: int, *, clients: int, answers: int
) -> None:
    """Apps of one process, each in a thread, until so many calls were answered."""
    tail = Tail(folder)
    stopping = threading.Event()

    def run_client(number: int) -> None:
        plan = Plan(folder, url, name, f"client-{number}", seed)
        asyncio.run(Client(plan, stopping.is_set).run())

    async with asyncio.TaskGroup() as group:
        running = [
            group.create_task(asyncio.to_thread(run_client, number)) for number in range(clients)
        ]
        while tail.answers < answers and not any(each.done() for each in running):
            await asyncio.sleep(0.01)
            tail.read()
        stopping.set()


# -- what became of it -----------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What a run came to."""

    report: Report
    figures: Figures
    reasons: Counter[str]
    """Why calls failed, or are unknown."""


def read_folder(folder: Path) -> tuple[list[Line], Figures]:
    """All lines, and what the clients counted altogether."""
    lines: list[Line] = []
    last: list[Figures] = []
    for path in sorted(folder.glob("*.jsonl")):
        found = read_lines(path.read_bytes())
        lines += found
        last += [each for each in found if isinstance(each, Figures)][-1:]
    sums = Figures(
        sum(each.conflicts for each in last),
        sum(each.retries for each in last),
        sum(each.caused for each in last),
        sum(each.snapshots for each in last),
    )
    return lines, sums


async def judge(folder: Path, url: str, name: str) -> Verdict:
    """Finish the transfers that were begun, read everything in several ways, and check it.

    What is done here is written down and checked, too.
    """
    app = Streams(url)
    accounts = declare(app, name)
    async with app.connected():
        histories = await read_histories(accounts)
        await finish_transfers(Plan(folder, url, name, "settler", 0), histories)
        histories = await read_histories(accounts)
        loaded = await asyncio.gather(*map(accounts.load, histories))
        told = {each: found.state.cents for each, found in zip(histories, loaded, strict=True)}
        topic = accounts.events.name
        as_topic = await read_topic(accounts)
    log = open_log(url)
    try:
        again = histories_by_the_rule(log, topic)
        wrong = [f"read as a topic: {each}" for each in differences(histories, as_topic)]
        wrong += [f"read by the rule: {each}" for each in differences(histories, again)]
        assert isinstance(log, EventLog)
        log.delete_snapshots(topic)
    finally:
        log.close()
    app = Streams(url)
    accounts = declare(app, name, cache=Cache(count=0))
    async with app.connected():
        wrong += [
            f"read anew: {each}" for each in differences(histories, await read_histories(accounts))
        ]
        loaded = await asyncio.gather(*map(accounts.load, histories))
        for (each, history), found in zip(histories.items(), loaded, strict=True):
            if found.state != Account(told[each], len(history)) or found.version != len(history):
                wrong.append(f"{each} without a snapshot or cache: {found}, told {told[each]}")
    lines, figures = read_folder(folder)
    calls = pair(lines)
    report = check(calls, histories)
    report.anomalies += wrong + check_money(histories, told)
    answers = [each for each in lines if isinstance(each, Answered)]
    reasons = Counter(each.reason.partition(":")[0] for each in answers if each.reason)
    return Verdict(report, figures, reasons)


async def read_histories(accounts: Aggregate[AccountEvent, Account]) -> dict[str, History]:
    """The histories of all accounts, as the aggregate reads them."""

    async def read(name: str) -> History:
        return [
            stored_event(each.version, each.id, each.event, each.position)
            async for each in accounts.read(name)
        ]

    names = [account_name(number) for number in range(AGGREGATES)]
    return dict(zip(names, await asyncio.gather(*map(read, names)), strict=True))


async def read_topic(accounts: Aggregate[AccountEvent, Account]) -> dict[str, History]:
    """The histories of all accounts, as whoever reads the topic of their events finds them."""
    found: dict[str, list[StoredEvent]] = {account_name(n): [] for n in range(AGGREGATES)}
    async for message in accounts.events.read():
        assert message.key is not None
        history = found[message.key]
        position = Position(message.topic, message.partition, message.offset)
        history.append(stored_event(len(history) + 1, message.id, message.value, position))
    return dict(found)


def stored_event(version: int, id: str, event: AccountEvent, position: Position) -> StoredEvent:
    return StoredEvent(
        version, id, event.decision, event.index, event.count, cents_of(event), str(position)
    )


async def finish_transfers(plan: Plan, histories: Mapping[str, History]) -> None:
    """Have the money that has gone out somewhere arrive where it was to go."""
    decisions = {each.decision for history in histories.values() for each in history}
    begun = {each.removesuffix(OUT) for each in decisions if each.endswith(OUT)}
    finished = {each.removesuffix(IN) for each in decisions if each.endswith(IN)}
    client = Client(plan, lambda: False)
    await client.finish([Transfer(each) for each in sorted(begun - finished)])


def histories_by_the_rule(log: Log, topic: str) -> dict[str, History]:
    """The histories as a foreign reader finds them: every record of the topic, and the rule of
    :mod:`streams.log.kafka.arbitration` in the plainest words. Where a log checks appends as it
    writes them, every record counts."""
    found: dict[str, list[StoredEvent]] = defaultdict(list)
    for number in range(AGGREGATES):
        found[account_name(number)] = []
    for partition in range(PARTITIONS):
        bases: dict[bytes, Base] = {}
        begun: dict[str, list[StoredEvent]] = {}
        for position, key, id, headers, value in records(log, topic, partition):
            for name, data in headers:
                if name == VOID and data is not None:
                    begun.pop(data.decode(), None)
            header = parse_event(event_header(headers), id)
            if header is None:
                continue
            if header.base != bases.get(key, NO_HISTORY):
                continue
            if header.is_refusal:
                bases[key] = Base(header.base.version, id)
                continue
            if header.record_index == 0:
                begun[header.append_id] = []
            parts = begun.get(header.append_id)
            if parts is None or len(parts) != header.record_index:
                continue
            assert value is not None
            version = header.base.version + header.record_index + 1
            parts.append(stored_event(version, id, _decode_event(value), position))
            if header.is_last:
                found[key.decode()] += parts
                bases[key] = Base(version, id)
    return dict(found)


_decode_event = msgspec.json.Decoder(AccountEvent).decode


def records(
    log: Log, topic: str, partition: int
) -> Iterator[tuple[Position, bytes, str, Headers, bytes | None]]:
    """Every record of a partition, whether it counts or not: position, key, ID, headers, value."""
    assert isinstance(log, EventLog)
    reader = log.raw_reader(topic, partition, *log.watermarks(topic, partition))
    try:
        while (batch := reader.read(5_000, 20.0)) is not None:
            for index, offset in enumerate(batch.offsets):
                key, position = batch.keys[index], Position(topic, partition, offset)
                assert key is not None
                yield position, key, batch.id(index), batch.headers(index), batch.values[index]
    finally:
        reader.close()


def differences(one: Mapping[str, History], other: Mapping[str, History]) -> list[str]:
    """In what two readings of all histories differ."""
    return [
        f"{name}: {len(one.get(name, ()))} events, {len(other.get(name, ()))} events"
        for name in sorted({*one, *other})
        if list(one.get(name, ())) != list(other.get(name, ()))
    ]
