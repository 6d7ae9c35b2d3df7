"""The visible contents of messages: only with the permission ``payloads``, and past the app's own
``redact=``.

Every value, key, header and error that a screen shows, or that a search compares, comes through
:class:`Payloads`. No other part of the dashboard reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from streams.derived_records import (
    ERROR_EXCEPTION,
    ERROR_MESSAGE,
    ERROR_STACKTRACE,
    FIRST_ERROR,
)
from streams.eventsourcing.views.inspection import KEY_HEADER as KEYED_HEADER
from streams.log.documents import FAILURE_HEADER
from streams.message import (
    CAUSATION,
    CORRELATION,
    ID,
    LEGACY_CAUSATION,
    LEGACY_CORRELATION,
    Headers,
)
from streams.patterns.choreography import ERROR_HEADER
from streams.retries import KEY_HEADER as DELAYED_HEADER
from streams.text import get_logger

logger = get_logger("streams")

PayloadKind = Literal["value", "key", "header", "error"]


@dataclass(frozen=True, slots=True)
class Payload:
    """A part of a message that is about to be shown or searched: the argument of ``redact=``.

    :param kind: the part. A header of the toolkit's own that holds a message's key or an error is
        a key or an error, wherever it is shown.
    :param topic: the topic of the message; empty if none is known.
    :param name: for a header that is shown as such, its name; else empty.
    :param data: the bytes; for an error, its text in UTF-8.
    """

    kind: PayloadKind
    topic: str
    name: str
    data: bytes


Redact = Callable[[Payload], "bytes | str | None"]
"""``redact=``: returns the bytes to show for a part of a message: the same, others, or None for
nothing at all. Called in worker threads, for every part that is shown or searched. If it raises,
nothing is shown."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A part of a message as a screen shows it.

    :param data: its bytes; None if there are none (a tombstone, no key).
    :param hidden: whether it exists and is not shown.
    """

    data: bytes | None
    hidden: bool = False

    @property
    def text(self) -> str | None:
        r"""As text; bytes that are not UTF-8 as ``\xNN``."""
        return None if self.data is None else self.data.decode("utf-8", "backslashreplace")


_KINDS: Mapping[str, PayloadKind] = {
    ERROR_EXCEPTION: "error",
    ERROR_MESSAGE: "error",
    ERROR_STACKTRACE: "error",
    FIRST_ERROR: "error",
    FAILURE_HEADER: "error",
    ERROR_HEADER: "error",
    DELAYED_HEADER: "key",
    KEYED_HEADER: "key",
}
"""The kinds of the toolkit's own headers that ``redact=`` does not see as headers."""

_IDS = frozenset((CORRELATION, CAUSATION, LEGACY_CORRELATION, LEGACY_CAUSATION))
"""Headers with the IDs of messages and sagas."""

HIDDEN = Shown(None, hidden=True)
NOTHING = Shown(None)


class Payloads:
    """Parts of messages, for one visitor.

    :param allowed: whether the visitor may see them.
    :param redact: the app's own function.
    """

    def __init__(self, *, allowed: bool, redact: Redact | None) -> None:
        self.allowed = allowed
        self._redact = redact

    @property
    def shows_as_is(self) -> bool:
        """Whether everything is shown unchanged, so that a search need not ask for each part."""
        return self.allowed and self._redact is None

    def value(self, topic: str, data: bytes | None) -> Shown:
        """A message's value."""
        return self._show("value", topic, "", data)

    def key(self, topic: str, data: bytes | None) -> Shown:
        """A message's key."""
        return self._show("key", topic, "", data)

    def header(self, topic: str, name: str, data: bytes | None, key: bytes | None) -> Shown:
        """A header's value.

        :param key: the message's key: if the header holds an ID, see :meth:`id`.
        """
        shown = self._show(_KINDS.get(name, "header"), topic, name, data)
        if data is None or name not in _IDS or shown.data != data:
            return shown
        return self._id(topic, data, key)

    def headers(self, topic: str, headers: Headers, key: bytes | None) -> list[tuple[str, Shown]]:
        """All headers of a message with this key, except its ID, which is shown as such."""
        return [
            (name, self.header(topic, name, value, key)) for name, value in headers if name != ID
        ]

    def id(self, topic: str, id: str, key: bytes | None) -> Shown:
        """A message's ID, which every visitor may see; but if it is the message's key, or begins
        with that and a slash as those of a saga's entries do, the visible form of the key replaces
        the key in it."""
        return self._id(topic, id.encode("utf-8", "surrogateescape"), key)

    def _id(self, topic: str, data: bytes, key: bytes | None) -> Shown:
        if not key or not (data + b"/").startswith(key + b"/"):
            return Shown(data)
        shown = self.key(topic, key).data
        return HIDDEN if shown is None else Shown(shown + data[len(key) :])

    def error(self, topic: str, text: str | None) -> Shown:
        """The text of an error."""
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
