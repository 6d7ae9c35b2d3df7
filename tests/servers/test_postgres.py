"""The PostgreSQL servers that other tests stand on."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg
import pytest

from tests.servers import postgres as module
from tests.servers.java import Missing
from tests.servers.lifetime import Lifetime, until
from tests.servers.postgres import Postgres, Programs, children, programs


@pytest.fixture(scope="module")
def server(lifetime: Lifetime) -> Postgres:
    started = Postgres(lifetime)
    started.start()
    return started


def test_killed_and_started_again_it_has_what_was_committed(server: Postgres) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept (number int)")
        connection.execute("INSERT INTO kept VALUES (7)")
        connection.commit()
        connection.execute("INSERT INTO kept VALUES (8)")
        family = children(server.process.pid)
        server.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert family
    server.restart()
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT number FROM kept").fetchall() == [(7,)]


def test_paused_it_answers_nothing_until_it_goes_on(server: Postgres) -> None:
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("SELECT 1")
        server.pause()
        said: list[object] = []
        asking = threading.Thread(
            target=lambda: said.append(connection.execute("SELECT 2").fetchone())
        )
        asking.start()
        assert not module.answers(server.url)
        assert said == []
        server.resume()
        asking.join(60)
        assert said == [(2,)]


def test_stopped_it_waits_for_nobody(server: Postgres) -> None:
    with psycopg.connect(server.url):
        server.stop()
        assert not server.process.alive
    server.start()


def test_each_test_has_a_database_of_its_own(postgres: str) -> None:
    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE TABLE mine (number int)")
        found = connection.execute("SELECT current_database()").fetchone()
    assert found is not None
    assert postgres.endswith(f"/{found[0]}")


def test_the_wheel_carries_a_server(lifetime: Lifetime) -> None:
    folder = next(each for each in module._folders() if "pixeltable" in str(each))
    user = module._other_user()
    with Postgres(lifetime, found=Programs(folder, "the wheel's", user)) as server:
        assert until(lambda: module.answers(server.url) or None, 60, "it answers")


def test_nothing_at_all_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_folders", lambda: iter((Path("/nowhere"),)))
    with pytest.raises(Missing, match=r"apt-get install postgresql.*STREAMS_TEST_POSTGRES"):
        programs()
