"""Decoding the entries of a journal, in the same way for all readers.

A record that the owner would dead-letter must not count for any other reader: else a search for a
saga's last entry would find one that is never advanced. So the processor that drives the sagas,
commands, listings and callers that wait for a saga all use an :class:`EntryDecoder`.
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
"""The largest entry whose validation may be cached, in bytes."""


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
    """The ID of an entry is derived from its content, whatever its headers say."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        bound = Json().bind(StoredEntry, topic=topic)
        self._decode = bound.decode
        self._fast = bound.fast if bound.fast is not None else bound.decode
        self._fast_limit = bound.small

    def unwrap(self, batch: Batch) -> Batch:
        """The batch unchanged: entries have no envelope."""
        return batch

    def fast_decoder(self, values: Sequence[bytes | None], largest: int) -> None:
        """None: there is no fast decoder, as an entry counts only under its saga's key."""
        return

    def decode_one(self, batch: Batch, index: int) -> StoredEntry:
        """The entry in a message.

        :raises Skip: a tombstone.
        :raises DecodeError: it is no entry, or not a possible one.
        """
        value = batch.values[index]
        if value is None:
            raise Skip
        return self.decode_entry(batch.keys[index], value)

    def decode_entry(self, key: bytes | None, value: bytes) -> StoredEntry:
        """The entry in a record.

        :raises DecodeError: it is no entry, or not a possible one.
        """
        try:
            # A document of this size is neither too large nor too deep.
            entry = self._fast(value) if len(value) <= self._fast_limit else self._decode(value)
        except Exception:
            entry = self._decode(value)  # says what is wrong
        reason = invalid_reason(entry, cache=len(value) <= _CACHEABLE_BYTES)
        if reason:
            raise self._error(f"no saga can have this entry: {reason}", value)
        if key != entry.saga.encode():  # printable characters include no surrogate
            raise self._error("the entry of a saga stands under another key than its ID", value)
        return entry

    def try_decode(self, key: bytes | None, value: bytes | None) -> StoredEntry | None:
        """As :meth:`decode_entry`; None if the record is no entry."""
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
