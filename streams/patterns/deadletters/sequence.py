"""Who keeps keys closed: the owner of a source partition, beside its processor.

The rules, and what a crash can do, stand at the head of :mod:`streams.patterns.deadletters.parked`.
This is their I/O. For each source partition that is owned there is a *shelf*, which

1. reads the partition's records from the *floor* on and opens its epoch, before anything of the
   partition is handled; the floor is the place of a group without members, named as the topic;
2. says of each message whose turn has come whether its key is closed, and what to write then;
3. reads back what was written before the source's position is committed: all that was confirmed
   since the last commit in one reading, and nothing where nothing was parked;
4. reads on while keys are closed, fetches what is to be handled again, and has it handled by the
   processor, in the key's lane, before whatever else of the key waits there;
5. moves the floor.

An owner that reads that its epoch was replaced, or whose records are not in the log although they
were confirmed, does nothing more with the partition: the pump lets go of it, and begins it again at
the committed position (:meth:`Shelves.replaced`).

In memory there are keys, offsets and positions, never payloads, and :data:`HELD` messages a
partition at most: at the bound, what would be parked waits in its lane instead. Payloads are
fetched a few (:data:`AHEAD`) of a key ahead.

The pump's thread begins, reads and fetches; what the runner asks needs no I/O. A lock a shelf
stands between them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from streams.engine.dispatch import Owned, Work
from streams.engine.progress import Segment
from streams.errors import LogError, Mismatch, OutcomeUnknown, Unavailable
from streams.letters import header
from streams.log.names import check_topic
from streams.log.protocol import Assignment, Committed, Log, Retention, ensure
from streams.message import UNREADABLE, Batch, Record
from streams.patterns.deadletters import chain, parked
from streams.patterns.deadletters.parked import Queue, State, parked_topic
from streams.patterns.deadletters.redriving import append
from streams.patterns.delay.fetch import Fetcher, Row
from streams.processor import Processor
from streams.runners.job import Outgoing, Parking
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.app import Streams

logger = get_logger("streams.dead")

HELD = 500_000
"""Messages in the queues of a partition's closed keys, at most."""

AHEAD = 64
"""Messages of one key that are fetched ahead, at most."""

FETCH = 1_000
"""Messages of a partition that are fetched at once, at most."""

BYTES = 4 << 20
"""Their bytes, at most; a single larger one is fetched alone."""

CHUNK = 1_000
"""Records read at once, at most."""

LOOK = 0.25
"""Real seconds between two looks at what was said, while keys are closed."""

FLOOR = 5.0
"""Real seconds between two moves of the floor, at least."""

MISSING = 10.0
"""Real seconds until a record that was confirmed and cannot be read counts as lost."""

AGAIN = 1.0
"""Real seconds until a partition is begun again whose epoch is replaced for the second time (times
2 each time, to 30; the first time it is begun again at once)."""

CALM = 60.0
"""Real seconds without another replacement after which the next one counts as the first."""

TRIMMED = Retention(messages=10_000)
"""How the topic is kept on a log that trims: everything from the floor on, and a little."""


class Returned(Segment):
    """Parked messages on their way to the handler, as they stood in their source."""

    __slots__ = ("generations",)

    def __init__(self, owner: Owned, batch: Batch, generations: list[int]) -> None:
        super().__init__(owner, batch)
        self.generations = generations


def keep(app: Streams, processor: Processor[..., Any]) -> Shelves:
    """What keeps a processor's closed keys."""
    return Shelves(app, processor)


class Shelves:
    """See :class:`streams.runners.job.Ordered`."""

    def __init__(self, app: Streams, processor: Processor[..., Any]) -> None:
        self._app = app
        self._group = processor.group
        self._topics = {
            topic: check_topic(parked_topic(topic, processor.group)) for topic in processor.topics
        }
        self._shelves: dict[tuple[str, int], Shelf] = {}
        self._replaced: dict[tuple[str, int], tuple[int, float]] = {}
        """How often the epoch of a partition was replaced of late, and when last."""
        self.wake: Callable[[], None] = lambda: None

    def prepare(self, log: Log) -> None:
        """Create the topics of closed keys, with as many partitions as their sources."""
        for topic, name in self._topics.items():
            make_topic(log, name, log.topic(topic).partitions, topic)

    # -- the pump's side

    def begin(
        self, assignment: Assignment, position: int, *, fresh: bool, alive: Callable[[], None]
    ) -> Collection[int]:
        """Read what is closed, and open an epoch."""
        name = self._topics.get(assignment.topic)
        if name is None:
            return ()
        now = self._app.clock.monotonic
        shelf = Shelf(self._app.log, assignment, name, self._group, now)
        shelf.begin(position, fresh=fresh, alive=alive)
        self._shelves[assignment.topic, assignment.partition] = shelf
        return list(shelf.state.sources)

    def own(self, assignment: Assignment, owned: Owned) -> None:
        """From now on its messages are handled."""
        shelf = self._shelves.get((assignment.topic, assignment.partition))
        if shelf is not None and shelf.assignment is assignment:
            shelf.owned = owned

    def gone(self, assignments: Sequence[Assignment]) -> None:
        """These are given up or lost."""
        for each in assignments:
            place = (each.topic, each.partition)
            shelf = self._shelves.get(place)
            if shelf is not None and shelf.assignment is each:
                del self._shelves[place]

    def turn(self) -> Sequence[Segment]:
        """Read on, and fetch what is to be handled."""
        now = time.monotonic()
        found = (shelf.turn(now) for shelf in list(self._shelves.values()))
        return [segment for segment in found if segment is not None]

    def proven(self, assignment: Assignment) -> bool:
        """All that was parked of a partition was read back, so that it may be committed."""
        shelf = self._shelves.get((assignment.topic, assignment.partition))
        if shelf is None or shelf.assignment is not assignment:
            return True
        try:
            return shelf.proven()
        except LogError as error:
            # Nothing is lost by it: the position waits until the log answers.
            logger.warning("%s/%d: cannot be read back: %s", shelf.name, shelf.partition, error)
            return False

    def replaced(self) -> Sequence[tuple[Assignment, float]]:
        """Assignments that must be begun again, and after how many seconds."""
        found: list[tuple[Assignment, float]] = []
        now = time.monotonic()
        for place, shelf in list(self._shelves.items()):
            if not shelf.over:
                continue
            count, last = self._replaced.get(place, (0, 0.0))
            count = count + 1 if now - last < CALM else 1
            self._replaced[place] = (count, now)
            pause = 0.0 if count == 1 else min(CALM / 2, AGAIN * 2.0 ** min(count - 2, 10))
            logger.error(
                "%s/%d: %s; begins again at the committed position%s",
                shelf.name, shelf.partition, shelf.over, f" in {pause:g} s" if pause else "",
            )  # fmt: skip
            found.append((shelf.assignment, pause))
        return found

    def contested(self) -> int:
        """How many partitions somebody else wrote to as their owner of late (any thread)."""
        now = time.monotonic()
        return sum(1 for _, last in list(self._replaced.values()) if now - last < CALM)

    def busy(self) -> str:
        """What keeps it from being at rest, in words (any thread)."""
        for shelf in list(self._shelves.values()):
            if shelf.moving:
                return "parked messages are coming back"
            if shelf.behind:
                return "what was said of closed keys was not read yet"
        return ""

    # -- the runner's side

    def parking(self, work: Work) -> Parking | None:
        """None: the message is to be handled."""
        shelf = self._shelf(work)
        return None if shelf is None else shelf.parking(work)

    def closed(self, work: Work) -> bool:
        """Its key is closed, or it has come back."""
        shelf = self._shelf(work)
        key = work[0].keys[work[1]]
        return shelf is not None and key is not None and key in shelf.state.keys

    def clear(self, segment: Segment) -> bool:
        """No key of the partition is closed."""
        batch = segment.batch
        if batch.topic not in self._topics:
            return True
        shelf = self._shelves.get((batch.topic, batch.partition))
        return shelf is not None and shelf.owned is segment.owner and not shelf.state.keys

    def back(self, work: Work) -> bool:
        """The message has come back by :meth:`turn`."""
        return type(work[0]) is Returned

    def buried(self, work: Work, letter: Outgoing) -> Outgoing:
        """A dead message closes its key; one without a key goes to the dead letters."""
        shelf = self._shelf(work)
        return letter if shelf is None else shelf.buried(work, letter)

    def done(self, work: Work) -> Outgoing:
        """Says that a message that has come back was handled."""
        segment, index = work[0], work[1]
        shelf, key = self._shelf(work), segment.keys[index]
        if shelf is None or key is None:
            raise Unavailable(f"{segment.batch.topic}: not owned any more")
        return shelf.name, parked.done_record(
            shelf.owner, shelf.partition, segment.batch.offsets[index], key
        )

    def written(self, work: Work) -> bool:
        """What was wanted for this message is confirmed."""
        segment, index = work[0], work[1]
        if segment.batch.topic not in self._topics or segment.keys[index] is None:
            return True  # an ordinary dead letter
        shelf = self._shelf(work)
        if not segment.owner.live or shelf is None:
            return False
        if type(segment) is not Returned:
            shelf.confirmed(segment.batch.offsets[index])
        elif work[6] is None and shelf.handled(work):
            self.wake()
        return True

    def refused(self, work: Work) -> None:
        """The log refuses it."""
        shelf = self._shelf(work)
        if shelf is not None and type(work[0]) is not Returned:
            shelf.refused(work)

    def _shelf(self, work: Work) -> Shelf | None:
        batch = work[0].batch
        shelf = self._shelves.get((batch.topic, batch.partition))
        return shelf if shelf is not None and shelf.owned is work[0].owner else None


@dataclass(frozen=True, slots=True)
class _Next:
    """A message that is to be fetched and handled."""

    key: bytes
    queue: Queue
    generation: int
    source: int
    position: int


class Shelf:
    """The closed keys of one source partition that is owned."""

    def __init__(
        self,
        log: Log,
        assignment: Assignment,
        name: str,
        group: str,
        now: Callable[[], float],
    ) -> None:
        self._log = log
        self._now = now
        self._group = group
        self.assignment = assignment
        self.name = name
        self.partition = assignment.partition
        self.owner = ""
        """Its epoch, once that is open."""
        self.over = ""
        """Why nothing more may be done with the partition, once that is so."""
        self.state = State()
        self.owned: Owned | None = None
        self._lock = threading.Lock()
        self._at = 0
        """Everything below was read."""
        self._fetcher = Fetcher(log, name, assignment.partition)
        self._crowded = False
        """It was said that no more is held."""
        self._look = 0.0
        self._hurry = False
        self._floor = -1
        self._floor_at = time.monotonic() + FLOOR
        self._moved_at = -1
        """Where reading stood when the floor could go no further."""
        self._sent: set[int] = set()
        """Source offsets whose records are being written."""
        self._unproven: set[int] = set()
        """Source offsets whose records are confirmed, and were not read back."""
        self._missing_since: float | None = None

    # -- the pump's side

    def begin(self, position: int, *, fresh: bool, alive: Callable[[], None]) -> None:
        """Read what stands there, open the epoch, and read everything up to its record.

        :raises Unavailable: somebody else has opened one meanwhile, or the log is out of reach.
        """
        log, name, partition = self._log, self.name, self.partition
        start, end, in_force = chain.floor(log, name, partition)
        self.state = State(in_force, since=position)
        if in_force:
            self.state.tenures.append((start - 1, in_force))
        self._at = self._floor = start
        self._read(end, alive)
        me = uuid4().hex
        opening = parked.owner_record(me, self.state.owner, partition, fresh=fresh)
        (answer,) = append(log, name, [opening], alive)
        if isinstance(answer, OutcomeUnknown):
            raise Unavailable(str(answer)) from answer
        if isinstance(answer, LogError):
            raise answer
        self.owner = parked.epoch(answer.offset, me)
        self._read(answer.offset + 1, alive)
        if self.state.owner != self.owner:
            # Whoever it was owns the partition now, or is to be replaced at the next try. Which
            # of the two, the log says when it is asked for the partition again.
            raise Unavailable(
                f"{name}/{partition}: another owner record was written between looking and writing"
            )
        if self.state.keys:
            logger.info("%s/%d: %d keys are closed", name, partition, len(self.state.keys))

    def _read(self, end: int, alive: Callable[[], None] = lambda: None) -> None:
        """Read up to a position."""
        if self._at >= end:
            return
        state, refused = self.state, self.state.refused
        reader = self._log.reader(self.name, self.partition, self._at, end)
        try:
            while (batch := reader.read(CHUNK)) is not None:
                alive()
                records = chain.records(batch)
                with self._lock:
                    for record in records:
                        state.read(*record)
                self._at = batch.offsets[-1] + 1
            self._at = end
        finally:
            reader.close()
        if state.refused > refused and self.owner:
            logger.warning(
                "%s/%d: an owner record counts for nobody: a former owner wrote it late, or a "
                "worker of an older release runs beside this one, or a stranger wrote it",
                self.name, self.partition,
            )  # fmt: skip
        if self.owner and state.owner != self.owner and not self.over:
            self.over = "another owner record has replaced this owner's"

    def proven(self) -> bool:
        """Whether all that was parked so far was read back, so that what is below it may be
        committed; reads on.

        :raises LogError: it cannot be read now.
        """
        with self._lock:
            wanted = set(self._unproven)
        if not wanted:
            return True
        if self.over:
            return False
        self._read(self._log.bounds(self.name, self.partition)[1])
        with self._lock:
            missing = wanted.difference(self.state.sources)
            self._unproven -= wanted - missing
        now = time.monotonic()
        if not missing:
            self._missing_since = None
            return True
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since >= MISSING and not self.over:
            self.over = "records that were confirmed are not in the log"
        return False

    def turn(self, now: float) -> Segment | None:
        """Read on where there is a reason to; what is to be handled next."""
        if self.over:
            return None
        state = self.state
        if state.unread and (now >= self._look or self._hurry):
            self._look, self._hurry = now + LOOK, False
            self._read(self._log.bounds(self.name, self.partition)[1])
        if now >= self._floor_at:
            self._floor_at = now + FLOOR
            self._move_floor()
        return self._fetch() if state.moving and not self.over else None

    @property
    def moving(self) -> bool:
        """Some key's messages are to be handled, and not handed out yet."""
        with self._lock:
            return any(not queue.given for queue in self.state.moving.values())

    @property
    def behind(self) -> bool:
        """Keys are closed, and something was said since the last look."""
        return bool(self.state.keys) and self._at < self._log.bounds(self.name, self.partition)[1]

    def _wanted(self) -> list[_Next]:
        found: list[_Next] = []
        with self._lock:
            for key, queue in self.state.moving.items():
                if queue.given:
                    continue  # in its lane, more would go before these
                for at in range(min(len(queue), AHEAD)):
                    place = queue.place(at)
                    if place < 0:
                        break
                    found.append(_Next(key, queue, queue.generation, queue.sources[at], place))
                if len(found) >= FETCH:
                    break
        return found

    def _fetch(self) -> Segment | None:
        """The messages that are to be handled next, those of a key in order."""
        owned, wanted = self.owned, self._wanted()
        if owned is None or not wanted:
            return None
        rows, _ = self._fetcher.fetch(sorted(each.position for each in wanted), BYTES)
        chosen: list[tuple[_Next, Row]] = []
        ended: set[bytes] = set()
        with self._lock:
            for each in wanted:
                queue = each.queue
                if each.key in ended or self.state.keys.get(each.key) is not queue:
                    continue
                given = queue.given
                if (
                    queue.generation != each.generation
                    or each.position not in rows
                    or given >= len(queue)
                    or queue.sources[given] != each.source
                ):
                    ended.add(each.key)
                    continue
                row = rows[each.position]
                if row is None:
                    ended.add(each.key)
                    if given == 0:
                        self._vanished(each)
                    continue
                queue.given += 1
                chosen.append((each, row))
        return self._returned(owned, chosen) if chosen else None

    def _vanished(self, each: _Next) -> None:
        logger.error(
            "%s/%d: the message parked at %s was deleted before it was handled",
            self.name, self.partition, self._log.show(each.position),
        )  # fmt: skip
        self.state.done(each.key, each.source)

    def _returned(self, owned: Owned, chosen: Sequence[tuple[_Next, Row]]) -> Segment:
        found = [parked.original(row.headers) for _, row in chosen]
        batch = Batch(
            self.assignment.topic,
            self.partition,
            [each.source for each, _ in chosen],
            [each.key for each, _ in chosen],
            [row.value for _, row in chosen],
            [each.id for each in found],
            [each.headers for each in found],
            [each.time for each in found],
            unreadable=_unreadable([row for _, row in chosen]),
        )
        return Returned(owned, batch, [each.generation for each, _ in chosen])

    def _move_floor(self) -> None:
        """Say from where on the next owner is to read; never back."""
        if self._now() >= self.assignment.valid_until or self._at == self._moved_at:
            return
        log, name, topic = self._log, self.name, self.assignment.topic
        place = log.places(self._group, topic).get(self.partition)
        if place is None:
            return
        with self._lock:
            at = self._at
            floor, tenure = self.state.floor(at, place.position)
        if floor > self._floor:
            before = log.places(name, name).get(self.partition)
            if before is None or before.position < floor:
                log.move(name, name, {self.partition: Committed(floor, tenure)}, force=True)
            self._floor = floor
        if floor >= at:
            self._moved_at = at

    # -- the runner's side

    def parking(self, work: Work) -> Parking | None:
        """None: the message is to be handled."""
        segment, index = work[0], work[1]
        key = segment.keys[index]
        if key is None:
            return None
        if isinstance(segment, Returned):
            return self._checked(key, segment, index)
        if key not in self.state.keys:
            return None
        offset = segment.batch.offsets[index]
        with self._lock:
            queue = self.state.keys.get(key)
            if queue is None or offset < queue.sources[0]:
                # Those before the head were handled before it failed: they come again because
                # that was not committed, or the group was reset.
                return None
            if offset in queue or offset in self.state.sources:
                return Parking(None)  # its record stands there already
            self._check_room(queue)
            self.state.expect(key, offset, dead=False)
            self._sent.add(offset)
        batch = segment.batch
        headers = parked.without(batch.headers(index))
        record = Record(batch.values[index], key, batch.id(index), headers)
        entry = parked.entry_record(
            "waits", self.owner, self.partition, offset, record, batch.time(index)
        )
        return Parking((self.name, entry))

    def _checked(self, key: bytes, segment: Returned, index: int) -> Parking | None:
        """Whether a message that has come back is still its key's turn."""
        with self._lock:
            queue = self.state.keys.get(key)
            if (
                queue is not None
                and not queue.dead
                and queue.generation == segment.generations[index]
                and queue.sources[0] == segment.batch.offsets[index]
            ):
                return None
        return Parking(None, settled=False)

    def buried(self, work: Work, letter: Outgoing) -> Outgoing:
        """What closes its key, or keeps it closed."""
        segment, index = work[0], work[1]
        batch, key = segment.batch, segment.keys[index]
        if key is None:
            return letter
        offset = batch.offsets[index]
        if type(segment) is not Returned:
            with self._lock:
                queue = self.state.keys.get(key)
                if queue is not None and offset < queue.sources[0]:
                    return letter  # handled again, before what is parked
                self._check_room(queue)
                self.state.expect(key, offset, dead=True)
                self._sent.add(offset)
        entry = parked.entry_record(
            "dead", self.owner, self.partition, offset, letter[1], batch.time(index)
        )
        return self.name, entry

    def _check_room(self, queue: Queue | None) -> None:
        """A key whose messages are coming back is let through: they need the lane that this
        message has, and make room."""
        if self.state.held < HELD or (queue is not None and not queue.dead):
            self._crowded = False
            return
        said = (
            f"{self.name}/{self.partition} holds {HELD} messages of closed keys: retry or drop the "
            "dead ones, see streams dead keys"
        )
        if not self._crowded:
            logger.error("%s; until then their keys wait where they are", said)
            self._crowded = True
        raise Unavailable(said)

    def handled(self, work: Work) -> bool:
        """A message that came back was handled, and that is written. True: more of its key is to
        be fetched."""
        segment, index = work[0], work[1]
        key = segment.keys[index]
        if key is None:
            return False
        with self._lock:
            self.state.done(key, segment.batch.offsets[index], early=True)
            queue = self.state.keys.get(key)
            if queue is None or queue.given:
                return False
            self._hurry = True
            return True

    def confirmed(self, offset: int) -> None:
        """The record of a message that was dead or parked is written. What it says counts once it
        was read back."""
        with self._lock:
            if offset in self._sent:
                self._sent.discard(offset)
                self._unproven.add(offset)

    def refused(self, work: Work) -> None:
        """It is not written."""
        segment, index = work[0], work[1]
        key, offset = segment.keys[index], segment.batch.offsets[index]
        if key is not None:
            with self._lock:
                self.state.unexpect(key, offset)
                self._sent.discard(offset)


def make_topic(log: Log, name: str, partitions: int, source: str) -> None:
    """Create a topic of closed keys, or find it; blocks.

    :raises Mismatch: it has not as many partitions as its source.
    """
    capabilities = log.capabilities
    info = ensure(log, name, partitions, config=capabilities.letters)
    if info.partitions != partitions:
        raise Mismatch(
            f"topic {name!r} has {info.partitions} partitions, but {source!r}, whose closed keys "
            f"it holds, has {partitions}; give it as many"
        )
    if not log.places(name, name):  # before anything may be trimmed
        log.begin(name, name, {part: log.bounds(name, part)[0] for part in range(partitions)})
    if not capabilities.compacted and info.retention != TRIMMED:
        log.create(name, partitions, TRIMMED)


def _unreadable(rows: Sequence[Row]) -> dict[int, str]:
    """Of those that waited unseen, why the headers could not be read that they had in their source.

    One that is dead for it and comes back is handled: somebody decided so.
    """
    found: dict[int, str] = {}
    for index, row in enumerate(rows):
        why = header(row.headers, UNREADABLE)
        if why is not None and header(row.headers, parked.WHAT) == "waits":
            found[index] = why
    return found
