"""Every error this package raises or understands, in one small tree.

Three families:

* what the *program* does wrong, whatever the message: :class:`ConfigError`; and what was given to
  a call: :class:`InvalidValue`;
* what *the log* answered: :class:`LogError` and below. A driver's own exceptions are translated
  into these once, at the log's boundary, so code above the log never imports a driver;
* what *a handler* says by raising: :class:`Reject`, :class:`RetryAfter`, :class:`BatchError`,
  :class:`CodeTooOld`.

A codec's errors live in ``stream_codecs`` (a codec knows nothing of streams).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

E = TypeVar("E", bound=BaseException)


class StreamsError(Exception):
    """Base of every error of this package."""


class ConfigError(StreamsError, ValueError):
    """A declaration or a use of this package that cannot work: a URL, a signature, an option, a
    key field, ``message.transaction`` on a log that has none.

    The message is one line that says what was wrong, where, and what to do. It is found where it is
    declared or when the app is entered, as far as that is possible. Raised inside a handler it ends
    the processor at once, with the message unsettled (:class:`ProcessorDied`): it is never tried
    again and never becomes a dead letter, because no message would fare better. That holds for one
    which your own code raises, too.
    """


class InvalidValue(StreamsError, ValueError):
    """A value that a call was given and cannot use: an ID, a key, a time, a limit.

    It may have come with a message, so inside a handler it is a failure of that message.
    """


def find_config_error(error: BaseException) -> ConfigError | None:
    """The :class:`ConfigError` that an error is, or that is in it (an exception group); if any."""
    return _find(error, ConfigError)


def find_code_too_old(error: BaseException) -> CodeTooOld | None:
    """The :class:`CodeTooOld` that an error is, or that is in it (an exception group); if any."""
    return _find(error, CodeTooOld)


def _find(error: BaseException, kind: type[E]) -> E | None:
    if isinstance(error, kind):
        return error
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            if (found := _find(each, kind)) is not None:
                return found
    return None


def attribute_of(error: BaseException | None, name: str) -> Any:
    """An attribute of an error that may be the user's; None if it has none, or if the class's
    ``__getattr__`` raises something other than ``AttributeError``."""
    try:
        return getattr(error, name, None)
    except Exception:
        return None


def error_chain(error: BaseException, *, with_suppressed: bool) -> Iterator[BaseException]:
    """An error, and those that it was raised from or in the handling of.

    :param with_suppressed: also what ``raise ... from None`` does not show.
    """
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            is_shown = with_suppressed or not each.__suppress_context__
            todo += (each.__cause__, each.__context__ if is_shown else None)


# -- what the log answered -------------------------------------------------------------------


class LogError(StreamsError):
    """The log could not do what was asked; nothing below says more precisely why."""


class Unavailable(LogError):
    """The log cannot be reached or is busy *now*; the same call may succeed later.

    Nothing was written. Consumers wait and try again by themselves.
    """


class OutcomeUnknown(LogError):
    """A write was sent and its answer never came: it is *perhaps* in the log.

    Never retried in silence. Publishing again with the same message ID is harmless to consumers
    that remember it (:class:`~streams.config.Dedup`).
    """


class Fatal(LogError):
    """The log refuses for good (authentication, corruption, fatal driver state): ``run()`` ends."""


class MemberFenced(Fatal):
    """Another process has joined the group under this static member's name, and has what it had.

    The process ends (``run()`` with status 79), and nothing should start it again: two that take
    the name from each other would never stop.
    """


EXIT_FENCED = 79
"""The exit status of a process that ends with :class:`MemberFenced`: another one has taken its
name in its groups, so what starts processes should not start this one again. No status of
sysexits.h."""


def exit_status(error: BaseException) -> int:
    """The exit status of a process whose app ended with this error."""
    return EXIT_FENCED if isinstance(error.__cause__, MemberFenced) else 1


class NotFound(LogError, LookupError):
    """A topic, partition or group that does not exist."""

    missing: tuple[str, str] | None = None
    """Which topic or group that is, where it is one: ``("topic", its name)`` or ``("group", its
    name)``."""


class TopicMismatch(LogError):
    """What was declared differs from what the log holds, such as a topic's number of partitions."""


class PartitionCountMismatch(TopicMismatch):
    """An event topic has another number of partitions than was declared. Keys would go to other
    partitions than before, and have a second history there, so nothing is written."""


class EventTopicError(LogError):
    """Something that an event topic does not allow: writing to it other than by its aggregate,
    deleting or trimming its messages, or an append to a topic that is none. Nothing was done."""


class TooLarge(LogError, ValueError):
    """A record is larger than the log accepts; nothing was written."""


class Fenced(LogError):
    """This member no longer owns the partition: another epoch does. Nothing was committed."""


class GroupNotEmpty(LogError):
    """A group's position cannot be moved while members are running, unless forced."""


class NotRunning(StreamsError, RuntimeError):
    """The app is not entered (``async with app``, ``app.connected()``) or already closed."""


class ProcessorDied(StreamsError):
    """A processor ended for a reason other than being stopped; the cause is chained."""


class UnreadableHeaders(StreamsError, ValueError):
    """A message's headers cannot be read by the log's driver, so nobody knows what they say: it
    becomes a dead letter with its key and value, and is never tried again."""


class HandlerTimeout(StreamsError, TimeoutError):
    """A handler ran longer than the processor's ``timeout``; counts as a failed attempt."""


class TransactionTimeout(LogError, TimeoutError):
    """A block of ``app.transaction()`` was open for too long and is rolled back: nothing of it was
    written, neither rows nor messages."""


# -- what a handler says by raising ------------------------------------------------------------


class Reject(StreamsError):
    """Raised by a handler: do not try again, move the message to the dead letters now."""

    def __init__(self, reason: str = "rejected by its handler") -> None:
        super().__init__(reason)
        self.reason = reason


class RetryAfter(StreamsError):
    """Raised by a handler: try again after ``seconds`` (instead of the backoff's delay).

    It uses up an attempt like any failure.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        if not seconds >= 0:
            raise ValueError(f"RetryAfter needs seconds >= 0, got {seconds!r}")
        super().__init__(reason or f"asked to be tried again after {seconds:g} s")
        self.seconds = float(seconds)


class CodeTooOld(StreamsError):
    """Newer code wrote something that this code does not know: an event with a new tag, a command
    for a new decision. Old and new code run side by side while a new version is deployed.

    In a handler it is no failure: the message keeps its place at the head of its key, uses up no
    attempt and becomes no dead letter. It is handled by whoever has its partition next and knows
    what it means; until then its process says that it waits (``held_back`` in the health). Raised
    by this package, and by a handler that finds so itself.
    """


class BatchError(StreamsError):
    """Raised by a batch handler: these messages failed, the others of the batch are done.

    Of two messages of one key, the later one counts as done although the earlier one failed: a
    handler that must keep them in order names both.

    :param errors: the failure by index into the batch. :class:`Reject` and :class:`RetryAfter`
        are understood as values.
    :param results: with ``to=``, what is to be published for the others: an item a message, those
        of failed ones are not looked at. Without it a processor that publishes runs the batch
        again one by one, because it cannot know the results of those that are done.
    """

    def __init__(
        self, errors: Mapping[int, BaseException], results: Sequence[Any] | None = None
    ) -> None:
        super().__init__(f"{len(errors)} messages of the batch failed")
        self.errors = dict(errors)
        self.results = results
