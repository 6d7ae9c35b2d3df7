"""Process managers as users declare them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, Unpack

from typing_extensions import TypeForm, TypeVar

from streams.app import Streams
from streams.decoding import Source
from streams.errors import ConfigError
from streams.eventsourcing.aggregate import Aggregate
from streams.eventsourcing.event_topic import DEFAULT_PARTITIONS
from streams.eventsourcing.managers.actions import Action
from streams.eventsourcing.managers.definition import ManagerDefinition
from streams.eventsourcing.managers.reacting import Reactor
from streams.eventsourcing.managers.reactions import Instance, Reacted, evolve
from streams.eventsourcing.managers.timeouts import TimeoutDue
from streams.eventsourcing.results import Loaded
from streams.eventsourcing.snapshots import Snapshot
from streams.handler_types import HandlerOptions
from streams.health import ManagerStats as ManagerStats
from streams.message import Message
from streams.processor import Processor

S = TypeVar("S")


class ProcessManager(Generic[S]):
    """Reacts to events with commands and timeouts, each of which has its effect once.

    There is an instance for each key, with a state of its own. It is event-sourced: each reaction,
    with the state after it and what is to be done, is stored in the topic ``{name}.events`` before
    anything is done. A process that is killed is gone on from there.

    :param name: of the manager, of its group and of the aggregate of its instances.
    :param state: of an instance; frozen, and JSON can hold it.
    :param react: the state after an event, and a list of :class:`~streams.Command`,
        :class:`~streams.Schedule`, :class:`~streams.Cancel` and :class:`~streams.End`. It must not
        do anything else. Its events are those of the topics, those of ``timeouts``, and
        :class:`~streams.Refused`.
    :param topics: that it reads; of aggregates, or others.
    :param key: the instance that an event of the topics is for, or None.
    :param timeouts: the events that may be scheduled: a struct with a tag, or a union of them.
    :param refusals: exceptions by which a decision refuses a command, so that it comes back as
        :class:`~streams.Refused`. By others it fails, and the message is tried again.
    :param decisions: functions that commands are for, other than methods of an aggregate's state;
        or functions by the names under which they are stored.
    :param initial: the state before the first event; ``state()`` unless said otherwise.
    :param partitions: of its own topics. Their number can never change.
    :param snapshot: keep instances in the log, so that loading need not read every reaction.
    :param options: how messages are handled, as in :meth:`streams.Streams.processor`.
    :raises ConfigError: a declaration that cannot work.
    """

    def __init__(
        self,
        app: Streams,
        name: str,
        state: type[S],
        react: Callable[[S, Any], tuple[S, Sequence[Action]]],
        *topics: Source[Any],
        key: Callable[[Any], str | None],
        timeouts: TypeForm[Any] | None = None,
        refusals: type[Exception] | tuple[type[Exception], ...] = (),
        decisions: Mapping[str, Callable[..., Any]] | Sequence[Callable[..., Any]] = (),
        initial: S | None = None,
        partitions: int = DEFAULT_PARTITIONS,
        snapshot: Snapshot | None = None,
        **options: Unpack[HandlerOptions],
    ) -> None:
        definition: ManagerDefinition[S] = ManagerDefinition(
            app, name, state, react, topics, key, initial, timeouts, decisions, refusals, partitions
        )
        self.app = app
        self.name = name
        self._definition = definition
        self._instances: Aggregate[Reacted, Instance] = Aggregate(
            app, name, Reacted, Instance, evolve, partitions=partitions, snapshot=snapshot
        )
        if any(getattr(each, "name", "") == self._instances.events.name for each in topics):
            raise ConfigError(f"{definition.where}: it cannot read its own reactions")
        self._reactor = Reactor(definition, self._instances)
        self.processors: tuple[Processor[..., Any], ...] = self._declare(topics, options)
        """What reads its topics, and what reads its timeouts if it has any."""
        app.managers[name] = self

    def __repr__(self) -> str:
        return f"<ProcessManager {self.name!r}>"

    @property
    def definition(self) -> ManagerDefinition[S]:
        """It as it was declared."""
        return self._definition

    @property
    def instances(self) -> Aggregate[Reacted, Instance]:
        """The aggregate of its instances, whose events are its reactions."""
        return self._instances

    def _declare(
        self, topics: Sequence[Source[Any]], options: HandlerOptions
    ) -> tuple[Processor[..., Any], ...]:
        app, reactor, timeouts = self.app, self._reactor, self._definition.timeouts

        async def receive(event: Any, message: Message[Any]) -> None:
            await reactor.receive(event, message)

        async def receive_timeout(due: TimeoutDue, message: Message[Any]) -> None:
            await reactor.receive_timeout(due, message)

        receive.__name__ = self.name
        receive_timeout.__name__ = f"{self.name}.timeouts"
        declare: Any = app.processor
        reading: Processor[..., Any] = declare(*topics, group=self.name, **options)(receive)
        if timeouts is None:
            return (reading,)
        # In a group of its own: it reads all timeouts, wherever the other one is to begin.
        own: Any = {**options, "start": "earliest"}
        timing: Processor[..., Any] = declare(timeouts.topic, group=timeouts.topic.name, **own)(
            receive_timeout
        )
        timing.helpers.append(timeouts.scheduler)
        return (reading, timing)

    async def load(self, key: str) -> Loaded[S]:
        """An instance's state, read to the log's end; how many reactions there are; and whether it
        has ended.

        :raises InvalidValue: its state cannot be read.
        :raises LogError: the log cannot be reached.
        """
        found = (await self._instances.load(key)).state
        return Loaded(self._definition.read_state(found), found.version, found.has_ended)

    def stats(self) -> ManagerStats:
        """Figures of this moment (any thread)."""
        stats, timeouts = self._reactor.stats, self._definition.timeouts
        if timeouts is None:
            return stats
        waiting = timeouts.scheduler.delay_stats()
        return replace(stats, timeouts=waiting.pending, overdue=waiting.overdue)
