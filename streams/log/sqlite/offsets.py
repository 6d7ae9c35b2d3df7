"""Committing a member's offsets: only what it owns, under its epoch, and never backwards.

A commit names the owner and its epoch in the very statement that writes, so an owner that was
thought gone can commit nothing when it comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streams.errors import Fenced
from streams.log.protocol import Assignment, Commit
from streams.log.sqlite.database import Database, SqliteConnection

# Never backwards: a reset raises the epoch, so it is never undone by this either.
_STORE_OFFSET = """
UPDATE streams_places SET
    progress = CASE WHEN position > ?1 THEN progress ELSE ?2 END,
    position = max(coalesce(position, ?1), ?1)
WHERE "group" = ?3 AND no = ?4 AND owner = ?5 AND epoch = ?6
"""


class OffsetCommits:
    """The commits of one member (any thread).

    :param partition_numbers: what the member owns, with each partition's number; kept by
        :class:`~streams.log.sqlite.membership.Membership`.
    """

    def __init__(
        self, database: Database, group: str, partition_numbers: Mapping[Assignment, int]
    ) -> None:
        self._database = database
        self._group = group
        self._partition_numbers = partition_numbers
        self.member_number = 0
        """The number of the member's row."""
        self._versions: dict[Assignment, int] = {}
        """Of the last commit of each."""
        self.was_refused = False
        """A commit was refused, so something has been lost that the last heartbeat did not know
        of."""

    def add_assignments(self, assignments: Iterable[Assignment]) -> None:
        """These may be committed from now on."""
        self._versions.update(dict.fromkeys(assignments, -1))

    def remove_assignment(self, assignment: Assignment) -> None:
        """This one may not be any more."""
        self._versions.pop(assignment, None)

    def commit(
        self, commits: Iterable[Commit], *, sync: bool = True, timeout: float | None = None
    ) -> None:
        """Store the places of what is owned; what is not is left out.

        :param sync: as :meth:`Database.write` says.
        :param timeout: seconds to wait while others write, instead of the URL's.
        """
        written: list[Commit] = []
        with self._database.write(
            timeout, on_committed=lambda: self.mark_committed(written), sync=sync
        ) as connection:
            for commit in commits:
                try:
                    if self.store_offset(connection, commit):
                        written.append(commit)
                except Fenced:
                    continue

    def store_offset(self, connection: SqliteConnection, commit: Commit) -> bool:
        """Write one place within a transaction; False if a newer one is there already.

        :raises Fenced: this member does not own the partition any more.
        """
        assignment = commit.assignment
        partition_number = self._partition_numbers.get(assignment)
        if partition_number is not None:
            if commit.version < self._versions.get(assignment, -1):
                return False
            connection.execute(
                _STORE_OFFSET,
                (
                    *(commit.position, commit.progress),
                    *(self._group, partition_number, self.member_number, assignment.epoch),
                ),
            )
            if connection.changes():
                return True
        self.was_refused = True
        assignment.valid_until = float("-inf")
        raise Fenced(
            f"{assignment.topic}/{assignment.partition}: group {self._group!r} has given it to "
            "another member; nothing was committed"
        )

    def mark_committed(self, commits: Iterable[Commit]) -> None:
        """These are in the file now. To be called before anybody else may write."""
        for commit in commits:
            if commit.assignment in self._versions:
                self._versions[commit.assignment] = commit.version
