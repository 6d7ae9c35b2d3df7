"""MessagePack (https://msgpack.org) through msgspec: JSON's types and more, in fewer bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from typing_extensions import TypeForm

from stream_codecs.depth import msgpack_is_deeper
from stream_codecs.errors import BindError
from stream_codecs.limits import SizeAndDepthLimits
from stream_codecs.protocol import Bound, Role
from stream_codecs.structured import Format, bind_format
from stream_codecs.type_info import has_models, strip_wrapping, type_name

T = TypeVar("T")


def _decoder(type: Any) -> Callable[[bytes], Any]:
    return msgspec.msgpack.Decoder(type).decode


def _surely_shallow(values: Sequence[bytes], limit: int) -> bool:
    return False  # one byte can be a level: only the length can clear a whole batch


_FORMAT = Format(
    name="msgpack",
    content_type="application/vnd.msgpack",
    encode=msgspec.msgpack.Encoder().encode,
    decoder=_decoder,
    is_deeper=msgpack_is_deeper,
    surely_shallow=_surely_shallow,
)


@dataclass(frozen=True, slots=True)
class MessagePack(SizeAndDepthLimits):
    """Values as MessagePack.

    Fields that the type does not declare are ignored, missing or mistyped ones are errors.
    Bytes and times have forms of their own, integers are limited to 64 bits, NaN can be written.

    :param max_size: the largest document, decoded or encoded, in bytes.
    :param max_depth: the most levels of nesting, decoded or encoded.
    """

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """Encode and decode values of ``type``.

        :raises BindError: msgspec does not know the type, or it has Pydantic models.
        """
        if has_models(type):
            name = type_name(strip_wrapping(type))
            raise BindError(
                f"cannot use the type {name}: Pydantic models travel as JSON; use Json()"
            )
        return bind_format(_FORMAT, self, type, topic, role)
