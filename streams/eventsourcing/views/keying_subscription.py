"""The first stage of a keyed view: writes its events again under the keys of their documents.

It polls the sources in a group of its own, whose position says how far all is written
(:mod:`streams.eventsourcing.views.keyed_records` has the rules).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from typing_extensions import override

from stream_codecs import UnknownTag
from streams.errors import ConfigError, LogError, NotFound, TopicMismatch
from streams.eventsourcing.views.checkpoint_check import check_incarnations
from streams.eventsourcing.views.checkpoints import (
    NO_INCARNATIONS,
    UnreadableCheckpoint,
    decode_checkpoint,
)
from streams.eventsourcing.views.definition import KeyFunction, ViewDefinition
from streams.eventsourcing.views.errors import MissingKey, UnknownDocument
from streams.eventsourcing.views.event_readers import SourceReader
from streams.eventsourcing.views.incarnations import Incarnations
from streams.eventsourcing.views.inline_subscription import (
    HandledBatch,
    InlineSubscription,
    PartitionCounts,
    PartitionHandler,
    position_behind,
)
from streams.eventsourcing.views.keyed_records import KeyedRecord, copied_headers, keyed_header
from streams.log.documents import DocumentStore
from streams.log.names import partition_for
from streams.log.protocol import Assignment, Log
from streams.log.range_reader import KEEP_ALIVE_EVERY
from streams.message import Batch, Position, Record
from streams.processing import Skip
from streams.text import describe_error

_Copy = tuple[tuple[int, int] | None, bytes]
"""What is written of a message: which of its events, as a keyed record says it, and the key of the
document."""


class KeyingHandler(PartitionHandler):
    """Writes one source partition's events by key.

    :param reader: of the source.
    :param partitions: of the keyed topic.
    :param append: appends records and waits until they are confirmed.
    :param incarnations: of the keyed topic and the source, where they are known.
    """

    def __init__(
        self,
        definition: ViewDefinition[Any],
        reader: SourceReader,
        partitions: int,
        append: Callable[[Sequence[Record]], None],
        position: int,
        incarnations: Mapping[str, str],
    ) -> None:
        self._incarnations = incarnations
        self._definition = definition
        self._reader = reader
        self._count = partitions
        self._append = append
        self._position = position

    @property
    @override
    def position(self) -> int:
        return self._position

    @property
    @override
    def incarnations(self) -> Mapping[str, str]:
        return self._incarnations

    @override
    def handle(self, batch: Batch, start: int, until: float = float("inf")) -> HandledBatch:
        records: list[Record] = []
        after: dict[int, tuple[int, int]] = {}
        error: Exception | None = None
        stop, events = len(batch), 0
        self._reader.begin(batch, start)
        for index in range(start, len(batch)):
            if index > start and time.monotonic() >= until:
                stop = index
                break
            try:
                count, keyed = self._make_copies(batch, index)
            except Skip:
                continue
            except Exception as problem:
                stop, error = index, problem
                break
            events += count
            if keyed:
                self._add_copies(records, after, batch, index, keyed)
        if records:
            self._append(records)
        self._position = max(self._position, position_behind(batch, start, stop))
        return HandledBatch(stop, error, events)

    def _make_copies(self, batch: Batch, index: int) -> tuple[int, Sequence[_Copy]]:
        """How many events a message is, and what is written of it.

        Where its own key is the document's, it is not decoded: whoever folds it does that, so that
        one that cannot be decoded stops its document alone.

        :raises Skip: it is passed over.
        :raises MissingKey: it has none.
        :raises UnknownTag: this code does not know what it is.
        :raises UnknownDocument: it cannot be decoded, or the view's function fails.
        """
        function, key = self._definition.key, batch.keys[index]
        if function is None and key is not None:
            if self._reader.is_repeat(index):
                raise Skip
            return 1, ((None, key),)
        position = self._reader.position(batch, index)
        try:
            units = self._reader.read(batch, index)
            if function is None:
                if not units:
                    raise Skip
                raise MissingKey(position)
            copies = [
                ((unit.number, len(units)), key)
                for unit in units
                for key in self._document_keys(function, unit.event)
            ]
        except (Skip, MissingKey, UnknownTag, ConfigError, MemoryError):
            raise
        except Exception as error:
            raise UnknownDocument(position, describe_error(error)) from error
        return len(units), copies

    def _document_keys(self, function: KeyFunction, event: Any) -> Sequence[bytes]:
        """The keys of the documents that an event changes.

        :raises TypeError: the view's function gives something else.
        """
        found = function(event)
        if found is None:
            return ()
        keys: Sequence[Any] = (found,) if isinstance(found, str) else found
        if not isinstance(keys, (list, tuple)) or not all(isinstance(each, str) for each in keys):
            raise TypeError(
                f"{self._definition.where}: key= returned {found!r}: a str, a list of them, or None"
            )
        return [each.encode("utf-8", "surrogateescape") for each in dict.fromkeys(keys)]

    def _add_copies(
        self,
        records: list[Record],
        after: dict[int, tuple[int, int]],
        batch: Batch,
        index: int,
        keyed: Sequence[_Copy],
    ) -> None:
        """Add the copies of one message."""
        offset = batch.offsets[index]
        headers = copied_headers(batch, index)
        topics = self._definition.keyed_topic, batch.topic
        both = [self._incarnations.get(topic, "") for topic in topics]
        place = Position(batch.topic, batch.partition, batch.offset(index))
        for copy, (event, key) in enumerate(keyed):
            partition = partition_for(key, "", self._count)
            behind = after.get(partition)
            header = keyed_header(
                KeyedRecord(batch.topic, batch.partition, offset, copy, event, behind, *both)
            )
            after[partition] = offset, copy
            records.append(
                Record(batch.values[index], key, f"{place}#{copy}", [header, *headers], partition)
            )

    @override
    def close(self) -> None:
        """There is nothing to let go of."""


def trial_handler(
    definition: ViewDefinition[Any], topic: str, partitions: int, position: int
) -> KeyingHandler:
    """Does with a source partition what its handler would, and writes nothing."""
    reader = SourceReader(definition.decodings[topic])
    return KeyingHandler(definition, reader, partitions, _write_nothing, position, NO_INCARNATIONS)


def _write_nothing(records: Sequence[Record]) -> None:
    """It is a trial."""


def _incarnations_of_documents(
    store: DocumentStore, collection: str
) -> Iterator[Mapping[str, str]]:
    try:
        count = store.find(collection).partitions
    except NotFound:
        return
    for partition in range(count):
        with suppress(UnreadableCheckpoint, TopicMismatch):  # it is told by who folds
            yield decode_checkpoint(store.checkpoint(collection, partition)).incarnations


class KeyingSubscription(InlineSubscription[KeyingHandler]):
    """See the module.

    :param store: of the documents.
    :param incarnations: of the log's topics.
    """

    def __init__(
        self,
        log: Log,
        store: DocumentStore,
        incarnations: Incarnations,
        definition: ViewDefinition[Any],
        counts: dict[tuple[str, int], PartitionCounts],
        partitions: int,
    ) -> None:
        super().__init__(log, definition.keyed_topic, counts, incarnations)
        self._definition = definition
        self._decodings = definition.decodings
        self._count = partitions
        self._store = store
        self._made_of: list[Mapping[str, str]] | None = None
        """Of which topics the documents of each partition are made; None: that is to be asked."""

    @override
    def assigned(self, assignments: Sequence[Assignment]) -> None:
        self._made_of = None
        super().assigned(assignments)

    def _check_source(self, topic: str) -> None:
        """:raises CheckpointBeyondLog: documents are made of another topic of this name."""
        collection = self._definition.collection
        if self._made_of is None:
            self._made_of = list(_incarnations_of_documents(self._store, collection))
        for made_of in self._made_of:
            if topic in made_of:
                check_incarnations(self._incarnations, collection, {topic: made_of[topic]})

    @override
    def _begin_partition(self, assignment: Assignment) -> KeyingHandler:
        self._check_source(assignment.topic)
        incarnations = self._incarnations.known_incarnations(
            (self._definition.keyed_topic, assignment.topic)
        )
        committed = assignment.committed
        position = 0 if committed is None else committed.position
        definition, source = self._definition, assignment.topic_partition
        repeats = definition.repeats(self._log, source, position, self.keep_alive)
        return KeyingHandler(
            definition,
            SourceReader(self._decodings[assignment.topic], repeats),
            self._count,
            self._append_records,
            position,
            incarnations,
        )

    def _append_records(self, records: Sequence[Record]) -> None:
        """Write records, and wait until all are confirmed.

        :raises LogError: one is not.
        """
        answers: list[Any] = []
        answered = threading.Event()

        def on_appended(found: Sequence[Any]) -> None:
            answers.extend(found)
            answered.set()

        self._log.append(self._name, records, on_appended)
        while not answered.wait(KEEP_ALIVE_EVERY):
            self.keep_alive()
        for answer in answers:
            if isinstance(answer, LogError):
                raise answer
