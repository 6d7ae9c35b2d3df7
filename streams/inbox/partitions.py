"""The partitions that a processor owns, as its inbox knows them.

A partition is *assigned* by the poller. It is *learned*, by asking the log, when its first message
is handled. It is *begun* once its mark and rows in the database were checked against the log; only
then are its messages handled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from streams.connection import Connection
from streams.databases.locking import IDLE_WITH_LOCK, bound_waits
from streams.databases.protocol import Busy, DialectName, Steps
from streams.errors import ConfigError, Fatal, LogError
from streams.health import InboxStats
from streams.inbox.identity import Identities, OwnedPartition
from streams.inbox.marks import RecordedPositions, begin_partition
from streams.inbox.recording import Timeouts
from streams.log.protocol import Assignment
from streams.message import Message
from streams.processing.outcomes import OwnershipLost, TransactionPostponed
from streams.text import get_logger

logger = get_logger("streams.inbox")

DEFAULT_LEASE = 10.0
"""Seconds of a lease where no partition moves to other members, as in a replay."""

BEGIN_LOCK = 5.0
"""The most seconds that the transaction which begins a partition waits for a lock."""


class Partitions:
    """The partitions of one processor. For any thread.

    :param processor_name: the processor's name, for the log.
    :param handler_timeout: seconds that a handler may take; 0: any.
    """

    def __init__(
        self,
        connection: Connection,
        identities: Identities,
        stats: InboxStats,
        processor_name: str,
        handler_timeout: float,
    ) -> None:
        self._connection = connection
        self._identities = identities
        self._stats = stats
        self._processor_name = processor_name
        self._handler_timeout = handler_timeout
        self._timeouts = self._timeouts_of(DEFAULT_LEASE)
        self._assigned: list[Assignment] = []
        self._to_begin: dict[Assignment, OwnedPartition] = {}
        """The partitions that are learned and not yet begun."""
        self.begun: set[Assignment] = set()
        """The partitions whose messages may be handled. The set is replaced and never changed, so
        any thread may read it."""

    def forget(self) -> None:
        """Forget the partitions of the run that has ended."""
        self._assigned = []
        self.begun, self._to_begin = set(), {}

    @property
    def timeouts(self) -> Timeouts:
        """How long a transaction of a handler waits for locks and between its statements."""
        return self._timeouts

    def _timeouts_of(self, lease: float) -> Timeouts:
        return Timeouts(lock=lease, idle=max(lease, self._handler_timeout))

    # -- assigned

    def assign(self, assignments: Sequence[Assignment]) -> None:
        """Note the assigned partitions: their rows are purged, whether new messages come or not. In
        the thread that polls."""
        self._assigned = [*self.owned(), *assignments]

    def owned(self) -> list[Assignment]:
        """The assigned partitions that were not given up since."""
        return [each for each in self._assigned if each.valid_until > -math.inf]

    def is_owned(self, assignment: Assignment) -> bool:
        """Whether no other member can own this partition yet."""
        return self._connection.clock.monotonic() < assignment.valid_until

    def check_owned(self, message: Message[Any]) -> None:
        """:raises OwnershipLost: the message's partition may be another member's by now."""
        if self._connection.clock.monotonic() >= message.assignment.valid_until:
            raise OwnershipLost(f"{message.position}: this member may no longer own its partition")

    # -- learned

    def learn(self, message: Message[Any]) -> OwnedPartition:
        """Learn the partition of a message; asks the log, and blocks.

        :raises TransactionPostponed: the log does not answer now.
        """
        assignment = message.assignment
        if assignment is None:
            raise ConfigError("transaction= needs a partition that is owned")
        try:
            found = self._identities.look_up(assignment)
        except Fatal:
            raise
        except LogError as error:
            raise TransactionPostponed(
                f"the log does not say which topic it is: {error}"
            ) from error
        self._timeouts = self._timeouts_of(assignment.lease or DEFAULT_LEASE)
        if assignment not in self.begun:
            # Before its messages have entries: a handler that finds one must find this, too.
            self._to_begin[assignment] = found
        self._identities.learn(found)
        return found

    @property
    def all_begun(self) -> bool:
        """Whether each partition that is learned is begun."""
        return not self._to_begin

    def not_begun(self) -> list[OwnedPartition]:
        """The partitions that are learned, not begun, and certainly still owned."""
        for assignment in list(self._to_begin):
            if assignment in self.begun or assignment.valid_until == -math.inf:
                self._to_begin.pop(assignment, None)
        return [each for each in list(self._to_begin.values()) if self.is_owned(each.assignment)]

    def check_begun(self, message: Message[Any]) -> None:
        """:raises Busy: the message's partition could not be begun, as it is not certainly
        owned."""
        if message.assignment in self._to_begin:
            raise Busy(f"{message.position}: it is not certain which member owns its partition")

    # -- begun

    def begin(self, owned: OwnedPartition, dialect: DialectName) -> Steps[RecordedPositions]:
        """The statements that begin a partition; :meth:`set_begun` once they are committed.

        :raises OwnershipLost: the partition may be another member's by now, so the facts learned
            of it are outdated: nothing may be committed.
        """
        assignment, committed = owned.assignment, owned.assignment.committed
        yield from bound_waits(dialect, lock=BEGIN_LOCK, idle=IDLE_WITH_LOCK)
        found = yield from begin_partition(
            dialect,
            owned.scope,
            owned.number,
            start=assignment.position,
            settled=assignment.position if committed is None else committed.position,
            end=assignment.log_end,
        )
        # After the last statement: a process that is frozen from here on holds the locks of the
        # rows it changed.
        if not self.is_owned(assignment):
            raise OwnershipLost(f"{owned.scope.topic}/{owned.scope.partition}: not owned now")
        return found

    def set_begun(self, owned: OwnedPartition, recorded: RecordedPositions) -> None:
        """Note that a partition was begun; log an error if its mark and rows do not match the
        log."""
        assignment = owned.assignment
        still_owned = {each for each in self.begun if each.valid_until > -math.inf}
        self.begun = {*still_owned, assignment}
        self._to_begin.pop(assignment, None)
        show, end = self._connection.log.format_offset, assignment.log_end
        topic, partition = assignment.topic_partition
        if end is not None and recorded.end > end:
            self._stats.losses += 1
            logger.error(
                "%s: %s/%d ended at %s when it was assigned, but its database knows messages up to "
                "%s: the log was restored from an older copy, or has lost its end; messages at "
                "those offsets are handled unless their IDs are known",
                self._processor_name, topic, partition, show(end), show(recorded.end),
            )  # fmt: skip
        elif assignment.position < recorded.mark:
            self._stats.losses += 1
            logger.error(
                "%s: the group continues in %s/%d at %s, although everything below %s was settled "
                "and purged: the log was restored from an older copy, or another tool has moved "
                "the group; messages below count as handled, unless streams reset moves it",
                self._processor_name, topic, partition,
                show(assignment.position), show(recorded.mark),
            )  # fmt: skip
