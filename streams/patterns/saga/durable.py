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

from streams.config import Dedup, Flow, Retry
from streams.errors import InvalidValue, Reject, RetryAfter, Unavailable
from streams.log.names import check_group, check_topic
from streams.message import Message
from streams.patterns.saga.course import Course
from streams.patterns.saga.entry import Entry, Stored
from streams.patterns.saga.errors import UnknownSaga
from streams.patterns.saga.journal import Journal, topic_name
from streams.patterns.saga.tail import Tails

if TYPE_CHECKING:
    from streams.app import Streams

__all__ = ["Durable"]

LOOK = 0.25
"""Seconds between looks at the journal of whoever waits for a saga that another process owns."""

_PERSISTENT = Retry(attempts=8, delay=0.5)
"""For what is no step's failure but ours, or an entry that the log refuses; then a dead letter."""


class Durable:
    """The journal's topic and processor in one app, and who waits here for a saga to end."""

    def __init__(
        self,
        app: Streams,
        name: str,
        course: Course,
        *,
        partitions: int | None,
        concurrency: int,
        dedup: Dedup,
        flow: Flow,
    ) -> None:
        self._app = app
        self.name = check_group(name)
        self._course = course
        check_topic(topic_name(name))
        self.topic = app.topic(
            topic_name(name), Stored, key="saga", id=_identity, partitions=partitions
        )
        self._waiting: dict[str, set[asyncio.Future[Stored]]] = {}
        self._places: dict[int, int] = {}
        """From where on the journal was not looked at, by partition, while somebody waits."""
        self._looking: asyncio.Task[None] | None = None
        self._tails = Tails()
        self.processor = app.processor(
            self.topic,
            group=name,
            concurrency=concurrency,
            to=self.topic,
            retry=_PERSISTENT,
            dedup=dedup,
            flow=flow,
        )(self._handler())

    @property
    def journal(self) -> Journal:
        """:raises NotRunning: the app is not entered."""
        return Journal(self._app.log, self.name)

    def _handler(self) -> Callable[[Stored, Message[Stored]], Any]:
        async def saga(entry: Stored, message: Message[Stored]) -> Entry | None:
            if message.key != entry.saga:
                raise Reject(f"saga {entry.saga!r} under another key: its order would be lost")
            if entry.ended:
                self._tell(entry)
                return None
            if await self._tails.followed(self.journal, entry, message):
                return None  # what became of it is behind it in the log
            wait = entry.due - self._course.now()
            if wait > 0 and message.attempt == 1:
                raise RetryAfter(wait, f"saga {entry.saga} goes on in {wait:.3g} s")
            return await self._course.advance(entry, {})

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
        try:
            partition = await self.start(id, context)
            if not fresh:
                # It may have been started before, and have ended: then nothing more is written.
                known = await self._find(id, partition)
                if known is not None and known.ended:
                    return known
            self._look()
            return await future
        finally:
            waiting = self._waiting[id]
            waiting.discard(future)
            if not waiting:
                del self._waiting[id]

    async def _find(self, id: str, partition: int) -> Stored | None:
        journal = self.journal
        try:
            return (await asyncio.to_thread(journal.latest, id, partition)).entry
        except UnknownSaga:
            return None

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
                found = await asyncio.to_thread(journal.since, places)
            except Unavailable:
                continue  # the saga goes on meanwhile, or will
            for entry in found:
                if entry.ended:
                    self._tell(entry)
            self._places.update(places)


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
    if not isinstance(id, str) or not id or len(id) > 200 or not id.isprintable():
        raise InvalidValue(f"saga ID {id!r}: a str of 1 to 200 printable characters")
    return id
