"""What of messages is shown, and to whom: behind the permission ``payloads``, and past the app's
own ``redact=``.

Every value, key, header and error that a screen shows, or that a search looks into, comes through
:class:`Payloads`. Nothing else reads them for the dashboard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from streams.message import ID, Headers
from streams.text import get_logger

logger = get_logger("streams")

PayloadKind = Literal["value", "key", "header", "error"]


@dataclass(frozen=True, slots=True)
class Payload:
    """A part of a message that is about to be shown or searched: what ``redact=`` is given.

    :param kind: which part.
    :param topic: the topic that the message stands in; empty where none is known.
    :param name: of a header, its name.
    :param data: the bytes; of an error, its text in UTF-8.
    """

    kind: PayloadKind
    topic: str
    name: str
    data: bytes


Redact = Callable[[Payload], "bytes | str | None"]
"""``redact=``: what is shown instead of a part of a message: the same bytes, others, or None for
nothing at all. Called in worker threads, for every part that is shown or searched. Where it raises,
nothing is shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A part of a message as a screen shows it.

    :param data: its bytes; None where there are none (a tombstone, no key).
    :param hidden: it is there and not shown.
    """

    data: bytes | None
    hidden: bool = False

    @property
    def text(self) -> str | None:
        r"""As text; what is not UTF-8 as ``\xNN``."""
        return None if self.data is None else self.data.decode("utf-8", "backslashreplace")


HIDDEN = Shown(None, hidden=True)
NOTHING = Shown(None)


class Payloads:
    """Parts of messages, for one visitor.

    :param allowed: the visitor may see them.
    :param redact: the app's own.
    """

    def __init__(self, *, allowed: bool, redact: Redact | None) -> None:
        self.allowed = allowed
        self._redact = redact

    @property
    def shows_as_is(self) -> bool:
        """All that is asked for is shown as it stands: whoever looks through much need not ask."""
        return self.allowed and self._redact is None

    def value(self, topic: str, data: bytes | None) -> Shown:
        """A message's value."""
        return self._show("value", topic, "", data)

    def key(self, topic: str, data: bytes | None) -> Shown:
        """A message's key."""
        return self._show("key", topic, "", data)

    def header(self, topic: str, name: str, data: bytes | None) -> Shown:
        """A header's value."""
        return self._show("header", topic, name, data)

    def headers(self, topic: str, headers: Headers) -> list[tuple[str, Shown]]:
        """All headers of a message, but its ID, which is shown as such."""
        return [(name, self.header(topic, name, value)) for name, value in headers if name != ID]

    def error(self, topic: str, text: str | None) -> Shown:
        """What an error says."""
        data = None if text is None else text.encode("utf-8", "backslashreplace")
        return self._show("error", topic, "", data)

    def _show(self, kind: PayloadKind, topic: str, name: str, data: bytes | None) -> Shown:
        if data is None:
            return NOTHING
        if not self.allowed:
            return HIDDEN
        if self._redact is None:
            return Shown(data)
        try:
            found = self._redact(Payload(kind, topic, name, data))
        except Exception as error:
            logger.warning("redact= failed, so nothing is shown: %s", type(error).__name__)
            return HIDDEN
        if isinstance(found, str):
            found = found.encode("utf-8", "backslashreplace")
        if found is None or not isinstance(found, bytes):
            return HIDDEN
        return Shown(found)
