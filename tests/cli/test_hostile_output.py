"""Every command over a log, names and errors that somebody hostile wrote: no byte of it steers a
terminal, and a line stays a line."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys

import pytest
import typer

from streams.cli.root import make_app
from streams.message import Record
from tests.cli.conftest import Result, Run, Shell, command_paths, eventually
from tests.test_text import unfit

EVIL = "e\x1b]0;v\x07\x9b31m\u202e\u2028\nstreams: forged\x7f\r[red]"
"""A title for the terminal, a colour, text from right to left, new lines, markup of rich."""

SHOP = f'''
"""Orders of which each fails in bad words."""

from streams import DeadLetters, Message, Retry, Streams
from streams.patterns import SagaOrchestrator

EVIL = {EVIL!a}


class Rude(Exception):
    def __str__(self):
        return EVIL

    __repr__ = __str__


app = Streams("sqlite:///shop.db")
orders = app.topic("orders", partitions=2)
calls = app.topic("calls")


@app.processor(orders, group="billing", retry=Retry(attempts=1))
async def bill(order: bytes, message: Message) -> None:
    raise Rude


closing = DeadLetters(sequenced=True)


@app.processor(calls, group="desk", retry=Retry(attempts=1), dead_letters=closing)
async def answer(call: bytes, message: Message) -> None:
    raise Rude


async def book(context: dict) -> None:
    raise Rude


async def cancel(context: dict) -> None:
    raise Rude


once = Retry(attempts=1)
trips = SagaOrchestrator(app, "trips", context=dict)
trips.add_step("first", cancel and (lambda context: None), cancel, compensation_retry=once)
trips.add_step("book", book, retry=once)
'''

READ = """
doctor shop:app
topics ls
topics show orders
groups ls
groups show billing
tail orders
tail calls.desk.parked
replay orders
replay shop:app orders --into bill --errors skip
replay shop:app orders --into bill
reset billing orders --to earliest --dry-run
dead ls
dead ls billing orders
dead show billing orders
dead show desk calls --key KEY
dead keys desk calls
saga list
saga list trips --all
saga ls
saga status trips SAGA
saga status trips EVIL
aggregates ls
views ls
managers ls shop:app
"""
WRITE = """
publish orders lines.json --key id
publish orders lines.json --key nothing --skip
saga resume trips SAGA
saga abandon trips SAGA --reason EVIL --yes
dead edit desk calls KEY --value EVIL
dead edit billing orders WHICH --value EVIL
dead drop desk calls KEY
dead retry desk calls --key KEY
dead retry billing orders -n 1 --yes
dead retry billing orders --error EVIL --key EVIL --yes
dead purge billing orders --error EVIL --dry-run
dead purge billing orders --yes
topics create EVIL
topics create new
topics retain new --keep-for 1h --yes
topics delete new --yes
groups delete billing --yes
"""
WRONG = """
run EVIL
run EVIL:app
run EVIL://shop:secret@host
run shop:EVIL
doctor shop:app --prometheus EVIL
web EVIL:app
web shop:app --host EVIL
web shop:app --allow-host EVIL:1 --port 0
web --password-file EVIL --port 0
doctor shop:app --prometheus http://127.0.0.1:1/EVIL
topics show EVIL
topics ls --url EVIL
topics ls --url sqlite:///EVIL
topics ls --url redis://EVIL@h
topics delete EVIL --yes
topics retain EVIL --for-ever
topics retain orders --keep-for EVIL
groups show EVIL
groups delete EVIL --yes
publish EVIL lines.json
publish orders EVIL
publish orders lines.json --key EVIL
tail EVIL
tail orders --key EVIL
tail orders -p EVIL
replay EVIL
replay orders --start EVIL
replay shop:app orders --into EVIL
aggregates ls EVIL
aggregates ls EVIL:app
aggregates show EVIL EVIL
aggregates show orders EVIL
aggregates drop-snapshots EVIL --yes
views show EVIL
views stopped EVIL
views promote EVIL --version 1
views rebuild EVIL --version 1 --yes
views drop EVIL --version 1 --yes
views retry EVIL EVIL
views retry EVIL EVIL --timeout EVIL
managers ls EVIL
managers show shop:app EVIL
managers show shop:app EVIL EVIL
inbox ddl EVIL
outbox ls EVIL
outbox ls shop:app --table EVIL
outbox show EVIL:app EVIL
outbox retry EVIL EVIL
outbox relay EVIL
projections ls EVIL
projections ls shop:app
projections show shop:app EVIL
projections promote EVIL EVIL --version 1
projections drop shop:app EVIL --version 1 --yes
projections ddl EVIL
reset EVIL orders
reset billing EVIL
reset billing orders --to EVIL
dead ls EVIL EVIL
dead show billing orders EVIL
dead retry billing orders EVIL
dead purge billing orders EVIL
dead edit billing orders EVIL --value 1
dead ls billing orders --since EVIL
dead retry billing orders --until EVIL
dead show desk calls --key EVIL
dead keys EVIL orders
dead retry desk calls --key EVIL
dead edit desk calls EVIL --value 1
dead edit desk calls KEY --file EVIL
dead drop desk calls EVIL
saga status EVIL EVIL
saga status trips EVIL
aggregates ls
saga resume trips EVIL
saga abandon trips EVIL --yes
EVIL
--EVIL
"""


PLAIN = (
    "run",
    "EVIL",
    "--EVIL",
    "publish",
    "topics create",
    "topics delete",
    "groups delete",
    "outbox relay",
    "projections promote",
    "projections drop",
    "projections ddl",
    "inbox ddl",
)
"""What has no --json."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, str]:
    """A log in which everything has gone wrong in bad words, and what was logged meanwhile."""
    shell = Shell(tmp_path_factory.mktemp("hostile"))
    shell.write("shop.py", SHOP)
    name = EVIL.encode()
    key = name + b"\xff"
    values = [b"{}", json.dumps({"text": EVIL}, ensure_ascii=False).encode(), name, b"\xff" + name]
    headers = [("n" + EVIL, name), (EVIL, b"\xff" + name), ("traceparent", name)]
    records = [Record(value, key, f"id{at}{EVIL}", headers) for at, value in enumerate(values)]
    started = json.dumps({"saga": "s1", "context": {EVIL: EVIL}}).encode()
    # A saga cannot have this ID: the record is a dead letter.
    refused = json.dumps({"saga": "s" + EVIL, "context": {}}).encode()
    sagas = [Record(refused, b"s" + name, "refused"), Record(started, b"s1", "start")]
    with shell.log() as log:
        for topic, partitions, found in (
            ("orders", 2, records),
            ("calls", 1, records),
            ("trips.saga", 1, sagas),
        ):
            log.create_topic(topic, partitions)
            log.append(topic, found, lambda answers: None)
        log.flush(10.0)

    def over() -> bool:
        from streams.patterns.saga.journal import Journal

        with shell.log() as log:
            names = [info.name for info in log.describe_topics()]
            if not {"orders.billing.dead", "calls.desk.parked"} <= set(names):
                return False
            dead = log.lag("orders.billing.dead", 0, 0) or 0
            dead += log.lag("orders.billing.dead", 1, 0) or 0
            listing = Journal(log, "trips").list_latest(lambda entry: entry.status == "failed")
            return dead == len(records) and bool(listing.entries)

    with shell.start("run", "shop:app", "-l", "debug", "--http", "127.0.0.1:0") as process:
        eventually(over)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err.decode()
    return shell, err.decode()


def words(text: str) -> list[str]:
    """A command of the lists above."""
    places = {"KEY": EVIL + "\udcff", "SAGA": "s1", "WHICH": f"id0{EVIL}"}
    return [
        places[word] if word in places else word.replace("EVIL", EVIL) for word in text.split(" ")
    ]


def check(result: Result, command: list[str]) -> None:
    """Nothing of it steers a terminal, and no line is the hostile one."""
    for text in (result.out, result.err):
        assert unfit(text) <= {"\n", "\t"}, (command, text)
        assert not re.search(r"^streams: forged", text, re.MULTILINE), (command, text)


def lines(text: str) -> list[str]:
    return text.strip().split("\n")


def test_what_is_logged_is_a_line_a_record(ran: tuple[Shell, str]) -> None:
    _, err = ran
    assert "forged" in err
    assert unfit(err) <= {"\n"}
    for line in err.splitlines():
        assert re.match(r"\d{4}-\d\d-\d\d |  |streams: (?!forged)", line), line


def test_every_command(ran: tuple[Shell, str], shell: Shell, run: Run) -> None:
    # On a copy: some of them write, and the other tests look at the same log.
    shutil.copytree(ran[0].folder, shell.folder, dirs_exist_ok=True)
    good = json.dumps({"id": EVIL, "text": EVIL})
    shell.write("lines.json", f"{good}\n{EVIL.replace(chr(10), '')}\n")
    seen = 0
    for text in lines(READ) + lines(WRONG) + lines(WRITE):
        for more in ([], ["--json"]):
            if more and text.startswith(PLAIN):
                continue
            command = [*words(text), *more]
            result = run(*command)
            check(result, command)
            assert "Traceback" not in result.err, command
            seen += "forged" in result.out + result.err
            if more and result.status == 0:
                for line in result.out.splitlines():
                    json.loads(line)
    assert seen > 60  # what is hostile was there to be shown


def test_no_command_is_left_out() -> None:
    known = lines(READ) + lines(WRITE) + lines(WRONG)
    for path in command_paths(typer.main.get_command(make_app())):
        assert any(each.startswith(f"{path} ") or each == path for each in known), path


@pytest.mark.parametrize(
    "text",
    [
        "tail orders",
        "replay orders",
        "dead ls billing orders",
        "dead show billing orders",
        "saga list trips --all",
    ],
)
def test_on_a_terminal(ran: tuple[Shell, str], text: str) -> None:
    shell, _ = ran
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "streams.cli", *words(text)],
            cwd=shell.folder,
            env={**shell.environment, "TERM": "xterm-256color"},
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        data = b""
        while True:
            try:
                more = os.read(ours, 65_536)
            except OSError:  # Linux: nobody has the other end any more
                break
            if not more:
                break
            data += more
        assert process.wait(30) == 0
    finally:
        os.close(ours)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode().replace("\r\n", "\n"))
    assert "forged" in shown
    assert "[red]" in shown
    assert unfit(shown) <= {"\n", "\t"}
