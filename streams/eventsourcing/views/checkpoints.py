"""What a view keeps with its checkpoint, and how it is held against the log."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from streams.errors import StreamsError
from streams.log.documents import Checkpoint

SourcePosition = tuple[int, int]
"""How far a source partition is folded: the offset of a message, and which of its copies that is
(:mod:`streams.eventsourcing.views.keyed_records`)."""

MAX_DIGITS = 60
"""Of an offset as text."""


class UnreadableCheckpoint(StreamsError):
    """What is stored with a checkpoint was not written by a view."""


class CheckpointData(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored.

    :param offset: of the last message that was folded, as text: it may have more bits than JSON's
        numbers. Empty: of none.
    :param id: its message ID. A log that has another message there, or none, is another log, or has
        lost what it had acknowledged.
    :param sources: of a keyed view, how far each source partition is folded.
    """

    offset: str = ""
    id: str = ""
    sources: dict[str, tuple[str, int]] = {}


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(CheckpointData)


def encode_checkpoint(last: tuple[int, str] | None, sources: Mapping[str, SourcePosition]) -> bytes:
    """What to store.

    :param last: offset and ID of the last message that was folded.
    """
    offset, id = ("", "") if last is None else (str(last[0]), last[1])
    return _encode(
        CheckpointData(
            offset, id, {name: (str(found[0]), found[1]) for name, found in sources.items()}
        )
    )


def decode_checkpoint(
    checkpoint: Checkpoint | None,
) -> tuple[tuple[int, str] | None, dict[str, SourcePosition]]:
    """What was stored with a checkpoint: offset and ID of the last message that was folded, and the
    sources.

    :raises UnreadableCheckpoint: something else has written it.
    """
    if checkpoint is None or not checkpoint.data:
        return None, {}
    try:
        found = _decoder.decode(checkpoint.data)
        last = (parse_offset(found.offset), found.id) if found.offset else None
        return last, {
            name: (parse_offset(offset), copy) for name, (offset, copy) in found.sources.items()
        }
    except (msgspec.DecodeError, ValueError) as error:
        raise UnreadableCheckpoint(f"it was written by something else: {error}") from error


def parse_offset(text: str) -> int:
    """An offset that was written as text.

    :raises ValueError: it is none.
    """
    if len(text) > MAX_DIGITS or not (text.isascii() and text.isdigit()):
        raise ValueError("an offset is a number")
    return int(text)
