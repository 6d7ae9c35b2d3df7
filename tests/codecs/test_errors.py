"""Errors: whole wherever they go, and silent about what the document said."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from stream_codecs import (
    BindError,
    Bound,
    Codec,
    CodecError,
    DecodeError,
    EncodeError,
    Json,
    Key,
    MessagePack,
    Text,
    UnknownTag,
    Zstd,
)
from tests.codecs.samples import Cancelled, Checked, Departed, Foreign, Refined, Status, Strict

ERRORS = [
    BindError("no"),
    EncodeError("no", codec="json", topic="t", role="key", path="$.a"),
    DecodeError("no", codec="json", topic="t", data=b"\xff", path="$.a", offset=3),
    UnknownTag("no", tag="x", topic="t", data=b"\xff"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "clone", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))]
)
def test_an_error_survives_copying_and_pickling(
    error: CodecError, clone: Callable[[Any], Any]
) -> None:
    error.add_note("seen")
    twin = clone(error)
    assert type(twin) is type(error)
    assert vars(twin) == vars(error)
    assert (str(twin), twin.args) == (str(error), error.args)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (CodecError("no"), "no"),
        (DecodeError("no", topic="t"), "t value: no"),
        (DecodeError("no", topic="t", role="key", offset=0), "t key: no at byte 0"),
        (DecodeError("no", topic="t", codec="json", path="$", offset=3), "t value: no at $ (json)"),
    ],
)
def test_text_of_an_error(error: CodecError, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_repr_of_an_error_has_its_whole_text(error: CodecError) -> None:
    assert repr(error) == f"{type(error).__name__}({str(error)!r})"


class Secretive(msgspec.Struct, forbid_unknown_fields=True):
    states: dict[str, Status]


@pytest.mark.parametrize(
    ("codec", "type", "data"),
    [
        (Json(), Departed | Cancelled, b'{"type": "s3cret"}'),
        (Json(), Status, b'"s3cret"'),
        (Json(), Status, b'"s3cret - at `$.s3cret`"'),
        (Json(), Strict, b'{"number": 1, "s3cret": 1}'),
        (Json(), Strict, b'{"number": 1, "x - at `s3cret": 1}'),
        (Json(), Secretive, b'{"states": {"s3cret": 1}}'),
        (Json(), Secretive, b'{"states": {"a": "s3cret"}}'),
        (Json(), Checked, b'{"number": -1}'),
        (Json(), Checked, b'{"number": 0}'),
        (Json(), int, b'"s3cret"'),
        (Json(), str, b'"s3cret\xff"'),
        (Json(), Any, b'{"s3cret": s3cret}'),
        (Json(), Any, b's3cret'),
        (Text(), str, b"s3cret\xff"),
        (Key(), int, b"s3cret"),
        (Zstd(), str, b"s3cret"),
        (MessagePack(), Status, b"\xa6s3cret"),
        (Zstd(), Status, Zstd().bind(Any, topic="t").encode("s3cret")),
    ],
)  # fmt: skip
def test_a_poison_message_is_not_given_away(codec: Codec, type: Any, data: bytes) -> None:
    with pytest.raises(DecodeError) as info:
        codec.bind(type, topic="t").decode(data)
    keeps_silent(info.value)


@pytest.mark.parametrize(
    ("codec", "type", "value"),
    [
        (Json(), int, "s3cret"),
        (Json(), list[int], ["s3cret"]),
        (Json(), str, "s3cret\ud800"),
        (Text(), str, "s3cret\ud800"),
        (Json(), Any, {"s3cret": {1: 1}}),
        (Json(), Refined, Refined("s3cret", 1)),
        (Json(), Refined, Refined("a", Foreign())),
        (Json(), Strict, Strict("s3cret")),  # type: ignore[arg-type]
        (Key(), str, "s3cret\ud800"),
    ],
)  # fmt: skip
def test_a_value_is_not_given_away(codec: Codec, type: Any, value: Any) -> None:
    with pytest.raises(EncodeError) as info:
        codec.bind(type, topic="t").encode(value)
    keeps_silent(info.value)


def keeps_silent(error: CodecError) -> None:
    # As a log or a dead letter shows it; of the traceback the errors, not the lines of this file.
    shown = "".join(traceback.TracebackException.from_exception(error).format_exception_only())
    assert "s3cret" not in shown + str(error) + repr(error)
    assert "\n" not in str(error)
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__


def test_an_error_does_not_keep_its_payload_alive() -> None:
    bound = Json().bind(int, topic="t")
    data = b'"' + b"x" * 10_000 + b'"'
    gc.disable()
    try:
        before = sys.getrefcount(data)
        for decode in (bound.decode, Zstd(Json()).bind(int, topic="t").decode):
            with contextlib.suppress(DecodeError):
                decode(data)
        assert sys.getrefcount(data) == before
    finally:
        gc.enable()


@pytest.mark.parametrize("codec", [Json(), Text(), Key(), Zstd()])
def test_running_out_of_memory_is_not_the_message_s_fault(codec: Codec) -> None:
    bound: Bound[Any] = codec.bind(str, topic="t")
    with pytest.raises(MemoryError):
        bound.explain(b"", MemoryError())


def test_where_the_stack_ends_before_the_bound_does() -> None:
    """Called from deep in a program, on Python 3.11, a decoder may give up within the bound."""
    error = Json().bind(Any, topic="t").explain(b"[[]]", RecursionError())
    assert str(error) == "t value: nested deeper than this thread's stack allows (json)"


@pytest.mark.parametrize("codec", [Json(), Text(), Key(), Zstd()])
def test_a_typed_error_explains_itself(codec: Codec) -> None:
    error = DecodeError("no")
    assert codec.bind(str, topic="t").explain(b"", error) is error
