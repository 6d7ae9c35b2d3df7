"""Compression around any other codec, with Zstandard (RFC 8878).

A few bytes can declare, or expand to, gigabytes. These rules prevent that:

* a frame that declares its content's size is refused before anything is decompressed if that is
  over the limit, and libzstd enforces the declared size;
* one that does not is decompressed into a buffer no larger than the limit, or than its blocks can
  fill (a block holds at most 128 KiB), and fails when that is full;
* frames may follow one another (RFC 8878, 3.1) and share one limit; their ends are found from the
  headers of their blocks, so missing or extra bytes are noticed;
* the window that a frame may request is limited too: its memory is allocated before any content.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from typing_extensions import TypeForm

from stream_codecs.default import default_codec
from stream_codecs.error_mapping import ErrorContext, decode_error
from stream_codecs.errors import BindError, CodecError, DecodeError
from stream_codecs.limits import MAX_SIZE, size_error
from stream_codecs.protocol import Bound, Codec, Headers, Role
from stream_codecs.type_info import type_name

T = TypeVar("T")

_WINDOW = 8 << 20
"""The smallest window that RFC 8878 recommends every decoder to support."""

_BLOCK = 128 << 10
"""The largest decompressed size of one block (RFC 8878, 3.1.1.2.4)."""

_FRAMES = 1_000
"""The most frames in one message: a million empty ones would fit into a few megabytes."""

_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""After a first byte of 0x50 to 0x5f: the magic number of a frame that is not content."""

_RUN_LENGTH, _COMPRESSED = 1, 2
"""Types of blocks: one repeated byte, and compressed."""


def _import_zstandard() -> ModuleType:
    try:
        import zstandard
    except ImportError:
        raise BindError(
            "Zstd needs the package zstandard (the extra zstd): pip install zstandard"
        ) from None
    return zstandard


@dataclass(frozen=True, slots=True)
class Zstd:
    """Another codec's bytes, compressed.

    :param inner: the codec of the uncompressed bytes, which has limits of its own; the type's
        default codec unless given.
    :param level: from 1 (fast) to 22 (small); negative levels are faster still.
    :param max_size: the largest value after decompression, in bytes.
    :raises BindError: zstandard is not installed.
    """

    inner: Codec | None = None
    level: int = 3
    max_size: int = MAX_SIZE

    def __post_init__(self) -> None:
        top = _import_zstandard().MAX_COMPRESSION_LEVEL
        if not -100 <= self.level <= top:
            raise BindError(f"Zstd(level={self.level!r}): from -100 to {top}")
        if self.max_size < 1:
            raise BindError(f"Zstd(max_size={self.max_size!r}): at least 1 byte")

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """Encode and compress, decompress and decode values of ``type``.

        :raises BindError: the inner codec cannot encode the type.
        """
        codec = default_codec(type) if self.inner is None else self.inner
        context = ErrorContext("zstd", topic, role, type_name(type))
        contexts = _ContextPool(self.level, self.max_size)
        return _bind(codec.bind(type, topic=topic, role=role), context, contexts)


class _CorruptData(Exception):
    """A compressed value is corrupt; the text says how."""


class _ContextPool:
    """Compression contexts, one for each thread that compresses: they must not be shared, and are
    too expensive to create for every message. (``list.pop`` and ``append`` are atomic.)"""

    def __init__(self, level: int, max_size: int) -> None:
        self.level = level
        self.max_size = max_size
        self.zstandard = _import_zstandard()
        self.compressors: list[Any] = []
        self.decompressors: list[Any] = []

    def compress(self, data: bytes) -> bytes:
        try:
            context = self.compressors.pop()
        except IndexError:
            context = self.zstandard.ZstdCompressor(level=self.level)
        try:
            compressed: bytes = context.compress(data)
        finally:
            self.compressors.append(context)
        return compressed

    def decompress(self, data: bytes) -> bytes:
        """The decompressed bytes.

        :raises _CorruptData: the data is not a compressed value, or is too large.
        """
        if len(data) > self.max_size + (self.max_size >> 7) + 1024:  # Zstandard's worst case
            raise _CorruptData(f"{len(data)} bytes compressed; at most {self.max_size} are allowed")
        try:
            context = self.decompressors.pop()
        except IndexError:
            context = self.zstandard.ZstdDecompressor(max_window_size=max(_WINDOW, self.max_size))
        try:
            whole = self._decompress_single_frame(context, data)
            return whole or self._decompress_frames(context, data)
        except self.zstandard.ZstdError as exc:
            raise _CorruptData(f"not Zstandard's ({str(exc).rpartition(': ')[2]})") from None
        finally:
            self.decompressors.append(context)

    def _decompress_single_frame(self, context: Any, data: bytes) -> bytes | None:
        """The common case, by libzstd alone: one frame that declares its size."""
        try:
            if 0 < self.zstandard.frame_content_size(data) <= self.max_size:
                plain: bytes = context.decompress(data, allow_extra_data=False)
                return plain
        except self.zstandard.ZstdError:
            pass  # more frames, or broken: found out below
        return None

    def _decompress_frames(self, context: Any, data: bytes) -> bytes:
        pieces: list[bytes] = []
        bytes_left = self.max_size
        for frame, max_content in self._frames(data):
            declared = self.zstandard.frame_content_size(frame)
            if declared > bytes_left:
                raise self._too_large()
            if declared == 0 and max_content:  # libzstd is not called for these
                raise _CorruptData("more than its frame declares")
            try:
                most = max(1, min(bytes_left, max_content))
                piece = context.decompress(frame, max_output_size=most)
            except self.zstandard.ZstdError as exc:
                if max_content > bytes_left and "full frame" in str(exc):
                    raise self._too_large() from None
                raise
            bytes_left -= len(piece)
            if bytes_left < 0:
                raise self._too_large()
            pieces.append(piece)
        return b"".join(pieces)

    def _too_large(self) -> _CorruptData:
        return _CorruptData(f"more than {self.max_size} bytes when decompressed")

    def _frames(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Each frame, and the most bytes that its blocks can fill (RFC 8878, 3.1.1)."""
        if not data:
            raise _CorruptData("empty")
        position = 0
        for _ in range(_FRAMES):
            start, max_content = position, 0
            magic = data[position : position + 4]
            if magic == _MAGIC:
                header = data[position : position + 18]
                position += self.zstandard.frame_header_size(header)
                block = 0
                while not block & 1:  # the last one is marked
                    block = int.from_bytes(data[position : position + 3], "little")
                    kind, size = block >> 1 & 3, block >> 3
                    position += 3 + (1 if kind == _RUN_LENGTH else size)
                    max_content += _BLOCK if kind == _COMPRESSED else size
                    if position > len(data):
                        raise _CorruptData("ends too early")
                position += 4 * self.zstandard.get_frame_parameters(header).has_checksum
            elif len(magic) == 4 and magic[0] & 0xF0 == 0x50 and magic[1:] == _SKIPPABLE:
                position += 8 + int.from_bytes(data[position + 4 : position + 8], "little")
            else:
                raise _CorruptData(f"no Zstandard frame at byte {position}")
            if position > len(data):
                raise _CorruptData("ends too early")
            if magic == _MAGIC:
                yield data[start:position], max_content
            if position == len(data):
                return
        raise _CorruptData(f"more than {_FRAMES} frames")


def _bind(inner: Bound[Any], context: ErrorContext, pool: _ContextPool) -> Bound[Any]:
    def relabel(error: CodecError) -> None:
        error.codec = f"zstd+{error.codec}" if error.codec else "zstd"
        error.topic = context.topic
        error.role = context.role

    def encode(value: Any) -> bytes:
        try:
            plain = inner.encode(value)
        except CodecError as exc:
            relabel(exc)
            raise
        if reason := size_error(plain, pool.max_size):
            raise context.encode_error(reason)
        return pool.compress(plain)

    def decode(data: bytes, *headers: Headers) -> Any:
        try:
            plain = pool.decompress(data)
        except _CorruptData as exc:
            error = context.decode_error(data, str(exc))
        else:
            try:
                return inner.decode(plain, *headers)
            except Exception as exc:
                error = inner.explain(plain, exc)
            relabel(error)
            error.data = data
        try:
            raise error  # outside except: the original, with the payload, is not its context
        finally:
            del error

    def explain(data: bytes, exc: Exception) -> DecodeError:
        return decode_error(context, data, exc)

    return Bound(
        encode=encode,
        decode=decode,
        content_type="application/zstd",
        needs_headers=inner.needs_headers,
        explain=explain,
    )
