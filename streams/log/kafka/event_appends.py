"""Appends to histories: written without a condition, and judged when the index has passed them.

An append is written like any records, to the partition of its key, and counts or not when the index
has passed its last record: the writer waits for that, which costs no more than the confirmation of
its own write where nobody else writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from streams.errors import LogError, OutcomeUnknown, Unavailable
from streams.log.events import (
    Appended,
    AppendOutcome,
    EventAppend,
    Head,
    OnEventsAppended,
    Refused,
    judge,
)
from streams.log.kafka.cache_file import IndexFileDamaged
from streams.log.kafka.event_index import TopicIndex, WatchedAppend
from streams.log.kafka.event_indexes import EventIndexes
from streams.log.kafka.event_topics import EventTopics
from streams.log.kafka.partition_index import WrittenAppend
from streams.log.kafka.producer import Writer
from streams.log.names import partition_for
from streams.message import ID, Headers, Position, Record

MAX_CALLS = 2
"""Calls with appends that are on their way, before the next one waits for a moment."""

GATHER_TIMEOUT = 0.005
"""Seconds that a call waits for the ones before, at most: one whose broker does not answer holds up
nobody else."""

RESENDS = 3
"""How often an append is written again that was not whole in the log."""


class _AppendCall:
    """The appends of one call, until it is known what became of each."""

    def __init__(self, count: int, on_appended: OnEventsAppended) -> None:
        self._outcomes: list[Any] = [None] * count
        self._left = count
        self._settled = threading.Condition()
        self._on_appended = on_appended

    def settle(self, number: int, outcome: AppendOutcome) -> None:
        """Record the outcome of one append; the last one calls back."""
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


@dataclass(slots=True)
class _WrittenRecords:
    """The appends that were written to one partition, and the columns of their records."""

    appends: list[WrittenAppend] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)


class Sent(NamedTuple):
    """An append that is being written."""

    number: int
    """The index of the append in its call."""
    append: EventAppend
    partition: int
    attempt: int = 1


class Appends:
    """Appends to the event topics of one log. Usable from any thread.

    :param writer: what they are written by.
    """

    def __init__(
        self, kinds: EventTopics, indexes: EventIndexes, writer: Callable[[], Writer]
    ) -> None:
        self._kinds = kinds
        self._indexes = indexes
        self._writer = writer
        self._calls = 0
        """Calls of :meth:`append` that are not answered yet."""
        self._answered = threading.Condition()

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
                sent = [Sent(each, appends[each], partitions[each]) for each in chosen]
                self._indexes.using(topic, lambda index, sent=sent: self._append(index, sent, call))  # type: ignore[misc]
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

    def _append(self, index: TopicIndex, appends: Sequence[Sent], call: _AppendCall) -> None:
        """Write appends of different keys whose base is where their history ends, and judge the
        others."""
        unknown = {each.partition for each in appends} - index.partitions.keys()
        if unknown:
            index.wait(self._indexes.ends(index.topic, unknown))
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
        self, index: TopicIndex, appends: Sequence[Sent], call: _AppendCall
    ) -> Sequence[Sent]:
        """Tell what is refused, or stands there already, from the log's end; the others, whose base
        holds by now."""
        index.wait(self._indexes.ends(index.topic, {each.partition for each in appends}))
        holding = []
        for each in appends:
            append = each.append
            verdict = judge(append, self._indexes.history(index, each.partition, append.key))
            if verdict == "append":
                holding.append(each)
            elif isinstance(verdict, Refused):
                call.settle(each.number, verdict)
            else:
                call.settle(each.number, self._appended_before(index, each))
        return holding

    def _appended_before(self, index: TopicIndex, sent: Sent) -> AppendOutcome:
        append, partition = sent.append, sent.partition
        with index.lock:
            entry = index.partitions[partition].entry(append.key)
            if entry is None:  # it was there when the append was judged
                return LogError(f"{index.topic}: its index has failed")
            if append.is_refusal:
                found = (entry.refusals or {}).get(append.records[0].id)
                return Appended(partition, () if found is None else (found.offset,))
            start = append.base.version
            return Appended(partition, tuple(entry.offsets[start : start + len(append.records)]))

    def _write(
        self, index: TopicIndex, appends: Sequence[Sent], call: _AppendCall
    ) -> Sequence[Sent]:
        """Write appends whose base is where the index knows their history to end, all in one; each
        is told what the index says of it later. The others, which have to be judged: the history
        of one that is sent again may have gone on with its own first try."""
        holds = index.watch(
            WatchedAppend(each.partition, each.append, self._on_decided(index, each, call))
            for each in appends
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
            self._writer().append(index.topic, records, on_written)
        return others

    def _on_decided(
        self, index: TopicIndex, sent: Sent, call: _AppendCall
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

    def _write_again(self, index: TopicIndex, sent: Sent, call: _AppendCall) -> None:
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
        appends: Sequence[Sent],
        records: Sequence[Record],
        results: Sequence[Position | LogError],
        call: _AppendCall,
    ) -> None:
        written: dict[int, _WrittenRecords] = {}
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
            found = written.get(each.partition)
            if found is None:
                found = written[each.partition] = _WrittenRecords()
            for record, result in zip(own, ended, strict=True):
                if isinstance(result, Position):
                    found.offsets.append(result.offset)
                    found.keys.append(each.append.key)
                    id = record.id.encode("utf-8", "surrogateescape")
                    found.headers.append([(ID, id), *record.headers])
            append = WrittenAppend(own[0].id, each.append.key, found.offsets[-1])
            found.appends.append(append)
        for partition, found in written.items():
            index.written(partition, found.appends, found.offsets, found.keys, found.headers)
