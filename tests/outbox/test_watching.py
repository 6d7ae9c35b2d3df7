"""What people see of an outbox: the command line, figures, health, the doctor."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from streams import ConfigError, Streams
from streams.errors import Unavailable
from streams.outbox import Outbox
from streams.patterns import MonitoringServer
from tests.cli.conftest import Run, Shell, eventually, run, shell
from tests.monitoring.conftest import until
from tests.outbox.test_relaying import FIVE, commit, refuse
from tests.outbox.world import PATIENCE, Place, World, committing, running

__all__ = ["run", "shell"]

pytestmark = pytest.mark.anyio

MODULE = """
from streams import Streams
from streams.outbox import Outbox
from tests.outbox.world import Order

app = Streams("sqlite:///log.db")
orders = app.topic("orders", Order, key="id", partitions=2)
outbox = Outbox(app, "DSN", relayed_by="command", lease=1.0)
"""

EVIL = "\x1b]0;v\x07\u202e"


@pytest.fixture
def module(place: Place, shell: Shell) -> str:
    name = f"kiosk_{uuid4().hex[:8]}"
    shell.write(f"{name}.py", MODULE.replace("DSN", place.dsn))
    return f"{name}:app"


def write_bad_row(place: Place, key: str = "bad") -> None:
    place.run(
        f"{FIVE}, messageid, headers) VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (str(uuid4()), "orders", key, EVIL, b"\x1b{}", f"m-{key}{EVIL}", EVIL),
    )


def write_row_of_no_topic(place: Place) -> None:
    place.run(f"{FIVE}) VALUES (%s, %s, 'k', 't', %s)", (str(uuid4()), f"nowhere{EVIL}", b"\x1b{}"))


def test_the_commands(module: str, place: Place, shell: Shell, run: Run) -> None:
    world = World(place.dsn, relayed_by="command")
    assert run("outbox", "ls", module, "--json").json[0]["ready"] == 0
    commit(world, place, "a", 1, 2)
    write_bad_row(place)
    write_bad_row(place)
    (found,) = run("outbox", "ls", module, "--all", "--json").json
    assert (found["ready"], found["failed"], found["relays"]) == (4, 0, 0)
    assert [row["state"] for row in found["rows"]] == ["ready"] * 4
    assert found["oldest_seconds"] >= 0

    with shell.start("outbox", "relay", module) as process:
        eventually(lambda: [row[1] for row in place.rows()] == [1, 2])
        eventually(lambda: run("outbox", "ls", module, "--json").json[0]["relays"] == 1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert b"Traceback" not in errors
    assert b"\x1b" not in errors
    assert len(shell("tail", "orders", "--url", "sqlite:///log.db", "--json").lines) == 2

    (found,) = run("outbox", "ls", module, "--json").json
    assert (found["ready"], found["failed"], found["waiting"], found["relays"]) == (0, 1, 1, 0)
    (row,) = found["rows"]
    assert (row["state"], row["waiting"]) == ("failed", 1)
    assert row["error"] == "its headers are not JSON"
    for name in (row["row"], f"m-bad{EVIL}"):
        shown = run("outbox", "show", module, name, "--json").json
        assert shown[0]["key"] == "bad"
        assert shown[0]["no_message_because"] == "its headers are not JSON"
    for command in (("ls", module), ("ls", module, "--all"), ("show", module, row["row"])):
        result = run("outbox", *command)
        assert result.status == 0, result.err
        assert "orders" in result.out
        assert "\x1b" not in result.out
    assert run("outbox", "retry", module, row["row"], "--json").json["tried_again"] == 1
    assert [state for _, state, _ in place.rows()] == [0, 0]
    assert run("outbox", "retry", module, "--all", "--yes", "--json").json["tried_again"] == 0


def test_a_topic_that_no_relay_declares_is_named(
    module: str, place: Place, shell: Shell, run: Run
) -> None:
    write_row_of_no_topic(place)
    write_row_of_no_topic(place)
    with shell.start("outbox", "relay", module) as process:
        eventually(lambda: [row[1] for row in place.rows()] == [3, 3])
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert b"rows of topic nowhere" in errors
    assert b"\x1b" not in errors
    (found,) = run("outbox", "ls", module, "--all", "--json").json
    assert (found["ready"], found["failed"], found["undeclared"]) == (0, 0, 2)
    assert [row["state"] for row in found["rows"]] == ["undeclared"] * 2
    (topic,) = found["undeclared_topics"]
    assert topic["undeclared_topic"].startswith("nowhere")
    assert topic["rows"] == 2
    shown = run("outbox", "ls", module)
    assert "nowhere" in shown.out
    assert "\x1b" not in shown.out
    assert run("outbox", "retry", module, "--all", "--yes", "--json").json["tried_again"] == 0
    (no,) = [why for verdict, why in findings(run, module) if "for a relay whose app" in why]
    assert no.startswith("2 rows wait for a relay whose app declares the topic: nowhere")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("ls kiosk", 2, "MODULE:APP"),
        ("ls shop:app", 1, "declares no outbox"),
        ("ls APP --table other", 1, "declares no outbox 'other'"),
        ("show APP 7", 1, "has no row '7'"),
        ("retry APP", 2, "takes rows or --all"),
        ("retry APP 7 --all", 2, "takes rows or --all"),
        ("retry APP 7", 1, "row '7' is not there"),
        ("retry APP --all", 2, "add --yes"),
    ],
)
@pytest.mark.parametrize("database", ["sqlite"])
def test_what_cannot_be_said(words: str, status: int, said: str, module: str, run: Run) -> None:
    result = run("outbox", *words.replace("APP", module).split())
    assert result.status == status
    assert said in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize("database", ["sqlite"])
def test_tables_that_are_missing_are_named(module: str, place: Place, run: Run) -> None:
    for table in ("outbox", "outbox_relays", "outbox_buckets"):
        place.run(f"DROP TABLE {table}")
    result = run("outbox", "ls", module)
    assert result.status == 1
    assert "has no table 'outbox'" in result.err


def findings(run: Run, module: str) -> list[tuple[str, str]]:
    found = json.loads(run("doctor", module, "--json").out)["findings"]
    return [(each["verdict"], each["why"]) for each in found if each["item"] == "outbox"]


def test_the_doctor(module: str, place: Place, run: Run) -> None:
    world = World(place.dsn, relayed_by="command")
    commit(world, place, "a", 1)
    assert findings(run, module) == [("no", "no process relays it, and 1 row waits")]
    said = json.loads(run("doctor", module, "--json").out)["findings"]
    (remedy,) = [each["do"] for each in said if each["item"] == "outbox"]
    assert "outbox relay" in remedy
    assert "streams run" not in remedy  # an app does not relay it
    now = "clock_timestamp()" if place.is_postgres else world.outbox.open().dialect.now
    place.run(f"INSERT INTO outbox_relays VALUES ('r', 1, 1, {now})")
    (yes,) = findings(run, module)
    assert yes[0] == "yes"
    old = "now() - interval '2 hours'" if place.is_postgres else f"{now} - 7200"
    place.run(f"UPDATE outbox SET created = {old}")
    ((verdict, why),) = findings(run, module)
    assert (verdict, why) == ("no", "the first of 1 row to be relayed was written 2h ago")
    place.run("UPDATE outbox SET state = 1, error = 'too large'")
    assert findings(run, module) == [("no", "1 row could not be published: too large")]


async def test_figures_and_health(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streams.outbox.relay.SAMPLE_EVERY", 0.02)
    monkeypatch.setattr("streams.outbox.relay.HEARTBEATS", 300)  # ten a second
    async with running(place.dsn) as world:
        with MonitoringServer(world.app, port=0) as server:
            commit(world, place, "a", 1, 2)
            write_bad_row(place, "one")
            write_bad_row(place, "one")
            write_row_of_no_topic(place)
            of = {"outbox": "outbox"}
            found = await until(
                server,
                lambda now: (
                    now.of("outbox_waiting_rows") == [1]
                    and now.of("outbox_undeclared_rows") == [1]
                    and now.of("outbox_relayed_total", **of) == [2]
                ),
            )
            await until(server, lambda now: now.of("outbox_rows", **of) == [0])
            assert found.one("outbox_relayed_total", **of) == 2
            assert found.one("outbox_failed_rows", **of) == 1
            assert found.one("outbox_buckets_owned", **of) == (16 if place.is_postgres else 1)
            assert found.one("outbox_outages_total", **of) == 0
        health = world.app.health()
        assert health.outboxes["outbox"].running
        assert (health.ok, health.ready) == (False, True)
        place.run("DELETE FROM outbox")
        await world.until(lambda: world.app.health().ok, "nothing has failed any more")
        assert "outboxes" in health.summary(ok=True)
    assert world.outbox.stats().depth is None  # nobody looks now


async def test_figures_of_what_is_to_be_relayed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.outbox.relay.SAMPLE_EVERY", 0.02)
    monkeypatch.setattr("streams.outbox.relay.HEARTBEATS", 300)  # ten a second
    async with running(place.dsn) as world:
        refuse(world, lambda *_: Unavailable("away"))
        commit(world, place, "a", 1)
        now = "clock_timestamp()" if place.is_postgres else world.outbox.open().dialect.now
        ago = " - interval '2 hours'" if place.is_postgres else " - 7200"
        place.run(f"UPDATE outbox SET created = {now}{ago}")
        commit(world, place, "b", 2)
        with MonitoringServer(world.app, port=0) as server:
            of = {"outbox": "outbox"}
            found = await until(server, lambda now: now.of("outbox_rows", **of) == [2])
            assert 7200 <= found.one("outbox_oldest_seconds", **of) < 7200 + PATIENCE


@pytest.mark.parametrize("database", ["sqlite"])
async def test_the_logs_own_file_is_refused(place: Place) -> None:
    app = Streams(f"{place.dsn}?timeout=5")
    Outbox(app, place.dsn)
    with pytest.raises(ConfigError, match="the log's own file"):
        async with app.connected():
            pass


async def test_the_tables_are_made_by_whoever_comes_first(place: Place) -> None:
    """Several at once, and by the statements for migrations, any number of times."""
    for table in ("outbox", "outbox_relays", "outbox_buckets"):
        place.run(f"DROP TABLE {table}")
    outboxes = [Outbox(Streams("memory://"), place.dsn) for _ in range(4)]
    await asyncio.gather(*(each.create_tables() for each in outboxes))
    for statement in outboxes[0].schema():
        place.run(statement)
    total = 16 if place.is_postgres else 1
    assert place.run("SELECT count(*) FROM outbox_buckets") == [(total,)]


def test_the_shipped_connector_is_for_our_table(tmp_path: Path) -> None:
    """Its options are those of Debezium's documentation, and its columns are ours."""
    import streams.outbox

    folder = Path(streams.outbox.__file__).parent
    config: dict[str, Any] = json.loads((folder / "debezium.json").read_text())["config"]
    router = {
        name.removeprefix("transforms.outbox."): value
        for name, value in config.items()
        if name.startswith("transforms.outbox.")
    }
    assert router == {
        "type": "io.debezium.transforms.outbox.EventRouter",
        "route.topic.replacement": "${routedByValue}",
        "route.tombstone.on.empty.payload": "true",
        "table.fields.additional.placement": "messageid:header:ce_id",
    }
    assert config["value.converter"] == "io.debezium.converters.BinaryDataConverter"
    place = Place(f"sqlite:///{tmp_path}/outbox.db")
    place.create()
    with committing(place) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(outbox)")}
    assert {"id", "aggregatetype", "aggregateid", "type", "payload", "messageid"} <= columns
