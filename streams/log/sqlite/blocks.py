"""Stored messages: a block of consecutive messages is one row, whose value has their fields as
columns.

Theory of operation
-------------------
The driver releases Python's global lock around every step of a statement, and another thread that
takes it keeps it for up to the interpreter's switch interval. With a row for each message, a batch
of a thousand is a thousand steps: beside *one* busy thread (an event loop, a handler) reading fell
from 1,500,000 to 5,000 messages a second and writing to 800. So messages are stored in blocks, a
poll fetches several blocks in one step, and an append writes them in one (reading 600,000, writing
40,000 in batches of 1,000 and ten times that in batches of 10,000). msgspec makes the columns that
a :class:`~streams.message.Batch` consists of in one call, so that this is also faster than rows
when nothing else runs. Kafka's record batches are the same idea.

A block is a MessagePack array (:class:`Block`). Within a partition blocks are in order and do
not overlap; a message's offset is the block's plus its index. Nothing depends on where a block
begins: small ones at a partition's end are merged (:func:`merge_blocks`), even if a reader's
position is in the middle of one.

The ``ids`` are the identities that deduplication compares. The headers are decoded when they are
first read. Text that is no valid Unicode (an ID or header name from a foreign log, kept by
surrogates) cannot be a MessagePack string and goes to ``invalid_text``, as bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from streams.errors import Fatal
from streams.message import (
    ID,
    IDENTITY_HEADERS,
    Batch,
    Headers,
    Record,
    make_identity,
    text,
)

BLOCK_MESSAGES = 1024
"""Messages in a block, at most."""

BLOCK_BYTES = 512 << 10
"""About how many bytes a block has at most; a single larger message makes a larger block."""

SMALL_MESSAGES = 64
SMALL_BYTES = 8 << 10
"""A block below both limits is small; :data:`SMALL_MESSAGES` consecutive ones are merged."""

_NIL = msgspec.Raw(b"\xc0")


class Block(msgspec.Struct, array_like=True, gc=False):
    """The columns of a block; all lists are equally long."""

    ids: list[str | None]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: msgspec.Raw = _NIL
    """A list with each message's header pairs or nil; or nil, if no message has any."""
    times: list[int] | None = None
    """The messages' times in microseconds; None: all have the block's."""
    invalid_text: dict[int, InvalidText] | None = None
    """What is not valid text, by the indexes of its messages."""


class InvalidText(NamedTuple):
    """The ID and the headers of a message in which something is not valid text."""

    id: bytes
    headers: list[tuple[bytes, bytes | None]]


_HeaderList = list[list[tuple[str, bytes | None]] | None]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Block).decode
_decode_headers = msgspec.msgpack.Decoder(_HeaderList | None).decode
_DECODE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, IndexError)
"""Exceptions of decoding a damaged block."""
_IDENTITY_NAMES = tuple(name.encode() for name in IDENTITY_HEADERS)


class EncodedBlock(NamedTuple):
    """A block about to be written."""

    messages: int
    data: bytes


class BlockRow(NamedTuple):
    """A row of ``streams_blocks``."""

    place: int
    """See :func:`streams.log.sqlite.schema.block_key`."""
    messages: int
    time: int
    """In microseconds since the epoch."""
    data: bytes


def encode_block(records: Sequence[Record]) -> bytes:
    """Encode these records as one block."""
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
            if any(name in packed for name in _IDENTITY_NAMES):
                block.ids = [_identity(record) for record in records]
        return _encode(block)
    except UnicodeEncodeError:
        return _encode(_block_with_invalid_text(records))


def encode_blocks(records: Sequence[Record]) -> list[EncodedBlock]:
    """Encode these records as as few blocks of bounded size as possible."""
    blocks: list[EncodedBlock] = []
    for start in range(0, len(records), BLOCK_MESSAGES):
        chunk = records[start : start + BLOCK_MESSAGES]
        data = encode_block(chunk)
        if len(data) <= BLOCK_BYTES or len(chunk) == 1:
            blocks.append(EncodedBlock(len(chunk), data))
        else:
            parts = _split_by_size(chunk)
            blocks += [EncodedBlock(len(part), encode_block(part)) for part in parts]
    return blocks


def _split_by_size(records: Sequence[Record]) -> Iterable[Sequence[Record]]:
    start = size = 0
    for index, record in enumerate(records):
        length = record_size(record) + len(record.id)
        length += sum(len(name) + len(value or b"") for name, value in record.headers)
        if index > start and size + length > BLOCK_BYTES:
            yield records[start:index]
            start, size = index, 0
        size += length
    yield records[start:]


def record_size(record: Record) -> int:
    """Bytes of the record's key and value."""
    return len(record.key or b"") + len(record.value or b"")


def _identity(record: Record) -> str | None:
    found = {name: value for name, value in record.headers if name in IDENTITY_HEADERS}
    if not record.id or not found:
        return record.id or None
    return make_identity(record.id, *(text(found.get(name) or b"") for name in IDENTITY_HEADERS))


def _block_with_invalid_text(records: Sequence[Record]) -> Block:
    """A block in which invalid text is kept apart."""
    ids: list[str | None] = []
    headers: list[Headers | None] = []
    invalid_text: dict[int, InvalidText] = {}
    for index, record in enumerate(records):
        id = _identity(record)
        try:
            _encode((id, record.headers))
        except UnicodeEncodeError:
            pairs = [(_surrogate_bytes(name), value) for name, value in record.headers]
            invalid_text[index] = InvalidText(_surrogate_bytes(id or ""), pairs)
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
        invalid_text=invalid_text,
    )


def _surrogate_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def decode_block(data: bytes | memoryview) -> Block:
    """The block stored in a row.

    :raises Fatal: the block is damaged.
    """
    try:
        block = _decode(data)
        for index, invalid in (block.invalid_text or {}).items():
            block.ids[index] = invalid.id.decode("utf-8", "surrogatepass") or None
    except _DECODE_ERRORS as error:
        raise _damaged_block(error) from error
    # A Raw keeps all of the data that it is a part of alive, including the values.
    block.headers = block.headers.copy() if len(memoryview(block.headers)) > 1 else _NIL
    return block


def _damaged_block(error: Exception) -> Fatal:
    return Fatal(f"a block of messages is damaged: {error}; restore a backup")


def _decoded_headers(block: Block) -> Sequence[Headers | None] | None:
    """Each message's headers except the ID; None if no message has any."""
    try:
        decoded: list[Headers | None] | None = _decode_headers(block.headers)
        if decoded is None or not block.invalid_text:
            return decoded
        for index, invalid in block.invalid_text.items():
            decoded[index] = [
                (name.decode("utf-8", "surrogatepass"), value) for name, value in invalid.headers
            ]
    except _DECODE_ERRORS as error:
        raise _damaged_block(error) from error
    return decoded


def merge_blocks(rows: Sequence[BlockRow]) -> bytes:
    """Merge consecutive blocks into one."""
    merged = Block([], [], [], times=[])
    headers: list[Headers | None] = []
    invalid_text: dict[int, InvalidText] = {}
    for row in rows:
        block, start = _decode(row.data), len(merged.ids)
        for index, found in (block.invalid_text or {}).items():
            invalid_text[start + index] = found
        merged.ids += block.ids
        merged.keys += block.keys
        merged.values += block.values
        headers += _decode_headers(block.headers) or [None] * row.messages
        merged.times = [*(merged.times or ()), *(block.times or [row.time] * row.messages)]
    if any(headers) or invalid_text:
        merged.headers = msgspec.Raw(_encode(headers))
    merged.invalid_text = invalid_text or None
    return _encode(merged)


class BlockSlice(NamedTuple):
    """Some messages of one block, as part of a batch."""

    first_offset: int
    """The offset of the block's first message."""
    time: int
    block: Block
    low: int
    high: int


class _SliceInfo(NamedTuple):
    """The part of a slice that a batch keeps for headers and times: a block without keys and
    values, which a batch must be able to release."""

    low: int
    high: int
    time: int
    block: Block


class SqliteBatch(Batch):
    """A batch of slices of blocks; headers and times are decoded when the first of them is read."""

    __slots__ = ("_header_pairs", "_slices", "_times_us")

    def __init__(
        self, topic: str, partition: int, slices: Sequence[BlockSlice], assignment: Any = None
    ) -> None:
        ids: list[str | None] = []
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        offsets: Sequence[int] = ()
        self._slices: list[_SliceInfo] = []
        self._header_pairs: list[Headers | None] = []
        self._times_us: list[int] = []
        for first, time, block, low, high in slices:
            offsets = _append_offsets(offsets, range(first + low, first + high))
            info = Block([], [], [], block.headers, block.times, block.invalid_text)
            self._slices.append(_SliceInfo(low, high, time, info))
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
        return found if id is None else ((ID, _id_bytes(id.partition("\0")[0])), *found)

    def extra_headers(self, index: int) -> Headers:
        """The headers of one message without the ID."""
        if not self._header_pairs:
            for each in self._slices:
                found = _decoded_headers(each.block) or [None] * each.high
                self._header_pairs += found[each.low : each.high]
        return self._header_pairs[index] or ()

    def may_have_header(self, part: bytes) -> bool:
        """Whether a header may have these bytes in its value: values are stored unchanged, so one
        search in the block's encoded headers decides."""
        return any(
            each.block.invalid_text or part in bytes(each.block.headers) for each in self._slices
        )

    def time(self, index: int) -> float:
        """When the log appended one message, in seconds since the epoch."""
        if not self._times_us:
            for each in self._slices:
                times = each.block.times or [each.time] * each.high
                self._times_us += times[each.low : each.high]
        return self._times_us[index] / 1e6


def _append_offsets(offsets: Sequence[int], more: range) -> Sequence[int]:
    """Append a range of offsets; ranges without a gap between them become one."""
    if not offsets:
        return more
    if isinstance(offsets, range) and offsets.stop == more.start:
        return range(offsets.start, more.stop)
    return [*offsets, *more]


def _id_bytes(id: str) -> bytes:
    try:
        return id.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return _surrogate_bytes(id)
