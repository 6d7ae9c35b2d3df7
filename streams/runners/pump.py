"""The pump: polls a processor's subscription, feeds the runner, and commits, in turns.

It is the only user of the subscription, so everything a driver wants from one thread at a time
(polling, committing, rebalance callbacks) happens in a turn, and no handler ever runs in one: the
process stays in its group however slow its handlers are. Turns are taken by a thread of the pump's
own, or by the handler's thread while that is quick (:mod:`streams.runners.lead`).

Assignment: the start is resolved (and committed before anything is delivered), the settled set is
read back from the commit, and the dedup window is rebuilt from the log itself. Revocation: nothing
more is started, what runs is finished up to the drain deadline, a last commit is made, and only
then the partition goes. Loss: everything is discarded and nothing committed.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Collection, Sequence
from functools import partial
from time import perf_counter, thread_time
from typing import Any, NamedTuple

from streams.clock import SYSTEM
from streams.engine.dispatch import AHEAD, Owned, Work
from streams.engine.flow import Gate
from streams.engine.pace import CommitPace
from streams.engine.progress import LIMIT, Progress, Range, Segment, cut, decode, with_offsets
from streams.engine.window import PROCESS, Window
from streams.errors import Fatal, LogError, Mismatch, NotFound, Unavailable
from streams.log.protocol import Assignment, Commit, Log, Subscription
from streams.message import Batch, mark_of, text
from streams.runners.base import Runner
from streams.runners.job import Identify, Job, KeyOrder, Undecodable, check_headers
from streams.runners.joint import Joint, Turns
from streams.runners.lead import Lead
from streams.runners.timing import Durations, Histogram
from streams.text import get_logger

logger = get_logger("streams")

POLL = 0.1
"""Real seconds a poll may block: how late a stop or a commit may be noticed at worst."""

CHUNK = 1_000
"""Messages polled at once, at most, where another thread handles them. They are looked through
several times (offsets, keys, IDs, sizes, decoding): a thousand stay in the cache meanwhile, ten
thousand cost half as much again."""

LED = 800
"""The same where the thread that handles them polls: 400 to 1,000 took the same time, 160 a tenth
more (on Kafka)."""

DECODED = 160
"""The same where all are decoded before the first of them is handled, and Python's cyclic garbage
collector is called often (:data:`SELDOM`): it goes through what lives on meanwhile again and
again. With 1,000, a message cost 40 % more CPU (on Kafka)."""

SELDOM = 5_000
"""New objects, or more, at which the collector is called seldom. Python's own are 700, and 2,000
from 3.13 on."""

STALL = 0.25
"""Real seconds the gate may be shut before the driver is paused (which discards its prefetch)."""

GRAIN = 0.001
"""Real seconds that are waited at once, at least."""

LULL = 0.05
"""Real seconds that a runner gets for the work that lies before it, until more is read ahead."""

KEEP_ALIVE = 1.0
"""Seconds between signs of life while handlers are waited for."""

FULL = LIMIT * 3 // 4
"""Characters of progress from which on a partition takes in no more, until it shrinks."""


_windows = threading.Lock()
"""Held while a window is made: all processors of the process share one memory for them."""


class Place(NamedTuple):
    """How far a processor is in a partition that it owns.

    :param position: everything below is settled.
    :param polled: everything below was taken in.
    :param oldest: when the log took the first message that is taken in and not settled, in seconds
        since the epoch; None where there is none.
    """

    topic: str
    partition: int
    position: int
    polled: int
    oldest: float | None


class _Restored(NamedTuple):
    """What a partition begins with.

    :param beyond: the position that was committed, where it lies beyond the log's end.
    :param rejected: what of the progress that was committed is not believed, and why.
    """

    progress: Progress
    window: Window | None
    beyond: int | None
    rejected: str


class PumpStats(NamedTuple):
    """What the pump knows, for statistics."""

    partitions: int
    held: int
    held_bytes: int
    commits: int
    rebalances: int
    losses: int
    rejected: int
    reachable: bool
    places: tuple[Place, ...]
    commit_seconds: Durations


class Pump:
    """Feeds one runner from one subscription. Started and stopped by the app."""

    def __init__(self, log: Log, job: Job, runner: Runner) -> None:
        self._log = log
        self._job = job
        self._runner = runner
        self._clock = job.clock
        self._now = job.clock.monotonic
        self._owned: dict[int, tuple[Assignment, Owned]] = {}
        """By the identity of the assignment."""
        self._stored: dict[int, tuple[int, str]] = {}
        """What was committed last, by the same."""
        self._submitted: dict[int, tuple[int, str]] = {}
        """What was stored last, by the same: by a submit, or with a handler's transaction."""
        self._moving = False
        """Messages came in since it was last seen that all are settled and stored."""
        self._held = 0
        """Messages that were not settled when it was last counted."""
        self._unanswered = False
        """The log has not said yet what became of the last submit."""
        self._refused: LogError | None = None
        """Why a commit failed in this turn."""
        self._pace = CommitPace(job.flow.commit, log.capabilities.commits)
        self._full: set[int] = set()
        """Assignments whose settled set nears its limit."""
        self._marks = threading.Lock()
        """Held while progress is read or extended: the pump and transactions both do."""
        self._joining: list[Owned] = []
        """Partitions whose place a handler's transaction is storing at this moment."""
        self._room = threading.Event()
        self._gate = Gate(job.flow)
        self._subscription: Subscription | None = None
        self._stopping = threading.Event()
        self._switch = threading.Lock()
        self._finishing = False
        self._paused = False
        self._driver_paused = False
        self._held_back: set[int] = set()
        """Assignments paused in the driver."""
        self._unstarted = False
        ahead = any(each.identify is not None for each in job.decodings.values())
        portion = log.capabilities.portion
        self._portion = min(portion, DECODED) if ahead else portion
        """Messages polled at once where the handler's thread does it and the collector is called
        often."""
        self._restarts: dict[int, tuple[float, Assignment]] = {}
        """Assignments that were let go of and are to be begun again, and when (monotonic)."""
        self._polled: list[Batch] = []
        """Polled, and not offered yet: the start is committed before anything is delivered."""
        self._next_commit = self._due = 0.0
        self._rest = 0.0
        """Real seconds to wait before the next turn, after one that failed: not at its end, as what
        it polled may be handled meanwhile."""
        self._thread = threading.Thread(
            target=self._main, name=f"streams-{job.name}-pump", daemon=True
        )
        self.fatal: BaseException | None = None
        """What ended the processor, other than being stopped."""
        self.ended = threading.Event()
        self.on_end: Callable[[], None] = lambda: None
        self.commits = 0
        self._commit_times = Histogram()
        self.rebalances = 0
        self.losses = 0
        self.rejected = 0
        self.reachable = True
        runner.dispatcher.refill = self._refill
        self._lead = Lead(partial(self._guard, self._turn), self._may_be_led)
        if job.clock is SYSTEM:
            # A clock that is moved by hand robs a member of its lease while nobody polls.
            runner.follow(self._lead, self._wake)
        if job.sequence is not None:
            job.sequence.wake = self._wake

    # -- the app's side

    def start(self) -> None:
        """Join the group and begin."""
        self._thread.start()

    def pause(self) -> None:
        """Start no further handler; stay in the group."""
        self._paused = True
        self._runner.halt()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self._paused = False
        with self._switch:
            if not self._finishing:
                self._runner.resume()
        self._room.set()

    def stop(self) -> None:
        """Finish what runs, commit, leave the group: begins that (any thread)."""
        self._stopping.set()
        self._wake()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the pump has ended."""
        return self.ended.wait(timeout)

    def stats(self) -> PumpStats:
        """Figures of this moment."""
        everything = list(self._owned.values())
        with self._marks:
            held = [owned.progress.held() for _, owned in everything]
            places = tuple(_place(assignment, owned.progress) for assignment, owned in everything)
        return PumpStats(
            len(everything),
            sum(messages for messages, _ in held),
            sum(size for _, size in held),
            self.commits,
            self.rebalances,
            self.losses,
            self.rejected,
            self.reachable,
            places,
            self._commit_times.read(),
        )

    def busy(self) -> str:
        """What keeps this processor from being at rest, in words; empty when it is.

        At rest means: everything in the log was polled, and is settled or waits for time to pass.
        """
        runner, dispatcher = self._runner, self._runner.dispatcher
        if runner.running or runner.sending or dispatcher.backlog:
            return "handlers are running"
        for assignment, owned in list(self._owned.values()):
            _, end = self._log.bounds(assignment.topic, assignment.partition)
            if owned.progress.polled < end:
                return "messages were not polled yet"
        if not dispatcher.waiting:
            with self._marks:
                held = sum(owned.progress.held()[0] for _, owned in list(self._owned.values()))
            if held:  # between two threads, perhaps, where nobody else sees them
                return "messages are in hand"
        if self._was_reset():
            return "its positions were reset"
        due = dispatcher.due
        if due is not None and due <= self._now():
            return "messages are due to be tried again"
        if self._restarts:
            return "partitions are begun again"
        if self._job.sequence is not None and (busy := self._job.sequence.busy()):
            return busy
        return "" if self._job.watch is None else self._job.watch.busy()

    def _was_reset(self) -> bool:
        """Somebody has set the group to other positions, and the partitions were not given up here
        yet: for the log they are nobody's by now, or stand behind what was committed here."""
        try:
            group = self._log.group(self._job.group)
        except NotFound:
            return False  # it follows topics without a group
        owned = {place for member in group.members for place in member.partitions}
        for assignment, _ in list(self._owned.values()):
            place, key = (assignment.topic, assignment.partition), id(assignment)
            if place not in owned:
                return True
            found = group.positions.get(place)
            known = (self._stored.get(key), self._submitted.get(key))
            newest = max((each[0] for each in known if each is not None), default=None)
            if found is not None and newest is not None and found.position < newest:
                return True
        return False

    def due(self) -> tuple[float, str] | None:
        """Of a processor at rest: how many seconds from now something that waits for its time is
        due, and what that is; None: nothing waits (any thread)."""
        found: list[tuple[float, str]] = []
        dispatcher = self._runner.dispatcher
        moment, count = dispatcher.due, dispatcher.waiting
        if moment is not None and count:
            what = f"{count} message{' waits' if count == 1 else 's wait'} to be tried again"
            for topic, partition, lane, attempt in dispatcher.waiting_keys(1):
                key = f"key {text(lane)!r}" if isinstance(lane, bytes) else "no key"
                what += f", first the one of {topic}/{partition} with {key}, attempt {attempt}"
            found.append((max(0.0, moment - self._now()), what))
        if self._job.watch is not None and (waiting := self._job.watch.due()) is not None:
            found.append(waiting)
        return min(found, default=None)

    def owned(self) -> set[tuple[str, int]]:
        """The partitions that are owned at this moment (any thread)."""
        return {(each.topic, each.partition) for each, _ in list(self._owned.values())}

    def reads(self, log: Log) -> tuple[str, ...]:
        """The topics of ``log`` that it reads as a member of its group; none where it is in no
        group (any thread)."""
        return self._job.topics if self._log is log else ()

    @property
    def contested(self) -> int:
        """Partitions as whose owner somebody else has written of late (any thread)."""
        return 0 if self._job.sequence is None else self._job.sequence.contested()

    def joint(self, turns: Turns) -> Joint:
        """The transactions of one worker of the runner."""

        def open() -> Any:
            if self._subscription is None:
                raise Unavailable(f"{self._job.name}: not subscribed yet")
            return self._subscription.begin()

        return Joint(open, self._commit_with, turns, may_block=not self._job.asynchronous)

    # -- the thread

    def _main(self) -> None:
        try:
            self._subscription = self._subscribe()
            if self._subscription is not None:
                unwatch = self._clock.watch(self._wake)
                lead = self._lead
                try:
                    while not self._over():
                        if not lead.away() and lead.turn():
                            self._runner.enter(lambda: None)
                    with lead.turning:
                        if lead.broken is not None:
                            raise lead.broken
                        self._finish()
                finally:
                    unwatch()
                    with lead.turning:
                        self._subscription.close()
            self.fatal = self._runner.fatal
        except BaseException as error:
            self.fatal = self._runner.fatal or error
        finally:
            left = [assignment for assignment, _ in self._owned.values()]
            if self._job.watch is not None and left:
                self._job.watch.revoked(left)
            if self._job.sequence is not None:
                self._job.sequence.gone(left)
            self._runner.close()
            self.ended.set()
            self.on_end()

    def _over(self) -> bool:
        """The processor is to end."""
        return (
            self._stopping.is_set()
            or self._runner.fatal is not None
            or self._lead.broken is not None
        )

    def _may_be_led(self) -> bool:
        return self._subscription is not None and not (self._paused or self._over())

    def _wake(self) -> None:
        """Come round soon (any thread)."""
        self._room.set()
        self._lead.call()
        if self._subscription is not None:
            self._subscription.wake()

    def _subscribe(self) -> Subscription | None:
        job = self._job
        pause = 0.1
        while not self._stopping.is_set():
            try:
                return self._log.subscribe(
                    job.group,
                    job.topics,
                    self,
                    flow=job.flow,
                    window=job.dedup.window,
                    member=job.member,
                )
            except Unavailable as error:
                self._unreachable(error)
                self._stopping.wait(pause)
                pause = min(5.0, pause * 2)
        return None

    def _guard(self, turn: Callable[[], None]) -> None:
        """An outage is waited out, and said; anything worse ends the processor."""
        rest, self._rest = self._rest, 0.0
        if rest:
            self._stopping.wait(rest)
        try:
            turn()
        except (Fatal, NotFound, Mismatch):
            raise
        except Unavailable as error:
            self._rest = 0.5
            self._unreachable(error)
        except LogError as error:
            self._rest = 2.0
            self._unreachable(error)
        else:
            if not self.reachable:
                logger.warning("%s: the log answers again", self._job.name)
                self.reachable = True

    def _unreachable(self, error: BaseException) -> None:
        if self.reachable:
            logger.warning("%s: waiting for the log: %s", self._job.name, error)
        self.reachable = False

    def _turn(self) -> None:
        subscription = self._subscription
        if subscription is None or self._over():  # it may have waited for its turn, or rested
            return
        self._refused = None
        room = self._take_stock()
        if room <= 0 or self._paused:
            self._wait_for_room(subscription)
            room = self._take_stock()
        if self._now() >= self._due and not self._unstarted:
            self._commit_what_is_due(subscription)
        if self._polled:
            # An outage between a poll and the commit of the start: reading went on past these.
            # Polled all the same: a rebalance is served there, and until then a commit is refused.
            self._polled.extend(subscription.poll(1, 0.0))
            self._hold_back(subscription, everything=True)
        elif room > 0 and not self._paused:
            self._hold_back(subscription, everything=False)
            self._let_work(subscription)
            self._polled.extend(subscription.poll(min(room, self._chunk()), self._patience()))
        elif self._driver_paused:
            # Nothing comes, but the membership is kept alive and rebalances are served.
            self._polled.extend(subscription.poll(1, 0.0))
            self._hold_back(subscription, everything=True)
        if self._unstarted:
            self._commit(subscription)
        batches, self._polled = self._polled, []
        for batch in batches:
            self._offer(batch)
        if self._job.sequence is not None:
            for segment in self._job.sequence.turn():
                self._runner.enter(partial(self._runner.dispatcher.insert, segment))
            self._begin_again(subscription, self._job.sequence)
        if batches or self._runner.dispatcher.backlog:
            self._runner.kick()
        if self._refused is not None:
            raise self._refused

    def _begin_again(self, subscription: Subscription, sequence: KeyOrder) -> None:
        """Let go of partitions with which nothing more may be done, and ask for them anew."""
        for assignment, pause in sequence.replaced():
            owned = [self._owned[id(assignment)][1]]
            self._forget([assignment])
            self._runner.revoke(owned)
            self._runner.cancel(owned)
            if self._job.watch is not None:
                self._job.watch.revoked([assignment])
            subscription.pause([assignment])
            self._restarts[id(assignment)] = (self._now() + pause, assignment)
        if self._restarts:
            now = self._now()
            due = [each for when, each in self._restarts.values() if when <= now]
            if due:
                subscription.restart(due)
                for assignment in due:
                    self._restarts.pop(id(assignment), None)

    def _chunk(self) -> int:
        """How many messages to poll at once."""
        if not self._lead.given:
            return CHUNK
        often = 0 < gc.get_threshold()[0] < SELDOM  # 0: it is called by hand
        batch = min(self._job.batch or 1, CHUNK)
        chunk = max(self._portion if often else LED, batch)
        return chunk - chunk % batch  # full batches, without a remainder

    def _patience(self) -> float:
        """How long to block in poll, in real seconds."""
        return min(POLL, max(0.0, self._clock.timeout(self._due - self._now())))

    def _take_stock(self) -> int:
        """How many more messages may be taken in."""
        with self._marks:
            held = [owned.progress.held() for _, owned in self._owned.values()]
        messages, size = sum(each[0] for each in held), sum(each[1] for each in held)
        if self._gate.heavy(size) and self._gate.room(messages, size) == 0:
            with self._marks:
                for _, owned in self._owned.values():
                    owned.progress.sweep()
                held = [owned.progress.held() for _, owned in self._owned.values()]
            messages, size = sum(each[0] for each in held), sum(each[1] for each in held)
        self._held = messages
        if messages == 0:
            size = 0  # a single message is taken, however large
        return self._gate.room(messages, size)

    def _refill(self) -> None:
        """The runner has room (any thread)."""
        if not self._room.is_set():
            self._room.set()

    def _let_work(self, subscription: Subscription) -> None:
        """Enough lies before a runner that is quick: it takes less time if it has less of it."""
        if self._runner.dispatcher.ahead < AHEAD:
            return
        self._room.clear()
        if self._runner.dispatcher.ahead >= AHEAD and not self._stopping.is_set():
            self._await_room(subscription, perf_counter() + LULL)

    def _await_room(self, subscription: Subscription, until: float) -> None:
        """Wait for the runner, up to ``until`` on the real clock; commit meanwhile."""
        while (left := until - perf_counter()) > 0:
            if self._room.wait(min(left, max(GRAIN, self._patience()))):
                return
            if self._now() >= self._due:
                self._commit_what_is_due(subscription)

    def _wait_for_room(self, subscription: Subscription) -> None:
        """Enough is held: wait for the runner. A long wait pauses the driver."""
        self._room.clear()
        if self._driver_paused:
            self._room.wait(self._patience())
        elif self._take_stock() <= 0 or self._paused:
            self._await_room(subscription, perf_counter() + STALL)
            if self._take_stock() <= 0 or self._paused:
                self._hold_back(subscription, everything=True)

    def _hold_back(self, subscription: Subscription, *, everything: bool) -> None:
        """Pause in the driver what must not deliver: everything, or what is full."""
        self._driver_paused = everything
        wanted = set(self._owned) if everything else self._full & self._owned.keys()
        if wanted == self._held_back:
            return
        pause = [self._owned[key][0] for key in wanted - self._held_back]
        resume = [each[0] for key, each in self._owned.items() if key in self._held_back - wanted]
        self._held_back = wanted
        if pause:
            subscription.pause(pause)
        if resume:
            subscription.resume(resume)

    def _offer(self, batch: Batch) -> None:
        found = self._owned.get(id(batch.assignment))
        if found is None or not len(batch):
            return
        owned = found[1]
        decoding = self._job.decodings[batch.topic]
        batch = decoding.opened(batch)
        identify = decoding.identify
        with self._marks:
            segment = owned.progress.add(owned, batch, None if identify is None else [])
        if identify is None:
            # Messages whose headers cannot be read are looked at one by one; so are their
            # neighbours.
            if not batch.unreadable and not batch.broken:
                segment.decode = decoding.fast(batch.values, segment.largest)
        else:
            # Decoded ahead of time: the identity is inside the value.
            segment.events, segment.ids, whole = self._decoded(batch, identify, segment.largest)
            if not whole:
                segment.holes = True  # what could not be decoded is looked at one by one
        if not self._moving:
            self._moving = True
            self._plan()
        self._gate.took(len(segment), segment.size)
        self._runner.dispatcher.offer(segment)

    def _decoded(
        self, batch: Batch, identify: Identify, largest: int
    ) -> tuple[list[Any], list[str | None], bool]:
        """Values and identities of a batch, and whether all could be decoded."""
        decoding = self._job.decodings[batch.topic]
        fast = decoding.fast(batch.values, largest)
        if fast is not None:
            try:
                events = list(map(fast, batch.values))
                if len(events) < len(batch):
                    raise RuntimeError("decoding raised StopIteration, which ends map()")
                found: list[Any] = identify.many(events)
                marks = batch.marks()
                if marks is not None:
                    found = [id + mark for id, mark in zip(found, marks, strict=True)]
                if not batch.unreadable and not batch.broken:
                    return events, found, True
            except Exception:  # noqa: S110 - which one it was is found below
                pass
        events, ids, whole = [], list[str | None](), True
        for index in range(len(batch)):
            wire = batch.ids[index]
            try:
                check_headers(batch, index)
                event = decoding.one(batch, index)
                id = identify(event) + mark_of(wire)
            except Exception as error:
                events.append(Undecodable(error))
                # What its headers say is no ID of a value: it must not stand for one.
                ids.append(None if wire is None else f"{wire}\0undecodable")
                whole = False
            else:
                events.append(event)
                ids.append(id)
        return events, ids, whole

    # -- commits

    def _snapshot(
        self, assignment: Assignment, owned: Owned, *known: dict[int, tuple[int, str]]
    ) -> Commit | None:
        """What to commit of a partition; None where that is ``known`` to be stored."""
        with self._marks:
            if owned in self._joining:
                # Taken now, stored after it, this would take its messages back; what is settled
                # by now is in its own commit.
                return None
            found = owned.progress.snapshot()
            owned.version += 1
            version = owned.version
        key = id(assignment)
        if not found.complete or len(found.progress) > FULL:
            if key not in self._full:
                self._full.add(key)
                logger.warning(
                    "%s: %s/%d takes in no more until its settled set is smaller: "
                    "%d characters, position %d",
                    self._job.name, assignment.topic, assignment.partition,
                    len(found.progress), found.position,
                )  # fmt: skip
        elif key in self._full and len(found.progress) * 2 < FULL:
            self._full.discard(key)
        place = (found.position, found.progress)
        if any(places.get(key) == place for places in known):
            return None
        if self._job.sequence is not None and not self._job.sequence.proven(assignment):
            # Asked after the place was taken, so that it holds for everything below it.
            return None
        return Commit(assignment, *place, version)

    def _commit_what_is_due(self, subscription: Subscription) -> None:
        """Positions are submitted as soon as something moved and the last submit is paid for; and
        committed, for good, every ``Flow.commit`` seconds.

        If that fails the turn goes on, because a rebalance on account of which a commit is refused
        is served in poll; the turn's end says so.
        """
        if self._refused is not None:
            return
        try:
            if self._now() >= self._next_commit:
                self._commit(subscription)
            else:
                self._submit(subscription)
        except LogError as error:
            self._refused = error

    def _plan(self) -> None:
        """Something has changed that says when to commit next."""
        self._due = self._next_commit
        if self._moving and not self._unanswered:
            self._due = min(self._due, self._pace.due)

    def _commit(self, subscription: Subscription) -> None:
        self._next_commit = self._now() + self._job.flow.commit
        self._plan()
        self._commit_owned(subscription, list(self._owned.values()))
        self._unstarted = False

    def _submit(self, subscription: Subscription) -> None:
        began, busy = perf_counter(), thread_time()
        found = [
            self._snapshot(assignment, each, self._stored, self._submitted)
            for assignment, each in list(self._owned.values())
        ]
        commits = [commit for commit in found if commit is not None]
        if commits:
            self._unanswered = True
            try:
                subscription.submit(commits, partial(self._answered, commits, began))
            except BaseException:
                self._answered(commits, began, stored=False)
                raise
        # Where the handler's thread commits, it is its time that passes, whoever is busy.
        cost = perf_counter() - began if self._lead.given else thread_time() - busy
        if commits:
            self._pace.committed(self._now(), cost)
        else:
            self._moving = self._held > 0
            self._pace.unmoved(self._now(), cost)
        self._plan()

    def _answered(self, commits: Sequence[Commit], began: float, stored: bool) -> None:
        """What became of a submit: told inside of it, or of a later poll or commit."""
        self._unanswered = False
        if stored:
            self._commit_times.add(perf_counter() - began)
            self.commits += 1
            self._note(self._submitted, commits)
        else:
            self._moving = True
            self._pace.unmoved(self._now(), 0.0)
        self._plan()

    def _note(self, places: dict[int, tuple[int, str]], commits: Sequence[Commit]) -> None:
        for assignment, position, progress, _ in commits:
            if id(assignment) in self._owned:
                places[id(assignment)] = (position, progress)

    def _commit_owned(
        self, subscription: Subscription, owned: Sequence[tuple[Assignment, Owned]]
    ) -> None:
        found = [self._snapshot(assignment, each, self._stored) for assignment, each in owned]
        commits = [commit for commit in found if commit is not None]
        if not commits:
            return
        began = perf_counter()
        subscription.commit(commits)
        self._commit_times.add(perf_counter() - began)
        self.commits += 1
        self._note(self._stored, commits)

    def _commit_with(self, transaction: Any, works: Sequence[Work]) -> None:
        """Commit a handler's transaction together with the places of what it handled."""
        marks: dict[int, tuple[Owned, list[tuple[Segment, int]]]] = {}
        for segment, index, *_ in works:
            owned: Owned = segment.owner
            marks.setdefault(id(owned), (owned, []))[1].append((segment, index))
        commits: list[Commit] = []
        with self._marks:
            for owned, settled in marks.values():
                found = owned.progress.preview(settled)
                owned.version += 1
                place = (found.position, found.progress)
                commits.append(Commit(owned.assignment, *place, owned.version))
                self._joining.append(owned)
        try:
            transaction.commit(commits)
        except BaseException:
            self._joined(marks.values(), settled=False)
            raise
        self._note(self._submitted, commits)
        self._joined(marks.values(), settled=True)

    def _joined(
        self, marks: Collection[tuple[Owned, list[tuple[Segment, int]]]], *, settled: bool
    ) -> None:
        with self._marks:
            for owned, works in marks:
                self._joining.remove(owned)
                if settled:
                    for segment, index in works:
                        segment.done[index] = 1

    # -- what the subscription tells, inside poll and close

    def assigned(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these partitions are ours, or none of them while one cannot be read."""
        alive = self._now()
        restored: list[tuple[Assignment, _Restored]] = []
        try:
            for assignment in assignments:
                if self._now() - alive > KEEP_ALIVE:  # many windows to rebuild take their time
                    self._keep_alive()
                    alive = self._now()
                restored.append((assignment, self._restore(assignment)))
        except BaseException:
            self._forget(assignments)
            raise
        self.rebalances += 1
        for assignment, (progress, window, beyond, rejected) in restored:
            self._report(assignment, progress, beyond, rejected)
            assignment.position = progress.position
            owned = Owned(assignment, progress, window)
            self._runner.assign(owned)
            if self._job.sequence is not None:
                self._job.sequence.own(assignment, owned)
            assignment.state = owned
            self._owned[id(assignment)] = (assignment, owned)
            committed = assignment.committed
            if committed is not None:
                self._stored[id(assignment)] = (committed.position, committed.progress)
            if committed is None or committed.position != progress.position:
                self._unstarted = True
        if self._job.watch is not None:
            self._job.watch.assigned(assignments)
        if assignments:
            logger.info("%s: owns %s", self._job.name, names(assignments))

    def _report(
        self, assignment: Assignment, progress: Progress, beyond: int | None, rejected: str
    ) -> None:
        """Say where what was committed does not fit the log."""
        name, topic, partition = self._job.name, assignment.topic, assignment.partition
        show, committed = self._log.show, assignment.committed
        if beyond is not None:
            self.losses += 1
            logger.error(
                "%s: the committed position of %s/%d, %s, is beyond the log's end: the topic was "
                "made anew, the log has lost its end, or somebody set that position; the group "
                "goes on at %s (streams reset moves it)",
                name, topic, partition, show(beyond), show(progress.position),
            )  # fmt: skip
        elif committed is not None and committed.position < progress.position:
            self.losses += 1
            logger.error(
                "%s: messages of %s/%d were deleted before they were handled: committed "
                "position %s, the log begins at %s",
                name, topic, partition, show(committed.position), show(progress.position),
            )  # fmt: skip
        if rejected:
            self.rejected += 1
            logger.warning("%s: %s/%d %s", name, topic, partition, rejected)

    def revoked(self, assignments: Sequence[Assignment]) -> None:
        """Listener: finish and commit these."""
        self.rebalances += 1
        leaving = self._leaving(assignments)
        owned = [each for _, each in leaving]
        self._runner.revoke(owned)
        self._drain(owned)
        try:
            if self._subscription is not None:
                self._commit_owned(self._subscription, leaving)
        except LogError as error:
            logger.warning("%s: the last commit failed: %s", self._job.name, error)
        self._forget(assignments)
        if self._job.watch is not None:
            self._job.watch.revoked(assignments)
        logger.info("%s: gave up %s", self._job.name, names(assignments))

    def lost(self, assignments: Sequence[Assignment]) -> None:
        """Listener: these are somebody else's."""
        self.rebalances += 1
        owned = [each for _, each in self._leaving(assignments)]
        self._forget(assignments)
        self._runner.revoke(owned)
        # What runs cannot be taken back; what is async is cancelled.
        self._runner.cancel(owned)
        if self._job.watch is not None:
            self._job.watch.revoked(assignments)
        logger.warning("%s: lost %s", self._job.name, names(assignments))

    def _drain(self, owned: Sequence[Owned] | None) -> None:
        """Wait for what runs, up to the drain deadline; then cancel what can be cancelled."""
        runner, limit = self._runner, self._job.flow.drain
        deadline = self._now() + limit
        while not runner.calm(owned, min(deadline, self._now() + KEEP_ALIVE)):
            if runner.fatal is not None:
                return
            if self._now() >= deadline or runner.hurried:
                if not runner.cancel(owned):
                    logger.warning(
                        "%s: handlers outlived the drain deadline of %g s; their messages will be "
                        "handled again",
                        self._job.name, limit,
                    )  # fmt: skip
                return
            self._keep_alive()

    def _keep_alive(self) -> None:
        if self._subscription is not None:
            try:
                self._subscription.keep_alive()
            except LogError as error:
                logger.warning("%s: waiting for the log: %s", self._job.name, error)

    def _leaving(self, assignments: Sequence[Assignment]) -> list[tuple[Assignment, Owned]]:
        leaving = []
        for assignment in assignments:
            assignment.valid_until = float("-inf")
            found = self._owned.get(id(assignment))
            if found is not None:
                leaving.append(found)
        return leaving

    def _forget(self, assignments: Sequence[Assignment]) -> None:
        if self._job.sequence is not None:
            self._job.sequence.gone(assignments)
        for assignment in assignments:
            self._owned.pop(id(assignment), None)
            self._stored.pop(id(assignment), None)
            self._submitted.pop(id(assignment), None)
            self._full.discard(id(assignment))
            self._held_back.discard(id(assignment))
            self._restarts.pop(id(assignment), None)

    def _restore(self, assignment: Assignment) -> _Restored:
        """Where to go on, and what was settled already.

        What was committed is held against the log, because anybody may have written it, and the
        log may be another one by now. Where messages were deleted before they were handled, the
        group goes on behind them. A position beyond the log's end says nothing of what stands
        there, so the group begins at the first message there is.
        """
        job, committed = self._job, assignment.committed
        topic, partition = assignment.topic, assignment.partition
        first, end = self._log.bounds(topic, partition)
        settled: list[Range] = []
        beyond, rejected = assignment.beyond, ""
        if committed is None:
            # A partition younger than its group: nothing of it may be missed.
            position = floor = max(first, job.starts.get((topic, partition), first))
        elif committed.position > end and committed.position > self._log.end(topic, partition):
            beyond, position, floor = committed.position, first, first
        else:
            position = floor = committed.position
            if committed.progress:
                try:
                    floor, found = decode(position, committed.progress)
                    settled = cut(found, end)
                    if settled != found:
                        rejected = (
                            "was committed with messages as settled that are beyond the log's end, "
                            f"{self._log.show(end)}: they will be handled when they come"
                        )
                except ValueError as error:
                    rejected = (
                        f"was committed by something else ({error}): its position "
                        f"{self._log.show(position)} counts, its dedup window is empty"
                    )
            if position < first:
                position = first
                settled = [(max(low, first), high) for low, high in settled if high > first]
        if job.sequence is not None:
            settled = with_offsets(
                settled,
                job.sequence.begin(
                    assignment,
                    position,
                    fresh=floor >= position and not settled,
                    alive=self._keep_alive,
                ),
            )
        progress = Progress(position, floor, settled)
        if not job.dedup.window:
            return _Restored(progress, None, beyond, rejected)
        with _windows:
            window = PROCESS.window(job.dedup.window, job.dedup.cap)
        high = min(end, settled[-1][1] if settled else position)
        low = max(floor, first, self._log.back(topic, partition, position, window.size))
        if low < high:
            self._remember(window, topic, partition, low, high, position, settled)
        return _Restored(progress, window, beyond, rejected)

    def _remember(
        self,
        window: Window,
        topic: str,
        partition: int,
        low: int,
        high: int,
        position: int,
        settled: Sequence[Range],
    ) -> None:
        """Rebuild the dedup window from the log: what was settled below ``high``."""
        decoding = self._job.decodings[topic]
        identify = decoding.identify
        reader = self._log.reader(topic, partition, low, high)
        ranges = iter(settled)
        current: Range | None = next(ranges, None)
        alive = self._now()
        try:
            while (batch := reader.read(1_000)) is not None:
                if self._now() - alive > KEEP_ALIVE:  # settled ranges may reach far
                    self._keep_alive()
                    alive = self._now()
                batch = decoding.opened(batch)
                if identify is None:
                    ids = batch.ids
                else:
                    ids = self._decoded(batch, identify, batch.measure()[1])[1]
                for offset, identity in zip(batch.offsets, ids, strict=True):
                    if identity is None:
                        continue
                    if offset >= position:
                        while current is not None and current[1] <= offset:
                            current = next(ranges, None)
                        if current is None or offset < current[0]:
                            continue
                    window.add(identity)
        finally:
            reader.close()

    # -- the end

    def _finish(self) -> None:
        """Finish what runs, up to the deadline, and commit."""
        subscription = self._subscription
        if subscription is None:
            return
        with self._switch:
            self._finishing = True
            self._runner.halt()
        self._drain(None)
        try:
            self._commit(subscription)
        except LogError as error:
            logger.warning("%s: the last commit failed: %s", self._job.name, error)


def _place(assignment: Assignment, progress: Progress) -> Place:
    oldest = progress.oldest()  # first, as it moves the position
    return Place(assignment.topic, assignment.partition, progress.position, progress.polled, oldest)


def names(assignments: Sequence[Assignment]) -> str:
    """Partitions as a log line shows them."""
    return ", ".join(f"{each.topic}/{each.partition}" for each in assignments) or "nothing"
