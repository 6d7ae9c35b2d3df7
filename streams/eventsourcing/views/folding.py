"""Folding one partition's events into documents.

A batch is folded in order, and then the documents that changed are written with the checkpoint
behind its last message, in one write. So what stands in the log is always the fold of the history
up to the checkpoint.

* Where the view's function fails, the document stands still at that event, with the failure beside
  it; later events of its key are left to :meth:`PartitionFolder.retry`.
* Where it cannot be known which document an event is for, or an event's tag is unknown to this
  code, the partition waits there: nothing behind it is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, cast

from typing_extensions import override

from stream_codecs import UnknownTag
from streams.errors import ConfigError
from streams.eventsourcing.views.checkpoints import decode_checkpoint, encode_checkpoint
from streams.eventsourcing.views.definition import ViewDefinition
from streams.eventsourcing.views.errors import MissingKey
from streams.eventsourcing.views.event_readers import EventReader, Unit
from streams.eventsourcing.views.failures import decode_failure, encode_failure
from streams.eventsourcing.views.inline_subscription import Handled, PartitionHandler
from streams.eventsourcing.views.known_documents import (
    KnownDocument,
    KnownDocuments,
    UnreadableDocument,
)
from streams.log.documents import Checkpoint, DocumentChange, DocumentWriter, StoredDocument
from streams.message import Batch
from streams.processing import Skip


class _Touched:
    """What a batch comes to."""

    def __init__(self) -> None:
        self.before: dict[bytes, Any] = {}
        """The documents that it changes, as they were before."""
        self.events = 0
        self.stopped = 0


class PartitionFolder(PartitionHandler):
    """Folds one partition. Of no use after an error of its writer.

    :param writer: of the partition's documents.
    """

    def __init__(
        self, definition: ViewDefinition[Any], reader: EventReader, writer: DocumentWriter
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
        self._last, _ = decode_checkpoint(b"" if checkpoint is None else checkpoint.data)

    @property
    @override
    def position(self) -> int:
        return self._position

    @override
    def handle(self, batch: Batch, start: int) -> Handled:
        """Fold the messages of a batch from ``start`` on, as far as that can be, and write what
        came of it.

        :raises Fenced: somebody else writes these documents.
        :raises LogError: it was written or not.
        """
        error: Exception | None = None
        stop = len(batch)
        touched = _Touched()
        known: dict[bytes, KnownDocument] = {}
        if start < stop:
            self._reader.begin(batch, start)
            try:
                known = self._documents.load(key for key in batch.keys[start:] if key is not None)
                events = None if self._wants_message else self._reader.fast_events(batch)
                if events is not None and None not in batch.keys:
                    self._fold_events(known, batch, start, events, touched)
                else:
                    stop, error = self._fold_units(known, batch, start, touched)
            except UnreadableDocument as unreadable:
                return Handled(start, unreadable, 0, 0)
        position = batch.skipped_to if stop == len(batch) else 0
        if stop > start:
            position = max(position, batch.offsets[stop - 1] + 1)
        if position <= self.position and not touched.before:
            return Handled(stop, error, touched.events, touched.stopped)
        changes = self._changes(known, batch, start, stop, touched)
        if stop > start:
            self._last = batch.offsets[stop - 1], batch.id(stop - 1)
        sources = self._reader.sources_before(stop)
        data = encode_checkpoint(self._last, sources)
        self._writer.write(changes, Checkpoint(max(position, self.position), data))
        self._position = max(position, self.position)
        self._documents.shrink()
        return Handled(stop, error, touched.events, touched.stopped)

    def _fold_events(
        self,
        known: dict[bytes, KnownDocument],
        batch: Batch,
        start: int,
        events: Sequence[Any],
        touched: _Touched,
    ) -> None:
        """Fold events that are decoded, one a message, by their messages' keys."""
        fold, check, before = self._fold, self._type.check, touched.before
        keys = cast("Sequence[bytes]", batch.keys)  # each has one
        for index in range(start, len(events)):
            key = keys[index]
            entry = known[key]
            if entry.failure:
                continue
            document = entry.document
            try:
                found = fold(document, events[index])
                if found is not None:
                    check(found)
            except MemoryError:
                raise
            except Exception as error:
                self._stop(key, entry, batch, index, 0, error, touched)
                continue
            if found is not document:
                if key not in before:
                    before[key] = document
                entry.document = found
        touched.events += len(events) - start

    def _fold_units(
        self, known: dict[bytes, KnownDocument], batch: Batch, start: int, touched: _Touched
    ) -> tuple[int, Exception | None]:
        """Fold message by message; how far that went, and what stands there."""
        for index in range(start, len(batch)):
            key = batch.keys[index]
            try:
                units = self._reader.read(batch, index)
            except Skip:
                continue
            except (UnknownTag, ConfigError, MemoryError) as error:
                return index, error
            except Exception as error:
                if key is None:
                    return index, error
                entry = known[key]
                if not entry.failure:
                    self._stop(key, entry, batch, index, 0, error, touched)
                continue
            if not units:
                continue
            if key is None:
                return index, MissingKey(self._reader.position(batch, index))
            for unit in units:
                self._fold_unit(key, known[key], batch, index, unit, touched)
        return len(batch), None

    def _fold_unit(
        self,
        key: bytes,
        entry: KnownDocument,
        batch: Batch,
        index: int,
        unit: Unit,
        touched: _Touched,
    ) -> None:
        touched.events += 1
        if entry.failure:
            return
        document = entry.document
        try:
            found = self._call(document, unit)
        except MemoryError:
            raise
        except Exception as error:
            self._stop(key, entry, batch, index, unit.number, error, touched)
            return
        if found is not document:
            touched.before.setdefault(key, document)
            entry.document = found

    def _call(self, document: Any, unit: Unit) -> Any:
        if self._wants_message:
            found = self._fold(document, unit.event, unit.message())
        else:
            found = self._fold(document, unit.event)
        if found is not None:
            self._type.check(found)
        return found

    def _stop(
        self,
        key: bytes,
        entry: KnownDocument,
        batch: Batch,
        index: int,
        number: int,
        error: Exception,
        touched: _Touched,
    ) -> None:
        """A document stands still from here on."""
        touched.before.setdefault(key, entry.document)
        touched.stopped += 1
        reader = self._reader
        position = str(reader.position(batch, index))
        entry.failure = encode_failure(
            batch.offsets[index], number, position, error, reader.sources_before(index)
        )

    @override
    def close(self) -> None:
        self._writer.close()

    # -- what is written

    def _changes(
        self,
        known: dict[bytes, KnownDocument],
        batch: Batch,
        start: int,
        stop: int,
        touched: _Touched,
    ) -> list[DocumentChange]:
        changes: list[DocumentChange] = []
        for key, before in touched.before.items():
            entry = known[key]
            try:
                change = self._change(key, entry)
            except MemoryError:
                raise
            except Exception:  # one of its events has made something that cannot be written
                self._stop_where_it_cannot_be_written(
                    key, entry, before, batch, start, stop, touched
                )
                change = self._change(key, entry)
            changes.append(change)
        return changes

    def _change(self, key: bytes, entry: KnownDocument) -> DocumentChange:
        document = entry.document
        if document is None and not entry.failure:
            self._documents.resize(entry, len(key))
            return DocumentChange(key, None)
        value = None if document is None else self._type.encode(document)
        self._documents.resize(entry, len(key) + len(value or b""))
        return DocumentChange(key, StoredDocument(value, entry.failure))

    def _stop_where_it_cannot_be_written(
        self,
        key: bytes,
        entry: KnownDocument,
        before: Any,
        batch: Batch,
        start: int,
        stop: int,
        touched: _Touched,
    ) -> None:
        """Fold one document again, and write each state of it: it stops before the first that
        cannot be written."""
        entry.document = before
        for index, unit in self._units_of(key, batch, start, stop):
            document = entry.document
            try:
                entry.document = self._call(document, unit)
                self._change(key, entry)
            except Exception as error:
                entry.document = document
                entry.failure = b""
                self._stop(key, entry, batch, index, unit.number, error, touched)
                return

    def _units_of(
        self, key: bytes, batch: Batch, start: int, stop: int
    ) -> Iterator[tuple[int, Unit]]:
        for index in range(start, stop):
            if batch.keys[index] == key:
                with suppress(Exception):  # there it stopped before
                    for unit in self._reader.read(batch, index):
                        yield index, unit

    # -- documents that stand still

    def stopped_at(self, key: bytes) -> int | None:
        """The offset at which a document stands still; None: it does not.

        :raises LogError: it cannot be read.
        """
        failure = self._documents.load([key])[key].failure
        return decode_failure(failure).place[0] if failure else None

    def retry(self, key: bytes, batches: Iterator[Batch]) -> bool:
        """Fold a document on from the event at which it stands still, up to the checkpoint.

        :param batches: of its partition, from the offset at which it stands still up to the
            checkpoint.
        :returns: whether it stands still no more.
        :raises LogError: it was written or not.
        """
        known = self._documents.load([key])
        entry = known[key]
        if not entry.failure:
            return True
        failure = decode_failure(entry.failure)
        reader = self._reader
        self._reader = reader.at(failure.sources_before)
        try:
            return self._retry(key, entry, failure.place, batches)
        finally:
            self._reader = reader

    def _retry(
        self, key: bytes, entry: KnownDocument, first: tuple[int, int], batches: Iterator[Batch]
    ) -> bool:
        touched = _Touched()
        before = entry.failure
        entry.failure = b""
        for batch in batches:
            self._reader.begin(batch, 0)
            for index in range(len(batch)):
                if batch.keys[index] == key and not entry.failure:
                    self._retry_message(key, entry, batch, index, first, touched)
            if entry.failure:
                break
        if entry.failure != before or key in touched.before:
            data = b"" if self._writer.checkpoint is None else self._writer.checkpoint.data
            self._writer.write([self._change(key, entry)], Checkpoint(self.position, data))
        return not entry.failure

    def _retry_message(
        self,
        key: bytes,
        entry: KnownDocument,
        batch: Batch,
        index: int,
        first: tuple[int, int],
        touched: _Touched,
    ) -> None:
        try:
            units = self._reader.read(batch, index)
        except Skip:
            return
        except Exception as error:
            self._stop(key, entry, batch, index, 0, error, touched)
            return
        for unit in units:
            if (batch.offsets[index], unit.number) < first:
                continue
            document = entry.document
            self._fold_unit(key, entry, batch, index, unit, touched)
            if entry.failure:
                return
            try:
                self._change(key, entry)
            except Exception as error:
                entry.document = document
                self._stop(key, entry, batch, index, unit.number, error, touched)
                return
