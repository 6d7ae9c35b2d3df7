"""Log lines as JSON, and whose line it is where several processes write."""

from __future__ import annotations

import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import JsonFormatter
from streams.cli.logging_setup import LogFormat, configure_logging
from tests.cli.conftest import Shell, eventually, fill, order

APP = """
import logging, os, sys, warnings
from streams import Retry, Streams

{setup}
app = Streams("sqlite:///shop.db")


@app.processor(app.topic("orders", dict), group="g", retry=Retry(attempts=1))
def look(value):
    warnings.warn("old\\nthing")
    logging.getLogger("shop").warning("an order\\n%s", value["id"], extra={{"order": value["id"]}})
    with open("seen.txt", "a") as file:
        file.write("seen\\n")
    try:
        1 / 0
    except ZeroDivisionError:
        logging.getLogger("shop").exception("cannot be billed")
    if value["n"] == 13:
        sys.exit(3)
"""

WORKERS = (None, 1, 2)


def wait_for(shell: Shell, members: int) -> None:
    """Wait until so many are in the group, and one of them has handled something."""
    eventually(lambda: shell.read("seen.txt"))
    with shell.log() as log:
        eventually(lambda: len(log.describe_group("g").members) == members)


def objects(err: bytes) -> list[dict[str, Any]]:
    """Every line of standard error, each of which is a JSON object with the same fields."""
    found = [json.loads(line) for line in err.decode().splitlines()]
    for each in found:
        assert list(each)[:5] == ["time", "level", "logger", "message", "worker"]
        assert datetime.fromisoformat(each["time"]).tzinfo is not None
        assert each["worker"] in WORKERS
    return found


OWN = "logging.basicConfig(level='INFO')"


@pytest.mark.parametrize(
    ("workers", "setup"),
    [((), ""), ((), OWN), (("--workers", "2"), OWN)],
    ids=["alone-none", "alone-own", "workers-own"],
)
def test_each_line_is_a_json_object(shell: Shell, workers: tuple[str, ...], setup: str) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    shell.write("logs.py", APP.format(setup=setup))
    with shell.start("run", "logs:app", "--log-format", "json", *workers) as process:
        wait_for(shell, 2 if workers else 1)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    found = objects(err)
    (warned,) = (each for each in found if "an order" in each["message"])
    assert warned["level"] == "WARNING"
    assert warned["logger"] == "shop"
    assert warned["extra"] == {"order": "o1"}
    assert any(each["logger"] == "py.warnings" for each in found)
    (failed,) = (each for each in found if each["message"] == "cannot be billed")
    assert "ZeroDivisionError: division by zero" in failed["exception"]
    ran = {each["worker"] for each in found if "running logs:app on" in each["message"]}
    assert ran == ({1, 2} if workers else {None})
    if workers:  # the supervisor's
        told = [each for each in found if each["worker"] is None]
        assert any("worker 1 is process" in each["message"] for each in told)


@pytest.mark.parametrize(
    ("trouble", "workers"),
    [  # a worker that dies is started again, so that ends nothing
        ("dies", ()),
        ("missing", ()),
        ("missing", ("--workers", "1")),
        ("broken", ()),
        ("broken", ("--workers", "1")),
    ],
    ids=["dies", "missing", "missing-workers", "broken", "broken-workers"],
)
def test_what_ends_it_is_a_json_object_too(
    shell: Shell, workers: tuple[str, ...], trouble: str
) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(13)])
    shell.write("dies.py", APP.format(setup=""))
    shell.write("broken.py", "1 / 0\n")
    ended = shell("run", f"{trouble}:app", "--log-format", "json", *workers)
    assert ended.status == 1
    last = objects(ended.err.encode())[-1]
    assert (last["level"], last["logger"]) == ("ERROR", "streams")
    said = {"dies": "SystemExit: 3", "missing": "no module", "broken": "ZeroDivisionError"}
    assert said[trouble] in last["message"]


@pytest.mark.parametrize(
    ("workers", "form"),
    [((), "text"), (("--workers", "2"), "json")],
    ids=["alone-text", "workers-json"],
)
def test_a_second_sigterm_is_logged(shell: Shell, workers: tuple[str, ...], form: str) -> None:
    shell.write(
        "stuck.py",
        "import time\nfrom streams import Streams\napp = Streams('sqlite:///shop.db')\n"
        "@app.processor(app.topic('orders', dict), group='g')\n"
        "def look(value):\n    open('seen.txt', 'w').write('begun')\n    time.sleep(3600)\n",
    )
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    with shell.start("run", "stuck:app", "--log-format", form, *workers) as process:
        eventually(lambda: shell.read("seen.txt"))
        assert process.stderr is not None
        process.send_signal(signal.SIGTERM)
        lines: list[bytes] = []
        while not lines or b"finish" not in lines[-1] or b"SIGTERM" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1]
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    (last,) = (line for line in err.decode().splitlines() if "SIGTERM again" in line)
    assert "not everything was finished" in last
    if form == "json":
        (said,) = objects(last.encode())
        assert said["level"] == "WARNING"
    else:
        assert " WARNING " in last


def test_each_line_of_text_names_its_worker(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(1)])
    shell.write("logs.py", APP.format(setup=""))
    with shell.start("run", "logs:app", "--workers", "2") as process:
        wait_for(shell, 2)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    lines = err.decode().splitlines()
    who = ("[supervisor] ", "[worker 1] ", "[worker 2] ")
    assert any("Traceback" in each for each in lines)
    assert any("warnings.warn" in each for each in lines)
    for line in lines:
        assert sum(each in line for each in who) == 1, line
    for number in (1, 2):
        assert any(f"[worker {number}] streams: running logs:app" in each for each in lines)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    found = logging.getLogger()
    level = found.level
    monkeypatch.setattr(found, "handlers", [])
    yield found
    found.setLevel(level)
    logging.captureWarnings(False)


def test_a_format_takes_the_terminals_place_and_leaves_other_handlers(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, kept = io.StringIO(), logging.StreamHandler(io.StringIO())
    monkeypatch.setattr("sys.stderr", stream)
    root.handlers[:] = [logging.StreamHandler(stream), kept]
    configure_logging(None)  # nothing was asked for: the app's own stays
    assert len(root.handlers) == 2
    configure_logging(None, LogFormat.json, 3)
    assert root.handlers[0] is kept
    assert len(root.handlers) == 2
    logging.getLogger("shop").error("told")
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["worker"] == 3


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.text(st.characters(categories=["Cs"])) | st.just(object()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)  # fmt: skip


@given(st.text(st.characters()), values)
def test_whatever_is_logged_is_one_json_object_on_one_line(text: str, extra: Any) -> None:
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "more": extra})
    try:
        raise ValueError(text)
    except ValueError:
        record.exc_info = sys.exc_info()
    line = JsonFormatter(1).format(record)
    assert len(line.splitlines()) == 1
    line.encode()
    found = json.loads(line)
    assert found["worker"] == 1
    assert "more" in found["extra"]


def test_a_service_of_its_own_can_write_the_same_lines() -> None:
    """With uvicorn's loggers, which give each message a second time."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    for message, extra in (
        ("Started [7]", {"color_message": "Started [\x1b[36m%d\x1b[0m]"}),
        ("an order", {"order": "o-1"}),
    ):
        record = logging.makeLogRecord({"name": "uvicorn.error", "msg": message, **extra})
        handler.handle(record)
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert list(first) == ["time", "level", "logger", "message", "worker"]
    assert (first["logger"], first["message"]) == ("uvicorn.error", "Started [7]")
    assert second["extra"] == {"order": "o-1"}


def test_the_format_is_also_read_from_the_environment(shell: Shell) -> None:
    ended = shell("run", "missing:app", env={"STREAMS_LOG_FORMAT": "json"})
    assert objects(ended.err.encode())[-1]["level"] == "ERROR"


def test_a_format_that_is_none_is_refused(shell: Shell) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "streams.cli", "run", "shop:app", "--log-format", "xml"],
        cwd=shell.folder, env=shell.environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "--log-format" in ended.stderr
