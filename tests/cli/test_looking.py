"""Commands that look make no file and change none; what is not there is named, and what is near."""

from __future__ import annotations

import asyncio
import os
import runpy
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import typer

from streams.cli.root import make_app
from streams.errors import ConfigError, Fatal, LogError, NotFound
from streams.log.url import open_log
from tests.cli.conftest import Run, Shell, command_paths, fill, order
from tests.conformance.records import append, record

LOOKING = (
    "topics ls",
    "topics show orders",
    "groups ls",
    "groups ls --all",
    "groups show billing",
    "tail orders",
    "tail orders --json --from earliest",
    "replay orders",
    "replay shop:app orders",
    "reset billing orders --to earliest --dry-run",
    "dead ls",
    "dead ls billing orders --all",
    "dead show billing orders",
    "dead keys billing orders",
    "saga list",
    "saga ls",
    "saga status trips ann",
    "aggregates ls",
    "aggregates ls shop:app",
    "aggregates ls accounts",
    "aggregates show accounts a-1 --events",
    "managers ls shop:app",
    "managers show shop:app transfers",
    "views ls",
    "views show balances",
    "views stopped balances",
    "outbox ls books:app",
    "outbox ls books:app --all",
    "outbox show books:app 1",
    "projections ls books:app",
    "projections show books:app sums",
    "doctor shop:app",
    "doctor books:app",
)

CHANGING = (
    "topics retain orders --keep-for 1h --yes",
    "topics delete orders --yes",
    "groups delete billing --yes",
    "reset billing orders --to earliest",
    "publish orders",
    "replay orders --to others",
    "replay shop:app orders --into bill",
    "dead retry billing orders --yes",
    "dead purge billing orders --yes",
    "dead edit billing orders c1 --value 1",
    "dead drop billing orders c1",
    "saga resume trips ann",
    "saga abandon trips an --yes",
    "aggregates drop-snapshots accounts --yes",
    "views promote balances --version 1",
    "views rebuild balances --version 1 --yes",
    "views drop balances --version 1 --yes",
    "views retry balances k",
    "outbox retry books:app --all --yes",
    "projections promote books:app sums --version 1",
    "projections drop books:app sums --version 1 --yes",
)

OTHERS = {
    "run": "makes its log",
    "topics create": "makes its log",
    "outbox relay": "makes its log",
    "web": "stays until it is stopped: see test_web.py",
    "inbox ddl": "opens nothing",
    "projections ddl": "opens nothing",
}

BOOKS = """
from streams import Message, Outbox, Sqlite, Streams
from streams.eventsourcing import Aggregate
from tests.eventsourcing.bank import Account, AccountEvent, evolve

app = Streams("sqlite:///shop.db")
accounts = Aggregate(app, "accounts", AccountEvent, Account, evolve)
orders = app.topic("orders", dict)
bills = app.topic("bills", dict, partitions=2)
outbox = Outbox(app, "sqlite:///{outbox}", relayed_by="command")


@app.processor(orders, group="sums", transaction=Sqlite("{sums}"), version=1)
def add(order: dict, message: Message) -> None: ...
"""


@pytest.fixture
def books(shell: Shell) -> Callable[[str, str], None]:
    """Writes an app with an outbox and a projection, whose tables are in files of these names."""

    def write(outbox: str, sums: str) -> None:
        shell.write("books.py", BOOKS.format(outbox=outbox, sums=sums))

    return write


def test_no_command_is_left_out() -> None:
    listed = [*LOOKING, *CHANGING, *OTHERS]
    for path in command_paths(typer.main.get_command(make_app())):
        assert any(f"{each} ".startswith(f"{path} ") for each in listed), path


def files(folder: Path, start: str = "") -> dict[str, bytes]:
    """What stands in a folder; SQLite's shared memory has no content of its own."""
    return {
        path.name: b"" if path.name.endswith("-shm") else path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name.startswith(start)
    }


def databases(folder: Path) -> dict[str, bytes]:
    """The files of SQLite in a folder."""
    return {name: data for name, data in files(folder).items() if ".db" in name}


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody is there to be asked, and there is nothing to be read."""
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield


@pytest.mark.parametrize("command", LOOKING + CHANGING)
def test_a_file_that_is_not_there_is_not_made_and_the_nearest_is_named(
    shell: Shell, run: Run, command: str, nobody: None, books: Callable[[str, str], None]
) -> None:
    books("shpo.db", "shpo.db")  # no --url names an outbox
    (shell.folder / "shop.db").write_bytes(b"")
    (shell.folder / "quite_different.db").write_bytes(b"")
    before = files(shell.folder)
    result = run(*shlex.split(command), "--url", "sqlite:///shpo.db")
    assert result.status == 1
    said = result.out if command.startswith("doctor") else result.err
    assert str(shell.folder / "shpo.db") in said
    assert "beside it there is shop.db" in said
    assert {name: data for name, data in files(shell.folder).items() if name in before} == before
    assert not files(shell.folder, "shpo")


def test_a_folder_without_databases_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*/a\.db; the folder has no \*\.db file"):
        open_log(f"sqlite:///{tmp_path}/a.db", mode="ro")


@pytest.mark.parametrize("command", LOOKING + CHANGING)
def test_another_programs_file_is_left_as_it_is(
    shell: Shell, run: Run, command: str, nobody: None, books: Callable[[str, str], None]
) -> None:
    books("theirs.db", "theirs.db")
    theirs = sqlite3.connect(shell.folder / "theirs.db")
    theirs.execute("CREATE TABLE sold (n)")
    theirs.commit()
    theirs.close()
    before = files(shell.folder)["theirs.db"]
    result = run(*shlex.split(command), "--url", "sqlite:///theirs.db")
    assert result.status == 1
    problem = "has no table 'outbox'" if command.startswith("outbox") else "without a log in it"
    assert problem in result.out + result.err
    assert files(shell.folder, "theirs") == {"theirs.db": before}


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("command", LOOKING)
def test_a_log_is_as_it_was_after_a_look(
    shell: Shell, run: Run, command: str, killed: bool, books: Callable[[str, str], None]
) -> None:
    from streams.log.protocol import Retention

    books("outbox.db", "sums.db")
    with shell.log() as log:
        fill(log, "orders", [order(n) for n in range(5)])
        log.create_topic("orders", 2, Retention(messages=1))  # a look does not trim either
        log.initialize_offsets("billing", "orders", {0: 0, 1: 0})
    if killed:
        code = (
            "import os, signal\n"
            "from streams.log.url import open_log\n"
            "from streams.message import Record\n"
            "log = open_log('sqlite:///shop.db')\n"
            "log.append('orders', [Record(b'{}', b'k', 'last')], lambda answers: None)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=shell.folder, env=shell.environment, check=False
        )
        assert ended.returncode == -signal.SIGKILL
        assert files(shell.folder)["shop.db-wal"]
    before = databases(shell.folder)
    result = run(*shlex.split(command))
    assert result.status in (0, 1)
    assert databases(shell.folder) == before
    if killed and command == "tail orders --json --from earliest":
        assert "last" in [each["id"] for each in result.lines]


TABLES = {
    "outbox ls books:app": ["box.db"],
    "outbox show books:app 1": ["box.db"],
    "outbox retry books:app --all --yes": ["box.db"],
    "projections ls books:app": ["sum.db"],
    "projections show books:app sums": ["sum.db"],
    "projections promote books:app sums --version 1": ["sum.db"],
    "projections drop books:app sums --version 1 --yes": ["sum.db"],
    "doctor books:app": ["box.db", "sum.db"],
}
"""Commands that open files which the app's code names beside its log."""


@pytest.mark.parametrize("command", TABLES)
def test_tables_whose_file_is_not_there_are_not_made(
    shell: Shell, run: Run, command: str, books: Callable[[str, str], None], nobody: None
) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    books("box.db", "sum.db")
    before = databases(shell.folder).keys()
    result = run(*shlex.split(command))
    assert result.status == 1
    for name in TABLES[command]:
        missing = f"there is no file {shell.folder / name}; beside it there is shop.db"
        assert missing in result.out + result.err
    assert databases(shell.folder).keys() == before


@pytest.mark.parametrize("state", ["rollback journal", "closed", "killed"])
@pytest.mark.parametrize("command", [each for each in TABLES if each in LOOKING])
def test_tables_are_as_they_were_after_a_look(
    shell: Shell, run: Run, command: str, state: str, books: Callable[[str, str], None]
) -> None:
    books("box.db", "sum.db")
    code = runpy.run_path("books.py")
    for name in ("box.db", "sum.db"):
        with closing(sqlite3.connect(name)) as connection:
            connection.execute("CREATE TABLE sold (n)")
    asyncio.run(code["outbox"].create_tables())
    with shell.log() as log:
        fill(log, "orders", [order(1)], partitions=1)

    async def declare() -> None:
        async with code["app"].connected():
            await code["app"].projections[0].poll_once()

    asyncio.run(declare())
    left = shell.folder / "left"
    left.mkdir()
    for name in ("box.db", "sum.db"):
        with closing(sqlite3.connect(name, isolation_level=None)) as connection:
            mode = "delete" if state == "rollback journal" else "wal"
            assert connection.execute(f"PRAGMA journal_mode = {mode}").fetchone() == (mode,)
            connection.execute("INSERT INTO sold VALUES (1)")
            if state == "killed":
                for path in shell.folder.glob(f"{name}*"):
                    shutil.copy(path, left)
    for path in left.iterdir():
        shutil.copy(path, shell.folder)
    before = databases(shell.folder)
    assert ("sum.db-wal" in before) is (state == "killed")
    result = run(*shlex.split(command))
    assert "no file" not in result.out + result.err
    assert databases(shell.folder) == before


def test_create_makes_a_file_and_says_so_beside_which(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    assert shell("topics", "create", "t", "--url", "sqlite:///other.db").status == 0
    assert (shell.folder / "other.db").exists()
    ended = shell("run", "shop:app", "--url", "sqlite:///no/such/folder.db")
    assert ended.status == 2


def test_run_says_that_its_log_is_new(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    with shell.start("run", "shop:app", "--url", "sqlite:///shpo.db") as process:
        assert process.stderr is not None
        lines = [process.stderr.readline().decode()]
        while "is a new log" not in lines[-1]:
            lines.append(process.stderr.readline().decode())
            assert lines[-1]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert "shpo.db is a new log; beside it there was shop.db already" in lines[-1]


# -- the same in code


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_code_may_ask_for_a_file_that_is_there(tmp_path: Path, mode: str) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(NotFound):
        open_log(f"{url}?mode={mode}")
    assert not list(tmp_path.iterdir())
    log = open_log(url)
    log.create_topic("t", 1)
    log.close()
    log = open_log(f"{url}?mode={mode}")
    assert [topic.name for topic in log.describe_topics()] == ["t"]
    if mode == "ro":
        with pytest.raises(Fatal, match=r"opened read-only \(mode=ro\)"):
            log.create_topic("u", 1)
        (answer,) = append(log, "t", [record(b"1")])
        assert isinstance(answer, LogError)
    else:
        append(log, "t", [record(b"1")])
        assert log.watermarks("t", 0) == (0, 1)
    log.close()


def test_the_stricter_of_the_url_and_the_caller_counts(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(NotFound):
        open_log(f"{url}?mode=ro", mode="rwc")
    with pytest.raises(NotFound):
        open_log(f"{url}?mode=rwc", mode="ro")
    with pytest.raises(ConfigError, match=r"'rwc'.*'rw'.*'ro'"):
        open_log(f"{url}?mode=r")
    assert not list(tmp_path.iterdir())
