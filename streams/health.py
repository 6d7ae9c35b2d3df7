"""An app's statistics and health: typed snapshots of one moment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

from streams.processing.committer import PartitionProgress
from streams.processing.executor import Executor
from streams.processing.poller import Poller
from streams.processing.timing import NO_DURATIONS, Durations
from streams.text import describe_error


@dataclass(slots=True)
class InboxStats:
    """Statistics of the inbox of a processor with ``transaction=`` in this process
    (``processor.inbox.stats``)."""

    committed: int = 0
    """Transactions that were committed."""
    duplicates: int = 0
    """Messages that were settled without calling the handler, because they had been handled."""
    below_mark: int = 0
    """Duplicates whose row was purged: they are below their partition's mark. Their process was
    frozen for longer than rows are kept, or the group was moved back by another tool, or the log
    was restored from an older copy: in that case they may be new (see ``losses``)."""
    reruns: int = 0
    """Transactions that were run again at once, because of a conflict or because the answer of the
    database was lost."""
    purged: int = 0
    """Transactions that deleted rows."""
    losses: int = 0
    """Times that a partition was assigned and the log lacked messages that the database has
    recorded, or the group's position was below the purged rows. Each logs an error, and also counts
    in :attr:`ProcessorStats.losses`."""
    reachable: bool = True
    """Whether the database answered the last time it was used."""


@dataclass(frozen=True, slots=True)
class ProcessorStats:
    """Statistics of one processor since it started.

    :param handled: messages whose handler succeeded.
    :param duplicates: dropped because their ID had been settled.
    :param filtered: skipped by the filter, for an unknown tag or as a tombstone.
    :param retries: failed attempts that were followed by another.
    :param dead_letters: messages moved to the dead letter topic.
    :param in_flight: unsettled messages in memory.
    :param in_flight_bytes: the bytes of these, as far as they are still in memory.
    :param running: handlers running at this moment.
    :param waiting: messages waiting to be tried again.
    :param partitions: partitions owned.
    :param commits: commits acknowledged.
    :param rebalances: times that partitions came or went.
    :param losses: times that a committed position had been deleted from the log, or was beyond
        its end, or that the database of ``transaction=`` had recorded messages that the log lacks.
    :param rejected: times that the progress committed with a position was rejected: another tool
        wrote it, or it was damaged or impossible. Messages settled in it are handled again.
    :param commit_seconds: how long the log took to acknowledge commits.
    :param handler_seconds: how long calls of the handler took, failed ones included; empty unless
        :meth:`streams.Streams.measure` was called.
    :param progress: the progress in each partition that it owns.
    :param held_back: messages in ``waiting`` that this code is too old for
        (:class:`~streams.errors.CodeTooOld`). Later messages of their keys wait behind them.
    :param closed_keys: keys that a dead message closes (``DeadLetters(sequenced=True)``), in the
        partitions that it owns.
    :param parked: messages that wait behind these dead messages.
    """

    handled: int
    duplicates: int
    filtered: int
    retries: int
    dead_letters: int
    in_flight: int
    in_flight_bytes: int
    running: int
    waiting: int
    partitions: int
    commits: int
    rebalances: int
    losses: int
    rejected: int = 0
    commit_seconds: Durations = NO_DURATIONS
    handler_seconds: Durations = NO_DURATIONS
    progress: tuple[PartitionProgress, ...] = ()
    held_back: int = 0
    closed_keys: int = 0
    parked: int = 0

    @property
    def places(self) -> tuple[PartitionProgress, ...]:
        """The former name of :attr:`progress`."""
        warnings.warn("ProcessorStats.places is now progress", DeprecationWarning, stacklevel=2)
        return self.progress


@dataclass(frozen=True, slots=True)
class AggregateStats:
    """Statistics of one aggregate type in this process, since the app was entered.

    :param decisions: calls of :meth:`streams.Aggregate.decide` and
        :meth:`streams.Aggregate.append`.
    :param conflicts: appends that lost to a concurrent append.
    :param retries: decisions that were called again because of a conflict.
    :param appends: appends that succeeded.
    :param events: events in these appends.
    :param refused: appends that the log refused: after a conflict, after a final event, or based on
        events that the log does not have.
    :param caused: decisions that found an earlier append for the same cause.
    :param load_durations: how long it took to read histories, or to catch up with them.
    :param cached: states in the cache.
    :param cached_bytes: the approximate size of these states.
    :param snapshots: snapshots that were written.
    :param snapshots_used: loads that began at a snapshot.
    :param snapshots_useless: snapshots that were found and could not be read.
    :param snapshots_failed: snapshots that could not be written.
    :param snapshot_age: seconds since a snapshot was written; None: none was.
    :param undecodable: aggregates that are stopped by an event that cannot be decoded.
    :param truncated: times that the log lacked events that it had acknowledged.
    :param failures: calls that ended because the log refused or did not answer.
    :param uncounted: records in the event topic that count for no history, as far as this process
        has read it: of appends that lost a conflict, or foreign. They occur only on Kafka.
    """

    decisions: int = 0
    conflicts: int = 0
    retries: int = 0
    appends: int = 0
    events: int = 0
    refused: int = 0
    caused: int = 0
    load_durations: Durations = NO_DURATIONS
    cache_hits: int = 0
    cache_misses: int = 0
    cached: int = 0
    cached_bytes: int = 0
    snapshots: int = 0
    snapshots_used: int = 0
    snapshots_useless: int = 0
    snapshots_failed: int = 0
    snapshot_age: float | None = None
    undecodable: int = 0
    truncated: int = 0
    failures: int = 0
    uncounted: int = 0

    @property
    def loads(self) -> int:
        """Loads: histories that were read, or caught up with."""
        return self.load_durations.number

    @property
    def load_seconds(self) -> float:
        """The total duration of all loads, in seconds."""
        return self.load_durations.total


@dataclass(frozen=True, slots=True)
class ViewStats:
    """Statistics of one version of a view in this process.

    :param events: events folded in this process since the app was entered.
    :param waiting: partitions that wait at an event in this process.
    :param serving: whether this process reads from this version.
    """

    view: str
    version: int
    events: int = 0
    waiting: int = 0
    serving: bool = False


@dataclass(frozen=True, slots=True)
class ViewBacklog:
    """The backlog of one version of a view according to the log, for all processes that fold it.

    :param lag: messages that are not folded yet; None: the log cannot count them.
    :param share: the share of all messages that are folded, from 0 to 1; None: likewise.
    :param stopped: documents that have stopped.
    """

    view: str
    version: int
    lag: int | None
    share: float | None
    stopped: int


@dataclass(frozen=True, slots=True)
class ProjectionStats:
    """Statistics of a version of a SQL projection in this process. Its backlog is the lag of its
    processor.

    :param serving: whether its tables are to be read, as last seen.
    :param failures: attempts to promote it that failed, because ``on_promote=`` or the database
        failed.
    """

    projection: str
    version: int
    serving: bool = False
    failures: int = 0


@dataclass(frozen=True, slots=True)
class ManagerStats:
    """Statistics of a process manager in this process.

    :param reacted: reactions to messages, timeouts and refusals, including those that were found
        to be recorded already.
    :param passed_over: messages for no instance, or for one that has ended; and cancelled timeouts.
    :param commands: commands that were executed, now or before.
    :param refused: commands that were refused, now or before.
    :param failures: messages and timeouts for which the reaction or its actions failed; each
        attempt counts.
    :param timeouts: pending timeouts in the partitions that this process delivers from; at most as
        many as it holds in memory.
    :param overdue: seconds since the first of these timeouts was due; 0.0: none is.
    """

    reacted: int = 0
    passed_over: int = 0
    commands: int = 0
    refused: int = 0
    failures: int = 0
    timeouts: int = 0
    overdue: float = 0.0


class ReportingManager(Protocol):
    """A process manager that reports to the app."""

    def stats(self) -> ManagerStats:
        """Current statistics (any thread)."""
        ...


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """Statistics of an outbox.

    :param relayed: rows that this process has published to the log since it started.
    :param failures: rows that it could not publish; each attempt counts.
    :param outages: times that its connection to the database failed.
    :param buckets: buckets of keys that it owns; 0: it relays nothing.
    :param depth: rows to be relayed, by any process, as of a few seconds ago; rows beyond 100,000
        are not counted. None: this process does not relay, or does not know.
    :param oldest: seconds since the first of these rows was written.
    :param failed: rows that could not be published.
    :param waiting: rows of the same keys that wait behind failed ones.
    :param undeclared: rows that wait for a relay whose app declares their topic.
    """

    relayed: int = 0
    failures: int = 0
    outages: int = 0
    buckets: int = 0
    depth: int | None = None
    oldest: float | None = None
    failed: int | None = None
    waiting: int | None = None
    undeclared: int | None = None


@dataclass(frozen=True, slots=True)
class OutboxHealth:
    """The health of an outbox's relay in this process.

    :param running: it relays, or waits for an outage to end.
    :param error: why the database did not answer, or that it answers too late for anything to be
        relayed, in one line; None: it answers in time.
    :param failed: rows that could not be published and wait for an operator. Other rows go on, and
        a restart would not help, so they do not make the app unready.
    """

    running: bool
    error: str | None = None
    failed: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing needs the attention of an operator."""
        return self.error is None and not self.failed


class ReportingOutbox(Protocol):
    """An outbox that reports to the app."""

    def stats(self) -> OutboxStats:
        """Current statistics (any thread)."""
        ...

    def health(self) -> OutboxHealth:
        """The health of its relay (any thread)."""
        ...


@dataclass(frozen=True, slots=True)
class Stats:
    """Statistics of an app.

    :param processors: by processor name.
    :param published: records acknowledged since the app was entered.
    :param aggregates: by aggregate name.
    :param views: versions of views, by the names of their groups.
    :param managers: process managers, by name.
    :param inboxes: inboxes of the processors with ``transaction=``, by processor name.
    :param outboxes: by the names of their tables.
    :param projections: versions of SQL projections, by the names of their groups.
    """

    processors: Mapping[str, ProcessorStats]
    published: int
    aggregates: Mapping[str, AggregateStats] = field(default_factory=dict)
    views: Mapping[str, ViewStats] = field(default_factory=dict)
    managers: Mapping[str, ManagerStats] = field(default_factory=dict)
    inboxes: Mapping[str, InboxStats] = field(default_factory=dict)
    outboxes: Mapping[str, OutboxStats] = field(default_factory=dict)
    projections: Mapping[str, ProjectionStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessorHealth:
    """The health of one processor.

    :param running: it polls (or is paused on purpose) and has not ended.
    :param reachable: the log has answered recently.
    :param overdue: plain handlers that run longer than the processor's timeout.
    :param error: the error that ended it, in one line; kept until it is started again. None: it
        runs, or it was stopped.
    :param losses: as in :class:`ProcessorStats`. Losses do not make the app unhealthy, since a
        restart would not help: alert on them.
    :param rejected: likewise.
    :param contested: partitions with ``DeadLetters(sequenced=True)`` that were started again in the
        last minute, because another process wrote to their topic of parked keys as the owner, or
        because records there were lost.
    :param database_reachable: the database of ``transaction=`` answered the last time it was used;
        True if there is none.
    :param held_back: as in :class:`ProcessorStats`. Other messages go on, and a restart helps only
        with newer code, so they do not make the app unready.
    """

    running: bool
    paused: bool
    reachable: bool
    overdue: int
    error: str | None
    losses: int = 0
    rejected: int = 0
    contested: int = 0
    database_reachable: bool = True
    held_back: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing needs the attention of an operator."""
        well = self.running and self.reachable and self.error is None
        waits = self.overdue or self.contested or self.held_back
        return well and self.database_reachable and not waits


class StoppedAggregate(NamedTuple):
    """An aggregate on which this process can take no decision.

    :param id: its ID.
    :param version: the version of the event that cannot be decoded.
    :param reason: why it cannot.
    """

    id: str
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class AggregateHealth:
    """The health of one aggregate type in this process.

    :param open: its event topic exists, and it can be used.
    :param undecodable: the aggregates that are stopped by an event that cannot be decoded, as far
        as this process has used them. Others go on, and a restart helps only with other code, so
        they do not make the app unready.
    :param truncated: as in :class:`AggregateStats`. It does not make the app unhealthy: alert on
        it.
    """

    open: bool
    undecodable: tuple[StoppedAggregate, ...] = ()
    truncated: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing needs the attention of an operator."""
        return self.open and not self.undecodable


class ReportingAggregate(Protocol):
    """An aggregate type that reports to the app."""

    def stats(self) -> AggregateStats:
        """Current statistics."""
        ...

    def health(self) -> AggregateHealth:
        """Its health."""
        ...


@dataclass(frozen=True, slots=True)
class ViewHealth:
    """The health of one version of a view, as this process sees it.

    :param serving: the version that this process reads from; None: no version that it declares can
        serve yet.
    :param promoted: the version that is promoted in the log; 0: none.
    :param waiting: the partitions that wait at an event in this process, each with the reason.
    :param stopped: documents that have stopped in this process and were not folded further since.
        Others go on, and a restart would not help, so they do not make the app unready.
    """

    serving: int | None
    promoted: int = 0
    waiting: tuple[str, ...] = ()
    stopped: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing needs the attention of an operator."""
        return self.serving is not None and not self.waiting and not self.stopped


class ReportingView(Protocol):
    """A version of a view that reports to the app."""

    def stats(self) -> ViewStats:
        """Current statistics."""
        ...

    def backlog(self) -> ViewBacklog:
        """Its backlog according to the log; blocks.

        :raises LogError: the log does not answer.
        """
        ...

    def health(self) -> ViewHealth:
        """Its health."""
        ...

    def describe_pending_work(self) -> str:
        """Why it cannot be read yet although it should be, in words; empty: it can (any thread)."""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """The health of an app.

    :param connected: the app is entered and its log open.
    :param processors: by processor name.
    :param stopping: it is stopping and accepts no more work.
    :param aggregates: by aggregate name.
    :param views: versions of views, by the names of their groups.
    :param outboxes: by the names of their tables.
    """

    connected: bool
    processors: Mapping[str, ProcessorHealth]
    stopping: bool = False
    aggregates: Mapping[str, AggregateHealth] = field(default_factory=dict)
    views: Mapping[str, ViewHealth] = field(default_factory=dict)
    outboxes: Mapping[str, OutboxHealth] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether no processor died; if none did, a restart would not help."""
        return all(each.error is None for each in self.processors.values())

    @property
    def ready(self) -> bool:
        """Whether messages are handled: the app is connected and not stopping, its processors run
        and reach the log, its aggregates can be used, and its views can be read. Overdue handlers
        do not count, as they are only slow."""
        return (
            self.connected
            and not self.stopping
            and all(each.running and each.reachable for each in self.processors.values())
            and all(each.open for each in self.aggregates.values())
            and all(each.serving is not None for each in self.views.values())
            and self.live
        )

    def summary(self, *, ok: bool, **more: str) -> dict[str, Any]:
        """The content of a health page, for ``json.dumps``. Of an exception only the type is
        included: its text may hold data that must not leave the process.

        :param ok: the result that the page reports.
        :param more: further fields.
        """
        found = {
            "ok": ok,
            **more,
            "connected": self.connected,
            "stopping": self.stopping,
            "processors": {
                name: _without_error_text(each) for name, each in self.processors.items()
            },
        }
        if self.aggregates:
            found["aggregates"] = {
                name: asdict(each) | {"undecodable": len(each.undecodable)}
                for name, each in self.aggregates.items()
            }
        if self.views:
            found["views"] = {
                name: asdict(each) | {"waiting": len(each.waiting)}
                for name, each in self.views.items()
            }
        if self.outboxes:
            found["outboxes"] = {
                name: asdict(each) | {"error": each.error and each.error.partition(":")[0]}
                for name, each in self.outboxes.items()
            }
        return found

    @property
    def ok(self) -> bool:
        """Whether the app is connected, and every processor, aggregate, view and outbox is
        healthy."""
        return (
            self.connected
            and all(each.ok for each in self.processors.values())
            and all(each.ok for each in self.aggregates.values())
            and all(each.ok for each in self.views.values())
            and all(each.ok for each in self.outboxes.values())
        )


def _without_error_text(health: ProcessorHealth) -> dict[str, Any]:
    """A processor's health as a dict, with only the type of its error."""
    return asdict(health) | {"error": health.error and health.error.partition(":")[0]}


def processor_stats(
    executor: Executor, poller: Poller, inbox: InboxStats | None = None
) -> ProcessorStats:
    """Statistics of a running processor.

    :param inbox: the statistics of its inbox, if it has one.
    """
    counts, poller_stats = executor.dispatcher.counts, poller.stats()
    handled, filtered = executor.counters()
    closed_keys, parked = poller.closed_keys()
    return ProcessorStats(
        handled=handled,
        duplicates=counts.duplicates,
        filtered=filtered,
        retries=counts.retries,
        dead_letters=counts.dead_lettered,
        in_flight=poller_stats.held,
        in_flight_bytes=poller_stats.held_bytes,
        running=executor.running,
        waiting=executor.dispatcher.waiting,
        partitions=poller_stats.partitions,
        commits=poller_stats.commits,
        rebalances=poller_stats.rebalances,
        losses=poller_stats.losses + (0 if inbox is None else inbox.losses),
        rejected=poller_stats.rejected,
        commit_seconds=poller_stats.commit_seconds,
        handler_seconds=NO_DURATIONS if executor.timing is None else executor.timing.read(),
        progress=poller_stats.progress,
        held_back=executor.dispatcher.held_back,
        closed_keys=closed_keys,
        parked=parked,
    )


def processor_health(
    executor: Executor | None,
    poller: Poller | None,
    *,
    paused: bool,
    end_reason: str | None,
    inbox: InboxStats | None = None,
) -> ProcessorHealth:
    """The health of a processor.

    :param executor: None: it does not run.
    :param poller: likewise.
    :param end_reason: why it ended, if it was not stopped.
    :param inbox: the statistics of its inbox, if it has one.
    """
    overdue = executor.overdue() if executor is not None else 0
    if poller is None:
        return ProcessorHealth(False, paused, False, overdue, end_reason)
    return ProcessorHealth(
        running=not poller.ended.is_set(),
        paused=paused,
        reachable=poller.reachable,
        overdue=overdue,
        error=end_reason if poller.fatal is None else describe_error(poller.fatal),
        losses=poller.losses + (0 if inbox is None else inbox.losses),
        rejected=poller.rejected,
        contested=poller.contested_partitions,
        database_reachable=inbox is None or inbox.reachable,
        held_back=0 if executor is None else executor.dispatcher.held_back,
    )
