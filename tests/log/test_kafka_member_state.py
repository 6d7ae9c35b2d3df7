"""The state of a Kafka group's member: its errors, and its partitions."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer

from streams.errors import Fatal, LogError, StreamsError, Unavailable
from streams.log.kafka.assignment import (
    MAX_RETRY_PAUSE,
    RETRY_PAUSE,
    AssignedPartitions,
    PendingPartitions,
)
from streams.log.kafka.member_errors import MemberErrors
from streams.log.protocol import Assignment


@pytest.fixture
def partitions() -> Iterator[AssignedPartitions]:
    consumer = Consumer({"group.id": "g", "bootstrap.servers": ""})
    yield AssignedPartitions(consumer, eager=False)
    consumer.close()


def assigned(partition: int = 0) -> Assignment:
    return Assignment("t", partition, 1, None)


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (Unavailable("a"), LogError("b"), "b"),
        (LogError("a"), Unavailable("b"), "a"),
        (LogError("a"), LogError("b"), "b"),
        (LogError("a"), Fatal("b"), "b"),
        (Fatal("a"), LogError("b"), "a"),
    ],
)
def test_the_deferred_error_that_says_more_is_raised_once(
    first: StreamsError, second: StreamsError, kept: str
) -> None:
    errors = MemberErrors()
    errors.defer(first)
    errors.defer(second)
    with pytest.raises(LogError, match=f"^{kept}$"):
        errors.raise_deferred()
    errors.raise_deferred()


def test_messages_end_an_outage_and_nothing_else() -> None:
    errors = MemberErrors()
    errors.defer(Unavailable("no broker"))
    errors.messages_came()
    assert not errors.has_deferred
    errors.defer(Fatal("refused"))
    errors.messages_came()
    assert errors.has_deferred


def test_the_first_fatal_error_stays_unless_the_driver_raises_its_own() -> None:
    errors = MemberErrors()
    errors.fail(ValueError("of the listener"))
    errors.fail(LogError("later"))
    assert isinstance(errors.fatal, ValueError)
    errors.fail_driver(Fatal("of the driver"))
    with pytest.raises(Fatal, match="of the driver"):
        errors.raise_fatal()


def test_closing_raises_its_own_error_and_leaves_the_one_before() -> None:
    errors = MemberErrors()
    errors.fail(Fatal("before"))
    errors.begin_close()
    errors.raise_fatal()
    errors.fail(ValueError("while it closed"))
    with pytest.raises(ValueError, match="while it closed"):
        errors.end_close()
    with pytest.raises(Fatal, match="before"):
        errors.raise_fatal()


def test_a_member_that_was_closed_says_so() -> None:
    errors = MemberErrors()
    errors.begin_close()
    errors.end_close()
    with pytest.raises(LogError, match="this subscription is closed"):
        errors.raise_fatal()


def test_a_pending_partition_is_retried_after_longer_and_longer() -> None:
    pending, now, pause = PendingPartitions(), 100.0, RETRY_PAUSE
    pending.add([("t", 0), ("t", 1)])
    assert pending.never_tried() == [("t", 0), ("t", 1)]
    assert pending.due_for_retry(now) == []
    for _ in range(10):
        assert pending.schedule_retry(("t", 0), now)
        assert pending.due_for_retry(now + pause * 0.99) == []
        now += pause
        assert pending.due_for_retry(now) == [("t", 0)]
        pause = min(MAX_RETRY_PAUSE, pause * 2)
    assert pending.never_tried() == [("t", 1)]
    pending.remove([("t", 0)])
    assert not pending.schedule_retry(("t", 0), now)
    pending.clear()
    assert not pending


def test_all_that_is_owned_is_valid_until_the_same_moment(partitions: AssignedPartitions) -> None:
    first, second = assigned(0), assigned(1)
    partitions.set_valid_until(10.0)
    partitions.add_owned([first])
    partitions.set_valid_until(20.0)
    partitions.add_owned([second])
    assert (first.valid_until, second.valid_until) == (20.0, 20.0)
    partitions.invalidate([("t", 1)])
    assert (first.valid_until, second.valid_until) == (20.0, float("-inf"))
    partitions.remove_owned([first])
    assert first.valid_until == float("-inf")
    assert partitions.owned_assignments() == [second]


def test_an_assignment_that_has_ended_does_not_end_the_next_one(
    partitions: AssignedPartitions,
) -> None:
    ended, present = assigned(), assigned()
    partitions.set_valid_until(10.0)
    partitions.add_owned([ended])
    partitions.remove_owned([ended])
    partitions.add_owned([present])
    partitions.remove_owned([ended])
    assert not partitions.owns(ended)
    assert partitions.owns(present)
    assert present.valid_until == 10.0


def test_messages_belong_to_an_assignment_that_is_fetched(partitions: AssignedPartitions) -> None:
    owned = assigned()
    partitions.add_owned([owned])
    assert partitions.fetched_assignment("t", 0) is None
    assert partitions.may_deliver(owned) is None
    partitions.start_fetching([owned])
    assert partitions.fetched_assignment("t", 0) is owned
    assert partitions.may_deliver(owned) is True
    partitions.pause([owned])
    assert partitions.all_paused
    assert partitions.may_deliver(owned) is False
    partitions.resume([owned])
    partitions.stop_fetching([("t", 0)])
    assert partitions.fetched_assignment("t", 0) is None
