"""Which message may be handled now: key lanes over what was polled.

Rules
-----

1. A *lane* is a key of one topic and partition, as bytes; a keyless message has its identity for a
   lane, so that a duplicate of a message in flight waits for its outcome. A message with neither
   has no lane and never waits.
2. A lane that is in ``Owned.lanes`` is *busy*: its message is being handled, waits to be tried
   again, or is being buried. Later messages of a busy lane queue up in it. When the lane's message
   is settled, the next of its queue goes to ``ready``, before anything that was not looked at yet.
3. A duplicate is found when its turn comes, never earlier: what it duplicates may still fail.
4. Lanes outlive the assignment. A partition that is revoked loses its queues, but lanes whose
   handler is still running stay busy (the *fence*), so when the partition comes back to this
   process those keys wait. Both assignments share one dict of lanes for that; a batch that
   outlived its partition frees each of its lanes once.
5. Nothing starts when ownership is not certain (``now >= valid_until``): everything waits until it
   is confirmed again, or lost.
6. A lane has one holder: the message that is handled, waits or is buried. A batch may hold several
   messages of a key; once its outcome is known, the first that is not settled keeps the lane and
   the others queue up behind it.
7. With ``in_order=False`` a message that failed gives its key's lane up and has its identity for a
   lane from then on, so that its duplicates, whatever their key, still wait for it.
8. A message that comes back another way than from its partition (:meth:`Dispatcher.insert`) goes
   before whatever waits in its key's lane. It has no identity: it was settled in its partition.

A piece of work is a plain tuple, because an object a message is what the hot loop cannot afford:
``(segment, index, lane, identity, attempt, alone, burial)``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol, TypeAlias

from streams.config import Retry
from streams.engine.progress import Progress, Segment
from streams.engine.retry import again
from streams.engine.window import Window

Lane: TypeAlias = "bytes | str | None"

AHEAD = 2_000
"""Messages that were not looked at yet, from which on no more are needed for now. What waits for
its turn falls out of the processor's cache, and Python's cyclic garbage collector goes through it
again and again: with five times as many, a message cost 7 % more CPU (on Kafka)."""


class Burial(NamedTuple):
    """A message that will not be handled: why, after how many attempts, and how often the write
    to the dead letters failed so far."""

    error: BaseException
    attempts: int
    tries: int = 0


Work: TypeAlias = "tuple[Segment, int, Lane, str | None, int, bool, Burial | None]"
"""Segment, index into it, lane, identity, attempt (from 1), not to be batched with others,
and, for a message on its way to the dead letters, why."""


class Ownership(Protocol):
    """What the engine reads of an assignment."""

    topic: str
    partition: int
    valid_until: float


class Owned:
    """One assignment's state: progress, window and lanes."""

    __slots__ = (
        "assignment",
        "freed",
        "lanes",
        "live",
        "pending",
        "progress",
        "version",
        "window",
    )

    def __init__(self, assignment: Any, progress: Progress, window: Window | None) -> None:
        self.assignment = assignment
        """An :class:`Ownership`; the log's own object."""
        self.progress = progress
        self.window = window
        """None: deduplication is off."""
        self.lanes: dict[Lane, deque[Work] | None] = {}
        self.live = True
        """Not revoked and not lost."""
        self.freed: set[Lane] = set()
        """Once revoked: the lanes whose handlers have ended since."""
        self.pending = 0
        """Messages handled or given up, whose writes are not confirmed yet."""
        self.version = 0
        """How many snapshots were taken, so that an older one can be told from a newer."""


class Counts:
    """What happened so far, counted where it is rare."""

    __slots__ = ("buried", "duplicates", "filtered", "handled", "retries")

    def __init__(self) -> None:
        self.handled = 0
        self.duplicates = 0
        self.filtered = 0
        self.retries = 0
        self.buried = 0


def _offset(work: Work) -> int:
    return work[0].batch.offsets[work[1]]


class Dispatcher:
    """Feeds runners. Every method but :meth:`offer` is for one caller at a time."""

    def __init__(self, retry: Retry, refill: Callable[[], None] = lambda: None) -> None:
        """``refill`` is called when a segment is begun and fewer than :data:`AHEAD` wait."""
        self._retry = retry
        self._loose = not retry.in_order
        self.refill = refill
        self._owned: dict[tuple[str, int], Owned] = {}
        self._fences: dict[tuple[str, int], dict[Lane, deque[Work] | None]] = {}
        self._incoming: deque[Segment] = deque()
        self.offered = 0
        """Messages that were ever offered."""
        self._begun = 0
        self.segment: Segment | None = None
        """What is given out now; None between two segments."""
        self._cursor: Iterator[tuple[int, bytes | None, str | None]] = iter(())
        self.ready: deque[Work] = deque()
        """Messages whose turn has come: behind another of their key, or after a pause."""
        self._timers: list[tuple[float, int, Work]] = []
        self._ticket = 0
        self.paused = False
        """Nothing is given out while set; what runs goes on."""
        self.counts = Counts()

    # -- partitions

    def assign(self, owned: Owned) -> None:
        """Begin with a partition. Lanes still busy from an earlier assignment stay so."""
        place = (owned.assignment.topic, owned.assignment.partition)
        owned.lanes = self._fences.pop(place, owned.lanes)
        self._owned[place] = owned

    def revoke(self, owned: Owned) -> None:
        """Give out nothing more of this partition. What runs is still to be reported."""
        if not owned.live:
            return  # its lanes may be the next assignment's already
        place = (owned.assignment.topic, owned.assignment.partition)
        owned.live = False
        if self._owned.get(place) is owned:
            del self._owned[place]
        if self.segment is not None and self.segment.owner is owned:
            self.segment, self._cursor = None, iter(())
        waiting = [work for work in self.ready if work[0].owner is owned]
        waiting += [work for _, _, work in self._timers if work[0].owner is owned]
        self.ready = deque(work for work in self.ready if work[0].owner is not owned)
        self._timers = [timer for timer in self._timers if timer[2][0].owner is not owned]
        self._timers.sort()
        lanes = owned.lanes
        for work in waiting:  # their lanes are busy, but nobody is running in them
            lanes.pop(work[2], None)
        for lane in lanes:
            lanes[lane] = None
        if lanes:
            self._fences[place] = lanes

    # -- what is there

    def offer(self, segment: Segment) -> None:
        """Take in a segment (any thread)."""
        self._incoming.append(segment)
        self.offered += len(segment)

    def insert(self, segment: Segment) -> None:
        """Give these messages out, each before whatever else of its key waits, alone and in order.

        They are not part of their partition's progress, and no duplicate is looked for.
        """
        owned = segment.owner
        if not owned.live:
            return
        queues: dict[bytes | None, list[Work]] = {}
        for index, key in enumerate(segment.keys):
            queues.setdefault(key, []).append((segment, index, key, None, 1, True, None))
        for key, queue in queues.items():
            if key is None:
                self.ready.extend(queue)
            elif key in owned.lanes:
                self._queue_first(queue, {(id(owned), key): queue})
            else:
                owned.lanes[key] = deque(queue[1:]) or None
                self.ready.append(queue[0])

    @property
    def backlog(self) -> bool:
        """Something was offered that was not looked at yet."""
        return bool(self.ready or self._incoming or self.segment is not None)

    @property
    def ahead(self) -> int:
        """How many messages were offered that no segment was begun of (any thread)."""
        return self.offered - self._begun

    def wake(self, now: float) -> None:
        """Make ready what has waited long enough."""
        timers = self._timers
        while timers and timers[0][0] <= now:
            self.ready.append(heappop(timers)[2])

    @property
    def due(self) -> float | None:
        """When the next waiting message may be tried again, in monotonic seconds."""
        first = self._timers[:1]  # others may look on while the runner takes it out
        return first[0][0] if first else None

    @property
    def waiting(self) -> int:
        """How many messages wait to be tried again."""
        return len(self._timers)

    def waiting_keys(self, limit: int = 10) -> list[tuple[str, int, Lane, int]]:
        """Topic, partition, lane and attempt of messages waiting to be tried again."""
        return [
            (w[0].batch.topic, w[0].batch.partition, w[2], w[4])
            for _, _, w in sorted(self._timers)[:limit]
        ]

    # -- dispatch

    def take(self, now: float) -> Work | None:
        """The next message whose turn has come, or None. Its lane is busy from here on."""
        if self.paused:
            return None
        if self.ready:
            work = self.ready[0]
            if now >= work[0].owner.assignment.valid_until:
                return None
            self.ready.popleft()
            return work
        while True:
            segment = self.segment
            if segment is None:
                segment = self._next_segment()
                if segment is None:
                    return None
            owned = segment.owner
            if now >= owned.assignment.valid_until:
                return None
            lanes, window, holes, loose = owned.lanes, owned.window, segment.holes, self._loose
            for index, key, identity in self._cursor:
                if holes and segment.done[index]:
                    continue
                lane: Lane = identity if key is None or (loose and identity in lanes) else key
                if lane is not None:
                    if lane in lanes:
                        queue = lanes[lane]
                        work = (segment, index, lane, identity, 1, False, None)
                        if queue is None:
                            lanes[lane] = deque((work,))
                        else:
                            queue.append(work)
                        continue
                    if (
                        identity is not None
                        and window is not None
                        and (identity in window.new or identity in window.old)
                    ):
                        segment.done[index] = 1
                        self.counts.duplicates += 1
                        continue
                    lanes[lane] = None
                return (segment, index, lane, identity, 1, False, None)
            self.segment = None

    def take_batch(self, now: float, limit: int) -> list[Work]:
        """Up to ``limit`` messages whose turn has come, in order.

        A key may recur within a batch, an identity may not. A message to be handled alone, or to
        be buried, comes alone.
        """
        batch: list[Work] = []
        mine: set[tuple[int, Lane]] = set()
        identities: set[str] = set()
        while len(batch) < limit:
            work = self.take(now) if self.ready else self._scan(now, mine, identities)
            if work is None:
                break
            if work[5] or work[6] is not None:
                if batch:
                    self.ready.appendleft(work)
                else:
                    batch.append(work)
                break
            owned, lane = work[0].owner, work[2]
            queue = None
            while True:
                batch.append(work)
                identity = work[3]
                if identity is not None:
                    identities.add(identity)
                if lane is None:
                    break
                mine.add((id(owned), lane))
                queue = owned.lanes[lane]
                if not queue or len(batch) >= limit or queue[0][5]:
                    break
                if queue[0][3] in identities or self._settled_before(queue[0]):
                    break
                if self._loose and lane != queue[0][3] and queue[0][3] in owned.lanes:
                    break
                work = queue.popleft()
            if queue is not None and not queue and lane is not None:
                owned.lanes[lane] = None
        return batch

    def _scan(self, now: float, mine: set[tuple[int, Lane]], identities: set[str]) -> Work | None:
        """Like :meth:`take` without ``ready``; a key that this batch holds is not in its way."""
        while not self.paused:
            segment = self.segment or self._next_segment()
            if segment is None:
                return None
            owned = segment.owner
            if now >= owned.assignment.valid_until:
                return None
            lanes, loose = owned.lanes, self._loose
            for index, key, identity in self._cursor:
                if segment.done[index]:
                    continue
                lane: Lane = identity if key is None or (loose and identity in lanes) else key
                work: Work = (segment, index, lane, identity, 1, False, None)
                if lane is None:
                    return work
                if lane in lanes:
                    queue = lanes[lane]
                    if queue is not None:
                        queue.append(work)
                    elif (
                        (id(owned), lane) in mine
                        and identity not in identities
                        and not self._settled_before(work)
                    ):
                        return work
                    else:
                        lanes[lane] = deque((work,))
                elif self._settled_before(work):
                    segment.done[index] = 1
                    self.counts.duplicates += 1
                else:
                    lanes[lane] = None
                    return work
            self.segment = None
        return None

    def _next_segment(self) -> Segment | None:
        while self._incoming:
            segment = self._incoming.popleft()
            self._begun += len(segment)
            if segment.owner.live:
                self._begin(segment, 0)
                if self.ahead < AHEAD:
                    self.refill()
                return segment
        return None

    def _begin(self, segment: Segment, start: int) -> None:
        """Give out this segment from an index on."""
        count = len(segment)
        if start < count:
            self.segment = segment
            keys, ids = segment.keys, segment.ids
            if start:
                keys, ids = keys[start:], ids[start:]
            self._cursor = zip(range(start, count), keys, ids, strict=True)
        else:
            self.segment, self._cursor = None, iter(())

    def _settled_before(self, work: Work) -> bool:
        identity, window = work[3], work[0].owner.window
        return identity is not None and window is not None and identity in window

    def straight(self, now: float) -> Segment | None:
        """A segment all of whose messages may be handled one after the other.

        Given where nothing stands in the way: no lane is busy, nothing was settled before, no
        identity recurs. The caller reports with :meth:`ran`. For one runner alone.
        """
        if self.paused or self.ready:
            return None
        if self.segment is not None:
            return None
        segment = self._next_segment()
        if segment is None:
            return None
        owned = segment.owner
        if owned.lanes or segment.holes or now >= owned.assignment.valid_until:
            return None
        if owned.window is not None:
            unique: set[Any] = set(segment.ids)
            if None in unique:
                if len(unique) > 1:
                    return None
            elif len(unique) != len(segment) or not owned.window.fresh(unique):
                return None
            else:
                segment.unique = unique
        return segment

    def ran(self, segment: Segment, start: int, stop: int) -> None:
        """Messages from ``start`` to before ``stop`` were handled (their bytes are set).

        What is left of the segment is given out by :meth:`take`.
        """
        owned = segment.owner
        if owned.window is not None and stop > start and segment.ids[start] is not None:
            whole = stop - start == len(segment)
            identities = segment.ids if whole else segment.ids[start:stop]
            unique = segment.unique if whole else None
            if unique is not None and len(unique) <= owned.window.size:
                owned.window.absorb(unique)
            else:
                owned.window.extend(identities)
            segment.unique = None
            heir = None if owned.live else self._heir(owned)
            if heir is not None:
                heir.extend([each for each in identities if each is not None])
        self.counts.handled += stop - start
        if segment is self.segment:
            self._begin(segment, stop)

    def claim(self, segment: Segment, start: int, index: int, stop: int) -> list[Work]:
        """A straight run that began at ``start`` stumbled: messages before ``index`` are handled,
        those before ``stop`` are what it stumbled over, as works whose lanes are busy.

        Nothing where the partition was revoked meanwhile.
        """
        self.ran(segment, start, index)
        owned = segment.owner
        if not owned.live:
            return []
        works: list[Work] = []
        for at in range(index, stop):
            identity = segment.ids[at]
            key = segment.keys[at]
            lane: Lane = identity if key is None else key
            if lane is not None:
                owned.lanes[lane] = None
            works.append((segment, at, lane, identity, 1, False, None))
        if segment is self.segment:
            self._begin(segment, stop)
        return works

    def refuse(self, segment: Segment) -> None:
        """What :meth:`straight` gave cannot be run straight after all; give it out one by one."""
        self.ran(segment, 0, 0)

    # -- outcomes

    def done(self, work: Work) -> None:
        """The message is settled: handled, or buried with the write confirmed."""
        segment, index, lane, identity, _, _, burial = work
        segment.done[index] = 1
        owned = segment.owner
        if burial is None:
            self.counts.handled += 1
        else:
            self.counts.buried += 1
        live = owned.live
        if identity is not None and owned.window is not None:
            if live:  # as in _remember, without the calls: this is the hot loop
                window = owned.window
                window.new.add(identity)
                if len(window.new) >= window.size:
                    window.turn()
            else:
                self._remember(owned, owned.window, identity)
        if lane is not None:
            if live:
                queue = owned.lanes.pop(lane)
                if queue:
                    self._next(owned, lane, queue)
            else:
                self._free(owned, lane)

    def filtered(self, work: Work) -> None:
        """The message was passed over by a filter: settled, and counts as seen."""
        self.done(work)
        self.counts.handled -= 1
        self.counts.filtered += 1

    def done_batch(self, works: Iterable[Work]) -> None:
        """These messages, taken as one batch, are settled."""
        works = list(works)
        self._settle(works)
        self._free_lanes(works)

    def _settle(self, works: Iterable[Work]) -> None:
        for segment, index, _, identity, _, _, _ in works:
            segment.done[index] = 1
            self.counts.handled += 1
            owned = segment.owner
            if identity is not None and owned.window is not None:
                self._remember(owned, owned.window, identity)

    def _free_lanes(self, works: Iterable[Work], keep: Collection[tuple[int, Lane]] = ()) -> None:
        """Nobody runs in these works' lanes any more, but for some."""
        lanes = {(id(work[0].owner), work[2]): work[0].owner for work in works}
        for (owner, lane), owned in lanes.items():
            if lane is not None and (owner, lane) not in keep:
                self._free(owned, lane)

    def split(self, works: Sequence[Work]) -> None:
        """A batch failed as a whole: its messages are to be handled one by one, in order."""
        queues: dict[tuple[int, Lane], list[Work]] = {}
        heads: list[Work] = []
        for segment, index, lane, identity, attempt, _, burial in works:
            owned = segment.owner
            work: Work = (segment, index, lane, identity, attempt, True, burial)
            place = (id(owned), lane)
            if not owned.live:
                if lane is not None:
                    self._free(owned, lane)
            elif lane is None:
                heads.append(work)
            elif place in queues:
                queues[place].append(work)
            else:
                queues[place] = []
                heads.append(work)
        self._queue_first(works, queues)
        self.ready.extendleft(reversed(heads))

    def batch_failed(
        self,
        works: Sequence[Work],
        errors: Mapping[int, BaseException],
        now: float,
        random: float,
        final: Collection[int] = (),
    ) -> list[Work]:
        """Some of a batch failed, by index; the others are settled. What is to be buried.

        Those in ``final`` are not tried again. Where several of one key failed, the first keeps
        the lane and the others wait behind it, each to be tried again or buried in its turn.
        """
        behind: dict[tuple[int, Lane], list[Work]] = {}
        settled: list[Work] = []
        burials: list[Work] = []
        for index, work in enumerate(works):
            error = errors.get(index)
            if error is None:
                settled.append(work)
                continue
            segment, at, lane, identity, attempt, _, _ = work
            live = segment.owner.live
            delay = None if index in final else again(self._retry, attempt, error, random)
            if delay is None:
                work = self.condemned(work, error)
            else:
                self.counts.retries += 1
                if self._loose and live and type(lane) is bytes:
                    lane = self._step_out(segment.owner, identity)
                work = (segment, at, lane, identity, attempt + 1, True, None)
            place = (id(segment.owner), lane)
            if lane is not None and live and place in behind:
                behind[place].append(work)
                continue
            if delay is None:
                burials.append(work)
            elif live:
                self.later(work, now + delay)
            if lane is not None and (live or delay is None):
                behind[place] = []
        self._settle(settled)
        self._queue_first(works, behind)
        self._free_lanes(works, keep=behind.keys())
        return burials

    def _step_out(self, owned: Owned, identity: str | None) -> Lane:
        """A message out of its key's order has its identity for a lane, so that a duplicate of
        it, under whichever key, still waits for its outcome."""
        if identity is None or owned.window is None or identity in owned.lanes:
            return None
        owned.lanes[identity] = None
        return identity

    def _queue_first(
        self, works: Iterable[Work], queues: Mapping[tuple[int, Lane], list[Work]]
    ) -> None:
        """Put these works at the front of their lanes' queues; the lanes are busy."""
        owners = {id(work[0].owner): work[0].owner for work in works}
        for (owner, lane), queue in queues.items():
            if queue:
                lanes = owners[owner].lanes
                lanes[lane] = deque((*queue, *(lanes[lane] or ())))

    def _queue_last(self, owned: Owned, work: Work) -> None:
        queue = owned.lanes[work[2]]
        if queue is None:
            owned.lanes[work[2]] = deque((work,))
        else:
            queue.append(work)

    def failed(self, work: Work, error: BaseException, now: float, random: float) -> Work | None:
        """The handler failed. None: the message waits, or is not ours any more. Otherwise no
        attempt is left: the work to be buried, to be reported by :meth:`done` or :meth:`later`.
        """
        burials = self.batch_failed((work,), {0: error}, now, random)
        return burials[0] if burials else None

    def condemned(self, work: Work, error: BaseException) -> Work:
        """The message can never be handled: the work to be buried."""
        segment, index, lane, identity, attempt, _, _ = work
        return (segment, index, lane, identity, attempt, True, Burial(error, attempt))

    def later(self, work: Work, due: float) -> None:
        """Give this out again at ``due``, monotonic seconds. Its lane stays busy."""
        if not work[0].owner.live:
            self.abandon(work)
            return
        self._ticket += 1
        heappush(self._timers, (due, self._ticket, work))

    def abandon(self, work: Work) -> None:
        """The handler stopped without an outcome; the message is not settled."""
        owned, lane = work[0].owner, work[2]
        if owned.live:
            # Not to be overtaken: it stays at the head of its lane.
            for at, other in enumerate(self.ready if lane is not None else ()):
                if other[2] == lane and other[0].owner is owned:
                    # Of the same batch: whichever stands first in the log goes first.
                    first, second = sorted((work, other), key=_offset)
                    self.ready[at] = first
                    self._queue_first((second,), {(id(owned), lane): [second]})
                    return
            self.ready.appendleft(work)
        elif lane is not None:
            self._free(owned, lane)

    # -- lanes

    def _remember(self, owned: Owned, window: Window, identity: str) -> None:
        window.add(identity)
        heir = None if owned.live else self._heir(owned)
        if heir is not None:
            heir.add(identity)

    def _heir(self, owned: Owned) -> Window | None:
        """The window of a partition that left and came back: what a handler of the earlier
        assignment still settles comes a second time, and is a duplicate then."""
        now = self._owned.get((owned.assignment.topic, owned.assignment.partition))
        return None if now is None else now.window

    def _free(self, owned: Owned, lane: Lane) -> None:
        """Nobody runs in this lane any more."""
        if not owned.live:
            # A batch may report a lane message by message. The first time it becomes free, and
            # from then on it belongs to the assignment that came after.
            if lane in owned.freed:
                return
            owned.freed.add(lane)
        if lane in owned.lanes:
            self._next(owned, lane, owned.lanes.pop(lane))

    def _next(self, owned: Owned, lane: Lane, queue: deque[Work] | None) -> None:
        """Give the lane, taken out of ``lanes``, to the next of its queue that is no duplicate."""
        while queue:
            work = queue.popleft()
            if self._settled_before(work):
                work[0].done[work[1]] = 1
                self.counts.duplicates += 1
                continue
            twin = work[3]
            if self._loose and twin is not None and twin != lane and twin in owned.lanes:
                self._queue_last(owned, (*work[:2], twin, *work[3:]))
                continue
            owned.lanes[lane] = queue or None
            self.ready.append(work)
            return
        if not owned.live and not owned.lanes:
            place = (owned.assignment.topic, owned.assignment.partition)
            if self._fences.get(place) is owned.lanes:
                del self._fences[place]
