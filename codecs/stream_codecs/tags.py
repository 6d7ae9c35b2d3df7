"""The tags by which a message names its struct or model among those of its type."""

from __future__ import annotations

from typing import Any

from msgspec import inspect
from typing_extensions import TypeForm

from stream_codecs.type_info import has_models, member_types


def tags_of(form: TypeForm[Any]) -> frozenset[str | int]:
    """The tags of the type's tagged structs, or of a union of Pydantic models with a discriminator;
    empty if no message can have an unknown one."""
    if has_models(form):
        from stream_codecs.models import tags_of_models

        return tags_of_models(form)
    structs = (part for part in member_types(form) if isinstance(part, inspect.StructType))
    return frozenset(part.tag for part in structs if part.tag is not None)
