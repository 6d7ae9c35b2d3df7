"""The interface of what adds its own statements to each transaction of a handler (a projection)."""

from __future__ import annotations

from typing import Any, Protocol

from streams.databases.protocol import DialectName, Steps
from streams.errors import StreamsError
from streams.message import Message


class RunAgain(StreamsError):
    """Raised by a :class:`Companion` to have the transaction run again in a moment; that is no
    failure of the message."""


class Companion(Protocol):
    """Takes part in each transaction of a handler."""

    def check(self, message: Message[Any]) -> None:
        """Check that a message may be handled, before its transaction begins.

        :raises ConfigError: the message must not be handled.
        """
        ...

    def handle(self, dialect: DialectName, patience: float) -> Steps[None]:
        """Statements that are run before the handler, once it is certain that it will be called. A
        lock timeout in them is no failure of the message, either.

        :param patience: seconds that a statement may wait for a lock; infinite: as long as any
            statement of the transaction.
        :raises RunAgain: the handler cannot be called now.
        """
        ...
