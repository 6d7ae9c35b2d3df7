"""The nesting depth of a document, checked without recursion and mostly without scanning it.

The decoders written in C recurse once per level, on the stack of the calling thread. Their
own guard is the interpreter's, and differs: about 1,000 levels on Python 3.11, several thousand on
3.12 and 3.13 (up to 512 bytes of stack per level, which a small thread does not have), as many as
the stack holds on 3.14. So depth is bounded here, before a decoder sees the document, at a level
that is safe on all of them.

Theory of operation. No test may cost much on an ordinary message, and each is an upper bound, so
the first that passes settles the matter:

1. A level needs at least one byte: a document no longer than the limit is not deeper.
2. Only openers nest: count them, at the speed of C. An object costs four bytes per level
   (``{"":``), so if ``[`` is rare a JSON document's length decides again.
3. Only then follow the nesting. For JSON: cut the strings out and sum up the brackets, in chunks
   and in bulk operations. For MessagePack, whose containers give the number of their items, walk
   from item to item.

None of this needs the document to be well formed. At the first malformed byte the decoder stops
descending, and up to there the levels counted here are exactly the decoder's.
"""

from __future__ import annotations

from array import array
from itertools import accumulate

_CHUNK = 1 << 16

_DEPTH_CHANGES = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
"""Brackets as signed bytes: an opener is 1, a closer -1."""

_NOT_STRUCTURAL = bytes(byte for byte in range(256) if byte not in b'[]{}"')


def json_is_deeper(data: bytes, limit: int) -> bool:
    """Whether a JSON document nests deeper than ``limit`` (its outermost array is level 1)."""
    size = len(data)
    if size <= limit:
        return False
    # If arrays are few, finding one after the other is ten times as fast as counting.
    arrays, position = 0, data.find(91)
    while position >= 0:
        arrays += 1
        if arrays == 8:
            arrays = data.count(b"[")
            break
        position = data.find(91, position + 1)
    if arrays + (size - arrays + 3) // 4 <= limit or arrays + data.count(b"{") <= limit:
        return False
    depth = 0
    in_string = False  # a string
    escaped = False  # whether a backslash at the end of the last chunk escapes the first byte
    for start in range(0, size, _CHUNK):
        chunk = data[start + escaped : start + _CHUNK]
        escaped = False
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"")
            escaped = chunk.endswith(b"\\")
            chunk = chunk.replace(b'\\"', b"")
        # Two quotes with no bracket between them do not change the state around them.
        chunk = chunk.translate(_DEPTH_CHANGES, _NOT_STRUCTURAL).replace(b'""', b"")
        pieces = chunk.split(b'"')
        steps = array("b", b"".join(pieces[in_string::2]))
        in_string ^= len(pieces) % 2 == 0
        if max(accumulate(steps, initial=depth)) > limit:
            return True
        depth += sum(steps)
    return False


_CONTAINERS = frozenset(range(0x80, 0xA0)) | frozenset(range(0xDC, 0xE0))
_NO_CONTAINERS = bytes(byte for byte in range(256) if byte not in _CONTAINERS)


def _fixed_sizes() -> list[int]:
    """The size of an item by its first byte, 0 if a length or items follow."""
    sizes = [0] * 256
    for byte in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        sizes[byte] = 1  # small integers, nil, false, true
    for byte in range(0xA0, 0xC0):
        sizes[byte] = 1 + byte - 0xA0  # short strings
    for byte, size in {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.items():
        sizes[byte] = 1 + size  # floats, unsigned integers
    for byte, size in {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}.items():
        sizes[byte] = 1 + size  # signed integers
    for byte, size in {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}.items():
        sizes[byte] = 2 + size  # extensions of a fixed size, with their type
    return sizes


_FIXED_SIZES = _fixed_sizes()
_SIZED_CONTAINERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Arrays and maps: bytes of their count, items per element."""
_SIZED_VALUES = {
    first + power: (1 << power, besides)
    for first, besides in ((0xC4, 0), (0xC7, 1), (0xD9, 0))
    for power in range(3)
}
"""Binaries, extensions and strings: bytes of their length, additional bytes."""


def msgpack_is_deeper(data: bytes, limit: int) -> bool:
    """Whether a MessagePack document nests deeper than ``limit`` (keys of maps nest too)."""
    size = len(data)
    if size <= limit or len(data.translate(None, _NO_CONTAINERS)) <= limit:
        return False
    items_left_outside: list[int] = []  # items still to come in the containers around this one
    items_left = 1
    position = 0
    while position < size:
        byte = data[position]
        step = _FIXED_SIZES[byte]
        if step:
            position += step
        elif byte in _SIZED_VALUES:
            width, extra = _SIZED_VALUES[byte]
            length = int.from_bytes(data[position + 1 : position + 1 + width], "big")
            position += 1 + width + extra + length
        elif byte in _CONTAINERS:
            if byte in _SIZED_CONTAINERS:
                width, each = _SIZED_CONTAINERS[byte]
                items = int.from_bytes(data[position + 1 : position + 1 + width], "big") * each
                position += width
            else:
                items = byte - 0x90 if byte >= 0x90 else 2 * (byte - 0x80)
            position += 1
            items_left_outside.append(items_left)
            if len(items_left_outside) > limit:
                return True
            items_left = items + 1
        else:
            return False  # 0xc1 is never used
        items_left -= 1
        while not items_left:
            if not items_left_outside:
                return False
            items_left = items_left_outside.pop() - 1
    return False
