"""How far behind a processor is in each partition that it owns, as the log says now.

The log is asked in a thread of its own: who scrapes is never kept waiting by a log that does not
answer, and is then told nothing rather than something old. Unknown is unknown, never 0.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from streams.app import Streams
from streams.errors import LogError, StreamsError
from streams.health import Stats
from streams.log.protocol import Log
from streams.runners.pump import Place
from streams.text import get_logger

logger = get_logger("streams")


class Backlog(NamedTuple):
    """What is not settled in one partition.

    :param processor: the processor's name.
    :param lag: messages from the first one that is not settled to the partition's end; None where
        the log cannot tell.
    :param age: seconds since the log took that first one; 0 where everything is settled, None where
        it cannot be known.
    """

    processor: str
    topic: str
    partition: int
    lag: int | None
    age: float | None


def measure(app: Streams, stats: Stats) -> list[Backlog]:
    """Ask the log about every partition that the app's processors own; blocks.

    What it does not answer is left out.
    """
    found: list[Backlog] = []
    for name, figures in stats.processors.items():
        for place in figures.places:
            try:
                lag, age = _behind(app.log, place, app.clock.time())
            except LogError as error:
                logger.debug("%s: %s/%d: %s", name, place.topic, place.partition, error)
                continue
            found.append(Backlog(name, place.topic, place.partition, lag, age))
    return found


def _behind(log: Log, place: Place, now: float) -> tuple[int | None, float | None]:
    lag = log.lag(place.topic, place.partition, place.position)
    if lag == 0:
        return 0, 0.0
    since = place.oldest
    if since is None:  # the first one was not taken in yet
        _, end = log.bounds(place.topic, place.partition)
        if place.position >= end:
            return 0, 0.0
        reader = log.reader(place.topic, place.partition, place.position, end)
        try:
            batch = reader.read(1)
        finally:
            reader.close()
        if batch is None:  # gaps up to the end
            return 0, 0.0
        since = batch.time(0)
    return lag, max(0.0, now - since)


class Question:
    """Asks the log on behalf of who cannot wait for ever.

    :param app: what is measured.
    """

    def __init__(self, app: Streams) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._asked: _Asked | None = None

    def ask(self, stats: Stats, patience: float) -> Sequence[Backlog] | None:
        """The backlogs as they are now; None where the log has not answered within ``patience``
        seconds. One question is open at a time."""
        with self._lock:
            asked = self._asked
            if asked is None or asked.over.is_set():
                asked = self._asked = _Asked(self._app, stats)
        return asked.found if asked.over.wait(patience) else None


class _Asked:
    def __init__(self, app: Streams, stats: Stats) -> None:
        self.over = threading.Event()
        self.found: Sequence[Backlog] | None = None
        self._app, self._stats = app, stats
        threading.Thread(target=self._run, name="streams-backlog", daemon=True).start()

    def _run(self) -> None:
        try:
            self.found = measure(self._app, self._stats)
        except StreamsError as error:  # the app is closing
            logger.debug("backlog: %s", error)
        finally:
            self.over.set()
