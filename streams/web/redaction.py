"""What of messages is shown, and to whom: behind the permission ``payloads``, and past the app's
own ``redact=``.

Every value, key, header and error that a screen shows, or that a search looks into, comes through
:class:`Payloads`. Nothing else reads them for the dashboard.
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
    """A part of a message that is about to be shown or searched: what ``redact=`` is given.

    :param kind: which part. A header of the toolkit's own that holds a message's key or an error is
        a key or an error, wherever it is shown.
    :param topic: the topic that the message stands in; empty where none is known.
    :param name: of what stands in a header and is shown as such, the header's name; else empty.
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
"""What headers of the toolkit's own hold that is no header to whoever redacts."""

_IDS = frozenset((CORRELATION, CAUSATION, LEGACY_CORRELATION, LEGACY_CAUSATION))
"""Headers that hold the IDs of messages and sagas."""

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

    def header(self, topic: str, name: str, data: bytes | None, key: bytes | None) -> Shown:
        """A header's value.

        :param key: of its message: where the header holds an ID, see :meth:`id`.
        """
        shown = self._show(_KINDS.get(name, "header"), topic, name, data)
        if data is None or name not in _IDS or shown.data != data:
            return shown
        return self._id(topic, data, key)

    def headers(self, topic: str, headers: Headers, key: bytes | None) -> list[tuple[str, Shown]]:
        """All headers of a message with this key, but its ID, which is shown as such."""
        return [
            (name, self.header(topic, name, value, key)) for name, value in headers if name != ID
        ]

    def id(self, topic: str, id: str, key: bytes | None) -> Shown:
        """A message's ID, which everybody may see; but where it is the message's key, or begins
        with that and a slash as those of a saga's entries do, what is shown of the key stands in
        its place."""
        return self._id(topic, id.encode("utf-8", "surrogateescape"), key)

    def _id(self, topic: str, data: bytes, key: bytes | None) -> Shown:
        if not key or not (data + b"/").startswith(key + b"/"):
            return Shown(data)
        shown = self.key(topic, key).data
        return HIDDEN if shown is None else Shown(shown + data[len(key) :])

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
