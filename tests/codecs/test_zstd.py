"""Compression: bombs are not inflated, and nothing that is cut off or left over passes."""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from stream_codecs import (
    BindError,
    Bytes,
    Codec,
    DecodeError,
    EncodeError,
    Json,
    MessagePack,
    UnknownTag,
    Zstd,
)
from tests.codecs.samples import Cancelled, Departed, Diverted

MIB = 1 << 20


def streamed(data: bytes, **options: Any) -> bytes:
    """A frame that does not declare its content's size."""
    stream = zstandard.ZstdCompressor(write_content_size=False, **options).compressobj()
    return stream.compress(data) + stream.flush()


def declared(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


SKIPPED = b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc"


@pytest.mark.parametrize("inner", [None, Json(), MessagePack()])
def test_typed_values_there_and_back(inner: Codec | None) -> None:
    bound = Zstd(inner).bind(Departed | Cancelled, topic="t")
    value = Departed("N14228", "UA", 2)
    assert bound.decode(bound.encode(value)) == value
    assert bound.content_type == "application/zstd"


@given(
    st.lists(
        st.tuples(st.binary(max_size=50), st.integers(1, 5000), st.sampled_from([0, 1, 2])),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_frames_of_all_kinds_follow_one_another(frames: list[tuple[bytes, int, int]]) -> None:
    data = plain = b""
    for content, times, kind in frames:
        if kind == 2:
            data += SKIPPED
            continue
        data += (streamed, declared)[kind](content * times)
        plain += content * times
    assert Zstd(max_size=MIB).bind(bytes, topic="t").decode(data) == plain
    if plain:
        exact = Zstd(max_size=len(plain)).bind(bytes, topic="t")
        if len(data) < len(plain):
            assert exact.decode(data) == plain
        tight = Zstd(max_size=max(1, len(plain) - 1)).bind(bytes, topic="t")
        if len(plain) > 1:
            with pytest.raises(DecodeError, match=f"more than {len(plain) - 1} bytes|compressed"):
                tight.decode(data)


@pytest.mark.parametrize("write", [streamed, declared])
def test_what_is_cut_off_or_left_over_does_not_pass(write: Callable[[bytes], bytes]) -> None:
    bound = Zstd().bind(bytes, topic="t")
    whole = write(bytes(range(256)) * 2000) + write(b"second")
    assert bound.decode(whole) == bytes(range(256)) * 2000 + b"second"
    first = len(write(bytes(range(256)) * 2000))
    for end in {*range(40), *range(len(whole) - 40, len(whole))} - {first}:
        with pytest.raises(DecodeError) as info:
            bound.decode(whole[:end])
        assert info.value.data == whole[:end]
    for rest in (b"x", b"\x28\xb5\x2f\xfd", SKIPPED[:-1]):
        with pytest.raises(DecodeError):
            bound.decode(whole + rest)


def run(size: int, last: bool) -> bytes:
    """A block of one repeated byte."""
    return (size << 3 | 1 << 1 | last).to_bytes(3, "little") + b"x"


def wide() -> bytes:
    params = zstandard.ZstdCompressionParameters(window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=params).compressobj()
    return stream.compress(b"a") + stream.flush()


BLOCKS = run(128 << 10, False) * 1000 + run(128 << 10, True)
BOMBS: dict[str, Callable[[], bytes]] = {
    "declared": lambda: declared(bytes(100 * MIB)),
    "not declared": lambda: streamed(bytes(100 * MIB)),
    "many frames": lambda: streamed(bytes(MIB - 10)) * 100,
    "many frames that declare": lambda: declared(bytes(MIB - 10)) * 100,
    "says one byte": lambda: b"\x28\xb5\x2f\xfd\x20\x01" + BLOCKS,
    "says none": lambda: b"\x28\xb5\x2f\xfd\x20\x00" + BLOCKS,
    "says nothing": lambda: b"\x28\xb5\x2f\xfd\x00\x58" + BLOCKS,
    "asks for a window of 128 MiB": wide,
    "two thousand frames of nothing": lambda: streamed(b"") * 2000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_not_inflated(name: str) -> None:
    bomb = BOMBS[name]()
    bound = Zstd(Bytes(), max_size=MIB).bind(bytes, topic="t")
    assert len(bomb) < 50_000
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as info:
            bound.decode(bomb)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert info.value.data is bomb
    assert peak < 3 * MIB


def test_compressed_bytes_beyond_any_use_are_refused_unseen() -> None:
    bound = Zstd(max_size=1000).bind(bytes, topic="t")
    with pytest.raises(DecodeError, match="5000 bytes compressed; at most 1000 are allowed"):
        bound.decode(SKIPPED[:4] + b"\x00" * 4996)


def test_what_the_inner_codec_refuses_keeps_the_outer_bytes() -> None:
    bound = Zstd(Json()).bind(Departed | Cancelled, topic="flights")
    data = Zstd(Json()).bind(Diverted, topic="t").encode(Diverted(None, "UA"))
    with pytest.raises(UnknownTag) as info:
        bound.decode(data)
    error = info.value
    assert (error.data, error.tag) == (data, "diverted")
    assert (error.codec, error.topic) == ("zstd+json", "flights")
    deep = declared(b"[" * 100_000)
    with pytest.raises(DecodeError, match="nested deeper than 512 levels"):
        bound.decode(deep)
    with pytest.raises(EncodeError, match=r"expected Departed \| Cancelled, got int .zstd\+json"):
        bound.encode(5)  # type: ignore[arg-type]


def test_a_value_too_large_to_be_read_is_not_written() -> None:
    with pytest.raises(EncodeError, match="1001 bytes; at most 1000 are allowed"):
        Zstd(max_size=1000).bind(bytes, topic="t").encode(bytes(1001))


def test_threads_do_not_share_a_context() -> None:
    bound = Zstd(Bytes()).bind(bytes, topic="t")

    def work(seed: int) -> bool:
        # Large enough to be at it, outside the interpreter's lock, when another thread comes.
        value = random.Random(seed).randbytes(4_000) * 250
        return all(bound.decode(bound.encode(value)) == value for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(12)))


def test_without_zstandard_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(BindError, match=r"pip install zstandard"):
        Zstd()


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"level": 23}, r"Zstd\(level=23\): from -100 to 22"), ({"max_size": 0}, "at least 1 byte")],
)
def test_options_that_make_no_sense(options: dict[str, int], reason: str) -> None:
    with pytest.raises(BindError, match=reason):
        Zstd(**options)  # type: ignore[arg-type]
