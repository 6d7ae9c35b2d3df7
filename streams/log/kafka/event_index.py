"""The index of an event topic's histories, folded from the log and kept up to date.

Kafka has no way to ask for one key's messages, so whoever decides upon histories reads their whole
partitions once, from the start, and follows them from then on (:mod:`.partition_index` says what
it keeps of them). With ``?event_index=DIR`` what was folded is kept in a file there, and the next
start goes on where that ends; with ``?index_snapshots=N`` in a topic
(:mod:`streams.log.kafka.index_topic`).

A writer's own records need not be waited for: where they stand right behind what was folded, they
are folded as soon as the broker has confirmed them.

A topic that is deleted and made anew is another one, whose histories are none of the former's. That
is noticed within seconds; where nobody could look, as the process was frozen or cut off, before
anything is folded, read or appended (:mod:`.topic_identity`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.events import EventAppend
from streams.log.kafka.batch import KafkaBatch
from streams.log.kafka.index_consumer import HistoryGone, IndexConsumer, Patience
from streams.log.kafka.index_file import IndexFile
from streams.log.kafka.index_keepers import IndexKeepers
from streams.log.kafka.index_topic import IndexTopic
from streams.log.kafka.partition_index import (
    Decided,
    OnDecided,
    PartitionIndex,
    PartitionState,
    WrittenAppend,
    event_id,
)
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.topic_identity import TopicIdentity
from streams.message import Headers
from streams.text import get_logger

logger = get_logger("streams.kafka")

WAIT_TIMEOUT = 30.0
"""Seconds without progress in any of the partitions that somebody waits for, after which he is told
so."""

REPORT_INTERVAL = 5.0
"""Seconds between two lines about an index that is being built."""

VOID_AFTER = 3.0
"""Seconds after which an append whose rest does not come is declared void. Its writer has had the
records in its queue all at once."""

WriteVoid = Callable[[int, bytes, str], None]
"""Has a record written that declares an append void: its partition, key and ID."""


class WatchedAppend(NamedTuple):
    """An append that is about to be written, and who is told what becomes of it."""

    partition: int
    append: EventAppend
    on_decided: OnDecided


class _PendingAppend(NamedTuple):
    """An append that is not whole."""

    partition: int
    key: bytes
    append_id: str


class TopicIndex:
    """The index of one event topic, as far as its partitions are in use (any thread). One class,
    because opening, folding and waiting are steps of one state under one lock.

    ``lock`` guards the partitions and is held for a batch of records at most; whoever is to be told
    something is told after it was released.

    :param file: what is kept from one start to the next; the index closes it.
    :param snapshots: where snapshots of the index are read and written.
    :param identity: of the topic, from before anything was read of it.
    """

    def __init__(
        self,
        topic: str,
        readers: ReaderPool,
        write_void: WriteVoid | None = None,
        file: IndexFile | None = None,
        snapshots: IndexTopic | None = None,
        identity: TopicIdentity | None = None,
    ) -> None:
        self.topic = topic
        self.lock = threading.Lock()
        self.partitions: dict[int, PartitionIndex] = {}
        self.error: LogError | None = None
        """Why nothing is folded any more: another index has to be made."""
        self._readers = readers
        self._write_void = write_void
        self._file = file
        self._snapshots = snapshots
        self._identity = identity
        self._changed = threading.Condition(self.lock)
        self._opening = threading.Lock()
        """Held while partitions are opened."""
        self._to_open: set[int] = set()
        """Partitions that are opened in the background, by the thread below."""
        self._opener: threading.Thread | None = None
        self._not_opened: dict[int, LogError] = {}
        """Errors of the opener, by partition, until a caller is told of them."""
        self._consumer = IndexConsumer(topic, readers, self)
        self._closed = threading.Event()
        self._waiting_since: float | None = None
        self._reported_at = time.monotonic()
        self._has_reported = False
        """Foreign records."""
        self._pending_since: dict[_PendingAppend, float] = {}
        """Since when appends are known that are not whole."""
        self._keepers = IndexKeepers(self)
        if file is not None:
            self._keepers.keep_file(file)
        if snapshots is not None and snapshots.is_written:
            self._keepers.keep_snapshots(snapshots)

    # -- following partitions

    def use(self, partitions: Iterable[int]) -> None:
        """Begin to follow partitions, unless they are followed.

        :raises LogError: nothing is folded any more; or the log does not have what it had.
        """
        wanted = set(partitions)
        if wanted <= self.partitions.keys() and self.error is None:
            return
        with self.lock:
            self._check()
        with self._opening:
            for partition in sorted(wanted - self.partitions.keys()):
                index = self._open_partition(partition)
                with self.lock:
                    self._check()
                    self.partitions[partition] = index
                    self._not_opened.pop(partition, None)
                self._consumer.follow({partition: index.next_offset})
        with self.lock:
            self._check()

    def _check(self) -> None:
        if self.error is not None:
            raise type(self.error)(str(self.error)) from self.error
        if self._closed.is_set():
            raise Unavailable(f"{self.topic}: this log is closed")

    def _check_identity(self) -> None:
        """See that the topic is the one that the index is of (no lock is held).

        :raises HistoryGone: it is not, and nothing is folded any more.
        :raises Unavailable: the brokers do not answer.
        """
        if self._identity is not None:
            try:
                self._identity.check()
            except HistoryGone as error:
                self.fail(error)
                raise

    def _await_identity(self) -> None:
        """The same in the consumer's thread, which waits for the brokers: what it has polled does
        not come again."""
        while self._identity is not None:
            try:
                self._identity.check()
                return
            except Unavailable as error:
                logger.debug("%s", error)
                if self._closed.wait(1.0):
                    raise

    def _open_partition(self, partition: int) -> PartitionIndex:
        file = self._file
        if file is not None:
            rows = file.partition(partition)
            if rows.state.next_offset > 0 and not self._fits(partition, rows.state, "file"):
                file.forget_partition(partition)
                rows = file.partition(partition)
            return PartitionIndex(partition, rows)
        if self._snapshots is None:
            return PartitionIndex(partition)

        def fits(state: PartitionState) -> bool:
            return self._fits(partition, state, "snapshot")

        return PartitionIndex(partition, self._snapshots.load(partition, fits, self._is_over))

    def _is_over(self) -> bool:
        """Whether it is used no more."""
        return self._closed.is_set() or self.error is not None

    def _fits(self, partition: int, state: PartitionState, what: str) -> bool:
        """Whether the log still has the records that a stored index was folded from; logs if not.

        :param what: where the index is stored, for the log line.

        :raises HistoryGone: the first records of the partition were deleted.
        """
        place = f"{self.topic}/{partition}"
        first, end = self._readers.bounds(self.topic, partition)
        if first > 0:
            raise HistoryGone(
                f"{place} begins at offset {first}: its first records were deleted, so no history "
                "is whole (an event topic keeps its messages for ever: retention.ms=-1, "
                "retention.bytes=-1, cleanup.policy=delete)"
            )
        # The last record that counts, and the last one: what is between them may have been lost.
        known = {(state.last_offset, state.last_id), (state.folded_offset, state.folded_id)}
        found = end >= state.next_offset and all(
            self._id_at(partition, offset) == id for offset, id in known if offset >= 0
        )
        if not found:
            logger.error(
                "%s: HistoryTruncated: the index %s was folded up to offset %d, and the log, "
                "which ends at %d, no longer has those records: the topic was recreated, or has "
                "lost acknowledged records. The index is rebuilt from what is left",
                place, what, state.next_offset, end,
            )  # fmt: skip
        return found

    def _id_at(self, partition: int, offset: int) -> bytes | None:
        reader = self._readers.open_reader(
            self.topic, partition, offset, offset + 1, uncommitted=True
        )
        try:
            batch = reader.read(1)
        finally:
            reader.close()
        if batch is None:
            return None
        return event_id(batch.headers(0))

    # -- waiting

    def wait(self, ends: Mapping[int, int], *, until_decided: bool = False) -> None:
        """Wait until these partitions are folded up to these offsets.

        :param until_decided: also until it is known of each record below whether it counts.
        :raises Unavailable: there was no progress for :data:`WAIT_TIMEOUT` seconds.
        """
        self.use(ends)
        self._check_identity()
        with self._changed:
            patience = Patience(self.topic, WAIT_TIMEOUT)
            try:
                while behind := self._behind(ends, until_decided):
                    self._check()
                    if self._waiting_since is None:
                        self._waiting_since = time.monotonic()
                    self._changed.wait(min(patience.remaining(behind), 1.0))
            finally:
                self._waiting_since = None

    def _behind(self, ends: Mapping[int, int], until_decided: bool) -> Mapping[int, int]:
        """How far those partitions are that have not reached these ends."""
        reached = {each: self._reached(self.partitions[each], until_decided) for each in ends}
        return {each: offset for each, offset in reached.items() if offset < ends[each]}

    @staticmethod
    def _reached(index: PartitionIndex, until_decided: bool) -> int:
        return index.decided_until() if until_decided else index.next_offset

    def decided_until(self, partition: int) -> int:
        """How far it is known which records count. Does not wait for that, nor until what is kept
        of the partition was read.

        :raises LogError: nothing is folded any more.
        """
        if not self._use_soon(partition):
            return 0
        with self.lock:
            self._check()
            return self.partitions[partition].decided_until()

    def _use_soon(self, partition: int) -> bool:
        """Begin to follow a partition; whether it is followed. What is kept of it is read in the
        background.

        :raises LogError: nothing is folded any more; or what the background met.
        """
        if self._file is None and self._snapshots is None:
            self.use([partition])
            return True
        with self.lock:
            self._check()
            if partition in self.partitions:
                return True
            if (failed := self._not_opened.pop(partition, None)) is not None:
                raise failed
            self._to_open.add(partition)
            if self._opener is None:
                name = f"streams-{self.topic}-index-opening"
                opener = threading.Thread(target=self._open_wanted, name=name, daemon=True)
                opener.start()
                self._opener = opener
        return False

    def _open_wanted(self) -> None:
        """Open one partition after the other that is wanted soon."""
        while True:
            with self._changed:
                partition = min(self._to_open, default=None)
                if partition is None or self._is_over():
                    self._opener = None
                    return
            failed: LogError | None = None
            try:
                self.use([partition])
            except LogError as error:
                failed = error.with_traceback(None)  # whose frames would keep what was read
                failed.__cause__ = failed.__context__ = None
            except Exception as error:
                logger.exception("the index of %s/%d was not opened", self.topic, partition)
                failed = LogError(f"the index of {self.topic}/{partition}: {error!r}")
            with self._changed:
                self._to_open.discard(partition)
                if failed is not None:
                    self._not_opened[partition] = failed
                self._changed.notify_all()

    def passed(self) -> dict[int, int]:
        """How far each partition that is wanted was folded."""
        with self.lock:
            folded = {number: each.next_offset for number, each in self.partitions.items()}
            return {**dict.fromkeys(self._to_open, 0), **folded}

    def wait_until_decided(self, partition: int, offset: int, timeout: float) -> bool:
        """Wait until it is known of all records below an offset whether they count; whether it is.

        :raises LogError: nothing is folded any more.
        """
        self._use_soon(partition)
        with self._changed:

            def is_decided() -> bool:
                index = self.partitions.get(partition)
                return index is not None and index.decided_until() >= offset

            def is_over() -> bool:
                failed = self.error is not None or partition in self._not_opened
                return failed or is_decided() or self._closed.is_set()

            self._changed.wait_for(is_over, timeout)
            self._check()
            return is_decided()

    def uncounted_offsets(self, partition: int, first: int, end: int) -> list[int]:
        """Which records from ``first`` up to, not including, ``end`` do not count; waits until that
        is decided."""
        self.wait({partition: end}, until_decided=True)
        with self.lock:
            return self.partitions[partition].uncounted(first, end)

    def close(self) -> None:
        """Stop following; what is known goes to the file."""
        self._end(write=True)

    def _end(self, *, write: bool) -> None:
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        self._consumer.close()
        if self._identity is not None:
            self._identity.close()
        self._tell_nobody_knows(OutcomeUnknown(f"{self.topic}: this log is closed"))
        self._keepers.close(write=write)
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Stop following, and remove the file: what it says is wrong, or the topic is no more."""
        file, self._file = self._file, None
        self._end(write=False)
        if file is not None:
            file.discard()

    def set_aside(self, partition: int) -> None:
        """A partition's index is wrong: if it comes from a snapshot, never read that one again. (A
        file is removed once the index has failed.)"""
        if self._snapshots is not None:
            self._snapshots.distrust_used(partition)

    # -- appends

    def watch(self, appends: Iterable[WatchedAppend]) -> Sequence[bool]:
        """Tell somebody what becomes of appends that are about to be written: of those that
        continue their history as it is known. Which of them do; to know that and to watch is one
        step, as one that was sent before may be folded at any moment.

        :raises LogError: nothing is folded any more.
        """
        continuing = []
        self._check_identity()
        with self.lock:
            self._check()
            for each in appends:
                index, append = self.partitions[each.partition], each.append
                continuing.append(index.ends_at(append.key, append.base))
                if continuing[-1]:
                    index.watch(append.records[0].id, each.on_decided)
        return continuing

    def unwatch(self, partition: int, append_id: str) -> None:
        """Nobody waits for an append any more."""
        with self.lock:
            self.partitions[partition].unwatch(append_id)

    def written(
        self,
        partition: int,
        appends: Sequence[WrittenAppend],
        offsets: Sequence[int],
        keys: Sequence[bytes],
        headers: Sequence[Headers],
    ) -> None:
        """Take note of appends that were written, and fold their records at once where nothing
        stands between them and what was folded.

        :param offsets: of all their records, in order, with their keys and headers.
        """
        is_certain = self._identity is None or self._identity.is_certain
        with self._changed:
            index = self.partitions[partition]
            for append in appends:
                index.written(append)
            if is_certain and index.next_offset in offsets:
                start = offsets.index(index.next_offset)
                stop = start + 1
                while stop < len(offsets) and offsets[stop] == offsets[stop - 1] + 1:
                    stop += 1
                index.fold(offsets[start:stop], keys[start:stop], headers[start:stop])
            index.settle()
            decided = index.take_decided()
            self._changed.notify_all()
        _tell(decided)

    # -- what the consumer calls

    def fold(self, batch: KafkaBatch) -> None:
        """Fold the next records of a partition."""
        index = self.partitions[batch.partition]
        if batch.offsets[-1] < index.next_offset:  # our own, folded when they were confirmed
            return
        self._await_identity()
        headers = batch.all_headers()  # before the lock is taken, as the driver takes its time
        with self._changed:
            index.fold(batch.offsets, batch.keys, headers)
            decided = self._progressed(index)
        _tell(decided)

    def reach(self, partition: int, offset: int) -> None:
        """There is no record below this offset that was not folded."""
        if partition in self.partitions:
            with self._changed:
                index = self.partitions[partition]
                index.skip_to(offset)
                decided = self._progressed(index)
            _tell(decided)

    def _progressed(self, index: PartitionIndex) -> Sequence[Decided]:
        index.settle()
        self._changed.notify_all()
        return index.take_decided()

    def next_offsets(self) -> Mapping[int, int]:
        """Where each partition goes on."""
        with self.lock:
            return {number: each.next_offset for number, each in self.partitions.items()}

    def tick(self) -> None:
        """See to appends that are not whole, and say how far an index is that takes its time."""
        now = time.monotonic()
        if self._identity is not None:
            self._identity.tick()
        with self.lock:
            pending = {
                each: self._pending_since.get(each, now)
                for number, index in self.partitions.items()
                for each in (_PendingAppend(number, *found) for found in index.pending_appends())
            }
            self._pending_since = pending
            foreign = [each for each in self.partitions.values() if each.foreign_count]
            waiting = self._waiting_since
            folded = sum(each.next_offset for each in self.partitions.values())
        overdue = [append for append, since in pending.items() if now >= since + VOID_AFTER]
        for each in overdue:
            self._pending_since[each] = now  # again, if that gets lost
            if self._write_void is not None:
                self._write_void(*each)
        if foreign and not self._has_reported:
            self._has_reported = True
            logger.warning(
                "%s/%d: the record at offset %d is not an aggregate's event and is ignored, as are "
                "all such that follow: only the aggregate's decide() and append() should write "
                "there (an ACL keeps others out)",
                self.topic, foreign[0].partition, foreign[0].first_foreign,
            )  # fmt: skip
        if waiting is not None and now >= max(self._reported_at, waiting) + REPORT_INTERVAL:
            self._reported_at = now
            logger.info("the index of %s: %d records so far", self.topic, folded)

    def fail(self, error: LogError) -> None:
        """Nothing will be folded any more."""
        if isinstance(error, HistoryGone):
            logger.error("HistoryTruncated: %s", error)
        with self._changed:
            self.error = error
            self._changed.notify_all()
        self._tell_nobody_knows(OutcomeUnknown(f"written, but not read back: {error}"))

    def _tell_nobody_knows(self, error: LogError) -> None:
        decided: list[Decided] = []
        with self.lock:
            for index in self.partitions.values():
                index.fail(error)
                decided += index.take_decided()
        _tell(decided)


def _tell(decided: Sequence[Decided]) -> None:
    for on_decided, found in decided:
        on_decided(found)
