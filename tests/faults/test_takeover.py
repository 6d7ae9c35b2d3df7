"""How soon what a killed process had is handled again, where somebody knows that it is dead.

With ``streams run --workers`` the supervisor saw it die; a static member that is started again has
its partitions back by its name. The long runs have the usual leases and sessions (10 s), and say
how long it took; the short ones have some that outlast the test, so that it is shown without a
clock: were anything waited for, nothing would be handled.
"""

from __future__ import annotations

import logging
import os
import signal
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tests.faults.fleet import Fleet, Supervised
from tests.faults.history import Effect, Life, read
from tests.faults.load import Load
from tests.faults.run import PARTITIONS, Run
from tests.faults.sizes import sizes
from tests.servers.lifetime import until

logger = logging.getLogger("tests.faults")

STEADY = 10.0
"""A worker that lived so long is started again at once
(:class:`streams.cli.supervisor.RestartPolicy`)."""

RATE = 200.0


class Kills(NamedTuple):
    kills: int
    settings: dict[str, str]
    """How long a silent member is waited for."""
    life: float
    """Seconds that a process has lived at least when it is killed."""


USUAL = {"redis": "lease=10", "kafka": "session.timeout.ms=10000"}
ENDLESS = {
    "redis": "lease=3600&socket_timeout=5",
    "kafka": "session.timeout.ms=300000&max.poll.interval.ms=300000&heartbeat.interval.ms=200",
}
SHORT = Kills(2, ENDLESS, 0.0)
LONG = Kills(20, USUAL, STEADY + 0.5)


class Killed(NamedTuple):
    """One kill."""

    at: float
    life: str
    partitions: frozenset[int]


def pid_of(life: str) -> int:
    return int(life.split("-")[1])


def born(life: str) -> float:
    return int(life.split("-")[0]) / 1e9


def kill(fleet: Fleet, run: Run, life: float) -> Killed:
    """``kill -9`` the process that has lived longest of those that own something."""
    found: list[str] = []

    def old_enough() -> bool:
        owners = {name for name, _ in fleet.tail.owned_by(run.topic).values()}
        found[:] = sorted(owners, key=born)[:1] if len(owners) > 1 else []
        return bool(found) and time.monotonic() - born(found[0]) >= life

    until(old_enough, 120, "all own partitions, and one is old enough")
    (victim,) = found
    owned = fleet.tail.owned_by(run.topic)
    mine = frozenset(number for number, (name, _) in owned.items() if name == victim)
    os.kill(pid_of(victim), signal.SIGKILL)
    return Killed(time.monotonic(), victim, mine)


def again(fleet: Fleet, run: Run, killed: Killed) -> bool:
    """Somebody else has all that the killed one had."""
    owned = fleet.tail.owned_by(run.topic)
    return all(owned[number][0] != killed.life for number in killed.partitions)


def times(lives: list[Life], killed: Killed) -> list[float]:
    """When each partition of a killed process was handled again, in seconds from its death."""
    first: dict[int, float] = {}
    for life in lives:
        if life.name == killed.life:
            continue
        for event in life.events:
            if isinstance(event, Effect) and event.at > killed.at:
                number = event.partition
                first[number] = min(first.get(number, event.at), event.at)
    return sorted(first[number] - killed.at for number in killed.partitions & first.keys())


def report(run: Run, how: str, kills: list[Killed]) -> None:
    lives = read(run.folder)
    found = [each for each in (times(lives, killed) for killed in kills) if each]
    if not found:  # nothing was published after the kills
        return
    firsts, lasts = [each[0] for each in found], [each[-1] for each in found]
    logger.warning(
        "%s, %s, %d kills: first message handled again after %.2f s (median), %.2f s at most; "
        "every partition after %.2f s (median), %.2f s at most",
        run.ground.name, how, len(found), statistics.median(firsts), max(firsts),
        statistics.median(lasts), max(lasts),
    )  # fmt: skip


def loaded(run: Run) -> Load:
    return Load(
        run.ground.direct, run.topic, run.folder, run.random,
        messages=1_000_000, rate=RATE, partitions=PARTITIONS, chunk=10,
    )  # fmt: skip


def url(run: Run, size: Kills) -> str:
    place = run.ground.direct.partition("?")[0]
    return f"{place}?{size.settings[run.ground.name]}"


def killed_by_turns(
    run: Run, size: Kills, fleet: Fleet, how: str, restart: Callable[[Killed], None]
) -> None:
    """Kill one after the other under load, and judge the whole history."""
    kills: list[Killed] = []
    with loaded(run) as load:
        for _ in range(size.kills):
            killed = kill(fleet, run, size.life)
            restart(killed)
            kills.append(killed)
            until(lambda killed=killed: again(fleet, run, killed), 60, "it is owned again")  # type: ignore[misc]
        run.judge(fleet, load.stop())
    report(run, how, kills)


@sizes(SHORT, LONG, long_logs=("kafka", "redis"), seconds=900)
def test_a_worker_that_the_supervisor_saw_die(run: Run, size: Kills) -> None:
    supervised = Supervised(
        run.folder, url(run, size), run.topic, run.group, concurrency=16, pause=0.005
    )
    with supervised as fleet:
        supervised.supervise(2)
        killed_by_turns(run, size, fleet, "--workers 2", lambda killed: None)


@sizes(SHORT, LONG, long_logs=("kafka", "redis"), seconds=900)
def test_a_static_member_that_is_started_again(run: Run, size: Kills) -> None:
    with run.fleet(url=url(run, size)) as fleet:
        names = {fleet.start(member).pid: member for member in ("one", "two")}

        def restart(killed: Killed) -> None:
            member = names.pop(pid_of(killed.life))
            names[fleet.start(member).pid] = member

        killed_by_turns(run, size, fleet, "static members", restart)


@pytest.mark.parametrize("moment", [5.0])
def test_the_times_of_a_history(moment: float) -> None:
    def life(name: str, *effects: tuple[float, int]) -> Life:
        events = [Effect(at, "t", number, 0, None, "id") for at, number in effects]
        return Life(name, events)

    killed = Killed(moment, "1-1", frozenset({0, 1}))
    lives = [
        life("1-1", (4.0, 0), (5.1, 1)),  # the last thing it wrote
        life("2-2", (4.5, 2), (5.5, 2), (6.0, 0), (6.5, 0)),
        life("3-3", (5.5, 3), (7.0, 1)),
    ]
    assert times(lives, killed) == [1.0, 2.0]
