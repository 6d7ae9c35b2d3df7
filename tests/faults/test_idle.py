"""Many partitions, nothing to do: memory and CPU stay flat."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import NamedTuple

from tests.faults.run import Run
from tests.faults.sizes import BOTH, sizes
from tests.servers.lifetime import until


class Idle(NamedTuple):
    partitions: int
    seconds: float


# A figure of CPU time, which a loaded machine spoils: only behind `make faults`.
@sizes(Idle(50, 1.0), Idle(1_000, 15.0), logs=(), long_logs=BOTH)
def test_idle_partitions_cost_next_to_nothing(run: Run, size: Idle) -> None:
    topic = f"{run.topic}-wide"
    run.log.create_topic(topic, size.partitions)
    # A broker that has just made so many is busy for a while: a process that joins now would end.
    if run.ground.name == "kafka":
        until(lambda: run.known() is not None, 120, "the group's coordinator answers")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.idle", run.ground.direct, topic, run.group,
         str(size.seconds)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    logging.getLogger("tests.faults").warning("%s, idle: %s", run.ground.name, found)
    run.log.delete_topic(topic)
    # A guard against what grows without end or spins, not a measure: docs/faults.md has figures.
    assert found["cpu"] < 0.5
    assert found["after"] - found["before"] < 8.0
