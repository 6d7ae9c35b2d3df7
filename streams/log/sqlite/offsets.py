"""Commits a member's offsets: only of partitions it owns, under its epoch, and never backwards.

The statement that writes names the owner and its epoch, so an owner that others took for dead can
commit nothing when it comes back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from streams.errors import Fenced
from streams.log.protocol import Assignment, Commit
from streams.log.sqlite.database import Database, SqliteConnection

# Never backwards. (Nor can a commit undo a reset, which raises the epoch.)
_STORE_OFFSET = """
UPDATE streams_places SET
    progress = CASE WHEN position > ?1 THEN progress ELSE ?2 END,
    position = max(coalesce(position, ?1), ?1)
WHERE "group" = ?3 AND no = ?4 AND owner = ?5 AND epoch = ?6
"""


_FIND_OWNED = """
SELECT json_group_array(json_array(no, epoch)) FROM streams_places
WHERE "group" = ? AND owner = ? AND no IN (SELECT value FROM json_each(?))
"""


class OffsetCommits:
    """The commits of one member (any thread).

    :param numbers: the assignments that the member owns, with each partition's number; kept by
        :class:`~streams.log.sqlite.membership.Membership`.
    """

    def __init__(self, database: Database, group: str, numbers: Mapping[Assignment, int]) -> None:
        self._database = database
        self._group = group
        self._partition_numbers = numbers
        self.member_number = 0
        """The number of the member's row."""
        self._versions: dict[Assignment, int] = {}
        """The version of each assignment's last commit."""
        self.was_refused = False
        """Whether a commit was refused, as a partition was lost since the last heartbeat."""

    def forget(self, assignment: Assignment) -> None:
        """Forget an assignment that the member no longer owns."""
        self._versions.pop(assignment, None)

    def commit(
        self, commits: Iterable[Commit], *, sync: bool = True, timeout: float | None = None
    ) -> None:
        """Store the positions of the owned assignments; others are left out.

        :param sync: see :meth:`Database.write`.
        :param timeout: seconds to wait while others write, instead of the URL's.
        """
        written: list[Commit] = []
        with self._database.write(
            timeout, on_committed=lambda: self.mark_committed(written), sync=sync
        ) as db:
            for commit in commits:
                try:
                    if self.store_offset(db, commit):
                        written.append(commit)
                except Fenced:
                    continue

    def store_offset(self, db: SqliteConnection, commit: Commit) -> bool:
        """Write one position within a transaction; False if a newer one is stored already.

        :raises Fenced: this member does not own the partition any more.
        """
        assignment = commit.assignment
        partition_number = self._partition_numbers.get(assignment)
        if partition_number is not None:
            if commit.version < self._versions.get(assignment, -1):
                return False
            db.execute(
                _STORE_OFFSET,
                (
                    *(commit.position, commit.progress),
                    *(self._group, partition_number, self.member_number, assignment.epoch),
                ),
            )
            if db.changes():
                return True
        raise self._lost(assignment)

    def find_lost(
        self, db: SqliteConnection, assignments: Iterable[Assignment]
    ) -> dict[Assignment, Fenced]:
        """The assignments among these that the member no longer owns, within a transaction."""
        numbers = {each: self._partition_numbers.get(each) for each in assignments}
        wanted = json.dumps([each for each in numbers.values() if each is not None])
        owned = {
            (number, epoch)
            for number, epoch in db.fetch_json(
                _FIND_OWNED, (self._group, self.member_number, wanted)
            )
        }
        return {
            assignment: self._lost(assignment)
            for assignment, number in numbers.items()
            if (number, assignment.epoch) not in owned
        }

    def _lost(self, assignment: Assignment) -> Fenced:
        """Note that an assignment was lost; returns the error that says so."""
        self.was_refused = True
        assignment.valid_until = float("-inf")
        return Fenced(
            f"{assignment.topic}/{assignment.partition}: group {self._group!r} has assigned it to "
            "another member; nothing was stored"
        )

    def mark_committed(self, commits: Iterable[Commit]) -> None:
        """Note that these commits are in the file. Must be called before another thread may
        write."""
        for commit in commits:
            if commit.assignment in self._partition_numbers:
                self._versions[commit.assignment] = commit.version
