"""Every failure of a codec, in one small tree: :class:`CodecError`.

:class:`DecodeError` keeps the undecodable bytes, unchanged, and says where they are wrong;
:class:`UnknownTag` is the one decoding failure that can be expected (a union that does not name
every kind of message in its topic); :class:`EncodeError` is for a value that must not be written;
and :class:`BindError` is for a codec, or a type given to one, that can never work.

Two promises hold for all of them. Their text is one line that never quotes the document: a
payload may hold secrets, and errors end up in log lines and headers. And they can be
copied and pickled, so that an error can cross a process boundary whole.
"""

from __future__ import annotations

from typing import Any


class CodecError(Exception):
    """Base class of every error of this package.

    :param reason: what was wrong, in one line, without the payload's content.
    :param codec: the codec's name, such as ``json`` or ``zstd+json``.
    :param topic: the topic it was bound to.
    :param role: the part of a message: ``value``, ``key``, ``message ID``, ``headers`` or
        ``timestamp``.
    :param data: the bytes as they are in the log; None if there are none.
    :param path: the place in the document, such as ``$.items[3].price``; ``[...]`` is some entry of
        a mapping, and ``key in $.prices`` one of its keys.
    :param offset: the offset in the bytes, from 0; for documents that are malformed.
    """

    def __init__(
        self,
        reason: str,
        *,
        codec: str = "",
        topic: str = "",
        role: str = "value",
        data: bytes | None = None,
        path: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.codec = codec
        self.topic = topic
        self.role = role
        self.data = data
        self.path = path
        self.offset = offset

    def __str__(self) -> str:
        where = f"{self.topic} {self.role}: " if self.topic else ""
        if self.path is not None:
            at = f" at {self.path}"
        elif self.offset is not None:
            at = f" at byte {self.offset}"
        else:
            at = ""
        return f"{where}{self.reason}{at}{f' ({self.codec})' if self.codec else ''}"

    def __repr__(self) -> str:
        # Log lines show errors by their repr, so it includes the place of the error.
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The inherited method calls the class with its positional arguments only.
        return _rebuild, (type(self), self.reason, dict(self.__dict__))


def _rebuild(kind: type[CodecError], reason: str, state: dict[str, Any]) -> CodecError:
    error = kind.__new__(kind, reason)
    error.__dict__.update(state)
    return error


class BindError(CodecError, ValueError):
    """A codec, a type or a field that cannot work; raised at its declaration."""


class DecodeError(CodecError, ValueError):
    """The bytes do not fit the type that their topic declares: a poison message. ``data`` holds
    them."""


class UnknownTag(DecodeError):
    """A well-formed document of a kind that the topic's tagged type does not name.

    :param tag: the tag it carries. It comes from the payload, so it is not in the error's text.
    """

    def __init__(self, reason: str, *, tag: str | int, **place: Any) -> None:
        super().__init__(reason, **place)
        self.tag = tag


class EncodeError(CodecError, ValueError):
    """A value that does not fit its topic's type, or cannot be written; nothing was published."""
