"""``streams doctor`` of views: what stands still, waits, lags, or is left over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec import Struct

from streams import Aggregate, Streams
from streams.eventsourcing.views.checkpoints import encode_checkpoint
from streams.eventsourcing.views.inspection import InspectedVersion, VersionInspector
from streams.inspection.doctor import view_checks
from streams.log.documents import Checkpoint
from streams.log.url import open_log
from tests.cli.conftest import Run, Shell
from tests.eventsourcing.bank import Account, Deposited, deposit, open_with
from tests.views.bank import Balance, Bank, fold_balance

CLINIC = """
from streams import Streams
from tests.eventsourcing.bank import accounts
from tests.views.bank import Balance, fold_balance

app = Streams("URL")
ledger = accounts(app)
balances = ledger.view("balances", Balance, version=1)(fold_balance)
"""

NAME = "accounts.balances"


class Clinic:
    """An app with a view on one log, and the doctor beside it."""

    def __init__(self, url: str, folder: Path, run: Run) -> None:
        self.url = url
        self._folder, self.run = folder, run
        self.write()

    def write(self, change: Callable[[str], str] = lambda text: text) -> None:
        """The app, with something changed in its code; imported anew."""
        self.module = f"clinic_{uuid4().hex[:8]}"
        (self._folder / f"{self.module}.py").write_text(change(CLINIC).replace("URL", self.url))

    def fill(self, *cents: int, **options: Any) -> None:
        async def enter() -> None:
            bank = Bank(Streams(self.url), "accounts", **options)
            async with bank.app:
                await bank.balances.ready()
                done = await bank.accounts.decide("a", open_with, "ada", 0)
                for each in cents:
                    done = await bank.accounts.decide("a", deposit, each)
                await bank.balances.get("b", wait_for=done, timeout=60)

        asyncio.run(enter())

    def __call__(self) -> list[tuple[str, str, str, str]]:
        """Of what, verdict, reason and advice of each finding about views."""
        result = self.run("doctor", f"{self.module}:app", "--json")
        assert "Traceback" not in result.err
        found = json.loads(result.out)["findings"]
        return [
            (each["of"], each["verdict"], each["why"], each["do"])
            for each in found
            if each["item"] == "views"
        ]

    def no(self) -> tuple[str, str, str]:
        """The one thing that is wrong: of what, why, what to do."""
        ((of, _, why, advice),) = [each for each in self() if each[1] == "no"]
        return of, why, advice


@pytest.fixture
def clinic(run: Run, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Clinic:
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return Clinic(f"sqlite:////{str(shell.folder / 'clinic.db').lstrip('/')}", shell.folder, run)


def test_a_view_that_is_well(clinic: Clinic) -> None:
    clinic.fill(5)
    assert clinic() == [
        (f"view {NAME} version 1", "yes", "serving: 1 document, none of which is stopped", "")
    ]


def test_a_version_is_inspected_once(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    clinic.fill(5)
    inspected: list[str] = []
    inspect = VersionInspector.inspect

    def inspecting(inspector: VersionInspector) -> InspectedVersion:
        inspected.append(inspector.collection)
        return inspect(inspector)

    monkeypatch.setattr(VersionInspector, "inspect", inspecting)
    assert [each[1] for each in clinic()] == ["yes"]
    assert inspected == [f"{NAME}.v1"]


def test_a_view_that_was_not_built_yet(clinic: Clinic) -> None:
    assert [each[1] for each in clinic()] == ["unknown"]
    open_log(clinic.url).close()
    assert [each[1] for each in clinic()] == ["unknown"]


def test_documents_that_stand_still(clinic: Clinic) -> None:
    def failing(balance: Balance | None, event: Any) -> Balance | None:
        if isinstance(event, Deposited) and event.cents == 13:
            raise ZeroDivisionError("thirteen")
        return fold_balance(balance, event)

    clinic.fill(13, fold=failing)
    of, why, advice = clinic.no()
    assert of == f"view {NAME} version 1"
    assert why.startswith("1 document is stopped, such as 'a' at accounts.events/")
    assert "ZeroDivisionError: thirteen" in why
    assert f"streams views stopped {NAME} --version 1 --url sqlite:////" in advice
    assert f"streams views retry {NAME} KEY" in advice


class Unknown(Struct, tag="unknown", frozen=True):
    x: int


def test_an_event_at_which_this_code_would_wait(clinic: Clinic) -> None:
    clinic.fill(1)

    async def act() -> None:
        app = Streams(clinic.url)
        newer: Aggregate[Any, Account] = Aggregate(
            app, "accounts", Unknown | Deposited, Account, lambda state, _: state, partitions=2
        )
        async with app.connected():
            await newer.append("z", Unknown(1), expected="any")

    asyncio.run(act())
    _, why, advice = clinic.no()
    assert why.startswith("with this code it waits at accounts.events/")
    assert "tag" in why
    assert "run newer code" in advice


def test_a_key_that_cannot_be_computed(clinic: Clinic) -> None:
    clinic.write(lambda text: text.replace("version=1", "version=1, key=lambda event: event.owner"))

    async def act() -> None:
        bank = Bank(
            Streams(clinic.url), "accounts", key=lambda event: getattr(event, "owner", None)
        )
        async with bank.app:
            await bank.balances.ready()
        async with bank.app.connected():
            await bank.accounts.decide("a", deposit, 1)

    asyncio.run(act())
    _, why, _ = clinic.no()
    assert "with this code it waits at accounts.events/" in why
    assert "AttributeError" in why


def test_a_checkpoint_beyond_the_logs_end(clinic: Clinic) -> None:
    clinic.fill(1)
    log: Any = open_log(clinic.url)
    writer = log.documents.claim(f"{NAME}.v1", 0)
    writer.write([], Checkpoint(1_000, encode_checkpoint((999, "gone"), {})))
    writer.close()
    log.close()
    _, why, advice = clinic.no()
    assert "its documents were folded up to 1000, and the log ends at" in why
    assert f"streams views rebuild {NAME} --version 1" in advice


def test_a_checkpoint_that_somebody_else_has_written(clinic: Clinic) -> None:
    clinic.fill(1)
    log: Any = open_log(clinic.url)
    writer = log.documents.claim(f"{NAME}.v1", 0)
    writer.write([], Checkpoint(1, b"\xffrubbish"))
    writer.close()
    log.close()
    _, why, _ = clinic.no()
    assert "its checkpoint: it was written by something else" in why


def test_a_view_that_is_far_behind(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_checks, "FAR_BEHIND", 2)
    clinic.fill(1)

    async def act() -> None:
        bank = Bank(Streams(clinic.url), "accounts")
        async with bank.app.connected():
            for _ in range(4):
                await bank.accounts.decide("a", deposit, 1)

    asyncio.run(act())
    _, why, advice = clinic.no()
    assert why == "it is 4 events behind, and no process runs it"
    assert advice.startswith("run the app; ")


def test_versions_that_nobody_runs_and_nobody_serves_from(clinic: Clinic) -> None:
    clinic.fill(1)
    clinic.fill(1, version=2)
    clinic.write(lambda text: text.replace("version=1", "version=2"))
    of, why, advice = clinic.no()
    assert of == f"view {NAME} version 1"
    assert why == "no process runs it or serves from it; it keeps 1 document"
    assert f"streams views drop {NAME} --version 1" in advice


def test_a_declaration_that_is_another_one(clinic: Clinic) -> None:
    clinic.fill(1)
    clinic.write(lambda text: text.replace("Balance,", "Account,").replace(
        "import accounts", "import Account, accounts"))  # fmt: skip
    _, why, _ = clinic.no()
    assert "version 1 has documents of another shape in the log" in why


def test_the_processors_of_views_are_not_asked_for_options_that_they_do_not_have(
    clinic: Clinic,
) -> None:
    clinic.write(
        lambda text: f"{text}\nby_owner = ledger.view('owners', Balance, key=str)(fold_balance)\n"
    )
    clinic.fill(1)
    result = json.loads(clinic.run("doctor", f"{clinic.module}:app", "--json").out)
    assert not [each for each in result["findings"] if each["of"].startswith("processor ")]
    assert not [each for each in result["findings"] if ".keyed" in each["of"]]
