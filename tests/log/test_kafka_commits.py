"""Which commits reach the coordinator, and in what order, while answers come late or never."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from confluent_kafka import KafkaError
from confluent_kafka import TopicPartition as KTopicPartition

from streams.errors import Unavailable
from streams.log.kafka import offsets as module
from streams.log.kafka.assignment import topic_partitions_of
from streams.log.kafka.offsets import MembershipLost, OffsetCommits
from streams.log.protocol import Assignment, Commit, Committed, TopicPartition

KEY = ("t", 0)


class Coordinator:
    """A coordinator and the driver before it, which may hold requests back."""

    def __init__(self) -> None:
        self.places: dict[TopicPartition, Committed] = {}
        self.sent: list[list[KTopicPartition]] = []
        self.held: list[list[KTopicPartition]] = []
        self.history: list[int] = []
        self.frozen = False
        self.refuses = 0
        """How many more it refuses."""
        self.member: str | None = "m"
        self.commits = OffsetCommits(self.send, self.read, lambda: self.member)

    def send(self, parts: list[KTopicPartition]) -> None:
        self.sent.append(parts)
        if self.frozen:
            self.held.append(parts)
        else:
            self.land(parts)

    def land(self, parts: list[KTopicPartition]) -> None:
        if self.refuses > 0:
            self.refuses -= 1
            return
        for part in parts:
            place = Committed(part.offset, part.metadata or "")
            self.places[part.topic, part.partition] = place
            self.history.append(part.offset)

    def read(self, keys: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed | None]:
        if self.frozen:
            raise Unavailable("no answer")
        return {key: self.places.get(key) for key in keys}


def assignment(partition: int = 0) -> Assignment:
    return Assignment("t", partition, 1, None)


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator()


def test_only_what_is_owned_and_newer_is_sent(coordinator: Coordinator) -> None:
    mine, stranger, commits = assignment(), assignment(), coordinator.commits
    commits.add_assignments([mine])
    assert commits.commit([Commit(mine, 5, "a", 2)])
    assert not commits.commit([Commit(mine, 9, "", 2), Commit(mine, 1, "", 1)])
    assert not commits.commit([Commit(stranger, 9, "", 9)])
    assert commits.commit(
        [Commit(mine, 6, "b", 3), Commit(mine, 8, "c", 5), Commit(mine, 7, "", 4)]
    )
    assert coordinator.places == {KEY: Committed(8, "c")}
    commits.remove_assignments([stranger])
    assert commits.commit([Commit(mine, 9, "", 6)])
    commits.remove_assignments([mine])
    assert not commits.commit([Commit(mine, 10, "", 7)])
    assert coordinator.history == [5, 8, 9]


def test_a_commit_that_is_refused_for_a_moment_is_tried_again(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, commits = assignment(), coordinator.commits
    commits.add_assignments([mine])
    monkeypatch.setattr(module, "RETRY_PAUSE", 0.0)
    coordinator.refuses = 3
    assert commits.commit([Commit(mine, 5, "", 1)])
    assert len(coordinator.sent) == 4
    assert coordinator.history == [5]


def test_the_same_may_be_tried_again_after_it_failed(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_TIMEOUT", 0.0)
    mine, commits = assignment(), coordinator.commits
    commits.add_assignments([mine])
    coordinator.refuses = 1
    with pytest.raises(Unavailable, match="did not take"):
        commits.commit([Commit(mine, 5, "", 1)])
    commits.on_commit(KafkaError(KafkaError.REBALANCE_IN_PROGRESS), coordinator.sent[-1])
    assert commits.commit([Commit(mine, 5, "", 1)])


def test_a_commit_without_an_answer_is_not_overtaken(coordinator: Coordinator) -> None:
    mine, commits = assignment(), coordinator.commits
    commits.add_assignments([mine])
    coordinator.frozen = True
    with pytest.raises(Unavailable):
        commits.commit([Commit(mine, 5, "", 1)])
    for _ in range(2):
        with pytest.raises(Unavailable):
            commits.commit([Commit(mine, 6, "", 2)])
    coordinator.frozen = False
    with pytest.raises(Unavailable, match="not been answered"):
        commits.commit([Commit(mine, 6, "", 2)])
    coordinator.land(coordinator.held.pop())  # now it is
    assert commits.commit([Commit(mine, 6, "", 2)])
    assert coordinator.history == [5, 6]


def test_the_driver_tells_that_a_commit_failed_and_the_next_may_go(
    coordinator: Coordinator,
) -> None:
    mine, commits = assignment(), coordinator.commits
    commits.add_assignments([mine])
    coordinator.frozen = True
    with pytest.raises(Unavailable):
        commits.commit([Commit(mine, 5, "", 1)])
    coordinator.frozen = False
    commits.on_commit(KafkaError(KafkaError._TIMED_OUT), coordinator.held.pop())
    assert commits.commit([Commit(mine, 6, "", 2)])
    assert coordinator.history == [6]


def test_a_submit_does_not_wait_and_is_told_by_the_driver(coordinator: Coordinator) -> None:
    mine, commits, told = assignment(), coordinator.commits, list[bool]()
    commits.add_assignments([mine])
    coordinator.frozen = True
    assert commits.commit_async([Commit(mine, 5, "a", 1)], told.append)
    assert not commits.commit_async([Commit(mine, 6, "b", 2)], told.append), "two at a time"
    assert told == []
    coordinator.frozen = False
    sent = coordinator.held.pop()
    coordinator.land(sent)
    commits.on_commit(
        None, [KTopicPartition(*KEY, 5, metadata="other")]
    )  # of another, as far as it goes
    assert told == []
    commits.on_commit(None, sent)
    assert told == [True]
    assert commits.commit_async([Commit(mine, 6, "b", 2)], told.append)
    commits.on_commit(KafkaError(KafkaError.REBALANCE_IN_PROGRESS), coordinator.sent[-1])
    assert told == [True, False]
    assert not commits.commit_async([Commit(mine, 5, "a", 1)], told.append), "it is stored"
    assert not commits.commit_async([Commit(assignment(), 9, "", 9)], told.append), (
        "it is not owned"
    )
    commits.commit_async([Commit(mine, 7, "c", 3)], told.append)
    commits.membership_lost()
    assert told == [True, False, False]


def test_a_commit_waits_for_the_submit_before_it_and_goes_on_where_that_was_refused(
    coordinator: Coordinator,
) -> None:
    mine, commits, told = assignment(), coordinator.commits, list[bool]()
    commits.add_assignments([mine])
    commits.commit_async([Commit(mine, 5, "", 1)], told.append)
    assert commits.commit([Commit(mine, 6, "", 2)])
    assert told == [True]
    coordinator.refuses = 1
    commits.commit_async([Commit(mine, 7, "", 3)], told.append)
    assert commits.commit([Commit(mine, 8, "", 4)])
    assert told == [True, False]
    assert coordinator.history == [5, 6, 8]
    coordinator.frozen = True
    commits.commit_async([Commit(mine, 9, "", 5)], told.append)
    with pytest.raises(Unavailable):
        commits.commit([Commit(mine, 10, "", 6)])  # it may still land


def test_one_that_lands_late_is_followed_by_the_newest_again(coordinator: Coordinator) -> None:
    mine, commits = assignment(), coordinator.commits
    commits.add_assignments([mine])
    coordinator.frozen = True
    with pytest.raises(Unavailable):
        commits.commit([Commit(mine, 5, "old", 1)])
    coordinator.frozen = False
    late = coordinator.held.pop()
    commits.membership_lost()  # nobody waits for it any more, but the driver still has it
    commits.commit([Commit(mine, 8, "new", 2)])
    coordinator.land(late)
    assert coordinator.places[KEY] == Committed(5, "old")
    commits.on_commit(None, late)
    assert coordinator.places[KEY] == Committed(8, "new")
    sent = len(coordinator.sent)
    commits.on_commit(None, coordinator.sent[-1])
    assert len(coordinator.sent) == sent  # and that is the end of it


def test_a_former_members_commit_counts_for_nothing(coordinator: Coordinator) -> None:
    mine, commits = assignment(), coordinator.commits
    commits.add_assignments([mine])

    def send(parts: list[KTopicPartition]) -> None:
        coordinator.member = None  # what the driver learns from the answer

    commits._send = send
    with pytest.raises(MembershipLost):
        commits.commit([Commit(mine, 5, "", 1)])
    commits.membership_lost()
    again = assignment()
    coordinator.member = "another"
    commits._send = coordinator.send
    commits.add_assignments([again])
    assert commits.commit([Commit(again, 5, "", 0)])


def test_what_is_stored_already_does_not_show_who_was_a_member(coordinator: Coordinator) -> None:
    mine, commits, told = assignment(), coordinator.commits, list[bool]()
    commits.add_assignments([mine])
    assert commits.commit_async([Commit(mine, 5, "", 1)], told.append)
    first = coordinator.sent[-1]
    sent = commits.on_commit(None, first)
    assert sent is not None
    assert told == [True]
    coordinator.refuses = 1  # the next owner has the partition, and has stored nothing yet
    assert commits.commit([Commit(mine, 5, "", 2)])
    refused = KafkaError(KafkaError.ILLEGAL_GENERATION)
    assert commits.on_commit(refused, coordinator.sent[-1]) is None
    assert commits.commit([Commit(mine, 6, "", 3)])
    later = commits.on_commit(None, coordinator.sent[-1])
    assert later is not None
    assert later >= sent
    assert commits.on_commit(None, coordinator.sent[-1]) is None, "it is reported once"
    assert commits.commit([Commit(mine, 7, "", 4)])
    commits.membership_lost()
    assert commits.on_commit(None, coordinator.sent[-1]) is None


def test_places_between_two_assignments_are_stored_for_nobody(
    coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_TIMEOUT", 0.0)
    coordinator.commits.store_unassigned({KEY: Committed(3, "moved")})
    assert coordinator.places == {KEY: Committed(3, "moved")}
    assert topic_partitions_of(coordinator.sent[0]) == [KEY]
    coordinator.refuses = 1
    with pytest.raises(Unavailable):
        coordinator.commits.store_unassigned({KEY: Committed(4)})
