"""Process managers looked at through a log alone: the app does not run, and nothing is written.

What the command line and the doctor show comes from here. What an instance has done stands in its
history; what became of its commands, in the histories of those they were for; which timeouts wait,
in the topic that they wait in.

Everything here blocks. Whatever stands in the log ends in a :class:`~streams.errors.LogError` or in
what is returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from stream_codecs import DecodeError
from streams.errors import LogError, NotFound
from streams.eventsourcing.history_pages import history_pages
from streams.eventsourcing.managers.commands import CommandOutcome
from streams.eventsourcing.managers.manager import ProcessManager
from streams.eventsourcing.managers.reactions import (
    REFUSED,
    Instance,
    Reacted,
    StoredCancel,
    StoredCommand,
    StoredTimeout,
    command_cause,
    evolve,
    sequence_of,
)
from streams.eventsourcing.managers.timeouts import TimeoutDue as TimeoutDue
from streams.log.event_headers import cause_of, event_header, event_version, parse_event
from streams.log.events import EventLog, StoredEvent
from streams.log.protocol import Log
from streams.log.range_reader import newest_of, read_batches
from streams.message import Record
from streams.retries import PendingEntries, read_pending
from streams.retries import PendingEntry as PendingEntry
from streams.text import error_text


class ReadPartition(NamedTuple):
    """One partition that a manager reads.

    :param position: up to where it has; None: it has not begun.
    :param lag: messages behind that; None: the log cannot count them.
    """

    group: str
    topic: str
    partition: int
    position: int | None
    end: int
    lag: int | None
    owner: str | None


class DeadLetterSource(NamedTuple):
    """A topic that is read in a group, and the name of its dead letter topic."""

    group: str
    topic: str
    name: str


class ReactionTotals(NamedTuple):
    """What a manager's instances have done, as far as their reactions were looked at.

    :param instances: that there are, those included that have ended.
    :param running: that have not ended; None: not all reactions were looked at.
    :param refused: commands that were refused.
    :param unreadable: reactions that cannot be decoded.
    """

    instances: int
    running: int | None
    refused: int
    unreadable: int
    is_complete: bool


class InspectedCommand(NamedTuple):
    """A command of a reaction."""

    sequence: str
    stored: StoredCommand
    outcome: CommandOutcome


TimeoutState = Literal["waiting", "came", "cancelled", "replaced", "ended"]


class InspectedTimeout(NamedTuple):
    """A timeout of an instance.

    :param due: in seconds since the epoch.
    :param event: as JSON.
    :param state: ``ended``: the instance has ended before it came.
    """

    name: str
    sequence: str
    due: float
    event: bytes
    state: TimeoutState


class InspectedReaction(NamedTuple):
    """A reaction as it is stored.

    :param reacted: None: it cannot be decoded, and ``reason`` says why.
    """

    stored: StoredEvent
    cause: str
    reacted: Reacted | None
    commands: Sequence[InspectedCommand] = ()
    reason: str = ""

    @property
    def scheduled(self) -> list[str]:
        """The names of the timeouts that it began."""
        actions = () if self.reacted is None else self.reacted.actions
        return [each.name for each in actions if isinstance(each, StoredTimeout)]

    @property
    def cancelled(self) -> list[str]:
        """The names of the timeouts that it ended."""
        actions = () if self.reacted is None else self.reacted.actions
        return [each.name for each in actions if isinstance(each, StoredCancel)]


class InspectedInstance(NamedTuple):
    """An instance.

    :param instance: after its reactions, up to the first that cannot be decoded.
    :param reactions: the last ones.
    :param timeouts: those that are waited for, then the last of the others.
    :param more: reactions before those.
    :param stopped: why the reactions behind that of ``instance`` do not count; empty: all do.
    """

    partition: int
    version: int
    instance: Instance
    reactions: Sequence[InspectedReaction]
    timeouts: Sequence[InspectedTimeout]
    more: int
    stopped: str

    @property
    def open_commands(self) -> Iterator[InspectedCommand]:
        """Those that are not carried out yet."""
        for reaction in self.reactions:
            yield from (each for each in reaction.commands if each.outcome.outcome == "open")


class ManagerInspector:
    """Looks at one manager.

    :param manager: as the app declares it.
    :param log: that the app is on; open for reading at least.
    """

    def __init__(self, manager: ProcessManager[Any], log: Log) -> None:
        self.manager = manager
        self._log = log
        self._definition = manager.definition
        self._codec = manager.instances.definition.codec
        self.reactions_topic = manager.instances.events.name

    # -- reading

    @property
    def read_topics(self) -> list[tuple[str, str]]:
        """The topics that it reads, each with the group in which it does."""
        return [
            (topic, processor.group)
            for processor in self.manager.processors
            for topic in processor.topics
        ]

    @property
    def dead_letters(self) -> list[DeadLetterSource]:
        """Where messages go that it could not react to, and timeouts that cannot be delivered."""
        return [
            DeadLetterSource(
                processor.group, topic, processor.options.dead_letters.name(topic, processor.group)
            )
            for processor in (*self.manager.processors, *self._schedulers)
            for topic in processor.topics
        ]

    @property
    def _schedulers(self) -> list[Any]:
        timeouts = self._definition.timeouts
        return [] if timeouts is None else [timeouts.scheduler]

    @property
    def groups(self) -> list[str]:
        """Those that it needs processes in."""
        members = (*self.manager.processors, *self._schedulers)
        return list(dict.fromkeys(each.group for each in members))

    def members(self, group: str) -> tuple[str, ...]:
        """Who runs it there.

        :raises LogError: it cannot be read.
        """
        try:
            return tuple(each.id for each in self._log.describe_group(group, ()).members)
        except NotFound:
            return ()

    def partitions(self) -> Iterator[ReadPartition]:
        """What it reads, and how far it is; a topic that is not there yet has none.

        :raises LogError: it cannot be read.
        """
        for topic, group in self.read_topics:
            try:
                partitions = self._log.describe_topic(topic).partitions
            except NotFound:
                continue
            positions, owners = self._progress(group, topic)
            for partition in range(partitions):
                first, end = self._log.watermarks(topic, partition)
                position = positions.get(partition)
                lag = self._log.lag(topic, partition, max(first, position or 0))
                owner = owners.get(partition)
                yield ReadPartition(group, topic, partition, position, end, lag, owner)

    def _progress(self, group: str, topic: str) -> tuple[Mapping[int, int], Mapping[int, str]]:
        try:
            found = self._log.describe_group(group, [topic])
        except NotFound:
            return {}, {}
        positions = {at: each.position for at, each in found.committed_in(topic).items()}
        owners = {
            partition: member.id
            for member in found.members
            for name, partition in member.partitions
            if name == topic
        }
        return positions, owners

    # -- timeouts

    def timeouts(self, newest: int | None) -> PendingEntries[TimeoutDue]:
        """The timeouts that wait to be delivered, the first ones at the beginning.

        :param newest: look at so many of the newest records of each partition at most; None: all.
        :raises LogError: they cannot be read.
        """
        timeouts = self._definition.timeouts
        if timeouts is None:
            return PendingEntries([], is_complete=True)
        topic = timeouts.topic.name

        def read(to: str, record: Record) -> TimeoutDue | None:
            if to != topic or record.value is None:
                return None
            try:
                return msgspec.json.decode(record.value, type=TimeoutDue)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return None  # no process manager wrote it

        try:
            return read_pending(self._log, timeouts.delay_topic, read, newest)
        except NotFound:
            return PendingEntries([], is_complete=True)

    # -- instances

    def count_reactions(self, newest: int | None) -> ReactionTotals:
        """What the instances have done.

        :param newest: look at so many of the newest reactions of each partition at most; None: all.
        :raises LogError: they cannot be read.
        """
        log, topic = self._log, self.reactions_topic
        try:
            partitions = log.describe_topic(topic).partitions
        except NotFound:
            return ReactionTotals(0, 0, 0, 0, is_complete=True)
        begun = ended = refused = unreadable = 0
        is_complete = True
        for partition in range(partitions):
            start, end = log.watermarks(topic, partition)
            start, has_all = newest_of(log, topic, partition, start, end, newest)
            is_complete = is_complete and has_all
            for batch in read_batches(log, topic, partition, start, end):
                for at, value in enumerate(batch.values):
                    headers = batch.headers(at)
                    header = parse_event(event_header(headers), batch.id(at))
                    if header is None or header.is_refusal:
                        continue
                    begun += event_version(header) == 1
                    refused += cause_of(headers).startswith(REFUSED)
                    reacted, _ = self._decode_reaction(value)
                    unreadable += reacted is None
                    ended += reacted is not None and reacted.ends
        if is_complete:
            return ReactionTotals(begun, begun - ended, refused, unreadable, is_complete)
        keys = log.event_totals(topic).keys if isinstance(log, EventLog) else begun
        return ReactionTotals(keys, None, refused, unreadable, is_complete)

    def _decode_reaction(self, value: bytes | None) -> tuple[Reacted | None, str]:
        """A reaction, or why it cannot be decoded."""
        try:
            found = self._codec.decode(value)
        except DecodeError as error:
            return None, error_text(error)
        return found[0], ""

    def inspect_instance(self, key: str, number: int | None) -> InspectedInstance | None:
        """An instance; None: there is none of that key.

        :param number: so many of its last reactions; None: all.
        :raises LogError: it cannot be read.
        """
        log = self._log
        if not isinstance(log, EventLog):
            return None
        reader = _InstanceReader(number)
        for page in history_pages(log, self.reactions_topic, _key_bytes(key)):
            reader.partition, reader.head = page.partition, page.head.base.version
            for stored in page.events:
                reader.add_reaction(stored, *self._decode_reaction(stored.record.value))
        if not reader.head:
            return None
        reactions = [self._with_outcomes(log, key, each, reader) for each in reader.last]
        return InspectedInstance(
            reader.partition,
            reader.head,
            reader.instance,
            reactions,
            [*reader.waiting.values(), *reader.over],
            reader.count - len(reactions),
            reader.stopped,
        )

    def _with_outcomes(
        self, log: EventLog, key: str, found: InspectedReaction, reader: _InstanceReader
    ) -> InspectedReaction:
        """The same, with what became of its commands."""
        if found.reacted is None:
            return found
        version = found.stored.version
        asked = [
            (sequence_of(version, index), action)
            for index, action in enumerate(found.reacted.actions)
            if isinstance(action, StoredCommand)
        ]
        commands = []
        for sequence, action in asked:
            cause = command_cause(self._definition.name, key, sequence)
            try:
                outcome = self._definition.commands.inspect_outcome(log, action, cause)
            except LogError as error:
                outcome = CommandOutcome("unknown", error_text(error))
            if outcome.outcome == "open" and sequence in reader.refused:
                outcome = outcome._replace(outcome="refused")  # its aggregate was closed
            commands.append(InspectedCommand(sequence, action, outcome))
        return found._replace(commands=commands)


class _InstanceReader:
    """An instance's history, while it is read.

    :param number: reactions that are kept, and timeouts that are over; None: all.
    """

    def __init__(self, number: int | None) -> None:
        self.partition, self.head, self.count = -1, 0, 0
        self.instance = Instance()
        self.last: deque[InspectedReaction] = deque(maxlen=number)
        self.waiting: dict[str, InspectedTimeout] = {}
        """By sequence."""
        self.over: deque[InspectedTimeout] = deque(maxlen=number)
        self.refused: deque[str] = deque(maxlen=None if number is None else 100 * (number + 1))
        """Sequences of commands whose refusal was reacted to."""
        self.stopped = ""

    def add_reaction(self, stored: StoredEvent, reacted: Reacted | None, reason: str) -> None:
        """The next reaction."""
        self.count += 1
        cause = cause_of(stored.record.headers)
        self.last.append(InspectedReaction(stored, cause, reacted, reason=reason))
        if cause.startswith(REFUSED):
            self.refused.append(cause.removeprefix(REFUSED))
        if reacted is None:
            self.stopped = self.stopped or f"reaction {stored.version} cannot be decoded: {reason}"
        if self.stopped or reacted is None:
            return
        fired = self.instance.timers.get(reacted.fired)
        if fired is not None:
            self._end(fired.sequence, "came")
        begun = {each.name for each in reacted.actions if isinstance(each, StoredTimeout)}
        for index, action in enumerate(reacted.actions):
            match action:
                case StoredTimeout():
                    sequence = sequence_of(stored.version, index)
                    self.waiting[sequence] = InspectedTimeout(
                        action.name, sequence, action.due / 1000, bytes(action.event), "waiting"
                    )
                case StoredCancel():
                    why: TimeoutState = "replaced" if action.name in begun else "cancelled"
                    self._end(action.sequence, "ended" if reacted.ends else why)
                case StoredCommand():
                    pass
        self.instance = evolve(self.instance, reacted)
        if self.instance.has_ended:
            for sequence in list(self.waiting):
                self._end(sequence, "ended")

    def _end(self, sequence: str, state: TimeoutState) -> None:
        found = self.waiting.pop(sequence, None)
        if found is not None:
            self.over.append(found._replace(state=state))


def _key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")
