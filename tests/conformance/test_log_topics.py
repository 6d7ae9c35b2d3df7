"""Topics: made once, found as they were made, gone when deleted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from streams.errors import ConfigError, LogError, NotFound, TopicMismatch
from streams.log.protocol import Committed, Retention, SizedLog
from tests.conformance.records import ABSURD_PARTITIONS, record
from tests.conformance.world import World


def test_a_topic_is_found_as_it_was_created(world: World) -> None:
    name = world.name("topic")
    made = world.log.create_topic(name, 3, Retention(seconds=3600))
    assert (made.name, made.partitions, made.retention.seconds) == (name, 3, 3600)
    assert world.open().describe_topic(name) == made
    assert made in world.log.describe_topics()


def test_former_names_work_with_a_warning(world: World) -> None:
    log: Any = world.log
    topic, group = world.topic(), world.group()
    log.reset_offsets(group, topic, {0: Committed(0)})
    with pytest.warns(DeprecationWarning, match=r"log\.topic\(\) is now describe_topic\(\)"):
        assert log.topic(topic) == log.describe_topic(topic)
    with pytest.warns(DeprecationWarning, match=r"describe_topics\(\)"):
        assert topic in [info.name for info in log.topics()]
    with pytest.warns(DeprecationWarning, match=r"list_topics\(\)"):
        assert topic in log.topic_names()
    with pytest.warns(DeprecationWarning, match=r"describe_group\(\)"):
        assert log.group(group) == log.describe_group(group)
    with pytest.warns(DeprecationWarning, match=r"list_groups\(\)"):
        assert group in log.groups()
    with pytest.raises(AttributeError, match="no attribute 'topicz'"):
        log.topicz(topic)


def test_creating_again_is_harmless_but_not_with_another_count(world: World) -> None:
    topic = world.topic(2)
    world.append(topic, [b"kept"] * 20)
    assert world.log.create_topic(topic, 2).partitions == 2
    assert len(world.values(topic, 0) + world.values(topic, 1)) == 20
    with pytest.raises(TopicMismatch, match="2"):
        world.log.create_topic(topic, 3)


def test_a_topic_says_about_how_many_bytes_it_takes_where_its_log_can(world: World) -> None:
    log = world.log
    if not isinstance(log, SizedLog):
        return
    topic, empty = world.topic(2), world.topic()
    world.append(topic, [b"x" * 1_000] * 500)
    found = log.topic_bytes(topic)
    assert found is not None
    assert 500_000 < found < 750_000
    few = log.topic_bytes(empty)
    assert few is not None
    assert few < 5_000  # Redis takes some for a stream without entries
    with pytest.raises(NotFound):
        log.topic_bytes(world.name("nowhere"))


def test_topics_are_listed_by_name(world: World) -> None:
    mine = sorted(world.topic() for _ in range(3))
    names = [topic.name for topic in world.log.describe_topics()]
    for each in (names, world.log.list_topics()):
        assert each == sorted(each)
        assert [name for name in each if name in mine] == mine


def test_a_deleted_topic_takes_its_messages_and_positions_along(world: World) -> None:
    topic, other, group = world.topic(), world.topic(), world.group()
    world.append(topic, [b"old"])
    world.log.initialize_offsets(group, topic, {0: 1})
    world.log.initialize_offsets(group, other, {0: 0})
    world.log.delete_topic(topic)
    with pytest.raises(NotFound):
        world.log.describe_topic(topic)
    assert list(world.log.describe_group(group).positions) == [(other, 0)]
    world.log.create_topic(topic, 2)
    assert world.values(topic) == []
    assert world.log.initialize_offsets(group, topic, {0: 0, 1: 0})


def test_a_topic_that_is_made_anew_is_given_to_those_that_subscribe(world: World) -> None:
    if not world.url.startswith(("memory", "sqlite")):
        return  # on a server who subscribes to a topic that is deleted may end, with an error
    topic, group = world.topic(), world.group()
    member = world.member(group, topic)
    member.until_owns(1)
    world.append(topic, [b"old"])
    member.until_delivered(1)
    world.log.delete_topic(topic)
    member.until_owns(0)
    world.log.create_topic(topic, 2)
    world.append(topic, [b"1", b"2", b"3"])
    member.until_owns(2)
    member.until_delivered(4)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ü", "x" * 250])
def test_a_name_that_kafka_would_refuse_is_refused(world: World, name: str) -> None:
    with pytest.raises(ConfigError, match="topic"):
        world.log.create_topic(name, 1)


def test_what_is_not_there_is_not_found(world: World) -> None:
    missing, topic = world.name("missing"), world.topic(2)
    calls: tuple[Callable[[], object], ...] = (
        lambda: world.log.describe_topic(missing),
        lambda: world.log.delete_topic(missing),
        lambda: world.log.watermarks(missing, 0),
        lambda: world.log.watermarks(topic, 2),
        lambda: world.log.reader(missing, 0, 0, 1).read(1, 1.0),
        lambda: world.log.initialize_offsets(world.group(), missing, {0: 0}),
        lambda: world.log.initialize_offsets(world.group(), topic, {2: 0}),
    )
    for number, call in enumerate(calls):
        with pytest.raises(NotFound):
            pytest.fail(f"call {number} returned {call()!r}")
    outcomes = world.outcomes(missing, [record(b"1"), record(b"2")])
    assert [type(outcome) for outcome in outcomes] == [NotFound, NotFound]


def test_a_partition_that_no_log_can_have_is_not_found(world: World) -> None:
    """Whoever writes to a log may write any number into a header."""
    log, topic, group = world.log, world.topic(2), world.group()
    world.append(topic, [b"kept"])
    log.initialize_offsets(group, topic, {0: 0})
    calls: tuple[Callable[[int], object], ...] = (
        lambda partition: log.watermarks(topic, partition),
        lambda partition: log.log_end_offset(topic, partition),
        lambda partition: log.offset_for_time(topic, partition, 0.0),
        lambda partition: log.offset_before(topic, partition, 1, 1),
        lambda partition: log.lag(topic, partition, 0),
        lambda partition: log.reader(topic, partition, 0, 1).read(1, 1.0),
        lambda partition: log.initialize_offsets(world.group(), topic, {partition: 0}),
        lambda partition: log.reset_offsets(group, topic, {partition: Committed(0)}),
    )
    for (number, call), partition in product(enumerate(calls), ABSURD_PARTITIONS):
        with pytest.raises(NotFound):
            pytest.fail(f"call {number} returned {call(partition)!r} for {partition}")
    assert world.values(topic, 0) + world.values(topic, 1) == [b"kept"]


def test_a_closed_log_says_so(world: World) -> None:
    topic = world.topic()
    log = world.open()
    log.close()
    log.close()
    with pytest.raises(LogError):
        log.watermarks(topic, 0)
    assert world.append(topic, [b"the others go on"])
