"""Replays old messages: into a function, into another topic, or by moving a group.

::

    from streams.replay import replay, reset

    async with app.connected():
        await replay(app, flights, track, start=datetime(2013, 1, 5, tzinfo=timezone.utc))
        await replay(app, flights, "flights-2", partition=3, start=1041, rate=500)
        await reset(app, "delays", flights, "earliest")

A replay joins no group, so it moves no position and disturbs no consumer. Into a function it runs
on the same poller, executors and engine as a processor (order per key, concurrency, retries,
batches, dedup by message ID, bounded memory), fed with the range instead of a group's partitions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, overload

from streams.config import Dedup, Retry
from streams.decoding import Source
from streams.errors import ConfigError
from streams.log.events import events_only
from streams.log.range_reader import OffsetRange
from streams.message import Message
from streams.processor import Processor
from streams.replay.into_function import ReplayOptions, handle_range
from streams.replay.into_topic import copy_range
from streams.replay.offset_reset import Move, reset
from streams.replay.result import Failure, ReplayFailed, ReplayResult, total_messages
from streams.replay.token_bucket import TokenBucket
from streams.topic import Key, Topic, encode_key
from streams.topic_reader import OffsetSpec, resolve_ranges

if TYPE_CHECKING:
    from streams.app import Streams

__all__ = ["Failure", "Move", "ReplayFailed", "ReplayResult", "replay", "reset"]


A = TypeVar("A")


class _Options(TypedDict, total=False):
    """The keyword arguments of :func:`replay`."""

    start: OffsetSpec | Mapping[int, OffsetSpec]
    end: OffsetSpec
    partition: int | None
    key: Key | None
    rate: float | None
    dedup: Dedup | None
    retry: Retry | None
    errors: Literal["stop", "skip"]
    progress: Callable[[ReplayResult], None] | None


@overload
async def replay(
    app: Streams,
    topic: Source[A],
    into: Callable[[A], object] | Callable[[A, Message[A]], object],
    **options: Unpack[_Options],
) -> ReplayResult: ...


@overload
async def replay(
    app: Streams,
    topic: Source[Any] | str,
    into: Processor[..., Any] | Topic[Any] | str,
    **options: Unpack[_Options],
) -> ReplayResult: ...


@overload
async def replay(
    app: Streams, topic: str, into: Callable[..., Any], **options: Unpack[_Options]
) -> ReplayResult: ...


async def replay(
    app: Streams,
    topic: Source[Any] | str,
    into: Callable[..., Any] | Topic[Any] | str,
    *,
    start: OffsetSpec | Mapping[int, OffsetSpec] = "earliest",
    end: OffsetSpec = "latest",
    partition: int | None = None,
    key: Key | None = None,
    rate: float | None = None,
    dedup: Dedup | None = None,
    retry: Retry | None = None,
    errors: Literal["stop", "skip"] = "stop",
    progress: Callable[[ReplayResult], None] | None = None,
) -> ReplayResult:
    """Read a range of a topic again, into a function or another topic. No position moves.

    The range is fixed at the call: messages published meanwhile are not part of it.

    :param app: entered (``async with app``, ``app.connected()``).
    :param into: a processor (its handler runs as declared, but what it returns is not published
        and nothing becomes a dead letter), a plain or async function of ``(value)`` or
        ``(value, message)``, called for one message after the other; or a topic, to which messages
        are written unchanged: bytes, key, headers and ID. (An aggregate's event is a message
        like any other there: in place of the headers of its append it has its version.)
    :param start: an offset, time or other position, or a mapping of them by partition (then only
        these partitions are read).
    :param end: the same; the message at ``end`` is not read.
    :param key: only messages of this key.
    :param rate: messages a second, at most.
    :param dedup: the window in which a message ID is handled once. Default: the processor's own,
        10,000 for a function, none into a topic. It begins empty.
    :param retry: how often a failing message is tried. Default: the processor's own, once for a
        function.
    :param errors: ``"stop"`` at the first message that fails for good, or ``"skip"`` it.
    :param progress: called about ten times a second with the figures so far.
    :raises ReplayFailed: a message failed; the error has the positions from which to go on.
    :raises NotFound: there is no such topic or partition.
    :raises EventTopicError: the topic to write to holds an aggregate's events.
    :raises ConfigError: an option does not fit.
    """
    if errors not in ("stop", "skip"):
        raise ConfigError(f"errors={errors!r}: 'stop' or 'skip'")
    TokenBucket(rate)  # checks it
    name = topic if isinstance(topic, str) else topic.name
    key_bytes = None if key is None else encode_key(name, key)
    options = ReplayOptions(key_bytes, rate, dedup, retry, errors == "skip", progress)
    log, now = app.log, app.clock.time()
    target = into.name if isinstance(into, Topic) else into

    def survey() -> tuple[dict[int, OffsetRange], int | None]:
        ranges = resolve_ranges(log, name, start, end, partition=partition, now=now)
        return ranges, total_messages(log, name, ranges)

    if isinstance(target, str):
        if target == name:
            raise ConfigError(f"replay of {name} into itself would double every message in it")
        if (await asyncio.to_thread(log.describe_topic, target)).is_event_topic:
            raise events_only(target, "replayed into")
        ranges, total = await asyncio.to_thread(survey)
        return await copy_range(app, name, target, ranges, total, options)
    source = source_of(app, topic, target)
    ranges, total = await asyncio.to_thread(survey)
    if not callable(target):
        raise ConfigError(f"into={into!r}: a function, a processor or a topic")
    return await handle_range(app, source, name, target, ranges, total, options)


def source_of(app: Streams, topic: Source[Any] | str, into: object) -> Source[Any]:
    """The source that decodes the topic's values.

    A topic's name is looked up in the processor, its dead letter and retry topics included, and
    then among the app's topics.

    :raises ConfigError: the type of the values is not known.
    """
    if not isinstance(topic, str):
        return topic
    if isinstance(into, Processor):
        dead_letters = into.options.dead_letters
        for source in into.options.topics:
            if topic in (source.name, *dead_letters.topic_names([source.name], into.group)):
                return source
        if topic not in app.topics and len(into.options.topics) == 1:
            return into.options.topics[0]
    if topic in app.topics:
        return app.topics[topic]
    known = ", ".join(sorted(app.topics)) or "none"
    raise ConfigError(
        f"topic {topic!r}: of what type its values are is not known; declared are: {known}"
    )
