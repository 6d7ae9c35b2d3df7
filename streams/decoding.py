"""How a topic's values come back from bytes, as its processors and readers see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from typing_extensions import TypeForm

from stream_codecs import BindError, Codec, DecodeError, UnknownTag, includes_none
from streams.cloudevents import unwrap_structured
from streams.config import OnUnknown
from streams.errors import CodeTooOld, ConfigError
from streams.message import Batch
from streams.processing.job import Skip

T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """What a processor can read: a topic of T, or of anything that is a T."""

    @property
    def name(self) -> str:
        """The topic's name."""
        ...

    @property
    def decoding(self) -> TopicDecoder[T_co]:
        """How its values are decoded."""
        ...


class NewerTag(UnknownTag, CodeTooOld):
    """A tag that this code does not know, where newer code may: its message waits."""

    def __init__(self, unknown: UnknownTag) -> None:
        """:param unknown: what the codec said of it."""
        super().__init__(
            unknown.reason, tag=unknown.tag, codec=unknown.codec, topic=unknown.topic,
            role=unknown.role, data=unknown.data, path=unknown.path, offset=unknown.offset,
        )  # fmt: skip


class TopicDecoder(Generic[T_co]):
    """Decodes one topic's values for the executors (``streams.processing.job.Decoding``)."""

    gives_several = False
    """:meth:`decode_one` may answer :class:`~streams.processing.job.SeveralValues`."""

    def __init__(
        self,
        codec: Codec,
        type: TypeForm[T_co],
        topic: str,
        unknown: OnUnknown,
        id_reader: ValueIdReader | None,
        *,
        unwraps_events: bool = False,
    ) -> None:
        self._unwraps_events = unwraps_events
        self._bound = codec.bind(type, topic=topic, role="value")
        self._nullable = includes_none(type)
        self._unknown = unknown
        self.id_reader = id_reader
        """Reads the message ID from a decoded value, where the topic says it is there."""

    def unwrap(self, batch: Batch) -> Batch:
        """What the batch holds, where CloudEvents in structured mode are in it; else itself."""
        return unwrap_structured(batch) if self._unwraps_events else batch

    def fast_decoder(
        self, values: Sequence[bytes | None], largest: int
    ) -> Callable[[Any], Any] | None:
        """The bare decoder, if it is safe for every one of these values; else None.

        ``largest`` is the largest one's size in bytes, -1 where one is null.
        """
        bound = self._bound
        if bound.fast is None or largest < 0:
            return None
        return bound.fast if largest <= bound.small or bound.cleared(values) else None

    def decode_one(self, batch: Batch, index: int) -> T_co:
        """Decode one message.

        :raises Skip: a tombstone or an unknown tag that is to be passed over.
        :raises DecodeError: it cannot be decoded.
        :raises ConfigError: nothing can, as the codec found out only now.
        """
        data = batch.values[index]
        if batch.decode_errors and index in batch.decode_errors:
            raise batch.decode_errors[index]
        if data is None:
            if self._nullable:
                return None  # type: ignore[return-value]  # T includes None, so this is a T
            raise Skip
        try:
            if self._bound.needs_headers:
                return self._bound.decode(data, batch.headers(index))
            return self._bound.decode(data)
        except UnknownTag as error:
            if self._unknown == "skip":
                raise Skip from None
            if self._unknown == "wait":
                raise NewerTag(error) from error
            raise
        except (DecodeError, ConfigError):
            raise
        except BindError as error:
            raise ConfigError(f"topic {batch.topic!r}: {error}") from error
        except Exception as error:  # a codec of the user's own may raise anything
            raise self._bound.explain(data, error) from error


class ValueIdReader:
    """Reads the message ID from a value (``streams.processing.job.IdReader``).

    :param read: what gives the value's part that is its ID.
    """

    def __init__(self, read: Callable[[Any], Any]) -> None:
        self._read = read

    def __call__(self, value: Any) -> str:
        """The ID of one value.

        :raises DecodeError: it has none.
        """
        found = self._read(value)
        if found is None or found == "":
            raise DecodeError("the value's message ID is empty")
        return found if type(found) is str else str(found)

    def identify_many(self, values: Sequence[Any]) -> list[str]:
        """The ID of each value, where all have one.

        :raises Exception: one has none.
        """
        found = list(map(self._read, values))
        if set(map(type, found)) == {str} and all(found) and len(found) == len(values):
            return found
        return [self(value) for value in values]
