"""Dead letters on the command line: looked at, put back once, handled by their group alone."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from streams.derived_records import dead_letter_record
from streams.errors import InvalidValue
from streams.log.appending import append_and_wait
from streams.log.protocol import Committed
from streams.log.range_reader import read_batches
from streams.message import Record
from streams.retries import ensure_delay_topic, entry_record, parse_entry
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
    from streams.patterns.deadletters.redriving import DeadLetterTopic

    with shell.log() as log:
        if "orders.billing.dead" not in [info.name for info in log.describe_topics()]:
            return 0
        return DeadLetterTopic(log, "orders.billing.dead").count_waiting()


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

    oldest = run("dead", "ls", "billing", "orders", "--limit", "2", "--json")
    assert oldest.json == listed[:2]
    assert oldest.err == "only the oldest 2 are listed; --limit N lists more\n"
    assert run("dead", "ls", "billing", "orders", "--limit", "3").err == ""
    missing = run("dead", "show", "billing", "orders", "77/1")
    assert "there is no dead letter '77/1'" in missing.err

    assert run("dead", "retry", "billing", "orders", "--yes", "--json").json["retried"] == 3
    assert run("dead", "retry", "billing", "orders", "--yes", "--json").json["retried"] == 0
    assert run("dead", "ls", "billing", "orders", "--json").json == []
    assert len(run("dead", "ls", "billing", "orders", "--all", "--json").json) == 3
    back = {each["id"]: each for each in run("tail", "orders.billing.retry", "--json").lines}
    original = {each["id"]: each for each in run("replay", "orders").lines}
    assert set(back) == {"o-1", "o-2", "odd"}
    for id, each in back.items():
        assert (each["key"], each["value"]) == (original[id]["key"], original[id]["value"])
        headers = each["headers"]
        assert headers["streams_redrive"] == "1"
        assert headers["streams_origin"] == by_id[id]["source"]
        assert headers["streams_first_failed"].startswith(by_id[id]["failed_at"][:19])
        assert headers["streams_first_error"] == by_id[id]["error"]
        assert headers["streams_put_back"] == "1"
        assert set(headers) == {
            "streams_redrive", "streams_put_back", "streams_first_position",
            "streams_origin", "streams_first_failed", "streams_first_error",
        }  # fmt: skip

    # Their group handles them, no other does; what fails again is a new dead letter.
    serve(failed, lambda: waiting(failed) == 1)
    billed = [line.split()[0] for line in failed.read("billed.txt")]
    assert sorted(billed) == ["o-1", "o-2", "o1", "o2"]
    assert len(failed.read("totals.txt")) == 4
    (left,) = run("dead", "ls", "billing", "orders", "--json").json
    assert (left["id"], left["redrives"]) == ("odd", 1)
    assert run("dead", "purge", "billing", "orders", "--yes", "--json").json["purged"] == 1
    assert waiting(failed) == 0
    groups = [each["group"] for each in run("groups", "ls", "--json").json]
    assert groups == ["billing", "totals"]


def test_what_a_delay_topic_could_not_deliver_goes_back_into_it(shell: Shell, run: Run) -> None:
    """Whoever keeps a delay topic reads no other."""
    letters = [
        dead_letter_record(
            entry_record(Record(b"7", b"k", f"m{number}"), "orders", 1_000),
            InvalidValue("not declared"), 1, "delays", ("delays", 0, str(number)), 1_700_000_000.0,
        )
        for number in range(3)
    ]  # fmt: skip
    with shell.log() as log:
        ensure_delay_topic(log, "delays", 1)
        log.create_topic("delays.dead", 1)
        append_and_wait(log, "delays.dead", letters)
    of_delays = ("delays", "delays", "--name", "delays.dead")
    edited = run("dead", "edit", *of_delays, "0/2", "--value", "8")
    assert edited.status == 0, edited.err
    assert "to delays" in edited.err
    assert "delays.delays" not in edited.err
    assert run("dead", "retry", *of_delays, "--yes", "--json").json["retried"] == 2
    with shell.log() as log:
        assert "delays.delays.retry" not in log.list_topics()
        batches = list(read_batches(log, "delays", 0, *log.watermarks("delays", 0)))
    found = [
        parse_entry(batch.keys[index], batch.values[index], batch.headers(index))
        for batch in batches
        for index in range(len(batch))
    ]
    assert [
        each and (each.topic, each.due, each.record.id, each.record.value) for each in found
    ] == [
        ("orders", 1_000, "m2", b"8"),
        ("orders", 1_000, "m0", b"7"),
        ("orders", 1_000, "m1", b"7"),
    ]


def test_a_retry_that_was_killed_doubles_nothing(failed: Shell, run: Run) -> None:
    assert run("dead", "retry", "billing", "orders", "--yes").status == 0
    with failed.log() as log:
        # As if it had been killed between writing the letters and committing how far it was.
        log.delete_group("orders.billing.dead")
    assert run("dead", "retry", "billing", "orders", "--yes", "--json").json["retried"] == 3
    assert len(run("tail", "orders.billing.retry", "--json").lines) == 6
    serve(failed, lambda: waiting(failed) == 1 and len(failed.read("billed.txt")) >= 4)
    billed = [line.split()[0] for line in failed.read("billed.txt")]
    assert sorted(billed) == ["o-1", "o-2", "o1", "o2"]
    assert waiting(failed) == 1


@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_all_of_them_are_asked_about_as_some_are(failed: Shell, run: Run, verb: str) -> None:
    for words, number in (([], 3), (["--since", "1h"], 3), (["-n", "9"], 3)):
        unasked = run("dead", verb, "billing", "orders", *words)
        assert unasked.status == 2
        assert unasked.err.startswith(
            f"streams: {number} dead letters of orders.billing.dead will be "
        )
        assert "There is no terminal to ask on: add --yes" in unasked.err
    assert waiting(failed) == 3
    assert run("dead", verb, "billing", "orders", "--yes").status == 0
    assert waiting(failed) == 0
    # Nothing is left that somebody could be asked about.
    assert run("dead", verb, "billing", "orders").status == 0


def test_some_of_them(failed: Shell, run: Run) -> None:
    found = run("dead", "ls", "billing", "orders", "--json").json
    oldest = {place.partition("/")[0]: id for place, id in reversed(
        [(each["place"], each["id"]) for each in found]
    )}  # fmt: skip
    assert run("dead", "retry", "billing", "orders", "--yes", "-n", "1", "--json").json[
        "retried"
    ] == len(oldest)
    back = [each["id"] for each in run("tail", "orders.billing.retry", "--json").lines]
    assert sorted(back) == sorted(oldest.values())
    left = run("dead", "ls", "billing", "orders", "--json").json
    assert len(left) == 3 - len(oldest)


@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_a_group_that_reads_is_not_moved(failed: Shell, run: Run, verb: str) -> None:
    def position() -> object:
        with failed.log() as log:
            return log.committed("orders", "orders")

    with failed.log() as log:
        # A group that is called as the topic that it reads, and is stopped now.
        log.reset_offsets("orders", "orders", {0: Committed(1, "")})
    before = position()
    for more in (["--yes"], ["--dry-run"], ["1/0"]):
        refused = run("dead", verb, "billing", "orders", "--name", "orders", *more)
        assert refused.status == 1
        assert "orders holds no dead letters" in refused.err
    edited = run("dead", "edit", "billing", "orders", "0/1", "--name", "orders", "--value", "1")
    assert "orders holds no dead letters" in edited.err
    assert position() == before


@pytest.mark.parametrize("verb", ["retry", "purge"])
def test_a_group_of_a_dead_letter_topic_s_name_is_not_moved(
    failed: Shell, run: Run, verb: str
) -> None:
    name = "orders.billing.dead"
    with failed.log() as log:
        log.reset_offsets(name, "orders", {0: Committed(1, "")})  # it reads something else, too
        before = log.committed(name, "orders")
    for more in (["--yes"], ["--dry-run"]):
        refused = run("dead", verb, "billing", "orders", *more)
        assert refused.status == 1
        assert f"{name}: a group of this name reads something" in refused.err
        assert "in a group of another name" in refused.err
    assert waiting(failed) == 3
    with failed.log() as log:
        assert log.committed(name, name) == {}
        assert log.committed(name, "orders") == before


CLOSED = '''
"""Orders whose keys stay closed behind a dead message."""

import os

from streams import DeadLetters, Message, Retry, Streams

app = Streams("sqlite:///shop.db")
orders = app.topic("orders", int, partitions=2)
sequenced = DeadLetters(sequenced=True)


@app.processor(orders, group="billing", retry=Retry(attempts=1), dead_letters=sequenced)
async def bill(n: int, message: Message) -> None:
    if n < 0 and not os.path.exists("mended"):
        raise ValueError("negative \\x1b[31m amount")
    with open("billed.txt", "a") as file:
        file.write(f"{message.key} {n}\\n")
'''


def test_closed_keys_are_listed_shown_retried_edited_and_dropped(shell: Shell, run: Run) -> None:
    (shell.folder / "closed.py").write_text(CLOSED)

    def publish(*pairs: tuple[str, int]) -> None:
        with shell.log() as log:
            records = [Record(str(n).encode(), key.encode(), f"{key}{n}") for key, n in pairs]
            log.create_topic("orders", 2)
            append_and_wait(log, "orders", records)

    def serve(until: Callable[[], bool]) -> None:
        with shell.start("run", "closed:app", "-l", "error", stdout=subprocess.DEVNULL) as process:
            eventually(until)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert process.returncode == 0

    def keys() -> dict[str, dict[str, Any]]:
        from streams.patterns.deadletters.closed_keys import ClosedKeyReader

        with shell.log() as log:
            if "orders.billing.parked" not in [info.name for info in log.describe_topics()]:
                return {}
            heads = ClosedKeyReader(log, "billing", "orders").heads()
            return {
                head.key.decode(): {"parked": head.parked, "dead": head.is_dead} for head in heads
            }

    with shell.log():
        pass
    missing = run("dead", "keys", "billing", "orders")
    assert (missing.status, missing.err.count("\n")) == (1, 1)
    assert "sequenced=True" in missing.err
    publish(("a", -1), ("b", -2), ("c", -3), ("d", 4), ("a", 5), ("b", 6), ("c", 7))
    serve(lambda: [each["parked"] for each in keys().values()] == [1, 1, 1])
    listed = {each["key"]: each for each in run("dead", "keys", "billing", "orders", "--json").json}
    assert set(listed) == {"a", "b", "c"}
    assert listed["a"]["error"] == "ValueError: negative \x1b[31m amount"
    assert (listed["a"]["parked"], listed["a"]["state"], listed["a"]["attempts"]) == (1, "dead", 1)
    for words in (["keys", "billing", "orders"], ["show", "billing", "orders", "--key", "a"]):
        shown = run("dead", *words)
        assert shown.status == 0
        assert "\x1b" not in shown.out
    whole = run("dead", "show", "billing", "orders", "--key", "b", "--json").json
    assert (whole["value"], whole["id"]) == (-2, "b-2")
    assert list(whole["headers"]) == ["streams_first_position"]
    assert "ValueError" in whole["traceback"]

    parked = {each["dead_letters"]: each for each in run("dead", "ls", "--json").json}
    assert parked["orders.billing.parked"] == {
        "dead_letters": "orders.billing.parked", "of": [{"group": "billing", "topic": "orders"}],
        "waiting": 3, "total": None, "oldest_seconds": None, "closed_keys": 3, "parked": 3,
    }  # fmt: skip
    for which in ([], ["billing", "orders"]):
        printed = run("dead", "ls", *which)
        assert (
            "orders.billing.parked: 3 closed keys, 3 messages behind; "
            "streams dead keys billing orders lists them"
        ) in printed.err

    unasked = run("dead", "retry", "billing", "orders", "--keys")
    assert (unasked.status, "will be retried. Continue? There is no terminal" in unasked.err) == (
        2,
        True,
    )
    assert run("dead", "retry", "billing", "orders", "--key", "a", "--json").json["retried"] == 1
    assert run("dead", "edit", "billing", "orders", "b", "--value", "2").status == 0
    assert run("dead", "drop", "billing", "orders", "c", "--json").json["dropped"] == 1
    for words, said in (
        (["edit", "billing", "orders", "b", "--value", "2"], "no decision is waited for"),
        (["drop", "billing", "orders", "zz"], "not closed"),
        (["drop", "billing", "orders", r"z\x00", "--escapes"], r"'z\x00' is not closed"),
        (["show", "billing", "orders", "--key", r"z\x00", "--escapes"], r"'z\x00' is not closed"),
        (["show", "billing", "orders", "--key", "zz"], "not closed"),
        (["edit", "billing", "orders", "a"], "needs --value, --file, or EDITOR"),
        (["edit", "billing", "orders", "a", "-f", "missing.json"], "missing.json"),
        (["retry", "billing", "orders", "--key", "a", "--keys"], "not both"),
        (["retry", "billing", "orders", "--keys", "-n", "1"], "not apply to closed keys"),
    ):
        refused = run("dead", *words)
        assert refused.status in (1, 2)
        assert said in refused.err
        assert refused.err.count("\n") == 1

    (shell.folder / "mended").touch()
    serve(lambda: not keys())
    billed = [line.split() for line in shell.read("billed.txt")]
    by_key = {key: [n for each, n in billed if each == key] for key in "abcd"}
    assert by_key == {"a": ["-1", "5"], "b": ["2", "6"], "c": ["7"], "d": ["4"]}
    assert run("dead", "keys", "billing", "orders", "--json").json == []
    assert run("dead", "retry", "billing", "orders", "--keys", "--json").json["retried"] == 0
    groups = [each["group"] for each in run("groups", "ls", "--json").json]
    assert groups == ["billing"]
