"""The driver's messages as columns."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import KafkaError
from confluent_kafka import Message as KMessage
from hypothesis import given
from hypothesis import strategies as st

from streams.log.kafka.batch import KafkaBatch, offsets_of, remove_errors, split_by_partition
from streams.message import identity_of, identity_suffix, make_identity


def message(offset: int = 0, topic: str = "t", partition: int = 0, **more: Any) -> Any:
    return KMessage(topic=topic, partition=partition, offset=offset, **more)


def test_columns_are_read_from_the_drivers_objects() -> None:
    messages = [
        message(3, key=b"k", value=b"v", headers=[("ce_id", b"a")], timestamp=(1, 1500)),
        message(7, value=None, headers=[("x", None)], timestamp=(1, 2500)),
    ]
    batch = KafkaBatch("t", 0, messages, "owner")
    assert (list(batch.offsets), batch.keys, batch.values) == ([3, 7], [b"k", None], [b"v", None])
    assert batch.assignment == "owner"
    assert batch.ids == ["a", None]
    assert [batch.id(0), batch.id(1)] == ["a", "t/0/7"]
    assert (batch.headers(0), batch.headers(1)) == ([("ce_id", b"a")], [("x", None)])
    assert (batch.time(0), batch.time(1)) == (1.5, 2.5)
    assert (len(batch), batch.message_sizes()) == (2, [2, 0])


def test_an_id_can_be_read_without_making_all_of_them() -> None:
    batch = KafkaBatch("t", 0, [message(headers=[("ce_id", b"a"), ("ce_source", b"s")])])
    assert batch.id(0) == "a"
    assert batch._ids is None
    assert batch.ids == [make_identity("a", "s")]


def test_what_is_released_is_let_go() -> None:
    batch = KafkaBatch("t", 0, [message(1, key=b"k", value=b"v"), message(2, value=b"w")])
    batch.release(0)
    assert batch.keys == [None, None]
    assert batch.values == [None, b"w"]
    assert (batch.headers(0), batch.time(0), batch.ids) == ((), 0.0, [None, None])


@given(st.lists(st.integers(0, 1 << 62), min_size=1, max_size=20, unique=True).map(sorted))
def test_offsets_are_those_of_the_messages_with_gaps_and_without(found: list[int]) -> None:
    assert list(offsets_of([message(each) for each in found])) == found
    dense = range(found[0], found[0] + len(found))
    assert list(offsets_of([message(each) for each in dense])) == list(dense)


pairs = st.lists(
    st.tuples(
        st.sampled_from(["ce_id", "ce_source", "streams_redrive", "other"]),
        st.none() | st.sampled_from([b"", b"a", b"\xff\xfe", "ü".encode(), b"1"]),
    ),
    max_size=3,
)


@given(st.lists(st.none() | pairs, min_size=1, max_size=6), st.booleans())
def test_what_identities_have_beside_the_ids_is_known_without_them(
    headers: list[Any], released: bool
) -> None:
    batch = KafkaBatch("t", 0, [message(n, headers=each) for n, each in enumerate(headers)])
    if released:
        batch.release(0)
    marks = batch.identity_suffixes()
    assert batch._ids is None
    assert marks is None or any(marks)
    assert (marks or [""] * len(headers)) == [identity_suffix(each) for each in batch.ids]


@given(st.lists(st.none() | pairs, max_size=5))
def test_the_fast_way_to_identities_finds_what_the_plain_one_finds(
    headers: list[list[tuple[str, bytes | None]] | None],
) -> None:
    messages = [message(headers=each) for each in headers]
    if messages:
        assert KafkaBatch("t", 0, messages).ids == [identity_of(each or ()) for each in headers]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2)), max_size=12))
def test_what_was_polled_is_cut_into_runs_of_one_partition(places: list[tuple[str, int]]) -> None:
    messages = [message(n, topic, partition) for n, (topic, partition) in enumerate(places)]
    found = list(split_by_partition(messages, None))
    assert [each for _, _, run in found for each in run] == messages
    for topic, partition, run in found:
        assert {(each.topic(), each.partition()) for each in run} == {(topic, partition)}
    for one, other in pairwise(found):
        assert one[:2] != other[:2]
    if len({topic for topic, _ in places}) == 1:
        assert [run[1:] for run in split_by_partition(messages, places[0][0])] == [
            run[1:] for run in found
        ]


@pytest.mark.parametrize("bad", [[], [0], [1], [0, 2], [0, 1, 2]])
def test_errors_are_told_from_messages(bad: list[int]) -> None:
    messages = [
        message(n, error=KafkaError(KafkaError._TRANSPORT) if n in bad else None) for n in range(3)
    ]
    kept = [id(each) for n, each in enumerate(messages) if n not in bad]
    taken = [id(messages[n]) for n in bad]
    assert [id(each) for each in remove_errors(messages)] == taken
    assert [id(each) for each in messages] == kept
