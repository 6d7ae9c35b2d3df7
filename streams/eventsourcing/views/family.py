"""All versions of one view that an app declares: which of them serves, and when a new one does.

While the app runs, a task follows the registry. It declares new versions there, promotes a version
that has come as far as the one that serves (or, if there is none, as far as its sources had when it
was declared), and passes requests to fold documents on to whoever folds them.

Nothing is folded, and nothing read, of a version that somebody has declared otherwise: with
documents of another shape, or of other topics. A version is declared before the first process
folds it, so of two that differ the registry takes one, and the other does not start.

The version that serves goes on while the other is built. So where that took long, the goal is taken
anew once it is reached: the new version takes over when it has folded what the one before it had a
moment ago. If nobody runs the one before it any more, its stored checkpoint stands still.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple, Self

from streams.cancellation import run_in_thread
from streams.errors import ConfigError, NotFound, NotRunning, StreamsError
from streams.eventsourcing.results import Decided
from streams.eventsourcing.views.definition import ViewDefinition
from streams.eventsourcing.views.errors import ViewNotReady
from streams.eventsourcing.views.known_coverage import KnownCoverage
from streams.eventsourcing.views.registry import (
    KnownView,
    KnownViewVersion,
    RebuildFinished,
    RegistryEvent,
    VersionDeclared,
    ViewRegistry,
    declare,
    end_retry,
    finish_rebuild,
    goal_texts,
    promote,
)
from streams.eventsourcing.views.retry_requests import RetryRequest, RetryRequests
from streams.eventsourcing.views.tracker import Coverage, FoldingProgress
from streams.eventsourcing.views.version import ViewVersion, document_store, goal_of
from streams.health import ViewBacklog, ViewHealth, ViewStats
from streams.log.protocol import TopicPartition
from streams.text import describe_error, get_logger

logger = get_logger("streams.views")

FOLLOW_INTERVAL = 0.5
"""Seconds between two looks at the registry."""

HEARD_AFTER = 2 * FOLLOW_INTERVAL
"""Seconds after which a process that runs knows what the registry says. One that has not looked for
so long relies on nothing that it remembers."""

BUILDING_INTERVAL = 0.1
"""The same while a version is built here, or none serves yet."""

PROMOTION_LAG = 1.0
"""Seconds within which a version must have folded what the one that serves had, to take its place:
two that are both at the end of a topic to which much is written are never at the same place."""


class _BuildGoal(NamedTuple):
    """How far a version that is being built has to fold before it may serve.

    :param builds: its build number.
    :param positions: the position to reach, by source partition.
    :param coverage: whether it has reached them.
    :param taken_at: when the positions were read, on :func:`time.monotonic`: they include what the
        serving version had folded by then.
    """

    builds: int
    positions: Mapping[TopicPartition, int]
    coverage: Coverage
    taken_at: float

    @property
    def is_old(self) -> bool:
        """The version that serves may have come much further."""
        return time.monotonic() > self.taken_at + PROMOTION_LAG


class ViewFamily:
    """See the module. A resource of the app.

    One class, because what the task hears of the registry decides which version each read gets:
    both sides change the same few attributes, on the loop.
    """

    def __init__(self, app: Any, name: str, registry: ViewRegistry) -> None:
        self._app = app
        self.name = name
        self.registry = registry
        self.versions: dict[int, ViewVersion] = {}
        """Those that are declared here."""
        self.promotes: dict[int, bool] = {}
        """Whether each is promoted by itself."""
        self.known = KnownView()
        """What the registry said last."""
        self._served: dict[TopicPartition, int] = {}
        """How far the sources were folded in what this process has read."""
        self._served_version = 0
        self._catching_up: Coverage | None = None
        """A version has taken over that must first have folded what the one before it served."""
        self._goals: dict[int, _BuildGoal] = {}
        """Of versions that are being built."""
        self._covered: dict[int, KnownCoverage] = {}
        """What keyed versions are known to have folded."""
        self._heard_at = float("-inf")
        """When the registry's current state was read."""
        self._partition_counts: dict[str, int] = {}
        """Partition counts of the source topics that were waited for so far."""
        self._builds: dict[int, int] = {}
        """The build number of each version, as its threads know it."""
        self._finished: list[tuple[RetryRequest, bool]] = []
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.is_open = False
        """The app is entered."""

    def add(self, definition: ViewDefinition[Any], *, promotes: bool) -> ViewVersion:
        """Declare a version."""
        retries = RetryRequests(self._on_retried)
        version = ViewVersion(definition, retries, self._on_folded, self._declare_first)
        self.versions[definition.version] = version
        self.promotes[definition.version] = promotes
        return version

    # -- its life

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._served.clear()
        self._served_version = 0
        self._catching_up = None
        self._goals.clear()
        self._covered.clear()
        self._partition_counts.clear()
        document_store(self._app.log, f"view {self.name!r}")
        await self._load_view()
        for number, version in self.versions.items():
            known = self.known.find_version(number)
            if known is not None:
                version.check_declared(known)
            version.retries.resume()
            self._builds[number] = 0 if known is None else known.builds
        self._task = asyncio.create_task(self._follow_registry())
        self.is_open = True
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.is_open = False
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _follow_registry(self) -> None:
        reported = ""
        while True:
            try:
                await self._check_registry()
                reported = ""
            except Exception as error:  # it goes on: what does not hold for ever is waited out
                if describe_error(error) != reported:
                    reported = describe_error(error)
                    unexpected = None if isinstance(error, StreamsError) else error
                    logger.warning("view %s: %s", self.name, reported, exc_info=unexpected)
            is_settled = not self._goals and self.known.promoted
            interval = FOLLOW_INTERVAL if is_settled else BUILDING_INTERVAL
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._changed.wait()
                # What was folded is looked at once for many writes.
                await asyncio.sleep(BUILDING_INTERVAL / 4)

    async def _check_registry(self) -> None:
        """Look at the registry, and do what is due."""
        await self._load_view()
        while self._finished:
            request, goes_on = self._finished[0]
            await self.registry.decide(self.name, end_retry, request.id, goes_on)
            self._finished.pop(0)
        for number, version in self.versions.items():
            version.retries.add_requests(
                RetryRequest(each.id, each.partition, each.key)
                for each in self.known.retries
                if each.version == number
            )
        if not self._app.runtime.runs_processors:
            return
        for number, version in sorted(self.versions.items()):
            known = await self._registered_version(version)
            if known is not None and known.builds != self._builds[number] and not known.is_clearing:
                self._builds[number] = known.builds
                version.retries.request_restart()
            if known is None or known.is_clearing:
                self._goals.pop(number, None)
            elif known.is_building or self._may_promote(number):
                await self._check_build(number, version, known)
            else:
                self._goals.pop(number, None)

    def _may_promote(self, number: int) -> bool:
        return self.promotes[number] and number > self.known.promoted

    def _declare_first(self, version: ViewVersion) -> None:
        """Have a version in the registry before anything is folded (in a thread; blocks).

        :raises ConfigError: it was declared otherwise.
        :raises LogError: the registry cannot be asked.
        """
        self._app.wait(self._registered_version(version))

    async def _registered_version(self, version: ViewVersion) -> KnownViewVersion | None:
        """A version as the registry has it, declared there if need be; None: there is nothing yet
        to fold into. Where it was declared otherwise, whoever folds it here ends.

        :raises ConfigError: it was declared otherwise.
        """
        known = self.known.find_version(version.definition.version)
        try:
            if known is None:
                return await self._declare_version(version)
            version.check_declared(known)
            return known
        except ConfigError as error:
            version.retries.fail(error)
            raise

    async def _declare_version(self, version: ViewVersion) -> KnownViewVersion | None:
        definition = version.definition
        tracker = version.tracker(self._app.log)
        if not await run_in_thread(tracker.partitions):
            return None  # its processor has not begun
        goal = await run_in_thread(tracker.source_ends)
        declared = VersionDeclared(
            definition.version,
            definition.document_type.fingerprint,
            tracker.topics,
            definition.is_keyed,
            goal_texts(goal),
        )
        await self._append_decision(declare, self.name, declared)
        return self.known.find_version(definition.version)

    async def _check_build(
        self, number: int, version: ViewVersion, known: KnownViewVersion
    ) -> None:
        """See whether a version that is built has come far enough."""
        goal = self._goals.get(number)
        if goal is None or goal.builds != known.builds:
            goal = await self._take_goal(version, known)
        is_reached = await run_in_thread(goal.coverage.is_reached)
        if is_reached and goal.is_old:
            goal = await self._take_goal(version, known, goal)
            is_reached = await run_in_thread(goal.coverage.is_reached)
        self._goals[number] = goal
        if not is_reached:
            return
        del self._goals[number]
        if known.is_building and (number <= self.known.promoted or not self.promotes[number]):
            decided = await self._append_decision(finish_rebuild, number, goal.builds)
        else:
            decided = await self._append_decision(promote, number, goal.builds)
        if decided.events and not isinstance(decided.events[0], RebuildFinished):
            logger.info("view %s: version %d serves from now on", self.name, number)

    async def _take_goal(
        self, version: ViewVersion, known: KnownViewVersion, reached: _BuildGoal | None = None
    ) -> _BuildGoal:
        """How far a version has to come by now.

        :param reached: up to where it has come for certain.
        """
        taken_at = time.monotonic()
        goal = await run_in_thread(goal_of, self._app.log, self.name, self.known, known)
        before = {} if reached is None else reached.positions
        left = {each: end for each, end in goal.items() if end > before.get(each, 0)}
        coverage = Coverage(version.tracker(self._app.log), left)
        return _BuildGoal(known.builds, goal, coverage, taken_at)

    async def _load_view(self) -> None:
        asked_at = time.monotonic()
        self._apply_registry(await self.registry.load(self.name), asked_at)

    async def _append_decision(
        self, decision: Callable[..., RegistryEvent | None], *given: Any
    ) -> Decided[KnownView, RegistryEvent]:
        asked_at = time.monotonic()
        decided = await self.registry.decide(self.name, decision, *given)
        self._apply_registry(decided.state, asked_at)
        return decided

    def _apply_registry(self, known: KnownView, asked_at: float) -> None:
        """The registry says this.

        :param asked_at: all that it said before is in it.
        """
        if known != self.known:
            self._covered.clear()  # documents may have been deleted, to be made anew
        self.known, self._heard_at = known, asked_at

    # -- told by the threads that fold

    def _on_folded(self) -> None:
        loop = self._loop
        if loop is not None and self._goals:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._changed.set)

    def _on_retried(self, request: RetryRequest, goes_on: bool) -> None:
        self._finished.append((request, goes_on))
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._changed.set)

    # -- which one serves

    def newest_serving(self) -> int | None:
        """The newest version that is declared here and was promoted; None: there is none."""
        known = self.known
        ready = [
            number
            for number in self.versions
            if number <= known.promoted
            and (found := known.find_version(number)) is not None
            and not found.is_building
        ]
        return max(ready, default=None)

    async def serving(self) -> ViewVersion:
        """The version that serves.

        :raises ViewNotReady: none can.
        :raises ConfigError: somebody has declared it with documents of another shape.
        """
        if not self.is_open:
            self._app.log  # noqa: B018 - says why the app is not running, where it is not
            raise NotRunning(f"view {self.name!r}: declare it before its app is entered")
        number = self.newest_serving()
        if number is None:
            await self._load_view()
            number = self.newest_serving()
        if number is None:
            raise await self._not_ready_error()
        known = self.known.find_version(number)
        if known is not None:
            self.versions[number].check_declared(known)
        if number != self._served_version:
            is_first, self._served_version = not self._served_version, number
            if not is_first:
                self._catch_up_served()
        return self.versions[number]

    def _catch_up_served(self) -> None:
        """The version that serves has to fold first what was read of another."""
        tracker = self.versions[self._served_version].tracker(self._app.log)
        served = {
            each: position for each, position in self._served.items() if each[0] in tracker.topics
        }
        self._catching_up = Coverage(tracker, served)

    async def serving_by(self, deadline: float) -> ViewVersion:
        """The version that serves, as soon as there is one.

        :param deadline: on :func:`time.monotonic`.
        :raises ViewNotReady: there is none by then.
        """
        pause = 0.005
        while True:
            try:
                return await self.serving()
            except ViewNotReady:
                if time.monotonic() >= deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(0.1, 2 * pause)

    async def catch_up(self, deadline: float) -> None:
        """After another version has taken over: wait until it has folded all that this process has
        seen of the one before.

        :raises TimeoutError: it has not, in time.
        """
        while (coverage := self._catching_up) is not None:
            await wait_until(coverage.is_reached, deadline)
            if self._catching_up is coverage:
                self._catching_up = None

    def note_served(self, version: ViewVersion, positions: Mapping[TopicPartition, int]) -> None:
        """What was read is made of these."""
        further = {
            each: position
            for each, position in positions.items()
            if position > self._served.get(each, 0)
        }
        self._served.update(further)
        if further and version.definition.version != self._served_version:
            # Another version has taken over while this was read.
            self._catch_up_served()

    async def partition_count(self, topic: str, partition: int) -> int:
        """How many partitions a source has, 0: it does not exist; the log is asked only about a
        partition that it was not known to have.

        :raises LogError: the log does not answer.
        """
        if partition >= self._partition_counts.get(topic, 0):
            try:
                info = await run_in_thread(self._app.log.describe_topic, topic)
            except NotFound:
                return 0
            self._partition_counts[topic] = info.partitions
        return self._partition_counts.get(topic, 0)

    def known_coverage(self, number: int) -> KnownCoverage:
        """What this process knows to be folded of a keyed version."""
        return self._covered.setdefault(number, KnownCoverage())

    def is_current(self, number: int, covered: KnownCoverage) -> bool:
        """What is known of a version is known of the documents that it had until now: whoever
        deletes them says so in the registry first, and waits until that was heard."""
        is_heard = time.monotonic() - self._heard_at < HEARD_AFTER
        return is_heard and self._covered.get(number) is covered

    async def _not_ready_error(self) -> ViewNotReady:
        number, serving = max(self.versions), self.known.promoted
        known = self.known.find_version(number)
        other = (
            f"; version {serving} serves, and this process does not declare it"
            if serving and serving != number
            else ""
        )
        if known is not None:
            share = (await self.progress(number)).share
            done = "" if share is None else f", {share:.0%} of its events are folded"
            return ViewNotReady(self.name, f"version {number} is being built{done}{other}", share)
        if self._app.runtime.runs_processors:
            reason = (
                f"version {number} is being built, which this process has just begun{other}; wait "
                "for it with ready()"
            )
        elif number < serving:
            reason = (
                f"version {serving} serves, and this process does not declare it: declare it here "
                f"too, as version {number} was dropped or never built"
            )
        else:
            reason = (
                f"version {number} is not built yet: no process that runs the app with it (streams "
                f"run, async with app) has begun{other}"
            )
        return ViewNotReady(self.name, reason)

    async def documents_missing(self, error: NotFound) -> ViewNotReady:
        """Why the documents of a version that serves, as far as was heard, are not there."""
        await self._load_view()
        if self.newest_serving() is None:
            return await self._not_ready_error()
        return ViewNotReady(self.name, f"its documents are not there: {error}")

    async def promote(self, number: int) -> None:
        """Let a version serve.

        :raises ViewNotReady: nobody has begun to build it.
        """
        await self._append_decision(promote, number)
        if self.known.find_version(number) is None:
            raise await self._not_ready_error()

    async def retry(self, number: int, partition: int, key: bytes, timeout: float) -> bool:  # noqa: ASYNC109
        """Have a document folded on; whether that was done in time.

        :raises InvalidValue: there are too many such requests.
        """
        return await self.registry.retry(
            self.name, number, partition, key, timeout, self._changed.set
        )

    def describe_pending_work(self, number: int) -> str:
        """What keeps a version from serving that is to serve, in words (any thread)."""
        is_awaited = self.promotes[number] and number == max(self.versions)
        if is_awaited and self.newest_serving() != number and self._app.runtime.runs_processors:
            return f"view {self.name}: version {number} is being built"
        return ""

    def health(self, number: int) -> ViewHealth:
        """How one version is (any thread)."""
        counts = self.versions[number].all_counts()
        waiting = tuple(
            f"{topic}/{partition}: {each.waiting}"
            for (topic, partition), each in counts.items()
            if each.waiting
        )
        return ViewHealth(
            serving=self.newest_serving(),
            promoted=self.known.promoted,
            waiting=waiting,
            stopped=sum(len(each.stopped) for each in counts.values()),
        )

    def stats(self, number: int) -> ViewStats:
        """Figures of one version here (any thread)."""
        counts = self.versions[number].counts.copy().values()
        every = self.versions[number].all_counts().values()
        return ViewStats(
            self.name,
            number,
            events=sum(each.events for each in counts),
            waiting=sum(bool(each.waiting) for each in every),
            serving=self.is_open and self.newest_serving() == number,
        )

    def backlog(self, number: int) -> ViewBacklog:
        """What the log says of one version; blocks.

        :raises LogError: it does not answer.
        """
        tracker = self.versions[number].tracker(self._app.log)
        progress = tracker.progress()
        lag = None
        if progress.folded is not None and progress.total is not None:
            lag = progress.total - progress.folded
        return ViewBacklog(self.name, number, lag, progress.share, tracker.count_stopped())

    async def progress(self, number: int) -> FoldingProgress:
        """How far a version has come."""
        return await run_in_thread(self.versions[number].tracker(self._app.log).progress)


async def wait_until(is_reached: Callable[[], bool], deadline: float) -> None:
    """Ask again and again, at first often, until something is reached.

    :param deadline: on :func:`time.monotonic`.
    :raises TimeoutError: it is not, in time.
    """
    pause = 0.001
    while not await run_in_thread(is_reached):
        if time.monotonic() >= deadline:
            raise TimeoutError
        await asyncio.sleep(pause)
        pause = min(0.05, pause * 1.5)
