"""One event topic's histories, as coroutines use them.

Concurrent reads share a call of the log, and so do appends. On Kafka and on a Redis Cluster a
partition can be out of reach while the others are not, as each has a server of its own, and a call
that names it takes seconds to fail. So one that is out of reach is set *apart* until it answers
again: it has calls of its own, and holds up no other.

* Where a read for several partitions has failed, each of them is read by itself.
* A shared append is sent once. One to a partition that did not answer is sent again in a call of
  that partition's own, which may take long. (Not on Kafka: there a call does not wait for its
  answers, so the next one goes at once.)
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
"""Histories that one call of the log reads from, at most: each of them may answer with a page of
events, all of which are in memory at once."""


class _OneOfSeveral(Unavailable):
    """One of the partitions that were asked for cannot be reached, and nobody knows which."""


class _OwnCalls(Generic[Q, A]):
    """Requests to partitions, those to each in calls of its own. A partition has a thread while
    there is something to be asked of it.

    :param kind: what the threads are, as in their names.
    :param apart: the partitions that were out of reach when they were asked last; kept up to date.
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
        :raises LogError: there is none.
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


class Histories:
    """Reads and appends of one event topic. Concurrent callers share calls of the log.

    :param partitions: how many the topic has.
    """

    def __init__(self, log: EventLog, topic: str, partitions: int) -> None:
        self._log = log
        self._topic = topic
        self._partitions = partitions if log.fails_by_partition else 1
        """How many can be out of reach each for itself."""
        self._apart: set[int] = set()
        """Those that were, when they were asked last."""
        self.never_blocks = log.never_blocks
        """Nothing here suspends its caller."""
        self._reads: RequestBatcher[HistoryRequest, History] = RequestBatcher(
            f"streams-{topic}-reader", self._read, max_requests=MAX_READS
        )
        self._own_reads: _OwnCalls[HistoryRequest, History] = _OwnCalls(
            topic, "reader", self._read, self._apart, max_requests=MAX_READS
        )
        append = self._append
        self._appends_once = False
        """Shared appends are sent once, as sending one again would hold up the others."""
        if log.fails_by_partition and isinstance(log, RetryingLog):
            self._appends_once = True
            append = partial(log.append_events_once, topic)
        self._appends: RequestBatcher[EventAppend, Appended | Refused] = RequestBatcher(
            f"streams-{topic}-writer", append
        )
        self._own_appends: _OwnCalls[EventAppend, Appended | Refused] = _OwnCalls(
            topic, "writer", self._append, self._apart
        )

    async def read(self, request: HistoryRequest) -> History:
        """A part of a history, read to the log's end as it is after this call.

        :raises LogError: it cannot be read.
        """
        if self.never_blocks:
            return self._log.read_histories(self._topic, [request])[0]
        partition = partition_for(request.key, "", self._partitions)
        if partition not in self._apart:
            try:
                return await self._reads.send(request)
            except _OneOfSeveral:
                pass  # perhaps another one
            except Unavailable:
                self._apart.add(partition)
                raise
        return await self._own_reads.send(partition, request)

    async def append(self, append: EventAppend) -> Appended | Refused:
        """What became of an append.

        :raises OutcomeUnknown: it may be in the history; the same append again tells.
        :raises LogError: it is not in the history.
        """
        if not self.never_blocks:
            return await self._send(append)
        outcomes: list[AppendOutcome] = []
        self._log.append_events(self._topic, [append], outcomes.extend)
        (outcome,) = outcomes
        if isinstance(outcome, LogError):
            raise outcome
        return outcome

    async def _send(self, append: EventAppend) -> Appended | Refused:
        if not self._appends_once:
            return await self._appends.send(append)
        partition = partition_for(append.key, "", self._partitions)
        if partition not in self._apart:
            try:
                return await self._appends.send(append)
            except OutcomeUnknown:
                self._apart.add(partition)
                raise  # whoever decides sends it again
            except Unavailable:
                self._apart.add(partition)
        return await self._own_appends.send(partition, append)

    async def write_snapshots(self, snapshots: Sequence[StoredSnapshot]) -> None:
        """Keep snapshots.

        :raises LogError: they may be kept or not.
        """
        await run_in_thread(self._log.write_snapshots, self._topic, snapshots)

    def uncounted_records(self) -> int:
        """Records that count for no history, as far as this process has read the topic. Asks
        nobody."""
        log = self._log
        return log.uncounted_records(self._topic) if isinstance(log, ArbitratingLog) else 0

    async def close(self) -> None:
        """Finish what was asked for."""
        await run_in_thread(self._reads.close)
        await self._own_reads.close()
        await run_in_thread(self._appends.close)
        await self._own_appends.close()

    # -- in the threads

    def _read(
        self,
        requests: Sequence[HistoryRequest],
        answer: Callable[[Answers[History]], None],
    ) -> None:
        try:
            found = read_each(self._log, self._topic, requests)
        except Unavailable as error:
            if len({partition_for(each.key, "", self._partitions) for each in requests}) == 1:
                raise
            found = [_OneOfSeveral(str(error))] * len(requests)
        answer(found)

    def _append(
        self,
        appends: Sequence[EventAppend],
        answer: Callable[[Answers[Appended | Refused]], None],
    ) -> None:
        self._log.append_events(self._topic, appends, answer)
