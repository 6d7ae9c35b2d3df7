"""The demo's run: publish, handle with a kill in the middle, replay, compare."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from examples.flights import events as flights_file
from examples.flights.events import Event
from examples.flights.verdict import Effects, Figures, Verdict, judge, plain_count
from examples.flights.worker import GROUP, build
from streams import DeadLetters, Position, Streams, Topic
from streams.message import Record

UNDECODABLE = (
    b'{"type":"departed","sequence":1,"flight":"cut o',
    b'{"type":"departed","sequence":"one"}',
    b"\xff\xfe not JSON at all",
    b'{"type":"diverted","sequence":3}',
    b"[" * 2_000,
)
"""Messages that cannot be decoded: cut off, mistyped, not UTF-8, unknown, too deep."""

STALL_TIMEOUT = 60.0
"""Seconds without any progress after which the run is aborted."""


class DemoError(Exception):
    """The run could not be finished; the text is one line."""


@dataclass
class Replay:
    """A replayed range, and the messages that it must hold according to the file."""

    what: str
    read: int
    expected: int

    @property
    def ok(self) -> bool:
        """Whether the replay agrees with the file."""
        return self.read == self.expected


@dataclass
class Outcome:
    """The result of a run."""

    plain: Figures
    verdict: Verdict
    published: int
    twice_published: int
    undecodable: int
    dead_letters: int
    kills: int
    seconds: float
    replays: list[Replay] = field(default_factory=list)

    @property
    def messages_per_second(self) -> float:
        """Messages settled per second, the worker's death and restart included."""
        return (self.published + self.undecodable) / self.seconds if self.seconds else 0.0

    def broken(self) -> list[str]:
        """The broken promises, in words."""
        found, plain, verdict = [], self.plain, self.verdict
        if verdict.lost:
            found.append(f"at-least-once: {verdict.lost} events lost")
        if verdict.order_violations:
            found.append(f"order: {verdict.order_violations} events out of order")
        if verdict.figures != plain:
            found.append("dedup: the counts differ from the plain count")
        if verdict.handled_twice and not self.kills:
            found.append(f"dedup: {verdict.handled_twice} handled twice without a crash")
        if self.dead_letters != self.undecodable:
            found.append(
                f"dead letters: {self.dead_letters} for {self.undecodable} undecodable messages"
            )
        found += [
            f"replay: {each.what}: {each.read} instead of {each.expected}"
            for each in self.replays
            if not each.ok
        ]
        return found


async def run(data: Path, url: str, report: Callable[[str], None]) -> Outcome:
    """Run the whole demo on a log.

    :raises ConfigError: the file or the URL is invalid.
    :raises DemoError: the run got stuck.
    """
    table = list(flights_file.rows(data))
    if not table:
        raise DemoError(f"{data} holds no flights")
    expected = flights_file.events(table)
    name = f"flights-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="flights-") as folder:
        url = url or f"sqlite:///{folder}/flights.db"
        path = Path(folder) / "effects"
        path.touch(mode=0o600)
        effects = Effects(path)
        app, topic = build(url, name, str(path))
        raw = app.topic(name, bytes)
        report(f"{len(table):,} flights, {len(expected):,} events, topic {name}")
        memory = url.startswith("memory:")
        async with app if memory else app.connected():
            positions, twice = await publish(app, topic, expected)
            for number, document in enumerate(UNDECODABLE):
                await raw.publish(document, key=f"N{number}BAD", id=f"undecodable-{number}")
            published = len(expected) + twice
            report(f"published {published:,} messages, {twice:,} of them for the second time")
            began = time.monotonic()
            wanted = len(expected)
            if memory:
                kills = 0
                await _wait_until(lambda: effects.read() >= wanted, effects, lambda: None)
                await _wait_until(lambda: _is_caught_up(app, name), effects, lambda: None)
            else:
                kills = await _with_kill(app, url, name, path, effects, wanted, report)
            seconds = time.monotonic() - began
            effects.read()
            dead = await _dead_letters(app, name)
            report("replaying one aircraft, and one hour")
            replays = await asyncio.to_thread(_replays, topic, expected, positions)
        return Outcome(
            plain=plain_count(table),
            verdict=judge(effects.all, expected),
            published=published,
            twice_published=twice,
            undecodable=len(UNDECODABLE),
            dead_letters=dead,
            kills=kills,
            seconds=seconds,
            replays=replays,
        )


async def publish(
    app: Streams, topic: Topic[Event], expected: list[tuple[str, Event]]
) -> tuple[list[Position], int]:
    """Publish in time order, one in twenty twice; returns the positions of the first copies."""
    twins = random.Random(20130101)
    positions: list[Position] = []
    twice = 0
    for start in range(0, len(expected), 1_000):
        records: list[Record] = []
        firsts: list[int] = []
        for id, event in expected[start : start + 1_000]:
            firsts.append(len(records))
            records.append(topic.record(event, id=id))
            if twins.random() < 0.05:
                records.append(topic.record(event, id=id))
                twice += 1
        found = await app.publisher.publish_many(topic.name, records)
        positions += [found[index] for index in firsts]
    return positions, twice


async def _with_kill(
    app: Streams,
    url: str,
    name: str,
    path: Path,
    effects: Effects,
    wanted: int,
    report: Callable[[str], None],
) -> int:
    """Let a worker handle half, kill it, and let another one finish."""
    worker = _start_worker(url, name, path)
    try:
        await _wait_until(
            lambda: effects.read() >= wanted // 2, effects, lambda: _check_alive(worker)
        )
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        report(f"killed the worker with SIGKILL after {effects.read():,} events; starting another")
        worker = _start_worker(url, name, path)
        await _wait_until(lambda: effects.read() >= wanted, effects, lambda: _check_alive(worker))
        await _wait_until(lambda: _is_caught_up(app, name), effects, lambda: _check_alive(worker))
        worker.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(worker.wait, STALL_TIMEOUT)
        # If the killed one had handled everything, this one may still be starting, and just ends.
        if status not in (0, -signal.SIGTERM):
            raise DemoError(f"the worker ended with status {worker.returncode}")
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    return 1


def _start_worker(url: str, name: str, path: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "examples.flights.worker", url, name, str(path)]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})


def _check_alive(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is not None:
        raise DemoError(f"the worker ended by itself with status {worker.returncode}")


async def _wait_until(
    condition: Callable[[], bool], effects: Effects, check: Callable[[], None]
) -> None:
    """Wait for a condition, as long as there is progress."""
    moved, last = time.monotonic(), -1
    while not await asyncio.to_thread(condition):
        check()
        if len(effects.all) != last:
            moved, last = time.monotonic(), len(effects.all)
        elif time.monotonic() - moved > STALL_TIMEOUT:
            raise DemoError(
                f"no progress for {STALL_TIMEOUT:g} s, {len(effects.seen):,} events handled"
            )
        await asyncio.sleep(0.02)


def _is_caught_up(app: Streams, name: str) -> bool:
    """Whether the group's position is at the end of every partition."""
    committed = app.log.describe_group(GROUP).positions
    for partition in range(app.log.describe_topic(name).partitions):
        first, end = app.log.watermarks(name, partition)
        position = committed.get((name, partition))
        if end > first and (position is None or position.position < end):
            return False
    return True


async def _dead_letters(app: Streams, name: str) -> int:
    """The number of different messages in the group's dead letter topic."""
    letters = app.topic(DeadLetters().name(name, GROUP), bytes)
    return len({message.id for message in await asyncio.to_thread(lambda: list(letters.read()))})


def _replays(
    topic: Topic[Event], expected: list[tuple[str, Event]], positions: list[Position]
) -> list[Replay]:
    """One aircraft's history by key, and one hour by its start offsets."""
    by_aircraft: dict[str, int] = {}
    for _, event in expected:
        if event.tail_number is not None:
            by_aircraft[event.tail_number] = by_aircraft.get(event.tail_number, 0) + 1
    replays = []
    if by_aircraft:
        aircraft = max(by_aircraft, key=lambda tail: (by_aircraft[tail], tail))
        with topic.read(key=aircraft, errors="skip") as reading:
            history = {message.id for message in reading}
        replays.append(Replay(f"aircraft {aircraft}", len(history), by_aircraft[aircraft]))
    start = expected[len(expected) // 2][1].at.replace(minute=0)
    hour = [
        (event, position)
        for (_, event), position in zip(expected, positions, strict=True)
        if start <= event.at < start + timedelta(hours=1)
    ]
    begins: dict[int, Position] = {}
    for _, position in hour:
        begins.setdefault(position.partition, position)
    found: set[str] = set()
    for position in begins.values():
        with topic.read(start=position, errors="skip") as reading:
            for message in reading:
                if message.value.at >= start + timedelta(hours=1):
                    break
                found.add(message.id)
    replays.append(Replay(f"the hour from {start:%d %B %H:%M} UTC", len(found), len(hour)))
    return replays
