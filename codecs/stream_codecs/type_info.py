"""The structure of a declared type, as codecs and the keys of messages need it.

It is based on :func:`msgspec.inspect.type_info`, so it understands exactly the types that the
codecs support: ``Struct``, dataclass, ``TypedDict``, ``NamedTuple``, unions of them, builtins and
their generics, ``NewType``, ``Annotated``, and so on. A class it does not know (another
library's) is a ``CustomType``: only a codec of your own supports that, except Pydantic's models
(:mod:`stream_codecs.models`), which are recognised here without importing Pydantic.
"""

from __future__ import annotations

import datetime
import decimal
import sys
import types
import typing
import uuid
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from msgspec import inspect
from typing_extensions import TypeForm

from stream_codecs.errors import BindError

TypeInfo: TypeAlias = inspect.Type
"""A type, analysed by msgspec."""

_FIELDED = inspect.StructType, inspect.DataclassType, inspect.TypedDictType, inspect.NamedTupleType


def type_name(form: TypeForm[Any]) -> str:
    """A type in source notation, on one line: ``Departed | Cancelled``."""
    if typing.get_origin(form) in (typing.Union, types.UnionType):
        return " | ".join(type_name(part) for part in typing.get_args(form))
    if isinstance(form, type) and not typing.get_args(form):
        return form.__qualname__.rpartition("<locals>.")[2].replace("NoneType", "None")
    return " ".join(repr(form).replace("typing.", "").split())


def type_info(form: TypeForm[Any]) -> TypeInfo:
    """The structure of a type.

    :raises BindError: msgspec does not support it.
    """
    try:
        return _take_apart(form)
    except Exception as exc:  # it evaluates annotations, which may raise anything
        reason = " ".join(str(exc).split()) or type(exc).__name__
        raise BindError(f"cannot use the type {type_name(form)}: {reason}") from exc


def _take_apart(form: Any) -> TypeInfo:
    """The same; raises msgspec's own exceptions."""
    is_union = typing.get_origin(form) in (typing.Union, types.UnionType)
    parts = typing.get_args(form) if is_union else (form,)
    if all(isinstance(part, type) and not typing.get_args(part) for part in parts):
        return _take_classes_apart(parts)
    return inspect.type_info(form)


@lru_cache(maxsize=256)
def _take_classes_apart(classes: tuple[type, ...]) -> TypeInfo:
    """The structure of a class, or of a union of several in this order (``A | B`` equals ``B |
    A``). Cached, as msgspec takes a while, and a declaration needs it several times."""
    return inspect.type_info(typing.Union[classes])  # noqa: UP007 (of a tuple there is no X | Y)


def union_members(shape: TypeInfo) -> list[TypeInfo]:
    """The members of a union, or the type itself, without ``Annotated``'s wrapper."""
    while isinstance(shape, inspect.Metadata):
        shape = shape.type
    if isinstance(shape, inspect.UnionType):
        return [part for each in shape.types for part in union_members(each)]
    return [shape]


def walk_types(shape: TypeInfo) -> Iterator[TypeInfo]:
    """The type and every type inside it, each once (types may contain themselves)."""
    seen: set[int] = set()
    todo = [shape]
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, _FIELDED):
            todo += [field.type for field in part.fields]
        elif isinstance(part, inspect.UnionType):
            todo += part.types
        elif isinstance(part, inspect.TupleType):
            todo += part.item_types
        elif isinstance(part, inspect.Metadata):
            todo.append(part.type)
        elif isinstance(part, inspect.DictType):
            todo += [part.key_type, part.value_type]
        elif isinstance(part, inspect.CollectionType):
            todo.append(part.item_type)


def class_of(cls: Any) -> type:
    """The class itself; for a generic class with arguments, without these."""
    found: type = typing.get_origin(cls) or cls
    return found


def strip_wrapping(form: Any) -> Any:
    """A type without ``Annotated``'s wrapper and without the name of an alias (PEP 695)."""
    while True:
        if typing.get_origin(form) is typing.Annotated:
            form = typing.get_args(form)[0]
        elif type(form).__name__ == "TypeAliasType":
            form = form.__value__
        else:
            return form


def is_pydantic_model(cls: Any) -> bool:
    """Whether this is a Pydantic model class. If it is, Pydantic has been imported."""
    base = getattr(sys.modules.get("pydantic"), "BaseModel", None)
    return base is not None and isinstance(class_of(cls), type) and issubclass(class_of(cls), base)


def has_models(form: TypeForm[Any]) -> bool:
    """Whether a type has a Pydantic model anywhere in it."""
    if "pydantic" not in sys.modules:
        return False
    form = strip_wrapping(form)
    if is_pydantic_model(form):
        return True
    if any(has_models(part) for part in typing.get_args(form) if not isinstance(part, str)):
        return True
    shape = _inspect(form)
    custom = (part for part in walk_types(shape) if isinstance(part, inspect.CustomType))
    return any(is_pydantic_model(part.cls) for part in custom)


def _inspect(form: Any) -> TypeInfo:
    """The structure of a type; an empty one if msgspec does not support it."""
    try:
        return _take_apart(form)
    except Exception:  # bind() reports the error
        return inspect.AnyType()


def fields_by_place(form: TypeForm[Any]) -> list[list[str]]:
    """The names of the fields, in their order, of each type inside that is written as an array:
    a ``NamedTuple`` or a Struct that is ``array_like``. JSON schemas do not have them."""
    found: list[list[str]] = []
    todo: list[Any] = [form]
    models: set[Any] = set()
    while todo:
        for part in walk_types(_inspect(todo.pop())):
            if isinstance(part, inspect.NamedTupleType) or (
                isinstance(part, inspect.StructType) and part.array_like
            ):
                found.append([field.encode_name for field in part.fields])
            elif isinstance(part, inspect.CustomType) and is_pydantic_model(part.cls):
                model: Any = class_of(part.cls)
                if model not in models:
                    models.add(model)
                    todo += [field.annotation for field in model.model_fields.values()]
    return found


def is_untyped(shape: TypeInfo) -> bool:
    """Whether nothing is known about the values of this type (``Any``, ``object``)."""
    is_object = isinstance(shape, inspect.CustomType) and shape.cls is object
    return is_object or isinstance(shape, inspect.AnyType)


def includes_none(form: TypeForm[Any]) -> bool:
    """Whether None is a value of this type, so that a handler of it takes tombstones too."""
    members = member_types(form)
    return any(isinstance(part, inspect.NoneType) or is_untyped(part) for part in members)


def member_types(form: TypeForm[Any]) -> list[TypeInfo]:
    """The members of a type, also of a union that msgspec cannot decode."""
    form = strip_wrapping(form)
    try:
        return union_members(_take_apart(form))
    except Exception:
        # Perhaps another library's, for a codec of the user's own: only a plain union is visible
        # here.
        if typing.get_origin(form) in (typing.Union, types.UnionType):
            return [part for each in typing.get_args(form) for part in member_types(each)]
        return [inspect.CustomType(_UnknownType)]


class _UnknownType:
    """Stands for a type that msgspec does not support."""


def accepted_classes(members: Iterable[TypeInfo]) -> tuple[type, ...] | None:
    """The classes of which a value of a type must be an instance; None if any class is possible.

    Wider than the type if Python is lenient and the wire cannot tell (an int for a float, a
    tuple for a list), so an instance may still not fit.

    :param members: the type, or the members of a union.
    """
    found: list[type] = []
    for part in members:
        if isinstance(part, _FIELDED):
            typed_dict = isinstance(part, inspect.TypedDictType)
            found.append(dict if typed_dict else class_of(part.cls))
        elif isinstance(part, inspect.EnumType):
            found.append(part.cls)
        elif isinstance(part, inspect.CustomType) and is_pydantic_model(part.cls):
            found.append(class_of(part.cls))
        elif isinstance(part, inspect.LiteralType):
            found += {type(value) for value in part.values}
        elif isinstance(part, inspect.CollectionType | inspect.TupleType):
            found += (list, tuple, set, frozenset)
        elif type(part) in _CLASSES:
            found += _CLASSES[type(part)]
        else:
            return None
    return tuple(found)


_CLASSES: dict[type[TypeInfo], tuple[type, ...]] = {
    inspect.NoneType: (type(None),),
    inspect.BoolType: (bool,),
    inspect.IntType: (int,),
    inspect.FloatType: (float, int),
    inspect.StrType: (str,),
    inspect.BytesType: (bytes, bytearray, memoryview),
    inspect.ByteArrayType: (bytes, bytearray, memoryview),
    inspect.MemoryViewType: (bytes, bytearray, memoryview),
    inspect.DateTimeType: (datetime.datetime,),
    inspect.DateType: (datetime.date,),
    inspect.TimeType: (datetime.time,),
    inspect.TimeDeltaType: (datetime.timedelta,),
    inspect.UUIDType: (uuid.UUID,),
    inspect.DecimalType: (decimal.Decimal,),
    inspect.DictType: (Mapping,),
}


def fields_of(form: TypeForm[Any]) -> list[tuple[type, set[str]]] | None:
    """Every member of the type except None, with its fields' names in Python.

    A member that has no fields (``int``) comes with an empty set. None if the fields cannot be
    known: an untyped value, a plain ``dict``, a class of another library.
    """
    result: list[tuple[type, set[str]]] = []
    for part in member_types(form):
        if isinstance(part, _FIELDED):
            result.append((class_of(part.cls), {field.name for field in part.fields}))
        elif isinstance(part, inspect.CustomType) and is_pydantic_model(part.cls):
            model: Any = class_of(part.cls)
            result.append((model, {*model.model_fields, *model.model_computed_fields}))
        elif isinstance(part, inspect.AnyType | inspect.CustomType | inspect.DictType):
            return None
        elif not isinstance(part, inspect.NoneType):
            result.append(((accepted_classes([part]) or (object,))[0], set()))
    return result
