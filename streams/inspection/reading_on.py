"""Reading a topic on and on for people who look at it now and then: what was read is kept, and
whoever looks again waits for nothing but what is new.

A :class:`BackgroundReader` reads in a thread while somebody waits for it, and on to the end, so no
page takes that long. :class:`KeptReaders` keeps those that were looked at last.
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
"""Real seconds after which what nobody looks at is forgotten."""


class BackgroundReader:
    """Reads one topic (any thread). Subclasses say what they read and what they keep of it.

    :param open_log: gives the log; it may raise.
    """

    def __init__(self, name: str, open_log: Callable[[], Log]) -> None:
        self.name = name
        self._open_log = open_log
        self._lock = threading.Lock()
        """Held whenever what is kept is read or changed."""
        self._runs = BackgroundRuns(self._run, "streams-reader")
        self._incarnation = ""
        self._forget()

    def read_on(self, seconds: float, *, longer_after_change: bool = True) -> bool:
        """Read what is new, and wait for so many real seconds at most, a little longer after
        :meth:`expire`, unless it is said that no longer is (blocks).

        :returns: whether all there was has been read.
        :raises NotFound: there is no such topic.
        :raises LogError: the log cannot be read.
        """
        return self._runs.wait(seconds, longer_after_change=longer_after_change)

    def expire(self) -> None:
        """Something was changed: whoever looks next waits for what is read from now on."""
        self._runs.expire()

    def close(self) -> None:
        """End reading."""
        self._runs.close()

    @property
    def is_closed(self) -> bool:
        """It reads no more."""
        return self._runs.is_closed

    @property
    def _is_to_stop(self) -> bool:
        return self._runs.is_to_stop

    def _run(self) -> bool:
        log = self._open_log()
        try:
            log.topic(self.name)
            incarnation = log.incarnation(self.name)
        except NotFound:
            with self._lock:
                self._forget()
            raise
        with self._lock:
            if incarnation != self._incarnation:  # it was deleted, and made anew
                self._forget()
                self._incarnation = incarnation
        return self._read(log)

    def _forget(self) -> None:
        """Begin anew; called with the lock held, and first of all."""
        raise NotImplementedError

    def _read(self, log: Log) -> bool:
        """Read to the end, in the thread, without the lock; whether it came there. It gives up
        between two batches where :attr:`_is_to_stop`, and goes on from there the next time."""
        raise NotImplementedError


T = TypeVar("T")


class CountingReader(BackgroundReader, Generic[T]):
    """Reads one topic, and counts what stands in it."""

    def counts(self, seconds: float) -> T:
        """What is counted, after reading on for so many real seconds at most (blocks).

        :raises LogError: the log cannot be read.
        """
        return self._counts(self.read_on(seconds))

    def known(self) -> T:
        """What is counted, as far as was read."""
        return self._counts(False)

    def _counts(self, is_complete: bool) -> T:
        raise NotImplementedError


R = TypeVar("R", bound=BackgroundReader)


class KeptReaders(IdleCache[R]):
    """The readers of the topics that somebody looked at last. One that is not kept any more reads
    nothing."""

    def __init__(self, make: Callable[[str], R], size: int) -> None:
        super().__init__(make, size, FORGET_AFTER, lambda reader: reader.close())

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed, in whichever topic: see :meth:`BackgroundReader.expire`."""
        for reader in self.all().values():
            reader.expire()


def count_once(reader: CountingReader[T], seconds: float) -> T | None:
    """What a reader counts, as far as it can read in so many real seconds (blocks); it is closed.
    None: there is no such topic.

    :raises LogError: the log cannot be read.
    """
    try:
        return reader.counts(seconds)
    except NotFound:
        return None
    finally:
        reader.close()
