"""Messages that were published twice, which a view passes over.

A message is a repeat where one of the last messages in front of it, in its partition, has the same
identity; how many are looked at is the window of :class:`~streams.config.Dedup`. That follows from
what stands in the partition alone: it does not matter where a batch ends or a process begins, nor
whether a message was passed over itself. So before the first batch, the identities of the messages
in front of it are read from the log.

A message without an ID is no repeat, nor is one whose ID stands in a value that cannot be decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from streams.decoding import TopicDecoder
from streams.log.protocol import Log, TopicPartition
from streams.log.range_reader import read_batches_alive
from streams.message import Batch
from streams.processing import identify_batch

NO_REPEATS: frozenset[int] = frozenset()


class RecentIdentities:
    """The identities of the last messages of one partition.

    :param size: how many messages, from 1.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._order: deque[str | None] = deque()
        """Of the last messages, oldest first."""
        self._last: dict[str | None, int] = {}
        """By identity, the number of the last message that has it."""
        self._count = 0
        """Messages so far, which are numbered from 0."""

    @property
    def is_full(self) -> bool:
        """It had as many messages as it remembers."""
        return self._count >= self._size

    def find_repeats(self, identities: Sequence[str | None]) -> frozenset[int]:
        """Which of the next messages are repeats, by their indices."""
        repeats = NO_REPEATS
        last, size, begin = self._last, self._size, self._count
        unique = set(identities)
        if len(unique) < len(identities) or not last.keys().isdisjoint(unique):
            found = []
            for number, identity in enumerate(identities, begin):
                if identity is not None:
                    before = last.get(identity)
                    if before is not None and number - before <= size:
                        found.append(number - begin)
                    last[identity] = number
            repeats = frozenset(found)
        else:
            last.update(zip(identities, range(begin, begin + len(identities)), strict=True))
        self._count += len(identities)
        self._order.extend(identities)
        self._drop_oldest()
        return repeats

    def _drop_oldest(self) -> None:
        order, last = self._order, self._last
        oldest = self._count - len(order)
        for number in range(oldest, self._count - self._size):
            identity = order.popleft()
            if last.get(identity) == number:
                del last[identity]


class BatchRepeats(NamedTuple):
    """The repeats in a batch, and what was decoded to find them.

    :param repeated: the indices of its repeats.
    :param values: what all messages were decoded to for that; None: they were not.
    """

    repeated: frozenset[int]
    values: Sequence[Any] | None


class RepeatDetector:
    """Finds the repeats among the messages of one source partition, batch by batch.

    :param size: of the window.
    :param position: the first batch begins there.
    :param keep_alive: called again and again while what stands in front of it is read.
    """

    def __init__(
        self,
        log: Log,
        decoding: TopicDecoder[Any],
        topic_partition: TopicPartition,
        size: int,
        position: int,
        keep_alive: Callable[[], None],
    ) -> None:
        self._log = log
        self._decoding = decoding
        self._topic, self._partition = topic_partition
        self._size = size
        self._position = position
        self._keep_alive = keep_alive
        self._recent: RecentIdentities | None = None

    def begin_at(self, position: int) -> RepeatDetector:
        """The same for batches from another position on."""
        source = self._topic, self._partition
        return RepeatDetector(
            self._log, self._decoding, source, self._size, position, self._keep_alive
        )

    def take_batch(self, batch: Batch) -> BatchRepeats:
        """What a batch repeats; each batch once, in order. The first time, what stands
        in front of it is read from the log (blocks).

        :param batch: as its decoding unwraps it.
        :raises LogError: the log cannot be read.
        """
        if self._recent is None:
            self._recent = self._recent_before(self._position)
        found = identify_batch(self._decoding, batch)
        return BatchRepeats(self._recent.find_repeats(found.ids), found.values)

    def _recent_before(self, position: int) -> RecentIdentities:
        first, _ = self._log.watermarks(self._topic, self._partition)
        wanted, start = self._size, position
        while True:
            recent, looked_from = RecentIdentities(self._size), start
            if position > first:
                before = self._log.offset_before(self._topic, self._partition, position, wanted)
                start = max(first, before)
            for batch in read_batches_alive(
                self._log, self._topic, self._partition, start, position, self._keep_alive
            ):
                recent.find_repeats(
                    identify_batch(self._decoding, self._decoding.unwrap(batch)).ids
                )
            if recent.is_full or start <= first or start == looked_from:
                return recent
            wanted *= 4  # offsets have gaps, which some logs count
