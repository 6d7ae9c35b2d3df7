"""The codec of a topic that does not name one."""

from __future__ import annotations

from typing import Any

from typing_extensions import TypeForm

from stream_codecs.errors import BindError
from stream_codecs.json import Json
from stream_codecs.protocol import Codec
from stream_codecs.text_and_bytes import Bytes, Text, is_only
from stream_codecs.type_info import type_info


def default_codec(type: TypeForm[Any]) -> Codec:
    """Bytes unchanged, a str as text, everything else as JSON."""
    try:
        shape = type_info(type)
    except BindError:
        return Json()  # its bind() reports the error
    if is_only(shape, bytes):
        return Bytes()
    return Text() if is_only(shape, str) else Json()
