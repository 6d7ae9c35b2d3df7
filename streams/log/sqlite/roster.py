"""Members of a group, what each one owns, and commits, which only owners may make.

Theory of operation
-------------------
:mod:`streams.log.membership` says who should own what; here are its two tables. A member's row
says until when it counts as running, and its leases last as long as its row: whoever finds a
member gone deletes the row and frees what it owned in one transaction, so a lease needs no expiry
of its own. A member is *gone*

* at once, when the lock that its process held has been dropped by the kernel
  (:mod:`streams.log.sqlite.alive`), which is how a killed process is noticed;
* when its row has run out, which is how a stopped one is, and any where locks do not work. As a
  clock can jump over everybody's expiry at once (a virtual machine that was paused, a test's
  clock), such a member is under suspicion first, and has a moment to renew its row.

Expiry is counted on the *monotonic* clock, which all processes of one machine share, and which
nobody sets. It begins anew at a restart of the machine, so a row names its timeline
(:func:`~streams.log.sqlite.alive.timeline`). A row of another one, and one whose expiry makes no
sense, is over once it has stood unchanged for a lease's length while this member looked on
(:class:`streams.log.membership.Watch`).

A *static* member's row has its name for an ID. Whoever joins under the name takes the row's place
and the leases with it, under the next epochs; the one before finds that out at its next step.

Every taking raises the epoch of a place, and a commit names the owner and its epoch in the very
statement that writes, so an owner that was thought gone can commit nothing when it comes back. It
has believed in its lease only until ``valid_until``, counted from before it asked for it.

A *generation* number of the group changes with everything that calls for another plan; members
look at it whenever the file has changed.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import NamedTuple

from streams.clock import Clock
from streams.errors import Fenced, Mismatch
from streams.log.membership import FREE, LONGEST, NEVER, Lease, Member, Part, Watch, plan
from streams.log.names import member_fenced, no_topic
from streams.log.protocol import Assignment, Commit, Committed, Static
from streams.log.sqlite.alive import Alive, timeline
from streams.log.sqlite.database import Connection, Database
from streams.log.sqlite.shared import group_key

NEVER_VALID = float("-inf")

GRACE = 1.5
"""Real seconds between the suspicion that a member's lease is over and acting on it. A member that
waits for handlers confirms its lease about once a second."""


_EPOCHS = 1 << 53
"""No epoch comes near it: what is greater is damage, and counted anew."""


class Row(NamedTuple):
    """A member as the file has it."""

    no: int
    id: str
    topics: tuple[str, ...]
    """Empty where what stands there makes no sense."""
    expires: float
    """Minus infinity where what stands there makes no sense."""
    timeline: str


def members(connection: Connection, group: str) -> list[Row]:
    """All rows of a group. Anybody may have written into the file: a row is read as it can be."""
    # As bytes: the driver refuses text that is not UTF-8.
    rows = connection.rows(
        "SELECT no, CAST(id AS BLOB), CAST(topics AS BLOB), expires, CAST(timeline AS BLOB)"
        ' FROM streams_members WHERE "group" = ? ORDER BY no',
        (group,),
    )
    return [
        Row(no, _text(id), _topics(topics), _expires(expires), _text(timeline))
        for no, id, topics, expires, timeline in rows
    ]


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "backslashreplace")


def _topics(stored: bytes) -> tuple[str, ...]:
    try:
        found = json.loads(stored)
    except (ValueError, RecursionError):
        return ()
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        return ()
    return tuple(found)


def _expires(stored: object) -> float:
    return stored if isinstance(stored, float) and isfinite(stored) else -NEVER


def is_judged(row: Row, clock: Clock) -> bool:
    """Whether the row's expiry can be compared with this clock."""
    return row.timeline == timeline(clock) and row.expires <= clock.monotonic() + LONGEST


def is_running(row: Row, clock: Clock, alive: Alive) -> bool:
    """Whether a member seems to run, as far as one look can tell."""
    there = alive.check(row.no)
    if there is False:
        return False
    if not is_judged(row, clock):
        return there is True
    return row.expires > clock.monotonic()


class Changes(NamedTuple):
    """What a member's step came to, in the order in which it is to be told."""

    lost: list[Assignment]
    release: list[Assignment]
    acquired: list[Assignment]


class Roster:
    """One member of a group: its row, its leases, its commits.

    :meth:`beat`, :meth:`commit` and :meth:`store` may be called by any thread, the rest by the one
    that polls.
    """

    def __init__(
        self,
        database: Database,
        group: str,
        topics: Sequence[str],
        window: int,
        static: Static | None = None,
    ) -> None:
        self._database = database
        self._clock = database.clock
        self._alive = database.shared.alive
        self._terms = database.settings.terms
        self.group = group
        self._topics = sorted(set(topics))
        self._window = window
        self._name = static.name if static else ""
        self._no = 0
        self.generation = -1
        """The group's, as of this member's last plan."""
        self.numbers: dict[Assignment, int] = {}
        """What this member owns, with each partition's number."""
        self._given_up: set[Assignment] = set()
        """Of these, what the listener was told to give up, until the file says so too."""
        self._versions: dict[Assignment, int] = {}
        self.doubtful = False
        """A commit was refused, so something has been lost that the last step did not know of."""
        self._others: list[Row] = []
        self._suspects: dict[int, float] = {}
        self._watch = Watch(self._terms.heartbeat)

    # -- being a member

    def join(self) -> None:
        """Become a member; the first plan comes with :meth:`step`. A static member takes its name
        over, with what the process before it had.

        :raises NotFound: one of the topics does not exist.
        """
        with self._database.write() as connection:
            if self._name:
                self._succeed(connection)
            else:
                self._join(connection)
        self._tell()

    def beat(self) -> None:
        """Confirm the membership and what is still owned, without planning."""
        sent = self._clock.monotonic()
        with self._database.write(self._terms.margin) as connection:
            self._renew(connection, sent)
            mine = self._mine(connection)
        self._confirm(mine, sent)

    def step(self, patience: float) -> Changes:
        """Confirm the membership, and plan again if anything has changed.

        What is to be released stays owned until :meth:`release`.

        :param patience: seconds to wait while others write.
        :raises MemberFenced: another process has this static member's name.
        """
        sent = self._clock.monotonic()
        release: list[Assignment] = []
        acquired: dict[Assignment, int] = {}
        with self._database.write(patience) as connection:
            changed = not self._renew(connection, sent)
            if changed:
                self._refuse_namesake(connection)
                self._join(connection)
            changed |= self._bury(connection)
            changed |= self._free(connection, self._given_up)
            mine = self._mine(connection)
            if changed or self._generation(connection) != self.generation:
                release, acquired = self._plan(connection, mine, sent)
            generation = self._generation(connection)
        self.generation = generation
        self.doubtful = False
        self._drop(self._given_up)
        lost = [a for a, no in self.numbers.items() if mine.get(no) != a.epoch]
        self._drop(lost)
        self._confirm(mine, sent)
        self._versions.update(dict.fromkeys(acquired, -1))
        self.numbers.update(acquired)
        if changed or acquired:
            self._tell()
        return Changes(lost, release, list(acquired))

    def release(self, assignments: Sequence[Assignment]) -> None:
        """Let others have these. If that fails, it comes with the next step."""
        self._given_up |= set(assignments)
        for assignment in assignments:
            assignment.valid_until = NEVER_VALID
        with self._database.write() as connection:
            self._free(connection, assignments)
        self._drop(assignments)
        self._tell()

    def abandon(self) -> None:
        """Leave it to the others to find this member gone."""
        self._alive.drop(self._no)

    def leave(self) -> None:
        """Be no member any more, and own nothing."""
        try:
            with self._database.write() as connection:
                _delete(connection, self.group, self._no)
        finally:
            # Even if the file could not be written: the others see that the lock is gone.
            self._alive.drop(self._no)
            self._drop(list(self.numbers))
            self._tell()

    def look(self, connection: Connection) -> bool:
        """Whether a member seems to be gone, so that a step is due. Cheap, and writes nothing."""
        if not all(
            is_running(row, self._clock, self._alive) and is_judged(row, self._clock)
            for row in self._others
        ):
            rows = members(connection, self.group)
            self._others = [row for row in rows if row.no != self._no]
        self._watch.look(time.monotonic())
        return any(self._is_gone(row) for row in self._others)

    # -- commits

    def commit(
        self, commits: Iterable[Commit], *, flush: bool = True, patience: float | None = None
    ) -> None:
        """Store the places of what is owned; what is not is left out.

        :param flush: as :meth:`Database.write` says.
        :param patience: seconds to wait while others write, instead of the URL's.
        """
        stored: list[Commit] = []
        with self._database.write(
            patience, committed=lambda: self.stored(stored), flush=flush
        ) as connection:
            for commit in commits:
                try:
                    if self.store(connection, commit):
                        stored.append(commit)
                except Fenced:
                    continue

    def store(self, connection: Connection, commit: Commit) -> bool:
        """Write one place within a transaction; False if a newer one is there already.

        :raises Fenced: this member does not own the partition any more.
        """
        assignment = commit.assignment
        no = self.numbers.get(assignment)
        if no is not None:
            if commit.version < self._versions.get(assignment, -1):
                return False
            connection.execute(_STORE, (*commit[1:3], self.group, no, self._no, assignment.epoch))
            if connection.changes():
                return True
        self.doubtful = True
        assignment.valid_until = NEVER_VALID
        raise Fenced(
            f"{assignment.topic}/{assignment.partition}: group {self.group!r} has given it to "
            "another member; nothing was committed"
        )

    def stored(self, commits: Iterable[Commit]) -> None:
        """These are in the file now. To be called before anybody else may write."""
        for commit in commits:
            if commit.assignment in self._versions:
                self._versions[commit.assignment] = commit.version

    # -- inside a transaction

    def _join(self, connection: Connection) -> None:
        known = connection.rows(
            "SELECT name FROM streams_topics WHERE name IN (SELECT value FROM json_each(?))",
            (json.dumps(self._topics),),
        )
        missing = set(self._topics) - {name for (name,) in known}
        if missing:
            raise no_topic(min(missing))
        self._alive.drop(self._no)
        ((self._no,),) = connection.rows(
            "UPDATE streams_meta SET value = value + 1 WHERE name = 'members' RETURNING value"
        )
        self._alive.hold(self._no)  # before anybody can see the row
        connection.execute(
            "INSERT INTO streams_groups (name, window) VALUES (?1, ?2)"
            " ON CONFLICT DO UPDATE SET window = CASE WHEN EXISTS"
            ' (SELECT 1 FROM streams_members WHERE "group" = ?1) THEN max(window, ?2) ELSE ?2 END',
            (self.group, self._window),
        )
        connection.execute(
            "INSERT INTO streams_members VALUES (?, ?, ?, ?, ?, ?)",
            (
                self._no,
                self.group,
                self._name or f"{socket.gethostname()}-{os.getpid()}-{self._no}",
                json.dumps(self._topics),
                self._terms.expires(self._clock.monotonic()),
                timeline(self._clock),
            ),
        )
        bump(connection, self.group)

    def _succeed(self, connection: Connection) -> None:
        """Join in the place of the member that has this one's name."""
        rows = members(connection, self.group)
        before = [row.no for row in rows if row.id == self._name]
        self._join(connection)
        for no in before:
            connection.execute("DELETE FROM streams_members WHERE no = ?", (no,))
            connection.execute(
                "UPDATE streams_places SET owner = ?, epoch = epoch + 1"
                ' WHERE "group" = ? AND owner = ?',
                (self._no, self.group, no),
            )

    def _refuse_namesake(self, connection: Connection) -> None:
        """This member is none any more: because another process has its name?"""
        rows = members(connection, self.group) if self._name else []
        if any(row.id == self._name and row.no != self._no for row in rows):
            raise member_fenced(self.group, self._name)

    def _renew(self, connection: Connection, sent: float) -> bool:
        # All of it, so that a damaged row is mended.
        connection.execute(
            'UPDATE streams_members SET "group" = ?, topics = ?, expires = ?, timeline = ?'
            " WHERE no = ?",
            (
                self.group,
                json.dumps(self._topics),
                self._terms.expires(sent),
                timeline(self._clock),
                self._no,
            ),
        )
        return connection.changes() > 0

    def _bury(self, connection: Connection) -> bool:
        """Delete the members that are gone; whether there were any."""
        rows = [row for row in members(connection, self.group) if row.no != self._no]
        gone = [row for row in rows if self._is_gone(row)]
        for row in gone:
            _delete(connection, self.group, row.no)
            self._suspects.pop(row.no, None)
        self._others = [row for row in rows if row not in gone]
        return bool(gone)

    def _is_gone(self, row: Row) -> bool:
        if self._alive.check(row.no) is False:
            return True
        if not is_judged(row, self._clock):
            return not self._watch.left(row.no, row, self._terms.lease)
        if row.expires > self._clock.monotonic():
            self._suspects.pop(row.no, None)
            return False
        suspected = self._suspects.setdefault(row.no, time.monotonic())
        return time.monotonic() - suspected >= GRACE

    def _free(self, connection: Connection, assignments: Iterable[Assignment]) -> bool:
        """Let nobody own these; whether there were any."""
        return self._free_numbers(
            connection, [self.numbers[a] for a in assignments if a in self.numbers]
        )

    def _free_numbers(self, connection: Connection, numbers: Sequence[int]) -> bool:
        if numbers:
            connection.execute(
                'UPDATE streams_places SET owner = NULL WHERE "group" = ? AND owner = ?'
                " AND no IN (SELECT value FROM json_each(?))",
                (self.group, self._no, json.dumps(numbers)),
            )
            bump(connection, self.group)
        return bool(numbers)

    def _mine(self, connection: Connection) -> dict[int, int]:
        """The epochs of what the file says is ours, by partition number."""
        return dict(
            connection.array(
                "SELECT json_group_array(json_array(no, iif(typeof(epoch) = 'integer', epoch, 0)))"
                ' FROM streams_places WHERE "group" = ? AND owner = ?',
                (self.group, self._no),
            )
        )

    def _generation(self, connection: Connection) -> int:
        rows = connection.rows(
            "SELECT generation FROM streams_groups WHERE name = ?", (self.group,)
        )
        return int(rows[0][0]) if rows else -1

    def _plan(
        self, connection: Connection, mine: dict[int, int], sent: float
    ) -> tuple[list[Assignment], dict[Assignment, int]]:
        """What to release, and what was just acquired, with its partitions' numbers."""
        rows = members(connection, self.group)
        topics = {row.no: row.topics for row in rows}
        numbers = _partitions(connection, {topic for names in topics.values() for topic in names})
        parts = {
            no: (topic, partition)
            for topic, all_ in numbers.items()
            for partition, no in enumerate(all_)
        }
        held = {no: a for a, no in self.numbers.items() if mine.get(no) == a.epoch}
        leases: dict[Part, Lease] = {}
        for no, epoch, owner in connection.array(
            # (A JSON array takes no blob, which anybody may have written there.)
            "SELECT json_group_array(json_array(no, iif(typeof(epoch) = 'integer', epoch, 0),"
            " iif(typeof(owner) = 'integer', owner, 0))) FROM streams_places"
            ' WHERE "group" = ?',
            (self.group,),
        ):
            # What the file calls ours but we know nothing of (inherited, or a commit of unknown
            # outcome) is taken anew; what belongs to nobody's row is free.
            epoch = epoch if 0 < epoch < _EPOCHS else 0
            if no in parts:
                leases[parts[no]] = (
                    Lease(str(owner), epoch, NEVER)
                    if owner in topics
                    else FREE._replace(epoch=epoch)
                )
        found = plan(
            str(self._no),
            sent,
            [Member(str(no), names, NEVER) for no, names in topics.items()],
            {topic: len(all_) for topic, all_ in numbers.items()},
            leases,
            {parts[no] for no in held if no in parts},
        )
        leaving = [numbers[topic][partition] for topic, partition in found.release]
        self._free_numbers(connection, [no for no in leaving if no not in held])
        release = [held[no] for no in leaving if no in held]
        return release, self._acquire(connection, found.acquire, numbers, sent)

    def _acquire(
        self,
        connection: Connection,
        wanted: Mapping[Part, int],
        numbers: Mapping[str, list[int]],
        sent: float,
    ) -> dict[Assignment, int]:
        if not wanted:
            return {}
        taken = {numbers[topic][partition]: (topic, partition) for topic, partition in wanted}
        connection.execute(
            'INSERT INTO streams_places ("group", no, epoch, owner)'
            " SELECT ?, value ->> 0, value ->> 1, ? FROM json_each(?) WHERE true"
            " ON CONFLICT DO UPDATE SET epoch = excluded.epoch, owner = excluded.owner",
            (self.group, self._no, json.dumps([[no, wanted[part]] for no, part in taken.items()])),
        )
        committed = connection.array(
            "SELECT json_group_array(json_array(no, iif(typeof(position) = 'blob', hex(position),"
            " position), iif(typeof(progress) = 'text', hex(progress), ''))) FROM streams_places"
            ' WHERE "group" = ? AND owner = ? AND position IS NOT NULL',
            (self.group, self._no),
        )
        found: dict[int, Committed] = {}
        for no, position, progress in committed:
            if not isinstance(position, int):
                topic, partition = taken.get(no, ("?", 0))
                raise Mismatch(
                    f"{self._database.path}: {topic}/{partition}: in streams_places the group "
                    f"{self.group!r} is at {position!r:.50}, which is no offset: set it by "
                    f"`streams reset {self.group} {topic} --to PLACE`"
                )
            found[no] = Committed(position, bytes.fromhex(progress).decode("ascii", "replace"))
        # A place beyond its log's end is told to the member, and taken back here: what is
        # committed from now on is not to be taken for something older.
        connection.execute(_TAKE_BACK, (self.group, self._no))
        until = self._terms.valid_until(sent)
        return {
            Assignment(topic, partition, wanted[topic, partition], found.get(no), until): no
            for no, (topic, partition) in taken.items()
        }

    # -- afterwards

    def _confirm(self, mine: Mapping[int, int], sent: float) -> None:
        until = self._terms.valid_until(sent)
        for assignment, no in list(self.numbers.items()):
            if mine.get(no) == assignment.epoch and assignment not in self._given_up:
                assignment.valid_until = until

    def _drop(self, assignments: Iterable[Assignment]) -> None:
        for assignment in list(assignments):
            assignment.valid_until = NEVER_VALID
            self.numbers.pop(assignment, None)
            self._versions.pop(assignment, None)
            self._given_up.discard(assignment)

    def _tell(self) -> None:
        self._database.shared.notify([group_key(self.group)])


# Never backwards: a reset raises the epoch, so it is never undone by this either.
_STORE = """
UPDATE streams_places SET
    progress = CASE WHEN position > ?1 THEN progress ELSE ?2 END,
    position = max(coalesce(position, ?1), ?1)
WHERE "group" = ?3 AND no = ?4 AND owner = ?5 AND epoch = ?6
"""


_TAKE_BACK = """
UPDATE streams_places SET position = 0, progress = '' WHERE "group" = ?1 AND owner = ?2
    AND position > (SELECT next FROM streams_partitions AS p WHERE p.no = streams_places.no)
"""


def bump(connection: Connection, group: str) -> None:
    """Have a group's members plan again."""
    connection.execute(
        "UPDATE streams_groups SET generation = generation + 1 WHERE name = ?", (group,)
    )


def _delete(connection: Connection, group: str, no: int) -> None:
    connection.execute("DELETE FROM streams_members WHERE no = ?", (no,))
    connection.execute(
        'UPDATE streams_places SET owner = NULL WHERE "group" = ? AND owner = ?', (group, no)
    )
    bump(connection, group)


def _partitions(connection: Connection, topics: set[str]) -> dict[str, list[int]]:
    """The partition numbers of each topic."""
    rows = connection.rows(
        "SELECT topic, json_group_array(no ORDER BY partition) FROM streams_partitions"
        " WHERE topic IN (SELECT value FROM json_each(?)) GROUP BY topic",
        (json.dumps(sorted(topics)),),
    )
    return {topic: json.loads(numbers) for topic, numbers in rows}
