"""Assigns partitions to members: even assignment and lease rules, for the logs that have no group
coordinator of their own (memory, sqlite, redis). Pure: no I/O, no clock, no randomness.

Promises
--------
* **even**: where members subscribe to the same topics, their numbers of partitions differ by at
  most one, over all topics together *and* within each topic (a topic without traffic must not be
  balanced against a busy one). Where subscriptions differ, no move can bring two members' loads
  closer together.
* **sticky**: an owner keeps its partitions as far as that evenness allows.
* **deterministic**: the same input gives the same answer in every member, on every machine, so no
  leader has to be elected.
* **one owner**: under clocks that run at the same rate, no two members hold a partition at once;
  what any clock *shows* does not matter.

Theory of operation
-------------------
The log keeps two small tables for each group: *members* (ID, topics, expiry) and *leases*
(partition, owner, epoch, expiry). At every heartbeat, in one atomic step of its log, every member
extends its own member row and leases, reads both tables, calls :func:`plan`, and does what the plan
says about *itself*:

* ``release``: another live member should have the partition. Drain, commit, then release the lease;
  the other member waits. Leases are renewed while their partitions drain.
* ``acquire``: this member should have the partition, which is free or whose lease has expired.
  Write the lease with the given epoch, on condition that the stored epoch is still one less; the
  loser of this race simply plans again.
* ``renew``: this member has the partition and keeps it.

Expiry of a lease or a member's row is never decided by a clock that can be set: a stored time would
be compared with a clock that may have been stepped since, so leases would be held for ever or taken
too early. Either the clock cannot be set (the monotonic clock that the processes of one machine
share), or the observer measures (:class:`StalenessTracker`): a row that was unchanged for its
lease's length, on the observer's own monotonic clock, has expired, as its owner would have changed
it by confirming it. Then it is taken by compare-and-set.

No partition is ever taken from a live owner, so a rebalance is cooperative: a partition that does
not move is never interrupted (KIP-429 does the same for Kafka's classic protocol). As every step
brings ownership nearer to the same target, members that act in any order and on old snapshots
converge.

A lease ends by release or by expiry only: a member whose row is gone but whose lease has not
expired may still be running a handler. The *owner* is stricter than the table: it trusts its lease
only until ``time before the request was sent + lease - margin`` (:meth:`LeaseTerms.valid_until`),
on its own monotonic clock, so it stops before another member may start, however long the answer
took (Gray and Cheriton, "Leases", SOSP 1989). And as a frozen process can wake up at any later
time, taking a lease raises its *epoch* by one, and a commit names owner and epoch: an older one is
refused. An owner that comes back to find its expired lease untouched is still the owner, under the
same epoch.

A *static* member has a name that outlives its process. A member that joins under that name is its
successor and inherits the predecessor's partitions at once: the leases count as its own, and it
acquires each of them again, under the next epoch (``held`` of :func:`plan` names those it has
acquired).

The assignment itself is a semi-matching of partitions to members, worked out in *numbers* of
partitions by member and topic: starting with the current owners, add the unowned partitions to the
least loaded members, then move one after the other along a shortest path from a member to one that
has at least two fewer; when no such path is left, no assignment is more even (Harvey, Ladner,
Lovász, Tamir, "Semi-matchings for bipartite graphs and load balancing", 2006). Exchanges between
two members then even out each topic without touching the totals. Last, the numbers become
partitions: each member keeps its own up to its number, and the surplus goes to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streams.log.protocol import TopicPartition


class Member(NamedTuple):
    """A member as its log stores it. ``expires`` is on the log's own time line, in seconds."""

    id: str
    topics: Collection[str]
    expires: float


class Lease(NamedTuple):
    """A partition's lease as its log stores it: ``owner`` is a member's ID, or empty when it was
    released. The epoch outlives release, and is never used twice."""

    owner: str
    epoch: int
    expires: float


MAX_LEASE = 3600.0
"""The longest lease, in seconds. A greater stored length is damage: for such a row the observer
waits only as long as its own lease lasts."""

INFINITY = float("inf")

UNOWNED = Lease("", 0, -INFINITY)
"""The lease of a partition that was never owned."""


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """How long ownership lasts without being confirmed, in seconds."""

    lease: float = 10.0

    @property
    def heartbeat_interval(self) -> float:
        """Seconds between heartbeats: two of three may fail before a lease is lost."""
        return self.lease / 3

    @property
    def safety_margin(self) -> float:
        """How many seconds before its expiry in the table the owner itself gives up a lease: a
        margin for clocks of different rates, and for the time between a check and its effect."""
        return self.lease / 10

    def expiry(self, now: float) -> float:
        """The expiry to write, on the log's time line, when renewing or acquiring at ``now``."""
        return now + self.lease

    def valid_until(self, sent: float) -> float:
        """Until when the owner may act, on its own monotonic clock; ``sent`` is the time on that
        clock before the confirmed request was sent."""
        return sent + self.lease - self.safety_margin


DEFAULT_TERMS = LeaseTerms()


class _Seen(NamedTuple):
    """A version of a row, and the time at which it was first seen."""

    version: Hashable
    since: float
    lease: float


class StalenessTracker:
    """How long the rows of a log have been unchanged, on one observer's own monotonic clock.

    Call ``observe`` whenever the rows have been read, then ask for each row how much of its length
    is ``remaining``. If ``max_gap`` is given, only time in which the log answered is counted: at
    most this many seconds between two observations. While the log does not answer, no owner can
    confirm its lease either, so an outage, or a pause of the observer, must not make all others
    seem dead. The counted time never runs ahead of the clock, so nothing expires too early.

    :param max_gap: shorter than a lease by more than the time between two heartbeats, so that an
        owner can confirm its lease before another member takes over when the log answers again.
        None: all time counts, for rows whose owners stop by themselves when they cannot confirm.
    :param max_rows: the most rows that are remembered; the least recently requested one is
        forgotten, and counts as new when it is seen again.
    """

    def __init__(self, max_gap: float = INFINITY, max_rows: float = INFINITY) -> None:
        self._max_gap = max_gap
        self._max_rows = max_rows
        self._last_observed: float | None = None
        self._uncounted = 0.0
        """The part of the time up to the last observation that does not count."""
        self._seen: dict[Hashable, _Seen] = {}
        """The versions seen by row, the most recently requested last."""

    def observe(self, now: float) -> None:
        """Note that the rows have been read; ``now`` is the time *after* the answer."""
        if self._last_observed is not None:
            self._uncounted += max(0.0, now - self._last_observed - self._max_gap)
        self._last_observed = now

    def remaining(self, row: Hashable, version: Hashable, lease: float) -> float:
        """Seconds until this row counts as expired; 0: it does.

        :param row: the row's key.
        :param version: a value that changes whenever the owner confirms the row.
        :param lease: seconds for which the owner relies on the row after a confirmation.
        """
        seen = self._seen.pop(row, None)
        if seen is None or seen.version != version:
            seen = _Seen(version, self._counted_time, lease)
        self._seen[row] = seen
        if len(self._seen) > self._max_rows:
            del self._seen[next(iter(self._seen))]
        return self._remaining(seen)

    def expired(self, row: Hashable) -> Any:
        """The last seen version of a row, if it counts as expired; None: it does not."""
        seen = self._seen.get(row)
        return seen.version if seen is not None and not self._remaining(seen) else None

    def _remaining(self, seen: _Seen) -> float:
        return max(0.0, seen.lease - (self._counted_time - seen.since))

    @property
    def _counted_time(self) -> float:
        return (self._last_observed or 0.0) - self._uncounted

    def forget(self, row: Hashable) -> None:
        """Forget a row that no longer exists."""
        self._seen.pop(row, None)

    def keep_only(self, rows: Collection[Hashable]) -> None:
        """Forget all rows but these."""
        for row in [row for row in self._seen if row not in rows]:
            del self._seen[row]


def lease_length(seconds: float | None, own_lease: float) -> float:
    """How long to wait for a row whose owner has stored this length.

    :param own_lease: the observer's own lease, in place of an invalid length.
    """
    return seconds if seconds is not None and 0 < seconds <= MAX_LEASE else own_lease


@dataclass(frozen=True, slots=True)
class Plan:
    """One member's next step for each partition that it has or should have."""

    release: tuple[TopicPartition, ...] = ()
    """Own partitions that move to others: drain, commit, then release, and renew until then. (An
    inherited one needs no draining.)"""
    acquire: Mapping[TopicPartition, int] = field(default_factory=dict)
    """Partitions to acquire now, with the epoch to write, if the stored one is still one less."""
    renew: tuple[TopicPartition, ...] = ()
    """Own partitions that stay."""
    replan_at: float = INFINITY
    """When a new plan may be needed without any write to the tables, as a foreign lease or member
    row expires. On the log's time line."""


def plan(
    member_id: str,
    now: float,
    members: Iterable[Member],
    partitions: Mapping[str, int],
    leases: Mapping[TopicPartition, Lease],
    held: Collection[TopicPartition] | None = None,
) -> Plan:
    """The plan of member ``member_id``, from one consistent snapshot taken at ``now``.

    :param members: all rows of the group, ``member_id`` among them (which counts as alive whatever
        its expiry, as it is the caller).
    :param partitions: how many partitions each topic has; at least the topics of ``members``.
    :param leases: the leases of the group; a partition that is absent was never owned.
    :param held: the leases in the name of ``member_id`` that this member has acquired itself; None:
        all. The others were acquired by a predecessor of the same name, or by a request whose
        answer was lost. They count as its own and are acquired again, under the next epoch.
    """
    all_members = list(members)
    alive = {row.id: row.topics for row in all_members if row.expires > now or row.id == member_id}
    owners = {
        partition: lease.owner
        for partition, lease in leases.items()
        if lease.owner == member_id or (lease.owner in alive and lease.expires > now)
    }
    targets = target_owners(alive, partitions, owners)

    release: list[TopicPartition] = []
    renew: list[TopicPartition] = []
    acquire: dict[TopicPartition, int] = {}
    others = (row.expires for row in all_members if row.id in alive and row.id != member_id)
    replan_at = min(others, default=INFINITY)
    for partition, owner in owners.items():
        if owner != member_id:
            continue
        if targets.get(partition) != member_id:
            release.append(partition)
        elif held is None or partition in held:
            renew.append(partition)
        else:
            acquire[partition] = leases[partition].epoch + 1
    for partition, owner in targets.items():
        lease = leases.get(partition, UNOWNED)
        if owner != member_id or lease.owner == member_id:
            continue
        if not lease.owner or lease.expires <= now:
            acquire[partition] = lease.epoch + 1
        else:
            replan_at = min(replan_at, lease.expires)
    return Plan(tuple(sorted(release)), acquire, tuple(sorted(renew)), replan_at)


def target_owners(
    members: Mapping[str, Collection[str]],
    partitions: Mapping[str, int],
    owners: Mapping[TopicPartition, str],
) -> dict[TopicPartition, str]:
    """Which member should own each partition.

    :param members: the living members' IDs, and the topics each one subscribes to.
    :param partitions: how many partitions each topic has.
    :param owners: the current owners; a partition that is absent has none.
    :returns: an owner for every partition that some member subscribes to.
    """
    balancer = _Balancer(members, partitions, owners)
    while path := balancer.shortest_path():
        for giver, taker in path:
            balancer.transfer(giver, taker, balancer.most_uneven_topic(giver, taker))
    while exchange := balancer.find_exchange():
        balancer.transfer(exchange.giver, exchange.taker, exchange.topic_given)
        balancer.transfer(exchange.taker, exchange.giver, exchange.topic_returned)
    return balancer.to_owners()


class _Exchange(NamedTuple):
    """One member hands over a partition of one topic, and gets one of another topic back."""

    giver: str
    taker: str
    topic_given: str
    topic_returned: str


class _Balancer:
    """Evens out the numbers of partitions by member and topic.

    All iteration is in sorted order, which makes the result deterministic.
    """

    def __init__(
        self,
        members: Mapping[str, Collection[str]],
        partitions: Mapping[str, int],
        owners: Mapping[TopicPartition, str],
    ) -> None:
        self.counts: dict[str, dict[str, int]] = {
            member: {topic: 0 for topic in sorted(topics) if topic in partitions}
            for member, topics in sorted(members.items())
        }
        self.subscribers = {
            topic: [member for member, topics in self.counts.items() if topic in topics]
            for topic in sorted(partitions)
        }
        self.load = dict.fromkeys(self.counts, 0)
        self.owned: dict[tuple[str, str], list[int]] = {}
        self.unowned: dict[str, list[int]] = {}
        for topic, readers in self.subscribers.items():
            for partition in range(partitions[topic]):
                owner = owners.get((topic, partition))
                if owner is not None and topic in self.counts.get(owner, ()):
                    self.owned.setdefault((owner, topic), []).append(partition)
                    self.change_count(owner, topic, 1)
                elif readers:
                    self.unowned.setdefault(topic, []).append(partition)
        for topic, without in self.unowned.items():
            for _ in without:
                self.change_count(min(self.subscribers[topic], key=self.load_key(topic)), topic, 1)

    def change_count(self, member: str, topic: str, count: int) -> None:
        self.counts[member][topic] += count
        self.load[member] += count

    def load_key(self, topic: str) -> Callable[[str], tuple[int, int, str]]:
        return lambda member: (self.load[member], self.counts[member][topic], member)

    def to_owners(self) -> dict[TopicPartition, str]:
        """Turn the numbers into partitions, with as few moves as possible."""
        owners: dict[TopicPartition, str] = {}
        for topic, readers in self.subscribers.items():
            surplus = list(self.unowned.get(topic, ()))
            for member in readers:
                partitions = self.owned.get((member, topic), [])
                count = self.counts[member][topic]
                surplus += partitions[count:]
                owners.update(dict.fromkeys(((topic, p) for p in partitions[:count]), member))
            surplus.sort(reverse=True)
            for member in readers:
                missing = self.counts[member][topic] - len(self.owned.get((member, topic), ()))
                for _ in range(missing):
                    owners[topic, surplus.pop()] = member
        return owners

    # -- evening out

    def transfer(self, giver: str, taker: str, topic: str) -> None:
        self.change_count(giver, topic, -1)
        self.change_count(taker, topic, 1)

    def transferable(self, giver: str, taker: str) -> Iterator[tuple[int, str]]:
        """The topics the giver could hand over, with how many more of each it has."""
        for topic, count in self.counts[giver].items():
            if count and topic in self.counts[taker]:
                yield count - self.counts[taker][topic], topic

    def most_uneven_topic(self, giver: str, taker: str) -> str:
        """The topic in which two members differ most."""
        _, topic = max(self.transferable(giver, taker))
        return topic

    def shortest_path(self) -> list[tuple[str, str]]:
        """A shortest chain of moves from a member to one with at least two fewer, last move first,
        so that each member gives a partition that it has now; empty if there is none."""
        by_load = sorted(self.load, key=lambda m: (self.load[m], m))
        for source in reversed(by_load):
            goal_load = self.load[source] - 2
            if self.load[by_load[0]] > goal_load:
                break
            predecessors = {source: source}
            frontier = [source]
            for member in frontier:
                for other in by_load:
                    if other in predecessors or not any(
                        True for _ in self.transferable(member, other)
                    ):
                        continue
                    predecessors[other] = member
                    frontier.append(other)
                    if self.load[other] <= goal_load:
                        return list(_trace_path(predecessors, other))
        return []

    def find_exchange(self) -> _Exchange | None:
        """An exchange that evens out the topic given and does not harm the topic returned."""
        for topic, readers in self.subscribers.items():
            count = {member: self.counts[member][topic] for member in readers}
            ordered = sorted(readers, key=lambda m: (count[m], m))
            for giver in reversed(ordered):
                for taker in ordered:
                    if count[giver] - count[taker] < 2:
                        break
                    surplus, topic_returned = max(self.transferable(taker, giver), default=(0, ""))
                    if surplus >= 1:
                        return _Exchange(giver, taker, topic, topic_returned)
        return None


def _trace_path(predecessors: Mapping[str, str], end: str) -> Iterator[tuple[str, str]]:
    while predecessors[end] != end:
        yield predecessors[end], end
        end = predecessors[end]
