"""The dispatcher beside a naive model, under arbitrary interleavings.

The machine plays an executor that does everything an executor may do, at any moment, and a log that
delivers, takes partitions away and gives them back. The model in ``model.py`` says what is allowed;
what must come *some* time is checked whenever the dispatcher says that there is nothing to do.

It has one rule, which chooses among weighted actions by itself: left to Hypothesis, most examples
have some rule switched off, and without arrivals, say, nothing is ever tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from streams.engine.dispatcher import Delivery
from streams.engine.progress import FetchedBatch
from streams.errors import Reject, RetryAfter
from tests.engine.model import Entry, Epoch
from tests.engine.support import runs
from tests.engine.world import Flight, World

errors = st.sampled_from(
    [RuntimeError("no"), RuntimeError("no"), RuntimeError("no"), Reject(), RetryAfter(3.0)]
)
jitter = st.sampled_from([0.0, 0.3, 0.99])


class Machine(World):
    """An executor that takes, handles and reports one message at a time."""

    # -- outcomes

    def settle(self, epoch: Epoch, entry: Entry, count: str) -> None:
        self.group.settle(epoch, entry)
        self.counts[count] += 1

    def succeed(self, flight: Flight) -> None:
        self.flights.remove(flight)
        if self.mode == "batch":
            self.dispatcher.mark_batch_settled(flight.works)
        else:
            self.dispatcher.mark_settled(flight.works[0])
        for epoch, entry in zip(flight.epochs, flight.entries, strict=True):
            self.settle(epoch, entry, "handled")

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
            self.dispatcher.mark_filtered(flight.works[0])
            self.settle(flight.epochs[0], flight.entries[0], "filtered")

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
        (work,), (entry,), (epoch,) = flight
        error = data.draw(errors)
        poison = data.draw(st.integers(0, 5)) == 5
        if poison:
            rejected: Delivery | None = self.dispatcher.reject(work, error)
        else:
            rejected = self.dispatcher.mark_failed(work, error, self.now, random)
        self.failed(epoch, entry, error, random, rejected, poison)

    def failed(
        self,
        epoch: Epoch,
        entry: Entry,
        error: Exception,
        random: float,
        rejected: Delivery | None,
        final: bool = False,
    ) -> None:
        hopeless = final or self.group.hopeless(entry, error)
        assert (rejected is not None) == hopeless
        if rejected is None:
            self.counts["retries"] += 1
            self.group.fail(epoch, entry, error, self.now, random)
        else:
            assert rejected.reason is not None
            assert rejected.reason.error is error
            assert rejected.reason.attempts == entry.failures + 1
            entry.state = "dead-lettering"
            self.rejections.append(Flight([rejected], [entry], [epoch]))

    def part_failed(self, data: st.DataObject, random: float, flight: Flight) -> None:
        indexes = st.integers(0, len(flight.works) - 1)
        failing = data.draw(st.dictionaries(indexes, errors, min_size=1))
        final = data.draw(st.sets(st.sampled_from(sorted(failing)), max_size=1))
        dead = self.dispatcher.mark_batch_failed(flight.works, failing, self.now, random, final)
        by_entry = {id(self.found([work]).entries[0]): work for work in dead}
        heads: set[tuple[int, Any]] = set()  # key queues that wait for a message of this batch
        for index, (epoch, entry) in enumerate(zip(flight.epochs, flight.entries, strict=True)):
            error = failing.get(index)
            if error is None:
                self.settle(epoch, entry, "handled")
                continue
            hopeless = index in final or self.group.hopeless(entry, error)
            key_queue = (id(epoch), entry.key_queue)
            behind = key_queue in heads and entry.key_queue is not None and epoch.live
            steps_out = not hopeless and not self.retry.in_order and entry.sent.key is not None
            if not hopeless or not behind:
                rejected = by_entry.pop(id(entry), None)
                self.failed(epoch, entry, error, random, rejected, index in final)
                if behind and not steps_out:
                    entry.state = "queued"
                if not steps_out:
                    heads.add(key_queue)
            else:
                entry.state = "condemned"
                entry.failures += 1
        assert not by_entry

    def was_split(self, flight: Flight) -> None:
        self.dispatcher.split_batch(flight.works)
        for epoch, entry in zip(flight.epochs, flight.entries, strict=True):
            entry.state = "queued" if epoch.live else "gone"
            entry.alone = True

    def abandon(self, flight: Flight) -> None:
        self.flights.remove(flight)
        for work in reversed(flight.works):
            self.dispatcher.abandon(work)
        for epoch, entry in zip(flight.epochs, flight.entries, strict=True):
            entry.state = "queued" if epoch.live else "gone"

    def write_dead_letter(self, data: st.DataObject) -> None:
        """A dead letter was written, or refused."""
        flight = self.pick(data, self.rejections)
        self.rejections.remove(flight)
        (work,), (entry,), (epoch,) = flight
        if data.draw(st.booleans()):
            self.dispatcher.mark_settled(work)
            self.settle(epoch, entry, "dead_lettered")
            return
        self.dispatcher.deliver_at(work, self.now + 2.0)
        entry.state = "unburied" if epoch.live else "gone"
        entry.due = self.now + 2.0

    # -- the fast path

    def take_fast_path(self) -> bool:
        segment = self.dispatcher.take_fast_batch(self.now)
        self.note_drops()
        if segment is None:
            return False
        self.may_take_fast_path(segment)
        self.run, self.at, self.within = (segment, self.by_owner[id(segment.state)]), 0, False
        return True

    def may_take_fast_path(self, segment: FetchedBatch) -> None:
        """All of it may be handled in turn, with nothing looked at in between."""
        epoch = self.by_owner[id(segment.state)]
        entries = [epoch.entries[offset] for offset in segment.batch.offsets]
        identities = [e.sent.identity for e in entries if e.sent.identity is not None]
        assert not self.dispatcher.paused
        assert epoch.live
        assert self.now < epoch.ownership.valid_until
        assert epoch.window is None or len(set(identities)) == len(identities)
        for entry in entries:
            assert entry.state == "queued"
            assert not any(self.group.blockers(epoch, entry, entries))
            assert not epoch.remembers(entry.sent.identity)

    def entry_at(self, index: int) -> Entry:
        if self.run is None:
            raise AssertionError("no fast path")
        segment, epoch = self.run
        return epoch.entries[segment.batch.offsets[index]]

    def go_on(self, data: st.DataObject) -> None:
        """A handler of the fast path begins, or ends."""
        if self.run is None:
            return
        segment, epoch = self.run
        if not self.within:
            if self.at == len(segment) or self.now >= epoch.ownership.valid_until:
                self.ran(self.at)
            else:
                self.group.start(epoch, self.entry_at(self.at), self.now, ())
                self.within = True
            return
        self.within = False
        if data.draw(st.integers(0, 4)) < 4:
            segment.settled[self.at] = 1
            self.group.settle(epoch, self.entry_at(self.at), remember=False)
            self.at += 1
            return
        # A batch handler stumbles over several.
        stop = data.draw(st.integers(self.at + 1, min(len(segment), self.at + 3)))
        entries = [self.entry_at(index) for index in range(self.at, stop)]
        for entry in entries:
            entry.state = "running"
        works = self.dispatcher.interrupt_fast_run(segment, self.at, stop)
        self.ended(self.at)
        assert len(works) == (stop - self.at if epoch.live else 0)
        if not works:
            for entry in entries:
                entry.state = "gone"
            return
        flight = self.found(works)
        assert list(flight.entries) == entries
        if len(works) == 1:
            error, random = data.draw(errors), data.draw(jitter)
            rejected = self.dispatcher.mark_failed(works[0], error, self.now, random)
            self.failed(epoch, entries[0], error, random, rejected)
        elif data.draw(st.booleans()):
            self.was_split(flight)
        else:
            self.part_failed(data, data.draw(jitter), flight)

    def ran(self, stop: int) -> None:
        if self.run is not None:
            self.dispatcher.finish_fast_run(self.run[0], stop)
            self.ended(stop)

    def ended(self, stop: int) -> None:
        if self.run is not None:
            segment, epoch = self.run
            self.counts["handled"] += stop
            for identity in segment.ids[:stop]:
                self.group.remember(epoch, identity)
            self.run = None

    def stop(self, data: st.DataObject) -> None:
        """The fast path is cut short, or refused at once."""
        if self.run is None or self.within:
            return
        if self.at == 0:
            self.dispatcher.finish_fast_run(self.run[0], 0)
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
        yield 4 * bool(self.rejections), self.write_dead_letter
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
        for epoch in self.group.epochs:
            if epoch.live:
                for entry in epoch.entries.values():
                    assert entry.segment.settled[entry.index] == (entry.state == "settled")
        counts = self.dispatcher.counts
        for name in ("handled", "duplicates", "filtered", "retries", "dead_lettered"):
            assert getattr(counts, name) == self.counts[name], name

    def come_to_rest(self) -> None:
        """Every handler ends, everything is delivered: nothing may be left."""
        if self.run is not None:
            if self.within:
                self.step_on()
            self.ran(self.at)
        self.resume()
        self.end_handlers()
        assert not self.dispatcher._outlived, "a fence that nobody takes down"
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
            elif not self.flights and not self.rejections:
                break
        else:
            raise AssertionError("it does not come to rest")
        for epoch in self.group.epochs:
            if epoch.live:
                self.group.commit(epoch)
        self.group.judge()
        dispatcher = self.dispatcher
        assert not dispatcher.has_backlog
        assert dispatcher.next_due is None
        assert dispatcher.waiting == 0
        for epoch in self.group.epochs:
            assert not epoch.owned.in_flight, "a key queue that nobody runs in is busy"
            assert not epoch.live or epoch.progress.unsettled() == (0, 0)

    def end_handlers(self) -> None:
        while self.flights:
            self.succeed(self.flights[0])
        while self.rejections:
            flight = self.rejections.pop()
            self.dispatcher.mark_settled(flight.works[0])
            self.settle(flight.epochs[0], flight.entries[0], "dead_lettered")

    def step_on(self) -> None:
        if self.run is not None:
            self.run[0].settled[self.at] = 1
            self.group.settle(self.run[1], self.entry_at(self.at), remember=False)
            self.at += 1
            self.within = False

    def teardown(self) -> None:
        if hasattr(self, "group"):
            self.come_to_rest()


class Batches(Machine):
    """Messages are taken in batches."""

    mode = "batch"


class FastPath(Machine):
    """One executor, which takes the fast path where it can."""

    mode = "fast path"


TestSingle = Machine.TestCase
TestSingle.settings = runs(100)
TestBatches = Batches.TestCase
TestBatches.settings = runs(100)
TestFastPath = FastPath.TestCase
TestFastPath.settings = runs(100)
