"""Reading a topic on and on for people who look at it now and then: what was read is kept, and
whoever looks again waits for nothing but what is new.

A :class:`BackgroundReader` reads in a thread while somebody waits for it, and on to the end, so no
page takes that long. :class:`KeptReaders` keeps those that were looked at last.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from streams.errors import NotFound, StreamsError
from streams.text import get_logger

if TYPE_CHECKING:
    from streams.log.protocol import Log

logger = get_logger("streams")

FORGET_AFTER = 600.0
"""Real seconds after which a reader that nobody looks at is forgotten."""


class BackgroundReader:
    """Reads one topic (any thread). Subclasses say what they read and what they keep of it.

    :param open_log: gives the log; it may raise.
    """

    def __init__(self, name: str, open_log: Callable[[], Log]) -> None:
        self.name = name
        self._open_log = open_log
        self._lock = threading.Lock()
        """Held whenever what is kept is read or changed."""
        self._idle = threading.Event()
        self._idle.set()
        self._failure: StreamsError | None = None
        self._closed = False
        self._incarnation = ""
        self._forget()

    def read_on(self, seconds: float) -> bool:
        """Read what is new, and wait for so many real seconds at most (blocks).

        :returns: whether all there was has been read.
        :raises NotFound: there is no such topic.
        :raises LogError: the log cannot be read.
        """
        with self._lock:
            if self._idle.is_set():
                self._idle.clear()
                self._failure = None
                threading.Thread(target=self._run, name="streams-reader", daemon=True).start()
        complete = self._idle.wait(seconds)
        if complete and self._failure is not None:
            raise self._failure
        return complete

    def close(self) -> None:
        """End reading."""
        self._closed = True

    def _run(self) -> None:
        try:
            log = self._open_log()
            log.topic(self.name)
            incarnation = log.incarnation(self.name)
            with self._lock:
                if incarnation != self._incarnation:  # it was deleted, and made anew
                    self._forget()
                    self._incarnation = incarnation
            self._read(log)
        except StreamsError as error:
            self._failure = error
            if isinstance(error, NotFound):
                with self._lock:
                    self._forget()
        except Exception:
            logger.exception("%s could not be read on", self.name)
        finally:
            self._idle.set()

    def _forget(self) -> None:
        """Begin anew; called with the lock held, and first of all."""
        raise NotImplementedError

    def _read(self, log: Log) -> None:
        """Read to the end, or until it is closed; in the thread, without the lock."""
        raise NotImplementedError


R = TypeVar("R", bound=BackgroundReader)


class KeptReaders(Generic[R]):
    """The readers that somebody looked at last (any thread).

    :param make: makes one, of a topic's name.
    :param most: so many at most.
    """

    def __init__(self, make: Callable[[str], R], most: int) -> None:
        self._make = make
        self._most = most
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[R, float]] = OrderedDict()
        """Each with when somebody asked for it, that asked for last at the end."""

    def of(self, name: str) -> R:
        """The reader of a topic."""
        now = time.monotonic()
        with self._lock:
            found = self._kept.pop(name, None)
            reader = self._make(name) if found is None else found[0]
            self._kept[name] = reader, now
            while len(self._kept) > self._most or self._oldest() < now - FORGET_AFTER:
                self._kept.popitem(last=False)[1][0].close()
            return reader

    def _oldest(self) -> float:
        return next(iter(self._kept.values()))[1]
