"""Entries as Redis sends them, ``[[id, [field, value, …]], …]``, made into columns.

Our own entries have the fields ``value``, ``key`` and one for each header, the message ID
(``ce_id``) first: ``XADD orders * value '{"n":1}' key k1 ce_id 7f3a…``. A tombstone has no
``value``, a keyless message no ``key``. A header without a value is the field ``null:name``, empty;
one whose name would be mistaken for any of these is written as ``header:name``.

An entry that another program wrote is read as one of ours if it has a ``value`` field; without one
(and without a ``ce_id``), its value is the JSON object of all its fields as text, so that ``XADD
orders * amount 5 currency EUR`` is ``{"amount":"5","currency":"EUR"}``; its ``key`` field, if it
has one, is its key too.

How an entry is read depends on the names of its fields alone, and neighbours mostly have the same
names. So a whole batch is turned into columns at C speed, and checked to be uniform by counting;
only where it is not, entries are read one by one. Entry IDs stay bytes until an offset is read:
turning each into a 128-bit integer would cost as much as all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, overload

import msgspec

from streams.log.redis.keys import RedisEntryId, offset_of, offsets_of
from streams.message import (
    ALL_READABLE,
    ID,
    IDENTITY_HEADERS,
    Batch,
    Headers,
    Record,
    identity_of,
    make_identity,
    text,
)

EntryFields = list[bytes]
"""The fields of one entry: name, value, name, value, …"""

RawEntries = list[tuple[bytes, EntryFields]]
"""Entries as Redis sends them."""

_VALUE, _KEY = b"value", b"key"
_ID = ID.encode()
_IDENTITY_FIELDS = tuple(name.encode() for name in IDENTITY_HEADERS)
_ESCAPE_PREFIX, _NULL_PREFIX = "header:", "null:"
_RESERVED = ("value", "key", ID)
_FULL_FIELDS = (_VALUE, _KEY, _ID)
_KEYLESS_FIELDS = (_VALUE, _ID)
_TOMBSTONE_FIELDS = (_KEY, _ID)
_ID_FIELD_ONLY = (_ID,)


class FieldLayout(NamedTuple):
    """Where the fields are in the row of an entry: the index of each one's value, or -1."""

    value: int
    key: int
    id: int
    beside_id: tuple[int, ...]
    """The indexes of the headers :data:`~streams.message.IDENTITY_HEADERS`."""
    headers: tuple[tuple[str, int], ...]
    """The names of the headers, and the indexes of their values; -1: the header has no value."""

    @property
    def is_foreign(self) -> bool:
        """Whether the entry was written neither by this toolkit nor in its format."""
        return self.value < 0 and self.id < 0

    @property
    def id_is_identity(self) -> bool:
        """Whether the message ID alone is the identity."""
        return max(self.beside_id) < 0


_layouts: dict[tuple[bytes, ...], FieldLayout] = {}
_MAX_LAYOUTS = 1_000
"""Layouts in the cache; field names come from outside, so it is bounded."""


def layout_of(names: tuple[bytes, ...]) -> FieldLayout:
    """The layout of entries whose fields have these names."""
    found = _layouts.get(names)
    if found is None:
        value_index: dict[bytes, int] = {}
        headers: list[tuple[str, int]] = []
        for number, name in enumerate(names):
            index = 2 * number + 1
            if name not in value_index or name in _IDENTITY_FIELDS:
                value_index[name] = index
                if name in (_VALUE, _KEY):
                    continue
            header = text(name)
            if header.startswith(_NULL_PREFIX):
                headers.append((header[len(_NULL_PREFIX) :], -1))
            else:
                headers.append((header.removeprefix(_ESCAPE_PREFIX), index))
        value, key, id = (value_index.get(name, -1) for name in (_VALUE, _KEY, _ID))
        beside_id = tuple([value_index.get(name, -1) for name in _IDENTITY_FIELDS])
        found = FieldLayout(value, key, id, beside_id, tuple(headers))
        if found.is_foreign:
            found = found._replace(headers=())
        if len(_layouts) >= _MAX_LAYOUTS:
            _layouts.clear()
        _layouts[names] = found
    return found


def encode_fields(record: Record) -> tuple[tuple[bytes | str, ...], list[bytes], int]:
    """The names and values of a record's fields, and which of the values is its identity.

    Where the message ID alone is not the identity (there is a source, a redrive count or a first
    position), the identity is one more value, which has no name and is not written.
    """
    names: tuple[bytes | str, ...]
    id = record.id.encode("utf-8", "surrogateescape")
    if record.value is not None and record.key is not None:
        names, values, identity_index = _FULL_FIELDS, [record.value, record.key, id], 2
    elif record.value is not None:
        names, values, identity_index = _KEYLESS_FIELDS, [record.value, id], 1
    elif record.key is not None:
        names, values, identity_index = _TOMBSTONE_FIELDS, [record.key, id], 1
    else:
        names, values, identity_index = _ID_FIELD_ONLY, [id], 0
    if record.headers:
        header_names: list[bytes | str] = []
        needs_identity = False
        for name, value in record.headers:
            if name in IDENTITY_HEADERS:
                needs_identity = True
            header_names.append(_field_name(name, value is None))
            values.append(b"" if value is None else value)
        names += tuple(header_names)
        if needs_identity:
            identity_index = len(values)
            values.append(identity_of_record(record).encode("utf-8", "surrogateescape"))
    return names, values, identity_index


@lru_cache(1_000)
def _field_name(header: str, is_null: bool) -> bytes | str:
    """The name of the field that a header is stored in."""
    if is_null:
        header = _NULL_PREFIX + header
    elif header in _RESERVED or header.startswith((_ESCAPE_PREFIX, _NULL_PREFIX)):
        header = _ESCAPE_PREFIX + header
    return header if header.isascii() else header.encode("utf-8", "surrogateescape")


def identity_of_record(record: Record) -> str:
    """The identity of a record, by which duplicates are found."""
    identity_headers = [header for header in record.headers if header[0] in IDENTITY_HEADERS]
    if not identity_headers:
        return record.id
    found = identity_of([(ID, record.id.encode("utf-8", "surrogateescape")), *identity_headers])
    return found or record.id


class EntryIdOffsets(Sequence[int]):
    """Entry IDs as offsets, converted when they are read."""

    __slots__ = ("__weakref__", "entry_ids")

    def __init__(self, entry_ids: Sequence[bytes]) -> None:
        self.entry_ids = entry_ids

    def __len__(self) -> int:
        return len(self.entry_ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        if isinstance(index, slice):
            return EntryIdOffsets(self.entry_ids[index])
        return offset_of(self.entry_ids[index])

    def __iter__(self) -> Iterator[int]:
        return iter(offsets_of(self.entry_ids))

    def __repr__(self) -> str:
        return f"<{len(self.entry_ids)} offsets>"


class RedisBatch(Batch):
    """A batch whose headers stay bytes, and whose offsets and times stay entry IDs, until read.

    Of a uniform batch only the columns are kept: the rows and their field names are a third of the
    reply, and the next batch reuses their memory, still in the CPU cache, if they are freed at
    once.
    """

    __slots__ = ("_fields", "_header_columns")

    offsets: EntryIdOffsets

    def __init__(
        self,
        topic: str,
        partition: int,
        rows: Sequence[tuple[bytes, EntryFields]],
        assignment: Any = None,
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.offsets = EntryIdOffsets([row[0] for row in rows])
        self.assignment = assignment
        self._headers = self._times = None
        self.unreadable = ALL_READABLE
        self._fields: list[EntryFields | None] | None = None
        self._header_columns: list[tuple[str, list[bytes | None] | None]] = []
        """The names and columns of the headers except the ID, if all entries have the same
        headers."""
        data = [row[1] for row in rows]
        if not self._fill_uniform(data):
            self._fill_one_by_one(data)

    def _fill_uniform(self, data: Sequence[EntryFields]) -> bool:
        """Make the columns if the entries are uniform; returns whether they are."""
        count = len(data)
        names = tuple(data[0][::2])
        found = layout_of(names)
        if found.is_foreign or not found.id_is_identity:
            return False
        try:
            columns = list(zip(*data, strict=True))
        except ValueError:  # entries of different lengths
            return False
        for name, column in zip(names, columns[::2], strict=True):
            if column.count(name) != count:
                return False
        absent: list[Any] = [None] * count
        self.values = list(columns[found.value]) if found.value > 0 else absent.copy()
        self.keys = list(columns[found.key]) if found.key > 0 else absent.copy()
        self._header_columns = [
            (name, list(columns[start]) if start > 0 else None)
            for name, start in found.headers
            if start != found.id
        ]
        if found.id < 0:
            self.ids = absent
            return True
        try:
            self.ids = list(map(bytes.decode, columns[found.id]))
        except UnicodeDecodeError:
            self.ids = list(map(text, columns[found.id]))
        if "" in self.ids:
            self.ids = [id or None for id in self.ids]
        return True

    def _fill_one_by_one(self, data: list[EntryFields]) -> None:
        """Make the columns entry by entry."""
        self._fields = [*data]
        self.keys, self.values, self.ids = [], [], []
        for row in data:
            found = layout_of(tuple(row[::2]))
            self.keys.append(row[found.key] if found.key > 0 else None)
            if found.is_foreign:
                self.values.append(fields_as_json(row))
            else:
                self.values.append(row[found.value] if found.value > 0 else None)
            if found.id > 0 and row[found.id]:
                beside = [text(row[at]) if at > 0 else None for at in found.beside_id]
                self.ids.append(make_identity(text(row[found.id]), *beside))
            else:
                self.ids.append(None)

    def headers(self, index: int) -> Headers:
        """The headers of one message; only the ID once the message was released."""
        if self._fields is None:
            id = self.ids[index]
            first = [] if id is None else [(ID, id.encode("utf-8", "surrogateescape"))]
            more = [
                (name, None if column is None else column[index])
                for name, column in self._header_columns
            ]
            return [*first, *more]
        row = self._fields[index]
        if row is None:
            return ()
        found = layout_of(tuple(row[::2]))
        return [(name, row[start] if start > 0 else None) for name, start in found.headers]

    def extra_headers(self, index: int) -> Headers:
        """The headers of one message; without the ID if all entries have the same fields."""
        if self._fields is None and not self._header_columns:
            return ()
        return self.headers(index)

    def time(self, index: int) -> float:
        """When the server appended the message, in seconds since the epoch: a part of its entry
        ID."""
        return (self.offsets[index] >> 64) / 1000

    def offset(self, index: int) -> int:
        """The offset; printed, it is the entry ID."""
        return RedisEntryId(self.offsets[index])

    def release(self, index: int) -> None:
        """Free the bytes of one settled message, including its headers."""
        self.keys[index] = self.values[index] = None
        if self._fields is not None:
            self._fields[index] = None
        for _, column in self._header_columns:
            if column is not None:
                column[index] = None


def fields_as_json(row: EntryFields) -> bytes:
    r"""The fields of a foreign entry as JSON; bytes that are not UTF-8 become ``\xNN``."""
    names = (name.decode("utf-8", "backslashreplace") for name in row[::2])
    values = (value.decode("utf-8", "backslashreplace") for value in row[1::2])
    return msgspec.json.encode(dict(zip(names, values, strict=True)))
