"""The plain script: killed again and again, and every payment counts once."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from examples.worker import Payment
from streams import Streams
from tests.servers.lifetime import until

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[2]
ACCOUNTS = 20
PAYMENTS = 4_000


def script(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """``python examples/worker.py ...`` in a folder."""
    environment = {
        **os.environ,
        "STREAMS_URL": "sqlite:///payments.db",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "codecs")]),
    }
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "worker.py"), *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[str]]:
    worker = script(folder, "run")
    try:
        yield worker
    finally:
        worker.kill()
        worker.communicate()


def booked(folder: Path) -> dict[str, int]:
    """The balances as the file has them."""
    with closing(sqlite3.connect(f"file:{folder}/payments.db?mode=ro", uri=True)) as connection:
        try:
            return dict(connection.execute("SELECT account, cents FROM balances"))
        except sqlite3.OperationalError:  # no payment was booked yet
            return {}


def at_least(folder: Path, count: int) -> bool:
    return sum(booked(folder).values()) >= count


async def publish(folder: Path) -> None:
    app = Streams(f"sqlite:///{folder}/payments.db")
    payments = app.topic("payments", Payment, key="account", partitions=4)
    async with app.connected():
        await payments.publish_many(Payment(f"a{n % ACCOUNTS}", 1) for n in range(PAYMENTS))


async def test_killed_at_any_time_every_payment_counts_once(tmp_path: Path) -> None:
    await publish(tmp_path)
    for least in (1, PAYMENTS // 4, PAYMENTS // 2):
        with running(tmp_path) as worker:
            until(partial(at_least, tmp_path, least), 60, "payments")
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    with running(tmp_path) as worker:
        until(partial(at_least, tmp_path, PAYMENTS), 60, "all payments")
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=60)
        assert (worker.returncode, err) == (0, "")
    assert booked(tmp_path) == {f"a{n}": PAYMENTS // ACCOUNTS for n in range(ACCOUNTS)}


def test_the_commands_of_its_docstring(tmp_path: Path) -> None:
    for account, cents in [("ada", "250"), ("ada", "50"), ("bob", "-1")]:
        out, err = script(tmp_path, "pay", account, cents).communicate(timeout=60)
        assert out.startswith("payments/")
        assert err == ""
    with running(tmp_path) as worker:
        until(lambda: booked(tmp_path) == {"ada": 300}, 60, "the payments")
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    asked = script(tmp_path, "pay", "ada")
    _, err = asked.communicate(timeout=60)
    assert asked.returncode == 2
    assert "python examples/worker.py run" in err
