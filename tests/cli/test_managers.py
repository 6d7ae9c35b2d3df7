"""``streams managers``: what process managers wait for, did and could not do, by the log and the
app's code, while nothing runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from streams import Streams
from streams.testing import Clock
from tests.cli.conftest import Result, Run, Shell
from tests.managers.desk import Desk, Tick

MODULE = """
from streams import Streams
from tests.managers.desk import Desk

app = Streams()
desk = Desk(app, "NAME")
"""

LOGS = ["sqlite", "redis", "kafka"]
LATER = 86_400


class Office:
    """A manager on one log, and the command line beside it."""

    def __init__(self, url: str, folder: Path, run: Run) -> None:
        self.url = url
        self._run = run
        self.prefix = f"m-{uuid4().hex[:8]}"
        self.name = f"{self.prefix}-desk"
        self.module = f"office_{uuid4().hex[:8]}"
        (folder / f"{self.module}.py").write_text(MODULE.replace("NAME", self.prefix))

    def __call__(self, words: str) -> Result:
        """A command; APP and NAME stand for the app and the manager."""
        words = words.replace("APP", f"{self.module}:app").replace("NAME", self.name)
        found = self._run("managers", *words.split(), "--url", self.url)
        assert "Traceback" not in found.err
        return found

    def work(self, *ticks: Tick, dead: int = 0, clock: Clock | None = None) -> None:
        """Have the manager react to these; it has come to all of them then."""

        async def enter() -> None:
            desk = Desk(Streams(self.url), self.prefix)
            desk.app.clock = clock or desk.app.clock
            async with desk.app:
                for each in ticks:
                    await desk.ticks.publish(each)
                async with asyncio.timeout(60):
                    while self._handled(desk) < len(ticks) - dead:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
                    while self._dead(desk) < dead:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)

        asyncio.run(enter())

    def _handled(self, desk: Desk) -> int:
        return desk.app.stats().processors[desk.manager.name].handled

    def _dead(self, desk: Desk) -> int:
        return desk.app.stats().processors[desk.manager.name].dead_letters


@pytest.fixture(params=LOGS)
def office(request: pytest.FixtureRequest, run: Run, shell: Shell) -> Office:
    if request.param == "sqlite":
        url = f"sqlite:////{str(shell.folder / 'office.db').lstrip('/')}"
    else:
        url = request.getfixturevalue(f"{request.param}_url")
    return Office(url, shell.folder, run)


def test_what_a_manager_has_done_and_waits_for(office: Office) -> None:
    office.work(
        Tick("a", f"open 5, schedule soon {LATER}"),
        Tick("a", f"take 9, notice, schedule late {LATER * 2}"),
        Tick("b", f"schedule soon {LATER}, notice"),
        Tick("b", "notice, end"),
    )
    (row,) = office("ls APP --json").json
    assert row == {
        "manager": office.name, "processes": 0, "instances": 2, "running": 1, "timeouts": 2,
        "overdue": 0, "refused": 1, "dead": 0, "lag": 0, "complete": True,
    }  # fmt: skip
    shown = office("show APP NAME --json").json
    assert {name: shown[name] for name in row} == row
    assert shown["definition"] == {
        "state": "Done", "topics": [f"{office.prefix}-ticks"], "timeouts": ["rang"],
        "refusals": ["Poor"], "decisions": ["notice", "break_down"],
        "reactions": f"{office.name}.events", "partitions": 1, "group": office.name,
    }  # fmt: skip
    assert [(each["topic"], each["lag"]) for each in shown["places"]] == [
        (f"{office.prefix}-ticks", 0), (f"{office.name}.timeouts", 0),
    ]  # fmt: skip
    assert [(each["id"], each["name"]) for each in shown["next_timeouts"]] == [
        ("a", "soon"), ("a", "late"),
    ]  # fmt: skip
    assert [each["overdue_seconds"] for each in shown["next_timeouts"]] == [0.0, 0.0]
    text = office("show APP NAME").out
    assert f"{office.name}: reads {office.prefix}-ticks" in text
    assert f"group {office.name}" in text
    assert "no process runs it" in text
    assert "MANAGER" in office("ls APP").out


def test_an_instance_with_what_became_of_its_commands(office: Office) -> None:
    office.work(
        Tick("a", f"open 5, schedule soon {LATER}"),
        Tick("a", f"take 9, notice, schedule soon {LATER * 2}, schedule late {LATER}"),
        Tick("a", "notice, cancel late"),
        Tick("b", f"schedule soon {LATER}"),
        Tick("b", "end"),
    )
    found = office("show APP NAME a --json").json
    assert (found["id"], found["version"], found["ended"]) == ("a", 4, False)
    assert found["state"] == {"last": "notice, cancel late"}
    assert found["stopped"] is None
    by_version = {each["version"]: each for each in found["reactions"]}
    did = {
        version: [
            (each["decision"], each["outcome"], each["reason"], each["first_version"])
            for each in row["commands"]
        ]
        for version, row in by_version.items()
    }
    assert did == {
        1: [("open", "done", None, 1)],
        2: [("take", "refused", "Poor", None), ("notice", "done", None, 2)],
        3: [],  # the refusal was reacted to
        4: [("notice", "nothing", None, None)],
    }
    assert by_version[3]["to"] == f"refused {office.prefix}-purses take"
    assert by_version[1]["commands"][0]["args"] == [5]
    assert by_version[2]["scheduled"] == ["soon", "late"]
    assert by_version[2]["cancelled"] == ["soon"]
    assert sorted((each["name"], each["state"]) for each in found["timeouts"]) == [
        ("late", "cancelled"), ("soon", "replaced"), ("soon", "waiting"),
    ]  # fmt: skip
    (waits,) = found["waits_for"]
    assert waits.startswith("timeout soon at ")
    words = ("aggregates", "show", f"{office.prefix}-purses", "a", "--events", "--json")
    purse = office._run(*words, "--url", office.url).json
    refused = {(each["version"], each["error"]) for each in purse["refusals"]}
    assert refused == {(1, "Poor"), (2, None)}  # the second command came to nothing
    text = office("show APP NAME a").out
    assert f"take {office.prefix}-purses a (refused: Poor)" in text
    assert "came to nothing" in text
    last = office("show APP NAME a -n 1 --json").json
    assert [each["version"] for each in last["reactions"]] == [4]
    assert last["more_reactions"] == 3
    assert last["state"] == found["state"]
    over = office("show APP NAME b --json").json
    assert (over["ended"], over["waits_for"]) == (True, [])
    assert [(each["name"], each["state"]) for each in over["timeouts"]] == [("soon", "ended")]


def test_an_instance_that_stands_at_a_command(office: Office) -> None:
    office.work(Tick("a", "open 1"), Tick("a", "break, notice"), Tick("a", "notice"), dead=2)
    (row,) = office("ls APP --json").json
    assert (row["dead"], row["running"]) == (2, 1)
    shown = office("show APP NAME --json").json
    assert shown["dead_letters"] == {f"{office.prefix}-ticks.{office.name}.dead": 2}
    found = office("show APP NAME a --json").json
    assert found["version"] == 2
    assert [each["outcome"] for each in found["reactions"][-1]["commands"]] == ["open", "open"]
    assert found["waits_for"] == [
        f"command 2.0 to be carried out: {office.prefix}-purses a break_down",
        f"command 2.1 to be carried out: {office.prefix}-purses a notice",
    ]
    assert "(not carried out yet)" in office("show APP NAME a").out


def test_a_timeout_that_is_due_while_nobody_delivers_it(office: Office) -> None:
    """In a process whose clock stood still in 2024; it is over long ago for everybody else."""
    office.work(Tick("a", "schedule soon 10"), clock=Clock())
    (row,) = office("ls APP --json").json
    assert (row["timeouts"], row["overdue"]) == (1, 1)
    (timeout,) = office("show APP NAME --json").json["next_timeouts"]
    assert timeout["due"] == "2024-01-01T00:00:10.000Z"
    assert timeout["overdue_seconds"] > LATER
    found = office("show APP NAME a --json").json
    assert found["waits_for"] == ["timeout soon at 2024-01-01T00:00:10.000Z, which is overdue"]
    assert "OVERDUE" in office("show APP NAME").out


def test_a_bound_on_what_is_looked_at_is_said(office: Office) -> None:
    office.work(*[Tick(f"k{n}", "notice") for n in range(6)])
    bounded = office("ls APP --newest 2 --json")
    (row,) = bounded.json
    assert (row["instances"], row["running"], row["complete"]) == (6, None, False)
    assert "only the last 2 reactions and timeouts of each partition were read" in bounded.err
    (row,) = office("ls APP --newest 0 --json").json
    assert (row["instances"], row["running"], row["complete"]) == (6, 6, True)


def test_what_is_not_there_is_said_in_a_line(office: Office) -> None:
    office.work(Tick("order-1", "notice"))
    for words, error in (
        ("show APP nope", f"{office.module}:app declares no process manager 'nope'"),
        ("show APP NAME order-2", "there is no such instance; did you mean 'order-1'?"),
        (r"show APP NAME x\x00 --escapes", r"'x\x00': there is no such instance"),
        ("ls shop", "'shop': an app is written as MODULE:APP"),
    ):
        found = office(words)
        assert found.status != 0
        assert error in found.err
        assert found.err.count("\n") == 1


def test_a_manager_that_never_ran(office: Office) -> None:
    office.work()
    name = f"other_{uuid4().hex[:8]}"
    office.module, office.prefix = name, name
    Path(f"{name}.py").write_text(MODULE.replace("NAME", f"never-{name.replace('_', '-')}"))
    found = office("ls APP --json")
    (row,) = found.json
    assert (row["instances"], row["running"], row["timeouts"], row["lag"]) == (0, 0, 0, 0)
    assert "its topics do not exist yet" in found.err
    office.name = row["manager"]
    assert office("show APP NAME --json").json["places"] == []
    assert "there is no such instance" in office("show APP NAME x").err
