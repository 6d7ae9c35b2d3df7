"""Encodes and decodes events, and upcasts old events to current ones.

An event is stored under its type's *tag*, never under a module's path. Types that are no longer
used stay readable by an *upcast*: a function that turns an event of an old type into events of
current types, or of another old type. Upcasts run whenever an event is read, and change nothing
that is stored.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, Union, cast

from typing_extensions import TypeForm

from stream_codecs import (
    BindError,
    Bound,
    Codec,
    DecodeError,
    UnknownTag,
    default_codec,
    tags_of,
    type_name,
)
from streams.callables import is_async
from streams.decoding import NewerTag
from streams.errors import ConfigError

E = TypeVar("E")

Upcast = Callable[[Any], Any]


class EventCodec(Generic[E]):
    """Encodes an aggregate's events, and decodes every event that was ever appended.

    :param name: the event topic's name, for errors.
    :param type: the union of the current event types.
    """

    def __init__(self, name: str, type: TypeForm[E], codec: Codec | None) -> None:
        self._name = name
        self.type = type
        """The union of the current event types."""
        self.codec = codec if codec is not None else default_codec(type)
        self.event_classes = _union_classes(type)
        """The current event types."""
        self._upcasts: dict[Any, Upcast] = {}
        self._raw_upcasts: list[Callable[[bytes], Any]] = []
        self._bound: Bound[Any] | None = None
        """The bound codec; set once an event was read, or may have been."""
        self._decode: Callable[[bytes], Any] | None = None
        self._check_tags(self.event_classes)
        try:
            bound = self.codec.bind(type, topic=name, role="value")
        except BindError as error:
            raise ConfigError(f"aggregate {name!r}: {error}") from error
        if bound.needs_headers:
            raise ConfigError(
                f"aggregate {name!r}: codec={codec!r} keeps a part of each event in headers, and "
                "an event is its bytes alone: use one that does not, such as stream_codecs.Json()"
            )
        self._encode = bound.encode

    def _check_tags(self, classes: Sequence[Any]) -> None:
        for each in classes:
            if len(tags_of(each)) != 1:
                raise ConfigError(
                    f"aggregate {self._name!r}: {type_name(each)} has no tag to tell its events "
                    'from others: declare class ...(Struct, tag="...", frozen=True)'
                )

    # -- declaring

    def add_upcast(self, old: Any, function: Upcast) -> None:
        """Add an upcast of an old event type.

        :param old: the type, with a tag that no current type has; ``bytes``: events that cannot be
            decoded.
        :raises ConfigError: the upcast could never be reached, would form a cycle, or comes too
            late.
        """
        where = f"aggregate {self._name!r}: upcast({type_name(old)})"
        if self._decode is not None:
            raise ConfigError(f"{where}: declare it before the first event is read")
        if not callable(function) or is_async(function):
            raise ConfigError(f"{where}: give a plain function of the old event")
        if old is bytes:
            self._raw_upcasts.append(function)
            return
        if old in self._upcasts:
            raise ConfigError(f"{where}: there is one already")
        if old in self.event_classes:
            raise ConfigError(
                f"{where}: it is an event of today; an event that has changed gets a new type with "
                "a new tag, and the old type is upcast to it"
            )
        self._check_tags([old])
        (tag,) = tags_of(old)
        for other in (*self.event_classes, *self._upcasts):
            if tag in tags_of(other):
                raise ConfigError(
                    f"{where}: {type_name(other)} has the tag {tag!r}, too: this is never reached"
                )
        self._upcasts[old] = function
        self._check_results(where, old)

    def _check_results(self, where: str, old: Any) -> None:
        """Follow the return annotations of the upcasts."""
        path = [old]
        pending = [(each, path) for each in self._results_of(old)]
        while pending:
            found, path = pending.pop()
            if found in path:
                circle = " to ".join(type_name(each) for each in [*path, found])
                raise ConfigError(f"{where}: goes in a circle, from {circle}")
            if found in self._upcasts:
                pending += [(each, [*path, found]) for each in self._results_of(found)]

    def _results_of(self, old: Any) -> Sequence[Any]:
        try:
            annotation = typing.get_type_hints(self._upcasts[old]).get("return")
        except Exception:  # names that cannot be resolved: the error shows when it runs
            return ()
        return [each for each in _named_classes(annotation) if each is not types.NoneType]

    def check_upcasts(self) -> None:
        """Check that every upcast leads to current events, as far as the functions are annotated.

        :raises ConfigError: one leads to another type.
        """
        for old in self._upcasts:
            for found in self._results_of(old):
                if found not in self.event_classes and found not in self._upcasts:
                    raise ConfigError(
                        f"aggregate {self._name!r}: upcast({type_name(old)}) returns "
                        f"{type_name(found)}, which is neither an event of today nor upcast"
                    )

    # -- encoding

    def encode(self, event: Any) -> bytes:
        """The bytes of a current event.

        :raises EncodeError: it does not fit its type.
        :raises TypeError: it is not an event of this aggregate.
        """
        if type(event) not in self.event_classes:
            names = " | ".join(type_name(each) for each in self.event_classes)
            raise TypeError(
                f"aggregate {self._name!r}: a decision returns {names}, a sequence of them, or "
                f"None, not {type_name(type(event))}"
            )
        return self._encode(event)

    # -- decoding

    def decode(self, value: bytes | None) -> Sequence[E]:
        """The current events that a stored one stands for: one, several or none.

        :raises NewerTag: this code does not know its tag. No event of a history may be skipped,
            so its handler waits.
        :raises DecodeError: the bytes are not a known event, and no upcast made one of them.
        """
        decode = self._decode or self._bind_decoder().decode
        if value is None:
            raise self._decode_error(b"", "an event without a value")
        try:
            event = decode(value)
        except DecodeError as error:
            return self._upcast_bytes(value, error)
        except Exception as error:  # a codec of the user's own may raise anything
            explained = self._bind_decoder().explain(value, error)
            explained.__cause__ = error
            return self._upcast_bytes(value, explained)
        if type(event) in self._upcasts:
            return self._upcast(event, value)
        return (event,)

    def fast_decoder(
        self, values: Sequence[bytes | None], largest: int
    ) -> Callable[[Any], Any] | None:
        """The bare decoder of current events, if it is safe for these values and no upcast is
        declared; else None.

        :param largest: the largest value's size in bytes, -1 where one is null.
        """
        bound = self._bound or self._bind_decoder()
        if self._upcasts or bound.fast is None or bound.needs_headers or largest < 0:
            return None
        return bound.fast if largest <= bound.small or bound.cleared(values) else None

    def _bind_decoder(self) -> Bound[Any]:
        self.check_upcasts()
        known = cast(Any, Union[(self.type, *self._upcasts)] if self._upcasts else self.type)
        try:
            bound = self.codec.bind(known, topic=self._name, role="value")
        except BindError as error:
            raise ConfigError(f"aggregate {self._name!r}: {error}") from error
        self._bound, self._decode = bound, bound.decode
        return bound

    def _upcast(self, event: Any, value: bytes, depth: int = 1) -> Sequence[E]:
        """Apply upcasts to an event of an old type until only current events are left."""
        try:
            results = _as_sequence(self._upcasts[type(event)](event))
        except Exception as error:
            raise self._decode_error(
                value, f"upcast({type_name(type(event))}): {error!r}"
            ) from error
        return self._upcast_results(results, value, depth)

    def _upcast_results(self, results: Sequence[Any], value: bytes, depth: int) -> Sequence[E]:
        found: list[Any] = []
        for each in results:
            if type(each) in self.event_classes:
                found.append(each)
            elif type(each) in self._upcasts:
                if depth > len(self._upcasts):
                    name = type_name(type(each))
                    raise self._decode_error(value, f"the upcasts go in a circle, back to {name}")
                found += self._upcast(each, value, depth + 1)
            else:
                name = type_name(type(each))
                raise self._decode_error(value, f"an upcast made a {name} of it, which is no event")
        return found

    def _decode_error(self, value: bytes, reason: str) -> DecodeError:
        return DecodeError(reason, data=value, topic=self._name)

    def _upcast_bytes(self, value: bytes, error: DecodeError) -> Sequence[E]:
        if isinstance(error, UnknownTag):
            error = NewerTag(error)
        for function in self._raw_upcasts:
            try:
                results = function(value)
            except Exception as failure:
                reason = f"{error.reason}; upcast(bytes): {failure!r}"
                raise self._decode_error(value, reason) from failure
            if results is not NotImplemented:
                return self._upcast_results(_as_sequence(results), value, 1)
        raise error


def _as_sequence(results: Any) -> Sequence[Any]:
    if results is None:
        return ()
    return results if isinstance(results, (list, tuple)) else (results,)


def _union_classes(form: Any) -> tuple[Any, ...]:
    """The members of a union, in order; a type that is not a union, by itself."""
    while typing.get_origin(form) is typing.Annotated or hasattr(form, "__value__"):
        form = form.__value__ if hasattr(form, "__value__") else typing.get_args(form)[0]
    if typing.get_origin(form) in (Union, types.UnionType):
        found: list[Any] = []
        for each in typing.get_args(form):
            found += [member for member in _union_classes(each) if member not in found]
        return tuple(found)
    return (form,)


def _named_classes(annotation: Any) -> list[Any]:
    """The classes that an annotation such as ``list[A | B] | None`` names."""
    if annotation is None or annotation is Any or annotation is Ellipsis:
        return []
    arguments = typing.get_args(annotation)
    if arguments:
        return [found for each in arguments for found in _named_classes(each)]
    return [annotation] if isinstance(annotation, type) else []
