"""Views looked at through a log alone: no app runs, and nothing is written or made.

What the command line and the doctor show comes from here: which views there are and their versions
(from the registry's history), how far each has come, and which documents stand still. With the
app's declaration of a version, what would be folded next is folded for trial: so it is known why a
partition waits, without asking the process that runs it.

Everything here blocks. Whatever stands in the log ends in a :class:`~streams.errors.LogError` or in
what is returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from typing_extensions import override

from stream_codecs import DecodeError
from streams.errors import LogError, NotFound, TopicMismatch
from streams.eventsourcing.history_pages import history_pages
from streams.eventsourcing.views.checkpoint_check import (
    REMEDY,
    CheckpointBeyondLog,
    check_checkpoint,
)
from streams.eventsourcing.views.checkpoints import UnreadableCheckpoint
from streams.eventsourcing.views.failures import decode_failure
from streams.eventsourcing.views.incarnations import Incarnations
from streams.eventsourcing.views.inline_subscription import PartitionHandler
from streams.eventsourcing.views.keyed_records import KEY_HEADER as KEY_HEADER
from streams.eventsourcing.views.keyed_topic import check_above_floor
from streams.eventsourcing.views.keying_subscription import trial_handler
from streams.eventsourcing.views.names import group_names
from streams.eventsourcing.views.registry import (
    TOPIC,
    KnownViewVersion,
    evolve,
    registry_codec,
)
from streams.eventsourcing.views.registry import (
    KnownView as KnownView,
)
from streams.eventsourcing.views.tracker import Coverage, FoldingProgress, VersionTracker
from streams.eventsourcing.views.version import ViewVersion, document_store, goal_of, tracker_of
from streams.log.documents import (
    Checkpoint,
    CollectionTotals,
    DocumentChange,
    DocumentStore,
    DocumentWriter,
    StoredDocument,
)
from streams.log.events import EventLog
from streams.log.protocol import Log, TopicPartition
from streams.log.range_reader import read_first
from streams.message import text
from streams.text import describe_error

PAGE = 1_000
"""Names, or documents, that are asked for at once."""


# -- the registry ---------------------------------------------------------------------------------


def find_views(log: Log) -> list[str]:
    """The names of all views that were ever declared on a log.

    :raises LogError: they cannot be read.
    """
    if not isinstance(log, EventLog):
        return []
    try:
        partitions = log.describe_topic(TOPIC).partitions
    except NotFound:
        return []
    found: set[bytes] = set()
    for partition in range(partitions):
        after: bytes | None = None
        while page := log.list_keys(TOPIC, partition, after, PAGE):
            found.update(each.key for each in page)
            after = page[-1].key
    return sorted(map(text, found))


def read_view(log: Log, name: str) -> KnownView:
    """What is known of a view; one without a version: it was never declared.

    :raises LogError: it cannot be read.
    """
    view = KnownView()
    if not isinstance(log, EventLog):
        return view
    try:
        log.describe_topic(TOPIC)
    except NotFound:
        return view
    codec = registry_codec()
    for page in history_pages(log, TOPIC, name.encode("utf-8", "surrogateescape")):
        for stored in page.events:
            try:
                events = codec.decode(stored.record.value)
            except DecodeError as error:
                raise LogError(f"{TOPIC}: what stands there of view {name!r}: {error}") from error
            for event in events:
                view = evolve(view, event)
    return view


# -- a version ------------------------------------------------------------------------------------


class InspectedVersion(NamedTuple):
    """One version as the log has it.

    :param partitions: of its documents; 0: there are none yet.
    :param members: the processes that run it, by the IDs that they have in its groups.
    """

    known: KnownViewVersion
    serves: bool
    partitions: int
    totals: CollectionTotals
    progress: FoldingProgress
    members: tuple[str, ...]

    @property
    def state(self) -> str:
        """What the version is doing: clearing, building, serving or ready."""
        if self.known.is_clearing:
            return "clearing"
        if self.known.is_building:
            return "building"
        return "serving" if self.serves else "ready"


class InspectedPartition(NamedTuple):
    """One partition of a version's documents.

    :param topic: that it is folded from: the source, or the keyed topic.
    :param position: up to where; None: nothing was written to it yet.
    :param lag: messages behind that; None: the log cannot count them.
    :param problem: why the log cannot be what was folded; empty: it can.
    """

    topic: str
    partition: int
    position: int | None
    end: int
    lag: int | None
    owner: str | None
    problem: str


class StoppedKey(NamedTuple):
    """A document that stands still.

    :param position: of the event at which it does, as text.
    :param reason: what the view's function raised, in one line.
    """

    key: bytes
    partition: int
    position: str
    reason: str


class VersionInspector:
    """Looks at one version of a view.

    :param name: of the view.
    :raises ConfigError: the log keeps no documents.
    """

    def __init__(self, log: Log, name: str, view: KnownView, known: KnownViewVersion) -> None:
        self._log = log
        self.name = name
        self._view = view
        self.known = known
        self.tracker: VersionTracker = tracker_of(log, name, known)
        self._store: DocumentStore = self.tracker.store
        self._incarnations = Incarnations(log)

    @cached_property
    def partition_count(self) -> int:
        """How many partitions its documents have; 0: there are none yet. The log is asked once."""
        return self.tracker.partitions()

    @property
    def collection(self) -> str:
        """Of its documents, and the name of its group."""
        return self.tracker.collection

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the processes that run it."""
        return group_names(self.collection, is_keyed=self.known.is_keyed)

    def inspect(self) -> InspectedVersion:
        """How it is.

        :raises LogError: it cannot be read.
        """
        serves = self._view.promoted == self.known.version and not self.known.is_building
        count = self.partition_count
        progress = self.tracker.progress(count)
        totals = self.tracker.totals()
        return InspectedVersion(self.known, serves, count, totals, progress, self.members())

    def members(self) -> tuple[str, ...]:
        """The IDs of the members that run this version."""
        return tuple(dict.fromkeys(each for each, _ in self._owners()))

    def _owners(self) -> list[tuple[str, Sequence[TopicPartition]]]:
        found: list[tuple[str, Sequence[TopicPartition]]] = []
        for group in self.groups:
            try:
                members = self._log.describe_group(group, ()).members
            except NotFound:
                continue
            found += [(each.id, each.partitions) for each in members]
        return found

    def partitions(self) -> Iterator[InspectedPartition]:
        """Its partitions."""
        owners = {at: member for member, owned in self._owners() for at in owned}
        topic = self.tracker.folded_topic
        for partition in range(self.partition_count):
            owner = owners.get((topic, partition))
            yield self._inspect_partition(topic, partition, owner)

    def _inspect_partition(
        self, topic: str, partition: int, owner: str | None
    ) -> InspectedPartition:
        found, damage = None, ""
        try:
            found = self._store.checkpoint(self.collection, partition)
        except TopicMismatch as error:
            damage = f"{self.collection}: {topic}/{partition}: its checkpoint: {error}; {REMEDY}"
        position = None if found is None else found.position
        bounds = self.tracker.folded_bounds(partition)
        if bounds is None:
            problem = f"{self.collection}: there is no topic {topic!r}, it was deleted; {REMEDY}"
            return InspectedPartition(topic, partition, position, 0, None, owner, damage or problem)
        first, end = bounds
        problem = damage or self._checkpoint_problem(topic, partition, found)
        lag = self._log.lag(topic, partition, max(first, position or 0))
        return InspectedPartition(topic, partition, position, end, lag, owner, problem)

    def _checkpoint_problem(self, topic: str, partition: int, checkpoint: Checkpoint | None) -> str:
        """Why the log cannot be what was folded; empty: it can."""
        try:
            if self.known.is_keyed and not self.known.is_clearing:
                check_above_floor(self._log, self.collection, topic, partition, checkpoint)
            if checkpoint is not None:
                check_checkpoint(self._incarnations, self.collection, topic, partition, checkpoint)
        except CheckpointBeyondLog as error:
            return str(error)
        return ""

    def stopped_documents(self) -> Iterator[StoppedKey]:
        """The documents that stand still, partition by partition."""
        for partition in range(self.partition_count):
            after: bytes | None = None
            while page := self._store.stopped(self.collection, partition, after, PAGE):
                for key, document in page:
                    failure = decode_failure(document.failure)
                    yield StoppedKey(key, partition, failure.position, failure.reason)
                after = page[-1].key

    def find_document(self, key: bytes) -> tuple[int, StoredDocument] | None:
        """A document and its partition; None: there is none. One that stands still goes before
        others of its key."""
        found: tuple[int, StoredDocument] | None = None
        for partition in range(self.partition_count):
            (document,) = self._store.read(self.collection, partition, [key]).documents
            if document is not None and (found is None or document.failure):
                found = partition, document
        return found

    def stopped_key(self, key: bytes) -> StoppedKey | None:
        """A document that stands still; None: it does not."""
        found = self.find_document(key)
        if found is None or not found[1].failure:
            return None
        failure = decode_failure(found[1].failure)
        return StoppedKey(key, found[0], failure.position, failure.reason)

    def goal_coverage(self) -> Coverage:
        """Whether it has folded what it has to by now before it can serve."""
        return Coverage(self.tracker, goal_of(self._log, self.name, self._view, self.known))


# -- with the app's code --------------------------------------------------------------------------


class _TrialWriter(DocumentWriter):
    """Reads a partition's documents, and writes nothing."""

    def __init__(self, store: DocumentStore, collection: str, partition: int) -> None:
        self._store, self._collection, self._partition = store, collection, partition
        self._checkpoint = store.checkpoint(collection, partition)

    @property
    @override
    def checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    @override
    def read(self, keys: Sequence[bytes]) -> Sequence[StoredDocument | None]:
        return self._store.read(self._collection, self._partition, keys).documents

    @override
    def write(self, changes: Sequence[DocumentChange], checkpoint: Checkpoint) -> None:
        """Write nothing: this is a dry run."""

    @override
    def close(self) -> None:
        """There is nothing to let go of."""


def find_waiting(log: Log, version: ViewVersion) -> Iterator[tuple[str, str]]:
    """The messages at which the partitions of a version wait, as far as this code would: where,
    and why. What would be folded next is folded for trial; nothing is written.

    :raises LogError: it cannot be read.
    """
    definition = version.definition
    store = document_store(log, definition.where)
    tracker = version.tracker(log)
    topic, partitions = tracker.folded_topic, tracker.partitions()
    for partition in range(partitions):
        try:
            writer = _TrialWriter(store, definition.collection, partition)
            folder = version.new_folder(log, partition, writer, Incarnations(log))
        except (UnreadableCheckpoint, TopicMismatch, NotFound):
            continue  # what is wrong with it is told of the partition
        yield from _try_next(log, topic, partition, folder)
    if definition.is_keyed:
        for (source, partition), position in tracker.source_positions().items():
            handler = trial_handler(definition, source, max(1, partitions), position)
            yield from _try_next(log, source, partition, handler)


def _try_next(
    log: Log, topic: str, partition: int, handler: PartitionHandler
) -> Iterator[tuple[str, str]]:
    try:
        first, end = log.watermarks(topic, partition)
    except NotFound:
        return
    batch: Any = read_first(log, topic, partition, max(first, handler.position), end)
    if batch is None or not len(batch):
        return
    error = handler.handle(batch, 0).error
    if error is not None:
        position = f"{topic}/{partition}/{log.format_offset(batch.offsets[0])}"
        yield position, describe_error(error)
