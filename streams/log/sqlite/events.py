"""Histories in the file: appends under a condition, and one key's events.

An append is checked and written in one transaction, and a file has one writer at a time, so the
check and the write are one step, and the order of transactions is the order of offsets.

As everywhere in this package a call takes few steps of statements, whatever its size (see
:mod:`streams.log.sqlite.blocks`): the requests are passed as one JSON array, with keys in
hexadecimal, and the results are returned as one. The events themselves are stored as MessagePack,
and are returned one behind the other, as the elements of one array.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import msgspec
from typing_extensions import override

from streams.errors import Fatal, InvalidValue, LogError, NotFound, TooLarge
from streams.log.events import (
    EMPTY,
    Appended,
    AppendOutcome,
    Base,
    Caused,
    EventAppend,
    EventTotals,
    Head,
    History,
    HistoryKey,
    HistoryRequest,
    OnEventsAppended,
    Refused,
    StoredEvent,
    StoredEvents,
    StoredRefusal,
    StoredSnapshot,
    has_base,
    judge,
    not_an_event_topic,
)
from streams.log.names import partition_for, topic_not_found
from streams.log.sqlite import blocks
from streams.log.sqlite.database import Database, SqliteConnection
from streams.log.sqlite.producer import NewBlocks, WrittenRun, write_blocks
from streams.log.sqlite.shared_file import topic_event
from streams.message import Record

_SELECT_HEADS = """
SELECT json_group_array(json_array(r.value ->> 0, r.value ->> 1, h.version, h.last_id, h.final))
FROM json_each(?) AS r CROSS JOIN streams_histories AS h
ON h.no = r.value ->> 0 AND h.key = unhex(r.value ->> 1)
"""

# For each request: the end of its history, the ID at the version that the caller knows, the events
# appended for the cause, the snapshot if it is ahead of that version, and the ID at its version.
_SELECT_REQUESTS = """
SELECT json_group_array(json_array(
    r.key, h.version, h.last_id, h.final, e.id, c.version, c.count,
    s.version, s.last_id, s."offset", hex(s.data), m.id
))
FROM json_each(?) AS r CROSS JOIN streams_histories AS h
ON h.no = r.value ->> 0 AND h.key = unhex(r.value ->> 1)
LEFT JOIN streams_events AS e
ON e.no = h.no AND e.key = h.key AND e.version = r.value ->> 2 AND h.version > e.version
LEFT JOIN streams_causes AS c
ON c.no = h.no AND c.key = h.key AND c.cause = unhex(r.value ->> 3)
LEFT JOIN streams_snapshots AS s
ON s.no = h.no AND s.key = h.key AND s.fingerprint = r.value ->> 4 AND s.version > r.value ->> 2
LEFT JOIN streams_events AS m ON m.no = s.no AND m.key = s.key AND m.version = s.version
"""

_SELECT_TOPIC = "SELECT topic FROM streams_partitions WHERE no = ?"

# The IDs, and the data one behind the other. (In a file in UTF-8, which a log's is, group_concat()
# takes the bytes of a BLOB as they are.)
_SELECT_EVENTS = """
SELECT json_group_array(e.id), CAST(group_concat(e.data, '') AS BLOB)
FROM json_each(?) AS r CROSS JOIN streams_events AS e
ON e.no = r.value ->> 0 AND e.key = unhex(r.value ->> 1)
AND e.version > r.value ->> 2 AND e.version <= r.value ->> 3
"""

_INSERT_EVENT = "INSERT INTO streams_events VALUES (?, ?, ?, ?, ?)"
_INSERT_ROWS = 64

_UPSERT_HEADS = """
INSERT INTO streams_histories
SELECT value ->> 0, unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4
FROM json_each(?) WHERE true
ON CONFLICT DO UPDATE SET version = excluded.version, last_id = excluded.last_id,
final = excluded.final
"""

_INSERT_CAUSES = """
INSERT OR IGNORE INTO streams_causes
SELECT value ->> 0, unhex(value ->> 1), unhex(value ->> 2), value ->> 3, value ->> 4
FROM json_each(?)
"""

_INSERT_REFUSALS = """
INSERT INTO streams_refusals
SELECT value ->> 0, unhex(value ->> 1), value ->> 2, value ->> 3, value ->> 4 FROM json_each(?)
"""

_SELECT_SNAPSHOT_BASE = (
    "SELECT version, last_id FROM streams_snapshots WHERE no = ? AND key = ? AND fingerprint = ?"
)

_REPLACE_SNAPSHOT = "INSERT OR REPLACE INTO streams_snapshots VALUES (?, ?, ?, ?, ?, ?, ?)"


class _EventData(msgspec.Struct, array_like=True, gc=False):
    """The columns of an event in ``streams_events``, apart from its key and version.

    :param time: in microseconds.
    """

    offset: int
    time: int
    value: bytes | None
    headers: msgspec.Raw


class _SqliteEvents(StoredEvents):
    """Events as read from the file, decoded when they are used.

    :param first_version: the version of the first event.
    """

    def __init__(
        self, first_version: int, key: bytes, ids: Sequence[str], rows: Sequence[_EventData]
    ) -> None:
        self._first_version = first_version
        self._key = key
        self._ids = ids
        self._rows = rows

    @property
    @override
    def values(self) -> list[bytes | None]:
        return [row.value for row in self._rows]

    @override
    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> StoredEvent: ...

    @overload
    def __getitem__(self, index: slice) -> list[StoredEvent]: ...

    @override
    def __getitem__(self, index: int | slice) -> StoredEvent | list[StoredEvent]:
        """:raises Fatal: the event's headers are damaged."""
        if isinstance(index, slice):
            return [self._made(at) for at in range(*index.indices(len(self._rows)))]
        return self._made(range(len(self._rows))[index])

    def _made(self, at: int) -> StoredEvent:
        row = self._rows[at]
        try:
            headers = _unpack_headers(row.headers)
        except msgspec.MsgspecError as error:
            raise _damaged_events(error) from error
        record = Record(row.value, self._key, self._ids[at], headers)
        return StoredEvent(self._first_version + at, row.offset, row.time / 1e6, record)


class _RequestRow(NamedTuple):
    """The row of :data:`_SELECT_REQUESTS` for one request."""

    place: int
    version: int
    last_id: str
    final: int
    known_id: str | None
    caused_version: int | None
    caused_count: int | None
    snapshot_version: int | None
    snapshot_id: str | None
    snapshot_offset: int | None
    snapshot_data: str
    made_of_id: str | None


class _HeadRow(NamedTuple):
    """A row of ``streams_histories``."""

    number: int
    """The partition's number in the file."""
    key: str
    """In hexadecimal."""
    version: int
    last_id: str
    final: int


class _EventRange(NamedTuple):
    """The events of a history after one version, up to another one."""

    number: int
    """The partition's number in the file."""
    key: str
    """In hexadecimal."""
    after: int
    last: int


_pack = msgspec.msgpack.Encoder().encode
_unpack_events = msgspec.msgpack.Decoder(list[_EventData]).decode
_unpack_headers = msgspec.msgpack.Decoder(list[tuple[str, bytes | None]]).decode
_encode_json = msgspec.json.Encoder().encode
_decode_heads = msgspec.json.Decoder(list[_HeadRow]).decode
_decode_requests = msgspec.json.Decoder(list[_RequestRow]).decode
_decode_ids = msgspec.json.Decoder(list[str]).decode


class _PendingHistory:
    """One key's history in the transaction that appends to it."""

    def __init__(self, db: SqliteConnection, number: int, key: bytes, head: Head) -> None:
        self._db = db
        self._number = number
        self._key = key
        self._stored_version = head.base.version
        self.head = head
        self.new_ids: list[str] = []
        """The IDs of the events that this transaction appends."""
        self.new_refusals: dict[str, int] = {}

    def id_at(self, version: int) -> str | None:
        """The ID of the event at a version."""
        if version > self._stored_version:
            index = version - self._stored_version - 1
            return self.new_ids[index] if index < len(self.new_ids) else None
        return _id_at(self._db, self._number, self._key, version)

    def refusal_version(self, record_id: str) -> int | None:
        """The version at which a refusal was recorded."""
        found = self.new_refusals.get(record_id)
        return (
            found if found is not None else _refusal(self._db, self._number, self._key, record_id)
        )

    def add(self, append: EventAppend) -> None:
        """Note an append that is going to be written."""
        if append.is_refusal:
            self.new_refusals[append.records[0].id] = append.base.version
        else:
            self.new_ids += [record.id for record in append.records]
        self.head = append.head


class _Run:
    """The appends of a transaction to one partition, in order."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.indexes: list[tuple[int, int]] = []
        """The index of each append, and the place of its first record."""


class Events:
    """The event topics of one log. Usable from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._numbers: dict[str, list[int]] = {}
        """Each event topic's partition numbers, used until a transaction finds them gone."""

    def _known_numbers(self, topic: str) -> list[int]:
        """A topic's cached partition numbers. A transaction that uses them checks that they are
        still the topic's: another process may have created it again."""
        found = self._numbers.get(topic)
        if found is None:
            found = self._numbers[topic] = self._partition_numbers(topic)
        return found

    def _partition_numbers(self, topic: str) -> list[int]:
        with self._database.read() as db:
            rows = db.fetch_rows(
                "SELECT no FROM streams_partitions WHERE topic = ? ORDER BY partition", (topic,)
            )
            if not rows:
                raise topic_not_found(topic)
            if not self._database.holds_histories(db, topic):
                raise not_an_event_topic(topic)
        return [number for (number,) in rows]

    # -- appending

    def append(
        self, topic: str, appends: Sequence[EventAppend], on_appended: OnEventsAppended
    ) -> None:
        """See :meth:`streams.log.events.EventLog.append_events`."""
        on_appended(self._append_each(topic, appends))

    def _append_each(self, topic: str, appends: Sequence[EventAppend]) -> Sequence[AppendOutcome]:
        """The outcome of each append. A history that cannot be read, as it is damaged, rolls the
        transaction back, so the other appends are written in transactions without it."""
        error: LogError
        try:
            return self._append(topic, appends)
        except LogError as found:
            error = found
        except (msgspec.DecodeError, ValueError) as found:
            error = _changed_tables(topic, found)
        if len(appends) == 1 or type(error) not in (LogError, Fatal):
            return [error] * len(appends)
        middle = len(appends) // 2
        first = self._append_each(topic, appends[:middle])
        return [*first, *self._append_each(topic, appends[middle:])]

    def _append(self, topic: str, appends: Sequence[EventAppend]) -> Sequence[AppendOutcome]:
        for _ in range(2):
            outcomes = self._write(topic, self._known_numbers(topic), appends)
            if outcomes is not None:
                self._database.shared_file.notify([topic_event(topic)])
                return outcomes
            self._numbers.pop(topic, None)  # it was deleted, and perhaps created anew
        raise NotFound(f"topic {topic!r} is being deleted")

    def _write(
        self, topic: str, numbers: list[int], appends: Sequence[EventAppend]
    ) -> list[AppendOutcome] | None:
        """The outcome of each append; None if the topic has other partitions by now."""
        outcomes: list[Any] = [self._size_error(topic, append) for append in appends]
        partitions = [partition_for(append.key, "", len(numbers)) for append in appends]
        names = [
            (numbers[partition], append.key)
            for partition, append in zip(partitions, appends, strict=True)
        ]
        now = int(self._database.clock.time() * 1e6)
        with self._database.write() as db:
            if not _has_partition(db, topic, numbers[0]):
                return None
            histories = self._load_heads(db, set(names))
            runs: dict[int, _Run] = {}
            again: list[int] = []
            for index, append in enumerate(appends):
                if outcomes[index] is not None:
                    continue
                history = histories[names[index]]
                verdict = judge(append, history)
                if isinstance(verdict, Refused):
                    outcomes[index] = verdict
                elif verdict == "appended":
                    again.append(index)
                else:
                    history.add(append)
                    number = names[index][0]
                    run = runs.get(number) or runs.setdefault(number, _Run())
                    run.indexes.append((index, len(run.records)))
                    run.records += append.records
            if runs:
                written = write_blocks(
                    db,
                    topic,
                    [
                        NewBlocks(number, blocks.encode_blocks(run.records))
                        for number, run in runs.items()
                    ],
                    now,
                )
                if written is None:
                    return None
                for (number, run), where in zip(runs.items(), written, strict=True):
                    self._write_run(db, number, run, where, appends)
                    for index, start in run.indexes:
                        first = where.first_offset + start
                        offsets = tuple(range(first, first + len(appends[index].records)))
                        outcomes[index] = Appended(partitions[index], offsets)
                _write_heads(db, histories)
            for index in again:
                offsets = _offsets_of(db, names[index][0], appends[index])
                outcomes[index] = Appended(partitions[index], offsets)
        return outcomes

    def _size_error(self, topic: str, append: EventAppend) -> TooLarge | None:
        limit = self._database.settings.max_record
        for record in append.records:
            size = blocks.record_size(record)
            if size > limit:
                return TooLarge(
                    f"{topic}: an event has {size} bytes, {limit} are allowed (?max_record= of the "
                    "URL)"
                )
        return None

    @staticmethod
    def _load_heads(
        db: SqliteConnection, wanted: set[tuple[int, bytes]]
    ) -> dict[tuple[int, bytes], _PendingHistory]:
        asked = _json((number, key.hex()) for number, key in wanted)
        ((rows,),) = db.fetch_rows(_SELECT_HEADS, (asked,))
        found = {
            (row.number, bytes.fromhex(row.key)): Head(
                Base(row.version, row.last_id), bool(row.final)
            )
            for row in _decode_heads(rows)
        }
        return {name: _PendingHistory(db, *name, found.get(name, EMPTY)) for name in wanted}

    @staticmethod
    def _write_run(
        db: SqliteConnection,
        number: int,
        run: _Run,
        where: WrittenRun,
        appends: Sequence[EventAppend],
    ) -> None:
        """Write one partition's appends to the tables by key."""
        values: list[Any] = []
        causes: list[tuple[Any, ...]] = []
        refusals: list[tuple[Any, ...]] = []
        for index, start in run.indexes:
            append = appends[index]
            key, version, offset = append.key, append.base.version, where.first_offset + start
            if append.is_refusal:
                refusals.append((number, key.hex(), append.records[0].id, version, offset))
            else:
                for place, record in enumerate(append.records):
                    data = _pack((offset + place, where.time, record.value, record.headers))
                    values += (number, key, version + place + 1, record.id, data)
            if append.cause:
                cause = append.cause.encode("utf-8", "surrogateescape").hex()
                count = 0 if append.is_refusal else len(append.records)
                causes.append((number, key.hex(), cause, version + 1, count))
        width = _INSERT_EVENT.count("?")
        for first in range(0, len(values), width * _INSERT_ROWS):
            chunk = values[first : first + width * _INSERT_ROWS]
            db.execute(_INSERT_EVENT + ", (?, ?, ?, ?, ?)" * (len(chunk) // width - 1), chunk)
        if causes:
            db.execute(_INSERT_CAUSES, (_json(causes),))
        if refusals:
            db.execute(_INSERT_REFUSALS, (_json(refusals),))

    # -- reading

    def read(self, topic: str, requests: Sequence[HistoryRequest]) -> list[History]:
        """See :meth:`streams.log.events.EventLog.read_histories`.

        :raises LogError: a row is not one that this log wrote.
        """
        try:
            for _ in range(2):
                found = self._read(topic, self._known_numbers(topic), requests)
                if found is not None:
                    return found
                self._numbers.pop(topic, None)  # it was deleted, and perhaps created anew
            raise NotFound(f"topic {topic!r} is being deleted")
        except InvalidValue:
            raise
        except (msgspec.DecodeError, ValueError) as error:
            raise _changed_tables(topic, error) from error

    def _read(
        self, topic: str, numbers: list[int], requests: Sequence[HistoryRequest]
    ) -> list[History] | None:
        """The histories; None if the topic has other partitions by now."""
        partitions = [partition_for(request.key, "", len(numbers)) for request in requests]
        asked = _json(
            (
                numbers[partition],
                request.key.hex(),
                request.after.version,
                request.cause.encode("utf-8", "surrogateescape").hex() or None,
                request.fingerprint or None,
            )
            for partition, request in zip(partitions, requests, strict=True)
        )
        with self._database.read(snapshot=True) as db:
            if not _has_partition(db, topic, numbers[0]):
                return None
            ((encoded,),) = db.fetch_rows(_SELECT_REQUESTS, (asked,))
            rows = {row.place: row for row in _decode_requests(encoded)}
            found = [
                self._begin(db, numbers[partition], partition, request, rows.get(index))
                for index, (partition, request) in enumerate(zip(partitions, requests, strict=True))
            ]
            events = self._read_events(db, numbers, requests, found)
        return [
            history._replace(events=events.get(index, ())) for index, history in enumerate(found)
        ]

    @staticmethod
    def _begin(
        db: SqliteConnection,
        number: int,
        partition: int,
        request: HistoryRequest,
        row: _RequestRow | None,
    ) -> History:
        """A history without its events."""
        if row is None:
            return History(partition, (), EMPTY, is_truncated=request.after != EMPTY.base)
        head = Head(Base(row.version, row.last_id), bool(row.final))
        caused = None
        if row.caused_version is not None and row.caused_count is not None:
            caused = Caused(row.caused_version, row.caused_count)
        after = request.after
        is_known = after in (head.base, EMPTY.base) or row.known_id == after.last_id
        if not is_known and not has_base(_PendingHistory(db, number, request.key, head), after):
            return History(partition, (), head, caused, is_truncated=True)
        snapshot = None
        if row.snapshot_version is not None:
            made_of = Base(row.snapshot_version, row.snapshot_id or "")
            is_of_history = row.made_of_id is not None and row.made_of_id == made_of.last_id
            if is_of_history or has_base(_PendingHistory(db, number, request.key, head), made_of):
                snapshot = StoredSnapshot(
                    request.key,
                    request.fingerprint,
                    made_of,
                    row.snapshot_offset or 0,
                    bytes.fromhex(row.snapshot_data),
                )
        return History(partition, (), head, caused, snapshot=snapshot)

    @staticmethod
    def _read_events(
        db: SqliteConnection,
        numbers: list[int],
        requests: Sequence[HistoryRequest],
        found: Sequence[History],
    ) -> dict[int, _SqliteEvents]:
        """The events of each history that has any, by its index."""
        indexes: list[int] = []
        asked: list[_EventRange] = []
        for index, (request, history) in enumerate(zip(requests, found, strict=True)):
            start = (history.snapshot.base if history.snapshot else request.after).version
            end = min(history.head.base.version, start + request.limit)
            if not history.is_truncated and end > start:
                indexes.append(index)
                number = numbers[history.partition]
                asked.append(_EventRange(number, request.key.hex(), start, end))
        ids, rows = _fetch_events(db, asked)
        events: dict[int, _SqliteEvents] = {}
        at = 0
        for index, each in zip(indexes, asked, strict=True):
            until = at + each.last - each.after
            key = requests[index].key
            events[index] = _SqliteEvents(each.after + 1, key, ids[at:until], rows[at:until])
            at = until
        return events

    # -- snapshots and lists

    def write_snapshots(self, topic: str, snapshots: Sequence[StoredSnapshot]) -> None:
        """See :meth:`streams.log.events.EventLog.write_snapshots`."""
        numbers = self._partition_numbers(topic)
        placed = [
            (numbers[partition_for(snapshot.key, "", len(numbers))], snapshot)
            for snapshot in snapshots
        ]
        with self._database.write(sync=False) as db:
            histories = self._load_heads(db, {(number, each.key) for number, each in placed})
            for number, snapshot in placed:
                history = histories[number, snapshot.key]
                if has_base(history, snapshot.base):
                    self._write_snapshot(db, number, history, snapshot)

    @staticmethod
    def _write_snapshot(
        db: SqliteConnection, number: int, history: _PendingHistory, snapshot: StoredSnapshot
    ) -> None:
        """Store a snapshot, unless a newer one of the same history is stored."""
        base = snapshot.base
        name = (number, snapshot.key, snapshot.fingerprint)
        kept = db.fetch_rows(_SELECT_SNAPSHOT_BASE, name)
        if kept:
            version, last_id = kept[0]
            is_newer = isinstance(version, int) and version > base.version
            if is_newer and has_base(history, Base(version, last_id)):
                return
        db.execute(_REPLACE_SNAPSHOT, (*name, *base, snapshot.offset, snapshot.data))

    def delete_snapshots(self, topic: str, fingerprint: str | None) -> int:
        """See :meth:`streams.log.events.EventLog.delete_snapshots`."""
        numbers = json.dumps(self._partition_numbers(topic))
        with self._database.write() as db:
            db.execute(
                "DELETE FROM streams_snapshots WHERE no IN (SELECT value FROM json_each(?))"
                " AND (?2 IS NULL OR fingerprint = ?2)",
                (numbers, fingerprint),
            )
            return db.changes()

    def list_snapshots(self, topic: str, key: bytes) -> list[StoredSnapshot]:
        """See :meth:`streams.log.events.EventLog.list_snapshots`."""
        numbers = self._partition_numbers(topic)
        with self._database.read() as db:
            rows = db.fetch_rows(
                'SELECT fingerprint, version, last_id, "offset", data FROM streams_snapshots'
                " WHERE no = ? AND key = ? ORDER BY fingerprint",
                (numbers[partition_for(key, "", len(numbers))], key),
            )
        return [
            StoredSnapshot(key, fingerprint, Base(version, last_id), offset, data)
            for fingerprint, version, last_id, offset, data in rows
            if isinstance(version, int) and isinstance(offset, int) and isinstance(data, bytes)
        ]

    def list_refusals(self, topic: str, key: bytes) -> list[StoredRefusal]:
        """See :meth:`streams.log.events.EventLog.list_refusals`."""
        numbers = self._partition_numbers(topic)
        with self._database.read() as db:
            rows = db.fetch_rows(
                'SELECT version, "offset" FROM streams_refusals'
                ' WHERE no = ? AND key = ? ORDER BY "offset"',
                (numbers[partition_for(key, "", len(numbers))], key),
            )
        return [
            StoredRefusal(version, offset)
            for version, offset in rows
            if isinstance(version, int) and isinstance(offset, int)
        ]

    def list_keys(
        self, topic: str, partition: int, after: bytes | None, limit: int
    ) -> list[HistoryKey]:
        """See :meth:`streams.log.events.EventLog.list_keys`."""
        numbers = self._partition_numbers(topic)
        if not 0 <= partition < len(numbers):
            raise NotFound(
                f"topic {topic!r} has {len(numbers)} partitions, so it has no partition {partition}"
            )
        with self._database.read() as db:
            rows = db.fetch_rows(
                "SELECT key, version, last_id, final FROM streams_histories"
                " WHERE no = ?1 AND (?2 IS NULL OR key > ?2) ORDER BY key LIMIT ?3",
                (numbers[partition], after, limit),
            )
        return [
            HistoryKey(key, Head(Base(version, last_id), bool(final)))
            for key, version, last_id, final in rows
        ]

    def totals(self, topic: str) -> EventTotals:
        """See :meth:`streams.log.events.EventLog.event_totals`."""
        numbers = json.dumps(self._partition_numbers(topic))
        within = "WHERE no IN (SELECT value FROM json_each(?))"
        with self._database.read(snapshot=True) as db:
            ((keys, events),) = db.fetch_rows(
                f"SELECT count(*), total(version) FROM streams_histories {within}",  # noqa: S608
                (numbers,),
            )
            ((causes, cause_bytes),) = db.fetch_rows(
                "SELECT count(*), total(length(key) + length(cause) + 10)"  # noqa: S608
                f" FROM streams_causes {within}",
                (numbers,),
            )
            snapshots = db.fetch_rows(
                "SELECT fingerprint, count(*) FROM streams_snapshots"  # noqa: S608
                f" {within} GROUP BY fingerprint",
                (numbers,),
            )
        return EventTotals(keys, int(events), causes, int(cause_bytes), Counter(dict(snapshots)))


def _write_heads(db: SqliteConnection, histories: dict[tuple[int, bytes], _PendingHistory]) -> None:
    """Write the new ends of the histories that were appended to."""
    rows = [
        (number, key.hex(), *history.head.base, int(history.head.is_final))
        for (number, key), history in histories.items()
        if history.new_ids or history.new_refusals
    ]
    db.execute(_UPSERT_HEADS, (_json(rows),))


def _changed_tables(topic: str, error: Exception) -> LogError:
    """The error for rows that this log did not write."""
    return LogError(f"{topic}: another program has changed the tables of its histories: {error}")


def _has_partition(db: SqliteConnection, topic: str, number: int) -> bool:
    """Whether a partition's number is still the topic's. No number is used twice."""
    return db.fetch_rows(_SELECT_TOPIC, (number,)) == [(topic,)]


def _json(rows: Iterable[tuple[Any, ...]]) -> str:
    return _encode_json(list(rows)).decode()


def _offsets_of(db: SqliteConnection, number: int, append: EventAppend) -> tuple[int, ...]:
    """The offsets of the records of an append that was written before."""
    if append.is_refusal:
        rows = db.fetch_rows(
            'SELECT "offset" FROM streams_refusals WHERE no = ? AND key = ? AND id = ?',
            (number, append.key, append.records[0].id),
        )
    else:
        version = append.base.version
        last = version + len(append.records)
        _, events = _fetch_events(db, [_EventRange(number, append.key.hex(), version, last)])
        return tuple(row.offset for row in events)
    return tuple(offset for (offset,) in rows)


def _fetch_events(
    db: SqliteConnection, asked: Sequence[_EventRange]
) -> tuple[list[str], list[_EventData]]:
    """The IDs of events and the events, in order.

    :param asked: ranges of events that are in the file.
    :raises Fatal: the file is damaged.
    """
    if not asked:
        return [], []
    ((ids, data),) = db.fetch_rows(_SELECT_EVENTS, (_json(asked),))
    wanted = sum(each.last - each.after for each in asked)
    try:
        # The header of a MessagePack array with that many elements.
        rows = _unpack_events(b"\xdd" + wanted.to_bytes(4, "big") + (data or b""))
        found = _decode_ids(ids)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _damaged_events(error) from error
    if len(found) != wanted:
        raise _damaged_events(f"{len(found)} of {wanted} are there")
    return found, rows


def _damaged_events(reason: object) -> Fatal:
    return Fatal(f"the events of a history are damaged: {reason}; restore a backup")


def _id_at(db: SqliteConnection, number: int, key: bytes, version: int) -> str | None:
    rows = db.fetch_rows(
        "SELECT id FROM streams_events WHERE no = ? AND key = ? AND version = ?",
        (number, key, version),
    )
    return rows[0][0] if rows else None


def _refusal(db: SqliteConnection, number: int, key: bytes, record_id: str) -> int | None:
    rows = db.fetch_rows(
        "SELECT version FROM streams_refusals WHERE no = ? AND key = ? AND id = ?",
        (number, key, record_id),
    )
    return rows[0][0] if rows else None
