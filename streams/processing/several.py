"""Messages whose decoding yields several values, such as an old event that an upcast splits.

A handler sees the values of one message one after the other, each with a message of its own, whose
ID is the stored one's with ``#0``, ``#1`` and so on. They are settled together: if one fails
the message is tried again, or dead-lettered, with all its values, so those before it are handled
again. A handler of batches gets them side by side in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import CoroutineType
from typing import Any, NamedTuple

from streams.callables import run_generator
from streams.errors import BatchError
from streams.message import Batch, Message, numbered_batch, numbered_message
from streams.processing.job import Job, Outgoing, ResultEncoder, SeveralValues


class _ValueResults:
    """The handler's results for a message's values, one by one; None where it was not called."""

    __slots__ = ("values",)

    def __init__(self, values: list[Any]) -> None:
        self.values = values


def expand_several(job: Job) -> Job:
    """The same job, for messages of which some may be :class:`SeveralValues`.

    :param job: one that does not build messages itself.
    """
    if not any(each.gives_several for each in job.decodings.values()):
        return job
    accepts, encode = job.filter, job.encode_results
    return replace(
        job,
        function=_message_function(job) if job.batch is None else _batch_function(job),
        filter=None if accepts is None else _any_accepted(accepts),
        encode_results=None if encode is None else _encode_each(encode),
    )


def _any_accepted(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def accepts_any(value: Any) -> bool:
        if type(value) is SeveralValues:
            return any(map(accepts, value.values))
        return accepts(value)

    return accepts_any


def _encode_each(encode: ResultEncoder) -> ResultEncoder:
    def encode_each(
        result: Any, batch: Batch, index: int, identity: str | None
    ) -> Sequence[Outgoing]:
        if type(result) is not _ValueResults:
            return encode(result, batch, index, identity)
        found: list[Outgoing] = []
        for number, each in enumerate(result.values):
            if each is not None:  # by an ID of its own
                numbered = numbered_batch(batch, index, number)
                found += encode(each, numbered, 0, numbered.ids[0])
        return found

    return encode_each


def _message_function(job: Job) -> Callable[..., Any]:
    """Calls a handler of single messages."""
    function, accepts, has_results = job.function, job.filter, job.encode_results is not None

    def arguments(value: SeveralValues, given: tuple[Any, ...]) -> list[tuple[Any, ...] | None]:
        """The arguments of the handler's call for each value; None: no call."""
        return [
            (each, *(numbered_message(message, each, number) for message in given))
            if accepts is None or accepts(each)
            else None
            for number, each in enumerate(value.values)
        ]

    async def call_async(value: Any, *given: Any) -> Any:
        if type(value) is not SeveralValues:
            return await function(value, *given)
        results = [
            None if each is None else await function(*each) for each in arguments(value, given)
        ]
        return _ValueResults(results) if has_results else None

    def call_plain(value: Any, *given: Any) -> Any:
        if type(value) is not SeveralValues:
            return function(value, *given)
        results: list[Any] = []
        for each in arguments(value, given):
            result = None if each is None else function(*each)
            if isinstance(result, CoroutineType):
                return result  # the executor says what is wrong with that
            results.append(run_generator(result) if has_results else None)
        return _ValueResults(results) if has_results else None

    return call_async if job.asynchronous else call_plain


class _ExpandedBatch(NamedTuple):
    """A batch with its messages' values side by side."""

    arguments: tuple[list[Any], ...]
    """Values, and perhaps messages."""
    origins: list[int]
    """The index in the batch of each value's message."""
    numbers: list[int]
    """The number of each value within its message; -1: the message has only one."""


def _batch_function(job: Job) -> Callable[..., Any]:
    """Calls a handler of batches."""
    function, accepts, has_results = job.function, job.filter, job.encode_results is not None

    def expand(values: Sequence[Any], messages: Sequence[Message[Any]] | None) -> _ExpandedBatch:
        flat: list[Any] = []
        flat_messages: list[Any] = []
        origins: list[int] = []
        numbers: list[int] = []
        for index, value in enumerate(values):
            has_several = type(value) is SeveralValues
            for number, each in enumerate(value.values if has_several else (value,)):
                if has_several and accepts is not None and not accepts(each):
                    continue
                flat.append(each)
                origins.append(index)
                numbers.append(number if has_several else -1)
                if messages is not None:
                    message = messages[index]
                    flat_messages.append(
                        numbered_message(message, each, number) if has_several else message
                    )
        return _ExpandedBatch(
            (flat,) if messages is None else (flat, flat_messages), origins, numbers
        )

    def regroup(results: Any, expanded: _ExpandedBatch, values: Sequence[Any]) -> Any:
        """Results by value as results by message."""
        if not has_results or results is None:
            return results
        found = list(results)
        if len(found) != len(expanded.origins):
            raise ValueError(
                f"{job.name} returned {len(found)} results for {len(expanded.origins)} values: "
                "return one for each, None for nothing"
            )
        grouped: list[Any] = [
            _ValueResults([None] * len(each.values)) if type(each) is SeveralValues else None
            for each in values
        ]
        for result, index, number in zip(found, expanded.origins, expanded.numbers, strict=True):
            if number < 0:
                grouped[index] = result
            else:
                grouped[index].values[number] = run_generator(result)
        return grouped

    def regroup_error(
        error: BatchError, expanded: _ExpandedBatch, values: Sequence[Any]
    ) -> BatchError:
        errors: dict[int, BaseException] = {}
        for at, each in error.errors.items():
            known = isinstance(at, int) and 0 <= at < len(expanded.origins)
            errors.setdefault(expanded.origins[at] if known else -1, each)
        return BatchError(errors, regroup(error.results, expanded, values))

    def is_plain(values: Sequence[Any]) -> bool:
        return not any(type(each) is SeveralValues for each in values)

    async def call_async(values: Sequence[Any], messages: Any = None) -> Any:
        if is_plain(values):
            return await (function(values) if messages is None else function(values, messages))
        expanded = expand(values, messages)
        try:
            return regroup(await function(*expanded.arguments), expanded, values)
        except BatchError as error:
            raise regroup_error(error, expanded, values) from error

    def call_plain(values: Sequence[Any], messages: Any = None) -> Any:
        if is_plain(values):
            return function(values) if messages is None else function(values, messages)
        expanded = expand(values, messages)
        try:
            result = function(*expanded.arguments)
            if isinstance(result, CoroutineType):
                return result  # the executor says what is wrong with that
            return regroup(result, expanded, values)
        except BatchError as error:
            raise regroup_error(error, expanded, values) from error

    return call_async if job.asynchronous else call_plain
