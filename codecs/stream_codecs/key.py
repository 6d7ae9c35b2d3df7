"""Keys, which decide partition and order: text, or bytes that are not changed."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import inspect
from typing_extensions import TypeForm

from stream_codecs.error_mapping import ErrorContext, encode_error
from stream_codecs.errors import BindError, DecodeError
from stream_codecs.limits import SizeLimit, size_error
from stream_codecs.protocol import Bound, Role
from stream_codecs.type_info import is_untyped, member_types, type_name

T = TypeVar("T")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _int(data: bytes) -> int:
    # int() alone would accept " 1_0 ", and then b"10" and b" 1_0 " would be one key to the handler
    # but two to the log.
    value = int(data)
    if str(value).encode() != data:
        raise ValueError
    return value


def _uuid(data: bytes) -> uuid.UUID:
    value = uuid.UUID(data.decode("ascii"))
    if str(value).encode() != data.lower():
        raise ValueError
    return value


_READERS: dict[type[inspect.Type], Callable[[bytes], Any]] = {
    inspect.StrType: _text,
    inspect.IntType: _int,
    inspect.UUIDType: _uuid,
    inspect.BytesType: bytes,
}


@dataclass(frozen=True, slots=True)
class Key(SizeLimit):
    """A key as text: str as UTF-8, int in decimal, UUID in its canonical form; bytes unchanged.

    Equal keys become equal bytes, which decide partition and order. Every key can be written,
    whatever the type it is bound to; if that is ``str``, ``Any`` or a union, keys are read
    as text, in which bytes that are not UTF-8 survive as surrogates ("surrogateescape", PEP 383)
    and are written back the same.

    :param max_size: the largest key, in bytes.
    """

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "key") -> Bound[T]:
        """Encode and decode keys.

        :raises BindError: ``type`` is none of str, int, UUID and bytes, nor a union of them.
        """
        parts = member_types(type)
        kinds = {part.__class__ for part in parts} - {inspect.NoneType}
        if any(map(is_untyped, parts)):
            kinds = {inspect.StrType}
        if not kinds or not kinds <= _READERS.keys():
            raise BindError(f"a key is str, int, UUID or bytes, not {type_name(type)}")
        read = _READERS[kinds.pop()] if len(kinds) == 1 else _text
        return _bind(read, self.max_size, ErrorContext("key", topic, role, type_name(type)))


def _bind(read: Callable[[bytes], Any], max_size: int, context: ErrorContext) -> Bound[Any]:
    def encode(value: Any) -> bytes:
        if isinstance(value, str):
            try:
                data = value.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError as exc:
                raise encode_error(context, value, exc) from None
        elif isinstance(value, bytes):
            data = bytes(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            data = b"%d" % value
        elif isinstance(value, uuid.UUID):
            data = str(value).encode()
        else:
            kind = type_name(type(value))
            raise context.encode_error(f"a key is str, int, UUID or bytes, not {kind}")
        if reason := size_error(data, max_size):
            raise context.encode_error(reason)
        return data

    def decode(data: bytes) -> Any:
        if reason := size_error(data, max_size):
            raise context.decode_error(data, reason)
        try:
            return read(data)
        except ValueError:
            pass
        raise context.decode_error(data, f"does not read as {context.type}")

    def explain(data: bytes, exc: Exception) -> DecodeError:
        if isinstance(exc, DecodeError):
            return exc
        if isinstance(exc, MemoryError):
            raise exc
        return context.decode_error(data, f"does not read as {context.type}")

    return Bound(encode, decode, "text/plain; charset=utf-8", explain=explain)
