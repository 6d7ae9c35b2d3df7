"""Histories on Kafka: appends without a condition, and readers who decide whether they count.

See :mod:`streams.log.kafka.arbitration` for the rule. An append is written like any records, to the
partition of its key, and counts or not when the index has passed its last record: the writer waits
for that, which costs no more than the confirmation of its own write where nobody else writes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from streams.errors import LogError, NotFound, OutcomeUnknown, Unavailable
from streams.log.event_headers import VOID, event_header, parse_event
from streams.log.events import (
    NO_HISTORY,
    Appended,
    AppendOutcome,
    Base,
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
    events_only,
    has_base,
    judge,
)
from streams.log.kafka.client import RequestRetry
from streams.log.kafka.event_index import TopicIndex
from streams.log.kafka.event_topics import EventTopics, write_records
from streams.log.kafka.index_file import IndexFile, IndexFileDamaged, open_index_file
from streams.log.kafka.partition_index import PartitionIndex
from streams.log.kafka.producer import Writer
from streams.log.kafka.reader import KafkaReader, ReaderPool
from streams.log.kafka.snapshot_index import (
    FoundSnapshot,
    SnapshotIndex,
    newest,
    parse_snapshot,
    record_header,
    record_key,
    snapshot_topic,
)
from streams.log.kafka.topic_follower import HistoryGone
from streams.log.kafka.topics import Topics
from streams.log.names import partition_for
from streams.log.protocol import OnAppended, TopicInfo
from streams.log.record_fetcher import FetchedRow, RecordFetcher
from streams.message import ID, Headers, Position, Record, headers_without, identity_of
from streams.text import get_logger

logger = get_logger("streams.kafka")

T = TypeVar("T")

MAX_CALLS = 2
"""Calls with appends that are on their way, before the next one waits for a moment."""

GATHER_TIMEOUT = 0.005
"""Seconds that a call waits for the ones before, at most: one whose broker does not answer holds up
nobody else."""

RESENDS = 3
"""How often an append is written again that was not whole in the log."""

SNAPSHOT_TIMEOUT = 5.0
"""Seconds without progress after which histories are read without snapshots."""


class _KeyHistory:
    """What an append has to be judged by."""

    def __init__(self, events: Events, index: TopicIndex, partition: int, key: bytes) -> None:
        self._events = events
        self._index = index
        self._partition = partition
        self._key = key
        with index.lock:
            self.head = index.partitions[partition].head(key)

    def id_at(self, version: int) -> str | None:
        """The ID of the event of a version, read from the log."""
        with self._index.lock:
            entry = self._index.partitions[self._partition].entry(self._key)
            if entry is None or not 1 <= version <= len(entry.offsets):
                return None
            offset = entry.offsets[version - 1]
        if version == self.head.base.version and not _ends_with_refusal(entry):
            return self.head.base.last_id
        found = self._events.read_records(self._index.topic, self._partition, [offset])
        return found[offset].record.id

    def refusal_version(self, record_id: str) -> int | None:
        """The version at which a refusal stands."""
        with self._index.lock:
            entry = self._index.partitions[self._partition].entry(self._key)
        found = None if entry is None or entry.refusals is None else entry.refusals.get(record_id)
        return None if found is None else found[0]


def _ends_with_refusal(entry: Any) -> bool:
    return bool(entry.refusals)


class FoundRecord(NamedTuple):
    """A record of the log, and when the log took it."""

    record: Record
    time: float


class _Uncommitted:
    """Reads on past open transactions, and what they wrote."""

    def __init__(self, readers: ReaderPool) -> None:
        self._readers = readers

    def reader(self, topic: str, partition: int, start: int, end: int) -> KafkaReader:
        """A reader of a range."""
        return self._readers.open_reader(topic, partition, start, end, uncommitted=True)


def _found_record(row: FetchedRow) -> FoundRecord:
    id = (identity_of(row.headers) or "").partition("\0")[0]
    record = Record(row.value, row.key, id, headers_without(row.headers, (ID,)))
    return FoundRecord(record, row.time)


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


class _Sent(NamedTuple):
    """An append that is being written."""

    number: int
    """Of the append in its call."""
    append: EventAppend
    partition: int
    attempt: int = 1


class _Look(NamedTuple):
    """What the index says of a request.

    :param start: the base behind which events are read: what is known, or a snapshot's.
    :param offsets: of the events to be read.
    :param known_is_open: whether the history had what is known is still to be found out.
    """

    history: History
    start: Base
    offsets: Sequence[int]
    known_is_open: bool
    snapshot: FoundSnapshot | None


class Events:
    """The event topics of one log. Usable from any thread."""

    def __init__(
        self,
        topics: Topics,
        make_writer: Callable[[], Writer],
        readers: ReaderPool,
        requests: RequestRetry,
    ) -> None:
        self._topics = topics
        self._make_writer = make_writer
        self._made_writer: Writer | None = None
        self._readers = readers
        self._kinds = EventTopics(topics, self.writer, readers, requests)
        self._index_folder = requests.settings.event_index
        self._lock = threading.Lock()
        self._indexes: dict[str, TopicIndex] = {}
        self._snapshots: dict[str, SnapshotIndex] = {}
        self._fetchers: dict[tuple[str, int], RecordFetcher] = {}
        """By topic and partition."""
        self._opening = threading.Lock()
        """Held while an index is opened or replaced."""
        self._closed = False
        self._calls = 0
        """Calls of :meth:`append` that are not answered yet."""
        self._answered = threading.Condition()

    def writer(self) -> Writer:
        """What appends are written by; made when it is first needed.

        :raises LogError: the log is closed.
        """
        found = self._made_writer
        if found is None:
            with self._lock:
                if self._closed:
                    raise LogError("Kafka: this log is closed")
                found = self._made_writer
                if found is None:
                    found = self._made_writer = self._make_writer()
        return found

    # -- topics

    def create_topic(self, topic: str, partitions: int) -> TopicInfo:
        """See :meth:`streams.log.events.EventLog.create_event_topic`."""
        return self._kinds.create(topic, partitions)

    def refuses_records(self, topic: str, *, ask: bool = True) -> bool:
        """Whether a topic takes nothing but appends.

        :param ask: the brokers, if it is not known.
        """
        return self._kinds.refuses_records(topic, ask=ask)

    def is_marked(self, topic: str) -> bool:
        """Whether a topic was declared as an event topic, by whomever.

        :raises LogError: it cannot be known now.
        """
        return self._kinds.is_marked(topic)

    def is_event_topic(self, topic: str) -> bool:
        """Whether a topic holds histories.

        :raises LogError: it cannot be known now.
        """
        return self._kinds.is_event_topic(topic)

    def refuse_records(
        self, topic: str, records: Sequence[Record], on_appended: OnAppended
    ) -> None:
        """Tell somebody that an event topic takes nothing but appends."""
        on_appended([events_only(topic, "published to")] * len(records))

    def _index(self, topic: str) -> TopicIndex:
        """The index of a topic; a new one where the last one has failed.

        :raises LogError: the log is closed.
        """
        found = self._indexes.get(topic)
        if found is not None and found.error is None:
            return found
        with self._opening:
            with self._lock:
                if self._closed:
                    raise LogError("Kafka: this log is closed")
                found = self._indexes.get(topic)
            if found is not None:
                if found.error is None:
                    return found
                self._drop(topic, found)
            index = TopicIndex(topic, self._readers, self._void_writer(topic), self._file(topic))
            with self._lock:
                if not self._closed:
                    self._indexes[topic] = index
                    return index
            index.close()
            raise LogError("Kafka: this log is closed")

    def _file(self, topic: str) -> IndexFile | None:
        if not self._index_folder:
            return None
        identity = self._topics.topic_id(topic)
        count = self._kinds.declared_count(topic)
        return open_index_file(self._index_folder, topic, identity, count)

    def _drop(self, topic: str, index: TopicIndex) -> None:
        """Use an index no more that has failed."""
        with self._lock:
            if self._indexes.get(topic) is index:
                del self._indexes[topic]
        if isinstance(index.error, (IndexFileDamaged, HistoryGone)):
            index.discard()
        else:
            index.close()

    def _void_writer(self, topic: str) -> Callable[[int, bytes, str], None]:
        def write_void(partition: int, key: bytes, append_id: str) -> None:
            logger.info(
                "%s/%d: append %s was cut off after its first records: it is declared void",
                topic, partition, append_id,
            )  # fmt: skip
            name = append_id.encode("utf-8", "surrogateescape")
            record = Record(None, key, uuid4().hex, [(VOID, name)], partition)
            self.writer().append(topic, [record], report)

        def report(results: Sequence[Position | LogError]) -> None:
            for each in results:
                if isinstance(each, LogError):
                    logger.warning("%s: an append cannot be declared void: %s", topic, each)

        return write_void

    def _using_index(self, topic: str, use: Callable[[TopicIndex], T]) -> T:
        """What comes of using an index; if its file turns out to be damaged, that of a new one."""
        index = self._index(topic)
        try:
            return use(index)
        except IndexFileDamaged as error:
            logger.error("%s; the index is built anew", error)
            index.fail(error)
        return use(self._index(topic))

    def stop_following(self, topic: str) -> None:
        """See :meth:`streams.log.events.ArbitratingLog.stop_following`."""
        with self._lock:
            index = self._indexes.pop(topic, None)
            snapshots = self._snapshots.pop(topic, None)
        if index is not None:
            index.close()
        if snapshots is not None:
            snapshots.close()

    def forget(self, topic: str) -> None:
        """A topic is deleted."""
        with self._lock:
            index = self._indexes.pop(topic, None)
            snapshots = self._snapshots.pop(topic, None)
        self._kinds.forget(topic)
        if index is not None:
            index.discard()
        if snapshots is not None:
            snapshots.close()

    def delete_snapshot_topic(self, topic: str) -> None:
        """Delete the topic of an event topic's snapshots, if there is one."""
        try:
            self._topics.delete_topic(snapshot_topic(topic))
        except NotFound:
            pass

    def close(self) -> None:
        """Follow nothing any more."""
        with self._lock:
            self._closed = True
            indexes, self._indexes = list(self._indexes.values()), {}
            snapshots, self._snapshots = list(self._snapshots.values()), {}
        for index in indexes:
            index.close()
        for each in snapshots:
            each.close()
        if self._made_writer is not None:
            self._made_writer.close()

    # -- appending

    def append(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """See :meth:`streams.log.events.EventLog.append_events`."""
        if not appends:
            on_appended([])
            return
        call = _AppendCall(len(appends), self._counting(on_appended))
        try:
            count = self._kinds.writable_count(topic)
            partitions = [partition_for(append.key, "", count) for append in appends]
            pending: Sequence[int] = range(len(appends))
            while pending:
                # Appends of one key follow each other, so each is judged by what the one before
                # became.
                first = {appends[number].key: number for number in reversed(pending)}
                chosen = sorted(first.values())
                sent = [_Sent(each, appends[each], partitions[each]) for each in chosen]
                self._using_index(topic, lambda index, sent=sent: self._append(index, sent, call))  # type: ignore[misc]
                if len(chosen) == len(pending):
                    return
                done = set(chosen)
                pending = [number for number in pending if number not in done]
                call.wait(chosen)
        except LogError as error:
            for number in range(len(appends)):
                call.settle(number, error)

    def _counting(self, on_appended: OnEventsAppended) -> OnEventsAppended:
        """Wait for a moment while there are calls that are not answered, so that whoever gathers
        appends has more of them for the next; see that this one is counted until it is answered."""
        with self._answered:
            if self._calls >= MAX_CALLS:
                self._answered.wait_for(lambda: self._calls < MAX_CALLS, GATHER_TIMEOUT)
            self._calls += 1

        def on_all(outcomes: Sequence[AppendOutcome]) -> None:
            with self._answered:
                self._calls -= 1
                self._answered.notify()
            on_appended(outcomes)

        return on_all

    def _append(self, index: TopicIndex, appends: Sequence[_Sent], call: _AppendCall) -> None:
        """Write appends of different keys whose base is where their history ends, and judge the
        others."""
        unknown = {each.partition for each in appends} - index.partitions.keys()
        if unknown:
            index.wait(self._ends(index.topic, unknown))
        others = self._write(index, appends, call)
        try:
            while others:
                others = self._write(index, self._judge(index, others, call), call)
        except IndexFileDamaged:
            raise
        except LogError as error:  # of these: the others may have been written
            for each in others:
                call.settle(each.number, error)

    def _judge(
        self, index: TopicIndex, appends: Sequence[_Sent], call: _AppendCall
    ) -> Sequence[_Sent]:
        """Tell what is refused, or stands there already, from the log's end; the others, whose base
        holds by now."""
        index.wait(self._ends(index.topic, {each.partition for each in appends}))
        holding = []
        for each in appends:
            append = each.append
            verdict = judge(append, _KeyHistory(self, index, each.partition, append.key))
            if verdict == "append":
                holding.append(each)
            elif isinstance(verdict, Refused):
                call.settle(each.number, verdict)
            else:
                call.settle(each.number, self._appended_before(index, each))
        return holding

    def _appended_before(self, index: TopicIndex, sent: _Sent) -> AppendOutcome:
        append, partition = sent.append, sent.partition
        with index.lock:
            entry = index.partitions[partition].entry(append.key)
            if entry is None:  # it was there when the append was judged
                return LogError(f"{index.topic}: its index has failed")
            if append.is_refusal:
                found = (entry.refusals or {}).get(append.records[0].id)
                return Appended(partition, () if found is None else (found[1],))
            start = append.base.version
            return Appended(partition, tuple(entry.offsets[start : start + len(append.records)]))

    def _write(
        self, index: TopicIndex, appends: Sequence[_Sent], call: _AppendCall
    ) -> Sequence[_Sent]:
        """Write appends whose base is where the index knows their history to end, all in one; each
        is told what the index says of it later. The others, which have to be judged: the history
        of one that is sent again may have gone on with its own first try."""
        holds = index.watch(
            (each.partition, each.append, self._on_decided(index, each, call)) for each in appends
        )
        others = [each for each, is_held in zip(appends, holds, strict=True) if not is_held]
        written = [each for each, is_held in zip(appends, holds, strict=True) if is_held]
        records: list[Record] = []
        for each in written:
            for record in each.append.records:
                record.partition = each.partition
                records.append(record)

        def on_written(results: Sequence[Position | LogError]) -> None:
            try:
                self._note_written(index, written, records, results, call)
            except LogError as error:  # the index's file is damaged
                index.fail(error)

        if written:
            self.writer().append(index.topic, records, on_written)
        return others

    def _on_decided(
        self, index: TopicIndex, sent: _Sent, call: _AppendCall
    ) -> Callable[[Appended | Head | LogError], None]:
        def on_decided(found: Appended | Head | LogError) -> None:
            if not isinstance(found, Head):
                call.settle(sent.number, found)
            elif found.base == sent.append.base and not found.is_final:
                # It was not whole: somebody declared it void, or the log lost a part of it.
                if sent.attempt < RESENDS:
                    # Not in this thread: it may be the one that makes room in the producer's queue.
                    again = sent._replace(attempt=sent.attempt + 1)
                    threading.Thread(
                        target=self._write_again,
                        args=(index, again, call),
                        name=f"streams-{index.topic}-again",
                        daemon=True,
                    ).start()
                else:
                    error = f"{index.topic}: an append was written {RESENDS} times, never whole"
                    call.settle(sent.number, Unavailable(error))
            else:
                # Its base was the history's end when it was sent: somebody was faster.
                call.settle(sent.number, Refused("final" if found.is_final else "conflict", found))

        return on_decided

    def _write_again(self, index: TopicIndex, sent: _Sent, call: _AppendCall) -> None:
        """Write an append once more that was not whole in the log."""
        try:
            if self._write(index, [sent], call):
                error = f"{index.topic}: an append was written more than once"
                call.settle(sent.number, OutcomeUnknown(error))
        except LogError as error:
            call.settle(
                sent.number, OutcomeUnknown(f"{index.topic}: written in part; then: {error}")
            )

    def _note_written(
        self,
        index: TopicIndex,
        appends: Sequence[_Sent],
        records: Sequence[Record],
        results: Sequence[Position | LogError],
        call: _AppendCall,
    ) -> None:
        written: dict[int, tuple[list[Any], list[int], list[bytes], list[Headers]]] = {}
        start = 0
        for each in appends:
            stop = start + len(each.append.records)
            ended, own = results[start:stop], records[start:stop]
            start = stop
            errors = [result for result in ended if isinstance(result, LogError)]
            if errors:
                index.unwatch(each.partition, own[0].id)
                unknown = [error for error in errors if isinstance(error, OutcomeUnknown)]
                call.settle(each.number, (unknown or errors)[0])
                continue
            appended, offsets, keys, headers = written.setdefault(each.partition, ([], [], [], []))
            for record, result in zip(own, ended, strict=True):
                if isinstance(result, Position):
                    offsets.append(result.offset)
                    keys.append(each.append.key)
                    id = record.id.encode("utf-8", "surrogateescape")
                    headers.append([(ID, id), *record.headers])
            appended.append((own[0].id, each.append.key, offsets[-1]))
        for partition, (appended, offsets, keys, headers) in written.items():
            index.written(partition, appended, offsets, keys, headers)

    # -- reading

    def _ends(self, topic: str, partitions: Iterable[int]) -> dict[int, int]:
        """Where these partitions end now."""
        return self._readers.ends(topic, sorted(partitions))

    def read(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """See :meth:`streams.log.events.EventLog.read_histories`."""
        if not requests:
            return []
        count = self._kinds.declared_count(topic)
        return self._using_index(topic, lambda index: self._read(index, requests, count))

    def _read(
        self, index: TopicIndex, requests: Sequence[HistoryRequest], count: int
    ) -> list[History]:
        topic = index.topic
        partitions = [partition_for(request.key, "", count) for request in requests]
        snapshots = None
        if any(request.fingerprint for request in requests):
            snapshots = self._ready_snapshots(topic)
        index.wait(self._ends(topic, set(partitions)))
        with index.lock:
            looks = [
                self._look_up(index.partitions[partition], partition, request, snapshots)
                for request, partition in zip(requests, partitions, strict=True)
            ]
        offsets_by_partition: dict[int, list[int]] = {}
        for partition, look in zip(partitions, looks, strict=True):
            if look.offsets:
                offsets_by_partition.setdefault(partition, []).extend(look.offsets)
        records = {
            partition: self.read_records(topic, partition, wanted)
            for partition, wanted in offsets_by_partition.items()
        }
        data = self._read_snapshots(topic, requests, looks)
        found: list[History] = []
        for number, (request, look) in enumerate(zip(requests, looks, strict=True)):
            history = self._finish(
                index, request, look, records.get(look.history.partition, {}), data.get(number)
            )
            if history is None:  # its snapshot is of no use
                without = request._replace(fingerprint="")
                (history,) = self._read(index, [without], count)
            found.append(history)
        return found

    def _look_up(
        self,
        index: PartitionIndex,
        partition: int,
        request: HistoryRequest,
        snapshots: SnapshotIndex | None,
    ) -> _Look:
        """What the index says of a request (its lock is held)."""
        entry = index.entry(request.key)
        head = index.head(request.key)
        caused = index.cause(request.key, request.cause) if request.cause else None
        history = History(partition, (), head, caused)
        after = request.after
        known_is_open = after not in (head.base, NO_HISTORY)
        count = 0 if entry is None else len(entry.offsets)
        if known_is_open and (entry is None or after.version > count):
            return _Look(history._replace(is_truncated=True), after, (), False, None)
        start, snapshot = after, None
        if snapshots is not None and request.fingerprint:
            snapshot = snapshots.find(partition, (request.key, request.fingerprint))
            if snapshot is not None and after.version < snapshot.base.version <= count:
                start = snapshot.base
            else:
                snapshot = None
        stop = start.version + request.limit
        offsets = () if entry is None else tuple(entry.offsets[start.version : stop])
        return _Look(history, start, offsets, known_is_open, snapshot)

    def _finish(
        self,
        index: TopicIndex,
        request: HistoryRequest,
        look: _Look,
        records: dict[int, FoundRecord],
        snapshot: StoredSnapshot | None,
    ) -> History | None:
        """The answer to a request; None if its snapshot is not one of this history."""
        history, start = look.history, look.start
        if history.is_truncated:
            return history
        events = [
            StoredEvent(version, offset, records[offset].time, records[offset].record)
            for version, offset in enumerate(look.offsets, start.version + 1)
        ]
        for each in {0: events[:1], 1: events[-1:]}.values():
            if each:
                self._check_event(index, request.key, *each)
        if look.known_is_open and not self._has_base(index, history, request, events, start):
            return history._replace(is_truncated=True)
        if look.snapshot is None:
            return history._replace(events=events)
        if snapshot is None or not self._fits(index, history, snapshot, events):
            return None
        return history._replace(events=events, snapshot=snapshot)

    def _has_base(
        self,
        index: TopicIndex,
        history: History,
        request: HistoryRequest,
        events: Sequence[StoredEvent],
        start: Base,
    ) -> bool:
        """Whether the history has what the caller knows. The event behind it says so itself."""
        if start == request.after and events and _continues(events[0], start):
            return True
        key_history = _KeyHistory(self, index, history.partition, request.key)
        return has_base(key_history, request.after)

    def _fits(
        self,
        index: TopicIndex,
        history: History,
        snapshot: StoredSnapshot,
        events: Sequence[StoredEvent],
    ) -> bool:
        """Whether a snapshot was made of this history."""
        base = snapshot.base
        if base == history.head.base or (events and _continues(events[0], base)):
            return True
        return has_base(_KeyHistory(self, index, history.partition, snapshot.key), base)

    def _check_event(self, index: TopicIndex, key: bytes, event: StoredEvent) -> None:
        """See that the record which the index names is what it takes it for."""
        header = parse_event(event_header(event.record.headers), event.record.id)
        if (
            header is not None
            and event.record.key == key
            and header.base.version + header.record_index + 1 == event.version
        ):
            return
        error = f"{index.topic}: offset {event.offset} is not the event that its index says it is"
        raise IndexFileDamaged(error)

    def read_records(
        self, topic: str, partition: int, offsets: Sequence[int], *, may_lack: bool = False
    ) -> dict[int, FoundRecord]:
        """The records at some offsets.

        :param may_lack: leave those out that are not there.
        :raises LogError: one is not there.
        """
        wanted = sorted(set(offsets))
        fetcher = self._fetchers.get((topic, partition))
        if fetcher is None:
            fetcher = RecordFetcher(_Uncommitted(self._readers), topic, partition)
            self._fetchers[topic, partition] = fetcher
        rows, _ = fetcher.fetch(wanted, sys.maxsize)
        found = {offset: _found_record(row) for offset, row in rows.items() if row is not None}
        if len(found) < len(wanted) and not may_lack:
            missing = min(set(wanted) - found.keys())
            raise LogError(f"{topic}/{partition}: the event at offset {missing} is gone")
        return found

    # -- what counts, for readers

    def decided_until(self, topic: str, partition: int) -> int:
        """How far it is known which records of a partition count: of all below the offset that is
        returned, and of none beyond that can be relied on. Does not block; the first call begins
        to build the partition's index, from then on it is followed.

        :raises LogError: the index has failed and cannot be used.
        """
        return self._using_index(topic, lambda index: index.decided_until(partition))

    def wait_until_decided(self, topic: str, partition: int, offset: int, timeout: float) -> bool:
        """Wait until it is known of all records below an offset whether they count; whether it is.

        :raises LogError: the index has failed and cannot be used.
        """
        return self._using_index(
            topic, lambda index: index.wait_until_decided(partition, offset, timeout)
        )

    def uncounted_offsets(self, topic: str, partition: int, first: int, end: int) -> list[int]:
        """The offsets from ``first`` up to, not including, ``end`` whose records do not count:
        those of appends that lost or were never whole, refusals, and records that are no events.
        Sorted.

        A reader has its batch from the log as ever, and leaves these out::

            dropped = set(events.uncounted_offsets(topic, partition, offsets[0], offsets[-1] + 1))
            kept = [number for number, offset in enumerate(offsets) if offset not in dropped]

        Blocks until that is decided of each of them, which takes as long as building the index the
        first time (:meth:`index_progress` says how far that is). Where an append was cut off after
        its first records, its readers wait for a moment until it is known that it will not count.
        A caller that must not block asks :meth:`decided_until` before, and holds back the rest.

        :raises Unavailable: there was no progress for half a minute.
        """
        return self._using_index(
            topic, lambda index: index.uncounted_offsets(partition, first, end)
        )

    def index_progress(self, topic: str) -> tuple[int, int]:
        """How many records the indexes of the partitions in use have passed, and how many there
        are. Asks the brokers."""
        index = self._index(topic)
        with index.lock:
            passed = {number: each.next_offset for number, each in index.partitions.items()}
        ends = self._ends(topic, list(passed))
        return sum(min(passed[each], end) for each, end in ends.items()), sum(ends.values())

    def uncounted_records(self, topic: str) -> int:
        """See :meth:`streams.log.events.ArbitratingLog.uncounted_records`."""
        with self._lock:
            index = self._indexes.get(topic)
        if index is None:
            return 0
        with index.lock:
            return sum(each.uncounted_count for each in index.partitions.values())

    # -- snapshots

    def _snapshot_index(self, topic: str) -> SnapshotIndex:
        """The index of a topic's snapshots; a new one where the last one has failed.

        :raises NotFound: there is no topic for them.
        """
        found = self._snapshots.get(topic)
        if found is not None and found.error is None:
            return found
        snapshots = snapshot_topic(topic)
        count = len(self._readers.metadata.read(snapshots, remember=True).partitions)
        with self._lock:
            if self._closed:
                raise LogError("Kafka: this log is closed")
            found = self._snapshots.get(topic)
            if found is None or found.error is not None:
                if found is not None:
                    found.close()
                found = self._snapshots[topic] = SnapshotIndex(snapshots, self._readers, count)
        return found

    def _current_snapshots(self, topic: str, timeout: float = 30.0) -> SnapshotIndex:
        """The index of a topic's snapshots, read up to their end as it is now."""
        index = self._snapshot_index(topic)
        index.wait(self._ends(index.topic, index.next_offsets()), timeout)
        return index

    def _ready_snapshots(self, topic: str) -> SnapshotIndex | None:
        """The index of a topic's snapshots, if it was read up to their end once; None if that
        cannot be: they are only a cache."""
        try:
            index = self._snapshot_index(topic)
            if not index.is_ready:
                if time.monotonic() < index.patient_after:
                    return None
                index.patient_after = time.monotonic() + SNAPSHOT_TIMEOUT
                index.wait(self._ends(index.topic, index.next_offsets()), SNAPSHOT_TIMEOUT)
                index.is_ready = True
        except LogError as error:
            logger.debug("%s: read without snapshots: %s", topic, error)
            return None
        return index

    def _read_snapshots(
        self, topic: str, requests: Sequence[HistoryRequest], looks: Sequence[_Look]
    ) -> dict[int, StoredSnapshot]:
        """The snapshots that were found, by the number of their request."""
        wanted: dict[int, list[int]] = {}
        for number, look in enumerate(looks):
            if look.snapshot is not None:
                wanted.setdefault(look.history.partition, []).append(number)
        found: dict[int, StoredSnapshot] = {}
        for partition, numbers in wanted.items():
            offsets = [snapshot.at for each in numbers if (snapshot := looks[each].snapshot)]
            try:
                records = self.read_records(
                    snapshot_topic(topic), partition, offsets, may_lack=True
                )
            except LogError as error:
                logger.debug("%s: read without snapshots: %s", topic, error)
                continue
            for number in numbers:
                snapshot, request = looks[number].snapshot, requests[number]
                if snapshot is None or snapshot.at not in records:
                    continue
                record = records[snapshot.at].record
                if (
                    record.key == record_key(request.key, request.fingerprint)
                    and parse_snapshot(record.headers, snapshot.at) == snapshot
                    and record.value is not None
                ):
                    found[number] = StoredSnapshot(
                        request.key,
                        request.fingerprint,
                        snapshot.base,
                        snapshot.offset,
                        record.value,
                    )
        return found

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """See :meth:`streams.log.events.EventLog.write_snapshots`."""
        if not snapshots:
            return
        count = self._kinds.writable_count(topic)
        found = newest(snapshots)
        partitions = {name: partition_for(name[0], "", count) for name in found}

        def chosen(index: TopicIndex) -> list[StoredSnapshot]:
            index.wait(self._ends(topic, set(partitions.values())))
            return [
                snapshot
                for name, snapshot in found.items()
                if self._is_of_history(index, partitions[name], snapshot)
            ]

        def is_newer(snapshot: StoredSnapshot, index: TopicIndex) -> bool:
            partition = partitions[snapshot.key, snapshot.fingerprint]
            kept = kept_index.find(partition, (snapshot.key, snapshot.fingerprint))
            return (
                kept is None
                or kept.base.version <= snapshot.base.version
                or not has_base(_KeyHistory(self, index, partition, snapshot.key), kept.base)
            )

        kept_index = self._current_snapshots(topic)
        records = [
            Record(
                snapshot.data,
                record_key(snapshot.key, snapshot.fingerprint),
                uuid4().hex,
                [record_header(snapshot)],
                partitions[snapshot.key, snapshot.fingerprint],
            )
            for snapshot in self._using_index(
                topic, lambda index: [each for each in chosen(index) if is_newer(each, index)]
            )
        ]
        self._write_snapshot_records(topic, records)

    def _is_of_history(self, index: TopicIndex, partition: int, snapshot: StoredSnapshot) -> bool:
        history = _KeyHistory(self, index, partition, snapshot.key)
        return snapshot.base != NO_HISTORY and has_base(history, snapshot.base)

    def _write_snapshot_records(self, topic: str, records: Sequence[Record]) -> None:
        """Write them, and wait until they are found."""
        if not records:
            return
        positions = write_records(self.writer(), snapshot_topic(topic), records)
        ends: dict[int, int] = {}
        for each in positions:
            ends[each.partition] = max(ends.get(each.partition, 0), each.offset + 1)
        self._snapshot_index(topic).wait(ends, 30.0)

    def delete_snapshots(self, topic: str, fingerprint: str | None) -> int:
        """See :meth:`streams.log.events.EventLog.delete_snapshots`."""
        self._kinds.declared_count(topic)
        names = self._current_snapshots(topic).names(fingerprint)
        records = [
            Record(None, record_key(*name), uuid4().hex, (), partition) for partition, name in names
        ]
        self._write_snapshot_records(topic, records)
        return len(records)

    # -- lists

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """See :meth:`streams.log.events.EventLog.list_snapshots`."""
        self._kinds.declared_count(topic)
        try:
            names = self._current_snapshots(topic).names(None)
        except NotFound:
            return []
        kinds = sorted(fingerprint for _, (name, fingerprint) in names if name == key)
        requests = [HistoryRequest(key, limit=1, fingerprint=kind) for kind in kinds]
        found = self.read(topic, requests) if requests else []
        return [each.snapshot for each in found if each.snapshot is not None]

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        """See :meth:`streams.log.events.EventLog.list_keys`."""
        count = self._kinds.declared_count(topic)
        if not 0 <= partition < count:
            raise NotFound(f"topic {topic!r} has {count} partitions, none is {partition}")

        def use(index: TopicIndex) -> list[HistoryKey]:
            index.wait(self._ends(topic, [partition]))
            with index.lock:
                found = index.partitions[partition].list_keys(after, limit)
            return [HistoryKey(*each) for each in found]

        return self._using_index(topic, use)

    def totals(self, topic: str) -> EventTotals:
        """See :meth:`streams.log.events.EventLog.event_totals`."""
        count = self._kinds.declared_count(topic)
        try:
            snapshots = dict(self._current_snapshots(topic).counts())
        except NotFound:
            snapshots = {}

        def use(index: TopicIndex) -> EventTotals:
            index.wait(self._ends(topic, range(count)))
            with index.lock:
                found = list(index.partitions.values())
                return EventTotals(
                    sum(each.key_count for each in found),
                    sum(each.event_count for each in found),
                    sum(each.cause_count for each in found),
                    sum(each.cause_bytes for each in found),
                    snapshots,
                )

        return self._using_index(topic, use)


def _continues(event: StoredEvent, base: Base) -> bool:
    """Whether this event's append was made upon ``base``."""
    header = parse_event(event_header(event.record.headers), event.record.id)
    return header is not None and header.record_index == 0 and header.base == base
