"""The common part of JSON and MessagePack: typed documents, decoded by functions in C.

Theory of operation. Reading: check size and depth, decode, and only if that fails find the reason.
:func:`bind_format` combines the three in one ``decode``, and also returns the bare decoder, for
batches that are cleared as a whole (see :class:`~stream_codecs.Bound`).

Writing: ``decode`` accepts every result of ``encode``; a value for which that is not so is an
:class:`~stream_codecs.EncodeError`, and never reaches a consumer. The classes of a value and of its
fields mostly prove it (:mod:`stream_codecs.type_checks`); if not, the document is decoded
again. Size and depth are limited as for reading.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect
from typing_extensions import TypeForm

from stream_codecs.error_mapping import ErrorContext, decode_error, encode_error, tag_reader
from stream_codecs.errors import BindError, DecodeError, EncodeError
from stream_codecs.limits import SizeAndDepthLimits, non_null_values, size_error
from stream_codecs.protocol import Bound, Role
from stream_codecs.type_checks import compile_check
from stream_codecs.type_info import (
    TypeInfo,
    accepted_classes,
    is_untyped,
    type_info,
    type_name,
    union_members,
    walk_types,
)


class Format(NamedTuple):
    """A document format: the functions and facts that :func:`bind_format` needs."""

    name: str
    content_type: str
    encode: Callable[[Any], bytes]
    decoder: Callable[[Any], Callable[[bytes], Any]]
    """Makes the decoding function for a type."""
    is_deeper: Callable[[bytes, int], bool]
    """Whether a document nests deeper than a number of levels."""
    surely_shallow: Callable[[Sequence[bytes], int], bool]
    """Whether no document of a batch can be deeper, from a check of the whole batch."""
    nan_text: bytes | None = None
    """The bytes that NaN is written as, if the format has no NaN and the encoder hides it."""
    may_refuse_own: bool = True
    """Whether the encoder may write a value that the decoder refuses."""


class TypeParts(NamedTuple):
    """The parts of a type for :func:`build_bound`.

    :param read: the bare decoder; it may raise any exception.
    :param explain: the typed error for an exception that ``read`` raised on these bytes.
    :param encode: the bare encoder.
    :param surely_fits: see :mod:`stream_codecs.type_checks`.
    :param classes: see :func:`stream_codecs.type_info.accepted_classes`.
    :param to_builtins: a value as builtins.
    """

    read: Callable[[bytes], Any]
    explain: Callable[[bytes, Exception], DecodeError]
    encode: Callable[[Any], bytes]
    surely_fits: Callable[[Any], bool]
    classes: tuple[type, ...] | None
    to_builtins: Callable[[Any], Any] = msgspec.to_builtins


def bind_format(
    format: Format, limits: SizeAndDepthLimits, type: TypeForm[Any], topic: str, role: Role
) -> Bound[Any]:
    """Bind a format to a type.

    :raises BindError: msgspec cannot encode the type.
    """
    context = ErrorContext(format.name, topic, role, type_name(type))
    shape = type_info(type)
    _check_known_types(shape, type)
    try:
        fast = format.decoder(type)
    except Exception as exc:
        raise BindError(f"cannot use the type {context.type}: {exc}") from exc
    unknown_tag = tag_reader(shape, format.decoder)

    def explain(data: bytes, exc: Exception) -> DecodeError:
        return decode_error(context, data, exc, unknown_tag)

    fits = compile_check(shape, finite=format.nan_text is not None)
    parts = TypeParts(fast, explain, format.encode, fits, accepted_classes(union_members(shape)))
    return build_bound(format, limits, context, parts)


def build_bound(
    format: Format, limits: SizeAndDepthLimits, context: ErrorContext, parts: TypeParts
) -> Bound[Any]:
    """Combine limits, decoder and encoder."""
    max_size, max_depth = limits.max_size, limits.max_depth
    small = min(max_size, max_depth)
    is_deeper, surely_shallow = format.is_deeper, format.surely_shallow
    fast, explain = parts.read, parts.explain

    def limit_error(data: bytes) -> str | None:
        if len(data) > max_size:
            return size_error(data, max_size)
        return f"nested deeper than {max_depth} levels" if is_deeper(data, max_depth) else None

    def decode(data: bytes) -> Any:
        if len(data) > small and (reason := limit_error(data)):
            raise context.decode_error(data, reason)
        try:
            return fast(data)
        except Exception as exc:
            error = explain(data, exc)
        # Raised outside the except block, so that the original, which may quote the payload, is not
        # its context; and an error that refers to itself through its traceback would keep the
        # payload alive.
        try:
            raise error
        finally:
            del error

    def cleared(values: Sequence[bytes | None]) -> bool:
        found, largest = non_null_values(values)
        return largest <= small or (largest <= max_size and surely_shallow(found, max_depth))

    encode, encode_batch = _build_encoders(format, context, parts, limit_error, small)
    return Bound(
        encode=encode,
        encode_batch=encode_batch,
        decode=decode,
        content_type=format.content_type,
        fast=fast,
        cleared=cleared,
        explain=explain,
        small=small,
    )


def _check_known_types(shape: TypeInfo, type: TypeForm[Any]) -> None:
    for part in walk_types(shape):
        if isinstance(part, inspect.CustomType) and not is_untyped(part):
            raise BindError(
                f"cannot use the type {type_name(type)}: msgspec does not know "
                f"{type_name(part.cls)}; use a Struct, dataclass, TypedDict, NamedTuple or "
                f"builtin, or write a codec for it"
            )


def _build_encoders(
    format: Format,
    context: ErrorContext,
    parts: TypeParts,
    limit_error: Callable[[bytes], str | None],
    small: int,
) -> tuple[Callable[[Any], bytes], Callable[[Sequence[Any]], list[bytes]]]:
    read, write = parts.read, parts.encode
    surely_fits, classes = parts.surely_fits, parts.classes
    null = format.nan_text

    def class_error(value: Any) -> EncodeError | None:
        if classes is None or isinstance(value, classes):
            return None
        return context.encode_error(f"expected {context.type}, got {type_name(type(value))}")

    def find_fault(value: Any, data: bytes, sure: bool) -> EncodeError | None:
        if error := class_error(value):
            return error
        if reason := limit_error(data):
            return context.encode_error(reason)
        if sure:
            return None
        if null is not None and data.find(null) >= 0 and _has_non_finite(value, parts.to_builtins):
            return context.encode_error("NaN or an infinity, which JSON cannot say")
        if not format.may_refuse_own:
            return None
        try:
            read(data)
        except Exception as exc:
            fault = parts.explain(data, exc)
            reason = f"does not fit {context.type}: {fault.reason}"
            return context.encode_error(reason, path=fault.path)
        return None

    def encode(value: Any) -> bytes:
        try:
            sure = surely_fits(value)
            data = write(value)
        except MemoryError:
            raise
        except Exception as exc:
            error = class_error(value) or encode_error(context, value, exc)
        else:
            if sure and len(data) <= small:
                return data
            fault = find_fault(value, data, sure)
            if fault is None:
                return data
            error = fault
        try:
            raise error
        finally:
            del error

    def encode_batch(values: Sequence[Any]) -> list[bytes]:
        try:
            # Counted instead of all(): StopIteration raised by a value would end map() early.
            if sum(map(surely_fits, values)) == len(values):
                found = list(map(write, values))
                if len(found) == len(values) and max(map(len, found), default=0) <= small:
                    return found
        except MemoryError:
            raise
        except Exception:  # noqa: S110 - the value that raised it is found below
            pass
        return [encode(value) for value in values]

    return encode, encode_batch


_as_msgpack = msgspec.msgpack.Encoder().encode

_NON_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
"""A 64-bit float of MessagePack with all bits of its exponent set (IEEE 754)."""


def _has_non_finite(value: Any, plain: Callable[[Any], Any]) -> bool:
    # NaN is very rare, so the first check is cheap and only the second one certain.
    try:
        may_have = _NON_FINITE.search(_as_msgpack(value)) is not None
    except Exception:  # MessagePack cannot represent all of JSON
        may_have = True
    if not may_have:
        return False
    todo = [plain(value)]
    while todo:
        item = todo.pop()
        if isinstance(item, float):
            if not isfinite(item):
                return True
        elif isinstance(item, dict):
            todo += item.values()
        elif isinstance(item, list | tuple | set | frozenset):
            todo += item
    return False
