"""Which message may be handled now: one at a time for each key, over everything that was polled.

Rules
-----

1. An *ordering key* is a key of one topic and partition, as bytes. A message without a key has its
   identity for an ordering key, so that a duplicate of it waits for its outcome. A message with
   neither has none and never waits.
2. An ordering key in ``PartitionState.in_flight`` is *in flight*: its message is being handled,
   waits to be tried again, is held back for newer code, or its dead letter is being written. Later
   messages of the key wait in its *key queue*. When the message is settled, the next of the queue
   goes to ``ready``, before anything that was not looked at yet.
3. A duplicate is dropped when it would be handled, not earlier: what it duplicates may still fail.
4. Keys in flight outlive the assignment. A partition that is revoked loses its queues, but keys
   whose handler is still running stay in flight, so when the partition comes back to this process
   those keys wait. Both assignments share one dict of them for that; a batch that outlived its
   partition releases each of its keys once.
5. Nothing starts when ownership is not certain (``now >= valid_until``): everything waits until it
   is confirmed again, or lost.
6. One message holds an ordering key: the one that is handled, waits to be tried again, or whose
   dead letter is being written. A batch may hold several messages of a key; once its outcome is
   known, the first that is not settled keeps the key and the others queue up behind it.
7. With ``in_order=False`` a message that failed gives its key up and has its identity for an
   ordering key from then on, so that its duplicates, whatever their key, still wait for it.
8. A message that comes back another way than from its partition (:meth:`Dispatcher.push_returned`)
   goes before whatever waits in its key's queue. It has no identity: it was settled in its
   partition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec
from msgspec.structs import replace

from streams.config import Retry
from streams.engine.dedup_window import DedupWindow
from streams.engine.progress import FetchedBatch, Progress
from streams.engine.retry import retry_delay

OrderingKey: TypeAlias = "bytes | str | None"

READ_AHEAD = 2_000
"""Messages that wait to be given out, from which on no more are polled. Waiting messages fall out
of the CPU's cache, and Python's cyclic garbage collector traverses them again and again: with five
times as many, a message cost 7 % more CPU (on Kafka)."""


HELD_BACK_PAUSE = 30.0
"""Seconds after which a message that is held back for newer code is given out again."""


class DeadLetterReason(NamedTuple):
    """A message that will not be handled: why, after how many attempts, and how often the write
    to the dead letters failed so far."""

    error: BaseException
    attempts: int
    failed_writes: int = 0


class Delivery(msgspec.Struct, frozen=True, eq=False):
    """One message that was given out to be handled, or to be dead-lettered.

    A Struct, because making a NamedTuple takes three times as long.
    """

    fetched: FetchedBatch
    index: int
    """Which message of the batch it is."""
    ordering_key: OrderingKey
    identity: str | None
    attempt: int = 1
    alone: bool = False
    """Not to be batched with others."""
    reason: DeadLetterReason | None = None
    """Why it is to be dead-lettered."""


class AssignedPartition(Protocol):
    """The part of an assignment that the engine uses."""

    topic: str
    partition: int
    valid_until: float


KeyQueues: TypeAlias = "dict[OrderingKey, deque[Delivery] | None]"
StateAndKey: TypeAlias = "tuple[PartitionState, OrderingKey]"


class PartitionState:
    """One assignment's state: progress, dedup window and keys in flight."""

    __slots__ = (
        "assignment",
        "in_flight",
        "is_owned",
        "progress",
        "released",
        "snapshot_version",
        "unconfirmed",
        "window",
    )

    def __init__(self, assignment: Any, progress: Progress, window: DedupWindow | None) -> None:
        self.assignment = assignment
        """An :class:`AssignedPartition`; the log's own object."""
        self.progress = progress
        self.window = window
        """None: deduplication is off."""
        self.in_flight: KeyQueues = {}
        """The keys in flight, each with its queue; None: nothing waits behind it."""
        self.is_owned = True
        """Not revoked and not lost."""
        self.released: set[OrderingKey] = set()
        """Once revoked: the ordering keys whose handlers have ended since."""
        self.unconfirmed = 0
        """Messages handled or given up, whose writes are not confirmed yet."""
        self.snapshot_version = 0
        """How many snapshots were taken, so that an older one can be told from a newer."""

    @property
    def topic_partition(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.assignment.topic, self.assignment.partition


class _DelayedDelivery(NamedTuple):
    """A message that waits to be given out again."""

    due: float
    number: int
    """Orders timers that are due at the same time: the smaller number comes first."""
    delivery: Delivery
    held_back: bool = False
    """It waits for newer code, and not for its next attempt."""


class DispatchCounts:
    """Counters of outcomes."""

    __slots__ = ("dead_lettered", "duplicates", "filtered", "handled", "retries")

    def __init__(self) -> None:
        self.handled = 0
        self.duplicates = 0
        self.filtered = 0
        self.retries = 0
        self.dead_lettered = 0


def _offset(delivery: Delivery) -> int:
    return delivery.fetched.batch.offsets[delivery.index]


def state_and_key(delivery: Delivery) -> StateAndKey:
    """The partition state and key that are in flight while this delivery is handled."""
    return delivery.fetched.state, delivery.ordering_key


def _is_duplicate(delivery: Delivery) -> bool:
    identity, window = delivery.identity, delivery.fetched.state.window
    return identity is not None and window is not None and identity in window


class Dispatcher:
    """Feeds executors. Every method but :meth:`offer` is for one caller at a time.

    One class, long as it is: each rule above is kept by all of its methods together, over the same
    few collections.
    """

    def __init__(self, retry: Retry, refill: Callable[[], None] = lambda: None) -> None:
        """``refill`` is called when a batch is begun and fewer than :data:`READ_AHEAD` wait."""
        self._retry = retry
        self._unordered = not retry.in_order
        self.refill = refill
        self._partitions: dict[tuple[str, int], PartitionState] = {}
        self._outlived: dict[tuple[str, int], KeyQueues] = {}
        """Keys in flight of partitions that left, by partition (rule 4)."""
        self._incoming: deque[FetchedBatch] = deque()
        self.offered = 0
        """Messages offered since the start."""
        self._given_out = 0
        self.current: FetchedBatch | None = None
        """The batch whose messages are given out now; None between two batches."""
        self._cursor: Iterator[tuple[int, bytes | None, str | None]] = iter(())
        self.ready: deque[Delivery] = deque()
        """Messages to be given out next: they waited behind another of their key, or for a time."""
        self._delayed: list[_DelayedDelivery] = []
        self._delay_number = 0
        self.paused = False
        """Nothing is given out while set; handlers that run are not stopped."""
        self.counts = DispatchCounts()

    # -- partitions

    def assign(self, state: PartitionState) -> None:
        """Begin with a partition. Keys still in flight from an earlier assignment stay so."""
        partition = state.topic_partition
        state.in_flight = self._outlived.pop(partition, state.in_flight)
        self._partitions[partition] = state

    def revoke(self, state: PartitionState) -> None:
        """Give out nothing more of this partition. What runs is still to be reported."""
        if not state.is_owned:
            return  # its keys in flight may be the next assignment's already
        partition = state.topic_partition
        state.is_owned = False
        if self._partitions.get(partition) is state:
            del self._partitions[partition]
        if self.current is not None and self.current.state is state:
            self.current, self._cursor = None, iter(())
        in_flight = state.in_flight
        for delivery in (*self.ready, *(each.delivery for each in self._delayed)):
            if delivery.fetched.state is state:  # its key is in flight, but no handler runs for it
                in_flight.pop(delivery.ordering_key, None)
        self.ready = deque(each for each in self.ready if each.fetched.state is not state)
        self._delayed = [each for each in self._delayed if each.delivery.fetched.state is not state]
        self._delayed.sort()
        for ordering_key in in_flight:
            in_flight[ordering_key] = None
        if in_flight:
            self._outlived[partition] = in_flight

    # -- what is there

    def offer(self, fetched: FetchedBatch) -> None:
        """Take in a batch (any thread)."""
        self._incoming.append(fetched)
        self.offered += len(fetched)

    def push_returned(self, fetched: FetchedBatch) -> None:
        """Give these messages out, each before whatever else of its key waits, alone and in order.

        They are not part of their partition's progress, and no duplicate is looked for.
        """
        state = fetched.state
        if not state.is_owned:
            return
        queues: dict[bytes | None, list[Delivery]] = {}
        for index, key in enumerate(fetched.keys):
            queues.setdefault(key, []).append(Delivery(fetched, index, key, None, alone=True))
        for key, queue in queues.items():
            if key is None:
                self.ready.extend(queue)
            elif key in state.in_flight:
                self._queue_front({(state, key): queue})
            else:
                state.in_flight[key] = deque(queue[1:]) or None
                self.ready.append(queue[0])

    @property
    def has_backlog(self) -> bool:
        """Something was offered that was not looked at yet."""
        return bool(self.ready or self._incoming or self.current is not None)

    @property
    def read_ahead(self) -> int:
        """How many messages were offered that no batch was begun of (any thread)."""
        return self.offered - self._given_out

    def release_due(self, now: float) -> None:
        """Make ready what has waited long enough."""
        delayed = self._delayed
        while delayed and delayed[0].due <= now:
            self.ready.append(heappop(delayed).delivery)

    @property
    def next_due(self) -> float | None:
        """When the next waiting message may be tried again, in monotonic seconds."""
        first = self._delayed[:1]  # others may look on while the executor takes it out
        return first[0].due if first else None

    @property
    def waiting(self) -> int:
        """How many messages wait to be tried again."""
        return len(self._delayed)

    @property
    def held_back(self) -> int:
        """How many of them wait for newer code (any thread)."""
        return sum(each.held_back for each in self._delayed.copy())

    def waiting_keys(self, limit: int = 10) -> list[tuple[str, int, OrderingKey, int]]:
        """Topic, partition, ordering key and attempt of messages waiting to be tried again."""
        waiting = [each.delivery for each in sorted(self._delayed)[:limit]]
        return [
            (each.fetched.batch.topic, each.fetched.batch.partition, each.ordering_key,
             each.attempt)
            for each in waiting
        ]  # fmt: skip

    # -- dispatch

    def take_next(
        self, now: float, batch_keys: Collection[StateAndKey] = (), identities: Collection[str] = ()
    ) -> Delivery | None:
        """The next message that may be handled, or None. Its ordering key is in flight from now on.

        :param batch_keys: keys that the batch being taken holds, which are not in its way.
        :param identities: identities that it holds, which may not recur in it.
        """
        if self.paused:
            return None
        if self.ready:
            delivery = self.ready[0]
            if now >= delivery.fetched.state.assignment.valid_until:
                return None
            return self.ready.popleft()
        while True:
            fetched = self.current
            if fetched is None:
                fetched = self._next_batch()
                if fetched is None:
                    return None
            state = fetched.state
            if now >= state.assignment.valid_until:
                return None
            in_flight, window, unordered = state.in_flight, state.window, self._unordered
            partly_settled = fetched.partly_settled
            for index, key, identity in self._cursor:
                if partly_settled and fetched.settled[index]:
                    continue
                ordering_key: OrderingKey = (
                    identity if key is None or (unordered and identity in in_flight) else key
                )
                delivery = Delivery(fetched, index, ordering_key, identity)
                if ordering_key is None:
                    return delivery
                if ordering_key not in in_flight:
                    if (
                        identity is not None
                        and window is not None
                        and (identity in window.new or identity in window.old)
                    ):
                        fetched.settled[index] = 1
                        self.counts.duplicates += 1
                        continue
                    in_flight[ordering_key] = None
                    return delivery
                queue = in_flight[ordering_key]
                if queue is not None:
                    queue.append(delivery)
                elif (
                    batch_keys
                    and (state, ordering_key) in batch_keys
                    and identity not in identities
                    and not _is_duplicate(delivery)
                ):
                    return delivery
                else:
                    in_flight[ordering_key] = deque((delivery,))
            self.current = None

    def take_batch(self, now: float, limit: int) -> list[Delivery]:
        """Up to ``limit`` messages that may be handled, in order.

        A key may recur within a batch, an identity may not. A message to be handled alone, or to
        be dead-lettered, comes alone.
        """
        batch: list[Delivery] = []
        batch_keys: set[StateAndKey] = set()
        identities: set[str] = set()
        while len(batch) < limit:
            delivery = self.take_next(now, batch_keys, identities)
            if delivery is None:
                break
            if delivery.alone or delivery.reason is not None:
                if batch:
                    self.ready.appendleft(delivery)
                else:
                    batch.append(delivery)
                break
            state, ordering_key = delivery.fetched.state, delivery.ordering_key
            queue = None
            while True:
                batch.append(delivery)
                if delivery.identity is not None:
                    identities.add(delivery.identity)
                if ordering_key is None:
                    break
                batch_keys.add((state, ordering_key))
                queue = state.in_flight[ordering_key]
                if not queue or len(batch) >= limit:
                    break
                following = queue[0]
                if (
                    following.alone
                    or following.identity in identities
                    or _is_duplicate(following)
                    or self._awaits_identity(state, following, ordering_key)
                ):
                    break
                delivery = queue.popleft()
            if queue is not None and not queue and ordering_key is not None:
                state.in_flight[ordering_key] = None
        return batch

    def _awaits_identity(
        self, state: PartitionState, delivery: Delivery, ordering_key: OrderingKey
    ) -> bool:
        """A message of the same identity is in flight under another key (rule 7)."""
        identity = delivery.identity
        return self._unordered and identity != ordering_key and identity in state.in_flight

    def _next_batch(self) -> FetchedBatch | None:
        while self._incoming:
            fetched = self._incoming.popleft()
            self._given_out += len(fetched)
            if fetched.state.is_owned:
                self._give_out_from(fetched, 0)
                if self.read_ahead < READ_AHEAD:
                    self.refill()
                return fetched
        return None

    def _give_out_from(self, fetched: FetchedBatch, start: int) -> None:
        """Give out this batch from an index on."""
        count = len(fetched)
        if start < count:
            self.current = fetched
            keys, ids = fetched.keys, fetched.ids
            if start:
                keys, ids = keys[start:], ids[start:]
            self._cursor = zip(range(start, count), keys, ids, strict=True)
        else:
            self.current, self._cursor = None, iter(())

    def take_fast_batch(self, now: float) -> FetchedBatch | None:
        """A batch all of whose messages may be handled one after the other.

        Given where nothing stands in the way: no key is in flight, nothing was settled before, no
        identity recurs. The caller reports with :meth:`finish_fast_run`. For one executor alone.
        """
        if self.paused or self.ready or self.current is not None:
            return None
        fetched = self._next_batch()
        if fetched is None:
            return None
        state = fetched.state
        if state.in_flight or fetched.partly_settled or now >= state.assignment.valid_until:
            return None
        if state.window is not None:
            unique: set[Any] = set(fetched.ids)
            if None in unique:
                if len(unique) > 1:
                    return None
            elif len(unique) != len(fetched) or not state.window.has_none_of(unique):
                return None
            else:
                fetched.unique_ids = unique
        return fetched

    def finish_fast_run(self, fetched: FetchedBatch, stop: int) -> None:
        """The messages before ``stop`` were handled (their bytes are set).

        What is left of the batch is given out by :meth:`take_next`.
        """
        state = fetched.state
        if state.window is not None and stop and fetched.ids[0] is not None:
            whole = stop == len(fetched)
            identities = fetched.ids if whole else fetched.ids[:stop]
            unique = fetched.unique_ids if whole else None
            if unique is not None and len(unique) <= state.window.size:
                state.window.add_batch(unique)
            else:
                state.window.extend(identities)
            fetched.unique_ids = None
            successor = None if state.is_owned else self._successor_window(state)
            if successor is not None:
                successor.extend([each for each in identities if each is not None])
        self.counts.handled += stop
        if fetched is self.current:
            self._give_out_from(fetched, stop)

    def interrupt_fast_run(self, fetched: FetchedBatch, index: int, stop: int) -> list[Delivery]:
        """A fast run stopped: messages before ``index`` are handled. Those from there to before
        ``stop``, at which it stopped, as deliveries whose keys are in flight; none where the
        partition was revoked meanwhile.
        """
        self.finish_fast_run(fetched, index)
        state = fetched.state
        if not state.is_owned:
            return []
        deliveries: list[Delivery] = []
        for at in range(index, stop):
            identity, key = fetched.ids[at], fetched.keys[at]
            ordering_key: OrderingKey = identity if key is None else key
            if ordering_key is not None:
                state.in_flight[ordering_key] = None
            deliveries.append(Delivery(fetched, at, ordering_key, identity))
        if fetched is self.current:
            self._give_out_from(fetched, stop)
        return deliveries

    # -- outcomes

    def mark_settled(self, delivery: Delivery) -> None:
        """The message is settled: handled, or dead-lettered with the write confirmed."""
        fetched, identity = delivery.fetched, delivery.identity
        fetched.settled[delivery.index] = 1
        state = fetched.state
        if delivery.reason is None:
            self.counts.handled += 1
        else:
            self.counts.dead_lettered += 1
        is_owned = state.is_owned
        if identity is not None and state.window is not None:
            if is_owned:  # as in _remember_identity, without its calls: this is the hot loop
                window = state.window
                window.new.add(identity)
                if len(window.new) >= window.size:
                    window.rotate()
            else:
                self._remember_identity(state, state.window, identity)
        ordering_key = delivery.ordering_key
        if ordering_key is not None:
            if is_owned:
                queue = state.in_flight.pop(ordering_key)
                if queue:
                    self._promote_next(state, ordering_key, queue)
            else:
                self._release_key(state, ordering_key)

    def mark_filtered(self, delivery: Delivery) -> None:
        """The message was passed over by a filter: settled, and counts as seen."""
        self.mark_settled(delivery)
        self.counts.handled -= 1
        self.counts.filtered += 1

    def mark_batch_settled(self, deliveries: Iterable[Delivery]) -> None:
        """These messages, taken as one batch, are settled."""
        deliveries = list(deliveries)
        self._record_settled(deliveries)
        self._release_keys(deliveries)

    def _record_settled(self, deliveries: Iterable[Delivery]) -> None:
        for delivery in deliveries:
            delivery.fetched.settled[delivery.index] = 1
            self.counts.handled += 1
            state = delivery.fetched.state
            if delivery.identity is not None and state.window is not None:
                self._remember_identity(state, state.window, delivery.identity)

    def _release_keys(
        self, deliveries: Iterable[Delivery], keep: Collection[StateAndKey] = ()
    ) -> None:
        """No handler runs for the keys of these deliveries any more, but for some."""
        for state, ordering_key in dict.fromkeys(map(state_and_key, deliveries)):
            if ordering_key is not None and (state, ordering_key) not in keep:
                self._release_key(state, ordering_key)

    def split_batch(self, deliveries: Sequence[Delivery]) -> None:
        """A batch failed as a whole: its messages are to be handled one by one, in order."""
        queues: dict[StateAndKey, list[Delivery]] = {}
        first_of_key: list[Delivery] = []
        for delivery in deliveries:
            delivery = replace(delivery, alone=True)
            state, ordering_key = of_key = state_and_key(delivery)
            if not state.is_owned:
                if ordering_key is not None:
                    self._release_key(state, ordering_key)
            elif ordering_key is None:
                first_of_key.append(delivery)
            elif of_key in queues:
                queues[of_key].append(delivery)
            else:
                queues[of_key] = []
                first_of_key.append(delivery)
        self._queue_front(queues)
        self.ready.extendleft(reversed(first_of_key))

    def mark_batch_failed(
        self,
        deliveries: Sequence[Delivery],
        errors: Mapping[int, BaseException],
        now: float,
        random: float,
        final: Collection[int] = (),
        held_back: Collection[int] = (),
    ) -> list[Delivery]:
        """Some of a batch failed, by index; the others are settled. What is to be dead-lettered.

        Those in ``final`` are not tried again. Those in ``held_back`` are given out again without
        having used up an attempt, in the order of their key whatever the policy. Where several of
        one key failed, the first keeps the key and the others wait behind it, each to be tried
        again or dead-lettered in its turn.
        """
        behind: dict[StateAndKey, list[Delivery]] = {}
        settled: list[Delivery] = []
        rejected: list[Delivery] = []
        for index, delivery in enumerate(deliveries):
            error = errors.get(index)
            if error is None:
                settled.append(delivery)
                continue
            state, attempt = delivery.fetched.state, delivery.attempt
            is_owned = state.is_owned
            is_held_back = index in held_back
            delay: float | None = HELD_BACK_PAUSE
            if not is_held_back:
                is_final = index in final
                delay = None if is_final else retry_delay(self._retry, attempt, error, random)
            if delay is None:
                delivery = self.reject(delivery, error)
            elif is_held_back:
                delivery = replace(delivery, alone=True)
            else:
                self.counts.retries += 1
                delivery = replace(delivery, attempt=attempt + 1, alone=True)
                if self._unordered and is_owned and type(delivery.ordering_key) is bytes:
                    identity_key = self._leave_key_order(state, delivery.identity)
                    delivery = replace(delivery, ordering_key=identity_key)
            ordering_key, of_key = delivery.ordering_key, state_and_key(delivery)
            if ordering_key is not None and is_owned and of_key in behind:
                behind[of_key].append(delivery)
                continue
            if delay is None:
                rejected.append(delivery)
            elif is_owned:
                self.deliver_at(delivery, now + delay, held_back=is_held_back)
            if ordering_key is not None and (is_owned or delay is None):
                behind[of_key] = []
        self._record_settled(settled)
        self._queue_front(behind)
        self._release_keys(deliveries, keep=behind.keys())
        return rejected

    def _leave_key_order(self, state: PartitionState, identity: str | None) -> OrderingKey:
        """A message out of its key's order has its identity for an ordering key, so that a
        duplicate of it, under whichever key, still waits for its outcome."""
        if identity is None or state.window is None or identity in state.in_flight:
            return None
        state.in_flight[identity] = None
        return identity

    def _queue_front(self, queues: Mapping[StateAndKey, Sequence[Delivery]]) -> None:
        """Put these deliveries at the front of their key queues; the keys are in flight."""
        for (state, ordering_key), queue in queues.items():
            if queue:
                waiting = state.in_flight[ordering_key] or ()
                state.in_flight[ordering_key] = deque((*queue, *waiting))

    def mark_failed(
        self, delivery: Delivery, error: BaseException, now: float, random: float
    ) -> Delivery | None:
        """Record that the handler failed.

        :returns: None if the message waits for its next attempt, or its partition was lost. Else
            no attempt is left, and this is the delivery to dead-letter; report the outcome by
            :meth:`mark_settled` or :meth:`deliver_at`.
        """
        rejected = self.mark_batch_failed((delivery,), {0: error}, now, random)
        return rejected[0] if rejected else None

    def reject(self, delivery: Delivery, error: BaseException) -> Delivery:
        """The message can never be handled: the delivery to be dead-lettered."""
        return replace(delivery, alone=True, reason=DeadLetterReason(error, delivery.attempt))

    def deliver_at(self, delivery: Delivery, due: float, *, held_back: bool = False) -> None:
        """Give this out again at ``due``, monotonic seconds. Its key stays in flight.

        :param held_back: it waits for newer code.
        """
        if not delivery.fetched.state.is_owned:
            self.abandon(delivery)
            return
        self._delay_number += 1
        heappush(self._delayed, _DelayedDelivery(due, self._delay_number, delivery, held_back))

    def abandon(self, delivery: Delivery) -> None:
        """The handler stopped without an outcome; the message is not settled."""
        state, ordering_key = of_key = state_and_key(delivery)
        if state.is_owned:
            # Not to be overtaken: it stays at the head of its key queue.
            for at, other in enumerate(self.ready if ordering_key is not None else ()):
                if state_and_key(other) == of_key:
                    # Both are of one batch: the smaller offset goes first.
                    first, second = sorted((delivery, other), key=_offset)
                    self.ready[at] = first
                    self._queue_front({of_key: [second]})
                    return
            self.ready.appendleft(delivery)
        elif ordering_key is not None:
            self._release_key(state, ordering_key)

    # -- ordering keys

    def _remember_identity(self, state: PartitionState, window: DedupWindow, identity: str) -> None:
        window.add(identity)
        successor = None if state.is_owned else self._successor_window(state)
        if successor is not None:
            successor.add(identity)

    def _successor_window(self, state: PartitionState) -> DedupWindow | None:
        """The window of a partition that left and came back: what a handler of the earlier
        assignment still settles comes a second time, and is a duplicate then. None where the
        group was reset meanwhile: then it comes again on purpose."""
        current = self._partitions.get(state.topic_partition)
        if current is None or current.progress.generation != state.progress.generation:
            return None
        return current.window

    def _release_key(self, state: PartitionState, ordering_key: OrderingKey) -> None:
        """No handler runs for this ordering key any more."""
        if not state.is_owned:
            # A batch may report a key message by message. The first time it becomes free, and
            # from then on it belongs to the assignment that came after.
            if ordering_key in state.released:
                return
            state.released.add(ordering_key)
        if ordering_key in state.in_flight:
            self._promote_next(state, ordering_key, state.in_flight.pop(ordering_key))

    def _promote_next(
        self, state: PartitionState, ordering_key: OrderingKey, queue: deque[Delivery] | None
    ) -> None:
        """Give the key, taken out of ``in_flight``, to the next of its queue that is no
        duplicate."""
        while queue:
            delivery = queue.popleft()
            if _is_duplicate(delivery):
                delivery.fetched.settled[delivery.index] = 1
                self.counts.duplicates += 1
                continue
            if self._awaits_identity(state, delivery, ordering_key):
                behind = replace(delivery, ordering_key=delivery.identity)
                waiting = state.in_flight[delivery.identity] or ()
                state.in_flight[delivery.identity] = deque((*waiting, behind))
                continue
            state.in_flight[ordering_key] = queue or None
            self.ready.append(delivery)
            return
        if not state.is_owned and not state.in_flight:
            partition = state.topic_partition
            if self._outlived.get(partition) is state.in_flight:
                del self._outlived[partition]
