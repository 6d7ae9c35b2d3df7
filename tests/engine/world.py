"""The world around a dispatcher, for the machine in ``test_dispatch.py``.

A log that delivers, takes partitions away and gives them back; processes that die; and a check of
everything that is given out against the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize

from streams.config import Retry
from streams.engine.dispatcher import Delivery, Dispatcher, PartitionState
from streams.engine.progress import FetchedBatch
from tests.engine.model import Entry, Epoch, Group, Ownership, Sent

KEYS = [b"a", b"b", b"c"]

kinds = st.sampled_from(["new", "new", "new", "new", "again", "again", "foreign", "gap"])
arrivals = st.lists(st.tuples(st.integers(0, 3), kinds), min_size=1, max_size=9)
partitions = st.integers(0, 1)


class Flight(NamedTuple):
    """What an executor holds: messages that are handled together, or one that is dead-lettered."""

    works: Sequence[Delivery]
    entries: Sequence[Entry]
    epochs: Sequence[Epoch]


class World(RuleBasedStateMachine):
    """One process after the other, one group, two partitions: all but what an executor does."""

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
        self.most = 1 if self.mode == "fast path" else most  # handlers at once
        self.plain = plain  # no duplicates, nothing foreign
        self.rough = rough
        self.now = 100.0
        self.published = 0
        self.boot()
        self.assign_all()

    def boot(self) -> None:
        self.dispatcher = Dispatcher(self.retry)
        self.group.epochs = []
        self.by_owner: dict[int, Epoch] = {}
        self.flights: list[Flight] = []
        self.rejections: list[Flight] = []
        self.run: tuple[FetchedBatch, Epoch] | None = None  # the fast path that is out
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
        epoch = self.group.live(partition)
        if epoch is not None:
            segment = self.group.deliver(epoch, count, back)
            if segment is not None:
                self.dispatcher.offer(segment)

    # -- assignments

    def assign_all(self) -> None:
        for partition in range(2):
            if self.group.live(partition) is None:
                progress, window, covered, at, seen = self.group.restore(partition)
                ownership = Ownership(partition)
                owned = PartitionState(ownership, progress, window)
                self.dispatcher.assign(owned)
                epoch = Epoch(partition, ownership, progress, window, owned, covered, at, seen)
                self.group.epochs.append(epoch)
                self.by_owner[id(owned)] = epoch

    def rebalance(self, data: st.DataObject) -> None:
        """A partition leaves, in peace with a last commit or not, and comes back, now or later."""
        partition = data.draw(partitions)
        ending = data.draw(st.sampled_from(["lost", "lost", "cut", "drained"]))
        late = data.draw(st.booleans())
        for gone in self.group.epochs:
            if not gone.live:
                self.dispatcher.revoke(gone.owned)  # twice does no harm
        epoch = self.group.live(partition)
        if epoch is not None:
            self.dispatcher.revoke(epoch.owned)
            epoch.ownership.valid_until = float("-inf")
            if late and (segment := self.group.deliver(epoch, 3)) is not None:
                self.dispatcher.offer(segment)  # polled before, handed over after
            if ending == "drained":
                for flight in [f for f in self.flights if epoch in f.epochs]:
                    self.succeed(flight)
            if ending != "lost":
                self.group.commit(epoch)
            self.group.end(epoch)
        if data.draw(st.integers(0, 3)):
            self.assign_all()
            self.deliver(partition, 20)

    def crash(self, data: st.DataObject) -> None:
        """kill -9: nothing of this process is left. Perhaps the group is moved meanwhile."""
        for epoch in self.group.epochs:
            if epoch.live:
                self.group.end(epoch)
        if data.draw(st.integers(0, 3)) == 3:
            self.group.reset(data.draw(partitions), data.draw(st.integers(0, 30)))
        self.boot()
        self.assign_all()

    def hold(self, data: st.DataObject) -> None:
        """Ownership was not confirmed for too long, or somebody pauses the processor."""
        epoch = self.group.live(data.draw(partitions))
        if epoch is None or data.draw(st.booleans()):
            self.dispatcher.paused = True
        else:
            epoch.ownership.valid_until = self.now
        if data.draw(st.booleans()):
            self.arrive(data)
        self.take()
        if data.draw(st.integers(0, 2)):
            self.resume()

    def resume(self) -> None:
        self.dispatcher.paused = False
        for epoch in self.group.epochs:
            if epoch.live:
                epoch.ownership.valid_until = float("inf")

    def pass_time(self, data: st.DataObject) -> None:
        """Time passes, ownership is confirmed, and progress is perhaps committed."""
        self.now += data.draw(st.sampled_from([0.0, 0.5, 3.0]))
        self.resume()
        epoch = self.group.live(data.draw(st.integers(0, 3)))
        if epoch is not None:
            self.group.commit(epoch)

    # -- an executor takes

    def found(self, works: Sequence[Delivery]) -> Flight:
        epochs = [self.by_owner[id(work.fetched.state)] for work in works]
        entries = [
            epoch.entries[work.fetched.batch.offsets[work.index]]
            for epoch, work in zip(epochs, works, strict=True)
        ]
        return Flight(works, entries, epochs)

    def took(self, works: Sequence[Delivery]) -> None:
        """Check what was given out."""
        assert not self.dispatcher.paused
        self.note_drops()
        flight = self.found(works)
        if works[0].reason is not None:
            (entry,), (epoch,) = flight.entries, flight.epochs
            assert entry.state == "condemned" or (
                entry.state == "unburied" and entry.due <= self.now
            )
            assert not any(self.group.blockers(epoch, entry))
            assert self.now < epoch.ownership.valid_until
            entry.state = "dead-lettering"
            self.rejections.append(flight)
            return
        earlier: list[Entry] = []
        for work, entry, epoch in zip(works, flight.entries, flight.epochs, strict=True):
            assert work.reason is None
            assert work.fetched is entry.segment
            assert work.identity == entry.sent.identity
            assert work.attempt == entry.failures + 1, "attempts are counted from 1"
            assert not (entry.alone and len(works) > 1), "batched with others after a failure"
            assert all(
                (other.key_queue, other.sent.identity) != (entry.key_queue, entry.sent.identity)
                or entry.sent.identity is None
                for other in earlier
            ), "an identity twice in a batch"
            self.group.start(epoch, entry, self.now, earlier)
            earlier.append(entry)
        self.flights.append(flight)

    def note_drops(self) -> None:
        for epoch, entry in list(self.group.drops()):
            assert entry.state == "queued", "settled, though it was neither handled nor a duplicate"
            assert self.group.handled(epoch.partition, entry.sent.identity)
            assert epoch.window is not None
            entry.state = "settled"
            self.counts["duplicates"] += 1

    def nothing(self) -> None:
        """The dispatcher says that nothing may run: then nothing may."""
        self.note_drops()
        sure = all(self.now < t.ownership.valid_until for t in self.group.epochs if t.live)
        if sure and not self.dispatcher.paused:
            assert not self.group.eligible(self.now), "stuck"

    def take_some(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 4))):
            limit = data.draw(st.sampled_from([3, 1, 9])) if self.mode == "batch" else 1
            if not self.room() or not self.take(limit):
                break

    def take(self, limit: int = 3) -> bool:
        dispatcher = self.dispatcher
        dispatcher.release_due(self.now)
        if self.mode == "fast path" and self.take_fast_path():
            return True
        if self.mode == "batch":
            works = dispatcher.take_batch(self.now, limit)
            assert len(works) <= limit
        else:
            work = dispatcher.take_next(self.now)
            works = [] if work is None else [work]
        if works:
            self.took(works)
        else:
            self.nothing()
        return bool(works)

    # -- what an executor does

    def succeed(self, flight: Flight) -> None:
        raise NotImplementedError

    def take_fast_path(self) -> bool:
        raise NotImplementedError
