"""Which log is used: ``--url``, else what the code gives, else ``STREAMS_URL``; and it is said."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streams import Streams
from streams.log.url import choose_url
from streams.testing import harness
from tests.cli.conftest import Run, Shell, eventually, fill, order

OPTION, CODE, VARIABLE = "memory://option", "memory://code", "memory://variable"

APP = """
import os
from streams import Streams

app = Streams({url})
topic = app.topic("orders", dict)


@app.processor(topic, group="looking")
def look(value):
    with open("seen.txt", "a") as file:
        file.write(f"{{value['id']}} {{'STREAMS_WORKER_URL' in os.environ}}\\n")


if __name__ == "__main__":
    import asyncio, logging, sys

    if "--quiet" not in sys.argv:
        logging.basicConfig(level="INFO")

    async def main():
        for _ in range(2):
            async with app.connected():
                await topic.publish({{"id": "by code"}})

    asyncio.run(main())
"""

CHOICES = list(itertools.product((OPTION, None), (CODE, None), (VARIABLE, None)))


@pytest.mark.parametrize(("option", "code", "variable"), CHOICES)
def test_the_order(
    option: str | None, code: str | None, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STREAMS_URL", raising=False)
    if variable is not None:
        monkeypatch.setenv("STREAMS_URL", variable)
    found = choose_url(option, code)
    wanted = option or code or variable
    by = {OPTION: "--url", CODE: "the code", VARIABLE: "STREAMS_URL", None: None}[wanted]
    assert (found and found.url, found and found.source) == (wanted, by)
    ignored = variable is not None and wanted != variable
    assert ("STREAMS_URL names another log" in str(found)) is ignored


def test_the_code_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMS_URL", VARIABLE)
    assert Streams(CODE).url == CODE
    assert Streams().url == VARIABLE


def make(shell: Shell, *names: str) -> None:
    """Logs in files of these names, each with one order that has the file's name for its ID."""
    from streams.log.url import open_log

    for name in names:
        log = open_log(f"sqlite:///{shell.folder / name}")
        fill(log, "orders", [order(1, id=name)])
        log.close()


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
@pytest.mark.parametrize(
    ("code", "options", "wanted"),
    [
        ("'sqlite:///code.db'", ("--url", "sqlite:///option.db"), "option.db (from --url;"),
        ("'sqlite:///code.db'", (), "code.db (from the code; STREAMS_URL names another log"),
        ("", (), "variable.db (from STREAMS_URL)"),
    ],
    ids=["option", "code", "variable"],
)
def test_run_uses_what_a_program_of_the_same_app_uses(
    shell: Shell, workers: tuple[str, ...], code: str, options: tuple[str, ...], wanted: str
) -> None:
    make(shell, "option.db", "code.db", "variable.db")
    shell.environment["STREAMS_URL"] = "sqlite:///variable.db"
    shell.write("which.py", APP.format(url=code))
    with shell.start("run", "which:app", *options, *workers) as process:
        eventually(lambda: shell.read("seen.txt"))
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    name = wanted.partition(" ")[0]
    assert shell.read("seen.txt") == [f"{name} False"]
    assert f"running which:app on sqlite:///{wanted}" in err.decode()


def test_a_program_says_at_start_what_it_reads(shell: Shell) -> None:
    shell.environment["STREAMS_URL"] = "redis://shop:secret@127.0.0.1:1"
    shell.write("which.py", APP.format(url="'sqlite:///code.db'"))
    ended = subprocess.run(
        [sys.executable, "which.py"],
        cwd=shell.folder, env=shell.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0
    first, *_ = ended.stderr.splitlines()
    why = "(from the code; STREAMS_URL names another log and is not used)"
    assert first.endswith(f"the log is sqlite:///code.db {why}")
    assert "secret" not in ended.stderr


@pytest.mark.parametrize(
    ("code", "variable", "wanted"),
    [
        ("'sqlite:///code.db'", "redis://shop:secret@127.0.0.1:1", 1),
        ("'sqlite:///code.db'", "sqlite:///code.db", 0),
        ("'sqlite:///code.db'", "", 0),
        ("", "sqlite:///variable.db", 0),
    ],
)
def test_a_program_without_logging_says_once_that_the_variable_is_not_used(
    shell: Shell, code: str, variable: str, wanted: int
) -> None:
    shell.environment["STREAMS_URL"] = variable
    shell.write("which.py", APP.format(url=code))
    ended = subprocess.run(
        [sys.executable, "which.py", "--quiet"],
        cwd=shell.folder, env=shell.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0
    why = "(from the code; STREAMS_URL names another log and is not used)"
    assert ended.stderr.splitlines() == [f"the log is sqlite:///code.db {why}"] * wanted


async def test_a_harness_does_not_say_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STREAMS_URL", VARIABLE)
    async with harness(Streams()):
        pass
    assert "WARNING" not in [each.levelname for each in caplog.records]


def test_doctor_and_replay_use_the_same(
    shell: Shell, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(shell, "option.db", "code.db", "variable.db")
    monkeypatch.setenv("STREAMS_URL", "sqlite:///variable.db")
    shell.write("which.py", APP.format(url="'sqlite:///code.db'"))
    found = run("doctor", "which:app", "--json").out
    assert '"log":"sqlite:///code.db","log_from":"the code"' in found
    assert [each["id"] for each in run("replay", "which:app", "orders").lines] == ["code.db"]
    there = run("replay", "which:app", "orders", "--url", "sqlite:///option.db")
    assert [each["id"] for each in there.lines] == ["option.db"]
    done = run("replay", "which:app", "orders", "--into", "look")
    assert "replaying orders on sqlite:///code.db (from the code;" in done.err
    assert [each["id"] for each in run("replay", "orders").lines] == ["variable.db"]


@pytest.mark.parametrize("command", ["topics ls", "tail orders", "groups ls", "dead ls"])
def test_a_log_without_an_app_is_that_of_the_option_or_of_the_environment(
    shell: Shell, run: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(shell, "option.db")
    monkeypatch.setenv("STREAMS_URL", "sqlite:///absent.db")
    assert run(*command.split(), "--url", "sqlite:///option.db").status == 0
    assert run(*command.split()).status == 1


def test_the_readme_takes_the_environments_url() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    assert 'Streams(os.environ.get("STREAMS_URL", "sqlite:///flights.db"))' in text
