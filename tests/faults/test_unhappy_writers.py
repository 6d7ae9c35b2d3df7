"""Writers that stop at the worst moment: one winner, nothing half there, nobody else held up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from streams import Streams
from streams.eventsourcing import Aggregate
from streams.log.names import partition_for
from streams.log.url import open_log
from tests.eventsourcing.bank import Account, Deposited, accounts, deposit
from tests.faults.deciders import Deciders, judge
from tests.faults.ground import Ground
from tests.faults.run import wait
from tests.faults.sizes import SEED, on, sizes
from tests.faults.unhappy_writer import CENTS, Told
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime


@pytest.fixture
def name() -> str:
    return f"bank-{uuid4().hex[:8]}"


@contextmanager
def writer(url: str, name: str, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that decides upon "a"."""
    command = [sys.executable, "-m", "tests.faults.unhappy_writer", url, name, "a", how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def until_frozen(process: subprocess.Popen[bytes]) -> None:
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), f"it ended: {status}"


async def cents(bank: Aggregate[Any, Account], id: str = "a") -> list[int]:
    """The amounts of a history whose versions have no gap."""
    found = [each async for each in bank.read(id)]
    assert [each.version for each in found] == list(range(1, len(found) + 1))
    assert all(isinstance(each.event, Deposited) for each in found)
    return [each.event.cents for each in found]


async def decide_around_a_frozen_one(url: str, name: str, how: str, seconds: float) -> Told:
    """Others decide while a writer stands still between its decision and its append."""
    app = Streams(url)
    bank = accounts(app, name)
    async with app.connected():
        await bank.decide("a", deposit, 10)
        with writer(url, name, how) as process:
            until_frozen(process)
            for _ in range(3):
                await bank.decide("a", deposit, 20)
            wait(seconds)
            assert await cents(bank) == [10, 20, 20, 20]
            process.send_signal(signal.SIGCONT)
            assert process.stdout is not None
            told = msgspec.json.decode(process.stdout.readline(), type=Told)
        own = [] if told.refused else list(CENTS)
        assert await cents(bank) == [10, 20, 20, 20, *own]
        assert (await bank.load("a")).version == 4 + len(own)
        # A refusal may tell of any version that there was since the call began.
        assert told.version in ((2, 3, 4) if told.refused else (7,))
    return told


async def check_frozen(url: str, name: str, seconds: float = 0.0) -> None:
    told = await decide_around_a_frozen_one(url, name, "freeze", seconds)
    assert told.seen == [10, 70], "it has decided anew upon what others did meanwhile"
    told = await decide_around_a_frozen_one(url, f"{name}-once", "once", seconds)
    assert (told.seen, told.refused) == ([10], True)


async def test_a_writer_frozen_between_decision_and_append_on_sqlite(
    tmp_path: Path, name: str
) -> None:
    await check_frozen(f"sqlite:///{tmp_path / 'log.db'}?timeout=1", name)


@sizes(0.0, 20.0, long_logs=("kafka", "redis"))
async def test_a_writer_frozen_between_decision_and_append(
    ground: Ground, size: float, name: str
) -> None:
    """The long one outlasts every window that there is."""
    url = ground.direct
    if ground.name == "kafka":
        url += "&message.timeout.ms=6000&socket.timeout.ms=5000"
    await check_frozen(url, name, size)


# -- Kafka alone: elsewhere an append is one step --------------------------------------------------


@on("kafka")
async def test_a_writer_killed_between_the_records_of_its_append(ground: Ground, name: str) -> None:
    app = Streams(ground.direct)
    bank = accounts(app, name)
    async with app.connected():
        with writer(ground.direct, name, "tear") as process:
            process.wait(120)
            assert process.returncode == -signal.SIGKILL
        assert stored(ground, bank) == [1, 2], "it was killed with all but the last in the log"
        assert await cents(bank) == []
        # Nobody waits for the rest, in this process or another; and nobody counts the half.
        assert (await bank.decide("a", deposit, 10)).version == 1
        again = Streams(ground.direct)
        their_bank = accounts(again, name)
        async with again.connected():
            assert (await their_bank.decide("a", deposit, 20)).state.cents == 30
            assert await cents(bank) == await cents(their_bank) == [10, 20]
        assert stored(ground, bank) == [1, 2, 10, 20]


def stored(ground: Ground, bank: Aggregate[Any, Account]) -> list[int]:
    """The amounts of all records in the partition of "a", whether they count or not, as a client
    finds them that knows nothing of appends."""
    settings: dict[str, Any] = {
        "bootstrap.servers": bootstrap(ground), "group.id": "foreign", "log_level": 0,
        "enable.auto.commit": False,
    }  # fmt: skip
    consumer = Consumer(settings)
    partition = partition_for(b"a", "", 2)
    _, end = consumer.get_watermark_offsets(TopicPartition(bank.events.name, partition))
    consumer.assign([TopicPartition(bank.events.name, partition, 0)])
    found: list[int] = []
    while len(found) < end:
        message = consumer.poll(60)
        assert message is not None
        assert message.error() is None
        value = message.value()
        assert isinstance(value, bytes)
        found.append(msgspec.json.decode(value)["cents"])
    consumer.close()
    return found


def bootstrap(ground: Ground) -> str:
    return ground.direct.removeprefix("kafka://").partition("?")[0]


@on("kafka")
async def test_an_unrelated_transaction_that_hangs_holds_nobody_up(
    ground: Ground, name: str
) -> None:
    log = open_log(ground.direct)
    log.create_topic(f"{name}-other", 2)
    log.close()
    settings: dict[str, Any] = {
        "bootstrap.servers": bootstrap(ground), "transactional.id": name, "log_level": 0,
    }  # fmt: skip
    producer = Producer(settings)
    producer.init_transactions(60)
    producer.begin_transaction()
    for partition in range(2):
        producer.produce(f"{name}-other", b"never committed", partition=partition)
    assert producer.flush(60) == 0
    app, others = Streams(ground.direct), Streams(ground.direct)
    bank, their_bank = accounts(app, name), accounts(others, name)
    async with app.connected(), others.connected():
        for number in range(20):
            await bank.decide(f"a{number}", deposit, 1)
            done = await their_bank.decide(f"a{number}", deposit, 2)
            assert (done.version, done.state.cents) == (2, 3)
        assert await cents(bank, "a3") == [1, 2]
    producer.abort_transaction(60)


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_leaders_of_three_brokers_are_killed(
    lifetime: Lifetime, tmp_path: Path, name: str
) -> None:
    """``min.insync.replicas=2``: each partition's leader is killed, and comes back."""
    config = {"default.replication.factor": "3", "min.insync.replicas": "2"}
    with Kafka(lifetime, brokers=3, config=config) as cluster:
        url = f"{cluster.url}?replication.factor=3&topic.metadata.refresh.interval.ms=1000"
        with Deciders(tmp_path, url, name, SEED) as deciders:
            for _ in range(4):
                deciders.start()
            deciders.until_all_are_answered()
            for partition in range(4):
                place = cluster.leader(f"{name}.events", partition)
                cluster.kill(place)
                deciders.until_answers(deciders.tail.answers + 500)
                cluster.restart(place)
                deciders.kill_one()
            deciders.until_answers(deciders.tail.answers + 500)
            deciders.stop()
        verdict = await judge(tmp_path, url, name)
    assert verdict.report.anomalies == []
    assert verdict.report.decided > 1_000
