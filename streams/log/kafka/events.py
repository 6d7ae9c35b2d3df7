"""Histories on Kafka: appends without a condition, and readers who decide whether they count.

See :mod:`streams.log.kafka.arbitration` for the rule. An append is written like any records, to the
partition of its key, and counts or not when the index has passed its last record: the writer waits
for that, which costs no more than the confirmation of its own write where nobody else writes.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

from streams.errors import EventTopicError, InvalidValue, LogError, NotFound, OutcomeUnknown
from streams.log.event_headers import EVENT
from streams.log.events import (
    EMPTY,
    Appended,
    AppendOutcome,
    EventAppend,
    EventTotals,
    Head,
    History,
    HistoryKey,
    HistoryRequest,
    OnEventsAppended,
    Refused,
    StoredEvent,
    StoredSnapshot,
    has_base,
    judge,
    not_an_event_topic,
    partition_count_mismatch,
)
from streams.log.kafka.arbitration import Counted
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.producer import Writer
from streams.log.kafka.reader import ReaderPool
from streams.log.kafka.topics import Topics
from streams.log.names import partition_for
from streams.log.protocol import Retention, TopicInfo
from streams.message import ID, Position, Record

MAX_GAP = 500
"""Records that are not wanted and are read all the same, between two that are."""

EVENT_TOPIC_CONFIG = {
    "cleanup.policy": "delete",
    "retention.ms": "-1",
    "retention.bytes": "-1",
}


class _KeyHistory:
    """What an append has to be judged by."""

    def __init__(self, events: Events, index: TopicIndex, partition: int, key: bytes) -> None:
        self._events = events
        self._index = index
        self._partition = partition
        self._key = key
        with index.lock:
            self.head = index.head(partition, key)

    def id_at(self, version: int) -> str | None:
        """The ID of the event of a version, read from the log."""
        with self._index.lock:
            offset = self._index.offset_at(self._partition, self._key, version)
        if offset is None:
            return None
        found = self._events.read_records(self._index.topic, self._partition, [offset])
        return found[offset].record.id

    def refusal_version(self, record_id: str) -> int | None:
        """The version at which a refusal stands."""
        with self._index.lock:
            found = self._index.refusal(self._partition, self._key, record_id)
        return None if found is None else found[0]


class FoundRecord(NamedTuple):
    """A record of the log, and when the log took it."""

    record: Record
    time: float


class _AppendCall:
    """The appends of one call, until it is known what became of each."""

    def __init__(self, count: int, on_appended: OnEventsAppended) -> None:
        self._outcomes: list[Any] = [None] * count
        self._left = count
        self._settled = threading.Condition()
        self._on_appended = on_appended

    def settle(self, number: int, outcome: AppendOutcome) -> None:
        """What became of one; the last one calls back."""
        with self._settled:
            if self._outcomes[number] is not None:
                return
            self._outcomes[number] = outcome
            self._left -= 1
            is_last = self._left == 0
            self._settled.notify_all()
        if is_last:
            self._on_appended(self._outcomes)

    def wait(self, numbers: Sequence[int]) -> None:
        """Wait until it is known what became of these."""
        with self._settled:
            self._settled.wait_for(
                lambda: all(self._outcomes[each] is not None for each in numbers)
            )


class Events:
    """The event topics of one log. Usable from any thread."""

    def __init__(self, topics: Topics, writer: Writer, readers: ReaderPool) -> None:
        self._topics = topics
        self._writer = writer
        self._readers = readers
        self._metadata = readers.metadata
        self._lock = threading.Lock()
        self._indexes: dict[str, TopicIndex] = {}
        self._partitions: dict[str, int] = {}
        """Partitions that each topic was declared with."""
        self._closed = False

    def create_topic(self, topic: str, partitions: int) -> TopicInfo:
        """See :meth:`streams.log.events.EventLog.create_event_topic`."""
        try:
            info = self._topics.describe_topic(topic)
        except NotFound:
            info = self._topics.create_topic(topic, partitions, Retention(), EVENT_TOPIC_CONFIG)
        if info.partitions != partitions:
            raise partition_count_mismatch(topic, info.partitions, partitions)
        if info.retention_known and info.retention != Retention():
            raise EventTopicError(
                f"topic {topic!r} deletes or compacts its messages: set retention.ms=-1, "
                "retention.bytes=-1 and cleanup.policy=delete, so that histories stay whole"
            )
        self._check_first_records(topic, partitions)
        self._partitions[topic] = partitions
        return info._replace(is_event_topic=True)

    def _check_first_records(self, topic: str, partitions: int) -> None:
        """See that what stands in a topic are events, as far as its first records say."""
        for partition in range(partitions):
            first, end = self._readers.watermarks(topic, partition)
            if first < end:
                reader = self._readers.open_reader(topic, partition, first, end)
                try:
                    batch = reader.read(1)
                finally:
                    reader.close()
                if batch is not None and not any(name == EVENT for name, _ in batch.headers(0)):
                    raise not_an_event_topic(topic)
                return

    def _partition_count(self, topic: str) -> int:
        declared = self._partitions.get(topic)
        found = self._metadata.partition_count(topic)
        if declared is None:
            declared = self._partitions[topic] = found
        if found != declared:
            raise partition_count_mismatch(topic, found, declared)
        return declared

    def _index(self, topic: str) -> TopicIndex:
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            found = self._indexes.get(topic)
            if found is None:
                found = self._indexes[topic] = TopicIndex(topic, self._readers)
            return found

    def forget(self, topic: str) -> None:
        """A topic is deleted."""
        with self._lock:
            index = self._indexes.pop(topic, None)
            self._partitions.pop(topic, None)
        if index is not None:
            index.close()

    def close(self) -> None:
        """Follow nothing any more."""
        with self._lock:
            self._closed = True
            indexes, self._indexes = list(self._indexes.values()), {}
        for index in indexes:
            index.close()

    # -- appending

    def append(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """See :meth:`streams.log.events.EventLog.append_events`."""
        call = _AppendCall(len(appends), on_appended)
        try:
            self._append(topic, appends, call)
        except LogError as error:
            for number in range(len(appends)):
                call.settle(number, error)

    def _append(self, topic: str, appends: Sequence[EventAppend], call: _AppendCall) -> None:
        count = self._partition_count(topic)
        partitions = [partition_for(append.key, "", count) for append in appends]
        index = self._index(topic)
        with index.lock:
            unknown = [each for each in set(partitions) if each not in index.partitions]
        if unknown:
            index.wait(self._ends(topic, unknown))
        pending: Sequence[int] = range(len(appends))
        while pending:
            # Appends of one key follow each other, so each is judged by what the one before became.
            first = {appends[number].key: number for number in reversed(pending)}
            chosen = sorted(first.values())
            for number in chosen:
                try:
                    self._append_one(index, partitions[number], appends[number], call, number)
                except LogError as error:  # of this one: others may have been written
                    call.settle(number, error)
            pending = [number for number in pending if number not in set(chosen)]
            if pending:
                call.wait(chosen)

    def _append_one(
        self,
        index: TopicIndex,
        partition: int,
        append: EventAppend,
        call: _AppendCall,
        number: int,
    ) -> None:
        is_settled = False
        while not is_settled:
            verdict = judge(append, _KeyHistory(self, index, partition, append.key))
            is_settled = True
            if isinstance(verdict, Refused):
                call.settle(number, verdict)
            elif verdict == "appended":
                call.settle(number, self._appended_before(index, partition, append))
            else:
                is_settled = self._write(index, partition, append, call, number)

    def _appended_before(
        self, index: TopicIndex, partition: int, append: EventAppend
    ) -> AppendOutcome:
        with index.lock:
            if append.is_refusal:
                found = index.refusal(partition, append.key, append.records[0].id)
                return Appended(partition, () if found is None else (found[1],))
            start = append.base.version
            offsets = index.partitions[partition].keys[append.key].offsets
            return Appended(partition, tuple(offsets[start : start + len(append.records)]))

    def _write(
        self,
        index: TopicIndex,
        partition: int,
        append: EventAppend,
        call: _AppendCall,
        number: int,
    ) -> bool:
        """Write an append, unless the history has gone on since it was judged: then False.

        What it has gone on with may be this very append, which was sent before.
        """
        append_id = append.records[0].id

        def on_decided(found: Counted | Head | LogError) -> None:
            if isinstance(found, Counted):
                call.settle(number, Appended(partition, found.offsets))
            elif isinstance(found, Head):
                # Its base was the history's end when it was sent: somebody was faster.
                call.settle(number, Refused("final" if found.is_final else "conflict", found))
            else:
                call.settle(number, found)

        def on_written(results: Sequence[Position | LogError]) -> None:
            errors = [each for each in results if isinstance(each, LogError)]
            if errors:
                index.unwatch(partition, append_id)
                unknown = [each for each in errors if isinstance(each, OutcomeUnknown)]
                call.settle(number, (unknown or errors)[0])
                return
            offsets = [each.offset for each in results if isinstance(each, Position)]
            index.written(
                partition,
                [
                    (offset, append.key, record.id, record.headers)
                    for offset, record in zip(offsets, append.records, strict=True)
                ],
            )

        index.watch(partition, append_id, on_decided)
        with index.lock:
            has_gone_on = index.head(partition, append.key).base != append.base
        if has_gone_on:
            index.unwatch(partition, append_id)
            return False
        records = [
            Record(record.value, append.key, record.id, record.headers, partition)
            for record in append.records
        ]
        self._writer.append(index.topic, records, on_written)
        return True

    # -- reading

    def _ends(self, topic: str, partitions: Sequence[int]) -> dict[int, int]:
        """Where these partitions end now."""
        return {each: self._readers.watermarks(topic, each)[1] for each in partitions}

    def _current(self, topic: str, partitions: Sequence[int]) -> TopicIndex:
        """The index, folded up to the log's end as it is now."""
        index = self._index(topic)
        index.wait(self._ends(topic, sorted(set(partitions))))
        return index

    def read(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """See :meth:`streams.log.events.EventLog.read_histories`."""
        if any(request.limit < 1 for request in requests):
            raise InvalidValue("limit=: at least 1")
        count = self._partition_count(topic)
        partitions = [partition_for(request.key, "", count) for request in requests]
        index = self._current(topic, partitions)
        found: list[History] = []
        offsets_by_partition: dict[int, list[int]] = {}
        offsets: list[Sequence[int]] = []
        for request, partition in zip(requests, partitions, strict=True):
            history, wanted = self._look_up(index, partition, request)
            found.append(history)
            offsets.append(wanted)
            offsets_by_partition.setdefault(partition, []).extend(wanted)
        records = {
            partition: self.read_records(topic, partition, wanted)
            for partition, wanted in offsets_by_partition.items()
        }
        for number, (history, wanted) in enumerate(zip(found, offsets, strict=True)):
            if wanted:
                start = requests[number].after.version
                events = [
                    StoredEvent(version, offset, *_time_and_record(records, history, offset))
                    for version, offset in enumerate(wanted, start + 1)
                ]
                found[number] = history._replace(events=events)
        return found

    def _look_up(
        self, index: TopicIndex, partition: int, request: HistoryRequest
    ) -> tuple[History, Sequence[int]]:
        """An answer without its events, and where these stand."""
        history = _KeyHistory(self, index, partition, request.key)
        head = history.head
        caused = None
        if request.cause:
            with index.lock:
                causes = index.partitions[partition].causes
                caused = causes.get((request.key, request.cause))
        if request.after != head.base and not has_base(history, request.after):
            return History(partition, (), head, caused, is_truncated=True), ()
        start = request.after.version
        with index.lock:
            found = index.partitions[partition].keys.get(request.key)
            stop = min(head.base.version, start + request.limit)
            wanted = () if found is None else tuple(found.offsets[start:stop])
        return History(partition, (), head, caused), wanted

    def read_records(
        self, topic: str, partition: int, offsets: Sequence[int]
    ) -> dict[int, FoundRecord]:
        """The records at some offsets.

        :raises LogError: one is not there.
        """
        found: dict[int, FoundRecord] = {}
        wanted = sorted(set(offsets))
        first = 0
        while first < len(wanted):
            last = first
            while last + 1 < len(wanted) and wanted[last + 1] - wanted[last] <= MAX_GAP:
                last += 1
            self._read_range(topic, partition, wanted[first : last + 1], found)
            first = last + 1
        return found

    def _read_range(
        self, topic: str, partition: int, offsets: Sequence[int], found: dict[int, FoundRecord]
    ) -> None:
        wanted = set(offsets)
        reader = self._readers.open_reader(topic, partition, offsets[0], offsets[-1] + 1)
        try:
            while (batch := reader.read(1_000)) is not None:
                for number, offset in enumerate(batch.offsets):
                    if offset in wanted:
                        headers = [pair for pair in batch.headers(number) if pair[0] != ID]
                        record = Record(
                            batch.values[number], batch.keys[number], batch.id(number), headers
                        )
                        found[offset] = FoundRecord(record, batch.time(number))
        finally:
            reader.close()
        if not wanted <= found.keys():
            missing = min(wanted - found.keys())
            raise LogError(f"{topic}/{partition}: the event at offset {missing} is gone")

    def uncounted_records(self, topic: str) -> int:
        """See :meth:`streams.log.events.ArbitratingLog.uncounted_records`."""
        with self._lock:
            index = self._indexes.get(topic)
        if index is None:
            return 0
        with index.lock:
            return sum(len(each.uncounted) for each in index.partitions.values())

    # -- snapshots and lists

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """Snapshots are not kept on Kafka yet."""
        raise NotImplementedError

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """See :meth:`streams.log.events.EventLog.list_snapshots`."""
        kinds = sorted(self.totals(topic).snapshots)
        requests = [HistoryRequest(key, limit=1, fingerprint=kind) for kind in kinds]
        found = self.read(topic, requests) if requests else []
        return [each.snapshot for each in found if each.snapshot is not None]

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        """See :meth:`streams.log.events.EventLog.list_keys`."""
        count = self._partition_count(topic)
        if not 0 <= partition < count:
            raise NotFound(f"topic {topic!r} has {count} partitions, none is {partition}")
        index = self._current(topic, [partition])
        with index.lock:
            found = index.partitions[partition]
            if len(found.sorted_keys) != len(found.keys):  # none ever goes
                found.sorted_keys = sorted(found.keys)
            start = 0 if after is None else bisect_right(found.sorted_keys, after)
            heads = found.arbiter.heads
            return [
                HistoryKey(key, heads.get(key, EMPTY))
                for key in found.sorted_keys[start : start + limit]
            ]

    def totals(self, topic: str) -> EventTotals:
        """See :meth:`streams.log.events.EventLog.event_totals`."""
        count = self._partition_count(topic)
        index = self._current(topic, range(count))
        with index.lock:
            partitions = list(index.partitions.values())
            causes = [cause for each in partitions for _, cause in each.causes]
            return EventTotals(
                sum(len(each.keys) for each in partitions),
                sum(each.event_count for each in partitions),
                len(causes),
                sum(len(cause) + 200 for cause in causes),
            )


def _time_and_record(
    records: dict[int, dict[int, FoundRecord]], history: History, offset: int
) -> tuple[float, Record]:
    record, moment = records[history.partition][offset]
    return moment, record
