"""Text, bytes and keys."""

from __future__ import annotations

import enum
import uuid
from typing import Annotated, Any, Literal, NewType

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_codecs import (
    BindError,
    Bytes,
    DecodeError,
    EncodeError,
    Json,
    Key,
    Text,
    default_codec,
)
from tests.codecs.samples import Departed, Foreign

Name = NewType("Name", str)


class Color(enum.StrEnum):
    RED = "red"


@given(st.text())
def test_text_there_and_back(value: str) -> None:
    bound = Text().bind(str, topic="t")
    data = bound.encode(value)
    assert data == value.encode()
    assert bound.decode(data) == value
    assert bound.decoder([data])(data) == value


@given(st.binary())
def test_bytes_are_left_alone(value: bytes) -> None:
    bound = Bytes().bind(bytes, topic="t")
    assert bound.encode(value) is value
    assert bound.decode(value) is value
    assert bound.decoder([value])(value) is value


@pytest.mark.parametrize("type", [str, str | None, Name, Any])
def test_types_that_are_text(type: Any) -> None:
    assert Text().bind(type, topic="t").decode("ä".encode()) == "ä"


@pytest.mark.parametrize("type", [int, bytes, str | int, Literal["a"], Color, Departed, None])
def test_types_that_are_not_text(type: Any) -> None:
    with pytest.raises(BindError, match=r"Text carries str, not .*; Json carries most types"):
        Text().bind(type, topic="t")


@pytest.mark.parametrize(
    ("codec", "type", "value", "reason"),
    [
        (Text(), str, b"a", "expected str, got bytes"),
        (Text(), str, None, "expected str, got None"),
        (Text(), str, "\ud800", "str holds text that is not UTF-8 (a lone surrogate)"),
        (Text(3), str, "aää", "5 bytes; at most 3 are allowed"),
        (Bytes(), bytes, "a", "expected bytes, got str"),
        (Bytes(), bytes, bytearray(b"a"), "expected bytes, got bytearray"),
        (Bytes(3), bytes, b"1234", "4 bytes; at most 3 are allowed"),
        (Key(), str, None, "a key is str, int, UUID or bytes, not None"),
        (Key(), str, True, "a key is str, int, UUID or bytes, not bool"),
        (Key(), str, 1.0, "a key is str, int, UUID or bytes, not float"),
        (Key(), str, "\ud800", "str holds text that is not UTF-8 (a lone surrogate)"),
        (Key(3), str, "1234", "4 bytes; at most 3 are allowed"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(
    codec: Text | Bytes | Key, type: Any, value: Any, reason: str
) -> None:
    with pytest.raises(EncodeError) as info:
        codec.bind(type, topic="t").encode(value)
    assert info.value.reason == reason


@pytest.mark.parametrize(
    ("codec", "type", "data", "reason", "offset"),
    [
        (Text(), str, b"ok \xff", "text that is not UTF-8", 3),
        (Text(3), str, b"1234", "4 bytes; at most 3 are allowed", None),
        (Bytes(3), bytes, b"1234", "4 bytes; at most 3 are allowed", None),
        (Key(3), str, b"1234", "4 bytes; at most 3 are allowed", None),
        (Key(), int, b"1_0", "does not read as int", None),
        (Key(), int, b" 10", "does not read as int", None),
        (Key(), int, b"010", "does not read as int", None),
        (Key(), int, b"-0", "does not read as int", None),
        (Key(), int, b"", "does not read as int", None),
        (Key(), int, b"9" * 5000, "does not read as int", None),
        (Key(), int, "\u0663".encode(), "does not read as int", None),
        (Key(), uuid.UUID, b"{12345678123456781234567812345678}", "does not read as UUID", None),
        (Key(), uuid.UUID, b"\xff", "does not read as UUID", None),
    ],
)
def test_poison(
    codec: Text | Bytes | Key, type: Any, data: bytes, reason: str, offset: int | None
) -> None:
    bound = codec.bind(type, topic="t")
    with pytest.raises(DecodeError) as info:
        bound.decode(data)
    assert (info.value.reason, info.value.offset) == (reason, offset)
    assert info.value.data is data
    assert bound.cleared([data]) is (isinstance(codec, Text) and codec.max_size > 3)


keys = st.text() | st.integers(-(2**70), 2**70) | st.uuids() | st.binary()


@given(keys)
def test_a_key_comes_back_as_its_type_and_as_text(key: str | int | uuid.UUID | bytes) -> None:
    data = Key().bind(type(key), topic="t").encode(key)
    assert Key().bind(type(key), topic="t").decode(data) == key
    forms: list[Any] = [str, Any, str | int]
    for form in forms:
        bound = Key().bind(form, topic="t")
        text = bound.decode(data)
        assert isinstance(text, str)
        assert bound.encode(text) == data
        assert bound.encode(key) == data


def test_a_key_reads_as_people_write_it() -> None:
    bound = Key().bind(str | int | uuid.UUID | bytes, topic="t")
    assert bound.encode("N1") == b"N1"
    assert bound.encode(-7) == b"-7"
    assert bound.encode(Color.RED) == b"red"
    assert bound.encode(uuid.UUID(int=1)) == b"00000000-0000-0000-0000-000000000001"


@pytest.mark.parametrize("type", [float, bool, Departed, str | float, None])
def test_types_that_are_no_keys(type: Any) -> None:
    with pytest.raises(BindError, match="a key is str, int, UUID or bytes, not"):
        Key().bind(type, topic="t")


@pytest.mark.parametrize(
    ("type", "codec"),
    [
        (bytes, Bytes()),
        (bytes | None, Bytes()),
        (str, Text()),
        (str | None, Text()),
        (Name, Text()),
        (Annotated[str, msgspec.Meta(max_length=3)], Json()),
        (Literal["a"], Json()),
        (Color, Json()),
        (int, Json()),
        (None, Json()),
        (Departed, Json()),
        (Any, Json()),
        (Foreign, Json()),
        ("nonsense", Json()),
    ],
)
def test_the_codec_of_a_topic_that_names_none(type: Any, codec: Any) -> None:
    assert default_codec(type) == codec


@pytest.mark.parametrize("codec", [Text, Bytes, Key])
def test_a_size_that_makes_no_sense(codec: Any) -> None:
    with pytest.raises(BindError, match=r"\(max_size=0\): at least 1 byte"):
        codec(max_size=0)
