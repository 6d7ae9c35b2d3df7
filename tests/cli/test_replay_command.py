"""``streams replay`` and ``streams reset`` on a real file."""

from __future__ import annotations

import signal

import pytest

from streams.engine.progress import decode_progress
from tests.cli.conftest import Run, Shell, eventually, fill, order


@pytest.fixture
def filled(shell: Shell) -> Shell:
    """Orders 0 to 19, by customer c0 to c4; 5 twice under one ID."""
    with shell.log() as log:
        fill(log, "orders", [order(n) for n in (*range(20), 5)])
        log.create_topic("copy", 3)
        log.initialize_offsets("billing", "orders", {0: 1, 1: 1})
    return shell


def untouched(shell: Shell) -> bool:
    with shell.log() as log:
        positions = log.describe_group("billing").positions
        return {place.position for place in positions.values()} == {1} and log.list_groups() == [
            "billing"
        ]


def test_a_range_as_json_lines(filled: Shell, run: Run) -> None:
    found = run("replay", "orders", "--start", "-3").lines
    assert {each["partition"] for each in found} == {0, 1}
    assert [each["time"] for each in found] == sorted(each["time"] for each in found)
    everything = run("replay", "orders").lines
    assert [each["value"]["n"] for each in everything] == [*range(20), 5]
    one = run("replay", "orders", "-k", "c3").lines
    assert [each["value"]["n"] for each in one] == [3, 8, 13, 18]
    assert {each["key"] for each in one} == {"c3"}
    first = everything[4]["time"]
    since = run("replay", "orders", "--start", first, "--end", "latest").lines
    assert [each["value"]["n"] for each in since[-16:]] == [*range(5, 20), 5]
    part = run("replay", "orders", "-p", "0", "--start", "2", "--end", "4").lines
    assert [(each["partition"], each["offset"]) for each in part] == [(0, 2), (0, 3)]
    assert untouched(filled)


def test_into_a_handler_with_a_window_of_its_own(filled: Shell, run: Run) -> None:
    ended = run("replay", "shop:app", "orders", "--into", "bill", "--json")
    assert ended.json["read"] == 21
    assert (ended.json["handled"], ended.json["duplicates"]) == (20, 1)
    assert "not published to bills" in ended.err
    billed = [line.split() for line in filled.read("billed.txt")]
    for customer in range(5):
        ids = [int(id[1:]) for id, who in billed if who == f"c{customer}"]
        assert ids == list(range(customer, 20, 5))
    assert run("tail", "bills").out == ""
    assert untouched(filled)
    again = run("replay", "shop:app", "orders", "--into", "bill", "--json", "--window", "0")
    assert again.json["handled"] == 21


def test_at_a_failure_it_stops_and_says_how_to_go_on(filled: Shell, run: Run) -> None:
    stopped = run("replay", "shop:app", "orders", "--into", "total")
    assert stopped.status == 1
    assert "Reject: thirteen" in stopped.err
    assert "orders/" in stopped.err
    # 0 to 12 without 7, which is filtered out; in the order of the log's time.
    assert [int(line.split()[1]) for line in filled.read("totals.txt")] == [
        *range(7),
        *range(8, 13),
    ]
    places = stopped.err.partition("--start ")[2].partition(",  ")[0].split(", or")[0]
    skipped = run(
        *("replay", "shop:app", "orders", "--into", "total"),
        *("--start", places, "--errors", "skip", "--json"),
    )
    assert skipped.json["failed"] == 1
    assert skipped.json["failures"][0]["error"] == "Reject: thirteen"
    assert "skipped orders/" in skipped.err
    # The window of the second replay is its own: the second copy of 5 is new to it.
    numbers = [int(line.split()[1]) for line in filled.read("totals.txt")]
    assert numbers[12:] == [*range(14, 20), 5]


def test_into_another_topic_as_it_stands(filled: Shell, run: Run) -> None:
    ended = run(
        "replay", "orders", "--to", "copy", "--start", "0/3,1/2", "--rate", "1000", "--json"
    )
    assert ended.json["failed"] == 0
    copied = {each["id"]: each for each in run("replay", "copy").lines}
    source = run("replay", "orders", "--start", "0/3,1/2").lines
    assert ended.json["handled"] == len(source)
    for each in source:
        twin = copied[each["id"]]
        assert (twin["key"], twin["value"], twin["headers"]) == (
            each["key"],
            each["value"],
            each["headers"],
        )
    assert untouched(filled)


def test_interrupted_it_says_how_to_go_on(filled: Shell) -> None:
    command = ("replay", "shop:app", "orders", "--into", "total", "--rate", "1")
    with filled.start(*command) as process:
        eventually(lambda: len(filled.read("totals.txt")) >= 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    said = err.decode()
    assert "interrupted" in said
    assert "Traceback" not in said
    places = said.partition("--start ")[2].strip()
    done = len(filled.read("totals.txt"))
    rest = filled("replay", "orders", "--start", places).lines
    assert len(rest) == 21 - done


def test_reset_shows_then_moves(filled: Shell, run: Run) -> None:
    plan = run("reset", "billing", "orders", "--to", "latest", "--dry-run", "--json").json
    assert plan["moved"] is False
    assert sum(each["skipped"] for each in plan["partitions"]) == 19
    assert untouched(filled)
    back = run("reset", "billing", "orders", "--to", "latest", "--json").json
    assert back["moved"] is True
    ended = run("reset", "billing", "orders", "--to", "-2")
    assert "to be handled again: 4 messages" in ended.err
    with filled.log() as log:
        for (_, partition), place in log.describe_group("billing").positions.items():
            assert place.position == log.watermarks("orders", partition)[1] - 2
            # The floor is the position: nothing before counts as seen.
            assert decode_progress(place.position, place.progress) == (place.position, [])
    one = run("reset", "billing", "orders", "--to", "3", "--partition", "1", "--json").json
    assert [(each["partition"], each["to"]) for each in one["partitions"]] == [(1, 3)]
