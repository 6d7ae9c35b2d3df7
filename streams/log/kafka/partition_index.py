"""The histories of one partition, as far as its records were folded.

An index keeps no events, only where they stand: for each key the offsets of the events that count,
and where its history ends. It is fed the partition's records in order and judges them by the rule
in :mod:`streams.log.kafka.arbitration`.

Nearly every record is an append of one event that counts, so that is recognized without parsing
anything: its header is compared with the only one that can count now.

With an :class:`~streams.log.kafka.index_file.IndexFile` behind it, the index begins where the file
ends, looks up there what it does not have in memory, and remembers what has changed since. Behind
it may also be a snapshot of an index (:mod:`streams.log.kafka.index_records`), to which nothing
is written.

Nothing here is thread-safe: the lock of the topic's index is held.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from streams.errors import LogError
from streams.log.event_headers import CAUSE, EVENT, FINAL, MAX_CAUSE, MAX_ID, VOID, parse_event
from streams.log.events import (
    EMPTY,
    NO_HISTORY,
    Appended,
    Base,
    Caused,
    Head,
    StoredRefusal,
)
from streams.log.kafka.arbitration import Arbiter, Counted, PendingAppend
from streams.message import ID, Headers
from streams.wire import text

OnDecided = Callable[["Appended | Head | LogError"], None]
"""Called once with what became of an append: it counts; or where its history ended when it did not;
or why nobody can say."""

Decided = tuple[OnDecided, "Appended | Head | LogError"]

_PLAIN = bytes(sorted(set(range(33, 127)) - {ord("/")}))
"""The characters of a record's ID, unless another program wrote it."""

_PREFIXES = [b"0/1/%d/" % version for version in range(1024)]
"""How the header of an append of one event begins, by the version that it continues."""

CHUNK = 1024
"""Events whose offsets are written to the file in one piece: a key that gets another one is not
written anew from its beginning."""


class KeyEntry(msgspec.Struct, gc=False):
    """One key's history: where its events stand, and how it ends."""

    offsets: Any
    """The offsets of the events, by version - 1: an ``array("q")``."""
    last_id: bytes = b""
    """The ID of its last record."""
    is_final: bool = False
    refusals: dict[str, StoredRefusal] | None = None
    """The key's refusals, by the IDs of their records."""

    @property
    def head(self) -> Head:
        """Where the history ends."""
        return Head(Base(len(self.offsets), text(self.last_id)), self.is_final)


class StoredPendingAppend(NamedTuple):
    """An append that is not whole, as it is stored."""

    key: bytes
    append_id: bytes
    record_count: int
    offsets: list[int]
    """The offsets of those of its records that were read."""
    cause: bytes


class PartitionState(msgspec.Struct, array_like=True):
    """The state that an index needs beside its keys, to resume where it was.

    :param next_offset: everything below was folded.
    :param last_offset: of the last record that counts; -1: there is none.
    :param last_id: that record's ID.
    :param folded_offset: of the last record that was folded, whether it counts or not; -1: it is
        not known.
    :param folded_id: that record's ID; empty: it has none.
    :param pending: the appends that are not whole.
    """

    next_offset: int = 0
    last_offset: int = -1
    last_id: bytes = b""
    key_count: int = 0
    event_count: int = 0
    cause_count: int = 0
    cause_bytes: int = 0
    pending: list[StoredPendingAppend] = msgspec.field(default_factory=list)
    folded_offset: int = -1
    folded_id: bytes = b""


class WrittenAppend(NamedTuple):
    """An append that was written, and the offset of its last record."""

    append_id: str
    key: bytes
    last_offset: int


class ChangedKey(NamedTuple):
    """A key that has changed since the file was written last.

    :param entry: a copy of its entry, with the offsets from one version on.
    :param first: the number of events before that: a multiple of :data:`CHUNK`.
    """

    key: bytes
    entry: KeyEntry
    first: int


class ChangedCause(NamedTuple):
    """A cause that the file does not have yet, and its events."""

    key: bytes
    cause: str
    caused: Caused


class ChangedRefusal(NamedTuple):
    """A refusal that the file does not have yet."""

    key: bytes
    append_id: str
    refusal: StoredRefusal


class Changes(msgspec.Struct):
    """The changes since the file was last written."""

    state: PartitionState
    keys: list[ChangedKey]
    causes: list[ChangedCause]
    refusals: list[ChangedRefusal]
    losers: list[int]
    """Offsets of records that do not count, in no particular order."""


class IndexCopy(NamedTuple):
    """A consistent copy of an index, beside the entries that were copied before.

    :param changed: the entries that have changed since the copying began.
    :param losers: offsets of records that do not count.
    """

    state: PartitionState
    changed: dict[bytes, KeyEntry]
    causes: list[tuple[tuple[bytes, str], Caused]]
    losers: Collection[int]


class StoredPartition(Protocol):
    """The stored part of a partition's index, as the index reads it."""

    is_written: bool
    """Whether what changes is written there."""
    state: PartitionState
    """As of the last time that it was written."""

    def find_key(self, key: bytes) -> KeyEntry | None:
        """A key's entry."""
        ...

    def find_cause(self, key: bytes, cause: str) -> Caused | None:
        """The append that was made for a cause, if any."""
        ...

    def find_losers(self, first: int, end: int) -> Iterable[int]:
        """Offsets between two that do not count."""
        ...

    def list_keys(self, after: bytes | None, limit: int) -> list[tuple[bytes, Head]]:
        """Keys in order, behind ``after``."""
        ...


class PartitionIndex:
    """The histories of one partition.

    One class, because folding a record, who waits for it and what is kept of it are one step.
    """

    def __init__(self, partition: int, stored: StoredPartition | None = None) -> None:
        self.partition = partition
        self.keys: dict[bytes, KeyEntry] = {}
        """Where they are also stored: those that were needed so far."""
        self._stored = stored
        is_written = stored is not None and stored.is_written
        state = PartitionState() if stored is None else stored.state
        self._has_stored_keys = state.key_count > 0
        self.next_offset = state.next_offset
        """Everything below was folded."""
        self.key_count = state.key_count
        self.event_count = state.event_count
        self.cause_count = state.cause_count
        self.cause_bytes = state.cause_bytes
        self._last_offset = state.last_offset
        self._last_id = state.last_id
        self._folded_offset = state.folded_offset
        self._folded_id = state.folded_id
        self._arbiter = Arbiter(self.head)
        self._causes: dict[tuple[bytes, str], Caused] = {}
        self._uncounted: set[int] = set()
        """Offsets of records that do not count, or not yet; with a file those it has not."""
        self._saved_losers = 0
        """How many more this process has given to the file."""
        for each in state.pending:
            pending = PendingAppend(each.record_count, each.offsets, text(each.cause))
            self._arbiter.pending.setdefault(each.key, {})[text(each.append_id)] = pending
            self._uncounted.update(each.offsets)
        self._sorted_keys: list[bytes] = []
        """In order, the keys that may be in memory only."""
        self._sorted_count = -1
        """How many keys there were when they were sorted."""
        self._watched: dict[str, OnDecided] = {}
        """By append: who waits for what becomes of it."""
        self._ends: dict[str, WrittenAppend] = {}
        """The watched appends that were written, by their IDs."""
        self._decided: list[Decided] = []
        self._changed: dict[bytes, int] | None = {} if is_written else None
        """Keys that are to be written to the file, and how many events it has of each."""
        self._taken: dict[bytes, int] = {}
        """Those that are being written to the file now."""
        self._has_reached_end = False
        """Since the file was written last."""
        self.foreign_count = 0
        """Records that no append wrote, of those that were folded here."""
        self.first_foreign = -1
        """Where the first of them stands."""
        self._stored_count = state.event_count
        self._changed_causes: list[ChangedCause] = []
        self._changed_refusals: list[ChangedRefusal] = []
        self._touched: set[bytes] | None = None
        """While the index is copied: the keys that have changed since that began."""

    # -- what is known

    def entry(self, key: bytes) -> KeyEntry | None:
        """A key's entry; None where there is no history."""
        found = self.keys.get(key)
        if found is None and self._has_stored_keys and self._stored is not None:
            found = self._stored.find_key(key)
            if found is not None:
                self.keys[key] = found
        return found

    def head(self, key: bytes) -> Head:
        """Where a key's history ends."""
        found = self.entry(key)
        return EMPTY if found is None else found.head

    def ends_at(self, key: bytes, base: Base) -> bool:
        """Whether a key's history ends there, and may be continued."""
        found = self.entry(key)
        if found is None:
            return base == NO_HISTORY
        return (
            len(found.offsets) == base.version
            and text(found.last_id) == base.last_id
            and not found.is_final
        )

    def cause(self, key: bytes, cause: str) -> Caused | None:
        """The append that was made for a cause, if any."""
        found = self._stored.find_cause(key, cause) if self._stored is not None else None
        return self._causes.get((key, cause)) if found is None else found

    @property
    def uncounted_count(self) -> int:
        """How many records that this process has passed do not count, or not yet."""
        return len(self._uncounted) + self._saved_losers

    def uncounted(self, first: int, end: int) -> list[int]:
        """The offsets from ``first`` up to, not including, ``end`` that do not count; sorted."""
        uncounted = self._uncounted
        if len(uncounted) < end - first:
            found = {offset for offset in uncounted if first <= offset < end}
        else:
            found = {offset for offset in range(first, end) if offset in uncounted}
        if self._stored is not None:
            found.update(self._stored.find_losers(first, end))
        return sorted(found)

    def decided_until(self) -> int:
        """The offset below which it is decided for all records whether they count."""
        first = self._arbiter.first_pending_offset()
        return self.next_offset if first is None else first

    def pending_appends(self) -> list[tuple[bytes, str]]:
        """Key and ID of the appends that are not whole yet, and that nobody here waits for."""
        return [
            (key, append_id)
            for key, found in self._arbiter.pending.items()
            for append_id in found
            if append_id not in self._watched
        ]

    def sorted_keys(self) -> list[bytes] | None:
        """In order, the keys that may be in memory only; None: they are to be sorted first."""
        return self._sorted_keys if self._sorted_count == self.key_count else None

    def keys_to_sort(self) -> tuple[list[bytes], int]:
        """The keys that may be in memory only, and how many keys there are at all; both are for
        :meth:`set_sorted`, so that nothing waits while many are sorted."""
        changed = self._changed
        found = list(self.keys if changed is None else {*changed, *self._taken})
        return found, self.key_count

    def set_sorted(self, keys: list[bytes], count: int) -> None:
        """Those keys in order."""
        self._sorted_keys, self._sorted_count = keys, count

    def list_keys(
        self, after: bytes | None, limit: int, names: Sequence[bytes] | None = None
    ) -> list[tuple[bytes, Head]]:
        """Keys in order, behind ``after``, and where their histories end.

        :param names: :meth:`sorted_keys`, as they were a moment ago.
        """
        if names is None:
            unsorted, _ = self.keys_to_sort()
            names = sorted(unsorted)
        start = 0 if after is None else bisect_left(names, after + b"\0")
        found = {key: self.keys[key].head for key in names[start : start + limit]}
        if self._stored is not None:
            for key, head in self._stored.list_keys(after, limit):
                in_memory = self.keys.get(key)
                found[key] = head if in_memory is None else in_memory.head
        return sorted(found.items())[:limit]

    # -- folding

    def fold(
        self,
        offsets: Sequence[int],
        keys: Sequence[bytes | None],
        headers: Sequence[Headers],
    ) -> None:
        """Fold the next records; those that were folded before are passed over."""
        if offsets[0] < self.next_offset:
            start = bisect_left(offsets, self.next_offset)
            if start == len(offsets):
                return
            offsets, keys, headers = offsets[start:], keys[start:], headers[start:]
        find, pending = self.keys.get, self._arbiter.pending
        watched, changed, touched = self._watched, self._changed, self._touched
        all_in_memory = not self._has_stored_keys
        count, last_offset, last_id = 0, -1, b""
        for offset, key, pairs in zip(offsets, keys, headers, strict=True):
            # One event, without a cause, that continues its history: all that is general is below.
            if len(pairs) == 2 and key is not None:
                (id_name, id), (name, value) = pairs
                if (
                    name == EVENT
                    and id_name == ID
                    and id
                    and len(id) <= MAX_ID
                    and not id.translate(None, _PLAIN)
                ):
                    entry = find(key)
                    if entry is None and not all_in_memory:
                        entry = self.entry(key)
                    if entry is None and value == b"0/1/0/":
                        entry = self.keys[key] = KeyEntry(array("q"))
                        self.key_count += 1
                    places = [] if entry is None else entry.offsets
                    version = len(places)
                    prefix = _PREFIXES[version] if version < 1024 else b"0/1/%d/" % version
                    if entry is not None and (
                        value == prefix + entry.last_id and not entry.is_final
                    ):
                        if changed is not None and key not in changed:
                            changed[key] = version
                        if touched is not None:
                            touched.add(key)
                        places.append(offset)
                        entry.last_id = id
                        count += 1
                        last_offset, last_id = offset, id
                        if pending:
                            pending.pop(key, None)
                        if watched and (on_decided := watched.pop(id.decode(), None)):
                            self._ends.pop(id.decode(), None)
                            appended = Appended(self.partition, (offset,))
                            self._decided.append((on_decided, appended))
                        continue
            if count:  # in order
                self.event_count += count
                self._last_offset, self._last_id = last_offset, last_id
                count = 0
            self._fold_record(offset, key, pairs)
        if count:
            self.event_count += count
            self._last_offset, self._last_id = last_offset, last_id
        self.next_offset = offsets[-1] + 1
        self._folded_offset, self._folded_id = offsets[-1], event_id(headers[-1])

    def _fold_record(self, offset: int, key: bytes | None, headers: Headers) -> None:
        """Fold a record, whatever it is."""
        value, cause, is_final, id = None, "", False, text(event_id(headers))
        is_void = False
        for name, data in headers:
            if name == EVENT:
                if value is None:
                    value = data
            elif name == CAUSE:
                if data and not cause and len(data) <= MAX_CAUSE:
                    cause = text(data)
            elif name == FINAL:
                is_final = is_final or data == b"1"
            elif name == VOID and data is not None:
                self._arbiter.void(key, text(data))
                is_void = True
        header = None if value is None else parse_event(value, id)
        self._uncounted.add(offset)
        if header is None or key is None:
            if not is_void:
                if not self.foreign_count:
                    self.first_foreign = offset
                self.foreign_count += 1
        else:
            counted = self._arbiter.feed(offset, key, id, header, cause, is_final)
            if counted is not None:
                self._add(counted)

    def _add(self, counted: Counted) -> None:
        key, version, offsets = counted.key, counted.base.version, counted.offsets
        entry = self.entry(key)
        if entry is None:
            entry = self.keys[key] = KeyEntry(array("q"))
            self.key_count += 1
        if self._changed is not None and key not in self._changed:
            self._changed[key] = len(entry.offsets)
        if self._touched is not None:
            self._touched.add(key)
        if counted.is_refusal:
            if entry.refusals is None:
                entry.refusals = {}
            refusal = StoredRefusal(version, offsets[0])
            entry.refusals[counted.append_id] = refusal
            if self._changed is not None:
                self._changed_refusals.append(ChangedRefusal(key, counted.append_id, refusal))
        else:
            entry.offsets.extend(offsets)
            self.event_count += len(offsets)
            self._uncounted.difference_update(offsets)
        last_id = counted.head.base.last_id.encode("utf-8", "surrogateescape")
        entry.last_id, entry.is_final = last_id, counted.head.is_final
        self._last_offset, self._last_id = offsets[-1], last_id
        if counted.cause and self.cause(key, counted.cause) is None:
            count = 0 if counted.is_refusal else len(offsets)
            caused = Caused(version + 1, count)
            self._causes[key, counted.cause] = caused
            self.cause_count += 1
            self.cause_bytes += len(counted.cause) + 200
            if self._changed is not None:
                self._changed_causes.append(ChangedCause(key, counted.cause, caused))
        on_decided = self._watched.pop(counted.append_id, None)
        if on_decided is not None:
            self._ends.pop(counted.append_id, None)
            self._decided.append((on_decided, Appended(self.partition, offsets)))

    def skip_to(self, offset: int) -> None:
        """There is no record below this offset that was not folded: it is the log's end."""
        self._has_reached_end = True
        if offset > self.next_offset:
            self.next_offset = offset

    # -- those who wait for what becomes of their appends

    def watch(self, append_id: str, on_decided: OnDecided) -> None:
        """Tell somebody what becomes of an append that is about to be written."""
        self._watched[append_id] = on_decided

    def unwatch(self, append_id: str) -> None:
        """Nobody waits for an append any more."""
        self._watched.pop(append_id, None)
        self._ends.pop(append_id, None)

    def written(self, append: WrittenAppend) -> None:
        """Note that an append was written, if it is watched."""
        if append.append_id in self._watched:
            self._ends[append.append_id] = append

    def settle(self) -> None:
        """Tell those whose appends were passed and did not count."""
        if not self._ends:
            return
        passed = [each for each in self._ends.values() if each.last_offset < self.next_offset]
        for each in passed:
            del self._ends[each.append_id]
            self._decided.append((self._watched.pop(each.append_id), self.head(each.key)))

    def fail(self, error: LogError) -> None:
        """Nothing will be folded any more: nobody can say what becomes of what is watched."""
        self._decided += [(on_decided, error) for on_decided in self._watched.values()]
        self._watched.clear()
        self._ends.clear()

    def take_decided(self) -> Sequence[Decided]:
        """The callbacks to run with their outcomes, once the lock is released."""
        decided, self._decided = self._decided, []
        return decided

    def _state(self) -> tuple[PartitionState, set[int]]:
        """The state beside keys and causes, and the offsets of records that do not count, as far as
        the file does not have them."""
        pending = [
            StoredPendingAppend(
                key,
                append_id.encode("utf-8", "surrogateescape"),
                each.count,
                list(each.offsets),
                each.cause.encode("utf-8", "surrogateescape"),
            )
            for key, found in self._arbiter.pending.items()
            for append_id, each in found.items()
        ]
        undecided = {offset for each in pending for offset in each.offsets}
        state = PartitionState(
            self.next_offset,
            self._last_offset,
            self._last_id,
            self.key_count,
            self.event_count,
            self.cause_count,
            self.cause_bytes,
            pending,
            self._folded_offset,
            self._folded_id,
        )
        return state, self._uncounted - undecided

    # -- what is written to the file

    @property
    def is_worth_saving(self) -> bool:
        """Whether the file is to be written. While an index is built most of its keys change all
        the time, so it is only written when it has grown to double its size, and at its end."""
        if not self._changed:
            return False
        return self._has_reached_end or self.event_count > 2 * self._stored_count + 100_000

    def changed_keys(self) -> list[bytes]:
        """The keys that have changed since the last time."""
        return list(self._changed or ())

    def copy_changed(self, keys: Iterable[bytes]) -> dict[bytes, ChangedKey]:
        """Copies of changed keys as they are now. One that changes again is copied again, by
        :meth:`take_changes`, which has to follow, or :meth:`changes_lost`."""
        changed, taken = self._changed or {}, self._taken
        copies: dict[bytes, ChangedKey] = {}
        for key in keys:
            stored = taken.setdefault(key, changed[key])
            del changed[key]
            entry, first = self.keys[key], stored - stored % CHUNK
            copied = KeyEntry(entry.offsets[first:], entry.last_id, entry.is_final, entry.refusals)
            copies[key] = ChangedKey(key, copied, first)
        return copies

    def take_changes(self, copied: dict[bytes, ChangedKey] | None = None) -> Changes:
        """The changes since the last call. They exist in memory only until
        :meth:`changes_written` or :meth:`changes_lost` is called.

        :param copied: the keys that were copied before, as many change while an index is built;
            those that have changed since are copied now.
        """
        state, uncounted = self._state()
        keys = copied or {}
        keys |= self.copy_changed(self.changed_keys())
        changes = Changes(
            state,
            list(keys.values()),
            self._changed_causes,
            self._changed_refusals,
            list(uncounted),
        )
        self._has_reached_end = False
        self._stored_count = self.event_count
        self._changed_causes, self._changed_refusals = [], []
        return changes

    def changes_written(self, changes: Changes) -> None:
        """The changes that were taken are in the file now."""
        self._taken = {}
        self._has_stored_keys = self._has_stored_keys or bool(changes.keys)
        self._uncounted.difference_update(changes.losers)
        self._saved_losers += len(changes.losers)

    def forget_causes(self, causes: Iterable[ChangedCause]) -> None:
        """These are in the file."""
        for each in causes:
            self._causes.pop((each.key, each.cause), None)

    def changes_lost(self, changes: Changes | None) -> None:
        """The changes that were taken could not be written: write them with the next ones.

        :param changes: None: keys were copied, and nothing else was taken.
        """
        if self._changed is None:
            return
        self._changed.update(self._taken)  # which know better how much the file has
        self._taken = {}
        if changes is not None:
            self._changed_causes[:0] = changes.causes
            self._changed_refusals[:0] = changes.refusals

    # -- what goes into a snapshot of the index

    @property
    def stored(self) -> StoredPartition | None:
        """The stored part of the partition's index, if there is one."""
        return self._stored

    def add_stored(self, entries: Iterable[tuple[bytes, KeyEntry]]) -> None:
        """Have these entries in memory, of those that are kept elsewhere; what is there already is
        newer."""
        for key, entry in entries:
            self.keys.setdefault(key, entry)

    def all_stored_added(
        self, causes: Iterable[tuple[tuple[bytes, str], Caused]], losers: Iterable[int]
    ) -> None:
        """All of what is kept elsewhere is in memory now, with these causes and losers: it is not
        needed any more."""
        for name, caused in causes:
            self._causes.setdefault(name, caused)
        known = len(self._uncounted)
        self._uncounted.update(losers)
        self._saved_losers -= len(self._uncounted) - known  # this process has not passed them
        self._stored, self._has_stored_keys = None, False
        self._sorted_count = -1

    def begin_copy(self) -> list[bytes]:
        """The keys in memory. From now on it is remembered which of them change, until the copy
        was ended or given up."""
        self._touched = set()
        return list(self.keys)

    def copy_entries(self, keys: Iterable[bytes]) -> list[tuple[bytes, KeyEntry]]:
        """Entries of keys, as they are now."""
        return [(key, _copied(self.keys[key])) for key in keys]

    def end_copy(self) -> IndexCopy:
        """The rest of the copy: together with the entries copied since :meth:`begin_copy`, it is
        the whole index as of now."""
        touched, self._touched = self._touched or (), None
        state, losers = self._state()
        changed = {key: _copied(self.keys[key]) for key in touched}
        return IndexCopy(state, changed, list(self._causes.items()), losers)

    def give_up_copy(self) -> None:
        """Remember no more what changes."""
        self._touched = None


def event_id(headers: Headers) -> bytes:
    """The ID of an event's record; empty: it has none. The last one counts."""
    found = [value for name, value in headers if name == ID and value is not None]
    return found[-1].partition(b"\0")[0] if found else b""


def _copied(entry: KeyEntry) -> KeyEntry:
    refusals = None if entry.refusals is None else dict(entry.refusals)
    return KeyEntry(entry.offsets[:], entry.last_id, entry.is_final, refusals)
