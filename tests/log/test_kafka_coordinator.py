"""What is asked of a group's coordinator while the group moves to another broker."""

from __future__ import annotations

import subprocess
import sys
from uuid import uuid4

import pytest

from streams.log.url import open_log
from tests.conformance.world import World
from tests.log.kafka_coordinator import MovingCoordinator
from tests.log.test_kafka_groups import CASE
from tests.servers.find import KafkaAddress

ASK = """
import sys
from streams.log.url import open_log

log = open_log(sys.argv[1])
match sys.argv[3]:
    case "all":
        found = log.describe_group(sys.argv[2]).positions
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


def test_partitions_begin_though_the_members_connection_waits_for_others_to_join(
    kafka: KafkaAddress,
) -> None:
    """A broker answers nothing over a connection while a JoinGroup of it waits."""
    with MovingCoordinator(kafka.bootstrap) as proxy:
        world = World(CASE, f"kafka://{proxy.bootstrap}?group.protocol=classic")
        topic, group = world.topic(2), world.group()
        proxy.hold_members()
        member = world.member(group, topic)
        member.until_owns(2)
        proxy.release_members()
        world.close()


ASK_IN_VAIN = """
import sys
import threading
from contextlib import suppress
from streams.errors import StreamsError, Unavailable
from streams.log.kafka import client
from streams.log.url import open_log

log = open_log(sys.argv[1])
log.list_topics()
client.REQUEST_TIMEOUT = 2.0  # from now on: the first question is to be answered
print("opened", flush=True)
sys.stdin.readline()
kept = []
done = threading.Event()

def ask_for_other_things():
    while not done.wait(0.01):
        with suppress(StreamsError):
            log.list_topics()

others = [threading.Thread(target=ask_for_other_things) for _ in range(2)]
for each in others:
    each.start()
try:
    log.describe_group(sys.argv[2])
except Unavailable as error:
    kept.append(error)
print("in vain" if kept else "answered", flush=True)
sys.stdin.readline()
while True:
    try:
        print(len(log.describe_group(sys.argv[2]).positions), flush=True)
        break
    except Unavailable:
        pass
sys.stdin.readline()
done.set()
for each in others:
    each.join()
log.close()
"""


def test_a_coordinator_that_comes_back_after_a_question_was_given_up_ends_nobody(
    kafka: KafkaAddress,
) -> None:
    """The driver ends the process where a client that gave a question up reaches it in the end."""
    name = f"moving-{uuid4().hex[:12]}"
    log = open_log(kafka.url)
    log.create_topic(name, 1)
    log.initialize_offsets(name, name, {0: 0})
    log.close()
    with MovingCoordinator(kafka.bootstrap) as proxy:
        url = f"kafka://{proxy.bootstrap}"
        with subprocess.Popen(
            [sys.executable, "-c", ASK_IN_VAIN, url, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        ) as asking:  # fmt: skip
            assert asking.stdin is not None
            assert asking.stdout is not None
            assert asking.stdout.readline() == "opened\n"
            proxy.fall_silent()
            asking.stdin.write("\n")
            assert asking.stdout.readline() == "in vain\n"
            proxy.speak()
            asking.stdin.write("\n")
            assert asking.stdout.readline() == "1\n"
            asking.stdin.write("\n")
        assert asking.returncode == 0
