"""The shop: its service and its workers are killed midway, and its books are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text

from examples.shop.demo import run
from examples.shop.shop import TABLES, Placed, create, open_database
from tests.servers.kafka import Kafka
from tests.servers.lifetime import Lifetime


def test_killed_midway_on_postgres(postgres: str, tmp_path: Path) -> None:
    said: list[str] = []
    found = run(f"sqlite:///{tmp_path}/log.db", postgres, 60, 1, 1, said.append)
    assert found.are_equal, found
    assert (found.orders, found.twice) == (60, 0)
    assert said == ["60 orders are placed"]


@pytest.mark.faults
@pytest.mark.parametrize("database", ["postgres", "sqlite"])
def test_killed_often_on_kafka(
    database: str, lifetime: Lifetime, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    dsn = (
        request.getfixturevalue("postgres")
        if database == "postgres"
        else f"sqlite:///{tmp_path}/shop.db"
    )
    with Kafka(lifetime) as broker:
        found = run(broker.url, dsn, 400, 5, 2, lambda _: None)
    assert found.are_equal, found


def test_the_same_order_again_is_placed_once(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/shop.db"
    shop = create("memory://shop", database)
    with shop.sessions.begin() as session:
        for statement in (*TABLES, *shop.outbox.schema()):
            session.execute(text(statement))
    order = Placed("o-1", "cup", 2)
    assert [shop.place(order), shop.place(order)] == [True, False]
    with open_database(database).connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM outbox")).scalar() == 1
