"""Codecs: how the values and keys of a stream become bytes and come back.

Knows nothing of streams. A codec is *bound* once to a type, a topic and a role and gives back
functions (:class:`Bound`); every failure is one typed error (:class:`CodecError`) that keeps the
original bytes and says where they went wrong; sizes and depth are bounded before anything is
decoded; and what is encoded can be decoded.
"""

from stream_codecs.default import default_codec
from stream_codecs.errors import BindError, CodecError, DecodeError, EncodeError, UnknownTag
from stream_codecs.json import Json
from stream_codecs.key import Key
from stream_codecs.msgpack import MessagePack
from stream_codecs.protocol import Bound, Codec, Headers, Role
from stream_codecs.tags import tags_of
from stream_codecs.text_and_bytes import Bytes, Text
from stream_codecs.type_info import fields_of, includes_none, type_name
from stream_codecs.zstd import Zstd

__all__ = [
    "BindError",
    "Bound",
    "Bytes",
    "Codec",
    "CodecError",
    "DecodeError",
    "EncodeError",
    "Headers",
    "Json",
    "Key",
    "MessagePack",
    "Role",
    "Text",
    "UnknownTag",
    "Zstd",
    "default_codec",
    "fields_of",
    "includes_none",
    "tags_of",
    "type_name",
]
