"""``streams run``: what it says, how it ends, whatever ends it."""

from __future__ import annotations

import signal
import subprocess

import pytest

from streams.message import Record
from tests.cli.conftest import Shell, eventually, fill, order

SLOW = """
import asyncio
import os
import time

from streams import Streams

app = Streams("sqlite:///shop.db")
slow = app.topic("slow", int)
stuck = app.topic("stuck", int)


def note(text):
    with open("seen.txt", "a") as file:
        file.write(f"{text}\\n")


@app.processor(slow, group="slow")
async def wait(value):
    note("begin")
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    note("end")


@app.processor(stuck, group="stuck")
def hang(value):
    note("stuck")
    time.sleep(600)
"""


def publish(shell: Shell, topic: str, count: int = 1) -> None:
    with shell.log() as log:
        log.create_topic(topic, 1)
        log.append(topic, [Record(b"1", None, str(n)) for n in range(count)], lambda answers: None)


def until_it_finishes(process: subprocess.Popen[bytes]) -> None:
    """Wait until it has said that it starts nothing more."""
    assert process.stderr is not None
    said = b""
    while b"finishing the messages in flight" not in said:
        said = process.stderr.readline()
        assert said


def test_it_says_what_runs_and_handles_it(shell: Shell) -> None:
    with shell.log() as log:
        fill(log, "orders", [order(n) for n in range(5)])
    with shell.start("run", "shop:app") as process:
        eventually(lambda: len(shell.read("billed.txt")) == 5)
        eventually(lambda: len(shell.read("totals.txt")) == 5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"")
    said = err.decode().splitlines()
    assert "running shop:app on sqlite:///shop.db" in said[0]
    assert "bill: group billing, reading orders" in said[1]
    assert "total: group totals, reading orders" in said[2]
    assert all(" INFO " in line for line in said[:3])
    with shell.log() as log:
        places = log.describe_group("billing").positions
        assert sum(place.position for place in places.values()) == 5


COLLECTED = """
import gc

from streams import Streams

{set}
app = Streams("sqlite:///shop.db")


@app.processor(app.topic("slow", int), group="slow")
def look(value):
    with open("seen.txt", "w") as file:
        file.write(f"{gc.get_threshold()[0]} {gc.get_freeze_count() > 10_000}\\n")
"""


@pytest.mark.parametrize(
    ("set", "threshold"), [("", 20_000), ("gc.set_threshold(999)", 999), ("gc.disable()", 20_000)]
)
def test_cycles_are_looked_for_rarely_unless_the_app_says_otherwise(
    shell: Shell, set: str, threshold: int
) -> None:
    shell.write("look.py", COLLECTED.replace("{set}", set))
    publish(shell, "slow")
    with shell.start("run", "look:app") as process:
        eventually(lambda: shell.read("seen.txt"))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert shell.read("seen.txt") == [f"{threshold} True"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda each: each.name)
def test_the_first_signal_lets_handlers_finish(shell: Shell, number: signal.Signals) -> None:
    shell.write("slow.py", SLOW)
    publish(shell, "slow", 3)
    with shell.start("run", "slow:app") as process:
        eventually(lambda: shell.read("seen.txt"))
        process.send_signal(number)
        until_it_finishes(process)
        shell.write("go", "")
        process.communicate(timeout=60)
    assert process.returncode == 0
    seen = shell.read("seen.txt")
    done = len(seen) // 2
    assert seen == ["begin", "end"] * done
    assert done >= 1
    with shell.log() as log:
        assert log.describe_group("slow").positions["slow", 0].position == done


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)],
    ids=["SIGINT", "SIGTERM"],
)
def test_the_second_signal_ends_it_at_once(
    shell: Shell, number: signal.Signals, status: int
) -> None:
    shell.write("slow.py", SLOW)
    publish(shell, "stuck")
    with shell.start("run", "slow:app") as process:
        eventually(lambda: shell.read("seen.txt"))
        process.send_signal(number)
        until_it_finishes(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert b"Traceback" not in out + err


def test_a_processor_that_dies_ends_it_with_a_line(shell: Shell) -> None:
    shell.write(
        "dies.py",
        "import sys\nfrom streams import Streams\n\napp = Streams()\n\n\n"
        "@app.processor(app.topic('slow', int), group='g')\n"
        "def handle(value):\n    sys.exit(3)\n",
    )
    publish(shell, "slow")
    with shell.start("run", "dies:app", "--log-level", "error", stdout=subprocess.PIPE) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    last = err.decode().splitlines()[-1]
    assert last.startswith("streams: processor handle died: ")
    assert "SystemExit: 3" in last
