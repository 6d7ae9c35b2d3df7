"""What stands in the topics of a process manager never blinds ``streams managers``: what can be
shown is, what cannot is named."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from streams import Streams
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY
from streams.message import Record
from tests.cli.conftest import eventually
from tests.hostile.commands import command, lists
from tests.hostile.ground import Ground
from tests.hostile.kafka_wire import Written
from tests.managers.desk import Desk, Tick

pytestmark = pytest.mark.only("redis", "kafka", "sqlite")

EVIL = "\x1b[31m\r\u2028"
DIGITS = b"9" * 5_000
APP = """
from streams import Streams
from tests.managers.desk import Desk

app = Streams()
desk = Desk(app, "NAME")
"""


@pytest.fixture
def name(stage: Ground) -> str:
    """A manager with a few good instances."""

    async def work() -> None:
        desk = Desk(Streams(stage.url), stage.topic_name)
        async with desk.app:
            for key in ("good", "also good"):
                await desk.ticks.publish(Tick(key, "open 5, take 9, schedule soon 86400"))
            await desk.ticks.publish(Tick("broken", "break"))
            async with asyncio.timeout(60):
                while not desk.app.stats().processors[desk.manager.name].dead_letters:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    asyncio.run(work())
    return f"{stage.topic_name}-desk"


@pytest.fixture
def app(stage: Ground, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    module = f"desk_{stage.topic_name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(APP.replace("NAME", stage.topic_name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return f"{module}:app"


def looked_at(stage: Ground, name: str, app: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command ends well, and shows the good ones."""
    ls = lists(stage.url, "managers", "ls", app)
    row: dict[str, Any]
    (row,) = ls.documents[0]
    assert (row["manager"], row["timeouts"], row["refused"]) == (name, 2, 2)
    (shown,) = lists(stage.url, "managers", "show", app, name).documents
    assert {each["id"] for each in shown["next_timeouts"]} == {"good", "also good"}
    for key in ("good", "also good"):
        (found,) = lists(stage.url, "managers", "show", app, name, key).documents
        assert [each["state"] for each in found["timeouts"]] == ["waiting"]
        outcomes = [each["outcome"] for each in found["reactions"][0]["commands"]]
        assert outcomes == ["done", "refused"]
    for key in others:
        command(stage.url, "managers", "show", app, name, key)
        command(stage.url, "managers", "show", app, name, key, "--json")
    command(stage.url, "doctor", app)
    assert isinstance(row, dict)
    return row


def junk(*, is_compacted: bool) -> list[Written]:
    """:param is_compacted: the topic takes no record without a key."""
    headers: list[Any] = [
        [(b"streams_delay_due", DIGITS), (b"streams_delay_to", b"\xff")],
        [(b"streams_delay_due", b"-1"), (b"streams_delay_to", EVIL.encode())],
        [(b"streams_delay_due", b"1"), (b"streams_delay_to", None)],
        [(b"streams_delay", b"\xff")],
        [(b"streams_delay", None)],
        [(b"streams_event", b"9/1/0/"), (b"streams_cause", b"refused/" + EVIL.encode())],
        [],
    ]
    return [
        Written(value, key, [(b"ce_id", b"m%d" % n), *each])
        for n, each in enumerate(headers)
        for key in (b"good", b"\xff\x1b", b"" if is_compacted else None)
        for value in (b"\xff", b"[" * 10_000, None)
    ]


def test_records_that_are_none_of_its(stage: Ground, name: str, app: str) -> None:
    """In every topic that anybody may write to."""
    own = [f"{name}.timeouts.delay", f"{name}.timeouts", f"{stage.topic_name}-ticks"]
    dead = f"{stage.topic_name}-ticks.{name}.dead"
    if stage.case.name != "sqlite":  # where an event topic takes nothing but appends
        own += [f"{name}.events", f"{stage.topic_name}-purses.events"]
    for topic in (*own, dead):
        stage.write(topic, junk(is_compacted=topic.endswith(".delay")))
    # And timeouts of the manager's that say they are.
    due = [(b"streams_delay_due", b"1"), (b"streams_delay_to", f"{name}.timeouts".encode())]
    stage.write(
        f"{name}.timeouts.delay",
        [
            Written(value, b"evil-%d" % at, [(b"ce_id", b"evil-%d" % at), *due])
            for at, value in enumerate((b"\xff", b"{}", b"[" * 10_000, b"null", None))
        ],
    )
    row = looked_at(stage, name, app, ("broken", EVIL))
    assert row["overdue"] == 0


def test_reactions_that_nobody_could_have_had(stage: Ground, name: str, app: str) -> None:
    """Appends that count, with contents that no manager writes."""
    reacted: dict[str, Any] = {"type": "reacted", "to": EVIL, "state": EVIL, "actions": []}
    values: list[bytes] = [
        b"\xff",
        b"[" * 10_000,
        b"{}",
        json.dumps(reacted).encode(),
        json.dumps({**reacted, "fired": EVIL, "ends": True}).encode(),
        json.dumps(
            {
                **reacted,
                "actions": [
                    {"type": "schedule", "name": EVIL, "due": due, "event": EVIL}
                    for due in (-(10**18), 10**18)
                ]
                + [{"type": "cancel", "name": EVIL, "sequence": EVIL}]
                + [
                    {"type": "command", "aggregate": aggregate, "id": EVIL, "decision": EVIL,
                     "args": [EVIL], "kwargs": {EVIL: EVIL}}
                    for aggregate in (EVIL, f"{stage.topic_name}-purses")
                ],
            }
        ).encode(),
    ]  # fmt: skip
    log: Any = stage.anchor
    outcomes: list[Any] = []
    for at, value in enumerate(values):
        key = f"evil-{at}".encode()
        append = make_append(key, NO_HISTORY, [Record(value, key, f"evil-{at}")], cause="message/x")
        log.append_events(f"{name}.events", [append], outcomes.extend)
    eventually(lambda: len(outcomes) == len(values))
    assert not [each for each in outcomes if isinstance(each, Exception)]
    row = looked_at(stage, name, app, tuple(f"evil-{at}" for at in range(len(values))))
    assert row["instances"] == 3 + len(values)
    note = command(stage.url, "managers", "ls", app).err
    assert "3 reactions cannot be decoded: streams aggregates ls" in note


def test_a_message_whose_id_is_no_text_is_reacted_to(stage: Ground, name: str, app: str) -> None:
    tick = json.dumps({"type": "tick", "key": "odd", "do": "open 7"}).encode()
    stage.write(f"{stage.topic_name}-ticks", [Written(tick, b"odd", [(b"ce_id", b"\xff\x1b")])])

    async def work() -> None:
        desk = Desk(Streams(stage.url), stage.topic_name)
        async with desk.app:
            async with asyncio.timeout(60):
                while not desk.manager.stats().commands:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert desk.app.stats().processors[desk.manager.name].dead_letters == 0

    asyncio.run(work())
    (found,) = lists(stage.url, "managers", "show", app, name, "odd").documents
    assert [each["outcome"] for each in found["reactions"][0]["commands"]] == ["done"]
    looked_at(stage, name, app)
