"""The dispatcher beside a naive model, under arbitrary interleavings.

The machine plays a runner that does everything a runner may do, at any moment, and a log that
delivers, takes partitions away and gives them back. The model in ``model.py`` says what is allowed;
what must come *some* time is checked whenever the dispatcher says that there is nothing to do.

It has one rule, which chooses among weighted actions by itself: left to Hypothesis, most examples
have some rule switched off, and without arrivals, say, nothing is ever tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streams.config import Retry
from streams.engine.dispatch import Dispatcher, Owned, Work
from streams.engine.progress import Segment
from streams.errors import Reject, RetryAfter
from tests.engine.model import Entry, Group, Ownership, Sent, Tenure
from tests.engine.support import runs

KEYS = [b"a", b"b", b"c"]

kinds = st.sampled_from(["new", "new", "new", "new", "again", "again", "foreign", "gap"])
arrivals = st.lists(st.tuples(st.integers(0, 3), kinds), min_size=1, max_size=9)
partitions = st.integers(0, 1)
errors = st.sampled_from(
    [RuntimeError("no"), RuntimeError("no"), RuntimeError("no"), Reject(), RetryAfter(3.0)]
)
jitter = st.sampled_from([0.0, 0.3, 0.99])


class Flight(NamedTuple):
    """What a runner holds: messages that are handled together, or one that is buried."""

    works: Sequence[Work]
    entries: Sequence[Entry]
    tenures: Sequence[Tenure]


class Machine(RuleBasedStateMachine):
    """One process after the other, one group, two partitions."""

    mode = "single"

    def room(self) -> bool:
        """A handler more may run."""
        return len(self.flights) < self.most and self.run is None

    @initialize(
        attempts=st.integers(1, 3),
        in_order=st.sampled_from([True, True, False]),
        window=st.sampled_from([0, 2, 1_000, 1_000]),
        keys=st.integers(1, 3),
        most=st.sampled_from([100, 3, 1]),
        plain=st.booleans(),
        rough=st.booleans(),
    )
    def begin(
        self,
        attempts: int,
        in_order: bool,
        window: int,
        keys: int,
        most: int,
        plain: bool,
        rough: bool,
    ) -> None:
        self.retry = Retry(attempts=attempts, delay=1.0, cap=3.0, in_order=in_order)
        self.group = Group(2, self.retry, window)
        self.keys: list[bytes | None] = [None, *KEYS[:keys]]
        self.most = 1 if self.mode == "straight" else most  # handlers at once
        self.plain = plain  # no duplicates, nothing foreign
        self.rough = rough
        self.now = 100.0
        self.published = 0
        self.boot()
        self.assign_all()

    def boot(self) -> None:
        self.dispatcher = Dispatcher(self.retry)
        self.group.tenures = []
        self.by_owner: dict[int, Tenure] = {}
        self.flights: list[Flight] = []
        self.burials: list[Flight] = []
        self.run: tuple[Segment, Tenure] | None = None  # a straight run that is out
        self.at = 0  # how far it is
        self.within = False  # a handler of it runs
        self.counts: Counter[str] = Counter()

    # -- the log

    def publish(self, partition: int, key: int, kind: str) -> None:
        chosen = self.keys[key % len(self.keys)]
        log = self.group.log[partition]
        self.published += 1
        offset = log[-1].offset + 1 if log else 0
        if kind == "again":
            twins = [sent for sent in log if sent.key == chosen and sent.identity is not None]
            if twins:
                log.append(twins[-1 - self.published % min(3, len(twins))]._replace(offset=offset))
                return
        identity = None if kind == "foreign" else f"{chosen!r}-{self.published}"
        log.append(Sent(offset + 2 * (kind == "gap"), chosen, identity))

    def arrive(self, data: st.DataObject) -> None:
        """Messages are published, and some of what there is is delivered."""
        partition = data.draw(partitions)
        for key, kind in data.draw(arrivals):
            self.publish(partition, key, "new" if self.plain else kind)
        self.deliver(partition, data.draw(st.sampled_from([20, 5, 2])))

    def deliver_some(self, data: st.DataObject) -> None:
        """It may have been delivered before, by a client that seeks back by itself."""
        back = data.draw(st.sampled_from([0, 0, 0, 2]))
        self.deliver(data.draw(partitions), data.draw(st.integers(1, 9)), back)

    def deliver(self, partition: int, count: int, back: int = 0) -> None:
        tenure = self.group.live(partition)
        if tenure is not None:
            segment = self.group.deliver(tenure, count, back)
            if segment is not None:
                self.dispatcher.offer(segment)

    # -- assignments

    def assign_all(self) -> None:
        for partition in range(2):
            if self.group.live(partition) is None:
                progress, window, covered, at, seen = self.group.restore(partition)
                ownership = Ownership(partition)
                owned = Owned(ownership, progress, window)
                self.dispatcher.assign(owned)
                tenure = Tenure(partition, ownership, progress, window, owned, covered, at, seen)
                self.group.tenures.append(tenure)
                self.by_owner[id(owned)] = tenure

    def rebalance(self, data: st.DataObject) -> None:
        """A partition leaves, in peace with a last commit or not, and comes back, now or later."""
        partition = data.draw(partitions)
        ending = data.draw(st.sampled_from(["lost", "lost", "cut", "drained"]))
        late = data.draw(st.booleans())
        for gone in self.group.tenures:
            if not gone.live:
                self.dispatcher.revoke(gone.owned)  # twice does no harm
        tenure = self.group.live(partition)
        if tenure is not None:
            self.dispatcher.revoke(tenure.owned)
            tenure.ownership.valid_until = float("-inf")
            if late and (segment := self.group.deliver(tenure, 3)) is not None:
                self.dispatcher.offer(segment)  # polled before, handed over after
            if ending == "drained":
                for flight in [f for f in self.flights if tenure in f.tenures]:
                    self.succeed(flight)
            if ending != "lost":
                self.group.commit(tenure)
            self.group.end(tenure)
        if data.draw(st.integers(0, 3)):
            self.assign_all()
            self.deliver(partition, 20)

    def crash(self, data: st.DataObject) -> None:
        """kill -9: nothing of this process is left. Perhaps the group is moved meanwhile."""
        for tenure in self.group.tenures:
            if tenure.live:
                self.group.end(tenure)
        if data.draw(st.integers(0, 3)) == 3:
            self.group.reset(data.draw(partitions), data.draw(st.integers(0, 30)))
        self.boot()
        self.assign_all()

    def hold(self, data: st.DataObject) -> None:
        """Ownership was not confirmed for too long, or somebody pauses the processor."""
        tenure = self.group.live(data.draw(partitions))
        if tenure is None or data.draw(st.booleans()):
            self.dispatcher.paused = True
        else:
            tenure.ownership.valid_until = self.now
        if data.draw(st.booleans()):
            self.arrive(data)
        self.take()
        if data.draw(st.integers(0, 2)):
            self.resume()

    def resume(self) -> None:
        self.dispatcher.paused = False
        for tenure in self.group.tenures:
            if tenure.live:
                tenure.ownership.valid_until = float("inf")

    def pass_time(self, data: st.DataObject) -> None:
        """Time passes, ownership is confirmed, and progress is perhaps committed."""
        self.now += data.draw(st.sampled_from([0.0, 0.5, 3.0]))
        self.resume()
        tenure = self.group.live(data.draw(st.integers(0, 3)))
        if tenure is not None:
            self.group.commit(tenure)

    # -- a runner takes

    def found(self, works: Sequence[Work]) -> Flight:
        tenures = [self.by_owner[id(work[0].owner)] for work in works]
        entries = [
            tenure.entries[work[0].batch.offsets[work[1]]]
            for tenure, work in zip(tenures, works, strict=True)
        ]
        return Flight(works, entries, tenures)

    def took(self, works: Sequence[Work]) -> None:
        """Check what was given out."""
        assert not self.dispatcher.paused
        self.note_drops()
        flight = self.found(works)
        if works[0][6] is not None:
            (entry,), (tenure,) = flight.entries, flight.tenures
            assert entry.state == "condemned" or (
                entry.state == "unburied" and entry.due <= self.now
            )
            assert not any(self.group.blockers(tenure, entry))
            assert self.now < tenure.ownership.valid_until
            entry.state = "burying"
            self.burials.append(flight)
            return
        earlier: list[Entry] = []
        for work, entry, tenure in zip(works, flight.entries, flight.tenures, strict=True):
            assert work[6] is None
            assert work[0] is entry.segment
            assert work[3] == entry.sent.identity
            assert work[4] == entry.failures + 1, "attempts are counted from 1"
            assert not (entry.alone and len(works) > 1), "batched with others after a failure"
            assert all(
                (other.lane, other.sent.identity) != (entry.lane, entry.sent.identity)
                or entry.sent.identity is None
                for other in earlier
            ), "an identity twice in a batch"
            self.group.start(tenure, entry, self.now, earlier)
            earlier.append(entry)
        self.flights.append(flight)

    def note_drops(self) -> None:
        for tenure, entry in list(self.group.drops()):
            assert entry.state == "queued", "settled, though it was neither handled nor a duplicate"
            assert self.group.handled(tenure.partition, entry.sent.identity)
            assert tenure.window is not None
            entry.state = "settled"
            self.counts["duplicates"] += 1

    def nothing(self) -> None:
        """The dispatcher says that nothing may run: then nothing may."""
        self.note_drops()
        sure = all(self.now < t.ownership.valid_until for t in self.group.tenures if t.live)
        if sure and not self.dispatcher.paused:
            assert not self.group.eligible(self.now), "stuck"

    def take_some(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            limit = data.draw(st.sampled_from([3, 1, 9])) if self.mode == "batch" else 1
            if not self.room() or not self.take(limit):
                break

    def take(self, limit: int = 3) -> bool:
        dispatcher = self.dispatcher
        dispatcher.wake(self.now)
        if self.mode == "straight" and self.go_straight():
            return True
        if self.mode == "batch":
            works = dispatcher.take_batch(self.now, limit)
            assert len(works) <= limit
        else:
            work = dispatcher.take(self.now)
            works = [] if work is None else [work]
        if works:
            self.took(works)
        else:
            self.nothing()
        return bool(works)

    # -- outcomes

    def settle(self, tenure: Tenure, entry: Entry, count: str) -> None:
        self.group.settle(tenure, entry)
        self.counts[count] += 1

    def succeed(self, flight: Flight) -> None:
        self.flights.remove(flight)
        if self.mode == "batch":
            self.dispatcher.done_batch(flight.works)
        else:
            self.dispatcher.done(flight.works[0])
        for tenure, entry in zip(flight.tenures, flight.entries, strict=True):
            self.settle(tenure, entry, "handled")

    def pick(self, data: st.DataObject, flights: list[Flight]) -> Flight:
        return flights[data.draw(st.integers(0, len(flights) - 1))]

    def finish(self, data: st.DataObject) -> None:
        for _ in range(min(data.draw(st.integers(1, 3)), len(self.flights))):
            self.succeed(self.pick(data, self.flights))

    def leave(self, data: st.DataObject) -> None:
        """A message is filtered out, or its handler is cancelled."""
        flight = self.pick(data, self.flights)
        if data.draw(st.booleans()):
            self.abandon(flight)
        elif len(flight.works) == 1:
            self.flights.remove(flight)
            self.dispatcher.filtered(flight.works[0])
            self.settle(flight.tenures[0], flight.entries[0], "filtered")

    def fail(self, data: st.DataObject) -> None:
        """A handler raises; BatchError says which of a batch failed, other errors do not."""
        flight = self.pick(data, self.flights)
        self.flights.remove(flight)
        random = data.draw(jitter)
        if len(flight.works) > 1 or (self.mode == "batch" and data.draw(st.booleans())):
            if data.draw(st.booleans()):
                self.was_split(flight)
            else:
                self.part_failed(data, random, flight)
            return
        (work,), (entry,), (tenure,) = flight
        error = data.draw(errors)
        poison = data.draw(st.integers(0, 5)) == 5
        if poison:
            burial: Work | None = self.dispatcher.condemned(work, error)
        else:
            burial = self.dispatcher.failed(work, error, self.now, random)
        self.failed(tenure, entry, error, random, burial, poison)

    def failed(
        self,
        tenure: Tenure,
        entry: Entry,
        error: Exception,
        random: float,
        burial: Work | None,
        final: bool = False,
    ) -> None:
        hopeless = final or self.group.hopeless(entry, error)
        assert (burial is not None) == hopeless
        if burial is None:
            self.counts["retries"] += 1
            self.group.fail(tenure, entry, error, self.now, random)
        else:
            assert burial[6] is not None
            assert burial[6].error is error
            assert burial[6].attempts == entry.failures + 1
            entry.state = "burying"
            self.burials.append(Flight([burial], [entry], [tenure]))

    def part_failed(self, data: st.DataObject, random: float, flight: Flight) -> None:
        indexes = st.integers(0, len(flight.works) - 1)
        failing = data.draw(st.dictionaries(indexes, errors, min_size=1))
        final = data.draw(st.sets(st.sampled_from(sorted(failing)), max_size=1))
        burials = self.dispatcher.batch_failed(flight.works, failing, self.now, random, final)
        by_entry = {id(self.found([work]).entries[0]): work for work in burials}
        heads: set[tuple[int, Any]] = set()  # lanes that wait for a message of this batch
        for index, (tenure, entry) in enumerate(zip(flight.tenures, flight.entries, strict=True)):
            error = failing.get(index)
            if error is None:
                self.settle(tenure, entry, "handled")
                continue
            hopeless = index in final or self.group.hopeless(entry, error)
            lane = (id(tenure), entry.lane)
            behind = lane in heads and entry.lane is not None and tenure.live
            steps_out = not hopeless and not self.retry.in_order and entry.sent.key is not None
            if not hopeless or not behind:
                burial = by_entry.pop(id(entry), None)
                self.failed(tenure, entry, error, random, burial, index in final)
                if behind and not steps_out:
                    entry.state = "queued"
                if not steps_out:
                    heads.add(lane)
            else:
                entry.state = "condemned"
                entry.failures += 1
        assert not by_entry

    def was_split(self, flight: Flight) -> None:
        self.dispatcher.split(flight.works)
        for tenure, entry in zip(flight.tenures, flight.entries, strict=True):
            entry.state = "queued" if tenure.live else "gone"
            entry.alone = True

    def abandon(self, flight: Flight) -> None:
        self.flights.remove(flight)
        for work in reversed(flight.works):
            self.dispatcher.abandon(work)
        for tenure, entry in zip(flight.tenures, flight.entries, strict=True):
            entry.state = "queued" if tenure.live else "gone"

    def bury(self, data: st.DataObject) -> None:
        """A dead letter was written, or refused."""
        flight = self.pick(data, self.burials)
        self.burials.remove(flight)
        (work,), (entry,), (tenure,) = flight
        if data.draw(st.booleans()):
            self.dispatcher.done(work)
            self.settle(tenure, entry, "buried")
            return
        self.dispatcher.later(work, self.now + 2.0)
        entry.state = "unburied" if tenure.live else "gone"
        entry.due = self.now + 2.0

    # -- a straight run

    def go_straight(self) -> bool:
        segment = self.dispatcher.straight(self.now)
        self.note_drops()
        if segment is None:
            return False
        self.may_run_straight(segment)
        self.run, self.at, self.within = (segment, self.by_owner[id(segment.owner)]), 0, False
        return True

    def may_run_straight(self, segment: Segment) -> None:
        """All of it may be handled in turn, with nothing looked at in between."""
        tenure = self.by_owner[id(segment.owner)]
        entries = [tenure.entries[offset] for offset in segment.batch.offsets]
        identities = [e.sent.identity for e in entries if e.sent.identity is not None]
        assert not self.dispatcher.paused
        assert tenure.live
        assert self.now < tenure.ownership.valid_until
        assert tenure.window is None or len(set(identities)) == len(identities)
        for entry in entries:
            assert entry.state == "queued"
            assert not any(self.group.blockers(tenure, entry, entries))
            assert not tenure.remembers(entry.sent.identity)

    def entry_at(self, index: int) -> Entry:
        if self.run is None:
            raise AssertionError("no straight run")
        segment, tenure = self.run
        return tenure.entries[segment.batch.offsets[index]]

    def go_on(self, data: st.DataObject) -> None:
        """A handler of a straight run begins, or ends."""
        if self.run is None:
            return
        segment, tenure = self.run
        if not self.within:
            if self.at == len(segment) or self.now >= tenure.ownership.valid_until:
                self.ran(self.at)
            else:
                self.group.start(tenure, self.entry_at(self.at), self.now, ())
                self.within = True
            return
        self.within = False
        if data.draw(st.integers(0, 4)) < 4:
            segment.done[self.at] = 1
            self.group.settle(tenure, self.entry_at(self.at), remember=False)
            self.at += 1
            return
        # A batch handler stumbles over several.
        stop = data.draw(st.integers(self.at + 1, min(len(segment), self.at + 3)))
        entries = [self.entry_at(index) for index in range(self.at, stop)]
        for entry in entries:
            entry.state = "running"
        works = self.dispatcher.claim(segment, 0, self.at, stop)
        self.ended(self.at)
        assert len(works) == (stop - self.at if tenure.live else 0)
        if not works:
            for entry in entries:
                entry.state = "gone"
            return
        flight = self.found(works)
        assert list(flight.entries) == entries
        if len(works) == 1:
            error, random = data.draw(errors), data.draw(jitter)
            burial = self.dispatcher.failed(works[0], error, self.now, random)
            self.failed(tenure, entries[0], error, random, burial)
        elif data.draw(st.booleans()):
            self.was_split(flight)
        else:
            self.part_failed(data, data.draw(jitter), flight)

    def ran(self, stop: int) -> None:
        if self.run is not None:
            self.dispatcher.ran(self.run[0], 0, stop)
            self.ended(stop)

    def ended(self, stop: int) -> None:
        if self.run is not None:
            segment, tenure = self.run
            self.counts["handled"] += stop
            for identity in segment.ids[:stop]:
                self.group.remember(tenure, identity)
            self.run = None

    def stop(self, data: st.DataObject) -> None:
        """A straight run is cut short, or refused at once."""
        if self.run is None or self.within:
            return
        if self.at == 0:
            self.dispatcher.refuse(self.run[0])
            self.ended(0)
        else:
            self.ran(self.at)

    # -- anything, at any time

    def actions(self) -> Iterator[tuple[int, Callable[[st.DataObject], None]]]:
        """What can be done now, with weights."""
        busy = bool(self.flights)
        yield 6 * self.room(), self.take_some
        yield 6 * busy, self.finish
        yield 3, self.arrive
        yield 4 * busy, self.fail
        yield 1 * busy, self.leave
        yield 4 * bool(self.burials), self.bury
        yield 20 * (self.run is not None), self.go_on
        yield 1 * (self.run is not None), self.stop
        yield 2, self.pass_time
        yield 1, self.deliver_some
        yield 1, self.rebalance
        yield 1 * self.room(), self.hold
        yield 1 * self.rough, self.crash

    @rule(data=st.data())
    def act(self, data: st.DataObject) -> None:
        choices = [action for weight, action in self.actions() for _ in range(weight)]
        data.draw(st.sampled_from(choices))(data)

    @invariant()
    def settled_is_settled(self) -> None:
        if not hasattr(self, "group"):
            return
        self.note_drops()
        for tenure in self.group.tenures:
            if tenure.live:
                for entry in tenure.entries.values():
                    assert entry.segment.done[entry.index] == (entry.state == "settled")
        counts = self.dispatcher.counts
        for name in ("handled", "duplicates", "filtered", "retries", "buried"):
            assert getattr(counts, name) == self.counts[name], name

    def come_to_rest(self) -> None:
        """Every handler ends, everything is delivered: nothing may be left."""
        if self.run is not None:
            if self.within:
                self.step_on()
            self.ran(self.at)
        self.resume()
        self.end_handlers()
        assert not self.dispatcher._fences, "a fence that nobody takes down"
        self.assign_all()
        for _ in range(1_000):
            self.end_handlers()
            self.deliver(0, 50)
            self.deliver(1, 50)
            self.now += 100.0
            self.take()
            if self.run is not None:
                while self.at < len(self.run[0]):
                    self.group.start(self.run[1], self.entry_at(self.at), self.now, ())
                    self.step_on()
                self.ran(self.at)
            elif not self.flights and not self.burials:
                break
        else:
            raise AssertionError("it does not come to rest")
        for tenure in self.group.tenures:
            if tenure.live:
                self.group.commit(tenure)
        self.group.judge()
        dispatcher = self.dispatcher
        assert not dispatcher.backlog
        assert dispatcher.due is None
        assert dispatcher.waiting == 0
        for tenure in self.group.tenures:
            assert not tenure.owned.lanes, "a lane that nobody runs in is busy"
            assert not tenure.live or tenure.progress.held() == (0, 0)

    def end_handlers(self) -> None:
        while self.flights:
            self.succeed(self.flights[0])
        while self.burials:
            flight = self.burials.pop()
            self.dispatcher.done(flight.works[0])
            self.settle(flight.tenures[0], flight.entries[0], "buried")

    def step_on(self) -> None:
        if self.run is not None:
            self.run[0].done[self.at] = 1
            self.group.settle(self.run[1], self.entry_at(self.at), remember=False)
            self.at += 1
            self.within = False

    def teardown(self) -> None:
        if hasattr(self, "group"):
            self.come_to_rest()


class Batches(Machine):
    """Messages are taken in batches."""

    mode = "batch"


class Straight(Machine):
    """One runner, which runs straight where it can."""

    mode = "straight"


TestSingle = Machine.TestCase
TestSingle.settings = runs(100)
TestBatches = Batches.TestCase
TestBatches.settings = runs(100)
TestStraight = Straight.TestCase
TestStraight.settings = runs(100)
