"""The errors of a group's member that cannot be raised where they occur.

The driver's callbacks must not raise (see :mod:`streams.log.kafka.subscription`), and an error that
comes beside messages must not lose them. Both kinds are kept here until the member is polled again.
"""

from __future__ import annotations

from streams.errors import Fatal, LogError, StreamsError, Unavailable


class MemberErrors:
    """The errors of one member. Used by the thread that polls it.

    A *fatal* error ends the member for good; every poll raises it. A *deferred* one is raised by
    one poll.
    """

    def __init__(self) -> None:
        self._fatal: BaseException | None = None
        self._fatal_before_close: BaseException | None = None
        self._deferred: StreamsError | None = None

    @property
    def fatal(self) -> BaseException | None:
        """The error that ended the member."""
        return self._fatal

    @property
    def has_deferred(self) -> bool:
        """Whether the next poll raises an error."""
        return self._deferred is not None

    def fail(self, error: BaseException) -> None:
        """End the member, unless another error has done so before."""
        if self._fatal is None:
            self._fatal = error

    def fail_driver(self, error: BaseException) -> None:
        """End the member because of an error that the driver raised: it says more than those that
        its callbacks were given before."""
        self._fatal = error

    def defer(self, error: StreamsError) -> None:
        """Have the next poll raise an error, unless one is kept already that says more. A Fatal one
        says most; that no broker answers says least."""
        if self._deferred is None or _weight(error) >= _weight(self._deferred):
            self._deferred = error

    def messages_came(self) -> None:
        """Forget that no broker answered."""
        if isinstance(self._deferred, Unavailable):
            self._deferred = None

    def raise_fatal(self) -> None:
        """Raise the error that ended the member, if one has."""
        if self._fatal is not None:
            raise self._fatal

    def raise_deferred(self) -> None:
        """Raise the deferred error, once."""
        deferred, self._deferred = self._deferred, None
        if deferred is not None:
            raise deferred

    def begin_close(self) -> None:
        """Put aside the error that ended the member: it can still commit while it closes."""
        self._fatal_before_close, self._fatal = self._fatal, None

    def end_close(self) -> None:
        """Close the member for good; raise the error that occurred while it closed."""
        error = self._fatal
        self._fatal = self._fatal_before_close or LogError("this subscription is closed")
        if error is not None:
            raise error


def _weight(error: StreamsError) -> int:
    if isinstance(error, Fatal):
        return 2
    return 0 if isinstance(error, Unavailable) else 1
