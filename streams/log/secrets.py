"""The secrets of a log's URL and driver settings, and how they are kept out of texts.

Our own texts are made of the parts that are not secret (see :mod:`streams.log.url`). A driver's or
a server's error is somebody else's text, and may quote what it was given, whole or in part: Redis
repeats the arguments of a command that it does not know, librdkafka the rest of a setting that it
could not read. :meth:`Secrets.hide` takes every piece of a secret out of such a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

MIN_PIECE = 6
"""Characters of a secret that stand together in a text are hidden from so many on."""

MIN_SECRET = 3
"""A secret that is shorter than :data:`MIN_PIECE` is hidden whole, from this length on; below, it
would take letters out of ordinary words and is not worth its name."""

HIDDEN = "***"

_SECRET_NAME = re.compile(
    r"passw|pwd|passphrase|secret|token|credential|jaas|private|assertion|signature"
    r"|auth_?key|api_?key|access_?key|key$|\.pem$|key_?data|key_?password"
    r"|oauthbearer\.(config|extensions)",
    re.IGNORECASE,
)


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name is one whose value must not be shown."""
    return _SECRET_NAME.search(name) is not None


class Secrets:
    """Secret texts, as they may be quoted. Immutable.

    :param values: what must not be shown.
    """

    __slots__ = ("_pieces", "_short_secrets")

    def __init__(self, values: Iterable[str] = ()) -> None:
        pieces: set[str] = set()
        short_secrets: set[str] = set()
        for value in values:
            for encoding in _encodings_of(value):
                if len(encoding) >= MIN_PIECE:
                    pieces.update(
                        encoding[at : at + MIN_PIECE] for at in range(len(encoding) - MIN_PIECE + 1)
                    )
                elif len(encoding) >= MIN_SECRET:
                    short_secrets.add(encoding)
        self._pieces = frozenset(pieces)
        self._short_secrets = sorted(short_secrets, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text, with ``***`` for what it quotes of a secret."""
        if self._pieces:
            text = self._hide_pieces(text)
        for each in self._short_secrets:
            text = text.replace(each, HIDDEN)
        return text

    def _hide_pieces(self, text: str) -> str:
        parts: list[str] = []
        copied = at = 0  # what stands before `shown` has been dealt with
        while at <= len(text) - MIN_PIECE:
            if text[at : at + MIN_PIECE] not in self._pieces:
                at += 1
                continue
            end = at + MIN_PIECE
            while text[end - MIN_PIECE + 1 : end + 1] in self._pieces and end < len(text):
                end += 1
            parts += (text[copied:at], HIDDEN)
            copied = at = end
        return "".join((*parts, text[copied:]))

    def hide_in_error(self, error: BaseException) -> None:
        """Take the secrets out of a driver's exception, and out of those it was raised from."""
        seen: set[int] = set()
        todo: list[BaseException | None] = [error]
        while todo:
            each = todo.pop()
            if each is None or id(each) in seen:
                continue
            seen.add(id(each))
            todo += (each.__cause__, each.__context__)
            each.args = tuple(self.hide(arg) if isinstance(arg, str) else arg for arg in each.args)
            if isinstance(each, OSError):
                if isinstance(each.strerror, str):
                    each.strerror = self.hide(each.strerror)
                if isinstance(each.filename, str):
                    each.filename = self.hide(each.filename)


def _encodings_of(value: str) -> set[str]:
    """A text as it is, and as URLs, Python and JSON write it."""
    escaped = value.encode("unicode_escape").decode("ascii")
    return {
        value,
        quote(value, safe="", errors="replace"),
        repr(value)[1:-1],
        escaped,
        value.replace("\\", "\\\\").replace('"', '\\"'),
    }
