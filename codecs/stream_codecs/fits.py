"""Does a value fit its type? A predicate compiled once a type, for the path of every publish.

msgspec encodes whatever it is given: a struct whose ``int`` field holds a str is written as it is,
and every consumer then finds a poison message. Decoding what was just encoded shows it, and that is
what a codec does before it lets a value out; but it costs more than the encoding. So the common
case is decided here first: :func:`compile_fits` writes a Python expression for the type (as
:mod:`dataclasses` does for ``__init__``) that looks at the classes of a value and its fields.

The predicate is sound and incomplete: *True* means that the type's decoder takes what the encoder
makes of this value; *False* means nothing, the caller has to find out by decoding. Types with
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

from stream_codecs.shape import Shape, members, origin

__all__ = ["compile_fits", "unsure"]

Fits = Callable[[Any], bool]


def unsure(value: Any) -> bool:
    """The predicate of a type for which none can be compiled."""
    return False


def compile_fits(shape: Shape, *, finite: bool) -> Fits:
    """A predicate for values of this type.

    :param finite: the format has no NaN and no infinity (JSON).
    """
    writer = _Writer(finite)
    try:
        return writer.function(shape)
    except _Unsure:
        return unsure


class _Unsure(Exception):
    """A type whose values cannot be judged by their classes."""


_EXACT: dict[type[Shape], type] = {
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


class _Writer:
    """Writes the source of predicates; each is a function that others may call.

    Nothing of the source comes from outside: field names are checked to be identifiers, and all
    else it mentions has a name made up here.
    """

    def __init__(self, finite: bool) -> None:
        self.finite = finite
        self.namespace: dict[str, Any] = {}
        self.functions: dict[int, str] = {}

    def name(self, thing: Any) -> str:
        name = f"_{len(self.namespace)}"
        self.namespace[name] = thing
        return name

    def function(self, shape: Shape) -> Fits:
        made: Fits = self.namespace[self.function_name(shape)]
        return made

    def function_name(self, shape: Shape) -> str:
        if id(shape) in self.functions:
            return self.functions[id(shape)]
        name = self.functions[id(shape)] = self.name(None)  # a type may contain itself
        body = self.test(shape, "v")
        exec(f"def {name}(v): return {body}", self.namespace)  # noqa: S102 - see the class
        return name

    def test(self, shape: Shape, value: str) -> str:
        """An expression that is true where ``value``, an expression too, fits."""
        parts = members(shape)
        exact = [self.exact(part) for part in parts]
        if None not in exact:
            if len(exact) == 1:
                return f"type({value}) is {self.name(exact[0])}"
            return f"type({value}) in {self.name(frozenset(exact))}"
        return f"({' or '.join(self.test_one(part, value) for part in parts)})"

    def exact(self, shape: Shape) -> type | None:
        """The class all of whose instances fit, where that is all there is to say."""
        cls = _EXACT.get(type(shape))
        if cls is not None and shape == type(shape)():  # no constraint
            return cls
        if isinstance(shape, inspect.EnumType):
            return shape.cls
        return None

    def test_one(self, shape: Shape, value: str) -> str:
        cls = self.exact(shape)
        if cls is not None:
            return f"type({value}) is {self.name(cls)}"
        match shape:
            case inspect.FloatType() if shape == inspect.FloatType():
                test = f"type({value}) is {self.name(float)}"
                # Neither NaN nor an infinity is zero when taken from itself.
                return f"({test} and {value} - {value} == 0.0)" if self.finite else test
            case inspect.LiteralType(values=values):
                return self.literal(values, value)
            case inspect.StructType() | inspect.DataclassType() | inspect.NamedTupleType():
                return self.fields(shape, value)
            case inspect.ListType() if not shape.min_length and shape.max_length is None:
                return f"(type({value}) is list and {self.every(shape.item_type, value)})"
            case inspect.DictType() if not shape.min_length and shape.max_length is None:
                if self.exact(shape.key_type) is str:
                    keys = self.every(shape.key_type, value)
                    items = self.every(shape.value_type, f"{value}.values()")
                    return f"(type({value}) is dict and {keys} and {items})"
            case _:
                pass
        raise _Unsure

    def literal(self, values: tuple[Any, ...], value: str) -> str:
        tests = []
        for cls in (str, int):
            found = frozenset(item for item in values if type(item) is cls)
            if found:
                tests.append(f"type({value}) is {cls.__name__} and {value} in {self.name(found)}")
        if len(values) != sum(type(item) in (str, int) for item in values):
            raise _Unsure
        return f"({' or '.join(tests)})"

    def fields(
        self,
        shape: inspect.StructType | inspect.DataclassType | inspect.NamedTupleType,
        value: str,
    ) -> str:
        if value != "v":
            return f"{self.function_name(shape)}({value})"
        cls = origin(shape.cls)
        attrs = hasattr(cls, "__attrs_attrs__")  # may validate and convert as it likes
        if attrs or hasattr(cls, "__post_init__"):
            raise _Unsure
        tests = [f"type(v) is {self.name(cls)}"]
        for field in shape.fields:
            if not field.name.isidentifier() or iskeyword(field.name):
                raise _Unsure
            tests.append(self.test(field.type, f"v.{field.name}"))
        return f"({' and '.join(tests)})"

    def every(self, shape: Shape, values: str) -> str:
        exact = {self.exact(part) for part in members(shape)}
        if None not in exact:
            return f"{self.name(frozenset(exact))}.issuperset(map(type, {values}))"
        return f"all(map({self.function_name(shape)}, {values}))"
