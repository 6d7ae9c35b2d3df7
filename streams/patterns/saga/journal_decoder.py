"""How entries of a journal are decoded: one way, for everybody who reads them.

A record that the owner would dead-letter must not count for anybody else either: else whoever looks
for a saga's last entry finds one that nobody ever advances. So the processor that drives the sagas,
commands, listings and whoever waits for a saga all use an :class:`EntryDecoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stream_codecs import DecodeError, Json
from streams.message import Batch
from streams.patterns.saga.entry_validation import invalid_reason
from streams.patterns.saga.journal_entry import StoredEntry
from streams.processing import Skip

_CACHEABLE_BYTES = 4 << 10
"""Bytes of an entry, at most, whose validation may be cached."""


class EntryIdReader:
    """Reads the message ID of an entry (:class:`streams.processing.job.IdReader`)."""

    def __call__(self, value: StoredEntry) -> str:
        """The ID of one entry."""
        return value.message_id

    def identify_many(self, values: Sequence[Any]) -> list[str]:
        """The ID of each entry."""
        return [value.message_id for value in values]


class EntryDecoder:
    """Decodes the entries of one journal (:class:`streams.processing.job.Decoding`).

    :param topic: the journal's topic.
    """

    gives_several = False
    id_reader = EntryIdReader()
    """An entry's ID is made of its content, whatever its headers say."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        bound = Json().bind(StoredEntry, topic=topic)
        self._decode = bound.decode
        self._fast = bound.fast if bound.fast is not None else bound.decode
        self._fast_limit = bound.small

    def unwrap(self, batch: Batch) -> Batch:
        """Entries have no envelope."""
        return batch

    def fast_decoder(self, values: Sequence[bytes | None], largest: int) -> None:
        """There is none: an entry counts only under its saga's key."""
        return

    def decode_one(self, batch: Batch, index: int) -> StoredEntry:
        """The entry in one message.

        :raises Skip: a tombstone.
        :raises DecodeError: it is no entry, or not one that a saga can have.
        """
        value = batch.values[index]
        if value is None:
            raise Skip
        return self.decode_entry(batch.keys[index], value)

    def decode_entry(self, key: bytes | None, value: bytes) -> StoredEntry:
        """The entry that a record holds.

        :raises DecodeError: it is no entry, or not one that a saga can have.
        """
        try:
            # So small a document is neither too large nor too deep.
            entry = self._fast(value) if len(value) <= self._fast_limit else self._decode(value)
        except Exception:
            entry = self._decode(value)  # says what is wrong
        reason = invalid_reason(entry, cache=len(value) <= _CACHEABLE_BYTES)
        if reason:
            raise self._error(f"no saga can have this entry: {reason}", value)
        if key != entry.saga.encode():  # a text of printable characters holds no surrogate
            raise self._error("the entry of a saga stands under another key than its ID", value)
        return entry

    def try_decode(self, key: bytes | None, value: bytes | None) -> StoredEntry | None:
        """As :meth:`decode_entry`; None for what is no entry."""
        if value is None:
            return None
        try:
            return self.decode_entry(key, value)
        except DecodeError:
            return None

    def _error(self, reason: str, value: bytes) -> DecodeError:
        return DecodeError(reason, codec="json", topic=self._topic, data=value)


def saga_key(id: str) -> bytes:
    """The key of a saga's records."""
    return id.encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class JournalSource:
    """A journal's topic as its processor reads it (:class:`streams.decoding.Source`)."""

    name: str
    decoding: Any
