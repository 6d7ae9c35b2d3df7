"""JSON (RFC 8259): with a declared type through msgspec, without one through orjson."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any, TypeVar

import msgspec
import orjson
from typing_extensions import TypeForm

from stream_codecs.depth import json_is_deeper
from stream_codecs.limits import SizeAndDepthLimits
from stream_codecs.protocol import Bound, Role
from stream_codecs.structured import Format, bind_format
from stream_codecs.type_info import has_models, is_untyped, type_info

T = TypeVar("T")

_has_array = methodcaller("__contains__", ord("["))


def _surely_shallow(values: Sequence[bytes], limit: int) -> bool:
    # Without arrays a level needs four bytes; see stream_codecs.depth.
    return max(map(len, values)) <= 4 * limit and not any(map(_has_array, values))


def _decoder(type: Any) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(type).decode


_TYPED = Format(
    name="json",
    content_type="application/json",
    encode=msgspec.json.Encoder().encode,
    decoder=_decoder,
    is_deeper=json_is_deeper,
    surely_shallow=_surely_shallow,
    nan_text=b"null",
)

# orjson reads everything that it has written, and there is no type that could disagree.
_UNTYPED = _TYPED._replace(
    encode=partial(orjson.dumps, default=msgspec.to_builtins),
    decoder=lambda type: orjson.loads,
    may_refuse_own=False,
)


@dataclass(frozen=True, slots=True)
class Json(SizeAndDepthLimits):
    """Values as JSON.

    Fields that the type does not declare are ignored, missing or mistyped ones are errors.
    ``Any`` and ``object`` stand for untyped JSON: integers are then limited to 64 bits when written
    (beyond that, orjson reads them as floats), and at most 254 levels are written.

    A type with Pydantic models is validated by Pydantic, which decides which values fit (extra
    ``pydantic``).

    NaN and the infinities cannot be written; msgspec and orjson alone would make them ``nan_text``.

    :param max_size: the largest document, decoded or encoded, in bytes.
    :param max_depth: the most levels of nesting, decoded or encoded.
    """

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """Encode and decode values of ``type``.

        :raises BindError: msgspec does not know the type, and it has no Pydantic models.
        """
        if has_models(type):
            from stream_codecs.models import bind_models

            return bind_models(_TYPED, self, type, topic, role)
        format = _UNTYPED if is_untyped(type_info(type)) else _TYPED
        return bind_format(format, self, type, topic, role)
