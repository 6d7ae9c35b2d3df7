"""Checks that a value fits its type: a predicate compiled once per type, for every publish.

msgspec encodes any value: a struct whose ``int`` field holds a str is written unchanged,
and every consumer then finds a poison message. Decoding the encoded bytes detects it, and that is
how a codec checks a value before it returns the bytes; but it costs more than the encoding. So the
common case is decided here first: :func:`compile_check` writes a Python expression for the type (as
:mod:`dataclasses` does for ``__init__``) that checks the classes of a value and its fields.

The predicate is sound and incomplete: *True* means that the type's decoder accepts the encoded
value; *False* means nothing, the caller has to find out by decoding. Types with
constraints or with code of their own (``__post_init__``) have no predicate.
"""

from __future__ import annotations

import datetime
import decimal
import uuid
from collections.abc import Callable
from keyword import iskeyword
from typing import Any

from msgspec import inspect

from stream_codecs.type_info import TypeInfo, class_of, union_members

TypeCheck = Callable[[Any], bool]


def always_unsure(value: Any) -> bool:
    """The predicate of a type for which none can be compiled."""
    return False


def compile_check(shape: TypeInfo, *, finite: bool) -> TypeCheck:
    """A predicate for values of this type.

    :param finite: whether the format has no NaN and no infinity (JSON).
    """
    compiler = _CheckCompiler(finite)
    try:
        return compiler.compile_function(shape)
    except _NotCompilable:
        return always_unsure


class _NotCompilable(Exception):
    """The values of a type cannot be checked by their classes."""


_EXACT_CLASSES: dict[type[TypeInfo], type] = {
    inspect.NoneType: type(None),
    inspect.BoolType: bool,
    inspect.IntType: int,
    inspect.StrType: str,
    inspect.BytesType: bytes,
    inspect.DateTimeType: datetime.datetime,
    inspect.DateType: datetime.date,
    inspect.TimeType: datetime.time,
    inspect.UUIDType: uuid.UUID,
    inspect.DecimalType: decimal.Decimal,
}


class _CheckCompiler:
    """Writes the source of predicates; each is a function that others may call.

    Nothing in the source comes from outside: field names are checked to be identifiers, and all
    other names are generated here.
    """

    def __init__(self, finite: bool) -> None:
        self.finite = finite
        self.namespace: dict[str, Any] = {}
        self.functions: dict[int, str] = {}

    def bind_name(self, thing: Any) -> str:
        name = f"_{len(self.namespace)}"
        self.namespace[name] = thing
        return name

    def compile_function(self, shape: TypeInfo) -> TypeCheck:
        made: TypeCheck = self.namespace[self.define_function(shape)]
        return made

    def define_function(self, shape: TypeInfo) -> str:
        if id(shape) in self.functions:
            return self.functions[id(shape)]
        name = self.functions[id(shape)] = self.bind_name(None)  # a type may contain itself
        body = self.test_expression(shape, "v")
        exec(f"def {name}(v): return {body}", self.namespace)  # noqa: S102 - see the class
        return name

    def test_expression(self, shape: TypeInfo, value: str) -> str:
        """An expression that is true if ``value``, an expression too, fits."""
        parts = union_members(shape)
        exact = [self.exact_class(part) for part in parts]
        if None not in exact:
            if len(exact) == 1:
                return f"type({value}) is {self.bind_name(exact[0])}"
            return f"type({value}) in {self.bind_name(frozenset(exact))}"
        return f"({' or '.join(self.member_expression(part, value) for part in parts)})"

    def exact_class(self, shape: TypeInfo) -> type | None:
        """The class whose instances all fit, if the class is all that has to be checked."""
        cls = _EXACT_CLASSES.get(type(shape))
        if cls is not None and shape == type(shape)():  # no constraint
            return cls
        if isinstance(shape, inspect.EnumType):
            return shape.cls
        return None

    def member_expression(self, shape: TypeInfo, value: str) -> str:
        cls = self.exact_class(shape)
        if cls is not None:
            return f"type({value}) is {self.bind_name(cls)}"
        match shape:
            case inspect.FloatType() if shape == inspect.FloatType():
                test = f"type({value}) is {self.bind_name(float)}"
                # NaN and infinities do not give zero when subtracted from themselves.
                return f"({test} and {value} - {value} == 0.0)" if self.finite else test
            case inspect.LiteralType(values=values):
                return self.literal_expression(values, value)
            case inspect.StructType() | inspect.DataclassType() | inspect.NamedTupleType():
                return self.fields_expression(shape, value)
            case inspect.ListType() if not shape.min_length and shape.max_length is None:
                items = self.items_expression(shape.item_type, value)
                return f"(type({value}) is list and {items})"
            case inspect.DictType() if not shape.min_length and shape.max_length is None:
                if self.exact_class(shape.key_type) is str:
                    keys = self.items_expression(shape.key_type, value)
                    items = self.items_expression(shape.value_type, f"{value}.values()")
                    return f"(type({value}) is dict and {keys} and {items})"
            case _:
                pass
        raise _NotCompilable

    def literal_expression(self, values: tuple[Any, ...], value: str) -> str:
        tests = []
        for cls in (str, int):
            found = frozenset(item for item in values if type(item) is cls)
            if found:
                members = self.bind_name(found)
                tests.append(f"type({value}) is {cls.__name__} and {value} in {members}")
        if len(values) != sum(type(item) in (str, int) for item in values):
            raise _NotCompilable
        return f"({' or '.join(tests)})"

    def fields_expression(
        self, shape: inspect.StructType | inspect.DataclassType | inspect.NamedTupleType, value: str
    ) -> str:
        if value != "v":
            return f"{self.define_function(shape)}({value})"
        cls = class_of(shape.cls)
        attrs = hasattr(cls, "__attrs_attrs__")  # it may validate and convert in any way
        if attrs or hasattr(cls, "__post_init__"):
            raise _NotCompilable
        tests = [f"type(v) is {self.bind_name(cls)}"]
        for field in shape.fields:
            if not field.name.isidentifier() or iskeyword(field.name):
                raise _NotCompilable
            tests.append(self.test_expression(field.type, f"v.{field.name}"))
        return f"({' and '.join(tests)})"

    def items_expression(self, shape: TypeInfo, values: str) -> str:
        exact = {self.exact_class(part) for part in union_members(shape)}
        if None not in exact:
            return f"{self.bind_name(frozenset(exact))}.issuperset(map(type, {values}))"
        return f"all(map({self.define_function(shape)}, {values}))"
