"""Values without structure: UTF-8 text, and unchanged bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import inspect
from typing_extensions import TypeForm

from stream_codecs.error_mapping import ErrorContext, decode_error, encode_error
from stream_codecs.errors import BindError, DecodeError
from stream_codecs.limits import SizeLimit, non_null_values, size_error
from stream_codecs.protocol import Bound, Role
from stream_codecs.type_info import TypeInfo, is_untyped, type_info, type_name, union_members

T = TypeVar("T")

_SHAPES: dict[Any, TypeInfo] = {str: inspect.StrType(), bytes: inspect.BytesType()}


def is_only(shape: TypeInfo, cls: type) -> bool:
    """Whether the type is only ``cls`` (str or bytes), or that or None."""
    parts = [part for part in union_members(shape) if not isinstance(part, inspect.NoneType)]
    return bool(parts) and all(part == _SHAPES[cls] for part in parts)


@dataclass(frozen=True, slots=True)
class Text(SizeLimit):
    """A str as UTF-8.

    :param max_size: the largest text, in bytes.
    """

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """Encode and decode text.

        :raises BindError: ``type`` is not str.
        """
        return _bind("text", type, str, str.encode, bytes.decode, self.max_size, topic, role)


@dataclass(frozen=True, slots=True)
class Bytes(SizeLimit):
    """Bytes, unchanged.

    :param max_size: the largest value, in bytes.
    """

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """Pass bytes through.

        :raises BindError: ``type`` is not bytes.
        """
        return _bind("bytes", type, bytes, bytes, bytes, self.max_size, topic, role)


def _bind(
    name: str,
    form: TypeForm[Any],
    cls: type,
    write: Callable[[Any], bytes],
    read: Callable[[bytes], Any],
    max_size: int,
    topic: str,
    role: Role,
) -> Bound[Any]:
    shape = type_info(form)
    if not is_only(shape, cls) and not is_untyped(shape):
        problem = f"{name.capitalize()} carries {cls.__name__}, not {type_name(form)}"
        raise BindError(f"{problem}; Json carries most types")
    context = ErrorContext(name, topic, role, cls.__name__)

    def explain(data: bytes, exc: Exception) -> DecodeError:
        return decode_error(context, data, exc)

    def decode(data: bytes) -> Any:
        if len(data) > max_size and (reason := size_error(data, max_size)):
            raise context.decode_error(data, reason)
        try:
            return read(data)
        except Exception as exc:
            error = explain(data, exc)
        try:
            raise error  # outside except: the original, with the payload, is not its context
        finally:
            del error

    def cleared(values: Sequence[bytes | None]) -> bool:
        return non_null_values(values)[1] <= max_size

    def encode(value: Any) -> bytes:
        if not isinstance(value, cls):
            raise context.encode_error(f"expected {cls.__name__}, got {type_name(type(value))}")
        try:
            data = write(value)
        except UnicodeEncodeError as exc:
            raise encode_error(context, value, exc) from None
        if reason := size_error(data, max_size):
            raise context.encode_error(reason)
        return data

    content_type = "text/plain; charset=utf-8" if cls is str else "application/octet-stream"
    return Bound(encode, decode, content_type, False, read, cleared, explain)
