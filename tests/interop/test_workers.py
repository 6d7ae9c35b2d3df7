"""``streams run --workers`` on Kafka: a killed worker has its partitions back at once."""

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
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from streams.log.url import open_log
from streams.message import Record
from tests.cli.conftest import eventually
from tests.interop.conftest import name
from tests.servers.kafka import Kafka

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
def workers(folder: Path, module: str, url: str) -> Iterator[subprocess.Popen[bytes]]:
    paths = os.pathsep.join((str(ROOT), str(ROOT / "codecs")))
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.cli", "run", f"{module}:app", "--workers", "2"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "STREAMS_URL": url},
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()  # its workers see that and end
        process.wait()


def described(broker: Kafka, group: str) -> Any:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    return admin.describe_consumer_groups([group])[group].result(30)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_killed_worker_comes_back(broker: Kafka, tmp_path: Path, protocol: str) -> None:
    topic = name("numbers")
    # A name of its own: supervisors of one app on one machine number their workers differently.
    module = topic.replace("-", "_")
    (tmp_path / f"{module}.py").write_text(APP.format(topic=topic))
    log = open_log(broker.url)
    log.create(topic, 4)

    def publish(numbers: range) -> None:
        records = [Record(b"%d" % n, None, f"n{n}", partition=n % 4) for n in numbers]
        log.append(topic, records, lambda answers: None)

    def seen() -> list[list[str]]:
        path = tmp_path / "seen.txt"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def handled(count: int) -> bool:
        return len({line[0] for line in seen()}) == count

    def shared() -> bool:
        try:
            members = described(broker, topic).members
        except (KafkaException, TimeoutError):
            return False  # the coordinator has more to do at this moment
        return len(members) == 2 and all(each.assignment.topic_partitions for each in members)

    # A session that outlasts the test: without static membership the group would have to wait for
    # its end (KIP-848 has the broker's, six seconds here).
    session = "&session.timeout.ms=300000" if protocol == "classic" else ""
    with workers(tmp_path, module, f"{broker.url}?group.protocol={protocol}{session}") as process:
        eventually(shared, 120)
        publish(range(8))
        eventually(lambda: handled(8), 60)
        _, victim, killed = seen()[0]
        mine = {int(value) % 4 for value, worker, _ in seen() if worker == victim}
        ids = {each.group_instance_id for each in described(broker, topic).members}
        if protocol == "classic":
            assert sorted(each[-3:] for each in ids) == ["1.1", "1.2"]
        else:
            assert ids == {None}
        os.kill(int(killed), signal.SIGKILL)
        publish(range(8, 16))
        eventually(lambda: handled(16), 60)
        if protocol == "classic":
            after = [line for line in seen() if int(line[0]) >= 8]
            assert {int(value) % 4 for value, worker, _ in after if worker == victim} == mine
            assert all(pid != killed for _, _, pid in after)
            assert {each.group_instance_id for each in described(broker, topic).members} == ids
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    log.close()
