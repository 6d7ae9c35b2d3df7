"""Entries as columns: what was written is read, whatever its shape and whoever wrote it."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from streams.log.redis.batch import (
    EntryFields,
    EntryIdOffsets,
    RedisBatch,
    encode_fields,
    layout_of,
)
from streams.log.redis.keys import RedisEntryId, entry_id
from streams.message import ID, REDRIVE, SOURCE, Record, identity_of, make_identity

names = st.sampled_from(
    ["value", "key", ID, "header:value", "null:x", "null:", SOURCE, REDRIVE, "ce_type", "ü", "h"]
) | st.text(max_size=8)
headers = st.lists(st.tuples(names, st.none() | st.binary(max_size=4)), max_size=4)
records = st.builds(
    Record,
    st.none() | st.binary(max_size=8),
    st.none() | st.binary(max_size=4),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6),
    headers,
)


def row(record: Record) -> EntryFields:
    """A record as it comes back from the server."""
    names, values, _ = encode_fields(record)
    found: EntryFields = []
    for name, value in zip(names, values, strict=False):
        found += (name.encode() if isinstance(name, str) else name, value)
    return found


def entries(rows: list[EntryFields]) -> RedisBatch:
    return RedisBatch("t", 0, [(entry_id(n + 1), each) for n, each in enumerate(rows)])


@given(st.lists(records, min_size=1, max_size=6), st.booleans())
def test_what_is_written_is_read(some: list[Record], uniform: bool) -> None:
    if uniform:
        some = [msgspec.structs.replace(some[0], id=each.id) for each in some]
    batch = entries([row(each) for each in some])
    for index, each in enumerate(some):
        id = each.id.encode()
        # Nobody writes a second ce_id field: the ID goes first, and the rest is escaped.
        assert batch.keys[index] == each.key
        assert batch.values[index] == each.value
        assert list(batch.headers(index)) == [(ID, id), *each.headers]
        special = [pair for pair in each.headers if pair[0] in (SOURCE, REDRIVE)]
        assert batch.ids[index] == identity_of([(ID, id), *special])
        assert batch.id(index) == each.id


def test_an_entry_of_others_is_the_object_of_its_fields() -> None:
    batch = entries(
        [
            [b"amount", b"5", b"currency", b"EUR"],
            [b"key", b"k1", b"amount", b"6"],
            [b"raw", b"\xff\x00"],
        ]
    )
    assert [msgspec.json.decode(value or b"") for value in batch.values] == [
        {"amount": "5", "currency": "EUR"},
        {"key": "k1", "amount": "6"},
        {"raw": "\\xff\x00"},
    ]
    assert batch.keys == [None, b"k1", None]
    assert batch.ids == [None, None, None]
    assert batch.headers(0) == []
    assert batch.id(0) == "t/0/0-1"


def test_neighbours_of_different_shape_do_not_disturb_each_other() -> None:
    plain: EntryFields = [b"value", b"v", b"key", b"k", b"ce_id", b"i"]
    batch = entries(
        [
            plain,
            [b"key", b"k", b"value", b"v2", b"ce_id", b"i2"],
            [b"value", b"v3", b"key", b"k", b"ce_ix", b"i3"],
            [b"value", b"v4"],
            [b"ce_id", b"i5"],
            [b"value", b"v6", b"ce_id", b""],
        ]
    )
    assert batch.values == [b"v", b"v2", b"v3", b"v4", None, b"v6"]
    assert batch.keys == [b"k", b"k", b"k", None, None, None]
    assert batch.ids == ["i", "i2", None, None, "i5", None]


def test_an_identity_has_source_and_redrive_count() -> None:
    record = Record(b"v", None, "id", [(REDRIVE, b"2"), (SOURCE, b"here")])
    names, values, place = encode_fields(record)
    batch = entries([row(record)])
    assert batch.ids == [make_identity("id", "here", "2")]
    assert values[place].decode() == batch.ids[0]
    assert place == len(names), "it is not one of the fields"


def test_what_was_released_is_gone() -> None:
    plain: EntryFields = [b"value", b"v", b"key", b"k", b"ce_id", b"i", b"h", b"x"]
    for rows in ([plain, plain], [plain, [b"value", b"v"], plain]):
        batch = entries(rows)
        batch.release(0)
        assert (batch.keys[0], batch.values[0]) == (None, None)
        assert not {b"x", b"v", b"k"} & {value for _, value in batch.headers(0)}
        assert (batch.keys[-1], batch.values[-1]) == (b"k", b"v")
        last = len(batch) - 1
        assert list(batch.headers(last)) == [("ce_id", b"i"), ("h", b"x")]


@given(st.lists(st.integers(0, (1 << 128) - 1), min_size=1))
def test_offsets_are_the_entry_ids(numbers: list[int]) -> None:
    offsets = EntryIdOffsets([entry_id(number) for number in numbers])
    assert list(offsets) == numbers
    assert [offsets[index] for index in range(len(offsets))] == numbers
    assert list(offsets[1:]) == numbers[1:]
    assert offsets[-1] == numbers[-1]


def test_times_and_offsets_show_what_redis_shows() -> None:
    batch = RedisBatch("t", 0, [(b"1700000000123-7", [b"value", b"v"])])
    assert batch.time(0) == 1700000000.123
    assert f"{batch.offset(0)}" == "1700000000123-7"
    assert batch.offset(0) == 1700000000123 << 64 | 7
    assert isinstance(batch.offset(0), RedisEntryId)


def test_what_is_remembered_of_field_names_is_bounded() -> None:
    seen: Any = layout_of.__globals__["_layouts"]
    for number in range(3_000):
        layout_of((b"name-%d" % number,))
    assert len(seen) <= 1_000
