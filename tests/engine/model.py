"""What a dispatcher may do, said naively: every message has a state, every rule is a search.

A :class:`Epoch` is one assignment as the group's promises see it; :class:`Group` is what outlives
processes: the log, what was committed, which effects took place. The machine in
``test_dispatch.py`` does to both this model and the real thing whatever Hypothesis thinks of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from streams.config import Retry
from streams.engine.dedup_window import DedupWindow
from streams.engine.dispatcher import PartitionState
from streams.engine.progress import FetchedBatch, Progress, Range, decode_progress, encode_progress
from streams.errors import Reject, RetryAfter
from tests.engine.support import batch

TOPIC = "orders"

State = Literal[
    "queued",  # its turn has not come, or comes again
    "running",  # a handler was called
    "retry",  # failed, waits until it is due
    "condemned",  # will not be handled; its dead letter waits for its turn
    "dead-lettering",  # its dead letter is being written
    "unburied",  # its dead letter was refused, and is due again later
    "settled",
    "gone",  # its partition left before it was settled
]


class Sent(NamedTuple):
    """A message as it stands in the log."""

    offset: int
    key: bytes | None
    identity: str | None


@dataclass(eq=False)
class Entry:
    """A message in one assignment."""

    sent: Sent
    segment: FetchedBatch
    index: int
    state: State = "queued"
    failures: int = 0
    alone: bool = False
    """Failed, by itself or in a batch: not to be batched again."""
    loose: bool = False
    """Stepped out of its key's order (``in_order=False``)."""
    due: float = 0.0

    @property
    def key_queue(self) -> bytes | str | None:
        return self.sent.identity if self.sent.key is None else self.sent.key


@dataclass
class Ownership:
    """An assignment as a log would make it."""

    partition: int
    topic: str = TOPIC
    valid_until: float = float("inf")


@dataclass(eq=False)
class Epoch:
    """One assignment: what it restored, what it was given, what became of that."""

    partition: int
    ownership: Ownership
    progress: Progress
    window: DedupWindow | None
    owned: PartitionState
    base: set[int]
    """Offsets that were settled when it began."""
    next: int
    """Index into the log of what is delivered next."""
    seen: list[str]
    """Identities in the order in which they were remembered."""
    entries: dict[int, Entry] = field(default_factory=dict)
    live: bool = True

    def settled(self) -> set[int]:
        return self.base | {o for o, entry in self.entries.items() if entry.state == "settled"}

    def remembers(self, identity: str | None) -> bool:
        """True where this identity must be known: it is one of the last ``size`` settled."""
        if identity is None or self.window is None:
            return False
        recent: dict[str, None] = {}
        for each in reversed(self.seen):
            if len(recent) == self.window.size:
                break
            recent[each] = None
        return identity in recent


class Group:
    """The log and the group, and what took place."""

    def __init__(self, partitions: int, retry: Retry, window: int) -> None:
        self.retry = retry
        self.window = window
        self.log: list[list[Sent]] = [[] for _ in range(partitions)]
        start = encode_progress(0, 0, [])
        self.committed = [(start.position, start.progress) for _ in range(partitions)]
        self.effects: Counter[tuple[int, int]] = Counter()
        """By partition and offset: handled, filtered or dead-lettered, how often."""
        self.excuses: Counter[tuple[int, int]] = Counter()
        """By the same: how often it was in flight or not yet committed when its owner ended."""
        self.epochs: list[Epoch] = []
        """Of this process: the live ones, and those with handlers that outlived them."""

    # -- the log

    def covered(self, partition: int, position: int, ranges: Sequence[Range]) -> set[int]:
        return {
            sent.offset
            for sent in self.log[partition]
            if sent.offset < position or any(a <= sent.offset < b for a, b in ranges)
        }

    def stored(self, partition: int) -> tuple[int, list[Range], set[int]]:
        """Floor, settled set and all covered offsets of what was committed."""
        position, text = self.committed[partition]
        floor, ranges = decode_progress(position, text)
        return floor, ranges, self.covered(partition, position, ranges)

    def restore(
        self, partition: int
    ) -> tuple[Progress, DedupWindow | None, set[int], int, list[str]]:
        """What an assignment begins with, the window read back from the log itself."""
        floor, ranges, covered = self.stored(partition)
        position = self.committed[partition][0]
        log = self.log[partition]
        at = sum(1 for sent in log if sent.offset < position)
        window = DedupWindow(self.window) if self.window else None
        seen = [
            sent.identity
            for sent in log[max(0, at - self.window) :]
            if sent.identity and sent.offset >= floor and sent.offset in covered
        ]
        if window is not None:
            for identity in seen:
                window.add(identity)
        return Progress(position, floor, ranges), window, covered, at, seen

    def live(self, partition: int) -> Epoch | None:
        return next((t for t in self.epochs if t.live and t.partition == partition), None)

    def deliver(self, epoch: Epoch, count: int, back: int = 0) -> FetchedBatch | None:
        """The next ``count`` messages of the log, from ``back`` before the end of the last."""
        log = self.log[epoch.partition]
        known = sum(1 for sent in log if sent.offset < epoch.progress.position)
        start = max(min(known, epoch.next), epoch.next - back)
        chosen = log[start : start + count]
        if not chosen:
            return None
        offsets, keys, ids = zip(*chosen, strict=True)
        made = batch(offsets, keys, ids, partition=epoch.partition)
        segment = epoch.progress.add(epoch.owned, made)
        for index, sent in enumerate(chosen):
            again = start + index < epoch.next
            assert segment.settled[index] == (again or sent.offset in epoch.base)
            if not segment.settled[index]:
                epoch.entries[sent.offset] = Entry(sent, segment, index)
        epoch.next = max(epoch.next, start + len(chosen))
        return segment

    # -- what is in the way

    def _twins(self, entry: Entry, epoch: Epoch) -> Iterator[Entry]:
        """Others of the same identity that stepped out of their key's order, unsettled."""
        if entry.sent.identity is None or epoch.window is None or entry.sent.key is None:
            return
        for each in self.epochs:
            if each.partition == epoch.partition:
                for other in each.entries.values():
                    if (
                        other.loose
                        and other is not entry
                        and other.sent.identity == entry.sent.identity
                        and other.state not in ("settled", "gone")
                    ):
                        yield other

    def blockers(
        self, epoch: Epoch, entry: Entry, beside: Collection[Entry] = ()
    ) -> Iterator[Entry]:
        """What this message has to wait for, if it is not ``beside`` it in one batch."""
        if entry.key_queue is None:
            return
        yield from self._twins(entry, epoch)
        if entry.loose:
            return
        for each in self.epochs:
            if each.partition != epoch.partition:
                continue
            for other in each.entries.values():
                if other is entry:
                    if each is epoch:
                        break
                    continue
                if other.key_queue != entry.key_queue or other.loose or other in beside:
                    continue
                if each is not epoch:
                    if other.state in ("running", "dead-lettering"):
                        yield other
                elif other.state != "settled" and not any(self._twins(other, epoch)):
                    yield other

    def eligible(self, now: float) -> list[tuple[Epoch, Entry]]:
        """Everything whose turn has come."""
        return [
            (epoch, entry)
            for epoch in self.epochs
            if epoch.live
            for entry in epoch.entries.values()
            if entry.state in ("queued", "condemned")
            or (entry.state in ("retry", "unburied") and entry.due <= now)
            if not any(self.blockers(epoch, entry))
        ]

    # -- what happens

    def start(self, epoch: Epoch, entry: Entry, now: float, beside: Collection[Entry]) -> None:
        """A handler is called; checks that it may be."""
        assert epoch.live, "given out after its partition left"
        assert now < epoch.ownership.valid_until, "given out while ownership was uncertain"
        assert entry.state == "queued" or (entry.state == "retry" and entry.due <= now), entry.state
        in_the_way = [
            # A dead letter still being written for a partition that left is no handler.
            other
            for other in self.blockers(epoch, entry, beside)
            if other.state != "dead-lettering" or epoch.entries.get(other.sent.offset) is other
        ]
        assert not in_the_way, "out of order, or two at once"
        assert not epoch.remembers(entry.sent.identity), "a duplicate was handled"
        entry.state = "running"

    def settle(self, epoch: Epoch, entry: Entry, *, remember: bool = True) -> None:
        """It was handled, filtered or dead-lettered."""
        entry.state = "settled"
        self.effects[epoch.partition, entry.sent.offset] += 1
        if remember:
            self.remember(epoch, entry.sent.identity)

    def remember(self, epoch: Epoch, identity: str | None) -> None:
        if identity is not None:
            epoch.seen.append(identity)
            now = self.live(epoch.partition)
            if now is not None and now is not epoch:
                now.seen.append(identity)

    def hopeless(self, entry: Entry, error: BaseException) -> bool:
        """Whether one more failure is the last."""
        return isinstance(error, Reject) or entry.failures + 1 >= self.retry.attempts

    def fail(self, epoch: Epoch, entry: Entry, error: BaseException, now: float, r: float) -> None:
        """It failed and is to be tried again: when?"""
        entry.failures += 1
        entry.alone = True
        if not epoch.live:
            entry.state = "gone"
            return
        entry.state = "retry"
        if isinstance(error, RetryAfter):
            entry.due = now + error.seconds
        else:
            bound = self.retry.delay * 2 ** (entry.failures - 1)
            entry.due = now + r * min(self.retry.cap, bound)
        entry.loose = entry.loose or (not self.retry.in_order and entry.sent.key is not None)

    def drops(self) -> Iterator[tuple[Epoch, Entry]]:
        """What the engine settled by itself: that may only be duplicates of what was handled."""
        for epoch in self.epochs:
            if epoch.live:
                for entry in epoch.entries.values():
                    if entry.segment.settled[entry.index] and entry.state != "settled":
                        yield epoch, entry

    def handled(self, partition: int, identity: str | None) -> bool:
        """This identity had its effect, whichever message it was that carried it."""
        return identity is not None and any(
            self.effects[partition, sent.offset]
            for sent in self.log[partition]
            if sent.identity == identity
        )

    def commit(self, epoch: Epoch) -> None:
        """Take a snapshot, check what it claims, and store it."""
        snapshot = epoch.progress.snapshot()
        assert snapshot.complete
        floor, ranges = decode_progress(snapshot.position, snapshot.progress)
        covered = self.covered(epoch.partition, snapshot.position, ranges)
        assert covered == epoch.settled(), "a commit must cover what is settled, and nothing else"
        assert snapshot.position >= self.committed[epoch.partition][0], "a commit moved backwards"
        assert floor == self.stored(epoch.partition)[0]
        for sent in self.log[epoch.partition]:
            if sent.offset >= floor and sent.offset in covered:
                assert self.effects[epoch.partition, sent.offset] or self.handled(
                    epoch.partition, sent.identity
                ), "committed, yet nothing ever handled it"
        self.committed[epoch.partition] = (snapshot.position, snapshot.progress)

    def end(self, epoch: Epoch) -> None:
        """The partition left, or the process died: what may be handled a second time now."""
        covered = self.stored(epoch.partition)[2]
        for offset, entry in epoch.entries.items():
            if entry.state == "settled":
                if offset not in covered and self.effects[epoch.partition, offset]:
                    self.excuses[epoch.partition, offset] += 1
            elif entry.state in ("running", "dead-lettering"):
                self.excuses[epoch.partition, offset] += 1
            else:
                entry.state = "gone"
        epoch.live = False
        epoch.ownership.valid_until = float("-inf")

    def reset(self, partition: int, index: int) -> None:
        """The group is moved to another position: all from there on is to be handled again."""
        log = self.log[partition]
        position = log[index].offset if index < len(log) else (log[-1].offset + 1 if log else 0)
        snapshot = encode_progress(position, position, [])
        self.committed[partition] = (snapshot.position, snapshot.progress)
        for sent in log:
            del self.effects[partition, sent.offset]
            del self.excuses[partition, sent.offset]

    def judge(self) -> None:
        """Everything is done: nothing was lost, and nothing happened more often than it may."""
        for partition, log in enumerate(self.log):
            floor, _, covered = self.stored(partition)
            assert covered >= {sent.offset for sent in log}
            times: Counter[str] = Counter()
            for sent in log:
                place = (partition, sent.offset)
                assert self.effects[place] <= 1 + self.excuses[place], "handled too often"
                if sent.offset >= floor:
                    assert self.effects[place] or self.handled(partition, sent.identity), "lost"
                if sent.identity is not None:
                    times[sent.identity] += self.effects[place] - self.excuses[place]
            if self.window >= 1_000:
                assert all(count <= 1 for count in times.values()), "one identity, handled twice"
