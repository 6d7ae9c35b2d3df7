"""Appends on Kafka that meet their own first try, or a failure beside them, at a bad moment."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from confluent_kafka import Producer

from streams.errors import Unavailable
from streams.log.event_headers import make_append
from streams.log.events import NO_HISTORY, Appended, Base, EventAppend, EventLog, History
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.event_indexes import EventIndexes
from streams.log.kafka.log import CAPABILITIES
from tests.conformance.histories import (
    append_all,
    event,
    event_topic,
    events_of,
    grow,
    history,
    values,
)
from tests.conformance.logs import Case
from tests.conformance.world import World
from tests.log.kafka_histories import write
from tests.servers.find import KafkaAddress
from tests.servers.lifetime import until


@pytest.fixture
def world(kafka: KafkaAddress) -> Iterator[World]:
    opened = World(Case("kafka_url", CAPABILITIES), kafka.url)
    yield opened
    opened.close()


def arrive(kafka: KafkaAddress, topic: str, append: EventAppend) -> None:
    """The records of an append come to stand in the log, as those of a try do whose answer was
    lost."""
    write(Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0}), topic, append.records)


@pytest.mark.parametrize("count", [1, 3])
def test_an_append_whose_first_try_arrives_while_it_is_sent_again_is_no_conflict(
    world: World, kafka: KafkaAddress, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been judged as not there when the first try is folded: whoever took its own second
    copy for one that came too late would decide, and append, once more."""
    log, topic = events_of(world), event_topic(world, 1)
    head = grow(log, topic, b"k", b"before")
    made = make_append(b"k", head.base, [event(b"%d" % number) for number in range(count)])
    watch = TopicIndex.watch
    arrived = False

    def watch_too_late(index: TopicIndex, appends: Iterable[Any]) -> Any:
        nonlocal arrived
        if not arrived:
            arrived = True
            arrive(kafka, topic, made)
            index.wait({0: 1 + count})
        return watch(index, appends)

    monkeypatch.setattr(TopicIndex, "watch", watch_too_late)
    (outcome,) = append_all(log, topic, [made])
    assert isinstance(outcome, Appended), outcome
    assert arrived
    found = history(log, topic, b"k")
    assert values(found) == [b"before", *(b"%d" % number for number in range(count))]
    assert outcome.offsets == tuple(each.offset for each in found.events[1:])


def test_a_failure_of_one_append_says_nothing_of_those_beside_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, topic = events_of(world), event_topic(world, 1)
    grow(log, topic, b"broken", b"1", b"2")
    good = make_append(b"good", NO_HISTORY, [event(b"good")])
    # To judge this one, an event has to be read, which cannot be done now.
    bad = make_append(b"broken", Base(1, "unknown"), [event(b"late")])

    def broken(*args: Any) -> Any:
        raise Unavailable("cannot be read now")

    with monkeypatch.context() as patched:
        patched.setattr(EventIndexes, "read_records", broken)
        outcomes = append_all(log, topic, [good, bad, good])
    assert isinstance(outcomes[1], Unavailable)
    assert values(history(log, topic, b"good")) == [b"good"]
    assert isinstance(outcomes[0], Appended), outcomes


def test_what_is_read_is_never_older_than_the_call(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that hears of nothing for a while keeps its readers waiting: what others have
    appended and were acknowledged is there, or there is no answer."""
    log, topic = events_of(world), event_topic(world, 1)
    grow(log, topic, b"k", b"1")
    other = world.open()
    assert isinstance(other, EventLog)
    assert values(history(other, topic, b"k")) == [b"1"]
    go_on = threading.Event()
    fold = TopicIndex.fold
    behind: list[TopicIndex] = []

    def fold_later(index: TopicIndex, batch: Any) -> None:
        behind.append(index)
        assert go_on.wait(60)
        fold(index, batch)

    found: list[History] = []
    with monkeypatch.context() as patched:
        patched.setattr(TopicIndex, "fold", fold_later)
        grow(log, topic, b"k", b"2", b"3")  # its own it folds by itself
        until(lambda: behind, 60, "the other is behind")
        reading = threading.Thread(target=lambda: found.append(history(other, topic, b"k")))
        reading.start()
        until(lambda: not reading.is_alive() or is_waiting(behind), 60, "it reads, and waits")
        go_on.set()
        reading.join()
    assert values(found[0]) == [b"1", b"2", b"3"]


def is_waiting(indexes: list[TopicIndex]) -> bool:
    """Whether somebody waits for one of them to be folded."""
    return any(each._waiting_since is not None for each in indexes)
