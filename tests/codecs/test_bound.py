"""The seam itself: batches, headers, codecs of one's own, and what a message costs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from typing_extensions import TypeForm

from stream_codecs import (
    Bound,
    Bytes,
    Codec,
    DecodeError,
    EncodeError,
    Headers,
    Json,
    Key,
    MessagePack,
    Role,
    Text,
    UnknownTag,
    Zstd,
)
from tests.codecs.samples import (
    Cancelled,
    Departed,
    Diverted,
    Node,
    Row,
    nested_json,
    nested_msgpack,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Registry:
    """A codec whose messages say in a header by which schema they were written."""

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        schemas = {
            b"1": msgspec.json.Decoder(type).decode,
            b"2": msgspec.msgpack.Decoder(type).decode,
        }

        def decode(data: bytes, headers: Headers) -> T:
            value: T = schemas[dict(headers)["schema"] or b""](data)
            return value

        return Bound(
            encode=msgspec.json.encode,
            decode=decode,
            content_type="application/x-registry",
            needs_headers=True,
        )


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_codec_that_needs_the_headers(wrapped: bool) -> None:
    codec: Codec = Zstd(Registry()) if wrapped else Registry()
    bound = codec.bind(list[int], topic="t")
    assert bound.needs_headers
    outer = Zstd(Bytes()).bind(bytes, topic="t").encode if wrapped else bytes
    assert bound.decode(bound.encode([1, 2]), [("schema", b"1")]) == [1, 2]
    assert bound.decode(outer(b"\x92\x01\x02"), [("other", None), ("schema", b"2")]) == [1, 2]
    data = outer(b"[1, 2]")
    with pytest.raises(Exception) as info:
        bound.decode(data, [("schema", b"3")])
    error = bound.explain(data, info.value)
    assert type(error) is DecodeError
    assert (error.data, error.reason) == (data, "cannot be decoded: KeyError")


def test_a_codec_of_two_functions_is_a_codec() -> None:
    bound: Bound[int] = Bound(encode=lambda value: b"%d" % value, decode=int)
    assert bound.decoder([b"1"]) is bound.decode
    one, none, error = bound.decode_many([b"1", None, b"x"])
    assert (one, none) == (1, None)
    assert isinstance(error, DecodeError)
    assert (error.data, str(error)) == (b"x", "cannot be decoded: ValueError")


@pytest.mark.parametrize("codec", [Json(), MessagePack(), Json(max_size=60), Text(), Bytes()])
def test_many_values_are_encoded_as_one_by_one(codec: Codec) -> None:
    text, raw = isinstance(codec, Text), isinstance(codec, Bytes)
    kind: Any = str if text else bytes if raw else Departed
    bound: Bound[Any] = codec.bind(kind, topic="t")
    rows: list[Any] = [Departed(f"N{n}", "UA", n) for n in range(10)]
    values = [str(row) for row in rows] if text else [b"%d" % n for n in range(10)] if raw else rows
    limited = isinstance(codec, Json) and codec.max_size == 60
    assert bound.encode_many([]) == []
    if limited:
        with pytest.raises(EncodeError, match="60"):
            bound.encode_many(values)
        return
    assert bound.encode_many(values) == [bound.encode(value) for value in values]


@pytest.mark.parametrize("wrong", [Departed("N1", "UA", "late"), None, 7])  # type: ignore[arg-type]
@pytest.mark.parametrize("at", [0, 5, 9])
def test_one_value_that_does_not_fit_is_found_among_many(wrong: Any, at: int) -> None:
    bound: Bound[Any] = Json().bind(Departed, topic="t")
    values: list[Any] = [Departed(f"N{n}", "UA", n) for n in range(10)]
    values[at] = wrong
    with pytest.raises(EncodeError):
        bound.encode_many(values)


def test_the_codec_in_the_documentation_works() -> None:
    page = (Path(__file__).parents[2] / "docs" / "codecs.md").read_text()
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[-1]
    namespace: dict[str, Any] = {}
    exec(example, namespace)
    bound: Bound[Row] = namespace["PlainJson"]().bind(Row, topic="t")
    assert bound.decode(bound.encode({"name": "a"})) == {"name": "a"}
    assert isinstance(bound.decode_many([b"{"])[0], DecodeError)


SMALL = b'{"type":"cancelled","tail_number":null,"carrier":"UA"}'
PADDED = SMALL[:-1] + b', "more": "' + b"x" * 1000 + b'"}'
LISTED = SMALL[:-1] + b', "more": [' + b"1," * 500 + b"1]}"


@pytest.mark.parametrize(
    ("codec", "values", "cleared"),
    [
        (Json(), [], True),
        (Json(), [None], True),
        (Json(), [SMALL, None, SMALL], True),
        (Json(), [SMALL, PADDED], True),  # without an array, more than 512 levels take more bytes
        (Json(), [SMALL, LISTED], False),
        (Json(), [PADDED * 2], False),
        (Json(), [nested_json(512)[:512]], True),
        (Json(), [nested_json(512)], False),
        (Json(max_depth=10), [SMALL], False),
        (Json(max_size=20), [SMALL], False),
        (Json(max_size=600), [PADDED], False),
        (MessagePack(), [SMALL, None], True),
        (MessagePack(), [PADDED], False),
        (MessagePack(), [nested_msgpack(513)], False),
        (Text(), [PADDED, None], True),
        (Text(10), [SMALL], False),
        (Bytes(), [PADDED], True),
        (Bytes(10), [b"x" * 10, None], True),
        (Bytes(10), [b"x" * 11], False),
        (Key(), [b"x"], False),
        (Zstd(), [SMALL], False),
    ],
)
def test_which_batches_are_cleared(codec: Codec, values: list[bytes | None], cleared: bool) -> None:
    form: Any = {"Text": str, "Bytes": bytes}.get(type(codec).__name__, Any)
    bound = codec.bind(form, topic="t")
    assert bound.cleared(values) is cleared
    assert bound.decoder(values) is (bound.fast if cleared else bound.decode)


def test_a_batch_with_poison_in_it() -> None:
    bound = Json().bind(Departed | Cancelled, topic="t")
    unknown = Json().bind(Diverted, topic="t").encode(Diverted(None, "UA"))
    deep = nested_json(100_000)
    for batch in ([SMALL, None, unknown, SMALL], [SMALL, None, unknown, SMALL, deep]):
        first, none, skipped, last, *rest = bound.decode_many(batch)
        assert first == last == Cancelled(None, "UA")
        assert none is None
        assert isinstance(skipped, UnknownTag)
        assert skipped.data is unknown
        assert all(isinstance(error, DecodeError) and error.data is deep for error in rest)


def test_the_bare_decoder_is_msgspec_s_own() -> None:
    fast = Json().bind(Node, topic="t").fast
    assert type(fast) is type(msgspec.json.Decoder(Node).decode)


def calls(function: Callable[[Any], Any], argument: Any) -> int:
    """Python-level calls, the function's own included."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(profile)
    try:
        function(argument)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("codec", [Json(), MessagePack()], ids=["json", "msgpack"])
def test_what_a_message_costs(codec: Codec) -> None:
    bound = codec.bind(Departed | Cancelled, topic="t")
    value = Departed("N14228", "UA", 2)
    data = bound.encode(value)
    assert calls(bound.decoder([data]), data) == 0
    assert calls(bound.decode, data) == 1
    assert calls(bound.encode, value) == 2  # and the compiled predicate


@pytest.mark.parametrize(
    ("codec", "form", "content_type"),
    [
        (Json(), int, "application/json"),
        (Json(), Any, "application/json"),
        (MessagePack(), int, "application/vnd.msgpack"),
        (Text(), str, "text/plain; charset=utf-8"),
        (Bytes(), bytes, "application/octet-stream"),
        (Zstd(), int, "application/zstd"),
    ],
)
def test_media_types(codec: Codec, form: Any, content_type: str) -> None:
    assert codec.bind(form, topic="t").content_type == content_type


def test_the_role_is_named() -> None:
    with pytest.raises(EncodeError, match="t key: expected int, got str"):
        Json().bind(int, topic="t", role="key").encode("x")  # type: ignore[arg-type]
