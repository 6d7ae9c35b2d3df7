"""Limits for the size and depth of documents of any format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from stream_codecs.errors import BindError

MAX_SIZE = 16 << 20
"""The default limit for the size of one document: 16 MiB."""

MAX_DEPTH = 512
"""The default limit for the levels of nesting.

It is as high as is safe, because a document with no more *bytes* needs no check of its depth. 512
levels take at most 256 KiB of the thread's stack (measured with msgspec 0.22 and Python 3.11 to
3.13).
"""

DEPTH_LIMIT = 900
"""Python 3.11 ends recursion in C at about 1,000 levels, its caller's included."""


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """A size limit for decoded and encoded values.

    :param max_size: the largest value, in bytes.
    """

    max_size: int = MAX_SIZE

    def __post_init__(self) -> None:
        if self.max_size < 1:
            raise BindError(f"{type(self).__name__}(max_size={self.max_size!r}): at least 1 byte")


@dataclass(frozen=True, slots=True)
class SizeAndDepthLimits(SizeLimit):
    """Size and depth limits for decoded and encoded documents.

    :param max_size: the largest document, in bytes.
    :param max_depth: the most levels of nesting.
    """

    max_depth: int = MAX_DEPTH

    def __post_init__(self) -> None:
        SizeLimit.__post_init__(self)
        if not 1 <= self.max_depth <= DEPTH_LIMIT:
            name = type(self).__name__
            raise BindError(f"{name}(max_depth={self.max_depth!r}): from 1 to {DEPTH_LIMIT} levels")


def size_error(data: bytes, max_size: int) -> str | None:
    """The error text for a value that is too large, None if it is not."""
    if len(data) <= max_size:
        return None
    return f"{len(data)} bytes; at most {max_size} are allowed"


def non_null_values(values: Sequence[bytes | None]) -> tuple[Sequence[bytes], int]:
    """The values of a batch that are not null, and the size of the largest."""
    found = cast("Sequence[bytes]", values)
    try:
        return found, max(map(len, found), default=0)
    except TypeError:  # None has no length; it is too rare to check for it first
        found = [data for data in values if data is not None]
        return found, max(map(len, found), default=0)
