"""Reading a topic on and on for people who look at it now and then: what was read is kept, and
whoever looks again waits for nothing but what is new.

A :class:`BackgroundReader` reads in a thread while somebody waits for it, and on to the end, so no
page takes that long. :class:`KeptReaders` keeps those that were looked at last, as
:class:`KeptForAWhile` does with anything.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Generic, TypeVar

from typing_extensions import override

from streams.errors import NotFound
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


class KeptForAWhile(Generic[T]):
    """What somebody asked for last, by name; each is forgotten once nobody has asked for it for
    :data:`FORGET_AFTER` (any thread).

    :param make: makes one, of its name; it may raise.
    :param most: so many at most.
    """

    def __init__(self, make: Callable[[str], T], most: int) -> None:
        self._make = make
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[T, float]] = OrderedDict()
        """Each with when somebody asked for it, that asked for last at the end."""
        self._closed = False
        self._timer: threading.Timer | None = None
        """Forgets those that nobody asks for any more."""

    def of(self, name: str) -> T:
        """The one of this name; once these are closed, one that is not kept."""
        now = time.monotonic()
        with self._lock:
            found = self._kept.get(name)
            one = self._make(name) if found is None else found[0]
            if self._closed:
                self._let_go(one)
                return one
            self._kept[name] = one, now
            self._kept.move_to_end(name)
            while len(self._kept) > self._most:
                self._forget_oldest()
            self._forget_later(now)
            return one

    def all(self) -> dict[str, T]:
        """Those that are kept, by name; the one that was asked for last at the end."""
        with self._lock:
            return {name: one for name, (one, _) in self._kept.items()}

    def close(self) -> None:
        """Forget all, and keep none from now on."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            kept = [one for one, _ in self._kept.values()]
            self._kept.clear()
        for one in kept:
            self._let_go(one)

    def _let_go(self, one: T) -> None:
        """It is not kept any more."""

    def _forget_later(self, now: float) -> None:
        """Forget those whose time is over, now and when it is (the lock is held)."""
        while self._kept and self._oldest() <= now - FORGET_AFTER:
            self._forget_oldest()
        if self._timer is None and self._kept:
            self._timer = threading.Timer(self._oldest() + FORGET_AFTER - now, self._wake)
            self._timer.name, self._timer.daemon = "streams-forget", True
            self._timer.start()

    def _wake(self) -> None:
        with self._lock:
            self._timer = None
            if not self._closed:
                self._forget_later(time.monotonic())

    def _forget_oldest(self) -> None:
        self._let_go(self._kept.popitem(last=False)[1][0])

    def _oldest(self) -> float:
        return next(iter(self._kept.values()))[1]


R = TypeVar("R", bound=BackgroundReader)


class KeptReaders(KeptForAWhile[R]):
    """The readers of the topics that somebody looked at last. One that is not kept any more reads
    nothing."""

    def expire(self, names: Collection[str] = ()) -> None:
        """Something was changed, in whichever topic: see :meth:`BackgroundReader.expire`."""
        for reader in self.all().values():
            reader.expire()

    @override
    def _let_go(self, one: R) -> None:
        one.close()
