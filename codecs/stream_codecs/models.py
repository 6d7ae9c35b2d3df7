"""Pydantic models as types: validated by Pydantic itself, both ways, as JSON.

A type with a Pydantic model anywhere in it is Pydantic's altogether (``TypeAdapter``): its aliases,
its strictness, its validators and serializers count. What is around them is the same as for all
other types (:mod:`stream_codecs.structured`): bounds before decoding, what is written can be read
again, and errors that quote nothing of the document.

Pydantic is an extra. This module imports it, and is itself imported only where a model was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from msgspec import inspect
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from pydantic_core.core_schema import ErrorType
from typing_extensions import TypeForm

from stream_codecs.errors import BindError, DecodeError, UnknownTag
from stream_codecs.explain import Place, decode_error
from stream_codecs.fits import unsure
from stream_codecs.limits import Limits
from stream_codecs.protocol import Bound, Role
from stream_codecs.shape import bare, classes_of, is_model, origin, parts_of, type_name
from stream_codecs.structured import Format, Parts, assemble

__all__ = ["bind_models", "tags_of_models"]

_QUOTING = frozenset({"error", "tag", "tz_actual"})
"""What a message is made with where it may quote the document."""

_KINDS = frozenset(get_args(ErrorType))
"""Failures that Pydantic knows; a validator can raise others, with texts of its own."""

_OWN_CHECKS = frozenset({"value_error", "assertion_error"})
"""What a validator of the user's raised: its text is the user's."""


def bind_models(
    format: Format, limits: Limits, type: TypeForm[Any], topic: str, role: Role
) -> Bound[Any]:
    """Bind JSON to a type with models.

    :raises BindError: Pydantic cannot make sense of the type.
    """
    adapter = _adapter(type)
    names = frozenset(_names(adapter.core_schema))
    place = Place(format.name, topic, role, type_name(bare(type)))

    def encode(value: Any) -> bytes:
        try:
            return adapter.dump_json(value, by_alias=True, warnings="error")
        except PydanticSerializationError as exc:
            error = misfit(value, exc)
        try:
            raise error
        finally:
            del error

    def misfit(value: Any, exc: Exception) -> Exception:
        """Pydantic says that a value is of another type, but its text holds the value: look for
        where that is."""
        try:
            data = adapter.dump_json(value, by_alias=True, warnings=False)
            adapter.validate_json(data, strict=True)
        except ValidationError as found:
            fault = _invalid(place, names, b"", found)
            reason = f"does not fit {place.type}: {fault.reason}"
            return place.refusal(reason, path=fault.path)
        except Exception:  # noqa: S110 - it cannot be written at all, as was found before
            pass
        return exc

    def explain(data: bytes, exc: Exception) -> DecodeError:
        if isinstance(exc, ValidationError):
            return _invalid(place, names, data, exc)
        return decode_error(place, data, exc)

    parts = Parts(
        read=adapter.validator.validate_json,
        explain=explain,
        encode=encode,
        fits=unsure,
        classes=_classes(type),
        plain=adapter.dump_python,
    )
    return assemble(format, limits, place, parts)


def tags_of_models(type: TypeForm[Any]) -> frozenset[str | int]:
    """The tags of a union of models with a discriminator; empty where it has none."""
    try:
        schema: Any = _adapter(type).core_schema
    except BindError:
        return frozenset()  # binding says what is wrong
    while schema.get("type") != "tagged-union" and isinstance(schema.get("schema"), dict):
        schema = schema["schema"]
    choices = schema["choices"] if schema.get("type") == "tagged-union" else ()
    return frozenset(tag for tag in choices if isinstance(tag, str | int))


def _adapter(type: TypeForm[Any]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(type)
    except Exception as exc:  # it evaluates the annotations of others: anything can happen
        reason = " ".join(str(exc).partition("\n")[0].split()) or type_name(exc.__class__)
        raise BindError(f"cannot use the type {type_name(bare(type))}: {reason}") from exc


def _classes(type: TypeForm[Any]) -> tuple[type, ...] | None:
    found: list[Any] = []
    for part in parts_of(type):
        classes = classes_of(part)
        if isinstance(part, inspect.CustomType) and is_model(part.cls):
            classes = (origin(part.cls),)
        if classes is None:
            return None
        found += classes
    return tuple(found)


def _invalid(place: Place, names: frozenset[str], data: bytes, exc: ValidationError) -> DecodeError:
    errors = exc.errors(include_url=False, include_input=False)
    first = errors[0]
    kind, context = first["type"], first.get("ctx", {})
    path = _path(first["loc"], names)
    if kind == "json_invalid":
        if not data:
            return place.error(data, "empty")
        return place.error(data, f"malformed JSON: {context.get('error', '')}")
    if kind == "union_tag_invalid":
        return UnknownTag(
            f"a tag that {place.type} does not have",
            tag=context["tag"], data=data, codec=place.codec, topic=place.topic, role=place.role,
            path=path,
        )  # fmt: skip
    if kind in _OWN_CHECKS or kind not in _KINDS:
        cause = context.get("error")
        name = type(cause).__name__ if isinstance(cause, BaseException) else kind
        return place.error(data, f"refused by the type's own check ({name})", path=path)
    if _QUOTING & context.keys():
        return place.error(data, f"does not fit: {kind.replace('_', ' ')}", path=path)
    reason = first["msg"]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return place.error(data, reason[0].lower() + reason[1:] + more, path=path)


def _path(location: tuple[int | str, ...], names: frozenset[str]) -> str:
    """A location as the other codecs write it. A name that the type does not have is the key of a
    mapping or a field that is forbidden: it comes from the document and is left out."""
    path = "$"
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if step in names else "[...]"
    return path


def _names(schema: Any) -> Iterator[str]:
    """All names that a location may hold and that come from the type: fields, aliases, and the
    tags and members of unions."""
    todo = [schema]
    seen: set[int] = set()
    while todo:
        item = todo.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            fields = item.get("fields")
            if isinstance(fields, dict):
                yield from fields
            choices = item.get("choices")
            if isinstance(choices, dict):
                yield from (key for key in choices if isinstance(key, str))
            alias = item.get("validation_alias")
            yield from _alias_names(alias)
            cls = item.get("cls")
            if isinstance(cls, type):
                yield cls.__name__
            todo += item.values()
        elif isinstance(item, list | tuple):
            todo += item


def _alias_names(alias: Any) -> Iterator[str]:
    if isinstance(alias, str):
        yield alias
    elif isinstance(alias, list):
        for each in alias:
            yield from _alias_names(each)
