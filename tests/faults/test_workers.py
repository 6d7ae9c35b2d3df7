"""What happens to workers: killed, frozen beyond their lease, joining and leaving all the time."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.faults.history import late_effects, read
from tests.faults.run import Run, wait
from tests.faults.sizes import sizes
from tests.servers.lifetime import until

HANDLERS = {"async": 16, "plain": 1}
"""Their concurrency."""

SHORT = {("kafka_classic", "async"), ("redis_durable", "plain")}
"""What the short runs are made with; the long ones are made with both everywhere."""


def runs(short: Any, long: Any) -> pytest.MarkDecorator:
    """Run a test with ``run``, ``size`` and ``concurrency``."""
    cases = [
        pytest.param(*case.values, concurrency, id=f"{case.id}-{name}", marks=case.marks)
        for case in sizes(short, long).args[1]
        for name, concurrency in HANDLERS.items()
        if case.values[1] == long or (case.values[0], name) in SHORT
    ]
    return pytest.mark.parametrize(("ground", "size", "concurrency"), cases, indirect=["ground"])


class Kills(NamedTuple):
    workers: int
    kills: int
    messages: int
    rate: float


@pytest.mark.everywhere
@runs(Kills(2, 2, 4_000, 1_000), Kills(3, 30, 60_000, 800))
def test_kill_9_under_load(run: Run, size: Kills, concurrency: int) -> None:
    """Nothing lost, order kept, redelivered at most what no acknowledged commit covers."""
    with (
        run.watched() as wrong,
        run.fleet(concurrency=concurrency) as fleet,
        run.load(size.messages, rate=size.rate) as load,
    ):
        for _ in range(size.workers):
            fleet.start()
        moments = sorted(
            run.random.randrange(size.messages // 20, size.messages * 9 // 10)
            for _ in range(size.kills)
        )
        for moment in moments:
            fleet.until(lambda handled, moment=moment: handled >= moment)  # type: ignore[misc]
            fleet.kill_one(run.random)
        run.judge(fleet, load.finish())
    assert wrong == []


@runs(1, 5)
def test_frozen_beyond_its_lease_and_continued(run: Run, size: int, concurrency: int) -> None:
    """Late effects at most those in flight; no commit of the frozen one counts."""
    messages = 4_000 + 5_000 * size
    # One handler in ten takes long and there is a backlog, so much is in flight at any moment.
    with (
        run.watched() as wrong,
        run.fleet(concurrency=concurrency, pause=0.15 if concurrency > 1 else 0.01) as fleet,
        run.load(messages) as load,
    ):
        fleet.start()
        fleet.start()
        for number in range(size):
            fleet.until(lambda handled, least=200 + 3_000 * number: handled >= least)  # type: ignore[misc]
            until(lambda: run.owners() == 2, 60, "both own partitions")
            victim = run.random.choice(fleet.running)
            fleet.freeze(victim)
            # Beyond the lease: what it owned is somebody else's, and moves on.
            until(lambda: run.owners() == 1, 60, "the frozen one has lost its partitions")
            least = min(fleet.tail.count() + 200, messages)
            fleet.until(lambda handled, least=least: handled >= least)  # type: ignore[misc]
            fleet.thaw(victim)
        run.judge(fleet, load.finish())
    assert wrong == []
    lives = read(run.folder)
    for name in fleet.exempt(lives):
        # Each partition it had can end what was running in it, at most once a freeze.
        assert sum(late_effects(lives, name).values()) <= concurrency * size


class Turnover(NamedTuple):
    changes: int
    every: float
    messages: int
    rate: float


@runs(Turnover(4, 1.0, 3_000, 500), Turnover(60, 1.0, 60_000, 900))
def test_a_member_joins_or_leaves_every_second(run: Run, size: Turnover, concurrency: int) -> None:
    """Nothing lost, order kept, progress throughout."""
    with (
        run.fleet(concurrency=concurrency) as fleet,
        run.load(size.messages, rate=size.rate) as load,
    ):
        fleet.start()
        fleet.start()
        fleet.until(lambda handled: handled >= 1)
        for _ in range(size.changes):
            before = fleet.tail.count()
            if len(fleet.running) <= 2 or (len(fleet.running) < 4 and run.random.random() < 0.5):
                fleet.start()
            else:
                fleet.leave_one(run.random)
            wait(size.every)
            if before < load.acknowledged:  # there was something to do: something was done
                fleet.until(lambda handled, before=before: handled > before)  # type: ignore[misc]
        run.judge(fleet, load.finish())
