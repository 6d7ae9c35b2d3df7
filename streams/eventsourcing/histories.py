"""One event topic's histories, as coroutines use them.

Concurrent reads share a call of the log. On Kafka a partition can be out of reach while the others
are not, as each has a leader of its own, and a call that names it takes ten seconds to fail. So
where a call for several partitions has failed, each of them is asked for by itself, and one that is
out of reach stays apart until it can be read again: it holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streams.cancellation import run_in_thread
from streams.errors import LogError, NotRunning, Unavailable
from streams.eventsourcing.batching import Answers, RequestBatcher
from streams.log.events import (
    Appended,
    AppendOutcome,
    ArbitratingLog,
    EventAppend,
    EventLog,
    History,
    HistoryRequest,
    Refused,
    StoredSnapshot,
    read_each,
)
from streams.log.names import partition_for

MAX_READS = 100
"""Histories that one call of the log reads from, at most: each of them may answer with a page of
events, all of which are in memory at once."""


class _OneOfSeveral(Unavailable):
    """One of the partitions that were asked for cannot be reached, and nobody knows which."""


class Histories:
    """Reads and appends of one event topic. Concurrent callers share calls of the log.

    :param partitions: how many the topic has.
    """

    def __init__(self, log: EventLog, topic: str, partitions: int) -> None:
        self._log = log
        self._topic = topic
        self._partitions = partitions if isinstance(log, ArbitratingLog) else 1
        """How many can be out of reach each for itself."""
        self._apart: set[int] = set()
        """Those that were, when they were asked for last."""
        self._own_reads: dict[int, RequestBatcher[HistoryRequest, History]] = {}
        """Of partitions that are asked for by themselves."""
        self._closed = False
        self.never_blocks = log.never_blocks
        """Nothing here suspends its caller."""
        self._reads: RequestBatcher[HistoryRequest, History] = RequestBatcher(
            f"streams-{topic}-reader", self._read, max_requests=MAX_READS
        )
        self._appends: RequestBatcher[EventAppend, Appended | Refused] = RequestBatcher(
            f"streams-{topic}-writer", self._append
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
                if self._closed:
                    raise
            except Unavailable:
                self._apart.add(partition)
                raise
        return await self._read_apart(partition, request)

    async def _read_apart(self, partition: int, request: HistoryRequest) -> History:
        """The same, asked together with those of its partition alone."""
        reads = self._own_reads.get(partition)
        if reads is None:
            if self._closed:
                raise NotRunning(f"{self._topic}: the app is closing or closed")
            reads = RequestBatcher(
                f"streams-{self._topic}-{partition}-reader", self._read, max_requests=MAX_READS
            )
            self._own_reads[partition] = reads
        try:
            found = await reads.send(request)
        except Unavailable:
            self._apart.add(partition)
            raise
        self._apart.discard(partition)
        return found

    async def append(self, append: EventAppend) -> Appended | Refused:
        """What became of an append.

        :raises OutcomeUnknown: it may be in the history; the same append again tells.
        :raises LogError: it is not in the history.
        """
        if not self.never_blocks:
            return await self._appends.send(append)
        outcomes: list[AppendOutcome] = []
        self._log.append_events(self._topic, [append], outcomes.extend)
        (outcome,) = outcomes
        if isinstance(outcome, LogError):
            raise outcome
        return outcome

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
        self._closed = True
        for reads in (self._reads, *self._own_reads.values()):
            await run_in_thread(reads.close)
        await run_in_thread(self._appends.close)

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
