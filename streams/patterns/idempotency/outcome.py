"""An outcome as it is stored: one byte that says which kind, and the codec's bytes.

``=`` and the result, as its type's codec writes it, so that None, 0 and "" are results like any
other; ``!`` and a JSON object of what failed for good. Nothing in it says what class to make.
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
"""Characters of an exception's text that are stored."""


class _Failure(msgspec.Struct, frozen=True):
    kind: str
    reason: str


_decode_failure = msgspec.json.Decoder(_Failure).decode


def encode_result(data: bytes) -> bytes:
    """A result, encoded, as it is stored."""
    return _RESULT_PREFIX + data


def encode_failure(error: BaseException) -> bytes:
    """A failure that is an outcome, as it is stored."""
    reason = " ".join(error_text(error).encode("utf-8", "replace").decode().split())[:MAX_REASON]
    return _FAILURE_PREFIX + msgspec.json.encode(_Failure(type(error).__name__, reason))


def decode_outcome(key: str, stored: bytes, decode: Any) -> Any:
    """The result in what was stored.

    :raises OperationFailed: it is a failure.
    :raises stream_codecs.DecodeError: it does not fit the type, or is no outcome.
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
