"""The type of an aggregate's state: its initial value, and its encoding in snapshots."""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import re
from collections.abc import Mapping, MutableMapping, MutableSequence, MutableSet
from types import NoneType
from typing import Any, Generic, NamedTuple, get_args, get_origin, is_typeddict

import msgspec
from typing_extensions import Format, TypeVar, get_annotations

from stream_codecs import BindError, Bound, Codec, default_codec, type_name
from stream_codecs.type_info import fields_by_place
from streams.errors import ConfigError

S = TypeVar("S")

_NOT_SHAPE = frozenset(("title", "description", "examples", "deprecated"))
"""Keys of a JSON schema that do not affect the shape of a document."""

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
"""The address in the ``repr`` of a function in an annotation: it differs between processes."""


class DecodedState(NamedTuple):
    """A state that was read back; a wrapper, as a state may be None."""

    state: Any


class StateType(Generic[S]):
    """The type that an aggregate's events are folded into."""

    def __init__(self, name: str, state: type[S], initial: S | None, codec: Codec | None) -> None:
        self._name = name
        self._type = state
        check_frozen(f"aggregate {name!r}: its state", state)
        if initial is None:
            try:
                initial = state()
            except Exception as error:
                raise ConfigError(
                    f"aggregate {name!r}: {type_name(state)}() failed, so give the initial "
                    f"state: initial=... ({error})"
                ) from error
        elif not _is_of_type(initial, state):
            raise ConfigError(f"aggregate {name!r}: initial={initial!r} is no {type_name(state)}")
        self.may_be_none = state is NoneType or NoneType in get_args(state)
        """Whether None is a valid state."""
        self.initial: S = initial
        """The state before the first event."""
        self._class = state if _is_class_of_ones_own(state) else object
        self._bound: Bound[S] | None = None
        try:
            bound_codec = codec if codec is not None else default_codec(state)
            self._bound = bound_codec.bind(state, topic=name, role="value")
        except BindError as error:
            self._bind_error = str(error)

    def holds(self, state: Any) -> bool:
        """Whether this can be a state, judged by its class."""
        if state is None:
            return self.may_be_none
        return isinstance(state, self._class)

    def fingerprint(self, version: int) -> str:
        """Identifies the usable snapshots: those of a state of this shape, by this version of the
        code.

        :raises ConfigError: a state cannot be encoded.
        """
        if self._bound is None:
            raise ConfigError(f"aggregate {self._name!r}: snapshot=: {self._bind_error}")
        return shape_fingerprint(self._type, version, self._bound.content_type)

    def encode(self, state: S) -> bytes:
        """A state's bytes.

        :raises Exception: the state does not fit its type; a codec of the user's own may raise any.
        """
        if self._bound is None:
            raise ConfigError(f"aggregate {self._name!r}: snapshot=: {self._bind_error}")
        return self._bound.encode(state)

    def decode(self, data: bytes) -> DecodedState | None:
        """The state from a snapshot's data; None: it cannot be decoded, so it is useless."""
        if self._bound is None:
            return None
        try:
            return DecodedState(self._bound.decode(data))
        except Exception:  # whatever the error, the events can be read instead
            return None

    def size(self, state: S) -> int:
        """The approximate size of a state, in bytes."""
        if self._bound is None:
            return 1_000
        try:
            return len(self._bound.encode(state))
        except Exception:
            return 1_000


def _is_class_of_ones_own(type: Any) -> bool:
    """Whether it is a user's class, not a builtin: a state declared as ``float`` may be 0."""
    return (
        isinstance(type, builtins.type)
        and get_origin(type) is None
        and (type.__module__ != "builtins" and not is_typeddict(type))
    )


def _is_of_type(value: Any, type: Any) -> bool:
    try:
        return isinstance(value, type)
    except TypeError:  # a TypedDict, a list[int]: their items are not checked
        origin = get_origin(type) or type
        return isinstance(value, dict if is_typeddict(origin) else origin)


def check_frozen(what: str, type: Any) -> None:
    """Refuse a type whose values can be changed in place: a folded state must not be mutable, since
    a change in place would have no event.

    :param what: what is of this type, for the error.
    :raises ConfigError: its values can be changed in place.
    """
    is_frozen = True
    base = get_origin(type) or type
    if isinstance(base, builtins.type) and issubclass(base, msgspec.Struct):
        is_frozen = bool(base.__struct_config__.frozen)
    elif dataclasses.is_dataclass(base):
        is_frozen = bool(getattr(base, "__dataclass_params__").frozen)  # noqa: B009
    elif isinstance(base, builtins.type) and issubclass(
        base, (MutableSequence, MutableMapping, MutableSet)
    ):
        raise ConfigError(
            f"{what} {type_name(type)} can be changed in place: use a frozen Struct, or a tuple, a "
            "frozenset or another type that cannot"
        )
    elif isinstance(config := getattr(base, "model_config", None), Mapping):
        is_frozen = bool(config.get("frozen"))
    if not is_frozen:
        raise ConfigError(
            f"{what} {type_name(type)} can be changed in place: declare it with frozen=True"
        )


def shape_fingerprint(type: Any, version: int, content_type: str) -> str:
    """Identifies the shape of documents: a hash of their type (its JSON schema without texts and
    names, and the fields that are identified by their place alone), the version that the user
    gives, and the content type."""
    schema, definitions = _json_schema(type)
    said = [version, content_type, _schema_shape(schema, definitions, ())]
    by_place = fields_by_place(type)
    if by_place:
        said.append(by_place)
    data = msgspec.json.encode(said, order="sorted")
    return hashlib.sha256(data).hexdigest()[:16]


def _json_schema(type: Any) -> tuple[Any, Mapping[str, Any]]:
    """A type's JSON schema, and the definitions it refers to."""
    make_schema: Any = getattr(type, "model_json_schema", None)
    try:
        if make_schema is not None:
            schema: dict[str, Any] = make_schema()
            return schema, schema.pop("$defs", {})
        schemas, definitions = msgspec.json.schema_components([type], schema_hook=_describe_type)
    except Exception:
        return _describe_type(type), {}
    return schemas[0], definitions


def _describe_type(type: Any) -> dict[str, Any]:
    """A substitute for the JSON schema of another library's type that has none: its name, the names
    and types of its fields, and the same for its type arguments."""
    fields = getattr(type, "model_fields", None)
    if isinstance(fields, Mapping):  # Pydantic's
        declared = [(name, getattr(each, "annotation", None)) for name, each in fields.items()]
    else:
        bases = reversed(getattr(type, "__mro__", ()))
        declared = [
            each
            for base in bases
            for each in get_annotations(base, format=Format.FORWARDREF).items()
        ]
    parts = [_describe_type(each) for each in get_args(type)]
    return {
        "type": _written_type(type),
        "fields": [[name, _written_type(each)] for name, each in declared],
        "parts": parts,
    }


def _written_type(type: Any) -> str:
    """A type as text, the same in each process."""
    return _ADDRESS.sub("", type_name(type))


def _schema_shape(schema: Any, definitions: Mapping[str, Any], within: tuple[str, ...]) -> Any:
    """A JSON schema without the parts that do not affect documents: texts, and names of
    definitions, which are replaced by the definitions themselves (a recursive reference by its
    distance to the outer one)."""
    if isinstance(schema, Mapping):
        reference = schema.get("$ref")
        if isinstance(reference, str):
            found = reference.rpartition("/")[2]
            if found in within:
                return {"$within": len(within) - within.index(found)}
            return _schema_shape(definitions.get(found), definitions, (*within, found))
        return {
            key: _schema_shape(value, definitions, within)
            for key, value in schema.items()
            if key not in _NOT_SHAPE or not isinstance(value, (str, list, bool))
        }
    if isinstance(schema, list):
        return [_schema_shape(each, definitions, within) for each in schema]
    return schema
