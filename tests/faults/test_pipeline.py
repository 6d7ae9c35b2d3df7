"""A pipeline on Kafka, exactly once, while its workers are killed, frozen and moved about and its
brokers restart.

Each message's outputs and dead letters are there once for ``read_committed``, and the outputs of a
key in its order.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

import pytest

from streams.log.protocol import Log
from tests.faults.fleet import Fleet
from tests.faults.ground import BROKER_SESSION, KAFKA, KIP848, kafka_ground
from tests.faults.pipeline_worker import is_rejected, outputs_of, target_of
from tests.faults.proxy import Proxy
from tests.faults.run import PARTITIONS, Run, wait
from tests.faults.sizes import sizes
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime, free_port, until

logger = logging.getLogger("tests.faults")

WORKERS = 3

ABORTS = "transaction.abort.timed.out.transaction.cleanup.interval.ms=4000"
"""How often a broker looks for transactions to be aborted, once it was restarted here. At first it
looks each second, as in all tests, and that is too soon after a restart: until a broker is let into
the cluster, its partitions have no leader, and its coordinator takes those for deleted, writes no
marker there and forgets the transaction, which stays open for ever (Kafka 4.3; by default it looks
each 10 s)."""


class PipelineFleet(Fleet):
    """Workers of one pipeline."""

    def __enter__(self) -> PipelineFleet:
        return self

    def __init__(self, run: Run, *, url: str = "") -> None:
        super().__init__(
            run.folder, url or run.ground.direct, run.topic, run.group, concurrency=64, pause=0.01
        )
        self._command[2] = "tests.faults.pipeline_worker"

    def ask_to_leave(self, worker: Popen[bytes]) -> None:
        """SIGTERM, if nobody has killed it by now."""
        self._left.add(worker.pid)
        worker.terminate()


class Size(NamedTuple):
    kills: int
    rebalances: bool
    restarts: int
    freezes: int
    rate: float


def messages_of(log: Log, topic: str) -> Iterator[tuple[str, str, bytes]]:
    """Key, ID and value of each message, in order of the partitions."""
    for partition in range(log.describe_topic(topic).partitions):
        reader = log.reader(topic, partition, *log.watermarks(topic, partition))
        try:
            while (batch := reader.read(5_000, 20.0)) is not None:
                for index in range(len(batch)):
                    yield (
                        (batch.keys[index] or b"").decode(),
                        batch.id(index),
                        batch.values[index] or b"",
                    )
        finally:
            reader.close()


def anomalies(log: Log, topic: str, group: str) -> list[str]:
    """What is in the log and should not be, or is not; in sentences."""
    wrong: list[str] = []
    expected: dict[str, list[str]] = defaultdict(list)
    seen: set[str] = set()
    for key, id, _ in messages_of(log, topic):
        if id not in seen:
            seen.add(id)
            if not is_rejected(id):
                expected[key] += [each.decode() for each in outputs_of(key, id)]
    found: dict[str, list[str]] = defaultdict(list)
    for key, _, value in messages_of(log, target_of(topic)):
        found[key].append(value.decode())
    for key in sorted(expected.keys() | found.keys()):
        if found[key] != expected[key]:
            missing = [each for each in expected[key] if each not in set(found[key])]
            twice = sorted({each for each in found[key] if found[key].count(each) > 1})
            wrong.append(
                f"{key}: {len(found[key])} of {len(expected[key])}, missing {missing[:5]}, more "
                f"than once {twice[:5]}, "
                + ("" if missing or twice else "in another order than their messages")
            )
    letters = sorted(id for _, id, _ in messages_of(log, f"{topic}.{group}.dead"))
    rejected = sorted(each for each in seen if is_rejected(each))
    if letters != rejected:
        wrong.append(f"dead letters: {len(letters)}, of {len(rejected)} that were rejected")
    logger.warning("%d messages, %d outputs", len(seen), sum(map(len, found.values())))
    return wrong


def look_later(kafka: object) -> None:
    """From its next start on, a broker looks for transactions to be aborted as ABORTS says."""
    assert isinstance(kafka, Kafka)
    with kafka.nodes[0].properties.open("a", encoding="utf-8") as properties:
        properties.write(f"{ABORTS}\n")


@contextmanager
def coming_and_going(fleet: PipelineFleet, run: Run) -> Iterator[None]:
    """Another member each second, or one less."""
    over = threading.Event()

    def move() -> None:
        while not over.wait(1.0):
            extra = fleet.start()
            over.wait(1.0)
            fleet.ask_to_leave(extra)

    thread = threading.Thread(target=move, name="tests-rebalances")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def is_readable(run: Run) -> bool:
    """No transaction is open in what the pipeline writes."""
    return all(
        run.log.watermarks(topic, partition)[1] == run.log.log_end_offset(topic, partition)
        for topic in (target_of(run.topic), f"{run.topic}.{run.group}.dead")
        for partition in range(PARTITIONS)
    )


def judge(run: Run, fleet: PipelineFleet) -> None:
    try:
        until(run.at_end, 120, f"{run.group} has committed the end of {run.topic}")
    except TimeoutError as error:
        fleet.explain()
        raise AssertionError(f"{error}: {run._not_yet}") from error
    fleet.stop()
    until(lambda: is_readable(run), 60, "what the last one killed had left open is ended")
    assert anomalies(run.log, run.topic, run.group) == []


@sizes(
    Size(kills=2, rebalances=False, restarts=0, freezes=1, rate=500),
    Size(kills=30, rebalances=True, restarts=3, freezes=2, rate=1_500),
    logs=("kafka",),
    long_logs=("kafka", "kip848"),
    seconds=900,
)
def test_killed_moved_frozen_and_restarted(run: Run, size: Size) -> None:
    run.log.create_topic(target_of(run.topic), PARTITIONS)
    if size.restarts:
        look_later(run.ground.server)
    with PipelineFleet(run) as fleet, run.load(10_000_000, rate=size.rate) as load:
        for _ in range(WORKERS):
            fleet.start()
        fleet.until(lambda handled: handled > 200)
        with coming_and_going(fleet, run) if size.rebalances else _nothing():
            for number in range(size.kills):
                if size.restarts and number % (size.kills // size.restarts) == 5:
                    run.ground.server.kill()
                    run.ground.server.restart()
                if size.freezes and number % max(2, size.kills // size.freezes) == 1:
                    # Until others have what it owned; then it goes on as if nothing had happened.
                    victim = run.random.choice(fleet.running)
                    fleet.freeze(victim)
                    wait(run.ground.lease + 2.0)
                    fleet.thaw(victim)
                handled = fleet.until(lambda _: True)
                more = run.random.randrange(50, 400)
                fleet.until(lambda now, goal=handled + more: now >= goal)  # type: ignore[misc]
                fleet.kill_one(run.random)
        acknowledged = load.stop()
        logger.warning("%d acknowledged", acknowledged)
        judge(run, fleet)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("protocol", ["kafka", "kip848"])
def test_three_brokers_and_a_leader_that_is_killed(
    lifetime: Lifetime, tmp_path: Path, protocol: str
) -> None:
    """Of the source, of the target, of the group and of the transactions, whatever it leads."""
    with Kafka(lifetime, brokers=3) as cluster, Proxy(free_port()) as proxy:
        protocol_settings, lease = (KAFKA, 3.0) if protocol == "kafka" else (KIP848, BROKER_SESSION)
        settings = {
            **protocol_settings, "replication.factor": 3,
            "topic.metadata.refresh.interval.ms": 1000,
        }  # fmt: skip
        run = Run(kafka_ground(cluster, proxy, settings, lease), tmp_path, create=False)
        names = (run.topic, target_of(run.topic), f"{run.topic}.{run.group}.dead")
        for name in names:
            run.log.create_topic(name, PARTITIONS, config={"min.insync.replicas": "2"})
        with PipelineFleet(run) as fleet, run.load(10_000_000, rate=500) as load:
            for _ in range(WORKERS):
                fleet.start()
            fleet.until(lambda handled: handled > 200)
            for topic in (*names[:2], "__consumer_offsets", "__transaction_state"):
                victim = cluster.leader(topic)
                cluster.kill(victim)
                handled = fleet.until(lambda _: True)
                fleet.until(lambda now, goal=handled + 1_000: now >= goal)  # type: ignore[misc]
                fleet.kill_one(run.random)
                cluster.restart(victim)
            load.stop()
            judge(run, fleet)
        run.close()
