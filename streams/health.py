"""An app's figures and health: typed snapshots of one moment."""

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
    """What the inbox of a processor with ``transaction=`` has done in this process: it is
    ``processor.inbox.stats``."""

    committed: int = 0
    """Transactions that were committed."""
    duplicates: int = 0
    """Messages that were settled without running, because they had been handled."""
    below_mark: int = 0
    """Of these, those whose row was purged: they stand below their partition's mark. Their process
    was frozen for longer than rows are kept, or the group was moved back by another tool, or the
    log was restored from an older copy: then they may be new (see ``losses``)."""
    reruns: int = 0
    """Transactions that were run again at once, because they met another one or their answer was
    lost."""
    purged: int = 0
    """Transactions that deleted rows."""
    losses: int = 0
    """Times that a partition was taken up and the log did not have what the database knows of it,
    or the group stood before what was purged. Each is an error in the log, and counts in
    :attr:`ProcessorStats.losses`, too."""
    reachable: bool = True
    """The database answered when it was asked last."""


@dataclass(frozen=True, slots=True)
class ProcessorStats:
    """Figures of one processor since it started.

    :param handled: messages whose handler succeeded.
    :param duplicates: dropped because their ID had been settled.
    :param filtered: passed over by the filter, an unknown tag or as a tombstone.
    :param retries: failed attempts that were followed by another.
    :param dead_letters: messages moved to the dead letter topic.
    :param in_flight: messages held and not settled.
    :param in_flight_bytes: their bytes, as far as they are still held.
    :param running: handlers running at this moment.
    :param waiting: messages waiting to be tried again.
    :param partitions: partitions owned.
    :param commits: commits acknowledged.
    :param rebalances: times that partitions came or went.
    :param losses: times that a committed position had been deleted from the log, or was beyond
        its end, or that the database of ``transaction=`` knew more than the log has.
    :param rejected: times that what was committed with a position was not believed: another
        tool's, damaged, or impossible. What it says was settled is handled again.
    :param commit_seconds: how long the log took to acknowledge commits.
    :param handler_seconds: how long calls of the handler took, failed ones included; empty unless
        :meth:`streams.Streams.measure` was called.
    :param progress: how far it is in each partition that it owns.
    :param held_back: of ``waiting``, those that this code is too old for
        (:class:`~streams.errors.CodeTooOld`). What follows of their keys waits behind them.
    :param closed_keys: keys that a dead message closes (``DeadLetters(sequenced=True)``), in the
        partitions that it owns.
    :param parked: messages that wait behind those.
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
    """Figures of one aggregate type in this process, since the app was entered.

    :param decisions: calls of :meth:`Aggregate.decide` and :meth:`Aggregate.append`.
    :param conflicts: appends that came too late.
    :param retries: decisions that were called again because of one.
    :param appends: that count.
    :param events: that they have.
    :param refused: appends that the log refused: too late, behind a final event, or upon events
        that it does not have.
    :param caused: decisions that found what was appended for their cause before.
    :param load_durations: how long it took to read histories, or to catch up with them.
    :param cached: states in the cache.
    :param cached_bytes: what they take, about.
    :param snapshots: that were written.
    :param snapshots_used: loads that began at one.
    :param snapshots_useless: that were found and could not be read.
    :param snapshots_failed: that could not be written.
    :param snapshot_age: seconds since one was written; None: none was.
    :param undecodable: aggregates that are stopped by an event that cannot be decoded.
    :param truncated: times that the log did not have what it had acknowledged.
    :param failures: calls that ended because the log refused or did not answer.
    :param uncounted: records in the event topic that count for no history, as far as this process
        has read it: of appends that came too late, or foreign. Only Kafka lets any in.
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
        """Histories that were read, or caught up with."""
        return self.load_durations.number

    @property
    def load_seconds(self) -> float:
        """How long that took altogether."""
        return self.load_durations.total


@dataclass(frozen=True, slots=True)
class ViewStats:
    """Figures of one version of a view in this process.

    :param events: folded here since the app was entered.
    :param waiting: partitions that wait at an event here.
    :param serving: this process reads from this version.
    """

    view: str
    version: int
    events: int = 0
    waiting: int = 0
    serving: bool = False


@dataclass(frozen=True, slots=True)
class ViewBacklog:
    """What the log says of one version of a view, whoever folds it.

    :param lag: messages that are not folded yet; None: the log cannot count them.
    :param share: of all that are folded, from 0 to 1; None: the same.
    :param stopped: documents that stand still.
    """

    view: str
    version: int
    lag: int | None
    share: float | None
    stopped: int


@dataclass(frozen=True, slots=True)
class ProjectionStats:
    """Figures of a version of a SQL projection in this process. How far it is behind is its
    processor's lag.

    :param serving: its tables are to be read, as was seen last.
    :param failures: attempts to promote it that failed, as ``on_promote=`` or the database did.
    """

    projection: str
    version: int
    serving: bool = False
    failures: int = 0


@dataclass(frozen=True, slots=True)
class ManagerStats:
    """Figures of a process manager in this process.

    :param reacted: reactions to messages, timeouts and refusals, with those that were found to be
        recorded already.
    :param passed_over: messages that are for no instance, or for one that has ended; timeouts that
        were cancelled.
    :param commands: that were carried out, with those that had been before.
    :param refused: the same of commands that were refused.
    :param failures: messages and timeouts that could not be reacted to, or whose actions could not
        be carried out; each attempt counts.
    :param timeouts: that are waited for, of the partitions that this process delivers from; at most
        so many as it holds in memory.
    :param overdue: seconds since the first of those was due; 0.0: none is.
    """

    reacted: int = 0
    passed_over: int = 0
    commands: int = 0
    refused: int = 0
    failures: int = 0
    timeouts: int = 0
    overdue: float = 0.0


class ReportingManager(Protocol):
    """A process manager, as the app asks it how it is."""

    def stats(self) -> ManagerStats:
        """Figures of this moment (any thread)."""
        ...


@dataclass(frozen=True, slots=True)
class OutboxStats:
    """Figures of an outbox.

    :param relayed: rows that this process took to the log since it began.
    :param failures: rows that it could not publish; each attempt counts.
    :param outages: times that its connection to the database failed.
    :param buckets: of keys that it owns; 0 where it relays nothing.
    :param depth: rows that are to be relayed, by whom ever, as of a few seconds ago; those beyond
        100,000 are not counted. None: this process does not relay, or does not know.
    :param oldest: seconds since the first of them was written.
    :param failed: rows that could not be published.
    :param waiting: rows behind those, of the same keys.
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
    """How the relay of an outbox is in this process.

    :param running: it relays, or waits for an outage's end.
    :param error: what the database did not answer for, or that it answers too late for anything to
        be relayed, in one line; None: it answers in time.
    :param failed: rows that could not be published and wait for somebody to look at them. The
        others go on, and a restart would not help, so it makes nothing unready.
    """

    running: bool
    error: str | None = None
    failed: int = 0

    @property
    def ok(self) -> bool:
        """Nothing needs a person's attention."""
        return self.error is None and not self.failed


class ReportingOutbox(Protocol):
    """An outbox, as the app asks it how it is."""

    def stats(self) -> OutboxStats:
        """Figures of this moment (any thread)."""
        ...

    def health(self) -> OutboxHealth:
        """How its relay is (any thread)."""
        ...


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of an app.

    :param processors: by processor name.
    :param published: records acknowledged since the app was entered.
    :param aggregates: by aggregate name.
    :param views: versions of views, by the names of their groups.
    :param managers: process managers, by name.
    :param inboxes: of the processors with ``transaction=``, by processor name.
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
    """How one processor is.

    :param running: it polls (or is paused on purpose) and has not ended.
    :param reachable: the log answered lately.
    :param overdue: plain handlers that run longer than the processor's timeout.
    :param error: what ended it, in one line; kept until it is started again. None while it runs,
        and where it was stopped.
    :param losses: as in :class:`ProcessorStats`. It makes nothing unhealthy, since a restart would
        not help: alert on it.
    :param rejected: the same.
    :param contested: partitions with ``DeadLetters(sequenced=True)`` that were begun again in the
        last minute, because somebody else wrote to their topic of parked keys as the owner, or
        because what was written there was lost.
    :param database_reachable: the database of ``transaction=`` answered when it was asked last;
        True where there is none.
    :param held_back: as in :class:`ProcessorStats`. Others go on, and a restart helps only with
        newer code, so it makes nothing unready.
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
        """Nothing needs a person's attention."""
        well = self.running and self.reachable and self.error is None
        waits = self.overdue or self.contested or self.held_back
        return well and self.database_reachable and not waits


class StoppedAggregate(NamedTuple):
    """An aggregate upon which nothing can be decided in this process.

    :param id: its ID.
    :param version: of the event that cannot be decoded.
    :param reason: why not.
    """

    id: str
    version: int
    reason: str


@dataclass(frozen=True, slots=True)
class AggregateHealth:
    """How one aggregate type is in this process.

    :param open: its event topic is there, and it can be used.
    :param undecodable: the aggregates that are stopped by an event that cannot be decoded, as far
        as somebody asked for them here. Others go on, and a restart helps only with other code, so
        it makes the app not unready.
    :param truncated: as in :class:`AggregateStats`. It makes nothing unhealthy: alert on it.
    """

    open: bool
    undecodable: tuple[StoppedAggregate, ...] = ()
    truncated: int = 0

    @property
    def ok(self) -> bool:
        """Nothing needs a person's attention."""
        return self.open and not self.undecodable


class ReportingAggregate(Protocol):
    """An aggregate type, as the app asks it how it is."""

    def stats(self) -> AggregateStats:
        """Figures of this moment."""
        ...

    def health(self) -> AggregateHealth:
        """How it is."""
        ...


@dataclass(frozen=True, slots=True)
class ViewHealth:
    """How one version of a view is, as this process sees it.

    :param serving: the version that this process reads from; None: none of those that it declares
        can serve yet.
    :param promoted: the version that serves in the log; 0: none.
    :param waiting: the partitions that wait at an event here, each with the reason.
    :param stopped: documents that have stopped here and were not folded on since. Others go on, and
        a restart would not help, so it makes nothing unready.
    """

    serving: int | None
    promoted: int = 0
    waiting: tuple[str, ...] = ()
    stopped: int = 0

    @property
    def ok(self) -> bool:
        """Nothing needs a person's attention."""
        return self.serving is not None and not self.waiting and not self.stopped


class ReportingView(Protocol):
    """A version of a view, as the app asks it how it is."""

    def stats(self) -> ViewStats:
        """Figures of this moment."""
        ...

    def backlog(self) -> ViewBacklog:
        """What the log says of it; blocks.

        :raises LogError: it does not answer.
        """
        ...

    def health(self) -> ViewHealth:
        """How it is."""
        ...

    def unfinished(self) -> str:
        """What keeps it from being read although it is to be, in words; empty when nothing does
        (any thread)."""
        ...


@dataclass(frozen=True, slots=True)
class Health:
    """How an app is.

    :param connected: the app is entered and its log open.
    :param processors: by processor name.
    :param stopping: it is on its way out and takes in nothing more.
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
        """No processor died, so a restart would mend nothing."""
        return all(each.error is None for each in self.processors.values())

    @property
    def ready(self) -> bool:
        """Messages are handled: the app is connected and stays so, its processors run, the log
        answers them, its aggregates can be used, and its views can be read. Overdue handlers,
        which are slow and no more, do not count."""
        return (
            self.connected
            and not self.stopping
            and all(each.running and each.reachable for each in self.processors.values())
            and all(each.open for each in self.aggregates.values())
            and all(each.serving is not None for each in self.views.values())
            and self.live
        )

    def summary(self, *, ok: bool, **more: str) -> dict[str, Any]:
        """What a health page says, for ``json.dumps``. What an exception said stays out of it, for
        it may hold what should not leave the process: only its type is named.

        :param ok: the page's answer.
        :param more: further fields.
        """
        found = {
            "ok": ok,
            **more,
            "connected": self.connected,
            "stopping": self.stopping,
            "processors": {name: _without_text(each) for name, each in self.processors.items()},
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
        """The app is connected, and every processor, aggregate, view and outbox is well."""
        return (
            self.connected
            and all(each.ok for each in self.processors.values())
            and all(each.ok for each in self.aggregates.values())
            and all(each.ok for each in self.views.values())
            and all(each.ok for each in self.outboxes.values())
        )


def _without_text(health: ProcessorHealth) -> dict[str, Any]:
    """A processor's health as a dict, with the type of its error alone."""
    return asdict(health) | {"error": health.error and health.error.partition(":")[0]}


def processor_stats(
    executor: Executor, poller: Poller, inbox: InboxStats | None = None
) -> ProcessorStats:
    """Figures of a processor that runs.

    :param inbox: those of its inbox, if it has one.
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
    """How a processor is.

    :param executor: None: it does not run.
    :param poller: the same.
    :param end_reason: why it ended, if not because it was stopped.
    :param inbox: the figures of its inbox, if it has one.
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
        contested=poller.contested,
        database_reachable=inbox is None or inbox.reachable,
        held_back=0 if executor is None else executor.dispatcher.held_back,
    )
