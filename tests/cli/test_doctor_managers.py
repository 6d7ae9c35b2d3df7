"""``streams doctor`` of process managers: nobody runs them, they could not react, timeouts do not
come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from streams import Streams
from streams.testing import Clock
from tests.cli.conftest import Run, Shell
from tests.managers.desk import Desk, Tick

CLINIC = """
from streams import Streams
from tests.managers.desk import Desk

app = Streams("URL")
desk = Desk(app, "clinic")
"""

NAME = "clinic-desk"


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    return disk_path


class Clinic:
    """An app with a manager on one log, and the doctor beside it."""

    def __init__(self, url: str, folder: Path, run: Run) -> None:
        self.url, self._run = url, run
        self.module = f"clinic_{uuid4().hex[:8]}"
        (folder / f"{self.module}.py").write_text(CLINIC.replace("URL", url))

    def work(self, *ticks: Tick, dead: int = 0, clock: Clock | None = None) -> None:
        async def enter() -> None:
            desk = Desk(Streams(self.url), "clinic")
            desk.app.clock = clock or desk.app.clock
            async with desk.app:
                for each in ticks:
                    await desk.ticks.publish(each)
                async with asyncio.timeout(60):
                    while True:
                        stats = desk.app.stats().processors[NAME]
                        if (stats.handled, stats.dead_letters) == (len(ticks) - dead, dead):
                            return
                        await asyncio.sleep(0.01)

        asyncio.run(enter())

    def publish(self, *ticks: Tick) -> None:
        async def enter() -> None:
            desk = Desk(Streams(self.url), "clinic")
            async with desk.app.connected():
                for each in ticks:
                    await desk.ticks.publish(each)

        asyncio.run(enter())

    def findings(self) -> list[dict[str, str]]:
        result = self._run("doctor", f"{self.module}:app", "--json")
        assert "Traceback" not in result.err
        found: list[dict[str, str]] = json.loads(result.out)["findings"]
        return found

    def __call__(self) -> Sequence[tuple[str, str, str, str]]:
        """Of what, verdict, reason and advice of each finding about managers."""
        return [
            (each["of"], each["verdict"], each["why"], each["do"])
            for each in self.findings()
            if each["item"] == "managers"
        ]

    def no(self) -> tuple[str, str]:
        """The one thing that is wrong: why, what to do."""
        ((of, verdict, why, advice),) = self()
        assert (of, verdict) == (f"process manager {NAME}", "no")
        return why, advice


@pytest.fixture
def clinic(run: Run, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return Clinic(f"sqlite:////{str(shell.folder / 'clinic.db').lstrip('/')}", shell.folder, run)


def test_a_manager_that_is_well(clinic: Clinic) -> None:
    assert [each[1] for each in clinic()] == ["unknown"]
    clinic.work(Tick("a", "open 5, take 9, schedule soon 3600"))
    assert clinic() == [
        (
            f"process manager {NAME}",
            "yes",
            "no message waits unread, none is dead, no timeout is overdue",
            "",
        )
    ]
    # What it keeps for itself is not held against it: the delay topic is deduplicated by its own
    # means, and a refused command's record is no event.
    wrong = [each for each in clinic.findings() if each["verdict"] == "no"]
    assert [each["item"] for each in wrong] == ["monitoring"]


def test_how_long_timeouts_are_kept_that_came(clinic: Clinic) -> None:
    def kept() -> tuple[str, str, str]:
        (found,) = [
            each
            for each in clinic.findings()
            if (each["item"], each["of"]) == ("retention", f"topic {NAME}.timeouts")
        ]
        return found["verdict"], found["why"], found["do"]

    clinic.work(Tick("a", "open 5"))
    verdict, why, advice = kept()
    assert (verdict, why) == ("yes", "kept for ever")
    assert f"topics retain {NAME}.timeouts --keep-for 90d" in advice
    clinic.work(Tick("a", "schedule soon 3600"))
    assert kept() == ("yes", "kept about 10,000 a partition", "")


def test_messages_that_nobody_reads(clinic: Clinic) -> None:
    clinic.work(Tick("a", "notice"))
    clinic.publish(Tick("a", "notice"), Tick("b", "notice"))
    why, advice = clinic.no()
    assert why == f"2 messages in clinic-ticks wait, and no process reads them in group {NAME}"
    assert advice.startswith(f"run the app; streams managers show {clinic.module}:app {NAME}")


def test_messages_that_it_could_not_react_to(clinic: Clinic) -> None:
    clinic.work(Tick("a", "break"), Tick("a", "notice"), dead=2)
    why, advice = clinic.no()
    assert why.startswith("2 messages of clinic-ticks could not be reacted to, such as clinic-tick")
    assert "ZeroDivisionError: it broke" in why
    assert f"streams dead ls {NAME} clinic-ticks --url" in advice


def test_timeouts_that_do_not_come(clinic: Clinic) -> None:
    clinic.work(Tick("a", "schedule soon 10"), clock=Clock())  # its clock stood still in 2024
    why, advice = clinic.no()
    assert why.startswith("1 timeout is overdue, the first for ")
    assert why.endswith(": soon of 'a'")
    assert advice.startswith("run the app, which delivers them")
