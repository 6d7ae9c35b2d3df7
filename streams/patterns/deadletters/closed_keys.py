"""Closed keys for operators: the dead messages that close them, and the commands that open them.

``DeadLetters(sequenced=True)`` closes a key when a message of it is dead. :class:`ClosedKeys` reads
the same records as the partition's owner (:mod:`streams.parking.records`), and writes commands.
A command names the dead message by the position at which it was read, so it has no effect if it is
sent twice or too late. The owner applies it as soon as one runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import uuid4

from streams.cancellation import run_in_thread
from streams.derived_records import EDITED
from streams.errors import InvalidValue, NotFound, StreamsError
from streams.log.appending import append_and_wait
from streams.log.names import check_group, check_topic, not_found
from streams.log.range_reader import LogRow
from streams.log.record_fetcher import RecordFetcher
from streams.message import Batch, Record, headers_without, text
from streams.numbers import is_int
from streams.parking import (
    Command,
    ParkedQueue,
    ParkingState,
    command_record,
    parked_topic,
    read_original,
    read_state,
)
from streams.patterns.arguments import check_app
from streams.patterns.deadletters.dead_letter import DeadLetter, declared_topic, read_dead_letter
from streams.topic import Topic, encode_key

if TYPE_CHECKING:
    from streams.app import Streams
    from streams.log.protocol import Log
    from streams.topic import Key

READ_BYTES = 16 << 20
"""Bytes of dead messages that are read at once, approximately."""


class NotClosed(StreamsError, LookupError):
    """No message of that key waits for a command, so there is nothing to command."""


@dataclass(frozen=True, slots=True)
class ClosedKeyHead:
    """A closed key, with its first message."""

    key: bytes
    partition: int
    position: int
    """The position of the record of its first message."""
    is_dead: bool
    """Whether it waits for a command. False: it has had one, and its messages are being
    delivered."""
    parked: int
    """Messages that wait behind the first one."""
    row: LogRow = field(repr=False)
    """The first message, as a dead letter would hold it."""
    record: Record = field(repr=False)
    """The same message as the record in the log."""


class CommandTarget(NamedTuple):
    """The target of a command: the record of a key's first message, by its position."""

    key: bytes
    partition: int
    position: int


def _command(command: Command, target: CommandTarget, edited: Record | None = None) -> Record:
    id = f"{command}/{uuid4().hex}"
    return command_record(command, target.position, target.partition, target.key, id, edited)


class ClosedKeyReader:
    """The closed keys of a topic and group, read from the log; blocks.

    :raises NotFound: there is no topic of closed keys.
    """

    on_ignored: Callable[[int, int], None] | None = None
    """Called with partition and offset of each record that is read and cannot be interpreted."""

    def __init__(self, log: Log, group: str, topic: str) -> None:
        self.log = log
        self.name = parked_topic(topic, group)
        try:
            self.partitions = log.describe_topic(self.name).partitions
        except NotFound:
            why = (
                f"there is no topic {self.name!r}: no processor of {topic!r} in group {group!r} "
                "ran with DeadLetters(sequenced=True)"
            )
            raise not_found("topic", self.name, why) from None

    def read_states(self) -> Iterator[tuple[int, ParkingState]]:
        """By partition, the state that follows from its records."""
        for partition in range(self.partitions):
            yield partition, read_state(self.log, self.name, partition, self.on_ignored)

    def heads(self, key: bytes | None = None, limit: int | None = None) -> Iterator[ClosedKeyHead]:
        """The closed keys, in each partition in the order in which they were closed.

        :param key: this one only.
        :param limit: how many at most.
        """
        remaining = 1 << 62 if limit is None else limit
        for partition, state in self.read_states():
            queues = {
                queue.position_of(0): (each, queue)
                for each, queue in state.keys.items()
                if key is None or each == key
            }
            for head in self.heads_of(partition, queues, sorted(queues)[:remaining]):
                yield head
                remaining -= 1

    def heads_of(
        self,
        partition: int,
        queues: Mapping[int, tuple[bytes, ParkedQueue]],
        positions: Sequence[int],
    ) -> Iterator[ClosedKeyHead]:
        """The closed keys of a partition whose first records are at these positions, if they still
        exist.

        :param queues: by such a position, the key and its queue of messages.
        :param positions: ascending.
        """
        wanted = list(positions)
        fetcher = RecordFetcher(self.log, self.name, partition)
        while wanted:
            rows, _ = fetcher.fetch(wanted, READ_BYTES)
            for position in sorted(rows):
                row, (each, queue) = rows[position], queues[position]
                if row is None:
                    continue
                record = Record(row.value, each, "", row.headers, partition)
                original = self._original_row(record, position)
                dead, parked = queue.is_dead, len(queue) - 1
                yield ClosedKeyHead(each, partition, position, dead, parked, original, record)
            wanted = [each for each in wanted if each not in rows]

    def dead_head(self, key: bytes) -> ClosedKeyHead:
        """The closed key of that name.

        :raises NotClosed: it is open, or its messages are coming back.
        """
        head = next(self.heads(key), None)
        if head is None:
            raise NotClosed(f"key {text(key)!r} is not closed in {self.name}")
        if not head.is_dead:
            raise NotClosed(
                f"key {text(key)!r}: its messages are coming back, no decision is waited for"
            )
        return head

    def send_command(
        self, command: Command, head: ClosedKeyHead, value: bytes | None = None
    ) -> None:
        """Command what happens to a dead message.

        :param value: its new bytes, for ``edit``.
        :raises LogError: the command was not written, or that is unknown; sending it again does no
            harm.
        """
        edited = None
        if command == "edit":
            headers = headers_without(head.record.headers, (EDITED,))
            edited = Record(value, head.key, "", [*headers, (EDITED, b"1")])
        target = CommandTarget(head.key, head.partition, head.position)
        self._append_commands([_command(command, target, edited)])

    def send_commands(
        self, command: Literal["retry", "drop"], targets: Sequence[CommandTarget]
    ) -> None:
        """Send the same command for several dead messages, atomically if the log can.

        :raises LogError: as :meth:`send_command`; some of them may be written.
        """
        self._append_commands([_command(command, each) for each in targets])

    def _append_commands(self, commands: Sequence[Record]) -> None:
        for answer in append_and_wait(self.log, self.name, commands):
            if isinstance(answer, BaseException):
                raise answer

    def _original_row(self, record: Record, position: int) -> LogRow:
        original = read_original(record.headers, as_redriven=False)
        batch = Batch(
            self.name, record.partition or 0, (position,), [record.key], [record.value],
            [original.id], [original.headers], [original.time],
        )  # fmt: skip
        return LogRow(batch, 0)


@dataclass(frozen=True, slots=True)
class ClosedKey:
    """A closed key, with the message that closes it."""

    key: str
    letter: DeadLetter
    """Its first message. If ``dead`` is false, the error is its last one, if any."""
    parked: int
    """Messages that wait behind the first one."""
    dead: bool
    """Whether it waits for a retry, edit or drop. False: its messages are being delivered
    already."""


class ClosedKeys:
    """The closed keys of a processor with ``DeadLetters(sequenced=True)``.

    :param app: the app on whose log they are; to be used while it is entered or connected.
    :param topic: the topic that the processor reads.
    :param group: its group.
    """

    def __init__(self, app: Streams, topic: str | Topic[Any], group: str) -> None:
        self._app = check_app(app, "ClosedKeys")
        self.topic = topic.name if isinstance(topic, Topic) else check_topic(topic)
        self.group = check_group(group)

    def __repr__(self) -> str:
        return f"<ClosedKeys of {self.topic!r} in group {self.group!r}>"

    async def keys(self, limit: int = 100) -> list[ClosedKey]:
        """The closed keys, with the messages that close them.

        :param limit: how many at most.
        :raises NotFound: no such processor ran.
        """
        if not is_int(limit, 1):
            raise InvalidValue(f"ClosedKeys.keys(limit={limit!r}): must be a positive integer")

        def list_keys() -> list[ClosedKey]:
            app, source = self._app, (self.topic, self.group)
            return [
                ClosedKey(
                    text(head.key),
                    read_dead_letter(app, head.row, waiting=head.is_dead, default_source=source),
                    head.parked,
                    head.is_dead,
                )
                for head in ClosedKeyReader(app.log, self.group, self.topic).heads(limit=limit)
            ]

        return await asyncio.to_thread(list_keys)

    async def retry(self, key: Key) -> None:
        """Let a key's dead message be handled again, then those that wait behind it.

        If it fails again, it closes the key again.

        :raises NotClosed: no message of that key waits for a command.
        """
        await self._send("retry", key, None)

    async def edit(self, key: Key, value: Any) -> None:
        """Replace the value of a key's dead message, and let it be handled again.

        :param value: bytes that are stored unchanged, or a value of the app's topic.
        :raises NotClosed: no message of that key waits for a command.
        :raises EncodeError: the value does not fit the topic's type.
        """
        if not isinstance(value, bytes):
            declared = declared_topic(self._app, self.topic, "ClosedKeys.edit", ", or give bytes")
            value = declared.record(value, key=key, id="edited").value
        await self._send("edit", key, value)

    async def drop(self, key: Key) -> None:
        """Drop a key's dead message, and let those that wait behind it be handled. It is not
        deleted: it stays in the log until its retention ends.

        :raises NotClosed: no message of that key waits for a command.
        """
        await self._send("drop", key, None)

    # -- inside

    async def _send(self, command: Command, key: Key, value: bytes | None) -> None:
        key_bytes = encode_key(self.topic, key)
        if key_bytes is None:
            raise InvalidValue(f"ClosedKeys.{command}: a message without a key closes nothing")

        def send() -> None:
            closed = ClosedKeyReader(self._app.log, self.group, self.topic)
            closed.send_command(command, closed.dead_head(key_bytes), value)

        await run_in_thread(send)
