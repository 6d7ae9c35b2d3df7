"""The stored form of an outcome: one byte for its kind, and the codec's bytes.

``=`` and the result, as its type's codec encodes it, so that None, 0 and "" are results like any
other; ``!`` and a JSON object for a final failure. Nothing in it chooses a class to instantiate.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stream_codecs import DecodeError
from streams.patterns.idempotency.errors import OperationFailed
from streams.text import error_text
from streams.wire import shorten

_RESULT_PREFIX = b"="
_FAILURE_PREFIX = b"!"

MAX_REASON = 2_000
"""The longest stored text of an exception, in characters."""


class _StoredFailure(msgspec.Struct, frozen=True):
    kind: str
    reason: str


_decode_failure = msgspec.json.Decoder(_StoredFailure).decode


def encode_result(data: bytes) -> bytes:
    """The stored form of an encoded result."""
    return _RESULT_PREFIX + data


def encode_failure(error: BaseException) -> bytes:
    """The stored form of a failure that is an outcome."""
    reason = " ".join(error_text(error).encode("utf-8", "replace").decode().split())[:MAX_REASON]
    return _FAILURE_PREFIX + msgspec.json.encode(_StoredFailure(type(error).__name__, reason))


def decode_outcome(key: str, stored: bytes, decode: Any) -> Any:
    """The result in a stored outcome.

    :raises OperationFailed: the outcome is a failure.
    :raises stream_codecs.DecodeError: the bytes do not fit the type, or are no outcome.
    """
    if stored.startswith(_RESULT_PREFIX):
        return decode(stored[1:])
    try:
        failed = _decode_failure(stored[1:]) if stored.startswith(_FAILURE_PREFIX) else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        failed = None
    if failed is None:
        raise DecodeError(
            f"what is stored under {shorten(key)!r} is no outcome of ours", data=stored
        )
    raise OperationFailed(key, failed.kind, failed.reason)
