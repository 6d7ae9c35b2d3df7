"""A durable saga: its journal is a topic, and a processor that reads it drives it.

Each entry of the journal is a message. Its handler calls the steps that are due and *returns* the
next entry, which the processor publishes before the message counts as settled (``to=``). So the
processor's own promises are the saga's: the owner of the saga ID's partition advances it, one entry
after the other; if it is killed at any instant, the entry that was not settled is handled again by
the partition's next owner, unless the journal already has its successor
(:mod:`streams.patterns.saga.successor_reader`); a second entry of one number is dropped by
deduplication; and an entry that is due later waits like a message that is retried later. There
is no state but the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uuid_utils import uuid7

from streams.config import Dedup, Flow, Retention, Retry
from streams.errors import (
    InvalidValue,
    LogError,
    Reject,
    RetryAfter,
    StreamsError,
    Unavailable,
)
from streams.log.names import check_group, check_topic
from streams.message import Message
from streams.patterns.saga.engine import SagaEngine
from streams.patterns.saga.entry_validation import MAX_WAIT, is_saga_id
from streams.patterns.saga.errors import SagaError
from streams.patterns.saga.journal import DEFAULT_NEWEST, Journal, journal_topic
from streams.patterns.saga.journal_decoder import EntryDecoder, JournalSource, saga_key
from streams.patterns.saga.journal_entry import JournalEntry, StoredEntry
from streams.patterns.saga.recent_sagas import LastEntry, RecentSagas
from streams.patterns.saga.shared_run import SharedRun, retrieve_exception
from streams.patterns.saga.successor_reader import SuccessorReader
from streams.topic import InternalTopic, Topic

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log

DEFAULT_PARTITIONS = 8
"""Partitions of a journal that is created without a number: as many processes as this can share
its sagas."""

POLL_INTERVAL = 0.25
"""Seconds between polls of the journal by a caller that waits for a saga of another process."""

FRESH = 1.0
"""Seconds for which an entry that waits for nothing is assumed to be its saga's last one, though
the saga may have been abandoned since: so most steps are called without asking the log."""

MIN_INDEXED_ENTRIES = 10_000
"""The minimum of entries of a partition that are searched for a saga by its ID."""

_INTERNAL_RETRY = Retry(attempts=8, delay=0.5)
"""For failures that are not a step's: the toolkit's own, or an entry that the log refuses."""


class _JournalTopic(InternalTopic[StoredEntry]):
    default_partitions = DEFAULT_PARTITIONS


class DurableSagas:
    """The journal's topic and processor in one app, and this process's callers that wait for a
    saga."""

    def __init__(
        self,
        app: Streams,
        name: str,
        engine: SagaEngine,
        *,
        partitions: int | None,
        retention: Retention | None,
        concurrency: int,
        dedup: Dedup,
        flow: Flow,
    ) -> None:
        self._app = app
        self.name = check_group(name)
        self._engine = engine
        check_topic(journal_topic(name))
        self.topic: Topic[StoredEntry] = _JournalTopic(
            app, journal_topic(name), StoredEntry, key="saga", id=_message_id,
            partitions=partitions, retention=retention,
        )  # fmt: skip
        app.add_topic(self.topic)
        self._decoder = EntryDecoder(self.topic.name)
        self._waiters: dict[str, set[asyncio.Future[StoredEntry]]] = {}
        self._last_numbers: dict[str, int] = {}
        """The number of the last entry seen, by saga that is waited for."""
        self._awaited_keys: set[bytes] = set()
        """The keys of these sagas; read in another thread."""
        self._next_offsets: dict[int, int] = {}
        """The next offset to read, by partition, while a caller waits."""
        self._poll_task: asyncio.Task[None] | None = None
        self._successors = SuccessorReader()
        self.processor = app.processor(
            JournalSource(self.topic.name, self._decoder), group=name, concurrency=concurrency,
            to=self.topic, retry=_INTERNAL_RETRY, dedup=dedup, flow=flow,
        )(self._make_handler())  # fmt: skip
        # Deduplication remembers twice its window.
        self._indexed_entries = max(2 * dedup.window, MIN_INDEXED_ENTRIES)
        self._recent_sagas = RecentSagas(self._indexed_entries)
        self._known_log: Log | None = None
        """The log of the app's life in which a caller last looked or waited."""
        self._catch_ups: dict[int, SharedRun] = {}
        """Reads the entries written since the last time, by partition."""

    @property
    def journal(self) -> Journal:
        """:raises NotRunning: the app is not entered."""
        return Journal(self._app.log, self.name, self._decoder)

    def _make_handler(self) -> Callable[[StoredEntry, Message[StoredEntry]], Any]:
        async def advance(entry: StoredEntry, message: Message[StoredEntry]) -> JournalEntry | None:
            successors = self._successors
            if entry.has_ended:
                successors.forget(entry, message)
                # A redelivered one may be of a saga that was resumed since.
                if entry.is_final or not await successors.has_successor(
                    self.journal, entry, message
                ):
                    self._resolve_waiters(entry)
                return None
            if await successors.has_successor(self.journal, entry, message):
                return None  # it was advanced before
            now = self._engine.now()
            wait = min(MAX_WAIT, entry.due - now)
            if wait > 0 and message.attempt == 1:
                raise RetryAfter(wait, f"saga {entry.saga} goes on in {wait:.3g} s")
            has_waited = message.attempt > 1 or now - entry.at > FRESH
            if has_waited and await successors.was_abandoned(self.journal, entry, message):
                return None
            next_entry = await self._engine.advance(entry, {})
            try:
                self._engine.check_progress(entry, next_entry)
            except SagaError as error:
                raise Reject(str(error)) from error
            return next_entry

        advance.__name__ = f"saga-{self.name}"
        return advance

    async def start(self, id: str, context: Any) -> int:
        """Write the first entry; returns its partition."""
        entry = StoredEntry(
            saga=id,
            context=self._engine.contexts.store(context),
            plan=self._engine.plan,
            at=self._engine.now(),
        )
        position = await self.topic.publish(entry, id=entry.message_id)
        if id in self._waiters:
            self._next_offsets.setdefault(position.partition, position.offset)
        return position.partition

    async def run(self, id: str | None, context: Any) -> StoredEntry:
        """Start a saga, or find the one of that ID, and wait until it has ended.

        :raises NotRunning: the app is not entered, or was left before the saga had ended.
        """
        is_new, id = id is None, new_saga_id() if id is None else check_saga_id(id)
        self._notice_new_life()
        future: asyncio.Future[StoredEntry] = asyncio.get_running_loop().create_future()
        future.add_done_callback(retrieve_exception)
        # First, so that every entry written from now on is seen.
        self._waiters.setdefault(id, set()).add(future)
        self._last_numbers.setdefault(id, -1)
        self._awaited_keys.add(saga_key(id))
        try:
            if is_new:
                await self.start(id, context)
            else:
                final_entry = await self._find_or_start(id, context)
                if final_entry is not None:
                    return final_entry
            self._start_polling()
            return await future
        finally:
            waiters = self._waiters[id]
            waiters.discard(future)
            if not waiters:
                del self._waiters[id], self._last_numbers[id]
                self._awaited_keys.discard(saga_key(id))

    async def _find_or_start(self, id: str, context: Any) -> StoredEntry | None:
        """Make sure that a saga of that ID exists; its last entry if it has ended already, as
        no further entry would be written to wait for."""
        last_entry = self._find_recent(id)
        if last_entry is None:
            partition = await self.start(id, context)
        else:
            partition = last_entry.position.partition
            # Before it is read, so that every entry written from then on is seen.
            self._next_offsets.setdefault(partition, last_entry.position.offset)
        if last_entry is None or not last_entry.is_final:
            await self._catch_up(partition)
            last_entry = self._find_recent(id)
        if last_entry is None:
            return None
        self._last_numbers[id] = max(self._last_numbers[id], last_entry.number)
        if not last_entry.has_ended:
            return None
        entry = await asyncio.to_thread(self.journal.read_entry, last_entry.position)
        if entry is None:  # the log no longer keeps it: as if there had been none
            await self.start(id, context)
            self._last_numbers[id] = -1
        return entry

    async def latest(self, id: str, newest: int | None = DEFAULT_NEWEST) -> StoredEntry:
        """The last entry of a saga.

        :raises UnknownSaga: it does not exist.
        """
        last_entry = self._find_recent(id)
        if last_entry is not None:
            await self._catch_up(last_entry.position.partition)
            last_entry = self._find_recent(id)
        if last_entry is not None:
            entry = await asyncio.to_thread(self.journal.read_entry, last_entry.position)
            if entry is not None:
                return entry
        return (await asyncio.to_thread(self.journal.latest, id, newest)).entry

    def _find_recent(self, id: str) -> LastEntry | None:
        """The last entry of a saga, in the part of the journal that was read."""
        self._notice_new_life()
        return self._recent_sagas.find(id)

    def _notice_new_life(self) -> None:
        """Forget the entries read in a former life of the app, and release all its waiters.

        :raises NotRunning: the app is not entered.
        """
        log = self._app.log
        if log is self._known_log:
            return
        self._known_log = log
        self._recent_sagas, self._catch_ups = RecentSagas(self._indexed_entries), {}
        if self._poll_task is not None:
            self._poll_task.cancel()
            self._poll_task = None
        self._next_offsets = {}
        self._fail_waiters(self._left_error())

    async def _catch_up(self, partition: int) -> None:
        """Read everything that a partition holds now into :attr:`_recent_sagas`."""
        if partition not in self._catch_ups:
            recent, journal = self._recent_sagas, self.journal
            self._catch_ups[partition] = SharedRun(lambda: recent.catch_up(journal, partition))
        await self._catch_ups[partition].wait_for_next()

    def _resolve_waiters(self, entry: StoredEntry) -> None:
        for future in self._waiters.get(entry.saga, ()):
            if not future.done():
                future.set_result(entry)

    def _fail_waiters(self, error: Exception) -> None:
        for future in (each for waiters in self._waiters.values() for each in waiters):
            if not future.done():
                future.set_exception(error)

    def _left_error(self) -> StreamsError:
        return self._app.runtime.not_running_error("the app was left before the saga had ended")

    # -- sagas that another process owns

    def _start_polling(self) -> None:
        if self._poll_task is None or self._poll_task.done():
            self._poll_task = asyncio.get_running_loop().create_task(
                self._poll_journal(), name=f"streams-saga-{self.name}"
            )

    async def _poll_journal(self) -> None:
        next_offsets = self._next_offsets
        try:
            await self._poll_until_ended()
        except Exception as error:
            self._fail_waiters(error)
        finally:
            next_offsets.clear()

    async def _poll_until_ended(self) -> None:
        journal = self.journal
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            if not self._waiters:
                return
            if self._app.runtime.log is not journal.log:
                raise self._left_error()
            offsets = dict(self._next_offsets)
            try:
                found = await asyncio.to_thread(journal.read_since, offsets, self._awaited_keys)
            except LogError as error:
                # The saga advances without us; and a log that is being closed is reopened next
                # time.
                if isinstance(error, Unavailable) or self._app.runtime.stopping:
                    continue
                raise
            for entry in found:
                # The first of a number counts; one that was written too late has no higher number.
                if entry.n > self._last_numbers.get(entry.saga, entry.n):
                    self._last_numbers[entry.saga] = entry.n
                    if entry.has_ended:
                        self._resolve_waiters(entry)
            self._next_offsets.update(offsets)


def _message_id(entry: StoredEntry) -> str:
    return entry.message_id


def new_saga_id() -> str:
    """A new ID for a saga without a given one."""
    return str(uuid7())


def check_saga_id(id: Any) -> str:
    """:raises InvalidValue: a saga cannot have that ID."""
    if not is_saga_id(id):
        raise InvalidValue(f"saga ID {id!r}: a str of 1 to 200 printable characters")
    return id
