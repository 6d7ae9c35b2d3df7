"""The depth of a document, found in bulk, beside plain parsers that follow every bracket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_codecs import depth
from stream_codecs.depth import json_is_deeper, msgpack_is_deeper

limits = st.integers(1, 6)
documents = st.recursive(
    st.none() | st.integers(-5, 300) | st.text('[]{}"\\a\u20ac', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text('[]{}"\\a', max_size=3), inner, max_size=3)
    ),
    max_leaves=25,
)


def levels(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(levels, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(levels, value), default=0)
    return 0


@pytest.fixture(autouse=True, scope="module")
def small_chunks() -> Any:
    """Documents of a few bytes must go through everything that large ones do."""
    patch = pytest.MonkeyPatch()
    patch.setattr(depth, "_CHUNK", 7)
    yield
    patch.undo()


@given(documents, limits, st.sampled_from([None, 1]), st.booleans())
def test_depth_of_a_json_document(
    value: Any, limit: int, indent: int | None, ascii_only: bool
) -> None:
    data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    assert json_is_deeper(data, limit) == (levels(value) > limit)


@given(documents, limits)
def test_depth_of_a_messagepack_document(value: Any, limit: int) -> None:
    assert msgpack_is_deeper(msgspec.msgpack.encode(value), limit) == (levels(value) > limit)


class _Stop(Exception):
    """The document is malformed here."""


class _Parser:
    """Descends as a strict decoder does, and notes how deep it was when it stopped."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.deepest = 0

    def reached(self, item: Callable[[int], None]) -> int:
        try:
            item(0)
        except (_Stop, IndexError):
            pass
        return self.deepest

    def enter(self, level: int) -> int:
        self.deepest = max(self.deepest, level + 1)
        return level + 1

    def match(self, pattern: bytes) -> bytes:
        found = re.compile(pattern, re.DOTALL).match(self.data, self.at)
        if not found:
            raise _Stop
        self.at = found.end()
        return found[0]

    def json(self, level: int) -> None:
        self.match(rb"\s*")
        opener = self.data[self.at : self.at + 1]
        if opener not in (b"[", b"{"):
            self.match(rb'"(?:[^"\\]|\\.)*"|-?\d+|null')
            return
        self.at += 1
        inner = self.enter(level)
        closer = b"]" if opener == b"[" else b"}"
        self.match(rb"\s*")
        if self.data[self.at : self.at + 1] == closer:
            self.at += 1
            return
        while True:
            if opener == b"{":
                self.match(rb'\s*"(?:[^"\\]|\\.)*"\s*:')
            self.json(inner)
            if self.match(rb"\s*[,\]}]")[-1:] == closer:
                return
            if self.data[self.at - 1 : self.at] != b",":
                raise _Stop

    def msgpack(self, level: int) -> None:
        byte = self.data[self.at]
        self.at += 1
        if byte >> 4 in (8, 9) or byte in (0xDC, 0xDE):
            if byte in (0xDC, 0xDE):
                count = self.data[self.at] * 256 + self.data[self.at + 1]
                self.at += 2
            else:
                count = byte & 15
            inner = self.enter(level)
            for _ in range(count * (2 if byte >> 4 == 8 or byte == 0xDE else 1)):
                self.msgpack(inner)
        elif 0xA0 <= byte < 0xC0:
            self.at += byte & 31
        elif byte in (0xC4, 0xD9):
            self.at += 1 + self.data[self.at]
        elif byte in (0xCD, 0xD4):
            self.at += 2
        elif not (byte < 0x80 or byte >= 0xE0 or byte == 0xC0):
            raise _Stop


@given(st.text('[]{}",:\\1 \n', max_size=60), limits)
def test_no_broken_json_takes_a_decoder_deeper(text: str, limit: int) -> None:
    data = text.encode()
    parser = _Parser(data)
    if parser.reached(parser.json) > limit:
        assert json_is_deeper(data, limit)


broken = st.lists(
    st.sampled_from(
        [b"\x01", b"\x90", b"\x91", b"\x92", b"\x81", b"\x82", b"\xa2ab", b"\xdc\x00\x02",
         b"\xde\x00\x01", b"\xc4\x01\x91", b"\xd9\x02\x91\x91", b"\xcd\x91\x91", b"\xd4\x91\x91",
         b"\xc0", b"\xc1", b"\xff"]
    ),
    max_size=25,
).map(b"".join)  # fmt: skip


@given(broken, limits)
def test_no_broken_messagepack_takes_a_decoder_deeper(data: bytes, limit: int) -> None:
    parser = _Parser(data)
    if parser.reached(parser.msgpack) > limit:
        assert msgpack_is_deeper(data, limit)


@pytest.mark.parametrize(
    ("item", "levels_each"),
    [(b"[", 1), (b'{"":', 1), (b'[1,{"\\"[":', 2), (b'{"a":[1,', 2), (b'["]}]}",', 1)],
)
def test_levels_of_json_by_the_thousand(item: bytes, levels_each: int) -> None:
    for count in (200, 100_000):
        data = item * count
        assert json_is_deeper(data, count * levels_each - 1)
        assert not json_is_deeper(data, count * levels_each)


@pytest.mark.parametrize(
    ("item", "levels_each"),
    [
        (b"\x91", 1), (b"\x81\x01", 1), (b"\x81", 1), (b"\x92\x01\x81\xa1[", 2),
        (b"\xdc\x00\x01", 1), (b"\xdd\x00\x00\x00\x01", 1), (b"\xde\x00\x01\x01", 1),
        (b"\xdf\x00\x00\x00\x01\xc0", 1), (b"\x92\xc5\x00\x02\x91\x91", 1),
        (b"\x92\xdb\x00\x00\x00\x01\x91", 1), (b"\x92\xc8\x00\x02\x05\x91\x91", 1),
        (b"\x92\xd8\x05" + b"\x91" * 16, 1), (b"\x92\xcb" + b"\x91" * 8, 1),
        (b"\x92\xca\x91\x91\x91\x91", 1), (b"\x92\xd0\x91", 1),
    ],
)  # fmt: skip
def test_levels_of_messagepack_by_the_thousand(item: bytes, levels_each: int) -> None:
    for count in (200, 20_000):
        data = item * count
        assert msgpack_is_deeper(data, count * levels_each - 1)
        assert not msgpack_is_deeper(data, count * levels_each)


def test_many_containers_beside_each_other_are_not_deep() -> None:
    rows = [{"name": "a [[[[", "values": [1, 2, []]}] * 2_000
    assert not json_is_deeper(json.dumps(rows).encode(), 4)
    assert json_is_deeper(json.dumps(rows).encode(), 3)
    assert not msgpack_is_deeper(msgspec.msgpack.encode(rows), 4)
    assert msgpack_is_deeper(msgspec.msgpack.encode(rows), 3)
