"""Messages as they are stored: a block of consecutive messages is one row, its fields are columns.

Theory of operation
-------------------
The driver gives up Python's global lock around every step of a statement, and whoever needs the
processor meanwhile keeps it for up to the interpreter's switch interval. With a row for each
message, a batch of a thousand is a thousand steps: beside *one* busy thread (an event loop, a
handler) reading fell from 1,500,000 to 5,000 messages a second and writing to 800. So messages are
stored in blocks, a poll fetches several blocks in one step, and an append writes them in one
(reading 600,000, writing 40,000 in batches of 1,000 and ten times that in batches of 10,000).
msgspec makes the columns that a :class:`~streams.message.Batch` consists of in one call, so that
this is also faster than rows when nothing else runs. Kafka's record batches are the same idea.

A block is a MessagePack array (:class:`Block`). Within a partition blocks are in order and do
not overlap; a message's offset is the block's plus its index. Where a block begins is nobody's
business: small ones at a partition's end are merged as they add up (:func:`merge`), and a reader
that stands in the middle of one is not disturbed.

The ``ids`` are identities, as deduplication wants them. The headers are kept apart, undecoded
until somebody asks. Text that is no valid Unicode (an ID or header name from a foreign log, kept
by surrogates) cannot stand in a MessagePack string and goes to ``odd``, as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from streams.errors import Fatal
from streams.message import ID, REDRIVE, SOURCE, Batch, Headers, Record, identity, text

MESSAGES = 1024
"""Messages in a block, at most."""

BYTES = 512 << 10
"""Bytes of a block, about; a single larger message makes a larger block."""

SMALL_MESSAGES = 64
SMALL_BYTES = 8 << 10
"""A block below both is small, and merged when :data:`SMALL_MESSAGES` of them stand in a row."""

_NONE = msgspec.Raw(b"\xc0")


class Block(msgspec.Struct, array_like=True, gc=False):
    """The columns of a block; all lists are equally long."""

    ids: list[str | None]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: msgspec.Raw = _NONE
    """A list with each message's header pairs or nil, or nil where no message has any."""
    times: list[int] | None = None
    """Microseconds; None: all have the block's own."""
    odd: dict[int, tuple[bytes, list[tuple[bytes, bytes | None]]]] | None = None
    """By index, ID and headers that are not valid text."""


_HeaderList = list[list[tuple[str, bytes | None]] | None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Block).decode
_decode_headers = msgspec.msgpack.Decoder(_HeaderList | None).decode
_DAMAGE = (msgspec.MsgspecError, UnicodeDecodeError, IndexError)
"""What decoding a block raises that is not one of ours."""
_SOURCE, _REDRIVE = SOURCE.encode(), REDRIVE.encode()


class Encoded(NamedTuple):
    """A block about to be written."""

    messages: int
    data: bytes


def encode(records: Sequence[Record]) -> bytes:
    """One block of these records."""
    headers = [record.headers or None for record in records]
    block = Block(
        [record.id or None for record in records],
        [record.key for record in records],
        [record.value for record in records],
    )
    try:
        if any(headers):
            packed = _encode(headers)
            block.headers = msgspec.Raw(packed)
            if _SOURCE in packed or _REDRIVE in packed:
                block.ids = [_identity(record) for record in records]
        return _encode(block)
    except UnicodeEncodeError:
        return _encode(_with_odd(records))


def encode_all(records: Sequence[Record]) -> list[Encoded]:
    """As few blocks of bounded size as these records need."""
    blocks: list[Encoded] = []
    for start in range(0, len(records), MESSAGES):
        part = records[start : start + MESSAGES]
        data = encode(part)
        if len(data) <= BYTES or len(part) == 1:
            blocks.append(Encoded(len(part), data))
        else:
            blocks += [Encoded(len(few), encode(few)) for few in _by_size(part)]
    return blocks


def _by_size(records: Sequence[Record]) -> Iterable[Sequence[Record]]:
    start = size = 0
    for index, record in enumerate(records):
        length = (
            size_of(record)
            + len(record.id)
            + sum(len(n) + len(v or b"") for n, v in record.headers)
        )
        if index > start and size + length > BYTES:
            yield records[start:index]
            start, size = index, 0
        size += length
    yield records[start:]


def size_of(record: Record) -> int:
    """Bytes of key and value."""
    return len(record.key or b"") + len(record.value or b"")


def _identity(record: Record) -> str | None:
    found = {name: value for name, value in record.headers if name in (SOURCE, REDRIVE)}
    if not record.id or not found:
        return record.id or None
    source, redrive = (text(found.get(name) or b"") for name in (SOURCE, REDRIVE))
    return identity(record.id, source, redrive)


def _with_odd(records: Sequence[Record]) -> Block:
    """A block in which what is not valid text stands apart."""
    ids: list[str | None] = []
    headers: list[Headers | None] = []
    odd: dict[int, tuple[bytes, list[tuple[bytes, bytes | None]]]] = {}
    for index, record in enumerate(records):
        id = _identity(record)
        try:
            _encode((id, record.headers))
        except UnicodeEncodeError:
            pairs = [(_bytes(name), value) for name, value in record.headers]
            odd[index] = (_bytes(id or ""), pairs)
            ids.append(None)
            headers.append(None)
        else:
            ids.append(id)
            headers.append(record.headers or None)
    return Block(
        ids,
        [record.key for record in records],
        [record.value for record in records],
        msgspec.Raw(_encode(headers)),
        odd=odd,
    )


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def decode(data: bytes | memoryview) -> Block:
    """The block in a row.

    :raises Fatal: it is damaged.
    """
    try:
        block = _decode(data)
        for index, (id, _) in (block.odd or {}).items():
            block.ids[index] = id.decode("utf-8", "surrogatepass") or None
    except _DAMAGE as error:
        raise _damaged(error) from error
    # A Raw keeps all of the data it was cut from, the values included.
    block.headers = block.headers.copy() if len(memoryview(block.headers)) > 1 else _NONE
    return block


def _damaged(error: Exception) -> Fatal:
    return Fatal(f"a block of messages is damaged: {error}; restore a backup")


def _headers(block: Block) -> Sequence[Headers | None] | None:
    """Each message's headers but the ID, None where none has any."""
    try:
        decoded: list[Headers | None] | None = _decode_headers(block.headers)
        if decoded is None or not block.odd:
            return decoded
        for index, (_, pairs) in block.odd.items():
            decoded[index] = [
                (name.decode("utf-8", "surrogatepass"), value) for name, value in pairs
            ]
    except _DAMAGE as error:
        raise _damaged(error) from error
    return decoded


def merge(rows: Sequence[tuple[int, int, bytes]]) -> bytes:
    """One block of several that follow each other; each one's count, time and data."""
    whole = Block([], [], [], times=[])
    headers: list[Headers | None] = []
    odd: dict[int, tuple[bytes, list[tuple[bytes, bytes | None]]]] = {}
    for count, time, data in rows:
        block = _decode(data)
        odd.update({len(whole.ids) + index: found for index, found in (block.odd or {}).items()})
        whole.ids += block.ids
        whole.keys += block.keys
        whole.values += block.values
        headers += _decode_headers(block.headers) or [None] * count
        whole.times = [*(whole.times or ()), *(block.times or [time] * count)]
    if any(headers) or odd:
        whole.headers = msgspec.Raw(_encode(headers))
    whole.odd = odd or None
    return _encode(whole)


class Slice(NamedTuple):
    """Some messages of one block, as they go into a batch."""

    first: int
    """The offset of the block's first message."""
    time: int
    block: Block
    low: int
    high: int


class _Rest(NamedTuple):
    """What a batch keeps of a slice to look things up in: all but keys and values, which a
    batch must be able to let go of."""

    low: int
    high: int
    time: int
    block: Block


class StoredBatch(Batch):
    """A batch out of blocks; headers and times are made when the first of them is asked for."""

    __slots__ = ("_moments", "_pairs", "_rest")

    def __init__(
        self, topic: str, partition: int, slices: Sequence[Slice], assignment: Any = None
    ) -> None:
        ids: list[str | None] = []
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        offsets: Sequence[int] = ()
        self._rest: list[_Rest] = []
        self._pairs: list[Headers | None] = []
        self._moments: list[int] = []
        for first, time, block, low, high in slices:
            offsets = _join(offsets, range(first + low, first + high))
            self._rest.append(_Rest(low, high, time, Block([], [], [], *_apart(block))))
            if not ids and high - low == len(block.ids):
                ids, keys, values = block.ids, block.keys, block.values
            else:
                ids += block.ids[low:high]
                keys += block.keys[low:high]
                values += block.values[low:high]
        super().__init__(topic, partition, offsets, keys, values, ids, assignment=assignment)

    def headers(self, index: int) -> Headers:
        """The headers of one message, the ID first."""
        found = self.extra_headers(index)
        id = self.ids[index]
        return found if id is None else ((ID, _wire(id.partition("\0")[0])), *found)

    def extra_headers(self, index: int) -> Headers:
        """The headers of one message without the ID."""
        if not self._pairs:
            for low, high, _, block in self._rest:
                self._pairs += (_headers(block) or [None] * high)[low:high]
        return self._pairs[index] or ()

    def time(self, index: int) -> float:
        """When the log took one message, in seconds since the epoch."""
        if not self._moments:
            for low, high, time, block in self._rest:
                self._moments += block.times[low:high] if block.times else [time] * (high - low)
        return self._moments[index] / 1e6


def _apart(block: Block) -> tuple[Any, Any, Any]:
    return block.headers, block.times, block.odd


def _join(offsets: Sequence[int], more: range) -> Sequence[int]:
    """Ranges stay ranges where there is no gap."""
    if not offsets:
        return more
    if isinstance(offsets, range) and offsets.stop == more.start:
        return range(offsets.start, more.stop)
    return [*offsets, *more]


def _wire(id: str) -> bytes:
    try:
        return id.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _bytes(id)
