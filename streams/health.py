"""An app's figures and health: typed snapshots of one moment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from streams.processing.committer import PartitionProgress
from streams.processing.executor import Executor
from streams.processing.poller import Poller
from streams.processing.timing import NO_DURATIONS, Durations
from streams.text import describe_error


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
        its end.
    :param rejected: times that what was committed with a position was not believed: another
        tool's, damaged, or impossible. What it says was settled is handled again.
    :param commit_seconds: how long the log took to acknowledge commits.
    :param handler_seconds: how long calls of the handler took, failed ones included; empty unless
        :meth:`streams.Streams.measure` was called.
    :param progress: how far it is in each partition that it owns.
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

    @property
    def places(self) -> tuple[PartitionProgress, ...]:
        """The former name of :attr:`progress`."""
        warnings.warn("ProcessorStats.places is now progress", DeprecationWarning, stacklevel=2)
        return self.progress


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of an app.

    :param processors: by processor name.
    :param published: records acknowledged since the app was entered.
    """

    processors: Mapping[str, ProcessorStats]
    published: int


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
    """

    running: bool
    paused: bool
    reachable: bool
    overdue: int
    error: str | None
    losses: int = 0
    rejected: int = 0
    contested: int = 0

    @property
    def ok(self) -> bool:
        """Nothing needs a person's attention."""
        well = self.running and self.reachable and self.error is None
        return well and not self.overdue and not self.contested


@dataclass(frozen=True, slots=True)
class Health:
    """How an app is.

    :param connected: the app is entered and its log open.
    :param processors: by processor name.
    :param stopping: it is on its way out and takes in nothing more.
    """

    connected: bool
    processors: Mapping[str, ProcessorHealth]
    stopping: bool = False

    @property
    def live(self) -> bool:
        """No processor died, so a restart would mend nothing."""
        return all(each.error is None for each in self.processors.values())

    @property
    def ready(self) -> bool:
        """Messages are handled: the app is connected and stays so, its processors run, and the log
        answers them. Overdue handlers, which are slow and no more, do not count."""
        return (
            self.connected
            and not self.stopping
            and all(each.running and each.reachable for each in self.processors.values())
            and self.live
        )

    def summary(self, *, ok: bool, **more: str) -> dict[str, Any]:
        """What a health page says, for ``json.dumps``. What an exception said stays out of it, for
        it may hold what should not leave the process: only its type is named.

        :param ok: the page's answer.
        :param more: further fields.
        """
        return {
            "ok": ok,
            **more,
            "connected": self.connected,
            "stopping": self.stopping,
            "processors": {name: _without_text(each) for name, each in self.processors.items()},
        }

    @property
    def ok(self) -> bool:
        """The app is connected and every processor is well."""
        return self.connected and all(each.ok for each in self.processors.values())


def _without_text(health: ProcessorHealth) -> dict[str, Any]:
    """A processor's health as a dict, with the type of its error alone."""
    return asdict(health) | {"error": health.error and health.error.partition(":")[0]}


def processor_stats(executor: Executor, poller: Poller) -> ProcessorStats:
    """Figures of a processor that runs."""
    counts, poller_stats = executor.dispatcher.counts, poller.stats()
    handled, filtered = executor.counters()
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
        losses=poller_stats.losses,
        rejected=poller_stats.rejected,
        commit_seconds=poller_stats.commit_seconds,
        handler_seconds=NO_DURATIONS if executor.timing is None else executor.timing.read(),
        progress=poller_stats.progress,
    )


def processor_health(
    executor: Executor | None, poller: Poller | None, *, paused: bool, end_reason: str | None
) -> ProcessorHealth:
    """How a processor is.

    :param executor: None: it does not run.
    :param poller: the same.
    :param end_reason: why it ended, if not because it was stopped.
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
        losses=poller.losses,
        rejected=poller.rejected,
        contested=poller.contested,
    )
