"""Reads topics incrementally, for occasional inspection: the results are kept, and a later call
waits only for new records.

A :class:`BackgroundReader` reads in a thread while a caller waits for it, and then on to the end,
so no page has to wait for a whole read. :class:`KeptReaders` keeps the most recently used readers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Generic, TypeVar

from streams.errors import NotFound
from streams.idle_cache import IdleCache
from streams.inspection.background import BackgroundRuns

if TYPE_CHECKING:
    from streams.log.protocol import Log

FORGET_AFTER = 600.0
"""Real seconds after which an unused reader is dropped."""


class BackgroundReader:
    """Reads one topic (any thread). Subclasses define what they read and what they keep of it.

    :param open_log: returns the log; it may raise.
    """

    def __init__(self, name: str, open_log: Callable[[], Log]) -> None:
        self.name = name
        self._open_log = open_log
        self._lock = threading.Lock()
        """Held whenever the kept results are read or changed."""
        self._runs = BackgroundRuns(self._run, "streams-reader")
        self._incarnation = ""
        self._forget()

    def read_on(self, seconds: float, *, longer_after_change: bool = True) -> bool:
        """Read new records, and wait for this many real seconds at most, a little longer after
        :meth:`expire` (blocks).

        :param longer_after_change: False: wait no longer after :meth:`expire`.
        :returns: whether every record was read.
        :raises NotFound: there is no such topic.
        :raises LogError: the log cannot be read.
        """
        return self._runs.wait(seconds, longer_after_change=longer_after_change)

    def expire(self) -> None:
        """Note a change: the next caller waits for a read that begins after it."""
        self._runs.expire()

    def close(self) -> None:
        """Stop reading."""
        self._runs.close()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self._runs.is_closed

    @property
    def _is_to_stop(self) -> bool:
        return self._runs.is_to_stop

    def _run(self) -> bool:
        log = self._open_log()
        try:
            log.describe_topic(self.name)
            incarnation = log.incarnation(self.name)
        except NotFound:
            with self._lock:
                self._forget()
            raise
        with self._lock:
            if incarnation != self._incarnation:  # the topic was deleted and created again
                self._forget()
                self._incarnation = incarnation
        return self._read(log)

    def _forget(self) -> None:
        """Discard the results; called with the lock held, and before the first read."""
        raise NotImplementedError

    def _read(self, log: Log) -> bool:
        """Read to the end, in the thread, without the lock; returns whether it got there. It stops
        between two batches if :attr:`_is_to_stop` is set, and goes on from there the next time."""
        raise NotImplementedError


T = TypeVar("T")


class CountingReader(BackgroundReader, Generic[T]):
    """Reads one topic, and counts its content."""

    def counts(self, seconds: float) -> T:
        """The counts, after reading on for this many real seconds at most (blocks).

        :raises LogError: the log cannot be read.
        """
        return self._counts(self.read_on(seconds))

    def known(self) -> T:
        """The counts, as far as the topic was read."""
        return self._counts(False)

    def _counts(self, is_complete: bool) -> T:
        raise NotImplementedError


R = TypeVar("R", bound=BackgroundReader)


class KeptReaders(IdleCache[R]):
    """The readers of the most recently used topics. A reader that is dropped stops reading."""

    def __init__(self, make: Callable[[str], R], size: int) -> None:
        super().__init__(make, size, FORGET_AFTER, lambda reader: reader.close())

    def expire(self, names: Collection[str] = ()) -> None:
        """Note a change in any of the topics: see :meth:`BackgroundReader.expire`."""
        for reader in self.values_by_name().values():
            reader.expire()


def count_once(reader: CountingReader[T], seconds: float) -> T | None:
    """A reader's counts, as far as it can read in this many real seconds (blocks); then it is
    closed. None: there is no such topic.

    :raises LogError: the log cannot be read.
    """
    try:
        return reader.counts(seconds)
    except NotFound:
        return None
    finally:
        reader.close()
