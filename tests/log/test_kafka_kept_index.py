"""The index of an event topic that is kept for the next process, in a file or in a topic: where it
goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import Producer

from streams.log.events import NO_HISTORY, Caused
from streams.log.kafka.log import KafkaLog
from tests.conformance.histories import append, append_all, grow, history, values
from tests.log.index_snapshots import asked_again, wait_stored
from tests.log.kafka_histories import in_memory, made, new_topic, opening, producer, write
from tests.servers.find import KafkaAddress

__all__ = ["asked_again", "producer"]


class Kept(NamedTuple):
    """Where an index is kept.

    :ivar open: opens the log as the next process does.
    :ivar close: closes it, once this many of the topic's events are kept.
    """

    open: Callable[[], KafkaLog]
    close: Callable[[KafkaLog, str, int], None]


@pytest.fixture(params=["file", "snapshots"])
def kept(request: pytest.FixtureRequest, kafka: KafkaAddress, tmp_path: Path) -> Iterator[Kept]:
    def close(log: KafkaLog, topic: str, events: int) -> None:
        if request.param == "snapshots":
            wait_stored(log, topic, events)
        log.close()

    url = f"{kafka.url}?event_index={tmp_path}"
    if request.param == "snapshots":
        url = f"{kafka.url}?index_snapshots=1"
    with opening(url) as open_one:
        yield Kept(open_one, close)


@pytest.fixture
def topic(kafka: KafkaAddress) -> str:
    return new_topic(kafka)


@pytest.mark.usefixtures("asked_again")
def test_the_next_process_goes_on_where_it_ends(kept: Kept, topic: str) -> None:
    log = kept.open()
    heads = {b"key %d" % n: grow(log, topic, b"key %d" % n, b"1", b"2") for n in range(30)}
    append(log, topic, b"c", NO_HISTORY, b"1", b"2", cause="why")
    refused, _ = append(log, topic, b"r", NO_HISTORY, b"no", cause="c", is_refusal=True)
    closed, _ = append(log, topic, b"f", NO_HISTORY, b"end", is_final=True)
    uncounted = log._events.uncounted_offsets(topic, 0, 0, 64)
    totals, keys = log.event_totals(topic), log.list_keys(topic, 0, None, 100)
    kept.close(log, topic, 63)

    log = kept.open()
    assert log.event_totals(topic) == totals
    assert in_memory(log, topic) == [0]
    assert log.list_keys(topic, 0, None, 100) == keys
    assert (
        log.list_keys(topic, 0, b"key 11", 3) == [each for each in keys if each.key > b"key 11"][:3]
    )
    for key, head in heads.items():
        found = history(log, topic, key)
        assert (found.head, values(found)) == (head, [b"1", b"2"])
    assert history(log, topic, b"c", cause="why").caused == Caused(1, 2)
    assert history(log, topic, b"r", cause="c").head == refused.head
    assert append_all(log, topic, [refused, closed])[0] == append_all(log, topic, [refused])[0]
    assert history(log, topic, b"f").head == closed.head
    assert log._events.uncounted_offsets(topic, 0, 0, 64) == uncounted
    # What follows is folded as ever, upon what was kept.
    assert grow(log, topic, b"key 1", b"3").base.version == 3
    assert values(history(log, topic, b"key 1")) == [b"1", b"2", b"3"]


def test_what_was_written_meanwhile_is_folded(kept: Kept, topic: str, producer: Producer) -> None:
    log = kept.open()
    head = grow(log, topic, b"k", b"1")
    kept.close(log, topic, 1)
    more, loser = made(b"k", head.base, 2), made(b"k", head.base)
    write(producer, topic, [*more.records, *loser.records, *made(b"new").records])
    log = kept.open()
    assert history(log, topic, b"k").head == more.head
    assert history(log, topic, b"new").head.base.version == 1
    assert log._events.uncounted_offsets(topic, 0, 0, 5) == [3]


@pytest.mark.usefixtures("no_voids")
def test_an_append_of_which_a_part_was_folded_before_counts_when_it_is_whole(
    kept: Kept, topic: str, producer: Producer
) -> None:
    log = kept.open()
    slow = made(b"k", count=2)
    write(producer, topic, [slow.records[0], *made(b"o").records])
    log.event_totals(topic)
    kept.close(log, topic, 1)
    write(producer, topic, slow.records[1:])
    log = kept.open()
    assert history(log, topic, b"k").head == slow.head
    assert log._events.uncounted_offsets(topic, 0, 0, 3) == []
