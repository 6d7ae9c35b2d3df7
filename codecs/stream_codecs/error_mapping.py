"""Maps the exceptions of decoders and encoders to the one typed error, without payload content.

msgspec's messages are good but may quote the document (``Invalid enum value 'secret'``), and a
type's own ``__post_init__`` may put anything into a ``ValueError``. So a message is kept only if it
is known to describe the type alone; for all others, only the kind of failure is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json import JSONDecodeError
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect

from stream_codecs.errors import DecodeError, EncodeError, UnknownTag
from stream_codecs.type_info import TypeInfo, type_name, union_members


class ErrorContext(NamedTuple):
    """The topic, role and type that a codec is bound to; part of every error."""

    codec: str
    topic: str
    role: str
    type: str
    """The declared type, as people write it."""

    def decode_error(self, data: bytes, reason: str, **where: Any) -> DecodeError:
        """A decoding error with this context."""
        return DecodeError(
            reason, data=data, codec=self.codec, topic=self.topic, role=self.role, **where
        )

    def unknown_tag(self, data: bytes, tag: str | int, path: str) -> UnknownTag:
        """The error of a tag that the type does not have."""
        return UnknownTag(
            f"a tag that {self.type} does not have",
            tag=tag, data=data, codec=self.codec, topic=self.topic, role=self.role, path=path,
        )  # fmt: skip

    def encode_error(self, reason: str, **where: Any) -> EncodeError:
        """An encoding error with this context."""
        return EncodeError(reason, codec=self.codec, topic=self.topic, role=self.role, **where)


_SAFE_MESSAGE = re.compile(
    r"(Expected `[^`]*`"
    r"|Object missing required field `[^`]*`\Z"
    r"|Invalid (UUID|decimal|base64|RFC3339|ISO8601|epoch|MessagePack timestamp)"
    r"|[A-Z][a-z]+ (value )?(is )?out of range)"
)
_MALFORMED = re.compile(
    r"(JSON|MessagePack)(?: data)? is malformed: (.+?)(?: '\\x..')? \(byte (\d+)\)\Z"
)
_UNSUPPORTED = re.compile(
    r"(Encoding objects of type \S+ is unsupported|Integer exceeds 64-bit range"
    r"|Type is not JSON serializable: \S+|Dict key must be str|Recursion limit reached)\Z"
)

_NOT_UTF8 = "text that is not UTF-8"

TagReader = Callable[[bytes], "str | int | None"]
"""Returns the tag of a document, if the type does not have it."""


def decode_error(
    context: ErrorContext, data: bytes, exc: Exception, unknown_tag: TagReader | None = None
) -> DecodeError:
    """The typed error for an exception that a decoder raised on ``data``.

    :raises MemoryError: the exception was one; the message is not to blame.
    """
    if isinstance(exc, DecodeError):
        return exc
    if isinstance(exc, MemoryError):
        raise exc
    if isinstance(exc, msgspec.ValidationError):
        return _validation_error(context, data, exc, unknown_tag)
    if isinstance(exc, UnicodeDecodeError):
        # The exception's object is the one text in question.
        at = data.find(exc.object)
        return context.decode_error(data, _NOT_UTF8, offset=at + exc.start if at >= 0 else None)
    if isinstance(exc, RecursionError):
        return context.decode_error(data, "nested deeper than this thread's stack allows")
    if isinstance(exc, msgspec.DecodeError):
        found = _MALFORMED.match(str(exc))
        if found:
            kind, reason, offset = found[1], found[2], int(found[3])
            if kind == "JSON" and reason == "trailing characters":
                offset -= 1  # the decoder has consumed the first of them
            return context.decode_error(data, f"malformed {kind}: {reason}", offset=offset)
        if not data:
            return context.decode_error(data, "empty")
        return context.decode_error(data, "ends too early", offset=len(data))
    if isinstance(exc, JSONDecodeError):  # orjson's, whose messages are fixed texts
        if not data:
            return context.decode_error(data, "empty")
        if not exc.doc:  # it holds the part that could be read as text
            return context.decode_error(data, _NOT_UTF8, offset=_first_invalid_utf8(data))
        offset = len(exc.doc[: exc.pos].encode())
        return context.decode_error(data, f"malformed JSON: {exc.msg}", offset=offset)
    return context.decode_error(data, f"refused by {context.type} ({type(exc).__name__})")


def _validation_error(
    context: ErrorContext, data: bytes, exc: msgspec.ValidationError, unknown_tag: TagReader | None
) -> DecodeError:
    message = str(exc)
    if exc.__cause__ is not None:
        _, path = _split_path(message[len(str(exc.__cause__)) :])
        kind = type(exc.__cause__).__name__
        return context.decode_error(data, f"refused by the type's own check ({kind})", path=path)
    if message.startswith("Object contains unknown field"):
        # The field's name, which may end the message, could look like a path.
        return context.decode_error(data, "a field that the type forbids")
    message, path = _split_path(message)
    if unknown_tag is not None and (tag := unknown_tag(data)) is not None:
        return context.unknown_tag(data, tag, path)
    if _SAFE_MESSAGE.match(message):
        reason = message[0].lower() + message[1:].replace("`", "'")
        return context.decode_error(data, reason, path=path)
    return context.decode_error(data, "a value that the type does not have", path=path)


def _split_path(message: str) -> tuple[str, str]:
    """The message of msgspec and the path at its end, ``$`` if it has none."""
    text, found, path = message.rpartition(" - at `")
    if not found or not path.endswith("`"):
        return message, "$"
    return text, path[:-1].replace("`", "")


def _first_invalid_utf8(data: bytes) -> int | None:
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        return exc.start
    return None


def tag_reader(
    shape: TypeInfo, decoder: Callable[[Any], Callable[[bytes], Any]]
) -> TagReader | None:
    """A function that finds an unknown tag in a document that the type's decoder refused.

    It decodes the document again, to a struct that has only the tag: slow, but exact,
    and only done for messages that have failed.

    :param decoder: makes the decoding function for a type.
    """
    structs = [part for part in union_members(shape) if isinstance(part, inspect.StructType)]
    tagged = [part for part in structs if part.tag is not None]
    if not tagged:
        return None
    first = tagged[0]  # the structs of one union share these settings
    known = {part.tag for part in tagged}
    kind = type(first.tag)
    name = {"tag": first.tag_field or "type"}
    probe = msgspec.defstruct("Probe", [("tag", kind)], rename=name, array_like=first.array_like)
    decode = decoder(probe)

    def unknown_tag(data: bytes) -> str | int | None:
        try:
            tag: str | int = decode(data).tag
        except Exception:
            return None  # the tag is missing or invalid, or the document is broken further on
        return None if tag in known else tag

    return unknown_tag


def encode_error(context: ErrorContext, value: Any, exc: Exception) -> EncodeError:
    """The typed error for an exception that an encoder raised on ``value``."""
    if isinstance(exc, EncodeError):
        return exc
    type_text = type_name(type(value))
    if isinstance(exc, RecursionError):
        return context.encode_error(f"{type_text} is nested too deeply, or contains itself")
    if isinstance(exc, UnicodeEncodeError):
        return context.encode_error(f"{type_text} holds text that is not UTF-8 (a lone surrogate)")
    message = str(exc)
    if _UNSUPPORTED.match(message):
        return context.encode_error(f"{type_text} cannot be encoded: {message}")
    return context.encode_error(f"{type_text} cannot be encoded ({type(exc).__name__})")
