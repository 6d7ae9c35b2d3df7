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

PIECE = 6
"""Characters of a secret that stand together in a text are hidden from so many on."""

SHORTEST = 3
"""A secret that is shorter than :data:`PIECE` is hidden whole, from this length on; below, it would
take letters out of ordinary words and is not worth its name."""

HIDDEN = "***"

_SOUNDS = re.compile(
    r"passw|pwd|passphrase|secret|token|credential|jaas|private|assertion|signature"
    r"|auth_?key|api_?key|access_?key|key$|\.pem$|key_?data|key_?password"
    r"|oauthbearer\.(config|extensions)",
    re.IGNORECASE,
)


def sounds_secret(name: str) -> bool:
    """Whether a setting of this name is one whose value must not be shown."""
    return _SOUNDS.search(name) is not None


class Secrets:
    """Secret texts, as they may be quoted. Immutable.

    :param values: what must not be shown.
    """

    __slots__ = ("_pieces", "_short")

    def __init__(self, values: Iterable[str] = ()) -> None:
        pieces: set[str] = set()
        short: set[str] = set()
        for value in values:
            for form in _forms(value):
                if len(form) >= PIECE:
                    pieces.update(form[at : at + PIECE] for at in range(len(form) - PIECE + 1))
                elif len(form) >= SHORTEST:
                    short.add(form)
        self._pieces = frozenset(pieces)
        self._short = sorted(short, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text, with ``***`` for what it quotes of a secret."""
        if self._pieces:
            text = self._without_pieces(text)
        for each in self._short:
            text = text.replace(each, HIDDEN)
        return text

    def _without_pieces(self, text: str) -> str:
        found: list[str] = []
        shown = at = 0  # what stands before `shown` has been dealt with
        while at <= len(text) - PIECE:
            if text[at : at + PIECE] not in self._pieces:
                at += 1
                continue
            end = at + PIECE
            while text[end - PIECE + 1 : end + 1] in self._pieces and end < len(text):
                end += 1
            found += (text[shown:at], HIDDEN)
            shown = at = end
        return "".join((*found, text[shown:]))

    def hide_in(self, error: BaseException) -> None:
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


def _forms(value: str) -> set[str]:
    """A text as it is, and as URLs, Python and JSON write it."""
    written = value.encode("unicode_escape").decode("ascii")
    return {
        value,
        quote(value, safe="", errors="replace"),
        repr(value)[1:-1],
        written,
        value.replace("\\", "\\\\").replace('"', '\\"'),
    }
