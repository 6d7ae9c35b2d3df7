"""A member of a group in a thread of its own, and the history that all members write together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import pytest

from streams.log.protocol import Assignment, Commit, Log, StaticMember, TopicPartition
from streams.message import Batch

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds until a test gives up on something that should happen; no measure of speed."""


class Event(NamedTuple):
    """Something a member saw. ``what`` is assigned, revoking, revoked, lost or message."""

    member: str
    what: str
    part: TopicPartition
    offset: int = -1
    value: bytes | None = None


class History:
    """What all members of a test saw, in one order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def add(self, events: Iterable[Event]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait until something holds; it is looked at whenever somebody saw something."""
        __tracebackhide__ = True
        with self._changed:
            if not self._changed.wait_for(done, PATIENCE):
                seen = "\n".join(map(str, self.events[-30:]))
                pytest.fail(f"never happened: {what}; the last events:\n{seen}")

    def values(self, part: TopicPartition | None = None) -> list[bytes | None]:
        """The values delivered, of one partition or of all, in order."""
        return [e.value for e in self.events if e.what == "message" and part in (None, e.part)]

    def owners_at_once(self) -> list[Event]:
        """The events by which a partition got a second owner: must be none."""
        owners: dict[TopicPartition, str] = {}
        wrong = []
        for event in self.events:
            if event.what == "assigned":
                if owners.get(event.part) is not None:
                    wrong.append(event)
                owners[event.part] = event.member
            elif event.what in ("revoked", "lost") and owners.get(event.part) == event.member:
                del owners[event.part]
        return wrong


class Member:
    """Polls, commits what it was given, and writes it all down, until closed.

    :param commit: commit each batch as soon as it was delivered.
    :param start: where to start where the group has no place; the first there is if None.
    :param greet: called first inside ``assigned``.
    :param static: what makes it a static member.
    :param drain: called inside ``revoked``, before the partitions go.
    """

    def __init__(
        self,
        log: Log,
        group: str,
        topics: Sequence[str],
        history: History,
        name: str,
        *,
        commit: bool = True,
        start: int | None = None,
        greet: Callable[[Sequence[Assignment]], None] = lambda assignments: None,
        drain: Callable[[Sequence[Assignment]], None] = lambda assignments: None,
        limit: int = 100,
        window: int = 10,
        static: StaticMember | None = None,
    ) -> None:
        self.name = name
        self.owned: dict[TopicPartition, Assignment] = {}
        self.past: list[Assignment] = []
        self.sizes: list[int] = []
        self.keys: list[bytes | None] = []
        self.headers: list[list[tuple[str, bytes | None]]] = []
        self.error: BaseException | None = None
        self._log = log
        self._history = history
        self._commit = commit
        self._start = start
        self._greet = greet
        self._drain = drain
        self._limit = limit
        self._jobs: deque[Callable[[], None]] = deque()
        self._closing = False
        self._thaw = threading.Event()
        self._version = 0
        self.subscription = log.subscribe(group, topics, self, trim_margin=window, member=static)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    # -- what the subscription tells

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        self._greet(assignments)
        for assignment in assignments:
            if assignment.committed is None:
                first, _ = self._log.watermarks(assignment.topic, assignment.partition)
                assignment.position = first if self._start is None else self._start
            self.owned[part(assignment)] = assignment
            self.past.append(assignment)
        self._tell("assigned", assignments)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        self._tell("revoking", assignments)
        self._drain(assignments)
        self._forget(assignments)
        self._tell("revoked", assignments)

    def lost(self, assignments: Sequence[Assignment]) -> None:
        self._forget(assignments)
        self._tell("lost", assignments)

    def _forget(self, assignments: Sequence[Assignment]) -> None:
        for assignment in assignments:
            del self.owned[part(assignment)]

    def _tell(self, what: str, assignments: Sequence[Assignment]) -> None:
        self._history.add(Event(self.name, what, part(a)) for a in assignments)

    # -- its thread

    def _run(self) -> None:
        try:
            while not self._closing:
                batches = self.subscription.poll(self._limit, PATIENCE)
                self.sizes.append(sum(map(len, batches)))
                for batch in batches:
                    self.deliver(batch)
                while self._jobs:
                    self._jobs.popleft()()
            self.subscription.close()
        except BaseException as error:
            self.error = error
            self._history.add(())

    def deliver(self, batch: Batch) -> None:
        """Write down what was polled, and commit it."""
        place = (batch.topic, batch.partition)
        assert batch.assignment is self.owned[place], "delivered of a partition that is not owned"
        self.keys += batch.keys
        self.headers += [list(batch.headers(index)) for index in range(len(batch))]
        self._history.add(
            Event(self.name, "message", place, offset, value)
            for offset, value in zip(batch.offsets, batch.values, strict=True)
        )
        if self._commit:
            self.subscription.commit([self.place(batch.assignment, batch.offsets[-1] + 1)])

    def place(self, assignment: Assignment, position: int, progress: str = "") -> Commit:
        """The next commit of an assignment."""
        self._version += 1
        return Commit(assignment, position, progress, self._version)

    # -- what a test makes it do

    def do(self, job: Callable[[], T]) -> T:
        """Run something in the member's own thread, between two polls."""
        __tracebackhide__ = True
        result: list[T] = []
        failed: list[BaseException] = []
        finished = threading.Event()

        def run() -> None:
            try:
                result.append(job())
            except BaseException as error:
                failed.append(error)
            finished.set()

        self._jobs.append(run)
        self.subscription.wakeup()
        assert finished.wait(PATIENCE), f"{self.name} does not come out of poll: {self.error!r}"
        if failed:
            raise failed[0]
        return result[0]

    def freeze(self) -> None:
        """Return once the member does nothing any more, as if its process were stopped."""
        frozen = threading.Event()
        self._thaw.clear()

        def job() -> None:
            frozen.set()
            self._thaw.wait()

        self._jobs.append(job)
        self.subscription.wakeup()
        assert frozen.wait(PATIENCE), f"{self.name} does not come out of poll: {self.error!r}"

    def thaw(self, late: Callable[[], None] = lambda: None) -> None:
        """Let it go on; first with something it was about to do."""
        self._jobs.append(late)
        self._thaw.set()

    def until_owns(self, count: int) -> None:
        """Wait until it owns so many partitions."""
        __tracebackhide__ = True
        self._history.until(
            lambda: len(self.owned) == count or self.error is not None,
            f"{self.name} owns {count} partitions",
        )
        assert self.error is None, self.error

    def until_delivered(self, count: int) -> None:
        """Wait until so many messages were delivered to it."""
        __tracebackhide__ = True
        self._history.until(
            lambda: len(self.delivered()) >= count or self.error is not None,
            f"{self.name} was given {count} messages",
        )
        assert self.error is None, self.error

    def delivered(self) -> list[bytes | None]:
        """The values it was given."""
        return [
            event.value
            for event in self._history.events
            if event.member == self.name and event.what == "message"
        ]

    def join(self) -> None:
        """Wait until it ends, which by itself it does only when something went wrong."""
        self._thread.join()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Leave the group; an error that ended the member before is raised."""
        self._closing = True
        self._thaw.set()
        self.subscription.wakeup()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), f"{self.name} does not come out of poll"
        self.join()


def part(assignment: Assignment) -> TopicPartition:
    return assignment.topic, assignment.partition
