"""Ordered dead letters while their owner stands still, at each of its writes, until another has
taken over; then it goes on where it stood.

A run: the first worker comes by a failpoint and stops itself. Its lease runs out, the second one
takes over, and handles, parks and commits everything there is. The first one goes on, and its write
arrives, or is refused by a log that fences appends. More messages follow. In the end every message
was handled, those of a key in their order, nothing is parked any more, and the group's position is
behind the last message. No verdict depends on time.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from streams import Streams
from streams.log.appending import append_and_wait
from streams.log.membership import LeaseTerms
from streams.log.memory.log import MemoryLog
from streams.log.range_reader import read_batches
from streams.message import Record
from streams.parking import key_parking, parse_batch, read_state
from streams.parking.records import ParkingRecord, epoch_name, parked_topic
from streams.patterns.deadletters.closed_keys import ClosedKeyReader
from tests.conformance.logs import MAIN_LOGS
from tests.conformance.stage import Stage
from tests.patterns import failpoints
from tests.patterns.frozen_child import build
from tests.servers.lifetime import until

ROOT = Path(__file__).parents[2]
PATIENCE = float(os.environ.get("STREAMS_PATIENCE", "90"))
"""Seconds until a run is given up; no measure of speed."""

KEYS = ("k", "l", "o")
RUNS = 20

pytestmark = pytest.mark.short_lease

logger = logging.getLogger("tests.patterns")


def key_of(value: int) -> str:
    return KEYS[value % len(KEYS)]


class Trial:
    """One run on one log: its topic, what was published, and what closes keys."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.folder = folder
        self.file = folder / "lines.txt"
        self.file.touch()
        self.published = 0
        stage.anchor.create_topic(stage.topic_name, 1)

    def publish(self, count: int) -> None:
        values = range(self.published, self.published + count)
        records = [
            Record(str(value).encode(), key_of(value).encode(), f"m{value}") for value in values
        ]
        found = append_and_wait(self.stage.anchor, self.stage.topic_name, records)
        assert not [each for each in found if isinstance(each, BaseException)], found
        self.published += count

    def retry_all(self) -> None:
        """Let everything that closes a key be handled again."""
        try:
            heads = ClosedKeyReader(self.stage.anchor, self.stage.group, self.stage.topic_name)
        except LookupError:
            return  # nobody runs yet
        for head in heads.heads():
            if head.is_dead:
                heads.send_command("retry", head)

    def committed(self) -> bool:
        """The group's position is behind the last message."""
        log = self.stage.anchor
        place = log.committed(self.stage.group, self.stage.topic_name).get(0)
        end = log.watermarks(self.stage.topic_name, 0)[1]
        return place is not None and place.position >= end

    def closed(self) -> list[bytes]:
        heads = ClosedKeyReader(self.stage.anchor, self.stage.group, self.stage.topic_name)
        return [head.key for head in heads.heads()]

    def refused(self) -> int:
        """Owner records that count for nobody."""
        stage = self.stage
        return read_state(
            stage.anchor, parked_topic(stage.topic_name, stage.group), 0
        ).refused_owners

    def late_records(self) -> list[ParkingRecord]:
        """What was written in the name of an owner behind the record of its successor."""
        log, name = self.stage.anchor, parked_topic(self.stage.topic_name, self.stage.group)
        found: list[ParkingRecord] = []
        owner = ""
        for batch in read_batches(log, name, 0, *log.watermarks(name, 0)):
            for position, _, record in parse_batch(batch):
                if record.kind == "owner":
                    owner = epoch_name(position, record.writer)
                elif record.writer and record.writer != owner:
                    found.append(record)
        return found

    def lines(self) -> list[list[str]]:
        text = self.file.read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def said(self, *words: str) -> bool:
        return list(words) in self.lines()

    def handled(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for line in self.lines():
            if line[0] == "handled":
                found[line[1]].append(int(line[2]))
        return found

    def all_handled(self) -> bool:
        values = {value for found in self.handled().values() for value in found}
        return values == set(range(self.published))

    def check(self) -> None:
        """Order is kept."""
        for key, values in self.handled().items():
            # What is repeated was handled before.
            assert list(dict.fromkeys(values)) == sorted(set(values)), (key, values)

    def explain(self) -> str:
        log, stage = self.stage.anchor, self.stage
        place = log.committed(stage.group, stage.topic_name)
        return (
            f"published {self.published}, at {place} of {log.watermarks(stage.topic_name, 0)}, "
            "handled "
            f"{dict(self.handled())}, closed {self.closed()}\n"
            + "\n".join(path.read_text()[-4_000:] for path in self.folder.glob("*.log"))
        )


class Worker(Protocol):
    """One of the two workers of a run."""

    def stands_still(self) -> bool:
        """It has come by its failpoint."""
        ...

    def go_on(self) -> None:
        """Let it go on from there."""
        ...

    def end(self) -> None:
        """End it, however it stands."""
        ...


Start = Callable[[Trial, str, int], Worker]
"""Starts a worker that stands still when it comes by a failpoint for the so-many-th time."""


class Process:
    """A worker as a process, which stops itself with SIGSTOP."""

    def __init__(self, trial: Trial, failpoint: str, count: int) -> None:
        stage = trial.stage
        words = [stage.url, stage.topic_name, stage.group, str(trial.file), failpoint, str(count)]
        with (trial.folder / f"{failpoint}.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.patterns.frozen_child", *words],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def stands_still(self) -> bool:
        """Nothing of the process runs."""
        states = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        found = os.waitid(os.P_PID, self._process.pid, states)
        assert found is None or found.si_code == os.CLD_STOPPED, "the worker ended by itself"
        return found is not None

    def go_on(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """``kill -9``."""
        self._process.kill()
        self._process.wait()


class Threads:
    """A worker in threads of this process, for the log that lives there. Standing still, all of
    its threads that touch the log wait, and its lease runs out."""

    def __init__(self, trial: Trial, failpoint: str, count: int) -> None:
        stage = trial.stage
        self._frozen = threading.Event()
        self._going = threading.Event()
        self._app = build(
            stage.url, stage.topic_name, stage.group, str(trial.file), failpoint, count,
            self._stand_still,
        )  # fmt: skip
        self._running = self._app.background()
        self._running.__enter__()

    def _stand_still(self, app: Streams) -> None:
        log = app.log
        assert isinstance(log, MemoryLog)
        log.fault(lambda point, name: self._wait())
        for subscription in list(log._subscriptions):
            subscription.freeze()
        self._frozen.set()
        self._wait()

    def _wait(self) -> None:
        self._going.wait()

    def stands_still(self) -> bool:
        return self._frozen.is_set() and not self._going.is_set()

    def go_on(self) -> None:
        self._going.set()

    def end(self) -> None:
        self._going.set()
        self._running.__exit__(None, None, None)


def freeze(start: Start, stage: Stage, folder: Path, failpoint: str, count: int) -> None:
    """One run."""
    trial = Trial(stage, folder)
    workers: list[Worker] = []

    def wait(over: Callable[[], bool], what: str, *, retrying: bool = False) -> None:
        def step() -> bool:
            found = over()
            if not found and retrying:
                trial.retry_all()
            return found

        try:
            until(step, PATIENCE, f"{failpoint} on {stage.case.name}: {what}")
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{trial.explain()}") from None

    try:
        trial.publish(12)
        first = start(trial, failpoint, count)
        workers.append(first)

        def stands_still() -> bool:
            if not first.stands_still() and trial.all_handled() and trial.committed():
                trial.publish(30)  # it has come by too few times yet
            return first.stands_still()

        wait(stands_still, "the first worker stands still", retrying=True)
        workers.append(start(trial, "-", 1))
        trial.publish(12)
        wait(trial.committed, "the second worker has taken over")
        assert first.stands_still()
        first.go_on()
        wait(lambda: trial.said("late"), "the first worker's write is over")
        if stage.case.capabilities.fences_appends:
            assert trial.refused() == 0, "the log has let an owner write that is none any more"
            assert trial.late_records() == []
        elif failpoint == "owner.before":
            assert trial.refused() == 1  # it came behind that of the second worker
        trial.publish(12)
        wait(trial.committed, "what came afterwards is settled")
        wait(trial.all_handled, "everything is handled", retrying=True)
        wait(lambda: trial.closed() == [], "all keys are open", retrying=True)
        trial.publish(3)
        wait(trial.committed, "it goes on", retrying=True)
        wait(trial.all_handled, "what came last is handled", retrying=True)
        wait(lambda: trial.closed() == [], "nothing is parked any more", retrying=True)
        trial.check()
    finally:
        for worker in workers:
            worker.end()


@pytest.fixture
def arena(log: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stage]:
    """The log of that name, under a URL of its own, with short leases."""
    case = next(case for case in MAIN_LOGS if case.name == log)
    url: str = request.getfixturevalue(case.url)
    if log == "sqlite":
        url = f"{url}?synchronous=normal&lease=1"
    elif log == "redis":
        url = url.replace("lease=2", "lease=1")
    opened = Stage(case, url)
    yield opened
    opened.close()


SHORT = ("owner.before", "waits.before", "commit.before", "commit.read")
"""Failpoints of every ``make test``: those where a message would be lost without the chain of
owners, the fence, the reading back, and the log's own fence of commits. A log that fences appends
has nothing of the first two."""


@pytest.mark.timeout(400)
@pytest.mark.parametrize("failpoint", SHORT)
@pytest.mark.parametrize("log", ["sqlite", "redis", "kafka"])
def test_an_owner_that_stood_still_loses_nothing(
    arena: Stage, tmp_path: Path, failpoint: str
) -> None:
    freeze(Process, arena, tmp_path, failpoint, 1)


@pytest.mark.faults
@pytest.mark.timeout(1_000)
@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("failpoint", failpoints.ALL)
@pytest.mark.parametrize("log", ["sqlite", "redis", "kafka"])
def test_an_owner_that_stood_still_at_any_write_loses_nothing(
    arena: Stage, tmp_path: Path, failpoint: str, number: int
) -> None:
    """Twenty-six runs a log, the second time at a later passing."""
    freeze(Process, arena, tmp_path, failpoint, _count(failpoint, number))


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch, memory_url: str) -> Iterator[Stage]:
    """The memory log, with short leases, and a floor that moves often."""
    for module in ("subscription", "membership"):
        monkeypatch.setattr(f"streams.log.memory.{module}.DEFAULT_TERMS", LeaseTerms(lease=0.5))
    monkeypatch.setattr(key_parking, "FLOOR_INTERVAL", 0.1)
    case = next(case for case in MAIN_LOGS if case.name == "memory")
    opened = Stage(case, memory_url)
    yield opened
    opened.close()


@pytest.mark.parametrize("failpoint", failpoints.ALL)
def test_an_owner_in_memory_that_stood_still_loses_nothing(
    in_memory: Stage, tmp_path: Path, failpoint: str
) -> None:
    freeze(Threads, in_memory, tmp_path, failpoint, 1)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(1, 3))
@pytest.mark.parametrize("failpoint", failpoints.ALL)
def test_an_owner_in_memory_that_stood_still_at_any_write_loses_nothing(
    in_memory: Stage, tmp_path: Path, failpoint: str, number: int
) -> None:
    freeze(Threads, in_memory, tmp_path, failpoint, _count(failpoint, number))


def _count(failpoint: str, number: int) -> int:
    """Which passing of a failpoint. The first of an owner record is the only one: a worker that
    owns its partition does not come by there again."""
    return 1 if failpoint.startswith("owner") else 1 + 2 * number
