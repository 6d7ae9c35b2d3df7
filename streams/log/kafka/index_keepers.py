"""Threads that persist an event topic's index for the next process: they write its changes to a
file, or snapshots of it to a topic."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from streams.errors import LogError
from streams.log.kafka.index_file import IndexFile
from streams.log.kafka.index_topic import IndexTopic
from streams.log.kafka.partition_index import ChangedKey, Changes, PartitionIndex
from streams.text import get_logger

logger = get_logger("streams.kafka")

SAVE_INTERVAL = 1.0
"""Seconds between two writes of the file."""

SAVE_SHARE = 20
"""The file is written for at most this part of the time."""

SNAPSHOT_INTERVAL = 0.5
"""Seconds between two checks whether a snapshot is due."""

SLICE = 500
"""Keys copied, or causes dropped, in one go while the index is locked."""


class KeptIndex(Protocol):
    """The index to persist."""

    topic: str
    lock: threading.Lock
    """Guards the partitions."""
    partitions: dict[int, PartitionIndex]
    error: LogError | None
    """The error that ended the folding."""


class IndexKeepers:
    """The threads that keep one index, until they are closed."""

    def __init__(self, index: KeptIndex) -> None:
        self._index = index
        self._closed = threading.Event()
        self._writes_last = True
        """Whether the file is written once more on closing."""
        self._threads: list[tuple[threading.Thread, float]] = []
        """Each thread, with the seconds to wait for its end on closing."""

    def keep_file(self, file: IndexFile) -> None:
        """Write what changes to a file, again and again."""
        self._start(partial(self._keep_file, file), "file", 60.0)

    def keep_snapshots(self, snapshots: IndexTopic) -> None:
        """Write a snapshot of each partition that is due, again and again."""
        # A snapshot that is not written loses nothing.
        self._start(partial(self._keep_snapshots, snapshots), "snapshots", 3.0)

    def close(self, *, write: bool = True) -> None:
        """End the threads.

        :param write: write the latest changes to the file before.
        """
        self._writes_last = write
        self._closed.set()
        for thread, seconds in self._threads:
            thread.join(seconds)

    def _start(self, target: Callable[[], None], what: str, seconds: float) -> None:
        name = f"streams-{self._index.topic}-index-{what}"
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append((thread, seconds))
        thread.start()

    # -- the file

    def _keep_file(self, file: IndexFile) -> None:
        kept = self._index
        is_failing = False
        next_at = time.monotonic() + SAVE_INTERVAL
        while True:
            is_last = self._closed.wait(SAVE_INTERVAL / 4)
            began = time.monotonic()
            with kept.lock:
                if kept.error is not None or (is_last and not self._writes_last):
                    return
                chosen = [
                    each for each in kept.partitions.values() if is_last or each.is_worth_saving
                ]
            if not is_last and (not chosen or began < next_at):
                continue
            try:
                for index in chosen:
                    self._save(file, index)
                is_failing = False
            except LogError as error:
                if not is_failing:
                    logger.error("%s: the index is not written at present: %s", kept.topic, error)
                is_failing = True
            if is_last:
                return
            took = time.monotonic() - began
            next_at = began + took + max(SAVE_INTERVAL, took * SAVE_SHARE)

    def _save(self, file: IndexFile, index: PartitionIndex) -> None:
        """Write what has changed. Many changes, as there are once an index was built, are copied
        some at a time: nobody decides upon anything meanwhile."""
        lock = self._index.lock
        changes: Changes | None = None
        copied: dict[bytes, ChangedKey] = {}
        try:
            with lock:
                keys = index.changed_keys()
            for start in range(0, len(keys), SLICE):
                with lock:
                    copied |= index.copy_changed(keys[start : start + SLICE])
            with lock:
                changes = index.take_changes(copied)
            file.write(index.partition, changes)
        except BaseException:
            with lock:
                index.changes_lost(changes)
            raise
        with lock:
            index.changes_written(changes)
        for start in range(0, len(changes.causes), SLICE):
            with lock:
                index.forget_causes(changes.causes[start : start + SLICE])

    # -- snapshots

    def _keep_snapshots(self, snapshots: IndexTopic) -> None:
        kept = self._index

        def is_over() -> bool:
            return self._closed.is_set() or kept.error is not None

        while not self._closed.wait(SNAPSHOT_INTERVAL) and not is_over():
            with kept.lock:
                due = [each for each in kept.partitions.values() if snapshots.is_due(each)]
            # Where one cannot be written, the others are not tried either; the next time it is the
            # last one.
            for index in sorted(due, key=snapshots.looked_at):
                if is_over() or snapshots.is_paused():
                    break
                snapshots.write(index, kept.lock, is_over)
