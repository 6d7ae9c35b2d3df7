"""``streams run --workers`` on servers: what a killed worker had is handled again at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from streams.errors import NotFound
from streams.log.url import open_log
from streams.message import Record
from tests.cli.conftest import eventually
from tests.interop.conftest import Broker, name
from tests.servers.find import RedisAddress

STARTING = (
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
)

ROOT = Path(__file__).resolve().parents[2]

APP = """
import os

from streams import Streams

app = Streams()


@app.processor(app.topic({topic!r}, int), group={topic!r})
def note(value):
    with open("seen.txt", "a") as file:
        file.write(f"{{value}} {{os.environ['STREAMS_WORKER']}} {{os.getpid()}}\\n")
"""


@contextmanager
def workers(
    folder: Path, module: str, url: str, count: int = 2
) -> Iterator[subprocess.Popen[bytes]]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "codecs")))
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "run", f"{module}:app", "--workers", str(count)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "STREAMS_URL": url},
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()  # its workers see that and end
        process.wait()


def described(broker: Broker, group: str) -> Any:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    return admin.describe_consumer_groups([group])[group].result(30)


class Numbers:
    """What is published to a topic of four partitions, and what its handlers wrote down."""

    def __init__(self, folder: Path, url: str) -> None:
        self.topic = name("numbers")
        self._seen = folder / "seen.txt"
        # A name of its own: supervisors of one app on one machine number their workers differently.
        self.module = self.topic.replace("-", "_")
        (folder / f"{self.module}.py").write_text(APP.format(topic=self.topic))
        self.log = open_log(url)
        self.log.create_topic(self.topic, 4)

    def publish(self, numbers: range) -> None:
        records = [Record(b"%d" % n, None, f"n{n}", partition=n % 4) for n in numbers]
        self.log.append(self.topic, records, lambda answers: None)

    def seen(self) -> list[list[str]]:
        path = self._seen
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def handled(self, count: int) -> bool:
        return len({line[0] for line in self.seen()}) == count


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_killed_worker_comes_back(broker: Broker, tmp_path: Path, protocol: str) -> None:
    numbers = Numbers(tmp_path, broker.url)
    topic = numbers.topic

    def shared() -> bool:
        try:
            members = described(broker, topic).members
        except TimeoutError:
            return False
        except KafkaException as error:  # a broker that was just started looks for its groups
            if error.args[0].code() in STARTING:
                return False
            raise
        return len(members) == 2 and all(each.assignment.topic_partitions for each in members)

    # A session that outlasts the test: without static membership the group would have to wait for
    # its end (KIP-848 has the broker's, six seconds here).
    session = "&session.timeout.ms=300000" if protocol == "classic" else ""
    with workers(
        tmp_path, numbers.module, f"{broker.url}?group.protocol={protocol}{session}"
    ) as process:
        eventually(shared, 120)
        numbers.publish(range(8))
        eventually(lambda: numbers.handled(8), 60)
        _, victim, killed = numbers.seen()[0]
        mine = {int(value) % 4 for value, worker, _ in numbers.seen() if worker == victim}
        ids = {each.group_instance_id for each in described(broker, topic).members}
        if protocol == "classic":
            assert sorted(each[-2:] for each in ids) == ["-1", "-2"]
        else:
            assert ids == {None}
        os.kill(int(killed), signal.SIGKILL)
        numbers.publish(range(8, 16))
        eventually(lambda: numbers.handled(16), 60)
        if protocol == "classic":
            after = [line for line in numbers.seen() if int(line[0]) >= 8]
            assert {int(value) % 4 for value, worker, _ in after if worker == victim} == mine
            assert all(pid != killed for _, _, pid in after)
            assert {each.group_instance_id for each in described(broker, topic).members} == ids
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    numbers.log.close()


@pytest.mark.parametrize("count", [1, 2], ids=["alone", "two"])
def test_what_a_killed_worker_had_is_not_waited_for(
    redis_server: RedisAddress, tmp_path: Path, count: int
) -> None:
    """The lease is an hour: that anybody handles it at all proves that it was given up (by the
    other worker, which the supervisor has told) or taken by its name (by the next life)."""
    url = f"{redis_server.url}?lease=3600&socket_timeout=5"
    numbers = Numbers(tmp_path, url)
    log, group = numbers.log, numbers.topic

    def owners() -> list[int]:
        try:
            members = log.describe_group(group).members
        except NotFound:
            return []
        return sorted(
            len([topic for topic, _ in each.partitions if topic == group]) for each in members
        )

    with workers(tmp_path, numbers.module, url, count) as process:
        eventually(lambda: owners() == ([2, 2] if count == 2 else [4]), 60)
        for begin in range(0, 24, 8):
            numbers.publish(range(begin, begin + 8))
            eventually(lambda begin=begin: numbers.handled(begin + 8), 60)  # type: ignore[misc]
            killed = numbers.seen()[-1][2]
            os.kill(int(killed), signal.SIGKILL)
        numbers.publish(range(24, 32))
        eventually(lambda: numbers.handled(32), 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    numbers.log.close()
