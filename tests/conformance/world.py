"""One log under test, and everything a test opens on it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

from streams.clock import SYSTEM, Clock
from streams.errors import LogError
from streams.log.protocol import Log, Retention
from streams.log.url import open_log
from streams.message import Batch, Position, Record
from streams.testing import Clock as ManualClock
from tests.conformance.logs import Case, lasting_url
from tests.conformance.member import History, Member
from tests.conformance.records import append, record


class World:
    """A log under a URL of its own.

    Names of topics and groups are made up, as a server is shared with other tests. ``clock`` is a
    manual one where the log's time is the app's.
    """

    def __init__(self, case: Case, url: str) -> None:
        self.case = case
        self.url = url
        self.manual = ManualClock() if case.capabilities.uses_app_clock else None
        self.clock: Clock = self.manual or SYSTEM
        self.history = History()
        self._logs: list[Log] = []
        self._members: list[Member] = []
        self._numbers = itertools.count(1)
        self._run = uuid4().hex[:8]
        self.log = self.open()

    def open(self, *, lasting: bool = False) -> Log:
        """Another handle on the same log, as another process would have it.

        :param lasting: its members are not taken for dead while the test runs, whatever the URL
            says: who takes over must not lose that again when it is not run for a while.
        """
        log = open_log(lasting_url(self.url) if lasting else self.url, clock=self.clock)
        self._logs.append(log)
        return log

    def close(self) -> None:
        for member in self._members:
            member.close()
        for log in reversed(self._logs):
            log.close()

    # -- names

    def name(self, kind: str) -> str:
        return f"{kind}-{self._run}-{next(self._numbers)}"

    def topic(self, partitions: int = 1, retention: Retention = Retention()) -> str:
        """A new topic."""
        return self.log.create_topic(self.name("topic"), partitions, retention).name

    def group(self) -> str:
        """A new group's name."""
        return self.name("group")

    # -- writing and reading

    def append(self, topic: str, records: Iterable[Record | bytes]) -> list[Position]:
        """Write records, or values, and wait until all are acknowledged."""
        outcomes = self.outcomes(topic, [record(r) if isinstance(r, bytes) else r for r in records])
        positions = [outcome for outcome in outcomes if isinstance(outcome, Position)]
        assert len(positions) == len(outcomes), outcomes
        return positions

    def outcomes(self, topic: str, records: Sequence[Record]) -> Sequence[Position | LogError]:
        """Write records; how each one ended."""
        return append(self.log, topic, records)

    def read(
        self, topic: str, partition: int = 0, start: int | None = None, end: int | None = None
    ) -> list[Batch]:
        """What stands between two positions, by default all."""
        first, last = self.log.watermarks(topic, partition)
        reader = self.log.reader(
            topic, partition, first if start is None else start, last if end is None else end
        )
        batches = []
        while (batch := reader.read(100)) is not None:
            batches.append(batch)
        reader.close()
        return batches

    def values(self, topic: str, partition: int = 0, **between: int) -> list[bytes | None]:
        """The values that stand between two positions."""
        return [value for batch in self.read(topic, partition, **between) for value in batch.values]

    # -- groups

    def member(
        self, group: str, topics: str | Sequence[str], log: Log | None = None, **options: Any
    ) -> Member:
        """A running member; ended with the test."""
        names = [topics] if isinstance(topics, str) else topics
        name = self.name("member")
        member = Member(log or self.log, group, names, self.history, name, **options)
        self._members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """The member closes its subscription."""
        self._members.remove(member)
        member.close()

    def position(self, group: str, topic: str, partition: int = 0) -> int | None:
        """Where a group is."""
        place = self.log.committed(group, topic).get(partition)
        return None if place is None else place.position

    def outlive_leases(self) -> None:
        """Let leases that nobody renews run out: at once on a log whose time is ours; elsewhere
        real time does it, while the test waits for what follows."""
        if self.manual is not None:
            self.manual.advance(self.case.lease * 1.5)
