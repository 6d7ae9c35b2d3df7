"""Histories on Redis: appends under a condition, and one key's events.

A script checks an append and writes it, so both are one step, for replicas and the append-only file
too. The events are in the partition's stream like any messages; in the same hash slot, each key has
a list with the entry IDs of its events, whose length is the version.

An append may be repeated without harm, so one that got no answer is sent again until it gets one or
``timeout`` seconds are over, unless the caller wants to know at once.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import msgspec

from streams.errors import Fatal, LogError, OutcomeUnknown, TooLarge, Unavailable
from streams.log.events import (
    EMPTY,
    Appended,
    Base,
    Caused,
    EventAppend,
    EventTotals,
    Head,
    History,
    HistoryKey,
    HistoryRequest,
    OnEventsAppended,
    Refusal,
    Refused,
    StoredEvent,
    StoredRefusal,
    StoredSnapshot,
)
from streams.log.names import partition_for
from streams.log.redis.batch import encode_fields, fields_as_json, layout_of
from streams.log.redis.client import Client, Command, key_command, script_command
from streams.log.redis.errors import WritesRefused
from streams.log.redis.keys import PartitionKeys, entry_id, offsets_of
from streams.log.redis.producer import MAX_BYTES, MAX_FIELDS, RETRY_BACKOFF
from streams.log.redis.stored_values import parse_entry_id
from streams.log.redis.topics import Topics
from streams.message import Record
from streams.wire import parse_int, text

CALL_APPENDS = 500
"""Appends of one script call, at most."""

CALL_BYTES = 4 << 20
"""Bytes of one call's appends; a single larger append goes alone."""

CALL_REQUESTS = 50
"""Histories that one script call reads from, at most."""

SCAN_COUNT = 1_000
"""Refusals that one call looks at."""

CALL_ARGUMENTS = 50_000
"""About how many arguments one script call gets; a single append with more goes alone."""


_APPENDED = 1
"""State that the script ``append_events`` returns for an append: its entry IDs follow."""
_UNREADABLE = 2
"""State of an append to a history that cannot be read: nothing was appended, and why follows."""


class _RefusedReply(NamedTuple):
    """What the script ``append_events`` returns of an append that it refused."""

    reason: bytes
    """A :data:`~streams.log.events.Refusal`."""
    version: int
    """The version of the history's last event."""
    last_id: bytes
    is_final: int


class _HistoryReply(NamedTuple):
    """What the script ``read_histories`` returns of one history."""

    version: int
    last_id: bytes
    is_final: int
    is_truncated: int
    caused: bytes
    """The first version and the number of the events of the cause; empty: there are none."""
    snapshot: bytes
    """Empty: there is none."""
    entries: Sequence[Any]
    """Each is a list of an entry ID and the entry's fields; anything else is missing."""

    @property
    def head(self) -> Head:
        """Where the history ends."""
        if not self.version and not self.last_id:
            return EMPTY
        return Head(Base(self.version, text(self.last_id)), bool(self.is_final))


class _Call:
    """The appends to one partition of one script call."""

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.histories: list[bytes] = []
        self.args: list[Any] = []
        self.size = 0
        self.was_sent = False
        """Whether the call was sent before, and got no answer."""


class Events:
    """The event topics of one log. Usable from any thread."""

    def __init__(self, client: Client, topics: Topics) -> None:
        self._client = client
        self._topics = topics

    # -- appending

    def append(
        self,
        topic: str,
        appends: Sequence[EventAppend],
        on_appended: OnEventsAppended,
        *,
        once: bool = False,
    ) -> None:
        """See :meth:`streams.log.events.EventLog.append_events`.

        :param once: nothing is sent again
            (:meth:`streams.log.events.RetryingLog.append_events_once`).
        """
        outcomes: list[Any] = [None] * len(appends)
        try:
            calls = self._split(topic, appends, outcomes)
            self._write(topic, calls, outcomes, once=once)
        except LogError as error:
            outcomes = [error if each is None else each for each in outcomes]
        on_appended(outcomes)

    def _split(
        self, topic: str, appends: Sequence[EventAppend], outcomes: list[Any]
    ) -> dict[int, list[_Call]]:
        """The calls for each partition, the next one last."""
        partitions = self._topics.event_partitions(topic, to_write=True)
        calls: dict[int, list[_Call]] = {}
        for index, append in enumerate(appends):
            args, size = _arguments(append)
            if size > MAX_BYTES:
                outcomes[index] = TooLarge(
                    f"{topic}: an append of {size} bytes; at most {MAX_BYTES} are possible, and "
                    f"{MAX_FIELDS - 4} headers of an event"
                )
                continue
            partition = partition_for(append.key, "", partitions)
            found = calls.setdefault(partition, [])
            call = found[-1] if found else None
            if call is None or (
                len(call.args) + len(args) > CALL_ARGUMENTS
                or call.size + size > CALL_BYTES
                or len(call.indexes) >= CALL_APPENDS
            ):
                call = _Call()
                found.append(call)
            keys = self._topics.partition_keys(topic, partition)
            call.indexes.append(index)
            call.histories.append(keys.history_key(append.key))
            call.args += args
            call.size += size
        for each in calls.values():
            each.reverse()
        return calls

    def _write(
        self, topic: str, calls: dict[int, list[_Call]], outcomes: list[Any], *, once: bool
    ) -> None:
        """Make the calls: partitions side by side, the calls of one partition one after the
        other."""
        pause, until = RETRY_BACKOFF[0], 0.0
        while calls:
            partitions = list(calls)
            error = self._write_next(topic, partitions, calls, outcomes, once=once)
            if error is None:
                continue
            now = time.monotonic()
            until = until or now + self._client.settings.append_timeout
            if now + pause >= until:
                self._fail(calls, outcomes, error)
                return
            time.sleep(pause)
            pause = min(RETRY_BACKOFF[1], 2 * pause)

    def _write_next(
        self,
        topic: str,
        partitions: Sequence[int],
        calls: dict[int, list[_Call]],
        outcomes: list[Any],
        *,
        once: bool,
    ) -> LogError | None:
        """Make the next call of each partition; returns the reason if one is to be repeated."""
        commands: list[Command] = []
        width = 1
        wait = self._client.settings.wait_replicas
        for partition in partitions:
            call = calls[partition][-1]
            keys = self._topics.partition_keys(topic, partition)
            command = script_command(
                str(keys),
                "append_events",
                (*_shared_keys(keys), keys.event_key("keys"), *call.histories),
                *call.args,
                is_append=True,
                before_wait=bool(wait),
            )
            commands.append(command)
            if wait:
                width = 2
                commands.append(self._client.wait_command(str(keys), keys.stream, [command]))
        replies = self._client.execute_all(commands)
        retry: LogError | None = None
        for number, partition in enumerate(partitions):
            found = calls[partition]
            call = found[-1]
            answers = replies[number * width : (number + 1) * width]
            error = self._client.write_failure(topic, answers)
            call.was_sent = call.was_sent or isinstance(error, OutcomeUnknown)
            if error is None:
                self._take_outcomes(topic, partition, call, answers[0], outcomes)
                found.pop()
            elif not once and self._may_retry(error):
                retry = error
            else:
                for each in found:
                    self._fail_call(each, outcomes, error)
                found.clear()
            if not found:
                del calls[partition]
        return retry

    @staticmethod
    def _may_retry(error: LogError) -> bool:
        """Whether a failed call is to be repeated: that is harmless, so wherever it may help."""
        return isinstance(error, (OutcomeUnknown, Unavailable)) and not isinstance(
            error, WritesRefused
        )

    def _fail(self, calls: dict[int, list[_Call]], outcomes: list[Any], error: LogError) -> None:
        for found in calls.values():
            for call in found:
                self._fail_call(call, outcomes, error)

    @staticmethod
    def _fail_call(call: _Call, outcomes: list[Any], error: LogError) -> None:
        if call.was_sent and not isinstance(error, OutcomeUnknown):
            error = OutcomeUnknown(f"sent before, and never answered; then: {error}")
        if not call.was_sent and isinstance(error, OutcomeUnknown):
            error = Unavailable(f"not sent: {error}")
        for index in call.indexes:
            outcomes[index] = error

    @staticmethod
    def _take_outcomes(
        topic: str, partition: int, call: _Call, reply: Sequence[Any], outcomes: list[Any]
    ) -> None:
        # All offsets are parsed at once: this runs for every append.
        answers = [(state, found) for state, *found in reply]
        entry_ids = [id for state, found in answers if state == _APPENDED for id in found]
        offsets = iter(offsets_of(entry_ids))
        for index, (state, found) in zip(call.indexes, answers, strict=True):
            if state == _APPENDED:
                outcomes[index] = Appended(partition, tuple(islice(offsets, len(found))))
            elif state == _UNREADABLE:
                (reason,) = found
                outcomes[index] = LogError(
                    f"{topic}/{partition}: a history cannot be read, so nothing was appended to "
                    f"it; another client has changed its keys: {text(reason)}"
                )
            else:
                refusal = _RefusedReply(*found)
                head = Head(Base(refusal.version, text(refusal.last_id)), bool(refusal.is_final))
                outcomes[index] = Refused(cast(Refusal, refusal.reason.decode()), head)

    # -- reading

    def read(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """See :meth:`streams.log.events.EventLog.read_histories`.

        :raises LogError: an answer cannot come from keys that this log wrote.
        """
        partitions = self._topics.event_partitions(topic)
        by_partition: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            partition = partition_for(request.key, "", partitions)
            by_partition.setdefault(partition, []).append(index)
        asked = [
            (partition, indexes[start : start + CALL_REQUESTS])
            for partition, indexes in by_partition.items()
            for start in range(0, len(indexes), CALL_REQUESTS)
        ]
        replies = self._client.execute_or_raise(
            [self._read_command(topic, *each, requests) for each in asked]
        )
        found: list[Any] = [None] * len(requests)
        for (partition, indexes), answers in zip(asked, replies, strict=True):
            try:
                for index, answer in zip(indexes, answers, strict=True):
                    found[index] = _history(topic, partition, requests[index], answer)
            except (msgspec.MsgspecError, ValueError) as error:
                raise LogError(
                    f"{topic}/{partition}: another client has changed the keys of its histories: "
                    f"{error}"
                ) from error
        return found

    def _read_command(
        self, topic: str, partition: int, indexes: Sequence[int], requests: Sequence[HistoryRequest]
    ) -> Command:
        keys = self._topics.partition_keys(topic, partition)
        names = list(_shared_keys(keys))
        args: list[Any] = []
        for index in indexes:
            request = requests[index]
            names += (keys.history_key(request.key), keys.snapshots_key(request.fingerprint))
            args += (
                request.key,
                request.after.version,
                request.after.last_id.encode("utf-8", "surrogateescape"),
                request.limit,
                request.cause.encode("utf-8", "surrogateescape"),
            )
        return script_command(str(keys), "read_histories", names, *args)

    # -- snapshots and lists

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """See :meth:`streams.log.events.EventLog.write_snapshots`."""
        partitions = self._topics.event_partitions(topic, to_write=True)
        by_hash: dict[tuple[int, str], list[StoredSnapshot]] = {}
        for snapshot in snapshots:
            partition = partition_for(snapshot.key, "", partitions)
            by_hash.setdefault((partition, snapshot.fingerprint), []).append(snapshot)
        commands: list[Command] = []
        for (partition, fingerprint), chosen in by_hash.items():
            keys = self._topics.partition_keys(topic, partition)
            commands.append(
                key_command(str(keys), "SADD", keys.event_key("snapshots"), fingerprint)
            )
            commands += [
                self._snapshot_command(keys, fingerprint, chosen[start : start + CALL_REQUESTS])
                for start in range(0, len(chosen), CALL_REQUESTS)
            ]
        self._client.execute_or_raise(commands)

    @staticmethod
    def _snapshot_command(
        keys: PartitionKeys, fingerprint: str, snapshots: Sequence[StoredSnapshot]
    ) -> Command:
        shared = (keys.stream, keys.event_key("refusals"), keys.snapshots_key(fingerprint))
        args: list[Any] = []
        for snapshot in snapshots:
            rest = entry_id(snapshot.offset) + b" " + snapshot.data
            version, last_id = snapshot.base
            args += (snapshot.key, version, last_id.encode("utf-8", "surrogateescape"), rest)
        histories = [keys.history_key(snapshot.key) for snapshot in snapshots]
        return script_command(str(keys), "write_snapshots", (*shared, *histories), *args)

    def delete_snapshots(self, topic: str, fingerprint: str | None) -> int:
        """See :meth:`streams.log.events.EventLog.delete_snapshots`."""
        deleted = 0
        for keys in self._all_keys(topic):
            for kind, count in self._snapshot_kinds(keys):
                if fingerprint in (None, kind):
                    kinds = keys.event_key("snapshots")
                    self._client.execute_or_raise(
                        [
                            key_command(str(keys), "UNLINK", keys.snapshots_key(kind)),
                            key_command(str(keys), "SREM", kinds, kind),
                        ]
                    )
                    deleted += count
        return deleted

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """See :meth:`streams.log.events.EventLog.list_snapshots`."""
        partition = partition_for(key, "", self._topics.event_partitions(topic))
        keys = self._topics.partition_keys(topic, partition)
        kinds = sorted(kind for kind, _ in self._snapshot_kinds(keys))
        stored = self._client.execute_all(
            [key_command(str(keys), "HGET", keys.snapshots_key(kind), key) for kind in kinds]
        )
        for data in stored:
            if isinstance(data, Unavailable):
                raise data
        found = [
            _snapshot(HistoryRequest(key, fingerprint=kind), data)
            for kind, data in zip(kinds, stored, strict=True)
            if isinstance(data, bytes)
        ]
        return [each for each in found if each is not None]

    def list_refusals(self, topic: str, key: bytes) -> list[StoredRefusal]:
        """See :meth:`streams.log.events.EventLog.list_refusals`. Searches the refusals of the key's
        whole partition."""
        partition = partition_for(key, "", self._topics.event_partitions(topic))
        keys = self._topics.partition_keys(topic, partition)
        stored = keys.event_key("refusals")
        pattern = _escape_glob(b"%d:%b" % (len(key), key)) + b"*"
        found: set[StoredRefusal] = set()  # the server may return one twice
        cursor: Any = 0
        while True:
            cursor, rows = self._client.execute(
                key_command(
                    str(keys), "HSCAN", stored, cursor, "MATCH", pattern, "COUNT", SCAN_COUNT
                )
            )
            for value in rows[1::2]:
                version, _, entry = value.partition(b" ")
                number, offset = parse_int(version), parse_entry_id(entry)
                if number is not None and offset is not None:
                    found.add(StoredRefusal(number, offset))
            if int(cursor) == 0:
                return sorted(found, key=lambda each: each.offset)

    def _snapshot_kinds(self, keys: PartitionKeys) -> Iterator[tuple[str, int]]:
        """The kinds of snapshots in a partition, with the number of each."""
        kinds = keys.event_key("snapshots")
        names = [
            text(name) for name in self._client.execute(key_command(str(keys), "SMEMBERS", kinds))
        ]
        counts = self._client.execute_all(
            [key_command(str(keys), "HLEN", keys.snapshots_key(kind)) for kind in names]
        )
        for kind, count in zip(names, counts, strict=True):
            yield kind, _count(count)

    def _all_keys(self, topic: str) -> list[PartitionKeys]:
        self._topics.event_partitions(topic)
        return self._topics.all_partition_keys(topic)

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        """See :meth:`streams.log.events.EventLog.list_keys`."""
        self._topics.event_partitions(topic)
        keys = self._topics.partition_keys(topic, partition)
        lowest = b"-" if after is None else b"(" + after
        found: list[bytes] = self._client.execute(
            key_command(
                str(keys), "ZRANGE", keys.event_key("keys"), lowest, "+", "BYLEX", "LIMIT", 0, limit
            )
        )
        heads: list[Head] = []
        for start in range(0, len(found), CALL_REQUESTS):
            heads += self._heads(topic, partition, found[start : start + CALL_REQUESTS])
        return [HistoryKey(key, head) for key, head in zip(found, heads, strict=True)]

    def _heads(self, topic: str, partition: int, keys: Sequence[bytes]) -> list[Head]:
        """The ends of histories; one whose key holds another type is empty."""
        requests = [HistoryRequest(key, limit=1) for key in keys]
        command = self._read_command(topic, partition, range(len(requests)), requests)
        try:
            answers = self._client.execute(command)
        except (Unavailable, Fatal):
            raise
        except LogError:
            if len(keys) == 1:
                return [EMPTY]
            return [head for key in keys for head in self._heads(topic, partition, [key])]
        return [_HistoryReply(*answer).head for answer in answers]

    def totals(self, topic: str) -> EventTotals:
        """See :meth:`streams.log.events.EventLog.event_totals`."""
        keys_total = events = causes = cause_bytes = 0
        snapshots: dict[str, int] = {}
        for keys in self._all_keys(topic):
            hashes = keys.event_key("causes")
            count, length, refusals, caused, memory = map(
                _count,
                self._client.execute_all(
                    [
                        key_command(str(keys), "ZCARD", keys.event_key("keys")),
                        key_command(str(keys), "XLEN", keys.stream),
                        key_command(str(keys), "HLEN", keys.event_key("refusals")),
                        key_command(str(keys), "HLEN", hashes),
                        Command(str(keys), hashes, "MEMORY", "USAGE", hashes),
                    ]
                ),
            )
            keys_total += count
            events += length - refusals
            causes += caused
            cause_bytes += memory
            for kind, number in self._snapshot_kinds(keys):
                snapshots[kind] = snapshots.get(kind, 0) + number
        return EventTotals(keys_total, events, causes, cause_bytes, snapshots)


def _shared_keys(keys: PartitionKeys) -> tuple[bytes, ...]:
    """The keys that the scripts need besides the histories."""
    return keys.stream, *map(keys.event_key, ("refusals", "refused", "causes"))


def _arguments(append: EventAppend) -> tuple[list[Any], int]:
    """An append as arguments of the script, and their bytes."""
    args: list[Any] = [
        append.key,
        append.base.version,
        append.base.last_id.encode("utf-8", "surrogateescape"),
        int(append.is_refusal),
        append.cause.encode("utf-8", "surrogateescape"),
        len(append.records),
        append.records[0].id.encode("utf-8", "surrogateescape"),
    ]
    size = 0
    for record in append.records:
        names, values, _ = encode_fields(record)
        count = len(names)
        size += MAX_BYTES * (count > MAX_FIELDS) + sum(map(len, values))
        fields: list[Any] = [2 * count] * (1 + 2 * count)
        fields[1::2], fields[2::2] = names, values[:count]
        args += fields
    return args, size


def _history(topic: str, partition: int, request: HistoryRequest, answer: Sequence[Any]) -> History:
    """A history from the script's reply."""
    found = _HistoryReply(*answer)
    kept = _snapshot(request, found.snapshot) if found.snapshot else None
    start = (kept.base if kept else request.after).version
    events: list[StoredEvent] = []
    if found.entries:
        rows = [row for row in found.entries if isinstance(row, list)]
        if len(rows) != len(found.entries):
            raise LogError(
                f"{topic}/{partition}: entries of {text(request.key)!r} are missing from its "
                "stream: another client has deleted or trimmed them; restore a backup"
            )
        offsets = offsets_of([entry for entry, _ in rows])
        for version, (offset, (_, fields)) in enumerate(zip(offsets, rows, strict=True), start + 1):
            time = (offset >> 64) / 1000
            events.append(StoredEvent(version, offset, time, _record(request.key, fields)))
    is_truncated = bool(found.is_truncated)
    return History(partition, events, found.head, _caused(found.caused), is_truncated, kept)


def _record(key: bytes, fields: list[bytes]) -> Record:
    """The record of an entry of a history."""
    layout = layout_of(tuple(fields[::2]))
    if layout.is_foreign:
        value: bytes | None = fields_as_json(fields)
    else:
        value = fields[layout.value] if layout.value > 0 else None
    id = text(fields[layout.id]) if layout.id > 0 else ""
    headers = [
        (name, fields[at] if at > 0 else None) for name, at in layout.headers if at != layout.id
    ]
    return Record(value, key, id, headers)


def _escape_glob(name: bytes) -> bytes:
    """A pattern that matches exactly these bytes."""
    return re.sub(rb"([*?\[\]\\^])", rb"\\\1", name)


def _count(reply: Any) -> int:
    """The number of elements; 0 if this user may not ask, or the key holds another type.

    :raises Unavailable: the server cannot be reached now.
    """
    if isinstance(reply, Unavailable):
        raise reply
    return reply if isinstance(reply, int) else 0


def _caused(stored: bytes) -> Caused | None:
    first, _, count = stored.partition(b" ")
    version, event_count = parse_int(first), parse_int(count)
    if version is None or event_count is None:
        return None
    return Caused(version, event_count)


def _snapshot(request: HistoryRequest, stored: bytes) -> StoredSnapshot | None:
    parts = stored.split(b" ", 3)
    if len(parts) != 4:
        return None
    version_text, last_id, entry, data = parts
    version, offset = parse_int(version_text), parse_entry_id(entry)
    if version is None or offset is None:
        return None
    base = Base(version, text(last_id))
    return StoredSnapshot(request.key, request.fingerprint, base, offset, data)
