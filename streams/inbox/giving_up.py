"""Gives messages up in the database, before their dead letters are written: a former owner of the
partition that still has such a message does not handle it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from streams.databases.protocol import DialectName, Steps
from streams.engine.dispatcher import Delivery
from streams.inbox.calls import Access, Calls, run_calls, run_calls_async
from streams.inbox.entries import Entries
from streams.inbox.identity import Entry
from streams.inbox.outage import Reachability
from streams.inbox.partitions import Partitions
from streams.inbox.recording import Verdict, mark_dead
from streams.inbox.transactions import Transactions
from streams.message import Message
from streams.processing.job import DeadLetterAnswer
from streams.processing.outcomes import OwnershipLost

OnAnswer: TypeAlias = "Callable[[DeadLetterAnswer | BaseException], None]"


class GivingUp:
    """Gives up the messages of one processor, in tasks of the loop or in a thread of its own."""

    def __init__(
        self,
        access: Access,
        partitions: Partitions,
        reachability: Reachability,
        transactions: Transactions,
    ) -> None:
        self._access = access
        self._partitions = partitions
        self._reachability = reachability
        self._transactions = transactions
        self._tasks: set[asyncio.Task[None]] = set()
        self._helper: ThreadPoolExecutor | None = None

    def give_up(self, entries: Entries, delivery: Delivery, answer: OnAnswer) -> None:
        """Give a message up; see :attr:`streams.processing.job.Job.before_dead_letter`.

        :param entries: those of the message's job.
        """
        calls = self._calls(entries, entries.given_up(delivery), answer)
        if self._access.asynchronous:
            task = asyncio.get_running_loop().create_task(run_calls_async(calls))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        if self._helper is None:
            self._helper = ThreadPoolExecutor(1, thread_name_prefix="streams-inbox")
        self._helper.submit(run_calls, calls)

    async def close(self) -> None:
        """End the thread and the tasks; messages that wait there are not given up."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        helper, self._helper = self._helper, None
        if helper is not None:
            await asyncio.to_thread(helper.shutdown, cancel_futures=True)

    def _calls(
        self, entries: Entries, messages: Sequence[Message[Any]], answer: OnAnswer
    ) -> Calls[None]:
        try:
            verdicts = yield from self._mark_dead(entries, messages)
        except OwnershipLost:
            answer(DeadLetterAnswer.ABANDON)
        except asyncio.CancelledError:
            answer(DeadLetterAnswer.ABANDON)
            raise
        except BaseException as error:
            answer(error)
            if not isinstance(error, Exception):
                raise
        else:
            # If each of its values was handled after all, the message is settled.
            is_dead = Verdict.DEAD in verdicts
            answer(DeadLetterAnswer.WRITE if is_dead else DeadLetterAnswer.SETTLE)

    def _mark_dead(
        self, entries: Entries, messages: Sequence[Message[Any]]
    ) -> Calls[list[Verdict]]:
        found: list[Entry] = []
        for message in messages:
            found.append((yield from entries.find(message.value, message)))  # noqa: PERF401

        def mark_all_dead(dialect: DialectName) -> Steps[list[Verdict]]:
            verdicts: list[Verdict] = []
            for entry in found:
                verdict = yield from mark_dead(dialect, entry, self._partitions.timeouts)
                verdicts.append(verdict)
            return verdicts

        transaction = yield from self._transactions.begin(messages[0], mark_all_dead, patience=0)
        try:
            verdicts = yield from transaction.run_begun()
            if Verdict.DEAD in verdicts:
                yield from transaction.commit()
            else:
                yield from transaction.roll_back()
        except BaseException as error:
            rolled_back = yield from transaction.roll_back_after(error, ours=True)
            if rolled_back.unable and isinstance(error, Exception):
                self._reachability.note_unable(error)
            raise
        return verdicts
