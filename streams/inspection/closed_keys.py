"""Closed keys and the messages parked behind them (``DeadLetters(sequenced=True)``), for occasional
inspection.

The state follows from the records of a topic (:mod:`streams.parking`), so a reader goes on with the
new records, as the partition's owner does. It takes the memory that the owners take, about 1.5 KB
per key, for as long as it is in use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import override

from streams.inspection.reading_on import CountingReader, count_once
from streams.log.range_reader import read_batches
from streams.parking import ParkedQueue, ParkingState, parked_topic, parse_batch, read_floor
from streams.patterns.deadletters import ClosedKeyHead, ClosedKeyReader, CommandTarget

if TYPE_CHECKING:
    from streams.log.protocol import Log

SHOWN_BEHIND = 20
"""Messages behind the first of a key that are listed, at most."""


class ParkedSource(NamedTuple):
    """The topic of the closed keys of a group and topic."""

    name: str
    topic: str
    group: str


def parked_sources(topics: Collection[str], groups: Collection[str]) -> list[ParkedSource]:
    """The topics of closed keys, by name, as far as their names tell their topic and group.

    :param topics: the names of all topics.
    :param groups: the names of all groups.
    """
    names, known = set(topics), set(groups)
    found: list[ParkedSource] = []
    for name in sorted(names):
        base, _, suffix = name.rpartition(".")
        if suffix != "parked":
            continue
        parts = base.split(".")
        pairs = [(".".join(parts[:at]), ".".join(parts[at:])) for at in range(1, len(parts))]
        there = [pair for pair in pairs if pair[0] in names]
        likely = [pair for pair in there if pair[1] in known] or there
        if likely:
            found.append(ParkedSource(name, *likely[0]))
    return found


class KeyCounts(NamedTuple):
    """How many keys are closed.

    :param keys: closed keys in total.
    :param dead: closed keys that wait for a decision; the messages of the others are coming back.
    :param parked: messages that wait behind the first of their key.
    :param is_complete: every record was read.
    """

    keys: int
    dead: int
    parked: int
    is_complete: bool


def count_closed_keys(log: Log, name: str, seconds: float) -> KeyCounts | None:
    """The counts of a topic of closed keys, as far as it can be read in this many real seconds
    (blocks); None: there is no such topic.

    :raises LogError: the log cannot be read.
    """
    return count_once(ClosedKeyIndex(name, lambda: log), seconds)


class ClosedKeyRow(NamedTuple):
    """A closed key, without its message.

    :param position: the position of its first message's record; -1: not known yet.
    """

    key: bytes
    partition: int
    position: int
    is_dead: bool
    parked: int
    queue: ParkedQueue

    @property
    def target(self) -> CommandTarget:
        """The target of a command on this key."""
        return CommandTarget(self.key, self.partition, self.position)


class BehindKey(NamedTuple):
    """The messages parked behind the first message of a key.

    :param offsets: the offsets, in the source topic, of the next ones.
    """

    partition: int
    offsets: list[int]
    number: int


class ClosedKeyIndex(CountingReader[KeyCounts]):
    """The closed keys of a group and topic, as far as their records were read (any thread)."""

    @override
    def _forget(self) -> None:
        self._states: dict[int, ParkingState] = {}
        self._next: dict[int, int] = {}

    @override
    def _read(self, log: Log) -> bool:
        for partition in range(log.describe_topic(self.name).partitions):
            first, end = log.watermarks(self.name, partition)
            start = self._next.get(partition)
            if start is None or start < first:  # new records were trimmed: begin at the floor
                start, end, epoch = read_floor(log, self.name, partition)
                with self._lock:
                    self._states[partition] = ParkingState(epoch)
                    self._next[partition] = start
            state = self._states[partition]
            for batch in read_batches(log, self.name, partition, start, end):
                parsed = parse_batch(batch)
                with self._lock:
                    for record in parsed:
                        state.apply(*record)
                    if len(batch):
                        self._next[partition] = batch.offsets[-1] + 1
                if self._is_to_stop:
                    return False
        return True

    @override
    def _counts(self, is_complete: bool) -> KeyCounts:
        with self._lock:
            states = list(self._states.values())
            keys = sum(len(state.keys) for state in states)
            returning = sum(len(state.returning) for state in states)
            messages = sum(state.parked_messages for state in states)
        return KeyCounts(keys, keys - returning, messages - keys, is_complete)

    def rows(
        self,
        start: int,
        count: int,
        matches: Callable[[bytes], bool] | None = None,
        *,
        most_parked: bool = False,
    ) -> list[ClosedKeyRow]:
        """Closed keys, in each partition in the order in which they were closed.

        :param start: how many keys to skip at the beginning.
        :param matches: selects keys.
        :param most_parked: sort by the number of messages behind the key, descending.
        """
        with self._lock:
            found = self._keys()
            if matches is not None:
                found = (each for each in found if matches(each[1]))
            if most_parked:
                found = iter(nlargest(start + count, found, key=lambda each: len(each[2])))
            return [_row(*each) for each in islice(found, start, start + count)]

    def dead(self) -> list[CommandTarget]:
        """All closed keys that wait for a decision."""
        with self._lock:
            rows = (_row(*each) for each in self._keys() if each[2].is_dead)
            return [row.target for row in rows if row.position >= 0]

    def find(self, partition: int, position: int) -> ClosedKeyRow | None:
        """The closed key whose first message has its record at this position; None: there is none
        now."""
        with self._lock:
            state = self._states.get(partition)
            for key, queue in () if state is None else state.keys.items():
                if queue.position_of(0) == position:
                    return _row(partition, key, queue)
        return None

    def behind(self, row: ClosedKeyRow) -> BehindKey:
        """The messages that wait behind the first message of a key."""
        with self._lock:
            offsets = list(islice(row.queue.source_offsets, 1, 1 + SHOWN_BEHIND))
            return BehindKey(row.partition, offsets, max(0, len(row.queue) - 1))

    def _keys(self) -> Iterator[tuple[int, bytes, ParkedQueue]]:
        for partition in sorted(self._states):
            for key, queue in self._states[partition].keys.items():
                yield partition, key, queue


def _row(partition: int, key: bytes, queue: ParkedQueue) -> ClosedKeyRow:
    position, behind = queue.position_of(0), len(queue) - 1
    return ClosedKeyRow(key, partition, position, queue.is_dead, behind, queue)


def closed_key_heads(
    log: Log, group: str, topic: str, rows: Collection[ClosedKeyRow]
) -> dict[tuple[int, int], ClosedKeyHead]:
    """The first messages of closed keys, by partition and position; blocks. Keys whose records are
    gone are left out.

    :raises NotFound: no key of this group and topic was ever closed.
    """
    reader = ClosedKeyReader(log, group, topic)
    found: dict[tuple[int, int], ClosedKeyHead] = {}
    for partition in {row.partition for row in rows}:
        queues = {
            row.position: (row.key, row.queue)
            for row in rows
            if row.partition == partition and row.position >= 0 and len(row.queue)
        }
        for head in reader.heads_of(partition, queues, sorted(queues)):
            found[partition, head.position] = head
    return found


def key_topic(group: str, topic: str) -> str:
    """The topic of the closed keys of a group and topic."""
    return parked_topic(topic, group)
