"""The context of a saga: copied for every call, so that no two calls share one, and merged again.

Between steps the context is *stored*: as a deep copy in memory, as an encoded document of its
declared type in a durable saga. Every call of a step gets a new context made from the stored one,
and its result is stored again: a step that fails half-way leaves no trace in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import fields, is_dataclass
from operator import delitem, setitem
from typing import Any, Protocol

import msgspec
from typing_extensions import TypeForm

from stream_codecs import BindError, Json, type_name
from streams.errors import ConfigError, InvalidValue
from streams.patterns.saga.errors import ContextConflict

MAX_CONTEXT_BYTES = 512 << 10
"""The largest context of a durable saga in bytes: with the rest of its journal entry it must fit
into one message of Kafka's default size."""

_MAX_DEPTH = 500
"""Levels of nesting; the journal's own are added to them."""


class ContextStore(Protocol):
    """How contexts are stored between steps."""

    def store(self, context: Any) -> Any:
        """The stored form of a context.

        :raises Exception: it cannot be stored.
        """
        ...

    def load(self, stored: Any) -> Any:
        """A new context, which belongs to the caller.

        :raises Exception: the stored form is not a context (any more).
        """
        ...


class CopiedContexts:
    """Contexts of a saga that lives in this process's memory: deep copies."""

    def store(self, context: Any) -> Any:
        """A copy, so that the caller may go on changing its context.

        :raises ConfigError: it holds an object that cannot be copied, such as a connection or a
            lock.
        :raises InvalidValue: it is nested too deeply.
        """
        try:
            return deepcopy(context)
        except RecursionError:
            raise InvalidValue("the saga's context is nested too deeply to be copied") from None
        except Exception as error:
            raise ConfigError(
                f"the saga's context cannot be copied ({error}): keep connections and the like "
                "out of it, and in the steps"
            ) from error

    def load(self, stored: Any) -> Any:
        """A copy of the stored copy."""
        return deepcopy(stored)


class EncodedContexts:
    """Contexts of a durable saga: JSON documents of the declared type, with a size limit in both
    directions.

    :raises ConfigError: the type cannot be carried.
    """

    def __init__(self, type: TypeForm[Any], saga: str) -> None:
        try:
            codec = Json(max_size=MAX_CONTEXT_BYTES, max_depth=_MAX_DEPTH)
            self._bound = codec.bind(type, topic=f"context of saga {saga}")
        except BindError as error:
            raise ConfigError(f"saga {saga!r}: context={type_name(type)}: {error}") from error

    def store(self, context: Any) -> msgspec.Raw:
        """:raises EncodeError: it does not fit the declared type, or is too large."""
        return msgspec.Raw(self._bound.encode(context))

    def load(self, stored: Any) -> Any:
        """:raises DecodeError: it is of another type."""
        return self._bound.decode(bytes(stored))


def merge_contexts(base: Any, results: Sequence[tuple[str, Any]]) -> Any:
    """The merged context of steps that ran side by side, each on a copy of ``base``.

    The changes of the steps are merged, field by field.

    :param results: steps' names and the contexts they left.
    :raises ContextConflict: two steps changed one field differently.
    """
    if len(results) == 1:
        return results[0][1]
    before = _fields(base)
    if before is None or any(type(context) is not type(base) for _, context in results):
        return _merge_whole(base, results)
    changes: dict[Any, tuple[str, Any]] = {}
    for step, context in results:
        after = _fields(context) or {}
        for name in {**before, **after}:
            value = after.get(name, _REMOVED)
            if _is_same(before.get(name, _REMOVED), value):
                continue
            known = changes.setdefault(name, (step, value))
            if not _is_same(known[1], value):
                raise ContextConflict(
                    f"steps {known[0]!r} and {step!r} both changed {name!r} of the context, "
                    "each to a value of its own"
                )
    return _apply_changes(base, {name: value for name, (_, value) in changes.items()})


_REMOVED: Any = object()


def _fields(context: Any) -> Mapping[Any, Any] | None:
    """The fields of a context, by name; None if it has none."""
    if isinstance(context, Mapping):
        return context
    if isinstance(context, msgspec.Struct):
        return {name: getattr(context, name) for name in context.__struct_fields__}
    if is_dataclass(context):
        return {field.name: getattr(context, field.name) for field in fields(context)}
    return vars(context) if hasattr(context, "__dict__") else None


def _apply_changes(base: Any, changes: Mapping[Any, Any]) -> Any:
    if isinstance(base, msgspec.Struct):
        return msgspec.structs.replace(base, **changes)
    found: Any = copy(base)
    by_item = isinstance(base, Mapping)
    # For an object, frozen or not: it is our own copy.
    delete: Any = delitem if by_item else object.__delattr__
    put: Any = setitem if by_item else object.__setattr__
    for name, value in changes.items():
        if value is _REMOVED:
            delete(found, name)
        else:
            put(found, name, value)
    return found


def _merge_whole(base: Any, results: Sequence[tuple[str, Any]]) -> Any:
    changed = [(step, context) for step, context in results if not _is_same(base, context)]
    for step, context in changed[1:]:
        if not _is_same(changed[0][1], context):
            raise ContextConflict(
                f"steps {changed[0][0]!r} and {step!r} both changed the context, which has no "
                "fields to be merged"
            )
    return changed[0][1] if changed else base


def _is_same(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)
