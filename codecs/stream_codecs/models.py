"""Pydantic models as types: validated by Pydantic itself, both ways, as JSON.

A type with a Pydantic model anywhere in it is handled by Pydantic as a whole (``TypeAdapter``): its
aliases, strictness, validators and serializers apply. The rest is the same as for all other types
(:mod:`stream_codecs.structured`): limits before decoding, every written document can be read
again, and errors quote nothing of the document.

Pydantic is an extra. This module imports it, and is itself imported only if a model was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from pydantic_core.core_schema import ErrorType
from typing_extensions import TypeForm

from stream_codecs.error_mapping import ErrorContext, decode_error
from stream_codecs.errors import BindError, DecodeError
from stream_codecs.limits import SizeAndDepthLimits
from stream_codecs.protocol import Bound, Role
from stream_codecs.structured import Format, TypeParts, build_bound
from stream_codecs.type_checks import always_unsure
from stream_codecs.type_info import accepted_classes, member_types, strip_wrapping, type_name

_QUOTING_CONTEXT_KEYS = frozenset({"error", "tag", "tz_actual"})
"""Keys of an error's context whose values may quote the document."""

_PYDANTIC_ERROR_TYPES = frozenset(get_args(ErrorType))
"""Pydantic's own error types; a validator can raise others, with texts of its own."""

_USER_CHECK_TYPES = frozenset({"value_error", "assertion_error"})
"""The error types of the user's validators: their texts are the user's."""


def bind_models(
    format: Format, limits: SizeAndDepthLimits, type: TypeForm[Any], topic: str, role: Role
) -> Bound[Any]:
    """Bind JSON to a type with models.

    :raises BindError: Pydantic cannot make sense of the type.
    """
    adapter = _type_adapter(type)
    names = frozenset(_declared_names(adapter.core_schema))
    context = ErrorContext(format.name, topic, role, type_name(strip_wrapping(type)))

    def encode(value: Any) -> bytes:
        try:
            return adapter.dump_json(value, by_alias=True, warnings="error")
        except PydanticSerializationError as exc:
            error = locate_misfit(value, exc)
        try:
            raise error
        finally:
            del error

    def locate_misfit(value: Any, exc: Exception) -> Exception:
        """Find where a value has another type: Pydantic reports that there is one, but its text
        holds the value."""
        try:
            data = adapter.dump_json(value, by_alias=True, warnings=False)
            adapter.validate_json(data, strict=True)
        except ValidationError as found:
            fault = _validation_error(context, names, b"", found)
            reason = f"does not fit {context.type}: {fault.reason}"
            return context.encode_error(reason, path=fault.path)
        except Exception:  # noqa: S110 - it cannot be written at all, as was found before
            pass
        return exc

    def explain(data: bytes, exc: Exception) -> DecodeError:
        if isinstance(exc, ValidationError):
            return _validation_error(context, names, data, exc)
        return decode_error(context, data, exc)

    parts = TypeParts(
        read=adapter.validator.validate_json,
        explain=explain,
        encode=encode,
        surely_fits=always_unsure,
        classes=accepted_classes(member_types(type)),
        to_builtins=adapter.dump_python,
    )
    return build_bound(format, limits, context, parts)


def tags_of_models(type: TypeForm[Any]) -> frozenset[str | int]:
    """The tags of a union of models with a discriminator; empty if there are none."""
    try:
        schema: Any = _type_adapter(type).core_schema
    except BindError:
        return frozenset()  # bind() reports the error
    while schema.get("type") != "tagged-union" and isinstance(schema.get("schema"), dict):
        schema = schema["schema"]
    choices = schema["choices"] if schema.get("type") == "tagged-union" else ()
    return frozenset(tag for tag in choices if isinstance(tag, str | int))


def _type_adapter(type: TypeForm[Any]) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(type)
    except Exception as exc:  # it evaluates annotations, which may raise anything
        reason = " ".join(str(exc).partition("\n")[0].split()) or type_name(exc.__class__)
        raise BindError(f"cannot use the type {type_name(strip_wrapping(type))}: {reason}") from exc


def _validation_error(
    where: ErrorContext, names: frozenset[str], data: bytes, exc: ValidationError
) -> DecodeError:
    errors = exc.errors(include_url=False, include_input=False)
    first = errors[0]
    kind, error_context = first["type"], first.get("ctx", {})
    path = _format_path(first["loc"], names)
    if kind == "json_invalid":
        if not data:
            return where.decode_error(data, "empty")
        return where.decode_error(data, f"malformed JSON: {error_context.get('error', '')}")
    if kind == "union_tag_invalid":
        return where.unknown_tag(data, error_context["tag"], path)
    if kind in _USER_CHECK_TYPES or kind not in _PYDANTIC_ERROR_TYPES:
        cause = error_context.get("error")
        name = type(cause).__name__ if isinstance(cause, BaseException) else kind
        return where.decode_error(data, f"refused by the type's own check ({name})", path=path)
    if _QUOTING_CONTEXT_KEYS & error_context.keys():
        return where.decode_error(data, f"does not fit: {kind.replace('_', ' ')}", path=path)
    reason = first["msg"]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return where.decode_error(data, reason[0].lower() + reason[1:] + more, path=path)


def _format_path(location: tuple[int | str, ...], names: frozenset[str]) -> str:
    """A location as the other codecs write it. A name that the type does not have is the key of a
    mapping or a field that is forbidden: it comes from the document and is left out."""
    path = "$"
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{step}" if step in names else "[...]"
    return path


def _declared_names(schema: Any) -> Iterator[str]:
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
