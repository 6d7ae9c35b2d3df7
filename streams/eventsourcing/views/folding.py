"""Folding one partition's events into documents.

A batch is folded in order, and then the documents that changed are written with the checkpoint
behind its last message, in one write. So what stands in the log is always the fold of the history
up to the checkpoint.

* Where the view's function fails, the document stands still at that event, with the failure beside
  it; later events of its key are left to :meth:`PartitionFolder.retry_document`.
* Where it cannot be known which document an event is for, or an event's tag is unknown to this
  code, or a message was written by key as another number of events, the partition waits there:
  nothing behind it is folded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from typing_extensions import override

from stream_codecs import UnknownTag
from streams.errors import ConfigError
from streams.eventsourcing.views.checkpoints import (
    SourcePosition,
    decode_checkpoint,
    encode_checkpoint,
)
from streams.eventsourcing.views.definition import ViewDefinition
from streams.eventsourcing.views.errors import EventsChanged, MissingKey
from streams.eventsourcing.views.event_readers import Unit, ViewEventReader
from streams.eventsourcing.views.failures import decode_failure, encode_failure
from streams.eventsourcing.views.inline_subscription import (
    HandledBatch,
    PartitionHandler,
    position_behind,
)
from streams.eventsourcing.views.known_documents import (
    KnownDocument,
    KnownDocuments,
    UnreadableDocument,
)
from streams.log.documents import Checkpoint, DocumentChange, DocumentWriter, StoredDocument
from streams.message import Batch
from streams.processing import Skip


class _FoldResult:
    """The result of folding a batch."""

    def __init__(self) -> None:
        self.changed: dict[bytes, KnownDocument] = {}
        self.events = 0
        self.stopped: list[bytes] = []
        self.growth = 0
        """Bytes that the documents have more."""


class PartitionFolder(PartitionHandler):
    """Folds one partition. Of no use after an error of its writer.

    :param writer: of the partition's documents.
    """

    def __init__(
        self, definition: ViewDefinition[Any], reader: ViewEventReader, writer: DocumentWriter
    ) -> None:
        self._definition = definition
        self._fold: Callable[..., Any] = definition.fold
        self._wants_message = definition.wants_message
        self._type = definition.document_type
        self._reader = reader
        self._writer = writer
        self._documents = KnownDocuments(writer, self._type.decode)
        checkpoint = writer.checkpoint
        self._position = 0 if checkpoint is None else checkpoint.position
        self._last = decode_checkpoint(checkpoint).last

    @property
    @override
    def position(self) -> int:
        return self._position

    @property
    @override
    def incarnations(self) -> Mapping[str, str]:
        return self._reader.incarnations

    @override
    def handle(self, batch: Batch, start: int, until: float = float("inf")) -> HandledBatch:
        """Fold the messages of a batch from ``start`` on, as far as that can be, up to a time, and
        write what came of it.

        :raises Fenced: somebody else writes these documents.
        :raises LogError: it was written or not.
        """
        error: Exception | None = None
        stop, outcome = len(batch), _FoldResult()
        if start < stop:
            self._reader.begin(batch, start)
            try:
                known = self._documents.load(key for key in batch.keys[start:] if key is not None)
            except UnreadableDocument as unreadable:
                return HandledBatch(start, unreadable, 0)
            events = None if self._wants_message else self._reader.fast_events(batch)
            if events is not None and None not in batch.keys:
                stop = self._fold_events(known, batch, start, events, until, outcome)
            else:
                stop, error = self._fold_units(known, batch, start, until, outcome)
        position = position_behind(batch, start, stop)
        if stop > start:
            self._last = batch.offsets[stop - 1], batch.id(stop - 1)
        if position > self._position:
            self._write_documents(outcome, position, self._reader.sources_before(stop))
            self._position = position
        self._documents.shrink()
        return HandledBatch(stop, error, outcome.events, outcome.stopped)

    def _write_documents(
        self, outcome: _FoldResult, position: int, sources: Mapping[str, SourcePosition]
    ) -> None:
        changes = [
            DocumentChange(
                key,
                StoredDocument(entry.value, entry.failure)
                if entry.value is not None or entry.failure
                else None,
            )
            for key, entry in outcome.changed.items()
        ]
        checkpoint = Checkpoint(
            position, encode_checkpoint(self._last, sources, self._reader.incarnations)
        )
        self._writer.write(changes, checkpoint)
        self._documents.grown(outcome.growth)

    def _fold_events(
        self,
        known: dict[bytes, KnownDocument],
        batch: Batch,
        start: int,
        events: Sequence[Any],
        until: float,
        outcome: _FoldResult,
    ) -> int:
        """Fold events that are decoded, one a message, by their messages' keys; how far that
        went."""
        fold, take, now = self._fold, self._take_result, time.monotonic
        keys = cast("Sequence[bytes]", batch.keys)  # each has one
        stop = len(events)
        for index in range(start, len(events)):
            entry = known[keys[index]]
            if entry.failure:
                continue
            try:
                take(keys[index], entry, fold(entry.document, events[index]), outcome)
            except MemoryError:
                raise
            except Exception as error:
                self._stop_document(keys[index], entry, batch, index, 0, error, outcome)
            if now() >= until:
                stop = index + 1
                break
        outcome.events += stop - start
        return stop

    def _fold_units(
        self,
        known: dict[bytes, KnownDocument],
        batch: Batch,
        start: int,
        until: float,
        outcome: _FoldResult,
    ) -> tuple[int, Exception | None]:
        """Fold message by message; how far that went, and what stands there."""
        for index in range(start, len(batch)):
            if index > start and time.monotonic() >= until:
                return index, None
            key = batch.keys[index]
            try:
                units = self._reader.read(batch, index)
            except Skip:
                continue
            except (UnknownTag, EventsChanged, ConfigError, MemoryError) as error:
                return index, error
            except Exception as error:
                if key is None:
                    return index, error
                if not known[key].failure:
                    self._stop_document(key, known[key], batch, index, 0, error, outcome)
                continue
            if not units:
                continue
            if key is None:
                return index, MissingKey(self._reader.position(batch, index))
            for unit in units:
                self._fold_unit(key, known[key], batch, index, unit, outcome)
        return len(batch), None

    def _fold_unit(
        self,
        key: bytes,
        entry: KnownDocument,
        batch: Batch,
        index: int,
        unit: Unit,
        outcome: _FoldResult,
    ) -> None:
        outcome.events += 1
        if entry.failure:
            return
        try:
            if self._wants_message:
                found = self._fold(entry.document, unit.event, unit.message())
            else:
                found = self._fold(entry.document, unit.event)
            self._take_result(key, entry, found, outcome)
        except MemoryError:
            raise
        except Exception as error:
            self._stop_document(key, entry, batch, index, unit.number, error, outcome)

    def _take_result(
        self, key: bytes, entry: KnownDocument, found: Any, outcome: _FoldResult
    ) -> None:
        """What the function has returned is the document now, as it is read again from its bytes:
        after each event, so that it does not matter where a batch ends, or a process.

        :raises Exception: it is no document.
        """
        if found is entry.document:
            return
        before, value = entry.value, None
        if found is not None:
            type_ = self._type
            type_.check(found)
            value = type_.encode(found)
            small = len(value) <= type_.fast_limit
            found = type_.fast_decode(value) if small else type_.decode(value)
        entry.document, entry.value = found, value
        outcome.changed[key] = entry
        outcome.growth += len(value or b"") - len(before or b"")

    def _stop_document(
        self,
        key: bytes,
        entry: KnownDocument,
        batch: Batch,
        index: int,
        number: int,
        error: Exception,
        outcome: _FoldResult,
    ) -> None:
        """A document stands still from here on."""
        outcome.changed[key] = entry
        outcome.stopped.append(key)
        reader = self._reader
        position = str(reader.position(batch, index))
        entry.failure = encode_failure(
            batch.offsets[index], number, position, error, reader.sources_before(index)
        )

    @override
    def close(self) -> None:
        self._writer.close()

    # -- documents that stand still

    def stopped_at(self, key: bytes) -> int | None:
        """The offset at which a document stands still; None: it does not.

        :raises LogError: it cannot be read.
        """
        (stored,) = self._writer.read([key])
        failure = b"" if stored is None else stored.failure
        return decode_failure(failure).place[0] if failure else None

    def retry_document(
        self, key: bytes, batches: Iterator[Batch], keep_alive: Callable[[], None] = lambda: None
    ) -> bool:
        """Fold a document on from the event at which it stands still, up to the checkpoint.

        :param batches: of its partition, from the offset at which it stands still up to the
            checkpoint.
        :param keep_alive: called again and again, as this may take long.
        :returns: whether it stands still no more.
        :raises LogError: it was written or not.
        """
        try:
            entry = self._documents.load([key])[key]
        except UnreadableDocument as error:
            self._update_reason(key, error)
            return False
        if not entry.failure:
            return True
        failure = decode_failure(entry.failure)
        reader = self._reader
        self._reader = reader.at(failure.place[0], failure.sources_before)
        try:
            outcome = self._resume_folding(key, entry, failure.place, batches, keep_alive)
        finally:
            self._reader = reader
        outcome.changed[key] = entry
        sources = decode_checkpoint(self._writer.checkpoint).sources
        self._write_documents(outcome, self._position, sources)
        return not entry.failure

    def _update_reason(self, key: bytes, error: Exception) -> None:
        """A document goes on standing still where it does, for another reason."""
        (stored,) = self._writer.read([key])
        checkpoint = self._writer.checkpoint
        if stored is None or checkpoint is None:
            return
        before = decode_failure(stored.failure)
        offset, number = before.place
        failure = encode_failure(offset, number, before.position, error, before.sources_before)
        self._writer.write([DocumentChange(key, StoredDocument(stored.value, failure))], checkpoint)

    def _resume_folding(
        self,
        key: bytes,
        entry: KnownDocument,
        first: tuple[int, int],
        batches: Iterator[Batch],
        keep_alive: Callable[[], None],
    ) -> _FoldResult:
        """Fold one document on.

        :param first: offset and number of the event at which it stands still.
        """
        outcome = _FoldResult()
        entry.failure = b""
        for batch in batches:
            keep_alive()
            self._reader.begin(batch, 0)
            for index in range(len(batch)):
                if batch.keys[index] != key:
                    continue
                try:
                    units = self._reader.read(batch, index)
                except Skip:
                    continue
                except Exception as error:
                    # What was folded of the first message stays folded.
                    number = first[1] if batch.offsets[index] == first[0] else 0
                    self._stop_document(key, entry, batch, index, number, error, outcome)
                    return outcome
                for unit in units:
                    keep_alive()
                    if (batch.offsets[index], unit.number) >= first:
                        self._fold_unit(key, entry, batch, index, unit, outcome)
                if entry.failure:
                    return outcome
        return outcome
