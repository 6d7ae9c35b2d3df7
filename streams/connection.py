"""What topics, readers and processors know of the app that they belong to."""

from __future__ import annotations

from typing import Protocol

from streams.clock import Clock
from streams.log.protocol import Log
from streams.publisher import Publisher


class Connection(Protocol):
    """An open log, what publishes to it, and the time: an app, while it is entered."""

    @property
    def log(self) -> Log:
        """The open log.

        :raises NotRunning: the app is not entered.
        :raises ProcessorDied: it was left because a processor died.
        """
        ...

    @property
    def publisher(self) -> Publisher:
        """What publishes for the app.

        :raises NotRunning: the app is not entered.
        :raises ProcessorDied: it was left because a processor died.
        """
        ...

    @property
    def clock(self) -> Clock:
        """The time that the app goes by."""
        ...
