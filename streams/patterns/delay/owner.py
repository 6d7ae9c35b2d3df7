"""Who keeps a delay topic: a processor of a group, whose partitions' owners deliver what is due.

The group's processor hears what is said in the topic (entries, marks, requests to cancel) and
settles it at once: the topic itself is the store. For each partition that it owns there is a
*lane*, which

1. reads the partition from the *floor* on (below it nothing is pending) and so knows what is
   pending: due time and position, no payload;
2. writes what is due where it goes, in due order, under the message's own ID, and after that is
   confirmed a *mark*. A crash in between writes the message again under the same ID;
3. moves the floor, as the position of a group without members (``{topic}.floor``): what it has not
   reached is not trimmed, and on a log without compaction the rest is.

What a lane may know at once is bounded (see :mod:`streams.patterns.delay.index`); a new message
that is due soon passes every message that is due late.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from typing_extensions import override

from streams import letters
from streams.config import DeadLetters, Dedup, Retry
from streams.errors import Fatal, InvalidValue, LogError, Mismatch, NotFound
from streams.log.protocol import Assignment, Committed, Log, Retention, TopicInfo, ensure
from streams.message import ID, Message, Record, text
from streams.patterns.delay import fetch, wire
from streams.patterns.delay.fetch import Fetcher, Said
from streams.patterns.delay.index import Index, Slot, position_of
from streams.processor import Options, Processor
from streams.runners.job import Job, Outgoing
from streams.shielding import in_thread
from streams.text import get_logger
from streams.topic import Topic

if TYPE_CHECKING:
    from streams.app import Streams

T = TypeVar("T")

logger = get_logger("streams.delay")

HEAR = 1_000
"""Records of the delay topic taken in at once, at most."""

BATCH = 4_000
"""Messages delivered at once, at most: the more, the closer together they stand in the log."""

BYTES = 4 << 20
"""Their bytes, at most; a single larger one goes alone."""

RECENT = 10_000
"""Messages of which it is remembered what became of them, at least."""

BACKLOG = 100_000
"""What is said while a lane is reading, and has to wait, at most."""

FLOOR = 5.0
"""Real seconds between two moves of the floor, at least."""

TRIMMED = Retention(messages=RECENT)
"""How a delay topic is kept on a log that trims: everything from the floor on, and a little."""

UNSURE = 0.05
"""Real seconds between looks at whether ownership was confirmed again."""

LONGEST = 3600.0
"""Real seconds of one sleep, at most."""


class _Letters(DeadLetters):
    """Dead letters of a delay topic, whose name says the group already."""

    RETRY: ClassVar[str] = "{topic}.retry"


def make_topic(log: Log, name: str, partitions: int) -> TopicInfo:
    """Create a delay topic, or find it; blocks.

    The floor stands before anything may be trimmed.
    """
    capabilities = log.capabilities
    info = ensure(log, name, partitions, config={**capabilities.letters, **capabilities.compacted})
    if not log.places(floor_group(name), name):
        first = {part: log.bounds(name, part)[0] for part in range(info.partitions)}
        log.begin(floor_group(name), name, first)
    if not capabilities.compacted and info.retention != TRIMMED:
        info = log.create(name, info.partitions, TRIMMED)
    return info


def floor_group(name: str) -> str:
    """The group, without members, whose positions are a delay topic's floor."""
    return f"{name}.floor"


class Owner(Processor[..., Any]):
    """The processor that keeps a delay topic."""

    shares = True

    def __init__(
        self, desk: Desk, function: Callable[..., Any], options: Options, name: str
    ) -> None:
        super().__init__(function, options, name)
        self.desk = desk
        desk.owner = self

    @override
    def prepare(self, app: Streams) -> None:
        make_topic(app.log, self.desk.topic, self.desk.partitions(app.log))
        super().prepare(app)

    @override
    def job(self, app: Streams) -> Job:
        self.desk.loop = asyncio.get_running_loop()
        return replace(super().job(app), watch=self.desk)


def own(
    app: Streams,
    name: str,
    partitions: Callable[[Log], int],
    allowed: Callable[[str], bool],
    pending: int,
) -> Desk:
    """Declare the processor that keeps the delay topic ``name``.

    :param partitions: how many the topic has, if it must be made.
    :param allowed: whether messages may go to a topic: no header alone says where to.
    :param pending: messages a partition that are known at once.
    """
    desk = Desk(app, name, partitions, allowed, pending)

    async def hear(values: list[bytes | None], messages: list[Message[Any]]) -> None:
        await desk.hear(messages)

    hear.__name__ = name
    source: Topic[Any] = Topic(app, name, bytes | None)
    options = Options(
        (source,),
        name,
        batch=HEAR,
        # What is known is known by position; and an ID that comes again replaces.
        dedup=Dedup(window=0),
        retry=Retry(),
        dead_letters=_Letters(topic="{topic}.dead"),
    )
    app._declare(hear, options, partial(Owner, desk))
    return desk


@dataclass(slots=True)
class Figures:
    """What a delay topic's owner did, and knows, in this process."""

    pending: int = 0
    """Messages it knows to be pending: the nearest ones."""
    delivered: int = 0
    cancelled: int = 0
    dead: int = 0
    """Messages that could not be delivered."""
    scans: int = 0
    """How often a partition was read from its floor on."""


class Desk:
    """One delay topic's owner in this process: its lanes, by partition."""

    def __init__(
        self,
        app: Streams,
        topic: str,
        partitions: Callable[[Log], int],
        allowed: Callable[[str], bool],
        limit: int,
    ) -> None:
        self.app = app
        self.topic = topic
        self.partitions = partitions
        self.allowed = allowed
        self.limit = limit
        self.owner: Owner | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.figures = Figures()
        self._lanes: dict[int, Lane] = {}

    # -- the pump's side (its thread)

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Watch: begin to keep these."""
        for assignment in assignments:
            if assignment.topic == self.topic:
                lane = self._lanes[assignment.partition] = Lane(self, assignment)
                self._on_loop(lane.start)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Watch: deliver nothing more of these."""
        leaving = [
            lane
            for each in assignments
            if (lane := self._lanes.get(each.partition)) is not None and lane.assignment is each
        ]
        for lane in leaving:
            del self._lanes[lane.assignment.partition]
            lane.stopped = True
            self._on_loop(lane.stop)
        for lane in leaving:
            if not lane.over.wait(5.0):
                logger.warning("%s: a delivery is still under way", lane)

    def _on_loop(self, action: Callable[[], None]) -> None:
        try:
            if self.loop is not None:
                self.loop.call_soon_threadsafe(action)
        except RuntimeError:
            return  # the loop is closed: nothing of ours runs on it any more

    def busy(self) -> str:
        """Watch: whether something is due, or not known yet (any thread)."""
        now = self.app.clock.time() * 1000
        for lane in list(self._lanes.values()):
            if not lane.resting:
                return "delayed messages are being looked at"
            if lane.resting_until is not None and lane.resting_until <= now:
                return "delayed messages are due"
        return ""

    def due(self) -> tuple[float, str] | None:
        """Watch: when the next delayed message is due (any thread)."""
        moments = [
            moment
            for lane in list(self._lanes.values())
            if (moment := lane.resting_until) is not None
        ]
        if not moments:
            return None
        count = self.stats().pending
        what = f"{count} delayed message{' waits' if count == 1 else 's wait'}"
        return max(0.0, min(moments) / 1000 - self.app.clock.time()), what

    def stats(self) -> Figures:
        """Figures of this moment."""
        pending = sum(len(lane.index) for lane in list(self._lanes.values()))
        return replace(self.figures, pending=pending)

    # -- on the loop

    async def hear(self, messages: Sequence[Message[Any]]) -> None:
        """What was said in the topic, in order."""
        for message in messages:
            lane = self._lanes.get(message.partition)
            if lane is not None:  # else it is somebody else's by now
                await lane.hear(message)

    def died(self, error: BaseException) -> None:
        """A lane cannot go on: the processor ends, and says so."""
        runner = self.owner._runner if self.owner is not None else None
        if runner is not None:
            runner.die(error)


class Lane:
    """What is pending in one partition that is owned, and its delivery. On the loop."""

    def __init__(self, desk: Desk, assignment: Assignment) -> None:
        self.assignment = assignment
        self.index = Index(desk.limit)
        self.stopped = False
        self.over = threading.Event()
        """Nothing of it runs any more."""
        self.resting = False
        """There is nothing to do before :attr:`resting_until`."""
        self.resting_until: int | None = None
        self._desk = desk
        self._app = desk.app
        self._log = desk.app.log
        self._topic = assignment.topic
        self._partition = assignment.partition
        self._clock = desk.app.clock
        self._fetcher = Fetcher(self._log, self._topic, self._partition)
        self._recent = Recent(RECENT)
        self._begun = asyncio.Event()
        """It is known which part of the log the scan covers; the rest is heard."""
        self._ready = asyncio.Event()
        """All that is pending is known."""
        self._landed = asyncio.Event()
        """What was under way has been delivered (set and replaced each time)."""
        self._wake = asyncio.Event()
        self._scanned = 0
        """Below this position everything was read by a scan."""
        self._heard = 0
        """Below this position everything is known."""
        self._behind: list[Said] = []
        """Said while a scan runs."""
        self._after: Slot | None = None
        """What was due before this is over."""
        self._size = BATCH
        self._floor = -1
        self._floor_at = float("-inf")
        self._unwatch: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"{self._topic}/{self._partition}"

    def start(self) -> None:
        """Begin."""
        loop = asyncio.get_running_loop()

        def moved() -> None:
            self._desk._on_loop(self._wake.set)

        self._unwatch = self._clock.watch(moved)
        self._task = loop.create_task(self._main(), name=f"streams-delay-{self}")
        if self.stopped:
            self.stop()

    def stop(self) -> None:
        """End; what was given to the log stays given."""
        if self._task is None:
            self.over.set()
        else:
            self._task.cancel()

    async def _main(self) -> None:
        try:
            while not self.stopped:
                await self._patiently(self._scan)
                await self._serve()
                self._after = self.index.horizon
        except asyncio.CancelledError:
            if not self.stopped:
                raise
        except Exception as error:
            self._desk.died(error)
        finally:
            self._unwatch()
            self.over.set()

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Through outages of the log."""
        pause = 0.1
        while True:
            try:
                return await work()
            except (Fatal, NotFound, Mismatch):
                raise
            except LogError as error:
                logger.warning("%s: waiting for the log: %s", self, error)
            await asyncio.sleep(pause)
            pause = min(5.0, pause * 2)

    # -- knowing what is pending

    async def _scan(self) -> None:
        """Read the partition from its floor on."""
        self.resting = False
        self._ready.clear()
        self._desk.figures.scans += 1
        start, end = await in_thread(self._range)
        self._scanned = self._heard = max(end, self._heard)
        self.index.clear(self._after, self._scanned)
        self._begun.set()
        source = fetch.scan(self._log, self._topic, self._partition, start, self._scanned)
        while (chunk := await in_thread(next, source, None)) is not None:
            for said in chunk:
                self._apply(said)
        behind, self._behind = self._behind, []
        for said in behind:
            if said.position >= self._scanned:
                self._apply(said)
        self._ready.set()

    def _range(self) -> tuple[int, int]:
        """Where to begin, and the end as it is now; blocks."""
        log, topic, partition = self._log, self._topic, self._partition
        first, end = log.bounds(topic, partition)
        floor = log.places(floor_group(topic), topic).get(partition)
        start = first if floor is None else max(first, floor.position)
        return min(start, log.back(topic, partition, end, RECENT)), end

    def _apply(self, said: Said) -> None:
        if said.due is not None:
            self.index.add(said.name, said.due, said.position)
        elif said.what is not None:
            self.index.remove(said.name, said.position)
            self._recent.add(said.name, said.what)

    async def hear(self, message: Message[Any]) -> None:
        """What the processor read."""
        await self._begun.wait()
        key, value, headers = message.raw
        if key is None:
            return
        position = message._batch.offsets[message._index]
        due = wire.due_of(headers) if value is not None else None
        what, _ = (None, None) if due is not None else wire.said(headers)
        if what == wire.CANCEL:
            await self._cancel(key, message.id, position)
        elif position >= self._scanned and (due is not None or what is not None):
            said = Said(position, wire.digest(key), due, what)
            if self._ready.is_set():
                self._apply(said)
                self.resting = False
                self._wake.set()
            else:
                self._behind.append(said)
                if len(self._behind) >= BACKLOG:
                    await self._ready.wait()
        self._heard = max(self._heard, position + 1)

    # -- cancelling

    async def _cancel(self, key: bytes, request: str, position: int) -> None:
        """Answer a request to cancel by what happened."""
        await self._ready.wait()
        name = wire.digest(key)
        while (slot := self.index.find(name)) is not None and self.index.is_out(slot):
            landed = self._landed
            await landed.wait()
            await self._ready.wait()
        pending = slot is not None and position_of(slot) < position
        outcome: str | None = self._recent.get(name)
        if not pending and outcome is None and self.index.horizon is not None:
            pending = await self._patiently(partial(self._in_log, name, position))
        id = f"{request}/answer"
        if pending:
            self.index.remove(name, position)
            answer = wire.mark(key, "cancelled", id, request)
            self._recent.add(name, "cancelled")
            self._desk.figures.cancelled += 1
        else:
            # Not a mark: who knows what was said of that ID meanwhile.
            known = wire.outcome(outcome) or "unknown"
            answer = wire.mark(request.encode(), known, id, request)
        answer.partition = self._partition
        await self._write([(self._topic, answer)])
        self.resting = False
        self._wake.set()

    async def _in_log(self, name: int, before: int) -> bool:
        """Whether an entry that is due behind the horizon is pending."""

        def look() -> bool:
            start, _ = self._range()
            last: Said | None = None
            for chunk in fetch.scan(self._log, self._topic, self._partition, start, before):
                for said in chunk:
                    if said.name == name:
                        last = said
            return last is not None and last.due is not None

        return await in_thread(look)

    # -- delivering

    async def _serve(self) -> None:
        """Deliver what is due, until a scan is needed."""
        while not self.index.exhausted:
            slots = self.index.take(int(self._clock.time() * 1000), self._size)
            if not slots:
                await self._move_floor()
                await self._rest()
                continue
            self.resting = False
            try:
                if self._clock.monotonic() >= self.assignment.valid_until:
                    await asyncio.sleep(UNSURE)
                    continue
                await self._patiently(partial(self._deliver, slots))
            finally:
                self.index.put_back(slots)  # those that are not delivered
                landed, self._landed = self._landed, asyncio.Event()
                landed.set()
            await self._move_floor()

    async def _rest(self) -> None:
        """Until something is due, or was said."""
        self._wake.clear()
        due = self.index.next_due
        seconds = LONGEST if due is None else due / 1000 - self._clock.time()
        if seconds <= 0 or self.index.exhausted:
            return
        self.resting_until, self.resting = due, True
        try:
            async with asyncio.timeout(min(LONGEST, self._clock.timeout(seconds))):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _deliver(self, slots: list[Slot]) -> None:
        """Write these where they go, and mark them."""
        rows, whole = await in_thread(self._fetcher.fetch, sorted(map(position_of, slots)), BYTES)
        # As far as payloads are at hand: what is due later does not go first.
        chosen: list[Slot] = []
        for slot in slots:
            if position_of(slot) not in rows:
                break
            chosen.append(slot)
        self._size = min(BATCH, self._size * 2) if whole else max(1, len(slots) // 2)

        outgoing: list[Outgoing] = []
        senders: list[tuple[Slot, bytes]] = []
        dead: list[tuple[Slot, bytes, BaseException]] = []
        vanished: list[Slot] = []
        for slot in chosen:
            row = rows[position_of(slot)]
            if row is None or row.key is None:
                vanished.append(slot)
                continue
            entry = wire.parse(row.key, row.value, row.headers)
            if entry is None or not self._desk.allowed(entry.to):
                dead.append((slot, row.key, _undeliverable(entry)))
            else:
                outgoing.append((entry.to, entry.record))
                senders.append((slot, row.key))
        self.index.vanished(vanished)
        answers = await self._write(outgoing)
        ended: list[tuple[Slot, bytes, wire.Outcome]] = []
        for (slot, key), answer in zip(senders, answers, strict=True):
            if answer is None:
                ended.append((slot, key, "delivered"))
            else:
                dead.append((slot, key, answer))
        if dead:
            await self._bury(dead, rows)
            for slot, key, _ in dead:
                ended.append((slot, key, "dead"))
        await self._mark(ended)

    async def _mark(self, ended: Sequence[tuple[Slot, bytes, wire.Outcome]]) -> None:
        marks: list[Outgoing] = []
        for slot, key, outcome in ended:
            record = wire.mark(key, outcome, f"{text(key)}/{position_of(slot)}/{outcome}")
            record.partition = self._partition
            marks.append((self._topic, record))
        for answer in await self._write(marks):
            if answer is not None:  # it is delivered again after a restart, under the same ID
                logger.error("%s: a delivery could not be marked: %r", self, answer)
        figures = self._desk.figures
        for slot, key, outcome in ended:
            name = wire.digest(key)
            self.index.done(name, slot)
            self._recent.add(name, outcome)
            if outcome == "dead":
                figures.dead += 1
            else:
                figures.delivered += 1

    async def _bury(
        self, dead: Sequence[tuple[Slot, bytes, BaseException]], rows: dict[int, Any]
    ) -> None:
        """Write dead letters of what cannot be delivered, as it stands in the delay topic."""
        when = datetime.fromtimestamp(self._clock.time(), timezone.utc).isoformat()
        buried: list[Outgoing] = []
        for slot, key, error in dead:
            position = position_of(slot)
            row = rows[position]
            place = (self._topic, self._partition, self._log.show(position))
            headers = wire.without(row.headers, (ID,))
            headers += letters.error_headers(error, 1, self._topic, place, when)
            logger.warning("%s: cannot be delivered: %s", "/".join(map(str, place)), error)
            id = f"{text(key)}/{position}"
            buried.append((f"{self._topic}.dead", Record(row.value, key, id, headers)))
        for answer in await self._write(buried):
            if answer is not None:
                raise LogError(f"{self}: a dead letter was refused: {answer}") from answer

    async def _write(self, outgoing: Sequence[Outgoing]) -> Sequence[BaseException | None]:
        """Write through outages; per record None, or what it is refused for."""
        if not outgoing:
            return ()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sequence[BaseException | None]] = loop.create_future()

        def told(errors: Sequence[BaseException | None]) -> None:
            if not future.done():
                future.set_result(errors)

        def sent(errors: Sequence[BaseException | None]) -> None:
            self._desk._on_loop(partial(told, errors))

        self._app.publisher.derive(outgoing, sent)
        return await future

    # -- the floor

    async def _move_floor(self) -> None:
        """Say from where on something may be pending, now and then."""
        now = asyncio.get_running_loop().time()
        if now < self._floor_at + FLOOR:
            return
        self._floor_at = now
        lowest = self.index.lowest
        floor = self._heard if lowest is None else lowest
        if floor <= self._floor:
            return
        place = {self._partition: Committed(floor)}
        group, topic = floor_group(self._topic), self._topic
        try:
            await in_thread(partial(self._log.move, group, topic, place, force=True))
            self._floor = floor
        except LogError as error:
            logger.info("%s: the floor stays where it is: %s", self, error)


def _undeliverable(entry: wire.Entry | None) -> InvalidValue:
    if entry is None:
        return InvalidValue("this is no entry that a delay topic can hold")
    return InvalidValue(f"due for topic {entry.to!r}, which this app does not declare")


class Recent:
    """What became of the last so many IDs, at least ``size`` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._new: dict[int, str] = {}
        self._old: dict[int, str] = {}

    def add(self, name: int, outcome: str) -> None:
        """That is what became of it."""
        self._new[name] = outcome
        if len(self._new) >= self._size:
            self._new, self._old = {}, self._new

    def get(self, name: int) -> str | None:
        """What became of it, if that is remembered."""
        return self._new.get(name) or self._old.get(name)
