"""The contents of a collection: read from its topic, which is followed while the index is used.

A partition is followed from its first use on. What its committed transactions say is kept in a
file (:mod:`.document_file`), a transaction at once when its checkpoint has come
(:mod:`.document_records` says which records count). So documents and checkpoint always agree, and
memory holds one batch, whatever the collection holds.

**Nothing is shown before it is right.** A partition is shown once it was read up to where it ended
when that began. One that has not been at the end for half of ``min.compaction.lag.ms`` (this
process was frozen, or the brokers could not be reached) is not shown until it has been there again;
one that has not for half of ``delete.retention.ms`` is read anew from its start. What this process
itself has written is shown as soon as it is written: whoever reads waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from streams.errors import LogError, NotFound, Unavailable
from streams.log.documents import Checkpoint, FoundDocuments, collection_not_found
from streams.log.kafka.batch import KafkaBatch
from streams.log.kafka.cache_file import IndexFileDamaged
from streams.log.kafka.client import REQUEST_TIMEOUT
from streams.log.kafka.document_file import DocumentFile
from streams.log.kafka.document_partition import DocumentPartition, KnownEnd
from streams.log.kafka.index_consumer import HistoryGone, IndexConsumer
from streams.log.kafka.partition_probe import PartitionProbe
from streams.log.kafka.reader import ReaderPool
from streams.text import get_logger

logger = get_logger("streams.kafka")

T = TypeVar("T")

WAIT_TIMEOUT = 30.0
"""Seconds without progress in it after which a writer that claims a partition is told so."""

IDLE_TIMEOUT = 600.0
"""Seconds after which a collection that nobody uses is followed no more."""

CHECK_INTERVAL = 30.0
"""Seconds after which it is asked again where a partition ends: that alone tells when it was read
up to there."""

EXISTS_INTERVAL = 5.0
"""Seconds in which nothing came, after which it is seen whether the topic is still there."""

SAVE_INTERVAL = 600.0
"""Seconds after which the file is told that a partition in which nothing happens was read."""


class IndexClosed(LogError):
    """The index is followed no more: another one is to be used."""


class DocumentIndex:
    """The documents of one collection (any thread).

    :param was_replaced: whether the topic was deleted since and made anew; None: this cannot be
        known.
    :param on_idle: is told when nobody has used it for a while; to close it.
    """

    def __init__(
        self,
        collection: str,
        topic: str,
        count: int,
        readers: ReaderPool,
        file: DocumentFile,
        was_replaced: Callable[[], bool | None],
        on_idle: Callable[[DocumentIndex], None],
    ) -> None:
        self.collection = collection
        self.topic = topic
        self.count = count
        """How many partitions the collection has."""
        self.error: LogError | None = None
        """Why nothing is followed any more: another index has to be made."""
        self._readers = readers
        self._file = file
        self._was_replaced = was_replaced
        self._on_idle = on_idle
        self._lock = threading.RLock()
        """Guards the file and the partitions."""
        self._changed = threading.Condition(self._lock)
        self._opening = threading.Lock()
        self._partitions: dict[int, DocumentPartition] = {}
        self._consumer = IndexConsumer(topic, readers, self, uncommitted=False)
        self._writers = 0
        self._used_at = time.monotonic()
        self._exists_until = time.monotonic() + EXISTS_INTERVAL
        """When it is to be seen whether the topic is still there."""
        self._ends = PartitionProbe(readers.end_of_committed)
        self._asked_at = 0.0
        """When it was asked last (seconds since the epoch)."""
        self._asked_offsets: Mapping[int, int] = {}
        """Up to where the partitions were read then."""

    # -- using it

    def read(self, partition: int, keys: Sequence[bytes]) -> FoundDocuments:
        """The documents of some keys, and their checkpoint."""

        def use(found: DocumentPartition) -> FoundDocuments:
            documents = self._file.documents(partition, keys)
            return FoundDocuments(documents, found.state.checkpoint)

        return self.using(partition, use)

    def checkpoint(self, partition: int) -> Checkpoint | None:
        """The checkpoint of a partition."""
        return self.using(partition, lambda found: found.state.checkpoint)

    def on_file(self, partition: int, use: Callable[[DocumentFile], T]) -> T:
        """The result of ``use``, called with the file once the partition is read completely."""
        return self.using(partition, lambda _: use(self._file))

    def using(self, partition: int, use: Callable[[DocumentPartition], T]) -> T:
        """The result of ``use``, called with a partition once it is read completely.

        :raises Unavailable: reading it takes too long.
        """
        found = self._open(partition)
        self._used_at = time.monotonic()
        deadline = self._used_at + REQUEST_TIMEOUT
        with self._lock:
            while not found.is_shown():
                self.check()
                if time.monotonic() >= deadline:
                    raise Unavailable(
                        f"documents {self.collection!r}, partition {partition}: they are being "
                        f"read, {found.next_offset:,} of {found.wanted_offset():,} records"
                    )
                self._changed.wait(min(1.0, max(0.0, deadline - time.monotonic())))
            self.check()
            self._used_at = time.monotonic()
            return use(found)

    def wait_until(self, partition: int, offset: int) -> DocumentPartition:
        """Wait until a partition is read up to an offset, however long that takes.

        :raises Unavailable: there was no progress for half a minute.
        """
        found = self._open(partition)
        seen, deadline = -1, 0.0
        with self._lock:
            while not found.is_shown(offset):
                self.check()
                if found.next_offset != seen:
                    seen, deadline = found.next_offset, time.monotonic() + WAIT_TIMEOUT
                elif time.monotonic() >= deadline:
                    raise Unavailable(
                        f"documents {self.collection!r}, partition {partition}: nothing came for "
                        f"{WAIT_TIMEOUT:g} s from offset {found.next_offset} on (up to {offset}): "
                        "brokers do not answer, or another producer has a transaction open there"
                    )
                self._changed.wait(1.0)
            self.check()
        return found

    def show_until(self, partition: int, offset: int) -> None:
        """From now on, show nothing of a partition until it was read up to an offset."""
        with self._lock:
            found = self._partitions[partition]
            found.needed = max(found.needed, offset)

    def has_passed(self, partition: int, offset: int, number: int) -> bool:
        """Whether a partition was read beyond an offset, and another write than this counted last.

        :raises LogError: nothing is followed any more.
        """
        with self._lock:
            self.check()
            found = self._partitions[partition]
            return found.is_shown(offset) and found.state.number != number

    def check(self) -> None:
        """See that it is followed.

        :raises NotFound: the collection is deleted.
        :raises LogError: it has failed, or is closed.
        """
        if self.error is not None:
            raise type(self.error)(str(self.error)) from self.error

    def add_writer(self) -> None:
        """Somebody writes, so it is in use until :meth:`remove_writer`."""
        with self._lock:
            self.check()
            self._writers += 1

    def remove_writer(self) -> None:
        """Somebody writes no more."""
        with self._lock:
            self._writers -= 1
            self._used_at = time.monotonic()

    def _open(self, partition: int) -> DocumentPartition:
        found = self._partitions.get(partition)
        if found is not None:
            return found
        with self._opening:
            with self._lock:
                self.check()
                found = self._partitions.get(partition)
                if found is not None:
                    return found
            asked_at = time.time()
            first, end = self._readers.watermarks(self.topic, partition)
            with self._lock:
                self.check()
                found = DocumentPartition(
                    self.topic, partition, self._file, asked_at, first, end, self._was_replaced
                )
                self._partitions[partition] = found
                found.flush()  # there may be nothing
            self._consumer.follow({partition: found.start})
        return found

    # -- what the consumer calls

    def fold(self, batch: KafkaBatch) -> None:
        """The next records of a partition."""
        found = self._partitions[batch.partition]
        found.fold(batch, time.time())
        self._exists_until = time.monotonic() + EXISTS_INTERVAL
        with self._lock:
            self.check()
            found.flush()
            self._changed.notify_all()

    def reach(self, partition: int, offset: int) -> None:
        """There is no record below this offset that was not handed over."""
        found = self._partitions.get(partition)
        if found is not None:
            with self._lock:
                self.check()
                found.reach(offset)
                found.flush()
                self._changed.notify_all()

    def next_offsets(self) -> Mapping[int, int]:
        """Where each partition goes on."""
        with self._lock:
            return {number: each.next_offset for number, each in self._partitions.items()}

    def tick(self) -> None:
        """See whether the topic is still there, whether partitions that have not been at their
        ends for a while get there, and whether somebody uses this at all."""
        has_answered = not self._ends.is_busy
        self._take_ends()
        is_quiet = time.monotonic() > self._exists_until
        if is_quiet:
            self._check_exists()
        if has_answered:
            self._ask_ends(everywhere=is_quiet)
        with self._lock:
            for each in self._partitions.values():
                if each.caught_up_at > each.state.caught_up_at + SAVE_INTERVAL:
                    each.save()
            idle = not self._writers and time.monotonic() > self._used_at + IDLE_TIMEOUT
        if idle and self.error is None:
            self._on_idle(self)

    def _ask_ends(self, *, everywhere: bool) -> None:
        """Ask where partitions end, in another thread: one whose broker is away holds up no other.

        :param everywhere: all of them, not only those that have not been at their ends for a while.
        """
        now = time.time()
        with self._lock:
            self._asked_at = now
            self._asked_offsets = {
                number: each.next_offset
                for number, each in self._partitions.items()
                if everywhere
                or (
                    each.goal is None
                    and (not each.is_ready or abs(now - each.caught_up_at) > CHECK_INTERVAL)
                )
            }
        self._ends.start([(self.topic, number) for number in self._asked_offsets])

    def _take_ends(self) -> None:
        """:raises HistoryGone: a partition ends before what was read of it."""
        for (_, number), end in self._ends.take_outcomes().items():
            if end is None:
                continue
            offset = self._asked_offsets[number]
            if end < offset:
                raise HistoryGone(
                    f"{self.topic}/{number} was read up to offset {offset} and ends at {end} now: "
                    "it was recreated, or has lost acknowledged records"
                )
            with self._lock:
                found = self._partitions[number]
                if found.goal is None:
                    found.goal = KnownEnd(self._asked_at, end)
                found.flush()
                self._changed.notify_all()

    def _check_exists(self) -> None:
        """The driver says nothing for up to a minute where a topic is deleted.

        :raises LogError: it is.
        """
        self._exists_until = time.monotonic() + EXISTS_INTERVAL
        try:
            self._readers.metadata.forget(self.topic)  # by now every broker knows a new one
            self._readers.metadata.read(self.topic)
        except Unavailable as error:
            logger.debug("%s", error)

    def fail(self, error: LogError) -> None:
        """Nothing will follow any more."""
        with self._lock:
            if self.error is None:
                if not isinstance(error, (IndexClosed, NotFound)):
                    logger.warning("documents %r: %s", self.collection, error)
                self.error = error
            self._changed.notify_all()

    def close(self) -> None:
        """Follow it no more. A file that stays is discarded if what it says is wrong."""
        self.fail(IndexClosed(f"Kafka: the documents {self.collection!r} are no longer followed"))
        self._consumer.close()
        self._ends.close()
        with self._lock:
            if isinstance(self.error, (IndexFileDamaged, HistoryGone, NotFound)):
                self._file.discard()
                return
            try:
                for each in self._partitions.values():
                    each.save()
            except IndexFileDamaged as error:
                logger.error("%s", error)
                self._file.discard()
            else:
                self._file.close()

    def discard(self) -> None:
        """Follow it no more: it is deleted."""
        self.fail(collection_not_found(self.collection))
        self.close()
