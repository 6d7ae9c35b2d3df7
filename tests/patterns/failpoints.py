"""Failpoints of a processor with ordered dead letters: before and after each of its writes.

They are put around the log of an app, so that nothing of the toolkit knows of them. Each has a
name and is come by any number of times; what happens there is the test's.

========================== =====================================================================
``owner.before``, ``after`` the record that opens an ownership epoch
``dead.before``, ``after``  the record of a message that could not be handled
``waits.before``, ``after`` the record of a message that is parked behind it
``done.before``, ``after``  the record that says that a message which came back was handled
``floor.before``, ``after`` the floor, from which the next owner reads
``commit.before``           a commit of the source's position, before what was parked is read back
``commit.read``             the same, when that was done
``commit.after``            the same, when the log has acknowledged it
========================== =====================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streams import Streams
from streams.derived_records import header_text
from streams.log.protocol import Assignment, Commit, Log, Submitted, Subscription
from streams.message import Record
from streams.parking.records import KIND

RECORDS = ("owner", "dead", "waits", "done")

ALL = (
    *(f"{what}.{when}" for what in (*RECORDS, "floor") for when in ("before", "after")),
    *("commit.before", "commit.read", "commit.after"),
)

Told = Callable[[str], None]


def install(app: Streams, hit: Told, over: Told) -> None:
    """Watch the failpoints of an app whose log is open, before it processes.

    At a failpoint after a write, whoever asked for the write does not know of it yet.

    :param hit: called with a failpoint's name whenever it is come by.
    :param over: called with it when what began there has ended, however it ended.
    """
    log: Any = app.log
    points = _Points(hit, over)
    points.around_appends(log)
    points.around_moves(log)
    points.around_commits(log)
    for processor in app.processors:
        points.around_reading_back(processor.key_parking)


class _Points:
    def __init__(self, hit: Told, over: Told) -> None:
        self._hit = hit
        self._over = over
        self._is_submitting = False
        """A commit that nobody waits for is being handed over; by the one thread that commits."""

    def _passed(self, name: str) -> None:
        self._hit(name)
        self._over(name)

    def around_appends(self, log: Any) -> None:
        log.append = self._appending(log.append)

    def _appending(self, append: Any) -> Any:
        def appending(topic: str, records: Sequence[Record], *given: Any) -> None:
            *owners, done = given
            said = [header_text(record.headers, KIND) for record in records]
            whats = [what for what in RECORDS if what in said]
            for what in whats:
                self._hit(f"{what}.before")

            def answered(outcomes: Any) -> None:
                for what in whats:
                    self._over(f"{what}.before")
                    self._passed(f"{what}.after")
                done(outcomes)

            append(topic, records, *owners, answered)

        return appending

    def _around_owners_appends(self, listener: Any) -> None:
        assigned = listener.assigned

        def assigning(assignments: Sequence[Assignment]) -> None:
            for each in assignments:
                if each.append_as_owners is not None:
                    each.append_as_owners = self._appending(each.append_as_owners)
            assigned(assignments)

        listener.assigned = assigning

    def around_moves(self, log: Any) -> None:
        move = log.reset_offsets

        def moving(group: str, topic: str, places: Mapping[int, Any], **options: Any) -> None:
            self._hit("floor.before")
            try:
                move(group, topic, places, **options)
            finally:
                self._over("floor.before")
            self._passed("floor.after")

        log.reset_offsets = moving

    def around_commits(self, log: Any) -> None:
        subscribe = log.subscribe

        def subscribing(group: str, topics: Any, listener: Any, **options: Any) -> Subscription:
            self._around_owners_appends(listener)
            subscription: Any = subscribe(group, topics, listener, **options)
            subscription.commit = self._committing(subscription.commit)
            subscription.commit_async = self._submitting(subscription.commit_async)
            return subscription  # type: ignore[no-any-return]

        log.subscribe = subscribing

    def _committing(self, commit: Callable[..., None]) -> Callable[..., None]:
        def committing(commits: Sequence[Commit]) -> None:
            if self._is_submitting:  # some logs submit by committing: that is one commit
                commit(commits)
                return
            self._hit("commit.read")
            try:
                commit(commits)
            finally:
                self._over("commit.read")
            self._passed("commit.after")

        return committing

    def _submitting(self, submit: Callable[..., None]) -> Callable[..., None]:
        def submitting(commits: Sequence[Commit], on_submitted: Submitted) -> None:
            def answer(stored: bool) -> None:
                if stored:
                    self._passed("commit.after")
                on_submitted(stored)

            self._hit("commit.read")
            self._is_submitting = True
            try:
                submit(commits, answer)
            finally:
                self._is_submitting = False
                self._over("commit.read")

        return submitting

    def around_reading_back(self, sequence: Any) -> None:
        proven = sequence.is_confirmed

        def proving(assignment: Assignment) -> Any:
            self._hit("commit.before")
            try:
                return proven(assignment)
            finally:
                self._over("commit.before")

        sequence.is_confirmed = proving


def quiet(log: Log) -> None:
    """See that no other thread of this process is writing: a process that stands still with
    SQLite's file locked holds up everybody, which is not what these tests are about."""
    if log.capabilities.name == "sqlite":
        log.flush(30.0)  # another thread's fsync may take seconds
