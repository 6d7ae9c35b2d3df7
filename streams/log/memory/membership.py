"""A group on the memory log."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from threading import Condition
from typing import NamedTuple, Protocol

from streams.log.membership import DEFAULT_TERMS, INFINITY, Lease, Member, Plan, plan
from streams.log.protocol import TRIM_MARGIN, Committed, TopicPartition


class HeldLease(NamedTuple):
    """The holder of a partition's lease, or the last one."""

    owner: str
    """Empty when the lease was released."""
    epoch: int


class GroupMember(Protocol):
    """A subscription, as its group sees it."""

    id: str
    topics: tuple[str, ...]
    expires: float
    is_polling: bool
    is_killed: bool
    group_changed: Condition

    def invalidate_lost(self) -> None:
        """Invalidate the assignments whose leases the member has lost (lock held)."""
        ...

    def fence(self) -> None:
        """Note that another member has joined under its name (lock held)."""
        ...


class Group:
    """A group: its positions, its members, and the holder of each lease.

    A member renews all its leases together, so the expiry is the member's. A member that is
    *inside* a wait or a callback of its own poll is alive by definition, and its lease does not
    expire; so no thread is needed for heartbeats.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.positions: dict[TopicPartition, Committed] = {}
        self.members: dict[str, GroupMember] = {}
        self.leases: dict[TopicPartition, HeldLease] = {}
        self.trim_margins: dict[str, int] = {}
        self.revision = 0
        """Changes whenever every member must plan again."""

    def require_new_plan(self) -> None:
        """Make every member plan again, as members or leases have changed (other than by time)."""
        self.revision += 1
        for member in self.members.values():
            member.group_changed.notify_all()

    def renew_polling(self, now: float) -> None:
        """Renew the members that are inside poll; forget the killed ones whose leases have
        expired."""
        for member in list(self.members.values()):
            if member.is_polling:
                member.expires = DEFAULT_TERMS.expiry(now)
            elif member.is_killed and member.expires <= now:
                del self.members[member.id]

    def join(self, member: GroupMember) -> None:
        """Add a member; a static one takes over the leases of the previous member of its name."""
        predecessor = self.members.pop(member.id, None)
        self.members[member.id] = member
        if predecessor is not None:
            for partition in self.held_by(member.id):
                self.leases[partition] = HeldLease(member.id, self.leases[partition].epoch + 1)
            predecessor.fence()
        self.require_new_plan()

    def live_members(self, now: float) -> Iterator[GroupMember]:
        """Members whose leases have not run out."""
        self.renew_polling(now)
        return (member for member in self.members.values() if member.expires > now)

    def plan(
        self,
        member_id: str,
        now: float,
        partitions: Mapping[str, int],
        held: Collection[TopicPartition],
    ) -> Plan:
        """The member's plan; ``held`` are the leases that it has taken itself."""
        self.renew_polling(now)
        rows = [Member(m.id, m.topics, m.expires) for m in self.members.values()]
        leases = {
            partition: Lease(owner, epoch, self.members[owner].expires)
            if owner in self.members
            else Lease("", epoch, -INFINITY)
            for partition, (owner, epoch) in self.leases.items()
        }
        return plan(member_id, now, rows, partitions, leases, held)

    def held_by(self, member: str) -> list[TopicPartition]:
        """The partitions whose lease a member holds."""
        return [partition for partition, (owner, _) in self.leases.items() if owner == member]

    def release_leases(self, partitions: Iterable[TopicPartition]) -> None:
        """Release leases, whoever holds them; their epochs stay."""
        for partition in partitions:
            if partition in self.leases:
                self.leases[partition] = HeldLease("", self.leases[partition].epoch)
        for member in self.members.values():
            member.invalidate_lost()
        self.require_new_plan()

    def needed_from(self, topic: str, partition: int) -> int:
        """The first position that this group still needs, its dedup window included."""
        committed = self.positions.get((topic, partition))
        return committed.position - self.trim_margins.get(topic, TRIM_MARGIN) if committed else 0

    def needs_topic(self, topic: str) -> bool:
        """Whether messages of this topic are kept for this group."""
        return any(partition[0] == topic for partition in self.positions) or any(
            topic in member.topics for member in self.members.values()
        )
