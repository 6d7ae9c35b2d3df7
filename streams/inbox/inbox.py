"""The inbox of one processor: puts the parts together, and opens and closes them with the app."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from streams.config import DeadLetters
from streams.connection import Connection
from streams.databases.protocol import Database
from streams.health import InboxStats
from streams.inbox.calls import Calls, access_of, run_calls, run_calls_async
from streams.inbox.companion import Companion
from streams.inbox.entries import Entries
from streams.inbox.failures import Failures
from streams.inbox.giving_up import GivingUp
from streams.inbox.handling import Handling
from streams.inbox.identity import Identities
from streams.inbox.opening import Opening
from streams.inbox.outage import Reachability
from streams.inbox.partitions import Partitions
from streams.inbox.purging import Purger
from streams.inbox.reruns import Reruns
from streams.inbox.results import ChosenOutbox, ResultOutbox, Results
from streams.inbox.transactions import Transactions
from streams.processing.job import Job

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streams.processor import Processor


class Inbox(AbstractAsyncContextManager["Inbox"]):
    """The inbox of one processor, opened and closed as a resource of the app.

    :param connection: the app.
    :param processor: the processor, which has the topics and the group.
    :param database: the database in which handled messages are recorded.
    :param outboxes: the app's outboxes; the results of a processor with ``to=`` go through one.
    """

    def __init__(
        self,
        connection: Connection,
        processor: Processor[..., Any],
        database: Database[Any],
        outboxes: Mapping[str, ResultOutbox],
    ) -> None:
        self.database = database
        self.stats = InboxStats()
        self.companion: Companion | None = None
        """Adds statements to each transaction of a handler."""
        self._connection = connection
        self._processor = processor
        # Two more: for dead letters, and to purge.
        database.reserve_connections(processor.options.concurrency + 2)
        self._access = access_of(database)
        self._failures = Failures(database)
        names = DeadLetters()
        sources = {names.retry(each, processor.group): each for each in processor.topics}
        self.identities = Identities(
            processor.group, sources, lambda topic: connection.log.incarnation(topic)
        )
        self.partitions = Partitions(
            connection,
            self.identities,
            self.stats,
            processor.name,
            handler_timeout=processor.options.timeout or 0.0,
        )
        self.reachability = Reachability(self.stats, processor.name, database.name)
        self._outbox = ChosenOutbox(
            self._access, self._failures, outboxes, processor.name, processor.options.to
        )
        self._opening = Opening(
            connection,
            self._access,
            self._failures,
            self.partitions,
            self._outbox,
            processor.name,
            self._start_purging,
        )
        self.transactions = Transactions(
            self._access,
            self._failures,
            self._opening,
            self.partitions,
            self.reachability,
            self._may_start,
        )
        self._reruns = Reruns(
            database,
            self._failures,
            self.partitions,
            self.reachability,
            self.stats,
            self._may_start,
        )
        self._giving_up = GivingUp(
            self._access, self.partitions, self.reachability, self.transactions
        )
        self._purger: Purger | None = None

    def _may_start(self) -> bool:
        """Whether the processor may start anything now."""
        executor = self._processor.executor
        return executor is None or not executor.suspended

    # -- its life

    @override
    async def __aenter__(self) -> Inbox:
        await self._call(self._opening.enter())
        return self

    @override
    async def __aexit__(self, *_: object) -> None:
        opened = self._opening.mark_left()
        purger, self._purger = self._purger, None
        if purger is not None:
            await purger.stop()
        self.partitions.forget()
        await self._giving_up.close()
        self.reachability.forget()
        if opened:
            await self._call(self._opening.close())

    async def _call(self, calls: Calls[None]) -> None:
        """Make these calls without blocking the loop."""
        if self._access.asynchronous:
            await run_calls_async(calls)
        else:
            await asyncio.to_thread(run_calls, calls)

    def new_purger(self) -> Purger:
        """What purges for this processor, not started yet."""
        return Purger(
            self._connection,
            self._access,
            self.identities,
            self.partitions,
            self.stats,
            processor_name=self._processor.name,
            group=self._processor.group,
        )

    def _start_purging(self) -> None:
        self._purger = self.new_purger()
        self._purger.start()

    # -- the job

    def wrap(self, job: Job) -> Job:
        """The job with each call of its handler in a transaction of the database."""
        entries = Entries(self._access, self.identities, self.partitions, job.decodings, job.filter)
        handling = Handling(
            job,
            access=self._access,
            entries=entries,
            failures=self._failures,
            partitions=self.partitions,
            reruns=self._reruns,
            stats=self.stats,
            transactions=self.transactions,
            results=self._results_of(job),
            companion=self.companion,
        )
        return replace(
            job,
            function=handling.function,
            encode_results=None,  # they are written in the transaction
            wants_message=True,
            transactions=False,
            before_dead_letter=partial(self._giving_up.give_up, entries),
            on_assigned=self.partitions.assign,
        )

    def _results_of(self, job: Job) -> Results | None:
        """What writes a job's results; None: they are dropped, as in a replay."""
        target = self._processor.options.to
        if target is None or job.encode_results is None:
            return None
        return Results(self._access, self._outbox, job.name, job.group, target, job.decodings)
