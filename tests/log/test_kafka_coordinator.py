"""What is asked of a group's coordinator while the group moves to another broker."""

from __future__ import annotations

import subprocess
import sys
from uuid import uuid4

import pytest

from streams.log.url import open_log
from tests.log.kafka_coordinator import MovingCoordinator
from tests.servers.find import KafkaAddress

ASK = """
import sys
from streams.log.url import open_log

log = open_log(sys.argv[1])
match sys.argv[3]:
    case "all":
        found = log.group(sys.argv[2]).positions
    case "one topic":
        found = log.committed(sys.argv[2], sys.argv[2])
print(len(found))
log.close()
"""


@pytest.mark.parametrize("wanted", ["all", "one topic"])
def test_positions_are_told_though_the_coordinator_has_moved(
    kafka: KafkaAddress, wanted: str
) -> None:
    """In a process of its own: the driver's obvious question ends it by a SIGSEGV."""
    name = f"moving-{uuid4().hex[:12]}"
    log = open_log(kafka.url)
    log.create_topic(name, 3)
    log.initialize_offsets(name, name, {0: 0, 1: 0, 2: 0})
    log.close()
    with MovingCoordinator(kafka.bootstrap) as proxy:
        proxy.refuse(2)
        url = f"kafka://{proxy.bootstrap}"
        done = subprocess.run(
            [sys.executable, "-c", ASK, url, name, wanted],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
        assert proxy.refused == 2
