"""Causes: what a decision is taken for, as a text that is the same whenever it is taken again.

In a handler that is its message. The text is made of

* the group, so that two groups which decide upon one message do not swallow each other's decisions;
* the message's topic, CloudEvents source (else its partition, as under two keys one ID is of two
  messages) and ID, without how often it was put back: redelivered, or redriven from the dead
  letters, it is the same message. One without an ID is called by where it stood first, and when;
* the group's generation: after a reset the message is handled on purpose, and decided upon anew;
* which of the handler's calls on that aggregate it is, counted from 0.

The aggregate is not part of it, as a cause is looked up in one aggregate's history.

A handler must make its calls on one aggregate one after the other, in the same order each time. One
that cannot names its causes. So does one that goes on after a call that had no answer, or in which
others were faster each time: when the message is handled again that call may succeed, and what
followed it would have another number, and find nothing of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal

from streams.app import Streams
from streams.callables import run_generator
from streams.config import DeadLetters
from streams.derived_records import first_place, first_position, message_generation
from streams.errors import ConfigError, LogError, TooLarge, Unavailable
from streams.eventsourcing.errors import WrongExpectedVersion
from streams.log.event_headers import MAX_CAUSE
from streams.message import GENERATION, SOURCE, Message, make_message, row_of, text
from streams.processing import Job

Cause = str | Message[Any] | Literal[False] | None
"""A cause as it may be given: a text, a message, none (False), or the message that is being handled
(None)."""


class Handling:
    """One call of a handler: what it is called with, and what it has decided so far.

    Its calls are counted on the app's loop only.
    """

    __slots__ = (
        "_counts", "_in_flight", "_row", "_unanswered", "_value", "ended", "group", "sources",
    )  # fmt: skip

    def __init__(
        self, group: str, sources: Mapping[str, str], value: Any = None, row: tuple[Any, ...] = ()
    ) -> None:
        """:param row: the message, or what it is made of beside its value; empty: a batch."""
        self.group = group
        self.sources = sources
        """The topics of the group, by those through which their messages come back."""
        self.ended = False
        """The handler has returned or raised."""
        self._value = value
        self._row = row
        # Most calls decide nothing: what only decisions need is made when there is one.
        self._counts: dict[tuple[str, str, str], int] | None = None
        self._in_flight: set[tuple[str, str, str]] | None = None
        self._unanswered: dict[tuple[str, str, str], BaseException] | None = None
        """What calls ended in that had no answer."""

    @property
    def message(self) -> Message[Any] | None:
        """The message that the handler was called with; None if it was called with a batch."""
        row = self._row
        if len(row) > 1:
            row = self._row = (make_message(self._value, *row),)
        return row[0] if row else None

    def begin_call(self, aggregate: str, id: str, cause: str) -> int:
        """Which call with this cause on this aggregate begins, from 0.

        :raises ConfigError: one is going on.
        :raises Unavailable: one has ended without an answer: the message is to be tried again.
        """
        call = (aggregate, id, cause)
        if self._counts is None or self._in_flight is None:
            self._counts, self._in_flight = {}, set()
        if call in self._in_flight:
            raise ConfigError(
                f"aggregate {aggregate!r}: two calls upon {id!r} at the same time in one handler: "
                "which of them is the first may be another next time, so await one after the "
                "other, or name their causes with with_options(cause=...)"
            )
        if self._unanswered is not None and call in self._unanswered:
            error = self._unanswered[call]
            # No ConfigError, although the handler is wrong: an outage is to end no processor.
            raise Unavailable(
                f"aggregate {aggregate!r}: a call upon {id!r} in this handler ended in "
                f"{type(error).__name__}, and another one follows, which could not be told from "
                "it when the message is handled again: let the error go, so that the message is "
                "tried again and finds what was appended, or name the causes of both calls with "
                "with_options(cause=...), each by a text of its own"
            ) from error
        number = self._counts.get(call, 0)
        self._counts[call] = number + 1
        self._in_flight.add(call)
        return number

    def note_unanswered(self, aggregate: str, id: str, cause: str, error: BaseException) -> None:
        """The call is ending without an answer: made again, it may have one."""
        if self._unanswered is None:
            self._unanswered = {}
        self._unanswered[aggregate, id, cause] = error

    def end_call(self, aggregate: str, id: str, cause: str) -> None:
        """The call has ended."""
        if self._in_flight is not None:
            self._in_flight.discard((aggregate, id, cause))


_handling: ContextVar[Handling | None] = ContextVar("streams-handling", default=None)


def is_handling() -> bool:
    """Whether this is called in a handler, or by what one has started."""
    return _handling.get() is not None


@contextmanager
def cause_of_call(aggregate: str, id: str, message: Message[Any] | None) -> Iterator[str]:
    """The cause of a call upon an aggregate, while it goes on; empty: it has none.

    :param message: that was given as the cause; None: the one that is being handled.
    :raises ConfigError: it has to be named.
    """
    handling = _handling.get()
    if message is None and handling is not None:
        message = _message_of(handling, aggregate, id)
    if message is None:
        yield ""
        return
    cause = _source_of(message, handling)
    number = 0 if handling is None else handling.begin_call(aggregate, id, cause)
    try:
        yield cause_text(f"{number}/{cause}")
    except (LogError, WrongExpectedVersion, asyncio.CancelledError) as error:
        # What is too large is so each time, and so is a version that was not the expected one.
        is_final = isinstance(error, TooLarge) or (
            isinstance(error, WrongExpectedVersion) and not error.is_conflict
        )
        if handling is not None and not is_final:
            handling.note_unanswered(aggregate, id, cause, error)
        raise
    finally:
        if handling is not None:
            handling.end_call(aggregate, id, cause)


def _message_of(handling: Handling, aggregate: str, id: str) -> Message[Any]:
    """The message that a handler handles.

    :raises ConfigError: there are several, or it is not being handled any more.
    """
    advice = "give it with with_options(cause=...): a message, a text, or False for none"
    if handling.ended:
        raise ConfigError(
            f"aggregate {aggregate!r}: a call upon {id!r} by a task that outlives the handler "
            f"which started it: what it is for cannot be told, so {advice}"
        )
    if handling.message is None:
        raise ConfigError(
            f"aggregate {aggregate!r}: a call upon {id!r} in a batch handler: for which of the "
            f"messages cannot be told, so {advice}"
        )
    return handling.message


def message_identity(message: Message[Any]) -> str:
    """A message, in the handler that handles it: the same text however often it was put back, and
    after a reset of its group."""
    handling = _handling.get()
    topic = message.topic
    if handling is not None:
        topic = handling.sources.get(topic, topic)
    return f"{topic}/{_name_of(message, has_come_back=topic != message.topic)}"


def _source_of(message: Message[Any], handling: Handling | None) -> str:
    """A group and a message, without how often it was put back."""
    group, topic, came_back = "", message.topic, False
    if handling is not None:
        group, topic = handling.group, handling.sources.get(topic, topic)
        came_back = topic != message.topic
    header = message.header(GENERATION) if came_back else None
    generation = message_generation(header, message.assignment)
    return f"{group}/{generation}/{topic}/{_name_of(message, has_come_back=came_back)}"


def _name_of(message: Message[Any], *, has_come_back: bool) -> str:
    """A message among those of its topic, without how often it was put back."""
    place = first_place(message, has_come_back=has_come_back)
    if message.id == place.text:
        # It has none, and its position recurs where the topic is made anew.
        return f"@{first_position(*row_of(message), has_come_back=has_come_back)}"
    source = text(message.header(SOURCE) or b"").replace("%", "%25").replace("#", "%23")
    if not source:
        source = f"#{place.partition}"
    return f"{source}#{message.id}"


def cause_text(cause: str) -> str:
    """A cause that is not too long: the beginning of one that is, and a hash."""
    data = cause.encode("utf-8", "surrogateescape")
    if len(data) <= MAX_CAUSE:
        return cause
    digest = blake2b(data, digest_size=16).hexdigest()
    return f"{data[: MAX_CAUSE - 100].decode('utf-8', 'ignore')}~{digest}"


# -- handlers, as the app runs them ---------------------------------------------------------------


def follow_handlers(app: Streams) -> None:
    """Have the app's handlers be the causes of what they decide; once is enough."""
    for wrappers in (app.job_wrappers, app.replay_wrappers):
        if _wrap_job not in wrappers:
            wrappers.append(_wrap_job)


def _wrap_job(job: Job) -> Job:
    """The same job, with each call of its handler known as a :class:`Handling`."""
    names = DeadLetters()
    retry_topics = {names.retry(each, job.group): each for each in job.topics}
    sources = {each: retry_topics[each] for each in job.topics if each in retry_topics}
    if job.batch is not None:
        return replace(job, function=_batch_function(job, sources))
    return replace(
        job,
        function=_message_function(job, sources),
        wants_message=True,
        builds_messages=True,
        transactions=job.transactions and job.wants_message,
    )


def _message_function(job: Job, sources: Mapping[str, str]) -> Callable[..., Any]:
    """Calls a handler of single messages, which is given what it asked for."""
    function, group = job.function, job.group
    has_results, wants_message, builds_messages = (
        job.encode_results is not None,
        job.wants_message,
        job.builds_messages,
    )

    def begin(value: Any, row: tuple[Any, ...]) -> tuple[Handling, tuple[Any, ...]]:
        handling = Handling(group, sources, value, row)
        if not wants_message:
            return handling, ()
        return handling, row if builds_messages else (handling.message,)

    async def call_async(value: Any, *row: Any) -> Any:
        handling, given = begin(value, row)
        token = _handling.set(handling)
        try:
            return await function(value, *given)
        finally:
            handling.ended = True
            _handling.reset(token)

    def call_plain(value: Any, *row: Any) -> Any:
        handling, given = begin(value, row)
        token = _handling.set(handling)
        try:
            found = function(value, *given)
            return run_generator(found) if has_results else found
        finally:
            handling.ended = True
            _handling.reset(token)

    return call_async if job.asynchronous else call_plain


def _batch_function(job: Job, sources: Mapping[str, str]) -> Callable[..., Any]:
    """Calls a handler of batches."""
    function, group, has_results = job.function, job.group, job.encode_results is not None

    async def call_async(*given: Any) -> Any:
        handling = Handling(group, sources)
        token = _handling.set(handling)
        try:
            return await function(*given)
        finally:
            handling.ended = True
            _handling.reset(token)

    def call_plain(*given: Any) -> Any:
        handling = Handling(group, sources)
        token = _handling.set(handling)
        try:
            found = function(*given)
            if not has_results:
                return found
            found = run_generator(found)
            if isinstance(found, (list, tuple)):
                return [run_generator(each) for each in found]
            return found
        finally:
            handling.ended = True
            _handling.reset(token)

    return call_async if job.asynchronous else call_plain
