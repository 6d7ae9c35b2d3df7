"""Compression around any other codec, with Zstandard (RFC 8878).

A few bytes can declare, or quietly become, gigabytes. What keeps that from happening here:

* a frame that declares its content's size is refused before anything is decompressed if that is
  over the bound, and libzstd holds it to its word;
* one that does not is decompressed into a buffer no larger than the bound, or than its blocks can
  fill (a block holds at most 128 KiB), and fails when that is full;
* frames may follow one another (RFC 8878, 3.1) and share one bound; their ends are found from the
  headers of their blocks, so bytes cut off, or left over, are noticed;
* the window a frame may ask for is bounded too: memory for it is taken before any content.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from typing_extensions import TypeForm

from stream_codecs.default import default_codec
from stream_codecs.errors import BindError, CodecError, DecodeError
from stream_codecs.explain import Place, decode_error
from stream_codecs.limits import MAX_SIZE, excess
from stream_codecs.protocol import Bound, Codec, Headers, Role
from stream_codecs.shape import type_name

__all__ = ["Zstd"]

T = TypeVar("T")

_WINDOW = 8 << 20
"""The least window that RFC 8878 recommends every decoder to support."""

_BLOCK = 128 << 10
"""The most that one block decompresses to (RFC 8878, 3.1.1.2.4)."""

_FRAMES = 1_000
"""Frames in one message, at most: a million empty ones would fit into a few megabytes."""

_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x2a\x4d\x18"
"""Behind a first byte of 0x50 to 0x5f: a frame that is not content."""

_RUN, _COMPRESSED = 1, 2
"""Types of blocks: one byte repeated, compressed."""


def _library() -> ModuleType:
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

    :param inner: the codec of what is compressed, which has bounds of its own; the type's default
        codec unless given.
    :param level: from 1 (fast) to 22 (small); negative levels are faster still.
    :param max_size: bytes of one value after decompression.
    :raises BindError: zstandard is not installed.
    """

    inner: Codec | None = None
    level: int = 3
    max_size: int = MAX_SIZE

    def __post_init__(self) -> None:
        top = _library().MAX_COMPRESSION_LEVEL
        if not -100 <= self.level <= top:
            raise BindError(f"Zstd(level={self.level!r}): from -100 to {top}")
        if self.max_size < 1:
            raise BindError(f"Zstd(max_size={self.max_size!r}): at least 1 byte")

    def bind(self, type: TypeForm[T], *, topic: str, role: Role = "value") -> Bound[T]:
        """Encode and compress, decompress and decode values of ``type``.

        :raises BindError: the inner codec cannot carry the type.
        """
        codec = default_codec(type) if self.inner is None else self.inner
        place = Place("zstd", topic, role, type_name(type))
        contexts = _Contexts(self.level, self.max_size)
        return _bind(codec.bind(type, topic=topic, role=role), place, contexts)


class _Fault(Exception):
    """What is wrong with a compressed value."""


class _Contexts:
    """Compression contexts, one for each thread that is at it: they must not be shared, and are
    too expensive to make for every message. (``list.pop`` and ``append`` are atomic.)"""

    def __init__(self, level: int, max_size: int) -> None:
        self.level = level
        self.max_size = max_size
        self.zstandard = _library()
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
        """What was compressed.

        :raises _Fault: it is no such thing, or too much.
        """
        if len(data) > self.max_size + (self.max_size >> 7) + 1024:  # Zstandard's worst case
            raise _Fault(f"{len(data)} bytes compressed; at most {self.max_size} are allowed")
        try:
            context = self.decompressors.pop()
        except IndexError:
            context = self.zstandard.ZstdDecompressor(max_window_size=max(_WINDOW, self.max_size))
        try:
            return self._one(context, data) or self._all(context, data)
        except self.zstandard.ZstdError as exc:
            raise _Fault(f"not Zstandard's ({str(exc).rpartition(': ')[2]})") from None
        finally:
            self.decompressors.append(context)

    def _one(self, context: Any, data: bytes) -> bytes | None:
        """The common case, by libzstd alone: one frame that declares its size."""
        try:
            if 0 < self.zstandard.frame_content_size(data) <= self.max_size:
                plain: bytes = context.decompress(data, allow_extra_data=False)
                return plain
        except self.zstandard.ZstdError:
            pass  # more frames, or broken: found out below
        return None

    def _all(self, context: Any, data: bytes) -> bytes:
        pieces: list[bytes] = []
        left = self.max_size
        for frame, fills in self._frames(data):
            declared = self.zstandard.frame_content_size(frame)
            if declared > left:
                raise self._too_much()
            if declared == 0 and fills:  # libzstd is not asked about these
                raise _Fault("more than its frame declares")
            try:
                piece = context.decompress(frame, max_output_size=max(1, min(left, fills)))
            except self.zstandard.ZstdError as exc:
                if fills > left and "full frame" in str(exc):
                    raise self._too_much() from None
                raise
            left -= len(piece)
            if left < 0:
                raise self._too_much()
            pieces.append(piece)
        return b"".join(pieces)

    def _too_much(self) -> _Fault:
        return _Fault(f"more than {self.max_size} bytes when decompressed")

    def _frames(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Each frame, and how many bytes its blocks can fill at most (RFC 8878, 3.1.1)."""
        if not data:
            raise _Fault("empty")
        at = 0
        for _ in range(_FRAMES):
            start, fills = at, 0
            magic = data[at : at + 4]
            if magic == _MAGIC:
                header = data[at : at + 18]
                at += self.zstandard.frame_header_size(header)
                block = 0
                while not block & 1:  # the last one is marked
                    block = int.from_bytes(data[at : at + 3], "little")
                    kind, size = block >> 1 & 3, block >> 3
                    at += 3 + (1 if kind == _RUN else size)
                    fills += _BLOCK if kind == _COMPRESSED else size
                    if at > len(data):
                        raise _Fault("ends too early")
                at += 4 * self.zstandard.get_frame_parameters(header).has_checksum
            elif len(magic) == 4 and magic[0] & 0xF0 == 0x50 and magic[1:] == _SKIPPABLE:
                at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            else:
                raise _Fault(f"no Zstandard frame at byte {at}")
            if at > len(data):
                raise _Fault("ends too early")
            if magic == _MAGIC:
                yield data[start:at], fills
            if at == len(data):
                return
        raise _Fault(f"more than {_FRAMES} frames")


def _bind(inner: Bound[Any], place: Place, contexts: _Contexts) -> Bound[Any]:
    def outer(error: CodecError) -> None:
        error.codec = f"zstd+{error.codec}" if error.codec else "zstd"
        error.topic = place.topic
        error.role = place.role

    def encode(value: Any) -> bytes:
        try:
            plain = inner.encode(value)
        except CodecError as exc:
            outer(exc)
            raise
        reason = excess(plain, contexts.max_size)
        if reason is not None:
            raise place.refusal(reason)
        return contexts.compress(plain)

    def decode(data: bytes, *headers: Headers) -> Any:
        try:
            plain = contexts.decompress(data)
        except _Fault as exc:
            error = place.error(data, str(exc))
        else:
            try:
                return inner.decode(plain, *headers)
            except Exception as exc:
                error = inner.explain(plain, exc)
            outer(error)
            error.data = data
        try:
            raise error  # out here, the original, which may quote the payload, is not its context
        finally:
            del error

    def explain(data: bytes, exc: Exception) -> DecodeError:
        return decode_error(place, data, exc)

    return Bound(
        encode=encode,
        decode=decode,
        content_type="application/zstd",
        needs_headers=inner.needs_headers,
        explain=explain,
    )
