"""One text form of a position, which everything that takes a position reads, whatever the log."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import InvalidValue, Message, Position, wire
from streams.cli.command_errors import UsageError
from streams.cli.offset_arguments import parse_offsets
from streams.errors import ConfigError
from streams.log.kafka.log import KafkaLog
from streams.log.memory.log import MemoryLog
from streams.log.redis.log import RedisLog
from streams.log.sqlite.log import SqliteLog

HALF = 1 << 64

numbers = st.integers(0, 10**wire.MAX_DIGITS - 1)
entries = st.integers(HALF, HALF * HALF - 1)
topics = st.from_regex(r"[A-Za-z0-9._-]{1,249}", fullmatch=True)
partitions = st.integers(0, 99_999)

LOGS = [(MemoryLog, numbers), (SqliteLog, numbers), (KafkaLog, numbers), (RedisLog, entries)]


@pytest.mark.parametrize(("kind", "offsets"), LOGS, ids=lambda each: getattr(each, "__name__", ""))
@given(data=st.data(), topic=topics, partition=partitions)
def test_every_log_reads_what_is_shown_of_its_positions(
    kind: Any, offsets: st.SearchStrategy[int], data: st.DataObject, topic: str, partition: int
) -> None:
    log = kind
    position = Position(topic, partition, data.draw(offsets))
    text = str(position)
    assert Position.parse(text) == position
    assert str(Position.parse(text)) == text
    assert text == f"{topic}/{partition}/{log.format_offset(None, position.offset)}"
    assert log.parse_offset(None, text.rpartition("/")[2]) == position.offset
    found = cast(Any, parse_offsets(text, "--from", topic))
    assert list(found) == [partition]
    assert log.parse_offset(None, found[partition]) == position.offset


@given(st.integers(0, HALF * HALF - 1), topics, partitions)
def test_any_offset_comes_back(offset: int, topic: str, partition: int) -> None:
    position = Position(topic, partition, offset)
    assert Position.parse(str(position)) == position
    entry = Position(topic, partition, wire.RedisEntryId(offset))  # as Redis's messages have it
    assert str(Position.parse(str(entry))) == str(entry)
    assert Position.parse(str(entry)) == position
    # As it was shown before there was one form.
    assert Position.parse(f"{topic}/{partition}/{offset:d}") == position


@given(entries)
def test_redis_also_reads_the_number(offset: int) -> None:
    assert RedisLog.parse_offset(cast(Any, None), str(offset)) == offset


@given(st.text() | st.from_regex(r"[a-z/]{0,9}[0-9-]{0,45}/[0-9-]{0,45}", fullmatch=True))
def test_what_is_no_position_is_an_error_of_one_line(text: str) -> None:
    if wire.parse_position(text) is None:
        with pytest.raises(InvalidValue, match="orders/0/17") as caught:
            Position.parse(text)
        assert "\n" not in str(caught.value)
    else:
        assert 0 <= Position.parse(text).offset < HALF * HALF


def test_what_is_no_text_is_an_error() -> None:
    with pytest.raises(InvalidValue, match="bytes is not a position"):
        Position.parse(cast(Any, b"orders/0/1"))


def test_a_message_is_shown_where_it_stands() -> None:
    message = Message(1, topic="orders", partition=3, offset=1795811598345 << 64 | 2)
    assert str(message.position) == "orders/3/1795811598345-2"
    assert "at orders/3/1795811598345-2 attempt 1" in repr(message)
    assert message.id == "orders/3/1795811598345-2"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("orders/0/17", {0: "17"}),
        ("orders/0/17,orders/1/9", {0: "17", 1: "9"}),
        ("0/17,1/9", {0: "17", 1: "9"}),
        ("orders/0/17,1/latest", {0: "17", 1: "latest"}),
        ("17", "17"),
    ],
)
def test_places_of_a_command_line(text: str, found: object) -> None:
    assert parse_offsets(text, "--from", "orders") == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bills/0/17", "a position in bills, and not in orders"),
        ("orders/17", "several positions"),
        ("orders/0/17,0/9", "named twice"),
        ("orders/x/17", "several positions"),
    ],
)
def test_a_place_elsewhere_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_offsets(text, "--from", "orders")


def test_an_entry_id_is_no_offset_of_the_other_logs() -> None:
    for kind in (MemoryLog, SqliteLog, KafkaLog):
        with pytest.raises(ConfigError):
            cast(Any, kind).parse_offset(None, "1795811598345-0")
