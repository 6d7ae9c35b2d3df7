"""Blocks: what goes in comes out, however it is cut, merged and sliced."""

from __future__ import annotations

import sys

from hypothesis import example, given
from hypothesis import strategies as st

from streams.log.sqlite import blocks
from streams.log.sqlite.blocks import (
    BlockRow,
    BlockSlice,
    SqliteBatch,
    decode_block,
    encode_block,
    encode_blocks,
    merge_blocks,
)
from streams.message import ID, REDRIVE, SOURCE, Headers, Record, make_identity, text

# Any text at all: foreign bytes are kept by surrogates.
words = st.text(st.characters(), max_size=8)
data = st.none() | st.binary(max_size=20)
names = words | st.sampled_from([SOURCE, REDRIVE, "traceparent"])
headers = st.lists(st.tuples(names, data), max_size=3)
records = st.lists(st.builds(Record, data, data, words, headers), max_size=12)


def wire(name: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def wanted(record: Record) -> tuple[bytes | None, bytes | None, str | None, list[object]]:
    found = {name: value for name, value in record.headers if name in (SOURCE, REDRIVE)}
    id = record.id and make_identity(
        record.id, text(found.get(SOURCE) or b""), text(found.get(REDRIVE) or b"")
    )
    head: Headers = [(ID, wire(record.id.partition("\0")[0]))] if record.id else []
    return record.key, record.value, id or None, [*head, *record.headers]


def rows(batch: SqliteBatch) -> list[tuple[bytes | None, bytes | None, str | None, list[object]]]:
    return [
        (batch.keys[i], batch.values[i], batch.ids[i], list(batch.headers(i)))
        for i in range(len(batch))
    ]


@given(records)
@example([Record(b"v", None, "\udcff", [("\udc80", None)])])
@example([Record(b"v", None, "\ud800", ())])
def test_a_block_holds_what_was_put_in(written: list[Record]) -> None:
    block = decode_block(encode_block(written))
    batch = SqliteBatch("t", 0, [BlockSlice(5, 7_000_000, block, 0, len(written))])
    assert rows(batch) == [wanted(record) for record in written]
    assert list(batch.offsets) == list(range(5, 5 + len(written)))
    assert [batch.time(i) for i in range(len(written))] == [7.0] * len(written)


@given(st.lists(records.filter(len), min_size=1, max_size=4), st.data())
def test_merged_and_sliced_blocks_read_like_the_single_ones(
    written: list[list[Record]], chance: st.DataObject
) -> None:
    parts = [
        BlockRow(i, len(few), 1_000_000 * i, encode_block(few)) for i, few in enumerate(written, 1)
    ]
    cut = chance.draw(st.integers(1, len(parts)))
    merged = BlockRow(
        1,
        sum(part.messages for part in parts[:cut]),
        parts[cut - 1].time,
        merge_blocks(parts[:cut]),
    )
    flat = [record for few in written for record in few]
    low = chance.draw(st.integers(0, len(flat) - 1))
    high = chance.draw(st.integers(low + 1, len(flat)))
    slices, first = [], 0
    for row in (merged, *parts[cut:]):
        start, stop = max(low, first) - first, min(high, first + row.messages) - first
        if start < stop:
            slices.append(BlockSlice(first, row.time, decode_block(row.data), start, stop))
        first += row.messages
    batch = SqliteBatch("t", 0, slices)
    assert rows(batch) == [wanted(record) for record in flat[low:high]]
    assert list(batch.offsets) == list(range(low, high))
    times = [float(i) for i, few in enumerate(written, 1) for _ in few]
    assert [batch.time(i) for i in range(len(batch))] == times[low:high]


def test_blocks_are_bounded_in_messages_and_bytes() -> None:
    small = [Record(b"v", None, str(i)) for i in range(3 * blocks.BLOCK_MESSAGES + 1)]
    assert [block.messages for block in encode_blocks(small)] == [blocks.BLOCK_MESSAGES] * 3 + [1]
    large = [Record(bytes(blocks.BLOCK_BYTES // 3), b"k", str(i)) for i in range(10)]
    encoded = encode_blocks([*large, Record(bytes(3 * blocks.BLOCK_BYTES), b"k", "huge"), *large])
    assert sum(block.messages for block in encoded) == 21
    assert [b.messages for b in encoded if len(b.data) > blocks.BLOCK_BYTES] == [1]


def test_a_block_keeps_nothing_of_the_bytes_it_was_made_from() -> None:
    data = encode_block([Record(b"v" * 1000, b"k", "i", [("h", b"x")])])
    before = sys.getrefcount(data)
    block = decode_block(data)
    assert sys.getrefcount(data) == before
    assert block.values == [b"v" * 1000]


def test_a_batch_can_let_go_of_its_bytes() -> None:
    block = decode_block(encode_block([Record(b"v", b"k", "i", [("h", b"x")])] * 2))
    batch = SqliteBatch("t", 0, [BlockSlice(0, 0, block, 0, 2)])
    batch.release(0)
    assert (batch.keys, batch.values) == ([None, b"k"], [None, b"v"])
    assert batch.headers(0) == ((ID, b"i"), ("h", b"x"))
    assert batch.total_and_largest()[0] == 2
