"""What a type checker knows: run as a test, and checked by mypy and pyright with all the rest.

An ignore that is not needed is an error there, so each one proves that a mistake is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_type

from stream_codecs import Bound, Bytes, Codec, DecodeError, Json, Text, Zstd, default_codec
from tests.codecs.samples import Cancelled, Departed, Diverted


def test_a_union_is_carried_through() -> None:
    bound = Json().bind(Departed | Cancelled, topic="t")
    assert_type(bound, Bound[Departed | Cancelled])
    data = bound.encode(Cancelled(None, "UA"))
    assert_type(data, bytes)
    value = bound.decode(data)
    assert_type(value, Departed | Cancelled)
    assert isinstance(value, Cancelled)
    assert_type(bound.decoder([data]), Callable[..., Departed | Cancelled])
    assert_type(bound.decode_many([data]), list[Departed | Cancelled | DecodeError | None])


def test_types_without_a_class() -> None:
    assert_type(Json().bind(list[int], topic="t"), Bound[list[int]])
    assert_type(Json().bind(Departed | None, topic="t"), Bound[Departed | None])
    assert_type(Json().bind(dict[str, Any], topic="t"), Bound[dict[str, Any]])
    assert_type(Text().bind(str, topic="t"), Bound[str])
    assert_type(Zstd(Bytes()).bind(bytes, topic="t"), Bound[bytes])


def test_every_codec_is_one() -> None:
    codecs: list[Codec] = [Json(), Text(), Bytes(), Zstd(Json()), default_codec(int)]
    assert_type(codecs[0].bind(int, topic="t"), Bound[int])


def test_a_wrong_value_is_found_before_it_runs() -> None:
    encode = Json().bind(Departed | Cancelled, topic="t").encode
    assert_type(encode, Callable[[Departed | Cancelled], bytes])

    def never() -> None:
        encode(Diverted(None, "UA"))  # type: ignore[arg-type]
        encode({"type": "departed"})  # type: ignore[arg-type]
        Json().bind(int)  # type: ignore[call-arg]

    assert callable(never)
