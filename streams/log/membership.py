"""Who owns which partition: even assignment and lease rules, for the logs that have no group
coordinator of their own (memory, sqlite, redis). Pure: no I/O, no clock, no randomness.

Promises
--------
* **even**: where members subscribe to the same topics, what they own differs by at most one
  partition, over all topics together *and* within each topic (a topic without traffic must not
  count as a busy one's counterweight). Where subscriptions differ, no move can bring two members'
  loads closer together.
* **sticky**: who owns a partition keeps it as far as that evenness allows.
* **deterministic**: the same input gives the same answer in every member, on every machine, so
  nobody has to be elected leader.
* **one owner**: under clocks that run at the same rate, no two members hold a partition at once;
  what any clock *shows* does not matter.

Theory of operation
-------------------
The log keeps two small tables a group: *members* (ID, topics, expiry) and *leases* (partition,
owner, epoch, expiry). Every member, at every heartbeat, in one atomic step of its log: extends its
own member row and its own leases, reads both tables, calls :func:`plan`, and does what the plan
says about *itself*:

* ``release``: a live member should have it instead. Drain, commit, then set the lease free; the
  other one waits. Leases are renewed while their partition drains.
* ``acquire``: it should be mine and is free, or its lease has expired. Write the lease with the
  given epoch, under the condition that the stored epoch is still the one before; who loses this
  race simply plans again.
* ``renew``: mine, and stays mine.

Whether a lease or a member's row has expired is never read from a clock that somebody can set: a
stored time would be compared with a clock that may have been stepped since, so that leases would
be held for ever or taken too early. Either the time line is one that nobody can set (the monotonic
clock that the processes of one machine share), or the observer finds it out by itself
(:class:`Watch`): a row that stood unchanged for its whole length, on the observer's own monotonic
clock, is over, as its owner would have changed it by confirming it. Then it is taken by
compare-and-set.

Nobody ever takes from a living owner, so a rebalance is cooperative: what does not move is never
interrupted (KIP-429 does the same for Kafka's classic protocol). As every step brings ownership
nearer to one and the same target, members that act in any order and on old snapshots converge.

A lease ends by release or by expiry, by nothing else: a member whose row is gone but whose lease
is not over may still be running a handler. The *owner* counts more strictly than the table does:
it trusts its lease only until ``time before the request was sent + lease - margin``
(:meth:`Terms.valid_until`), measured on its own monotonic clock, so it stops before anybody else
may start however long the answer took (Gray and Cheriton, "Leases", SOSP 1989). And as a frozen
process can wake up at any later time, each taking raises the lease's *epoch* by one, and a commit
names owner and epoch: an older one is refused. An owner that comes back to find its expired lease
untouched still is the owner, under the same epoch.

A *static* member has a name that outlives its process. Whoever joins under that name is its
successor and inherits what the predecessor had at once: the leases count as the successor's own,
which takes each of them anew, under the next epoch (``held`` of :func:`plan` says which it has
taken already).

The assignment itself is a semi-matching of partitions to members, worked out in *numbers* of
partitions by member and topic: from what is owned now, count the unowned to the least loaded, then
move one after the other along a shortest path from a member to one that has at least two fewer;
when no such path is left, no assignment is more even (Harvey, Ladner, Lovász, Tamir,
"Semi-matchings for bipartite graphs and load balancing", 2006). Exchanges between two members then
even out each topic without touching the totals. Last, the numbers become partitions: each member
keeps its own up to its number, and what is over fills the others up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Part = tuple[str, int]
"""A topic's name and the number of one of its partitions."""


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


LONGEST = 3600.0
"""Seconds that a lease may last at most. A stored length beyond it is damage: such a row is not
waited for longer than the observer's own lease lasts."""

NEVER = float("inf")

FREE = Lease("", 0, -NEVER)
"""The lease of a partition that nobody has owned yet."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How long ownership lasts without being confirmed, in seconds."""

    lease: float = 10.0

    @property
    def heartbeat(self) -> float:
        """Renew this often: two of three heartbeats may fail before anything is lost."""
        return self.lease / 3

    @property
    def margin(self) -> float:
        """How much earlier than the table the owner itself stops believing in its lease: room for
        clocks that run at different rates, and for the time between a check and its effect."""
        return self.lease / 10

    def expires(self, now: float) -> float:
        """The expiry to write, on the log's time line, when renewing or acquiring at ``now``."""
        return now + self.lease

    def valid_until(self, sent: float) -> float:
        """Until when the owner may act, on its own monotonic clock; ``sent`` is the time on that
        clock before the confirmed request was sent."""
        return sent + self.lease - self.margin


TERMS = Terms()


class Watch:
    """How long the rows of a log have stood unchanged, on one observer's own monotonic clock.

    ``look`` whenever the rows have been read, then ask of each row how much of its length is
    ``left``. Only time in which the log answered is counted: between two looks at most ``gap``
    seconds. While nobody is answered, no owner can confirm its lease either, so a log that stood
    still, or an observer that did, must not be taken for the death of all others. The time that is
    counted never runs ahead of the clock, so nothing is ever over too early.

    :param gap: less than a lease by more than the time between two heartbeats, so that an owner
        has its turn before anybody else when the log answers again.
    """

    def __init__(self, gap: float) -> None:
        self._gap = gap
        self._last: float | None = None
        self._counted = 0.0
        self._seen: dict[Hashable, tuple[Hashable, float]] = {}

    def look(self, now: float) -> None:
        """The rows have been read; ``now`` is the time *after* the answer."""
        if self._last is not None:
            self._counted += min(max(0.0, now - self._last), self._gap)
        self._last = now

    def left(self, row: Hashable, mark: Hashable, length: float) -> float:
        """Seconds until this row may be taken for over; 0: it is.

        :param row: which one it is.
        :param mark: what changes whenever its owner confirms it.
        :param length: how long the owner counts on it after it was confirmed, in seconds.
        """
        seen = self._seen.get(row)
        if seen is None or seen[0] != mark:
            self._seen[row] = mark, self._counted
            return length
        return max(0.0, length - (self._counted - seen[1]))

    def keep(self, rows: Collection[Hashable]) -> None:
        """Forget all rows but these."""
        for row in [row for row in self._seen if row not in rows]:
            del self._seen[row]


def length(seconds: float | None, own: float) -> float:
    """How long to wait for a row whose owner has stored that it lasts so many seconds.

    :param own: the observer's own lease, for a length that makes no sense.
    """
    return seconds if seconds is not None and 0 < seconds <= LONGEST else own


@dataclass(frozen=True, slots=True)
class Plan:
    """What one member should do now about each partition it has or should have."""

    release: tuple[Part, ...] = ()
    """Mine, to go elsewhere: drain, commit, then release. Renew them until then. (What only bears
    my name, because I inherited it, needs no draining.)"""
    acquire: Mapping[Part, int] = field(default_factory=dict)
    """Mine to take now: partition to the epoch to write, if the stored one is still one less."""
    renew: tuple[Part, ...] = ()
    """Mine, and stays."""
    again: float = NEVER
    """When the tables may call for another plan though nobody has written to them: a foreign
    lease or member row that runs out by then. On the log's time line."""


def plan(
    me: str,
    now: float,
    members: Iterable[Member],
    partitions: Mapping[str, int],
    leases: Mapping[Part, Lease],
    held: Collection[Part] | None = None,
) -> Plan:
    """What member ``me`` should do, from one consistent snapshot taken at ``now``.

    :param members: all rows of the group, ``me`` among them (it counts as alive whatever its
        row's expiry says: it is the one asking).
    :param partitions: how many partitions each topic has; at least the topics of ``members``.
    :param leases: the leases of the group; a partition that is absent was never owned.
    :param held: of the leases that name ``me``, those that this member has taken itself; None:
        all. The others are a predecessor's of the same name, or were taken by a request whose
        answer was lost. They count as mine and are to be taken again, under the next epoch.
    """
    everyone = list(members)
    alive = {row.id: row.topics for row in everyone if row.expires > now or row.id == me}
    owners = {
        part: lease.owner
        for part, lease in leases.items()
        if lease.owner == me or (lease.owner in alive and lease.expires > now)
    }
    wanted = target(alive, partitions, owners)

    release: list[Part] = []
    renew: list[Part] = []
    acquire: dict[Part, int] = {}
    others = (row.expires for row in everyone if row.id in alive and row.id != me)
    again = min(others, default=NEVER)
    for part, owner in owners.items():
        if owner != me:
            continue
        if wanted.get(part) != me:
            release.append(part)
        elif held is None or part in held:
            renew.append(part)
        else:
            acquire[part] = leases[part].epoch + 1
    for part, owner in wanted.items():
        lease = leases.get(part, FREE)
        if owner != me or lease.owner == me:
            continue
        if not lease.owner or lease.expires <= now:
            acquire[part] = lease.epoch + 1
        else:
            again = min(again, lease.expires)
    return Plan(tuple(sorted(release)), acquire, tuple(sorted(renew)), again)


def target(
    members: Mapping[str, Collection[str]],
    partitions: Mapping[str, int],
    owners: Mapping[Part, str],
) -> dict[Part, str]:
    """Which member should own each partition.

    :param members: the living members' IDs, and the topics each one subscribes to.
    :param partitions: how many partitions each topic has.
    :param owners: who owns what now; what is absent has no owner.
    :returns: an owner for every partition that some member subscribes to.
    """
    shares = _Shares(members, partitions, owners)
    while path := shares.path():
        for giver, taker in path:
            shares.hand(giver, taker, shares.topic_between(giver, taker))
    while exchange := shares.exchange():
        giver, taker, there, back = exchange
        shares.hand(giver, taker, there)
        shares.hand(taker, giver, back)
    return shares.settle()


class _Shares:
    """How many partitions of each topic each member has, being evened out.

    Everything is gone through in sorted order, which is what makes it deterministic.
    """

    def __init__(
        self,
        members: Mapping[str, Collection[str]],
        partitions: Mapping[str, int],
        owners: Mapping[Part, str],
    ) -> None:
        self.share: dict[str, dict[str, int]] = {
            member: {topic: 0 for topic in sorted(topics) if topic in partitions}
            for member, topics in sorted(members.items())
        }
        self.readers = {
            topic: [member for member, topics in self.share.items() if topic in topics]
            for topic in sorted(partitions)
        }
        self.load = dict.fromkeys(self.share, 0)
        self.own: dict[tuple[str, str], list[int]] = {}
        self.unowned: dict[str, list[int]] = {}
        for topic, readers in self.readers.items():
            for partition in range(partitions[topic]):
                owner = owners.get((topic, partition))
                if owner is not None and topic in self.share.get(owner, ()):
                    self.own.setdefault((owner, topic), []).append(partition)
                    self.add(owner, topic, 1)
                elif readers:
                    self.unowned.setdefault(topic, []).append(partition)
        for topic, without in self.unowned.items():
            for _ in without:
                self.add(min(self.readers[topic], key=self.burden(topic)), topic, 1)

    def add(self, member: str, topic: str, count: int) -> None:
        self.share[member][topic] += count
        self.load[member] += count

    def burden(self, topic: str) -> Callable[[str], tuple[int, int, str]]:
        return lambda member: (self.load[member], self.share[member][topic], member)

    def settle(self) -> dict[Part, str]:
        """The numbers as partitions, with as few moves as these numbers allow."""
        found: dict[Part, str] = {}
        for topic, readers in self.readers.items():
            over = list(self.unowned.get(topic, ()))
            for member in readers:
                own = self.own.get((member, topic), [])
                kept = self.share[member][topic]
                over += own[kept:]
                found.update(dict.fromkeys(((topic, p) for p in own[:kept]), member))
            over.sort(reverse=True)
            for member in readers:
                missing = self.share[member][topic] - len(self.own.get((member, topic), ()))
                for _ in range(missing):
                    found[topic, over.pop()] = member
        return found

    # -- evening out

    def hand(self, giver: str, taker: str, topic: str) -> None:
        self.add(giver, topic, -1)
        self.add(taker, topic, 1)

    def shared(self, giver: str, taker: str) -> Iterator[tuple[int, str]]:
        """The topics the giver could hand over, with how many more of each it has."""
        for topic, count in self.share[giver].items():
            if count and topic in self.share[taker]:
                yield count - self.share[taker][topic], topic

    def topic_between(self, giver: str, taker: str) -> str:
        """The topic in which they differ most."""
        return max(self.shared(giver, taker))[1]

    def path(self) -> list[tuple[str, str]]:
        """A shortest chain of moves from a member to one with at least two fewer, last move
        first, so that each member gives of what it has now; empty if there is none."""
        by_load = sorted(self.load, key=lambda m: (self.load[m], m))
        for source in reversed(by_load):
            goal = self.load[source] - 2
            if self.load[by_load[0]] > goal:
                break
            came = {source: source}
            reached = [source]
            for member in reached:
                for other in by_load:
                    if other in came or not any(True for _ in self.shared(member, other)):
                        continue
                    came[other] = member
                    reached.append(other)
                    if self.load[other] <= goal:
                        return list(_back(came, other))
        return []

    def exchange(self) -> tuple[str, str, str, str] | None:
        """Two members and two topics such that handing over one partition of each evens out the
        first topic and does not harm the second: giver, taker, topic there, topic back."""
        for topic, readers in self.readers.items():
            count = {member: self.share[member][topic] for member in readers}
            ordered = sorted(readers, key=lambda m: (count[m], m))
            for giver in reversed(ordered):
                for taker in ordered:
                    if count[giver] - count[taker] < 2:
                        break
                    more, back = max(self.shared(taker, giver), default=(0, ""))
                    if more >= 1:
                        return giver, taker, topic, back
        return None


def _back(came: Mapping[str, str], end: str) -> Iterator[tuple[str, str]]:
    while came[end] != end:
        yield came[end], end
        end = came[end]
