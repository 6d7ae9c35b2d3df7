"""How entries of a journal are read: one way, for everybody who reads them.

A record that its owner would make a dead letter of must count for nobody else either: else whoever
looks for a saga's last entry finds one that nobody ever goes on with. So the processor that drives
the sagas, commands, listings and whoever waits for a saga all ask an :class:`EntryDecoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stream_codecs import DecodeError, Json
from streams.message import Batch
from streams.patterns.saga.entry import Stored
from streams.patterns.saga.validation import flaw
from streams.runners.job import Skip

__all__ = ["EntryDecoder", "JournalSource"]


_SMALL = 4 << 10
"""Bytes of an entry of which it may be kept what was found."""


class EntryDecoder:
    """Decodes the entries of one journal (``runners.job.Decoding``).

    :param topic: the journal's topic.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        bound = Json().bind(Stored, topic=topic)
        self._decode = bound.decode
        self._fast = bound.fast if bound.fast is not None else bound.decode
        self._small = bound.small

    @property
    def identify(self) -> Identity:
        """An entry's ID is made of what stands in it, whatever its headers say."""
        return IDENTITY

    def opened(self, batch: Batch) -> Batch:
        """Entries have no envelope."""
        return batch

    def fast(self, values: Sequence[bytes | None], largest: int) -> None:
        """There is no short way: an entry counts only under its saga's key."""
        return

    def one(self, batch: Batch, index: int) -> Stored:
        """The entry in one message.

        :raises Skip: a tombstone.
        :raises DecodeError: it is no entry, or not one that a saga can have.
        """
        value = batch.values[index]
        if value is None:
            raise Skip
        return self.entry(batch.keys[index], value)

    def entry(self, key: bytes | None, value: bytes) -> Stored:
        """The entry that a record holds.

        :raises DecodeError: it is no entry, or not one that a saga can have.
        """
        try:
            # So small a document is neither too large nor too deep.
            entry = self._fast(value) if len(value) <= self._small else self._decode(value)
        except Exception:
            entry = self._decode(value)  # says what is wrong
        reason = flaw(entry, remember=len(value) <= _SMALL)
        if reason:
            raise self._error(f"no saga can have this entry: {reason}", value)
        if key != entry.saga.encode():  # a text of printable characters holds no surrogate
            raise self._error("the entry of a saga stands under another key than its ID", value)
        return entry

    def find(self, key: bytes | None, value: bytes | None) -> Stored | None:
        """The same; None for what is no entry."""
        if value is None:
            return None
        try:
            return self.entry(key, value)
        except DecodeError:
            return None

    def _error(self, reason: str, value: bytes) -> DecodeError:
        return DecodeError(reason, codec="json", topic=self._topic, data=value)


def key_of(id: str) -> bytes:
    """The key of a saga's records."""
    return id.encode("utf-8", "surrogateescape")


class Identity:
    """Reads the message ID of an entry (``runners.job.Identify``)."""

    def __call__(self, value: Stored) -> str:
        """The ID of one entry."""
        return value.identity

    def many(self, values: Sequence[Any]) -> list[str]:
        """The ID of each entry."""
        return [value.identity for value in values]


IDENTITY: Final = Identity()


class JournalSource:
    """A journal's topic as its processor reads it (:class:`streams.topic.Source`)."""

    def __init__(self, name: str, decoding: EntryDecoder) -> None:
        self.name = name
        self.decoding: Any = decoding
