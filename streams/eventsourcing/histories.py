"""One event topic's histories, as coroutines use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streams.cancellation import run_in_thread
from streams.errors import LogError
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

MAX_READS = 100
"""Histories that one call of the log reads from, at most: each of them may answer with a page of
events, all of which are in memory at once."""


class Histories:
    """Reads and appends of one event topic. Concurrent callers share calls of the log."""

    def __init__(self, log: EventLog, topic: str) -> None:
        self._log = log
        self._topic = topic
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
        return await self._reads.send(request)

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
        await run_in_thread(self._reads.close)
        await run_in_thread(self._appends.close)

    # -- in the threads

    def _read(
        self,
        requests: Sequence[HistoryRequest],
        answer: Callable[[Answers[History]], None],
    ) -> None:
        answer(read_each(self._log, self._topic, requests))

    def _append(
        self,
        appends: Sequence[EventAppend],
        answer: Callable[[Answers[Appended | Refused]], None],
    ) -> None:
        self._log.append_events(self._topic, appends, answer)
