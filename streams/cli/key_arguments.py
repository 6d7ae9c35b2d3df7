r"""Keys and IDs on the command line that a shell cannot pass as they are.

A NUL character ends a word of a command line, and a shell may not let other bytes through. With
``--escapes`` such a key is written as ``a\x00b``: ``\xNN`` is a byte, ``\uNNNN`` a character.
"""

from __future__ import annotations

import re

from streams.cli.command_errors import UsageError
from streams.cli.options import argument_bytes
from streams.text import escape

_ESCAPE = re.compile(
    r"\\(?:x([0-9a-fA-F]{2})"
    r"|u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"  # as JSON writes a pair
    r"|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([nrt\\])|(.?))",
    re.DOTALL,
)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def unescape(text: str, *, escapes: bool) -> str:
    r"""A key or an ID of the command line. Bytes that are not UTF-8 are surrogates, as in other
    words of the command line.

    :param escapes: whether ``--escapes`` is given; without it, the text is returned unchanged.
    :raises UsageError: a backslash begins no escape.
    """
    if not escapes:
        return text
    data, end = b"", 0
    for found in _ESCAPE.finditer(text):
        data += argument_bytes(text[end : found.start()]) + _escaped_bytes(found, text)
        end = found.end()
    data += argument_bytes(text[end:])
    return data.decode("utf-8", "surrogateescape")


def unescape_each(texts: list[str] | None, *, escapes: bool) -> list[str] | None:
    """:func:`unescape` of each word of a repeatable argument."""
    return None if texts is None else [unescape(each, escapes=escapes) for each in texts]


def _escaped_bytes(found: re.Match[str], text: str) -> bytes:
    byte, high, low, short, long, letter, _ = found.groups()
    if byte is not None:
        return bytes.fromhex(byte)
    if letter is not None:
        return _LETTERS[letter].encode()
    try:
        if high is not None:
            return bytes.fromhex(high + low).decode("utf-16-be").encode()
        return chr(int(short or long, 16)).encode()
    except (TypeError, ValueError, OverflowError):
        raise UsageError(
            f"--escapes: {found[0]!r} in {text!r} is no escape; there are \\xNN (a byte), \\uNNNN, "
            "\\UNNNNNNNN, \\n, \\r, \\t and \\\\"
        ) from None


def as_argument(key: bytes) -> str:
    """A key or an ID as it is to be written on the command line, with ``--escapes`` if need be."""
    text = key.decode("utf-8", "backslashreplace")
    if text.encode() == key and escape(text) == text:
        return text
    text = key.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return f"'{''.join(map(_escaped_character, text))}' --escapes"


def _escaped_character(character: str) -> str:
    code = ord(character)
    if 0x80 <= code < 0x100 and escape(character) != character:
        return f"\\u{code:04x}"  # as \xNN is a byte
    return escape(character) if character != "'" else "\\x27"
