"""Histories of the memory log: the indexes that an event topic has besides its partitions.

Plain data under the store's lock, as in :mod:`streams.log.memory.store`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import cast

from streams.errors import InvalidValue
from streams.log.events import (
    EMPTY,
    Appended,
    AppendOutcome,
    Caused,
    EventAppend,
    EventTotals,
    History,
    HistoryKey,
    HistoryRequest,
    Refused,
    StoredEvent,
    StoredRefusal,
    StoredSnapshot,
    has_base,
    judge,
)
from streams.log.memory.topics import Partition, Topic
from streams.log.names import partition_for
from streams.message import Record


class KeyHistory:
    """One key's history. The events themselves are in the partition."""

    __slots__ = ("causes", "head", "offsets", "partition", "refusals")

    def __init__(self, partition: Partition) -> None:
        self.partition = partition
        self.head = EMPTY
        self.offsets: list[int] = []
        """The offsets of the events, by version - 1."""
        self.causes: dict[str, Caused] = {}
        self.refusals: dict[str, StoredRefusal] = {}
        """The key's refusals, by the IDs of their records."""

    def id_at(self, version: int) -> str | None:
        """The ID of the event at a version."""
        if not 1 <= version <= len(self.offsets):
            return None
        return self.record_at(self.offsets[version - 1]).id

    def refusal_version(self, record_id: str) -> int | None:
        """The version at which a refusal was recorded."""
        found = self.refusals.get(record_id)
        return None if found is None else found.version

    def record_at(self, offset: int) -> Record:
        """The record at an offset, which an append must have written."""
        # Every record of an append has headers, so that the source is the record itself.
        return cast(Record, self.partition.header_sources[offset - self.partition.base])

    def add(self, append: EventAppend, offsets: Sequence[int]) -> None:
        """Note an append that was written."""
        first_version = append.base.version + 1
        if append.is_refusal:
            refusal = StoredRefusal(append.base.version, offsets[0])
            self.refusals[append.records[0].id] = refusal
        else:
            self.offsets += offsets
        if append.cause:
            count = 0 if append.is_refusal else len(offsets)
            self.causes.setdefault(append.cause, Caused(first_version, count))
        self.head = append.head

    def offsets_of(self, append: EventAppend) -> Sequence[int]:
        """The offsets of the records of an append that was written."""
        if append.is_refusal:
            return (self.refusals[append.records[0].id].offset,)
        start = append.base.version
        return self.offsets[start : start + len(append.records)]


class EventIndex:
    """All histories of one topic."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic
        self._histories: list[dict[bytes, KeyHistory]] = [{} for _ in topic.partitions]
        self._sorted_keys: list[list[bytes]] = [[] for _ in topic.partitions]
        """The keys of each partition in order, as of the last listing."""
        self._snapshots: dict[tuple[bytes, str], StoredSnapshot] = {}
        """The snapshots by key and fingerprint."""

    def append(self, append: EventAppend, now: float) -> AppendOutcome:
        """Write an append, if its condition holds."""
        number = partition_for(append.key, "", len(self._histories))
        histories, partition = self._histories[number], self._topic.partitions[number]
        history = histories.get(append.key) or KeyHistory(partition)
        verdict = judge(append, history)
        if isinstance(verdict, Refused):
            return verdict
        if verdict == "append":
            offsets = partition.append(append.records, now)
            history.add(append, offsets)
            histories[append.key] = history
            return Appended(number, tuple(offsets))
        return Appended(number, tuple(history.offsets_of(append)))

    def read(self, request: HistoryRequest) -> History:
        """Read the part of a history behind the version that the caller knows."""
        if request.limit < 1:
            raise InvalidValue(f"limit={request.limit}: at least 1")
        number = partition_for(request.key, "", len(self._histories))
        partition = self._topic.partitions[number]
        history = self._histories[number].get(request.key) or KeyHistory(partition)
        caused = history.causes.get(request.cause) if request.cause else None
        if not has_base(history, request.after):
            return History(number, (), history.head, caused, is_truncated=True)
        snapshot = self._snapshots.get((request.key, request.fingerprint))
        if snapshot is not None and snapshot.base.version <= request.after.version:
            snapshot = None
        start = request.after.version if snapshot is None else snapshot.base.version
        events = [
            StoredEvent(
                version, offset, partition.times[offset - partition.base], history.record_at(offset)
            )
            for version, offset in enumerate(
                history.offsets[start : start + request.limit], start + 1
            )
        ]
        return History(number, events, history.head, caused, snapshot=snapshot)

    def write_snapshots(self, snapshots: Sequence[StoredSnapshot]) -> None:
        """Store the snapshots that are newer than the stored ones."""
        for snapshot in snapshots:
            number = partition_for(snapshot.key, "", len(self._histories))
            history = self._histories[number].get(snapshot.key)
            name = snapshot.key, snapshot.fingerprint
            kept = self._snapshots.get(name)
            if history is None or not has_base(history, snapshot.base):
                continue
            if kept is None or kept.base.version <= snapshot.base.version:
                self._snapshots[name] = snapshot

    def delete_snapshots(self, fingerprint: str | None) -> int:
        """Delete the snapshots of one fingerprint, or all."""
        names = [
            name
            for name, each in self._snapshots.items()
            if fingerprint in (None, each.fingerprint)
        ]
        for name in names:
            del self._snapshots[name]
        return len(names)

    def list_snapshots(self, key: bytes) -> list[StoredSnapshot]:
        """The snapshots of one key."""
        found = (each for each in self._snapshots.values() if each.key == key)
        return sorted(found, key=lambda each: each.fingerprint)

    def list_refusals(self, key: bytes) -> list[StoredRefusal]:
        """The refusals of one key, in their order."""
        number = partition_for(key, "", len(self._histories))
        history = self._histories[number].get(key)
        return [] if history is None else list(history.refusals.values())

    def list_keys(self, partition: int, after: bytes | None, limit: int) -> list[HistoryKey]:
        """The keys behind ``after``, in order."""
        histories, keys = self._histories[partition], self._sorted_keys[partition]
        if len(keys) != len(histories):  # keys are only ever added
            keys[:] = sorted(histories)
        start = 0 if after is None else bisect_right(keys, after)
        return [HistoryKey(key, histories[key].head) for key in keys[start : start + limit]]

    def totals(self) -> EventTotals:
        """How much the topic holds."""
        found = [history for each in self._histories for history in each.values()]
        causes = [cause for history in found for cause in history.causes]
        return EventTotals(
            len(found),
            sum(history.head.base.version for history in found),
            len(causes),
            sum(len(cause) + 64 for cause in causes),
            Counter(fingerprint for _, fingerprint in self._snapshots),
        )
