"""Sagas on the command line: looked at, resumed and abandoned beside the app that runs them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from streams.message import Record
from tests.cli.conftest import Run, Shell, eventually
from tests.conformance.records import append

SAGAS = '''
"""Trips: a hotel and a flight side by side, then the money."""

import os

import msgspec

from streams import Retry, Streams
from streams.patterns import SagaOrchestrator, SagaStep


class Trip(msgspec.Struct):
    customer: str
    did: list[str] = []


app = Streams("sqlite:///shop.db")
trips = SagaOrchestrator(app, "trips", context=Trip, partitions=2)


async def book(trip: Trip) -> None:
    trip.did.append("book")


async def cancel(trip: Trip) -> None:
    if trip.customer == "stuck" and not os.path.exists("mended"):
        raise ConnectionError("the hotel's \\x1b[31m desk")


async def charge(trip: Trip) -> None:
    if trip.customer != "ada":
        raise ValueError("no money")


once = Retry(attempts=1)
trips.add_step("book", book, cancel, compensation_retry=once)
if os.path.exists("renamed"):
    trips.add_step("bill", charge)
else:
    trips.add_step("charge", charge)
'''


@pytest.fixture
def sagas(shell: Shell) -> Shell:
    """An app with one saga of each kind: completed, compensated, failed."""
    shell.write("trips.py", SAGAS)
    started(shell, "ada", "bob", "stuck")
    serve(shell, {"ada": "completed", "bob": "compensated", "stuck": "failed"})
    return shell


def started(shell: Shell, *customers: str) -> None:
    """Start a saga for each, as any client can."""
    from streams import Streams

    async def start() -> None:
        app = Streams(f"sqlite:////{str(shell.folder / 'shop.db').lstrip('/')}")
        topic = app.topic("trips.saga", dict[str, Any], key="saga", partitions=2)
        async with app.connected():
            for customer in customers:
                entry = {"saga": customer, "context": {"customer": customer}}
                await topic.publish(entry)

    asyncio.run(start())


def standing(shell: Shell) -> dict[str, str]:
    from streams.patterns.saga.journal import Journal

    with shell.log() as log:
        return {
            entry.saga: entry.status
            for entry in Journal(log, "trips").list_latest(lambda _: True).entries
        }


def serve(shell: Shell, wanted: dict[str, str]) -> None:
    """Run the app until its sagas stand so."""
    with shell.start("run", "trips:app") as process:
        eventually(lambda: standing(shell) == wanted)
        process.kill()
        process.communicate()


def test_sagas_are_listed_and_shown(sagas: Shell, run: Run) -> None:
    (failed,) = run("saga", "list", "--json").json
    assert (failed["saga"], failed["id"], failed["status"]) == ("trips", "stuck", "failed")
    assert failed["steps"] == ["book"]
    assert failed["why"].startswith("not compensated: book: ConnectionError: the hotel's")
    every = run("saga", "list", "trips", "--all", "--json").json
    assert {each["id"]: each["status"] for each in every} == standing(sagas)
    assert [each["id"] for each in run("saga", "ls", "--all", "--json").json] == [
        each["id"] for each in every
    ]

    shown = run("saga", "list", "--all").out
    assert "compensated" in shown
    assert "\x1b" not in shown

    newest = run("saga", "list", "trips", "--all", "--newest", "1", "--json")
    assert len(newest.json) <= 2, "one of each partition"
    assert "trips.saga: only the last 1 entries of each partition" in newest.err
    assert run("saga", "list", "trips", "--all", "--newest", "0").err == ""
    far = run("saga", "status", "trips", "zoe", "--newest", "1")
    assert (far.status, far.err.count("\n")) == (1, 1)
    assert "it does not stand among the last 1 entries of a partition" in far.err

    whole = run("saga", "status", "trips", "bob", "--json").json
    assert whole["status"] == "compensated"
    assert whole["failure"] == {"step": "charge", "error": "ValueError: no money", "attempts": 1}
    assert whole["plan"] == [["book"], ["charge"]]
    assert whole["context"] == {"customer": "bob", "did": ["book"]}
    shown = run("saga", "status", "trips", "stuck").out
    assert "plan: book, charge" in shown
    assert 'context: {"customer":"stuck","did":["book"]}' in shown
    assert "\x1b" not in shown


def test_a_failed_saga_is_resumed_and_one_that_stands_is_abandoned(sagas: Shell, run: Run) -> None:
    sagas.write("mended", "")
    assert run("saga", "resume", "trips", "stuck").out == "stuck: compensating\n"
    with_stuck = {"ada": "completed", "bob": "compensated", "stuck": "compensated"}
    serve(sagas, with_stuck)

    started(sagas, "eve")
    asked = run("saga", "abandon", "trips", "eve")
    assert asked.status == 2
    assert "Abandon saga eve, which is running? Not undone: nothing." in asked.err
    left = run("saga", "abandon", "trips", "eve", "--yes", "-r", "by hand", "--json").json
    assert (left["status"], left["why"]) == ("abandoned", "by hand")
    # What was said while no app ran is what counts for the app. It may have begun before it knew.
    serve(sagas, {**with_stuck, "eve": "abandoned"})
    assert run("saga", "status", "trips", "eve", "--json").json["reason"] == "by hand"


def test_abandoning_says_what_is_not_undone(sagas: Shell, run: Run) -> None:
    from streams.patterns.saga.journal import Journal

    asked = run("saga", "abandon", "trips", "stuck")
    assert asked.status == 2
    assert "Abandon saga stuck, which is failed? Not undone: book (its compensation failed: " in (
        asked.err
    )
    assert "ConnectionError: the hotel's " in asked.err
    whole = run("saga", "status", "trips", "stuck", "--json").json
    assert (whole["done"], whole["not_undone"]) == ([], ["book"])

    plan = (("hotel", "car"), ("flight",), ("charge",))
    with sagas.log() as log:  # half undone: one compensation failed, another step is still to come
        journal = Journal(log, "trips")
        said = journal.latest("stuck").entry.uncompensated[0]
        failed = msgspec.structs.replace(said, step="flight")
        journal.append_command(
            "bob",
            lambda last: last.next_entry(
                1.0, status="compensating", plan=plan, stage=2, done=("hotel",),
                uncompensated=(failed,),
            ),
        )  # fmt: skip
    asked = run("saga", "abandon", "trips", "bob")
    assert "Not undone: hotel, flight (its compensation failed: ConnectionError: " in asked.err
    assert run("saga", "abandon", "trips", "bob", "--yes").status == 0
    assert run("saga", "status", "trips", "bob", "--json").json["not_undone"] == ["hotel", "flight"]


def test_a_stopped_saga_goes_on_where_it_stood(sagas: Shell, run: Run) -> None:
    from streams.patterns.saga.journal import Journal

    with sagas.log() as log:  # begun when the step had another name
        journal = Journal(log, "trips")
        begun = journal.latest("ada").entry
        plan = (("book",), ("charge",))
        journal.append_command(
            "bob",
            lambda last: last.next_entry(
                1.0, status="running", plan=plan, stage=1, done=("book",), failure=None
            ),
        )
        assert begun.plan == plan
    sagas.write("renamed", "")
    others = {"ada": "completed", "stuck": "failed"}
    serve(sagas, {**others, "bob": "stopped"})
    assert "no step 'charge' any more" in run("saga", "status", "trips", "bob").out
    (sagas.folder / "renamed").unlink()
    assert run("saga", "resume", "trips", "bob", "--json").json["status"] == "running"
    serve(sagas, {**others, "bob": "compensated"})


def test_what_cannot_be_is_said_in_one_line(sagas: Shell, run: Run) -> None:
    for arguments, status, said in (
        (("status", "trips", "zoe"), 1, "there is no saga 'zoe' in trips.saga"),
        (("status", "trips", r"z\x00", "--escapes"), 1, r"there is no saga 'z\x00' in trips.saga"),
        (("status", "tripz", "ada"), 1, "there is no saga 'tripz' here"),
        (("resume", "trips", "ada"), 1, "saga ada is completed: there is nothing to resume"),
        (("abandon", "trips", "ada", "--yes"), 1, "saga ada is completed already"),
        (("list", "tripz"), 1, "there is no saga 'tripz' here"),
        (("resume", "trips"), 2, "Missing argument 'ID'"),
    ):
        ended = run("saga", *arguments)
        assert ended.status == status
        assert said in ended.err
        assert ended.err.count("\n") == 1


def test_where_there_are_no_sagas_the_list_is_empty(shell: Shell, run: Run) -> None:
    with shell.log():
        pass
    assert run("saga", "list", "--json").json == []


def test_what_is_no_entry_of_a_saga_is_named(sagas: Shell, run: Run) -> None:
    """On standard error: how many there are, and where the first few stand."""
    listed = run("saga", "list", "trips", "--all", "--json")
    assert "left out" not in listed.err
    with sagas.log() as log:
        append(log, "trips.saga", [Record(b"{", b"ada", f"x{n}", (), 0) for n in range(8)])
    again = run("saga", "list", "trips", "--all", "--json")
    assert len(again.lines[0]) == len(listed.lines[0]) == 3
    for found in (again, run("saga", "status", "trips", "ada")):
        assert "trips.saga: 8 records left out that can be no entry of a saga: trips.saga/0/" in (
            found.err
        )
        assert found.err.count("trips.saga/0/") == 5
    assert "left out" not in run("saga", "status", "trips", "bob").err
