"""Views that are folded while things break, and what their documents have to be.

Each message is a number. A document tells the order in which numbers came, separately of each
partition of the source: so it is known from the log alone what it is at any checkpoint.

Run as a program, it is a process that folds: ``python -m tests.faults.folding URL NAME``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from msgspec import Struct, json

from streams import Message, Streams, Topic, View
from streams.eventsourcing.views.checkpoints import decode_checkpoint
from streams.log.documents import DocumentStore, FoundDocuments
from streams.log.names import partition_for
from streams.log.protocol import Log
from streams.log.range_reader import read_batches

PARTITIONS = 4
KEYS = [f"k{number}" for number in range(40)]
GROUPS = [f"g{number}" for number in range(11)]

Trail = tuple[int, int]
"""How many numbers came from a partition, and a digest of them in their order."""


class Trails(Struct, frozen=True):
    """What a document tells."""

    of: tuple[tuple[int, Trail], ...] = ()


def after(trail: Trail, number: int) -> Trail:
    """A trail after another number."""
    count, digest = trail
    return count + 1, (digest * 1_000_003 + number + 1) % (1 << 61)


def fold(trails: Trails | None, number: int, message: Message[int]) -> Trails:
    """The view's function."""
    found = dict(() if trails is None else trails.of)
    found[message.partition] = after(found.get(message.partition, (0, 0)), number)
    return Trails(tuple(sorted(found.items())))


def group_of(number: int) -> str | None:
    """Which document of the keyed view a number changes; some change none."""
    return None if number % 13 == 0 else GROUPS[number % len(GROUPS)]


def key_of(number: int) -> str:
    """The key under which a number is published."""
    return KEYS[number * 7 % len(KEYS)]


class Folding:
    """An app with the topic and both views."""

    def __init__(self, url: str, name: str) -> None:
        self.app = Streams(url)
        self.topic: Topic[int] = self.app.topic(name, int, key=key_of, partitions=PARTITIONS)
        self.by_key: View[Trails] = View(self.app, f"{name}.keys", Trails, fold, self.topic)
        self.by_group: View[Trails] = View(
            self.app, f"{name}.groups", Trails, fold, self.topic, key=group_of
        )


class Model:
    """What the log says the documents have to be. Reads each message once.

    :param log: of the app.
    """

    def __init__(self, log: Log, name: str) -> None:
        self._log = log
        self.name = name
        self._numbers: list[list[tuple[int, str, int]]] = [[] for _ in range(PARTITIONS)]
        """Of each partition: offset, key and number of each message."""
        self._read_to = [0] * PARTITIONS

    def messages(self, partition: int) -> list[tuple[int, str, int]]:
        """All messages of a partition up to now."""
        first, end = self._log.watermarks(self.name, partition)
        start = max(first, self._read_to[partition])
        for batch in read_batches(self._log, self.name, partition, start, end):
            for offset, key, value in zip(batch.offsets, batch.keys, batch.values, strict=True):
                assert key is not None
                assert value is not None
                self._numbers[partition].append((offset, key.decode(), json.decode(value)))
            self._read_to[partition] = batch.offsets[-1] + 1
        return self._numbers[partition]

    def by_key(self, partition: int, position: int) -> dict[str, Trails]:
        """The documents of one partition of the view by key, at a checkpoint."""
        trails: dict[str, Trail] = {}
        for offset, key, number in self.messages(partition):
            if offset < position:
                trails[key] = after(trails.get(key, (0, 0)), number)
        return {key: Trails(((partition, trail),)) for key, trail in trails.items()}

    def by_group(self, partition: int, sources: dict[str, tuple[int, int]]) -> dict[str, Trails]:
        """The same of the keyed view, up to where each partition of the source was folded."""
        found: dict[str, dict[int, Trail]] = {}
        for source in range(PARTITIONS):
            last, _ = sources.get(f"{self.name}/{source}", (-1, 0))
            for offset, _, number in self.messages(source):
                group = group_of(number)
                if offset > last or group is None:
                    continue
                if partition_for(group.encode(), "", PARTITIONS) != partition:
                    continue
                trails = found.setdefault(group, {})
                trails[source] = after(trails.get(source, (0, 0)), number)
        return {group: Trails(tuple(sorted(each.items()))) for group, each in found.items()}


class Checker:
    """Looks at the documents again and again: they are always those of their checkpoint, which
    never goes back."""

    def __init__(self, log: Any, model: Model) -> None:
        self._store: DocumentStore = log.documents
        self._model = model
        self._positions: dict[tuple[str, int], int] = {}
        self.looks = 0
        self.moved = 0
        """Looks that saw another checkpoint than the one before."""

    def look(self) -> None:
        """Look at all partitions of both views.

        :raises AssertionError: something is not as it has to be.
        """
        name = self._model.name
        for partition in range(PARTITIONS):
            found = self._store.read(f"{name}.keys.v1", partition, [key.encode() for key in KEYS])
            position = self._moved(f"{name}.keys.v1", partition, found)
            expected = self._model.by_key(partition, position)
            assert dict(_documents(KEYS, found)) == expected, (partition, found.checkpoint)
            groups = [group.encode() for group in GROUPS]
            found = self._store.read(f"{name}.groups.v1", partition, groups)
            self._moved(f"{name}.groups.v1", partition, found)
            data = b"" if found.checkpoint is None else found.checkpoint.data
            expected = self._model.by_group(partition, decode_checkpoint(data)[1])
            assert dict(_documents(GROUPS, found)) == expected, (partition, found.checkpoint)
            self.looks += 1

    def _moved(self, collection: str, partition: int, found: FoundDocuments) -> int:
        position = 0 if found.checkpoint is None else found.checkpoint.position
        before = self._positions.get((collection, partition), 0)
        assert position >= before, f"{collection}/{partition} went back to {position} from {before}"
        self.moved += position > before
        self._positions[collection, partition] = position
        return position


def _documents(keys: list[str], found: FoundDocuments) -> Iterator[tuple[str, Trails]]:
    for key, stored in zip(keys, found.documents, strict=True):
        if stored is not None:
            assert not stored.failure, stored
            assert stored.value is not None
            yield key, json.decode(stored.value, type=Trails)


if __name__ == "__main__":
    Folding(*sys.argv[1:]).app.run()
