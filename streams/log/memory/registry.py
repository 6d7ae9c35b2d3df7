"""Resources that are shared by name in this process: all openers of ``memory://name`` get the same
one, each opener of ``memory://`` gets its own. A resource lives until its last opener closes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from streams.clock import SYSTEM, Clock, SystemClock
from streams.errors import ConfigError
from streams.log.protocol import OpenRequest
from streams.log.url import parse


class NamedResource(Protocol):
    """A resource that can be shared."""

    name: str
    """Empty: the resource is private."""
    clock: Clock
    users: int
    """How many openers have it open; maintained by :class:`NamedRegistry`."""


T = TypeVar("T", bound=NamedResource)


class NamedRegistry(Generic[T]):
    """Resources of one kind by name (any thread).

    :param make: creates a resource with a name.
    :param private_description: the description of a private resource in errors.
    :param shared_description: the description of a shared resource in errors.
    """

    def __init__(
        self, make: Callable[[str, Clock], T], *, private_description: str, shared_description: str
    ) -> None:
        self._make = make
        self._private_description = private_description
        self._shared_description = shared_description
        self._lock = threading.Lock()
        self._by_name: dict[str, T] = {}

    def acquire(self, request: OpenRequest) -> T:
        """The resource of the URL's name, created if there is none.

        :raises ConfigError: the URL has settings, or it is open on another clock.
        """
        name = request.path
        if request.options:
            raise ConfigError(
                f"{parse(request.url).location}: write memory:// for {self._private_description}, "
                "or memory://name"
                f" (letters, digits, '.', '_', '-') for {self._shared_description}; there are no "
                "settings"
            )
        clock = request.clock or SYSTEM
        with self._lock:
            found = self._by_name.get(name)
            if found is None:
                found = self._make(name, clock)
                if name:
                    self._by_name[name] = found
            elif not _is_same_clock(found.clock, clock):
                raise ConfigError(
                    f"memory://{name} is open in this process on another clock: give both the same"
                    " clock, or one of them another name"
                )
            found.users += 1
            return found

    def release(self, resource: T) -> bool:
        """Note that one opener has closed the resource; returns whether that was the last one."""
        with self._lock:
            resource.users -= 1
            if resource.users:
                return False
            self._by_name.pop(resource.name, None)
            return True


def _is_same_clock(one: Clock, other: Clock) -> bool:
    return one is other or (isinstance(one, SystemClock) and isinstance(other, SystemClock))
