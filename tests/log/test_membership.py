"""Assignment and lease rules: what any set of members may do in any order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streams.log.membership import (
    DEFAULT_TERMS,
    INFINITY,
    MAX_LEASE,
    UNOWNED,
    Lease,
    LeaseTerms,
    Member,
    Plan,
    StalenessTracker,
    lease_length,
    plan,
    target_owners,
)
from streams.log.protocol import TopicPartition

TOPICS = ("a", "b", "c")
NAMES = ("m0", "m1", "m2", "m3", "m4")

topics: st.SearchStrategy[dict[str, int]] = st.dictionaries(
    st.sampled_from(TOPICS), st.integers(1, 9), min_size=1
)
names = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)


def owners_of(
    parts: list[TopicPartition], names: Iterable[str] = NAMES
) -> st.SearchStrategy[dict[TopicPartition, str]]:
    """An owner for each partition; "gone" is no member, so its partitions have none."""
    each = st.tuples(*(st.sampled_from([*names, "gone"]) for _ in parts))
    return each.map(lambda owners: dict(zip(parts, owners, strict=True)))


@st.composite
def groups(
    draw: st.DrawFn,
) -> tuple[dict[str, list[str]], dict[str, int], dict[TopicPartition, str]]:
    """Members with topic sets of their own, partitions, and owners, some of whom are gone."""
    partitions = draw(topics)
    members = {
        name: draw(st.lists(st.sampled_from(sorted(partitions)), unique=True))
        for name in draw(names)
    }
    parts = [(topic, p) for topic, count in partitions.items() for p in range(count)]
    return members, partitions, draw(owners_of(parts))


def spread(counts: Mapping[str, int]) -> int:
    return max(counts.values()) - min(counts.values())


@given(names, topics, st.data())
def test_alike_subscriptions_are_even_in_each_topic_and_altogether(
    members: list[str], partitions: dict[str, int], data: st.DataObject
) -> None:
    parts = [(topic, p) for topic, count in partitions.items() for p in range(count)]
    owners = data.draw(owners_of(parts))
    found = target_owners({member: [*partitions] for member in members}, partitions, owners)
    assert sorted(found) == sorted(parts)
    for which in ({*partitions}, *({topic} for topic in partitions)):
        counts = dict.fromkeys(members, 0)
        for (topic, _), owner in found.items():
            counts[owner] += topic in which
        assert spread(counts) <= 1


@given(names, st.integers(1, 20), st.data())
def test_one_topic_moves_no_partition_more_than_evenness_needs(
    members: list[str], count: int, data: st.DataObject
) -> None:
    owners = data.draw(owners_of([("a", p) for p in range(count)]))
    found = target_owners({member: ["a"] for member in members}, {"a": count}, owners)
    moved = sum(owner in members and found[part] != owner for part, owner in owners.items())
    # The most loaded keep the larger shares; nobody can keep more than its share.
    least, more = divmod(count, len(members))
    had = sorted((sum(o == m for o in owners.values()) for m in members), reverse=True)
    shares = [least + 1] * more + [least] * (len(members) - more)
    assert moved == sum(max(0, h - share) for h, share in zip(had, shares, strict=True))


@given(groups())
def test_nobody_gives_and_takes_in_one_topic(
    group: tuple[dict[str, list[str]], dict[str, int], dict[TopicPartition, str]],
) -> None:
    members, partitions, owners = group
    found = target_owners(members, partitions, owners)
    gave = {(owners[part], part[0]) for part, owner in found.items() if owners[part] != owner}
    took = {(owner, part[0]) for part, owner in found.items() if owners[part] != owner}
    assert not gave & took


@given(groups())
def test_an_assignment_that_is_reached_is_kept(
    group: tuple[dict[str, list[str]], dict[str, int], dict[TopicPartition, str]],
) -> None:
    members, partitions, owners = group
    found = target_owners(members, partitions, owners)
    assert target_owners(members, partitions, found) == found


@given(groups(), st.randoms(use_true_random=False))
def test_every_member_computes_the_same(
    group: tuple[dict[str, list[str]], dict[str, int], dict[TopicPartition, str]], random: object
) -> None:
    members, partitions, owners = group

    def shuffled(mapping: Mapping[object, object]) -> dict[object, object]:
        items = list(mapping.items())
        random.shuffle(items)  # type: ignore[attr-defined]
        return dict(items)

    again = target_owners(shuffled(members), shuffled(partitions), shuffled(owners))  # type: ignore[arg-type]
    assert again == target_owners(members, partitions, owners)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([{"a"}, {"b"}, {"a", "b"}]), min_size=1, max_size=3),
    st.fixed_dictionaries({"a": st.integers(1, 3), "b": st.integers(1, 3)}),
    st.data(),
)
def test_different_subscriptions_are_as_even_as_any_assignment(
    subscriptions: list[set[str]], partitions: dict[str, int], data: st.DataObject
) -> None:
    members: dict[str, set[str]] = dict(zip(NAMES, subscriptions, strict=False))
    parts = [
        (topic, p)
        for topic, count in partitions.items()
        for p in range(count)
        if any(topic in wanted for wanted in subscriptions)
    ]
    owners = data.draw(owners_of(parts, members))
    found = target_owners(members, partitions, owners)
    assert sorted(found) == sorted(parts)
    assert all(part[0] in members[owner] for part, owner in found.items())

    def cost(owners: tuple[str, ...]) -> int:
        return sum(n * n for n in Counter(owners).values())

    possible = itertools.product(*([m for m in members if t in members[m]] for t, _ in parts))
    assert cost(tuple(found.values())) == min(map(cost, possible))


# -- many members, any interleaving --------------------------------------------------------------


@dataclass
class Running:
    """A member process: its plan may be old when it acts, its answers may come late."""

    id: str
    topics: frozenset[str]
    plan: Plan = field(default_factory=Plan)
    planned: float = 0.0
    owns: dict[TopicPartition, tuple[int, float]] = field(
        default_factory=dict
    )  # epoch, valid until


class Group:
    """The two tables, and what each member does with them, one atomic step at a time."""

    def __init__(self, partitions: dict[str, int]) -> None:
        self.now = 1000.0
        self.partitions = partitions
        self.rows: dict[str, Member] = {}
        self.leases: dict[TopicPartition, Lease] = {}
        self.members: dict[str, Running] = {}
        self.frozen: list[Running] = []
        self.count = itertools.count()

    def join(self, topics: frozenset[str]) -> Running:
        member = Running(f"m{next(self.count):03}", topics)
        self.members[member.id] = member
        self.rows[member.id] = Member(member.id, topics, DEFAULT_TERMS.expiry(self.now))
        return member

    def heartbeat(self, member: Running, delay: float = 0.0) -> None:
        """Renew and read; the request reaches the tables ``delay`` after it was sent."""
        sent, self.now = self.now, self.now + delay
        self.rows[member.id] = Member(member.id, member.topics, DEFAULT_TERMS.expiry(self.now))
        for part, (epoch, _) in list(member.owns.items()):
            lease = self.leases.get(part, UNOWNED)
            if (lease.owner, lease.epoch) == (member.id, epoch):
                self.leases[part] = lease._replace(expires=DEFAULT_TERMS.expiry(self.now))
                member.owns[part] = epoch, DEFAULT_TERMS.valid_until(sent)
            else:
                del member.owns[part]
        member.plan = plan(member.id, self.now, self.rows.values(), self.partitions, self.leases)

    def act(self, member: Running, delay: float = 0.0) -> bool:
        """Carry out the plan, however old it is by now. True if anything changed."""
        changed = False
        for part in member.plan.release:
            held = member.owns.pop(part, None)
            lease = self.leases.get(part, UNOWNED)
            if held and (lease.owner, lease.epoch) == (member.id, held[0]):
                self.leases[part] = Lease("", lease.epoch, -1.0)
                changed = True
        sent, self.now = self.now, self.now + delay
        for part, epoch in member.plan.acquire.items():
            lease = self.leases.get(part, UNOWNED)
            if lease.epoch == epoch - 1 and (not lease.owner or lease.expires <= self.now):
                self.leases[part] = Lease(member.id, epoch, DEFAULT_TERMS.expiry(self.now))
                member.owns[part] = epoch, DEFAULT_TERMS.valid_until(sent)
                changed = True
        member.plan = Plan()
        return changed

    def believers(self, part: TopicPartition) -> list[str]:
        """Who would start a handler on this partition now."""
        return [
            member.id
            for member in [*self.members.values(), *self.frozen]
            if part in member.owns and self.now < member.owns[part][1]
        ]


class Membership(RuleBasedStateMachine):
    """Members join, leave, freeze, and act on old plans with late answers, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.group = Group({"a": 5, "b": 3})

    def pick(self, data: st.DataObject) -> Running:
        return self.group.members[data.draw(st.sampled_from(sorted(self.group.members)))]

    @precondition(lambda self: len(self.group.members) < 5)
    @rule(topics=st.sampled_from([frozenset("ab"), frozenset("a"), frozenset("b")]))
    def join(self, topics: frozenset[str]) -> None:
        self.group.join(topics)

    @precondition(lambda self: self.group.members)
    @rule(data=st.data(), delay=st.sampled_from([0.0, 2.0, 8.0, 30.0]))
    def heartbeat(self, data: st.DataObject, delay: float) -> None:
        self.group.heartbeat(self.pick(data), delay)

    @precondition(lambda self: self.group.members)
    @rule(data=st.data(), delay=st.sampled_from([0.0, 2.0, 8.0, 30.0]))
    def act(self, data: st.DataObject, delay: float) -> None:
        self.group.act(self.pick(data), delay)

    @precondition(lambda self: self.group.members)
    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        member = self.pick(data)
        self.group.heartbeat(member)
        self.group.act(member)

    @precondition(lambda self: self.group.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        member = self.pick(data)
        member.plan = Plan(release=tuple(member.owns))
        self.group.act(member)
        del self.group.members[member.id], self.group.rows[member.id]

    @precondition(lambda self: self.group.members)
    @rule(data=st.data())
    def freeze(self, data: st.DataObject) -> None:
        """It does nothing any more, and goes on believing what it believed."""
        self.group.frozen.append(self.group.members.pop(self.pick(data).id))

    @rule(seconds=st.sampled_from([3.0, DEFAULT_TERMS.lease - 0.5, DEFAULT_TERMS.lease]))
    def wait(self, seconds: float) -> None:
        self.group.now += seconds

    @invariant()
    def no_partition_has_two_owners(self) -> None:
        for part in self.group.leases:
            assert len(self.group.believers(part)) <= 1, part

    @invariant()
    def no_owner_is_older_than_the_lease(self) -> None:
        for part, lease in self.group.leases.items():
            for member in self.group.members.values():
                assert member.owns.get(part, (0, 0.0))[0] <= lease.epoch

    def teardown(self) -> None:
        """Whatever happened: left alone, the living share everything evenly, and then rest."""
        group = self.group
        group.now += DEFAULT_TERMS.lease + 1
        if not group.members:
            return
        rounds = 0
        changed = True
        for member in group.members.values():  # everybody knows of everybody
            group.heartbeat(member)
        while changed:
            rounds += 1
            assert rounds < 30, "the group does not come to rest"
            changed = False
            for member in group.members.values():
                group.heartbeat(member)
            for member in reversed(group.members.values()):
                changed |= group.act(member)
            group.now += 0.1
        owned = {part: lease.owner for part, lease in group.leases.items() if lease.owner}
        alive = {member.id: member.topics for member in group.members.values()}
        wanted = target_owners(alive, group.partitions, owned)
        assert {part: owner for part, owner in owned.items() if part in wanted} == wanted


TestMembership = Membership.TestCase
TestMembership.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_a_lease_ends_by_release_or_expiry_and_by_nothing_else() -> None:
    """A member whose row is gone may still be running a handler: its lease is waited for."""
    leases = {("a", 0): Lease("gone", 7, 105.0)}
    rows = [Member("me", ["a"], 110.0)]
    early = plan("me", 104.9, rows, {"a": 1}, leases)
    assert not early.acquire
    assert early.replan_at == 105.0
    assert plan("me", 105.0, rows, {"a": 1}, leases).acquire == {("a", 0): 8}


def test_an_expired_lease_that_nobody_took_is_renewed_under_its_epoch() -> None:
    leases = {("a", 0): Lease("me", 7, 105.0)}
    found = plan("me", 500.0, [Member("me", ["a"], 105.0)], {"a": 1}, leases)
    assert found.renew == (("a", 0),)
    assert not found.acquire


# -- what bears a member's name though it has not taken it -----------------------------------------


@given(groups(), st.data())
def test_what_is_inherited_counts_as_mine_and_is_taken_anew(
    group: tuple[dict[str, list[str]], dict[str, int], dict[TopicPartition, str]],
    data: st.DataObject,
) -> None:
    members, partitions, owners = group
    leases = {part: Lease(owner, 4, INFINITY) for part, owner in owners.items()}
    rows = [Member(name, topics, INFINITY) for name, topics in members.items()]
    for me in members:
        named = [part for part, owner in owners.items() if owner == me]
        held = data.draw(st.sets(st.sampled_from(named))) if named else set()
        all_held = plan(me, 0.0, rows, partitions, leases)
        found = plan(me, 0.0, rows, partitions, leases, held)
        # Who has it makes no difference to who should have it ...
        assert found.release == all_held.release
        # ... and what should stay is renewed where it is held, and taken where it is not.
        assert set(found.renew) == set(all_held.renew) & held
        inherited = dict.fromkeys(set(all_held.renew) - held, 5)
        assert found.acquire == {**all_held.acquire, **inherited}


# -- rows that stand unchanged ---------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_nothing_is_over_before_its_owner_stops_believing_in_it(data: st.DataObject) -> None:
    """Whatever stands still for however long: the observer, the owner, or the log."""
    terms = LeaseTerms(data.draw(st.sampled_from([1.0, 10.0])))
    watch = StalenessTracker(terms.heartbeat_interval)
    now, mark, believes_until = 1000.0, 0, -INFINITY
    steps = st.tuples(
        st.sampled_from(["confirm", "look", "late answer"]),
        st.sampled_from([0.01, 0.1, 0.3, 0.5, 1.0, 3.0]),
    )
    for what, part in data.draw(st.lists(steps, max_size=60)):
        sent, now = now, now + part * terms.lease
        if what == "confirm":
            mark, believes_until = mark + 1, terms.valid_until(sent)
            continue
        # The answer says how the row stood at some moment before it came.
        stood = mark
        if what == "late answer":
            now += part * terms.lease
        watch.observe(now)
        if watch.remaining("row", stood, terms.lease) == 0 and stood == mark:
            assert now >= believes_until


@given(st.floats(0.01, 1.0), st.integers(1, 50))
def test_what_nobody_confirms_is_over_after_its_length_of_looking(
    interval: float, before: int
) -> None:
    watch = StalenessTracker(DEFAULT_TERMS.heartbeat_interval)
    now = 0.0
    for mark in range(before):
        watch.observe(now)
        assert watch.remaining("row", mark, DEFAULT_TERMS.lease) == DEFAULT_TERMS.lease
        now += interval
    began, left = now, INFINITY
    while left:
        watch.observe(now)
        left = watch.remaining("row", "last", DEFAULT_TERMS.lease)
        now += interval
        assert now - began <= DEFAULT_TERMS.lease + 3 * interval


def test_a_log_that_stood_still_is_no_ones_death() -> None:
    watch = StalenessTracker(DEFAULT_TERMS.heartbeat_interval)
    for now in (0.0, 1.0, 2.0, 500.0):  # three leases, and many more
        watch.observe(now)
        left = watch.remaining("row", "same", DEFAULT_TERMS.lease)
    assert left == pytest.approx(DEFAULT_TERMS.lease - 2.0 - DEFAULT_TERMS.heartbeat_interval)
    # More than the time in which an owner sends its next heartbeat.
    assert left > DEFAULT_TERMS.heartbeat_interval


def test_a_row_that_changed_or_was_forgotten_is_watched_anew() -> None:
    watch = StalenessTracker(DEFAULT_TERMS.heartbeat_interval)
    for now in range(9):
        watch.observe(float(now))
        watch.remaining("one", "same", DEFAULT_TERMS.lease)
        watch.remaining("two", now, DEFAULT_TERMS.lease)
    assert watch.remaining("one", "same", DEFAULT_TERMS.lease) == DEFAULT_TERMS.lease - 8
    assert watch.remaining("two", 8, DEFAULT_TERMS.lease) == DEFAULT_TERMS.lease
    watch.keep_only({"two"})
    assert watch.remaining("one", "same", DEFAULT_TERMS.lease) == DEFAULT_TERMS.lease


def test_rows_whose_owners_stop_by_themselves_expire_in_an_outage() -> None:
    watch = StalenessTracker(max_rows=2)
    watch.observe(0.0)
    for row in ("one", "two", "three"):
        assert watch.remaining(row, "same", 10.0) == 10.0
    watch.observe(9.0)
    assert watch.expired("two") is None
    assert watch.remaining("two", "changed", 10.0) == 10.0
    watch.observe(500.0)
    assert watch.expired("one") is None  # forgotten, as there were two others
    assert (watch.expired("two"), watch.expired("three")) == ("changed", "same")
    watch.forget("two")
    assert watch.expired("two") is None


def test_a_length_that_makes_no_sense_is_the_observers_own() -> None:
    assert lease_length(3.0, 10.0) == 3.0
    assert lease_length(MAX_LEASE, 10.0) == MAX_LEASE
    for damaged in (None, 0.0, -1.0, MAX_LEASE + 1, INFINITY, float("nan")):
        assert lease_length(damaged, 10.0) == 10.0
