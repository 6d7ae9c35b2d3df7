"""Causes: a text that identifies why a decision is taken, the same whenever it is taken again.

In a handler, the cause is its message. The text is made of

* the group, so that two groups that decide on one message do not suppress each other's decisions;
* the message's topic, CloudEvents source (else its partition, as one ID with two keys is two
  messages) and ID, without its redrive count: redelivered, or redriven from the dead letters, it
  is the same message. A message without an ID is named by its first position, and its time there;
* the group's generation: after a reset the message is handled again on purpose, so decisions are
  taken again;
* the index of the handler's call on that aggregate, from 0.

The aggregate is not part of it, as a cause is looked up in one aggregate's history.

A handler must make its calls on one aggregate one after the other, in the same order each time. A
handler that cannot do so must name its causes. So must one that goes on after a call that had no
answer, or that met a conflict on every attempt: when the message is handled again, that call may
succeed, and the calls after it would have other numbers, and not find what they appended.
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
"""A cause as callers give it: a text, a message, no cause (False), or the message that is being
handled (None)."""


class Handling:
    """One call of a handler: the message or batch, and the decisions taken so far.

    Its calls are counted on the app's loop only.
    """

    __slots__ = (
        "_counts", "_in_flight", "_row", "_unanswered", "_value", "ended", "group", "sources",
    )  # fmt: skip

    def __init__(
        self, group: str, sources: Mapping[str, str], value: Any = None, row: tuple[Any, ...] = ()
    ) -> None:
        """:param row: the message, or its fields without the value; empty: a batch."""
        self.group = group
        self.sources = sources
        """Maps the topics through which messages come back to their source topics."""
        self.ended = False
        """The handler has returned or raised."""
        self._value = value
        self._row = row
        # Most calls decide nothing: these are made at the first decision.
        self._counts: dict[tuple[str, str, str], int] | None = None
        self._in_flight: set[tuple[str, str, str]] | None = None
        self._unanswered: dict[tuple[str, str, str], BaseException] | None = None
        """The errors of calls that ended without an answer."""

    @property
    def message(self) -> Message[Any] | None:
        """The message that the handler was called with; None if it was called with a batch."""
        row = self._row
        if len(row) > 1:
            row = self._row = (make_message(self._value, *row),)
        return row[0] if row else None

    def begin_call(self, aggregate: str, id: str, cause: str) -> int:
        """Note that a call on an aggregate begins; returns its number among those with the same
        cause, from 0.

        :raises ConfigError: another such call is still running.
        :raises Unavailable: an earlier one ended without an answer: the message must be retried.
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
            # No ConfigError, although the handler is wrong: an outage must not end the processor.
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
        """Note that the call ended without an answer; a retry may get one."""
        if self._unanswered is None:
            self._unanswered = {}
        self._unanswered[aggregate, id, cause] = error

    def end_call(self, aggregate: str, id: str, cause: str) -> None:
        """Note that the call has ended."""
        if self._in_flight is not None:
            self._in_flight.discard((aggregate, id, cause))


_handling: ContextVar[Handling | None] = ContextVar("streams-handling", default=None)


def is_handling() -> bool:
    """Whether this is called in a handler, or in a task that a handler has started."""
    return _handling.get() is not None


@contextmanager
def cause_of_call(aggregate: str, id: str, message: Message[Any] | None) -> Iterator[str]:
    """The cause of a call on an aggregate, for as long as the call runs; empty: it has none.

    :param message: the message given as the cause; None: the one that is being handled.
    :raises ConfigError: the cause has to be given explicitly.
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
        # An append that is too large fails each time, and so does a wrong expected version.
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

    :raises ConfigError: there are several, or the handler has ended.
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
    """Identifies a message in the handler that handles it: the text stays the same however often
    the message was put back, and after a reset of its group."""
    handling = _handling.get()
    topic = message.topic
    if handling is not None:
        topic = handling.sources.get(topic, topic)
    return f"{topic}/{_name_of(message, has_come_back=topic != message.topic)}"


def _source_of(message: Message[Any], handling: Handling | None) -> str:
    """Identifies a group and a message, without the message's redrive count."""
    group, topic, came_back = "", message.topic, False
    if handling is not None:
        group, topic = handling.group, handling.sources.get(topic, topic)
        came_back = topic != message.topic
    header = message.header(GENERATION) if came_back else None
    generation = message_generation(header, message.assignment)
    return f"{group}/{generation}/{topic}/{_name_of(message, has_come_back=came_back)}"


def _name_of(message: Message[Any], *, has_come_back: bool) -> str:
    """Identifies a message within its topic, without its redrive count."""
    place = first_place(message, has_come_back=has_come_back)
    if message.id == place.text:
        # It has no ID; its position alone would recur if the topic is created again.
        return f"@{first_position(*row_of(message), has_come_back=has_come_back)}"
    source = text(message.header(SOURCE) or b"").replace("%", "%25").replace("#", "%23")
    if not source:
        source = f"#{place.partition}"
    return f"{source}#{message.id}"


def cause_text(cause: str) -> str:
    """A cause of limited length: one that is too long becomes its beginning and a hash."""
    data = cause.encode("utf-8", "surrogateescape")
    if len(data) <= MAX_CAUSE:
        return cause
    digest = blake2b(data, digest_size=16).hexdigest()
    return f"{data[: MAX_CAUSE - 100].decode('utf-8', 'ignore')}~{digest}"


# -- handlers, as the app runs them ---------------------------------------------------------------


def follow_handlers(app: Streams) -> None:
    """Make the messages of the app's handlers the causes of their decisions. Idempotent."""
    for wrappers in (app.job_wrappers, app.replay_wrappers):
        if _wrap_job not in wrappers:
            wrappers.append(_wrap_job)


def _wrap_job(job: Job) -> Job:
    """The same job, with each call of its handler tracked as a :class:`Handling`."""
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
    """The function that calls a handler of single messages, with the arguments it asked for."""
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
    """The function that calls a handler of batches."""
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
