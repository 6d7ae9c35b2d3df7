"""The histories of one event topic, for coroutines.

Concurrent reads share a call of the log, and so do appends. On Kafka and on a Redis Cluster one
partition can be unreachable while the others are not, as each has its own server, and a call that
includes it takes seconds to fail. So an unreachable partition is set *apart* until it answers
again: its requests go in separate calls, and hold up no other partition.

* If a read of several partitions fails, each of them is read by itself.
* A shared append is sent once. An append to a partition that did not answer is sent again in a
  separate call for that partition, which may take long. (Not on Kafka: there a call does not wait
  for its answers, so the next one goes at once.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic

from streams.cancellation import run_in_thread
from streams.errors import LogError, NotRunning, OutcomeUnknown, Unavailable
from streams.eventsourcing.batching import MAX_REQUESTS, A, Answers, Call, Q, RequestBatcher
from streams.log.events import (
    Appended,
    AppendOutcome,
    ArbitratingLog,
    EventAppend,
    EventLog,
    History,
    HistoryRequest,
    Refused,
    RetryingLog,
    StoredSnapshot,
    read_each,
)
from streams.log.names import partition_for

MAX_READS = 100
"""Histories that one call of the log reads, at most: each may return a page of events, and all of
them are in memory at once."""


class _SomePartitionUnavailable(Unavailable):
    """One of several requested partitions cannot be reached, and it is not known which."""


class _PartitionCalls(Generic[Q, A]):
    """Sends requests to partitions, in separate calls for each partition. A partition has a thread
    while it has requests.

    :param kind: the role of the threads, used in their names.
    :param apart: the partitions that were unreachable in their last call; kept up to date.
    """

    def __init__(
        self,
        topic: str,
        kind: str,
        call: Call[Q, A],
        apart: set[int],
        *,
        max_requests: int = MAX_REQUESTS,
    ) -> None:
        self._topic = topic
        self._kind = kind
        self._call = call
        self._apart = apart
        self._max_requests = max_requests
        self._batchers: dict[int, RequestBatcher[Q, A]] = {}
        self._closed = False

    async def send(self, partition: int, request: Q) -> A:
        """The answer to a request.

        :raises NotRunning: the calls are closed.
        :raises LogError: there is no answer.
        """
        batcher = self._batchers.get(partition)
        if batcher is None:
            if self._closed:
                raise NotRunning(f"{self._topic}: the app is closing or closed")
            batcher = self._batchers[partition] = RequestBatcher(
                f"streams-{self._topic}-{partition}-{self._kind}",
                self._call,
                max_requests=self._max_requests,
                keeps_thread=False,
            )
        try:
            found = await batcher.send(request)
        except (Unavailable, OutcomeUnknown):
            self._apart.add(partition)
            raise
        self._apart.discard(partition)
        return found

    async def close(self) -> None:
        """Finish what was asked for."""
        self._closed = True
        for batcher in self._batchers.values():
            await run_in_thread(batcher.close)


class HistoryClient:
    """Reads and appends of one event topic. Concurrent callers share calls of the log.

    :param partitions: how many the topic has.
    """

    def __init__(self, log: EventLog, topic: str, partitions: int) -> None:
        self._log = log
        self._topic = topic
        self._partitions = partitions if log.fails_by_partition else 1
        """How many partitions can be unreachable independently; 1: only all of them together."""
        self._apart: set[int] = set()
        """The partitions that were unreachable in their last call."""
        self.never_blocks = log.never_blocks
        """The log never blocks, so its calls are made directly on the loop."""
        self._reads: RequestBatcher[HistoryRequest, History] = RequestBatcher(
            f"streams-{topic}-reader", self._read_histories, max_requests=MAX_READS
        )
        self._own_reads: _PartitionCalls[HistoryRequest, History] = _PartitionCalls(
            topic, "reader", self._read_histories, self._apart, max_requests=MAX_READS
        )
        append = self._append_batch
        self._appends_once = False
        """Shared appends are sent once, as sending one again would hold up the others."""
        if log.fails_by_partition and isinstance(log, RetryingLog):
            self._appends_once = True
            append = partial(log.append_events_once, topic)
        self._appends: RequestBatcher[EventAppend, Appended | Refused] = RequestBatcher(
            f"streams-{topic}-writer", append
        )
        self._own_appends: _PartitionCalls[EventAppend, Appended | Refused] = _PartitionCalls(
            topic, "writer", self._append_batch, self._apart
        )

    async def read(self, request: HistoryRequest) -> History:
        """A part of a history, up to the log's end at the time of the call or later.

        :raises LogError: it cannot be read.
        """
        if self.never_blocks:
            return self._log.read_histories(self._topic, [request])[0]
        partition = partition_for(request.key, "", self._partitions)
        if partition not in self._apart:
            try:
                return await self._reads.send(request)
            except _SomePartitionUnavailable:
                pass  # perhaps another partition is the unreachable one
            except Unavailable:
                self._apart.add(partition)
                raise
        return await self._own_reads.send(partition, request)

    async def append(self, append: EventAppend) -> Appended | Refused:
        """Append events; returns the outcome.

        :raises OutcomeUnknown: the append may be in the history; sending the same one again tells.
        :raises LogError: the append is not in the history.
        """
        if not self.never_blocks:
            return await self._send_append(append)
        outcomes: list[AppendOutcome] = []
        self._log.append_events(self._topic, [append], outcomes.extend)
        (outcome,) = outcomes
        if isinstance(outcome, LogError):
            raise outcome
        return outcome

    async def _send_append(self, append: EventAppend) -> Appended | Refused:
        if not self._appends_once:
            return await self._appends.send(append)
        partition = partition_for(append.key, "", self._partitions)
        if partition not in self._apart:
            try:
                return await self._appends.send(append)
            except OutcomeUnknown:
                self._apart.add(partition)
                raise  # the runtime sends it again
            except Unavailable:
                self._apart.add(partition)
        return await self._own_appends.send(partition, append)

    async def write_snapshots(self, snapshots: Sequence[StoredSnapshot]) -> None:
        """Store snapshots.

        :raises LogError: they may have been stored or not.
        """
        await run_in_thread(self._log.write_snapshots, self._topic, snapshots)

    def uncounted_records(self) -> int:
        """Records that count for no history, as far as this process has read the topic. No call to
        the log is made."""
        log = self._log
        return log.uncounted_records(self._topic) if isinstance(log, ArbitratingLog) else 0

    async def close(self) -> None:
        """Finish what was asked for."""
        await run_in_thread(self._reads.close)
        await self._own_reads.close()
        await run_in_thread(self._appends.close)
        await self._own_appends.close()

    # -- in the threads

    def _read_histories(
        self,
        requests: Sequence[HistoryRequest],
        answer: Callable[[Answers[History]], None],
    ) -> None:
        try:
            found = read_each(self._log, self._topic, requests)
        except Unavailable as error:
            if len({partition_for(each.key, "", self._partitions) for each in requests}) == 1:
                raise
            found = [_SomePartitionUnavailable(str(error))] * len(requests)
        answer(found)

    def _append_batch(
        self,
        appends: Sequence[EventAppend],
        answer: Callable[[Answers[Appended | Refused]], None],
    ) -> None:
        self._log.append_events(self._topic, appends, answer)
