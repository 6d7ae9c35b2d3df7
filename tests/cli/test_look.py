"""Looking: topics, groups, tail; for people, for programs, through pipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import IO

import pytest

from streams.engine.progress import encode_progress
from streams.log.protocol import Committed
from tests.cli.conftest import Run, Shell, eventually, fill, order


def test_topics_are_created_listed_shown_and_deleted(shell: Shell, run: Run) -> None:
    made = run("topics", "create", "orders", "-p", "2", "--keep-for", "7d", "--keep", "1000")
    assert (made.status, made.out) == (
        0,
        "orders: 2 partitions, kept for 7d, about 1,000 a partition\n",
    )
    with shell.log() as log:
        fill(log, "orders", [order(n, "a") for n in range(3)])
        kept = log.describe_topic("orders").retention
    assert (kept.seconds, kept.messages) == (7 * 86400.0, 1000)
    assert run("topics", "ls", "--json").json == [
        {
            "topic": "orders",
            "partitions": 2,
            "messages": 3,
            "retention": {
                "seconds": 604800.0,
                "messages": 1000,
                "bytes": None,
                "compacted": False,
            },
        }
    ]
    parts = run("topics", "show", "orders", "--json").json["partitions"]
    assert sorted((part["first"], part["end"], part["messages"]) for part in parts) == [
        (0, 0, 0),
        (0, 3, 3),
    ]
    refused = run("topics", "delete", "orders")
    assert refused.status == 2
    assert "3 messages" in refused.err
    assert "--yes" in refused.err
    assert run("topics", "delete", "orders", "--yes").status == 0
    assert run("topics", "ls").out.splitlines() == ["TOPIC  PARTITIONS  MESSAGES  RETENTION"]


def test_a_group_shows_what_it_is_waiting_for(shell: Shell, run: Run) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(n, "slow\x1b[1m") for n in range(6)], partitions=1)
        # Offsets 3 and 4 are settled out of order; 2 holds the position back.
        ahead = encode_progress(2, 0, [(3, 5)]).progress
        log.reset_offsets("billing", "orders", {0: Committed(2, ahead)})
    found = run("groups", "show", "billing", "--json").json
    assert found["members"] == []
    (part,) = found["partitions"]
    assert part.pop("oldest_seconds") >= 0
    assert part == {
        "topic": "orders",
        "partition": 0,
        "position": 2,
        "end": 6,
        "lag": 4,
        "ahead": 2,
        "owner": None,
        "oldest_key": "slow\x1b[1m",
        "oldest_id": "o2",
    }
    shown = run("groups", "show", "billing").out
    assert r"slow\x1b[1m" in shown
    assert "\x1b" not in shown
    listed = run("groups", "ls", "--json").json
    assert listed == [{"group": "billing", "members": 0, "topics": ["orders"], "lag": 4}]
    assert run("groups", "delete", "billing", "--yes").status == 0
    assert run("groups", "ls", "--json").json == []


def test_tail_shows_the_last_in_order_of_time(shell: Shell, run: Run) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(n) for n in range(20)])
    found = run("tail", "orders", "-n", "4", "--json").lines
    assert [each["value"]["n"] for each in found] == [16, 17, 18, 19]
    assert [each["id"] for each in found] == ["o16", "o17", "o18", "o19"]
    one_key = run("tail", "orders", "-k", "c1", "-n", "2").out.splitlines()
    assert [line.rpartition('"n": ')[2] for line in one_key] == ["11}", "16}"]
    since = run("tail", "orders", "--from", "0/1", "--json").lines
    assert {each["partition"] for each in since} == {0}
    assert min(each["offset"] for each in since) == 1


def test_tail_shows_so_many_from_a_place_on(shell: Shell, run: Run) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(n, "a") for n in range(6)], partitions=1)
    found = run("tail", "orders", "--from", "orders/0/2", "-n", "3", "--json").lines
    assert [each["offset"] for each in found] == [2, 3, 4]
    refused = run("tail", "orders", "--from", "orders/0/2", "-n", "3", "-f")
    assert (refused.status, "leave one of them out" in refused.err) == (2, True)


def test_a_position_in_a_table_can_be_pasted(shell: Shell, run: Run) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(n, "a") for n in range(1_234)], partitions=1)
        log.reset_offsets("billing", "orders", {0: Committed(1_230)})
    assert " 1234 " in run("topics", "show", "orders").out
    assert " 1230 " in run("groups", "show", "billing").out
    assert run("reset", "billing", "orders", "--to", "orders/0/1230", "-n").status == 0


def test_tail_follows_until_it_is_interrupted(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(0)])
        with shell.start("tail", "orders", "-f", "--json") as tail:
            assert b'"o0"' in _line(tail.stdout)
            for n in (1, 2):
                fill(log, "orders", [order(n)])
                assert f'"o{n}"'.encode() in _line(tail.stdout)
            tail.send_signal(signal.SIGINT)
            out, err = tail.communicate(timeout=30)
    assert (tail.returncode, out, err) == (130, b"", b"")


def _line(stream: IO[bytes] | None) -> bytes:
    assert stream is not None
    return stream.readline()


@pytest.mark.parametrize(
    "command", [("tail", "orders", "--from", "earliest"), ("replay", "orders")]
)
def test_a_closed_pipe_ends_quietly(shell: Shell, command: tuple[str, ...]) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(0, id="x" * 100_000) for _ in range(20)])
    reader, writer = os.pipe()
    with shell.start(*command, stdout=writer) as process:
        os.close(writer)
        assert os.read(reader, 10)
        os.close(reader)
        assert process.wait(timeout=30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_person_is_asked_and_sees_tables(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(0)])
    for command, typed, status, says in (
        (("topics", "ls"), b"", 0, "─"),
        (("tail", "orders"), b"", 0, "\x1b[1mc0\x1b[0m"),
        (("topics", "delete", "orders"), b"n\n", 1, "its 1 message? [y/N]"),
        (("topics", "delete", "orders"), b"y\n", 0, "orders: deleted"),
    ):
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", *command],
            cwd=shell.folder,
            env={**shell.environment, "TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        os.write(ours, typed)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        os.close(ours)
        assert process.wait(timeout=30) == status
        assert says in shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 10_000)
    except OSError:  # the other end is closed
        return b""


CALLED = """
import sys
from streams.cli.root import run
assert run(["topics", "--help"]) == 0
print(*sys.modules, file=sys.stderr)
"""


def test_of_the_commands_only_the_one_that_is_called_is_imported(shell: Shell) -> None:
    called = subprocess.run(
        [sys.executable, "-c", CALLED],
        env=shell.environment,
        capture_output=True,
        check=True,
        text=True,
    )
    imported = set(called.stderr.split())
    assert "streams.cli.topics" in imported
    assert imported.isdisjoint({"apsw", "confluent_kafka", "redis", "streams.log.sqlite"})
    others = {"dead", "doctor", "outbox", "run_app", "views", "web"}
    assert imported.isdisjoint(f"streams.cli.{name}" for name in others)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tipocs"], "Did you mean"),
        (["--version", "topics"], "streams "),
        (["topics", "lsx"], "streams topics --help"),
    ],
)
def test_the_others_are_known_where_they_are_needed(
    shell: Shell, arguments: list[str], said: str
) -> None:
    done = shell(*arguments)
    assert said in done.out + done.err


def test_every_command_has_an_example_in_its_help() -> None:
    import typer

    from streams.cli.root import make_app

    def walk(command: object, path: str) -> None:
        children = getattr(command, "commands", None)
        if children:
            for name, child in children.items():
                if not child.hidden:  # another name of a command beside it
                    walk(child, f"{path} {name}")
        else:
            assert f"[cyan]{path}" in (getattr(command, "help", "") or ""), path

    walk(typer.main.get_command(make_app()), "streams")


def test_members_are_seen_while_they_run(shell: Shell) -> None:
    with shell.start("run", "shop:app", stdout=subprocess.DEVNULL):
        with shell.log() as log:

            def owners() -> bool:
                groups = log.list_groups()
                return "billing" in groups and any(
                    len(member.partitions) == 3 for member in log.describe_group("billing").members
                )

            eventually(owners)
        shown = shell("groups", "show", "billing", "--json").json
        (member,) = shown["members"]
        assert {part["owner"] for part in shown["partitions"]} == {member["id"]}
        live = shell("reset", "billing", "orders", "--to", "earliest")
        assert live.status == 1
        assert "running" in live.err
        assert "--force" in live.err
        refused = shell("groups", "delete", "billing", "--yes")
        assert refused.status == 1
        assert "--force" not in refused.err


def test_a_retention_is_changed(shell: Shell, run: Run) -> None:
    with shell.log() as log:
        log.create_topic("orders", 2)
    assert run("topics", "retain", "orders", "--keep-for", "90m", "--keep", "5", "--yes").out == (
        "orders: kept for 90m, about 5 a partition\n"
    )
    assert run("topics", "retain", "orders", "--keep-for", "7d", "--yes").out == (
        "orders: kept for 7d\n"
    )
    asked = run("topics", "retain", "orders", "--keep-for", "1h")
    assert asked.status == 2
    assert "orders: kept for 7d. Kept for 1h from now on, and delete" in asked.err
    assert run("topics", "retain", "orders", "--for-ever").out == "orders: kept for ever\n"
    for words in ((), ("--for-ever", "--keep", "5")):
        result = run("topics", "retain", "orders", *words)
        assert result.status == 2
        assert "--for-ever, or one or more of" in result.err
    for option in (["--keep-bytes", "5"], ["--compacted"]):
        result = run("topics", "retain", "orders", *option, "--yes")
        assert result.status == 2
        assert "is not possible on sqlite, which has seconds, messages" in result.err
    assert run("topics", "retain", "missing", "--for-ever").status == 1
