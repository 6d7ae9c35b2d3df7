"""What a function's annotations say, compared with what it is going to be called with.

Type checkers compare them exactly (:mod:`streams.handler_types`). This is for whoever runs none: it
refuses, when a handler is declared, what is certainly another type than the topic's, and takes
everything else. Annotations that cannot be evaluated, type variables, protocols, and functions
behind a decorator that may change what they get are all left alone; of a generic class only the
class is compared.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.inspect import TypedDictType
from typing_extensions import is_typeddict

from stream_codecs import fields_of, type_name
from stream_codecs.type_info import is_pydantic_model, member_types, strip_wrapping
from streams.callables import call_error, signature, unwrap_partial
from streams.errors import ConfigError
from streams.message import Message


class TopicType(NamedTuple):
    """A topic's name, and the type of its values."""

    topic: str
    type: Any


def check_handler(
    where: str,
    function: Callable[..., Any],
    topics: Sequence[TopicType],
    *,
    batch: bool,
    wants_message: bool,
    has_filter: bool,
) -> None:
    """Compare a handler's parameters with the topics that it reads.

    :param has_filter: there is a filter, which may leave only a part of the type.
    :raises ConfigError: it is annotated with another type than it will get.
    """
    around: tuple[type, ...] = (list,) if batch else ()
    arguments = [around, (*around, Message)] if wants_message else [around]
    for (name, annotation), wrappers in zip(
        _positional_parameters(function), arguments, strict=False
    ):
        _check_parameter(where, name, annotation, topics, wrappers, any_part=has_filter)


def check_function(
    where: str, function: Callable[..., Any], topics: Sequence[TopicType], *, tombstones: bool
) -> None:
    """Compare a function of a value (a filter, a key) with the topics whose values it gets.

    :param tombstones: it also gets None, where that is a value of the topic.
    :raises ConfigError: it cannot be called with one value, or its parameter has another type.
    """
    error = call_error(function, None)
    if error is not None:
        raise ConfigError(f"{where}: {error}; it is called with the value alone") from error
    for name, annotation in list(_positional_parameters(function))[:1]:
        _check_parameter(where, name, annotation, topics, (), tombstones=tombstones)


class ArgumentType(NamedTuple):
    """What a function is called with by position."""

    type: Any
    """Of the argument, or of what is in it: the data of a queue's message."""
    wrappers: tuple[type, ...] = ()
    """The class of the argument, where ``type`` is what is in it."""


def check_arguments(
    where: str, function: Callable[..., Any], *arguments: ArgumentType, any_part: bool = False
) -> None:
    """Compare a function's parameters with what it is always called with.

    :param any_part: of a union it may be known to get a part only.
    :raises ConfigError: it is annotated with another type than it will get.
    """
    for (name, annotation), each in zip(_positional_parameters(function), arguments, strict=False):
        fits = [
            _parameter_accepts(annotation, part, each.wrappers)
            for part in _union_members(each.type)
        ]
        if all(fits) or (any_part and any(fits)):
            continue
        inner = "" if each.wrappers and each.type is Any else _format_type(each.type)
        wanted = _wrap(inner, each.wrappers)
        raise _mismatch_error(where, name, annotation, f"it gets {wanted}", wanted)


def check_result(where: str, function: Callable[..., Any], to: TopicType, *, batch: bool) -> None:
    """Compare what a handler returns with the topic that it is published to.

    :raises ConfigError: nothing that it may return fits.
    """
    annotation = _Annotations(function)["return"]
    if _may_return(annotation, to.type, batch=batch):
        return
    wanted = _format_type(to.type)
    advice = f"a list with {wanted} or None for each message" if batch else f"{wanted} or None"
    returned = f"what it returns is annotated {_format_type(annotation)}"
    raise ConfigError(
        f"{where}: {returned}, but is published to topic {to.topic!r} (to=), which has {wanted}; "
        f"return {advice}"
    )


def unpublished_result(function: Callable[..., Any], topics: Collection[TopicType]) -> str:
    """What a handler without ``to=`` certainly returns, as people write it, where that looks like
    a message's value: a Struct, a dataclass, a model, or a class that a topic has. Else empty.
    """

    def is_value(cls: type) -> bool:
        if issubclass(cls, Struct) or is_dataclass(cls):
            return True
        if is_pydantic_model(cls) or is_typeddict(cls):
            return True
        parts = (part for each in topics for part in _union_members(each.type))
        return any(cls is _class_of(part) for part in parts)

    for returned in _union_members(_Annotations(function)["return"]):
        cls, parts = _class_of(returned), [returned]
        if cls is not None and issubclass(cls, (list, tuple, Sequence, Iterator)):
            for item_type in typing.get_args(returned)[:1]:
                parts += _union_members(item_type)
        for found in map(_class_of, parts):
            if found is not None and found.__module__ != "builtins" and is_value(found):
                return _format_type(returned)
    return ""


def _check_parameter(
    where: str,
    parameter: str,
    annotation: Any,
    topics: Sequence[TopicType],
    wrappers: tuple[type, ...],
    *,
    any_part: bool = False,
    tombstones: bool = True,
) -> None:
    parts = [part for each in topics for part in _union_members(each.type)]
    if not tombstones:
        parts = [part for part in parts if part is not type(None)]
    fits = [_parameter_accepts(annotation, part, wrappers) for part in parts]
    if all(fits) or (any_part and any(fits)):
        return
    wanted = " | ".join(dict.fromkeys(_format_type(each.type) for each in topics))
    gets = " and ".join(f"topic {each.topic!r} has {_format_type(each.type)}" for each in topics)
    if wrappers and not _parameter_accepts(annotation, Any, wrappers):
        what = "the messages" if wrappers == (list, Message) else "the message"
        gets = f"it gets {'a list (batch=)' if wrappers == (list,) else what}, and {gets}"
    alternative = ""
    if not wrappers and all(_parameter_accepts(annotation, part, (list,)) for part in parts):
        alternative = ", or give batch="
    elif len(topics) == 1 and topics[0].type is bytes:  # which it is where none was given
        alternative = f", or give the type: app.topic({topics[0].topic!r}, ...)"
    raise _mismatch_error(where, parameter, annotation, gets, _wrap(wanted, wrappers) + alternative)


def _wrap(inner: str, wrappers: tuple[type, ...]) -> str:
    """The name of a type with the classes around it: ``list[Message[Order]]``."""
    for cls in reversed(wrappers):
        inner = f"{cls.__name__}[{inner}]" if inner else cls.__name__
    return inner


def _mismatch_error(
    where: str, parameter: str, annotation: Any, gets: str, wanted: str
) -> ConfigError:
    annotated = f"parameter {parameter!r} is annotated {_format_type(annotation)}"
    return ConfigError(f"{where}: {annotated}, but {gets}; annotate it {wanted}")


# -- reading annotations


def _positional_parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The parameters that are given by position, with what they are annotated; ``Any`` where that
    is nothing, or not known."""
    annotations = _Annotations(function)
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    for parameter in parameters:
        if parameter.kind in (
            parameter.POSITIONAL_ONLY,
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.VAR_POSITIONAL,
        ):
            yield parameter.name, annotations[parameter.name]


class _Annotations:
    """A function's annotations, each evaluated by itself."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._by_name: Mapping[str, Any] = {}
        self._globals: dict[str, Any] = {}
        function_called = _function_called(function)
        if function_called is None:
            return
        try:
            declared = signature(function_called)
        except Exception:  # nothing is known of it
            return
        self._globals = function_called.__globals__
        self._by_name = {
            "return": declared.return_annotation,
            **{name: each.annotation for name, each in declared.parameters.items()},
        }

    def __getitem__(self, name: str) -> Any:
        found = self._by_name.get(name, Any)
        if found is inspect.Parameter.empty:
            return Any

        def carrier() -> None: ...

        carrier.__annotations__ = {name: found}
        try:
            return typing.get_type_hints(carrier, self._globals, include_extras=True)[name]
        except Exception:  # it names what does not exist (yet), or is no type at all
            return Any


def _function_called(function: Any) -> types.FunctionType | None:
    """The function that is called in the end; None where what it gets may be something else."""
    function = unwrap_partial(function)
    if isinstance(function, staticmethod):
        function = function.__func__
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = getattr(type(function), "__call__", None)  # noqa: B004 - it is looked into
    if inspect.ismethod(function):
        function = function.__func__
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return None
    return function


# -- comparing types


_PROMOTED: Mapping[type, tuple[type, ...]] = {
    float: (int,),
    complex: (int, float),
    bytes: (bytearray, memoryview),
}
"""What type checkers take for another class."""


def _union_members(form: Any) -> list[Any]:
    """The members of a union, or the type itself, without names and wrapping."""
    try:
        form = strip_wrapping(form)
        while isinstance(form, typing.NewType):
            form = strip_wrapping(form.__supertype__)
    except Exception:  # an alias of what does not exist (yet)
        return [Any]
    if typing.get_origin(form) in (typing.Union, types.UnionType):
        return [part for each in typing.get_args(form) for part in _union_members(each)]
    if typing.get_origin(form) is typing.Literal:
        return [type(value) for value in typing.get_args(form)]
    return [type(None) if form is None else form]


def _class_of(form: Any) -> type | None:
    """The class of a type; None where an instance of it could be anything."""
    cls: Any = typing.get_origin(form) or form
    if not isinstance(cls, type) or Any in cls.__mro__ or getattr(cls, "_is_protocol", False):
        return None
    if hasattr(cls, "__get_pydantic_core_schema__") and not is_pydantic_model(cls):
        return None  # its values are what this says: for an EmailStr they are plain str
    return cls


def _parameter_accepts(annotation: Any, part: Any, wrappers: tuple[type, ...] = ()) -> bool:
    """Whether a parameter takes a value of a type, or what is around it: a list, a message."""
    for form in _union_members(annotation):
        cls = _class_of(form)
        if cls is None:
            return True
        if not wrappers:
            if _is_subtype(part, form):
                return True
            continue
        if not _is_subtype(wrappers[0], cls):
            continue
        arguments = typing.get_args(form)
        element_type_first = cls is wrappers[0] or cls.__module__ in ("builtins", "collections.abc")
        if (
            not arguments
            or not element_type_first
            or _parameter_accepts(arguments[0], part, wrappers[1:])
        ):
            return True
    return False


def _is_subtype(part: Any, form: Any) -> bool:
    """Whether each value of one type is of another, too, as far as can be said."""
    given, wanted = _class_of(part), _class_of(form)
    if given is None or wanted is None or given is object:
        return True
    if is_typeddict(wanted):
        if is_typeddict(given):
            return _required_fields(wanted) <= _field_names(given)
        return issubclass(given, Mapping)  # perhaps: it depends on what is in it
    if is_typeddict(given):
        given = dict
    try:
        if issubclass(given, (wanted, *_PROMOTED.get(wanted, ()))):
            return True
        # Of an abstract type codecs make something concrete: a list of a Sequence.
        return given.__module__ == "collections.abc" and issubclass(wanted, given)
    except TypeError:  # a class that does not say what is of it
        return True


def _field_names(typed_dict: Any) -> set[str]:
    return {name for _, names in fields_of(typed_dict) or () for name in names}


def _required_fields(typed_dict: Any) -> set[str]:
    return {
        field.name
        for part in member_types(typed_dict)
        if isinstance(part, TypedDictType)
        for field in part.fields
        if field.required
    }


def _may_return(annotation: Any, to: Any, *, batch: bool) -> bool:
    """Whether a value of a type can be published as another, or hold some that can."""
    forms = [form for form in _union_members(annotation) if form is not type(None)]
    return not forms or any(_may_contain(form, to, batch=batch) for form in forms)


def _may_contain(form: Any, to: Any, *, batch: bool) -> bool:
    cls = _class_of(form)
    if cls is None or issubclass(cls, Awaitable):
        return True
    if not batch and any(_may_be_instance(form, each) for each in _union_members(to)):
        return True
    if not issubclass(cls, (list, tuple, Iterator)) and not _is_subtype(list, cls):
        return False
    # Of a generator's arguments only the first is what it yields.
    items = typing.get_args(form) if cls is tuple else typing.get_args(form)[:1]
    return not items or any(_may_return(each, to, batch=False) for each in items if each is not ...)


def _may_be_instance(form: Any, to: Any) -> bool:
    """Whether a value of one type may be of another: it may also be of a subclass."""
    if _is_subtype(form, to) or _is_subtype(to, form):
        return True
    return any(
        cls is not None and all(issubclass(each, family) for each in (cls, other))
        for family in (Mapping, (list, tuple, set, frozenset))
        for cls, other in [(_class_of(form), _class_of(to) or object)]
    )


def _format_type(form: Any) -> str:
    """A type as people write it, on one line."""
    form = strip_wrapping(form)
    if typing.get_origin(form) in (typing.Union, types.UnionType):
        return " | ".join(_format_type(part) for part in typing.get_args(form))
    if isinstance(form, typing.NewType):
        return form.__name__
    cls, arguments = _class_of(form), typing.get_args(form)
    if cls is None or not arguments:
        return type_name(form)
    if cls is Message and arguments[1:] in ((Any,), ("Transaction",)):  # what it is by default
        arguments = arguments[:1]
    names = ("..." if each is ... else _format_type(each) for each in arguments)
    return f"{cls.__name__}[{', '.join(names)}]"
