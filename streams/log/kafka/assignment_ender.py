"""Ends the assignments of a member: the group revokes them, they are lost, or they start anew.

The driver's callbacks run inside ``consume`` and ``close``, so nothing is raised in here: an error
of the listener ends the member at its next poll.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from confluent_kafka import TopicPartition as KTopicPartition

from streams.log.kafka.assignment import topic_partitions_of
from streams.log.kafka.consumer import GroupConsumer
from streams.log.kafka.member_errors import MemberErrors
from streams.log.protocol import Assignment, RebalanceListener, TopicPartition
from streams.text import get_logger

logger = get_logger("streams.kafka")


class AssignmentEnder:
    """Tells the listener which assignments end, and stops fetching them. Used by the thread that
    polls."""

    def __init__(
        self,
        consumer: GroupConsumer,
        listener: RebalanceListener,
        errors: MemberErrors,
        group: str,
    ) -> None:
        self._consumer = consumer
        self._listener = listener
        self._errors = errors
        self._group = group
        self._is_revoking = False

    @property
    def is_revoking(self) -> bool:
        """Whether the listener is being told of partitions that are taken away."""
        return self._is_revoking

    # -- what the group decides

    def revoke(self, partitions: Iterable[KTopicPartition]) -> None:
        """In a rebalance: give partitions up, once the listener has committed."""
        self._give_up(topic_partitions_of(partitions), self._listener.revoked)

    def expel(self, partitions: Collection[KTopicPartition]) -> None:
        """Give up partitions that belong to other members already, as the group has expelled this
        one."""
        logger.warning(
            "group %s: this member was expelled from the group; %d partitions lost",
            self._group,
            len(partitions),
        )
        keys = topic_partitions_of(partitions)
        self._consumer.commits.membership_lost()
        self._consumer.partitions.invalidate(keys)
        self._give_up(keys, self._listener.lost)

    def _give_up(
        self, keys: Sequence[TopicPartition], notify: Callable[[Sequence[Assignment]], None]
    ) -> None:
        partitions = self._consumer.partitions
        partitions.pending.remove(keys)
        ended = partitions.owned_among(keys)
        self._tell_leaving(notify, ended)
        self._consumer.remove_owned(ended)
        self._consumer.stop_fetching(keys, rebalance=True)

    # -- what this member decides

    def lose(self, assignments: Sequence[Assignment]) -> None:
        """End assignments under which nothing can be committed any more."""
        self._consumer.remove_owned(assignments)
        self._notify(self._listener.lost, assignments)

    def lose_all(self) -> None:
        """:meth:`lose` all owned assignments."""
        self.lose(self._consumer.partitions.owned_assignments())

    def restart(self, assignments: Sequence[Assignment]) -> None:
        """End assignments and start their partitions anew: nothing of them is fetched until the
        listener was told of new assignments."""
        keys = [each.topic_partition for each in assignments]
        self._consumer.remove_owned(assignments)
        self._consumer.stop_fetching(keys)
        self._consumer.partitions.pending.add(keys)

    def close(self) -> None:
        """Give up all owned assignments, as the member leaves the group."""
        partitions = self._consumer.partitions
        ended = partitions.owned_assignments()
        self._tell_leaving(self._listener.revoked, ended)
        self._consumer.remove_owned(ended)
        partitions.pending.clear()

    def _tell_leaving(
        self, notify: Callable[[Sequence[Assignment]], None], ended: Sequence[Assignment]
    ) -> None:
        self._is_revoking = True
        self._notify(notify, ended)
        self._is_revoking = False

    def _notify(
        self, notify: Callable[[Sequence[Assignment]], None], ended: Sequence[Assignment]
    ) -> None:
        try:
            if ended:
                notify(ended)
        except BaseException as error:
            self._errors.fail(error)
