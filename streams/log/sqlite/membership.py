"""A member of a group, and what it owns.

Theory of operation
-------------------
:mod:`streams.log.membership` decides which member should own which partition; this module keeps its
    two tables. A member's row says until when the member counts as running, and its leases last as
    long as its row: a member that finds another one dead deletes the row and frees its partitions
    in one transaction, so a lease needs no expiry of its own. A member is *dead*

* at once, when the lock that its process held has been dropped by the kernel
  (:mod:`streams.log.sqlite.member_locks`), which is how a killed process is noticed;
* when its row has expired, which is how a stopped process is noticed, and any dead one where locks
  do not work. As a clock can jump over all members' expiry at once (a virtual machine that was
  paused, a test's clock), such a member is suspected first, and has a moment to renew its row.

Expiry is counted on the *monotonic* clock, which all processes of one machine share, and which
cannot be set. It starts again at a restart of the machine, so a row names its timeline
(:func:`~streams.log.sqlite.member_locks.timeline_of`). A row of another timeline, and one whose
expiry makes no sense, has expired once this member has seen it unchanged for a lease's length
(:class:`streams.log.membership.StalenessTracker`).

A *static* member's row has its name as the ID. A process that joins under the name replaces the row
and takes the leases over, under the next epochs; its predecessor is fenced at its next step.

Each acquisition raises a partition's epoch, and a commit is refused under an older one
(:mod:`streams.log.sqlite.offsets`). An owner that others took for dead relied on its lease only
until ``valid_until``, counted from before its request.

The group's *revision* (the column ``generation``) changes with every change that requires a new
plan; members read it whenever the file has changed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from streams.errors import TopicMismatch, Unavailable
from streams.log.membership import INFINITY, Lease, Member, StalenessTracker, plan
from streams.log.names import member_fenced_error, topic_not_found
from streams.log.protocol import Assignment, Committed, StaticMember, TopicPartition
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.member_locks import timeline_of
from streams.log.sqlite.member_rows import (
    SELECT_REVISION,
    MemberRow,
    delete_member,
    has_comparable_expiry,
    is_running,
    member_rows,
    require_new_plan,
)
from streams.log.sqlite.offsets import OffsetCommits
from streams.log.sqlite.shared_file import group_event
from streams.log.sqlite.topics import partition_numbers

EXPIRED = float("-inf")

SUSPICION_SECONDS = 1.5
"""Real seconds between the suspicion that a member's lease has expired and acting on it. A member
that waits for handlers confirms its lease about once a second."""

_MAX_EPOCH = 1 << 53
"""No real epoch is ever near this; a greater one in the file is damage, and is reset."""


_MAX_HELD_NUMBERS = 1_000
"""Member numbers with a held lock that a new member skips before it gives up."""


@dataclass(slots=True)
class _OwnNumber:
    """The number of this member's row, as a transaction sees it."""

    number: int


class OwnershipChanges(NamedTuple):
    """The results of a member's step, in the order in which the listener is told. A step that
    releases partitions acquires none."""

    lost: list[Assignment]
    release: list[Assignment]
    acquired: list[Assignment]


class Membership:
    """One member of a group: its row and its leases.

    :meth:`heartbeat` may be called by any thread, the rest by the one that polls.
    """

    def __init__(
        self,
        database: Database,
        group: str,
        topics: Sequence[str],
        trim_margin: int,
        static: StaticMember | None = None,
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._locks = database.shared_file.member_locks
        self._terms = database.settings.terms
        self.group = group
        self._topics = sorted(set(topics))
        self._trim_margin = trim_margin
        self._static_name = static.name if static else ""
        self._number = 0
        self.revision = -1
        """The group's revision at this member's last plan."""
        self.partition_numbers: dict[Assignment, int] = {}
        """The assignments that this member owns, with each partition's number."""
        self._releasing: set[Assignment] = set()
        """The owned assignments that the listener was told to give up, until they are released in
        the file."""
        self.commits = OffsetCommits(database, group, self.partition_numbers)
        self._other_members: list[MemberRow] = []
        self._suspected_since: dict[int, float] = {}
        self._staleness = StalenessTracker(self._terms.heartbeat_interval)

    # -- being a member

    def join(self) -> None:
        """Join the group; the first plan comes with :meth:`heartbeat_and_plan`. A static member
        takes over its name, and the leases of the process that had it before.

        :raises NotFound: one of the topics does not exist.
        """
        with self._write() as (db, own):
            if self._static_name:
                self._take_over_name(db, own)
            else:
                self._insert_member(db, own)
        self._notify_group()

    def heartbeat(self) -> None:
        """Confirm the membership and the leases still owned, without planning."""
        sent = self._clock.monotonic()
        with self._database.write(self._terms.safety_margin) as db:
            self._renew_row(db, sent)
            owned_epochs = self._owned_epochs(db, self._number)
        self._extend_validity(owned_epochs, sent)

    def heartbeat_and_plan(self, timeout: float) -> OwnershipChanges:
        """Confirm the membership, and plan again if anything has changed.

        A partition that is to be released stays owned until :meth:`release`.

        :param timeout: seconds to wait while others write.
        :raises MemberFenced: another process has this static member's name.
        """
        sent = self._clock.monotonic()
        release: list[Assignment] = []
        acquired: dict[Assignment, int] = {}
        with self._write(timeout) as (db, own):
            changed = not self._renew_row(db, sent)
            if changed:
                self._check_fenced(db)
                self._insert_member(db, own)
            changed |= self._delete_dead_members(db, own.number)
            changed |= self._release_owned(db, own.number, self._releasing)
            owned_epochs = self._owned_epochs(db, own.number)
            if changed or self._stored_revision(db) != self.revision:
                release, acquired = self._plan(db, own.number, owned_epochs, sent)
            revision = self._stored_revision(db)
        self.revision = revision
        self.commits.was_refused = False
        self._discard_owned(self._releasing)
        held = self._held(owned_epochs)
        lost = [a for a, number in self.partition_numbers.items() if number not in held]
        self._discard_owned(lost)
        self._extend_validity(owned_epochs, sent)
        self.partition_numbers.update(acquired)
        if changed or acquired:
            self._notify_group()
        return OwnershipChanges(lost, release, list(acquired))

    def release(self, assignments: Sequence[Assignment]) -> None:
        """Release these assignments. If that fails, the next step does it."""
        self._releasing.update(assignments)
        for assignment in assignments:
            assignment.valid_until = EXPIRED
        with self._database.write() as db:
            self._release_owned(db, self._number, assignments)
        self._discard_owned(assignments)
        self._notify_group()

    def abandon(self) -> None:
        """Drop this member's lock, so that the others find it dead."""
        self._locks.release(self._number)

    def leave(self) -> None:
        """Leave the group, and own nothing."""
        try:
            with self._database.write() as db:
                delete_member(db, self.group, self._number)
        finally:
            # This works even if the file could not be written: the others see that the lock is
            # free.
            self._locks.release(self._number)
            self._discard_owned(list(self.partition_numbers))
            self._notify_group()

    def has_dead_members(self, db: SqliteConnection) -> bool:
        """Whether a member seems to be dead, so that a step is due. Cheap, and writes nothing."""
        if not all(
            is_running(row, self._clock, self._locks) and has_comparable_expiry(row, self._clock)
            for row in self._other_members
        ):
            self._other_members = self._read_other_members(db, self._number)
        self._staleness.observe(time.monotonic())
        return any(self._is_dead(row) for row in self._other_members)

    # -- inside a transaction

    @contextmanager
    def _write(
        self, timeout: float | None = None
    ) -> Generator[tuple[SqliteConnection, _OwnNumber]]:
        """A transaction in which this member may get a new row, and with it a new number.

        The new number is used once the row is in the file. If the transaction fails, another member
        may get that number: its lock is released, and this member keeps the number it had.
        """
        own = _OwnNumber(self._number)
        try:
            with self._database.write(timeout, lambda: self._adopt_number(own.number)) as db:
                yield db, own
        except BaseException:
            if own.number != self._number:
                self._locks.release(own.number)
            raise

    def _adopt_number(self, number: int) -> None:
        if number != self._number:
            self._locks.release(self._number)
            self._number = self.commits.member_number = number

    def _read_other_members(self, db: SqliteConnection, own_number: int) -> list[MemberRow]:
        return [row for row in member_rows(db, self.group) if row.number != own_number]

    def _next_number(self, db: SqliteConnection) -> int:
        """A number for a new row; its lock is held before any other member can see the row.

        A number whose lock is held already is skipped: once that lock is dropped, the member with
        this number would be taken for dead.
        """
        number = 0
        for _ in range(_MAX_HELD_NUMBERS):
            ((number,),) = db.fetch_rows(
                "UPDATE streams_meta SET value = value + 1 WHERE name = 'members' RETURNING value"
            )
            if self._locks.acquire(number):
                return int(number)
        raise Unavailable(
            f"{self._database.path}-members: the locks of {_MAX_HELD_NUMBERS} numbers of members "
            f"up to {number} are held; end the program that has locked the file"
        )

    def _insert_member(self, db: SqliteConnection, own: _OwnNumber) -> None:
        existing = db.fetch_rows(
            "SELECT name FROM streams_topics WHERE name IN (SELECT value FROM json_each(?))",
            (json.dumps(self._topics),),
        )
        missing = set(self._topics) - {name for (name,) in existing}
        if missing:
            raise topic_not_found(min(missing))
        own.number = self._next_number(db)
        db.execute(
            "INSERT INTO streams_groups (name, window) VALUES (?1, ?2)"
            " ON CONFLICT DO UPDATE SET window = CASE WHEN EXISTS"
            ' (SELECT 1 FROM streams_members WHERE "group" = ?1) THEN max(window, ?2) ELSE ?2 END',
            (self.group, self._trim_margin),
        )
        id = self._static_name or f"{socket.gethostname()}-{os.getpid()}-{own.number}"
        group, topics, *rest = self._row_values(self._clock.monotonic())
        db.execute(
            "INSERT INTO streams_members VALUES (?, ?, ?, ?, ?, ?)",
            (own.number, group, id, topics, *rest),
        )
        require_new_plan(db, self.group)

    def _row_values(self, now: float) -> tuple[object, ...]:
        """The stored values of group, topics, expiry and timeline."""
        expiry = self._terms.expiry(now)
        return self.group, json.dumps(self._topics), expiry, timeline_of(self._clock)

    def _take_over_name(self, db: SqliteConnection, own: _OwnNumber) -> None:
        """Join, and replace the member that has this one's static name."""
        rows = member_rows(db, self.group)
        self._insert_member(db, own)
        for row in rows:
            if row.id == self._static_name:
                db.execute("DELETE FROM streams_members WHERE no = ?", (row.number,))
                db.execute(
                    "UPDATE streams_places SET owner = ?, epoch = epoch + 1"
                    ' WHERE "group" = ? AND owner = ?',
                    (own.number, self.group, row.number),
                )

    def _check_fenced(self, db: SqliteConnection) -> None:
        """Raise if this member's row is gone because another process has taken its static name."""
        rows = self._read_other_members(db, self._number) if self._static_name else []
        if any(row.id == self._static_name for row in rows):
            raise member_fenced_error(self.group, self._static_name)

    def _renew_row(self, db: SqliteConnection, sent: float) -> bool:
        # All columns are written, so that a damaged row is repaired.
        db.execute(
            'UPDATE streams_members SET "group" = ?, topics = ?, expires = ?, timeline = ?'
            " WHERE no = ?",
            (*self._row_values(sent), self._number),
        )
        return db.changes() > 0

    def _delete_dead_members(self, db: SqliteConnection, own_number: int) -> bool:
        """Delete the members that are dead; returns whether there were any."""
        rows = self._read_other_members(db, own_number)
        dead = [row for row in rows if self._is_dead(row)]
        for row in dead:
            delete_member(db, self.group, row.number)
            self._suspected_since.pop(row.number, None)
        self._other_members = [row for row in rows if row not in dead]
        return bool(dead)

    def _is_dead(self, row: MemberRow) -> bool:
        if self._locks.is_running(row.number) is False:
            return True
        if not has_comparable_expiry(row, self._clock):
            return not self._staleness.remaining(row.number, row, self._terms.lease)
        if row.expires > self._clock.monotonic():
            self._suspected_since.pop(row.number, None)
            return False
        suspected = self._suspected_since.setdefault(row.number, time.monotonic())
        return time.monotonic() - suspected >= SUSPICION_SECONDS

    def _release_owned(
        self, db: SqliteConnection, own_number: int, assignments: Iterable[Assignment]
    ) -> bool:
        """Release these partitions; returns whether there were any."""
        owned = self.partition_numbers
        return self._release_numbers(db, own_number, [owned[a] for a in assignments if a in owned])

    def _release_numbers(
        self, db: SqliteConnection, own_number: int, numbers: Sequence[int]
    ) -> bool:
        if numbers:
            db.execute(
                'UPDATE streams_places SET owner = NULL WHERE "group" = ? AND owner = ?'
                " AND no IN (SELECT value FROM json_each(?))",
                (self.group, own_number, json.dumps(numbers)),
            )
            require_new_plan(db, self.group)
        return bool(numbers)

    def _owned_epochs(self, db: SqliteConnection, own_number: int) -> dict[int, int]:
        """The epochs of the partitions that this member owns according to the file, by number."""
        return dict(
            db.fetch_json(
                "SELECT json_group_array(json_array(no, iif(typeof(epoch) = 'integer', epoch, 0)))"
                ' FROM streams_places WHERE "group" = ? AND owner = ?',
                (self.group, own_number),
            )
        )

    def _held(self, owned_epochs: Mapping[int, int]) -> dict[int, Assignment]:
        """The assignments that this member owns both to its own knowledge and in the file."""
        owned = list(self.partition_numbers.items())  # any thread may call it
        return {number: a for a, number in owned if owned_epochs.get(number) == a.epoch}

    def _stored_revision(self, db: SqliteConnection) -> int:
        rows = db.fetch_rows(SELECT_REVISION, (self.group,))
        return int(rows[0][0]) if rows else -1

    def _plan(
        self, db: SqliteConnection, own_number: int, owned_epochs: dict[int, int], sent: float
    ) -> tuple[list[Assignment], dict[Assignment, int]]:
        """The assignments to release, and those just acquired, with their partitions' numbers."""
        rows = member_rows(db, self.group)
        topics = {row.number: row.topics for row in rows}
        numbers = partition_numbers(db, {topic for names in topics.values() for topic in names})
        partitions_by_number = {
            number: (topic, partition)
            for topic, topic_numbers in numbers.items()
            for partition, number in enumerate(topic_numbers)
        }
        held = self._held(owned_epochs)
        leases: dict[TopicPartition, Lease] = {}
        for number, epoch, owner in db.fetch_json(
            # (A JSON array takes no blob, which another program may have written there.)
            "SELECT json_group_array(json_array(no, iif(typeof(epoch) = 'integer', epoch, 0),"
            " iif(typeof(owner) = 'integer', owner, 0))) FROM streams_places"
            ' WHERE "group" = ?',
            (self.group,),
        ):
            # Partitions that the file assigns to us without our knowledge (inherited, or from a
            # commit of unknown outcome) are acquired again; those of no member's row are free.
            epoch = epoch if 0 < epoch < _MAX_EPOCH else 0
            if number in partitions_by_number:
                is_owned = owner in topics
                leases[partitions_by_number[number]] = (
                    Lease(str(owner), epoch, INFINITY) if is_owned else Lease("", epoch, -INFINITY)
                )
        result = plan(
            str(own_number),
            sent,
            [Member(str(number), names, INFINITY) for number, names in topics.items()],
            {topic: len(topic_numbers) for topic, topic_numbers in numbers.items()},
            leases,
            {partitions_by_number[number] for number in held if number in partitions_by_number},
        )
        released = [numbers[topic][partition] for topic, partition in result.release]
        inherited = [number for number in released if number not in held]
        self._release_numbers(db, own_number, inherited)
        release = [held[number] for number in released if number in held]
        if release:  # acquiring can wait until after that
            return release, {}
        return [], self._acquire(db, own_number, result.acquire, numbers, sent)

    def _acquire(
        self,
        db: SqliteConnection,
        own_number: int,
        wanted: Mapping[TopicPartition, int],
        numbers: Mapping[str, list[int]],
        sent: float,
    ) -> dict[Assignment, int]:
        if not wanted:
            return {}
        partitions_by_number = {
            numbers[topic][partition]: (topic, partition) for topic, partition in wanted
        }
        epochs = [[number, wanted[each]] for number, each in partitions_by_number.items()]
        db.execute(
            'INSERT INTO streams_places ("group", no, epoch, owner)'
            " SELECT ?, value ->> 0, value ->> 1, ? FROM json_each(?) WHERE true"
            " ON CONFLICT DO UPDATE SET epoch = excluded.epoch, owner = excluded.owner",
            (self.group, own_number, json.dumps(epochs)),
        )
        rows = db.fetch_json(
            "SELECT json_group_array(json_array(no, iif(typeof(position) = 'blob', hex(position),"
            " position), iif(typeof(progress) = 'text', hex(progress), ''))) FROM streams_places"
            ' WHERE "group" = ? AND owner = ? AND position IS NOT NULL',
            (self.group, own_number),
        )
        committed: dict[int, Committed] = {}
        for number, position, progress in rows:
            if not isinstance(position, int):
                topic, partition = partitions_by_number.get(number, ("?", 0))
                raise TopicMismatch(
                    f"{self._database.path}: {topic}/{partition}: in streams_places the group "
                    f"{self.group!r} is at {position!r:.50}, which is not a valid offset; reset "
                    f"it with `streams reset {self.group} {topic} --to PLACE`"
                )
            progress = bytes.fromhex(progress).decode("ascii", "replace")
            committed[number] = Committed(position, progress)
        # The member gets a position beyond its log's end unchanged, but it is reset here: otherwise
        # commits from now on would count as older.
        db.execute(_RESET_BEYOND_END, (self.group, own_number))
        valid_until = self._terms.valid_until(sent)
        return {
            Assignment(
                *each, wanted[each], committed.get(number), valid_until, self._terms.lease
            ): number
            for number, each in partitions_by_number.items()
        }

    # -- afterwards

    def _extend_validity(self, owned_epochs: Mapping[int, int], sent: float) -> None:
        valid_until = self._terms.valid_until(sent)
        for assignment in self._held(owned_epochs).values():
            if assignment not in self._releasing:
                assignment.valid_until = valid_until

    def _discard_owned(self, assignments: Iterable[Assignment]) -> None:
        for assignment in list(assignments):
            assignment.valid_until = EXPIRED
            self.partition_numbers.pop(assignment, None)
            self.commits.forget(assignment)
            self._releasing.discard(assignment)

    def _notify_group(self) -> None:
        self._database.shared_file.notify([group_event(self.group)])


_RESET_BEYOND_END = """
UPDATE streams_places SET position = 0, progress = '' WHERE "group" = ?1 AND owner = ?2
    AND position > (SELECT next FROM streams_partitions AS p WHERE p.no = streams_places.no)
"""
