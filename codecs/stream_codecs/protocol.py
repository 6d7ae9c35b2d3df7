"""The codec interface: a codec is bound once to a type, a topic and a role, and returns functions.

Everything that can be decided once (the decoder for the type, the checks it needs) is decided in
:meth:`Codec.bind`, so a message costs no more than its decoding. A codec of your own needs only
this::

    class Avro:
        def bind(self, type, *, topic, role="value"):
            return Bound(encode=..., decode=..., content_type="application/avro")

The other fields of :class:`Bound` are there for speed. A codec must limit size and depth before it
decodes, which costs a Python call per message; a loop over a batch can do better. It calls
:meth:`Bound.decoder` once for the batch, and gets the bare C function if the batch as a whole is
small enough to be harmless, else the checking one. For either, an exception is turned into
the typed error by :attr:`Bound.explain`::

    decode = bound.decoder(values)
    for data in values:
        try:
            value = decode(data)
        except Exception as exc:
            poison(bound.explain(data, exc))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, cast

from typing_extensions import TypeForm

from stream_codecs.errors import DecodeError

T = TypeVar("T")

Role = Literal["value", "key"]
"""The part of a message that is encoded."""

Headers = Sequence[tuple[str, "bytes | None"]]
"""Headers as on the wire: pairs in order, names may repeat."""


def _never(values: Sequence[bytes | None]) -> bool:
    return False


def _explain(data: bytes, exc: Exception) -> DecodeError:
    if isinstance(exc, DecodeError):
        return exc
    if isinstance(exc, MemoryError):
        raise exc
    return DecodeError(f"cannot be decoded: {type(exc).__name__}", data=data)


class Bound(NamedTuple, Generic[T]):
    """A codec bound to its type. It is never called for a null value (tombstone).

    :param encode: value to bytes; raises :class:`~stream_codecs.EncodeError` for a value that does
        not fit the type. ``decode`` accepts every result.
    :param decode: bytes to value; raises :class:`~stream_codecs.DecodeError`. Called as
        ``decode(data)``, or as ``decode(data, headers)`` if ``needs_headers`` is set.
    :param content_type: the media type of the results of ``encode`` (CloudEvents
        ``datacontenttype``).
    :param needs_headers: whether a message's headers name its schema.
    :param fast: ``decode`` without any check, at the speed of C; it may raise any exception.
    :param cleared: True if no value of this batch can be too large or too deep, so that
        ``fast`` may be used for all of it. Null values are ignored.
    :param small: a batch without nulls whose largest value has at most this many bytes is cleared
        without calling ``cleared``.
    :param encode_batch: ``encode`` for many values, cheaper than one by one; raises the error of
        ``encode`` for the first that does not fit. None: there is no cheaper way.
    :param explain: the typed error for an exception that ``decode`` or ``fast`` raised on these
        bytes. Running out of memory is not the message's fault: a :class:`MemoryError` is raised
        again.
    """

    encode: Callable[[T], bytes]
    decode: Callable[..., T]
    content_type: str = "application/octet-stream"
    needs_headers: bool = False
    fast: Callable[[bytes], T] | None = None
    cleared: Callable[[Sequence[bytes | None]], bool] = _never
    explain: Callable[[bytes, Exception], DecodeError] = _explain
    small: int = 0
    encode_batch: Callable[[Sequence[T]], list[bytes]] | None = None

    def encode_many(self, values: Sequence[T]) -> list[bytes]:
        """Many values to bytes, the cheapest way.

        :raises EncodeError: for the first that does not fit the type.
        """
        if self.encode_batch is not None:
            return self.encode_batch(values)
        encode = self.encode
        return [encode(value) for value in values]

    def decoder(self, values: Sequence[bytes | None]) -> Callable[..., T]:
        """The cheapest safe decoder for this batch: ``fast`` if it is cleared, else ``decode``.

        Its exceptions are passed to :attr:`explain`.
        """
        if self.fast is not None and self.cleared(values):
            return self.fast
        return self.decode

    def decode_many(self, values: Sequence[bytes | None]) -> list[T | DecodeError | None]:
        """Decode a whole batch: the result has an error for each value that cannot be decoded, and
        None for a null value. For codecs that need no headers."""
        decode = self.decoder(values)
        result: list[T | DecodeError | None]
        if decode is self.fast:
            with suppress(Exception):  # one of them is null or poison: find it below
                return list(map(decode, cast("Sequence[bytes]", values)))
        result = []
        for data in values:
            if data is None:
                result.append(None)
                continue
            try:
                result.append(decode(data))
            except Exception as exc:
                result.append(self.explain(data, exc))
        return result


class Codec(Protocol):
    """Converts values, or keys, to bytes and back."""

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """The two functions for this type.

        :param type: the declared type.
        :param topic: the topic of the values or keys; named in errors, and the subject in a schema
            registry.
        :raises BindError: the codec cannot encode this type.
        """
        ...
