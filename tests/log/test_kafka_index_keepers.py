"""What is kept of an index for the next process is taken from it some at a time: whoever decides
upon an aggregate meanwhile does not wait for a million others."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streams.log.event_headers import CAUSE, EVENT
from streams.log.events import Caused
from streams.log.kafka import index_keepers
from streams.log.kafka.index_file import IndexFile, open_index_file
from streams.log.kafka.index_keepers import IndexKeepers
from streams.log.kafka.partition_index import PartitionIndex
from streams.message import ID, Headers

COUNT = 1_000
KEYS = [b"%d" % number for number in range(COUNT)]


def headers(offset: int, version: int, last_id: bytes, *more: tuple[str, bytes]) -> Headers:
    """Of an append of one event that counts."""
    return [(ID, b"id-%d" % offset), (EVENT, b"0/1/%d/%b" % (version, last_id)), *more]


class WatchedLock:
    """Knows how much was done to an index while it was held.

    :param at: the how many-th time that it is let go of, another thread folds an event.
    """

    def __init__(self, index: PartitionIndex, at: int) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._at = at
        self._before = 0, 0
        self.most = 0
        """Keys that were copied, or causes that were forgotten, in one go."""

    def __enter__(self) -> None:
        self._lock.acquire()
        self._before = len(self._index._taken), len(self._index._causes)

    def __exit__(self, *raised: object) -> None:
        taken, causes = self._before
        copied = len(self._index._taken) - taken
        self.most = max(self.most, copied, causes - len(self._index._causes))
        self._at -= 1
        if not self._at:
            again = headers(COUNT, 1, b"id-0")
            self._index.fold([COUNT], [KEYS[0]], [again])
        self._lock.release()


@pytest.fixture
def file(tmp_path: Path) -> Any:
    opened = open_index_file(str(tmp_path), "t.events", "", 1)
    assert opened is not None
    yield opened
    opened.close()


def built(file: IndexFile) -> PartitionIndex:
    """An index of many keys, of which the file has none."""
    index = PartitionIndex(0, file.partition(0))
    offsets = range(COUNT)
    index.fold(offsets, KEYS, [headers(each, 0, b"", (CAUSE, b"why")) for each in offsets])
    return index


def test_many_changes_are_taken_some_at_a_time(
    file: IndexFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are what the index was at the end of that, with what came meanwhile."""
    monkeypatch.setattr(index_keepers, "SLICE", 50)
    index = built(file)
    lock = WatchedLock(index, at=7)
    kept: Any = SimpleNamespace(topic="t.events", lock=lock, partitions={0: index}, error=None)
    IndexKeepers(kept)._save(file, index)
    assert lock.most == 50
    read = PartitionIndex(0, file.partition(0))
    assert read.next_offset == COUNT + 1
    assert read.event_count == index.event_count == COUNT + 1
    for number, key in enumerate(KEYS):
        entry = read.entry(key)
        assert entry is not None
        assert list(entry.offsets) == ([0, COUNT] if number == 0 else [number])
        assert read.cause(key, "why") == index.cause(key, "why") == Caused(1, 1)
    assert not index.changed_keys()
    assert not index._causes


def test_what_could_not_be_written_is_written_with_what_follows(
    file: IndexFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it failed before all was copied."""
    monkeypatch.setattr(index_keepers, "SLICE", 50)
    index = built(file)
    kept: Any = SimpleNamespace(
        topic="t.events", lock=threading.Lock(), partitions={0: index}, error=None
    )
    keepers = IndexKeepers(kept)
    copy_changed = index.copy_changed
    calls: list[int] = []

    def fail_once(keys: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError
        return copy_changed(keys)

    monkeypatch.setattr(index, "copy_changed", fail_once)
    with pytest.raises(MemoryError):
        keepers._save(file, index)
    assert len(index.changed_keys()) == COUNT
    keepers._save(file, index)
    read = PartitionIndex(0, file.partition(0))
    assert [key for key, _ in read.list_keys(None, COUNT)] == sorted(KEYS)
    assert all(read.cause(key, "why") == Caused(1, 1) for key in KEYS)


def test_keys_are_sorted_once_for_all_pages() -> None:
    """Without the index: who asks for a page meanwhile, or decides, does not wait for it."""
    index = PartitionIndex(0)
    index.fold(range(3), KEYS[:3], [headers(each, 0, b"") for each in range(3)])
    assert index.sorted_keys() is None
    keys, count = index.keys_to_sort()
    index.fold([3], [KEYS[3]], [headers(3, 0, b"")])
    index.set_sorted(sorted(keys), count)
    assert index.sorted_keys() is None  # one has come since
    assert [key for key, _ in index.list_keys(None, 9, sorted(keys))] == KEYS[:3]
    keys, count = index.keys_to_sort()
    index.set_sorted(sorted(keys), count)
    names = index.sorted_keys()
    assert names == KEYS[:4]
    index.fold([4], [KEYS[0]], [headers(4, 1, b"id-0")])
    assert index.sorted_keys() is names
    assert index.list_keys(KEYS[0], 2, names) == index.list_keys(KEYS[0], 2)
