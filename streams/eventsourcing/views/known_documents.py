"""The documents that a partition's writer has in memory.

Nobody else writes them, so what is here is what stands in the log, or what this writer is about to
write there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from streams.errors import StreamsError
from streams.log.documents import DocumentWriter, StoredDocument
from streams.text import describe_error
from streams.wire import shorten

MAX_COUNT = 100_000
"""Documents of a partition that are kept, at most."""

MAX_BYTES = 64 << 20
"""Their bytes, as they are stored, at most."""


class UnreadableDocument(StreamsError):
    """A stored document is not what its type says, so nothing can be folded into it."""


class KnownDocument:
    """One key's document as it is at this moment.

    :param value: its bytes; None: there is none.
    :param failure: why it is behind; empty: it is not.
    """

    __slots__ = ("document", "failure", "value")

    def __init__(self, document: Any, value: bytes | None, failure: bytes) -> None:
        self.document = document
        self.value = value
        self.failure = failure


class KnownDocuments:
    """Documents by key, those used last."""

    def __init__(self, writer: DocumentWriter, decode: Callable[[bytes], Any]) -> None:
        self._writer = writer
        self._decode = decode
        self._known: dict[bytes, KnownDocument] = {}
        self._bytes = 0

    def load(self, keys: Iterable[bytes]) -> dict[bytes, KnownDocument]:
        """All that is known, with these keys among it.

        :raises UnreadableDocument: one cannot be decoded.
        :raises LogError: they cannot be read.
        """
        known = self._known
        missing = [key for key in set(keys) if key not in known]
        if missing:
            found = self._writer.read(missing)
            for key, stored in zip(missing, found, strict=True):
                known[key] = self._decode_document(key, stored)
                self._bytes += len(key) + len(known[key].value or b"")
        return known

    def _decode_document(self, key: bytes, stored: StoredDocument | None) -> KnownDocument:
        if stored is None or stored.value is None:
            return KnownDocument(None, None, b"" if stored is None else stored.failure)
        try:
            document = self._decode(stored.value)
        except Exception as error:
            raise UnreadableDocument(
                f"the stored document of key {shorten(key)!r} cannot be read: "
                f"{describe_error(error)}; streams views rebuild makes all documents again"
            ) from error
        return KnownDocument(document, stored.value, stored.failure)

    def grown(self, size: int) -> None:
        """Documents have so many bytes more, or fewer."""
        self._bytes += size

    def shrink(self) -> None:
        """Let go of what has been here for longest, down to the limits."""
        known = self._known
        if len(known) <= MAX_COUNT and self._bytes <= MAX_BYTES:
            return
        for key in list(known):
            if len(known) <= MAX_COUNT // 2 and self._bytes <= MAX_BYTES // 2:
                return
            self._bytes -= len(key) + len(known.pop(key).value or b"")
