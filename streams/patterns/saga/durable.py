"""A durable saga: its journal is a topic, and a processor that reads it drives it.

Each entry of the journal is a message. Its handler calls what the entry says is to be called and
*returns* the next entry, which the processor publishes before the message counts as settled
(``to=``). So the processor's own promises are the saga's: the owner of the saga ID's partition
goes on with it, one entry after the other; killed at any instant, the entry that was not settled
is handled again, by whoever owns the partition then, unless the journal says already what became of
it (:mod:`streams.patterns.saga.tail`); what was written twice under one number is dropped by
deduplication; and an entry that is due later waits as a message does that is tried again later.
There is no state but the journal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from uuid_utils import uuid7

from streams.config import Dedup, Flow, Retention, Retry
from streams.errors import InvalidValue, Reject, RetryAfter, Unavailable
from streams.log.names import check_group, check_topic
from streams.message import Message
from streams.patterns.saga.course import Course
from streams.patterns.saga.decoding import EntryDecoder, JournalSource, key_of
from streams.patterns.saga.entry import Entry, Stored
from streams.patterns.saga.errors import SagaError
from streams.patterns.saga.journal import NEWEST, Journal, topic_name
from streams.patterns.saga.recent import Recent, Seen
from streams.patterns.saga.tail import Tails
from streams.patterns.saga.validation import LONGEST_WAIT, is_saga_id
from streams.topic import OwnedTopic, Topic

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log

__all__ = ["Durable"]

SPREAD = 8
"""Partitions of a journal that is created, where nobody said how many: so many processes can share
its sagas."""

LOOK = 0.25
"""Seconds between looks at the journal of whoever waits for a saga that another process owns."""

REMEMBERED = 10_000
"""Entries of a partition among which a saga is looked for by its ID, at least."""

_PERSISTENT = Retry(attempts=8, delay=0.5)
"""For what is no step's failure but ours, or an entry that the log refuses; then a dead letter."""


class _JournalTopic(OwnedTopic[Stored]):
    spread = SPREAD


class Durable:
    """The journal's topic and processor in one app, and who waits here for a saga to end."""

    def __init__(
        self,
        app: Streams,
        name: str,
        course: Course,
        *,
        partitions: int | None,
        retention: Retention | None,
        concurrency: int,
        dedup: Dedup,
        flow: Flow,
    ) -> None:
        self._app = app
        self.name = check_group(name)
        self._course = course
        check_topic(topic_name(name))
        self.topic: Topic[Stored] = _JournalTopic(
            app, topic_name(name), Stored, key="saga", id=_identity, partitions=partitions,
            retention=retention,
        )  # fmt: skip
        app.add_topic(self.topic)
        self._decoder = EntryDecoder(self.topic.name)
        self._waiting: dict[str, set[asyncio.Future[Stored]]] = {}
        self._numbers: dict[str, int] = {}
        """Of each saga that is waited for, the number of the last entry that was seen."""
        self._keys: set[bytes] = set()
        """Their keys; read in another thread."""
        self._places: dict[int, int] = {}
        """From where on the journal was not looked at, by partition, while somebody waits."""
        self._looking: asyncio.Task[None] | None = None
        self._tails = Tails()
        self.processor = app.processor(
            JournalSource(self.topic.name, self._decoder),
            group=name,
            concurrency=concurrency,
            to=self.topic,
            retry=_PERSISTENT,
            dedup=dedup,
            flow=flow,
        )(self._handler())
        self._keep = max(2 * dedup.window, REMEMBERED)  # deduplication remembers twice its window
        self._recent = Recent(self._keep)
        self._recent_of: Log | None = None
        """The log that it was read from."""
        self._following: dict[int, _Turns] = {}
        """Who reads what was written to a partition since the last time."""

    @property
    def journal(self) -> Journal:
        """:raises NotRunning: the app is not entered."""
        return Journal(self._app.log, self.name, self._decoder)

    def _handler(self) -> Callable[[Stored, Message[Stored]], Any]:
        async def saga(entry: Stored, message: Message[Stored]) -> Entry | None:
            if entry.ended:
                self._tell(entry)
                return None
            if await self._tails.followed(self.journal, entry, message):
                return None  # what became of it is behind it in the log
            wait = min(LONGEST_WAIT, entry.due - self._course.now())
            if wait > 0 and message.attempt == 1:
                raise RetryAfter(wait, f"saga {entry.saga} goes on in {wait:.3g} s")
            following = await self._course.advance(entry, {})
            try:
                self._course.check_progress(entry, following)
            except SagaError as error:
                raise Reject(str(error)) from error
            return following

        saga.__name__ = f"saga-{self.name}"
        return saga

    async def start(self, id: str, context: Any) -> int:
        """Write the first entry; the partition it went to."""
        entry = Stored(
            saga=id,
            context=self._course.contexts.store(context),
            plan=self._course.plan,
            at=self._course.now(),
        )
        position = await self.topic.publish(entry, id=entry.identity)
        if id in self._waiting:
            self._places.setdefault(position.partition, position.offset)
        return position.partition

    async def run(self, id: str | None, context: Any) -> Stored:
        """Start a saga, or find the one of that ID, and wait until it has ended."""
        fresh, id = id is None, new_id() if id is None else check_id(id)
        future: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        # First, so that whatever is written from here on is seen.
        self._waiting.setdefault(id, set()).add(future)
        self._numbers.setdefault(id, -1)
        self._keys.add(key_of(id))
        try:
            if fresh:
                await self.start(id, context)
            else:
                known = await self._begun(id, context)
                if known is not None:
                    return known
            self._look()
            return await future
        finally:
            waiting = self._waiting[id]
            waiting.discard(future)
            if not waiting:
                del self._waiting[id], self._numbers[id]
                self._keys.discard(key_of(id))

    async def _begun(self, id: str, context: Any) -> Stored | None:
        """See to it that a saga of that ID is there; where it stands if it has ended already: then
        nothing more is written that could be waited for."""
        seen = self._find(id)
        if seen is None:
            partition = await self.start(id, context)
        else:
            partition = seen.position.partition
            # Before it is looked at, so that whatever is written from then on is seen.
            self._places.setdefault(partition, seen.position.offset)
        if seen is None or not seen.over:
            await self._followed(partition)
            seen = self._find(id)
        if seen is None:
            return None
        self._numbers[id] = max(self._numbers[id], seen.n)
        if not seen.ended:
            return None
        entry = await asyncio.to_thread(self.journal.entry, seen.position)
        if entry is None:  # the log does not keep it any more: as if there had been none
            await self.start(id, context)
            self._numbers[id] = -1
        return entry

    async def latest(self, id: str, newest: int | None = NEWEST) -> Stored:
        """Where a saga stands.

        :raises UnknownSaga: it is not there.
        """
        seen = self._find(id)
        if seen is not None:
            await self._followed(seen.position.partition)
            seen = self._find(id)
        if seen is not None:
            entry = await asyncio.to_thread(self.journal.entry, seen.position)
            if entry is not None:
                return entry
        return (await asyncio.to_thread(self.journal.latest, id, newest)).entry

    def _find(self, id: str) -> Seen | None:
        """The last entry of a saga, as far as the journal was followed."""
        log = self._app.log
        if log is not self._recent_of:  # the app was entered again
            self._recent, self._recent_of = Recent(self._keep), log
            self._following = {}
        return self._recent.find(id)

    async def _followed(self, partition: int) -> None:
        """Everything that a partition holds at this moment is known to :attr:`_recent`."""
        turns = self._following.get(partition)
        if turns is None:
            recent, journal = self._recent, self.journal
            turns = self._following[partition] = _Turns(lambda: recent.follow(journal, partition))
        await turns.next()

    def _tell(self, entry: Stored) -> None:
        for future in self._waiting.get(entry.saga, ()):
            if not future.done():
                future.set_result(entry)

    # -- sagas that another process owns

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(
                self._looked(), name=f"streams-saga-{self.name}"
            )

    async def _looked(self) -> None:
        try:
            await self._look_on()
        except Exception as error:
            _fail(self._waiting.values(), error)
        finally:
            self._places.clear()

    async def _look_on(self) -> None:
        journal = self.journal
        while True:
            await asyncio.sleep(LOOK)
            if not self._waiting:
                return
            places = dict(self._places)
            try:
                found = await asyncio.to_thread(journal.since, places, self._keys)
            except Unavailable:
                continue  # the saga goes on meanwhile, or will
            for entry in found:
                # The first of a number counts; what was written too late has no higher one.
                if entry.n > self._numbers.get(entry.saga, entry.n):
                    self._numbers[entry.saga] = entry.n
                    if entry.ended:
                        self._tell(entry)
            self._places.update(places)


class _Turns:
    """Runs one blocking action, as often as somebody needs that it was *begun* after he asked:
    those who ask while it runs share the next run. Used on one loop."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._running: asyncio.Task[None] | None = None
        self._waiting: asyncio.Task[None] | None = None

    async def next(self) -> None:
        """Wait for a run that has not begun yet.

        :raises Exception: what it raised.
        """
        if self._running is None or self._running.done():
            self._running = task = asyncio.ensure_future(self._run(None))
        elif self._waiting is None:
            self._waiting = task = asyncio.ensure_future(self._run(self._running))
        else:
            task = self._waiting
        task.add_done_callback(_seen)
        await asyncio.shield(task)

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
            self._running, self._waiting = self._waiting, None
        await asyncio.to_thread(self._action)


def _seen(task: asyncio.Task[None]) -> None:
    """Whoever waited may be gone: then nobody is told of its failure."""
    if not task.cancelled():
        task.exception()


def _fail(waiting: Collection[set[asyncio.Future[Stored]]], error: Exception) -> None:
    for futures in waiting:
        for future in futures:
            if not future.done():
                future.set_exception(error)


def _identity(entry: Stored) -> str:
    return entry.identity


def new_id() -> str:
    """A saga's ID where none was given."""
    return str(uuid7())


def check_id(id: Any) -> str:
    """:raises InvalidValue: a saga cannot have that ID."""
    if not is_saga_id(id):
        raise InvalidValue(f"saga ID {id!r}: a str of 1 to 200 printable characters")
    return id
