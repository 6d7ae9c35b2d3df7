"""The errors that an aggregate raises when a decision is not appended to its history."""

from __future__ import annotations

from streams.errors import CodeTooOld, LogError, StreamsError


class WrongExpectedVersion(StreamsError):
    """The aggregate does not have the expected version. Nothing was appended.

    :param expected: the version, or ``"new"`` or ``"exists"``.
    :param actual: its version at some moment between the call and the error.
    :param is_conflict: the expectation held, if there was one, but another writer appended first on
        every attempt: a retry may succeed.
    """

    def __init__(
        self,
        aggregate: str,
        id: str,
        expected: int | str,
        actual: int,
        *,
        is_conflict: bool = False,
    ) -> None:
        if is_conflict:
            problem = (
                f"{aggregate} {id!r}: every attempt to decide conflicted with another append; the "
                f"last one decided upon version {expected}, and it is at {actual} now"
            )
        else:
            problem = f"{aggregate} {id!r} is at version {actual}, and {expected!r} was expected"
        super().__init__(f"{problem}: nothing was appended")
        self.expected = expected
        self.actual = actual
        self.is_conflict = is_conflict


class AggregateClosed(StreamsError):
    """The aggregate has had its final event (``final=``): nothing can be appended any more."""


class DecisionRefused(StreamsError):
    """The decision raised one of ``refusals=`` (this error's ``__cause__``), and the refusal is
    stored; or it was refused before for the same cause, whatever the state is now. No event was
    appended.

    :param id: the aggregate's ID.
    :param cause: the cause of the decision.
    """

    def __init__(self, aggregate: str, id: str, cause: str) -> None:
        super().__init__(f"{aggregate} {id!r}: the decision for {cause!r} is refused for good")
        self.id = id
        self.cause = cause


class NamedRefusal(Exception):
    """An exception by which a decision refuses, and that is stored under the name of another.

    :param name: the name to be stored; empty: none is.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class HistoryTruncated(LogError):
    """The log has fewer events of an aggregate, or other ones, than it acknowledged before: it lost
    writes in a failover or in a power cut. Nothing was appended; the cached state of the aggregate
    is dropped, so the next call uses what the log has now."""


class Undecodable(StreamsError):
    """An event of an aggregate cannot be decoded, so this process can take no decision on that
    aggregate. Other aggregates go on. ``@aggregate.upcast(bytes)`` turns such bytes into events.

    :param id: the aggregate's ID.
    :param version: the event's version.
    """

    def __init__(self, aggregate: str, id: str, version: int, reason: str) -> None:
        super().__init__(
            f"{aggregate} {id!r}: event {version} cannot be decoded: {reason} (deploy the code "
            "that knows it, or give @aggregate.upcast(bytes))"
        )
        self.id = id
        self.version = version


class UnknownEvent(Undecodable, CodeTooOld):
    """An event of an aggregate has a tag that this code does not know: newer code that runs beside
    this one wrote it. A message whose handler decides on the aggregate waits for that code, without
    using up an attempt."""
