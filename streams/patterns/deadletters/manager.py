"""Dead letters in code: list, redrive, edit and purge them, or write one by hand.

The code counterpart of ``streams dead`` on the command line, on the same records; see
:mod:`streams.patterns.deadletters.redriving` for how it works.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from contextlib import closing
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from streams.callables import is_async
from streams.cancellation import run_in_thread, run_to_completion
from streams.derived_records import ERROR_PREFIX, dead_letter_record
from streams.errors import ConfigError, InvalidValue, NotFound, Reject
from streams.log.event_headers import copied_headers
from streams.log.names import check_group, check_topic
from streams.log.protocol import ensure_topic
from streams.message import ID, Message, Position, Record, headers_without
from streams.numbers import is_int
from streams.patterns.arguments import check_app, check_callable
from streams.patterns.deadletters.dead_letter import DeadLetter, declared_topic, read_dead_letter
from streams.patterns.deadletters.redriving import (
    SCAN_LIMIT,
    DeadLetterTopic,
    Destination,
    put_back_topic,
    source_of,
)
from streams.patterns.queue import QueueMessage
from streams.text import get_logger
from streams.topic import Topic

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log
    from streams.log.range_reader import LogRow

logger = get_logger("streams")

Filter = Callable[[DeadLetter], bool]
"""Selects dead letters; a plain function, called in a thread."""

DeadLetterRef = DeadLetter | Position | str
"""One dead letter: the object, its own position, or its position or message ID as text."""


class DeadLetterManager:
    """The dead letters in one topic.

    :param app: the app on whose log they are; to be used while it is entered or connected.
    :param name: their topic: ``orders.billing.dead`` for the messages of ``orders`` that group
        ``billing`` could not handle, ``jobs.jobs.dead`` for the queue ``jobs``, or the value of
        ``DeadLetters(topic=)`` or ``ConsumerConfig(dead_letter_queue=)``.
    :raises ConfigError: it cannot be a topic's name.
    """

    def __init__(self, app: Streams, name: str) -> None:
        self._app = check_app(app, "DeadLetterManager")
        self.name = check_topic(name)

    def __repr__(self) -> str:
        return f"<DeadLetterManager {self.name!r}>"

    async def move_to_dead_letter(
        self,
        message: Message[Any] | QueueMessage[Any],
        error: BaseException | str,
        source_queue: str | Topic[Any],
        *,
        group: str | None = None,
    ) -> Position:
        """Write a dead letter; returns its position once it is durable.

        The message keeps its bytes, key, headers and ID. It may be written again if the outcome of
        a first try is unknown: it is still handled once when it is put back.

        :param error: the reason; its text is stored.
        :param source_queue: the topic or queue of the message.
        :param group: the group that could not handle it, and gets it when it is put back; if not
            given, the one group of this app that reads ``source_queue``.
        :raises ConfigError: the message has no bytes, and the app does not declare the topic.
        :raises LogError: as :meth:`streams.Topic.publish`.
        """
        topic = source_queue.name if isinstance(source_queue, Topic) else check_topic(source_queue)
        group = self._group_of(topic) if group is None else check_group(group)
        if isinstance(error, str):
            error = Reject(error)
        if not isinstance(error, BaseException):
            raise ConfigError(f"move_to_dead_letter(error={error!r}): an exception, or a text")
        record, attempts, failed_at = self._dead_letter_record(message, topic)
        record.headers = headers_without(record.headers, prefix=ERROR_PREFIX)
        now = self._app.clock.time()
        dead_letter = dead_letter_record(record, error, attempts, group or "", failed_at, now)
        await run_in_thread(self._ensure_topic, topic)
        return await self._app.publisher.publish(self.name, dead_letter)

    async def get_dead_letters(
        self, limit: int = 100, *, filter: Filter | None = None, everything: bool = False
    ) -> list[DeadLetter]:
        """The dead letters that wait, oldest first; an empty list if there is no such topic yet.

        :param limit: how many at most.
        :param filter: only those for which it is true. At most 1,000,000 are searched; a warning
            is logged if there are more.
        :param everything: also those that were put back or purged.
        :raises InvalidValue: ``limit`` is no whole number from 1.
        :raises ConfigError: ``filter`` is no plain function.
        :raises LogError: the log cannot be read.
        """
        _check_limit("get_dead_letters", limit)
        _check_filter("get_dead_letters", filter)
        return await asyncio.to_thread(self._waiting_letters, limit, filter, everything=everything)

    async def count(self, filter: Filter | None = None) -> int:
        """How many dead letters wait; 0 if there is no such topic yet. Reads them all.

        :param filter: only those for which it is true.
        :raises ConfigError: ``filter`` is no plain function.
        :raises LogError: the log cannot be read.
        """
        _check_filter("count", filter)
        matches = self._row_predicate(filter)

        def count() -> int:
            try:
                return DeadLetterTopic(self._app.log, self.name).count_waiting(matches)
            except NotFound:
                return 0

        return await asyncio.to_thread(count)

    async def reprocess(
        self,
        target: str | Topic[Any] | None = None,
        filter: Filter | None = None,
        *,
        limit: int | None = None,
        only: DeadLetterRef | Collection[DeadLetterRef] | None = None,
    ) -> int:
        """Put waiting dead letters back, those of a key in the order in which they failed.

        Each is handled once within the dedup window, also if this is killed midway and called
        again. A message that fails again is a new dead letter with one more ``redrives``: a
        ``filter`` such as ``lambda letter: letter.redrives < 3`` ends a loop.

        :param target: the topic they are written to; if not given, the retry topic of the group
            that could not handle them, which only this group reads. Messages that a delay topic
            could not deliver go back into it, and are due at once.
        :param filter: only those for which it is true.
        :param limit: how many of each partition at most, the oldest first.
        :param only: only these; a message ID selects all waiting dead letters that have it.
        :returns: how many were put back.
        :raises NotFound: there is no such dead letter topic, or no topic ``target``, or one of
            ``only`` does not exist or does not wait any more; then nothing is put back.
        :raises InvalidValue: ``target`` is not given, and a dead letter does not name its group, or
            is of a topic that this app does not declare.
        :raises ReprocessStopped: the log refused one, or too many single ones were picked out.
            Those that were put back are marked.
        """
        _check_limit("reprocess", limit)
        _check_filter("reprocess", filter)
        name = target.name if isinstance(target, Topic) else target
        if name is not None and check_topic(name) == self.name:
            raise ConfigError(f"reprocess(target={name!r}): that is where the letters are")
        chosen = self._check_refs("reprocess", only)

        def reprocess(stop: threading.Event) -> int:
            topic = DeadLetterTopic(self._app.log, self.name)
            if name is not None:
                self._app.log.describe_topic(name)
            matches, end_offsets = self._selection(topic, filter, chosen)
            return topic.redrive(
                self._destinations() if name is None else lambda row: str(name),
                matches=matches,
                limit=limit,
                stop=stop,
                end_offsets=end_offsets,
            )

        return await self._run_in_thread(reprocess)

    async def edit(self, letter: DeadLetterRef, value: Any) -> None:
        """Put a dead letter back with another value. It keeps its key, headers and ID, and gets a
        header that marks it as edited.

        If this is killed midway, it may have been put back and still wait. If it is then put back
        again, the first is handled.

        :param value: bytes that are stored unchanged, or a value of the app's topic.
        :raises NotFound: it does not exist, or does not wait any more.
        :raises InvalidValue: several waiting ones have this message ID: name it by its position.
        :raises EncodeError: the value does not fit the topic's type.
        :raises ReprocessStopped: the log refuses it.
        """
        name = self._check_ref("edit", letter)

        def edit(stop: threading.Event) -> int:
            topic = DeadLetterTopic(self._app.log, self.name)
            selection = topic.select_named([name])
            if selection.count != 1:
                raise InvalidValue(
                    f"edit: {selection.count} letters have the ID {name!r}; name one by its "
                    "position"
                )
            ((partition, end),) = selection.end_offsets.items()
            with closing(topic.row_at(partition, end - 1)) as rows:
                edited = self._encode_edit(next(iter(rows)), value)
            return topic.redrive(
                self._destinations(),
                matches=selection.matches,
                end_offsets=selection.end_offsets,
                edited=edited,
            )

        await self._run_in_thread(edit)

    async def purge(
        self,
        filter: Filter | None = None,
        *,
        limit: int | None = None,
        only: DeadLetterRef | Collection[DeadLetterRef] | None = None,
    ) -> int:
        """Set waiting dead letters aside: they are neither put back nor listed any more.

        Nothing is deleted: ``get_dead_letters(everything=True)`` still has them.

        :param filter: only those for which it is true.
        :param limit: how many of each partition at most, the oldest first.
        :param only: only these; a message ID selects all waiting dead letters that have it.
        :returns: how many were set aside.
        :raises NotFound: there is no such dead letter topic, or one of ``only`` does not exist or
            does not wait any more; then nothing is set aside.
        :raises ReprocessStopped: too many single ones were picked out.
        """
        _check_limit("purge", limit)
        _check_filter("purge", filter)
        chosen = self._check_refs("purge", only)

        def purge(stop: threading.Event) -> int:
            topic = DeadLetterTopic(self._app.log, self.name)
            matches, end_offsets = self._selection(topic, filter, chosen)
            return topic.purge(matches=matches, limit=limit, stop=stop, end_offsets=end_offsets)

        return await self._run_in_thread(purge)

    # -- inside, off the loop

    async def _run_in_thread(self, operation: Callable[[threading.Event], int]) -> int:
        stop = threading.Event()
        # Even if the caller is cancelled, the letters already written have to be marked.
        return await run_to_completion(asyncio.to_thread(operation, stop), stop.set)

    def _waiting_letters(
        self, limit: int, filter: Filter | None, *, everything: bool
    ) -> list[DeadLetter]:
        try:
            topic = DeadLetterTopic(self._app.log, self.name)
            rows = topic.rows(everything=everything, scan_limit=SCAN_LIMIT)
        except NotFound:
            return []
        found: list[DeadLetter] = []
        with closing(rows):
            for row in rows:
                dead_letter = read_dead_letter(self._app, row, waiting=rows.is_waiting(row))
                if filter is None or filter(dead_letter):
                    found.append(dead_letter)
                    if len(found) >= limit:
                        break
        if rows.is_truncated:
            logger.warning(
                "%s: only the oldest %d dead letters were checked; deal with those first",
                self.name, SCAN_LIMIT,
            )  # fmt: skip
        return found

    def _check_refs(
        self, what: str, only: DeadLetterRef | Collection[DeadLetterRef] | None
    ) -> list[str | Position] | None:
        """The named dead letters, for :meth:`DeadLetterTopic.select_named`; None: all."""
        if only is None:
            return None
        if isinstance(only, (DeadLetter, Position, str)) or not isinstance(only, Collection):
            return [self._check_ref(what, only)]
        return [self._check_ref(what, each) for each in only]

    def _check_ref(self, what: str, ref: DeadLetterRef) -> str | Position:
        position = ref.position if isinstance(ref, DeadLetter) else ref
        if isinstance(position, str):
            return position
        if not isinstance(position, Position):
            raise InvalidValue(
                f"{what}: a {type(ref).__name__} names no letter; give a DeadLetter, its "
                "position or its message ID"
            )
        if position.topic != self.name:
            raise InvalidValue(
                f"{what}: {position} is not a position in {self.name}; give that of the letter "
                "itself, DeadLetter.position"
            )
        return position

    def _encode_edit(self, row: LogRow, value: Any) -> bytes:
        if isinstance(value, bytes):
            return value
        topic, _ = source_of(row.headers)
        declared = declared_topic(self._app, topic, "edit", ", or give bytes")
        found = declared.record(value, id="edited").value
        if found is None:
            raise InvalidValue("edit: a letter's value can be changed, not taken away")
        return found

    def _selection(
        self, topic: DeadLetterTopic, filter: Filter | None, only: list[str | Position] | None
    ) -> tuple[Callable[[LogRow], bool] | None, dict[int, int] | None]:
        """The selected dead letters, and the offsets before which they are."""
        matches = self._row_predicate(filter)
        if only is None:
            return matches, None
        selection = topic.select_named(only)
        if matches is None:
            return selection.matches, selection.end_offsets
        row_filter = matches
        return lambda row: selection.matches(row) and row_filter(row), selection.end_offsets

    def _row_predicate(self, filter: Filter | None) -> Callable[[LogRow], bool] | None:
        if filter is None:
            return None
        return lambda row: bool(filter(read_dead_letter(self._app, row, waiting=True)))

    def _destinations(self) -> Destination:
        """A function that maps dead letters to destinations. Headers are not trusted with the
        topic's name: the app must declare or read the source topic, and the name is derived from
        it."""
        topic_of = cache(partial(put_back_topic, self._app.log))

        def destination(row: LogRow) -> str:
            topic, group = source_of(row.headers)
            group = group or (None if topic is None else self._group_of(topic))
            if topic is None or group is None:
                missing = "topic" if topic is None else "group"
                raise InvalidValue(
                    f"{row.position}: this letter does not say which {missing}'s it is; "
                    "say where it goes: reprocess(target=...)"
                )
            if topic not in self._app.topics and not self._is_read(topic):
                raise InvalidValue(
                    f"{row.position}: this letter is of topic {topic!r}, which this app does not "
                    "declare; declare it with app.topic(...), or say reprocess(target=...)"
                )
            return check_topic(topic_of(topic, check_group(group)))

        return destination

    def _is_read(self, topic: str) -> bool:
        """Whether a processor of this app reads a topic, be it one of the toolkit's own."""
        return any(topic in each.topics for each in self._app.processors)

    def _group_of(self, topic: str) -> str | None:
        """The one group whose dead letters of ``topic`` are written here, or that reads
        ``topic``."""
        reading = [each for each in self._app.processors if topic in each.topics]
        dead_lettering = [
            each
            for each in reading
            if each.options.dead_letters.name(topic, each.group) == self.name
        ]
        groups = {each.group for each in dead_lettering or reading}
        return groups.pop() if len(groups) == 1 else None

    def _dead_letter_record(
        self, message: Message[Any] | QueueMessage[Any], topic: str
    ) -> tuple[Record, int, tuple[str, int, str]]:
        """The record without its error, the number of attempts, and the message's position."""
        if isinstance(message, QueueMessage):
            record = declared_topic(self._app, topic, "move_to_dead_letter").record(
                message.data, key=message.key, id=message.id, timestamp=message.timestamp
            )
            return record, message.retries + 1, (topic, 0, "")
        if not isinstance(message, Message):
            raise ConfigError(
                f"move_to_dead_letter({type(message).__name__}): give the message that failed, a "
                "Message or QueueMessage"
            )
        show = self._app.log.format_offset
        failed_at = (message.topic or topic, message.partition, show(message.offset))
        raw = message.raw
        headers = copied_headers(headers_without(raw.headers, (ID,)))
        if raw.value is None and message.value is not None:  # made by hand
            declared = declared_topic(self._app, topic, "move_to_dead_letter")
            record = declared.record(message.value, key=raw.key, id=message.id)
            record.headers = [*headers, *record.headers]
        else:
            record = Record(raw.value, raw.key, message.id, headers)
        return record, message.attempt, failed_at

    def _ensure_topic(self, topic: str) -> None:
        """Create the dead letter topic, with as many partitions as its source."""
        log: Log = self._app.log
        try:
            log.describe_topic(self.name)
        except NotFound:
            try:
                partitions = log.describe_topic(topic).partitions
            except NotFound:
                partitions = 1
            ensure_topic(log, self.name, partitions, config=log.capabilities.dead_letter_config)


def _check_limit(what: str, limit: object) -> None:
    if not is_int(limit, 1) and not (limit is None and what != "get_dead_letters"):
        raise InvalidValue(f"{what}(limit={limit!r}): must be a positive integer")


def _check_filter(what: str, filter: object) -> None:
    if filter is None:
        return
    if not callable(filter) or is_async(filter):
        raise ConfigError(f"{what}(filter={filter!r}): a plain function of the dead letter")
    check_callable(filter, f"{what}(filter=...)", "letter")
