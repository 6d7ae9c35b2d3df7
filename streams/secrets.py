"""The secrets of an address (a log's URL and driver settings, a database's DSN), and how they are
kept out of texts.

Our own texts use only the parts that are not secret (see :mod:`streams.log.url` and
:mod:`streams.databases.addresses`). But an error of a
driver or a server may quote what it was given, whole or in part: Redis repeats the arguments of an
unknown command, librdkafka the rest of a setting that it could not read. :meth:`Secrets.hide`
removes every piece of a secret from such a text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

from streams.errors import error_chain

MIN_PIECE = 6
"""So many consecutive characters of a secret, and more, are hidden."""

MIN_SECRET = 3
"""A secret of this length up to :data:`MIN_PIECE` is hidden as a whole; hiding a shorter one would
remove letters from ordinary words."""

HIDDEN = "***"

ENCODING_HINT = (
    "in a user, password or value, write @ as %40, / as %2F, ? as %3F, # as %23, & as %26, % as %25"
)
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What stands in no URL."""

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
        """The text, with ``***`` instead of pieces of a secret."""
        if self._pieces:
            text = self._hide_pieces(text)
        for each in self._short_secrets:
            text = text.replace(each, HIDDEN)
        return text

    def _hide_pieces(self, text: str) -> str:
        parts: list[str] = []
        copied = at = 0  # the text before `copied` is in `parts`
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
        """Remove the secrets from a driver's exception, and from those it was raised from."""
        for each in error_chain(error, with_suppressed=True):
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
