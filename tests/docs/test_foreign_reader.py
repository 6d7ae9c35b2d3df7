"""The reader of event topics that docs/event-sourcing.md shows, in plain confluent-kafka: it finds
what the toolkit finds, whatever else stands in the topic."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Callable, Sequence
from typing import Any, cast
from uuid import uuid4

import pytest
from confluent_kafka import Producer
from hypothesis import given
from hypothesis import strategies as st

from streams.log.event_headers import (
    CAUSE,
    EVENT,
    FINAL,
    VOID,
    event_header,
    is_final,
    make_append,
    parse_event,
)
from streams.log.events import NO_HISTORY, Base, EventLog, HistoryRequest
from streams.log.kafka.arbitration import Arbiter
from streams.log.kafka.partition_index import event_id
from streams.log.url import open_log
from streams.message import ID, Record
from streams.wire import text
from tests.docs.blocks import PYTHON, ROOT, blocks
from tests.servers.find import KafkaAddress

PAGE = ROOT / "docs" / "event-sourcing.md"


def shown() -> dict[str, Any]:
    """The page's blocks that speak of confluent_kafka, run."""
    scope: dict[str, Any] = {}
    for block in blocks(PAGE):
        if block.language in PYTHON and "confluent_kafka" in block.text:
            exec(compile(block.text, block.page, "exec"), scope)
    return scope


EVENTS: Callable[[Sequence[Any]], Any] = shown()["events"]


Headers = list[tuple[str, bytes | None]]


class Message:
    """As much of a message of confluent_kafka as the reader asks for."""

    def __init__(self, offset: int, key: bytes | None, headers: Headers | None) -> None:
        self._offset, self._key, self._headers = offset, key, headers

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return self._key

    def headers(self) -> Headers | None:
        return self._headers


def feed(arbiter: Arbiter, message: Message) -> list[tuple[int, int]]:
    """Version and offset of each event that counts with this message, by the toolkit's rule."""
    headers = message.headers() or []
    for name, value in headers:
        if name == VOID and value is not None:
            arbiter.void(message.key(), text(value))
    record_id = text(event_id(headers))
    header, last = parse_event(event_header(headers), record_id), is_final(headers)
    counted = arbiter.feed(message.offset(), message.key(), record_id, header, "", last)
    if counted is None or counted.is_refusal:
        return []
    return list(enumerate(counted.offsets, counted.base.version + 1))


def expected(messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Version and offset of each event."""
    arbiter = Arbiter()
    return [each for message in messages for each in feed(arbiter, message)]


KEYS = tuple(b"key %d" % number for number in range(8))
STRANGERS = (
    b"", b"0/1", b"x/1/0/", b"1/2/0//someone", b"0/1/0/x/y/z", b"\xff", None,
    b"0/1/0//someone", b"0/10001/0/", b"0/1/3/", b"00/1/0/", b"1/1/0//someone",
)  # fmt: skip
"""What others may write into the header of an event: nearly right."""


def near_misses() -> list[Headers]:
    """Records that others made, and that are an event but for one thing, or in spite of one."""
    event, id = (EVENT, b"0/1/0/"), (ID, b"m")
    return [
        [event, (ID, b"a/b")], [event, (ID, b"i" * 201)], [event, (ID, "ä".encode() * 150)],
        [(EVENT, b"0/1/7/zz"), event, id], [event, (EVENT, b"0/1/7/zz"), id],
        [event, (ID, b""), id], [event, id, (ID, b"other")], [event, (ID, b"\xff")],
        [(EVENT, b"0/1/0/" + b"x" * 600), id], [event, id, (FINAL, b"1"), (FINAL, b"0")],
        [event, id, (FINAL, b"0"), (FINAL, b"1")], [event, id, (VOID, b"m")],
        [(EVENT, b"0/2/0/"), id], [(EVENT, None), event, id], [event, (ID, b"m\0x")],
        [event, id, (ID, None)], [event], [id], [],
    ]  # fmt: skip


def append_id_of(record: Record) -> bytes:
    """The ID of the append that a record belongs to."""
    header = parse_event(dict(record.headers).get(EVENT), record.id)
    assert header is not None
    return header.append_id.encode()


def messages_of(choose: random.Random, length: int) -> list[Message]:
    """What several writers leave in a partition: appends on bases that hold or not, in pieces that
    mingle, twice, cut off; refusals, last ones; and what others write."""
    arbiter = Arbiter()
    bases: dict[bytes, list[Base]] = {key: [NO_HISTORY] for key in KEYS}
    unwritten: list[list[Record]] = []
    written: list[Message] = []
    while len(written) < length:
        what = choose.random()
        if what < 0.1:
            header = choose.choice(STRANGERS)
            id = uuid4().hex.encode()
            stranger = [(EVENT, header), (ID, id)] if what < 0.05 else None
            written.append(Message(len(written), choose.choice([*KEYS, None]), stranger))
        elif what < 0.15 and unwritten:
            record = choose.choice(unwritten)[0]  # one that has begun, or will
            void: Headers = [(VOID, append_id_of(record)), (ID, uuid4().hex.encode())]
            message = Message(len(written), record.key, void)
            written.append(message)
            feed(arbiter, message)
        elif not unwritten or (what < 0.5 and len(unwritten) < 4):
            key = choose.choice(KEYS)
            is_refusal = choose.random() < 0.1
            count = 1 if is_refusal else choose.choice([1, 1, 2, 3])
            made = make_append(
                key,
                choose.choice([bases[key][-1]] * 4 + bases[key][-3:]),
                [Record(b"", key, uuid4().hex, ()) for _ in range(count)],
                cause=choose.choice(["", "c"]),
                is_final=not is_refusal and choose.random() < 0.02,
                is_refusal=is_refusal,
            )
            unwritten += [list(made.records)] * (2 if choose.random() < 0.1 else 1)
            unwritten[-1] = list(unwritten[-1])  # the same append a second time
        else:
            records = choose.choice(unwritten[:3])
            record = records.pop(0)
            if not records or choose.random() < 0.1:  # all of it, or its writer was killed
                unwritten = [each for each in unwritten if each is not records]
            headers = [*record.headers, (ID, record.id.encode())]
            message = Message(len(written), record.key, headers)
            written.append(message)
            feed(arbiter, message)
            key = record.key or b""
            if arbiter.head(key).base != bases[key][-1]:
                bases[key].append(arbiter.head(key).base)
    return written


@given(st.integers(), st.integers(1, 80))
def test_it_finds_what_the_toolkit_finds(seed: int, length: int) -> None:
    messages = messages_of(random.Random(seed), length)
    assert [(version, each.offset()) for version, each in EVENTS(messages)] == expected(messages)


@pytest.mark.parametrize("key", [b"k", b"", None])
@pytest.mark.parametrize(
    "headers", [*near_misses(), *([(EVENT, each), (ID, b"m")] for each in STRANGERS)]
)
def test_one_record_that_somebody_made_forks_no_reader(headers: Headers, key: bytes | None) -> None:
    """Whether it counts, both say the same, and so of all that comes behind it."""
    behind: list[Headers] = [
        [(EVENT, b"0/1/0/"), (ID, b"real")], [(EVENT, b"0/1/1/m"), (ID, b"next")],
        [(EVENT, b"1/2/0//m"), (ID, b"second")],
    ]  # fmt: skip
    messages = [Message(number, key, each) for number, each in enumerate([headers, *behind])]
    assert [(version, each.offset()) for version, each in EVENTS(messages)] == expected(messages)


def test_a_part_of_all_this_counts() -> None:
    """The comparison is of something: there are events, losers, halves and strangers."""
    messages = messages_of(random.Random(1), 600)
    counted = expected(messages)
    assert 80 < len(counted) < 400
    assert max(version for version, _ in counted) > 10
    assert any(CAUSE in dict(each.headers() or ()) for each in messages)


def test_it_reads_a_topic_of_kafka(kafka: KafkaAddress) -> None:
    topic = f"foreign-{uuid4().hex[:8]}"
    log = open_log(kafka.url)
    try:
        assert isinstance(log, EventLog)
        log.create_event_topic(topic, 1)
        messages = messages_of(random.Random(2), 300)
        producer = Producer({"bootstrap.servers": kafka.bootstrap})
        for each in messages:
            producer.produce(
                topic,
                str(each.offset()).encode(),
                each.key(),
                headers=cast(Any, each.headers() or []),
            )
        assert producer.flush(60) == 0
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            shown()["print_partition"](kafka.bootstrap, topic, 0)
        printed = out.getvalue().splitlines()
        wanted = expected(messages)
        assert printed == [
            f"{messages[offset].key()!r} {version} {str(offset).encode()!r}"
            for version, offset in wanted
        ]
        for key in KEYS:
            (history,) = log.read_histories(topic, [HistoryRequest(key)])
            assert [(each.version, each.offset) for each in history.events] == [
                each for each in wanted if messages[each[1]].key() == key
            ]
    finally:
        log.close()


def test_the_page_says_what_the_headers_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name in (ID, EVENT, CAUSE, FINAL, VOID):
        assert f"`{name}`" in text, name


@pytest.mark.parametrize("header", [None, b"", b"0/1/0", b"0/1/0/x/y/z", b"-1/1/0/", b"\xff/1/0/"])
def test_what_is_no_record_of_an_append_is_passed_over(header: bytes | None) -> None:
    id = uuid4().hex.encode()
    stranger = Message(0, b"a", [(EVENT, header), (ID, id)])
    event = Message(1, b"a", [(EVENT, b"0/1/0/"), (ID, id)])
    assert list(EVENTS([stranger, event])) == [(1, event)]
