"""One fault run: names of its own, a folder for its history, and how it is judged at the end."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from uuid import uuid4

from streams.errors import LogError
from streams.log.protocol import Log
from streams.log.url import open_log
from tests.faults.fleet import Fleet
from tests.faults.ground import Ground
from tests.faults.history import Life, Report, Tail, check, read
from tests.faults.load import Load, audit
from tests.faults.looks import KafkaLook, LogLook, Look
from tests.faults.sizes import SEED
from tests.servers.lifetime import until

logger = logging.getLogger("tests.faults")

PARTITIONS = 4

CONCURRENCY = int(os.environ.get("STREAMS_CONCURRENCY", "16"))
"""Handlers at once in a worker, unless a run says otherwise; 1: a plain one, in a thread."""

AT_END = "at the end"


class Run:
    """What a test does to one topic and one group.

    :ivar log: our own look at the log, past the proxy.
    """

    def __init__(self, ground: Ground, folder: Path, *, create: bool = True) -> None:
        self.ground = ground
        self.folder = folder
        self.random = Random(SEED)
        name = uuid4().hex[:8]
        self.topic = f"faults-{name}"
        self.group = f"group-{name}"
        self.log: Log = open_log(ground.direct)
        self._look = self.look()
        self._tail = Tail(folder)
        self._not_yet = ""
        """Why :meth:`at_end` said no."""
        self._was_read = False
        """Whether it was because of what it read."""
        if create:
            self.log.create_topic(self.topic, PARTITIONS)

    def load(self, messages: int, *, rate: float | None = None, url: str = "") -> Load:
        """Publish to the topic; see :class:`Load`."""
        return Load(
            url or self.ground.direct, self.topic, self.folder, self.random,
            messages=messages, rate=rate, partitions=PARTITIONS,
        )  # fmt: skip

    def fleet(
        self, *, concurrency: int = CONCURRENCY, pause: float = 0.005, url: str = ""
    ) -> Fleet:
        """Workers of the group; see :class:`Fleet`."""
        return Fleet(
            self.folder, url or self.ground.direct, self.topic, self.group,
            concurrency=concurrency, pause=pause,
        )  # fmt: skip

    def look(self) -> Look:
        """Another look at the group, for one thread."""
        if self.ground.name == "kafka":
            bootstrap = self.ground.direct.removeprefix("kafka://").partition("?")[0]
            return KafkaLook(bootstrap, self.group, self.topic, PARTITIONS)
        return LogLook(self.log, self.group, self.topic)

    def owners(self) -> int:
        """How many workers own partitions, by what they wrote down."""
        return self._tail.owners(self.topic)

    def known(self) -> dict[int, int] | None:
        """The group's positions; None while they cannot be known."""
        return self._look.positions()

    # -- at the end

    def at_end(self) -> bool:
        """The group has committed the end of every partition."""
        self._was_read = False
        places = self._look.positions()
        if places is None:
            self._not_yet = f"the group's positions cannot be read: {self._look.problem}"
            return False
        try:
            for partition in range(PARTITIONS):
                first, end = self.log.watermarks(self.topic, partition)
                place = places.get(partition)
                if end > first and (place is None or place < end):
                    self._not_yet = f"{partition} is at {place}, its end is {end}"
                    self._was_read = True
                    return False
        except LogError as error:
            self._not_yet = repr(error)
            return False
        return True

    def _end_if_known(self) -> str | None:
        """:data:`AT_END`, or what is before the end; None if that cannot be read now."""
        if self.at_end():
            return AT_END
        return self._not_yet if self._was_read else None

    def judge(self, fleet: Fleet, acknowledged: int, *, audited: bool = True) -> Report:
        """Wait until the group is at the end, stop the workers, and check their history.

        :param audited: compare what was acknowledged with what stands in the log, too.
        """
        fleet.until(lambda handled: handled >= acknowledged)
        try:
            until(self.at_end, 60, f"{self.group} has committed the end of {self.topic}")
        except TimeoutError as error:
            fleet.explain()
            raise AssertionError(f"{error}: {self._not_yet}") from error
        fleet.stop()
        ended = until(self._end_if_known, 60, f"where {self.group} stands")
        assert ended == AT_END, f"the group was moved backwards at the end: {ended}"
        lives = read(self.folder)
        report = check(lives, exempt=fleet.exempt(lives))
        logger.warning(
            "%s, seed %d: %d sent, %d handled, %d redelivered, %d lives",
            self.ground.name, SEED, report.sent, report.handled, report.redelivered,
            report.lives - 1,
        )  # fmt: skip
        assert report.anomalies == []
        assert report.handled == report.sent == acknowledged
        if audited:
            assert self.audit(lives) == []
        return report

    def audit(self, lives: list[Life]) -> list[str]:
        """What was acknowledged and is not in the log (or, on Redis, is there twice)."""
        return audit(self.log, self.topic, lives, once=self.ground.once)

    @contextmanager
    def watched(self) -> Iterator[list[str]]:
        """Look at the group's stored positions all the time; they must never go back.

        Gives the list of what was seen to go wrong.
        """
        wrong: list[str] = []
        over = threading.Event()
        look = self.look()

        def watch() -> None:
            seen: dict[int, int] = {}
            while not over.wait(0.05):
                for key, position in (look.positions() or {}).items():
                    if position < seen.get(key, -1):
                        wrong.append(f"{key} from {seen[key]} to {position}")
                    seen[key] = position

        thread = threading.Thread(target=watch, name="tests-watch")
        thread.start()
        try:
            yield wrong
        finally:
            over.set()
            thread.join()
            look.close()

    def close(self) -> None:
        self._look.close()
        self.log.close()


def wait(seconds: float) -> None:
    """Let a fault last: the one thing in a fault run that is a time and not a condition."""
    time.sleep(seconds)
