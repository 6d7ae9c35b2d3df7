"""What is shared by name in this process: under ``memory://name`` everybody gets the same, under
``memory://`` each opener something of its own. It lives as long as somebody has it open.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from streams.clock import SYSTEM, Clock, SystemClock
from streams.errors import ConfigError
from streams.log.protocol import Opened
from streams.log.url import parse

_NAME = re.compile(r"[A-Za-z0-9._-]*\Z")


class Named(Protocol):
    """What can be shared."""

    name: str
    """Empty: it is private."""
    clock: Clock
    users: int
    """How many have it open; kept by :class:`Shared`."""


T = TypeVar("T", bound=Named)


class Shared(Generic[T]):
    """Things of one kind by name (any thread).

    :param make: makes one of a name.
    :param own: what a private one is, as an error says it; ``other``: what a shared one is.
    """

    def __init__(self, make: Callable[[str, Clock], T], *, own: str, other: str) -> None:
        self._make = make
        self._own = own
        self._other = other
        self._lock = threading.Lock()
        self._there: dict[str, T] = {}

    def take(self, opened: Opened) -> T:
        """The one of the URL's name, made if there is none.

        :raises ConfigError: the name cannot be one, or it is open on another clock.
        """
        name = opened.path
        if opened.options or not _NAME.match(name):
            raise ConfigError(
                f"{parse(opened.url).place}: write memory:// for {self._own}, or memory://name"
                f" (letters, digits, '.', '_', '-') for {self._other}; there are no settings"
            )
        clock = opened.clock or SYSTEM
        with self._lock:
            found = self._there.get(name)
            if found is None:
                found = self._make(name, clock)
                if name:
                    self._there[name] = found
            elif not _same(found.clock, clock):
                raise ConfigError(
                    f"memory://{name} is open in this process on another clock: give both the same"
                    " clock, or one of them another name"
                )
            found.users += 1
            return found

    def leave(self, one: T) -> bool:
        """Somebody has closed it; whether that was the last."""
        with self._lock:
            one.users -= 1
            if one.users:
                return False
            self._there.pop(one.name, None)
            return True


def _same(one: Clock, other: Clock) -> bool:
    return one is other or (isinstance(one, SystemClock) and isinstance(other, SystemClock))
