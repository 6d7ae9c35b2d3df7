"""The seam: a codec is bound once to a type, a topic and a role, and gives back two functions.

Everything that can be decided once (the decoder for the type, the checks it needs) is decided in
:meth:`Codec.bind`, so a message costs no more than its decoding. A codec of your own needs no more
than this::

    class Avro:
        def bind(self, type, *, topic, role="value"):
            return Bound(encode=..., decode=..., content_type="application/avro")

The other fields of :class:`Bound` are there for speed. A codec must bound size and depth before it
decodes, which costs a Python call a message; a loop over a batch can do better. It asks
:meth:`Bound.decoder` once for the batch, and gets the bare C function where the batch as a whole is
small enough to be harmless, else the careful one. Whichever it was, an exception is turned into
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
"""What of a message is encoded."""

Headers = Sequence[tuple[str, "bytes | None"]]
"""Headers as they stand on the wire: pairs in order, names may repeat."""


def _never(values: Sequence[bytes | None]) -> bool:
    return False


def _explain(data: bytes, exc: Exception) -> DecodeError:
    if isinstance(exc, DecodeError):
        return exc
    if isinstance(exc, MemoryError):
        raise exc
    return DecodeError(f"cannot be decoded: {type(exc).__name__}", data=data)


class Bound(NamedTuple, Generic[T]):
    """A codec bound to its type. A null value (tombstone) is never given to it.

    :param encode: value to bytes; raises :class:`~stream_codecs.EncodeError` for a value that does
        not fit the type. What it returns, ``decode`` accepts.
    :param decode: bytes to value; raises :class:`~stream_codecs.DecodeError`. Called as
        ``decode(data)``, or as ``decode(data, headers)`` where ``needs_headers`` says so.
    :param content_type: the media type of what ``encode`` returns (CloudEvents
        ``datacontenttype``).
    :param needs_headers: the schema of a message is named by its headers.
    :param fast: ``decode`` without any check, at the speed of C; it raises whatever it likes.
    :param cleared: True where no value of this batch can be too large or too deep, so that
        ``fast`` may be used for all of it. Null values are ignored.
    :param small: a batch whose largest value has at most this many bytes, and that holds no null,
        is cleared without being asked for.
    :param encode_batch: ``encode`` for many values, cheaper than one by one; raises what ``encode``
        does for the first that does not fit. None: there is no cheaper way.
    :param explain: the typed error for what ``decode`` or ``fast`` raised over these bytes.
        Running out of memory is not the message's fault: a :class:`MemoryError` is raised again.
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
        """The cheapest safe decoder for this batch: ``fast`` where it is cleared, else ``decode``.

        What it raises goes through :attr:`explain`.
        """
        if self.fast is not None and self.cleared(values):
            return self.fast
        return self.decode

    def decode_many(self, values: Sequence[bytes | None]) -> list[T | DecodeError | None]:
        """A whole batch: in place of each value that cannot be decoded stands its error, and
        None in place of a null value. For codecs that need no headers."""
        decode = self.decoder(values)
        result: list[T | DecodeError | None]
        if decode is self.fast:
            with suppress(Exception):  # one of them is null or poison: find out which
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
    """How values, or keys, become bytes and come back."""

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """The two functions for this type.

        :param type: the declared type.
        :param topic: whose values or keys they are; named in errors, and the subject in a schema
            registry.
        :raises BindError: the codec cannot carry this type.
        """
        ...
