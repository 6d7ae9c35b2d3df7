"""Orders by HTTP while the service and its workers are killed, and then the books."""

from __future__ import annotations

import http.client
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import text

from examples.shop.shop import TABLES, Books, books, create

ARTICLES = ("cup", "plate", "spoon", "bowl")
STOCK = 100_000
"""The initial stock of each article, in pieces."""

TIMEOUT = 120.0
"""Seconds after which the run is aborted."""

ROOT = Path(__file__).resolve().parents[2]


class DemoError(Exception):
    """The run could not be finished; the text is one line."""


class Process:
    """A process that is killed and restarted.

    :param inherited: file descriptors that it inherits.
    """

    def __init__(
        self, words: list[str], environment: dict[str, str], inherited: Sequence[int] = ()
    ) -> None:
        self._words = words
        self._environment = environment
        self._inherited = inherited
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._words, env=self._environment, cwd=ROOT, pass_fds=self._inherited
        )

    def kill(self) -> None:
        """``kill -9`` it, and restart it."""
        self.end()
        self._process = self._start()

    def end(self) -> None:
        """``kill -9`` it."""
        self._process.kill()
        self._process.wait()


def run(
    url: str, database: str, orders: int, kills: int, seed: int, report: Callable[[str], None]
) -> Books:
    """Place orders, kill the service and a worker ``kills`` times each, and add up.

    :raises DemoError: it does not come to an end.
    """
    choose = random.Random(seed)
    shop = create(url, database)
    with shop.sessions.begin() as session:
        for statement in TABLES:
            session.execute(text(statement))
        for article in ARTICLES:
            session.execute(text("INSERT INTO stock VALUES (:a, :p)"), {"a": article, "p": STOCK})
        for statement in shop.outbox.schema():  # as a migration of the shop would
            session.execute(text(statement))
    # Held here, so that no other program takes the port while the service restarts.
    listener = socket.create_server(("127.0.0.1", 0))
    port, descriptor = listener.getsockname()[1], listener.fileno()
    paths = [str(ROOT), str(ROOT / "codecs"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "SHOP_LOG": url,
        "SHOP_DATABASE": database,
    }
    service = [
        sys.executable, "-m", "uvicorn", "--factory", "examples.shop.service:create_api", "--fd",
        str(descriptor), "--log-level", "error",
    ]  # fmt: skip
    worker = [sys.executable, "-m", "examples.shop.worker", url, database]
    processes = [
        Process(service, environment, [descriptor]),
        Process(worker, environment),
        Process(worker, environment),
    ]
    ends = time.monotonic() + TIMEOUT
    victims = [processes[each % 2] for each in range(2 * kills)]
    moments = sorted(choose.sample(range(orders // 10, orders), len(victims)))
    try:
        for number in range(orders):
            if moments and number == moments[0]:
                moments.pop(0)
                victims.pop(0).kill()
            article, pieces = choose.choice(ARTICLES), choose.randrange(1, 9)
            _place(f"http://127.0.0.1:{port}/orders/o-{number}", article, pieces, ends)
        report(f"{orders} orders are placed")
        while True:
            found = books(shop.sessions, STOCK * len(ARTICLES))
            if found.orders == orders and found.billed >= found.placed:
                # All is billed, so all was shipped; the earlier sums may be older.
                return books(shop.sessions, STOCK * len(ARTICLES))
            if time.monotonic() > ends:
                raise DemoError(f"not over after {TIMEOUT:g} s: {found}")
            time.sleep(0.05)
    finally:
        for process in processes:
            process.end()
        listener.close()
        shop.sessions.kw["bind"].dispose()


def _place(url: str, article: str, pieces: int, ends: float) -> None:
    """Retry an order until there is an answer: the service may be killed in between."""
    request = urllib.request.Request(f"{url}?article={article}&pieces={pieces}", method="PUT")
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
                return
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() > ends:
                raise DemoError(f"the service does not answer: {error}") from error
            time.sleep(0.02)
