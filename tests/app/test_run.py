"""``app.run()`` in processes of their own: signals, deaths, and what is said of them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from streams import Streams
from tests.servers.lifetime import Lifetime
from tests.servers.redis import Redis

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, ctypes, signal, sys, threading, time
from contextlib import asynccontextmanager
from streams import Streams

@asynccontextmanager
async def lifespan(app):
    await topic.publish(1)
    try:
        yield
    finally:
        print("left", flush=True)

app = Streams("memory://", lifespan=lifespan)
topic = app.topic("t", int)
how = sys.argv[1]

def watch(first):
    while signal.getsignal(signal.SIGINT) is first:
        time.sleep(0.01)
    print("told", flush=True)

def begin():
    first = signal.getsignal(signal.SIGINT)  # before anybody is told to send one
    if how not in ("returns", "dies", "stuck"):
        threading.Thread(target=watch, args=(first,), daemon=True).start()
    print("begun", flush=True)
    if how == "dies":
        raise SystemExit(5)
    return first

if how == "plain":
    @app.processor(topic, group="g")
    def handle(value):
        begin()
        time.sleep(3600)
else:
    @app.processor(topic, group="g")
    async def handle(value):
        first = begin()
        if how == "blocks":
            time.sleep(3600)
        elif how == "waits":
            await asyncio.Event().wait()
        elif how == "stuck":
            libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
            libc.pthread_mutex_lock(mutex)
            watch(first)
            libc.pthread_mutex_lock(mutex)  # without end, and no signal interrupts it

app.run()
"""


@contextmanager
def running(how: str) -> Iterator[subprocess.Popen[bytes]]:
    """The program, once its handler has begun."""
    process = subprocess.Popen(
        [sys.executable, "-W", "default", "-c", PROGRAM, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # after readline(), communicate() has all that follows
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/codecs"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """What else it wrote to stdout and stderr before it ended."""
    out, err = process.communicate(timeout=60)
    return out.decode(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    with running("returns") as process:
        process.send_signal(number)
        out, err = ended(process)
    assert (process.returncode, out, err) == (0, "left\n", "")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
@pytest.mark.parametrize("how", ["waits", "plain", "blocks"])
def test_a_second_signal_ends_it_at_once_and_is_said(
    how: str, number: signal.Signals, status: int
) -> None:
    with running(how) as process:
        process.send_signal(number)
        assert process.stdout is not None
        assert process.stdout.readline() == b"told\n"
        process.send_signal(number)
        _, err = ended(process)
    # By the thread that watches, if the main thread was not run for a second.
    assert process.returncode in (status, 128 + number)
    said = f"streams: {number.name} again: interrupted, not everything was finished"
    assert err.splitlines()[-1] == said


def test_a_second_signal_ends_it_while_c_code_blocks_the_main_thread() -> None:
    with running("stuck") as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == b"told\n"
        process.send_signal(signal.SIGTERM)
        _, err = ended(process)
    # By the signal itself, if that came before the thread was blocked.
    assert process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
    said = "streams: SIGTERM again: interrupted, not everything was finished"
    assert err.splitlines()[-1] == said


INTERRUPTED = """
import signal, sys
from streams import signals

install = signal.signal

def install_interrupted(number, handler):
    if handler == app._handle_second:
        signal.signal = install
        signal.raise_signal(signal.SIGTERM)
    return install(number, handler)

with signals.StopSignals(print) as app:
    signal.signal = install_interrupted
    signal.raise_signal(signal.SIGTERM)
"""


def test_a_second_signal_is_heard_while_the_first_is_handled() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGTERM
    assert done.stderr == "streams: SIGTERM again: interrupted, not everything was finished\n"


def test_a_dead_processor_ends_it_with_one_clear_line() -> None:
    with running("dies") as process:
        out, err = ended(process)
    assert (process.returncode, out) == (1, "left\n")
    assert err.splitlines()[-1] == "streams: processor handle died: SystemExit: 5"
    assert "never awaited" not in err


WAITING = """
import sys
from streams import Streams

app = Streams(sys.argv[1])

@app.processor(app.topic("t", int), group="g")
async def handle(value):
    print("handled", value, flush=True)

app.run()
"""


@contextmanager
def waiting(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """An app whose server is not there, once it has said so."""
    with subprocess.Popen(
        [sys.executable, "-c", WAITING, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # after readline(), communicate() has all that follows
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/codecs"},
    ) as process:
        try:
            assert process.stderr is not None
            assert b"trying again in" in process.stderr.readline()
            yield process
        finally:
            process.kill()


async def test_a_server_that_is_not_there_yet_is_waited_for(lifetime: Lifetime) -> None:
    server = Redis(lifetime)
    with waiting(server.url) as process, server:
        app = Streams(server.url)
        topic = app.topic("t", int)
        async with app.connected():
            await topic.publish(7)
        assert process.stdout is not None
        assert process.stdout.readline() == b"handled 7\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_signal_ends_the_waiting(lifetime: Lifetime) -> None:
    with waiting(Redis(lifetime).url) as process:
        process.send_signal(signal.SIGTERM)
        _, err = ended(process)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("streams: ")
    assert "refused" in err.splitlines()[-1]
