"""Projections over an aggregate's events, and over partitions that end with no message, on each log
that keeps histories."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from streams import Message, Sqlite
from streams.eventsourcing import Aggregate
from tests.conformance.logs import Case
from tests.conformance.stage import Stage
from tests.eventsourcing.bank import Account, AccountEvent, Deposited, deposit, evolve
from tests.eventsourcing.conftest import HISTORIES
from tests.outbox.world import until

pytestmark = pytest.mark.anyio


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        on_kafka = "way" in metafunc.fixturenames
        cases = [case for case in HISTORIES if case.name == "kafka" or not on_kafka]
        metafunc.parametrize("case", cases, ids=lambda case: case.name)


@pytest.fixture
def stage(case: Case, request: pytest.FixtureRequest) -> Iterator[Stage]:
    opened = Stage(case, request.getfixturevalue(case.url))
    yield opened
    opened.close()


class World:
    """An app whose versions each write what was deposited into a table of their own."""

    def __init__(self, stage: Stage, file: Path, *versions: int) -> None:
        self.app = stage.app()
        self.accounts: Aggregate[Any, Account] = Aggregate(
            self.app, stage.topic_name, AccountEvent, Account, evolve, partitions=2
        )
        database = Sqlite(file)
        self._file = file

        def declare(version: int) -> None:
            table = f"deposits_v{version}"

            @self.app.processor(
                self.accounts.events, group=stage.group, transaction=database, version=version
            )
            def add(event: AccountEvent, message: Message[Any, Any]) -> None:
                sql = f"CREATE TABLE IF NOT EXISTS {table} (account, cents)"
                message.transaction.execute(sql)
                if isinstance(event, Deposited):
                    row = (message.key, event.cents)
                    message.transaction.execute(f"INSERT INTO {table} VALUES (?, ?)", row)

        for version in versions:
            declare(version)

    def deposits(self, version: int) -> list[tuple[str, int]]:
        with closing(sqlite3.connect(self._file, timeout=30)) as reader:
            sql = f"SELECT account, cents FROM deposits_v{version} ORDER BY cents"
            return reader.execute(sql).fetchall()

    async def serves(self, version: int) -> None:
        (found,) = [each for each in self.app.projections if each.version == version]
        await until(lambda: found.serving == version, lambda: f"{version} does not serve")


def write_in_transactions(stage: Stage, topic: str, value: bytes) -> None:
    """A record in each partition, and behind it what the end of its transaction leaves."""
    from confluent_kafka import Producer

    servers = urlsplit(stage.url).netloc
    producer = Producer({"bootstrap.servers": servers, "transactional.id": uuid4().hex})
    producer.init_transactions()
    producer.begin_transaction()
    for partition in range(2):
        producer.produce(topic, value, b"ada", partition=partition)
    producer.commit_transaction()


async def test_versions_of_an_aggregates_events(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "bank.db"
    old, new = World(stage, file, 1), World(stage, file, 1, 2)
    async with old.app.connected():
        for cents in range(1, 7):
            await old.accounts.decide(f"a{cents % 3}", deposit, cents)
        if stage.case.name == "kafka":
            write_in_transactions(stage, old.accounts.events.name, b"no event")
    found = [(f"a{cents % 3}", cents) for cents in range(1, 7)]
    async with old.app:
        await old.serves(1)
    assert old.deposits(1) == found
    async with new.app:
        await new.accounts.decide("a0", deposit, 7)
        await new.serves(2)
        found.append(("a0", 7))
        await until(lambda: new.deposits(2) == found, lambda: new.deposits(2))


@pytest.mark.parametrize("way", ["deleted", "transaction"])
async def test_a_topic_of_kafka_that_ends_with_no_message(
    stage: Stage, tmp_path: Path, way: str
) -> None:
    app = stage.app()
    numbers = stage.topic(app, partitions=2)

    @app.processor(numbers, group=stage.group, transaction=Sqlite(tmp_path / "n.db"), version=1)
    def add(value: int) -> None: ...

    async with app.connected():
        log: Any = app.log
        await numbers.publish_many(range(20))
        log.initialize_offsets(f"{stage.group}.v1", numbers.name, dict.fromkeys(range(2), 0))
        if way == "transaction":
            write_in_transactions(stage, numbers.name, b"20")
        else:
            for partition in range(2):
                end = log.watermarks(numbers.name, partition)[1]
                log.delete_before(numbers.name, partition, end)
    async with app:
        projection = add.projection
        assert projection is not None
        await until(lambda: projection.serving == 1, lambda: "it does not serve")
