"""Forms from a topic's type: the fields of a value, and how a visitor fills them in.

msgspec describes a type as a JSON schema. A value that is an object becomes a field for each of
its members, one of several tagged types a choice first; deeper members are filled in as JSON. A
value of a type without a schema (a codec's own) is filled in as JSON altogether.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import orjson

from streams.errors import InvalidValue
from streams.web.forms import Fields

FieldKind = Literal["text", "integer", "number", "boolean", "choice", "json"]

PREFIX = "value."
"""The prefix of the names of a form's fields that are members of the value."""

MAX_CHOICES = 200
"""The most members of an enumeration that are offered; with more it is a text field."""


class ValueField(NamedTuple):
    """A member of a value.

    :param required: whether it must be given.
    :param nullable: whether it may be null.
    :param choices: for an enumeration, its members as JSON.
    :param hint: the schema's description, bounds and default.
    """

    name: str
    kind: FieldKind
    required: bool
    nullable: bool
    choices: Sequence[str]
    hint: str


class Variant(NamedTuple):
    """One type of value that a topic takes.

    :param constants: members that are always the same, such as a tag.
    """

    name: str
    fields: Sequence[ValueField]
    constants: Mapping[str, Any]


def variants_of(type: Any) -> list[Variant]:
    """The types of value that a topic's type allows, if all are objects; empty: some are not,
    or it is unknown."""
    try:
        [schema], definitions = msgspec.json.schema_components([type], ref_template="{name}")
    except Exception:  # a codec of the user's own has types of its own
        return []
    found: list[Variant] = []
    for each in schema.get("anyOf") or [schema]:
        resolved = _resolve(each, definitions)
        if resolved.get("type") == "null":
            continue
        if resolved.get("type") != "object" or not resolved.get("properties"):
            return []
        found.append(_variant(resolved, definitions))
    return found


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref")
    return definitions[name] if isinstance(name, str) and name in definitions else schema


def _variant(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Variant:
    required = set(schema.get("required", ()))
    fields: list[ValueField] = []
    constants: dict[str, Any] = {}
    for name, member in schema["properties"].items():
        found = _resolve(member, definitions)
        if "enum" in found and len(found["enum"]) == 1 and name in required:
            constants[name] = found["enum"][0]
            continue
        fields.append(_field(name, member, definitions, is_required=name in required))
    title = str(schema.get("title") or "value")
    return Variant(title, fields, constants)


def _field(
    name: str, member: Mapping[str, Any], definitions: Mapping[str, Any], *, is_required: bool
) -> ValueField:
    found = _resolve(member, definitions)
    options = [_resolve(each, definitions) for each in found.get("anyOf", ())]
    nullable = any(each.get("type") == "null" for each in options)
    others = [each for each in options if each.get("type") != "null"]
    if len(others) == 1:
        found = others[0]
    kinds: Mapping[str, FieldKind] = {
        "string": "text", "integer": "integer", "number": "number", "boolean": "boolean",
    }  # fmt: skip
    kind: FieldKind = kinds.get(str(found.get("type")), "json")
    choices: list[str] = []
    if 0 < len(found.get("enum", ())) <= MAX_CHOICES:
        kind, choices = "choice", [orjson.dumps(each).decode() for each in found["enum"]]
    return ValueField(name, kind, is_required, nullable, choices, _hint(found, member))


def _hint(found: Mapping[str, Any], member: Mapping[str, Any]) -> str:
    said: list[str] = []
    if description := found.get("description") or member.get("description"):
        said.append(str(description))
    words = {
        "minimum": "≥ {}", "maximum": "≤ {}",
        "exclusiveMinimum": "> {}", "exclusiveMaximum": "< {}",
        "minLength": "≥ {} characters", "maxLength": "≤ {} characters", "pattern": "{}",
        "format": "{}",
    }  # fmt: skip
    said += [words[each].format(found[each]) for each in words if each in found]
    if "default" in member:
        said.append(f"= {orjson.dumps(member['default']).decode()}")
    return ", ".join(said)


def value_of(variant: Variant, fields: Fields) -> bytes:
    """The value that a form describes, as JSON.

    :raises InvalidValue: a member is missing or invalid, or is not UTF-8.
    """
    found: dict[str, Any] = dict(variant.constants)
    for each in variant.fields:
        written = fields.raw(f"{PREFIX}{each.name}")
        if each.kind != "text":
            written = written.strip()
        is_given = written != "" or (each.kind == "text" and each.required and not each.nullable)
        if not is_given:
            if each.required and not each.nullable:
                raise InvalidValue(f"{each.name}: it must be given")
            if each.required:
                found[each.name] = None
            continue
        found[each.name] = _member(each, written)
    try:
        return orjson.dumps(found, option=orjson.OPT_NON_STR_KEYS)
    except orjson.JSONEncodeError as error:  # too deep, or not UTF-8
        raise InvalidValue(f"the members cannot be written as JSON: {error}") from None


def _member(each: ValueField, written: str) -> Any:
    if each.kind == "text":
        return written
    try:
        found = orjson.loads(written)
    except orjson.JSONDecodeError:
        what = {"integer": "a whole number", "number": "a number"}.get(each.kind, "JSON")
        raise InvalidValue(f"{each.name}: {written[:60]!r} is not {what}") from None
    if each.kind in ("integer", "number"):
        whole = isinstance(found, int) and not isinstance(found, bool)
        if not (whole or (each.kind == "number" and isinstance(found, float))):
            what = "a whole number" if each.kind == "integer" else "a number"
            raise InvalidValue(f"{each.name}: {written[:60]!r} is not {what}")
    return found


def filled_in(variant: Variant, document: Any) -> dict[str, str]:
    """The contents of a form's fields for an existing value; members that are nested too deeply are
    left out."""
    if not isinstance(document, Mapping):
        return {}
    found: dict[str, str] = {}
    for each in variant.fields:
        if each.name not in document or document[each.name] is None:
            continue
        member = document[each.name]
        if each.kind == "text" and isinstance(member, str):
            found[each.name] = member
            continue
        try:
            found[each.name] = orjson.dumps(member).decode()
        except orjson.JSONEncodeError:
            continue
    return found


def variant_for(variants: Sequence[Variant], document: Any) -> Variant | None:
    """The type of a value among several: by its constant members."""
    for each in variants:
        if isinstance(document, Mapping) and all(
            document.get(name) == value for name, value in each.constants.items()
        ):
            return each
    return None
