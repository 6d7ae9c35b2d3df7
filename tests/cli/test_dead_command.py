"""Dead letters on the command line: looked at, put back once, handled by their group alone."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.cli.conftest import Run, Shell, eventually, fill, order


@pytest.fixture
def failed(shell: Shell) -> Shell:
    """Run the app over orders of which -1 and -2 fail, and one that cannot be decoded."""
    odd = b'{"id": "odd", "customer": "c1", "n": "many\\u001b[31m"}'
    with shell.log() as log:
        fill(log, "orders", [order(1), order(-1), order(-2), order(2), odd])
    serve(shell, lambda: waiting(shell) == 3)
    return shell


def serve(shell: Shell, until: object) -> None:
    """Run the app until something is so."""
    with shell.start("run", "shop:app", "-l", "error", stdout=subprocess.DEVNULL) as process:
        eventually(until)  # type: ignore[arg-type]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert process.returncode == 0


def waiting(shell: Shell) -> int:
    """Dead letters of billing that nobody dealt with."""
    from streams.patterns.deadletters.redriving import Letters

    with shell.log() as log:
        if "orders.billing.dead" not in [info.name for info in log.topics()]:
            return 0
        return Letters(log, "orders.billing.dead").waiting()


def test_dead_letters_are_listed_shown_put_back_once_and_purged(failed: Shell, run: Run) -> None:
    topics = {each["dead_letters"]: each for each in run("dead", "ls", "--json").json}
    assert topics["orders.billing.dead"]["waiting"] == 3
    listed = run("dead", "ls", "billing", "orders", "--json").json
    by_id = {each["id"]: each for each in listed}
    assert set(by_id) == {"o-1", "o-2", "odd"}
    assert by_id["o-1"]["attempts"] == 2
    assert by_id["o-1"]["error"] == "ValueError: negative \x1b[31m amount"
    assert by_id["o-1"]["source"].startswith("orders/")
    assert "DecodeError" in by_id["odd"]["error"]
    for command in (("ls",), ("show",)):
        shown = run("dead", *command, "billing", "orders")
        assert shown.status == 0
        assert "\x1b" not in shown.out

    whole = run("dead", "show", "billing", "orders", by_id["odd"]["place"], "--json").json
    assert whole["value"]["n"] == "many\x1b[31m"
    assert "DecodeError" in whole["traceback"]
    assert run("dead", "show", "billing", "orders", "o-2", "--json").json["id"] == "o-2"

    assert run("dead", "retry", "billing", "orders", "--json").json["retried"] == 3
    assert run("dead", "retry", "billing", "orders", "--json").json["retried"] == 0
    assert run("dead", "ls", "billing", "orders", "--json").json == []
    assert len(run("dead", "ls", "billing", "orders", "--all", "--json").json) == 3
    back = {each["id"]: each for each in run("tail", "orders.billing.retry", "--json").lines}
    original = {each["id"]: each for each in run("replay", "orders").lines}
    assert set(back) == {"o-1", "o-2", "odd"}
    for id, each in back.items():
        assert (each["key"], each["value"]) == (original[id]["key"], original[id]["value"])
        assert each["headers"] == {"streams_redrive": "1"}

    # Their group handles them, no other does; what fails again is a new dead letter.
    serve(failed, lambda: waiting(failed) == 1)
    billed = [line.split()[0] for line in failed.read("billed.txt")]
    assert sorted(billed) == ["o-1", "o-2", "o1", "o2"]
    assert len(failed.read("totals.txt")) == 4
    (left,) = run("dead", "ls", "billing", "orders", "--json").json
    assert (left["id"], left["redrives"]) == ("odd", 1)
    assert run("dead", "purge", "billing", "orders", "--json").json["purged"] == 1
    assert waiting(failed) == 0
    groups = [each["group"] for each in run("groups", "ls", "--json").json]
    assert groups == ["billing", "totals"]


def test_a_retry_that_was_killed_doubles_nothing(failed: Shell, run: Run) -> None:
    assert run("dead", "retry", "billing", "orders").status == 0
    with failed.log() as log:
        # As if it had been killed between writing the letters and committing how far it was.
        log.forget("orders.billing.dead")
    assert run("dead", "retry", "billing", "orders", "--json").json["retried"] == 3
    assert len(run("tail", "orders.billing.retry", "--json").lines) == 6
    serve(failed, lambda: waiting(failed) == 1 and len(failed.read("billed.txt")) >= 4)
    billed = [line.split()[0] for line in failed.read("billed.txt")]
    assert sorted(billed) == ["o-1", "o-2", "o1", "o2"]
    assert waiting(failed) == 1


def test_some_of_them(failed: Shell, run: Run) -> None:
    found = run("dead", "ls", "billing", "orders", "--json").json
    oldest = {place.partition("/")[0]: id for place, id in reversed(
        [(each["place"], each["id"]) for each in found]
    )}  # fmt: skip
    assert run("dead", "retry", "billing", "orders", "-n", "1", "--json").json["retried"] == len(
        oldest
    )
    back = [each["id"] for each in run("tail", "orders.billing.retry", "--json").lines]
    assert sorted(back) == sorted(oldest.values())
    left = run("dead", "ls", "billing", "orders", "--json").json
    assert len(left) == 3 - len(oldest)
