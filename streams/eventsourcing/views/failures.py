"""Why a document stands still, as it is stored beside it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streams.eventsourcing.views.checkpoints import (
    SourcePosition,
    parse_offset,
    parse_sources,
    source_texts,
)
from streams.text import error_text, one_line
from streams.wire import shorten

MAX_REASON = 500
"""Characters of a reason that are kept."""


class DocumentFailure(msgspec.Struct, frozen=True):
    """The event at which a document is stopped, and why.

    :param offset: of the event's message, in the partition that the view reads. (A number as text:
        offsets may have more bits than JSON's numbers.)
    :param number: which of the message's events it is, from 0.
    :param position: of the message in the topic that it came from, as text.
    :param reason: what was raised.
    :param sources: of a keyed view, how far its sources were read before it.
    """

    offset: str
    number: int
    position: str
    reason: str
    sources: dict[str, tuple[str, int]] = {}

    @property
    def place(self) -> tuple[int, int]:
        """Offset and number."""
        return parse_offset(self.offset), self.number

    @property
    def sources_before(self) -> dict[str, SourcePosition]:
        """The sources, with offsets as numbers."""
        return parse_sources(self.sources)


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(DocumentFailure)


def encode_failure(
    offset: int,
    number: int,
    position: str,
    error: BaseException,
    sources: Mapping[str, SourcePosition],
) -> bytes:
    """A failure to be stored."""
    reason = shorten(f"{type(error).__name__}: {one_line(error_text(error))}", MAX_REASON)
    return _encode(DocumentFailure(str(offset), number, position, reason, source_texts(sources)))


def decode_failure(data: bytes) -> DocumentFailure:
    """A failure that was stored; one that says so where it cannot be read."""
    try:
        found = _decoder.decode(data)
        parse_offset(found.offset)
        parse_sources(found.sources)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return DocumentFailure(
            "0", 0, "an unknown position", "what is stored about it cannot be read"
        )
    return found
